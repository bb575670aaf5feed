"""The posterior of a Gaussian field given linear data: its mean (the Wiener filter), exact draws,
and coordinates in which it is nearly a standard normal.

Everything happens in the white noise x of the field, kappa = G x, where the posterior's precision
is 1 + A, A = G K^T W K G: K what is observed of the convergence, W the inverse variance of the
noise, zero where masked. Mass outside the field is part of x, and so marginalised.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.data.field import LensingField
from astrogen.instruments.lensing import (
    Grid,
    beam_kernel,
    crop,
    filtered,
    observe,
    observe_adjoint,
    shear_kernels,
)
from astrogen.types import Tensor

ARCMIN = np.pi / 180 / 60
MAX_ITERATIONS = 500
TOLERANCE = 1e-5  # of the residual's norm


class Linear(NamedTuple):
    """A linear view of a field: gain [n, m // 2 + 1] = (C / A_pix)^1/2 colours white noise; kernels
    [plane, n, m // 2 + 1]; weight [plane, height, width], 1 / variance.
    """

    gain: tf.Tensor
    kernels: tf.Tensor
    weight: tf.Tensor


def linear_view(field: LensingField, grid: Grid, spectrum: Any) -> Linear:
    """The Linear of a LensingField, for the power [n, m // 2 + 1] of the convergence in
    steradian.
    """
    kernels = (
        shear_kernels(grid.n, grid.m)
        if field.is_shear
        else beam_kernel(grid.n, grid.m, field.beam / field.pixel_scale)
    )
    return Linear(
        *(
            tf.constant(x, tf.float32)
            for x in (np.sqrt(spectrum) / (field.pixel_scale * ARCMIN), kernels, field.weight)
        )
    )


def wiener_filter(field: LensingField, grid: Grid, spectrum: np.ndarray) -> np.ndarray:
    """Convergence [height, width] that minimises the expected square error, knowing the spectrum,
    mask and noise (conjugate gradients).

    Equal to the mean of the Gaussian posterior (tests/test_massmap.py).

    Parameters
    ----------
    field : LensingField
    spectrum : array [n, m // 2 + 1], steradian, of the convergence on the grid
    """
    linear = linear_view(field, grid, spectrum)
    return crop(filtered(posterior_mean(field.maps, linear, grid), linear.gain), grid).numpy()


@tf.function(autograph=False)
def posterior_mean(maps: Tensor, linear: Linear, grid: Grid) -> Tensor:
    """White noise [..., n, m] at the mean of the posterior given maps [..., plane, height,
    width].
    """
    return _solve(linear, grid, _to_latent(maps, linear, grid))


@tf.function(autograph=False)
def posterior_draws(maps: Tensor, linear: Linear, grid: Grid, seed: Tensor, num: int) -> Tensor:
    """Exact draws [num, n, m] of the white noise from the Gaussian posterior (constrained
    realisations: Hoffman & Ribak 1991).

    A draw of the prior, corrected by the Wiener filter of the data minus what would have been seen
    of it.
    """
    seeds = tf.random.experimental.stateless_split(seed, 2)
    latent = tf.random.stateless_normal([num, grid.n, grid.m], seeds[0])
    noise = tf.random.stateless_normal([num, *maps.shape], seeds[1]) * tf.math.sqrt(
        tf.math.divide_no_nan(1.0, linear.weight)
    )
    seen = observe(filtered(latent, linear.gain), linear.kernels, grid) + noise
    return latent + _solve(linear, grid, _to_latent(maps - seen, linear, grid))


def precision(latent: Tensor, linear: Linear, grid: Grid) -> Tensor:
    """(1 + A) x for x [..., n, m]."""
    seen = observe(filtered(latent, linear.gain), linear.kernels, grid)
    return latent + _to_latent(seen, linear, grid)


def _to_latent(maps, linear, grid):
    """G K^T W d."""
    return filtered(observe_adjoint(linear.weight * maps, linear.kernels, grid), linear.gain)


def _solve(linear, grid, right):
    """(1 + A)^-1 of right sides [..., n, m] by conjugate gradients, all together."""

    def dot(a, b):
        return tf.reduce_sum(a * b, [-2, -1], keepdims=True)

    target = TOLERANCE**2 * dot(right, right)

    def unfinished(count, _x, _residual, _direction, norm):
        return (count < MAX_ITERATIONS) & tf.reduce_any(norm > target)

    def step(count, x, residual, direction, norm):
        along = precision(direction, linear, grid)
        length = tf.math.divide_no_nan(norm, dot(direction, along))
        residual = residual - length * along
        new = dot(residual, residual)
        return (
            count + 1,
            x + length * direction,
            residual,
            residual + tf.math.divide_no_nan(new, norm) * direction,
            new,
        )

    return tf.while_loop(
        unfinished,
        step,
        (0, tf.zeros_like(right), right, right, dot(right, right)),
        parallel_iterations=1,
    )[1]


class Whitening(NamedTuple):
    """Coordinates u in which the Gaussian posterior is nearly N(0, 1): x = centre + S (u + V
    diag(lengths) V^T u).

    centre [n, m]; fourier [n, m // 2 + 1], S; vectors [n m, rank], V, orthonormal; lengths [rank].
    """

    centre: tf.Tensor
    fourier: tf.Tensor
    vectors: tf.Tensor
    lengths: tf.Tensor


def from_white(white: Tensor, whitening: Any, grid: Grid) -> Tensor:
    """x [chain, n, m] of coordinates u [chain, n m]."""
    white = white + tf.matmul(
        tf.matmul(white, whitening.vectors) * whitening.lengths, whitening.vectors, transpose_b=True
    )
    return whitening.centre + filtered(tf.reshape(white, [-1, grid.n, grid.m]), whitening.fourier)


def to_white(latent: Tensor, whitening: Any, grid: Grid) -> Tensor:
    """The inverse of `from_white`: u [chain, n m] of x [chain, n, m]."""
    white = tf.reshape(
        filtered(latent - whitening.centre, 1 / whitening.fourier), [-1, grid.n * grid.m]
    )
    back = 1 / (1 + whitening.lengths) - 1
    return white + tf.matmul(
        tf.matmul(white, whitening.vectors) * back, whitening.vectors, transpose_b=True
    )
