"""Minkowski functionals of the parts of a map above a threshold: area, length of the border, Euler
characteristic.
"""

import numpy as np
import numpy.typing as npt

from astrogen.darkmatter.statistics.maps import (
    checked_edges,
    checked_maps,
    checked_pixel_scale,
    count_in_bins,
)
from astrogen.errors import InputError


def minkowski_functionals(
    maps: npt.ArrayLike, *, pixel_scale: float, thresholds: npt.ArrayLike
) -> np.ndarray:
    """V0, V1 and V2 of each map, from the field's derivatives (Schmalzing & Gorski 1998, eq.

    12, 13, 18-20).

    V0 is the share of the area above the threshold, V1 a quarter of the border's length per area,
    V2 the Euler characteristic per area. The border is where the map crosses the threshold: pixels
    within half a step of the thresholds stand for it. Derivatives are central differences of pixels
    inside the map, so that no edge enters.

    Parameters
    ----------
    maps : array [batch, height, width]
    pixel_scale : float, arcmin per pixel
    thresholds : array [threshold], evenly spaced, at least two

    Returns
    -------
    array [batch, 3, threshold]: V0; V1 per arcmin; V2 per arcmin^2

    Raises
    ------
    ValueError : thresholds that are not evenly spaced.
    """
    maps = checked_maps(maps, "minkowski_functionals")
    checked_pixel_scale(pixel_scale, "minkowski_functionals")
    thresholds = checked_edges(thresholds, "minkowski_functionals")
    steps = np.diff(thresholds)
    if not np.allclose(steps, steps.mean(), rtol=1e-6):
        raise InputError(
            f"minkowski_functionals: thresholds must be evenly spaced, got steps from {steps.min()}"
            f" to {steps.max()}; use np.linspace"
        )
    gradient, turning = _derivatives(maps)
    value = maps[:, 1:-1, 1:-1]
    rows, num = np.repeat(np.arange(len(maps)), value[0].size), len(maps)
    above = count_in_bins(rows, value.ravel(), np.append(thresholds, np.inf), num_rows=num)[
        :, ::-1
    ].cumsum(1)[:, ::-1]
    edges = np.append(thresholds, thresholds[-1] + steps[-1]) - steps.mean() / 2
    length, curvature = (
        count_in_bins(rows, values.ravel(), edges, num_rows=num, weights=weights.ravel())
        / steps.mean()
        for values, weights in ((value, gradient), (value, turning))
    )
    area = value[0].size
    return np.stack(
        [
            above / area,
            length / (4 * area * pixel_scale),
            curvature / (2 * np.pi * area * pixel_scale**2),
        ],
        1,
    )


def _derivatives(maps):
    """Length of the gradient, and it times the curvature of the contour through the pixel, each
    [batch, height - 2, width - 2] in units of pixels.
    """
    maps = maps.astype(float)
    centre, up, down, left, right = (
        maps[:, 1:-1, 1:-1],
        maps[:, 2:, 1:-1],
        maps[:, :-2, 1:-1],
        maps[:, 1:-1, :-2],
        maps[:, 1:-1, 2:],
    )
    x, y = (right - left) / 2, (up - down) / 2
    xx, yy = right - 2 * centre + left, up - 2 * centre + down
    xy = (maps[:, 2:, 2:] - maps[:, 2:, :-2] - maps[:, :-2, 2:] + maps[:, :-2, :-2]) / 4
    square = x**2 + y**2
    turning = (2 * x * y * xy - x**2 * yy - y**2 * xx) / np.where(square > 0, square, 1)
    return np.sqrt(square), turning
