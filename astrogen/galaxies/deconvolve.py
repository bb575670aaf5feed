"""From observations to results: plan the grids, compress the stamps, climb, draw, and put the draws
back on the sky.

    observation -> (prior, forward) -> posterior -> inference -> result

Objects of any shape, PSF and pixel scale go through together: only the compression sees pixels, and
it runs once per PSF; everything after it works on small arrays of one shape.
"""

import importlib.metadata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen import __version__
from astrogen.data.observation import as_observations
from astrogen.data.sky import judge_sky, level_off
from astrogen.errors import InputError
from astrogen.galaxies import conditional, posterior
from astrogen.galaxies.conclude import Drawn, Grid, make_exposure, make_result, make_source
from astrogen.galaxies.plans import How, plan_of, seeds_of
from astrogen.graphs import any_size
from astrogen.inference import find_map
from astrogen.inference.contracts import Sampling, Settings
from astrogen.inference.methods import check_method, draw, name_of
from astrogen.instruments import telescope
from astrogen.priors import load_prior
from astrogen.priors.storage import weights_hash
from astrogen.processes import refuse_fork

LARGEST_BATCH = 64
MODE_ONLY = (
    "errors_too_small: the latent was held at its mode and only the residual varies; use the method"
    " auto for errors",
)


def deconvolve(
    observations,
    *,
    psf=None,
    pixel_scale=None,
    prior="galaxy",
    method="auto",
    num_draws=200,
    seed,
    prior_scale=None,
    background="fit",
    num_chains=4,
    batch_size=None,
    progress=False,
):
    """Infer the unconvolved galaxies behind observations.

    Parameters
    ----------
    observations : Observation, NDData, CCDData or array [h, w]; or a sequence of them, of any
        shapes and PSFs. Units, mask, WCS and uncertainty of an NDData
        count; an array alone has its noise estimated from its border
    psf : of what is no Observation: a PSF, or what `psf_from_model` takes; one for all, or a list
        with one for each
    pixel_scale : float or None, arcsec/pixel of what is no Observation; None: from its WCS
    prior : str, path or prior; see `load_prior`
    method : "auto" (the Laplace approximation where its importance weights can be trusted, else
        Hamiltonian Monte Carlo until the chains agree on flux, place and shape), "laplace", "hmc",
        "vi" (a normal fitted to the posterior, importance weighted), or "map" (the latent at its
        mode; errors are too small). Or a function of (target_log_prob_fn, num_burnin) that makes a
        `tfp.mcmc.TransitionKernel`: it runs in the space in which the Laplace approximation is a
        standard normal
    num_draws : int, posterior draws per object
    seed : int; equal seeds give equal draws, in any order. With other batches they differ by
        rounding; those of chains, which amplify it, by the error of their means
    prior_scale : float or None, arcsec/pixel of the deconvolved image. None: half the observed
        pixel, or larger where the galaxy would not fit its stamp
    background : "fit" (a level per stamp that may be anything, marginalised) or "fixed" (the stamps
        are background-subtracted)
    num_chains : int, of methods with chains
    batch_size : int or None, objects inferred at once; memory grows with it. A number is kept to,
        and the last batch filled up, so that an object's treatment does
        not depend on how many others there are; None: as many as there are, at most 64

    Returns
    -------
    Result, or a list of Results in the order of the observations

    Raises
    ------
    ValueError : an option is wrong, or a PSF is sharper than the resolution that is asked for.
    """
    refuse_fork("deconvolve")
    how = How(method, num_draws, seed, prior_scale, background, num_chains)
    check_options("deconvolve", how, batch_size)
    observations, single = as_observations(observations, psf=psf, pixel_scale=pixel_scale)
    prior = load_prior(prior) if not hasattr(prior, "components") else prior
    batch_size = batch_size or min(LARGEST_BATCH, max(len(observations), 1))
    results = [None] * len(observations)
    with tqdm(total=len(observations), unit=" galaxies", disable=not progress) as bar:
        for index, result in deconvolve_each(observations, prior, how, batch_size=batch_size):
            results[index] = result
            bar.update()
    return results[0] if single else results


def deconvolve_each(observations, prior, how, *, batch_size):
    """(index, Result) of Observations, batch by batch: who keeps little of each result needs the
    memory of one batch. `how`, a How, is not checked here.
    """
    stamps = [level_off(observation, background=how.background) for observation in observations]
    plans = [
        plan_of(stamp.observation, word, prior, how.prior_scale)
        for stamp, word in zip(stamps, seeds_of(observations, how.seed), strict=True)
    ]
    provenance = provenance_of(prior, how)
    telescopes = {}
    # By seed too, so that neighbours, and with them the last bits, do not depend on the order of
    # the input.
    order = sorted(
        (index for index, plan in enumerate(plans) if plan.observation.status == "ok"),
        key=lambda index: (plans[index].kernel_key, plans[index].seed),
    )
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _infer(
            [plans[index] for index in chosen], prior, telescopes, how, batch_size=batch_size
        )
        yield from zip(
            chosen,
            _results(
                [plans[index] for index in chosen],
                [stamps[index] for index in chosen],
                batch,
                prior,
                telescopes,
                provenance,
            ),
            strict=True,
        )
    for index in sorted(set(range(len(plans))) - set(order)):
        yield index, _no_data(plans[index], prior, provenance)


