"""The distributions that priors, likelihood and training speak of, as those of TensorFlow
Probability; its import takes half a second, and what needs only numbers does without.
"""

from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from astrogen.types import Tensor


def normals(mean: Tensor, scale: Tensor) -> tfd.Distribution:
    """Independent normals along the last axis of mean and scale [..., n]."""
    return tfd.Independent(tfd.Normal(mean, scale), 1)


def standard_normals(size: int, dtype: Any = tf.float32) -> tfd.Distribution:
    """N(0, I) of so many dimensions."""
    return normals(tf.zeros([size], dtype), tf.ones([size], dtype))


def divergence(distribution: tfd.Distribution, other: tfd.Distribution) -> Tensor:
    """Kullback-Leibler divergence in nats, in closed form."""
    return tfd.kl_divergence(distribution, other)


def correlated_normal(mean: Tensor, factor: Tensor) -> tfd.Distribution:
    """N(mean, factor factor') for mean [..., n] and lower factor [..., n, n]."""
    return tfd.MultivariateNormalTriL(mean, factor)
