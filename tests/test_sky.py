"""A sky that was left in, of any height, is taken off and reported; few good pixels still give an
answer.
"""

from dataclasses import replace

import galsim
import numpy as np
import pytest

from astrogen import (
    deblend,
    deconvolve,
    deconvolve_jointly,
    load_prior,
    make_observation,
)
from astrogen.data.sky import border_level, judge_sky, level_off
from astrogen.galaxies.quantities import format_value
from astrogen.galsim_objects import psf_from_galsim

SCALE, SIGMA = 0.2, 0.5
PSF = galsim.Moffat(beta=3.5, fwhm=0.7)


@pytest.fixture(scope="module")
def prior():
    return load_prior("galaxy")


@pytest.fixture(scope="module")
def psf():
    return psf_from_galsim(PSF, pixel_scale=SCALE, num_pixels=35)


def scene(*, flux=1000.0, side=33, neighbour=0.0, seed=1):
    """Pixels [side, side] of a galaxy, with noise, and a neighbour that stands on the border."""
    galaxy = galsim.Exponential(half_light_radius=0.5, flux=flux).shear(g1=0.2, g2=0.1)
    seen = galaxy
    if neighbour:
        place = (side // 2 - 1) * SCALE
        seen += galsim.Exponential(half_light_radius=0.4, flux=neighbour).shift(place, -place / 2)
    image = galsim.Convolve(seen, PSF).drawImage(nx=side, ny=side, scale=SCALE, dtype=float)
    return image.array + np.random.default_rng(seed).normal(0, SIGMA, (side, side))


def observed(image, psf, *, name="galaxy", sigma=SIGMA, mask=None):
    return make_observation(image, psf=psf, sigma=sigma, mask=mask, pixel_scale=SCALE, name=name)


# ---- the level ----


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="bright"),
        pytest.param({"flux": 20.0}, id="faint"),
        pytest.param({"neighbour": 3000.0}, id="neighbour_at_the_border"),
        pytest.param({"side": 49}, id="large_stamp"),
    ],
)
def test_the_level_is_that_of_the_border(psf, options):
    level = border_level(observed(scene(**options) + 137.0, psf))
    assert level == pytest.approx(137.0, abs=0.3 * SIGMA)


def test_masked_pixels_do_not_count_for_the_level(psf):
    image, mask = scene() + 50.0, np.zeros((33, 33), bool)
    mask[:, :4] = mask[:3] = True
    image[mask] = 1e6
    assert border_level(observed(image, psf, mask=mask)) == pytest.approx(50.0, abs=0.3 * SIGMA)


def test_the_level_is_taken_off_in_float64(psf):
    """What is left of 10^5 sigma of sky is the stamp, to the digits that the recorded one had."""
    image = scene()
    stamp = level_off(observed(image + 1e5 * SIGMA, psf), background="fit")
    assert np.log2(stamp.unit) == round(np.log2(stamp.unit))
    back = stamp.observation.image * stamp.unit + stamp.level - 1e5 * SIGMA
    assert np.abs(back - image).max() < np.spacing(np.float32(1e5 * SIGMA))
    assert 0.5 < np.median(stamp.observation.variance) < 2


@pytest.mark.parametrize("flux", [50.0, 1000.0, 1e4], ids=["faint", "medium", "bright"])
@pytest.mark.parametrize("neighbour", [0.0, 500.0], ids=["alone", "neighbour_at_the_border"])
def test_inference_sees_the_same_stamp_whatever_the_sky(psf, flux, neighbour):
    image = scene(flux=flux, neighbour=neighbour)
    bare, covered = (
        level_off(observed(image + sky, psf), background="fit") for sky in (0.0, 1000 * SIGMA)
    )
    assert covered.level - bare.level == pytest.approx(1000 * SIGMA, abs=1e-3 * SIGMA)
    difference = covered.observation.image - bare.observation.image
    assert np.abs(difference).max() < 1e-3


# ---- the whole way ----


def test_flux_and_size_are_those_without_the_sky(psf, prior):
    """At 1000 and 10^5 sigma a pixel: faint, bright, small, and with a neighbour at the border."""
    cases = {
        "faint": scene(flux=60.0),
        "bright": scene(flux=5000.0),
        "neighbour": scene(neighbour=600.0),
    }
    skies = (0.0, 1000 * SIGMA, 1e5 * SIGMA)
    results = deconvolve(
        [observed(image + sky, psf, name=name) for name, image in cases.items() for sky in skies],
        prior=prior,
        num_draws=64,
        seed=1,
    )
    for start in range(0, len(results), len(skies)):
        bare = results[start]
        for sky, covered in zip(skies[1:], results[start + 1 : start + 3], strict=True):
            for quantity in ("flux", "half_light_radius"):
                (value, _), (expected, error) = (
                    getattr(result, quantity) for result in (covered, bare)
                )
                assert abs(value - expected) < error, (bare.name, sky, quantity)
            level, error = covered.background
            assert abs(level - sky - bare.background[0]) < error + 2e-7 * sky
            assert f"background         {format_value(covered.background)} a pixel" in (
                covered.summary()
            )
            assert covered.to_table()["background"][0] == level


