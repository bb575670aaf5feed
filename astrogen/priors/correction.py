"""The network that corrects a lognormal field: convolutions at full resolution on a periodic grid,
so that it commutes with every translation, by kernels that look alike from all sides, so that it
commutes with the eight flips and transposes of the grid.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from astrogen.types import Tensor

# Where a kernel has each of its three weights: in the middle, at the edges, in the corners.
ORBITS = np.eye(3, dtype=np.float32)[[[2, 1, 2], [1, 0, 1], [2, 1, 2]]]


class Correction(keras.layers.Layer):
    """Fields [batch, n, m] of unit variance and the scaled cosmology [batch, 2] to a correction
    [batch, n, m], zero at initialisation.

    Without strides there is no preferred pixel and no seam, whatever the grid. It sees far because
    it is shown smoothed fields beside the field, and because the convolutions are dilated. The
    cosmology shifts the channels. Activations are smooth: Hamiltonian samplers differentiate
    through it.

    Parameters
    ----------
    channels : int
    dilations : sequence of int, one 3x3 convolution each; all but the first are added to their
        input
    smoothing : sequence of float, sigma in pixels of the Gaussians
    """

    def __init__(
        self,
        channels: int,
        dilations: Sequence[int],
        smoothing: Sequence[float],
        *,
        name: str = "correction",
    ) -> None:
        super().__init__(name=name)
        self.channels, self.dilations, self.smoothing = channels, tuple(dilations), tuple(smoothing)
        self.last = keras.layers.Dense(1, kernel_initializer="zeros")
        self.build(None)

    def build(self, input_shape: Any) -> None:
        self.kernels, self.shifts = [], []
        depth = 1 + len(self.smoothing)
        for index in range(len(self.dilations)):
            self.kernels.append(
                self.add_weight(
                    shape=(3, depth, self.channels),  # of the middle, the edges and the corners
                    initializer=keras.initializers.RandomNormal(stddev=(2 / (9 * depth)) ** 0.5),
                    name=f"kernel_{index}",
                )
            )
            self.shifts.append(keras.layers.Dense(self.channels, name=f"shift_{index}"))
            self.shifts[-1].build((None, 5))
            depth = self.channels
        self.last.build((None, depth))
        super().build(input_shape)

    def call(self, field: Tensor, cosmology: Tensor) -> Tensor:
        x, y = tf.unstack(cosmology, axis=-1)
        terms = tf.stack([x, y, x * x, x * y, y * y], -1)
        value = tf.stack([field, *smoothed(field, self.smoothing)], -1)
        for weights, shift, dilation in zip(self.kernels, self.shifts, self.dilations):
            kernel = tf.tensordot(ORBITS, weights, 1)
            linear = tf.nn.conv2d(wrapped(value, dilation), kernel, 1, "VALID", dilations=dilation)
            active = squareplus(linear + shift(terms)[:, None, None])
            value = value + active if value.shape[-1] == self.channels else active
        return self.last(value)[..., 0]


def squareplus(value: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4)) / 2 - 1: as smooth as softplus, zero at zero, and a third of a network's
    time less.
    """
    return 0.5 * (value + tf.sqrt(value**2 + 4.0)) - 1.0


def wrapped(value: Tensor, width: int) -> Tensor:
    """Images [batch, n, m, channel] with `width` pixels of their other side on every side."""
    value = tf.concat([value[:, -width:], value, value[:, :width]], 1)
    return tf.concat([value[:, :, -width:], value, value[:, :, :width]], 2)


def smoothed(field: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Periodic fields [batch, n, m] convolved with Gaussians of sigmas in pixels, times sqrt(1 +
    sigma): a red (1/k) spectrum keeps its variance.
    """
    n, m = field.shape[-2:]
    k = 2 * np.pi * np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(m))
    transform = tf.signal.rfft2d(field)
    return [
        tf.signal.irfft2d(transform * np.exp(-0.5 * (k * sigma) ** 2).astype(np.complex64), [n, m])
        * np.float32(1 + sigma) ** 0.5
        for sigma in sigmas
    ]
