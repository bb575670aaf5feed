"""What inference asks for and what it gives back: a target, settings, and draws."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Sampling(NamedTuple):
    """num_draws, num_burnin, num_chains : int, of each chain; thinning : int, trajectories for each
    draw that is kept; target_accept : mean acceptance that the step size is adapted to; path : mean
    length of a trajectory in the whitened space; max_steps : int, of the longest.
    """

    num_draws: int = 150
    num_burnin: int = 60
    num_chains: int = 4
    thinning: int = 1
    target_accept: float = 0.8
    path: float = 2.2
    max_steps: int = 8


class Settings(NamedTuple):
    """num_draws : int, posterior draws of each object; sampling : Sampling, of methods with chains,
    whose number of draws and thinning follow from num_draws and from how well the chains agree;
    max_rounds : int, how often these may be doubled, and one.
    """

    num_draws: int = 200
    sampling: Sampling = Sampling()
    max_rounds: int = 6


class Target(NamedTuple):
    """What is known of a batch of posteriors. Its functions are hashable, and the same ones each
    time, so that nothing is traced twice.

    log_density_fn : (parameters [chain, batch, p], evidence) -> [chain, batch], up to a constant
        for each object
    weigh_fn : (parameters [draw, batch, p], evidence) -> the same for many draws, [draw, batch],
        and what it made on the way, arrays [draw, batch, ...] in a tuple
    report_fn : (parameters [draw, batch, p], evidence, seeds [batch, 2]) -> array [draw, batch,
        quantity], what a catalogue would say of each draw: that on which chains must agree
    evidence : nested tensors [batch, ...]
    lean_fn : evidence -> what `log_density_fn` needs of it, in one of few shapes, for loops that
        are traced anew for each; None: the evidence itself
    """

    log_density_fn: Callable
    weigh_fn: Callable
    report_fn: Callable
    evidence: object
    lean_fn: Callable | None = None

    @property
    def lean(self):
        """The evidence for `log_density_fn` alone."""
        return self.lean_fn(self.evidence) if self.lean_fn else self.evidence


class Drawn(NamedTuple):
    """draws : array [draw, batch, p]; diagnostics : {name: array [batch]}, nan where it is not said
    of an object; methods : array [batch] of str, by which an object's draws were made; made : what
    `Target.weigh_fn` made of the draws, or None.
    """

    draws: np.ndarray
    diagnostics: dict
    methods: np.ndarray
    made: tuple | None = None
