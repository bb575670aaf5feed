"""A small prior of convergence maps whose spectra are known in closed form, and maps drawn without
astrogen.
"""

import numpy as np

from astrogen.priors.convergence import TERMS, ConvergencePrior, MapFrame, Theory
from astrogen.priors.correction import Correction
from astrogen.training.spectra import no_change

PIXEL_SCALE = 2.3  # arcmin
AREA = (PIXEL_SCALE * np.pi / 180 / 60) ** 2  # of a pixel, sr
LOG_L = np.linspace(np.log(50), np.log(40000), 150)
SHIFT = 0.04
NETWORK = {"channels": 4, "dilations": [1, 2], "smoothing": [2.0]}


def true_spectrum(l, omega_m=0.3, sigma_8=0.8):
    """C_kappa(l) in sr: a power law that bends where pixels end, and scales with the cosmology."""
    l = np.clip(l, 50, 40000)
    return (
        1e-4
        * 2
        * np.pi
        / 1000**2
        * (l / 1000) ** -1.2
        / (1 + (l / 5000) ** 4)
        * (omega_m / 0.3) ** 1.2
        * (sigma_8 / 0.8) ** 2.3
    )


def row(*values):
    """Coefficients [TERMS] of a polynomial of the cosmology: the first ones, and zeros."""
    return np.pad(np.array(values, float), (0, TERMS - len(values)))


def power_law_theory():
    """The Theory of `true_spectrum`."""
    log_spectrum = np.zeros((TERMS, len(LOG_L)))
    log_spectrum[0] = np.log(true_spectrum(np.exp(LOG_L)))
    log_spectrum[1], log_spectrum[2] = 1.2, 2.3
    return Theory(LOG_L, log_spectrum)


def true_covariance(shape, *cosmology, finer=6):
    """Covariance [n // 2 + 1, m // 2 + 1] of the means over pixels of an endless field of
    `true_spectrum`, in real space: pixels of a finer grid, all pairs of those in two pixels.
    """
    side = finer * 4 * max(shape)
    cycles = np.fft.fftfreq(side)
    l = 2 * np.pi * finer / np.sqrt(AREA) * np.hypot(*np.meshgrid(cycles, cycles))
    window = (np.sinc(cycles) * np.sinc(cycles)[:, None]) ** 2
    points = np.fft.ifft2(true_spectrum(l, *cosmology) * window).real * finer**2 / AREA
    offsets = np.arange(1 - finer, finer)
    pairs = (finer - np.abs(offsets)) / finer**2
    rows, columns = ((finer * np.arange(num // 2 + 1))[:, None] + offsets for num in shape)
    return np.einsum(
        "iajb,a,b->ij", points[rows[:, :, None, None], columns[None, None]], pairs, pairs
    )


def true_power(covariance):
    """Power [n, m] of a periodic grid whose lags have a covariance [n // 2 + 1, m // 2 + 1], mode
    by mode: the shorter way around.
    """
    n, m = (2 * (num - 1) for num in covariance.shape)
    lags = [np.minimum(np.arange(side), side - np.arange(side)) for side in (n, m)]
    return np.fft.fft2(covariance[np.ix_(*lags)]).real * AREA


def small_prior(kind="network", *, scale=0.1, seed=1):
    """A prior of one kind; the network's weights are random, those of its last layer of the given
    scale.
    """
    network = Correction(**NETWORK)
    rng = np.random.default_rng(seed)
    network.set_weights(
        [
            rng.normal(size=weight.shape) * (scale if weight.shape[-1] == 1 else 0.3)
            for weight in network.weights
        ]
    )
    return ConvergencePrior(
        kind=kind,
        name="kappa",
        theory=power_law_theory(),
        log_shift=row(np.log(SHIFT), 0.8, 0.5),
        change=no_change() if kind == "network" else None,
        network=network if kind == "network" else None,
        frame=MapFrame(
            pixel_scale=PIXEL_SCALE,
            image_shape=(64, 64),
            cosmology_range={"omega_m": (0.2, 0.4), "sigma_8": (0.6, 1.0)},
        ),
        card={"source_redshift": 1.0},
    )


def simulated_maps(num_simulations, maps_per_simulation, *, seed, side=64, lognormal=True):
    """Maps as the reader gives them, cut from larger periodic fields whose pixels covary as those
    of `true_spectrum` (before the exponential, if lognormal), made by NumPy alone.
    """
    rng = np.random.default_rng(seed)
    n = side + 32
    power = np.maximum(true_power(true_covariance((n, n), finer=4)), 0)
    cosmology, kappa = rng.uniform((0.2, 0.6), (0.4, 1.0), (num_simulations, 2)), []
    for omega_m, sigma_8 in cosmology:
        shift = SHIFT * (omega_m / 0.3) ** 0.8 * (sigma_8 / 0.8) ** 0.5
        growth = true_spectrum(1000, omega_m, sigma_8) / true_spectrum(1000)
        gain = np.sqrt(growth * power / AREA) / shift
        field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(maps_per_simulation, n, n))) * gain).real
        kappa.append(
            shift
            * (np.expm1(field - 0.5 * (gain**2).mean()) if lognormal else field)[:, :side, :side]
        )
    names = np.repeat(np.arange(num_simulations), maps_per_simulation)
    return {
        "kappa": np.concatenate(kappa).astype(np.float32),
        "cosmology": cosmology[names].astype(np.float32),
        "simulation": names,
        "pixel_scale": PIXEL_SCALE,
    }
