"""Draws by Markov chains that go on until they agree on what a catalogue reports.

A round keeps a few hundred draws of each chain. Where the chains disagree, they go on from where
they ended, twice as far, and what was before counts as burn-in; the time between draws that are
kept doubles too, so that memory does not grow.
"""

import numpy as np
import tensorflow as tf

from astrogen.inference import diagnostics
from astrogen.inference.contracts import Drawn
from astrogen.inference.hmc import End, sample_by_kernel, sample_hmc
from astrogen.inference.laplace import fold
from astrogen.inference.methods import name_of, padded, take, target_of
from astrogen.inference.verdict import R_HAT_AIM

# draws of a chain for each that is kept: what R-hat is told from is more than an image needs
THINNING = 3
LEAST = 100  # draws of each chain from which R-hat is told
REPORT = 3  # folds seeds


def draw_hmc(target, climb, seeds, settings):
    """Draws by Hamiltonian Monte Carlo, in rounds, until R-hat of what a catalogue reports is below
    its aim and no trajectory of a round diverges, for which steps become smaller.

    Returns
    -------
    Drawn; diagnostics r_hat and ess of what is reported, the worst of each object; num_divergent
    and accept_rate of the last round; rounds; num_gradients, of each chain, all rounds
    """
    chosen = _sampling(settings)
    batch = len(seeds)
    draws = np.zeros((settings.num_draws, *climb.parameters.shape), np.float32)
    told = {name: np.full(batch, np.nan) for name in _TOLD}
    told["num_gradients"][:] = 0
    left, end = np.arange(batch), None
    for index in range(settings.max_rounds):
        rows = padded(left) if index else left
        some, num = target_of(target, rows), len(left)
        chains = sample_hmc(
            target.log_density_fn,
            take(climb, rows),
            some.lean,
            seed=seeds[rows],
            settings=chosen._replace(thinning=2**index),
            begin=end,
        )
        r_hat, ess = judge(some, chains.draws, seeds[rows])
        draws[:, left] = thinned(chains.draws.numpy(), settings.num_draws)[:, :num]
        told["num_gradients"][left] += chains.num_gradients
        for name, values in (
            ("r_hat", r_hat),
            ("ess", ess),
            ("num_divergent", chains.divergent),
            ("accept_rate", chains.accept_rate),
            ("rounds", np.full(len(rows), index + 1.0)),
        ):
            told[name][left] = values[:num]
        # what never moves does not move later
        diverged = chains.divergent[:num] > 0
        again = (~(r_hat[:num] <= R_HAT_AIM) | diverged) & np.isfinite(r_hat[:num])
        if not again.any():
            break
        left, places = left[again], padded(np.flatnonzero(again))
        end = End(
            tf.gather(chains.end.white, places, axis=1),
            tf.gather(chains.end.step_size, places),
            chains.end.count,
            tf.gather(_careful(chains.end.target_accept, chains.divergent), places),
        )
    return Drawn(draws, told, np.full(batch, "hmc", dtype=object))


def _careful(target_accept, divergent):
    """The target with half as many refusals where trajectories diverged: smaller steps."""
    return tf.where(divergent > 0, 0.5 * (1 + target_accept), target_accept)


_TOLD = ("r_hat", "ess", "num_divergent", "accept_rate", "rounds", "num_gradients")


def draw_by_kernel(kernel_fn, target, climb, seeds, settings):
    """Draws by any kernel of TensorFlow Probability, one round, object by object.

    Parameters
    ----------
    kernel_fn : callable of (target_log_prob_fn, num_burnin) -> `tfp.mcmc.TransitionKernel`, of
        positions [chain, p] in the space in which the Laplace approximation is a standard normal.
        Adaptation is its own, over the first num_burnin steps

    Returns
    -------
    Drawn; diagnostics r_hat, ess, and accept_rate where the kernel says it
    """
    draws, accept_rate = sample_by_kernel(
        kernel_fn, target, climb, seeds=seeds, settings=_sampling(settings)
    )
    r_hat, ess = judge(target, draws, seeds)
    told = {"r_hat": r_hat, "ess": ess, "accept_rate": accept_rate}
    names = np.full(len(seeds), name_of(kernel_fn), dtype=object)
    return Drawn(thinned(draws, settings.num_draws), told, names)


def _sampling(settings):
    per_chain = -(-settings.num_draws // settings.sampling.num_chains)
    return settings.sampling._replace(num_draws=max(THINNING * per_chain, LEAST))


def thinned(draws, num):
    """So many of draws [draw, chain, batch, p], evenly, the chains in turn: [num, batch, p]."""
    length, num_chains = draws.shape[:2]
    per_chain = -(-num // num_chains)
    rows = (np.arange(1, per_chain + 1) * length) // per_chain - 1
    return draws[rows].reshape(-1, *draws.shape[2:])[:num]


def judge(target, draws, seeds):
    """R-hat, the worst, and effective draws, the fewest, of what is reported: arrays [batch]."""
    num, num_chains, batch, size = draws.shape
    reported = target.report_fn(
        tf.reshape(draws, [num * num_chains, batch, size]),
        target.evidence,
        fold(tf.constant(seeds), REPORT),
    )
    values = np.moveaxis(np.asarray(reported).reshape(num, num_chains, batch, -1), 0, 1)
    return diagnostics.r_hat(values).max(-1), diagnostics.effective_draws(values).min(-1)
