"""Do the axes of a shear field fit together? Mass makes E modes alone, so B modes above what noise
and holes make are a mistake; and where the mistake is one of signs or axes, the field whose axes
are put right has more E modes.

A field whose second component has the other sign, or whose components are exchanged, has as much
power in B as in E (a mode at an angle phi is turned by 4 phi); one that is turned by 45 degrees has
nothing but B.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import fft

from astrogen.data.field import LensingField, runs_to_the_left
from astrogen.instruments.lensing import Grid, shear_kernels

NUM_NOISE = 48  # realisations of the noise
CLEAR = 3.5  # standard deviations of the noise, by which other axes must be better
# and by how many times the largest of NUM_NOISE by chance: fields of a dozen pixels a side have few
# modes, and chance goes further there than a Gaussian's
BEYOND_CHANCE = 1.2
EXCESS = 5.0  # standard deviations, of B modes above those of noise and holes
# Share of the E modes' power that is no certain excess of B modes: mass outside of the field, which
# the expected maps do not have, leaks that much into them where noise is small.
LEAK = 0.05

OTHER_AXES = (
    (
        np.array([[1, 0], [0, -1]]),
        "gamma2 has the other sign: change it (--flip-e2, or leave that out where it was given)",
    ),
    (
        np.array([[0, 1], [1, 0]]),
        "the two components are exchanged: give them in the other order (--shear E1 E2)",
    ),
    (
        np.array([[0, 1], [-1, 0]]),
        "the axes are turned by 45 degrees: look how the components are defined, and give maps of"
        " gamma1 and gamma2 along the pixels' axes",
    ),
)


class Modes(NamedTuple):
    """excess: of the power in B modes over what is expected, in standard deviations, of which LEAK
    is a part; b_over_e: ratio of the powers; better: by how many standard deviations each of
    OTHER_AXES has more E and less B modes than the axes of the field; -inf where they do not
    explain the B modes, or no better than chance does.
    """

    excess: float
    b_over_e: float
    better: tuple


def measure_modes(
    field: LensingField,
    grid: Grid,
    power: np.ndarray,
    expected_shear: np.ndarray,
    *,
    seed: Sequence[int],
) -> Modes:
    """Power in E and B modes of a field, where the signal is expected.

    Parameters
    ----------
    field : LensingField of shear
    grid : Grid
    power : array [n, m // 2 + 1], steradian over the area of a pixel, of the convergence
    expected_shear : array [num, 2, height, width], of maps that are possible (draws)
    seed : sequence of int
    """
    rng = np.random.default_rng(seed)
    good, spread = ~field.mask, np.sqrt(field.variance)
    noise_level = np.median(field.variance[:, good])
    kernels = shear_kernels(grid.n, grid.m) * power / (power + noise_level)

    def noise():
        return rng.normal(size=field.maps.shape) * spread * good

    def modes(shear, axes):
        return _modes(np.tensordot(axes, shear, 1), grid, kernels)

    every = [np.eye(2), *(axes for axes, _ in OTHER_AXES)]
    alone = [noise() for _ in range(NUM_NOISE)]
    by_chance = np.array([[modes(one, axes) for one in alone] for axes in every])
    found = np.array([modes(field.maps, axes) for axes in every])
    # Where noise is stated too small it is so for all axes: the right ones have the least B modes.
    louder = max(1.0, found[:, 1].min() / by_chance[0, :, 1].mean())
    more, more_by_chance = (x[..., 0] - x[..., 1] for x in (found, by_chance))
    gain, chance = more[1:] - more[0], louder * (more_by_chance[1:] - more_by_chance[0])
    # Axes that are right leave at most half of the B modes that are more than noise.
    rest = found[:, 1] - by_chance[0, :, 1].mean()
    explained = (rest[1:] < 0.5 * rest[0]) & (gain > BEYOND_CHANCE * chance.max(1))
    better = np.where(explained, gain / np.std(chance, axis=1), -np.inf)
    possible = [modes((one + noise()) * good, np.eye(2))[1] for one in expected_shear]
    e_mode, b_mode = found[0]
    return Modes(
        float((b_mode - np.mean(possible)) / np.hypot(np.std(possible, ddof=1), LEAK * e_mode)),
        float(b_mode / max(e_mode, np.finfo(float).tiny)),
        tuple(map(float, better)),
    )


def _modes(shear, grid, kernels):
    """Mean squares of the E and the B map of shear [2, height, width] that is zero where masked."""
    around = np.zeros((2, grid.n, grid.m))
    inside = np.s_[..., grid.top : grid.top + grid.height, grid.left : grid.left + grid.width]
    around[inside] = shear
    first, second = fft.rfft2(around)
    both = np.stack(
        [kernels[0] * first + kernels[1] * second, kernels[0] * second - kernels[1] * first]
    )
    return (fft.irfft2(both, (grid.n, grid.m))[inside] ** 2).mean((1, 2))


def sentences_of(modes: Modes, wcs: Any) -> list[str]:
    """What is wrong with the axes, in words, with the likely cause first."""
    best = int(np.argmax(modes.better))
    if modes.better[best] > CLEAR:
        cause = OTHER_AXES[best][1]
        if best == 0 and wcs is not None and runs_to_the_left(wcs):
            cause += "; right ascension runs to the left in the WCS"
        return [
            f"B modes as strong as E modes ({modes.b_over_e:.2f} of their power): it seems that"
            f" {cause}"
        ]
    if modes.excess > EXCESS:
        return [
            f"B modes {modes.excess:.0f} sigma above those that noise and holes make: mass makes"
            " none; look for errors of the shapes, a wrong mask, or noise that is too small"
        ]
    return []
