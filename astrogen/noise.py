"""Noise as an image itself tells it: by most of its pixels, and by those at its border."""

import numpy as np
import numpy.typing as npt

NORMAL = 1.4826  # standard deviation of normals over their median absolute deviation


def robust_sigma(values: npt.ArrayLike) -> float:
    """Standard deviation of most values [n]: from their median absolute deviation; a float."""
    values = np.asarray(values)
    return float(NORMAL * np.median(np.abs(values - np.median(values))))


def outermost_eighth(shape: tuple[int, int]) -> np.ndarray:
    """The border of a stamp: bool [height, width], as deep as an eighth of the shorter side."""
    height, width = shape
    depth = max(1, min(height, width) // 8)
    border = np.ones((height, width), bool)
    border[depth : height - depth, depth : width - depth] = False
    return border
