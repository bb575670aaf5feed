"""Hamiltonian Monte Carlo as a kernel of TensorFlow Probability, so that its adaptation and its
loops, and kernels of others, fit the same places.

One integrator serves all samplers: the leapfrog scheme, and the one that solves a standard normal
part of the energy exactly, by a rotation of position and momentum, so that only the gradient of the
rest is integrated (Shahbaba et al. 2014; Beskos et al. 2011). For a standard normal every step of
the latter is exact whatever its size, so that the step does not shrink with the number of
parameters that the data say nothing about, which are most of those of a map.

Importing TensorFlow Probability takes half a second: who does not sample does not import this.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from astrogen.inference.climb import value_and_gradient
from astrogen.inference.contracts import Sampling
from astrogen.inference.laplace import fold

DIVERGENCE = 1000.0  # nats of energy error beyond which a trajectory has diverged (as in Stan)
GOLDEN = 0.618034  # its multiples modulo one are a sequence without pattern


class HamiltonianResults(NamedTuple):
    """What the next step needs, and what it is judged by; named as TensorFlow Probability looks for
    them.

    target_log_prob [...], grads_target_log_prob [..., p] : at the state
    step_size : broadcasts against the state
    log_accept_ratio [...] : minus the energy error of the last trajectory; is_accepted [...] bool
    num_divergent [...] int : trajectories until now that diverged
    num_leapfrogs : int, gradients until now; count : int, trajectories until now
    """

    target_log_prob: tf.Tensor
    grads_target_log_prob: tf.Tensor
    step_size: tf.Tensor
    log_accept_ratio: tf.Tensor
    is_accepted: tf.Tensor
    num_divergent: tf.Tensor
    num_leapfrogs: tf.Tensor
    count: tf.Tensor


class Hamiltonian(tfp.mcmc.TransitionKernel):
    """Hamiltonian Monte Carlo whose trajectories differ in length, between half and one and a half
    times `path` (by a sequence without pattern), because a fixed length can resonate (Neal 2011,
    section 3.2).

    Parameters
    ----------
    target_log_prob_fn : callable of positions [..., p] -> [...]
    step_size : float or Tensor that broadcasts against [..., 1]
    settings : Sampling, of which path, max_steps and num_burnin count. At a path of pi / 2 a
        standard normal forgets its start; a little more makes successive draws lie on opposite
        sides, which halves the error of means for the same cost. During burn-in divergences are not
        counted
    rotating : bool, the standard normal part of the energy is solved exactly
    floor : None or Tensor that broadcasts against [...]. Where the log-density falls below it, so
        far down that no mass is there, or is not finite, a trajectory ends and is refused. This
        looks at positions alone, so that it forbids a path and its reverse alike: the chain stays
        exact
    seeds : None, or int Tensor [batch, 2]: one pair for each object of positions
        [chain, batch, p], of which all that is random about it comes, whatever the seed of a step
    first : int, number of the first trajectory: seeds and lengths go on where another run ended
    """

    def __init__(
        self,
        target_log_prob_fn,
        step_size,
        settings=Sampling(num_burnin=0),
        rotating=False,
        floor=None,
        seeds=None,
        first=0,
        name="hamiltonian",
    ):
        self._parameters = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }

    @property
    def parameters(self):
        return self._parameters

    @property
    def is_calibrated(self):
        return True

    def bootstrap_results(self, init_state):
        state = tf.convert_to_tensor(init_state)
        value, gradient = self._density(state)
        zero = tf.zeros_like(value)
        return HamiltonianResults(
            value,
            gradient,
            tf.convert_to_tensor(self.parameters["step_size"], tf.float32),
            zero,
            tf.ones_like(value, tf.bool),
            tf.zeros_like(value, tf.int32),
            tf.constant(0),
            tf.convert_to_tensor(self.parameters["first"], tf.int32),
        )

    def one_step(self, current_state, previous_kernel_results, seed=None):
        told, before = self.parameters, previous_kernel_results
        momentum, log_uniform = self._randomness(current_state, before.count, seed)
        step = before.step_size
        if told["rotating"]:  # beyond a quarter of a turn steps only go back
            step = tf.minimum(step, np.pi / 2)
        turn = 0.5 + tf.math.floormod(GOLDEN * tf.cast(before.count, tf.float32), 1.0)
        # the same turn for all, so that none waits for the others
        num_steps = tf.clip_by_value(
            tf.math.round(told["settings"].path * turn / step),
            1.0,
            float(told["settings"].max_steps),
        )
        start = Place(current_state, before.target_log_prob, before.grads_target_log_prob)
        end, error, num_leapfrogs = fly(
            self._density,
            start,
            momentum,
            step,
            num_steps,
            floor=told["floor"],
            rotating=told["rotating"],
        )
        accepted = log_uniform < -error
        counted = before.count >= told["first"] + told["settings"].num_burnin
        return tf.where(accepted[..., None], end.position, current_state), HamiltonianResults(
            tf.where(accepted, end.value, start.value),
            tf.where(accepted[..., None], end.gradient, start.gradient),
            before.step_size,
            -error,
            accepted,
            before.num_divergent + tf.cast((error > DIVERGENCE) & counted, tf.int32),
            before.num_leapfrogs + num_leapfrogs,
            before.count + 1,
        )

    def _density(self, positions):
        return value_and_gradient(
            lambda positions, _: self.parameters["target_log_prob_fn"](positions), positions, None
        )

    def _randomness(self, state, count, seed):
        """Momenta [..., p] and log-uniforms [...] of one trajectory."""
        seeds = self.parameters["seeds"]
        if seeds is None:
            ours = tf.random.experimental.stateless_split(tfp.random.sanitize_seed(seed), 2)
            momentum = tf.random.stateless_normal(tf.shape(state), ours[0])
            uniform = tf.random.stateless_uniform(tf.shape(state)[:-1], ours[1])
        else:
            shape = (state.shape[0], state.shape[-1])
            momentum, uniform = tf.map_fn(
                lambda seed: _draw_one(seed, *shape),
                fold(seeds, count),
                fn_output_signature=(tf.float32, tf.float32),
            )
            momentum, uniform = tf.transpose(momentum, [1, 0, 2]), tf.transpose(uniform)
        return momentum, tf.math.log(uniform)


def _draw_one(seed, num_chains, size):
    ours = tf.random.experimental.stateless_split(seed, 2)
    return tf.random.stateless_normal([num_chains, size], ours[0]), tf.random.stateless_uniform(
        [num_chains], ours[1]
    )


class Place(NamedTuple):
    """position, gradient [..., p]; value [...], the log-density there."""

    position: tf.Tensor
    value: tf.Tensor
    gradient: tf.Tensor


def fly(density_fn, start, momentum, step, num_steps, *, floor=None, rotating=False):
    """One trajectory of each member.

    Parameters
    ----------
    density_fn : callable of positions [..., p] -> log-densities [...] and gradients [..., p]
    start : Place
    momentum : Tensor [..., p]
    step, num_steps : floats that broadcast against [..., 1]. Members with few steps stand still
        while the others go on
    floor, rotating : as of `Hamiltonian`

    Returns
    -------
    Place of the end; energy errors [...], infinite where it was stopped; and int, the gradients
    that the longest took
    """
    lowest = -np.inf if floor is None else floor
    one = tf.ones_like(start.position[..., :1])
    step, num_steps = step * one, (num_steps * one)[..., 0]

    def under_way(count, error):
        return (tf.cast(count, tf.float32) < num_steps) & tf.math.is_finite(error)

    def force(here):
        return here.gradient + here.position if rotating else here.gradient

    def leap(count, here, momentum_here, error):
        active = under_way(count, error)
        kicked = momentum_here + 0.5 * step * force(here)
        if rotating:
            position = tf.cos(step) * here.position + tf.sin(step) * kicked
            kicked = tf.cos(step) * kicked - tf.sin(step) * here.position
        else:
            position = here.position + step * kicked
        there = Place(position, *density_fn(tf.where(active[..., None], position, here.position)))
        last = kicked + 0.5 * step * force(there)
        # as a product, which keeps its digits where thousands of parameters add up
        gained = 0.5 * tf.reduce_sum((last - momentum) * (last + momentum), -1) - (
            there.value - start.value
        )
        inside = (there.value > lowest) & tf.math.is_finite(gained)
        chosen = active[..., None]
        return (
            count + 1,
            Place(
                tf.where(chosen, there.position, here.position),
                tf.where(active, there.value, here.value),
                tf.where(chosen, there.gradient, here.gradient),
            ),
            tf.where(chosen, last, momentum_here),
            tf.where(active, tf.where(inside, gained, np.inf), error),
        )

    count, end, _, error = tf.while_loop(
        lambda count, here, momentum, error: tf.reduce_any(under_way(count, error)),
        leap,
        (0, start, momentum, tf.zeros_like(start.value)),
        parallel_iterations=1,
    )
    return end, error, count


def adapted(kernel, *, num_steps, target_accept):
    """A kernel whose step size is adapted during its first `num_steps` steps, by dual averaging
    over its chains (Hoffman & Gelman 2014, eq. 6; their constants), about the step that it has; as
    it is where there are none.
    """
    if not num_steps:
        return kernel
    return tfp.mcmc.DualAveragingStepSizeAdaptation(
        kernel,
        num_adaptation_steps=num_steps,
        target_accept_prob=target_accept,
        shrinkage_target=kernel.parameters["step_size"],
    )


@lru_cache(maxsize=16)
def stepper(log_density_fn, settings, *, rotating=False):
    """Single trajectories as graphs, traced once for each shape of the evidence: for loops that do
    something else between them.

    Parameters
    ----------
    log_density_fn : callable of (positions [chain, p], evidence) -> [chain]; hashable
    settings : Sampling, of which num_burnin steps adapt the step size
    rotating : as of `Hamiltonian`

    Returns
    -------
    first : callable of (positions, evidence, step size) -> results
    step : callable of (positions, results, evidence, seed) -> positions, results
    renew : callable of (positions, results, evidence) -> results, for other evidence or positions
    """

    def kernel(evidence, step_size=1.0):
        hamiltonian = Hamiltonian(
            lambda positions: log_density_fn(positions, evidence),
            step_size,
            settings,
            rotating=rotating,
        )
        return adapted(
            hamiltonian, num_steps=settings.num_burnin, target_accept=settings.target_accept
        )

    def first(positions, evidence, step_size):
        return kernel(evidence, step_size).bootstrap_results(positions)

    def step(positions, results, evidence, seed):
        return kernel(evidence).one_step(positions, results, seed=seed)

    def renew(positions, results, evidence):
        value, gradient = value_and_gradient(log_density_fn, positions, evidence)
        return replaced(results, target_log_prob=value, grads_target_log_prob=gradient)

    return tuple(tf.function(function, autograph=False) for function in (first, step, renew))


def acceptance(results):
    """Mean probability that the last trajectories were accepted."""
    ratio = innermost(results, "log_accept_ratio")
    return float(tf.reduce_mean(tf.exp(tf.minimum(ratio, 0.0))))


def innermost(results, name):
    """A field of the results of a kernel, from the innermost of the kernels within it that has it;
    None where none has.
    """
    for inside in ("inner_results", "accepted_results"):
        if hasattr(results, inside):
            found = innermost(getattr(results, inside), name)
            if found is not None:
                return found
    return getattr(results, name, None)


def replaced(results, **fields):
    """Results in which fields of the innermost kernel are others."""
    if hasattr(results, "inner_results"):
        return results._replace(inner_results=replaced(results.inner_results, **fields))
    return results._replace(**fields)
