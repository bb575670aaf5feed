"""Real stamps as training sees them: each with its own PSF and noise, compressed to what it says
about the prior's coefficients.

A space telescope's PSF is sharper than the prior's target, its pixels finer than the prior's grid.
Each stamp is therefore degraded first:

    y = H d,    d = flux * T a + n,    n ~ N(0, C)    =>    y ~ N(flux * H T a, H C H')

H is a Gaussian that makes the PSF no sharper than the target anywhere in the prior's band, taken at
every third pixel (0.09"); T is the stamp's PSF over the target PSF, at the stamp's own pixels.
Since H T is what the model sees too, the edges of a small cut are exact: no light is assumed where
nothing was recorded. H C H' is computed, not approximated, from the stamp's noise correlation, and
whitened by its Cholesky factor, so that the degrading costs no information below the prior's band
limit.

What is approximate: the galaxy's frequencies above the prior's band limit (3 % of the target's
peak, and falling) are taken as absent; noise is stationary, its correlation known at lags up to
five pixels, and a background of unknown level stands for what reaches further; photon noise of the
galaxy itself is neglected; the centre is measured, not marginalised. tests/test_real_training.py
measures the noise model against GalSim's correlated noise.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.errors import RecordsError
from astrogen.galaxies.posterior import LOG_FLUX_STD, WEAKEST, Compressed
from astrogen.instruments import telescope
from astrogen.training.records import MANIFEST, read_real_records

CENTRE_SIGMA = (
    0.25  # arcsec, of the weight that centred the simulated population: 2.5 of its pixels
)
CENTRE_LIMIT = 0.5  # arcsec from the middle of the cut
# of a pixel's noise: its square is the correlation of drizzled HST noise at lags of 6-15 pixels
BACKGROUND_STD = 0.05
UNSEEN = 1e-3  # weight of masked pixels inside the cut that a sample may carry
FLUX_STEPS = 4  # scoring steps to the conditional maximum of the flux, from the linear estimate
LARGEST_STEP = 0.7  # of the log of the flux


class _Seen(NamedTuple):
    """A stamp after degrading, before compression: whitened to unit noise, float64.

    stamp [d]; basis [d, k], of whitened coefficients; flat [d], a background of one flux unit per
    pixel; centre [2], arcsec, (x, y) from the stamp's middle.
    """

    stamp: np.ndarray
    basis: np.ndarray
    flat: np.ndarray
    centre: np.ndarray


# Degrading


def degrading_sigma(psf, *, pixel_scale, prior_scale, target_fwhm):
    """Standard deviation (arcsec) of the least Gaussian that makes a PSF no sharper than the target
    at every frequency of the prior's grid; 0 if it is not.

    Parameters
    ----------
    psf : array [k, k], k odd, sums to 1
    pixel_scale, prior_scale : float, arcsec/pixel of the PSF image and of the prior
    target_fwhm : float, arcsec
    """
    kx, ky = telescope.grid_frequencies(prior_scale)
    power = np.abs(telescope.psf_transform(psf, pixel_scale, kx, ky)).ravel()[1:] ** 2
    squared = (kx**2 + ky[:, None] ** 2).ravel()[1:]
    # |psf|^2 exp(-sigma^2 k^2) <= exp(-sigma_target^2 k^2)
    needed = target_fwhm**2 / (8 * np.log(2)) + np.log(np.maximum(power, 1e-30)) / squared
    return float(np.sqrt(max(needed.max(), 0.0)))


def _smoothing(length, sigma):
    """Rows [length, length] that convolve with a Gaussian of `sigma` pixels; light beyond the ends
    is not recorded.
    """
    axis = np.arange(length)
    if sigma == 0:
        return np.eye(length)
    lattice = np.arange(-int(8 * sigma) - 1, int(8 * sigma) + 2)
    return (
        np.exp(-0.5 * ((axis[:, None] - axis) / sigma) ** 2)
        / np.exp(-0.5 * (lattice / sigma) ** 2).sum()
    )


def _samples(length, step):
    """Every `step`-th pixel, symmetric about the middle."""
    return np.arange((length - 1) % step // 2, length, step)


def degraded_covariance(correlation, rows, columns):
    """Covariance [y * x, y * x] of `rows @ noise @ columns.T` for stationary noise with a given
    correlation, exactly.

    Parameters
    ----------
    correlation : array [c, c], c odd, 1 in the middle
    rows, columns : arrays [y, height], [x, width]
    """
    left, size, right = np.linalg.svd(correlation)
    half = correlation.shape[0] // 2

    def _along(lags, matrix):
        length = matrix.shape[1]
        lag = np.arange(length)[:, None] - np.arange(length) + half
        inside = (lag >= 0) & (lag < len(lags))
        return matrix @ np.where(inside, lags[np.clip(lag, 0, len(lags) - 1)], 0.0) @ matrix.T

    # A correlation of drizzled noise is nearly separable: few terms matter.
    terms = [n for n in range(len(size)) if size[n] > 1e-9 * size[0]]
    return sum(
        size[n] * np.kron(_along(left[:, n], rows), _along(right[n], columns)) for n in terms
    )


# Centring


def _centroid(image, sigma, limit):
    """Centroid (x, y) in pixels from the middle, under a Gaussian weight that follows it, as the
    simulated population was centred; 0 where nothing shines.
    """
    axes = [np.arange(length) - (length - 1) / 2 for length in image.shape[::-1]]
    centre = np.zeros(2)
    for _ in range(20):
        weight_x, weight_y = (
            np.exp(-0.5 * ((axis - middle) / sigma) ** 2) for axis, middle in zip(axes, centre)
        )
        weighted = image * weight_y[:, None] * weight_x
        total = weighted.sum()
        if total <= 0:
            return np.zeros(2)
        step = (
            np.array(
                [
                    (weighted.sum(0) * (axes[0] - centre[0])).sum(),
                    (weighted.sum(1) * (axes[1] - centre[1])).sum(),
                ]
            )
            / total
        )
        centre = np.clip(centre + 1.5 * step, -limit, limit)
    return centre


def _measured_centre(cut, psf, sigma, pixel_scale):
    """Where the galaxy lies, (x, y) arcsec from the middle of the cut, less the offset that its PSF
    makes; both degraded by `sigma` pixels.
    """

    def _of(image):
        rows, columns = (_smoothing(length, sigma) for length in image.shape)
        return (
            _centroid(
                rows @ image @ columns.T, CENTRE_SIGMA / pixel_scale, CENTRE_LIMIT / pixel_scale
            )
            * pixel_scale
        )

    return _of(cut) - _of(psf)


# Compression


def _cut(image, mask):
    """The rectangle that holds every good pixel, zero where masked, its mask, and (x, y) in pixels
    of its middle from the stamp's.
    """
    rows, columns = (np.flatnonzero((~mask).any(axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    middle = [(part.start + part.stop - side) / 2 for part, side in zip(inside, mask.shape)]
    return np.where(mask, 0, image)[inside].astype(float), mask[inside], np.array(middle[::-1])


def _basis_seen(down, across, psf, prior, pixel_scale, centre):
    """The prior's whitened basis behind `psf` and degraded, [samples, k]; `centre`: (x, y) arcsec
    of the galaxy from the cut's middle.
    """
    scales = {"pixel_scale": pixel_scale, "prior_scale": prior.pixel_scale}
    kernel = telescope.kernel_transform(
        psf,
        psf_scale=pixel_scale,
        pixel_response=pixel_scale,
        target_fwhm=prior.target_fwhm,
        **scales,
    )
    images = tf.signal.irfft2d(
        prior.basis_transform * kernel, fft_length=[telescope.GRID, telescope.GRID]
    )
    sight = [
        tf.matmul(
            part[None],
            telescope.interpolation_matrix(
                part.shape[1], **scales, shift=tf.constant([shift], tf.float64)
            ),
        )
        for part, shift in ((down, centre[1]), (across, centre[0]))
    ]
    area = tf.constant([(pixel_scale / prior.pixel_scale) ** 2], tf.float32)
    seen = telescope.sample(images[None], *(tf.cast(part, tf.float32) for part in sight), area)
    return seen.numpy().reshape(len(images), -1).T.astype(float)


class _Sampling(NamedTuple):
    """How a cut is degraded and whitened: rows [y, height] and columns [x, width] smooth and
    sample, `clean` [y * x] picks, `factor` whitens.
    """

    rows: np.ndarray
    columns: np.ndarray
    clean: np.ndarray
    factor: tf.Tensor

    def degrade(self, image):
        return (self.rows @ image @ self.columns.T).ravel()

    def whiten(self, degraded):
        """[y * x, ...] -> [d, ...]"""
        return tf.linalg.triangular_solve(self.factor, degraded[self.clean]).numpy()


def _sampling(bad, sigma, step, *, variance, correlation):
    """`bad`: the cut's mask; `sigma` in pixels.

    Samples that look at a masked pixel inside the cut are left out: their light was not recorded.
    """
    rows, columns = (_smoothing(length, sigma)[_samples(length, step)] for length in bad.shape)
    clean = (rows @ bad @ columns.T < UNSEEN).ravel()
    covariance = variance * degraded_covariance(correlation, rows, columns)[np.ix_(clean, clean)]
    return _Sampling(rows, columns, clean, tf.linalg.cholesky(covariance))


def _see(image, mask, psf, *, variance, correlation, pixel_scale, prior, centre=None):
    """Degrade and whiten one stamp, and the prior's basis with it. `centre`: (x, y) arcsec from the
    stamp's middle, None to measure it.
    """
    cut, bad, middle = _cut(image, mask)
    sigma = (
        degrading_sigma(
            psf,
            pixel_scale=pixel_scale,
            prior_scale=prior.pixel_scale,
            target_fwhm=prior.target_fwhm,
        )
        / pixel_scale
    )
    if centre is None:
        centre = _measured_centre(cut, psf, sigma, pixel_scale) + middle * pixel_scale
    step = max(int(prior.pixel_scale / pixel_scale + 1e-3), 1)
    sampling = _sampling(bad, sigma, step, variance=variance, correlation=correlation)
    basis = _basis_seen(
        sampling.rows, sampling.columns, psf, prior, pixel_scale, centre - middle * pixel_scale
    )
    white = sampling.whiten(
        np.column_stack([sampling.degrade(cut), sampling.degrade(np.ones_like(cut)), basis])
    )
    return _Seen(white[:, 0], white[:, 2:], white[:, 1], centre)


def _linear_estimate(value, mean, moment, rotation, std):
    """Flux and coefficients [k] of flux * a under c ~ N(flux * mean, flux^2 I), with the flux the
    norm that the estimate then has, as in the posterior.

    `value` are the eigenvalues of the normal equations, `mean` and `moment` are given along their
    eigenvectors.
    """
    information = (value * mean**2).sum()
    flux = moment @ mean / information
    for _ in range(4):
        flux = max(flux, information**-0.5)  # at least its own error
        white = rotation @ (flux * mean + (moment - flux * value * mean) / (value + flux**-2))
        flux = np.linalg.norm(white * std)
    return flux, white * std


def _compress(seen, background_std, prior, num_directions):
    """One stamp's fields of Compressed but for the centre, unpadded, as arrays."""
    mean, std = (np.asarray(x, float) for x in (prior.coefficient_mean, prior.coefficient_std))
    cross, level = seen.flat @ seen.basis, seen.flat @ seen.stamp
    precision = seen.flat @ seen.flat + background_std**-2
    gram = seen.basis.T @ seen.basis - np.outer(cross, cross) / precision
    value, rotation = np.linalg.eigh(gram)
    value, rotation = np.maximum(value[::-1], 0), rotation[:, ::-1]
    moment = rotation.T @ (seen.stamp @ seen.basis - cross * level / precision)
    flux, coefficients = _linear_estimate(value, rotation.T @ (mean / std), moment, rotation, std)
    num = min(max(int((value * flux**2 > WEAKEST).sum()), 1), num_directions)
    root = np.sqrt(value[:num])
    return (
        moment[:num] / root,
        root[:, None] * rotation[:, :num].T / std,
        flux,
        coefficients,
        level,
        cross / std,
        precision,
    )


