"""Mass maps against closed forms: the Gaussian posterior by dense linear algebra, priors where
there are no data, coverage of simulated fields.
"""

import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from toy_maps import (
    AREA,
    GRID,
    HOLE,
    RANGE,
    SCALE,
    SHAPE,
    SHIFT,
    SIGMA,
    dense_posterior,
    draw_kappa,
    grid_spectrum,
    seen,
    toy_prior,
)

from astrogen.darkmatter.map_mass import _status, map_mass, read_massmap, watched
from astrogen.darkmatter.wiener import wiener_filter
from astrogen.data.field import make_field
from astrogen.errors import InputFileError
from astrogen.instruments.lensing import crop


@pytest.fixture(scope="module")
def gaussian():
    """A field with a hole seen through the Gaussian toy, and its mass map."""
    prior, rng = toy_prior("gaussian"), np.random.default_rng(4)
    field = seen(draw_kappa(prior, rng), rng, sigma=SIGMA, mask=HOLE)
    return field, map_mass(field, prior=prior, num_draws=160, num_burnin=20, seed=3)


def test_the_wiener_filter_is_the_mean_of_the_gaussian_posterior(gaussian):
    field, result = gaussian
    mean, std = dense_posterior(field)
    np.testing.assert_allclose(result.wiener, mean, atol=2e-3 * std.max())
    np.testing.assert_allclose(
        wiener_filter(field, GRID, grid_spectrum()), mean, atol=2e-4 * std.max()
    )


def test_with_a_gaussian_prior_the_mean_is_the_wiener_filter_and_the_std_the_analytic_one(gaussian):
    field, result = gaussian
    mean, std = dense_posterior(field)
    assert result.converged and result.status == ()
    effective = result.diagnostics["ess"]
    assert effective > 60
    assert np.abs((result.mean - mean) / std).max() < 5 / np.sqrt(effective)
    assert np.abs(result.std / std - 1).max() < 5 / np.sqrt(2 * effective)
    assert (result.std / std).mean() == pytest.approx(1, abs=0.04)
    np.testing.assert_allclose(result.signal_to_noise, result.mean / result.std)


def test_uncertainty_rises_in_holes_and_falls_with_the_number_of_galaxies(gaussian):
    field, result = gaussian
    assert result.std[HOLE].mean() > 1.03 * result.std[~HOLE].mean()
    # nine times as many
    many = make_field(field.maps, noise=SIGMA / 3, mask=HOLE, pixel_scale=SCALE)
    better = map_mass(many, prior=toy_prior("gaussian"), num_draws=32, num_burnin=15, seed=3)
    assert better.std[~HOLE].mean() < 0.75 * result.std[~HOLE].mean()
    assert better.std[HOLE].mean() > 1.2 * better.std[~HOLE].mean()


def test_equal_seeds_give_equal_maps(gaussian):
    field, _ = gaussian
    once, again, other = (
        map_mass(field, prior=toy_prior("gaussian"), num_draws=32, num_burnin=2, seed=seed)
        for seed in (3, 3, 4)
    )
    assert np.array_equal(once.draws, again.draws)
    assert not np.array_equal(once.draws, other.draws)


def test_without_information_the_draws_are_those_of_the_prior():
    """Huge noise: mean 0, variance and skewness of a shifted lognormal, (Omega_m, sigma_8) uniform
    over the range, by a Kolmogorov-Smirnov bound.
    """
    field = make_field(np.zeros((2, *SHAPE)), noise=100.0, pixel_scale=SCALE)
    result = map_mass(field, prior=toy_prior("lognormal"), num_draws=100, num_burnin=10, seed=5)
    half = grid_spectrum()
    whole = np.concatenate([half, half[:, -2:0:-1]], 1).mean() / AREA
    variance = np.log1p(whole / SHIFT**2)
    assert result.draws.mean() == pytest.approx(0, abs=0.03 * SHIFT)
    assert result.draws.var() == pytest.approx(SHIFT**2 * np.expm1(variance), rel=0.1)
    assert np.quantile(result.draws, 0.5) == pytest.approx(
        SHIFT * np.expm1(-variance / 2), abs=0.03 * SHIFT
    )
    sampled = map_mass(
        field,
        prior=toy_prior("gaussian"),
        cosmology="sampled",
        num_draws=100,
        num_burnin=10,
        seed=5,
    )
    for values, (low, high) in zip(sampled.cosmology_draws.T, RANGE.values()):
        ordered = np.sort((values - low) / (high - low))
        assert np.abs(ordered - np.linspace(0, 1, 100)).max() < 0.2
    assert "sigma_8 0." in sampled.summary()


