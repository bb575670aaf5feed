"""The distributions that priors, likelihood and training speak of, as those of TensorFlow
Probability; its import takes half a second, and what needs only numbers does without.
"""

import tensorflow as tf
from tensorflow_probability import distributions as tfd


def normals(mean, scale):
    """Independent normals along the last axis of mean and scale [..., n]."""
    return tfd.Independent(tfd.Normal(mean, scale), 1)


def standard_normals(size, dtype=tf.float32):
    """N(0, I) of so many dimensions."""
    return normals(tf.zeros([size], dtype), tf.ones([size], dtype))


def divergence(distribution, other):
    """Kullback-Leibler divergence in nats, in closed form."""
    return tfd.kl_divergence(distribution, other)


def correlated_normal(mean, factor):
    """N(mean, factor factor') for mean [..., n] and lower factor [..., n, n]."""
    return tfd.MultivariateNormalTriL(mean, factor)
