"""What mass does to the shapes behind it: flat-sky lensing of convergence maps, and the beam of a
convergence map. Pure functions; knows nothing of priors.

Conventions. x runs along the columns of a map, y along its rows, both upwards; l = (lx, ly) is
their wave vector. With psi the lensing potential, kappa = (psi_xx + psi_yy) / 2, gamma1 = (psi_xx -
psi_yy) / 2, gamma2 = psi_xy (Kaiser & Squires 1993), so that in Fourier space

    gamma1 = (lx^2 - ly^2) / l^2 kappa,     gamma2 = 2 lx ly / l^2 kappa.

Shapes around a mass are then tangential: -(gamma1 cos 2phi + gamma2 sin 2phi) > 0. A catalogue
whose first axis runs the other way (right ascension to the left) has gamma2 of the other sign. E
modes are what mass makes; B modes are the same shapes turned by 45 degrees, (gamma1, gamma2) ->
(-gamma2, gamma1).

A field is part of a larger periodic grid: mass outside the field shears it too, and opposite edges
must not know of each other.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from astrogen.types import Tensor

MARGIN = 16  # pixels of the periodic grid on each side of the field, at least
FWHM_PER_SIGMA = float(np.sqrt(8 * np.log(2)))


class Grid(NamedTuple):
    """A field of height x width pixels in the middle of a periodic grid of n x m, all even numbers
    of pixels on the grid's sides.
    """

    height: int
    width: int
    n: int
    m: int

    @property
    def top(self) -> int:
        """First row of the field."""
        return (self.n - self.height) // 2

    @property
    def left(self) -> int:
        """First column of the field."""
        return (self.m - self.width) // 2


def make_grid(shape: tuple[int, int], *, margin: int = MARGIN) -> Grid:
    """The smallest Grid with at least `margin` pixels on every side of a field of `shape`, and
    sides that Fourier transforms are fast on.
    """
    height, width = (int(side) for side in shape)
    return Grid(height, width, *(_fast_even(side + 2 * margin) for side in (height, width)))


def _fast_even(size):
    while True:
        left = size
        for factor in (2, 3, 5):
            while left % factor == 0:
                left //= factor
        if left == 1 and size % 2 == 0:
            return size
        size += 1


def crop(maps: Tensor, grid: Grid) -> Tensor:
    """The field [..., height, width] of maps [..., n, m]."""
    return maps[..., grid.top : grid.top + grid.height, grid.left : grid.left + grid.width]


def embed(maps: Tensor, grid: Grid) -> Tensor:
    """Maps [..., n, m] that are those of the field [..., height, width] inside it and zero around
    it.
    """
    below, right = grid.n - grid.height - grid.top, grid.m - grid.width - grid.left
    return tf.pad(maps, [[0, 0]] * (len(maps.shape) - 2) + [[grid.top, below], [grid.left, right]])


def shear_kernels(n: int, m: int) -> np.ndarray:
    """Fourier kernels [2, n, m // 2 + 1], float32, from convergence to (gamma1, gamma2) on the
    half-plane of a real transform.

    Zero for the mean, which makes no shear. At the Nyquist frequency the sign of lx ly is not
    defined, and gamma2 has no power.
    """
    ly, lx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(m)[None]
    square = lx**2 + ly**2
    square[0, 0] = np.inf
    gamma1, gamma2 = (lx**2 - ly**2) / square, 2 * lx * ly / square
    gamma2[n // 2], gamma2[:, m // 2] = 0.0, 0.0
    return np.stack([gamma1, gamma2]).astype(np.float32)


def beam_kernel(n: int, m: int, fwhm: float) -> np.ndarray:
    """Fourier kernel [1, n, m // 2 + 1], float32, of a Gaussian beam of FWHM `fwhm` in pixels; ones
    where it is 0.
    """
    k = 2 * np.pi * np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(m))
    return np.exp(-0.5 * (k * fwhm / FWHM_PER_SIGMA) ** 2).astype(np.float32)[None]


def filtered(maps: Tensor, kernel: Tensor) -> Tensor:
    """Periodic maps [..., n, m] times a real kernel [..., n, m // 2 + 1] in Fourier space."""
    return tf.signal.irfft2d(
        tf.signal.rfft2d(maps) * tf.cast(kernel, tf.complex64), maps.shape[-2:]
    )


def observe(kappa: Tensor, kernels: Tensor, grid: Grid) -> Tensor:
    """What is seen of the convergence in the field: (gamma1, gamma2), or the beam-smoothed
    convergence.

    Agrees with a single Fourier mode, and with GalSim's NFW halo (tests/test_shear.py).

    Parameters
    ----------
    kappa : Tensor [..., n, m]
    kernels : array [plane, n, m // 2 + 1], of `shear_kernels` or `beam_kernel`

    Returns
    -------
    Tensor [..., plane, height, width]
    """
    return crop(filtered(kappa[..., None, :, :], kernels), grid)


def observe_adjoint(maps: Tensor, kernels: Tensor, grid: Grid) -> Tensor:
    """The transpose of `observe`: maps [..., plane, height, width] to [..., n, m]."""
    return tf.reduce_sum(filtered(embed(maps, grid), kernels), -3)


def kaiser_squires(shear: np.ndarray, grid: Grid, *, smoothing: float = 0.0) -> np.ndarray:
    """Convergence from shear by direct inversion (Kaiser & Squires 1993), E and B modes.

    What lies outside the field, and masked pixels (zero here), count as no shear: amplitudes near
    holes and edges are too low. The mean is not known; it is zero over the grid. With `smoothing`
    the maps are those of a Gaussian-smoothed shear.

    Parameters
    ----------
    shear : array [2, height, width], zero where masked
    smoothing : float, FWHM of the Gaussian in pixels

    Returns
    -------
    array [2, height, width], float32: E and B
    """
    kernels = shear_kernels(grid.n, grid.m) * beam_kernel(grid.n, grid.m, smoothing)
    shear = tf.convert_to_tensor(shear, tf.float32)
    turned = tf.stack([shear[1], -shear[0]])  # a B mode turned back by 45 degrees is an E mode
    return np.stack(
        [crop(observe_adjoint(planes, kernels, grid), grid).numpy() for planes in (shear, turned)]
    )
