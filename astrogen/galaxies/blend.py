"""Galaxies that share light: one posterior for all of them, and exact draws from it.

Neighbours exchange flux: where two galaxies overlap, the data fix the sum of their light far better
than either, so that a sampler that moves one galaxy given the other's image crawls. Here all
galaxies of a blend move together, with the residuals and colour gradients of all of them, and the
backgrounds, integrated out:

    z = sum_g F_g c_g + noise,    c_g | latent_g ~ N(flux_g m_g, S_g),    S_g = flux_g^2 amplitude_g
    diag(s_g^2)    =>    z ~ N(sum_g flux_g F_g m_g, I + sum_g F_g S_g F_g')

c_g are the coefficients of galaxy g in its reference band; what other bands show is part of z after
their own freedom (`bands`) is integrated out. A blend is a batch of galaxies of `posterior`, one
Compressed with the same data for all, that are added up.

Trajectories follow a density in which the covariance is followed whole in the directions of most
residual only (as `conditional` does); after some of them the exact density decides whether the
chain moves (Liu 2001, section 9.4.3), so that the draws are those of the exact posterior.
"""

from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.linalg import solve_triangular

from astrogen.galaxies import bands as tying
from astrogen.galaxies import conditional, posterior
from astrogen.galaxies.scene import tensor
from astrogen.inference import find_map
from astrogen.inference.contracts import Sampling
from astrogen.inference.laplace import whitening

WEAKEST = 0.03  # signal-to-noise squared below which directions of the data are dropped
FAINTEST = 0.01  # the same, of one galaxy alone
# variance of the residual over that of the noise above which trajectories follow a direction's
# covariances
FOLLOWED = 0.3
OVERDISPERSION = 1.25  # chains start this much wider than the Laplace approximation
FIRST_STEP = 0.4
# the trajectories are long: the posterior is up to three times wider than its Laplace approximation
# in some directions
SETTINGS = Sampling(path=3.5, max_steps=20)


class Blend(NamedTuple):
    """Galaxies seen together. field : posterior.Compressed whose batch are the galaxies, without
    data; bands : list of _Band; gathers [band][r, r_band] : from the bands' data to those of
    the field."""

    field: posterior.Compressed
    bands: list
    gathers: list


class _Band(NamedTuple):
    """What one band shows of all galaxies. forward [galaxy, r, k] : of their coefficients in this
    band, noise of unit variance; project [galaxy, r, k] : from moments to data;
    scales [galaxy]; roots [galaxy, k, k] of the covariance of scale * eta, zeros for a galaxy whose
    reference band it is; seen_roots [galaxy, r, k] : F root; factor [r, r] : Cholesky factor of I +
    F root root' F'.
    """

    forward: np.ndarray
    project: np.ndarray
    scales: np.ndarray
    roots: np.ndarray
    seen_roots: np.ndarray
    factor: np.ndarray


# Equations


def make_blend(ties, shapes, colours, seen_fns, *, deviations, prior_scales):
    """The Blend of galaxies.

    Parameters
    ----------
    ties : sequence of `bands.Tie`, one for each galaxy
    shapes : array [galaxy, k], the best estimate of the coefficients in each one's reference band
    colours : sequence of float
    seen_fns : sequence, one for each band, of callables of matrices [galaxy][k, r_galaxy] -> their
        products' normal matrix [sum of r, sum of r]: of what the band's exposures show of the
        galaxies made of the matrices' columns
    deviations : array [k], the population's standard deviations
    prior_scales : sequence of float, arcsec per prior pixel
    """
    fluxes = np.linalg.norm(shapes, axis=1)
    bands = [
        _make_band(index, seen_fn, ties, shapes, colours, deviations)
        for index, seen_fn in enumerate(seen_fns)
    ]
    whitened = [
        solve_triangular(
            band.factor, np.concatenate(band.forward * band.scales[:, None, None], 1), lower=True
        ).reshape(len(band.factor), len(ties), -1)
        for band in bands
    ]
    widths = fluxes[:, None] * deviations
    parts = [
        _loud(sum(seen[:, number].T @ seen[:, number] for seen in whitened), width)
        for number, width in enumerate(widths)
    ]
    seen = [
        np.concatenate(
            [
                one[:, number] @ (width[:, None] * part)
                for number, (width, part) in enumerate(zip(widths, parts, strict=True))
            ],
            1,
        )
        for one in whitened
    ]
    forward, _, turn = _compress(sum(one.T @ one for one in seen), parts, widths)
    gathers = [
        solve_triangular(band.factor, one @ turn, lower=True, trans="T").T
        for band, one in zip(bands, seen, strict=True)
    ]
    num, size = len(ties), len(deviations)
    field = posterior.Compressed(
        data=tf.zeros([num, forward.shape[1]]),
        forward=tensor(forward),
        visible=tf.tile(tf.range(size)[None], [num, 1]),
        flux0=tensor(fluxes),
        coefficients=tensor(shapes),
        background_data=tf.zeros([num]),
        background_forward=tf.zeros([num, size]),
        background_precision=tf.ones([num]),
        centre=tf.zeros([num, 2]),
        prior_scale=tensor(prior_scales),
    )
    return Blend(field, bands, gathers)


