"""First images, and the way of each galaxy to its mode given the others."""

from functools import lru_cache

import numpy as np
import tensorflow as tf
from scipy.optimize import nnls

from astrogen.galaxies import bands as tying
from astrogen.galaxies import posterior
from astrogen.galaxies.scene import (
    Galaxy,
    View,
    light_of,
    moments_of,
    normal_matrices,
    rests_of,
    seen_by,
    tensor,
)
from astrogen.graphs import any_size
from astrogen.inference import find_map

WEAKEST = 0.03  # signal-to-noise squared below which directions of the data are dropped
ROUNDING = 1e-11  # of the largest eigenvalue of a normal matrix
PASSES = 2  # over one galaxy in several bands: flux ratios and colours are estimated between them
SWEEPS = 2  # over several galaxies, before all climb together
# shares of a neighbour's light that its first models may be wrong by
SIMPLE_ERROR, MODEL_ERROR = 0.3, 0.03


def begin(scene, galaxies):
    """First images: all galaxies as sums of two simple shapes, then each by the prior, brightest
    first, trusting less the pixels where others are bright.
    """
    templates = _templates(scene)
    guesses = _simple_fit(scene, galaxies, templates)
    lights = [
        light_of(scene, galaxy, guess[:, None])
        for galaxy, guess in zip(galaxies, guesses, strict=True)
    ]
    trust = np.full(len(galaxies), SIMPLE_ERROR)
    for number in np.argsort([-sum(np.square(light).sum() for light in ours) for ours in lights]):
        galaxy, others = galaxies[number], np.arange(len(galaxies)) != number
        weights = [
            1
            / np.sqrt(
                1
                + sum(
                    (trust[other] * lights[other][exposure][0]) ** 2
                    for other in np.flatnonzero(others)
                )
            )
            for exposure in range(len(scene.white))
        ]
        some, first = scene.weighted(weights), galaxy
        if len(galaxies) > 1:
            views = [
                _weighted(some, view, exposure, weight)
                for exposure, (view, weight) in enumerate(zip(galaxy.views, weights, strict=True))
            ]
            first = Galaxy(galaxy.plan, views, normal_matrices(some, views))
        rests = [
            rest * weight
            for rest, weight in zip(rests_of(scene, lights, [number]), weights, strict=True)
        ]
        moments, mean = moments_of(some, first, rests), templates[0]
        significance = [
            (moment @ mean) / np.sqrt(max(mean @ gram @ mean, 1e-30))
            for moment, gram in zip(moments[:, 0], first.grams, strict=True)
        ]
        first.reference = int(np.argmax(significance))
        first.shape = _linear(scene, first.grams[first.reference], moments[first.reference, 0])
        first.scales = tying.flux_ratios(first.grams, moments[:, 0], first.shape, first.reference)
        _improve(some, first, moments, first=True, colour=False)
        galaxy.continue_from(first)
        lights[number], trust[number] = light_of(scene, galaxy, galaxy.coefficients), MODEL_ERROR


def _templates(scene):
    """Coefficients [2, k] of two shapes of unit flux: the mean galaxy, and a point at the target
    resolution.
    """
    basis = scene.prior.basis.numpy().astype(np.float64)
    side = np.arange(basis.shape[1]) - (basis.shape[1] - 1) / 2
    sigma = scene.prior.target_fwhm / scene.prior.pixel_scale / np.sqrt(8 * np.log(2))
    point = np.exp(-0.5 * (side[:, None] ** 2 + side**2) / sigma**2)
    shapes = np.stack([scene.prior.coefficient_mean.numpy(), np.tensordot(basis, point, 2)])
    return shapes / (shapes @ basis.sum((1, 2)))[:, None]


def _simple_fit(scene, galaxies, templates):
    """Coefficients [galaxy][band, k] of the sums of templates that fit each band best, all galaxies
    together, no flux negative.
    """
    guesses = np.zeros((len(galaxies), len(scene.order), templates.shape[1]))
    for index, band in enumerate(scene.order):
        columns, white = [], []
        for exposure in np.flatnonzero(np.array(scene.bands) == band):
            seen = [
                seen_by(view, templates, len(scene.inverse[exposure]))
                for view in (galaxy.views[exposure] for galaxy in galaxies)
            ]
            columns.append(scene.levelled(exposure, np.concatenate(seen)).T)
            white.append(scene.levelled(exposure, scene.white[exposure]))
        fluxes, _ = nnls(np.concatenate(columns), np.concatenate(white))
        guesses[:, index] = fluxes.reshape(len(galaxies), 2) @ templates
    return guesses


def _weighted(scene, view, exposure, weight):
    """A view in a scene whose pixels count `weight` [n] times as much."""
    matrix = view.matrix * weight[view.rows, None].astype(np.float32)
    return View(view.rows, matrix, (scene.inverse[exposure][view.rows] @ matrix).astype(np.float64))


