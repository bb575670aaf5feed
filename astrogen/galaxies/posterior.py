"""Where prior meets observation: the posterior over a galaxy's latent, flux, position and residual
amplitude.

The prior says  image = basis @ a,  a | latent ~ N(m(latent), amplitude * diag(roughness *
s(latent))^2);  the telescope is linear, so it is applied to the basis, once per PSF. Each stamp is
then compressed to a few hundred numbers that are sufficient for `a`: with the noise-weighted
telescope matrix A and data y, only A'A and A'y enter the likelihood, and the background is
marginalised in them. What is left per posterior evaluation is a small network and a small Cholesky
factor:

    z ~ N(flux * F a, I)   =>   z | latent ~ N(flux * F m, I + flux^2 * amplitude * F diag(s^2) F')

Both the residual coefficients and the background are integrated out exactly, and drawn back exactly
afterwards (`draw_coefficients`).
"""

from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.graphs import any_size
from astrogen.instruments import telescope

# log flux, shift x, shift y, log amplitude: they follow the latent in the vector of parameters
NUM_EXTRA = 4
LOG_FLUX_STD = 2.0  # broad: a factor of seven about the linear estimate
SHIFT_STD = 1.0  # prior pixels, about the measured centroid
# signal-to-noise squared below which directions of the data are dropped: they hold next to nothing
WEAKEST = 1e-1
FAINTEST = 1e-2  # and coefficients are taken as unseen: those are many


class Compressed(NamedTuple):
    """Stamps reduced to what they say about the prior's coefficients. Tensors lead with [batch].

    data [batch, r], forward [batch, r, v], visible [batch, v]: data ~ N(flux * forward @
    a[visible], I); the other coefficients are too faint to be seen. flux0 [batch]: linear estimate
    of the norm of flux * a, coefficients [batch, k]. background_data [batch], background_forward
    [batch, v], background_precision [batch]: the background given a is N((background_data - flux *
    background_forward @ a) / background_precision, 1 / background_precision). centre [batch, 2]:
    arcsec, where the galaxy was assumed; prior_scale [batch], arcsec/pixel.
    """

    data: tf.Tensor
    forward: tf.Tensor
    visible: tf.Tensor
    flux0: tf.Tensor
    coefficients: tf.Tensor
    background_data: tf.Tensor
    background_forward: tf.Tensor
    background_precision: tf.Tensor
    centre: tf.Tensor
    prior_scale: tf.Tensor