def test_each_exposure_of_a_joint_fit_has_its_own_sky(psf, prior):
    skies = (0.0, 1000 * SIGMA)
    exposures = [observed(scene(seed=seed), psf, name=f"exposure {seed}") for seed in (1, 2)]
    covered = [
        observed(scene(seed=seed) + sky, psf, name=f"exposure {seed}")
        for seed, sky in zip((1, 2), skies, strict=True)
    ]
    bare, fitted = (
        deconvolve_jointly(some, aligned=True, prior=prior, num_draws=64, seed=1)
        for some in (exposures, covered)
    )
    expected, error = bare.flux
    assert abs(fitted.flux[0] - expected) < error
    levels, errors = np.transpose([exposure.background for exposure in fitted.exposures])
    without = np.array([exposure.background[0] for exposure in bare.exposures])
    assert np.all(np.abs(levels - skies - without) < errors)
    table = fitted.exposure_table()
    np.testing.assert_array_equal(table["background"], levels)
    assert list(table["name"]) == ["exposure 1", "exposure 2"]
    for level in zip(levels, errors, strict=True):
        assert f"background {format_value(level)} a pixel" in fitted.summary()


def deblended(psf, prior, sky, **options):
    """(fit of two galaxies whose light meets under a sky, their fluxes as drawn)."""
    fluxes, places = (3000.0, 1500.0), ((-1.1, 0.3), (1.2, -0.4))  # arcsec from the middle
    drawn = galsim.Add(
        [
            galsim.Exponential(half_light_radius=0.4, flux=flux).shear(g1=0.1, g2=0.0).shift(*place)
            for flux, place in zip(fluxes, places, strict=True)
        ]
    )
    seen = galsim.Convolve(drawn, PSF).drawImage(nx=41, ny=41, scale=SCALE, dtype=float).array
    image = seen + np.random.default_rng(4).normal(0, SIGMA, seen.shape)
    sources = np.array(places) / SCALE + 20
    fit = deblend(observed(image + sky, psf), sources=sources, prior=prior, seed=1, **options)
    return fit, fluxes


def test_a_sky_left_in_is_no_galaxys_of_a_blend(psf, prior):
    """The level is the sky's, and the fluxes at the mode are those without it, and as drawn."""
    bare, covered = (
        deblended(psf, prior, sky, method="map", num_draws=32) for sky in (0.0, 1000 * SIGMA)
    )
    for source, other, flux in zip(bare[0].sources, covered[0].sources, bare[1], strict=True):
        value = other.flux_draws.mean()
        assert value == pytest.approx(source.flux_draws.mean(), rel=0.01)
        assert value == pytest.approx(flux, rel=0.1)
    level, error = covered[0].exposures[0].background
    assert abs(level - 1000 * SIGMA - bare[0].exposures[0].background[0]) < error < SIGMA
    assert not any(words.startswith("sky") for words in covered[0].status)


@pytest.mark.slow
def test_errors_of_a_blend_hold_under_a_sky(psf, prior):
    fit, fluxes = deblended(psf, prior, 1000 * SIGMA, num_draws=64)
    for source, flux in zip(fit.sources, fluxes, strict=True):
        value, error = source.flux_draws.mean(), source.flux_draws.std()
        assert abs(value - flux) < 3 * error < 0.15 * flux, source.name
    level, error = fit.exposures[0].background
    assert abs(level - 1000 * SIGMA) < 4 * error < SIGMA


@pytest.mark.parametrize("scale", [2.0**-58, 2.0**58], ids=["tiny_units", "huge_units"])
def test_joint_fits_scale_with_the_units(psf, prior, scale):
    image = scene()
    plain, scaled = (
        deconvolve_jointly(
            [observed(image * factor, psf, sigma=SIGMA * factor)], prior=prior, num_draws=32, seed=1
        )
        for factor in (1.0, scale)
    )
    np.testing.assert_allclose(
        scaled.sources[0].flux_draws / scale, plain.sources[0].flux_draws, rtol=1e-5
    )
    assert scaled.exposures[0].fit.chi2_all == pytest.approx(
        plain.exposures[0].fit.chi2_all, rel=1e-5
    )
    assert scaled.image_std.max() / scale == pytest.approx(plain.image_std.max(), rel=1e-5)


