"""Results: their statistics against closed forms, measurements against GalSim's analytic values,
files against themselves.
"""

import math
import re
from dataclasses import fields, is_dataclass, replace

import galsim
import numpy as np
import pytest
from astropy.wcs import WCS
from conftest import lone_result
from scipy import stats

import astrogen
from astrogen.data.frames import deconvolved_wcs
from astrogen.data.images import read_plane_wcs, read_planes, write_planes
from astrogen.data.observation import make_observation
from astrogen.data.psf import make_psf
from astrogen.errors import InputError, InputFileError
from astrogen.galaxies.conclude import Colours, Drawn, Grid, make_exposure, make_result, make_source
from astrogen.galaxies.quantities import format_value, measure
from astrogen.galaxies.result import all_status, file_names, read_result
from astrogen.galsim_objects import measure_image, psf_from_galsim
from astrogen.inference.verdict import (
    compare,
    edge_significance,
    goodness_of_fit,
    is_failed,
    judge,
    judge_fit,
)

NUM_DRAWS = 40


def sky_wcs(shape, pixel_scale):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = 150.0, 2.0
    wcs.wcs.crpix = 11.3, 20.9
    wcs.wcs.cd = np.array([[-0.8, 0.6], [0.6, 0.8]]) * pixel_scale / 3600
    wcs.pixel_shape = shape[::-1]
    return wcs


def draw_galaxy(flux=100.0, radius=0.5, g1=0.2, shift=(0.0, 0.0)):
    galaxy = (
        galsim.Exponential(half_light_radius=radius, flux=flux).shear(g1=g1, g2=0.1).shift(*shift)
    )
    return (
        galsim.Convolve(galaxy, galsim.Gaussian(fwhm=0.2))
        .drawImage(nx=64, ny=64, scale=0.1, method="no_pixel")
        .array
    )


@pytest.fixture(scope="module")
def observation():
    rng = np.random.default_rng(1)
    psf = make_psf(
        galsim.Gaussian(fwhm=0.7).drawImage(nx=25, ny=25, scale=0.2, method="no_pixel").array,
        pixel_scale=0.2,
    )
    image = (
        galsim.Convolve(
            galsim.Exponential(half_light_radius=0.5, flux=100), galsim.Gaussian(fwhm=0.7)
        )
        .drawImage(nx=41, ny=40, scale=0.2)
        .array
    )
    mask = np.zeros(image.shape, bool)
    mask[3:6, 4:9] = True
    return make_observation(
        image + 0.1 * rng.normal(size=image.shape),
        psf=psf,
        sigma=0.1,
        mask=mask,
        pixel_scale=0.2,
        unit="nJy",
        wcs=sky_wcs(image.shape, 0.2),
        name="galaxy 7 <b>",
    )


def fake_result(observation, **changes):
    """A result with draws that scatter by 2 % in flux, and the truth as its model."""
    rng = np.random.default_rng(2)
    flux = 100 * (1 + 0.02 * rng.normal(size=NUM_DRAWS))
    arguments = {
        "prior_scale": 0.1,
        "target_fwhm": 0.2,
        "draws": flux[:, None, None] * draw_galaxy(1.0),
        "model": (
            galsim.Convolve(
                galsim.Exponential(half_light_radius=0.5, flux=100), galsim.Gaussian(fwhm=0.7)
            )
            .drawImage(nx=41, ny=40, scale=0.2)
            .array
        ),
        "latent_draws": rng.normal(size=(NUM_DRAWS, 3)),
        "flux_draws": flux,
        "shift_draws": np.zeros((NUM_DRAWS, 2)),
        "background_draws": np.zeros(NUM_DRAWS),
        "method": "laplace",
        "diagnostics": {"k_hat": 0.3},
        "provenance": {"seed": 1, "options": {"draws": 40}},
    }
    return lone_result(observation, **{**arguments, **changes})


# --- PSFs


