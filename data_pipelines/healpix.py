"""Squares cut from a full sky in HEALPix pixels of RING order (Gorski et al.

2005, sections 4 and 5), in tangent planes side by side.
"""

from typing import Any

import numpy as np

from astrogen.errors import InputFileError
from astrogen.types import FilePath

SUBSAMPLES = 3  # points along a side of a pixel over which the sky is averaged
SPACING = (
    1.05  # of the squares' centres, in their widths: a square's far corners reach beyond its middle
)
POLE_GAP = np.radians(10)  # left out around the poles
ARCMIN = np.pi / 180 / 60  # radian


def pixel_at(num_side: int, cos_theta: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Number of the RING pixel at cosines of colatitude and longitudes (radian), arrays of one
    shape.
    """
    cos_theta, quarter = np.asarray(cos_theta, float), np.mod(longitude, 2 * np.pi) / (np.pi / 2)
    return np.where(
        np.abs(cos_theta) <= 2 / 3,
        _equatorial(num_side, cos_theta, quarter),
        _polar(num_side, cos_theta, quarter),
    )


def _equatorial(num_side, cos_theta, quarter):
    rising = np.floor(num_side * (0.5 + quarter - 0.75 * cos_theta)).astype(int)
    falling = np.floor(num_side * (0.5 + quarter + 0.75 * cos_theta)).astype(int)
    ring = num_side + 1 + rising - falling
    # Every other ring starts half a pixel later.
    along = (rising + falling - num_side + 1 + (ring + 1) % 2) // 2 % (4 * num_side)
    return 2 * num_side * (num_side - 1) + 4 * num_side * (ring - 1) + along


def _polar(num_side, cos_theta, quarter):
    within, reach = quarter % 1, num_side * np.sqrt(3 * (1 - np.abs(cos_theta)))
    ring = np.floor(within * reach).astype(int) + np.floor((1 - within) * reach).astype(int) + 1
    along = np.floor(quarter * ring).astype(int) % (4 * ring)
    return (
        np.where(cos_theta > 0, 2 * ring * (ring - 1), 12 * num_side**2 - 2 * ring * (ring + 1))
        + along
    )


def square_centres(width: float) -> Any:
    """Longitudes and latitudes (radian) of squares of a width (radian) that do not overlap, [num]
    each, from south to north.
    """
    centres = []
    limit = np.pi / 2 - POLE_GAP
    for latitude in np.arange(-limit + width / 2, limit - width / 2, SPACING * width):
        widest = SPACING * width / np.cos(abs(latitude) + width / 2)
        longitudes = np.arange(int(2 * np.pi / widest)) * widest
        centres.append(np.stack([longitudes, np.full(len(longitudes), latitude)]))
    return np.concatenate(centres, axis=1)


def cut_squares(sky: np.ndarray, path: FilePath, *, side: int, pixel_scale: float) -> np.ndarray:
    """All squares of a sky: the mean of nearest values over every pixel of tangent planes.

    Parameters
    ----------
    sky : ndarray [12 num_side^2], RING order
    path : path, for errors
    side, pixel_scale : int and float, pixels along a side and arcmin per pixel

    Raises
    ------
    astrogen.data.images.InputFileError : not a full sky, or too coarse.
    """
    sky = sky.ravel()
    num_side = int(round(np.sqrt(len(sky) / 12)))
    if 12 * num_side**2 != len(sky):
        raise InputFileError(
            path,
            f"cut_squares: sky must have 12 nside^2 pixels, got {len(sky)}; give a full HEALPix map"
            " in RING order",
        )
    own_scale = np.sqrt(np.pi / 3) / num_side / ARCMIN
    if own_scale > pixel_scale:
        raise InputFileError(
            path,
            f"cut_squares: pixels must be at most {pixel_scale} arcmin, got {own_scale:.3g} at"
            f" nside {num_side}; the sky is too coarse",
        )
    offset = (
        (np.arange(side * SUBSAMPLES) + 0.5 - side * SUBSAMPLES / 2)
        * pixel_scale
        * ARCMIN
        / SUBSAMPLES
    )
    x, y = np.meshgrid(offset, offset)
    squares = [
        _square(sky, num_side, x, y, *centre)
        for centre in square_centres(side * pixel_scale * ARCMIN).T
    ]
    return np.stack(squares)


def _square(sky, num_side, x, y, longitude, latitude):
    """One tangent plane (gnomonic), x to the east, y to the north, averaged over SUBSAMPLES squared
    points.
    """
    depth = np.cos(latitude) - y * np.sin(latitude)
    up = np.sin(latitude) + y * np.cos(latitude)
    values = sky[
        pixel_at(num_side, up / np.sqrt(1 + x**2 + y**2), longitude + np.arctan2(x, depth))
    ]
    side = len(values) // SUBSAMPLES
    return values.reshape(side, SUBSAMPLES, side, SUBSAMPLES).mean(axis=(1, 3))