def telescope_basis(kernel, prior, *, signal_to_noise):
    """The prior's basis seen through one telescope, on the padded grid, in its directions of
    decreasing visibility.

    Parameters
    ----------
    kernel : array [GRID, GRID // 2 + 1], from `telescope.kernel_transform`
    prior : a basis prior
    signal_to_noise : float, of the brightest stamp: sets how many directions are kept

    Returns
    -------
    images [r, GRID, GRID], rotation [v, r], visible [v] int: whitened coefficients c (that is a =
    std * c) are seen as images' (rotation' c[visible])
    """
    columns = np.full(telescope.GRID // 2 + 1, 2.0, np.float32)
    columns[[0, -1]] = 1.0  # each inner column of a real transform stands for two
    strongest = _strongest(prior) * np.abs(kernel) ** 2 * columns
    keep = np.flatnonzero(strongest > 1e-9 * strongest.max())
    weight = (kernel * np.sqrt(columns)).ravel()[keep].astype(np.complex64)
    modes = prior.basis_transform.reshape(-1, kernel.size)[:, keep] * weight
    modes = np.concatenate([modes.real, modes.imag], 1) / telescope.GRID
    power = (modes**2).sum(1, dtype=np.float64)
    power = power / power.sum() * signal_to_noise**2
    visible = np.sort(np.argsort(-power)[: _rounded((power > FAINTEST).sum(), len(power))])
    modes = modes[visible]
    eigenvalue, rotation = np.linalg.eigh((modes @ modes.T).astype(np.float64))
    num = _rounded(
        (eigenvalue / eigenvalue.sum() * signal_to_noise**2 > WEAKEST).sum(), len(visible)
    )
    rotation = np.ascontiguousarray(rotation[:, ::-1][:, :num]).astype(np.float32)
    real, imaginary = np.split(rotation.T @ modes, 2, 1)
    rotated = np.zeros((num, kernel.size), np.complex64)
    rotated[:, keep] = (real + 1j * imaginary) * (
        telescope.GRID / np.sqrt(np.broadcast_to(columns, kernel.shape)).ravel()[keep]
    )
    return (
        tf.signal.irfft2d(
            tf.constant(rotated.reshape(num, *kernel.shape)),
            fft_length=[telescope.GRID, telescope.GRID],
        ),
        tf.constant(rotation),
        tf.constant(visible),
    )


@lru_cache
def _strongest(prior):
    """The largest power [GRID, GRID // 2 + 1] that any image of the prior's basis has at each
    frequency.
    """
    return (np.abs(prior.basis_transform) ** 2).max(0)


def _rounded(num, most):
    """Up to the next multiple of 16, within [32, most]: few static shapes, few traces."""
    return int(min(max(-(-int(num) // 16) * 16, 32), most))


@any_size
@tf.function(autograph=False)
def _normal_equations(
    images, whitened, inverse_sigma, centre, pixel_scale, prior_scale, background_precision
):
    """A'A [batch, r, r], A'y [batch, r] and the background's part.

    Summed in float64: bright stamps need more digits than float32 has, and where there are fewer
    good pixels than directions A'A is singular and must be so to more digits than the jitter of
    `_factorise`, or it has no Cholesky factor.
    """
    batch, height, width = tf.unstack(tf.shape(whitened))
    rows = telescope.interpolation_matrix(height, pixel_scale, prior_scale, centre[:, 1])
    columns = telescope.interpolation_matrix(width, pixel_scale, prior_scale, centre[:, 0])
    seen = (
        telescope.sample(images[None], rows, columns, (pixel_scale / prior_scale) ** 2)
        * inverse_sigma[:, None]
    )
    seen = tf.reshape(seen, [batch, tf.shape(images)[0], height * width])
    y, flat = tf.reshape(whitened, [batch, -1]), tf.reshape(inverse_sigma, [batch, -1])

    def products(stamp):
        seen, y, flat = (tf.cast(part, tf.float64) for part in stamp)
        sides = tf.linalg.matmul(seen, tf.stack([y, flat], -1))
        level = tf.stack([tf.reduce_sum(flat * y), tf.reduce_sum(flat**2)])
        return tf.matmul(seen, seen, transpose_b=True), sides, level

    # Stamp by stamp: of a whole batch the matrices in float64 would fill the memory.
    gram, sides, sums = tf.map_fn(
        products, (seen, y, flat), fn_output_signature=(tf.float64,) * 3, parallel_iterations=1
    )
    moment, cross = sides[..., 0], sides[..., 1]
    level, precision = sums[:, 0], sums[:, 1] + tf.cast(background_precision, tf.float64)
    gram = gram - cross[:, :, None] * cross[:, None, :] / precision[:, None, None]
    moment = moment - cross * (level / precision)[:, None]
    return gram, moment, cross, level, precision


@any_size
@tf.function(autograph=False)
def _factorise(gram, moment, rotation, visible, mean_white, std):
    """Unit-noise data and forward matrix from the normal equations, and the linear estimate of flux
    * a.

    The estimate assumes c ~ N(flux * mean, flux^2 I) and finds the flux as the norm that it then
    has, since images have unit norm.
    """
    num = tf.shape(gram)[-1]
    rotation64 = tf.cast(rotation, tf.float64)
    mean_white, std = tf.cast(mean_white, tf.float64), tf.cast(std, tf.float64)
    jitter = 1e-9 * tf.linalg.trace(gram) / tf.cast(num, tf.float64)
    factor = tf.linalg.cholesky(gram + jitter[:, None, None] * tf.eye(num, dtype=tf.float64))
    data = tf.linalg.triangular_solve(factor, moment[..., None])[..., 0]
    matrix = tf.matmul(
        factor, rotation64 / tf.gather(std, visible)[:, None], transpose_a=True, transpose_b=True
    )
    mean_rotated = tf.linalg.matvec(rotation64, tf.gather(mean_white, visible), transpose_a=True)
    seen_mean = tf.linalg.matvec(gram, mean_rotated)
    flux = tf.maximum(
        tf.linalg.matvec(moment[:, None], mean_rotated)[:, 0]
        / tf.linalg.matvec(seen_mean[:, None], mean_rotated)[:, 0],
        1e-30,
    )
    noise = 1.0 / tf.sqrt(tf.linalg.trace(gram) / tf.cast(num, tf.float64))
    for _ in range(4):
        flux = tf.maximum(flux, noise)
        system = gram + tf.eye(num, dtype=tf.float64) / flux[:, None, None] ** 2
        rest = moment - flux[:, None] * seen_mean
        solved = tf.linalg.cholesky_solve(tf.linalg.cholesky(system), rest[..., None])[..., 0]
        white = flux[:, None] * mean_white + _scattered(
            tf.linalg.matvec(rotation64, solved),
            tf.tile(visible[None], [tf.shape(gram)[0], 1]),
            tf.shape(std)[0],
        )
        flux = tf.linalg.norm(white * std, axis=1)
    return (
        tf.cast(data, tf.float32),
        tf.cast(matrix, tf.float32),
        tf.cast(flux, tf.float32),
        tf.cast(white * std, tf.float32),
    )


def compress(
    basis,
    prior,
    *,
    whitened,
    inverse_sigma,
    centre,
    pixel_scale,
    prior_scale,
    background_precision,
):
    """Reduce stamps seen through one telescope to what they say about the prior's coefficients.

    Parameters
    ----------
    basis : images, rotation and visible of `telescope_basis`
    whitened, inverse_sigma : arrays [batch, height, width]: data over sigma, and 1 / sigma; both 0
        at masked pixels
    centre : array [batch, 2], arcsec, (x, y) of the galaxy from the stamp's centre
    pixel_scale, prior_scale : arrays [batch], arcsec/pixel
    background_precision : array [batch], 1 / variance of the background's prior, (flux per
        pixel)^-2; 0: flat, inf fixes it at zero

    Returns
    -------
    Compressed
    """
    images, rotation, visible = basis
    tensors = [
        tf.constant(x, tf.float32)
        for x in (whitened, inverse_sigma, centre, pixel_scale, prior_scale, background_precision)
    ]
    gram, moment, cross, level, precision = _normal_equations(images, *tensors)
    std = prior.coefficient_std
    data, matrix, flux, coefficients = _factorise(
        gram, moment, rotation, visible, prior.coefficient_mean / std, std
    )
    background_forward = tf.linalg.matvec(rotation, tf.cast(cross, tf.float32)) / tf.gather(
        std, visible
    )
    return Compressed(
        data,
        matrix,
        tf.tile(visible[None], [len(whitened), 1]),
        flux,
        coefficients,
        tf.cast(level, tf.float32),
        background_forward,
        tf.cast(precision, tf.float32),
        tensors[2],
        tensors[4],
    )


def split(parameters, latent_size):
    """Parameters [..., latent + 4] into latent [..., d], log amplitude as seen [...], shift [...,
    2] (prior pixels) and log of the residual's variance factor [...].
    """
    return (
        parameters[..., :latent_size],
        parameters[..., latent_size],
        parameters[..., latent_size + 1 : latent_size + 3],
        parameters[..., latent_size + 3],
    )


def start(prior, compressed):
    """First parameters from the linear estimate: the encoder's guess, its amplitude, no shift, the
    usual residual amplitude. [batch, latent + 4]
    """
    latent = prior.guess(compressed.coefficients / compressed.flux0[:, None])
    zero = tf.zeros_like(compressed.flux0)[:, None]
    return tf.concat([latent, zero, zero, zero, zero + prior.log_amplitude_mean], 1)


def _flux(compressed, seen_unit, log_amplitude):
    """The flux [batch, 1] that the amplitude stands for.

    The parameter is the amplitude of the galaxy *as seen*, relative to that of the linear estimate,
    because that is what the data measure. With the flux itself the posterior is a curved ridge
    (flux times the light of the latent's image), along which a normal approximation is biased high
    by several percent and twice too wide. Given the latent the two logarithms differ by a constant,
    so the density is the same.
    """
    return (
        tf.norm(seen_by(compressed, compressed.coefficients), axis=1)
        * tf.exp(log_amplitude)
        / tf.norm(seen_unit, axis=1)
    )[:, None]


def predict(prior, compressed, parameters):
    """Given parameters: mean and scale [batch, k] of flux * a, mean [batch, r] of the data, and the
    residual matrix [batch, r, k] (data minus mean is
    the matrix times standard normals, plus unit noise)."""
    latent, log_flux, shift, log_amplitude = split(parameters, prior.latent_size)
    mean, scale = prior.components(latent)
    mean = prior.move_coefficients(mean, shift)
    seen = seen_by(compressed, mean)
    flux = _flux(compressed, seen, log_flux)
    scale = flux * tf.exp(0.5 * log_amplitude)[:, None] * prior.roughness * scale
    return (
        flux * mean,
        scale,
        flux * seen,
        compressed.forward * _visible(compressed, scale)[:, None, :],
    )


def _visible(compressed, values):
    """The visible ones of values [batch, ..., k]: [batch, ..., v]."""
    return tf.gather(values, compressed.visible, axis=-1, batch_dims=1)


def _scattered(values, visible, num):
    """Values [batch, v] at their places among `num` zeros: [batch, num]."""
    batch, visibles = tf.unstack(tf.shape(values))
    rows = tf.tile(tf.range(batch)[:, None], [1, visibles])
    return tf.scatter_nd(tf.stack([rows, tf.cast(visible, tf.int32)], -1), values, [batch, num])


def seen_by(compressed, coefficients):
    """What the data would be, without noise, for coefficients [batch, k] of flux * a."""
    return tf.linalg.matvec(compressed.forward, _visible(compressed, coefficients))


def _factor(residual):
    """Cholesky factor [batch, r, r] of I + residual residual'."""
    return tf.linalg.cholesky(
        tf.matmul(residual, residual, transpose_b=True) + tf.eye(tf.shape(residual)[-2])
    )


@tf.custom_gradient
def log_normal(miss, residual):
    """Log-density [batch] of N(0, I + residual residual') at miss [batch, r], up to a constant.

    With C the covariance and w = C^-1 miss, its gradients are -w and (w w' - C^-1) residual: a
    third cheaper than going back through the Cholesky factor.
    """
    factor = _factor(residual)
    white = tf.linalg.triangular_solve(factor, miss[..., None])
    value = -0.5 * tf.reduce_sum(white**2, [1, 2]) - tf.reduce_sum(
        tf.math.log(tf.linalg.diag_part(factor)), -1
    )

    def gradient(upstream):
        solved = tf.linalg.triangular_solve(factor, white, adjoint=True)
        outer = tf.matmul(solved, tf.matmul(solved, residual, transpose_a=True))
        inner = tf.linalg.cholesky_solve(factor, residual)
        return -upstream[:, None] * solved[..., 0], upstream[:, None, None] * (outer - inner)

    return value, gradient


def likelihood(prior, compressed, parameters):
    """The distribution of `compressed.data` given parameters [batch, p], one of TensorFlow
    Probability's. `log_density` says the same with a cheaper gradient (tests/test_posterior.py).
    """
    distributions = import_module("astrogen.priors.distributions")
    _, _, seen, residual = predict(prior, compressed, parameters)
    return distributions.correlated_normal(seen, _factor(residual))


def log_prior(prior, parameters):
    """Log-density [batch] of the prior at the parameters, up to a constant."""
    latent, log_flux, shift, log_amplitude = split(parameters, prior.latent_size)
    return -0.5 * (
        tf.reduce_sum(latent**2, -1)
        + (log_flux / LOG_FLUX_STD) ** 2
        + tf.reduce_sum((shift / SHIFT_STD) ** 2, -1)
        + ((log_amplitude - prior.log_amplitude_mean) / prior.log_amplitude_std) ** 2
    )


def log_density(prior, compressed, parameters):
    """Log of the unnormalised posterior density [batch] at parameters [batch, latent + 4], with a
    and background integrated out.
    """
    _, _, seen, residual = predict(prior, compressed, parameters)
    log_likelihood = log_normal(compressed.data - seen, residual)
    return log_likelihood + log_prior(prior, parameters)


def curvature(prior, compressed, parameters):
    """Fisher information of the data plus prior precision [batch, p, p]: the Gauss-Newton matrix of
    the negative log-density.

    For data ~ N(seen, C) it is J' C^-1 J + 1/2 tr(C^-1 dC C^-1 dC) (Kay 1993, eq. 3.31). Since C =
    I + F diag(v) F' depends on the parameters through the residual variances v alone, the trace is
    D (Q * Q) D' with Q = F' C^-1 F, * elementwise, and D the derivatives of v. Without it the
    Laplace approximation is useless wherever the latent decides how rough a galaxy is rather than
    where its light lies.
    """
    return information(*slopes(prior, compressed, parameters)) + tf.linalg.diag(
        prior_precision(prior)
    )


def information(jacobian, variance_slope, unit_forward, residual):
    """Fisher information [batch, p, p] of the data, from what `slopes` returns."""
    factor = _factor(residual)
    white = tf.linalg.triangular_solve(factor, jacobian)
    seen_basis = tf.linalg.triangular_solve(factor, unit_forward)
    sensitivity = tf.matmul(seen_basis, seen_basis, transpose_a=True) ** 2
    rough = tf.matmul(tf.matmul(variance_slope, sensitivity), variance_slope, transpose_b=True)
    return tf.matmul(white, white, transpose_a=True) + 0.5 * rough


def prior_precision(prior):
    """Inverse variances [p] of the prior of the parameters."""
    return tf.constant(
        np.r_[
            np.ones(prior.latent_size),
            LOG_FLUX_STD**-2,
            SHIFT_STD**-2,
            SHIFT_STD**-2,
            prior.log_amplitude_std**-2,
        ],
        tf.float32,
    )


def slopes(prior, compressed, parameters):
    """How the data's mean and covariance depend on the parameters: what `curvature` is made of.

    Returns
    -------
    jacobian [batch, r, p] of the mean; variance_slope [batch, p, v] of the residual's variances at
    unit flux; unit_forward [batch, r, v], forward times flux, through which these are seen;
    residual [batch, r, v] as of `predict`
    """
    latent, log_flux, shift, log_amplitude = split(parameters, prior.latent_size)
    # slopes [batch, d, k]
    mean, scale, mean_slope, scale_slope = prior.components_and_jacobian(latent)
    _, deviation, seen, residual = predict(prior, compressed, parameters)
    moved = prior.move_coefficients(mean, shift)
    flux = _flux(compressed, seen_by(compressed, moved), log_flux)[:, None]
    columns = flux * tf.concat(
        [
            prior.move_coefficients(mean_slope, shift[:, None, :]),
            tf.zeros_like(moved)[:, None],
            prior.move_slopes(mean, shift),
        ],
        1,
    )
    # [batch, r, d + 3], at fixed flux
    jacobian = tf.matmul(compressed.forward, _visible(compressed, columns), transpose_b=True)
    # The flux keeps the amplitude as seen, so it moves against whatever brightens the galaxy: d log
    # flux of each parameter.
    rate = -tf.linalg.matvec(jacobian, seen, transpose_a=True) / tf.reduce_sum(
        seen**2, -1, keepdims=True
    )
    rate += tf.one_hot(prior.latent_size, prior.latent_size + 3)
    jacobian += seen[..., None] * rate[:, None]
    # Of unit flux: the fourth power of a forward matrix in the observation's units leaves the range
    # of float32.
    unit = deviation[:, None] / flux
    variance_slope = 2 * unit**2 * tf.pad(rate, [[0, 0], [0, 1]])[..., None]  # [batch, p, k]
    spread = tf.exp(0.5 * log_amplitude)[:, None, None]
    variance_slope += tf.concat(
        [2 * unit * spread * prior.roughness * scale_slope, tf.zeros_like(columns[:, :3]), unit**2],
        1,
    )
    return (
        tf.pad(jacobian, [[0, 0], [0, 0], [0, 1]]),
        _visible(compressed, variance_slope),
        flux * compressed.forward,
        residual,
    )


def draw_coefficients(prior, compressed, parameters, normals):
    """Exact draws of flux * (moved) a [batch, k] and of the background [batch] given parameters,
    one for each row (Matheron's rule).

    normals : Tensor [batch, k + r + 1], standard normals
    """
    mean, scale, seen, residual = predict(prior, compressed, parameters)
    sizes = [scale.shape[-1], tf.shape(residual)[-2], 1]
    wild, noise, level_noise = tf.split(normals, sizes, -1, num=3)
    update = matheron_update(compressed.data - seen, residual, _visible(compressed, wild), noise)
    coefficients = mean + scale * (wild + _scattered(update, compressed.visible, scale.shape[-1]))
    level = (
        compressed.background_data
        - tf.reduce_sum(compressed.background_forward * _visible(compressed, coefficients), -1)
    ) / compressed.background_precision
    return coefficients, level + level_noise[:, 0] * tf.math.rsqrt(compressed.background_precision)


def matheron_update(miss, residual, wild, noise):
    """What the data [batch, r] less their mean add to standard normals [batch, k] seen through the
    residual matrix [batch, r, k], given draws of both from the prior and the noise
    (Matheron's rule)."""
    rest = miss - tf.linalg.matvec(residual, wild) - noise
    return tf.linalg.matvec(
        residual,
        tf.linalg.cholesky_solve(_factor(residual), rest[..., None])[..., 0],
        transpose_a=True,
    )


def stack(parts):
    """Several Compressed as one batch: data and forward are padded with zeros, which say
    nothing.
    """
    rows, columns = (
        max(part.forward.shape[1] for part in parts),
        max(part.forward.shape[2] for part in parts),
    )

    def widened(part):
        more_rows, more_columns = rows - part.forward.shape[1], columns - part.forward.shape[2]
        return part._replace(
            data=tf.pad(part.data, [[0, 0], [0, more_rows]]),
            forward=tf.pad(part.forward, [[0, 0], [0, more_rows], [0, more_columns]]),
            visible=tf.pad(part.visible, [[0, 0], [0, more_columns]]),
            background_forward=tf.pad(part.background_forward, [[0, 0], [0, more_columns]]),
        )

    return Compressed(*(tf.concat(column, 0) for column in zip(*map(widened, parts), strict=True)))


@lru_cache
def target(prior):
    """(log density, curvature) of a prior's posterior as functions of (parameters, Compressed):
    what inference sees. The same pair each time, so that
    nothing is traced twice."""

    def log_density_fn(parameters, compressed):
        return log_density(prior, compressed, parameters)

    def curvature_fn(parameters, compressed):
        return curvature(prior, compressed, parameters)

    return log_density_fn, curvature_fn
