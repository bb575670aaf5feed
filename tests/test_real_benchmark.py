"""The benchmark on real galaxies: its Richardson-Lucy, its resolutions and its correlations against
closed forms; on the shared data where they are.
"""

from dataclasses import replace
from types import SimpleNamespace

import galsim
import numpy as np
import pytest
from astropy.io import fits

from astrogen.data.observation import make_observation, make_psf
from benchmarks import real

SCALE = 0.1


def _drawn(profile, side, scale=SCALE, method="no_pixel", offset=(0, 0)):
    return galsim.Image(
        profile.drawImage(nx=side, ny=side, scale=scale, method=method, offset=offset).array.astype(
            float
        )
    ).array


def _view(image, resolution=np.nan):
    return real.View(image, SCALE, real.centred_pixels(image.shape, SCALE), resolution)


def test_smoothing_a_gaussian_gives_the_wider_one():
    narrow, wide = (_drawn(galsim.Gaussian(fwhm=fwhm), 64) for fwhm in (0.4, 0.5))
    np.testing.assert_allclose(_view(narrow, 0.4).smoothed(0.5).image, wide, atol=1e-6 * wide.max())


@pytest.mark.parametrize("resolution", [np.nan, 0.5], ids=["not Gaussian", "no finer"])
def test_a_view_that_cannot_be_smoothed_stays(resolution):
    view = _view(np.eye(8), resolution)
    assert view.smoothed(0.5) is view


def test_correlation_finds_the_shift():
    profile = galsim.Exponential(half_light_radius=0.5).shear(g1=0.3, g2=0.1)
    profile = galsim.Convolve(profile, galsim.Gaussian(fwhm=0.5))
    x, y = np.meshgrid(*[np.linspace(-1.5, 1.5, 31)] * 2)
    moved = _view(_drawn(profile.shift(0.06, -0.04), 64))
    value, shift = real.correlate(moved, _view(_drawn(profile, 64)), (x, y, np.hypot(x, y) < 1.2))
    np.testing.assert_allclose(shift, [0.06, -0.04], atol=2e-3)
    assert value > 0.9999


@pytest.fixture(scope="module")
def observation():
    """A galaxy at the target resolution, and what a telescope of four times the width records of
    it.
    """
    rng = np.random.default_rng(3)
    galaxy = galsim.Convolve(
        galsim.Exponential(half_light_radius=0.6, flux=1000).shear(g1=0.4, g2=0),
        galsim.Gaussian(fwhm=0.2),
    )
    psf = galsim.Gaussian(fwhm=0.8)
    image = _drawn(
        galsim.Convolve(galaxy, galsim.Gaussian(fwhm=np.sqrt(0.8**2 - 0.2**2))), 48, 0.2
    ) + rng.normal(0, 0.2, (48, 48))
    return galaxy, make_observation(
        image, psf=make_psf(_drawn(psf, 31, 0.2), pixel_scale=0.2), sigma=0.2, pixel_scale=0.2
    )


def test_richardson_lucy_fits_the_data_and_nears_the_galaxy(observation):
    galaxy, seen = observation
    images, chi2 = real.richardson_lucy(seen, prior_scale=SCALE, target_fwhm=0.2, num_iterations=60)
    truth = _drawn(galaxy, 64)
    error = [np.square(image - truth).sum() / np.square(truth).sum() for image in images]
    stop = real.stop_at_noise(chi2)
    assert (np.diff(chi2) < 0).all() and chi2[stop] < 1.2
    assert error[stop] < 0.1 * error[0]
    # positivity makes some light of the noise
    assert images[stop].sum() == pytest.approx(1000, rel=0.06)


def test_richardson_lucy_sees_no_masked_pixel(observation):
    _, seen = observation
    mask = np.zeros(seen.image.shape, bool)
    mask[20:24, 30:40] = True
    spoilt = seen.image + real.FILL * mask
    one, other = (
        real.richardson_lucy(
            make_observation(image, psf=seen.psf, sigma=0.2, pixel_scale=0.2, mask=mask),
            prior_scale=SCALE,
            target_fwhm=0.2,
            num_iterations=3,
        )
        for image in (seen.image, spoilt)
    )
    np.testing.assert_array_equal(one[0], other[0])


def test_stopping_without_reaching_the_noise_takes_the_last():
    assert real.stop_at_noise(np.array([3.0, 2.0, 1.5])) == 2
    assert real.stop_at_noise(np.array([3.0, 0.9, 0.8])) == 1


