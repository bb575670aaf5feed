"""How much maps differ: errors of their mean by the jackknife, and whether a set of maps is as
varied as it should be.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from astrogen.darkmatter.statistics.maps import checked_maps
from astrogen.errors import InputError


def jackknife(
    values: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    summary_fn: Callable[[np.ndarray], Any] | None = None,
) -> tuple[Any, Any]:
    """A summary of values per map, and its standard error from leaving out one group after the
    other.

    Maps of one simulation share its structures: with `groups` they are left out together, and the
    error is that of the simulations. With groups of unequal size the error is approximate.

    Parameters
    ----------
    values : array [batch, ...]
    groups : array [batch] of labels or None, each map a group of its own
    summary_fn : function of an array [n, ...] or None, the mean

    Returns
    -------
    (summary, error)

    Raises
    ------
    ValueError : fewer than two groups, or not one label per map.
    """
    values = np.asarray(values, float)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    if labels.shape != values.shape[:1]:
        raise InputError(
            f"jackknife: groups must hold one label for each of {len(values)} maps, got shape"
            f" {labels.shape}; pass the simulation of each map"
        )
    names, index = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"jackknife: groups must be at least two, got {len(names)}; an error needs several"
            " simulations"
        )
    if summary_fn is None:
        summary, left_out = values.mean(0), _means_without(values, index, len(names))
    else:
        summary, left_out = (
            summary_fn(values),
            np.stack([summary_fn(values[index != group]) for group in range(len(names))]),
        )
    return summary, np.sqrt((len(names) - 1) * left_out.var(0))


def _means_without(values, index, num_groups):
    """Mean of all values but those of a group, for each group [group, ...]."""
    sums = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(sums, index, values)
    left = len(values) - np.bincount(index, minlength=num_groups)
    return (values.sum(0) - sums) / left.reshape(-1, *[1] * (values.ndim - 1))


class Diversity(NamedTuple):
    """Whether maps are as varied as independent ones.

    spread : float, mean squared distance of two maps over that of independent maps with the same
        pixels: 1 for independent maps, 0 when all are one map
    nearest : float array [batch], correlation coefficient of each map with the one most like it: 1
        for a copy
    """

    spread: float
    nearest: np.ndarray


def diversity(maps: npt.ArrayLike) -> Diversity:
    """The variety of a set of maps: near 1 and small where maps are independent, towards 0 and 1
    where a generator has collapsed to a few maps.

    The distance is that of pixels; the mean over all pairs of independent maps is twice the
    variance of their pixels. Memory is the square of the number of maps.

    Parameters
    ----------
    maps : array [batch, height, width], at least two; each must vary

    Returns
    -------
    Diversity
    """
    maps = checked_maps(maps, "diversity")
    pixels = maps.reshape(len(maps), -1).astype(float)
    if len(pixels) < 2 or np.any(pixels.var(1) == 0):
        raise InputError(
            f"diversity: maps must be at least two that vary, got {len(pixels)} with"
            f" {int(np.sum(pixels.var(1) == 0))} constant; leave those out"
        )
    spread = pixels.var(0, ddof=1).mean() / np.mean((pixels - pixels.mean()) ** 2)
    unit = pixels - pixels.mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    correlation = unit @ unit.T
    np.fill_diagonal(correlation, -1)
    return Diversity(float(spread), correlation.max(1))
