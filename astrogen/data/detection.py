"""Where the galaxies of a field are: found with sep (Source Extractor: Bertin & Arnouts 1996,
Barbary 2016), or given; and which pixels belong to neighbours.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sep
from astropy.coordinates import SkyCoord
from scipy import ndimage

from astrogen.data.frames import sky_to_pixels
from astrogen.data.observation import Observation
from astrogen.data.sky import clipped_median
from astrogen.errors import InputError
from astrogen.types import Place

THRESHOLD = 3.0  # sigma, per pixel of the matched-filtered image
MIN_AREA = 5  # pixels
CONTRAST = 0.002  # of a peak to be taken as a galaxy of its own
MASK_THRESHOLD = 1.5  # sigma: what is masked reaches further down than what counts as detected
MASK_CONTRAST = 0.02  # and a galaxy's own knots and arms are not to be masked
MASK_GROWTH = 2  # pixels beyond that


def detect(observations: Sequence[Observation], *, aligned: bool = False) -> np.ndarray:
    """Positions of the galaxies of a field, in the first exposure, or in the sum of all where they
    share their pixel grid.

    Parameters
    ----------
    observations : sequence of Observation
    aligned : bool

    Returns
    -------
    float array [num, 2], (x, y) pixels from 0 of the first exposure, brightest first

    Raises
    ------
    ValueError : nothing stands out.
    """
    chosen = observations if aligned else observations[:1]
    levels = [observation.image - _level(observation) for observation in chosen]
    weights = [~observation.mask / observation.variance for observation in chosen]
    total = sum(weights)
    significance = sum(
        weight * level for weight, level in zip(weights, levels, strict=True)
    ) / np.sqrt(np.where(total > 0, total, 1))
    with _only_input_errors("detect", observations[0].name, "give positions by sources="):
        found = sep.extract(
            np.ascontiguousarray(significance, np.float64),
            THRESHOLD,
            err=np.ones_like(significance, np.float64),
            mask=total == 0,
            minarea=MIN_AREA,
            deblend_cont=CONTRAST,
        )
    if not len(found):
        raise InputError(
            f"detect: observations must show a galaxy above {THRESHOLD:g} sigma, got none in"
            f" {observations[0].name!r}; give their positions by sources="
        )
    return np.stack([found["xpeak"], found["ypeak"]], 1)[np.argsort(-found["flux"])].astype(float)


def mask_neighbours(observation: Observation, *, place: Place | None = None) -> Observation:
    """Mask the pixels of what stands beside a galaxy.

    Pixels above 1.5 sigma are shared out among the objects that sep finds, and those of all but the
    galaxy are masked, with two more around them. Light of neighbours further out stays, and knots
    that stand apart from their galaxy are taken for neighbours; where galaxies overlap, fit them
    together (`deblend`).

    Parameters
    ----------
    observation : Observation
    place : (x, y) of the galaxy, pixels from 0; None: the middle of the stamp

    Returns
    -------
    Observation, with a note on what was masked; the same one where nothing stands beside the galaxy
    """
    height, width = observation.image.shape
    x, y = ((width - 1) / 2, (height - 1) / 2) if place is None else place
    significance = np.where(
        observation.mask,
        0,
        (observation.image - _level(observation)) / np.sqrt(observation.variance),
    ).astype(np.float64)
    with _only_input_errors("mask_neighbours", observation.name, "give a mask instead"):
        found, segments = sep.extract(
            significance,
            MASK_THRESHOLD,
            err=1.0,
            mask=observation.mask.copy(),
            minarea=MIN_AREA,
            deblend_cont=MASK_CONTRAST,
            segmentation_map=True,
        )
    if len(found) < 2:
        return observation
    inside = segments[int(np.clip(round(y), 0, height - 1)), int(np.clip(round(x), 0, width - 1))]
    own = inside or 1 + int(np.argmin(np.hypot(found["x"] - x, found["y"] - y)))
    others = (
        ndimage.binary_dilation((segments > 0) & (segments != own), iterations=MASK_GROWTH)
        & (segments != own)
        & ~observation.mask
    )
    mask = observation.mask | others
    image, variance = (
        np.where(mask, np.float32(0), observation.image),
        np.where(mask, np.float32(1), observation.variance),
    )
    for plane in (image, variance, mask):
        plane.setflags(write=False)
    note = f"{int(others.sum())} pixels of {len(found) - 1} neighbours masked"
    return replace(
        observation,
        image=image,
        variance=variance,
        mask=mask,
        notes=(*observation.notes, note),
        status="no_data" if mask.all() else observation.status,
    )


@contextlib.contextmanager
def _only_input_errors(function, name, advice):
    """Turn what sep raises of an image that is too crowded for it, bare exceptions, into
    InputError.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise InputError(
            f"{function}: image must be one that sep can tell apart into galaxies, got {error} for"
            f" {name!r}; {advice}"
        ) from error


def _level(observation):
    """The background: the clipped median of the good pixels."""
    return clipped_median(observation.image[~observation.mask])


def read_positions(observation: Observation, sources: Any) -> np.ndarray:
    """Given positions as pixels of a stamp.

    Parameters
    ----------
    observation : Observation
    sources : SkyCoord, or array [num, 2] of (x, y), pixels from 0

    Returns
    -------
    float array [num, 2]

    Raises
    ------
    ValueError : sky positions without a WCS, a wrong shape, a position outside the stamp.
    """
    if isinstance(sources, SkyCoord):
        if observation.wcs is None:
            raise InputError(
                "deblend: sources must be in pixels where the image has no WCS, got sky positions"
                f" for {observation.name!r}; give (x, y)"
            )
        sources = sky_to_pixels(observation.wcs, sources.reshape(-1), name=observation.name).T
    positions = np.asarray(sources, float)
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions):
        raise InputError(
            f"deblend: sources must be positions (x, y) [num, 2], got shape {positions.shape}; give"
            " one row for each galaxy"
        )
    height, width = observation.image.shape
    outside = ~((positions > -0.5) & (positions < [width - 0.5, height - 0.5])).all(1)
    if outside.any():
        raise InputError(
            f"deblend: sources must lie in the stamp of {width} x {height} pixels, got"
            f" {tuple(np.round(positions[outside][0], 1).tolist())} for {observation.name!r}; leave"
            " it out"
        )
    return positions
