"""What a telescope does: convolve a galaxy at the prior's resolution with its PSF, and sample it on
the observed pixels.

The prior's images are band-limited by a Gaussian target PSF, so the operation is a multiplication
in Fourier space by

    kernel(k) = psf(k) * pixel(k) / target(k)

and a band-limited (trigonometric) interpolation at the centres of the observed pixels, whatever
their scale and wherever the galaxy lies. Rows and columns are interpolated one after the other.
Agrees with GalSim to 1e-4 of the peak (tests/test_telescope.py).

Geometry: both grids are measured in arcsec from the centre of the observed stamp; `shift` is the
position of the prior image's centre, (x, y).
"""

from typing import Any

import numpy as np
import tensorflow as tf

from astrogen.data.psf import PSF
from astrogen.types import Place, Tensor

# side of the padded grid, in prior pixels: twice the prior's stamp, so that nothing wraps around
# onto the galaxy
GRID = 128
# per grid, along y and along x of a real image's transform
WAVES, HALF_WAVES = np.fft.fftfreq(GRID, 1 / GRID), np.arange(GRID // 2 + 1)
NEGLIGIBLE = 1e-10  # share of the largest power below which a wave is left out


def target_transform(frequency: Any, target_fwhm: float) -> Any:
    """Fourier transform of the Gaussian target PSF at angular frequencies [...] in
    radian/arcsec.
    """
    sigma = target_fwhm / np.sqrt(8 * np.log(2))
    return np.exp(-0.5 * (sigma * frequency) ** 2)


def psf_transform(
    psf_image: np.ndarray, psf_scale: float, frequency_x: np.ndarray, frequency_y: np.ndarray
) -> np.ndarray:
    """Fourier transform of a sampled PSF, by direct summation over its pixels.

    Zero beyond the Nyquist frequency of the PSF image's own grid, where the samples say nothing.

    Parameters
    ----------
    psf_image : array [k, k], k odd, sums to 1
    psf_scale : float, arcsec/pixel of the PSF image
    frequency_x, frequency_y : arrays [m], [n], radian/arcsec

    Returns
    -------
    array [n, m], complex128
    """
    half = psf_image.shape[0] // 2
    position = (np.arange(psf_image.shape[0]) - half) * psf_scale
    nyquist = np.pi / psf_scale * (1 + 1e-9)
    along = (
        np.exp(-1j * frequency_y[:, None] * position) * (np.abs(frequency_y) <= nyquist)[:, None]
    )
    across = (
        np.exp(-1j * frequency_x[:, None] * position) * (np.abs(frequency_x) <= nyquist)[:, None]
    )
    return along @ psf_image @ across.T


def grid_frequencies(prior_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Angular frequencies (radian/arcsec) of the padded grid: (x [GRID // 2 + 1], y [GRID])."""
    return 2 * np.pi * np.fft.rfftfreq(GRID, prior_scale), 2 * np.pi * np.fft.fftfreq(
        GRID, prior_scale
    )


def kernel_transform(
    psf_image: np.ndarray,
    *,
    psf_scale: float,
    pixel_response: float,
    pixel_scale: float,
    prior_scale: float,
    target_fwhm: float,
) -> np.ndarray:
    """Fourier transform of (observed PSF with the pixel response) / (target PSF) on the padded
    grid.

    Parameters
    ----------
    psf_image : array [k, k], k odd, sums to 1
    psf_scale : float, arcsec/pixel of the PSF image
    pixel_response : float, side (arcsec) of the square pixel that the PSF image already contains; 0
        for none
    pixel_scale : float, arcsec/pixel of the observation
    prior_scale : float, arcsec/pixel of the prior's image
    target_fwhm : float, arcsec, of the prior's Gaussian target PSF

    Returns
    -------
    array [GRID, GRID // 2 + 1], complex64
    """
    kx, ky = grid_frequencies(prior_scale)
    psf = psf_transform(psf_image, psf_scale, kx, ky)
    pixel = _box_ratio(ky, pixel_scale, pixel_response)[:, None] * _box_ratio(
        kx, pixel_scale, pixel_response
    )
    target = target_transform(np.hypot(ky[:, None], kx), target_fwhm)
    return (psf * pixel / target).astype(np.complex64)


def _box_ratio(frequency, wanted, contained):
    """Transform of a box of side `wanted` over that of the box that is already there."""
    if np.isclose(wanted, contained):
        return np.ones_like(frequency)
    below = np.sinc(frequency * contained / (2 * np.pi))
    # A box that is already there has zeros; beyond its first one nothing can be restored.
    alive = np.abs(frequency) * contained < 2 * np.pi * 0.95
    return np.where(
        alive, np.sinc(frequency * wanted / (2 * np.pi)) / np.where(alive, below, 1.0), 0.0
    )


def padded_transform(images: Tensor) -> Tensor:
    """Fourier transform of images [..., height, width], flux per prior pixel, in the middle of the
    padded grid: Tensor [..., GRID, GRID // 2 + 1], complex64.
    """
    height, width = images.shape[-2:]
    top, left = (GRID - height) // 2, (GRID - width) // 2
    return tf.signal.rfft2d(
        tf.pad(
            images,
            [[0, 0]] * (len(images.shape) - 2)
            + [[top, GRID - height - top], [left, GRID - width - left]],
        )
    )


def interpolation_matrix(
    num_pixels: int,
    pixel_scale: float | Tensor,
    prior_scale: float | Tensor,
    shift: Tensor,
    grid: int = GRID,
) -> Tensor:
    """Rows of a band-limited interpolation from the padded prior grid to the centres of the
    observed pixels along one axis.

    Pixels outside the padded grid see nothing: their rows are zero.

    Parameters
    ----------
    num_pixels : int, observed pixels along the axis
    pixel_scale, prior_scale : float or Tensor [batch], arcsec/pixel
    shift : Tensor [batch], arcsec, position of the prior's centre from the stamp's centre
    grid : int, even, side of the prior grid

    Returns
    -------
    Tensor [batch, num_pixels, grid]
    """
    shift = tf.convert_to_tensor(shift)
    pixel_scale, prior_scale = (
        tf.broadcast_to(tf.cast(scale, shift.dtype), tf.shape(shift))[:, None]
        for scale in (pixel_scale, prior_scale)
    )
    observed = _centred(num_pixels, shift.dtype)
    # [batch, num_pixels], in prior pixels
    position = (observed * pixel_scale - shift[:, None]) / prior_scale
    offset = position[..., None] - (tf.range(grid, dtype=shift.dtype) - (grid - 1) / 2)
    weight = _dirichlet(offset, grid)
    return tf.where(tf.abs(position)[..., None] <= grid / 2, weight, tf.zeros_like(weight))


def _centred(num_pixels, dtype):
    """Places [num_pixels] of pixels from the middle of their row; an int, or a Tensor of one."""
    return tf.range(num_pixels, dtype=dtype) - (tf.cast(num_pixels, dtype) - 1) / 2


def _dirichlet(offset, grid):
    """Periodic sinc for an even number of samples: sin(pi t) / (grid tan(pi t / grid)), 1 at t = 0.

    Differentiable there too.
    """
    # t is reduced to the nearest period first: float32 sines of large arguments lose the digits
    # that the flux needs.
    period = offset - grid * tf.round(offset / grid)
    near = tf.abs(period) < 1e-3
    safe = tf.where(near, tf.ones_like(period), period)
    nearest = tf.round(safe)
    sign = 1.0 - 2.0 * tf.math.floormod(nearest, 2.0)
    value = sign * tf.sin(np.pi * (safe - nearest)) / (grid * tf.tan(np.pi * safe / grid))
    return tf.where(near, 1.0 - (np.pi**2 / 6 + np.pi**2 / (3 * grid**2)) * period**2, value)


def sample(convolved: Tensor, rows: Tensor, columns: Tensor, flux_scale: Tensor) -> Tensor:
    """Observed flux per pixel from images on the padded grid.

    Parameters
    ----------
    convolved : Tensor [batch or 1, ..., GRID, GRID], flux per prior pixel
    rows, columns : Tensors [batch, height, GRID], [batch, width, GRID]
    flux_scale : Tensor [batch], (pixel_scale / prior_scale)^2: the ratio of the pixels' areas

    Returns
    -------
    Tensor [batch, ..., height, width], flux per observed pixel
    """
    extra = len(convolved.shape) - 3
    among = (slice(None), *[None] * extra)
    rows, columns = rows[among], columns[among]
    scale = tf.reshape(flux_scale, [-1] + [1] * (extra + 2))
    return tf.matmul(tf.matmul(rows, convolved), columns, transpose_b=True) * scale


def render(
    images: Tensor,
    kernels: Tensor,
    *,
    shape: tuple[int, int],
    pixel_scale: float | Tensor,
    prior_scale: float | Tensor,
    shift: Tensor,
    background: float | Tensor = 0.0,
) -> Tensor:
    """What the telescope records of galaxies given at the prior's resolution.

    The trigonometric interpolation is a sum over waves. It is taken as two matrix products that all
    stamps of one pixel scale share; what differs between them, the shift, is a phase of the
    spectrum. That is as fast as an FFT back to the padded grid (benchmarks/throughput.py). The
    waves at the Nyquist frequency itself, which cannot be shifted, are left out.

    Parameters
    ----------
    images : Tensor [batch, height, width], flux per prior pixel
    kernels : Tensor [batch or 1, GRID, GRID // 2 + 1], from `kernel_transform`
    shape : (int, int), height and width of the observed stamp; or two scalar Tensors
    pixel_scale, prior_scale : float or Tensor [batch], arcsec/pixel
    shift : Tensor [batch, 2], arcsec, (x, y) of the galaxy from the stamp's centre
    background : float or Tensor [batch, 1, 1], flux per observed pixel

    Returns
    -------
    Tensor [batch, *shape], flux per observed pixel
    """
    shift, pixel_scale, prior_scale = (
        tf.convert_to_tensor(value, tf.float32) for value in (shift, pixel_scale, prior_scale)
    )
    moved = shift / tf.reshape(prior_scale, [-1, 1])
    ratio = tf.reshape(pixel_scale / prior_scale, [-1, 1])
    # A matrix product of one term: an outer product by broadcasting takes three times as long.
    phases = tf.matmul(
        _phases(moved[:, 1], WAVES)[:, :, None], _phases(moved[:, 0], HALF_WAVES)[:, None]
    )
    spectrum = padded_transform(images) * kernels * phases
    (down, across), (cos_y, sin_y), (cos_x, sin_x) = (
        _seen(shape, moved, ratio),
        _waves(shape[0], ratio, WAVES),
        _waves(shape[1], ratio, HALF_WAVES),
    )
    # Complex products in real arithmetic: real and imaginary part of the sum over x side by side,
    # then the real part of the sum over y.
    along_x = tf.concat([tf.concat([cos_x, sin_x], 1), tf.concat([-sin_x, cos_x], 1)], -1)
    # [batch, GRID, 2 * width]
    summed = tf.matmul(
        tf.concat([tf.math.real(spectrum), tf.math.imag(spectrum)], -1), along_x, transpose_b=True
    )
    along_y = tf.reshape(tf.stack([cos_y, -sin_y], -1), [-1, shape[0], 2 * GRID])
    light = tf.matmul(along_y, tf.reshape(summed, [-1, 2 * GRID, shape[1]]))
    return light * (down[:, :, None] * (across * ratio**2)[:, None]) + background


def _phases(moved, waves):
    """Factors [batch, wave] of a spectrum that is moved by `moved` [batch] prior pixels."""
    angle = tf.constant(-2 * np.pi / GRID * waves, tf.float32) * moved[:, None]
    return tf.complex(tf.cos(angle), tf.sin(angle))


def _waves(num_pixels, ratio, waves):
    """Cosine and sine, each [batch or 1, pixel, wave], at the observed pixels' centres: `ratio`
    [batch or 1, 1] prior pixels apart about the grid's centre; with the
    weights of the inverse transform of a real image (each wave of a half spectrum stands for two).
    """
    position = tf.cast(ratio, tf.float64) * _centred(num_pixels, tf.float64) + (GRID - 1) / 2
    cycles = position[..., None] * (waves / GRID)
    # In float64 and less whole cycles: float32 sines of large arguments lose the digits that the
    # flux needs.
    angle = tf.cast(2 * np.pi * (cycles - tf.round(cycles)), tf.float32)
    weight = np.where((waves > 0) & (len(waves) < GRID), 2, 1) * (np.abs(waves) < GRID / 2) / GRID
    return tf.cos(angle) * weight.astype(np.float32), tf.sin(angle) * weight.astype(np.float32)


def _seen(shape, moved, ratio):
    """1 for the rows [batch, height] and columns [batch, width] whose centres lie on the padded
    grid, 0 for the others, which see nothing.
    """
    sides = (
        _centred(num, tf.float32) * ratio - along[:, None]
        for num, along in zip(shape, (moved[:, 1], moved[:, 0]))
    )
    return [tf.cast(tf.abs(position) <= GRID / 2, tf.float32) for position in sides]


def see_affine(
    spectrum: np.ndarray,
    psf: PSF,
    *,
    pixel_scale: float,
    prior_scale: float,
    target_fwhm: float,
    matrix: np.ndarray,
    centre: Place,
    shape: tuple[int, int],
) -> np.ndarray:
    """What an exposure records of images of unit flux scale whose grid is turned, mirrored or
    sheared against its pixels.

    The trigonometric polynomial of each image is evaluated at the centres of the observed pixels,
    wherever they fall, so nothing is resampled. Agrees with GalSim's drawing through the same
    Jacobian to 1e-3 of the peak (tests/test_telescope.py).

    Parameters
    ----------
    spectrum : array [k, GRID, GRID // 2 + 1], complex, transforms of images on the padded grid
    psf : PSF, which lies along the pixels of the exposure
    pixel_scale, prior_scale, target_fwhm : as in `kernel_transform`
    matrix : array [2, 2], takes (x, y) arcsec along the axes of the images to arcsec along the axes
        of the exposure
    centre : (x, y), arcsec of the images' centre from the stamp's, along the axes of the exposure
    shape : (int, int), height and width of the stamp

    Returns
    -------
    array [height * width, k], float32, flux per observed pixel; zero at pixels beyond the padded
    grid
    """
    kx, ky = grid_frequencies(prior_scale)
    weight = np.full(len(kx), 2.0)
    weight[[0, -1]] = 1.0  # each inner column of a real transform stands for two
    kx, ky, weight = (np.broadcast_to(part, (GRID, len(kx))) for part in (kx, ky[:, None], weight))
    inverse = np.linalg.inv(matrix)
    seen_x, seen_y = (inverse.T @ np.stack([kx.ravel(), ky.ravel()])).reshape(2, *kx.shape)
    kernel = _psf_at(psf.image, psf.pixel_scale, seen_x.ravel(), seen_y.ravel()).reshape(kx.shape)
    kernel = (
        kernel
        * _box_ratio(seen_x, pixel_scale, psf.pixel_response)
        * _box_ratio(seen_y, pixel_scale, psf.pixel_response)
    )
    kernel = kernel * weight / target_transform(np.hypot(kx, ky), target_fwhm)
    power = np.abs(kernel) ** 2 * (np.abs(spectrum) ** 2).max(0)
    keep = power > NEGLIGIBLE * power.max()
    x, y = (np.arange(side) - (side - 1) / 2 for side in shape[::-1])
    # A phase that is linear in both coordinates is a product of two.
    across = np.exp(1j * np.outer(x * pixel_scale - centre[0], seen_x[keep]))
    along = np.exp(1j * np.outer(y * pixel_scale - centre[1], seen_y[keep]))
    middle = (GRID - 1) / 2 * prior_scale
    factor = (
        kernel[keep]
        * np.exp(1j * middle * (kx + ky)[keep])
        / GRID**2
        * (pixel_scale / prior_scale) ** 2
        / abs(np.linalg.det(matrix))
    )
    waves = (along[:, None] * across).reshape(-1, keep.sum())
    parts = np.concatenate([waves.real, -waves.imag], 1).astype(np.float32)
    images = spectrum[:, keep] * factor
    seen = parts @ np.concatenate([images.real, images.imag], 1).astype(np.float32).T
    places = inverse @ np.stack(
        [
            np.broadcast_to(x * pixel_scale - centre[0], shape).ravel(),
            np.repeat(y * pixel_scale - centre[1], shape[1]),
        ]
    )
    seen[(np.abs(places) > GRID / 2 * prior_scale).any(0)] = 0
    return seen


def _psf_at(psf_image, psf_scale, frequency_x, frequency_y):
    """Transform [m] of a sampled PSF at pairs of angular frequencies [m]; see `psf_transform`."""
    position = (np.arange(psf_image.shape[0]) - psf_image.shape[0] // 2) * psf_scale
    nyquist = np.pi / psf_scale * (1 + 1e-9)
    inside = (np.abs(frequency_x) <= nyquist) & (np.abs(frequency_y) <= nyquist)
    along, across = (
        np.exp(-1j * np.outer(frequency[inside], position))
        for frequency in (frequency_y, frequency_x)
    )
    values = np.zeros(len(frequency_x), complex)
    values[inside] = ((along @ psf_image) * across).sum(1)
    return values


def move(images: Tensor, shift: Tensor, prior_scale: float) -> np.ndarray:
    """Images [draw, height, width] moved together by `shift` (x, y) arcsec on their own grid,
    band-limited; light that leaves the stamp is lost.

    prior_scale : float, arcsec/pixel
    """
    height, width = images.shape[1:]
    shift = tf.cast(shift, tf.float32)
    rows = interpolation_matrix(height, prior_scale, prior_scale, shift[1:], grid=height)
    columns = interpolation_matrix(width, prior_scale, prior_scale, shift[:1], grid=width)
    return tf.matmul(tf.matmul(rows, images), columns, transpose_b=True)
