"""The simulations' physics: growth, Lagrangian start and particle mesh against closed forms,
integrals, astropy and camb.
"""

import numpy as np
import pytest

pytest.importorskip(
    "jaxpm", reason="the simulations need jaxpm: pip install 'astrogen[simulations]'"
)
pytest.importorskip("camb", reason="the simulations need camb: pip install 'astrogen[simulations]'")
from astropy.cosmology import FlatLambdaCDM
from scipy.integrate import quad

from data_pipelines import particle_mesh
from data_pipelines.cosmology import (
    Cosmology,
    distance,
    growth,
    growth_slope,
    linear_spectrum,
    nonlinear_spectrum,
    scale_factor_at,
)

SIDE, BOX = 16, 64.0
WAVE = 2 * np.pi / BOX


@pytest.fixture(scope="module")
def grid():
    return np.stack(np.meshgrid(*[np.arange(SIDE) * BOX / SIDE] * 3, indexing="ij"))


@pytest.fixture(scope="module")
def fiducial():
    return Cosmology(0.3, 0.8)


@pytest.mark.parametrize("omega_m", [0.2, 0.3, 0.4])
def test_growth_is_the_integral_of_heath(omega_m):
    def mode(a):
        return (
            np.sqrt(omega_m / a**3 + 1 - omega_m)
            * quad(lambda x: (omega_m / x + (1 - omega_m) * x**2) ** -1.5, 0, a)[0]
        )

    a = np.linspace(0.1, 1, 7)
    np.testing.assert_allclose(growth(omega_m, a), [mode(one) / mode(1) for one in a], rtol=1e-7)


@pytest.mark.parametrize("omega_m", [0.2, 0.3, 0.4])
def test_distances_are_those_of_astropy(omega_m):
    redshift = np.array([0.1, 0.5, 1.0, 1.5])
    chi = FlatLambdaCDM(H0=100, Om0=omega_m).comoving_distance(redshift).value
    np.testing.assert_allclose(distance(omega_m, redshift), chi, rtol=1e-6)
    np.testing.assert_allclose(scale_factor_at(omega_m, chi), 1 / (1 + redshift), rtol=1e-6)


def test_growth_slope_is_the_derivative():
    a = np.linspace(0.1, 1, 7)
    np.testing.assert_allclose(
        growth_slope(0.3, a), (growth(0.3, a + 1e-5) - growth(0.3, a - 1e-5)) / 2e-5, rtol=1e-6
    )


def test_spectra_have_the_cosmologys_sigma_8_and_meet_on_large_scales(fiducial):
    k = np.geomspace(1e-4, 9, 4000)
    top_hat = 3 * (np.sin(8 * k) - 8 * k * np.cos(8 * k)) / (8 * k) ** 3
    assert np.sqrt(
        np.trapezoid(linear_spectrum(fiducial)(k) * top_hat**2 * k**3 / (2 * np.pi**2), np.log(k))
    ) == pytest.approx(0.8, rel=1e-3)
    large = np.array([0.005, 0.02])
    np.testing.assert_allclose(
        nonlinear_spectrum(fiducial)(large, 0.5),
        growth(0.3, 0.5) ** 2 * linear_spectrum(fiducial)(large),
        rtol=0.01,
    )
    assert linear_spectrum(fiducial)(0.0) == 0


def test_modes_have_the_spectrum_they_were_drawn_from(rng):
    _, squared = particle_mesh.wavenumbers(32, BOX)
    expected = (1 + squared) ** -1.0 * 32**6 / BOX**3
    drawn = [
        np.abs(
            particle_mesh.draw_modes(lambda k: 1 / (1 + k**2), num_side=32, box_size=BOX, rng=rng)
        )
        ** 2
        for _ in range(4)
    ]
    ratio = np.mean(drawn, axis=0) / expected
    assert ratio.mean() == pytest.approx(1, abs=0.02) and ratio.std() == pytest.approx(
        0.5, abs=0.05
    )
    fixed = particle_mesh.draw_modes(
        lambda k: 1 / (1 + k**2), num_side=32, box_size=BOX, rng=rng, fixed=True
    )
    np.testing.assert_allclose(np.abs(fixed) ** 2, expected, rtol=1e-6)


def test_a_plane_wave_moves_as_zeldovich_says(grid):
    first, second = particle_mesh.displacements(np.fft.rfftn(0.3 * np.cos(WAVE * grid[0])), BOX)
    np.testing.assert_allclose(first[0], -0.3 / WAVE * np.sin(WAVE * grid[0]), atol=1e-9)
    np.testing.assert_allclose(first[1:], 0, atol=1e-9)
    np.testing.assert_allclose(second, 0, atol=1e-9)


def test_crossed_waves_meet_at_second_order(grid):
    x, y, _ = grid
    first, second = particle_mesh.displacements(
        np.fft.rfftn(0.3 * (np.cos(WAVE * x) + np.cos(WAVE * y))), BOX
    )
    # The Laplacian of phi_2 is phi_xx phi_yy = A^2 cos(kx) cos(ky); psi_2 = -3/7 grad phi_2.
    np.testing.assert_allclose(
        second[0], -3 / 7 * 0.3**2 / (2 * WAVE) * np.sin(WAVE * x) * np.cos(WAVE * y), atol=1e-9
    )
    np.testing.assert_allclose(
        second[1], -3 / 7 * 0.3**2 / (2 * WAVE) * np.cos(WAVE * x) * np.sin(WAVE * y), atol=1e-9
    )
    np.testing.assert_allclose(second[2], 0, atol=1e-9)


