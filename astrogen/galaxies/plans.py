"""What is there, before anything is fitted: each galaxy's place and grid, how bright it is, and
which pixels are its own.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from astrogen.data.frames import from_pixels, inside, no_overlap, to_pixels
from astrogen.data.observation import Observation
from astrogen.errors import InputError

LEASH = 2.0  # observed pixels that a galaxy's first position may lie from where it was said to be
LARGEST_CELL = 32  # observed pixels: half the side of the cutout that decides on a galaxy's grid
SHARPER = 1.05  # the observed PSF must be at least so much wider than the target
# the deconvolved stamp must hold so much of the light that rises so many sigma above the noise in
# rings
LIGHT_INSIDE, RING_SIGNAL = 0.98, 3.0
FILLED = 0.85  # within this share of its half side
LARGEST_RADIUS = 8.0  # prior pixels, half-light radius: the largest of the training population
CENTRE_SIGMA = 2.5  # prior pixels, of the weight that centred the training population


class How(NamedTuple):
    """How galaxies are fitted; what it means stands in `astrogen.deconvolve`."""

    method: object
    num_draws: int
    seed: int
    prior_scale: float | None
    background: str
    num_chains: int = 4


# One stamp


class StampPlan(NamedTuple):
    """What is decided for one observation before anything is computed. centre: (x, y) arcsec;
    kernel_key: stamps with equal keys share a telescope.
    """

    observation: Observation
    seed: tuple
    prior_scale: float
    centre: np.ndarray
    signal_to_noise: float
    kernel_key: tuple


def seeds_of(observations, seed):
    """A pair of integers for each object, from the run's seed and the object's name, so that its
    draws do not depend on its neighbours.
    """
    seen, pairs = {}, []
    for observation in observations:
        count = seen[observation.name] = seen.get(observation.name, 0) + 1
        digest = hashlib.sha256(f"{seed}/{observation.name}/{count}".encode()).digest()
        pairs.append(
            tuple(
                int.from_bytes(digest[4 * word : 4 * word + 4], "little", signed=True)
                for word in range(2)
            )
        )
    return pairs


def plan_of(observation, seed, prior, prior_scale):
    """The StampPlan of one observation: where its galaxy is, on which grid it is deconvolved, how
    bright it is.
    """
    psf = observation.psf
    ratio = prior.target_fwhm / prior.pixel_scale
    if observation.status != "ok":
        return StampPlan(
            observation, seed, prior_scale or observation.pixel_scale / 2, np.zeros(2), 0.0, ()
        )
    seen_fwhm = seen_fwhm_of(psf, observation.pixel_scale)
    sigma_psf = seen_fwhm / np.sqrt(8 * np.log(2))
    if prior_scale is None:
        prior_scale = _choose_scale(
            *_extent(observation, sigma_psf),
            observation.pixel_scale,
            seen_fwhm / (ratio * SHARPER),
            prior.image_shape[0],
        )
    if seen_fwhm < ratio * prior_scale:
        raise InputError(
            f"deconvolve: prior_scale must leave the target PSF (FWHM {ratio * prior_scale:.3f}"
            f" arcsec) sharper than the observed PSF, got {prior_scale:.4g} arcsec for"
            f" {observation.name!r}, whose PSF has FWHM {seen_fwhm:.3f} arcsec; deconvolution"
            f" beyond the target is not defined: give a prior_scale below {seen_fwhm / ratio:.3f},"
            " or an oversampled PSF"
        )
    centre = _centroid(observation, np.hypot(sigma_psf, CENTRE_SIGMA * prior_scale))
    good = ~observation.mask
    power = (
        float((observation.image[good].astype(float) ** 2 / observation.variance[good]).sum())
        - good.sum()
    )
    # Buckets, not the number itself: an object's treatment must not depend on those beside it.
    signal_to_noise = 30.0 * 2.0 ** (
        0.5 * np.ceil(2 * np.log2(max(np.sqrt(max(power, 1.0)) / 30.0, 1.0)))
    )
    psf_hash = hashlib.sha256(psf.image.tobytes()).hexdigest()
    key = (
        psf_hash,
        psf.pixel_scale,
        psf.pixel_response,
        observation.pixel_scale,
        float(prior_scale),
        signal_to_noise,
        observation.image.shape,
    )
    return StampPlan(observation, seed, float(prior_scale), centre, signal_to_noise, key)


def seen_fwhm_of(psf, pixel_scale):
    """FWHM (arcsec) of the PSF with the observation's pixel response, about."""
    extra = max(pixel_scale**2 - psf.pixel_response**2, 0.0) / 12 * 8 * np.log(2)
    return float(np.sqrt(psf.fwhm**2 + extra))


