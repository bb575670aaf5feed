"""Several exposures, bands and galaxies at once: one morphology for each galaxy, each exposure with
its own telescope and orientation, neighbours that share the light.

Given the images of its neighbours, a galaxy in any number of exposures and bands is the problem of
`posterior`: exposures add up in its sufficient statistics, and what differs between bands is
integrated out (`bands`). A galaxy alone is therefore inferred as in `deconvolve`. Several begin
one by one (`mode`); those that share light are then one posterior (`blend`), from which chains are
drawn (`draws`).
"""

import numpy as np

from astrogen.data.detection import detect, read_positions
from astrogen.data.frames import find_frames
from astrogen.data.observation import to_unit
from astrogen.data.sky import judge_sky
from astrogen.data.units import is_known
from astrogen.errors import InputError
from astrogen.galaxies import posterior
from astrogen.galaxies.conclude import Colours, Drawn, Grid, make_exposure, make_result, make_source
from astrogen.galaxies.deconvolve import check_options, provenance_of
from astrogen.galaxies.draws import climb_together, draw_alone, draw_mode, draw_together
from astrogen.galaxies.mode import begin, climb_in_turn
from astrogen.galaxies.plans import How, check_overlap, plan_alone, plan_several, seeds_of
from astrogen.galaxies.scene import Scene, light_of, make_galaxy, tensor, whole_light
from astrogen.priors import load_prior
from astrogen.processes import refuse_fork

# Scales of exposures of one band that differ by so much, and so many sigma, are no matter of noise
# or of the PSF.
SCALES_APART, SCALE_SIGMAS = 0.1, 5.0


def deconvolve_jointly(
    observations,
    *,
    bands=None,
    aligned=False,
    prior="galaxy",
    method="auto",
    num_draws=200,
    seed,
    prior_scale=None,
    background="fit",
):
    """Infer one galaxy from several exposures, in one band or several.

    All exposures show one morphology; each has its own PSF, pixel scale, orientation, depth, mask
    and background. Exposures of one band must be calibrated to one flux scale; between bands fluxes
    are free and colour gradients allowed. The first exposure gives the axes of the deconvolved
    images.

    Parameters
    ----------
    observations : sequence of Observation, each with a WCS unless there is one, or `aligned`; what
        has another unit than the first is converted
    bands : sequence of str, one for each observation, or None: all of one band
    aligned : bool, the exposures share their pixel grid, and no WCS is asked for
    prior, method, num_draws, seed, background : as in `astrogen.deconvolve`
    prior_scale : float or None, arcsec/pixel of the deconvolved image

    Returns
    -------
    Result of one source

    Raises
    ------
    ValueError : an option is wrong, exposures do not overlap, lack a WCS, or have units of which
        one cannot be converted to the other.
    """
    how = How(method, num_draws, seed, prior_scale, background)
    return _fit("deconvolve_jointly", observations, bands, aligned, None, prior, how)


def deblend(
    observations,
    *,
    sources=None,
    bands=None,
    aligned=False,
    prior="galaxy",
    method="auto",
    num_draws=200,
    seed,
    prior_scale=None,
    background="fit",
):
    """Infer all galaxies of a field together, from one exposure or several.

    Parameters
    ----------
    observations : Observation, or a sequence as in `deconvolve_jointly`
    sources : positions (x, y) [num, 2], pixels from 0 of the first exposure; SkyCoord; or None:
        detected by `astrogen.data.detection.detect`
    method : "map", or any other of `astrogen.deconvolve`: several galaxies are always drawn by
        Hamiltonian Monte Carlo, one as there
    the others : as in `deconvolve_jointly`

    Returns
    -------
    Result

    Raises
    ------
    ValueError : an option is wrong, nothing is detected, a position lies outside, or what
        `deconvolve_jointly` refuses.
    """
    observations = [observations] if hasattr(observations, "psf") else observations
    how = How(method, num_draws, seed, prior_scale, background)
    return _fit(
        "deblend",
        observations,
        bands,
        aligned,
        "detect" if sources is None else sources,
        prior,
        how,
    )


def _fit(caller, observations, bands, aligned, sources, prior, how):
    refuse_fork(caller)
    check_options(caller, how)
    observations = list(observations)
    bands = _check_exposures(caller, observations, bands)
    observations = [to_unit(observation, observations[0].unit) for observation in observations]
    prior = load_prior(prior) if not hasattr(prior, "components") else prior
    scene = Scene(
        observations, bands, find_frames(observations, aligned=aligned), prior, how.background
    )
    seeds = seeds_of(observations[:1], how.seed)[0]
    if sources is None:
        plans = [plan_alone(scene, seeds, how.prior_scale)]
    else:
        positions = (
            detect(observations, aligned=aligned)
            if isinstance(sources, str)
            else read_positions(observations[0], sources)
        )
        plans = plan_several(scene, positions, seeds, how.prior_scale)
    check_overlap(scene, plans)
    galaxies = [make_galaxy(scene, plan) for plan in plans]
    begin(scene, galaxies)
    settled = climb_in_turn(scene, galaxies)
    if len(galaxies) == 1:
        draws = draw_alone(scene, galaxies[0], seeds, method=how.method, num_draws=how.num_draws)
    else:
        groups, settled = climb_together(scene, galaxies)
        draws = (draw_mode if how.method == "map" else draw_together)(
            scene, galaxies, groups, seeds, num_draws=how.num_draws
        )
    draws.told["map_converged"] = min(draws.told["map_converged"], float(settled))
    provenance = provenance_of(prior, how._replace(method=draws.method))
    return _result(scene, galaxies, draws, provenance | {"bands": list(dict.fromkeys(bands))})


