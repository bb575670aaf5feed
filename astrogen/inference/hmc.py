"""Hamiltonian Monte Carlo in the space whitened by the Laplace approximation: the audit of the
cheaper methods.

Batched over objects and chains. Everything random about an object comes from its own seed, so that
an object's chains do not depend on its neighbours.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.errors import InputError
from astrogen.inference import diagnostics
from astrogen.inference.climb import value_and_gradient
from astrogen.inference.laplace import member_normals, member_seeds, whitening

DIVERGENCE = 1000.0  # nats of energy error beyond which a trajectory has diverged (as in Stan)
OVERDISPERSION = 1.25  # chains start this much wider than the Laplace approximation
LOG_FIRST_STEP = float(np.log(0.8))  # in the whitened space


class Chains(NamedTuple):
    """Draws and how far to trust them.

    draws [draw, chain, batch, p], log_density [draw, chain, batch]; arrays, after burn-in:
    accept_rate, divergent (count), step_size, each [batch]; r_hat, ess [batch, p], of the
    parameters.
    """

    draws: tf.Tensor
    log_density: tf.Tensor
    accept_rate: np.ndarray
    divergent: np.ndarray
    step_size: np.ndarray
    r_hat: np.ndarray
    ess: np.ndarray


def sample_hmc(
    log_density_fn,
    climb,
    evidence,
    *,
    num_draws,
    num_burnin,
    num_chains,
    seed,
    target_accept=0.8,
    path=2.2,
    max_leapfrogs=8,
    together=False,
):
    """Draw from a batch of log-densities by Hamiltonian Monte Carlo, started about their modes.

    Trajectories differ in length (by a sequence without pattern, the same for all objects) between
    half and one and a half times `path`, because a fixed length can resonate (Neal 2011, section
    3.2); each object's step size is adapted during burn-in by dual averaging over its chains. An
    object whose density is not finite at its mode stays there, with all its trajectories counted as
    divergent.

    Parameters
    ----------
    log_density_fn : callable of (parameters [batch, p], evidence) -> [batch]
    climb : Climb, the modes and precisions
    evidence : nested tensors handed to the log-density
    num_draws, num_burnin, num_chains : int; draws are kept per chain, after burn-in
    seed : int pair, or int array [batch, 2]: one pair for each object, which makes its draws
        independent of the batch that it is in
    path : float, mean length of a trajectory in the whitened space. At pi / 2 a Gaussian forgets
        its start; a little more makes successive draws lie on
        opposite sides, which halves the error of means for the same cost
    target_accept : float, mean acceptance that the step size is adapted to
    max_leapfrogs : int, of the longest trajectory
    together : bool, the log-density takes all chains [chain, batch, p] at once and returns [chain,
        batch]; else it is called chain by chain

    Returns
    -------
    Chains
    """
    if num_draws < 4 or num_chains < 1 or num_burnin < 0:
        raise InputError(
            "sample_hmc: num_draws, num_chains and num_burnin must be at least 4, 1 and 0, got"
            f" {num_draws}, {num_chains} and {num_burnin}; R-hat compares the halves of each chain."
        )
    batch = climb.parameters.shape[0]
    draws, log_density, accept, divergent, step_size = _run(
        log_density_fn,
        climb.parameters,
        whitening(climb.precision),
        evidence,
        member_seeds(seed, batch),
        num_draws=num_draws,
        num_burnin=num_burnin,
        num_chains=num_chains,
        target_accept=target_accept,
        path=path,
        max_leapfrogs=max_leapfrogs,
        together=together,
    )
    values = np.moveaxis(draws.numpy(), 0, 1)  # [chain, draw, batch, p]
    return Chains(
        draws,
        log_density,
        accept.numpy(),
        divergent.numpy(),
        step_size.numpy(),
        diagnostics.r_hat(values),
        diagnostics.effective_draws(values),
    )


class _State(NamedTuple):
    """White positions and gradients [chain, batch, p], log-densities [chain, batch], and the dual
    averaging of the log step size [batch].
    """

    white: tf.Tensor
    value: tf.Tensor
    gradient: tf.Tensor
    log_step: tf.Tensor
    mean_log_step: tf.Tensor
    shortfall: tf.Tensor


@tf.function(autograph=False)
def _run(
    log_density_fn,
    mode,
    to_parameters,
    evidence,
    seeds,
    *,
    num_draws,
    num_burnin,
    num_chains,
    target_accept,
    path,
    max_leapfrogs,
    together,
):
    batch, size = mode.shape

    def place(white):
        return mode + tf.linalg.matvec(to_parameters, white)

    def density(white):
        """Log-densities [chain, batch] and their gradients in the white space, one chain at a time
        unless the log-density can do better.
        """
        if together:
            value, gradient = value_and_gradient(log_density_fn, place(white), evidence)
            return value, tf.linalg.matvec(to_parameters, gradient, transpose_a=True)

        def one(chain):
            value, gradient = value_and_gradient(log_density_fn, place(chain), evidence)
            return value, tf.linalg.matvec(to_parameters, gradient, transpose_a=True)

        return tf.map_fn(
            one, white, fn_output_signature=(tf.float32, tf.float32), parallel_iterations=1
        )

    def transition(index, state):
        momentum, log_uniform = _randomness(seeds, index, num_chains, size)
        step = tf.exp(state.log_step)
        # the same for all, so that none waits for the others
        turn = 0.5 + tf.math.floormod(0.618034 * tf.cast(index, tf.float32), 1.0)
        num_steps = tf.clip_by_value(tf.math.round(path * turn / step), 1.0, float(max_leapfrogs))
        white, value, gradient, error = _trajectory(
            density, state, momentum, step, num_steps, floor
        )
        accept_probability = tf.exp(tf.minimum(0.0, -error))
        accept = log_uniform < -error
        moved = state._replace(
            white=tf.where(accept[..., None], white, state.white),
            value=tf.where(accept, value, state.value),
            gradient=tf.where(accept[..., None], gradient, state.gradient),
        )
        return (
            moved,
            tf.reduce_mean(accept_probability, 0),
            tf.reduce_sum(tf.cast(error > DIVERGENCE, tf.int32), 0),
        )

    def warm(index, state):
        moved, accept, _ = transition(index, state)
        return index + 1, _adapt(moved, tf.cast(index + 1, tf.float32), target_accept - accept)

    def keep(index, state, draws, values, accept, divergent):
        state, rate, diverged = transition(num_burnin + index, state)
        return (
            index + 1,
            state,
            draws.write(index, place(state.white)),
            values.write(index, state.value),
            accept + rate / num_draws,
            divergent + diverged,
        )

    noise = member_normals(_fold(seeds, -1), num_chains, size)
    at_mode = density(tf.zeros_like(noise))
    floor = at_mode[0][0] - DIVERGENCE - 10.0 * size
    state = _first(density, at_mode, OVERDISPERSION * noise, floor)
    _, state = tf.while_loop(
        lambda index, _: index < num_burnin, warm, (0, state), parallel_iterations=1
    )
    state = state._replace(log_step=state.mean_log_step)
    records = [tf.TensorArray(tf.float32, num_draws) for _ in range(2)]
    _, state, draws, values, accept, divergent = tf.while_loop(
        lambda index, *_: index < num_draws,
        keep,
        (0, state, *records, tf.zeros([batch]), tf.zeros([batch], tf.int32)),
        parallel_iterations=1,
    )
    return draws.stack(), values.stack(), accept, divergent, tf.exp(state.log_step)


def _first(density, at_mode, white, floor):
    """Chains that start at white positions, or at the mode where the density there is below the
    floor or not finite.
    """
    value, gradient = density(white)
    good = (value > floor) & tf.reduce_all(tf.math.is_finite(gradient), -1)
    zero = tf.zeros_like(floor)
    return _State(
        tf.where(good[..., None], white, 0.0),
        tf.where(good, value, at_mode[0]),
        tf.where(good[..., None], gradient, at_mode[1]),
        zero + LOG_FIRST_STEP,
        zero + LOG_FIRST_STEP,
        zero,
    )


def _trajectory(density, state, momentum, step, num_steps, floor):
    """Leapfrog from a state: end position, log-density, gradient there, and the energy error
    [chain, batch].

    Members with few steps stand still while the others go on. Where the log-density falls below the
    floor, so far under the mode that no mass is there, or is not finite, the trajectory ends with
    an infinite error. This looks at positions alone, so that it forbids a path and its reverse
    alike: the chain stays exact.
    """
    energy = 0.5 * tf.reduce_sum(momentum**2, -1) - state.value

    def under_way(count, error):
        return (tf.cast(count, tf.float32) < num_steps) & tf.math.is_finite(error)

    def leapfrog(count, white, value, gradient, momentum, error):
        active = under_way(count, error)
        chosen, length = active[..., None], tf.where(active, step, 0.0)[..., None]
        middle = momentum + 0.5 * length * gradient
        there = tf.where(chosen, white + length * middle, white)
        new_value, new_gradient = density(there)
        end = middle + 0.5 * length * new_gradient
        new_error = 0.5 * tf.reduce_sum(end**2, -1) - new_value - energy
        new_error = tf.where((new_value > floor) & tf.math.is_finite(new_error), new_error, np.inf)
        return (
            count + 1,
            there,
            tf.where(active, new_value, value),
            tf.where(chosen, new_gradient, gradient),
            tf.where(chosen, end, momentum),
            tf.where(active, new_error, error),
        )

    first = (0, state.white, state.value, state.gradient, momentum, tf.zeros_like(energy))
    _, white, value, gradient, _, error = tf.while_loop(
        lambda count, *rest: tf.reduce_any(under_way(count, rest[-1])),
        leapfrog,
        first,
        parallel_iterations=1,
    )
    return white, value, gradient, error


def _adapt(state, count, shortfall):
    """One step of dual averaging of the log step size, after `count` trajectories (Hoffman & Gelman
    2014, eq. 6; their constants).
    """
    mean_shortfall = state.shortfall + (shortfall - state.shortfall) / (count + 10.0)
    log_step = LOG_FIRST_STEP - tf.sqrt(count) / 0.05 * mean_shortfall
    weight = count**-0.75
    return state._replace(
        log_step=log_step,
        mean_log_step=weight * log_step + (1 - weight) * state.mean_log_step,
        shortfall=mean_shortfall,
    )


def _fold(seeds, index):
    return tf.map_fn(lambda seed: tf.random.experimental.stateless_fold_in(seed, index), seeds)


def _randomness(seeds, index, num_chains, size):
    """Momenta [chain, batch, p] and log-uniforms [chain, batch] of one trajectory."""

    def one(seed):
        ours = tf.random.experimental.stateless_split(
            tf.random.experimental.stateless_fold_in(seed, index), 2
        )
        return tf.random.stateless_normal([num_chains, size], ours[0]), tf.random.stateless_uniform(
            [num_chains], ours[1]
        )

    momentum, uniform = tf.map_fn(one, seeds, fn_output_signature=(tf.float32, tf.float32))
    return tf.transpose(momentum, [1, 0, 2]), tf.math.log(tf.transpose(uniform))


@tf.function(autograph=False)
def hop(
    log_density_fn, parameters, to_parameters, evidence, momentum, log_uniform, step, num_steps
):
    """One Hamiltonian trajectory for each member of a batch, for samplers whose target changes
    between trajectories.

    Parameters
    ----------
    log_density_fn : callable of (parameters [batch, p], evidence) -> [batch]
    parameters : Tensor [batch, p]
    to_parameters : Tensor [p, p], takes white positions to parameters (`whitening` of a precision
        near the mode)
    evidence : nested tensors handed to the log-density
    momentum [batch, p], log_uniform [batch] : standard normals, and logarithms of uniforms
    step : float scalar, in the white space; num_steps : int scalar

    Returns
    -------
    parameters [batch, p], and the probability of acceptance [batch]
    """

    def density(parameters):
        value, gradient = value_and_gradient(log_density_fn, parameters, evidence)
        return value, tf.linalg.matvec(to_parameters, gradient, transpose_a=True)

    def leapfrog(count, there, momentum, value, gradient):
        momentum = momentum + 0.5 * step * gradient
        there = there + step * tf.linalg.matvec(to_parameters, momentum)
        value, gradient = density(there)
        return count + 1, there, momentum + 0.5 * step * gradient, value, gradient

    first, slope = density(parameters)
    _, there, last, value, _ = tf.while_loop(
        lambda count, *_: count < num_steps,
        leapfrog,
        (0, parameters, momentum, first, slope),
        parallel_iterations=1,
    )
    gain = value - first - 0.5 * tf.reduce_sum((last - momentum) * (last + momentum), -1)
    gain = tf.where(tf.math.is_finite(gain), gain, -np.inf)
    return tf.where((log_uniform < gain)[:, None], there, parameters), tf.exp(tf.minimum(0.0, gain))
