"""Many draws of each object at once: their log-densities, and galaxies given them.

`posterior` states the model for one set of parameters per object. Weighing hundreds of draws needs
the same numbers for parameters close to the mode, and there most of the work, the factor of the
data's covariance C = I + F diag(v) F' with the residual's variances v, hardly changes in most
directions. At the mode C is therefore diagonalised once. Away from it, C is followed whole in the
directions in which the residual rises highest above the noise, and by its diagonal alone in the
others. With no more directions than are followed whole nothing is approximated. With more,
log-densities are off by some hundredths of a nat (tests/test_conditional.py), and the galaxies, for
which equations are solved with C, are as good as exact: the approximation is only where their
iteration starts.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.galaxies import moments, posterior
from astrogen.graphs import any_size
from astrogen.inference.contracts import Target
from astrogen.inference.laplace import fold, member_normals

NUM_FOLLOWED = 24  # directions in which the covariance is followed whole
NUM_STEPS = 6  # of conjugate gradients: with two, residuals ten times the usual are far off
WHOLE = 64  # directions: their number in chains, which are traced for each, is a multiple
CHUNK = 50  # draws at a time: memory against the efficiency of matrix products


class Focus(NamedTuple):
    """Data in the directions in which their covariance at the mode is diagonal, most residual
    first. Tensors lead with [batch].

    directions [batch, r, r] : data as compressed to the new ones; forward [batch, r, k] : from all
        coefficients, without noise; squared [batch, rest, k]: its
        elements squared, in the directions of which only the diagonal is followed
    data [batch, r]; loudness [batch] : norm of the linear estimate as seen, the unit of the
    amplitudes
    """

    directions: tf.Tensor
    forward: tf.Tensor
    squared: tf.Tensor
    data: tf.Tensor
    loudness: tf.Tensor


def focus(prior, compressed, mode):
    """The Focus of stamps at parameters [batch, p]; where these are not finite, that of a galaxy
    without residual.
    """
    _, _, _, residual = posterior.predict(prior, compressed, mode)
    gram = tf.matmul(residual, residual, transpose_b=True).numpy()
    gram[~np.isfinite(gram).all((1, 2))] = 0
    directions = np.swapaxes(np.linalg.eigh(gram)[1], 1, 2)[:, ::-1]
    return Focus(
        *turned(
            compressed,
            tf.constant(directions.copy()),
            num=prior.coefficient_std.shape[0],
            num_followed=NUM_FOLLOWED,
        )
    )


@any_size
@tf.function(autograph=False)
def turned(compressed, directions, *, num, num_followed):
    """The fields of a Focus on given directions [batch, r, r]."""
    forward = tf.matmul(directions, _widened(compressed.forward, compressed.visible, num))
    loudness = tf.norm(posterior.seen_by(compressed, compressed.coefficients), axis=1)
    return (
        directions,
        forward,
        forward[:, num_followed:] ** 2,
        tf.linalg.matvec(directions, compressed.data),
        loudness,
    )


def _widened(forward, visible, num):
    """Columns [batch, ..., v] at the places of the visible ones among `num`: [batch, ..., num]."""
    columns = (
        tf.one_hot(visible, num) * tf.cast(tf.reduce_any(forward != 0, 1), tf.float32)[..., None]
    )
    return tf.matmul(forward, columns)


class _Draws(NamedTuple):
    """mean, scale [batch, draw, k] of flux * a; seen [batch, draw, r]: the mean in the directions
    of the Focus; factor [batch, draw, followed, followed]: Cholesky
    factor of the covariance in the directions followed whole; variance [batch, draw, rest]: its
    diagonal in the others.
    """

    mean: tf.Tensor
    scale: tf.Tensor
    seen: tf.Tensor
    factor: tf.Tensor
    variance: tf.Tensor


def decode(prior, parameters):
    """Mean (moved) and residual scale of the coefficients [batch, draw, k] of a galaxy of unit
    flux: half of the cost of a draw.
    """
    latent, _, shift, _ = posterior.split(parameters, prior.latent_size)
    mean, scale = (
        tf.reshape(x, [*tf.unstack(tf.shape(parameters)[:2]), x.shape[-1]])
        for x in prior.components(tf.reshape(latent, [-1, prior.latent_size]))
    )
    return prior.move_coefficients(mean, shift), scale


def seen_in(prior, here, parameters, mean, scale):
    """Of parameters [batch, draw, p] and what they decode to: mean and scale [batch, draw, k] of
    flux * a, and the mean in the directions of the Focus [batch, draw, r].
    """
    _, log_flux, _, log_amplitude = posterior.split(parameters, prior.latent_size)
    seen = tf.matmul(mean, here.forward, transpose_b=True)
    flux = (here.loudness[:, None] * tf.exp(log_flux) / tf.norm(seen, axis=-1))[..., None]
    return (
        flux * mean,
        flux * tf.exp(0.5 * log_amplitude)[..., None] * prior.roughness * scale,
        flux * seen,
    )


def spread(here, mean, scale, seen):
    """The covariance of the data for residuals of some scale, as _Draws."""
    residual = (
        here.forward[:, None, : tf.shape(here.forward)[1] - tf.shape(here.squared)[1]]
        * scale[:, :, None, :]
    )
    factor = tf.linalg.cholesky(
        tf.matmul(residual, residual, transpose_b=True) + tf.eye(tf.shape(residual)[-2])
    )
    return _Draws(
        mean, scale, seen, factor, 1 + tf.matmul(scale**2, here.squared, transpose_b=True)
    )


def _predict(prior, here, parameters, mean, scale):
    """What `posterior.predict` says of parameters [batch, draw, p] and what they decode to."""
    return spread(here, *seen_in(prior, here, parameters, mean, scale))


def log_normal(here, draws, miss):
    """Log-density [batch, draw] of data that miss their mean by [batch, draw, r], up to a
    constant.
    """
    log_determinant = 2 * tf.reduce_sum(
        tf.math.log(tf.linalg.diag_part(draws.factor)), -1
    ) + tf.reduce_sum(tf.math.log(draws.variance), -1)
    return -0.5 * (tf.reduce_sum(miss * _solve(here, draws, miss), -1) + log_determinant)


def _log_density(prior, here, parameters, mean, scale):
    """[batch, draw], up to a constant for each object."""
    draws = _predict(prior, here, parameters, mean, scale)
    return posterior.log_prior(prior, parameters) + log_normal(
        here, draws, here.data[:, None] - draws.seen
    )


def _solve_nearly(draws, right):
    """C^-1 right [batch, draw, r], but for C's elements off the diagonal in the directions that are
    not followed whole.
    """
    followed = tf.shape(draws.factor)[-1]
    solved = tf.linalg.cholesky_solve(draws.factor, right[..., :followed, None])[..., 0]
    return tf.concat([solved, right[..., followed:] / draws.variance], -1)


def _solve(here, draws, right):
    """C^-1 right [batch, draw, r], by conjugate gradients that start from what is nearly the
    answer.
    """
    solved, rest = tf.zeros_like(right), right
    better = _solve_nearly(draws, rest)
    search, promise = better, tf.reduce_sum(rest * better, -1, keepdims=True)
    for _ in range(NUM_STEPS):
        seen = search + tf.matmul(
            draws.scale**2 * tf.matmul(search, here.forward), here.forward, transpose_b=True
        )
        length = tf.math.divide_no_nan(promise, tf.reduce_sum(search * seen, -1, keepdims=True))
        solved, rest = solved + length * search, rest - length * seen
        better = _solve_nearly(draws, rest)
        before, promise = promise, tf.reduce_sum(rest * better, -1, keepdims=True)
        search = better + tf.math.divide_no_nan(promise, before) * search
    return solved


def _coefficients(prior, here, parameters, mean, scale, wild, noise):
    """Draws of flux * a [batch, draw, k] by Matheron's rule; wild [batch, draw, k] and noise
    [batch, draw, r] are standard normals, the latter in the
    directions of the Focus."""
    draws = _predict(prior, here, parameters, mean, scale)
    imagined = tf.matmul(draws.scale * wild, here.forward, transpose_b=True) + noise
    solved = _solve(here, draws, here.data[:, None] - draws.seen - imagined)
    return draws.mean + draws.scale * (wild + draws.scale * tf.matmul(solved, here.forward))


def _by_chunks(function, *arrays, num_results):
    """`function` of arrays [draw, batch, ...], taken as [batch, CHUNK, ...] at a time; the last
    chunk is filled up. A tuple of results [draw, batch, ...].
    """
    num = tf.shape(arrays[0])[0]
    chunks = -(-num // CHUNK)
    filled = [
        tf.concat([array, tf.repeat(array[:1], chunks * CHUNK - num, 0)], 0) for array in arrays
    ]
    stacked = tuple(tf.reshape(array, _shape(array, [chunks, CHUNK])) for array in filled)
    done = tf.map_fn(
        lambda parts: tuple(map(_draw_first, function(*map(_batch_first, parts)))),
        stacked,
        fn_output_signature=(tf.float32,) * num_results,
        parallel_iterations=1,
    )
    return tuple(tf.reshape(part, _shape(part[0], [chunks * CHUNK]))[:num] for part in done)


def _shape(array, leading):
    """That of `array`, with other numbers in place of its first."""
    return [*leading, *tf.unstack(tf.shape(array)[1:])]


def _batch_first(array):
    return tf.transpose(array, [1, 0, *range(2, array.shape.rank)])


_draw_first = _batch_first


@lru_cache
def _evaluators(prior):
    """The traced functions of a prior."""

    @any_size
    @tf.function(autograph=False)
    def log_densities(here, parameters):
        def one(some):
            decoded = decode(prior, some)
            return _log_density(prior, here, some, *decoded), *decoded

        return _by_chunks(one, parameters, num_results=3)

    @any_size
    @tf.function(autograph=False)
    def coefficients(here, parameters, decoded, wild, noise):
        if decoded is None:
            decoded = _by_chunks(lambda some: decode(prior, some), parameters, num_results=2)
        return _by_chunks(
            lambda *some: (_coefficients(prior, here, *some),),
            parameters,
            *decoded,
            wild,
            noise,
            num_results=1,
        )[0]

    return log_densities, coefficients


def log_densities(prior, here, parameters):
    """Log of the unnormalised posterior density [draw, batch] at parameters [draw, batch, p], up to
    a constant for each object; and what the parameters decode
    to, two arrays [draw, batch, k] for `draw_coefficients`."""
    values, *decoded = _evaluators(prior)[0](here, parameters)
    return values, tuple(decoded)


class Evidence(NamedTuple):
    """What inference hands back to the functions of a Target."""

    compressed: posterior.Compressed
    here: Focus


def make_target(prior, compressed, mode):
    """The posterior of stamps as methods of inference see it, near parameters [batch, p]."""
    evidence = Evidence(compressed, focus(prior, compressed, mode))
    return Target(*_target_functions(prior), evidence, _lean)


def _lean(evidence):
    """The Focus alone, its directions filled up to a multiple of WHOLE with such as say nothing."""
    here = evidence.here
    missing = -here.data.shape[1] % WHOLE
    more = [[0, 0], [0, missing], [0, 0]]
    return Evidence(
        None,
        here._replace(
            directions=None,
            forward=tf.pad(here.forward, more),
            squared=tf.pad(here.squared, more),
            data=tf.pad(here.data, more[:2]),
        ),
    )


@lru_cache
def _target_functions(prior):
    """(log_density_fn, weigh_fn, report_fn) of a `Target`; the same ones each time, so that nothing
    is traced twice.
    """

    def log_density_fn(parameters, evidence):
        parameters = _batch_first(parameters)
        return tf.transpose(
            _log_density(prior, evidence.here, parameters, *decode(prior, parameters))
        )

    def weigh_fn(parameters, evidence):
        return log_densities(prior, evidence.here, parameters)

    def report_fn(parameters, evidence, seeds):
        drawn, _, _ = draw_galaxies(prior, evidence, parameters, seeds)
        return moments.report(prior, drawn, evidence.compressed.coefficients.numpy())

    return log_density_fn, weigh_fn, report_fn


def draw_galaxies(prior, evidence, parameters, seeds, decoded=None):
    """As `draw_coefficients`, each object's randomness from its own seed."""
    compressed, here = evidence
    normals = standard_normals(
        tf.constant(seeds), parameters.shape[0], here.forward.shape[-1], here.data.shape[1]
    )
    return draw_coefficients(prior, compressed, here, parameters, normals, decoded)


