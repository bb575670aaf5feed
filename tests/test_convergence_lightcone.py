"""Planes, views and the transfer: geometry against integrals, spectra against fields of known
spectrum.
"""

import json

import numpy as np
import pytest
from scipy.integrate import quad

pytest.importorskip(
    "jaxpm", reason="the simulations need jaxpm: pip install 'astrogen[simulations]'"
)
pytest.importorskip("camb", reason="the simulations need camb: pip install 'astrogen[simulations]'")

from data_pipelines import lightcone, theory, transfer
from data_pipelines.cosmology import Cosmology, distance, scale_factor_at

BOX = 128.0
FIDUCIAL = Cosmology(0.3, 0.8)


@pytest.mark.parametrize("omega_m", [0.2, 0.4])
def test_planes_reach_the_sources_and_weigh_as_the_integral(omega_m):
    lens = lightcone.place_planes(omega_m, box_size=BOX, source_redshift=1.0)
    source = distance(omega_m, 1.0)
    assert lens.distance[-1] - BOX / 2 < source <= lens.distance[-1] + BOX / 2
    np.testing.assert_allclose(np.diff(lens.distance), BOX)
    np.testing.assert_allclose(lens.scale_factor, scale_factor_at(omega_m, lens.distance))
    whole = quad(
        lambda chi: (
            1.5 * omega_m / 2997.92458**2 * chi * (1 - chi / source) / scale_factor_at(omega_m, chi)
        ),
        0,
        source,
    )[0]
    assert lens.weight.sum() == pytest.approx(whole, rel=1e-4)


def _waves(num_grid, box_size, power_fn, rng, num):
    """Gaussian planes of a known spectrum in a box: [num, 3, n, n]."""
    k = np.hypot(*lightcone.plane_wavenumbers(num_grid, box_size))
    amplitude = np.sqrt(power_fn(k) / box_size**3) * num_grid
    return np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((num, 3, num_grid, num_grid))) * amplitude,
        (num_grid, num_grid),
    )


@pytest.mark.parametrize("size", [0.3, 1.37, 5.9])
@pytest.mark.parametrize("angle", [0.0, 0.7, 4.0])
def test_a_view_of_a_wave_is_that_wave_turned_and_averaged(angle, size):
    """A plane wave, met from any side, is the wave at the pixels' middles times the windows of a
    pixel and of linear interpolation.
    """
    num, side, k = 64, 12, np.array([3, 5]) * 2 * np.pi / 64
    plane = np.cos(k[0] * np.arange(num)[:, None] + k[1] * np.arange(num))
    origin, along = np.array([13.3, 50.7]), size * (np.arange(side) + 0.5 - side / 2)
    # the wave in the axes of the view
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ k
    window = np.prod(np.sinc(turned * size / 2 / np.pi)) * np.prod(np.sinc(k / 2 / np.pi) ** 2)
    expected = window * np.cos(k @ origin + turned[0] * along[:, None] + turned[1] * along)
    np.testing.assert_allclose(
        lightcone.look(plane, origin, angle, size, side), expected, atol=0.04
    )


def test_views_have_no_preferred_direction(rng):
    """Power along the pixels' axes is that along their diagonals, for a box whose waves lie on a
    lattice.
    """
    plane = _waves(128, BOX, lambda k: 1 / (1 + k**2), rng, 1)[0, 0]
    views = np.stack(
        [
            lightcone.look(plane, rng.uniform(0, 128, 2), rng.uniform(0, 2 * np.pi), 1.0, 48)
            for _ in range(400)
        ]
    )
    taper = np.hanning(48)[:, None] * np.hanning(48)
    power = (np.abs(np.fft.fft2((views - views.mean()) * taper)) ** 2).mean(0)
    k = np.fft.fftfreq(48, 1 / 48)
    radius, angle = np.hypot(k[:, None], k), np.arctan2(k[:, None], k)
    ring = (radius > 4) & (radius < 12)
    straight, oblique = (
        power[ring & (sign * np.cos(4 * angle) > 0.3)]
        * radius[ring & (sign * np.cos(4 * angle) > 0.3)] ** 2
        for sign in (1, -1)
    )
    assert straight.mean() == pytest.approx(oblique.mean(), rel=0.05)


