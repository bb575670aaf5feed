"""Several exposures, bands and galaxies at once: one morphology for each galaxy, each exposure with
its own telescope and orientation, neighbours that share the light.

Given the images of its neighbours, a galaxy in any number of exposures and bands is the problem of
`posterior`: exposures add up in its sufficient statistics, and what differs between bands is
integrated out (`bands`). A galaxy alone is therefore inferred as in `deconvolution`. Several begin
one by one (`mode`); those that share light are then one posterior (`blend`), from which chains are
drawn (`draws`).
"""

import numpy as np

from astrogen import posterior
from astrogen.deconvolution import check_options, provenance_of, seeds_of
from astrogen.detection import detect, read_positions
from astrogen.errors import InputError
from astrogen.frames import find_frames
from astrogen.joint.draws import climb_together, draw_alone, draw_mode, draw_together
from astrogen.joint.mode import begin, climb_in_turn
from astrogen.joint.plans import check_overlap, plan_alone, plan_several
from astrogen.joint.scene import Scene, light_of, make_galaxy, tensor, whole_light
from astrogen.joint_result import make_joint_result, make_source
from astrogen.priors import load_prior


def deconvolve_jointly(
    observations,
    *,
    bands=None,
    aligned=False,
    prior="galaxy",
    method="laplace",
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
    observations : sequence of Observation, of one unit; each with a WCS unless there is one, or
        `aligned`
    bands : sequence of str, one for each observation, or None: all of one band
    aligned : bool, the exposures share their pixel grid, and no WCS is asked for
    prior, method, num_draws, seed, background : as in `astrogen.deconvolve`
    prior_scale : float or None, arcsec/pixel of the deconvolved image

    Returns
    -------
    JointResult of one source

    Raises
    ------
    ValueError : an option is wrong, exposures do not overlap, lack a WCS, or differ in unit.
    """
    return _fit(
        "deconvolve_jointly",
        observations,
        bands,
        aligned,
        None,
        prior,
        method,
        num_draws,
        seed,
        prior_scale,
        background,
    )


def deblend(
    observations,
    *,
    sources=None,
    bands=None,
    aligned=False,
    prior="galaxy",
    method="laplace",
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
        detected by `astrogen.detection.detect`
    method : "map", or any other of `astrogen.deconvolve`: several galaxies are always drawn by
        Hamiltonian Monte Carlo, one as there
    the others : as in `deconvolve_jointly`

    Returns
    -------
    JointResult

    Raises
    ------
    ValueError : an option is wrong, nothing is detected, a position lies outside, or what
        `deconvolve_jointly` refuses.
    """
    observations = [observations] if hasattr(observations, "psf") else observations
    return _fit(
        "deblend",
        observations,
        bands,
        aligned,
        "detect" if sources is None else sources,
        prior,
        method,
        num_draws,
        seed,
        prior_scale,
        background,
    )


def _fit(
    caller,
    observations,
    bands,
    aligned,
    sources,
    prior,
    method,
    num_draws,
    seed,
    prior_scale,
    background,
):
    check_options(caller, method, background, num_draws)
    observations = list(observations)
    bands = _check_exposures(caller, observations, bands)
    prior = load_prior(prior) if not hasattr(prior, "components") else prior
    scene = Scene(
        observations, bands, find_frames(observations, aligned=aligned), prior, background
    )
    seeds = seeds_of(observations[:1], seed)[0]
    if sources is None:
        plans = [plan_alone(scene, seeds, prior_scale)]
    else:
        positions = (
            detect(observations, aligned=aligned)
            if isinstance(sources, str)
            else read_positions(observations[0], sources)
        )
        plans = plan_several(scene, positions, seeds, prior_scale)
    check_overlap(scene, plans)
    galaxies = [make_galaxy(scene, plan) for plan in plans]
    begin(scene, galaxies)
    settled = climb_in_turn(scene, galaxies)
    if len(galaxies) == 1:
        draws = draw_alone(scene, galaxies[0], seeds, method=method, num_draws=num_draws)
    else:
        groups, settled = climb_together(scene, galaxies)
        draws = (draw_mode if method == "map" else draw_together)(
            scene, galaxies, groups, seeds, num_draws=num_draws
        )
    draws.told["map_converged"] = min(draws.told["map_converged"], float(settled))
    provenance = provenance_of(prior, draws.method, num_draws, seed, background)
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
    if len(units := list(dict.fromkeys(str(observation.unit) for observation in observations))) > 1:
        raise InputError(
            f"{caller}: observations must have one unit, got"
            f" {' and '.join(unit or 'none' for unit in units)}; convert them to one flux scale"
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
    levels, models, followed = [], [], []
    for exposure, (observation, good, inverse) in enumerate(
        zip(scene.observations, scene.good, scene.inverse, strict=True)
    ):
        seen = sum(light[exposure] for light in lights)  # [draw, n]
        precision = scene.precision[exposure]
        level = (scene.white[exposure] - seen) @ inverse / precision + draws.rng.standard_normal(
            len(seen)
        ) / np.sqrt(precision)
        followed.append(float(seen.var(0).sum()))
        levels.append(level)
    unmasked = [
        [
            whole_light(scene, galaxy, coefficients.mean(1), exposure)
            for exposure in range(len(scene.observations))
        ]
        for galaxy, coefficients in zip(galaxies, draws.coefficients, strict=True)
    ]
    models = [
        sum(light[exposure] for light in unmasked) + levels[exposure].mean()
        for exposure in range(len(scene.observations))
    ]
    names = (
        [scene.observations[0].name]
        if len(galaxies) == 1
        else [f"{scene.observations[0].name} {number}" for number in range(1, len(galaxies) + 1)]
    )
    sources = []
    for name, galaxy, coefficients, parameters, models_alone in zip(
        names, galaxies, draws.coefficients, draws.parameters, unmasked, strict=True
    ):
        latent, _, shift, log_amplitude = posterior.split(parameters, scene.prior.latent_size)
        images = scene.prior.images(tensor(coefficients)).numpy()
        sources.append(
            make_source(
                scene.observations[0],
                name=name,
                bands=scene.order,
                reference=scene.order[galaxy.reference],
                place=galaxy.plan.place,
                prior_scale=galaxy.plan.prior_scale,
                target_fwhm=scene.prior.target_fwhm
                / scene.prior.pixel_scale
                * galaxy.plan.prior_scale,
                draws=np.moveaxis(images, 0, 1),
                latent_draws=latent,
                shift_draws=galaxy.plan.place + shift * galaxy.plan.prior_scale,
                models=models_alone,
                colour=galaxy.colour if len(scene.order) > 1 else 0.0,
                residual_amplitude=float(np.exp(log_amplitude).mean()),
            )
        )
    return make_joint_result(
        scene.observations,
        bands=scene.bands,
        sources=sources,
        models=models,
        background_draws=np.stack(levels, 1),
        num_fitted=followed,
        method=draws.method,
        diagnostics=draws.told,
        status=draws.status,
        provenance=provenance,
    )