def check_options(caller, how, batch_size=None):
    """A ValueError in the name of `caller` where an option is wrong."""
    check_method(caller, how.method)
    if how.background not in ("fit", "fixed"):
        raise InputError(
            f"{caller}: background must be one of ('fit', 'fixed'), got {how.background!r}"
        )
    for name, value, least in (
        ("num_draws", how.num_draws, 8),
        ("batch_size", 1 if batch_size is None else batch_size, 1),
    ):
        if value < least:
            raise InputError(f"{caller}: {name} must be at least {least}, got {value}")


# Inference


class _Batch(NamedTuple):
    """Draws of one batch, as arrays: coefficients [draw, batch, k] of flux * a, parameters [draw,
    batch, p], background [draw, batch], num_fitted [batch], diagnostics {name: [batch]}, methods
    [batch], by which the draws were made.
    """

    coefficients: np.ndarray
    parameters: np.ndarray
    background: np.ndarray
    num_fitted: np.ndarray
    diagnostics: dict
    methods: np.ndarray


def _infer(plans, prior, telescopes, how, *, batch_size):
    compressed = _compress(plans, prior, telescopes, how.background)
    # The last batch is filled up with its first object: a new shape would cost a new trace.
    rows = np.r_[np.arange(len(plans)), np.zeros(max(batch_size - len(plans), 0), int)]
    compressed = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), compressed)
    seeds = np.array([plans[row].seed for row in rows], np.int64).astype(np.int32)
    log_density_fn, curvature_fn = posterior.target(prior)
    climb = any_size(find_map)(
        log_density_fn, curvature_fn, compressed, posterior.start(prior, compressed)
    )
    target = conditional.make_target(prior, compressed, climb.parameters)
    settings = Settings(how.num_draws, Sampling(num_chains=how.num_chains))
    drawn = draw(how.method, target, climb, seeds, settings)
    coefficients, level, num_fitted = (
        tensor.numpy()
        for tensor in conditional.draw_galaxies(
            prior, target.evidence, tf.constant(drawn.draws), seeds, drawn.made
        )
    )
    told = {"map_converged": climb.converged.numpy().astype(float), **drawn.diagnostics}
    count = len(plans)
    return _Batch(
        coefficients[:, :count],
        drawn.draws[:, :count],
        level[:, :count],
        num_fitted[:count],
        {name: value[:count] for name, value in told.items()},
        drawn.methods[:count],
    )


def _compress(plans, prior, telescopes, background):
    """Compressed stamps in the order of the plans, which are sorted by telescope; telescopes that
    no longer occur are forgotten.
    """
    keys = sorted({plan.kernel_key for plan in plans})
    for key in set(telescopes) - set(keys):
        del telescopes[key]
    parts = []
    for key in keys:
        group = [plan for plan in plans if plan.kernel_key == key]
        if key not in telescopes:
            telescopes[key] = _telescope(group[0], prior)
        parts.append(_compress_group(group, prior, telescopes[key].basis, background))
    return posterior.stack(parts)


class _Telescope(NamedTuple):
    """kernel [1, GRID, GRID // 2 + 1], and the prior's basis seen through it
    (`posterior.telescope_basis`).
    """

    kernel: np.ndarray
    basis: tuple


def _telescope(plan, prior):
    psf = plan.observation.psf
    return _see_through(
        prior,
        (psf.image.tobytes(), len(psf.image)),
        psf_scale=psf.pixel_scale,
        pixel_response=psf.pixel_response,
        pixel_scale=plan.observation.pixel_scale,
        prior_scale=plan.prior_scale,
        signal_to_noise=plan.signal_to_noise,
    )


@lru_cache(maxsize=1)
def _see_through(
    prior, psf, *, psf_scale, pixel_response, pixel_scale, prior_scale, signal_to_noise
):
    """The _Telescope of a PSF, (float64 pixels as bytes, side). The last one is kept, for the next
    call of a loop over the stamps of an exposure.
    """
    content, side = psf
    ratio = prior.target_fwhm / prior.pixel_scale
    kernel = telescope.kernel_transform(
        np.frombuffer(content).reshape(side, side),
        psf_scale=psf_scale,
        pixel_response=pixel_response,
        pixel_scale=pixel_scale,
        prior_scale=prior_scale,
        target_fwhm=ratio * prior_scale,
    )
    return _Telescope(
        kernel[None], posterior.telescope_basis(kernel, prior, signal_to_noise=signal_to_noise)
    )