@pytest.mark.parametrize(
    "psf_object",
    [
        pytest.param(galsim.Gaussian(fwhm=0.7), id="gaussian"),
        pytest.param(
            galsim.Moffat(beta=3.5, fwhm=0.7, flux=3.0).shear(g1=0.05),
            id="sheared moffat of flux 3",
        ),
        pytest.param(
            galsim.Convolve(
                galsim.Moffat(beta=4, fwhm=0.5), galsim.Gaussian(fwhm=0.3).shear(g2=0.1)
            ),
            id="convolution",
        ),
    ],
)
def test_psf_from_galsim_draws_what_galsim_draws(psf_object):
    psf = psf_from_galsim(psf_object, pixel_scale=0.2)
    assert (
        psf.pixel_response == 0
        and psf.pixel_scale == pytest.approx(0.05)
        and psf.image.shape[0] % 2 == 1
    )
    # Its Fourier transform, which is all that a convolution sees, up to the Nyquist frequency of
    # 0.1" pixels.
    frequency = np.linspace(-np.pi / 0.1, np.pi / 0.1, 21)
    position = (np.arange(len(psf.image)) - len(psf.image) // 2) * psf.pixel_scale
    phase = np.exp(-1j * frequency[:, None] * position)
    truth = np.array(
        [[psf_object.withFlux(1).kValue(kx, ky) for kx in frequency] for ky in frequency]
    )
    assert np.abs(phase @ psf.image @ phase.T - truth).max() < 1e-5


def test_psf_from_galsim_stays_within_num_pixels():
    psf = psf_from_galsim(galsim.Kolmogorov(fwhm=0.7), pixel_scale=0.2, num_pixels=63)
    assert len(psf.image) * psf.pixel_scale <= 63 * 0.2


@pytest.mark.parametrize(
    ("gsobject", "error", "message"),
    [
        pytest.param(
            "gaussian", TypeError, "gsobject must be a galsim.GSObject, got str", id="text"
        ),
        pytest.param(
            galsim.Gaussian(fwhm=1) * galsim.SED(lambda w: 1, "nm", "fphotons"),
            TypeError,
            "evaluate a chromatic",
            id="chromatic",
        ),
        pytest.param(
            galsim.Gaussian(fwhm=0.7, flux=-1),
            ValueError,
            "positive flux, got -1",
            id="negative flux",
        ),
        pytest.param(
            galsim.DeltaFunction(), ValueError, "oversampling must be at least", id="point"
        ),
        pytest.param(
            galsim.Airy(lam=500, diam=30),
            ValueError,
            "oversampling must be at least",
            id="too sharp",
        ),
    ],
)
def test_psf_from_galsim_refuses(gsobject, error, message):
    with pytest.raises(error, match=message):
        psf_from_galsim(gsobject, pixel_scale=0.2)


def test_psf_from_galsim_refuses_a_pixel_scale_of_zero():
    with pytest.raises(ValueError, match="pixel_scale must be positive, got 0"):
        psf_from_galsim(galsim.Gaussian(fwhm=0.7), pixel_scale=0)


# --- measuring


@pytest.mark.parametrize("radius", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.13, -0.04)])
def test_measured_gaussian_has_its_size_and_shape(radius, shift):
    shear = galsim.Shear(e1=0.3, e2=-0.2)
    image = (
        galsim.Gaussian(half_light_radius=radius, flux=7)
        .shear(shear)
        .shift(*shift)
        .drawImage(nx=64, ny=64, scale=0.1, method="no_pixel")
        .array
    )
    flux, half_light_radius, e1, e2 = measure_image(image, pixel_scale=0.1)
    assert flux == pytest.approx(7, rel=1e-3)
    assert (e1, e2) == pytest.approx((0.3, -0.2), abs=2e-3)
    # Half-light radius of an elliptical Gaussian from its closed-form integral over a circle.
    a2, b2 = (radius**2 / (2 * math.log(2)) * x for x in (np.exp(shear.eta), np.exp(-shear.eta)))
    angles = np.linspace(0, 2 * np.pi, 3600, endpoint=False)
    inverse = np.cos(angles) ** 2 / a2 + np.sin(angles) ** 2 / b2
    radii = np.linspace(0.5 * radius, 1.5 * radius, 1001)
    inside = np.array(
        [np.mean((1 - np.exp(-(r**2) * inverse / 2)) / inverse) / math.sqrt(a2 * b2) for r in radii]
    )
    assert half_light_radius == pytest.approx(np.interp(0.5, inside, radii), rel=0.03)


@pytest.mark.parametrize(
    "radius, shift",
    [(0.2, (0.0, 0.0)), (0.55, (0.21, -0.33)), (1.4, (0.0, 0.1)), (0.3, (1.2, -0.9))],
    ids=["small", "moved", "beyond the first look", "far from the middle"],
)
def test_half_light_radius_is_that_of_galsim(radius, shift, rng):
    """GalSim's, on a three times finer grid to which its own FFT interpolation is written out
    here.
    """
    image = (
        galsim.Exponential(half_light_radius=radius, flux=7)
        .shear(g1=0.2)
        .shift(*shift)
        .drawImage(nx=64, ny=64, scale=0.1)
        .array.astype(float)
    )
    image += 1e-4 * image.max() * rng.normal(size=image.shape)
    padded = np.pad(np.fft.fftshift(np.fft.fft2(image)), 64)
    fine = galsim.Image(9 * np.fft.ifft2(np.fft.ifftshift(padded)).real, scale=0.1 / 3)
    centre = galsim.hsm.FindAdaptiveMom(galsim.Image(image)).moments_centroid
    expected = fine.calculateHLR(
        center=galsim.PositionD(3 * (centre.x - 1) + 1, 3 * (centre.y - 1) + 1)
    )
    assert measure_image(image, pixel_scale=0.1)[1] == pytest.approx(expected, rel=2e-4)