def _make_band(index, seen_fn, ties, shapes, colours, deviations):
    """What one band shows of all galaxies, as _Band; the rest as of `make_blend`."""
    fluxes = np.linalg.norm(shapes, axis=1)
    scales = np.array([tie.scales[index] for tie in ties])
    widths = fluxes[:, None] * scales[:, None] * deviations
    parts = [_loud(tie.grams[index], width) for tie, width in zip(ties, widths, strict=True)]
    forward, project, _ = _compress(
        seen_fn([width[:, None] * part for width, part in zip(widths, parts, strict=True)]),
        parts,
        widths,
    )
    roots = np.stack(
        [
            (
                np.zeros((len(deviations),) * 2)
                if index == tie.reference
                else scale * tying.prior_root(shape, colour * flux * deviations)
            )
            for tie, shape, colour, flux, scale in zip(
                ties, shapes, colours, fluxes, scales, strict=True
            )
        ]
    )
    seen_roots = forward @ roots
    free = np.concatenate(seen_roots, 1)
    factor = np.linalg.cholesky(np.eye(len(free)) + free @ free.T)
    return _Band(forward, project, scales, roots, seen_roots, factor)


def _loud(gram, width):
    """Directions [k, r] of coefficients in units of `width` that a normal matrix [k, k] of one
    galaxy tells from noise.
    """
    values, vectors = np.linalg.eigh(width[:, None] * gram * width)
    return vectors[:, -max(int((values > FAINTEST).sum()), 1) :]


def _compress(total, parts, widths):
    """Unit-noise data from the normal matrix of all galaxies' loud directions: forward and project
    [galaxy, r, k], and the matrix [sum of r, r] from the directions' moments to data.
    """
    values, vectors = np.linalg.eigh(total)
    kept = slice(-max(int((values > WEAKEST).sum()), 1), None)
    root, vectors = np.sqrt(np.maximum(values[kept], 1e-12 * values[-1])), vectors[:, kept]
    turns = np.split(vectors, np.cumsum([part.shape[1] for part in parts])[:-1])
    forward = np.stack(
        [
            (part @ turn * root).T / width
            for part, turn, width in zip(parts, turns, widths, strict=True)
        ]
    )
    project = np.stack(
        [
            (part @ turn / root).T * width
            for part, turn, width in zip(parts, turns, widths, strict=True)
        ]
    )
    return forward, project, vectors / root


def gather(blend, moments):
    """Data of the bands [band][batch, r_band] and of the field [batch, r] from moments
    [galaxy][band, batch, k] of whitened residuals.
    """
    seen = [
        sum(ours[index] @ project.T for ours, project in zip(moments, band.project, strict=True))
        for index, band in enumerate(blend.bands)
    ]
    return seen, sum(one @ matrix.T for one, matrix in zip(seen, blend.gathers, strict=True))


def draw_all_bands(blend, coefficients, seen, rng):
    """Exact draws of every band's coefficients [galaxy, band, batch, k] given those of the
    reference bands [batch, galaxy, k] and the bands' data [band][batch, r]; means without `rng`.
    """
    drawn = []
    for band, data in zip(blend.bands, seen, strict=True):
        ours = band.scales[:, None] * coefficients
        rest = data - np.einsum("bgk,grk->br", ours, band.forward)
        wild = np.zeros(ours.shape) if rng is None else rng.standard_normal(ours.shape)
        if rng is not None:
            rest = (
                rest
                - np.einsum("bgk,grk->br", wild, band.seen_roots)
                - rng.standard_normal(rest.shape)
            )
        solved = solve_triangular(
            band.factor, solve_triangular(band.factor, rest.T, lower=True), lower=True, trans="T"
        ).T
        own = wild + np.einsum("br,grk->bgk", solved, band.seen_roots)
        drawn.append(ours + np.einsum("bgk,glk->bgl", own, band.roots))
    return np.transpose(np.stack(drawn), [2, 0, 1, 3])


# Densities


class Evidence(NamedTuple):
    """field with a leading axis of one, data [batch, r]."""

    field: posterior.Compressed
    data: tf.Tensor


def evidence_of(blend, data):
    return Evidence(tf.nest.map_structure(lambda tensor: tensor[None], blend.field), tensor(data))