def compress_real(directory, prior, *, split=None, num_directions=128):
    """Real stamps reduced to what they say about the prior's coefficients, each seen through its
    own PSF and whitened by its own noise.

    Each stamp keeps the directions of the basis that it shows best; leaving out others loses
    information but is never wrong. A stamp of HST takes 0.15 s and, for a prior of 512 coefficients
    and 128 directions, 0.26 MB. A stamp so masked that nothing is left warns and is left out.

    Parameters
    ----------
    directory : path, as written by `python -m data_pipelines real`
    prior : a basis prior; only its basis, coefficient mean and std, pixel scale and target FWHM are
        used
    split : None (everything), "train" or "validation" (every twentieth row)
    num_directions : int, at most so many a stamp

    Returns
    -------
    Compressed : float32, in order of the catalogue's rows; data [num, r] and forward [num, r, k]
        are padded with zeros, which change no likelihood. flux0 is the norm of a stamp's
        coefficients; centre is measured from the middle of the stored stamp.

    Raises
    ------
    RecordsError : as `read_real_records`; no stamp to use in the split.
    """
    fields, centres = [], []
    for record in read_real_records(directory, batch_size=1, split=split).as_numpy_iterator():
        record = {name: value[0] for name, value in record.items()}
        variance = float(record["variance"])
        seen = _see(
            record["image"],
            record["mask"],
            record["psf"].astype(float),
            variance=variance,
            prior=prior,
            correlation=record["noise_correlation"].astype(float),
            pixel_scale=float(record["pixel_scale"]),
        )
        if not len(seen.stamp):
            warnings.warn(
                f"compress_real: mask of {record['ident'].decode()} must leave a clean"
                " neighbourhood, got none; the stamp is left out",
                stacklevel=2,
            )
            continue
        fields.append(_compress(seen, BACKGROUND_STD * variance**0.5, prior, num_directions))
        centres.append(seen.centre)
    if not fields:
        raise RecordsError(
            Path(directory) / MANIFEST,
            f"compress_real: split must hold stamps, got none in {split!r}; leave it out, or write"
            " more",
        )
    return _stacked(fields, centres, prior.pixel_scale)


