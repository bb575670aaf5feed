"""From draws to a Result: means, goodness of fit, and the verdict."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from astrogen.data.frames import deconvolved_wcs
from astrogen.errors import InputError
from astrogen.galaxies.quantities import mean_and_error
from astrogen.galaxies.result import ExposureFit, Result, Source
from astrogen.inference.verdict import (
    NO_FIT,
    compare,
    edge_significance,
    judge,
    judge_fit,
    judge_flux,
    name_in,
)

CENTRE_SIGMA = 2.5  # deconvolved pixels, of the weight that says where a galaxy is


class Grid(NamedTuple):
    """Where deconvolved images lie: arcsec per pixel, their Gaussian resolution (FWHM, arcsec), and
    (x, y) arcsec of their middle from the middle of the first stamp.
    """

    prior_scale: float
    target_fwhm: float
    place: tuple = (0.0, 0.0)


class Drawn(NamedTuple):
    """Draws of one galaxy: images [num_draws, band, height, width], flux per deconvolved pixel;
    shifts [num_draws, 2], arcsec from the middle of the first stamp; latents [num_draws, d]; fluxes
    [num_draws, band] of all the light, or None: of what the images hold.
    """

    images: np.ndarray
    shifts: np.ndarray
    latents: np.ndarray
    fluxes: np.ndarray | None = None


class Colours(NamedTuple):
    """The bands of a galaxy, the one whose image the prior describes, and the strength of its
    colour gradients.
    """

    bands: tuple = ("",)
    reference: str = ""
    colour: float = 0.0


def make_source(first, name, grid, drawn, *, residual_amplitude, colours=None, models=()):
    """One galaxy, from draws of its images.

    Parameters
    ----------
    first : Observation, the first exposure
    name : str
    grid : Grid; drawn : Drawn; colours : Colours, or None: one band without a name
    residual_amplitude, models : as in `Source`

    Returns
    -------
    Source

    Raises
    ------
    InputError : shapes that do not belong together.
    """
    bands, reference, colour = colours or Colours()
    draws = np.asarray(drawn.images, np.float32)
    fluxes = draws.sum((2, 3), np.float64) if drawn.fluxes is None else drawn.fluxes
    of_draws = {
        "flux_draws": np.asarray(fluxes, np.float32),
        "shift_draws": np.asarray(drawn.shifts, np.float32),
        "latent_draws": np.asarray(drawn.latents, np.float32),
    }
    _check_draws(draws, len(bands), of_draws)
    images, deviations = _mean_and_deviation(draws)
    place, prior_scale = tuple(map(float, grid.place)), float(grid.prior_scale)
    x, y = _pixel_of(first, place, prior_scale, images[list(bands).index(reference)])
    return Source(
        name=name,
        bands=tuple(bands),
        reference=reference,
        place=place,
        x=x,
        y=y,
        prior_scale=prior_scale,
        target_fwhm=float(grid.target_fwhm),
        wcs=_wcs_of(first, place, prior_scale, draws.shape[2:]),
        images=images,
        images_std=deviations,
        draws=draws,
        **of_draws,
        models=tuple(np.asarray(model, np.float32) for model in models),
        colour=float(colour),
        residual_amplitude=float(residual_amplitude),
    )


def _check_draws(draws, num_bands, of_draws):
    if draws.ndim != 4 or draws.shape[1] != num_bands:
        raise InputError(
            f"make_source: draws must be [num_draws, {num_bands} bands, height, width], got shape"
            f" {draws.shape}; keep the axes of the draws and of the bands"
        )
    for name, values in of_draws.items():
        if len(values) != len(draws):
            raise InputError(
                f"make_source: {name} must have one row for each of the {len(draws)} draws, got"
                f" {len(values)}; pass the same draws"
            )


def _mean_and_deviation(draws):
    if not len(draws):
        blank = np.zeros(draws.shape[1:], np.float32)
        return blank, blank
    return (
        draws.mean(0, np.float64).astype(np.float32),
        draws.std(0, dtype=np.float64).astype(np.float32),
    )


def _pixel_of(first, place, prior_scale, image):
    """(x, y) pixels from 0 of the first exposure where a galaxy stands."""
    middle = (np.array(first.image.shape[::-1]) - 1) / 2
    x, y = (np.asarray(place) + prior_scale * _centroid(image)) / first.pixel_scale + middle
    return float(x), float(y)


def _wcs_of(first, place, prior_scale, shape):
    """WCS of deconvolved images whose middle is at a place; None where the exposure has none."""
    if first.wcs is None:
        return None
    wcs = deconvolved_wcs(
        first.wcs, first.image.shape, ratio=first.pixel_scale / prior_scale, shape=shape
    )
    wcs.wcs.crpix = wcs.wcs.crpix - np.asarray(place) / prior_scale
    wcs.wcs.set()
    return wcs


def _centroid(image):
    """Gaussian-weighted centroid (x, y) in pixels from the middle; the weight follows it."""
    y, x = (np.arange(side) - (side - 1) / 2 for side in image.shape)
    centre = np.zeros(2)
    for _ in range(20):
        across, down = (
            np.exp(-0.5 * ((side - middle) / CENTRE_SIGMA) ** 2)
            for side, middle in zip((x, y), centre, strict=True)
        )
        light = image * across * down[:, None]
        if not light.sum() > 0:
            return np.zeros(2)
        # A Gaussian-weighted offset of a Gaussian is half of the true one.
        centre = np.clip(
            centre + 1.5 * (np.array([light.sum(0) @ x, light.sum(1) @ y]) / light.sum() - centre),
            -len(x) / 4,
            len(x) / 4,
        )
    return centre


def make_exposure(observation, *, light, background_draws, num_fitted=0.0, band=""):
    """What was fitted to one exposure.

    Parameters
    ----------
    observation : Observation
    light : array [h, w], flux per observed pixel: posterior mean of all galaxies convolved with the
        PSF, without background
    background_draws : array [num_draws], flux per observed pixel
    num_fitted : float, effective number of parameters that this exposure fixed; taken off the
        degrees of freedom

    Returns
    -------
    ExposureFit

    Raises
    ------
    InputError : the light does not lie on the observed grid.
    """
    light, background_draws = np.asarray(light), np.asarray(background_draws, np.float32)
    if light.shape != observation.image.shape:
        raise InputError(
            f"make_exposure: light must have the observation's shape {observation.image.shape}, got"
            f" {light.shape}; render it on the observed grid"
        )
    level = background_draws.mean(dtype=np.float64) if len(background_draws) else 0.0
    model = (light + level).astype(np.float32)
    residual = np.where(observation.mask, 0, observation.image - model).astype(np.float32)
    is_sound = observation.status == "ok" and np.isfinite(model).all()
    fit = compare(residual, model - level, observation, num_fitted=num_fitted) if is_sound else None
    return ExposureFit(observation, band, model, residual, background_draws, fit or NO_FIT)


def make_result(sources, exposures, *, method, diagnostics, provenance, status=()):
    """Turn posterior draws into a Result: draws that are not finite left out, the fit judged.

    Parameters
    ----------
    sources : sequence of Source, with the same number of draws
    exposures : sequence of ExposureFit
    method : str, how the draws were made
    diagnostics : dict of str -> float; see `verdict.judge`
    provenance : dict of JSON types
    status : further sentences, each `word: explanation`; one that begins with `not_converged` makes
        converged False

    Returns
    -------
    Result
    """
    finite = _finite_draws(sources, exposures)
    if exposures[0].observation.status == "no_data":
        reason = "no_data: every pixel is masked"
    elif not finite.any() or not all(np.isfinite(one.model).all() for one in exposures):
        reason = "not_converged: the posterior is not finite; look at the input images"
    else:
        reason = None
    if reason:
        finite, sentences = np.zeros(len(finite), bool), [reason]
        exposures = [_emptied(exposure) for exposure in exposures]
    if not finite.all():
        sources = [_of_draws(source, exposures[0].observation, finite) for source in sources]
        exposures = [
            replace(exposure, background_draws=exposure.background_draws[finite])
            for exposure in exposures
        ]
    if not reason:
        sentences = [
            *_judge(sources, exposures, diagnostics, num_lost=int((~finite).sum())),
            *status,
        ]
    return Result(
        sources=tuple(sources),
        exposures=tuple(exposures),
        method=method,
        status=tuple(sentences),
        converged=not any(
            sentence.startswith(("not_converged", "no_data")) for sentence in sentences
        ),
        diagnostics=dict(diagnostics),
        provenance=dict(provenance),
    )


def _finite_draws(sources, exposures):
    """Which draws are finite in all that they say: bool [num_draws]."""
    arrays = [
        array
        for source in sources
        for array in (source.draws, source.flux_draws, source.shift_draws, source.latent_draws)
    ]
    arrays += [exposure.background_draws for exposure in exposures]
    return np.all([np.isfinite(one).all(tuple(range(1, one.ndim))) for one in arrays], axis=0)


def _emptied(exposure):
    """Zeros, where nothing could be fitted."""
    blank = np.zeros_like(exposure.model)
    return replace(exposure, model=blank, residual=blank, fit=NO_FIT)


def _of_draws(source, first, chosen):
    """A source of some of its draws only, bool [num_draws]."""
    draws = source.draws[chosen]
    images, deviations = _mean_and_deviation(draws)
    x, y = _pixel_of(first, source.place, source.prior_scale, images[source.reference_band])
    return replace(
        source,
        x=x,
        y=y,
        images=images,
        images_std=deviations,
        draws=draws,
        flux_draws=source.flux_draws[chosen],
        shift_draws=source.shift_draws[chosen],
        latent_draws=source.latent_draws[chosen],
    )


def _judge(sources, exposures, diagnostics, *, num_lost):
    """What stands against a fit, in sentences."""
    fluxes = [
        mean_and_error(source.flux_draws[:, source.reference_band].astype(float))
        for source in sources
    ]
    edges = [
        edge_significance(exposure.model - exposure.background[0], exposure.observation)
        for exposure in exposures
    ]
    if len(sources) == len(exposures) == 1:
        fits = judge_fit(exposures[0].fit, fluxes[0])
    else:
        # A galaxy that one exposure does not show may stand in the others.
        detection = np.sqrt(sum(max(exposure.fit.detection, 0.0) ** 2 for exposure in exposures))
        fits = [
            name_in(exposure.name, sentence)
            for exposure in exposures
            for sentence in judge_fit(exposure.fit._replace(detection=float(detection)))
        ]
        fits += [
            name_in(source.name, sentence)
            for source, flux in zip(sources, fluxes, strict=True)
            for sentence in judge_flux(flux)
        ]
    # Galaxies at the edge of a field are cut off as a matter of course; of a lone one the exposure
    # that shows most of it counts.
    edge = min(edges) if len(sources) == 1 else 0.0
    return judge(diagnostics, fits=fits, num_lost=num_lost, edge=edge)