def _together(residual):
    """Residual matrices of galaxies [galaxy, r, k] as one of all of them: [r, galaxy * k]."""
    return tf.reshape(tf.transpose(residual, [1, 0, 2]), [residual.shape[1], -1])


@lru_cache
def target(prior):
    """(log density, curvature) of a blend as functions of (parameters [batch, galaxy * p],
    Evidence), as of `posterior.target`.
    """

    def log_density_fn(parameters, evidence):
        field = tf.nest.map_structure(lambda tensor: tensor[0], evidence.field)

        def one(pair):
            parameters, data = tf.reshape(pair[0], [field.forward.shape[0], -1]), pair[1]
            _, _, seen, residual = posterior.predict(prior, field, parameters)
            value = posterior.log_normal(
                (data - tf.reduce_sum(seen, 0))[None], _together(residual)[None]
            )[0]
            return value + tf.reduce_sum(posterior.log_prior(prior, parameters))

        return tf.map_fn(
            one, (parameters, evidence.data), fn_output_signature=tf.float32, parallel_iterations=1
        )

    def curvature_fn(parameters, evidence):
        field = tf.nest.map_structure(lambda tensor: tensor[0], evidence.field)
        num = field.forward.shape[0]
        return tf.map_fn(
            lambda one: _curvature(prior, field, tf.reshape(one, [num, -1])),
            parameters,
            parallel_iterations=1,
        )

    return log_density_fn, curvature_fn


def _curvature(prior, field, parameters):
    """`posterior.curvature` of all galaxies together: [galaxy * p, galaxy * p], for parameters
    [galaxy, p].
    """
    num = parameters.shape[0]
    jacobian, variance_slope, unit_forward, residual = posterior.slopes(prior, field, parameters)
    # a galaxy's parameters move its own variances
    own = tf.einsum("gpk,gh->gphk", variance_slope, tf.eye(num))
    own = tf.reshape(own, [num * own.shape[1], num * own.shape[3]])
    information = posterior.information(
        _together(jacobian)[None],
        own[None],
        _together(unit_forward)[None],
        _together(residual)[None],
    )[0]
    return information + tf.linalg.diag(tf.tile(posterior.prior_precision(prior), [num]))


class Near(NamedTuple):
    """What trajectories follow. galaxies : `conditional.Focus` of a batch of galaxies; whole : of
    all of them as one object; data [1, chain, r], in the directions of both.
    """

    galaxies: conditional.Focus
    whole: conditional.Focus
    data: tf.Tensor


