"""Whether to believe draws: Pareto-smoothed importance weights, R-hat and effective sample sizes.

NumPy, vectorised over objects.

Agrees with ArviZ to rounding, also for antithetic chains, and with the closed form of an
autoregressive chain (tests/test_inference.py).
"""

import numpy as np
import scipy  # its statistics take a second to load: on first use
from scipy import special

EQUAL = 1e-3  # log-weights that differ by less are of one weight


def r_hat(draws):
    """Rank-normalised split R-hat (Vehtari et al. 2021, eq. 4 and 14): below 1.01 the chains agree.

    Infinite where the chains never moved.

    Parameters
    ----------
    draws : array [chain, draw, ...]

    Returns
    -------
    array [...]
    """
    bulk = _split(draws)
    folded = np.abs(bulk - np.median(bulk, (0, 1)))
    return np.maximum(
        _potential_scale_reduction(_rank_normalise(bulk)),
        _potential_scale_reduction(_rank_normalise(folded)),
    )


def effective_draws(draws):
    """Bulk effective sample size [...] of draws [chain, draw, ...]: rank-normalised, split chains
    (Vehtari et al. 2021, eq. 10-13), cut off as Stan and ArviZ do.

    One where the chains never moved.
    """
    values = _rank_normalise(_split(draws))
    num_chains, num_draws = values.shape[:2]
    covariance = _autocovariance(values).mean(0)
    within = covariance[0] * num_draws / (num_draws - 1)
    total = covariance[0] + values.mean(1).var(0, ddof=1)
    still = total == 0
    correlation = 1 - (within - covariance) / np.where(still, 1, total)
    correlation[0] = 1.0
    # Geyer's initial sequence: pairs of lags, as long as they are positive, each no larger than the
    # one before; then half of the first pair that is not, or of the last one
    num_pairs = max((num_draws - 3) // 2, 0) + 1
    even, odd = correlation[: 2 * num_pairs : 2], correlation[1 : 2 * num_pairs : 2]
    pairs = even + odd
    positive = pairs > 0
    positive[-1] = False  # the last is looked at, and not added up
    last = np.argmin(positive, 0)[None]
    before = np.arange(num_pairs).reshape(-1, *[1] * (pairs.ndim - 1)) < last
    tail, end = (np.take_along_axis(part, last, 0)[0] for part in (even, pairs))
    tail = np.where((tail > 0) | (end >= 0), tail, 0)
    time = 2 * np.where(before, np.minimum.accumulate(pairs, 0), 0).sum(0) + tail - 1
    time = np.maximum(time, 1 / np.log10(num_chains * num_draws))
    return np.where(still, 1.0, num_chains * num_draws / time)


def _split(draws):
    draws = np.asarray(draws, float)
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _rank_normalise(draws):
    num = draws.shape[0] * draws.shape[1]
    ranks = scipy.stats.rankdata(draws.reshape(num, -1), axis=0)
    return special.ndtri((ranks - 0.375) / (num + 0.25)).reshape(draws.shape)


def _potential_scale_reduction(draws):
    num = draws.shape[1]
    within, between = draws.var(1, ddof=1).mean(0), draws.mean(1).var(0, ddof=1)
    still = within == 0
    return np.where(still, np.inf, np.sqrt((num - 1) / num + between / np.where(still, 1, within)))


def _autocovariance(values):
    """Of each chain [chain, draw, ...] along its draws, biased (divided by the number of draws)."""
    num = values.shape[1]
    spectrum = np.fft.rfft(values - values.mean(1, keepdims=True), 2 * num, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, 2 * num, axis=1)[:, :num] / num


def smooth_weights(log_weights):
    """Pareto-smoothed importance weights (Vehtari et al. 2024, algorithm 1).

    Parameters
    ----------
    log_weights : array [draw, batch], up to a constant; a draw that is not finite weighs nothing

    Returns
    -------
    log_weights : float64 array [draw, batch], smoothed; their exponentials sum to one
    k_hat : array [batch]: shape of the tail. Below 0.7 the weighted draws can be trusted; inf where
        no draw is finite, or too few draws for a tail.
    """
    values = np.asarray(log_weights, float)
    values = np.where(np.isfinite(values), values, -np.inf)
    empty = np.isneginf(values).all(0)
    values = np.where(empty, 0.0, values)
    values = np.maximum(values - values.max(0), np.log(np.finfo(float).tiny))
    num = len(values)
    num_tail = _num_tail(num)
    if num_tail < 5:
        return _normalise(values), np.full(values.shape[1], np.inf)
    order = np.argsort(values, 0, kind="stable")
    ordered = np.take_along_axis(values, order, 0)
    smoothed, k_hat = _smooth_tail(ordered[-num_tail:], ordered[-num_tail - 1])
    np.put_along_axis(values, order[-num_tail:], smoothed, 0)
    return _normalise(values), np.where(empty, np.inf, k_hat)


def k_hat_error(k_hat, num):
    """Standard error [batch] of the shape of a tail that is told from so many draws, about: that of
    the maximum of the likelihood of a generalised Pareto distribution (Smith 1987).
    """
    return (1 + np.maximum(k_hat, 0)) / np.sqrt(_num_tail(num))


def _num_tail(num):
    return int(np.ceil(min(num / 5, 3 * np.sqrt(num))))


def effective_sample_size(log_weights):
    """Number of equally weighted draws [batch] that weights [draw, batch] are worth (Kish)."""
    return np.exp(-special.logsumexp(2 * _normalise(np.asarray(log_weights, float)), axis=0))


def _normalise(log_weights):
    return log_weights - special.logsumexp(log_weights, axis=0)


def _smooth_tail(tail, cutoff):
    """The largest log-weights [tail, batch], ascending, replaced by quantiles of the generalised
    Pareto distribution fitted to their excess over the cutoff [batch].
    """
    excess = np.exp(tail) - np.exp(cutoff)
    # No tail at all: the weights are equal, up to the rounding of log-densities in float32.
    equal = tail[-1] - cutoff < EQUAL
    shape, scale = _fit_pareto(
        np.where(
            equal, np.linspace(0.1, 1, len(tail))[:, None], np.maximum(excess, np.finfo(float).tiny)
        )
    )
    levels = (np.arange(len(tail)) + 0.5)[:, None] / len(tail)
    steep = np.where(np.abs(shape) < 1e-12, 1e-12, shape)
    with np.errstate(over="ignore"):  # a tail without end is cut on the next line
        quantiles = scale * np.expm1(-steep * np.log1p(-levels)) / steep
    # never above the largest raw weight
    smoothed = np.minimum(np.log(quantiles + np.exp(cutoff)), 0.0)
    return np.where(equal, tail, smoothed), np.where(equal, 0.0, shape)


def _fit_pareto(excess):
    """Shape and scale [batch] of the generalised Pareto distribution (Zhang & Stephens 2009), the
    shape drawn towards 1/2 (Vehtari et al. 2024, appendix G).

    excess [tail, batch], positive, ascending.
    """
    num = len(excess)
    num_grid = 30 + int(np.sqrt(num))
    quarter = excess[int(num / 4 + 0.5) - 1]
    theta = (1 - np.sqrt(num_grid / (np.arange(1, num_grid + 1) - 0.5)))[:, None] / (
        3 * quarter
    ) + 1 / excess[-1]
    shape = np.log1p(-theta[:, None] * excess).mean(1)
    profile = num * (np.log(-theta / shape) - shape - 1)  # log-likelihood on the grid
    weights = special.softmax(profile, axis=0)
    weights = np.where(weights >= 10 * np.finfo(float).eps, weights, 0)
    theta = (theta * weights).sum(0) / weights.sum(0)
    shape = np.log1p(-theta * excess).mean(0)
    return (num * shape + 10 * 0.5) / (num + 10), -shape / theta