@pytest.mark.parametrize("share", [0.0, 0.3], ids=["white", "correlated"])
def test_noise_factor_is_that_of_the_power_spectrum(share):
    """Smoothing by a kernel that sums to 1 leaves the power at frequency zero, and divides the
    variance by the sum of the kernel's squares.
    """
    kernel = np.outer([1 - share, share], [1 - share, share])
    noise = real.ndimage.convolve(
        np.random.default_rng(1).normal(size=(300, 300)), kernel, mode="wrap"
    )
    expected = 1 / np.sqrt(np.square(kernel).sum())
    assert real.noise_factor(noise / noise.std(), np.ones((300, 300), bool)) == pytest.approx(
        expected, abs=0.03
    )


@pytest.fixture(scope="module")
def pair(shared):
    return real.read_pair(shared / "data/hsc_hst_pair")


def test_the_neighbours_are_masked_and_the_galaxy_is_not(pair):
    seen = pair.observation
    assert seen.status == "ok" and not (pair.galaxy & seen.mask).any()
    brightest = np.unravel_index((pair.hsc * pair.galaxy).argmax(), pair.hsc.shape)
    assert pair.galaxy[brightest] and 0.1 < seen.mask.mean() < 0.4
    assert pair.hsc[seen.mask].max() > 20 * np.sqrt(seen.variance[~seen.mask].max())
    assert seen.wcs.proj_plane_pixel_scales()[0].to_value("arcsec") == pytest.approx(
        real.HSC_SCALE, rel=1e-4
    )


def test_hubble_sees_the_same_galaxy_at_the_same_place(pair):
    """At the HSC image's own resolution both telescopes agree, without any help by a shift."""
    grid = pair.grid()
    hsc = real.View(pair.hsc, real.HSC_SCALE, real.centred_pixels(pair.hsc.shape, real.HSC_SCALE))
    value, shift = real.correlate(hsc, pair.hubble(pair.observation.psf.fwhm), grid)
    assert value > 0.97 and np.hypot(*shift) < 0.1
    assert 0.95 < real.noise_ceiling(pair, 0.25) < 1


def test_the_psf_of_hubble_is_divided_out(pair):
    """A star recorded by HST becomes the Gaussian that is asked for."""
    star = np.zeros_like(pair.hst)
    star[:179, :179] = pair.psf_hst
    view = replace(pair, hst=star).hubble(0.3)
    row, column = real._core_centre(pair.psf_hst)
    expected = _drawn(
        galsim.Gaussian(fwhm=0.3), 179, real.HST_SCALE, offset=(column - 89, row - 89)
    )
    np.testing.assert_allclose(view.image[:179, :179], expected, atol=2e-3 * expected.max())


def test_the_commands_name_files_that_are_there(shared):
    found = {exposure.name: exposure for exposure in real.exposures(shared / "data")}
    assert len(found["hsc_galaxy"].images) == 1 and len(found["decam_exposures"].images) == 3
    files = [
        word
        for exposure in found.values()
        for word in [*exposure.images, *exposure.options]
        if not isinstance(word, (str, int, float))
    ]
    assert len(files) == 4 + 12 and all(path.is_file() for path in files)


@pytest.mark.parametrize("name", ["npy", "fits"])
def test_a_filled_copy_differs_in_masked_pixels_only(tmp_path, name):
    image, mask = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), bool)
    mask[1, 2] = True
    path = tmp_path / f"stamp.{name}"
    if name == "npy":
        np.save(path, image)
    else:
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name="N26")]).writeto(path)
    copy = real._fill(path, mask, tmp_path / "copies")
    filled = np.load(copy) if name == "npy" else fits.getdata(copy, 1)
    assert copy.name == path.name and filled[1, 2] == real.FILL
    np.testing.assert_array_equal(filled[~mask], image[~mask])


def test_a_command_that_fails_is_an_error(tmp_path):
    exposure = real.Exposure(
        "none", [tmp_path / "none.npy"], ["--psf", tmp_path / "none.npy", "--pixel-scale", 0.2]
    )
    with pytest.raises(RuntimeError, match="astrogen deconvolve .*none.npy.* exit code 4"):
        real.deconvolve_exposure(exposure, tmp_path, method="laplace", num_draws=8)


@pytest.mark.parametrize(
    "num_masked, same, words",
    [
        (2, True, "2 masked pixels never change the answer"),
        (2, False, "2 masked pixels CHANGE THE ANSWER"),
        (0, True, "no masked pixel"),
    ],
    ids=["same", "other", "none"],
)
def test_a_line_says_whether_masked_pixels_count(capsys, num_masked, same, words):
    seen = SimpleNamespace(mask=np.arange(9) < num_masked)
    real.print_exposure(
        "hsc", [(SimpleNamespace(observation=seen, name="one", chi2=1.0, status=()), same)]
    )
    assert capsys.readouterr().out == f"| hsc | one | chi2 1.00 | {words} | converged |\n"