@pytest.mark.slow
def test_the_cosmology_is_found():
    """The spectrum grows as sigma_8 squared: a field tells high from low."""
    prior, rng = toy_prior("gaussian"), np.random.default_rng(8)
    field = seen(draw_kappa(prior, rng, (0.3, 0.65)), rng, sigma=SIGMA / 2)
    result = map_mass(field, prior=prior, cosmology="sampled", num_draws=100, seed=1)
    assert result.cosmology_draws[:, 1].mean() == pytest.approx(
        0.65, abs=3 * float(result.cosmology_draws[:, 1].std())
    )
    assert result.cosmology_draws[:, 1].std() < 0.08  # that of the prior: 0.115


def test_a_beam_smoothed_map_is_deblurred():
    """The draws scatter more than the beam-smoothed map, and their mean is nearer to the truth than
    the map itself.
    """
    prior, rng = toy_prior("gaussian"), np.random.default_rng(2)
    kappa = draw_kappa(prior, rng)
    sigma = 6.0 / SCALE / np.sqrt(8 * np.log(2))
    k = 2 * np.pi * np.hypot(np.fft.fftfreq(GRID.n)[:, None], np.fft.rfftfreq(GRID.m))
    blurred = crop(
        np.fft.irfft2(np.fft.rfft2(kappa) * np.exp(-0.5 * (k * sigma) ** 2), (GRID.n, GRID.m)), GRID
    )
    field = make_field(
        blurred + 0.002 * rng.normal(size=SHAPE), noise=0.002, pixel_scale=SCALE, beam=6.0
    )
    result = map_mass(field, prior=prior, num_draws=64, num_burnin=20, seed=1)
    truth = crop(kappa, GRID).numpy()
    assert result.ks is None
    assert ((result.mean - truth) ** 2).mean() < 0.8 * ((field.maps[0] - truth) ** 2).mean()
    assert result.draws.var() > 1.2 * field.maps.var()
    inside = np.abs(result.mean - truth) < 2 * result.std
    assert inside.mean() > 0.85


@pytest.mark.slow
def test_intervals_of_the_lognormal_posterior_hold_the_truth_as_often_as_they_say():
    """Simulation-based calibration over 40 fields: the central 68 % interval holds the truth in 68
    % of the pixels, in holes as outside.
    """
    prior, rng = toy_prior("lognormal"), np.random.default_rng(6)
    inside = []
    for seed in range(40):
        kappa = draw_kappa(prior, rng)
        result = map_mass(
            seen(kappa, rng, sigma=SIGMA, mask=HOLE),
            prior=prior,
            num_draws=60,
            num_burnin=15,
            seed=seed,
        )
        low, high = np.quantile(result.draws, [0.16, 0.84], axis=0)
        inside.append((low < crop(kappa, GRID)) & (crop(kappa, GRID) < high))
    assert np.mean(inside) == pytest.approx(0.68, abs=0.04)
    assert np.array(inside)[:, HOLE].mean() == pytest.approx(0.68, abs=0.08)


# --- what comes out


def test_what_is_watched_are_pixels_and_low_modes(rng):
    kappa = rng.normal(size=(5, 2, 16, 20))
    found = watched(kappa)
    assert found.shape == (5, 2, 16 + 9 + 8)
    np.testing.assert_allclose(found[..., 0], kappa[..., 2, 2])
    np.testing.assert_allclose(found[..., 16], kappa.sum((-2, -1)))


GOOD = {
    "r_hat": 1.01,
    "r_hat_log_density": 1.02,
    "divergent": 0.0,
    "reduced_chi2": 1.0,
    "num_data": 200.0,
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, None),
        ({"r_hat": 1.2}, "not converged: R-hat 1.200 over the watched"),
        ({"r_hat": np.nan}, "not converged"),
        ({"r_hat_log_density": 2.0}, "not converged: R-hat 2.00 of the log-density"),
        ({"divergent": 3.0}, "not converged: 3 trajectories diverged"),
        (
            {"reduced_chi2": 2.0},
            (
                "poor fit: reduced chi2 2.000 .* 10 sigma from 1; check the noise, which seems too"
                " small"
            ),
        ),
        ({"reduced_chi2": 0.1}, "noise, which seems too large"),
    ],
    ids=["good", "R-hat", "NaN", "drift", "divergent", "too small", "too large"],
)
def test_the_status_says_what_is_wrong(change, words):
    sentences = _status({**GOOD, **change})
    assert len(sentences) == (words is not None)
    assert all(re.search(words, sentence) for sentence in sentences)


