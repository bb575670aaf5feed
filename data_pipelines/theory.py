"""What the convergence maps should look like in the mean: HMCode-2020 through Limber's integral,
the pixels, and the edges of a map.

Spectra are in steradian, l = |2 pi k / theta|, all in the flat sky, as the maps are.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.cosmology import Cosmology, distance, nonlinear_spectrum, scale_factor_at
from data_pipelines.lightcone import ARCMIN, lensing_weight

NUM_DISTANCES = 400  # of Limber's integral, by the midpoint rule: right to 1e-3
ALIASES = (-2, -1, 0, 1, 2)  # of the pixel grid's sampling frequency that are folded back
TABLE_L = np.geomspace(1, 1e5, 300)


def limber_spectrum(l: np.ndarray, cosmology: Cosmology, *, source_redshift: float) -> np.ndarray:
    """The angular power spectrum of the convergence for sources at one redshift.

    Parameters
    ----------
    l : ndarray, any shape
    cosmology : Cosmology
    source_redshift : float, up to 1.2

    Returns
    -------
    ndarray of the same shape, steradian
    """
    chi_source = distance(cosmology.omega_m, source_redshift)
    step = chi_source / NUM_DISTANCES
    chi = step * (np.arange(NUM_DISTANCES) + 0.5)
    weight = lensing_weight(cosmology.omega_m, chi, chi_source)
    power = nonlinear_spectrum(cosmology)(
        np.asarray(l, float)[..., None] / chi, scale_factor_at(cosmology.omega_m, chi)
    )
    return step * np.sum(weight**2 / chi**2 * power, axis=-1)


def expected_power(
    power_fn: Callable[[np.ndarray], np.ndarray],
    *,
    side: int,
    pixel_scale: float,
    window: np.ndarray | None = None,
) -> np.ndarray:
    """The mean of |FFT|^2 A_pixel / N_pixels over maps cut from an endless field and averaged over
    pixels.

    The pixel window, what is folded back from beyond the Nyquist frequency, and the edges of a map
    that is not periodic are all in it, without approximation. Agrees with the mean over Gaussian
    maps cut from larger ones (tests/test_convergence_theory.py).

    Parameters
    ----------
    power_fn : callable l -> angular power spectrum of the field itself, steradian
    side, pixel_scale : int and float, pixels along a side and arcmin per pixel
    window : ndarray [side] or None, w of a window w w^T that maps are multiplied by; the power is
        then |FFT|^2 A_pixel / sum(w^2)^2

    Returns
    -------
    ndarray [side, side] in the order of numpy.fft.fft2, steradian
    """
    pixel, large = pixel_scale * ARCMIN, 8 * side
    cycles = np.fft.fftfreq(large)
    sampled = np.zeros((large, large))
    for i in ALIASES:
        for j in ALIASES:
            first, second = (cycles + i)[:, None], (cycles + j)[None, :]
            l = 2 * np.pi / pixel * np.hypot(first, second)
            l[0, 0] = l[0, 0] or l[0, 1]
            sampled += power_fn(l) * (np.sinc(first) * np.sinc(second)) ** 2
    correlation = np.fft.ifft2(sampled).real
    # Pairs of pixels at a lag are the rarer the larger it is: the autocorrelation of the map's
    # square.
    window = np.ones(side) if window is None else window
    alike = np.correlate(window, window, "full")[side - 1 :] / np.sum(window**2)
    lag = np.abs(np.fft.fftfreq(large, 1 / large)).round().astype(int)
    pairs = np.pad(alike, (0, large // 2 + 1 - side))[lag]
    seen = np.fft.fft2(correlation * pairs[:, None] * pairs[None, :]).real
    return seen[:: large // side, :: large // side]


def expected_map_power(
    cosmology: Cosmology,
    *,
    side: int,
    pixel_scale: float,
    source_redshift: float,
    window: np.ndarray | None = None,
) -> np.ndarray:
    """`expected_power` of HMCode-2020 for sources at one redshift: [side, side], steradian."""
    table = np.log(limber_spectrum(TABLE_L, cosmology, source_redshift=source_redshift))
    return expected_power(
        lambda l: np.exp(np.interp(np.log(l), np.log(TABLE_L), table)),
        side=side,
        pixel_scale=pixel_scale,
        window=window,
    )


def map_power(kappa: np.ndarray, *, pixel_scale: float) -> np.ndarray:
    """|FFT|^2 A_pixel / N_pixels of maps [..., side, side], steradian, in the order of
    numpy.fft.fft2.
    """
    side = kappa.shape[-1]
    return np.abs(np.fft.fft2(kappa)) ** 2 * (pixel_scale * ARCMIN / side) ** 2


def band_means(power: np.ndarray, edges: np.ndarray, *, pixel_scale: float) -> np.ndarray:
    """Means of [..., side, side] over the rings of l between `edges`: [..., len(edges) - 1]."""
    side = power.shape[-1]
    frequencies = 2 * np.pi * np.fft.fftfreq(side, pixel_scale * ARCMIN)
    ring = np.digitize(np.hypot(frequencies[:, None], frequencies[None, :]), edges)
    return np.stack(
        [power[..., ring == number].mean(axis=-1) for number in range(1, len(edges))], axis=-1
    )
