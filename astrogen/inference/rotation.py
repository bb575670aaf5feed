"""Hamiltonian Monte Carlo for thousands of parameters whose density is not far from a standard
normal.

The standard normal part of the energy is solved exactly (`kernels`), so that the step does not
shrink with the number of parameters that the data say nothing about, which are most of those of a
map. Trajectories are taken one by one: of thousands of parameters only what is asked for is kept.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.inference.contracts import Sampling
from astrogen.inference.kernels import acceptance, innermost, stepper

SETTINGS = Sampling(target_accept=0.7, path=1.8, max_steps=40)


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


def sample_rotating(
    log_density_fn,
    start,
    evidence,
    *,
    keep_fn,
    seed,
    settings=SETTINGS,
    first_step=0.3,
    progress=lambda steps: steps,
):
    """Draw from a log-density by chains that move together.

    Trajectories as of `kernels.Hamiltonian`; the step size is adapted during burn-in by dual
    averaging over all chains.

    Parameters
    ----------
    log_density_fn : callable of (white [chain, p], evidence) -> [chain]; hashable, one graph is
        built for each
    start : Tensor [chain, p]
    evidence : nested tensors handed to the log-density
    keep_fn : callable of (white [chain, p], evidence) -> nested tensors [chain, ...]: what is kept
        of a draw; hashable
    seed : int pair
    settings : Sampling; num_draws, trajectories of each chain after burn-in, of which every one is
        kept, may be zero, to burn in only
    progress : callable that wraps the iteration over trajectories

    Returns
    -------
    Walk
    """
    first, step, _ = stepper(log_density_fn, settings._replace(num_draws=None), rotating=True)
    kept_of = _graph(keep_fn)
    white = start
    results = first(white, evidence, tf.constant(first_step, tf.float32))
    kept, values, accepted = [], [], []
    for index in progress(range(settings.num_burnin + settings.num_draws)):
        ours = tf.random.experimental.stateless_fold_in(tf.constant(seed, tf.int32), index)
        white, results = step(white, results, evidence, ours)
        if index >= settings.num_burnin:
            accepted.append(acceptance(results))
            kept.append(kept_of(white, evidence))
            values.append(innermost(results, "target_log_prob").numpy())
    stacked = tf.nest.map_structure(lambda *draws: np.stack(draws), *kept) if kept else None
    return Walk(
        stacked,
        np.array(values),
        float(np.mean(accepted)) if accepted else float("nan"),
        int(tf.reduce_sum(innermost(results, "num_divergent"))),
        min(float(innermost(results, "step_size")), np.pi / 2),
        white,
        int(innermost(results, "num_leapfrogs")),
    )


@lru_cache(maxsize=8)
def _graph(keep_fn):
    """What is kept of a position, traced once for each shape of the evidence."""
    return tf.function(keep_fn, autograph=False)
