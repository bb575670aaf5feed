"""Drawing over processes.

Only what is light is imported here, so that a worker holds nothing but what it draws with.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from astrogen.processes import follow_parent, fresh_context, kill_children_at_interrupt

# NPROC: XLA's
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
}


def _start_worker():
    # One thread each, before numpy is imported: workers then never fight for cores, and sums never
    # depend on how many cores there are.
    os.environ.update(ONE_THREAD)
    follow_parent()


def map_ranges(
    draw_fn: Callable[[int, int], Any], ranges: Sequence[tuple[int, int]], *, num_workers: int
) -> Iterator[Any]:
    """Yield `draw_fn(start, stop)` of every range, in their order, drawn in `num_workers` spawned
    processes.

    Parameters
    ----------
    draw_fn : picklable callable (start, stop) -> anything picklable
    ranges : sequence of (start, stop)
    num_workers : int, at least 1

    Raises
    ------
    concurrent.futures.process.BrokenProcessPool : a worker died.
    """
    executor = ProcessPoolExecutor(
        num_workers, mp_context=fresh_context("map_ranges"), initializer=_start_worker
    )
    try:
        with kill_children_at_interrupt():
            yield from executor.map(draw_fn, *zip(*ranges))
    finally:
        executor.shutdown(cancel_futures=True)