OFF_CENTRE = [(1.4, 0.0), (-1.1, 1.3), (1.5, 1.5), (0.0, -1.8)]


@pytest.mark.parametrize("place", OFF_CENTRE, ids=str)
@pytest.mark.parametrize("fails", [False, True], ids=["moments", "no moments"])
def test_a_galaxy_is_measured_where_it_stands(place, fails, monkeypatch):
    """An exponential disk through a Gaussian has its own half-light radius and shape wherever it
    stands; where the moments fail, the radius is counted about the place that was fitted.
    """
    middle = measure_image(draw_galaxy(), pixel_scale=0.1)
    if fails:
        moments = galsim.hsm.ShapeData(error_message="failed")
        monkeypatch.setattr(galsim.hsm, "FindAdaptiveMom", lambda *_, **__: moments)
    image = draw_galaxy(shift=place)
    flux, radius, e1, e2 = measure_image(image, pixel_scale=0.1, place=place, flux=100.0)
    assert flux == 100 and radius == pytest.approx(middle[1], rel=0.01)
    assert np.isnan(e1) if fails else (e1, e2) == pytest.approx(middle[2:], abs=5e-3)


@pytest.mark.parametrize("place", OFF_CENTRE, ids=str)
def test_a_result_measures_about_its_fitted_places(observation, place, tmp_path):
    """Draws, places and fluxes belong together, also in the file."""
    flux = np.linspace(98, 102, NUM_DRAWS)
    draws = flux[:, None, None] * draw_galaxy(1.0, shift=place)
    result = fake_result(
        observation, draws=draws, flux_draws=flux, shift_draws=np.tile(place, (NUM_DRAWS, 1))
    )
    expected = measure_image(draw_galaxy(), pixel_scale=0.1)
    assert result.half_light_radius[0] == pytest.approx(expected[1], rel=0.01)
    assert (result.e1[0], result.e2[0]) == pytest.approx(expected[2:], abs=5e-3)
    result.write_fits(tmp_path / "result.fits")
    assert read_result(tmp_path / "result.fits").half_light_radius == result.half_light_radius


@pytest.mark.parametrize(
    ("change", "radius", "shape"),
    [
        pytest.param({"shift": (2.85, 0.0)}, False, False, id="at the edge"),
        pytest.param({"shift": (2.95, -2.95), "radius": 0.8}, False, False, id="in the corner"),
        pytest.param({"flux": -100.0}, False, False, id="negative flux"),
        pytest.param({"shift": (2.0, 0.0), "radius": 0.8}, True, False, id="cut by the edge"),
        pytest.param({"shift": (0.5, 0.0)}, True, True, id="inside"),
    ],
)
def test_a_quantity_without_an_answer_is_nan_and_has_a_word(observation, change, radius, shape):
    """Light beyond the deconvolved image counts in the flux, and a circle or weight that the image
    cuts gives no number.
    """
    change = {"flux": 100.0, "shift": (0.0, 0.0)} | change
    flux = np.full(NUM_DRAWS, change["flux"])
    result = fake_result(
        observation,
        draws=np.repeat(draw_galaxy(**change)[None], NUM_DRAWS, 0),
        flux_draws=flux,
        shift_draws=np.tile(change["shift"], (NUM_DRAWS, 1)),
    )
    words = [sentence.split(":")[0] for sentence in all_status(result)]
    assert result.flux[0] == pytest.approx(change["flux"])
    assert math.isfinite(result.half_light_radius[0]) == radius == ("no_radius" not in words)
    assert math.isfinite(result.e1[0]) == shape == ("no_ellipticity" not in words)
    assert math.isfinite(result.e2[0]) == shape
    for text in (result.summary(), result.to_table()["status"][0]):
        assert ("no_radius: " in text, "no_ellipticity: " in text) == (not radius, not shape)


def test_a_radius_counts_the_light_beyond_the_image():
    """Half of the whole light, not of what the image holds: that of the disk in the middle."""
    middle = measure_image(draw_galaxy(radius=0.8), pixel_scale=0.1)[1]
    image = draw_galaxy(radius=0.8, shift=(2.0, 0.0))
    assert image.sum() < 98
    whole = measure_image(image, pixel_scale=0.1, place=(2.0, 0.0), flux=100.0)
    assert whole[1] == pytest.approx(middle, rel=0.03)


def test_moments_that_lead_to_a_neighbour_are_no_answer():
    image = draw_galaxy(1.0, radius=0.2, shift=(-1.0, 0.0)) + draw_galaxy(radius=0.3)
    assert np.isnan(measure_image(image, pixel_scale=0.1, place=(-1.0, 0.0))[2:]).all()