# ---- few pixels ----


@pytest.mark.parametrize("background", ["fit", "fixed"])
def test_few_good_pixels_give_an_answer_within_its_errors(psf, prior, background):
    """Fewer pixels than directions that the data could have: 9 to 300, scattered at random."""
    rng = np.random.default_rng(5)
    stamps = []
    for num in (9, 12, 20, 50, 100, 150, 300):
        mask = np.ones(33 * 33, bool)
        mask[rng.choice(mask.size, num, replace=False)] = False
        stamps.append(observed(scene(), psf, name=f"{num}", mask=mask.reshape(33, 33)))
    results = deconvolve(stamps, prior=prior, num_draws=32, seed=1, background=background)
    for result in results:
        flux, error = result.flux
        assert np.isfinite(result.draws).all() and np.isfinite(result.model).all(), result.name
        assert abs(flux - 1000) < 4 * error, result.name
        assert not any("not finite" in sentence for sentence in result.status)
    assert results[0].flux[1] > 3 * results[-1].flux[1]


@pytest.mark.parametrize("side", [9, 13, 21])
def test_a_tiny_exposure_alone_is_fitted_jointly_as_it_is_singly(prior, side):
    psf = psf_from_galsim(PSF, pixel_scale=SCALE, num_pixels=15)
    first = (33 - side) // 2
    image = scene(seed=3)[first : first + side, first : first + side]
    stamp = observed(image, psf, name=f"tiny {side}")
    single = deconvolve(stamp, prior=prior, num_draws=64, seed=1)
    joint = deconvolve_jointly([stamp], prior=prior, num_draws=64, seed=1)
    fluxes = joint.sources[0].flux_draws[:, 0]
    assert abs(np.median(fluxes) - single.flux[0]) < 0.5 * single.flux[1]
    assert fluxes.std() == pytest.approx(single.flux[1], rel=0.35)
    assert joint.chi2 == pytest.approx(single.chi2, abs=0.1) and 0.5 < joint.chi2 < 1.6


def test_a_stamp_without_sky_beside_the_galaxy_says_so(psf, prior):
    """Galaxy and background trade: the middle pixels alone; not where sky is left, or held."""
    stamps = []
    for half in (2, 3, 9, 16):
        mask = np.ones((33, 33), bool)
        mask[16 - half : 17 + half, 16 - half : 17 + half] = False
        stamps.append(observed(scene(), psf, name=f"{half}", mask=mask))
    results = deconvolve(stamps, prior=prior, num_draws=32, seed=1)
    said = [any(words.startswith("too_small:") for words in r.status) for r in results]
    assert said == [True, True, False, False]
    joint = deconvolve_jointly(stamps[:1], prior=prior, num_draws=32, seed=1)
    assert any("too_small:" in words for words in joint.status)
    (held,) = deconvolve(stamps[:1], prior=prior, num_draws=32, seed=1, background="fixed")
    assert not any(words.startswith("too_small:") for words in held.status)


# ---- words ----


def slope(rise):
    return np.linspace(-rise / 2, rise / 2, 33) * np.ones((33, 1))


@pytest.mark.parametrize(
    "sky, background, expected",
    [
        pytest.param(0.0, "fit", (), id="none"),
        pytest.param(500.0, "fit", (), id="constant"),
        pytest.param(0.0, "fixed", (), id="none_fixed"),
        pytest.param(5.0, "fixed", ("sky_left_in: the stamp's border lies at 5.0",), id="left_in"),
        pytest.param(-5.0, "fixed", ("sky_left_in: the stamp's border lies at -",), id="negative"),
        pytest.param(
            500.0 + slope(3.0), "fit", ("sky_gradient: the background rises by 3.",), id="gradient"
        ),
    ],
)
def test_a_sky_that_was_not_allowed_for_is_named(psf, sky, background, expected):
    noise = np.random.default_rng(3).normal(0, SIGMA, (33, 33))
    stamp = level_off(observed(noise + sky, psf), background=background)
    said = judge_sky(stamp, np.zeros((33, 33)), background, error=0.05)
    assert len(said) == len(expected)
    assert all(words.startswith(beginning) for words, beginning in zip(said, expected, strict=True))


def test_a_stamp_without_good_pixels_stays_as_it_is(psf):
    empty = replace(observed(scene(), psf), mask=np.ones((33, 33), bool), status="no_data")
    assert level_off(empty, background="fit").observation is empty
