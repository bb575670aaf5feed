"""The convolutional galaxy prior: the decoder paints pixels, and its image is projected on the
basis through which the telescope looks.

    image = decoder(latent) + basis @ r,    r | latent ~ N(0, amplitude * diag spread(latent)^2)

What of the decoder's image lies outside the basis is less than a thousandth of its power. The
decoder's derivatives are pushed forward through its layers by hand: it is linear up to its
activations, so each of them is one more convolution.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from astrogen.priors.galaxy import (
    RAW_ONE,
    ImagePrior,
    Population,
    population_of,
    residual_scale,
    squash,
)
from astrogen.priors.networks import ResidualMLP, gelu_and_rate
from astrogen.types import Tensor

COARSE = 8  # pixels: side of the images between dense layers and convolutions


class ConvEncoder(keras.layers.Layer):
    """Images [batch, side, side] of unit norm to mean and log sigma [batch, 2 * latent]: three
    strided convolutions and two dense layers.

    The images are first whitened, pixel by pixel, with the population's mean and standard
    deviation.
    """

    def __init__(
        self,
        side: int,
        channels: Sequence[int],
        width: int,
        num_out: int,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.convolutions = [
            keras.layers.Conv2D(num, 5, strides=2, padding="same") for num in channels
        ]
        self.hidden, self.last = keras.layers.Dense(width), keras.layers.Dense(num_out)
        self.side = side
        self.build((None, side, side))

    def build(self, input_shape: Any) -> None:
        self.centre = self.add_weight(
            shape=(self.side, self.side), initializer="zeros", trainable=False, name="centre"
        )
        self.spread = self.add_weight(
            shape=(self.side, self.side), initializer="ones", trainable=False, name="spread"
        )
        side, depth = self.side, 1
        for layer in self.convolutions:
            layer.build((None, side, side, depth))
            side, depth = side // 2, layer.filters
        self.hidden.build((None, side * side * depth))
        self.last.build((None, self.hidden.units))
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        value = squash((inputs - self.centre) / self.spread)[..., None]
        for layer in self.convolutions:
            value = tf.nn.gelu(layer(value), approximate=True)
        flat = tf.reshape(value, [-1, self.hidden.kernel.shape[0]])
        return self.last(tf.nn.gelu(self.hidden(flat), approximate=True))


class ConvDecoder(keras.layers.Layer):
    """Latents [batch, num_in] to images [batch, side, side]: two dense layers, then convolutions
    whose channels are shuffled into finer pixels.

    The last image is multiplied by a map and added to another, both learned: initialised with the
    population's standard deviation and mean, they spare the convolutions what all galaxies have in
    common, and the latent does not collapse. `call_with_jacobian` also returns the derivatives
    [batch, num_in, side, side].
    """

    def __init__(
        self, num_in: int, width: int, channels: Sequence[int], *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.num_in = num_in
        self.depth = channels[0]
        self.dense = [keras.layers.Dense(width), keras.layers.Dense(COARSE**2 * self.depth)]
        self.convolutions = [
            keras.layers.Conv2D(4 * num, 3, padding="same") for num in (*channels[1:], 1)
        ]
        self.side = COARSE * 2 ** len(self.convolutions)
        self.build((None, num_in))

    def build(self, input_shape: Any) -> None:
        size = self.num_in
        for layer in self.dense:
            layer.build((None, size))
            size = layer.units
        side, depth = COARSE, self.depth
        for layer in self.convolutions:
            layer.build((None, side, side, depth))
            side, depth = 2 * side, layer.filters // 4
        self.bias = self.add_weight(shape=(side, side), initializer="zeros", name="bias_map")
        self.gain = self.add_weight(shape=(side, side), initializer="ones", name="gain_map")
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        value = inputs
        for layer in self.dense:
            value = tf.nn.gelu(layer(value), approximate=True)
        value = tf.reshape(value, [-1, COARSE, COARSE, self.depth])
        for layer in self.convolutions[:-1]:
            value = tf.nn.depth_to_space(tf.nn.gelu(layer(value), approximate=True), 2)
        return self.bias + self.gain * tf.nn.depth_to_space(self.convolutions[-1](value), 2)[..., 0]

    def call_with_jacobian(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        batch = tf.shape(inputs)[0]
        value, slope = inputs, tf.eye(self.num_in, batch_shape=[batch])
        for layer in self.dense:
            value, rate = gelu_and_rate(layer(value))
            slope = tf.matmul(slope, layer.kernel) * rate[:, None]
        value, slope = (tf.reshape(x, [-1, COARSE, COARSE, self.depth]) for x in (value, slope))
        for layer in self.convolutions[:-1]:
            value, rate = gelu_and_rate(layer(value))
            slope = tf.nn.conv2d(slope, layer.kernel, 1, "SAME")
            slope = tf.reshape(slope, [batch, self.num_in, *slope.shape[1:]]) * rate[:, None]
            value, slope = (
                tf.nn.depth_to_space(value, 2),
                tf.nn.depth_to_space(tf.reshape(slope, [-1, *slope.shape[2:]]), 2),
            )
        last = self.convolutions[-1]
        value, slope = (
            tf.nn.depth_to_space(last(value), 2)[..., 0],
            tf.nn.depth_to_space(tf.nn.conv2d(slope, last.kernel, 1, "SAME"), 2),
        )
        return self.bias + self.gain * value, self.gain * tf.reshape(
            slope, [batch, self.num_in, self.side, self.side]
        )


class ConvPrior(ImagePrior):
    """The lecture's VAE, with a residual: what its decoder cannot make, in coefficients of the
    basis, as a small network of the latent.

    Parameters
    ----------
    networks : {"encoder": ConvEncoder, "decoder": ConvDecoder, "spread": ResidualMLP, latent -> raw
        scales [k] of the residual, in units of residual_std}
    residual_std : array [k], of the population's residual
    floor : float, least residual scale, in units of the (unit-norm) coefficients
    the others : as of `ImagePrior`
    """

    def __init__(
        self,
        *,
        name: str,
        population: Population,
        networks: Mapping[str, Any],
        residual_std: np.ndarray,
        whitening: tuple[np.ndarray, np.ndarray],
        floor: float,
        card: dict[str, Any],
    ) -> None:
        super().__init__(name=name, population=population, whitening=whitening, card=card)
        self.encoder, self.decoder = networks["encoder"], networks["decoder"]
        self.spread, self.floor = networks["spread"], floor
        self.residual_std = tf.constant(residual_std, tf.float32)

    def components(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        coloured = self._colour(latent)
        return self.project(self.decoder(coloured)), self._scale(self.spread(coloured))

    def components_and_jacobian(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        coloured = self._colour(latent)
        image, image_slope = self.decoder.call_with_jacobian(coloured)
        raw, raw_slope = self.spread.call_with_jacobian(coloured)
        rate = tf.sigmoid(raw + RAW_ONE) * self.residual_std  # of the softplus in `residual_scale`
        mean_slope, scale_slope = (
            tf.matmul(self.whitening_factor, x, transpose_a=True)
            for x in (self.project(image_slope), raw_slope * rate[:, None])
        )
        return self.project(image), self._scale(raw), mean_slope, scale_slope

    def _scale(self, raw):
        return residual_scale(raw, self.floor / self.residual_std) * self.residual_std

    def project(self, images: Tensor) -> Tensor:
        """Coefficients [..., k] of images [..., height, width]."""
        num, pixels = self.basis.shape[0], self.image_shape[0] * self.image_shape[1]
        flat = tf.matmul(
            tf.reshape(images, [-1, pixels]),
            tf.reshape(self.basis, [num, pixels]),
            transpose_b=True,
        )
        return tf.reshape(flat, tf.concat([tf.shape(images)[:-2], [num]], 0))

    def guess(self, coefficients: Tensor) -> Tensor:
        return self._whiten(self.encoder(self.images(coefficients))[:, : self.latent_size])


def make_networks(card: dict[str, Any], num_components: int) -> dict[str, Any]:
    """The networks {name: layer} that a card describes, untrained."""
    latent, side = card["latent"], card["side"]
    return {
        "encoder": ConvEncoder(
            side, card["encoder_channels"], card["width"], 2 * latent, name="encoder"
        ),
        "decoder": ConvDecoder(latent, card["width"], card["decoder_channels"], name="decoder"),
        "spread": ResidualMLP(latent, card["spread_widths"], num_components, name="spread"),
    }


def convolutional_prior(
    card: dict[str, Any], arrays: dict[str, dict[str, np.ndarray]]
) -> ConvPrior:
    """The prior that a card and its arrays describe (see `astrogen.priors.storage`)."""
    basis, residual = arrays["basis"], arrays["residual"]
    networks = make_networks(card, len(basis["std"]))
    for name, network in networks.items():
        network.set_weights(
            [arrays[name][f"weight_{index:02d}"] for index in range(len(network.weights))]
        )
    return ConvPrior(
        name=card["name"],
        population=population_of(card, basis),
        networks=networks,
        residual_std=residual["std"],
        whitening=(residual["whitening_mean"], residual["whitening_factor"]),
        floor=card["floor"],
        card=card,
    )
