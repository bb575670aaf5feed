"""The sky under a galaxy: its level at the stamp's border, stamps as inference takes them (without
the level, fluxes in units of the noise), and words on a sky that is not flat.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special

from astrogen.data.observation import Observation
from astrogen.noise import outermost_eighth, robust_sigma

CLIP = 3.0  # sigma, of the level
MIN_BORDER_PIXELS = 16  # good ones; with fewer at the border the whole stamp is looked at
LEFT_IN_SIGMA = 0.5  # of one pixel's noise: a level that a fixed background must not hide
LEFT_IN_ERRORS = 5.0  # of the level itself
UNKNOWN_SIGMA = 1.0  # of a pixel: one pixel of empty sky would tell as much
GRADIENT_P = 1e-7  # of a plane through the residual of a flat sky
GRADIENT_SIGMA = 0.5  # of one pixel's noise, from one end of the stamp to the other
CORRELATED = 4.0  # of resampled images: how many pixels share their noise
FAINT = 0.3  # of the noise: where a model shows less, the residual is the sky's


class Levelled(NamedTuple):
    """An observation as it was recorded, and as inference takes it: without the level of its border
    and in units of `unit`, about one pixel's noise, so that neither a bright sky nor the unit of
    the fluxes costs float32 any digits.

    recorded, observation : Observation
    level, unit : float, flux per pixel of the recorded one; unit is a power of two
    """

    recorded: Observation
    observation: Observation
    level: float
    unit: float


def level_off(observation: Observation, *, background: str, unit: float | None = None) -> Levelled:
    """The Levelled of an observation.

    Parameters
    ----------
    observation : Observation
    background : "fit" (the level of the border is taken off) or "fixed" (it stays)
    unit : float or None, flux; None: by `noise_unit` of this observation

    Returns
    -------
    Levelled; an observation without good pixels stays as it is
    """
    if observation.status != "ok":
        return Levelled(observation, observation, 0.0, 1.0)
    unit = noise_unit([observation]) if unit is None else unit
    level = border_level(observation) if background == "fit" else 0.0
    image = np.where(observation.mask, 0, (observation.image.astype(np.float64) - level) / unit)
    variance = np.where(observation.mask, 1, observation.variance / np.float64(unit) ** 2)
    most = np.finfo(np.float32).max
    taken = replace(
        observation,
        image=np.clip(image, -most, most).astype(np.float32),
        variance=np.minimum(variance, most).astype(np.float32),
    )
    return Levelled(observation, taken, float(level), float(unit))


def noise_unit(observations: Sequence[Observation]) -> float:
    """The power of two next to the noise of a pixel, flux; of several observations to the middle of
    theirs.
    """
    variances = [
        np.median(observation.variance[~observation.mask].astype(np.float64))
        for observation in observations
    ]
    return 2.0 ** round(0.5 * float(np.median(np.log2(variances))))


def border_level(observation: Observation) -> float:
    """Clipped median of the good pixels in the outermost eighth of a stamp: flux per pixel.

    Masked pixels do not count, and neighbours that stand on less than about a third of the border
    hardly do.
    """
    return clipped_median(observation.image[_border(observation)])


def _border(observation):
    """The good pixels [h, w] bool of the outermost eighth; all of them where those are too few."""
    chosen = outermost_eighth(observation.image.shape) & ~observation.mask
    return chosen if chosen.sum() >= MIN_BORDER_PIXELS else ~observation.mask


def clipped_median(pixels: np.ndarray) -> float:
    """Median of pixels [n], clipped from above and below until nothing changes; float64."""
    pixels = pixels.astype(np.float64)
    for _ in range(20):
        kept = pixels[np.abs(pixels - np.median(pixels)) <= CLIP * robust_sigma(pixels)]
        if len(kept) == len(pixels):
            break
        pixels = kept
    return float(np.median(pixels))


def judge_sky(
    stamp: Levelled, light: np.ndarray, background: str, *, error: float
) -> tuple[str, ...]:
    """Sentences on a sky that the fit did not allow for.

    Parameters
    ----------
    stamp : Levelled
    light : array [h, w], of the galaxies as the telescope sees them, in units of `stamp.unit`
    background : "fit" or "fixed"
    error : float, posterior deviation of the fitted level, in units of `stamp.unit`

    Returns
    -------
    tuple of str, `too_small: ...`, `sky_left_in: ...` or `sky_gradient: ...`
    """
    observation = stamp.observation
    sigma = np.sqrt(np.median(observation.variance[~observation.mask]))
    sentences = []
    if error > UNKNOWN_SIGMA * sigma:
        sentences.append(
            "too_small: the good pixels hold too little sky beside the galaxy: its level is known"
            f" to {error * stamp.unit:.3g} a pixel only ({error / sigma:.1f} sigma) and trades"
            " against the galaxy's flux and size, whose errors may be too small; take a larger"
            " cutout, or subtract the sky and hold the background fixed"
        )
    if background == "fixed":
        level = border_level(observation) / sigma
        error = 1.25 / np.sqrt(_border(observation).sum())  # of a median of normals
        if abs(level) > max(LEFT_IN_SIGMA, LEFT_IN_ERRORS * error):
            sentences.append(
                f"sky_left_in: the stamp's border lies at {level * sigma * stamp.unit:.4g} a pixel"
                f" ({level:+.1f} sigma), and a fixed background takes all of it for the galaxy's"
                " light; subtract the sky, let the background be fitted, or take a larger cutout"
            )
    rise, p_value = _plane(observation, light)
    if p_value < GRADIENT_P and rise > GRADIENT_SIGMA * sigma:
        sentences.append(
            f"sky_gradient: the background rises by {rise * stamp.unit:.3g} a pixel"
            f" ({rise / sigma:.1f} sigma) across the stamp, and a flat one was fitted; subtract"
            " the gradient, or mask the neighbour whose light it is"
        )
    return tuple(sentences)


def _plane(observation, light):
    """How far a plane through the residual rises across the stamp where the galaxies are faint, and
    the probability of a better one under a flat sky.
    """
    sigma = np.sqrt(observation.variance.astype(np.float64))
    chosen = ~observation.mask & (np.abs(light) < FAINT * sigma)
    rest = (observation.image - light)[chosen]
    if chosen.sum() < MIN_BORDER_PIXELS:
        return 0.0, 1.0
    height, width = observation.image.shape
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    columns = np.stack([np.ones_like(x), x, y], -1)[chosen] / sigma[chosen, None]
    white = rest / sigma[chosen]
    near = np.abs(white - np.median(white)) < CLIP * max(robust_sigma(white), 1.0)
    columns, white = columns[near], white[near]
    slopes, *_ = np.linalg.lstsq(columns, white, rcond=None)
    flat = columns[:, 0] * (columns[:, 0] @ white) / (columns[:, 0] @ columns[:, 0])
    gain = np.sum((white - flat) ** 2) - np.sum((white - columns @ slopes) ** 2)
    spread = max(1.0, robust_sigma(white - columns @ slopes) ** 2)
    return float(np.abs(slopes[1:]).sum()), float(special.chdtrc(2, gain / spread / CORRELATED))
