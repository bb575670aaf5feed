"""Statistics of the values of pixels: their distribution, its moments, and how many of them stand
out among their neighbours.
"""

import numpy as np
import numpy.typing as npt

from astrogen.darkmatter.statistics.maps import checked_edges, checked_maps, count_in_bins
from astrogen.errors import InputError


def pixel_pdf(maps: npt.ArrayLike, *, edges: npt.ArrayLike) -> np.ndarray:
    """Probability density of the pixels of each map; pixels outside the edges count in the total
    alone.

    Parameters
    ----------
    maps : array [batch, height, width]
    edges : array [bin + 1], ascending, finite

    Returns
    -------
    array [batch, bin], per unit of the map
    """
    maps, edges = checked_maps(maps, "pixel_pdf"), checked_edges(edges, "pixel_pdf")
    rows = np.repeat(np.arange(len(maps)), maps[0].size)
    return count_in_bins(rows, maps.ravel(), edges, num_rows=len(maps)) / (
        maps[0].size * np.diff(edges)
    )


def moments(maps: npt.ArrayLike) -> np.ndarray:
    """Mean, standard deviation, skewness and excess kurtosis of the pixels of each map, as an array
    [batch, 4].

    Biased, as scipy.stats has them. Of all maps together: moments(maps.reshape(1, -1,
    maps.shape[-1])).

    Raises
    ------
    ValueError : a map is constant.
    """
    maps = checked_maps(maps, "moments")
    pixels = maps.reshape(len(maps), -1).astype(float)
    mean = pixels.mean(1)
    centred = pixels - mean[:, None]
    variance = np.mean(centred**2, 1)
    if not np.all(variance > 0):
        raise InputError(
            f"moments: every map must vary, got {int(np.sum(variance == 0))} constant maps; leave"
            " them out"
        )
    return np.stack(
        [
            mean,
            np.sqrt(variance),
            np.mean(centred**3, 1) / variance**1.5,
            np.mean(centred**4, 1) / variance**2 - 3,
        ],
        1,
    )


def peak_counts(maps: npt.ArrayLike, *, edges: npt.ArrayLike) -> np.ndarray:
    """Number of peaks of each map by height: pixels above all eight neighbours.

    Pixels on the map's border have fewer and never count.

    Parameters
    ----------
    maps : array [batch, height, width]
    edges : array [bin + 1] of heights, ascending; the first and the last may be infinite

    Returns
    -------
    array [batch, bin], peaks per map
    """
    maps, edges = checked_maps(maps, "peak_counts"), checked_edges(edges, "peak_counts")
    height, width = maps.shape[1:]
    neighbours = [
        maps[:, 1 + y : height - 1 + y, 1 + x : width - 1 + x]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if (y, x) != (0, 0)
    ]
    centre = maps[:, 1:-1, 1:-1]
    peaks = centre > np.maximum.reduce(neighbours)
    return count_in_bins(np.nonzero(peaks)[0], centre[peaks], edges, num_rows=len(maps))


def minimum_counts(maps: npt.ArrayLike, *, edges: npt.ArrayLike) -> np.ndarray:
    """Number of minima of each map by value: pixels below all eight neighbours.

    Arguments and result as those of `peak_counts`.
    """
    flipped = -checked_edges(edges, "minimum_counts")[::-1]
    return peak_counts(-checked_maps(maps, "minimum_counts"), edges=flipped)[:, ::-1]
