"""A small prior of convergence maps whose spectra are known in closed form, and maps drawn without
astrogen.
"""

import numpy as np

from astrogen.priors.convergence import TERMS, ConvergencePrior, Table
from astrogen.priors.correction import Correction

PIXEL_SCALE = 2.3  # arcmin
AREA = (PIXEL_SCALE * np.pi / 180 / 60) ** 2  # of a pixel, sr
LOG_L = np.linspace(np.log(50), np.log(6700), 24)
SHIFT, MEAN_OF_LOG = 0.04, np.log(0.04) - 0.05
NETWORK = {"channels": 4, "dilations": [1, 2], "smoothing": [2.0]}


def true_spectrum(l, omega_m=0.3, sigma_8=0.8):
    """C_kappa(l) in sr: a power law that scales with the cosmology."""
    return (
        1e-4
        * 2
        * np.pi
        / 1000**2
        * (np.clip(l, 50, 6700) / 1000) ** -1.2
        * (omega_m / 0.3) ** 1.2
        * (sigma_8 / 0.8) ** 2.3
    )


def row(*values):
    """Coefficients [TERMS] of a polynomial of the cosmology: the first ones, and zeros."""
    return np.pad(np.array(values, float), (0, TERMS - len(values)))


def power_law_table(mean, *, factor=1.0):
    """The table of `true_spectrum` times a factor."""
    log_spectrum = np.zeros((TERMS, len(LOG_L)))
    log_spectrum[0], log_spectrum[1], log_spectrum[2] = (
        np.log(factor * true_spectrum(np.exp(LOG_L))),
        1.2,
        2.3,
    )
    log_std = row(np.log(0.015) + 0.5 * np.log(factor), 0.6, 1.15)
    return Table(log_spectrum, row(mean, 0.8, 0.5) * (mean != 0), log_std)


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
    gaussian = power_law_table(0.0)
    table = gaussian if kind == "gaussian" else power_law_table(MEAN_OF_LOG, factor=1 / SHIFT**2)
    return ConvergencePrior(
        kind=kind,
        name="kappa",
        log_l=LOG_L,
        table=table,
        kappa_table=gaussian,
        log_shift=row(np.log(SHIFT), 0.8, 0.5),
        network=network if kind == "network" else None,
        pixel_scale=PIXEL_SCALE,
        image_shape=(64, 64),
        cosmology_range={"omega_m": (0.2, 0.4), "sigma_8": (0.6, 1.0)},
        card={"source_redshift": 1.0},
    )


def simulated_maps(num_simulations, maps_per_simulation, *, seed, side=64, lognormal=True):
    """Maps as the reader gives them, cut from larger periodic fields of `true_spectrum` (before the
    exponential, if lognormal), made by NumPy alone.
    """
    rng = np.random.default_rng(seed)
    n = side + 32
    l = np.hypot(*np.meshgrid(*[2 * np.pi * np.fft.fftfreq(n, np.sqrt(AREA))] * 2, indexing="ij"))
    cosmology, kappa = rng.uniform((0.2, 0.6), (0.4, 1.0), (num_simulations, 2)), []
    for omega_m, sigma_8 in cosmology:
        shift = SHIFT * (omega_m / 0.3) ** 0.8 * (sigma_8 / 0.8) ** 0.5
        gain = np.sqrt(true_spectrum(l, omega_m, sigma_8) / AREA) / shift
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
