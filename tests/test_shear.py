"""Lensing against single Fourier modes, GalSim's NFW halo and a Gaussian lens in closed form;
grids, beams and the inversion.
"""

import galsim
import numpy as np
import pytest

from astrogen.instruments.lensing import (
    Grid,
    beam_kernel,
    crop,
    embed,
    filtered,
    kaiser_squires,
    make_grid,
    observe,
    observe_adjoint,
    shear_kernels,
)

SCALE = 1.0  # arcmin per pixel of the halo's grid


def whole(n, m):
    return Grid(n, m, n, m)


@pytest.mark.parametrize(
    "waves", [(3, 0), (0, 4), (5, 5), (-2, 7)], ids=["along x", "along y", "diagonal", "oblique"]
)
def test_shear_of_a_single_mode(waves):
    """kappa = cos(l x + delta) has gamma1 + i gamma2 = exp(2 i phi_l) kappa."""
    n, m = 32, 48
    y, x = np.mgrid[:n, :m]
    across, up = 2 * np.pi * waves[0] / m, 2 * np.pi * waves[1] / n
    kappa = np.cos(across * x + up * y + 0.4)
    angle = np.arctan2(up, across)
    gamma1, gamma2 = observe(kappa.astype(np.float32), shear_kernels(n, m), whole(n, m)).numpy()
    np.testing.assert_allclose(gamma1, np.cos(2 * angle) * kappa, atol=3e-6)
    np.testing.assert_allclose(gamma2, np.sin(2 * angle) * kappa, atol=3e-6)


@pytest.mark.parametrize(
    "waves", [(24, 5), (7, 16), (24, 16), (24, 0)], ids=["columns", "rows", "both", "one wave"]
)
def test_a_mode_at_the_nyquist_frequency_has_no_gamma2(waves):
    """It alternates from pixel to pixel and is its own mirror image, which has gamma2 of the other
    sign; gamma1 is that of any mode.
    """
    n, m = 32, 48
    y, x = np.mgrid[:n, :m]
    across, up = 2 * np.pi * waves[0] / m, 2 * np.pi * waves[1] / n
    kappa = np.cos(across * x) * np.cos(up * y)
    gamma1, gamma2 = observe(kappa.astype(np.float32), shear_kernels(n, m), whole(n, m)).numpy()
    expected = (across**2 - up**2) / (across**2 + up**2) * kappa
    np.testing.assert_allclose(gamma1, expected, atol=3e-6)
    assert np.abs(gamma2).max() < 3e-6


def test_gamma2_has_no_power_at_the_nyquist_frequencies():
    """The real half of a transform hides what a kernel does to its last column from `observe`."""
    gamma2 = shear_kernels(32, 48)[1]
    assert not gamma2[:, 24].any() and not gamma2[16].any()
    assert np.count_nonzero(gamma2) == 30 * 23  # all others but those along the axes


@pytest.fixture(scope="module")
def halo():
    """A grid [512, 512] of a GalSim NFW halo off its centre: convergence and shear where it is not
    too steep for pixels, and not close to the edge.
    """
    n = 512
    lens = galsim.NFWHalo(
        mass=1e15, conc=4, redshift=0.3, halo_pos=galsim.PositionD(0, 0), omega_m=0.3
    )
    y, x = (np.mgrid[:n, :n] - n / 2 + 0.5) * SCALE * 60
    position = (x.ravel(), y.ravel())
    kappa = lens.getConvergence(position, z_s=1.0).reshape(n, n)
    gamma1, gamma2 = (
        component.reshape(n, n) for component in lens.getShear(position, z_s=1.0, reduced=False)
    )
    return kappa, np.stack([gamma1, gamma2]), np.hypot(x, y) / 60


def test_shear_of_a_halo_agrees_with_galsim(halo):
    """Sign, factor and orientation.

    The pixels that hold the cusp, and the halo beyond the grid, cost one or two per cent.
    """
    kappa, shear, radius = halo
    ours = observe(kappa.astype(np.float32), shear_kernels(512, 512), whole(512, 512)).numpy()
    ring = (radius > 4) & (radius < 40)
    for component in (0, 1):
        slope = (ours[component] * shear[component])[ring].sum() / (shear[component] ** 2)[
            ring
        ].sum()
        assert slope == pytest.approx(1, abs=0.02)
        assert np.corrcoef(ours[component][ring], shear[component][ring])[0, 1] > 0.999


def test_shear_of_a_gaussian_lens_is_tangential_and_exact():
    """kappa = exp(-r^2 / 2 s^2): gamma_t = mean kappa inside r - kappa (Kaiser 1995)."""
    n, width = 128, 6.0
    y, x = np.mgrid[:n, :n] - n / 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    kappa = np.exp(-(radius**2) / (2 * width**2))
    gamma1, gamma2 = observe(kappa.astype(np.float32), shear_kernels(n, n), whole(n, n)).numpy()
    tangential, cross = (
        -(gamma1 * np.cos(2 * angle) + gamma2 * np.sin(2 * angle)),
        gamma1 * np.sin(2 * angle) - gamma2 * np.cos(2 * angle),
    )
    ring = (radius > 2) & (radius < 20)
    inside = 2 * width**2 / np.where(ring, radius, 1) ** 2 * (1 - kappa)
    # periodic copies of the lens are 128 pixels away
    np.testing.assert_allclose(tangential[ring], (inside - kappa)[ring], atol=0.006)
    assert np.abs(cross[ring]).max() < 0.006


