"""Hamiltonian Monte Carlo for thousands of parameters whose density is not far from a standard
normal.

The leapfrog scheme is split so that the standard normal part of the energy is solved exactly, by a
rotation of position and momentum; only the gradient of the rest is integrated (Shahbaba et al.
2014; Beskos et al. 2011). For a standard normal every step is exact whatever its size, so that the
step does not shrink with the number of parameters that the data say nothing about, which are most
of those of a map.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.inference.climb import value_and_gradient

DIVERGENCE = 1000.0  # nats of energy error beyond which a trajectory has diverged (as in Stan)
GOLDEN = 0.618034


class Walk(NamedTuple):
    """kept: nested arrays [draw, chain, ...]; log_density [draw, chain]; accept_rate; divergent,
    trajectories among those kept; step; end [chain, p]; num_gradients.
    """

    kept: object
    log_density: np.ndarray
    accept_rate: float
    divergent: int
    step: float
    end: tf.Tensor
    num_gradients: int


class _State(NamedTuple):
    white: tf.Tensor
    value: tf.Tensor
    gradient: tf.Tensor


def sample_rotating(
    log_density_fn,
    start,
    evidence,
    *,
    keep_fn,
    num_draws,
    num_burnin,
    seed,
    first_step=0.3,
    target_accept=0.7,
    path=1.8,
    max_steps=40,
    progress=lambda steps: steps,
):
    """Draw from a log-density by chains that move together.

    Trajectories differ in length between half and one and a half times `path` (by a sequence
    without pattern), because a fixed length can resonate; the step size is adapted during burn-in
    by dual averaging over all chains.

    Parameters
    ----------
    log_density_fn : callable of (white [chain, p], evidence) -> [chain]; hashable, one graph is
        built for each
    start : Tensor [chain, p]
    evidence : nested tensors handed to the log-density
    keep_fn : callable of (white [chain, p], evidence) -> nested tensors [chain, ...]: what is kept
        of a draw
    num_draws, num_burnin : int, trajectories of each chain; every one after burn-in is kept
    seed : int pair
    path : float, mean length of a trajectory. At pi / 2 a normal forgets its start; a little more
        makes successive draws lie on opposite sides
    max_steps : int, of the longest trajectory
    progress : callable that wraps the iteration over trajectories

    Returns
    -------
    Walk; num_draws may be zero, to burn in only
    """
    first, transition, kept_of = _graphs(log_density_fn, keep_fn)
    state = first(start, evidence)
    averaging = _Averaging(first_step, target_accept)
    kept, values, accepted, divergent, num_gradients = [], [], [], 0, 0
    for index in progress(range(num_burnin + num_draws)):
        burning = index < num_burnin
        step = averaging.step if burning else averaging.mean_step
        num_steps = int(np.clip(round(path * (0.5 + GOLDEN * index % 1.0) / step), 1, max_steps))
        ours = tf.random.experimental.stateless_fold_in(tf.constant(seed, tf.int32), index)
        state, accept, error = transition(
            state, evidence, ours, tf.constant(step, tf.float32), tf.constant(num_steps)
        )
        num_gradients += num_steps
        if burning:
            averaging.learn(float(tf.reduce_mean(accept)))
            continue
        accepted.append(float(tf.reduce_mean(accept)))
        divergent += int(tf.reduce_sum(tf.cast(error > DIVERGENCE, tf.int32)))
        kept.append(kept_of(state.white, evidence))
        values.append(state.value.numpy())
    stacked = tf.nest.map_structure(lambda *draws: np.stack(draws), *kept) if kept else None
    return Walk(
        stacked,
        np.array(values),
        float(np.mean(accepted)) if accepted else float("nan"),
        divergent,
        averaging.mean_step,
        state.white,
        num_gradients,
    )


class _Averaging:
    """Dual averaging of the log step size (Hoffman & Gelman 2014, eq. 6; their constants)."""

    def __init__(self, first_step, target_accept):
        self.first, self.target = float(np.log(first_step)), target_accept
        self.count, self.shortfall = 0, 0.0
        self.log_step = self.mean_log_step = self.first

    @property
    def step(self):
        return min(float(np.exp(self.log_step)), np.pi / 2)

    @property
    def mean_step(self):
        return min(float(np.exp(self.mean_log_step)), np.pi / 2)

    def learn(self, accept):
        self.count += 1
        self.shortfall += (self.target - accept - self.shortfall) / (self.count + 10.0)
        self.log_step = self.first - np.sqrt(self.count) / 0.05 * self.shortfall
        weight = self.count**-0.75
        self.mean_log_step = weight * self.log_step + (1 - weight) * self.mean_log_step


@lru_cache(maxsize=8)
def _graphs(log_density_fn, keep_fn):
    """The first state, a trajectory, and what is kept of a position, as graphs of their own for
    each density: traced once for each shape of the evidence.
    """
    return (
        tf.function(
            lambda start, evidence: _State(
                start, *value_and_gradient(log_density_fn, start, evidence)
            ),
            autograph=False,
        ),
        tf.function(partial(_transition, log_density_fn), autograph=False),
        tf.function(keep_fn, autograph=False),
    )


def _transition(log_density_fn, state, evidence, seed, step, num_steps):
    """One trajectory of all chains: the new state, acceptance probabilities and energy errors
    [chain].
    """
    seeds = tf.random.experimental.stateless_split(seed, 2)
    momentum = tf.random.stateless_normal(state.white.shape, seeds[0])
    cosine, sine = tf.cos(step), tf.sin(step)

    def kick(momentum, here):
        # the gradient of what is not standard normal
        return momentum + 0.5 * step * (here.gradient + here.white)

    def leap(count, here, momentum):
        momentum = kick(momentum, here)
        white, momentum = (
            cosine * here.white + sine * momentum,
            cosine * momentum - sine * here.white,
        )
        here = _State(white, *value_and_gradient(log_density_fn, white, evidence))
        return count + 1, here, kick(momentum, here)

    _, end, last = tf.while_loop(
        lambda count, *_: count < num_steps, leap, (0, state, momentum), parallel_iterations=1
    )
    error = 0.5 * tf.reduce_sum((last - momentum) * (last + momentum), -1) - (
        end.value - state.value
    )
    error = tf.where(
        tf.math.is_finite(error) & tf.reduce_all(tf.math.is_finite(end.gradient), -1), error, np.inf
    )
    accept = tf.math.log(tf.random.stateless_uniform(error.shape, seeds[1])) < -error
    moved = _State(
        tf.where(accept[:, None], end.white, state.white),
        tf.where(accept, end.value, state.value),
        tf.where(accept[:, None], end.gradient, state.gradient),
    )
    return moved, tf.exp(tf.minimum(0.0, -error)), error
