"""Differentiable summaries of a map, by which the generator is steered: the mean of each has to
agree with that of simulations at every cosmology.

Soft versions of what cosmologists count (power spectrum along the pixels' axes and along their
diagonals, its scatter, third moments, pixel density, peaks, minima, contours, curvature): smooth,
so that they have gradients.
"""

import numpy as np
import tensorflow as tf

from astrogen.priors.convergence import multipoles

NUM_BANDS = 16
# multipoles: bands whose fields' third moments are taken, a bispectrum of nearly equal sides
THIRD_EDGES = np.geomspace(250, 3400, 7)
LEVELS = np.arange(-3.0, 5.1, 0.5, dtype=np.float32)  # of the standardised log density
PEAK_LEVELS, MINIMUM_LEVELS = (
    np.arange(-1.0, 6.1, 0.75, dtype=np.float32),
    np.arange(-3.5, 1.6, 0.5, dtype=np.float32),
)
# of a pixel over the mean of its four neighbours, standard deviations
CURVATURE_LEVELS = np.arange(-1.75, 2.6, 0.25, dtype=np.float32)
SOFTNESS = 0.15  # standard deviations by which a peak has to stand out to be counted in full
FIRST, LAST = 140.0, 6650.0  # multipoles: all but the lowest


def map_features(kappa, log_map, *, pixel_scale):
    """Summaries [batch, F] of maps.

    Parameters
    ----------
    kappa : Tensor [batch, n, n], of about unit variance; log_map : the standardised logarithm of
        the density
    pixel_scale : float, arcmin per pixel
    """
    power, sectors, third = _spectrum(kappa, pixel_scale)
    coarse = tf.nn.avg_pool2d(log_map[..., None], 2, 1, "VALID")[..., 0]
    slope = tf.sqrt(
        (log_map[:, 1:, :-1] - log_map[:, :-1, :-1]) ** 2
        + (log_map[:, :-1, 1:] - log_map[:, :-1, :-1]) ** 2
        + 1e-4
    )
    peaks, minima = _extremes(log_map), _extremes(-log_map)
    inner = log_map[:, 1:-1, 1:-1]
    curvature = inner - 0.25 * (
        log_map[:, 2:, 1:-1] + log_map[:, :-2, 1:-1] + log_map[:, 1:-1, 2:] + log_map[:, 1:-1, :-2]
    )
    return tf.concat(
        [
            sectors,
            power,
            power**2,
            third,
            _histogram(curvature, CURVATURE_LEVELS),
            _histogram(inner, LEVELS, curvature**2),
            _histogram(log_map, LEVELS),
            _histogram(coarse, LEVELS),
            _histogram(log_map[:, :-1, :-1], LEVELS, slope),
            _histogram(inner, PEAK_LEVELS, peaks),
            _histogram(inner, MINIMUM_LEVELS, minima),
        ],
        -1,
    )


def band_matrix(n, m, pixel_scale, edges, *, weight=1.0):
    """Matrix [bands, n * (m // 2 + 1)] that averages |FFT|^2 over bands of multipoles, each mode
    with a weight, and the mean multipole [bands] of each.
    """
    l = multipoles(n, m, pixel_scale)
    twice = (
        np.where((np.arange(m // 2 + 1) == 0) | (np.arange(m // 2 + 1) * 2 == m), 1.0, 2.0)[None]
        * np.ones((n, 1))
        * weight
    )
    inside = (
        np.stack([(l >= low) & (l < high) for low, high in zip(edges[:-1], edges[1:])]).reshape(
            len(edges) - 1, -1
        )
        * twice.ravel()
    )
    total = inside.sum(1, keepdims=True)
    return (inside / total).astype(np.float32), (inside @ l.ravel()) / total[:, 0]


def band_edges(num=NUM_BANDS, first=FIRST, last=LAST):
    """Edges of bands that widen with l, none without modes on a grid of 64 pixels of 2.3 arcmin."""
    return np.linspace(first**0.5, last**0.5, num + 1) ** 2


def along_axes(n, m):
    """How near to an axis of the pixels the wave vectors [n, m // 2 + 1] of a real transform lie: 1
    along it, 0 along a diagonal.
    """
    angle = np.arctan2(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(m))
    return 0.5 + 0.5 * np.cos(4 * angle)


def _spectrum(kappa, pixel_scale):
    """Band powers [batch, NUM_BANDS], those along the axes of the pixels [batch, NUM_BANDS], and
    third moments of wider bands.
    """
    n, m = kappa.shape[1:]
    transform = tf.signal.rfft2d(kappa)
    matrices = [
        band_matrix(n, m, pixel_scale, band_edges(), weight=weight)[0]
        for weight in (1.0, along_axes(n, m))
    ]
    square = tf.reshape(tf.abs(transform) ** 2, [-1, matrices[0].shape[1]])
    power, sectors = (tf.matmul(square, matrix, transpose_b=True) / (n * m) for matrix in matrices)
    l = multipoles(n, m, pixel_scale)
    filtered = [
        tf.signal.irfft2d(transform * ((l >= low) & (l < high)).astype(np.complex64), [n, m])
        for low, high in zip(THIRD_EDGES[:-1], THIRD_EDGES[1:])
    ]
    return power, sectors, tf.stack([tf.reduce_mean(field**3, [1, 2]) for field in filtered], -1)


def _histogram(value, levels, weight=None):
    step = float(levels[1] - levels[0])
    return tf.stack(
        [
            tf.reduce_mean(hat if weight is None else hat * weight, [1, 2])
            for level in levels
            for hat in [tf.nn.relu(1.0 - tf.abs(value - level) / step)]
        ],
        -1,
    )


def _extremes(value):
    """How much each inner pixel [batch, n - 2, m - 2] is a maximum among its eight neighbours: 0 to
    1.
    """
    n, m = value.shape[1:]
    around = [
        value[:, row : n - 2 + row, column : m - 2 + column]
        for row in range(3)
        for column in range(3)
        if (row, column) != (1, 1)
    ]
    return tf.sigmoid((value[:, 1:-1, 1:-1] - tf.reduce_max(tf.stack(around), 0)) / SOFTNESS)
