"""Limber's integral and the expected map spectrum against independent integrals and Gaussian
fields.
"""

import json

import numpy as np
import pytest
from scipy.integrate import quad

pytest.importorskip(
    "jaxpm", reason="the simulations need jaxpm: pip install 'astrogen[simulations]'"
)
pytest.importorskip("camb", reason="the simulations need camb: pip install 'astrogen[simulations]'")

from astrogen.priors.grid_power import pixel_covariance, windowed_power
from astrogen.training.spectra import read_theory
from data_pipelines import theory
from data_pipelines.comparison import (
    BANDS,
    THEORY_L,
    compare_ktng,
    compare_with_theory,
    expected_spectra,
)
from data_pipelines.cosmology import Cosmology, nonlinear_spectrum

FIDUCIAL = Cosmology(0.3, 0.8)
LIGHT = 299792.458  # km/s


@pytest.mark.parametrize("l", [150.0, 1000.0, 4000.0])
def test_limber_is_the_integral_over_redshift(l):
    def hubble(z):
        return 100 * np.sqrt(0.3 * (1 + z) ** 3 + 0.7)  # h km/s/Mpc

    def chi(z):
        return quad(lambda x: LIGHT / hubble(x), 0, z)[0]

    source, power = chi(1.0), nonlinear_spectrum(FIDUCIAL)

    def integrand(z):
        weight = 1.5 * 0.3 * (100 / LIGHT) ** 2 * (1 + z) * (1 - chi(z) / source)
        return LIGHT / hubble(z) * weight**2 * float(power(l / chi(z), 1 / (1 + z)))

    expected = quad(integrand, 1e-4, 1, epsrel=1e-4, limit=100)[0]
    assert theory.limber_spectrum(np.array([l]), FIDUCIAL, source_redshift=1.0)[0] == pytest.approx(
        expected, rel=2e-3
    )


def test_expected_power_of_a_gaussian_correlation():
    """For C(l) = A exp(-(s l)^2 / 2) all is separable: the correlation, its mean over pixels, and
    the sum over pairs of pixels.
    """
    side, pixel = 8, 2.3 * theory.ARCMIN
    width = 0.8 * pixel

    def correlation(lag):
        # Two pixels at a lag see the field's correlation averaged with a triangle.
        gauss = lambda u: (
            np.exp(-0.5 * ((lag * pixel + u) / width) ** 2)
            / (np.sqrt(2 * np.pi) * width)
            * (1 - abs(u) / pixel)
            / pixel
        )
        return quad(gauss, -pixel, 0)[0] + quad(gauss, 0, pixel)[0]

    lags = np.arange(side)
    matrix = np.array([[correlation(abs(i - j)) for i in lags] for j in lags])
    fourier = np.exp(-2j * np.pi * np.outer(lags, lags) / side)
    one = np.einsum("ki,ij,kj->k", fourier, matrix, fourier.conj()).real / side * pixel
    got = theory.expected_power(
        lambda l: np.exp(-0.5 * (width * l) ** 2), side=side, pixel_scale=2.3
    )
    np.testing.assert_allclose(got, np.outer(one, one), rtol=2e-3)


def test_white_noise_has_the_power_of_its_pixels(rng):
    power = theory.band_means(
        theory.map_power(0.3 * rng.standard_normal((200, 64, 64)), pixel_scale=2.3),
        BANDS,
        pixel_scale=2.3,
    ).mean(axis=0)
    np.testing.assert_allclose(power, 0.09 * (2.3 * theory.ARCMIN) ** 2, rtol=0.05)