def test_what_cannot_be_measured_is_nan_and_counted():
    good, blank = draw_galaxy(), np.zeros((64, 64))
    assert (
        measure_image(blank, pixel_scale=0.1)[0] == 0
        and np.isnan(measure_image(blank, pixel_scale=0.1)[1:]).all()
    )
    quantities = measure(np.stack([good] * 9 + [blank]), pixel_scale=0.1)
    assert quantities.num_failed == 1
    assert quantities.e1[0] == pytest.approx(measure_image(good, pixel_scale=0.1)[2])


def test_value_and_error_are_median_and_half_of_the_68_percent_interval():
    fluxes = 100 + 3 * stats.norm.ppf((np.arange(101) + 0.5) / 101)
    quantities = measure(
        fluxes[:, None, None] * draw_galaxy(1.0) / draw_galaxy(1.0).sum(), pixel_scale=0.1
    )
    assert quantities.flux[0] == pytest.approx(100, rel=1e-4)
    assert quantities.flux[1] == pytest.approx(3 * stats.norm.ppf(0.84), rel=0.02)


def test_one_draw_has_a_value_and_no_error(observation):
    result = fake_result(
        observation,
        draws=draw_galaxy()[None],
        latent_draws=np.zeros((1, 3)),
        flux_draws=[100.0],
        shift_draws=np.zeros((1, 2)),
        background_draws=[0.0],
        method="map",
    )
    assert result.flux[0] == pytest.approx(100, rel=0.02) and math.isnan(result.flux[1])
    assert "±" not in format_value(result.flux)


def test_shapes_come_from_the_draws_not_from_the_mean_image(observation):
    pair = np.repeat(np.stack([draw_galaxy(g1=0.4), draw_galaxy(g1=0.4).T]), NUM_DRAWS // 2, axis=0)
    angles = fake_result(observation, draws=pair)
    each = abs(measure_image(pair[0], pixel_scale=0.1)[2])
    assert abs(measure_image(angles.image, pixel_scale=0.1)[2]) < 0.1 * each
    assert angles.e1[1] == pytest.approx(each, rel=1e-3)


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ((12.3456, 0.0123), "12.346 ± 0.012"),
        ((12.3456, 12.0), "12 ± 12"),
        ((0.0, 0.02), "0.000 ± 0.020"),
        ((1234.5, math.nan), "1234"),
        ((math.nan, math.nan), "-"),
        ((1.2342e-12, 1.2e-14), "(1.234 ± 0.012)e-12"),
        ((-3.2e8, 1.1e6), "(-3.200 ± 0.011)e+08"),
        ((99.9, 0.0), "99.9"),
    ],
)
def test_values_carry_as_many_digits_as_their_errors_allow(pair, text):
    assert format_value(pair) == text


def test_file_names_are_safe_and_different(observation):
    names = ["a", "../a b", "a", "", "été", "a", "x" * 300]
    made = file_names([fake_result(replace(observation, name=name)) for name in names])
    assert made[:3] == ["a", "a_b", "a.2"] and made[5] == "a.3" and len(set(made)) == len(names)
    assert all(name and "/" not in name and len(name) < 120 for name in made)


# --- fit and status


def test_chi2_and_p_value_match_scipy(observation):
    rng = np.random.default_rng(3)
    residual = np.where(observation.mask, 0, 0.1 * rng.normal(size=observation.image.shape)).astype(
        np.float32
    )
    source = np.zeros_like(residual)
    source[10:30, 10:30] = 5
    chi2, p_value = goodness_of_fit(residual, source, observation, num_fitted=20)
    pixels = residual[10:30, 10:30] / 0.1
    assert chi2 == pytest.approx((pixels**2).sum() / 380, rel=1e-4)
    assert p_value == pytest.approx(stats.chi2.sf((pixels**2).sum(), 380), rel=1e-3)


def test_masked_pixels_never_enter_the_fit(observation):
    source = np.ones(observation.image.shape)
    wild = np.where(observation.mask, 1e6, 0.0)
    assert goodness_of_fit(wild, source, observation)[0] == 0


def test_faint_galaxy_is_judged_on_its_nine_best_pixels(observation):
    source = np.zeros(observation.image.shape)
    source[20:23, 20:23] = 1e-3
    residual = np.where(source > 0, 0.2, 0.0)
    assert goodness_of_fit(residual, source, observation)[0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("diagnostics", "words"),
    [
        pytest.param({"r_hat": 1.2}, "not_converged: R-hat is 1.200", id="r_hat"),
        pytest.param({"r_hat": math.nan}, "not_converged: R-hat is nan", id="r_hat nan"),
        pytest.param({"k_hat": 0.9}, "not_converged: k-hat is 0.90", id="k_hat"),
        pytest.param({"num_divergent": 3}, "not_converged: 3 divergent", id="divergences"),
        pytest.param({"map_converged": 0.0}, "not_converged: the search", id="map"),
    ],
)
def test_judge_says_what_is_wrong(diagnostics, words):
    assert [sentence[: len(words)] for sentence in judge(diagnostics)] == [words]
    assert judge(diagnostics, fits=("poor_fit: x",))[0] == "poor_fit: x"


