"""From a log-density to draws: climb to the mode, approximate, sample, and say how far to trust the
result. Knows nothing of images.
"""

from astrogen.inference import diagnostics
from astrogen.inference.climb import Climb, find_map, find_map_multi
from astrogen.inference.hmc import Chains, sample_hmc
from astrogen.inference.laplace import (
    Laplace,
    draw_gaussian,
    gaussian_log_density,
    laplace,
    resample,
)

__all__ = [
    "Chains",
    "Climb",
    "Laplace",
    "diagnostics",
    "draw_gaussian",
    "find_map",
    "find_map_multi",
    "gaussian_log_density",
    "laplace",
    "resample",
    "sample_hmc",
]
