"""Joint fits against simulated truth: fluxes of several exposures and bands, stacks, blends, and a
lone galaxy against the plain fit; the tie of bands against dense normals; detection.
"""

from functools import lru_cache

import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from scipy import stats

from astrogen import deblend, deconvolve, deconvolve_jointly, load_prior, make_observation, make_psf
from astrogen.data.detection import detect, mask_neighbours, read_positions
from astrogen.data.frames import find_frames
from astrogen.galaxies.bands import (
    COLOUR_MEDIAN,
    COLOUR_SPREAD,
    COLOURS,
    LOOSENESS,
    draw_bands,
    likeliest_colour,
    tie_bands,
    tied_moment,
)
from astrogen.galaxies.conclude import Colours, Drawn, Grid, make_source
from astrogen.galaxies.plans import plan_alone
from astrogen.galaxies.scene import Scene

SCALE, SIDE = 0.2, 40


def _wcs(angle=0.0, scale=SCALE, offset=(0.0, 0.0), mirrored=False):
    """A gnomonic WCS whose reference point lies `offset` pixels from the middle of the stamp."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix = (SIDE + 1) / 2 + np.array(offset)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = turn @ np.diag([1 if mirrored else -1, 1]) * scale / 3600
    return wcs


def _exposure(galaxy, *, fwhm, sigma, seed, wcs=None, name="one", scale=SCALE):
    """What a Moffat PSF makes of a galaxy that stands on the reference point, east to the left as
    on the sky.
    """
    wcs = _wcs(scale=scale) if wcs is None else wcs
    jacobian = galsim.JacobianWCS(*(np.diag([-1, 1]) @ wcs.wcs.cd * 3600).ravel())
    psf = galsim.Moffat(beta=3, fwhm=fwhm)
    middle = wcs.wcs.crpix - (SIDE + 1) / 2
    image = (
        galsim.Convolve(galaxy, psf)
        .drawImage(nx=SIDE, ny=SIDE, wcs=jacobian, offset=tuple(middle))
        .array.astype(float)
    )
    kernel = psf.drawImage(nx=41, ny=41, wcs=jacobian).array.astype(float)
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return make_observation(
        image + noise,
        sigma=sigma,
        psf=make_psf(kernel / kernel.sum(), pixel_scale=scale),
        wcs=wcs,
        pixel_scale=scale,
        name=name,
    )


GALAXY = galsim.Exponential(half_light_radius=0.6, flux=1.0).shear(g1=0.25, g2=0.1)


@lru_cache(maxsize=1)
def _prior():
    return load_prior("galaxy")


def test_one_exposure_is_the_plain_fit():
    seen = _exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1)
    joint = deconvolve_jointly([seen], prior=_prior(), num_draws=200, seed=1)
    plain = deconvolve(seen, prior=_prior(), num_draws=200, seed=1)
    source, (flux, error) = joint.sources[0], plain.flux
    assert joint.flux[0] == pytest.approx(flux, abs=0.25 * error)
    assert joint.flux[1] == pytest.approx(error, rel=0.25)
    assert source.quantities.half_light_radius[0] == pytest.approx(
        plain.half_light_radius[0], abs=0.3 * plain.half_light_radius[1]
    )
    assert joint.chi2 == pytest.approx(plain.chi2, abs=0.03)
    assert np.abs(joint.model - plain.model).max() < 0.3 * 0.15
    assert joint.background_draws.std() == pytest.approx(plain.background_draws.std(), rel=0.25)
    for images, shifts in (
        (source.draws[:, 0], source.shift_draws),
        (plain.draws, plain.shift_draws),
    ):
        side = np.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
        inside = images * np.exp(-(side**2 + side[:, None] ** 2) / (2 * 4.0**2))
        for axis, place in enumerate((side, side[:, None])):
            seen = (inside * place).sum((1, 2)) / inside.sum((1, 2))
            # What says where the galaxy is, moves its light.
            assert np.corrcoef(seen, shifts[:, axis])[0, 1] > 0.3


def test_equal_exposures_are_their_stack():
    exposures = [_exposure(GALAXY * 100, fwhm=0.7, sigma=0.3, seed=seed) for seed in (1, 2, 3)]
    stack = make_observation(
        np.mean([exposure.image for exposure in exposures], 0),
        sigma=0.3 / np.sqrt(3),
        psf=exposures[0].psf,
        pixel_scale=SCALE,
        name="one",
    )
    joint, single = (
        deconvolve_jointly(some, prior=_prior(), seed=1).sources[0] for some in (exposures, [stack])
    )
    (flux, error), (expected, expected_error) = (
        tuple(part[0] for part in source.flux) for source in (joint, single)
    )
    assert flux == pytest.approx(expected, abs=0.3 * expected_error) and error == pytest.approx(
        expected_error, rel=0.3
    )
    inside = single.images > 0.05 * single.images.max()
    assert np.sqrt(np.mean(((joint.images - single.images) / single.images_std)[inside] ** 2)) < 0.5


def test_turned_mirrored_and_moved_exposures_agree():
    """One galaxy through three WCS: the fit of all is consistent with each exposure's noise, and
    the object lies where the reference point is.
    """
    exposures = [
        _exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1),
        _exposure(GALAXY * 100, fwhm=0.8, sigma=0.15, seed=2, wcs=_wcs(0.6, offset=(2.3, -1.4))),
        _exposure(
            GALAXY * 100,
            fwhm=0.75,
            sigma=0.15,
            seed=3,
            wcs=_wcs(2.0, 0.25, mirrored=True),
            scale=0.25,
        ),
    ]
    result = deconvolve_jointly(exposures, prior=_prior(), method="laplace", seed=1)
    assert max(abs(exposure.fit.chi2_all - 1) for exposure in result.exposures) < 0.12
    flux, error = result.flux_draws.mean(), result.flux_draws.std()
    assert abs(flux - 100) < 3 * error and 0.3 < error < 3
    assert np.hypot(result.sources[0].x - 19.5, result.sources[0].y - 19.5) < 0.15
    sky = result.sources[0].wcs.pixel_to_world(31.5, 31.5)
    assert (
        sky.separation(
            exposures[0].wcs.pixel_to_world(result.sources[0].x, result.sources[0].y)
        ).arcsec
        < 0.1
    )


def test_the_place_of_a_galaxy_is_found_in_whichever_exposure_shows_it_best():
    """The second one is deeper, turned, and has the galaxy away from its middle; places are told
    along the axes of the first.
    """
    moved = GALAXY.shift(-0.42, 0.26) * 100  # to the east: towards larger columns' other side
    exposures = [
        _exposure(moved, fwhm=0.7, sigma=1.5, seed=1),
        _exposure(moved, fwhm=0.7, sigma=0.05, seed=2, wcs=_wcs(0.8, offset=(3.3, -2.4))),
    ]
    scene = Scene(exposures, ["", ""], find_frames(exposures), _prior(), "fit")
    plan = plan_alone(scene, (1, 2), None)
    np.testing.assert_allclose(plan.place, [-0.42, 0.26], atol=0.05)


# ---- bands ----


def test_the_likeliest_colour_is_that_of_the_evidence(rng):
    """Of data of two bands given the image: scipy's normals of the pixels, with the prior of the
    gradients' strength. Bands without gradients, and with strong ones.
    """
    size, pixels, scale, found = 4, 9, 0.7, []
    for strength in np.geomspace(0.005, 1.5, 60):
        forwards = 25 * rng.normal(size=(2, pixels, size))
        shape, deviations = rng.normal(size=size), 0.5 + rng.random(size)
        own = strength * deviations * rng.normal(size=size) + 0.3 * shape * rng.normal()
        data = forwards[1] @ (scale * (shape + own)) + rng.normal(size=pixels)
        values = []
        for colour in COLOURS:
            spread = np.diag((colour * deviations) ** 2) + LOOSENESS**2 * np.outer(shape, shape)
            evidence = stats.multivariate_normal(
                scale * forwards[1] @ shape,
                np.eye(pixels) + scale**2 * forwards[1] @ spread @ forwards[1].T,
            ).logpdf(data)
            prior = stats.norm.logpdf(np.log(colour), np.log(COLOUR_MEDIAN), COLOUR_SPREAD)
            values.append(evidence + prior)
        grams = forwards.transpose(0, 2, 1) @ forwards
        moments = np.stack([np.zeros(size), forwards[1].T @ data])
        found.append(
            likeliest_colour(
                grams, moments, np.array([1.0, scale]), 0, shape=shape, deviations=deviations
            )
        )
        assert found[-1] == COLOURS[int(np.argmax(values))]
    assert len(set(found)) > 4


def _tied(rng, size=4):
    """A Tie of three bands, the first the reference; their moments [band, 1, k]; the prior
    covariance of each band's own part; normal matrices.
    """
    grams = np.stack([root @ root.T for root in 3 * rng.normal(size=(3, size, size))])
    shape, deviations, colour = rng.normal(size=size), 0.5 + rng.random(size), 0.3
    tie = tie_bands(
        grams, np.array([1.0, 0.6, 1.5]), 0, shape=shape, colour=colour, deviations=deviations
    )
    own = np.diag((colour * deviations) ** 2) + LOOSENESS**2 * np.outer(shape, shape)
    return tie, rng.normal(size=(3, 1, size)), own, grams


def test_tied_bands_are_the_dense_normal_of_all_coefficients(rng):
    """c with a flat prior and eta of two bands ~ N(0, own): normal equations of all unknowns,
    marginalised by a Schur complement, and drawn.
    """
    tie, moments, own, grams = _tied(rng)
    size = len(own)
    to_bands = [
        np.concatenate(
            [scale * np.eye(size), *(scale * np.eye(size) * (band == other) for other in (1, 2))], 1
        )
        for band, scale in enumerate(tie.scales)
    ]
    precision = sum(to.T @ gram @ to for to, gram in zip(to_bands, grams, strict=True))
    precision[size:, size:] += np.kron(np.eye(2), np.linalg.inv(own))
    moment = sum(to.T @ moment[0] for to, moment in zip(to_bands, moments, strict=True))
    aside = precision[:size, size:] @ np.linalg.inv(precision[size:, size:])
    np.testing.assert_allclose(
        tie.gram, precision[:size, :size] - aside @ precision[size:, :size], rtol=1e-8, atol=1e-8
    )
    np.testing.assert_allclose(
        tied_moment(tie, moments)[0], moment[:size] - aside @ moment[size:], rtol=1e-8, atol=1e-8
    )
    coefficients = rng.normal(size=size)
    covariance = np.linalg.inv(precision[size:, size:])
    eta = covariance @ (moment[size:] - precision[size:, :size] @ coefficients)
    drawn = draw_bands(tie, np.tile(coefficients, (20000, 1)), np.repeat(moments, 20000, 1), rng)
    for band, scale in ((1, 0.6), (2, 1.5)):
        ours = slice((band - 1) * size, band * size)
        expected, spread = scale * (coefficients + eta[ours]), scale**2 * covariance[ours, ours]
        np.testing.assert_allclose(
            (drawn[band].mean(0) - expected) / np.sqrt(np.diag(spread)), 0, atol=0.04
        )
        np.testing.assert_allclose(np.cov(drawn[band].T), spread, atol=0.04 * np.abs(spread).max())
    np.testing.assert_array_equal(drawn[0], np.tile(coefficients, (20000, 1)))


def test_bands_of_other_depth_scale_and_mask_have_their_own_fluxes():
    """A red bulge in a blue disc, through two cameras: fluxes within their errors, colour gradients
    seen, and no masked pixel counts.
    """
    disc, bulge = GALAXY, galsim.DeVaucouleurs(half_light_radius=0.35, flux=1.0)
    blue = _exposure(100 * disc + 5 * bulge, fwhm=0.7, sigma=0.12, seed=1, name="blue")
    red = _exposure(
        60 * disc + 90 * bulge,
        fwhm=0.8,
        sigma=0.25,
        seed=2,
        wcs=_wcs(0.4, 0.25, offset=(1.2, 0.3)),
        scale=0.25,
        name="red",
    )
    mask = np.zeros(red.image.shape, bool)
    mask[22:25, 5:30] = True
    seen = [
        [
            blue,
            make_observation(
                np.where(mask, level, red.image),
                sigma=0.25,
                psf=red.psf,
                wcs=red.wcs,
                pixel_scale=0.25,
                mask=mask,
                name="red",
            ),
        ]
        for level in (0.0, 1e5)
    ]
    result, other = (
        deconvolve_jointly(exposures, bands=["g", "r"], prior=_prior(), seed=1)
        for exposures in seen
    )
    source = result.sources[0]
    fluxes, errors = source.flux
    assert (np.abs(fluxes - [105, 150]) < 3.5 * errors).all() and (errors < [4, 9]).all()
    assert max(abs(exposure.fit.chi2_all - 1) for exposure in result.exposures) < 0.12
    np.testing.assert_allclose(np.sqrt(np.diag(source.flux_covariance)), errors, rtol=0.02)
    centre = source.images[:, 30:34, 30:34].sum((1, 2)) / source.images.sum((1, 2))
    assert centre[1] > 1.2 * centre[0]  # redder inside
    np.testing.assert_array_equal(result.sources[0].draws, other.sources[0].draws)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.6, -1.2)], ids=str)
def test_a_source_is_measured_where_its_draws_stand(shift):
    """Draws are images about `place`, places are arcsec from the middle of the first stamp: half of
    a round Gaussian's light lies within 1.177 sigma.
    """
    place, sigma = np.array([-2.0, 0.7]), 0.4
    image = (
        galsim.Gaussian(sigma=sigma, flux=3).shift(*shift).drawImage(nx=64, ny=64, scale=0.1).array
    )
    source = make_source(
        _exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1),
        "one",
        Grid(0.1, 0.2, place),
        Drawn(
            np.tile([np.zeros_like(image), image], (10, 1, 1, 1)),
            np.tile(place + shift, (10, 1)),
            np.zeros((10, 2)),
        ),
        colours=Colours(("g", "r"), "r", 1.0),
        residual_amplitude=1.0,
    )
    assert source.quantities.half_light_radius[0] == pytest.approx(1.177 * sigma, rel=0.01)
    assert source.quantities.e1[0] == pytest.approx(0, abs=1e-3)


# ---- blends ----


def _pair(seed=1):
    """Two galaxies 1.8 arcsec apart in one exposure, of fluxes 100 and 60."""
    return _exposure(
        GALAXY.shift(-0.9, 0.1) * 100
        + galsim.Exponential(half_light_radius=0.35).shear(g1=-0.2, g2=0.1).shift(0.9, -0.1) * 60,
        fwhm=0.7,
        sigma=0.15,
        seed=seed,
        name="pair",
    )


def _pair_places():
    return np.array([[19.5 - 4.5, 19.5 + 0.5], [19.5 + 4.5, 19.5 - 0.5]])


def test_detected_where_they_are():
    found = detect([_pair()])
    assert len(found) == 2 and np.abs(found - _pair_places()).max() < 1.5


def test_a_neighbour_is_masked_and_the_galaxy_is_not():
    pair, (left, right) = _pair(), _pair_places()
    for place, other in ((left, right), (right, left)):
        masked = mask_neighbours(pair, place=tuple(place))
        added = masked.mask & ~pair.mask
        assert (
            added[int(other[1]), int(other[0])]
            and not added[
                int(place[1]) - 1 : int(place[1]) + 2, int(place[0]) - 1 : int(place[0]) + 2
            ].any()
        )
        assert (
            masked.notes[-1] == f"{added.sum()} pixels of 1 neighbours masked"
            and 30 < added.sum() < 300
        )
        assert (
            (masked.image[added] == 0).all()
            and (masked.variance[added] == 1).all()
            and not masked.image.flags.writeable
        )
    alone = _exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1)
    assert mask_neighbours(alone) is alone


def test_what_is_masked_beside_a_galaxy_does_not_bias_it():
    """A neighbour four arcseconds away; the same noise without it."""
    lonely = GALAXY.shift(0.1, 0.05) * 100
    crowded = lonely + galsim.Exponential(half_light_radius=0.35).shift(2.6, 2.2) * 80
    both, one = (_exposure(light, fwhm=0.7, sigma=0.15, seed=3) for light in (crowded, lonely))
    unmasked, masked, alone = deconvolve([both, mask_neighbours(both), one], prior=_prior(), seed=1)
    assert unmasked.chi2 > 1.3 and masked.chi2 < 1.15
    assert (
        masked.flux[0] == pytest.approx(alone.flux[0], abs=alone.flux[1])
        and masked.flux[1] < 1.5 * alone.flux[1]
    )


def test_the_mode_of_a_pair_is_found_from_a_catalogue_on_the_sky():
    pair = _pair()
    sky = pair.wcs.pixel_to_world(*_pair_places().T)
    np.testing.assert_allclose(read_positions(pair, sky), _pair_places(), atol=1e-6)
    result = deblend(pair, sources=sky, prior=_prior(), method="map", num_draws=8, seed=1)
    fluxes = [source.flux[0][0] for source in result.sources]
    # they share light
    assert fluxes == pytest.approx([100, 60], abs=15) and sum(fluxes) == pytest.approx(
        160, rel=0.04
    )
    assert abs(result.exposures[0].fit.chi2_all - 1) < 0.1
    np.testing.assert_allclose(
        [[source.x, source.y] for source in result.sources], _pair_places(), atol=0.25
    )


@pytest.mark.slow
def test_a_galaxy_far_from_others_is_drawn_as_if_alone():
    """Deblended with a neighbour of which it sees nothing, by chains; alone, by Hamiltonian Monte
    Carlo in `deconvolve`.
    """
    both = (
        GALAXY.shift(-1.8, 1.8) * 100
        + galsim.Exponential(half_light_radius=0.3).shift(2.0, -2.0) * 60
    )
    field = _exposure(both, fwhm=0.6, sigma=0.15, seed=1)
    other = _exposure(GALAXY.shift(-1.8, 1.8) * 100, fwhm=0.6, sigma=0.15, seed=1)
    ours = deblend(field, sources=[[10.5, 28.5], [29.5, 9.5]], prior=_prior(), seed=1).sources[0]
    alone = deblend(other, sources=[[10.5, 28.5]], prior=_prior(), method="hmc", seed=1).sources[0]
    (flux, error), (expected, expected_error) = (
        tuple(part[0] for part in source.flux) for source in (ours, alone)
    )
    assert flux == pytest.approx(expected, abs=0.4 * expected_error) and error == pytest.approx(
        expected_error, rel=0.35
    )
    assert ours.quantities.half_light_radius[0] == pytest.approx(
        alone.quantities.half_light_radius[0], abs=0.5 * alone.quantities.half_light_radius[1]
    )


# ---- refusals ----


def test_what_cannot_be_fitted_is_refused():
    one = _exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1)
    bare = make_observation(one.image, sigma=0.15, psf=one.psf, pixel_scale=SCALE, name="bare")
    far = _exposure(
        GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1, wcs=_wcs(offset=(900, 0)), name="far"
    )
    blank = make_observation(
        np.random.default_rng(1).normal(0, 0.15, (SIDE, SIDE)),
        sigma=0.15,
        psf=one.psf,
        pixel_scale=SCALE,
        name="blank",
    )
    for call, words in (
        (lambda: deconvolve_jointly([], seed=1), "at least one"),
        (lambda: deconvolve_jointly([one, one], bands=["g"], seed=1), "one for each of the 2"),
        (lambda: deconvolve_jointly([one, bare], seed=1), "must have a WCS"),
        (lambda: deconvolve_jointly([one, far], seed=1), "same sky"),
        (lambda: deblend(blank, seed=1), "above 3 sigma, got none"),
        (lambda: deblend(bare, sources=SkyCoord(150, 2, unit="deg"), seed=1), "no WCS"),
        (lambda: deblend(one, sources=[[50, 3]], seed=1), "must lie in the stamp"),
        (lambda: deblend(one, sources=[1, 2, 3], seed=1), "positions"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