def _compress_group(group, prior, basis, background):
    size = 1 << (len(group) - 1).bit_length()  # powers of two: few shapes, few traces
    filled = group + group[:1] * (size - len(group))
    good = np.stack([~plan.observation.mask for plan in filled])
    sigma = np.sqrt(np.stack([plan.observation.variance for plan in filled]))
    inverse = np.where(good, 1 / sigma, 0).astype(np.float32)
    image = np.stack([plan.observation.image for plan in filled])
    compressed = posterior.compress(
        basis,
        prior,
        whitened=image * inverse,
        inverse_sigma=inverse,
        centre=np.stack([plan.centre for plan in filled]),
        pixel_scale=[plan.observation.pixel_scale for plan in filled],
        prior_scale=[plan.prior_scale for plan in filled],
        background_precision=[np.inf if background == "fixed" else 0.0] * size,
    )
    return tf.nest.map_structure(lambda tensor: tensor[: len(group)], compressed)


# Results


def _results(plans, stamps, batch, prior, telescopes, provenance):
    for row, (plan, stamp) in enumerate(zip(plans, stamps, strict=True)):
        observation, scale, parameters = (
            plan.observation,
            plan.prior_scale,
            batch.parameters[:, row],
        )
        scales = (tf.constant(number, tf.float32) for number in (observation.pixel_scale, scale))
        images, flux, light = _develop(
            prior,
            tf.constant(batch.coefficients[:, row]),
            tf.constant(telescopes[plan.kernel_key].kernel),
            tf.constant(plan.centre, tf.float32),
            *scales,
            tuple(map(tf.constant, observation.image.shape)),
        )
        latent, _, shift, log_amplitude = posterior.split(parameters, prior.latent_size)
        told = {
            name: float(value[row])
            for name, value in batch.diagnostics.items()
            if not np.isnan(value[row])
        }
        light, unit = light.numpy(), np.float32(stamp.unit)
        background = stamp.level + stamp.unit * batch.background[:, row].astype(np.float64)
        source = make_source(
            stamp.recorded,
            stamp.recorded.name,
            Grid(scale, prior.target_fwhm / prior.pixel_scale * scale),
            Drawn(
                unit * images.numpy()[:, None],
                plan.centre + shift * scale,
                latent,
                unit * flux.numpy()[:, None],
            ),
            residual_amplitude=np.exp(log_amplitude).mean(),
        )
        exposure = make_exposure(
            stamp.recorded,
            light=unit * light,
            background_draws=background,
            num_fitted=float(batch.num_fitted[row]),
        )
        yield make_result(
            [source],
            [exposure],
            method=batch.methods[row],
            diagnostics=told,
            provenance=provenance,
            status=judge_sky(
                stamp, light, provenance["background"], error=background.std() / stamp.unit
            )
            + (MODE_ONLY if provenance["method"] == "map" else ()),
        )


@any_size
@tf.function(autograph=False)
def _develop(prior, coefficients, kernel, centre, pixel_scale, prior_scale, shape):
    """Draws where the galaxy stands [draw, height, width], their fluxes [draw], and what the
    telescope would see of their mean [h, w].
    """
    centred = prior.images(coefficients)
    light = telescope.render(
        tf.reduce_mean(centred, 0, keepdims=True),
        kernel,
        shape=shape,
        pixel_scale=pixel_scale,
        prior_scale=prior_scale,
        shift=centre[None],
    )
    return telescope.move(centred, centre, prior_scale), tf.reduce_sum(centred, [1, 2]), light[0]


def _no_data(plan, prior, provenance):
    observation = plan.observation
    source = make_source(
        observation,
        observation.name,
        Grid(plan.prior_scale, prior.target_fwhm / prior.pixel_scale * plan.prior_scale),
        Drawn(
            np.zeros((0, 1, *prior.image_shape)), np.zeros((0, 2)), np.zeros((0, prior.latent_size))
        ),
        residual_amplitude=np.nan,
    )
    exposure = make_exposure(
        observation, light=np.zeros_like(observation.image), background_draws=np.zeros(0)
    )
    return make_result(
        [source],
        [exposure],
        method=provenance["method"],
        diagnostics={},
        provenance=provenance,
    )


def provenance_of(prior, how):
    """What made a result, as JSON types."""
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "numpy")}
    return {
        "astrogen": __version__,
        **versions,
        "prior": prior.name,
        "weights": weights_hash(prior.card),
        "method": name_of(how.method),
        "num_draws": how.num_draws,
        "seed": how.seed,
        "background": how.background,
    }