def _linear(scene, gram, moment):
    """Linear minimum-mean-square coefficients [k]: c ~ N(flux mean, flux^2 diag(std)^2), with the
    flux as the norm that c then has.
    """
    mean, std = scene.prior.coefficient_mean.numpy().astype(np.float64), scene.deviations()
    seen = gram @ mean
    flux = max(moment @ mean / max(mean @ seen, 1e-30), 1e-30)
    least = 1 / np.sqrt(max(std @ (np.diag(gram) * std), 1e-30))
    white_gram = std[:, None] * gram * std
    for _ in range(4):
        flux = max(flux, least)
        white = np.linalg.solve(
            white_gram + np.eye(len(std)) / flux**2, std * (moment - flux * seen)
        )
        coefficients = flux * mean + std * white
        flux = np.linalg.norm(coefficients)
    return coefficients


def climb_in_turn(scene, galaxies):
    """Bring each galaxy to its mode given the others; whether they all arrived."""
    lights = [light_of(scene, galaxy, galaxy.coefficients) for galaxy in galaxies]
    for sweep in range(SWEEPS if len(galaxies) > 1 else PASSES if len(scene.order) > 1 else 0):
        for number, galaxy in enumerate(galaxies):
            _improve(
                scene,
                galaxy,
                moments_of(scene, galaxy, rests_of(scene, lights, [number])),
                first=False,
                colour=sweep == 0,
            )
            lights[number] = light_of(scene, galaxy, galaxy.coefficients)
    return all(bool(galaxy.climb.converged[0]) for galaxy in galaxies)


def _improve(scene, galaxy, moments, *, first, colour):
    """One climb of one galaxy given the others, with flux ratios (and, where asked, colour) by its
    image so far.
    """
    prior, std, alone = scene.prior, scene.deviations(), moments[:, 0]
    if not first:
        galaxy.scales = tying.flux_ratios(galaxy.grams, alone, galaxy.shape, galaxy.reference)
    deviations = np.linalg.norm(galaxy.shape) * std
    if colour and len(scene.order) > 1:
        galaxy.colour = tying.likeliest_colour(
            galaxy.grams,
            alone,
            galaxy.scales,
            galaxy.reference,
            shape=galaxy.shape,
            deviations=deviations,
        )
    galaxy.tie = tying.tie_bands(
        galaxy.grams,
        galaxy.scales,
        galaxy.reference,
        shape=galaxy.shape,
        colour=galaxy.colour,
        deviations=deviations,
    )
    moment = tying.tied_moment(galaxy.tie, moments)
    known = (
        _linear(scene, galaxy.tie.gram, moment[0])
        if first
        else posterior.predict(prior, galaxy.compressed, galaxy.climb.parameters)[0][0].numpy()
    )
    galaxy.compressed, galaxy.project = _compress(scene, galaxy, known, moment)
    start = posterior.start(prior, galaxy.compressed)
    if not first:
        # The amplitude is relative to what is known of the image by now.
        start = tf.concat(
            [
                galaxy.climb.parameters[:, : prior.latent_size],
                tf.zeros([1, 1]),
                galaxy.climb.parameters[:, prior.latent_size + 1 :],
            ],
            1,
        )
    galaxy.climb = any_size(find_map)(*posterior.target(prior), galaxy.compressed, start)
    normals = tf.zeros([1, len(std) + galaxy.compressed.data.shape[1] + 1])
    coefficients = _exact(prior, galaxy.compressed, galaxy.climb.parameters, normals)
    galaxy.coefficients = tying.draw_bands(galaxy.tie, coefficients, moments, None)
    galaxy.shape = coefficients[0]


def _compress(scene, galaxy, known, moment):
    """The galaxy as `posterior.Compressed` (a batch of one), and the matrix [r, k] that takes
    moments to its data.
    """
    std = scene.deviations()
    flux = np.linalg.norm(known)
    values, vectors = np.linalg.eigh(std[:, None] * galaxy.tie.gram * std)
    values, vectors = values[::-1], vectors[:, ::-1]
    # As many for all, in large steps: few static shapes, few traces.
    scene.size["directions"] = num = min(
        max(-(-int((values * flux**2 > WEAKEST).sum()) // 64) * 64, scene.size["directions"]),
        len(std),
    )
    # Directions that no pixel sees hold rounding errors: they say nothing.
    root = np.sqrt(np.where(values[:num] > ROUNDING * values[0], values[:num], 0))
    project = (vectors[:, :num] * np.divide(1, root, where=root > 0, out=np.zeros(num))).T * std
    matrix = (vectors[:, :num] * root).T / std
    blank = tf.zeros([1])
    compressed = posterior.Compressed(
        data=tensor(moment @ project.T),
        forward=tensor(matrix[None]),
        visible=tf.range(len(std), dtype=tf.int64)[None],
        flux0=tensor([flux]),
        coefficients=tensor(known[None]),
        background_data=blank,
        background_forward=tf.zeros([1, len(std)]),
        background_precision=blank + 1,
        centre=tf.zeros([1, 2]),
        prior_scale=tensor([galaxy.plan.prior_scale]),
    )
    return compressed, project


@lru_cache
def _exact_draws(prior):
    """`posterior.draw_coefficients` of a prior, traced once."""

    @any_size
    @tf.function(autograph=False)
    def draw(compressed, parameters, normals):
        return posterior.draw_coefficients(prior, compressed, parameters, normals)[0]

    return draw


def _exact(prior, compressed, parameters, normals):
    """Coefficients [batch, k], float64; posterior means where the normals are zero."""
    return _exact_draws(prior)(compressed, parameters, normals).numpy().astype(np.float64)