@pytest.mark.parametrize(
    "steps", [np.linspace(0.1, 1, 4), particle_mesh.STEPS], ids=["3 steps", "40 steps"]
)
def test_kicks_and_drifts_move_linear_modes_exactly(grid, monkeypatch, steps):
    """With the exact linear force, which is the displacement, any number of steps gives linear
    growth; a plain Euler step errs by 24 % in power.
    """
    lattice = np.stack([2 * SIDE / BOX * axis.ravel() for axis in grid], axis=1)
    monkeypatch.setattr(
        particle_mesh, "accelerations", lambda positions, *, num_mesh: positions - lattice
    )
    modes = np.fft.rfftn(0.3 * np.cos(WAVE * grid[0]))
    outputs = [0.3, 0.6, 1.0]
    first, _ = particle_mesh.displacements(modes, BOX)
    for a, positions in zip(
        outputs, particle_mesh.simulate(modes, 0.3, box_size=BOX, outputs=outputs, steps=steps)
    ):
        np.testing.assert_allclose(
            np.asarray(positions - lattice)[:, 0],
            growth(0.3, a) * 2 * SIDE / BOX * first[0].ravel(),
            atol=1e-4,
        )


@pytest.mark.parametrize(
    "direction", [(1, 0, 0), (1, 1, 0), (1, 2, 3)], ids=["axis", "diagonal", "slanted"]
)
def test_a_lump_attracts_as_newton_says(direction):
    """The force of a lump at the origin in a periodic box: M / (4 pi r^2), less the background's r
    M / (3 V).
    """
    unit, mesh = np.array(direction) / np.linalg.norm(direction), 64
    radii = np.array([4.0, 6.0, 9.0])
    probes = radii[:, None] * unit
    # Every particle weighs mesh^3 / num: the lump nearly everything, and its own probes too little
    # to matter.
    positions = np.concatenate([np.full((2000, 3), 32.3), 32.3 + probes])
    pulled = (
        -np.asarray(particle_mesh.accelerations(np.float32(positions), num_mesh=mesh))[2000:] @ unit
    )
    mass = mesh**3 * 2000 / 2003
    np.testing.assert_allclose(
        pulled, mass / (4 * np.pi * radii**2) - radii * mass / (3 * mesh**3), rtol=0.06
    )


def test_large_scales_grow_linearly_in_a_full_simulation(fiducial):
    num, box = 32, 128.0
    modes = particle_mesh.draw_modes(
        linear_spectrum(fiducial), num_side=num, box_size=box, rng=np.random.default_rng(1)
    )
    (positions,) = particle_mesh.simulate(modes, 0.3, box_size=box, outputs=[0.6])
    density = np.histogramdd(np.asarray(positions) % (2 * num), bins=16, range=[(0, 2 * num)] * 3)[
        0
    ]
    grown = np.fft.rfftn(density / density.mean() - 1) / 16**3
    linear = modes[np.ix_(*[np.r_[0:8, -8:0]] * 2, np.r_[0:9])] / num**3
    _, squared = particle_mesh.wavenumbers(16, box)
    large = (squared > 0) & (squared < 0.12**2)
    # A bin's centre is half a bin beyond the first particle's place.
    axes, _ = particle_mesh.wavenumbers(16, box)
    aligned = grown * np.exp(-1j * sum(axes) * box / 32)
    ratio = np.sum((aligned * linear.conj()).real[large]) / np.sum(np.abs(linear[large]) ** 2)
    assert ratio == pytest.approx(growth(0.3, 0.6), rel=0.06)


def test_an_output_between_steps_is_that_of_finer_steps(fiducial, rng):
    modes = particle_mesh.draw_modes(
        linear_spectrum(fiducial), num_side=SIDE, box_size=BOX, rng=rng
    )
    (coarse,) = particle_mesh.simulate(modes, 0.3, box_size=BOX, outputs=[0.53])
    finer = np.sort(np.append(particle_mesh.STEPS, 0.53))
    (fine,) = particle_mesh.simulate(modes, 0.3, box_size=BOX, outputs=[0.53], steps=finer)
    moved = np.asarray(fine) - np.asarray(
        particle_mesh.lagrangian_start(modes, 0.3, box_size=BOX, a=0.1)[0]
    )
    assert np.sqrt(np.mean((np.asarray(coarse) - np.asarray(fine)) ** 2)) < 0.01 * np.sqrt(
        np.mean(moved**2)
    )


@pytest.mark.parametrize(
    "outputs", [[0.9, 0.5], [0.05, 0.5], [0.5, 1.1]], ids=["falling", "early", "late"]
)
def test_outputs_outside_of_the_steps_are_refused(outputs):
    with pytest.raises(
        ValueError, match="simulate: outputs must rise within scale factors 0.1 to 1, got"
    ):
        list(
            particle_mesh.simulate(np.zeros((4, 4, 3), complex), 0.3, box_size=BOX, outputs=outputs)
        )