def test_maps_of_theory_agree_with_theory(rng):
    """Gaussian maps cut from larger periodic ones that have the theory's spectrum."""
    large, num = 256, 24
    l = (
        2
        * np.pi
        * np.hypot(
            np.fft.fftfreq(large, 2.3 * theory.ARCMIN)[:, None],
            np.fft.rfftfreq(large, 2.3 * theory.ARCMIN)[None, :],
        )
    )
    window = np.sinc(np.fft.fftfreq(large))[:, None] * np.sinc(np.fft.rfftfreq(large))[None, :]
    amplitude = (
        np.sqrt(theory.limber_spectrum(np.maximum(l, 1.0), FIDUCIAL, source_redshift=1.0))
        * window
        / (2.3 * theory.ARCMIN)
    )
    fields = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((num, large, large))) * amplitude, (large, large)
    )
    kappa = np.concatenate(
        [
            field[i : i + 64, j : j + 64][None]
            for field in fields
            for i in (0, 128)
            for j in (0, 128)
        ]
    )
    maps = {
        "kappa": kappa,
        "cosmology": np.tile(np.float32([0.3, 0.8]), (len(kappa), 1)),
        "simulation": np.repeat(np.arange(num), 4),
        "pixel_scale": 2.3,
    }
    checked = compare_with_theory(maps, source_redshift=1.0)
    # The aliases of the last band are not in these maps.
    assert np.all(np.abs(np.array(checked["ratio"]) - 1)[:-1] < 4 * np.array(checked["error"])[:-1])
    assert np.max(np.abs(np.array(checked["ratio"]) - 1)[3:-1]) < 0.04
    assert checked["num_simulations"] == num and abs(checked["skewness"]) < 0.1


@pytest.mark.parametrize("taper", [False, True], ids=["as cut", "Hann"])
def test_the_power_of_cut_maps_is_that_of_the_priors_pixels(taper):
    """Two ways to the same: aliases and windows in Fourier space on eight times the map, and the
    covariance that the prior is made of.
    """
    side = 64
    window = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 if taper else np.ones(side)
    expected = theory.expected_map_power(
        FIDUCIAL, side=side, pixel_scale=2.3, source_redshift=1.0, window=window
    )
    log_spectrum = np.log(theory.limber_spectrum(THEORY_L, FIDUCIAL, source_redshift=1.0))
    covariance = pixel_covariance(np.log(THEORY_L), log_spectrum, (128, 128), pixel_scale=2.3)
    found = windowed_power(covariance[:64, :64], window, pixel_scale=2.3)
    l = np.hypot(*np.meshgrid(np.fft.fftfreq(64) * 64, np.arange(33.0), indexing="ij"))
    inside = l >= 1
    np.testing.assert_allclose(found[inside], expected[:, :33][inside], rtol=0.01)


def test_an_expected_spectrum_is_limbers_and_is_read(tmp_path, monkeypatch):
    points = [(omega_m, sigma_8) for omega_m in (0.2, 0.3, 0.4) for sigma_8 in (0.6, 0.8, 1.0)]
    monkeypatch.setattr(
        "data_pipelines.comparison.limber_spectrum",
        lambda l, cosmology, source_redshift: source_redshift * cosmology.sigma_8**2 / l,
    )
    told = []
    stored = expected_spectra(points, source_redshift=0.7, progress_fn=told.append)
    (tmp_path / "f.json").write_text(json.dumps(stored))
    found, redshift = read_theory(tmp_path / "f.json")
    assert redshift == 0.7 and len(told) == 9
    np.testing.assert_allclose(found.log_spectrum[0], np.log(0.7 * 0.64 / THEORY_L), atol=1e-6)
    np.testing.assert_allclose(found.log_spectrum[2], 2, atol=1e-6)


def test_ktng_is_that_of_sources_beyond_redshift_one(shared):
    ratios = compare_ktng(shared / "data/kappa_ktng/ktng_kappa360v2.fits", pixel_scale=2.3)
    stated = np.load(shared / "data/kappa_ktng/ktng_PS_theory.npy")
    within = (stated[0] > 100) & (stated[0] < 1e4)
    ktng = Cosmology(0.3089, 0.8159, hubble=0.6774, omega_b=0.0486, spectral_index=0.9667)
    np.testing.assert_allclose(
        theory.limber_spectrum(stated[0][within], ktng, source_redshift=1.2),
        stated[1][within],
        rtol=0.04,
    )
    assert 0.8 < np.mean(ratios["1.2"]) < 1.2 < np.mean(ratios["1"]) * 1.1