def _choose_scale(extent, half_light_radius, pixel_scale, coarsest, side):
    """Half the observed pixel; in steps of a quarter of an octave larger until the galaxy fits its
    stamp and the sizes that the prior knows, as long as the
    target stays sharper than the PSF."""
    scale = min(pixel_scale / 2, coarsest)
    while (
        extent > FILLED * side / 2 * scale or half_light_radius > LARGEST_RADIUS * scale
    ) and scale * 2**0.25 <= coarsest:
        scale *= 2**0.25
    return scale


def _grids(observation):
    height, width = observation.image.shape
    return (np.arange(width) - (width - 1) / 2) * observation.pixel_scale, (
        np.arange(height) - (height - 1) / 2
    ) * observation.pixel_scale


def _weight(x, y, centre, sigma):
    return np.exp(-0.5 * ((y[:, None] - centre[1]) / sigma) ** 2) * np.exp(
        -0.5 * ((x - centre[0]) / sigma) ** 2
    )


def _centroid(observation, sigma):
    """Gaussian-weighted centroid (x, y) in arcsec from the stamp's centre; the weight follows it.

    A start only: the position is a parameter.
    """
    x, y = _grids(observation)
    good = ~observation.mask
    centre, limit = np.zeros(2), 0.25 * np.array([np.ptp(x), np.ptp(y)])
    for _ in range(12):
        weight = _weight(x, y, centre, sigma) * good
        light = observation.image * weight
        total, coverage = light.sum(), weight.sum()
        if total <= 0 or coverage <= 0:
            return np.zeros(2)
        # What the mask hides on one side would pull the centroid to the other: subtract the
        # centroid of the weight itself.
        offset = np.array(
            [
                (light * (x - centre[0])).sum() / total
                - (weight * (x - centre[0])).sum() / coverage,
                (light * (y[:, None] - centre[1])).sum() / total
                - (weight * (y[:, None] - centre[1])).sum() / coverage,
            ]
        )
        centre = np.clip(centre + 1.5 * offset, -limit, limit)
    return centre


