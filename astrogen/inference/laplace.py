"""The Laplace approximation: a Gaussian at the mode, whose draws are weighted by how wrong it is
there.

The weights are not optional. In fifty dimensions the Gaussian steps off curved ridges (a galaxy's
flux against its shape), which makes sums over an image too large and too uncertain; weighted draws
agree with Hamiltonian Monte Carlo. `diagnostics.smooth_weights` says whether there are enough of
them.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.errors import InputError
from astrogen.graphs import any_size


class Laplace(NamedTuple):
    """draws [draw, batch, p]; log_weights [draw, batch]: log target minus log proposal, up to a
    constant for each object.
    """

    draws: tf.Tensor
    log_weights: tf.Tensor


def laplace(log_density_fn, climb, evidence, *, num_draws, seed):
    """Draw from the Laplace approximation and weigh each draw.

    Exact for a Gaussian target, where the weights are equal (tests/test_inference.py).

    Parameters
    ----------
    log_density_fn : callable of (parameters [batch, p], evidence) -> [batch]
    climb : Climb, the modes and precisions
    evidence : nested tensors handed to the log-density
    num_draws : int
    seed : int pair, or int array [batch, 2]: one pair for each object, which makes its draws
        independent of the batch that it is in

    Returns
    -------
    Laplace
    """
    draws = draw_gaussian(climb, num_draws=num_draws, seed=seed)
    return Laplace(
        draws, _log_densities(log_density_fn, draws, evidence) - gaussian_log_density(climb, draws)
    )


def draw_gaussian(climb, *, num_draws, seed):
    """Draws [draw, batch, p] from N(mode, precision^-1); seeds as in `laplace`."""
    noise = member_normals(
        member_seeds(seed, climb.parameters.shape[0]), num_draws, climb.parameters.shape[-1]
    )
    return climb.parameters + tf.linalg.matvec(whitening(climb.precision), noise)


@any_size
@tf.function(autograph=False)
def gaussian_log_density(climb, draws):
    """Normalised log-density [draw, batch] of N(mode, precision^-1) at draws [draw, batch, p]."""
    factor = tf.linalg.cholesky(climb.precision)
    white = tf.linalg.matvec(factor, draws - climb.parameters, transpose_a=True)
    num = tf.cast(tf.shape(draws)[-1], tf.float32)
    normalisation = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)), -1)
    normalisation -= 0.5 * num * float(np.log(2 * np.pi))
    return normalisation - 0.5 * tf.reduce_sum(white**2, -1)


def resample(log_weights, *, num_draws, seed):
    """Which draws to keep, some more than once, so that those kept count equally: systematic
    resampling.

    Parameters
    ----------
    log_weights : array [draw, batch], smoothed
    num_draws : int, how many to keep
    seed : as in `laplace`

    Returns
    -------
    int array [num_draws, batch], ascending
    """
    weights = np.exp(log_weights - np.max(log_weights, 0))
    heights = np.cumsum(weights, 0) / weights.sum(0)
    offsets = [
        np.random.default_rng([int(word) & 0xFFFFFFFF for word in pair]).random()
        for pair in member_seeds(seed, weights.shape[1]).numpy()
    ]
    rungs = (np.arange(num_draws)[:, None] + np.array(offsets)) / num_draws
    chosen = [np.searchsorted(height, rung) for height, rung in zip(heights.T, rungs.T)]
    return np.minimum(np.stack(chosen, 1), weights.shape[0] - 1)


@tf.function(autograph=False)
def _log_densities(log_density_fn, draws, evidence):
    """Log-densities [draw, batch], draw by draw: forward matrices are large."""
    return tf.map_fn(
        lambda parameters: log_density_fn(parameters, evidence), draws, parallel_iterations=1
    )


@any_size
@tf.function(autograph=False)
def whitening(precision):
    """Matrices [batch, p, p] that turn standard normals into N(0, precision^-1): the transposed
    inverse of the lower Cholesky factor.

    Zeros where the precision is not finite and positive definite: nothing moves there, and no NaN
    spreads.
    """
    factor = tf.linalg.cholesky(precision)
    inverse = tf.linalg.triangular_solve(
        factor, tf.eye(tf.shape(precision)[-1], batch_shape=tf.shape(precision)[:1]), adjoint=True
    )
    return tf.where(tf.reduce_all(tf.math.is_finite(inverse), [1, 2], keepdims=True), inverse, 0.0)


def member_seeds(seed, batch):
    """Seeds [batch, 2], one for each object: those given, or derived from one pair and the place in
    the batch.
    """
    seed = tf.convert_to_tensor(seed, tf.int32)
    if seed.shape == (batch, 2):
        return seed
    if seed.shape != (2,):
        raise InputError(
            f"member_seeds: seed must be a pair of integers or one pair for each of {batch}"
            f" objects, got shape {tuple(seed.shape)}; give [seed, 0] or an array [{batch}, 2]."
        )
    return tf.map_fn(
        lambda index: tf.random.experimental.stateless_fold_in(seed, index), tf.range(batch)
    )


@any_size
@tf.function(autograph=False)
def fold(seeds, index):
    """Seeds [batch, 2] that differ from those given, and for each index."""
    return tf.map_fn(lambda seed: tf.random.experimental.stateless_fold_in(seed, index), seeds)


@any_size
@tf.function(autograph=False)
def member_normals(seeds, num, size):
    """Standard normals [num, batch, size], each object's own from its own seed."""
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_normal([num, size], seed),
        seeds,
        fn_output_signature=tf.float32,
    )
    return tf.transpose(noise, [1, 0, 2])
