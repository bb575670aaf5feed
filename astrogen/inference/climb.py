"""Climb to the mode of a log-density: Gauss-Newton steps that learn the true curvature on the way,
batched.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

REFRESH = 8  # steps between two Gauss-Newton matrices


class Climb(NamedTuple):
    """Where the climb ended.

    parameters [batch, p], log_density [batch], precision [batch, p, p] (Gauss-Newton matrix there),
    converged [batch] bool, num_steps.
    """

    parameters: tf.Tensor
    log_density: tf.Tensor
    precision: tf.Tensor
    converged: tf.Tensor
    num_steps: tf.Tensor


class _Place(NamedTuple):
    """Where each member stands: parameters, log-density and gradient there, covariance [batch, p,
    p] (inverse of the curvature, as far as it is known),
    length [batch] of the next step in units of the full one."""

    parameters: tf.Tensor
    value: tf.Tensor
    gradient: tf.Tensor
    covariance: tf.Tensor
    length: tf.Tensor


def value_and_gradient(log_density_fn, parameters, evidence):
    """Log-densities [batch] and their gradients [batch, p]."""
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        value = log_density_fn(parameters, evidence)
    return value, tape.gradient(value, parameters)


@tf.function(autograph=False)
def find_map(
    log_density_fn, curvature_fn, evidence, parameters, *, max_steps=60, tolerance=0.02, longest=3.0
):
    """Maximise a batch of log-densities from given starts.

    The Gauss-Newton matrix is the metric of the first steps; it is taken anew after two of them,
    and later for those that are still under way. The gradients met on the way, those of refused
    steps too, correct it (BFGS: Nocedal & Wright 2006, eq. 6.17), because near the mode a few
    directions are much stiffer than Gauss and Newton expect. A member has converged when its next
    step promises less than `tolerance` nats; from then on it stands still and costs nothing.

    Parameters
    ----------
    log_density_fn, curvature_fn : callables of (parameters [batch, p], evidence) -> [batch],
        [batch, p, p] positive definite; for any batch
    evidence : nested tensors [batch, ...] handed to both
    parameters : Tensor [batch, p], the start
    longest : float, no parameter moves further in one step

    Returns
    -------
    Climb
    """
    value, gradient = value_and_gradient(log_density_fn, parameters, evidence)
    place = _Place(
        parameters,
        value,
        gradient,
        _inverse(curvature_fn(parameters, evidence)),
        tf.ones_like(value),
    )

    def step(count, place, done):
        active = tf.where(~done)[:, 0]
        near, here = _take(evidence, active), _take(place, active)
        moved = _step(log_density_fn, near, here, longest)
        moved = tf.cond(
            tf.equal(count % REFRESH, 1),
            lambda: _refreshed(curvature_fn, near, moved),
            lambda: moved,
        )
        place = tf.nest.map_structure(
            lambda all_, some: tf.tensor_scatter_nd_update(all_, active[:, None], some),
            place,
            moved,
        )
        return count + 1, place, done | (_promise(place) < tolerance) | (place.length < 1e-4)

    def unfinished(count, place, done):
        return (count < max_steps) & ~tf.reduce_all(done)

    count, place, _ = tf.while_loop(
        unfinished, step, (0, place, ~tf.math.is_finite(value)), parallel_iterations=1
    )
    return Climb(
        place.parameters,
        place.value,
        curvature_fn(place.parameters, evidence),
        _promise(place) < tolerance,
        count,
    )


def find_map_multi(
    log_density_fn, curvature_fn, evidence, starts, *, max_steps=60, tolerance=0.02, longest=3.0
):
    """Climb from several starts and keep each member's highest end.

    Parameters
    ----------
    starts : Tensor [start, batch, p]; the rest as in `find_map`

    Returns
    -------
    Climb (num_steps: all steps together) and Tensor [start, batch], how many nats each start's end
    lies below the highest: zeros where all found the same mode
    """
    climbs = [
        find_map(
            log_density_fn,
            curvature_fn,
            evidence,
            start,
            max_steps=max_steps,
            tolerance=tolerance,
            longest=longest,
        )
        for start in tf.unstack(starts)
    ]
    ends = tf.stack([climb.log_density for climb in climbs])
    ends = tf.where(tf.math.is_finite(ends), ends, -np.inf)
    best, members = tf.argmax(ends, 0), tf.range(starts.shape[1], dtype=tf.int64)
    chosen = tf.stack([best, members], 1)
    highest = [tf.gather_nd(tf.stack(field), chosen) for field in list(zip(*climbs))[:4]]
    return Climb(*highest, tf.add_n([climb.num_steps for climb in climbs])), highest[1] - ends


def _step(log_density_fn, evidence, here, longest):
    """Try one step; keep it where the log-density rises, shorten the next one where it does not."""
    delta = here.length[:, None] * tf.linalg.matvec(here.covariance, here.gradient)
    cut = tf.minimum(1.0, longest / (tf.reduce_max(tf.abs(delta), -1, keepdims=True) + 1e-30))
    there = here.parameters + cut * delta
    value, gradient = value_and_gradient(log_density_fn, there, evidence)
    better = (
        tf.math.is_finite(value)
        & (value > here.value)
        & tf.reduce_all(tf.math.is_finite(gradient), -1)
    )
    covariance = _learn(
        here.covariance,
        cut * delta,
        here.gradient - gradient,
        cut * here.length[:, None] * here.gradient,
        better,
    )
    return _Place(
        tf.where(better[:, None], there, here.parameters),
        tf.where(better, value, here.value),
        tf.where(better[:, None], gradient, here.gradient),
        covariance,
        tf.where(better, tf.minimum(1.0, 2.0 * here.length), 0.4 * here.length),
    )


def _learn(covariance, step, change, expected, better):
    """BFGS: the covariance that maps the change of the gradient (sign reversed) to the step.

    Where the log-density is not concave along an accepted step, the change is drawn towards the
    expected one (Powell's damping: ibid., procedure 18.2); along a refused one nothing is learnt.
    """
    along, hoped = tf.reduce_sum(step * change, -1), tf.reduce_sum(step * expected, -1)
    weight = tf.where(
        along < 0.2 * hoped, tf.where(better, 0.8 * hoped / (hoped - along), 0.0), 1.0
    )
    change = weight[:, None] * change + (1 - weight[:, None]) * expected
    along = tf.reduce_sum(step * change, -1)
    seen = tf.linalg.matvec(covariance, change)
    cross = seen[:, :, None] * step[:, None, :]
    new = (
        covariance
        + ((along + tf.reduce_sum(change * seen, -1)) / along**2)[:, None, None]
        * step[:, :, None]
        * step[:, None, :]
        - (cross + tf.linalg.matrix_transpose(cross)) / along[:, None, None]
    )
    return tf.where(tf.reduce_all(tf.math.is_finite(new), [1, 2], keepdims=True), new, covariance)


def _refreshed(curvature_fn, evidence, place):
    return place._replace(
        covariance=_inverse(curvature_fn(place.parameters, evidence)),
        length=tf.ones_like(place.length),
    )


def _inverse(precision):
    return tf.linalg.cholesky_solve(
        tf.linalg.cholesky(precision),
        tf.eye(tf.shape(precision)[-1], batch_shape=tf.shape(precision)[:1]),
    )


def _promise(place):
    """Nats that a full step promises, [batch]."""
    return 0.5 * tf.reduce_sum(
        place.gradient * tf.linalg.matvec(place.covariance, place.gradient), -1
    )


def _take(nested, members):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, members), nested)
