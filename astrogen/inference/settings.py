"""What may be chosen of chains."""

from typing import NamedTuple


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
