"""Where a prior of convergence maps meets what was seen of a field: a log-density of white noise,
and of the cosmology where it is not known.

Parameters are coordinates u [chain, p] in which the posterior is near a standard normal: the
whitened noise of `wiener`, followed by two numbers for the cosmology where it is sampled, theta =
low + (high - low) Phi(u), which makes a uniform prior over the range of (Omega_m, sigma_8) a
standard normal.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy import fft

from astrogen.darkmatter.wiener import (
    Whitening,
    from_white,
    linear_view,
    posterior_draws,
    posterior_mean,
    to_white,
)
from astrogen.data.field import LensingField
from astrogen.inference.deflation import far_from_one
from astrogen.instruments.lensing import Grid, crop, observe
from astrogen.priors.convergence import ConvergencePrior
from astrogen.types import Tensor

RANK = 96  # directions whitened one by one, beyond Fourier space
BLOCK = 32  # of them at a time
CENTRE = (0.3, 0.8)  # (Omega_m, sigma_8) of the Gaussian approximation where they are sampled


class Evidence(NamedTuple):
    """maps, weight [plane, height, width]; kernels [plane, n, m // 2 + 1]; whitening; cosmology [1,
    2], used where it is not sampled.
    """

    maps: tf.Tensor
    weight: tf.Tensor
    kernels: tf.Tensor
    whitening: Whitening
    cosmology: tf.Tensor


class Drawn(NamedTuple):
    """Of each chain: kappa [chain, height, width], cosmology [chain, 2], chi2 [chain] of what would
    be seen of it.
    """

    kappa: tf.Tensor
    cosmology: tf.Tensor
    chi2: tf.Tensor


class Target(NamedTuple):
    """A posterior, ready for a sampler: density_fn(u, evidence) -> [chain]; draw_fn(u, evidence) ->
    Drawn.
    """

    density_fn: object
    draw_fn: object


@lru_cache(maxsize=8)
def make_target(
    prior: ConvergencePrior, grid: Grid, *, sampled: bool, corrected: bool = True
) -> Any:
    """The posterior under a prior on a grid.

    Equal arguments give the same object, so that graphs are built once.

    Parameters
    ----------
    prior : ConvergencePrior
    grid : Grid
    sampled : bool, is the cosmology part of the parameters?
    corrected : bool, with the correction of the prior's network; without it the prior is its
        lognormal start
    """

    def kappa_of(white, evidence):
        cosmology = evidence.cosmology
        if sampled:
            cosmology = bounded(white[:, -2:], prior.cosmology_range)
        latent = from_white(white[:, : grid.n * grid.m], evidence.whitening, grid)
        if corrected:
            return latent, cosmology, prior.decode(latent, cosmology)
        return (
            latent,
            cosmology,
            tf.exp(prior.colour(latent, cosmology)) - prior.shift(cosmology)[:, None, None],
        )

    def chi2_of(kappa, evidence):
        miss = evidence.maps - observe(kappa, evidence.kernels, grid)
        return tf.reduce_sum(evidence.weight * miss**2, [-3, -2, -1])

    def density_fn(white, evidence):
        latent, _, kappa = kappa_of(white, evidence)
        return -0.5 * (
            chi2_of(kappa, evidence)
            + tf.reduce_sum(latent**2, [-2, -1])
            + tf.reduce_sum(white[:, grid.n * grid.m :] ** 2, -1)
        )

    def draw_fn(white, evidence):
        _, cosmology, kappa = kappa_of(white, evidence)
        return Drawn(
            crop(kappa, grid),
            tf.broadcast_to(cosmology, [white.shape[0], 2]),
            chi2_of(kappa, evidence),
        )

    return Target(density_fn, draw_fn)


def bounded(normal: Tensor, cosmology_range: Any) -> tuple[Tensor, Tensor]:
    """(Omega_m, sigma_8) [chain, 2], uniform over their ranges, of standard normals [chain, 2]."""
    low, high = np.array([cosmology_range["omega_m"], cosmology_range["sigma_8"]], np.float32).T
    return low + (high - low) * 0.5 * tf.math.erfc(-normal / np.float32(np.sqrt(2)))


def gaussian_start(
    field: LensingField,
    prior: ConvergencePrior,
    grid: Grid,
    cosmology: tuple[float, float],
    *,
    num_chains: int,
    sampled: bool,
    seed: Sequence[int],
) -> Any:
    """Evidence, and exact draws of the Gaussian posterior as first positions [num_chains, p]; where
    the cosmology is sampled, its first values come from the prior.

    Parameters
    ----------
    field : LensingField of the prior's pixel scale
    cosmology : (Omega_m, sigma_8)
    seed : int pair
    """
    seeds = tf.random.experimental.stateless_split(tf.constant(seed, tf.int32), 3)
    where = tf.constant([cosmology], tf.float32)
    linear = linear_view(field, grid, prior.kappa_power(grid.n, grid.m, where)[0])
    maps = tf.constant(field.maps)
    whitening = _whiten(
        linear, grid, posterior_mean(maps, linear, grid), seed=int(seeds[0][0]) & 0x7FFFFFFF
    )
    white = to_white(posterior_draws(maps, linear, grid, seeds[1], num_chains), whitening, grid)
    if sampled:
        white = tf.concat([white, 0.5 * tf.random.stateless_normal([num_chains, 2], seeds[2])], -1)
    return Evidence(maps, linear.weight, linear.kernels, whitening, where), white


def _whiten(linear, grid, centre, *, seed):
    """Whitening of the Gaussian posterior: (1 + C / N)^-1/2 in Fourier space as if the noise were
    the same everywhere, then the directions in which that is worst.
    """
    gain, kernels, weight = (np.asarray(part) for part in linear)
    seen = (weight.sum((1, 2))[:, None, None] * kernels**2).sum(0) / (grid.n * grid.m)
    spread = (1 + gain**2 * seen) ** -0.5
    values, vectors = far_from_one(
        partial(
            _preconditioned, spread=spread, gain=gain, kernels=kernels, weight=weight, grid=grid
        ),
        grid.n * grid.m,
        rank=RANK,
        seed=seed,
    )
    return Whitening(
        centre, tf.constant(spread), tf.constant(vectors), tf.constant(values**-0.5 - 1)
    )


def _preconditioned(rows, *, spread, gain, kernels, weight, grid):
    """S (1 + A) S of each row [num, n m], as `wiener.precision`, but in NumPy and with as few
    transforms as can be: this is what preparing a field costs.
    """
    field = np.s_[:, grid.top : grid.top + grid.height, grid.left : grid.left + grid.width]
    found = []
    for first in range(0, len(rows), BLOCK):
        wave = fft.rfft2(rows[first : first + BLOCK].reshape(-1, grid.n, grid.m))
        total = spread**2 * wave
        for kernel, inverse_variance in zip(kernels, weight, strict=True):
            seen = np.zeros(wave.shape[:1] + (grid.n, grid.m), np.float32)
            seen[field] = (
                inverse_variance
                * fft.irfft2(spread * gain * kernel * wave, (grid.n, grid.m))[field]
            )
            total += spread * gain * kernel * fft.rfft2(seen)
        found.append(fft.irfft2(total, (grid.n, grid.m)).reshape(len(wave), -1))
    return np.concatenate(found)