def seen_of(observation, *, light=0.0, factor=1.0, seed=5, place=(8, 8), flux=100.0):
    """(residual, source, observation) of an exact model of a disk in noise of .1, with more light
    at a pixel; the variance that is told is wrong by `factor`.
    """
    profile = galsim.Convolve(
        galsim.Exponential(half_light_radius=0.5), galsim.Gaussian(fwhm=0.7)
    ).drawImage(nx=41, ny=40, scale=0.2)
    star = galsim.Gaussian(fwhm=0.7).drawImage(
        nx=41, ny=40, scale=0.2, offset=(place[0] - 20, place[1] - 19.5)
    )
    noise = 0.1 * np.random.default_rng(seed).normal(size=(40, 41))
    told = replace(observation, variance=observation.variance * np.float32(factor))
    residual = np.where(observation.mask, 0, noise + light * star.array)
    return residual, flux * profile.array, told


def fit_words(*seen, flux=(100.0, 2.0)):
    return judge_fit(compare(*seen), flux)


@pytest.mark.parametrize("seed", range(5))
def test_a_right_model_in_right_noise_has_nothing_against_it(observation, seed):
    assert fit_words(*seen_of(observation, seed=seed)) == ()


@pytest.mark.parametrize("factor", [1.5, 3, 10, 100])
def test_a_variance_that_is_too_large_is_said_with_its_factor(observation, factor):
    (sentence,) = fit_words(*seen_of(observation, factor=factor))
    said = float(
        re.match(r"noise_overestimated: the variance is about ([.\d]+) times", sentence)[1]
    )
    assert said == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("factor", [1 / 1.5, 1 / 3, 1 / 10])
def test_a_variance_that_is_too_small_is_said_with_its_factor(observation, factor):
    (sentence,) = fit_words(*seen_of(observation, factor=factor))
    said = float(re.match(r"poor_fit: the variance is about ([.\d]+) times too", sentence)[1])
    assert said == pytest.approx(1 / factor, rel=0.15)


@pytest.mark.parametrize("place", [(8, 8), (34, 5), (3, 35)], ids=str)
def test_light_outside_the_model_is_found_where_it_is(observation, place):
    """28 sigma and 9 sigma of a star; the noise moves the peak by a pixel at most."""
    for light in (15.0, 5.0):
        (sentence,) = fit_words(*seen_of(observation, light=light, place=place))
        said = re.search(r"poor_fit: .* at pixel \((\d+), (\d+)\)", sentence)
        assert np.abs(np.array(said.groups(), int) - place).max() <= 1


def test_a_dark_spot_is_found_too(observation):
    assert "poor_fit: a bad pixel" in fit_words(*seen_of(observation, light=-5.0))[0]


@pytest.mark.parametrize("light", [0.0, 15.0], ids=["empty", "galaxy elsewhere"])
def test_nothing_where_the_galaxy_should_be(observation, light):
    seen = seen_of(observation, light=light, flux=1.4)
    (sentence,) = fit_words(*seen, flux=(1.4, 1.3))
    assert sentence.startswith("no_source: the position is not that of a galaxy")
    assert ("but light at pixel (8, 8)" in sentence) == bool(light) and is_failed([sentence])


@pytest.mark.parametrize(
    ("factor", "flux", "cause"),
    [
        pytest.param(1e-5, 100.0, "the variance is far too small", id="chi2 of 1e5"),
        pytest.param(1.0, -8000.0, "too much background is subtracted", id="negative flux"),
    ],
)
def test_nonsense_is_a_failed_fit(observation, factor, flux, cause):
    words = fit_words(*seen_of(observation, factor=factor), flux=(flux, 2.0))
    assert words[0].startswith(f"failed_fit: {cause}") and is_failed(words)


def test_light_at_the_edge_is_measured_against_the_noise_of_its_mean(observation):
    """A level of half a sigma in n good pixels of the edge is sqrt(n) / 2 sigma; what stands inside
    does not count.
    """
    source = np.full(observation.image.shape, 0.05)
    source[2:-2, 2:-2] = 1e3
    num = 2 * 2 * (40 + 41 - 4)
    assert edge_significance(source, observation) == pytest.approx(0.5 * np.sqrt(num), rel=1e-6)
    assert edge_significance(source, replace(observation, mask=np.ones(source.shape, bool))) == 0


def test_a_galaxy_larger_than_its_stamp_is_said_to_be_cut_off(observation):
    broad = (
        galsim.Convolve(
            galsim.Exponential(half_light_radius=2.0, flux=400), galsim.Gaussian(fwhm=0.7)
        )
        .drawImage(nx=41, ny=40, scale=0.2)
        .array
    )
    assert any(
        sentence.startswith("cut_off: the galaxy's light reaches the edge of the stamp")
        for sentence in fake_result(observation, model=broad).status
    )
    assert not any(sentence.startswith("cut_off") for sentence in fake_result(observation).status)


