"""Markov chains of many objects at once, in the space whitened by their Laplace approximations: the
audit of the cheaper methods.

Batched over objects and chains. Everything random about an object comes from its own seed, so that
an object's chains do not depend on its neighbours.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from astrogen.errors import InputError
from astrogen.graphs import each_size
from astrogen.inference import diagnostics
from astrogen.inference.climb import value_and_gradient
from astrogen.inference.contracts import Sampling
from astrogen.inference.kernels import DIVERGENCE, Hamiltonian, adapted, innermost
from astrogen.inference.laplace import fold, member_normals, member_seeds, whitening

OVERDISPERSION = 1.25  # chains start this much wider than the Laplace approximation
FIRST_STEP = 0.8  # in the whitened space


class End(NamedTuple):
    """Where chains ended, to go on from: white [chain, batch, p], step_size [batch], count, and
    target_accept [batch], the mean acceptance that the step size is adapted to.
    """

    white: tf.Tensor
    step_size: tf.Tensor
    count: tf.Tensor
    target_accept: tf.Tensor


class Chains(NamedTuple):
    """Draws and how far to trust them.

    draws [draw, chain, batch, p], log_density [draw, chain, batch]; after burn-in: accept_rate,
    divergent (count), each an array [batch]; end : End; num_gradients : int, that each chain took,
    or the longest of them.
    """

    draws: tf.Tensor
    log_density: tf.Tensor
    accept_rate: np.ndarray
    divergent: np.ndarray
    end: End
    num_gradients: int

    @property
    def step_size(self):
        """[batch], after burn-in."""
        return self.end.step_size.numpy()

    @property
    def r_hat(self):
        """[batch, p], of the parameters."""
        return diagnostics.r_hat(np.moveaxis(self.draws.numpy(), 0, 1))

    @property
    def ess(self):
        """[batch, p], of the parameters."""
        return diagnostics.effective_draws(np.moveaxis(self.draws.numpy(), 0, 1))


def sample_hmc(log_density_fn, climb, evidence, *, seed, settings=Sampling(), begin=None):
    """Draw from a batch of log-densities by Hamiltonian Monte Carlo, started about their modes.

    Trajectories as of `kernels.Hamiltonian`; each object's step size is adapted during burn-in by
    dual averaging over its chains. An object whose density is not finite at its mode stays there,
    with all its trajectories counted as divergent.

    Parameters
    ----------
    log_density_fn : callable of (parameters [chain, batch, p], evidence) -> [chain, batch]
    climb : Climb, the modes and precisions
    evidence : nested tensors handed to the log-density
    seed : int pair, or int array [batch, 2]: one pair for each object, which makes its draws
        independent of the batch that it is in
    settings : Sampling; its num_draws are kept of each chain
    begin : End or None, where other chains of these objects ended, to go on from

    Returns
    -------
    Chains
    """
    _check(settings)
    batch, size = climb.parameters.shape
    seeds = member_seeds(seed, batch)
    if begin is None:
        white = OVERDISPERSION * member_normals(fold(seeds, -1), settings.num_chains, size)
        begin = End(
            white,
            tf.fill([batch], FIRST_STEP),
            tf.constant(0),
            tf.fill([batch], settings.target_accept),
        )
    draws, values, accept, divergent, end, num_gradients = _run(
        log_density_fn,
        climb.parameters,
        whitening(climb.precision),
        evidence,
        seeds,
        begin,
        tf.constant(settings.num_draws),
        tf.constant(settings.thinning),
        settings=settings._replace(num_draws=None, thinning=None, target_accept=None),
    )
    return Chains(draws, values, accept.numpy(), divergent.numpy(), end, int(num_gradients))


def _check(settings):
    if settings.num_draws < 4 or settings.num_chains < 1 or settings.num_burnin < 0:
        raise InputError(
            "sample_hmc: num_draws, num_chains and num_burnin must be at least 4, 1 and 0, got"
            f" {settings.num_draws}, {settings.num_chains} and {settings.num_burnin}; R-hat"
            " compares the halves of each chain."
        )


@each_size
def _run(
    log_density_fn,
    mode,
    to_parameters,
    evidence,
    seeds,
    begin,
    num_draws,
    thinning,
    *,
    settings,
):
    size = mode.shape[1]

    def place(white):
        return mode + tf.linalg.matvec(to_parameters, white)

    def density(white):
        return log_density_fn(place(white), evidence)

    at_mode = density(tf.zeros_like(begin.white))[0]
    floor = at_mode - DIVERGENCE - 10.0 * size
    kernel = adapted(
        Hamiltonian(
            density,
            begin.step_size[:, None],
            settings,
            floor=floor,
            seeds=seeds,
            first=begin.count,
        ),
        num_steps=settings.num_burnin,
        target_accept=begin.target_accept,
    )
    done = _sample(
        kernel,
        _inside(density, begin.white, floor),
        num_draws=num_draws,
        thinning=thinning,
        num_burnin=settings.num_burnin,
    )
    results = done.final_kernel_results
    end = End(
        done.all_states[-1],
        innermost(results, "step_size")[:, 0],
        innermost(results, "count"),
        begin.target_accept,
    )
    return (
        tf.map_fn(place, done.all_states, parallel_iterations=1),
        done.trace.value,
        tf.reduce_mean(tf.exp(tf.minimum(done.trace.log_accept_ratio, 0.0)), [0, 1]),
        tf.reduce_sum(innermost(results, "num_divergent"), 0),
        end,
        innermost(results, "num_leapfrogs"),
    )


def sample_by_kernel(kernel_fn, target, climb, *, seeds, settings):
    """Chains of any kernel, about the modes, one object after the other.

    TensorFlow Probability draws what is random about a batch from one seed: object by object,
    draws do not depend on who else is there.

    Parameters
    ----------
    kernel_fn : as of `chains.draw_by_kernel`
    target : Target
    seeds : int array [batch, 2]

    Returns
    -------
    draws array [draw, chain, batch, p], mean acceptance [batch] (nan where the kernel does not say)
    """
    _check(settings)
    matrices = whitening(climb.precision)
    drawn = [
        _run_kernel(
            kernel_fn,
            target.log_density_fn,
            climb.parameters[row],
            matrices[row],
            tf.nest.map_structure(lambda x, row=row: x[row : row + 1], target.lean),
            tf.constant(seed, tf.int32),
            settings=settings,
        )
        for row, seed in enumerate(seeds)
    ]
    draws, accept = zip(*drawn, strict=True)
    return np.stack(draws, 2), np.array(accept)


@each_size
def _run_kernel(kernel_fn, log_density_fn, mode, to_parameters, evidence, seed, *, settings):
    def place(white):
        return mode + tf.linalg.matvec(to_parameters, white)

    def density(white):
        return log_density_fn(place(white)[:, None], evidence)[:, 0]

    seeds = tf.random.experimental.stateless_split(seed, 2)
    noise = tf.random.stateless_normal([settings.num_chains, mode.shape[0]], seeds[0])
    floor = density(tf.zeros_like(noise)) - DIVERGENCE - 10.0 * mode.shape[0]
    done = _sample(
        kernel_fn(density, settings.num_burnin),
        _inside(density, OVERDISPERSION * noise, floor),
        num_draws=settings.num_draws,
        thinning=settings.thinning,
        num_burnin=settings.num_burnin,
        seed=seeds[1],
    )
    return place(done.all_states), tf.reduce_mean(
        tf.exp(tf.minimum(done.trace.log_accept_ratio, 0.0))
    )


class _Trace(NamedTuple):
    value: tf.Tensor
    log_accept_ratio: tf.Tensor


def _sample(kernel, white, *, num_draws, thinning, num_burnin, seed=None):
    """Chains of any kernel, as of `tfp.mcmc.sample_chain`."""

    def trace(state, results):
        value = innermost(results, "target_log_prob")
        nothing = tf.fill(state.shape[:-1], np.float32(np.nan))
        ratio = innermost(results, "log_accept_ratio")
        return _Trace(
            nothing if value is None else value,
            nothing if ratio is None else ratio,
        )

    return tfp.mcmc.sample_chain(
        num_draws,
        white,
        kernel=kernel,
        num_burnin_steps=num_burnin,
        num_steps_between_results=thinning - 1,
        trace_fn=trace,
        return_final_kernel_results=True,
        parallel_iterations=1,
        seed=seed,
    )


def _inside(density, white, floor):
    """White positions, or the mode where the density there is below the floor or not finite."""
    value, gradient = value_and_gradient(lambda white, _: density(white), white, None)
    good = (value > floor) & tf.reduce_all(tf.math.is_finite(gradient), -1)
    return tf.where(good[..., None], white, 0.0)