def focus(prior, blend, parameters):
    """A Near without data, about parameters [galaxy, p]: followed whole are the directions in which
    the residual rises above FOLLOWED.
    """
    num, rows, size = blend.field.forward.shape
    residual = (
        _together(posterior.predict(prior, blend.field, parameters)[3]).numpy().astype(np.float64)
    )
    values, vectors = np.linalg.eigh(residual @ residual.T)
    followed = min(max(-(-int((values > FOLLOWED).sum()) // 16) * 16, 1), rows)
    directions = tensor(np.tile(vectors.T[::-1], (num, 1, 1)))
    galaxies = conditional.Focus(
        *conditional.turned(blend.field, directions, num=size, num_followed=followed)
    )
    whole = galaxies._replace(
        directions=directions[:1],
        forward=_together(galaxies.forward)[None],
        squared=_together(galaxies.squared)[None],
        data=galaxies.data[:1],
    )
    return Near(galaxies, whole, None)


@lru_cache
def near_target(prior):
    """The log-density that trajectories follow, of (parameters [chain, galaxy * p], Near) ->
    [chain].
    """

    def log_density_fn(parameters, near):
        chains, num = parameters.shape[0], near.galaxies.forward.shape[0]
        # [galaxy, chain, p]
        parameters = tf.transpose(tf.reshape(parameters, [chains, num, -1]), [1, 0, 2])
        mean, scale, seen = conditional.seen_in(
            prior, near.galaxies, parameters, *conditional.decode(prior, parameters)
        )
        mean, scale = (
            tf.reshape(tf.transpose(part, [1, 0, 2]), [1, chains, -1]) for part in (mean, scale)
        )
        seen = tf.reduce_sum(seen, 0)[None]
        value = conditional.log_normal(
            near.whole, conditional.spread(near.whole, mean, scale, seen), near.data - seen
        )[0]
        return value + tf.reduce_sum(
            tf.reshape(posterior.log_prior(prior, parameters), [num, chains]), 0
        )

    return log_density_fn


@lru_cache
def _drawer(prior):
    """Exact draws [batch, galaxy, k] of flux * (moved) a given parameters [batch, galaxy * p],
    Evidence, normals [batch, galaxy * k + r], by Matheron's rule.
    """

    @tf.function(autograph=False)
    def draw(parameters, evidence, normals):
        field = tf.nest.map_structure(lambda tensor: tensor[0], evidence.field)
        num, rows, size = field.forward.shape

        def one(parts):
            mean, scale, seen, residual = posterior.predict(
                prior, field, tf.reshape(parts[0], [num, -1])
            )
            wild, noise = tf.split(parts[2][None], [num * size, rows], -1)
            update = posterior.matheron_update(
                (parts[1] - tf.reduce_sum(seen, 0))[None], _together(residual)[None], wild, noise
            )
            return mean + scale * tf.reshape(wild + update, [num, size])

        return tf.map_fn(
            one,
            (parameters, evidence.data, normals),
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )

    return draw


def draw_references(prior, blend, parameters, data, rng):
    """Exact draws [batch, galaxy, k], float64, of the coefficients in the reference bands given
    parameters [batch, galaxy * p] and data [batch, r]; means without `rng`.
    """
    num, rows, size = blend.field.forward.shape
    shape = (len(parameters), num * size + rows)
    normals = np.zeros(shape) if rng is None else rng.standard_normal(shape)
    return (
        _drawer(prior)(parameters, evidence_of(blend, data), tensor(normals))
        .numpy()
        .astype(np.float64)
    )


# Chains


class Chains:
    """Chains of one blend: parameters [chain, galaxy * p] and what they move by, given data that
    may change between moves. The first `num_hops` trajectories adapt the step size.
    """

    def __init__(self, prior, blend, climb, rng, *, num_chains, num_hops):
        self.prior, self.blend, self.rng = prior, blend, rng
        self.mode, self.whitening = climb.parameters, whitening(climb.precision)[0]
        self.focus = focus(
            prior, blend, tf.reshape(climb.parameters, [blend.field.forward.shape[0], -1])
        )
        self.white = OVERDISPERSION * tensor(
            rng.standard_normal([num_chains, climb.parameters.shape[1]])
        )
        # loads TensorFlow Probability, which galaxies alone do without
        kernels = import_module("astrogen.inference.kernels")
        self.acceptance = kernels.acceptance
        self.first, self.step, self.renew = kernels.stepper(
            _white_target(prior), SETTINGS._replace(num_burnin=num_hops)
        )
        self.results = None

    @property
    def parameters(self):
        return self.mode + tf.linalg.matvec(self.whitening, self.white)

    def move(self, data, *, num_hops, learn):
        """Move given data [chain, r]: Hamiltonian trajectories of the near density, then a test by
        the exact one, which chains on their way from their start (`learn`) are spared.

        Returns
        -------
        (acceptance of the trajectories, of the test) : means over the chains
        """
        near = self.focus._replace(
            data=tf.matmul(tensor(data), self.focus.whole.directions[0], transpose_b=True)[None]
        )
        evidence, before, start = (near, self.mode, self.whitening), self.white, self.parameters
        if self.results is None:
            self.results = self.first(self.white, evidence, tf.constant(FIRST_STEP))
        else:
            self.results = self.renew(self.white, self.results, evidence)
        rates = []
        for _ in range(num_hops):
            seed = tf.constant(self.rng.integers(2**31, size=2), tf.int32)
            self.white, self.results = self.step(self.white, self.results, evidence, seed)
            rates.append(self.acceptance(self.results))
        passed = 1.0
        if not learn:
            exact = evidence_of(self.blend, data)
            gain = _surplus(self.prior, self.parameters, exact, near) - _surplus(
                self.prior, start, exact, near
            )
            gain = np.where(np.isfinite(gain), gain, -np.inf)
            self.white = tf.where(
                (np.log(self.rng.random(len(gain))) < gain)[:, None], self.white, before
            )
            passed = float(np.exp(np.minimum(gain, 0)).mean())
        return float(np.mean(rates)), passed


@lru_cache
def _white_target(prior):
    """`near_target` of white positions [chain, galaxy * p] and (Near, mode, whitening matrix)."""

    def log_density_fn(white, evidence):
        near, mode, to_parameters = evidence
        return near_target(prior)(mode + tf.linalg.matvec(to_parameters, white), near)

    return log_density_fn


def _surplus(prior, parameters, evidence, near):
    """Exact less near log-density, array [chain]."""
    return (
        _exact_values(prior)(parameters, evidence) - _near_values(prior)(parameters, near)
    ).numpy()


@lru_cache
def _exact_values(prior):
    return tf.function(target(prior)[0], autograph=False)


@lru_cache
def _near_values(prior):
    return tf.function(near_target(prior), autograph=False)


def find_mode(prior, blend, data, parameters):
    """Climb to the mode from parameters [galaxy, p] given data [1, r]: the Climb of a batch of one,
    parameters [1, galaxy * p].
    """
    return find_map(*target(prior), evidence_of(blend, data), tf.reshape(parameters, [1, -1]))