def test_judge_is_silent_on_a_good_result():
    good = {"r_hat": 1.005, "k_hat": 0.6, "num_divergent": 0, "map_converged": 1.0, "min_ess": 500}
    assert judge(good) == ()


# --- Result


def test_result_holds_mean_deviation_and_residual(observation):
    result = fake_result(observation)
    assert result.image == pytest.approx(result.draws.mean(0), rel=1e-5)
    assert result.image_std == pytest.approx(result.draws.std(0), rel=1e-3, abs=1e-9)
    assert (result.residual[observation.mask] == 0).all()
    good = ~observation.mask
    assert result.residual[good] == pytest.approx((observation.image - result.model)[good])
    assert result.converged and result.status == () and 0.7 < result.chi2 < 1.3
    assert {
        a.dtype.name
        for a in (result.image, result.image_std, result.residual, result.draws, result.model)
    } == {"float32"}


def test_imagined_solutions_are_draws_and_repeat_with_the_seed(observation):
    result = fake_result(observation)
    images = result.draw_images(5, seed=3)
    assert np.array_equal(images, result.draw_images(5, seed=3))
    assert all(any(np.array_equal(image, draw) for draw in result.draws) for image in images)
    with pytest.raises(
        ValueError, match="num must be between 0 and the 40 draws that this result holds, got 41"
    ):
        result.draw_images(41, seed=1)


def test_summary_names_every_quantity(observation):
    text = fake_result(observation, diagnostics={"k_hat": 0.9}).summary()
    for words in (
        "galaxy 7",
        "flux",
        "nJy",
        "half-light radius",
        "arcsec",
        "e1",
        "e2",
        "±",
        "reduced chi2",
        "not_converged: k-hat",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"draws": np.zeros((40, 64))},
            r"draws must be \[num_draws, 1 bands, height, width\], got shape \(40, 1, 64\)",
            id="draws",
        ),
        pytest.param(
            {"model": np.zeros((5, 5))},
            r"light must have the observation's shape \(40, 41\), got \(5, 5\)",
            id="model",
        ),
        pytest.param(
            {"flux_draws": np.zeros(3)},
            "flux_draws must have one row for each of the 40 draws, got 3",
            id="flux",
        ),
    ],
)
def test_make_result_refuses_shapes_that_do_not_belong_together(observation, changes, message):
    with pytest.raises(ValueError, match=message):
        fake_result(observation, **changes)


def test_draws_that_are_not_finite_are_left_out_and_said(observation):
    draws = np.repeat(draw_galaxy()[None], NUM_DRAWS, axis=0)
    draws[4, 3, 3] = np.nan
    result = fake_result(observation, draws=draws)
    assert (
        len(result.draws) == len(result.flux_draws) == NUM_DRAWS - 1
        and np.isfinite(result.image).all()
    )
    assert not result.converged and "1 draws were not finite" in result.status[0]
    assert (
        fake_result(observation, draws=np.full_like(draws, np.nan))
        .status[0]
        .startswith("not_converged: the posterior is not finite")
    )


def test_no_data_is_a_result_with_a_reason(observation, tmp_path):
    empty = make_observation(
        np.ones((40, 41)), psf=observation.psf, sigma=0.1, mask=np.ones((40, 41)), pixel_scale=0.2
    )
    result = fake_result(empty)
    assert (
        result.status == ("no_data: every pixel is masked",)
        and not result.converged
        and not result.image.any()
    )
    result.write_fits(tmp_path / "empty.fits")
    assert read_result(tmp_path / "empty.fits").status == result.status
    assert "flux               -" in result.summary()


# --- the sky


@pytest.mark.parametrize("matrix", ["cd", "pc"])
def test_deconvolved_wcs_sees_the_same_sky(matrix):
    shape = (40, 41)
    wcs = sky_wcs(shape, 0.2)
    if matrix == "pc":
        wcs = WCS(wcs.to_header())
    fine = deconvolved_wcs(wcs, shape, ratio=2.0, shape=(64, 64))
    # A point 1.4" to the right of the centre and 0.6" above it, in the pixels (from 0) of both
    # grids.
    seen, made = wcs.pixel_to_world(20 + 7, 19.5 + 3), fine.pixel_to_world(31.5 + 14, 31.5 + 6)
    assert seen.separation(made).arcsec < 1e-6