def standard_normals(seeds, num_draws, num_coefficients, num_directions):
    """Standard normals [draw, batch, num_coefficients + num_directions + 1] for
    `draw_coefficients`.

    As many are drawn as there could be directions: how many the batch keeps depends on the objects
    beside this one.
    """
    wide = member_normals(fold(seeds, 1), num_draws, 2 * num_coefficients + 1)
    return tf.concat([wide[..., 1 : num_coefficients + num_directions + 1], wide[..., :1]], -1)


def draw_coefficients(prior, compressed, here, parameters, normals, decoded=None):
    """Draws of flux * (moved) a and of the background given draws of the parameters, as
    `posterior.draw_coefficients`.

    Parameters
    ----------
    here : Focus
    parameters : Tensor [draw, batch, p]
    normals : Tensor [draw, batch, k + r + 1], standard normals
    decoded : arrays from `log_densities` at the same parameters, or None

    Returns
    -------
    coefficients [draw, batch, k], background [draw, batch], and the effective number of data that
    the model follows [batch]
    """
    num = here.forward.shape[-1]
    wild, noise, level_noise = normals[..., :num], normals[..., num:-1], normals[..., -1]
    # The noise is turned, not drawn in the new directions: these may change sign with the last
    # bits, and draws must not.
    noise = tf.einsum("bsr,dbr->dbs", here.directions, noise)
    drawn = _evaluators(prior)[1](here, parameters, decoded, wild, noise)
    seen = tf.matmul(_batch_first(drawn), here.forward, transpose_b=True)
    followed = tf.reduce_sum(tf.math.reduce_variance(seen, 1), -1)
    towards = tf.reduce_sum(
        _widened(compressed.background_forward[:, None], compressed.visible, num)[:, 0] * drawn, -1
    )
    level = (compressed.background_data - towards) / compressed.background_precision
    return drawn, level + level_noise * tf.math.rsqrt(compressed.background_precision), followed