def _check_exposures(caller, observations, bands):
    """The bands, one for each exposure."""
    if not observations:
        raise InputError(
            f"{caller}: observations must be at least one, got none; give the exposures of one"
            " field"
        )
    bands = [""] * len(observations) if bands is None else [str(band) for band in bands]
    if len(bands) != len(observations):
        raise InputError(
            f"{caller}: bands must be one for each of the {len(observations)} observations, got"
            f" {len(bands)}; repeat a band for each of its exposures"
        )
    first = observations[0].unit
    for unit in dict.fromkeys(observation.unit for observation in observations):
        if unit != first and not (is_known(unit) and is_known(first) and unit.is_equivalent(first)):
            raise InputError(
                f"{caller}: observations must have one unit, got {str(first) or 'none'} and"
                f" {str(unit) or 'none'}; convert them to one flux scale"
            )
    for observation in observations:
        if observation.status != "ok":
            raise InputError(
                f"{caller}: observations must have good pixels, got none in {observation.name!r};"
                " leave it out"
            )
    return bands


# Results


def _result(scene, galaxies, draws, provenance):
    lights = [
        light_of(scene, galaxy, coefficients)
        for galaxy, coefficients in zip(galaxies, draws.coefficients, strict=True)
    ]
    seen = [sum(light[exposure] for light in lights) for exposure in range(len(scene.stamps))]
    levels = [_levels(scene, exposure, light, draws.rng) for exposure, light in enumerate(seen)]
    unmasked = [
        [
            stamp.unit * whole_light(scene, galaxy, coefficients.mean(1), exposure)
            for exposure, stamp in enumerate(scene.stamps)
        ]
        for galaxy, coefficients in zip(galaxies, draws.coefficients, strict=True)
    ]
    together = [sum(ours) for ours in zip(*unmasked, strict=True)]
    exposures = [
        make_exposure(
            stamp.recorded,
            light=light,
            background_draws=level,
            # what the model follows of the data
            num_fitted=float(scene.levelled(exposure, seen[exposure]).var(0).sum()),
            band=band,
        )
        for exposure, (stamp, light, level, band) in enumerate(
            zip(scene.stamps, together, levels, scene.bands, strict=True)
        )
    ]
    sky = [
        f"{stamp.recorded.name}: {words}"
        for stamp, light, level in zip(scene.stamps, together, levels, strict=True)
        for words in judge_sky(
            stamp, light / stamp.unit, scene.background, error=level.std() / stamp.unit
        )
    ]
    return make_result(
        _sources(scene, galaxies, draws, unmasked),
        exposures,
        method=draws.method,
        diagnostics=draws.told,
        provenance=provenance,
        status=(*unlike_scales(exposures), *draws.status, *sky),
    )


def _levels(scene, exposure, light, rng):
    """Draws [num_draws] of an exposure's background given those of all light [num_draws, n]."""
    stamp, precision = scene.stamps[exposure], scene.precision[exposure]
    level = (scene.white[exposure] - light) @ scene.inverse[exposure] / precision
    noise = rng.standard_normal(len(light)) / np.sqrt(precision)
    return stamp.level + stamp.unit * (level + noise)


def _sources(scene, galaxies, draws, unmasked):
    """The Source of each galaxy; unmasked [galaxy][exposure] : its light in each exposure."""
    first, unit, prior = scene.stamps[0].recorded, scene.stamps[0].unit, scene.prior
    alone, sources = len(galaxies) == 1, []
    for number, galaxy in enumerate(galaxies):
        plan = galaxy.plan
        latent, _, shift, log_amplitude = posterior.split(
            draws.parameters[number], prior.latent_size
        )
        images = np.float32(unit) * prior.images(tensor(draws.coefficients[number])).numpy()
        sources.append(
            make_source(
                first,
                first.name if alone else f"{first.name} {number + 1}",
                Grid(
                    plan.prior_scale,
                    prior.target_fwhm / prior.pixel_scale * plan.prior_scale,
                    plan.place,
                ),
                Drawn(np.moveaxis(images, 0, 1), plan.place + shift * plan.prior_scale, latent),
                colours=Colours(
                    tuple(scene.order),
                    scene.order[galaxy.reference],
                    galaxy.colour if len(scene.order) > 1 else 0.0,
                ),
                models=() if alone else unmasked[number],
                residual_amplitude=np.exp(log_amplitude).mean(),
            )
        )
    return sources


def unlike_scales(exposures):
    """A sentence for each band whose exposures do not have one flux scale.

    An exposure's scale is the factor of the light of all galaxies, beside a free level, that fits
    it best: inverse-variance weighted least squares.

    Parameters
    ----------
    exposures : sequence of `result.ExposureFit`

    Returns
    -------
    list of str
    """
    found = {}
    for exposure in exposures:
        observation = exposure.observation
        weight = np.where(observation.mask, 0.0, 1 / observation.variance.astype(float))
        light = exposure.model - exposure.background[0]
        light = light - np.sum(light * weight) / np.sum(weight)
        norm = np.sum(light**2 * weight)
        scale = np.sum(light * weight * observation.image) / norm if norm > 0 else 1.0
        found.setdefault(exposure.band, []).append(
            (scale, norm**-0.5 if norm > 0 else np.inf, observation)
        )
    sentences = []
    for band, scales in found.items():
        low, high = min(scales, key=lambda s: s[0]), max(scales, key=lambda s: s[0])
        apart = high[0] - low[0]
        if apart > SCALES_APART and apart > SCALE_SIGMAS * np.hypot(low[1], high[1]):
            sentences.append(
                f"zero_point: exposures of one band{band and f' ({band})'} differ in flux,"
                f" {low[2].name} is {low[0]:.2f} and {high[2].name} {high[0]:.2f} times the model:"
                " their units or zero points are not one flux scale; convert them to one, or name"
                " them as different bands"
            )
    return sentences