def test_deconvolved_wcs_replaces_distortions_by_their_linear_part():
    header = sky_wcs((40, 41), 0.2).to_header()
    header.update(
        {
            "CTYPE1": "RA---TAN-SIP",
            "CTYPE2": "DEC--TAN-SIP",
            "A_ORDER": 2,
            "B_ORDER": 2,
            "A_2_0": 2e-5,
            "B_0_2": 1e-5,
        }
    )
    distorted = WCS(header)
    fine = deconvolved_wcs(distorted, (40, 41), ratio=2.0, shape=(64, 64))
    assert not fine.has_distortion
    assert (
        distorted.pixel_to_world(27, 22.5).separation(fine.pixel_to_world(45.5, 37.5)).arcsec
        < 0.002
    )


def test_galaxy_lies_at_the_same_sky_position_in_image_and_observation(observation, tmp_path):
    shift = (0.31, -0.17)
    result = fake_result(
        observation, draws=np.repeat(draw_galaxy(shift=shift)[None], NUM_DRAWS, axis=0)
    )
    result.write_fits(tmp_path / "r.fits")
    moments = galsim.hsm.FindAdaptiveMom(galsim.Image(result.image)).moments_centroid
    found = read_plane_wcs(tmp_path / "r.fits", "IMAGE").pixel_to_world(
        moments.x - 1, moments.y - 1
    )
    expected = observation.wcs.pixel_to_world(20 + shift[0] / 0.2, 19.5 + shift[1] / 0.2)
    assert found.separation(expected).arcsec < 1e-3


# --- files


def test_result_survives_its_file(observation, tmp_path):
    result = fake_result(observation, diagnostics={"k_hat": 0.9, "r_hat": math.nan})
    result.write_fits(tmp_path / "r.fits")
    back = read_result(tmp_path / "r.fits")
    for name in (
        "image",
        "image_std",
        "model",
        "residual",
        "draws",
        "latent_draws",
        "flux_draws",
        "shift_draws",
        "background_draws",
    ):
        assert np.array_equal(getattr(back, name), getattr(result, name)), name
        assert getattr(back, name).dtype == getattr(result, name).dtype
    for name in ("image", "variance", "mask", "pixel_scale", "name", "notes", "status", "unit"):
        assert np.array_equal(getattr(back.observation, name), getattr(observation, name)), name
    assert np.array_equal(back.observation.psf.image, observation.psf.image)
    for name in (
        "prior_scale",
        "target_fwhm",
        "chi2",
        "p_value",
        "method",
        "status",
        "converged",
        "provenance",
    ):
        assert getattr(back, name) == getattr(result, name), name
    assert back.diagnostics["k_hat"] == 0.9 and math.isnan(back.diagnostics["r_hat"])
    assert back.quantities == result.quantities and back.summary() == result.summary()
    assert back.wcs.pixel_to_world(3, 4).separation(result.wcs.pixel_to_world(3, 4)).arcsec < 1e-6


def test_kept_draws_are_the_first_and_the_quantities_stay_those_of_all(observation, tmp_path):
    result = fake_result(observation)
    result.write_fits(tmp_path / "r.fits", num_draws_kept=5)
    back = read_result(tmp_path / "r.fits")
    assert len(back.draws) == 5 and len(back.flux_draws) == NUM_DRAWS and back.flux == result.flux
    result.write_fits(tmp_path / "none.fits", num_draws_kept=0)
    assert read_result(tmp_path / "none.fits").draws.shape == (0, 64, 64)


def test_file_tells_its_content_without_astrogen(observation, tmp_path):
    result = fake_result(observation)
    result.write_fits(tmp_path / "r.fits")
    planes, header, tables = read_planes(tmp_path / "r.fits")
    assert {"IMAGE", "IMAGE_STD", "MODEL", "RESIDUAL", "OBSERVED", "MASK", "DRAWS"} <= set(
        planes
    ) and len(tables["LATENT"]) == NUM_DRAWS
    assert (
        header["FLUX"] == result.flux[0]
        and header["HLR_ERR"] == pytest.approx(result.half_light_radius[1])
        and header["CONVERGD"] is True
    )


def test_equal_results_are_equal_bytes(observation, tmp_path):
    for name in ("a.fits", "b.fits"):
        fake_result(observation).write_fits(tmp_path / name)
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_read_result_refuses_other_files(observation, tmp_path):
    write_planes(tmp_path / "image.fits", {"IMAGE": np.zeros((4, 4))}, header={})
    with pytest.raises(InputFileError, match="is no result of astrogen"):
        read_result(tmp_path / "image.fits")
    fake_result(observation).write_fits(tmp_path / "r.fits")
    content = (tmp_path / "r.fits").read_bytes()
    (tmp_path / "later.fits").write_bytes(content)
    planes, header, tables = read_planes(tmp_path / "r.fits")
    tables["ABOUT"]["value"][list(tables["ABOUT"]["name"]).index("format")] = '"astrogen result 9"'
    write_planes(tmp_path / "later.fits", planes, header=header, tables=tables)
    with pytest.raises(InputFileError, match="this version reads 'astrogen result 3'"):
        read_result(tmp_path / "later.fits")
    (tmp_path / "cut.fits").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputFileError, match="truncated"):
        read_result(tmp_path / "cut.fits")