def test_a_wrong_noise_level_is_a_poor_fit(gaussian):
    field, _ = gaussian
    result = map_mass(
        make_field(field.maps, noise=SIGMA / 4, mask=HOLE, pixel_scale=SCALE),
        prior=toy_prior("gaussian"),
        num_draws=32,
        num_burnin=10,
        seed=1,
    )
    assert any("noise, which seems too small" in sentence for sentence in result.status)


def test_a_map_survives_its_file(gaussian, tmp_path):
    field, _ = gaussian
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cdelt, wcs.wcs.crpix = (
        ["RA---TAN", "DEC--TAN"],
        [-SCALE / 60, SCALE / 60],
        [6.5, 6.5],
    )
    field = make_field(field.maps, noise=SIGMA, mask=HOLE, pixel_scale=SCALE, wcs=wcs)
    result = map_mass(field, prior=toy_prior("gaussian"), num_draws=32, num_burnin=10, seed=1)
    result.write_fits(tmp_path / "map.fits")
    back = read_massmap(tmp_path / "map.fits")
    for name in ("mean", "std", "draws", "cosmology_draws", "ks", "wiener", "signal_to_noise"):
        np.testing.assert_allclose(getattr(back, name), getattr(result, name), rtol=1e-6)
    assert (back.diagnostics, back.status, back.provenance, back.converged) == (
        result.diagnostics,
        result.status,
        result.provenance,
        result.converged,
    )
    assert np.array_equal(back.field.mask, HOLE) and back.field.pixel_scale == SCALE
    with fits.open(tmp_path / "map.fits", checksum=True) as hdus:
        assert hdus[0].header["PIXSCALE"] == SCALE and hdus[0].header["PIXUNIT"] == "arcmin"
        np.testing.assert_allclose(WCS(hdus["MEAN"].header).wcs.cdelt, wcs.wcs.cdelt)


def test_a_file_that_is_no_mass_map_is_refused(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((3, 3)), name="MEAN")]).writeto(
        tmp_path / "other.fits"
    )
    with pytest.raises(InputFileError, match="is no mass map of astrogen"):
        read_massmap(tmp_path / "other.fits")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"cosmology": (0.5, 0.8)}, "omega_m must be within 0.2 to 0.4, got 0.5"),
        (
            {"cosmology": "unknown"},
            r"cosmology must be \(Omega_m, sigma_8\) or 'sampled', got 'unknown'",
        ),
        ({"cosmology": (0.3,)}, r"cosmology must be .*got \(0.3,\)"),
        ({"num_draws": 16}, "at least 2 and 8 for each chain, got 4 and 16"),
        ({"num_chains": 1}, "at least 2 and 8 for each chain, got 1 and 200"),
    ],
    ids=["outside", "word", "length", "draws", "chains"],
)
def test_what_makes_no_sense_is_refused(gaussian, options, words):
    with pytest.raises(ValueError, match=words):
        map_mass(gaussian[0], prior=toy_prior("gaussian"), seed=1, **options)


def test_a_prior_of_something_else_is_refused(gaussian):
    with pytest.raises(
        ValueError,
        match=r"prior must be one of convergence maps, got 'galaxy'; take load_prior\('kappa'\)",
    ):
        map_mass(gaussian[0], prior="galaxy", seed=1)


def test_other_pixels_than_the_priors_are_refused_or_averaged(gaussian):
    field, _ = gaussian
    with pytest.raises(ValueError, match="must be at most those of the prior, 2.3 arcmin, got 4"):
        map_mass(
            make_field(field.maps, noise=SIGMA, pixel_scale=4.0),
            prior=toy_prior("gaussian"),
            seed=1,
        )
    finer = make_field(
        np.repeat(np.repeat(field.maps, 2, 1), 2, 2),
        noise=2 * SIGMA,
        mask=np.kron(HOLE, np.ones((2, 2))),
        pixel_scale=SCALE / 2,
    )
    result = map_mass(finer, prior=toy_prior("gaussian"), num_draws=32, num_burnin=10, seed=1)
    assert result.mean.shape == SHAPE
    np.testing.assert_allclose(result.wiener, gaussian[1].wiener, atol=1e-5)