def _stacked(fields, centres, prior_scale):
    num = -(-max(len(field[0]) for field in fields) // 32) * 32  # few static shapes
    data, matrix = (
        np.stack([np.pad(field[n], [(0, num - len(field[n]))] + [(0, 0)] * n) for field in fields])
        for n in (0, 1)
    )
    rest = [np.stack([field[n] for field in fields]) for n in range(2, 7)]
    data, matrix, *rest = (
        tf.constant(x, tf.float32)
        for x in (data, matrix, *rest, np.stack(centres), np.full(len(fields), prior_scale))
    )
    visible = tf.tile(tf.range(matrix.shape[-1], dtype=tf.int64)[None], [len(fields), 1])
    return Compressed(data, matrix, visible, *rest)


# The likelihood


def real_log_likelihood(mean, scale, compressed):
    """Log-density [batch] of compressed stamps given the mean and residual scale of their
    coefficients, residual integrated out; up to a constant.

    log N(data; flux F mean, I + flux^2 F diag(scale^2) F') + log N(log(flux / flux0); 0,
    LOG_FLUX_STD^2), where the flux is the one that maximises this sum: profiled under the
    posterior's broad log-normal. The gradient with respect to mean and scale is exact at the
    maximum, where the flux's own is zero. The constant left out is -r/2 log(2 pi). A stamp's noise-
    and PSF-aware ELBO is the mean of this over latents that the encoder draws from `coefficients /
    flux0`, less the KL divergence. 33 stamps of 128 numbers take 0.07 s with their gradient on one
    core.

    Parameters
    ----------
    mean, scale : Tensors [batch, k], of the coefficients of a unit-norm galaxy, as
        `prior.components` gives them
    compressed : Compressed, of the same batch

    Returns
    -------
    Tensor [batch], summed over each stamp's data
    """
    seen, residual = (
        tf.linalg.matvec(compressed.forward, mean),
        compressed.forward * scale[:, None, :],
    )
    spread = tf.matmul(residual, residual, transpose_b=True)
    log_flux = tf.stop_gradient(_best_log_flux(seen, spread, compressed))
    flux = compressed.flux0 * tf.exp(log_flux)
    covariance = flux[:, None, None] ** 2 * spread + tf.eye(spread.shape[-1])
    factor = tf.linalg.cholesky(covariance)
    white = tf.linalg.triangular_solve(factor, (compressed.data - flux[:, None] * seen)[..., None])[
        ..., 0
    ]
    log_determinant = 2 * tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)), -1)
    return -0.5 * (tf.reduce_sum(white**2, -1) + log_determinant + (log_flux / LOG_FLUX_STD) ** 2)


