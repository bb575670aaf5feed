"""The grid of the convergence maps; means over pixels of another size, and squares cut from a
larger map.
"""

import numpy as np

SIDE, PIXEL_SCALE = 64, 2.3  # pixels, arcmin per pixel: 2.45 degrees
FIELDS = {
    "kappa": {
        "dtype": "float32",
        "shape": [SIDE, SIDE],
        "unit": "convergence, mean over the pixel; its mean over the map is not subtracted",
    },
    "omega_m": {"dtype": "float32", "shape": [], "unit": "total matter density"},
    "sigma_8": {"dtype": "float32", "shape": [], "unit": "linear rms in spheres of 8 Mpc/h, today"},
    "simulation": {
        "dtype": "int64",
        "shape": [],
        "unit": "number of the simulation the map was drawn from: split by it",
    },
    "index": {"dtype": "int64", "shape": [], "unit": ""},
}


def overlaps(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of every pixel lies in each cell of size 1.

    Parameters
    ----------
    edges : rising ndarray [num_pixels + 1], of the pixels, in cells

    Returns
    -------
    cells : int ndarray [num_cells], those that are touched; may be negative or beyond a periodic
        grid
    shares : float32 ndarray [num_pixels, num_cells], rows sum to 1
    """
    cells = np.arange(np.floor(edges[0]), np.ceil(edges[-1]))
    shared = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return cells.astype(int), (np.clip(shared, 0, None) / np.diff(edges)[:, None]).astype(
        np.float32
    )


def average_pixels(image: np.ndarray, ratio: float) -> np.ndarray:
    """The mean of an image over larger pixels, `ratio` (at most 1) being the size of the old over
    that of the new; what is left at the far edges is lost.
    """
    shares = []
    for length in image.shape:
        # Rounding must not cost the last pixel of an exact fit.
        number = int(np.floor(length * ratio + 1e-6))
        cells, share = overlaps(np.minimum(np.arange(number + 1) / ratio, length))
        shares.append((cells, share))
    (rows, row_shares), (columns, column_shares) = shares
    return row_shares @ image[np.ix_(rows, columns)] @ column_shares.T


def cut_maps(image: np.ndarray, side: int) -> np.ndarray:
    """The squares [num, side, side] that fit into an image side by side."""
    rows, columns = (length // side for length in image.shape)
    kept = image[: rows * side, : columns * side]
    return kept.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
