"""From the angular power spectrum of a convergence to the power of its pixels on a grid, and to
that of the logarithm of a lognormal field.

A grid is periodic, the sky is not. Of the sky's covariance a grid of n pixels can keep the lags up
to n / 2, and here it keeps exactly these: the variance of a pixel is the same on every grid, the
lowest modes hold the power of all waves that are longer, and nothing has to be fitted.
"""

import numpy as np
import scipy  # interpolation and transforms take a third of a second to load: on first use

ARCMIN = np.pi / 180 / 60  # radian
ALIASES = (-2, -1, 0, 1, 2)  # of the pixel grid's sampling frequency that are folded back
FEWEST, BEYOND = 512, 256  # pixels of a side on which covariances are computed, and those that keep
# its mirror images away
NUM_FINE = 4000  # of the spectrum's interpolation, linear in log l
MIDDLE = 0.3826  # of one mode's cell, its mean distance from the origin: where l = 0 is looked up
LEAST = 1e-4  # of the mean power of a grid's modes, below which no mode is let fall


def pixel_covariance(
    log_l: np.ndarray, log_spectrum: np.ndarray, shape: tuple[int, int], *, pixel_scale: float
) -> np.ndarray:
    """Covariance of the means over pixels of an endless field, at lags up to half a grid.

    The pixel window and what is folded back from beyond the Nyquist frequency are in it; agrees
    with integrals over pairs of pixels (tests/test_grid_power.py).

    Parameters
    ----------
    log_l : array [knots]; log_spectrum : array [..., knots], of the field itself, steradian;
        constant beyond the first and the last knot
    shape : (n, m), even numbers of pixels
    pixel_scale : float, arcmin per pixel

    Returns
    -------
    array [..., n // 2 + 1, m // 2 + 1]
    """
    sides = [max(FEWEST, 2 * side + BEYOND) for side in shape]
    cycles = [np.arange(side // 2 + 1) / side for side in sides]
    fine = np.linspace(log_l[0], log_l[-1], NUM_FINE)
    table = np.exp(scipy.interpolate.CubicSpline(log_l, log_spectrum, axis=-1)(fine)).reshape(
        -1, NUM_FINE
    )
    power = np.zeros((len(table), *(len(axis) for axis in cycles)))
    for i in ALIASES:
        for j in ALIASES:
            first, second = (cycles[0] + i)[:, None], (cycles[1] + j)[None]
            l = 2 * np.pi / (pixel_scale * ARCMIN) * np.hypot(first, second)
            l[0, 0] = l[0, 0] or MIDDLE * np.sqrt(l[0, 1] * l[1, 0])
            place = (np.log(l) - fine[0]) * ((NUM_FINE - 1) / (fine[-1] - fine[0]))
            place = np.clip(place, 0, NUM_FINE - 1)
            low = np.minimum(place.astype(np.int32), NUM_FINE - 2)
            place -= low
            window = (np.sinc(first) * np.sinc(second)) ** 2
            for row, values in zip(power, table, strict=True):
                row += window * (values[low] + place * (values[low + 1] - values[low]))
    scale = 1 / (sides[0] * sides[1] * (pixel_scale * ARCMIN) ** 2)
    kept = np.s_[: shape[0] // 2 + 1, : shape[1] // 2 + 1]
    covariance = np.stack([scipy.fft.dctn(row, type=1)[kept] * scale for row in power])
    return covariance.reshape(*np.shape(log_spectrum)[:-1], *covariance.shape[1:])


def grid_power(covariance: np.ndarray, *, pixel_scale: float) -> np.ndarray:
    """Power C(l) = <|FFT|^2> A_pix / N_pix of the modes of a periodic grid whose covariance at lags
    up to half of its sides is given.

    Parameters
    ----------
    covariance : array [..., n // 2 + 1, m // 2 + 1]

    Returns
    -------
    array [..., n, m // 2 + 1], steradian, on the half-plane of a real transform; positive
    """
    power = _transform(covariance, pixel_scale)
    return np.maximum(power, LEAST * power.mean((-2, -1), keepdims=True))


def mode_counts(n: int, m: int) -> np.ndarray:
    """How many modes of the full transform each of the half-plane [n, m // 2 + 1] stands for."""
    columns = np.full(m // 2 + 1, 2.0)
    columns[[0, m // 2]] = 1.0
    return np.broadcast_to(columns, (n, m // 2 + 1))


def pixel_variance(power: np.ndarray, shape: tuple[int, int], *, pixel_scale: float) -> np.ndarray:
    """Variance [...] of a pixel of a periodic grid, of the power [..., n, m // 2 + 1] of modes."""
    area = (pixel_scale * ARCMIN) ** 2
    return np.sum(power * mode_counts(*shape), (-2, -1)) / (shape[0] * shape[1] * area)


def windowed_power(covariance: np.ndarray, window: np.ndarray, *, pixel_scale: float) -> np.ndarray:
    """Mean of |FFT|^2 A_pix / sum(w^2) over square maps that are cut from an endless field and
    multiplied by a window w w^T.

    Parameters
    ----------
    covariance : array [..., side, side] at the lags inside a map
    window : array [side], ones for a map as it is

    Returns
    -------
    array [..., side, side // 2 + 1], steradian
    """
    side = len(window)
    pairs = np.correlate(window, window, "full")[side - 1 :] / np.sum(window**2)
    weighted = covariance * pairs[:, None] * pairs
    # On twice the grid no lag meets its mirror image; every second mode is one of the map's.
    weighted = np.pad(weighted, [(0, 0)] * (weighted.ndim - 2) + [(0, 1), (0, 1)])
    return _transform(weighted, pixel_scale)[..., ::2, ::2]


def _transform(covariance, pixel_scale):
    """Power [..., n, m // 2 + 1] of a grid with a covariance [..., n // 2 + 1, m // 2 + 1]."""
    power = scipy.fft.dctn(covariance, type=1, axes=(-2, -1)) * (pixel_scale * ARCMIN) ** 2
    side = 2 * (power.shape[-2] - 1)
    return power[..., np.abs(np.fft.fftfreq(side) * side).round().astype(int), :]
