"""What a catalogue reports of a galaxy, from its coefficients: flux, place, size, ellipticity."""

from functools import lru_cache

import numpy as np
import tensorflow as tf


@lru_cache
def _planes(prior):
    """The prior's basis in float64 [k, height, width], and x and y of its pixels."""
    basis = prior.basis.numpy().astype(np.float64)
    side = np.arange(basis.shape[1]) - (basis.shape[1] - 1) / 2
    return basis, side, side[:, None]


def moment_weights(prior, shape):
    """What takes coefficients to moments of their image, [k, 7]: flux; and 1, x, y, x^2, y^2, x y
    under a round Gaussian as wide as the image of coefficients `shape` [k].
    """
    basis, x, y = _planes(prior)
    light = np.maximum(np.tensordot(shape, basis, 1), 0)
    width = max(0.5 * float((light * (x**2 + y**2)).sum() / light.sum()), 1.0)  # squared, pixels
    window = np.exp(-0.5 * (x**2 + y**2) / width)
    planes = [np.ones_like(window), *(window * part for part in (1, x, y, x**2, y**2, x * y))]
    return np.einsum("kyx,myx->km", basis, planes)


def shapes_of(moments):
    """Place (x, y), size (squared) and ellipticity (e1, e2), arrays [..., 5], prior pixels, of
    moments [..., 7] as of `moment_weights`.
    """
    _, total, x, y, xx, yy, xy = np.moveaxis(np.asarray(moments, np.float64), -1, 0)
    x, y = x / total, y / total
    xx, yy, xy = xx / total - x**2, yy / total - y**2, xy / total - x * y
    size = xx + yy
    return np.stack([x, y, size, (xx - yy) / size, 2 * xy / size], -1)


def report(prior, coefficients, shapes):
    """Flux, place, size and ellipticity, array [draw, batch, 6], of coefficients [draw, batch, k];
    shapes [batch, k] as of `moment_weights`.
    """
    weights = np.stack([moment_weights(prior, shape) for shape in shapes])
    moments = tf.einsum("dbk,bkm->dbm", coefficients, tf.constant(weights, tf.float32)).numpy()
    return np.concatenate([moments[..., :1], shapes_of(moments)], -1)