def test_mass_outside_the_field_shears_it_and_mass_at_one_edge_does_not_reach_the_other():
    grid = make_grid((32, 32))
    kappa = np.zeros((grid.n, grid.m), np.float32)
    kappa[grid.top + 16, grid.left + 1] = 1  # at the left edge of the field
    near_right = np.abs(
        observe(kappa, shear_kernels(grid.n, grid.m), grid).numpy()[:, 16, -1]
    ).max()
    wrapped = np.abs(
        observe(
            kappa[grid.top : grid.top + 32, grid.left : grid.left + 32],
            shear_kernels(32, 32),
            whole(32, 32),
        ).numpy()[:, 16, -1]
    ).max()
    assert near_right < 1e-2 * wrapped
    outside = np.roll(kappa, -6, 1)
    assert np.abs(observe(outside, shear_kernels(grid.n, grid.m), grid)[0, 16, 0]) > 1e-3


@pytest.mark.parametrize("shape", [(64, 64), (46, 45), (17, 30)], ids=["square", "odd", "small"])
def test_a_grid_is_even_and_larger_on_every_side(shape):
    grid = make_grid(shape, margin=12)
    assert grid.n % 2 == 0 and grid.m % 2 == 0
    assert (
        min(grid.top, grid.left, grid.n - grid.height - grid.top, grid.m - grid.width - grid.left)
        >= 12
    )
    assert (grid.height, grid.width) == shape


@pytest.mark.parametrize("kind", ["shear", "beam"])
def test_the_adjoint_is_the_transpose(kind, rng):
    grid = make_grid((10, 13), margin=4)
    kernels = shear_kernels(grid.n, grid.m) if kind == "shear" else beam_kernel(grid.n, grid.m, 3.0)
    kappa, maps = (
        rng.normal(size=(2, grid.n, grid.m)).astype(np.float32),
        rng.normal(size=(2, len(kernels), 10, 13)).astype(np.float32),
    )
    forward, back = (
        observe(kappa, kernels, grid).numpy(),
        observe_adjoint(maps, kernels, grid).numpy(),
    )
    np.testing.assert_allclose(
        (forward * maps).sum((1, 2, 3)), (kappa * back).sum((1, 2)), rtol=1e-4
    )


def test_a_beam_is_a_gaussian_of_its_fwhm():
    n, fwhm = 64, 7.0
    point = np.zeros((n, n), np.float32)
    point[32, 32] = 1
    seen = observe(point, beam_kernel(n, n, fwhm), whole(n, n)).numpy()[0]
    y, x = np.mgrid[:n, :n] - 32
    variance = fwhm**2 / (8 * np.log(2))
    np.testing.assert_allclose(
        seen, np.exp(-(x**2 + y**2) / (2 * variance)) / (2 * np.pi * variance), atol=1e-6
    )
    assert np.array_equal(beam_kernel(n, n, 0.0), np.ones((1, n, n // 2 + 1), np.float32))


def test_embedding_is_undone_by_cropping(rng):
    grid = make_grid((9, 12), margin=3)
    maps = rng.normal(size=(2, 9, 12)).astype(np.float32)
    assert np.array_equal(crop(embed(maps, grid), grid), maps)
    assert np.count_nonzero(embed(maps, grid)) == maps.size


def test_kaiser_squires_undoes_the_shear_and_tells_e_from_b(rng):
    """On a periodic field without noise, up to the mean; shapes turned by 45 degrees are B
    modes.
    """
    n = 48
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    # no power at the Nyquist frequency
    kappa = filtered(rng.normal(size=(n, n)).astype(np.float32), np.exp(-60 * k**2)).numpy()
    kappa -= kappa.mean()
    shear = observe(kappa, shear_kernels(n, n), whole(n, n)).numpy()
    e_mode, b_mode = kaiser_squires(shear, whole(n, n))
    np.testing.assert_allclose(e_mode, kappa, atol=1e-5)
    assert np.abs(b_mode).max() < 1e-5
    e_mode, b_mode = kaiser_squires(np.stack([-shear[1], shear[0]]), whole(n, n))
    np.testing.assert_allclose(b_mode, kappa, atol=1e-5)
    assert np.abs(e_mode).max() < 1e-5


def test_smoothing_of_kaiser_squires_is_that_of_the_map(rng):
    n = 40
    kappa = rng.normal(size=(n, n)).astype(np.float32)
    shear = observe(kappa, shear_kernels(n, n), whole(n, n)).numpy()
    smooth = filtered(kappa - kappa.mean(), beam_kernel(n, n, 4.0)[0]).numpy()
    np.testing.assert_allclose(
        kaiser_squires(shear, whole(n, n), smoothing=4.0)[0], smooth, atol=2e-4
    )