def _best_log_flux(seen, spread, compressed):
    """Log of flux / flux0 [batch] that maximises the likelihood times its prior: Fisher scoring
    with steps held to a factor of two.
    """
    log_flux, size = tf.zeros_like(compressed.flux0), spread.shape[-1]
    for _ in range(FLUX_STEPS):
        flux = (compressed.flux0 * tf.exp(log_flux))[:, None]
        factor = tf.linalg.cholesky(flux[..., None] ** 2 * spread + tf.eye(size))
        inverse = tf.linalg.cholesky_solve(factor, tf.eye(size, batch_shape=[spread.shape[0]]))
        miss, lever = compressed.data - flux * seen, flux * seen
        pulled = tf.linalg.matvec(inverse, miss)
        # With C = I + flux^2 G: C^-1 flux^2 G = I - C^-1, so that no further product is needed.
        slope = (
            tf.reduce_sum(lever * pulled, -1)
            + tf.reduce_sum(miss * pulled, -1)
            - tf.reduce_sum(pulled**2, -1)
            - (size - tf.linalg.trace(inverse))
            - log_flux / LOG_FLUX_STD**2
        )
        information = (
            tf.reduce_sum(lever * tf.linalg.matvec(inverse, lever), -1)
            + 2 * (size - 2 * tf.linalg.trace(inverse) + tf.reduce_sum(inverse**2, [-2, -1]))
            + LOG_FLUX_STD**-2
        )
        log_flux += tf.clip_by_value(slope / information, -LARGEST_STEP, LARGEST_STEP)
    return log_flux