def _extent(observation, sigma_psf):
    """Radius that holds LIGHT_INSIDE of the galaxy's light, and its half-light radius without the
    PSF, about (arcsec): from the rings about its centroid
    that rise above the noise and the surrounding level."""
    x, y = _grids(observation)
    centre = _centroid(observation, 2 * sigma_psf)
    radius = np.hypot(x - centre[0], y[:, None] - centre[1])
    good = ~observation.mask
    ring = np.minimum(
        (radius / observation.pixel_scale).astype(int), min(observation.image.shape) // 2
    )[good]
    count = np.maximum(np.bincount(ring), 1)
    level = np.bincount(ring, observation.image[good]) / count
    error = np.sqrt(np.bincount(ring, observation.variance[good])) / count
    level = level - np.median(level[-max(len(level) // 5, 1) :])
    faint = np.flatnonzero((level < RING_SIGNAL * error) | (level < 1e-4 * level[0]))
    edge = faint[0] if len(faint) else len(level)
    if not edge:
        return 0.0, 0.0
    # whole rings: what the mask hides counts as its neighbours do
    light = np.cumsum(level[:edge] * (2 * np.arange(edge) + 1))
    outer = (np.arange(edge) + 1) * observation.pixel_scale
    extent, half = np.interp([LIGHT_INSIDE * light[-1], 0.5 * light[-1]], light, outer)
    # Half the light of a round Gaussian lies within 1.18 sigma.
    return float(extent), float(np.sqrt(max(half**2 - (1.18 * sigma_psf) ** 2, 0.0)))


# Several exposures


class Plan(NamedTuple):
    """One galaxy: place (x, y) in arcsec from the middle of the first stamp, arcsec per prior
    pixel, signal-to-noise, and cells [exposure]: pixels nearer to it than to others, bool [h, w].
    """

    place: np.ndarray
    prior_scale: float
    signal_to_noise: float
    cells: list


def _coarsest(scene):
    """Arcsec per prior pixel beyond which the target would be no sharper than some exposure's
    PSF.
    """
    ratio = scene.prior.target_fwhm / scene.prior.pixel_scale
    return (
        min(
            seen_fwhm_of(observation.psf, observation.pixel_scale)
            for observation in scene.observations
        )
        / ratio
        / SHARPER
    )


def plan_alone(scene, seeds, prior_scale):
    """The galaxy in the middle, from the exposure that shows it best."""
    plans = [
        plan_of(observation, seeds, scene.prior, prior_scale) for observation in scene.observations
    ]
    best = int(np.argmax([plan.signal_to_noise for plan in plans]))
    frame = scene.frames[best]
    place = np.linalg.solve(frame.matrix, plans[best].centre - frame.offset)
    cells = [np.ones(observation.image.shape, bool) for observation in scene.observations]
    return Plan(
        place,
        prior_scale or min(plans[best].prior_scale, _coarsest(scene)),
        plans[best].signal_to_noise,
        cells,
    )


def plan_several(scene, positions, seeds, prior_scale):
    """Galaxies at pixels (x, y) of the first exposure; each one's grid and start from the exposure
    where its cell is brightest.
    """
    places = [from_pixels(scene.observations[0], position) for position in positions]
    cells = [
        _cells(observation, [frame.see(place) for place in places])
        for observation, frame in zip(scene.observations, scene.frames, strict=True)
    ]
    plans = []
    for number, place in enumerate(places):
        ours = [cell[number] for cell in cells]
        signal = [
            np.sum(
                (observation.image**2 / observation.variance - 1)[cell & ~observation.mask],
                dtype=float,
            )
            for observation, cell in zip(scene.observations, ours, strict=True)
        ]
        best = int(np.argmax(signal))
        observation, frame = scene.observations[best], scene.frames[best]
        stamp, middle = _cut(observation, to_pixels(observation, frame.see(place)), ours[best])
        plan = plan_of(stamp, seeds, scene.prior, prior_scale) if (~stamp.mask).any() else None
        if plan is None:
            raise InputError(
                "deblend: sources must lie on good pixels, got one at"
                f" {np.round(positions[number], 1)} that is masked; leave it out"
            )
        leash = LEASH * observation.pixel_scale
        seen = from_pixels(observation, middle) + plan.centre
        seen = np.clip(seen, frame.see(place) - leash, frame.see(place) + leash)
        scale = prior_scale or min(plan.prior_scale, _coarsest(scene))
        plans.append(
            Plan(
                np.linalg.solve(frame.matrix, seen - frame.offset),
                scale,
                plan.signal_to_noise,
                ours,
            )
        )
    return plans


def _cells(observation, places):
    """Which pixels are nearest to which place: bool [place, h, w]."""
    height, width = observation.image.shape
    x, y = (np.arange(side) - (side - 1) / 2 for side in (width, height))
    away = [
        np.hypot(
            x * observation.pixel_scale - place[0],
            (y * observation.pixel_scale)[:, None] - place[1],
        )
        for place in places
    ]
    return np.argmin(away, 0) == np.arange(len(places))[:, None, None]


def _cut(observation, position, cell):
    """The surroundings of a position as an Observation in which other galaxies' cells are masked,
    and the pixel (x, y) of its middle.
    """
    column, row = (int(round(number)) for number in position)
    span = 2 * LARGEST_CELL + 1
    window = tuple(slice(centre, centre + span) for centre in (row, column))

    def cut(plane, filler):
        return np.pad(plane, LARGEST_CELL, constant_values=filler)[window]

    bad = cut(observation.mask | ~cell, True)
    image, variance = (
        np.where(bad, 0, cut(observation.image, 0)),
        np.where(bad, 1, cut(observation.variance, 1)),
    )
    return type(observation)(
        image,
        variance,
        bad,
        observation.psf,
        observation.pixel_scale,
        observation.name,
        None,
        observation.unit,
        (),
        "ok",
    ), np.array([column, row])


def check_overlap(scene, plans):
    for observation, frame in zip(scene.observations, scene.frames, strict=True):
        if not any(inside(observation, frame.see(plan.place)) for plan in plans):
            raise no_overlap(scene.observations[0], observation)