def test_filtering_undoes_the_grid_and_applies_the_transfer():
    grid, wave = 64, 2 * np.pi / BOX * 5
    lens = lightcone.place_planes(0.3, box_size=BOX, source_redshift=0.05)
    plane = np.tile(
        np.cos(wave * np.arange(grid) * BOX / grid)[:, None], (1, 1, 3, 1, grid)
    ).reshape(1, 3, grid, grid)
    got = lightcone.filter_planes(
        plane, lens, lambda k, a: np.where(np.isclose(k, wave), 2.0, 0.0), box_size=BOX
    )
    np.testing.assert_allclose(got, plane * 2 / np.sinc(5 / grid) ** 4, atol=1e-5)


def test_spectra_of_planes_are_those_they_were_drawn_from(rng):
    planes = _waves(512, BOX, lambda k: 1 / (1 + k**2), rng, 6)
    planes = np.fft.irfft2(np.fft.rfft2(planes) * lightcone.grid_window(512, 2), (512, 512))
    power, k, num_modes = transfer.plane_spectra(planes, BOX)
    within = (k > 0.5) & (k < 8)
    np.testing.assert_allclose(power.mean(axis=0)[within] * (1 + k[within] ** 2), 1, atol=0.06)
    assert num_modes.sum() > 1000


def test_maps_through_gaussian_planes_have_limbers_spectrum(rng):
    """The whole geometry at once: places, distances, depths, weights, pixels, grid."""
    lens = lightcone.place_planes(0.3, box_size=BOX, source_redshift=1.0)
    power_fn = lambda k: 300 / (1 + (k / 0.3) ** 2)
    kappa = []
    for _ in range(6):
        planes = _waves(256, BOX, power_fn, rng, len(lens.distance))
        planes = np.fft.irfft2(np.fft.rfft2(planes) / lightcone.grid_window(256, 2), (256, 256))
        kappa += [
            lightcone.draw_map(planes, lens, box_size=BOX, side=64, pixel_scale=2.3, rng=rng)
            for _ in range(8)
        ]
    edges = np.array([300, 600, 1000, 1800, 3000])
    got = theory.band_means(
        theory.map_power(np.array(kappa), pixel_scale=2.3), edges, pixel_scale=2.3
    ).mean(axis=0)

    def limber(l):
        chi = np.linspace(1, distance(0.3, 1.0), 2000)
        weight = lightcone.lensing_weight(0.3, chi, chi[-1])
        return np.trapezoid(
            weight**2 / chi**2 * power_fn(np.asarray(l)[..., None] / chi), chi, axis=-1
        )

    table = np.geomspace(10, 1e5, 100)
    smooth = lambda l: np.exp(np.interp(np.log(l), np.log(table), np.log(limber(table))))
    expected = theory.band_means(
        theory.expected_power(smooth, side=64, pixel_scale=2.3), edges, pixel_scale=2.3
    )
    # 48 maps: the first band has 800 modes.
    np.testing.assert_allclose(got, expected, rtol=0.07)


def test_transfer_is_one_on_large_scales_and_undoes_what_was_measured():
    stated = json.loads(transfer.TABLE.read_text())
    k = np.array(stated["fiducial"]["k"])
    a = lightcone.place_planes(0.3, box_size=BOX, source_redshift=1.0).scale_factor[
        stated["fiducial"]["plane"]
    ]
    corrected = transfer.transfer(FIDUCIAL, k, a) ** 2 * np.array(
        stated["fiducial"]["power_over_hmcode"]
    )
    np.testing.assert_allclose(corrected[k > 0.9], 1, atol=0.08)
    np.testing.assert_array_equal(transfer.transfer(FIDUCIAL, np.array([0.0, 0.1, 0.3]), 0.7), 1)
    assert stated["knots"] == transfer.KNOTS.tolist() and stated["terms"] == list(transfer.TERMS)


def test_a_known_transfer_is_fitted(rng):
    true = rng.normal(0, 0.1, (len(transfer.TERMS), len(transfer.KNOTS) - 1))
    k, a, pairs = np.geomspace(0.2, 10, 40), np.linspace(0.5, 1, 6), []
    for omega_m, sigma_8 in transfer.POINTS:
        terms, hats = transfer._terms(Cosmology(omega_m, sigma_8), a), transfer._hats(k)
        pairs.append((terms, hats, -2 * terms @ true @ hats.T, np.ones(len(k))))
    fitted, residual = transfer.fit_transfer(pairs)
    np.testing.assert_allclose(fitted, true, atol=1e-8)
    assert residual < 1e-8
