"""Priors of convergence maps whose every number is known, and fields seen through them, for the
tests of mass maps.
"""

from functools import lru_cache

import numpy as np
import tensorflow as tf

from astrogen.data.field import make_field
from astrogen.instruments.lensing import make_grid, observe, shear_kernels
from astrogen.priors.convergence import TERMS, ConvergencePrior, MapFrame, Theory
from astrogen.training.spectra import no_change

SCALE = 2.3  # arcmin per pixel
AREA = (SCALE * np.pi / 180 / 60) ** 2  # sr
SHIFT = 0.03
SHAPE, SIGMA = (12, 12), 0.01  # of the field, and of its noise
GRID = make_grid(SHAPE)
HOLE = np.zeros(SHAPE, bool)
HOLE[4:7, 5:9] = True
FIDUCIAL = (0.3, 0.8)
RANGE = {"omega_m": (0.2, 0.4), "sigma_8": (0.6, 1.0)}


def spectrum(l):
    """C(l), sr, of the Gaussian toy at sigma_8 = 0.8; it grows as sigma_8^2."""
    return 4e-9 / (1 + (np.asarray(l) / 500.0) ** 1.5)


@lru_cache(maxsize=8)
def toy_prior(kind, *, network=None):
    """A prior of the contract: C(l) = `spectrum` (sigma_8 / 0.8)^2 of the convergence.

    Equal arguments give the same object, whose graphs are built once.
    """
    log_l = np.log(np.geomspace(20, 20000, 120))
    knots = np.zeros((TERMS, len(log_l)))
    knots[0], knots[2] = np.log(spectrum(np.exp(log_l))), 2.0  # the term ln(sigma_8 / 0.8)
    return ConvergencePrior(
        kind=kind,
        name=f"toy-{kind}",
        theory=Theory(log_l, knots),
        log_shift=np.eye(TERMS)[0] * np.log(SHIFT),
        change=no_change() if network else None,
        network=network,
        frame=MapFrame(
            pixel_scale=SCALE,
            image_shape=(12, 12),
            cosmology_range=RANGE,
        ),
        card={"name": "toy", "kind": "convergence", "source_redshift": 1.0},
    )


def grid_spectrum(n=GRID.n, m=GRID.m):
    """C [n, m // 2 + 1], sr, of the Gaussian toy on a grid; tests/test_grid_power.py has the
    proof.
    """
    return toy_prior("gaussian").kappa_power(n, m, [FIDUCIAL])[0].numpy().astype(float)


def seen(kappa, rng, *, sigma, mask=None):
    """The LensingField of noisy shear in the middle of a periodic map kappa [n, m]."""
    shear = observe(kappa, shear_kernels(GRID.n, GRID.m), GRID).numpy()
    return make_field(
        shear + sigma * rng.normal(size=shear.shape), noise=sigma, mask=mask, pixel_scale=SCALE
    )


def draw_kappa(prior, rng, cosmology=FIDUCIAL):
    """A periodic map [n, m] of the prior, on the grid of a field of SHAPE."""
    return prior.decode(
        tf.constant(rng.normal(size=(1, GRID.n, GRID.m)), tf.float32), tf.constant([cosmology])
    )[0]


def dense_posterior(field):
    """Mean and standard deviation [height, width] of a Gaussian field given shear, in float64 with
    full matrices, with its own discrete Fourier transform.
    """
    n = GRID.n
    k = np.fft.fftfreq(n)
    ky, kx = np.meshgrid(k, k, indexing="ij")
    square = np.where(kx**2 + ky**2 == 0, np.inf, kx**2 + ky**2)
    half = grid_spectrum()
    power = np.concatenate([half, half[(-np.arange(n)) % n][:, -2:0:-1]], 1) / AREA
    angle = [
        np.ones((n, n)),
        (kx**2 - ky**2) / square,
        np.where((np.abs(kx) == 0.5) | (np.abs(ky) == 0.5), 0, 2 * kx * ky / square),
    ]
    rows, columns = (
        axis.ravel()
        for axis in np.meshgrid(GRID.top + np.arange(12), GRID.left + np.arange(12), indexing="ij")
    )

    def covariance(a, b):
        table = np.fft.ifft2(power * angle[a] * angle[b]).real
        return table[(rows[:, None] - rows) % n, (columns[:, None] - columns) % n]

    good = np.tile(~field.mask.ravel(), 2)
    of_data = np.block([[covariance(a, b) for b in (1, 2)] for a in (1, 2)])[good][
        :, good
    ] + np.diag(field.variance.ravel()[good])
    cross = np.hstack([covariance(0, 1), covariance(0, 2)])[:, good]
    gain = np.linalg.solve(of_data, cross.T).T
    mean = gain @ field.maps.ravel()[good].astype(float)
    return mean.reshape(SHAPE), np.sqrt(
        np.diag(covariance(0, 0)) - np.einsum("ij,ij->i", gain, cross)
    ).reshape(SHAPE)
