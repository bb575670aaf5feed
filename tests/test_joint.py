"""Joint fits against simulated truth: fluxes of several exposures and bands, stacks, blends, and a lone galaxy against the plain fit."""
from functools import lru_cache

import galsim
import numpy as np
import pytest
from astropy.wcs import WCS

from astrogen import deblend, deconvolve, deconvolve_jointly, load_prior, make_observation, make_psf
from astrogen.bands import draw_bands, tie_bands, tied_moment

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
    """What a Moffat PSF makes of a galaxy that stands on the reference point, east to the left as on the sky."""
    wcs = _wcs(scale=scale) if wcs is None else wcs
    jacobian = galsim.JacobianWCS(*(np.diag([-1, 1]) @ wcs.wcs.cd * 3600).ravel())
    psf = galsim.Moffat(beta=3, fwhm=fwhm)
    middle = wcs.wcs.crpix - (SIDE + 1) / 2
    image = galsim.Convolve(galaxy, psf).drawImage(nx=SIDE, ny=SIDE, wcs=jacobian, offset=tuple(middle)).array.astype(float)
    kernel = psf.drawImage(nx=41, ny=41, wcs=jacobian).array.astype(float)
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return make_observation(image + noise, sigma=sigma, psf=make_psf(kernel / kernel.sum(), pixel_scale=scale), wcs=wcs, pixel_scale=scale, name=name)


GALAXY = galsim.Exponential(half_light_radius=0.6, flux=1.0).shear(g1=0.25, g2=0.1)


@lru_cache(maxsize=1)
def _prior():
    return load_prior("galaxy")


def test_one_exposure_is_the_plain_fit():
    seen = _exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1)
    joint = deconvolve_jointly([seen], prior=_prior(), num_draws=200, seed=1)
    plain = deconvolve(seen, prior=_prior(), num_draws=200, seed=1)
    source, (flux, error) = joint.sources[0], plain.flux
    assert source.flux[0][0] == pytest.approx(flux, abs=0.25 * error) and source.flux[1][0] == pytest.approx(error, rel=0.25)
    assert source.quantities.half_light_radius[0] == pytest.approx(plain.half_light_radius[0], abs=0.3 * plain.half_light_radius[1])
    assert joint.chi2[0] == pytest.approx(plain.chi2, abs=0.03)
    assert np.abs(joint.models[0] - plain.model).max() < 0.3 * 0.15


def test_equal_exposures_are_their_stack():
    exposures = [_exposure(GALAXY * 100, fwhm=0.7, sigma=0.3, seed=seed) for seed in (1, 2, 3)]
    stack = make_observation(np.mean([exposure.image for exposure in exposures], 0), sigma=0.3 / np.sqrt(3), psf=exposures[0].psf, pixel_scale=SCALE, name="one")
    joint, single = (deconvolve_jointly(some, prior=_prior(), seed=1).sources[0] for some in (exposures, [stack]))
    (flux, error), (expected, expected_error) = (tuple(part[0] for part in source.flux) for source in (joint, single))
    assert flux == pytest.approx(expected, abs=0.3 * expected_error) and error == pytest.approx(expected_error, rel=0.3)
    inside = single.images > 0.05 * single.images.max()
    assert np.sqrt(np.mean(((joint.images - single.images) / single.image_std)[inside] ** 2)) < 0.5


def test_turned_mirrored_and_moved_exposures_agree():
    """One galaxy through three WCS: the fit of all is consistent with each exposure's noise, and the object lies where the reference point is."""
    exposures = [_exposure(GALAXY * 100, fwhm=0.7, sigma=0.15, seed=1), _exposure(GALAXY * 100, fwhm=0.8, sigma=0.15, seed=2, wcs=_wcs(0.6, offset=(2.3, -1.4))),
                 _exposure(GALAXY * 100, fwhm=0.75, sigma=0.15, seed=3, wcs=_wcs(2.0, 0.25, mirrored=True), scale=0.25)]
    result = deconvolve_jointly(exposures, prior=_prior(), seed=1)
    assert np.abs(np.array(result.chi2_all) - 1).max() < 0.12
    (flux,), (error,) = result.sources[0].flux
    assert abs(flux - 100) < 3 * error and 0.3 < error < 3
    assert np.hypot(result.sources[0].x - 19.5, result.sources[0].y - 19.5) < 0.15
    sky = result.sources[0].wcs.pixel_to_world(31.5, 31.5)
    assert sky.separation(exposures[0].wcs.pixel_to_world(result.sources[0].x, result.sources[0].y)).arcsec < 0.1
