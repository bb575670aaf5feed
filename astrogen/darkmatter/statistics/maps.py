"""What all statistics share: a batch of maps that can be trusted, and counting in bins map by
map.
"""

import numpy as np
import numpy.typing as npt

from astrogen.errors import InputError


def checked_maps(maps: npt.ArrayLike, function: str, *, smallest: int = 3) -> np.ndarray:
    """Maps as an array [batch, height, width]; `function` is named in the error.

    Raises
    ------
    ValueError : not three axes, no map at all, a side below `smallest` pixels, or values that are
        not finite.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or not len(maps) or min(maps.shape[1:]) < smallest:
        raise InputError(
            f"{function}: maps must be [batch, height, width] with sides of at least {smallest}"
            f" pixels, got shape {maps.shape}; one map is maps[None]"
        )
    bad = int(np.count_nonzero(~np.isfinite(maps)))
    if bad:
        raise InputError(
            f"{function}: maps must be finite, got {bad} pixels that are not; leave those maps out"
        )
    return maps


def checked_edges(edges: npt.ArrayLike, function: str) -> np.ndarray:
    """Edges of bins as an array, ascending; the first and the last may be infinite.

    Raises
    ------
    ValueError : fewer than two edges, or not ascending.
    """
    edges = np.asarray(edges, float)
    if edges.ndim != 1 or len(edges) < 2 or not np.all(edges[1:] > edges[:-1]):
        raise InputError(
            f"{function}: edges must be at least two ascending numbers, got {edges}; write them as"
            " np.linspace(lowest, highest, number + 1)"
        )
    return edges


def checked_pixel_scale(pixel_scale: float, function: str) -> float:
    """The pixel's side in radian.

    Raises
    ------
    ValueError : not a positive number.
    """
    if not (np.isfinite(pixel_scale) and pixel_scale > 0):
        raise InputError(
            f"{function}: pixel_scale must be a positive number of arcmin, got {pixel_scale}; the"
            " manifest and the card state it"
        )
    return np.deg2rad(pixel_scale / 60)


def count_in_bins(
    rows: np.ndarray,
    values: np.ndarray,
    edges: np.ndarray,
    *,
    num_rows: int,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Histogram of each row: values with edges[i] <= value < edges[i + 1].

    Parameters
    ----------
    rows : int array [n], the row that each value belongs to
    values, weights : arrays [n]
    edges : array [bins + 1], ascending

    Returns
    -------
    float array [num_rows, bins] : sum of the weights, or the number of values
    """
    num_bins = len(edges) - 1
    column = np.searchsorted(edges, values, side="right") - 1
    inside = (column >= 0) & (column < num_bins)
    index = rows[inside] * num_bins + column[inside]
    counts = np.bincount(
        index, None if weights is None else weights[inside], minlength=num_rows * num_bins
    )
    return counts.astype(float).reshape(num_rows, num_bins)
