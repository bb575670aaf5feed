"""From a log-density to draws: climb to the mode, approximate, sample, and say how far to trust the
result. Knows nothing of images.

Names are imported on first use: who reads results, and what was said of them, needs no TensorFlow;
and the Laplace approximation no TensorFlow Probability.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Climb": "climb",
    "find_map": "climb",
    "find_map_multi": "climb",
    "Sampling": "contracts",
    "draw_gaussian": "laplace",
    "gaussian_log_density": "laplace",
    "resample": "laplace",
    "Chains": "hmc",
    "sample_hmc": "hmc",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
