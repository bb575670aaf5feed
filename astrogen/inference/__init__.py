"""From a log-density to draws: climb to the mode, approximate, sample, and say how far to trust the
result. Knows nothing of images.

Chains are imported on first use: TensorFlow Probability, whose kernels they are made of, takes half
a second to import, and the Laplace approximation does without.
"""

from importlib import import_module

from astrogen.inference import diagnostics
from astrogen.inference.climb import Climb, find_map, find_map_multi
from astrogen.inference.contracts import Sampling
from astrogen.inference.laplace import (
    Laplace,
    draw_gaussian,
    gaussian_log_density,
    laplace,
    resample,
)

_HOMES = {"Chains": "hmc", "sample_hmc": "hmc"}

__all__ = [
    "Chains",
    "Climb",
    "Laplace",
    "Sampling",
    "diagnostics",
    "draw_gaussian",
    "find_map",
    "find_map_multi",
    "gaussian_log_density",
    "laplace",
    "resample",
    "sample_hmc",
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