def test_flipped_bits_are_an_input_error_or_change_nothing(observation, tmp_path):
    result = fake_result(observation)
    result.write_fits(tmp_path / "r.fits")
    content = (tmp_path / "r.fits").read_bytes()
    rng = np.random.default_rng(8)
    num_refused = 0
    for _ in range(40):
        broken = bytearray(content)
        broken[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (tmp_path / "broken.fits").write_bytes(broken)
        try:
            back = read_result(tmp_path / "broken.fits")
        except InputFileError:
            num_refused += 1
        else:  # the blanks behind a header belong to nothing
            assert np.array_equal(back.draws, result.draws) and back.quantities == result.quantities
    assert num_refused > 30


def test_quantities_are_measured_once(observation, monkeypatch):
    result = fake_result(observation)
    assert result.quantities is result.quantities
    source = replace(result.sources[0], measured=result.quantities)
    assert source.quantities is result.quantities


def scene_result(observation):
    """Two galaxies in two bands, with numbers as draws."""
    rng = np.random.default_rng(3)
    exposures = [observation, replace(observation, name="second", wcs=None)]
    shape = observation.image.shape
    sources = [
        make_source(
            observation,
            f"galaxy {number}",
            Grid(0.1, 0.2, (0.3 * number, -0.1)),
            Drawn(
                rng.uniform(1, 1.1, (12, 2, 1, 1)) * draw_galaxy(1.0),
                [0.3 * number, -0.1] + 0.01 * rng.normal(size=(12, 2)),
                rng.normal(size=(12, 3)),
            ),
            colours=Colours(("g", "G"), "G", 0.5),
            models=rng.normal(size=(2, *shape)),
            residual_amplitude=1.5,
        )
        for number in (1, 2)
    ]
    fits = [
        make_exposure(
            one,
            light=rng.normal(size=shape),
            background_draws=rng.normal(size=12),
            num_fitted=3.0,
            band=band,
        )
        for one, band in zip(exposures, ("g", "G"), strict=True)
    ]
    return make_result(
        sources,
        fits,
        method="hmc",
        diagnostics={"r_hat": 1.2, "k_hat": math.nan},
        status=["blend: two galaxies share light"],
        provenance={"seed": 1},
    )


def same(one, other):
    """Whether two values, arrays, WCS or dataclasses of them say the same, exactly."""
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, WCS):
        return np.allclose(one.all_pix2world([[3, 4]], 0), other.all_pix2world([[3, 4]], 0), 1e-12)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (np.ndarray, float)):
        return np.array_equal(one, other, equal_nan=True)
    return one == other


def test_results_of_several_galaxies_survive_the_disk(observation, tmp_path):
    """Bands whose names differ by case alone, exposures with and without WCS."""
    result = scene_result(observation)
    result.write_fits(tmp_path / "scene.fits")
    back = astrogen.read_result(tmp_path / "scene.fits")
    assert back.summary() == result.summary()
    for source, other in zip(result.sources, back.sources, strict=True):
        assert same(replace(source, measured=source.quantities), other)
    for f in fields(result):
        if f.name != "sources":
            assert same(getattr(result, f.name), getattr(back, f.name)), f.name


def test_what_one_galaxy_has_is_refused_of_several(observation):
    result = scene_result(observation)
    with pytest.raises(InputError, match=r"Result.image: result must hold one source, got 2; take"):
        _ = result.image
    with pytest.raises(InputError, match=r"Result.model: result must hold one exposure, got 2"):
        _ = result.model
    assert not result.is_lone and fake_result(observation).is_lone


def test_a_table_has_a_row_for_each_galaxy_and_band(observation):
    table = scene_result(observation).to_table()
    assert list(table["name"]) == ["galaxy 1"] * 2 + ["galaxy 2"] * 2
    assert list(table["band"]) == ["g", "G"] * 2 and table["flux"].unit == "nJy"
    both = astrogen.results_table([scene_result(observation), fake_result(observation)])
    assert len(both) == 5 and both.colnames == fake_result(observation).to_table().colnames


def test_kept_draws_of_several_galaxies(observation, tmp_path):
    result = scene_result(observation)
    result.write_fits(tmp_path / "some.fits", num_draws_kept=5)
    back = astrogen.read_result(tmp_path / "some.fits").sources[1]
    assert np.array_equal(back.draws, result.sources[1].draws[:5])
    assert back.quantities == result.sources[1].quantities and len(back.flux_draws) == 12
    result.write_fits(tmp_path / "none.fits", num_draws_kept=0)
    assert astrogen.read_result(tmp_path / "none.fits").sources[0].draws.shape == (0, 2, 64, 64)
