"""What is there: each galaxy's place, grid and cell of pixels, before anything is fitted."""

from typing import NamedTuple

import numpy as np

from astrogen.data.frames import from_pixels, inside, no_overlap, to_pixels
from astrogen.errors import InputError
from astrogen.galaxies.deconvolve import SHARPER, plan_of, seen_fwhm_of

LEASH = 2.0  # observed pixels that a galaxy's first position may lie from where it was said to be
LARGEST_CELL = 32  # observed pixels: half the side of the cutout that decides on a galaxy's grid


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
