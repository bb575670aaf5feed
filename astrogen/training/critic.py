"""The critic of maps, and what it and the generator minimise."""

import keras
import tensorflow as tf

WIDTHS = (24, 48, 96, 96)  # of the part that sees the map as a whole
# of the part that sees texture: two convolutions at full resolution, then one at each half of it
LOCAL = 12, 12, 24, 48


class Critic(keras.layers.Layer):
    """Maps [batch, side, side] of unit variance and the scaled cosmology [batch, 2] to one number
    [batch]; no normalisation, which would tie the samples together.

    It sees the logarithm of the density, and beside it its exponential, in which peaks stand out.
    One part looks at the whole map. The other is the mean over all pixels of a score of their
    surroundings, times the side, which makes it as steep as the first: texture is the same
    everywhere, and is learnt from all pixels at once.
    """

    def __init__(self, side, widths=WIDTHS, local=LOCAL, *, name="critic"):
        super().__init__(name=name)
        self.side = side
        self.convolutions = [
            keras.layers.Conv2D(width, 4, strides=2, padding="same", kernel_initializer="he_normal")
            for width in widths
        ]
        self.textures = [
            keras.layers.Conv2D(width, 3, kernel_initializer="he_normal") for width in local
        ]
        self.shifts, self.texture_shifts = (
            [keras.layers.Dense(width, use_bias=False) for width in some]
            for some in (widths, local)
        )
        self.scores = [keras.layers.Dense(1, use_bias=False) for _ in local]
        self.last = keras.layers.Dense(1)
        self.build(None)

    def build(self, input_shape):
        side, depth = self.side, 2
        for layer, shift in zip(self.convolutions, self.shifts):
            layer.build((None, side, side, depth))
            shift.build((None, 2))
            side, depth = side // 2, layer.filters
        self.last.build((None, side * side * depth))
        depth = 2
        for layer, shift, score in zip(self.textures, self.texture_shifts, self.scores):
            layer.build((None, self.side, self.side, depth))
            shift.build((None, 2))
            score.build((None, layer.filters))
            depth = layer.filters
        super().build(input_shape)

    def call(self, maps, cosmology):
        value = texture = tf.stack([maps, 3.0 * (tf.exp(maps / 3.0) - 1.0)], -1)
        for layer, shift in zip(self.convolutions, self.shifts):
            value = tf.nn.leaky_relu(layer(value) + shift(cosmology)[:, None, None])
        total = self.last(tf.reshape(value, [-1, self.last.kernel.shape[0]]))[:, 0]
        for index, (layer, shift, score) in enumerate(
            zip(self.textures, self.texture_shifts, self.scores)
        ):
            texture = tf.nn.leaky_relu(
                layer(texture if index < 2 else tf.nn.avg_pool2d(texture, 2, 2, "VALID"))
                + shift(cosmology)[:, None, None]
            )
            total += self.side * tf.reduce_mean(score(texture), [1, 2])[:, 0]
        return total


def gradient_penalty(critic_fn, real, fake, mix):
    """(|gradient| - 1)^2 of each sample [batch], on the straight line between a real and a drawn
    map (Gulrajani et al. 2017, eq. 3).

    Parameters
    ----------
    critic_fn : maps [batch, n, m] -> [batch]
    mix : Tensor [batch, 1, 1], where on the line: 0 real, 1 drawn
    """
    between = real + mix * (fake - real)
    with tf.GradientTape() as tape:
        tape.watch(between)
        value = critic_fn(between)
    slope = tape.gradient(value, between)
    return (tf.sqrt(tf.reduce_sum(slope**2, [1, 2]) + 1e-12) - 1.0) ** 2


def critic_loss(loss, real_score, fake_score):
    """What the critic minimises: minus the Wasserstein distance ("wgan-gp"; the penalty is added by
    the loop) or the cross entropy ("gan").
    """
    if loss == "wgan-gp":
        return tf.reduce_mean(fake_score) - tf.reduce_mean(real_score)
    return tf.reduce_mean(tf.nn.softplus(-real_score)) + tf.reduce_mean(tf.nn.softplus(fake_score))


def generator_loss(loss, fake_score):
    """What the generator minimises: minus the critic's score, or log(1 - D) of the first GAN
    (Goodfellow et al. 2014, eq. 1): no gradient where D wins.
    """
    return (
        -tf.reduce_mean(fake_score)
        if loss == "wgan-gp"
        else -tf.reduce_mean(tf.nn.softplus(fake_score))
    )
