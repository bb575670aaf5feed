"""The few directions in which a symmetric operator is far from the identity: what is left to do
after a cheap preconditioner.
"""

import numpy as np

SPARE = 1.2  # vectors iterated per vector kept
NUM_ITERATIONS = 3


def far_from_one(apply_fn, size, *, rank, seed):
    """Eigenpairs of a symmetric operator whose eigenvalues are farthest from one, by subspace
    iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4).

    Agrees with numpy.linalg.eigh to what the gap in the spectrum allows (tests/test_rotation.py).

    Parameters
    ----------
    apply_fn : callable of array [num, size] -> [num, size], the operator on each row
    size : int
    rank : int, pairs wanted; at most `size` of them
    seed : int

    Returns
    -------
    (values float32 [rank], vectors float32 [size, rank], orthonormal)
    """
    rank = min(rank, size)
    width = min(size, int(np.ceil(SPARE * rank)))
    basis = np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)
    for _ in range(NUM_ITERATIONS):
        basis = np.linalg.qr(basis)[0]
        basis = np.asarray(apply_fn(basis.T)).T - basis
    basis = np.linalg.qr(basis)[0]
    small = basis.T @ np.asarray(apply_fn(basis.T)).T
    values, turn = np.linalg.eigh((small + small.T) / 2)
    far = np.argsort(-np.abs(values - 1))[:rank]
    return values[far].astype(np.float32), basis @ turn[:, far].astype(np.float32)
