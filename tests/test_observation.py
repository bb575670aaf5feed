"""observation.py and images.py: every row of bad input that concerns images, PSFs, masks and files,
and the real data.
"""

import gzip
import os
import pickle
import re
import struct
import warnings

import galsim
import galsim.des
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.table import Table
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from astrogen.data.images import read_images, read_plane_wcs, read_planes, write_planes
from astrogen.data.observation import (
    PoorInputWarning,
    make_observation,
    make_psf,
    read_observation,
    read_psf,
)
from astrogen.errors import InputFileError

SCALE = 0.2
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def gaussian_image(size=15, fwhm=3.0, dx=0.0, dy=0.0):
    """Gaussian [size, size] of sum 1 around the middle, FWHM in pixels."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    image = np.exp(-4 * np.log(2) * ((x - dx) ** 2 + (y - dy) ** 2) / fwhm**2)
    return image / image.sum()


def gaussian_psf(**options):
    return make_psf(gaussian_image(), pixel_scale=SCALE, **options)


def noise_stamp(shape=(24, 20), seed=3):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def observe(image=None, **options):
    """make_observation with what a test does not care about filled in."""
    filled = {"psf": gaussian_psf(), "pixel_scale": SCALE} | options
    if not {"variance", "sigma", "weight"} & set(filled):
        filled["variance"] = 1.0
    return make_observation(noise_stamp() if image is None else image, **filled)


def tan_wcs(scale=SCALE):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [10, 12]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    return wcs


def write_fits(path, *extensions, primary=None, checksum=False, **header):
    """FITS file of (name, array) extensions; returns the path."""
    hdus = fits.HDUList(
        [fits.PrimaryHDU(primary)]
        + [fits.ImageHDU(pixels, name=name) for name, pixels in extensions]
    )
    hdus[0].header.update(header)
    hdus.writeto(path, checksum=checksum, overwrite=True)
    return path


def fetch(path, **options):
    return read_observation(path, **({"psf": gaussian_psf(), "pixel_scale": SCALE} | options))


# --- PSF


@pytest.mark.parametrize(
    "profile",
    [galsim.Gaussian(fwhm=0.7), galsim.Moffat(beta=3, fwhm=0.7), galsim.Kolmogorov(fwhm=0.7)],
    ids=["gaussian", "moffat", "kolmogorov"],
)
@pytest.mark.parametrize(
    "scale, tolerance", [(0.05, 2e-3), (0.2, 2e-3), (0.39, 0.03)], ids=["fine", "usual", "coarse"]
)
def test_fwhm_agrees_with_the_profile(profile, scale, tolerance):
    image = profile.drawImage(nx=49, ny=49, scale=scale, method="no_pixel").array
    psf = make_psf(image / image.sum(), pixel_scale=scale, pixel_response=0)
    assert psf.fwhm == pytest.approx(0.7, rel=tolerance)


def test_psf_is_normalised_float64_and_read_only():
    psf = make_psf(gaussian_image().astype(">f4"), pixel_scale=SCALE)
    assert (
        psf.image.dtype == np.float64
        and psf.image.dtype.isnative
        and psf.image.sum() == pytest.approx(1, abs=1e-14)
    )
    assert psf.pixel_response == SCALE and not psf.image.flags.writeable


def test_psf_of_unequal_odd_sides_is_padded_to_a_square():
    psf = make_psf(gaussian_image(21)[:, 4:-4], pixel_scale=SCALE)
    assert psf.image.shape == (21, 21) and np.argmax(psf.image) == 21 * 21 // 2


def test_even_psf_is_moved_by_half_a_pixel_to_the_closed_form():
    psf = make_psf(gaussian_image(24, fwhm=4.0), pixel_scale=SCALE, recentre=True)
    np.testing.assert_allclose(psf.image, gaussian_image(25, fwhm=4.0), atol=1e-6)


@pytest.mark.parametrize(
    "image, demand",
    [
        (
            np.where(np.eye(15) > 0, np.nan, gaussian_image()),
            "psf must be finite, got 15 NaN or infinite pixels of 225",
        ),
        (np.zeros((15, 15)), "psf must have a positive sum, got 0"),
        (-gaussian_image(), "psf must have a positive sum, got -1"),
        (
            gaussian_image(14),
            r"psf must have odd sides, got \(14, 14\) with its light about pixel \(6.50, 6.50\)"
            r" from 0; give recentre=True, which moves",
        ),
        (
            np.zeros((3, 15, 15)),
            r"psf must be a 2-d array of real numbers, got shape \(3, 15, 15\)",
        ),
        (gaussian_image() + 0j, "psf must be a 2-d array of real numbers, got shape .* complex128"),
        (np.zeros((0, 0)), "psf must have a positive sum"),
    ],
    ids=["nan", "zero", "negative", "even", "cube", "complex", "empty"],
)
def test_bad_psf_is_refused(image, demand):
    with pytest.raises(ValueError, match=f"make_psf: {demand}"):
        make_psf(image, pixel_scale=SCALE)


@pytest.mark.parametrize(
    "options, demand",
    [
        ({"pixel_scale": 0}, "pixel_scale must be positive, got 0"),
        ({"pixel_scale": float("nan")}, "pixel_scale must be positive, got nan"),
        (
            {"pixel_scale": SCALE, "pixel_response": -1},
            "pixel_response must be 0 or a side in arcsec, got -1",
        ),
    ],
    ids=["zero", "nan", "response"],
)
def test_bad_psf_scales_are_refused(options, demand):
    with pytest.raises(ValueError, match=f"make_psf: {demand}"):
        make_psf(gaussian_image(), **options)


def test_psf_sum_off_by_more_than_a_percent_warns_with_the_sum():
    with pytest.warns(PoorInputWarning, match="psf sums to 1.02 instead of 1; it was renormalised"):
        psf = make_psf(1.02 * gaussian_image(), pixel_scale=SCALE)
    assert psf.image.sum() == pytest.approx(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_psf(1.005 * gaussian_image(), pixel_scale=SCALE)


def psf_profile(kind, scale=1.0):
    """PSFs of FWHM 3 (of about 1.4 where undersampled), in pixels of `scale`."""
    return {
        "round": galsim.Moffat(beta=3, fwhm=3 * scale),
        "elliptical": galsim.Moffat(beta=3, fwhm=3 * scale).shear(g1=0.2, g2=-0.15),
        "undersampled": galsim.Gaussian(fwhm=1.2 * scale).shear(g1=0.1),
    }[kind]


def drawn_psf(kind, offset=(0.0, 0.0), shape=(41, 41), *, scale=1.0, oversampling=1):
    """A PSF that contains the observed pixel of side `scale`, off by `offset` observed pixels."""
    seen = galsim.Convolve(psf_profile(kind, scale), galsim.Pixel(scale))
    return seen.drawImage(
        nx=shape[1],
        ny=shape[0],
        scale=scale / oversampling,
        offset=galsim.PositionD(*offset) * oversampling,
        method="no_pixel",
    ).array


@pytest.mark.parametrize("kind", ["round", "elliptical", "undersampled"])
@pytest.mark.parametrize("oversampling", [1, 3])
@pytest.mark.parametrize("offset", [(0.05, 0.0), (-0.3, 0.21), (0.5, -0.5), (2.0, -1.3)], ids=str)
def test_a_psf_off_its_middle_warns_with_its_offset(kind, oversampling, offset):
    image = drawn_psf(kind, offset, shape=(61, 61), oversampling=oversampling)
    with pytest.warns(PoorInputWarning, match="pixels from its middle pixel.*recentre=True") as got:
        psf = make_psf(image / image.sum(), pixel_scale=1 / oversampling, pixel_response=1.0)
    said = re.search(r"centred ([+-][.\d]+), ([+-][.\d]+) pixels", str(got[0].message))
    assert [float(part) for part in said.groups()] == pytest.approx(
        offset, abs=0.04 if kind == "undersampled" and oversampling == 1 else 0.02
    )
    stamp = make_observation(np.zeros((61, 61)), psf=psf, sigma=1.0, pixel_scale=1.0)
    assert "the PSF is centred" in stamp.notes[0]


@pytest.mark.parametrize("kind", ["round", "elliptical", "undersampled"])
def test_a_psf_within_two_hundredths_is_silent(kind):
    for offset in ((0.0, 0.0), (0.012, -0.01)):
        image = drawn_psf(kind, offset)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            psf = make_psf(image / image.sum(), pixel_scale=1.0)
        assert not observe(psf=psf, pixel_scale=1.0).notes


def test_noise_of_a_psf_and_coma_are_no_offset(rng):
    """A star of S/N 100, and a PSF whose centre is a matter of definition."""
    star, lens = drawn_psf("elliptical"), drawn_psf("round")
    noise = np.sqrt((star**2).sum()) / 100
    coma = galsim.Gaussian(fwhm=6).drawImage(nx=41, ny=41, scale=1.0, offset=(4, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (
            *(star + noise * rng.normal(size=(20, *star.shape))),
            lens + 0.05 * coma.array,
        ):
            make_psf(image / image.sum(), pixel_scale=1.0)


@pytest.mark.parametrize("kind", ["round", "elliptical"])
@pytest.mark.parametrize("offset", [(0.3, -0.2), (1.4, 0.7)], ids=str)
def test_recentring_takes_a_psf_to_its_middle(kind, offset):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = drawn_psf(kind, offset, (81, 81), oversampling=2)
        psf = make_psf(image / image.sum(), pixel_scale=1.0, recentre=True)
    truth = drawn_psf(kind, shape=(81, 81), oversampling=2)
    np.testing.assert_allclose(psf.image, truth / truth.sum(), atol=2e-3 * truth.max())


@pytest.mark.parametrize("first", [-1, 0, 1], ids=["n//2 - 1", "between", "n//2"])
def test_even_sides_of_any_convention_are_recentred(first):
    """The centre on the pixel before the middle, between the middle pixels, or on the one after."""
    image = drawn_psf("elliptical", (0.25 * first, 0.25 * first), (40, 40), oversampling=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        psf = make_psf(image / image.sum(), pixel_scale=1.0, recentre=True)
    truth = drawn_psf("elliptical", oversampling=2)
    np.testing.assert_allclose(psf.image, truth / truth.sum(), atol=2e-3 * truth.max())


@QUICK
@given(
    hnp.arrays(
        np.float64, st.sampled_from([(5, 5), (7, 5), (9, 9)]), elements=st.floats(0, 1e6, width=32)
    )
)
def test_any_nonnegative_psf_is_normalised_or_refused(image):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorInputWarning)
        if image.sum() > 0:
            psf = make_psf(image, pixel_scale=SCALE)
            assert psf.image.sum() == pytest.approx(1) and psf.fwhm > 0
        else:
            with pytest.raises(ValueError, match="positive sum"):
                make_psf(image, pixel_scale=SCALE)


# --- arrays


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", ">i2", ">i4", "u1", ">u2"])
def test_every_real_type_becomes_native_float32(dtype):
    numbers = np.arange(480).reshape(24, 20) % 200
    seen = observe(numbers.astype(dtype), variance=np.full((24, 20), 2, dtype))
    np.testing.assert_array_equal(seen.image, numbers.astype(np.float32))
    for plane in (seen.image, seen.variance):
        assert plane.dtype == np.float32 and plane.dtype.isnative and not plane.flags.writeable


def test_nan_and_infinite_pixels_are_masked_and_counted():
    image = noise_stamp()
    image[2, 3], image[4, 5], image[0, 0] = np.nan, np.inf, 7
    seen = observe(image, mask=np.arange(480).reshape(24, 20) == 0)
    assert (
        seen.mask.sum() == 3
        and seen.notes == ("2 NaN or infinite pixels masked",)
        and seen.status == "ok"
    )
    assert (seen.image[seen.mask] == 0).all() and (seen.variance[seen.mask] == 1).all()


def test_more_than_half_nan_is_an_error_unless_allowed():
    image = noise_stamp()
    image[:13] = np.nan
    with pytest.raises(
        ValueError,
        match="image must have at most 50% NaN or infinite pixels, got 260 of 480 in 'object'",
    ):
        observe(image)
    assert observe(image, max_bad_fraction=0.6).mask.sum() == 260
    assert observe(image, mask=np.isnan(image)).mask.sum() == 260, (
        "pixels that were masked anyway are no fault"
    )


@pytest.mark.parametrize(
    "image, mask",
    [
        (np.full((24, 20), np.nan), None),
        (noise_stamp(), np.ones((24, 20))),
        (np.zeros((0, 0)), None),
        (np.zeros((0, 9)), None),
    ],
    ids=["nan", "masked", "empty", "one-empty-side"],
)
def test_a_stamp_without_data_is_a_status(image, mask):
    seen = observe(image, mask=mask, variance=None)
    assert seen.status == "no_data" and seen.mask.all() and "no good pixel is left" in seen.notes
    assert np.isfinite(seen.image).all() and np.isfinite(seen.variance).all()


@pytest.mark.parametrize(
    "kind, bad_values, level",
    [
        ("variance", [0, -1, np.nan, np.inf], 4),
        ("sigma", [0, -1, np.nan, np.inf], 2),
        ("weight", [0, -1, np.nan, 1e-60], 0.25),
    ],
)
def test_bad_noise_values_are_masked(kind, bad_values, level):
    plane = np.full((24, 20), level, float)
    plane.flat[:4] = bad_values
    seen = observe(**{kind: plane})
    assert (
        seen.mask.sum() == 4 and seen.mask.flat[:4].all() and (seen.variance[~seen.mask] == 4).all()
    )
    assert f"4 pixels masked whose {kind} is not positive and finite" in seen.notes


@pytest.mark.parametrize("kind", ["variance", "sigma", "weight"])
@pytest.mark.parametrize("value", [0, -3, np.nan])
def test_a_noise_plane_without_any_good_value_is_named(kind, value):
    with pytest.raises(
        ValueError,
        match=f"make_observation: {kind} must be positive and finite somewhere, got none of 480",
    ):
        observe(**{kind: np.full((24, 20), value)})


def test_variance_that_float32_cannot_hold_is_an_error_with_the_way_out():
    with pytest.raises(
        ValueError,
        match="variance must be a variance within float32, got 1e-60; multiply the image",
    ):
        observe(noise_stamp() * 1e-30, variance=1e-60)


def test_without_noise_the_border_gives_it():
    image = 3 * noise_stamp((64, 64)) + 100
    image[28:36, 28:36] += 1e4
    seen = observe(image, variance=None)
    assert (
        seen.variance[0, 0] == pytest.approx(9, rel=0.15)
        and "estimated from the stamp's border" in seen.notes[0]
    )
    with pytest.raises(
        ValueError,
        match="variance must be given for this stamp, got none and .* estimate of 0; give variance",
    ):
        observe(np.zeros((24, 20)), variance=None)


def test_noise_given_twice_is_refused():
    with pytest.raises(
        ValueError, match="make_observation: noise must be given once, got variance and sigma"
    ):
        observe(variance=1.0, sigma=1.0)


@pytest.mark.parametrize("option", ["variance", "sigma", "weight", "mask"])
def test_shape_mismatch_shows_both_shapes(option):
    with pytest.raises(
        ValueError, match=rf"{option} must have the image's shape \(24, 20\), got \(20, 24\)"
    ):
        observe(**{option: np.ones((20, 24))})


def test_image_that_is_no_stamp_is_refused():
    with pytest.raises(
        ValueError,
        match=r"make_observation: image must be a 2-d array of real numbers, got shape \(3, 9, 9\)",
    ):
        observe(np.zeros((3, 9, 9)))


@pytest.mark.parametrize(
    "psf, demand",
    [
        (
            lambda: make_psf(gaussian_image(), pixel_scale=0.3),
            "psf must be sampled at least as finely as the image, got 0.3 .* 0.2",
        ),
        (
            lambda: make_psf(gaussian_image(), pixel_scale=0.1),
            "psf must contain the pixel of the image or none, got .* 0.1 .* 0.2",
        ),
        (
            lambda: make_psf(gaussian_image(51), pixel_scale=SCALE),
            r"psf must be no larger than the padded stamp, got \(51, 51\) .*\(24, 20\)",
        ),
    ],
    ids=["coarse", "other-pixel", "large"],
)
def test_psf_that_does_not_fit_is_refused(psf, demand):
    with pytest.raises(ValueError, match=f"make_observation: {demand}"):
        observe(psf=psf())


def test_oversampled_psf_is_accepted():
    psf = make_psf(gaussian_image(31, fwhm=9), pixel_scale=SCALE / 3, pixel_response=SCALE)
    assert observe(psf=psf).psf is psf


def test_no_pixel_scale_and_no_wcs_names_the_option():
    with pytest.raises(
        ValueError, match="pixel_scale must be given for 'm31', .*give pixel_scale in"
    ):
        observe(pixel_scale=None, name="m31")
    with pytest.raises(ValueError, match="pixel_scale must be given"):
        observe(pixel_scale=None, wcs=WCS(naxis=2))


def test_impossible_pixel_scale_is_refused():
    with pytest.raises(
        ValueError, match="make_observation: pixel_scale must be positive, got -0.2"
    ):
        observe(pixel_scale=-0.2)


def test_pixel_scale_from_the_wcs_and_contradicted():
    assert observe(pixel_scale=None, wcs=tan_wcs()).pixel_scale == pytest.approx(SCALE, rel=1e-6)
    with pytest.warns(
        PoorInputWarning, match="pixel scale 0.2 arcsec as given, although the WCS says 0.4"
    ):
        seen = observe(wcs=tan_wcs(0.4))
    assert seen.pixel_scale == SCALE and "the WCS says 0.4" in seen.notes[0]


def test_pixels_that_are_not_square_are_noted():
    wcs = tan_wcs()
    wcs.wcs.cdelt = [-SCALE * 1.25 / 3600, SCALE / 1.25 / 3600]
    seen = observe(pixel_scale=None, wcs=wcs)
    assert (
        seen.pixel_scale == pytest.approx(SCALE, rel=1e-6)
        and "pixels are not square: 0.25 x 0.16" in seen.notes[0]
    )


@pytest.mark.parametrize("latitude", [0, 60, 89.9999])
def test_pixel_scale_is_an_angle_on_the_sky_at_any_latitude(latitude):
    wcs = tan_wcs()
    wcs.wcs.crval = [10, latitude]
    assert observe(pixel_scale=None, wcs=wcs).pixel_scale == pytest.approx(SCALE, rel=1e-6)


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full((24, 20), 2.0)),
        VarianceUncertainty(np.full((24, 20), 4.0)),
        InverseVariance(np.full((24, 20), 0.25)),
    ],
    ids=["std", "var", "ivar"],
)
def test_ccddata_brings_everything_along(uncertainty):
    mask = np.zeros((24, 20), bool)
    mask[1, 1] = True
    ccd = CCDData(noise_stamp(), uncertainty=uncertainty, mask=mask, wcs=tan_wcs(), unit="electron")
    seen = make_observation(ccd, psf=gaussian_psf(), mask=np.arange(480).reshape(24, 20) == 0)
    assert seen.mask.sum() == 2 and (seen.variance[~seen.mask] == 4).all()
    assert (
        seen.unit == units.electron
        and seen.pixel_scale == pytest.approx(SCALE)
        and seen.notes == ()
    )


def test_ccddata_with_noise_of_unknown_kind_or_given_again_is_refused():
    with pytest.raises(
        ValueError, match="image must carry an uncertainty of type std, var, ivar, got 'unknown'"
    ):
        make_observation(
            NDData(noise_stamp(), uncertainty=UnknownUncertainty(np.ones((24, 20)))),
            psf=gaussian_psf(),
            pixel_scale=SCALE,
        )
    with pytest.raises(
        ValueError,
        match="noise must be given once, got variance and std|variance and sigma of the image",
    ):
        observe(
            NDData(noise_stamp(), uncertainty=StdDevUncertainty(np.ones((24, 20)))), variance=1.0
        )


def test_masked_arrays_and_quantities_are_understood():
    masked = np.ma.masked_greater(noise_stamp(), 1)
    assert observe(masked).mask.sum() == masked.mask.sum()
    assert observe(np.ma.MaskedArray(noise_stamp())).mask.sum() == 0
    seen = observe(noise_stamp() * units.nJy)
    assert seen.unit == units.nJy and seen.image.max() > 0


@QUICK
@given(
    hnp.arrays(np.float32, (8, 8), elements=st.floats(width=32)),
    hnp.arrays(np.float32, (8, 8), elements=st.floats(width=32)),
    hnp.arrays(bool, (8, 8)),
    st.sampled_from(["variance", "sigma", "weight"]),
)
def test_whatever_comes_in_only_finite_numbers_come_out(image, noise, mask, kind):
    try:
        seen = observe(image, mask=mask, max_bad_fraction=1, **{kind: noise})
    except ValueError as error:
        assert str(error).startswith(f"make_observation: {kind} must be")
        return
    assert (
        np.isfinite(seen.image).all()
        and np.isfinite(seen.variance).all()
        and (seen.variance > 0).all()
    )
    assert seen.mask[mask].all() and seen.mask[~np.isfinite(image)].all()
    assert (seen.status == "no_data") == seen.mask.all()


@QUICK
@given(hnp.arrays(bool, (8, 8)), st.floats(allow_nan=True))
def test_values_of_masked_pixels_never_matter(mask, junk):
    clean, junk = noise_stamp((8, 8)), np.float32(np.clip(junk, -1e38, 1e38))
    dirty, noise = np.where(mask, junk, clean), np.where(mask, junk, np.float32(1))
    one, two = (
        observe(clean, mask=mask),
        observe(dirty, mask=mask, variance=noise) if not mask.all() else observe(dirty, mask=mask),
    )
    for name in ("image", "variance", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


# --- planes of files


def test_planes_are_found_by_their_names(tmp_path):
    image, mask = noise_stamp(), np.zeros((24, 20), np.int16)
    mask[3, 3] = 8
    for sci, noise, dq in (
        ("SCI", "ERR", "DQ"),
        ("IMAGE", "SIGMA", "MASK"),
        ("IMAGE", "STD", "BPM"),
        ("ANYTHING", "ERROR", "DQ"),
    ):
        seen = fetch(
            write_fits(
                tmp_path / "a.fits", (sci, image), (noise, np.full_like(image, 2)), (dq, mask)
            )
        )
        assert (
            seen.mask.sum() == 1
            and seen.variance[0, 0] == 4
            and seen.name == "a"
            and seen.notes == ()
        )
    for noise, level in (
        ("VAR", 4),
        ("VARIANCE", 4),
        ("WHT", 0.25),
        ("WEIGHT", 0.25),
        ("IVAR", 0.25),
    ):
        assert (
            fetch(
                write_fits(tmp_path / "a.fits", ("SCI", image), (noise, np.full_like(image, level)))
            ).variance[0, 0]
            == 4
        )


def test_a_ccddata_file_is_understood(tmp_path):
    ccd = CCDData(
        noise_stamp(),
        uncertainty=VarianceUncertainty(np.full((24, 20), 4.0)),
        mask=noise_stamp() > 1,
        wcs=tan_wcs(),
        unit="adu",
    )
    ccd.write(tmp_path / "ccd.fits")
    seen = read_observation(tmp_path / "ccd.fits", psf=gaussian_psf())
    assert (
        seen.variance[~seen.mask].max() == 4
        and seen.mask.sum() == ccd.mask.sum()
        and seen.unit == units.adu
    )


AMBIGUOUS = {  # names; those that could be meant; the advice
    "two-images": (
        ["A", "B"],
        r"1 A \(9 x 9 float64\); 2 B .*the number in front, as .*\[NUMBER\]",
    ),
    "two-sci": (
        ["SCI", "SCI"],
        r"1 SCI \(9 x 9 float64\); 2 SCI .*the number in front, as .*\[NUMBER\]",
    ),
    "two-noises": (
        ["SCI", "ERR", "WHT"],
        r": 2 ERR \(9 x 9 float64\); 3 WHT .*sigma=.*a.fits\[ERR\] or weight=.*a.fits\[WHT\]",
    ),
    "two-masks": (
        ["SCI", "MASK", "DQ"],
        r": 2 MASK \(9 x 9 float64\); 3 DQ .*mask=.*a.fits\[MASK\] or mask=.*a.fits\[DQ\]",
    ),
}


@pytest.mark.parametrize("names, words", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_planes_list_the_hdus_and_the_option(tmp_path, names, words):
    path = write_fits(tmp_path / "a.fits", *[(name, np.ones((9, 9))) for name in names])
    with pytest.raises(InputFileError, match="more than one HDU could be .*" + words):
        fetch(path)


def test_the_total_error_is_the_noise_of_a_jwst_image(tmp_path):
    """The mosaics of JWST: WHT is not their inverse variance, and VAR_* are parts of ERR
    squared.
    """
    image = noise_stamp()
    levels = {"ERR": 2.0, "CON": 1.0, "WHT": 900.0, "VAR_POISSON": 3.0, "VAR_RNOISE": 1.0}
    planes = [(name, np.full_like(image, level)) for name, level in levels.items()]
    seen = fetch(write_fits(tmp_path / "i2d.fits", ("SCI", image), *planes))
    assert np.array_equal(seen.image, image) and (seen.variance == 4).all()


def test_hdus_are_chosen_by_number_name_version_and_brackets(tmp_path):
    layers = [
        (name, np.full((24, 20), level, np.float32))
        for name, level in (("SCI", 1), ("ERR", 2), ("SCI", 3), ("ERR", 4))
    ]
    path = write_fits(tmp_path / "a.fits", *layers)
    with fits.open(path, mode="update") as hdus:
        hdus[3].header["EXTVER"] = hdus[4].header["EXTVER"] = 2
    for chosen in (
        fetch(path, hdu=3),
        fetch(path, hdu="sci,2"),
        fetch(f"{path}[3]"),
        fetch(f"{path}[SCI,2]"),
    ):
        assert chosen.image[0, 0] == 3 and chosen.variance[0, 0] == 16, (
            "the noise of the same version"
        )
    assert fetch(f"{path}[1]", sigma=f"{path}[4]").variance[0, 0] == 16
    with pytest.raises(InputFileError, match="no HDU could be the image HDU 'NONE'.*1 SCI"):
        fetch(path, hdu="NONE")


def test_other_files_by_path_number_or_the_images_own_name(tmp_path):
    image = write_fits(tmp_path / "i.fits", ("N1", noise_stamp()), ("N2", noise_stamp()))
    weight = write_fits(
        tmp_path / "w.fits", ("N1", np.full((24, 20), 0.25)), ("N2", np.full((24, 20), 0.5))
    )
    np.save(tmp_path / "mask.npy", noise_stamp() > 1)
    seen = fetch(image, hdu="N2", weight=weight, mask=tmp_path / "mask.npy")
    assert seen.variance[~seen.mask].max() == 2 and seen.mask.sum() == (noise_stamp() > 1).sum()
    assert fetch(image, hdu="N2", sigma=3).variance[0, 0] == 9
    with pytest.raises(
        ValueError, match="read_observation: noise must be given once, got sigma and weight"
    ):
        fetch(image, hdu="N2", sigma=3, weight=weight)
    with pytest.raises(InputFileError, match="w.fits: no HDU could be the weight"):
        fetch(f"{write_fits(tmp_path / 'j.fits', ('N9', noise_stamp()))}", weight=weight)


def test_file_planes_of_other_shape_show_both(tmp_path):
    path = write_fits(tmp_path / "a.fits", ("SCI", noise_stamp()), ("ERR", np.ones((20, 24))))
    with pytest.raises(
        ValueError, match=r"sigma must have the image's shape \(24, 20\), got \(20, 24\)"
    ):
        fetch(path)


def test_cubes_need_a_plane(tmp_path):
    cube = np.arange(3)[:, None, None] + np.zeros((3, 24, 20), np.float32)
    path = write_fits(tmp_path / "a.fits", ("SCI", cube), ("VAR", cube + 1))
    seen = fetch(path, plane=2)
    assert seen.image[0, 0] == 2 and seen.variance[0, 0] == 3
    for plane in (None, 3, -1):
        with pytest.raises(
            InputFileError,
            match=f"is a cube of 3 planes; choose one with plane=0 to 2, got {plane}",
        ):
            fetch(path, plane=plane)
    with pytest.raises(InputFileError, match="must be an image or a cube"):
        fetch(write_fits(tmp_path / "b.fits", ("SCI", np.zeros((2, 2, 4, 4)))))


def test_a_file_without_images_says_so(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table({"a": [1]}))]).writeto(
        tmp_path / "t.fits"
    )
    with pytest.raises(InputFileError, match="holds no image"):
        fetch(tmp_path / "t.fits")


@pytest.mark.parametrize(
    "bad_bits, expected",
    [
        (None, [1, 8, 9, 16]),
        (["SAT"], [8, 9]),
        (["sat", 16], [8, 9, 16]),
        ([1], [1, 9]),
        (9, [1, 8, 9]),
        ([], []),
    ],
    ids=["default", "name", "name-and-value", "value", "sum", "none"],
)
def test_named_bits_of_an_lsst_mask(tmp_path, bad_bits, expected):
    mask = np.zeros((24, 20), np.int32)
    mask[0, :5] = [1, 8, 9, 16, 32]
    path = write_fits(
        tmp_path / "a.fits",
        ("IMAGE", noise_stamp()),
        ("MASK", mask),
        ("VARIANCE", np.ones((24, 20))),
    )
    with fits.open(path, mode="update") as hdus:
        hdus["MASK"].header.update({"MP_BAD": 0, "MP_SAT": 3, "MP_CR": 4, "MP_DET": 5})
    seen = fetch(path, bad_bits=bad_bits)
    assert sorted(mask[seen.mask]) == expected, "detected is not bad"


@pytest.mark.parametrize(
    "version, bad_bits, expected",
    [
        ("V4.8.2a", None, [1, 3, 5]),
        ("V4.8.2a", ["CR"], [5]),
        ("V4.8.2a", [3], [3]),
        ("V3.2.0", None, [1, 3, 5, 16]),
        ("V3.2.0", ["SATURATED"], [3]),
        ("V3.4.9", None, [1, 3, 5, 16]),
        ("V3.5.0", None, [1, 3, 5]),
        ("V3.5.0DES1", ["CR"], [5]),
        ("V3.10.1", None, [1, 3, 5]),
        ("V5.1", None, [1, 3, 5]),
        ("V2.9", None, [1, 3, 5, 16]),
        ("", None, [1, 3, 5, 8, 16]),
    ],
    ids=[
        "codes",
        "code-name",
        "code",
        "bits",
        "bit-name",
        "last of bits",
        "first of codes",
        "first, by name",
        "two digits",
        "later",
        "earlier",
        "unknown",
    ],
)
def test_decam_masks_hold_codes_or_bits(tmp_path, version, bad_bits, expected):
    mask = np.zeros((24, 20), np.int16)
    mask[0, :5] = [1, 3, 5, 8, 16]
    path = write_fits(
        tmp_path / "a.fits", ("SCI", noise_stamp()), ("DQ", mask), INSTRUME="DECam", PLVER=version
    )
    assert sorted(mask[fetch(path, bad_bits=bad_bits).mask]) == expected


def test_bad_bits_that_mean_nothing_are_refused(tmp_path):
    path = write_fits(tmp_path / "a.fits", ("SCI", noise_stamp()), ("DQ", np.ones((24, 20), int)))
    for bits in (["SAT"], [0], [-1], [2.5]):
        with pytest.raises(ValueError, match=r"bad_bits must be values .* got"):
            fetch(path, bad_bits=bits)
    with pytest.raises(ValueError, match="mask must be given with bad_bits"):
        fetch(write_fits(tmp_path / "b.fits", ("SCI", noise_stamp())), bad_bits=[1])


def test_masks_of_floats_and_nan(tmp_path):
    mask = np.zeros((24, 20))
    mask[0, :3] = [1, np.nan, 0.5]
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "image.npy", noise_stamp())
    assert fetch(tmp_path / "image.npy", mask=tmp_path / "mask.npy").mask.sum() == 3


def test_cutouts_by_pixel_and_by_coordinate(tmp_path):
    image = np.arange(100 * 80, dtype=">i2").reshape(100, 80)
    hdu = fits.PrimaryHDU(image, tan_wcs().to_header())
    hdu.writeto(tmp_path / "a.fits")
    stamp = fetch(tmp_path / "a.fits", variance=1, position=(30, 50), size=21)
    np.testing.assert_array_equal(stamp.image, image[40:61, 20:41])
    sky = SkyCoord(*tan_wcs().pixel_to_world_values(30, 50), unit="deg")
    again = fetch(tmp_path / "a.fits", variance=1, position=sky, size=(21, 21), pixel_scale=None)
    np.testing.assert_array_equal(again.image, stamp.image)
    assert again.wcs.world_to_pixel(sky) == pytest.approx(
        (10, 10), abs=1e-6
    ) and again.pixel_scale == pytest.approx(SCALE, rel=1e-5)
    corner = fetch(tmp_path / "a.fits", sigma=1, position=(10, 10), size=21)
    np.testing.assert_array_equal(corner.image, image[:21, :21])


@pytest.mark.parametrize(
    ("position", "demand"),
    [
        (
            (9, 50),
            r"got \(9, 50\), which lies too near its edge for a size of 21 x 21; take a smaller",
        ),
        ((40, 89.7), r"which lies too near its edge .* \(at most about 19\)"),
        ((-3, 50), r"inside the image of 80 x 100 pixels, got \(-3, 50\), which lies outside it"),
        (
            (150.0005, 2.0002),
            r"as RA and Dec in degrees it is pixel \(0\.\d, 14\.\d\) of the image",
        ),
    ],
    ids=["left", "top", "outside", "sky"],
)
def test_cutouts_beyond_the_image_are_refused(tmp_path, position, demand):
    hdu = fits.PrimaryHDU(np.zeros((100, 80)), tan_wcs().to_header())
    hdu.writeto(tmp_path / "a.fits")
    with pytest.raises(ValueError, match=f"read_observation: position and size must.*{demand}"):
        fetch(tmp_path / "a.fits", variance=1, position=position, size=21)


def test_sky_coordinates_that_could_be_pixels_warn(tmp_path):
    wcs = tan_wcs()
    wcs.wcs.crval = [30.0, 12.0]
    fits.PrimaryHDU(np.zeros((100, 80)), wcs.to_header()).writeto(tmp_path / "a.fits")
    with pytest.warns(PoorInputWarning, match="taken as pixels; as RA and Dec in degrees"):
        fetch(tmp_path / "a.fits", variance=1, position=(29.9995, 12.0005), size=21)


@pytest.mark.parametrize(
    "options, demand",
    [
        (
            {"position": (900, 50), "size": 21},
            "position and size must describe a box inside the image of 20 x 24 pixels",
        ),
        ({"position": (5, 5)}, "position and size must be given together"),
        ({"position": (5, 5), "size": -3}, "position and size must describe a box"),
        (
            {"position": SkyCoord(1, 2, unit="deg"), "size": 3},
            "position must be in pixels, because the image has no WCS",
        ),
    ],
    ids=["outside", "no-size", "negative", "no-wcs"],
)
def test_impossible_cutouts_are_refused(tmp_path, options, demand):
    with pytest.raises(ValueError, match=f"read_observation: {demand}"):
        fetch(write_fits(tmp_path / "a.fits", primary=noise_stamp()), variance=1, **options)


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f8", "u4"])
def test_scaled_and_integer_files_are_read_as_their_values(tmp_path, dtype):
    image = (np.arange(480).reshape(24, 20) * 7 + 5).astype(dtype)
    seen = fetch(write_fits(tmp_path / "a.fits", primary=image), variance=1)
    np.testing.assert_array_equal(seen.image, image.astype(np.float32))


def test_bscale_bzero_and_blank(tmp_path):
    (tmp_path / "a.fits").write_bytes(scaled_fits())
    seen = fetch(tmp_path / "a.fits", variance=1)
    assert (
        seen.mask.sum() == 1
        and seen.mask.flat[7]
        and seen.image[23, 19] == pytest.approx(100 + 479 / 2)
    )


def scaled_fits():
    """Bytes of an image [24, 20] stored as 0, 1, 2, ... under BSCALE, BZERO and BLANK."""
    cards = [
        ("SIMPLE", True),
        ("BITPIX", 16),
        ("NAXIS", 2),
        ("NAXIS1", 20),
        ("NAXIS2", 24),
        ("BSCALE", 0.5),
        ("BZERO", 100.0),
        ("BLANK", 7),
    ]
    stored = np.arange(480, dtype=">i2").tobytes()
    return fits.Header(cards).tostring().encode() + stored + b"\0" * (-len(stored) % 2880)


def test_units_are_read_and_unknown_ones_survive(tmp_path):
    assert (
        fetch(write_fits(tmp_path / "a.fits", primary=noise_stamp(), BUNIT="nJy"), variance=1).unit
        == units.nJy
    )
    assert "furlong" in str(
        fetch(
            write_fits(tmp_path / "a.fits", primary=noise_stamp(), BUNIT="furlong/adu2"), variance=1
        ).unit
    )


# --- PSF files


def test_psf_from_fits_npy_and_cube(tmp_path):
    np.save(tmp_path / "psf.npy", gaussian_image())
    write_fits(tmp_path / "psf.fits", primary=np.stack([gaussian_image(), gaussian_image(fwhm=4)]))
    fine = read_psf(tmp_path / "psf.npy", pixel_scale=0.6, oversampling=3)
    assert (fine.pixel_scale, fine.pixel_response) == (pytest.approx(0.2), 0.6)
    assert (
        read_psf(tmp_path / "psf.npy", pixel_scale=SCALE, includes_pixel=False).pixel_response == 0
    )
    np.testing.assert_allclose(
        read_psf(tmp_path / "psf.fits", pixel_scale=SCALE, plane=1).image, gaussian_image(fwhm=4)
    )
    with pytest.raises(InputFileError, match="is a cube of 2 planes; choose one with plane=0 to 1"):
        read_psf(tmp_path / "psf.fits", pixel_scale=SCALE)
    with pytest.raises(ValueError, match="read_psf: oversampling must be positive, got 0"):
        read_psf(tmp_path / "psf.npy", pixel_scale=SCALE, oversampling=0)


def test_psf_file_with_several_images_needs_hdu(tmp_path):
    path = write_fits(tmp_path / "psf.fits", ("G", gaussian_image()), ("R", gaussian_image(fwhm=4)))
    with pytest.raises(InputFileError, match=r"more than one HDU could be the PSF: 1 G .*; 2 R"):
        read_psf(path, pixel_scale=SCALE)
    for psf in (
        read_psf(path, pixel_scale=SCALE, hdu="R"),
        read_psf(f"{path}[2]", pixel_scale=SCALE),
    ):
        np.testing.assert_allclose(psf.image, gaussian_image(fwhm=4))


def write_psfex(path, *, sampling=0.5, degree=2, **header):
    """A PsfEx file in its own layout: basis in PSF_MASK, polynomial in the header."""
    rng = np.random.default_rng(5)
    num_terms = (degree + 1) * (degree + 2) // 2
    basis = np.stack(
        [gaussian_image(25, fwhm=6)]
        + [0.003 * rng.normal(size=(25, 25)) * gaussian_image(25, 8) for _ in range(num_terms - 1)]
    )
    table = fits.BinTableHDU.from_columns(
        [fits.Column("PSF_MASK", f"{basis.size}E", dim=f"(25, 25, {num_terms})", array=basis[None])]
    )
    table.header.update(
        {
            "POLNAXIS": 2,
            "POLGRP1": 1,
            "POLNAME1": "X_IMAGE",
            "POLZERO1": 20.5,
            "POLSCAL1": 40.0,
            "POLGRP2": 1,
            "POLNAME2": "Y_IMAGE",
            "POLZERO2": 18.0,
            "POLSCAL2": 36.0,
            "POLNGRP": 1,
            "POLDEG1": degree,
            "PSF_SAMP": sampling,
            "PSFNAXIS": 3,
            "PSFAXIS1": 25,
            "PSFAXIS2": 25,
            "PSFAXIS3": num_terms,
        }
        | header
    )
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    return path


def odd_image(side=33, scale=SCALE):
    """A PSF that is not its own mirror image, nor its point reflection, by GalSim."""
    star = galsim.Gaussian(fwhm=0.7).shear(g1=0.15, g2=0.2)
    coma = star + 0.3 * galsim.Gaussian(fwhm=0.9).shift(0.12, 0.3)
    image = coma.drawImage(nx=side, ny=side, scale=scale, dtype=float).array
    return image / image.sum()


def test_a_psf_is_read_the_way_up_that_it_was_written(tmp_path):
    """From FITS, NumPy and PsfEx files; a file of even sides is moved along both axes, and not
    turned.
    """
    image = odd_image()
    fits.PrimaryHDU(image).writeto(tmp_path / "a.fits")
    np.save(tmp_path / "a.npy", image)
    for path in (tmp_path / "a.fits", tmp_path / "a.npy"):
        np.testing.assert_allclose(read_psf(path, pixel_scale=SCALE).image, image, atol=1e-12)
    table = Table({"psf_mask": image[None, None], "polnaxis": [0], "psf_samp": [1.0]})
    table.write(tmp_path / "merged.fits")
    np.testing.assert_allclose(
        read_psf(tmp_path / "merged.fits", pixel_scale=SCALE).image, image, atol=1e-12
    )
    even = galsim.Image(odd_image(side=34), scale=SCALE)
    np.save(tmp_path / "even.npy", even.array)
    moved = read_psf(tmp_path / "even.npy", pixel_scale=SCALE, recentre=True).image
    # An even stamp of GalSim's is centred between its pixels, an odd one on a pixel: light that is
    # not symmetric about it goes to the same place from both.
    centred = read_psf(tmp_path / "a.npy", pixel_scale=SCALE, recentre=True).image
    np.testing.assert_allclose(moved[1:-1, 1:-1], centred, atol=1e-3 * image.max())
    assert np.abs(centred - centred[::-1]).max() > 0.05 * image.max()
    assert np.abs(centred - centred[:, ::-1]).max() > 0.05 * image.max()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_psfex_agrees_with_galsim(tmp_path, degree):
    path = write_psfex(tmp_path / "a.psf", degree=degree)
    ours = read_psf(path, pixel_scale=SCALE, position=(33.0, 7.0))
    theirs = galsim.des.DES_PSFEx(str(path)).getPSFArray(galsim.PositionD(34, 8))
    np.testing.assert_allclose(ours.image, theirs / theirs.sum(), atol=1e-7)
    assert ours.pixel_scale == pytest.approx(SCALE / 2) and ours.pixel_response == SCALE


def test_a_psfex_file_that_is_replaced_is_read_again(tmp_path):
    fine, coarse = (
        read_psf(write_psfex(tmp_path / "a.psf", sampling=sampling), pixel_scale=SCALE)
        for sampling in (0.5, 0.7)
    )
    assert coarse.pixel_scale / fine.pixel_scale == pytest.approx(1.4)


def test_psfex_faults(tmp_path):
    path = write_psfex(tmp_path / "a.psf", degree=1)
    with pytest.raises(
        ValueError, match="oversampling must be 1 for a PsfEx file, got 2.0; .*0.5 pixels"
    ):
        read_psf(path, pixel_scale=SCALE, oversampling=2)
    with pytest.warns(PoorInputWarning, match="position .* the polynomial is extrapolated"):
        read_psf(path, pixel_scale=SCALE, position=(9000, 9000))
    with pytest.raises(InputFileError, match=r"varies with \['MAG', 'Y_IMAGE'\]"):
        read_psf(write_psfex(path, POLNAME1="MAG"), pixel_scale=SCALE)
    with pytest.raises(InputFileError, match="does not fit a polynomial of degree 5"):
        read_psf(write_psfex(path, POLDEG1=5), pixel_scale=SCALE)
    table = Table({"psf_mask": np.ones((2, 1, 3, 3)), "polnaxis": [0, 0], "psf_samp": [1.0, 1.0]})
    table.write(tmp_path / "merged.fits")
    with pytest.raises(
        InputFileError, match="PsfEx table of 2 rows; choose one with plane=0 to 1, got None"
    ):
        read_psf(tmp_path / "merged.fits", pixel_scale=SCALE)
    with pytest.warns(PoorInputWarning, match="sums to 9"):
        assert read_psf(tmp_path / "merged.fits", pixel_scale=SCALE, plane=1).image.shape == (3, 3)


# --- damaged files


def sample_fits(path):
    """Image, variance, mask and WCS in a file with checksums."""
    header = tan_wcs().to_header()
    hdus = [fits.PrimaryHDU()] + [
        fits.ImageHDU(pixels, header, name=name)
        for name, pixels in (
            ("SCI", noise_stamp()),
            ("VAR", np.ones((24, 20), np.float32)),
            ("DQ", np.zeros((24, 20), np.int16)),
        )
    ]
    fits.HDUList(hdus).writeto(path, checksum=True, overwrite=True)
    return path


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"junk" * 3000, "is no FITS file: it begins with b'junkjunkj'"),
        (b"SIMPLE  =" + b"x" * 9000, "cannot be read|is damaged"),
        (b"BZh91AY&SY" * 50, "is no FITS file"),
        (b"\x1f\x8b" + b"z" * 50, "cannot be read"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
    ],
    ids=["empty", "junk", "junk-behind-simple", "bzip2", "bad-gzip", "bad-npy"],
)
def test_junk_is_one_error(tmp_path, content, reason):
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    for read in (lambda: fetch(path), lambda: read_psf(path, pixel_scale=SCALE)):
        with pytest.raises(InputFileError, match=reason) as caught:
            read()
        assert (
            caught.value.path == str(path) and str(caught.value) == f"{path}: {caught.value.reason}"
        )


def test_missing_files_and_folders_are_the_same_error(tmp_path):
    with pytest.raises(InputFileError, match="no such file"):
        fetch(tmp_path / "none.fits")
    with pytest.raises(InputFileError, match="is a folder"):
        fetch(tmp_path)


def test_input_file_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(InputFileError("a.fits", "is empty")))
    assert (error.path, error.reason) == ("a.fits", "is empty")


def test_every_truncation_is_an_error(tmp_path):
    content = sample_fits(tmp_path / "a.fits").read_bytes()
    for length in [
        1,
        80,
        2879,
        2880,
        2881,
        5760,
        9000,
        11000,
        len(content) // 2,
        len(content) - 2880,
    ]:
        (tmp_path / "b.fits").write_bytes(content[:length])
        with pytest.raises((InputFileError, ValueError), match="b.fits") as caught:
            fetch(tmp_path / "b.fits")
        assert isinstance(caught.value, InputFileError), length


def test_bit_flips_are_found_by_the_checksums(tmp_path, rng):
    path = sample_fits(tmp_path / "a.fits")
    content, clean = path.read_bytes(), fetch(path)
    pixels = content.index(noise_stamp().astype(">f4").tobytes()[:40])
    with pytest.raises(InputFileError, match="is damaged: (Checksum|Datasum) verification failed"):
        (tmp_path / "b.fits").write_bytes(
            content[: pixels + 5] + bytes([content[pixels + 5] ^ 64]) + content[pixels + 6 :]
        )
        fetch(tmp_path / "b.fits")
    for where in rng.integers(0, len(content), 100):
        damaged = bytearray(content)
        damaged[where] ^= 1 << rng.integers(8)
        (tmp_path / "b.fits").write_bytes(damaged)
        try:
            seen = fetch(tmp_path / "b.fits")
        except InputFileError:
            continue
        np.testing.assert_array_equal(seen.image, clean.image, err_msg=f"byte {where}")
        np.testing.assert_array_equal(seen.variance, clean.variance, err_msg=f"byte {where}")


def test_a_header_that_lies_about_its_size_is_refused_before_reading(tmp_path):
    content = scaled_fits()
    for old, new in (
        (b"NAXIS1  =                   20", b"NAXIS1  =            900000000"),
        (b"NAXIS2  =                   24", b"NAXIS2  =                 2400"),
    ):
        (tmp_path / "a.fits").write_bytes(content.replace(old, new))
        with pytest.raises(
            InputFileError, match="is truncated, or its header lies: .* ends at byte [0-9]+ of 5760"
        ):
            fetch(tmp_path / "a.fits")


def test_a_negative_size_in_a_header_is_refused_and_does_not_loop(tmp_path):
    content = write_psfex(tmp_path / "a.psf", degree=1).read_bytes()
    width = content[content.index(b"NAXIS1  =") :][:30]
    (tmp_path / "a.psf").write_bytes(content.replace(width, b"NAXIS1  =                -2880"))
    with pytest.raises(
        InputFileError,
        match="its header lies: HDU 1 .BINTABLE. must have a whole number NAXIS1, got -2880",
    ):
        read_psf(tmp_path / "a.psf", pixel_scale=SCALE)


def test_pixel_cap(tmp_path):
    path = write_fits(tmp_path / "a.fits", primary=noise_stamp())
    with pytest.raises(
        InputFileError, match=r"shape \(24, 20\), more than 479 pixels; raise max_pixels"
    ):
        fetch(path, max_pixels=479)
    np.save(tmp_path / "a.npy", noise_stamp())
    with pytest.raises(InputFileError, match="at most 479 values are read"):
        fetch(tmp_path / "a.npy", max_pixels=479)


def test_a_compressed_image_that_lies_about_its_size_meets_the_cap(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(noise_stamp((40, 40)))]).writeto(
        tmp_path / "a.fits"
    )
    assert read_images(tmp_path / "a.fits")[0].pixels.shape == (40, 40)
    with fits.open(tmp_path / "a.fits", mode="update", disable_image_compression=True) as hdus:
        hdus[1].header["ZNAXIS1"] = 900_000_000
    with pytest.raises(InputFileError, match="more than 100000000 pixels"):
        fetch(tmp_path / "a.fits")


def test_gzip_is_read_and_a_bomb_is_stopped_while_streaming(tmp_path):
    content = sample_fits(tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(fetch(tmp_path / "a.fits.gz").image, noise_stamp())
    (tmp_path / "bomb.fits.gz").write_bytes(gzip.compress(content + bytes(40_000_000), 1))
    with pytest.raises(InputFileError, match="holds more than [0-9]+ bytes when decompressed"):
        fetch(tmp_path / "bomb.fits.gz", max_pixels=100_000)
    (tmp_path / "cut.fits.gz").write_bytes(gzip.compress(content)[:-300])
    with pytest.raises(InputFileError, match="cannot be read .*EOFError"):
        fetch(tmp_path / "cut.fits.gz")


def npy_bytes(header):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (900000, 900000)}\n"),
            "its header promises",
        ),
        (
            npy_bytes("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}\n"),
            "its header promises",
        ),
        (
            npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}\n"),
            "holds object; only plain numbers",
        ),
        (
            npy_bytes("{'descr': '<c8', 'fortran_order': False, 'shape': (1, 1)}\n"),
            "holds complex64; only plain numbers",
        ),
        (npy_bytes("__import__('os')\n"), "cannot be read"),
    ],
    ids=["huge", "negative", "object", "complex", "code"],
)
def test_npy_faults(tmp_path, content, reason):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputFileError, match=reason):
        fetch(tmp_path / "a.npy")


def test_npy_of_any_order_is_read(tmp_path):
    for array in (noise_stamp(), np.asfortranarray(noise_stamp()), noise_stamp().astype(">f8")):
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(fetch(tmp_path / "a.npy", variance=1).image, noise_stamp())


def test_sip_order_from_a_hostile_header_costs_nothing(tmp_path):
    header = tan_wcs().to_header()
    header.update(
        {
            "CTYPE1": "RA---TAN-SIP",
            "CTYPE2": "DEC--TAN-SIP",
            "A_ORDER": 30_000_000,
            "B_ORDER": 30_000_000,
        }
    )
    fits.PrimaryHDU(noise_stamp(), header).writeto(tmp_path / "a.fits")
    with pytest.raises(ValueError, match="pixel_scale must be given"):
        fetch(tmp_path / "a.fits", pixel_scale=None)


def expect_only_ours(read):
    """Run a reader on damaged input: astrogen's errors are fine, any other is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except InputFileError:
        pass
    except ValueError as error:
        assert str(error).split(":")[0] in (
            "read_observation",
            "make_observation",
            "make_psf",
            "read_psf",
        ), error


def damaged_versions(content, rng, num):
    """Seeded byte flips (single, several) and truncations."""
    for trial in range(num):
        damaged = bytearray(content)
        if trial % 3 == 2:
            del damaged[rng.integers(len(content)) :]
        for where in rng.integers(0, max(len(damaged), 1), (1, 12, 2)[trial % 3]):
            if damaged:
                damaged[where] = rng.integers(256)
        yield bytes(damaged)


def make_files(folder):
    """One small file of each kind with its reader."""
    plain = write_fits(
        folder / "plain.fits",
        ("SCI", noise_stamp()),
        ("ERR", np.ones((24, 20), ">f8")),
        ("DQ", np.ones((24, 20), np.int16)),
    )
    with fits.open(plain, mode="update") as hdus:
        hdus["SCI"].header.update(tan_wcs().to_header())
    sample_fits(folder / "sums.fits")
    (folder / "zip.fits.gz").write_bytes(gzip.compress(plain.read_bytes()))
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(noise_stamp())]).writeto(
        folder / "tiles.fits"
    )
    np.save(folder / "array.npy", gaussian_image())
    write_psfex(folder / "model.psf", degree=1)
    write_planes(
        folder / "result.fits",
        {"image": noise_stamp()},
        header={"a": 1},
        tables={"t": Table({"x": [1.0, 2.0], "s": ["a", "b"]})},
    )
    psf = gaussian_psf()
    return {
        "plain.fits": lambda path: read_observation(path, psf=psf),
        "sums.fits": lambda path: read_observation(path, psf=psf),
        "zip.fits.gz": lambda path: read_observation(path, psf=psf),
        "tiles.fits": lambda path: read_observation(path, psf=psf, pixel_scale=SCALE),
        "array.npy": lambda path: read_psf(path, pixel_scale=SCALE),
        "model.psf": lambda path: read_psf(path, pixel_scale=SCALE, position=(5, 5)),
        "result.fits": read_planes,
    }


@pytest.mark.parametrize(
    "name",
    [
        "plain.fits",
        "sums.fits",
        "zip.fits.gz",
        "tiles.fits",
        "array.npy",
        "model.psf",
        "result.fits",
    ],
)
def test_only_our_errors_come_out_of_damaged_files(tmp_path, rng, name):
    read = make_files(tmp_path)[name]
    content = (tmp_path / name).read_bytes()
    for damaged in damaged_versions(content, rng, 60):
        (tmp_path / name).write_bytes(damaged)
        expect_only_ours(lambda: read(tmp_path / name))


@pytest.mark.parametrize("name", ["plain.fits", "model.psf", "result.fits"])
def test_only_our_errors_come_out_of_damaged_headers(tmp_path, rng, name):
    read = make_files(tmp_path)[name]
    content = (tmp_path / name).read_bytes()
    starts = [
        i
        for i in range(0, len(content), 80)
        if content[i : i + 80].strip() and content[i + 8 : i + 10] == b"= "
    ]
    for _ in range(80):
        damaged = bytearray(content)
        where = rng.choice(starts) + rng.integers(0, 40)
        damaged[where] = rng.integers(32, 127)
        (tmp_path / name).write_bytes(damaged)
        expect_only_ours(lambda: read(tmp_path / name))


# --- results


def test_planes_tables_and_header_survive_a_round_trip(tmp_path):
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = tmp_path / "out.fits"
    write_planes(
        path,
        {
            "IMAGE": noise_stamp(),
            "variance": np.ones((24, 20)),
            "mask": noise_stamp() > 1,
            "draws": cube,
        },
        wcs={"IMAGE": tan_wcs()},
        unit=units.nJy,
        tables={
            "rows": Table(
                {
                    "a": [1, 2],
                    "b": [0.5, 0.25],
                    "name": ["x", "y\u00fc"],
                    "r": [1, 2] * units.arcsec,
                }
            )
        },
        header={
            "seed": 7,
            "chi2": float("nan"),
            "a_long_keyword": "v" * 200,
            "object": "gal\u00e1xia\n<b>",
            "ok": True,
            "n": np.int64(3),
        },
    )
    planes, header, tables = read_planes(path)
    assert list(planes) == ["IMAGE", "VARIANCE", "MASK", "DRAWS"]
    np.testing.assert_array_equal(planes["DRAWS"], cube)
    np.testing.assert_array_equal(planes["MASK"], (noise_stamp() > 1).astype(np.uint8))
    assert planes["IMAGE"].dtype == np.float32 and planes["IMAGE"].dtype.isnative
    assert (
        header["SEED"] == 7
        and header["CHI2"] is None
        and header["A_LONG_KEYWORD"] == "v" * 200
        and header["OK"] is True
        and header["N"] == 3
    )
    assert header["OBJECT"] == "gal\\xe1xia <b>"
    assert (
        list(tables["ROWS"]["name"]) == ["x", "y\\xfc"]
        and tables["ROWS"]["r"].unit == units.arcsec
        and tables["ROWS"]["b"].sum() == 0.75
    )
    assert (
        read_plane_wcs(path, "image").wcs.crval[0] == 150 and read_plane_wcs(path, "draws") is None
    )
    with fits.open(path) as hdus:
        assert (
            hdus["IMAGE"].header["BUNIT"] == "nJy"
            and hdus["VARIANCE"].header["BUNIT"] == "nJy2"
            and "BUNIT" not in hdus["MASK"].header
        )
        assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in hdus)


def test_what_was_written_is_read_as_an_observation(tmp_path):
    seen = observe(pixel_scale=None, wcs=tan_wcs(), mask=noise_stamp() > 1, unit="nJy")
    write_planes(
        tmp_path / "a.fits",
        {"image": seen.image, "variance": seen.variance, "mask": seen.mask},
        wcs=seen.wcs,
        unit=seen.unit,
    )
    again = read_observation(tmp_path / "a.fits", psf=seen.psf)
    for name in ("image", "variance", "mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))
    assert again.unit == units.nJy and again.pixel_scale == pytest.approx(seen.pixel_scale)


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz"])
def test_equal_content_is_equal_bytes_and_nothing_is_left_behind(tmp_path, name):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_planes(tmp_path / folder / name, {"image": noise_stamp()}, header={"seed": 1})
        assert os.listdir(tmp_path / folder) == [name]
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    np.testing.assert_array_equal(read_planes(tmp_path / "one" / name)[0]["IMAGE"], noise_stamp())
    with fits.open(tmp_path / "one" / name) as hdus:
        assert not any(
            letter.isdigit()
            for hdu in hdus
            for letter in hdu.header.comments["CHECKSUM"] + hdu.header.comments["DATASUM"]
        ), "no date"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_planes(tmp_path / "a.fits", {"image": noise_stamp()})
    before = (tmp_path / "a.fits").read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_planes(tmp_path / "a.fits", {"image": noise_stamp(seed=9)})
    assert (tmp_path / "a.fits").read_bytes() == before and os.listdir(tmp_path) == ["a.fits"]


def test_planes_must_be_images(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"write_planes: planes must be \[h, w\] or \[n, h, w\], got 'image' of shape \(4,\)",
    ):
        write_planes(tmp_path / "a.fits", {"image": np.zeros(4)})


# --- real data


@pytest.mark.parametrize(
    "exposure, ccd",
    [("131122_030338", "S21"), ("141029_043225", "N26"), ("141029_043420", "N26")],
    ids=["z", "g", "r"],
)
def test_decam_exposures(shared, exposure, ccd):
    folder = shared / "data" / "decam_exposures"
    model, image = sorted(folder.glob(f"*{exposure}_ooi_*"))
    weight, mask = next(folder.glob(f"*{exposure}_oow_*")), next(folder.glob(f"*{exposure}_ood_*"))
    with pytest.warns(PoorInputWarning, match="sums to 1.0[12]"):
        psf = read_psf(model, pixel_scale=0.2628)
    seen = read_observation(image, psf=psf, weight=weight, mask=mask)
    assert (
        seen.status == "ok"
        and seen.wcs is not None
        and seen.pixel_scale == pytest.approx(0.2628, rel=1e-3)
    )
    flags, weights = fits.getdata(mask), fits.getdata(weight)
    np.testing.assert_array_equal(seen.mask, (flags != 0) | (weights <= 0))
    np.testing.assert_allclose(seen.variance[~seen.mask], 1 / weights[~seen.mask], rtol=1e-6)
    border = np.r_[seen.image[:4].ravel(), seen.image[-4:].ravel()]
    assert np.std(border) == pytest.approx(np.sqrt(np.median(seen.variance)), rel=0.35), (
        "the weight is an inverse variance"
    )


@pytest.mark.parametrize(
    "exposure", ["131122_030338", "141029_043225", "141029_043420"], ids=["z", "g", "r"]
)
@pytest.mark.filterwarnings("ignore::astrogen.data.observation.PoorInputWarning")
def test_decam_psf_has_the_width_that_psfex_states(shared, exposure):
    """PSF_FWHM agrees with twice the half-light radius; the half-maximum of such wings is narrower.

    Pixels are those of the stamp.
    """
    path = next((shared / "data" / "decam_exposures").glob(f"*{exposure}_ooi_*psfex*"))
    row = Table.read(path)[0]
    psf = read_psf(path, pixel_scale=1.0, position=(50, 50))
    half_light = galsim.InterpolatedImage(galsim.Image(psf.image.copy(), scale=1.0)).calculateHLR()
    assert 2 * half_light == pytest.approx(row["psf_fwhm"], rel=0.02)
    assert 0.75 < psf.fwhm / row["psf_fwhm"] < 0.9
    assert (
        0.8
        < psf.fwhm
        / fits.getheader(
            path.with_name(path.name.replace(f"-{row['ccdname']}-psfex", f".{row['ccdname']}")), 1
        )["FWHM"]
        < 1
    )
    elsewhere = read_psf(path, pixel_scale=1.0, position=(1000, 1500))
    assert 1e-3 < abs(elsewhere.fwhm / psf.fwhm - 1) < 0.1, "the PSF varies over the chip"


def test_hsc_and_hst_cutouts(shared):
    folder = shared / "data" / "hsc_hst_pair"
    hsc = read_observation(
        folder / "Cut_HSC.fits",
        psf=read_psf(folder / "PSF_HSC.fits", pixel_scale=0.168, plane=2),
        plane=2,
    )
    with pytest.warns(PoorInputWarning, match="PSF_HST.fits is centred"):
        psf = read_psf(folder / "PSF_HST.fits", pixel_scale=0.03)
    hst = read_observation(folder / "Cut_HST.fits", psf=psf)
    assert hsc.pixel_scale == pytest.approx(0.168, rel=1e-4) and hst.pixel_scale == pytest.approx(
        0.03, rel=1e-4
    )
    assert hsc.image.shape == (50, 50) and hst.image.shape == (250, 250) and hsc.wcs.naxis == 2
    assert 0.5 < hsc.psf.fwhm < 0.65 and 0.08 < hst.psf.fwhm < 0.12
    with pytest.raises(InputFileError, match="is a cube of 5 planes"):
        read_observation(folder / "Cut_HSC.fits", psf=hsc.psf)


def test_hsc_galaxy(shared):
    folder = shared / "data" / "hsc_galaxy"
    psf = read_psf(folder / "gal1_psf.npy", pixel_scale=0.168)
    options = {"psf": psf, "sigma": folder / "gal1_sig.npy", "mask": folder / "gal1_mask.npy"}
    seen = read_observation(folder / "gal1_im.npy", pixel_scale=0.168, **options)
    assert seen.mask.sum() == 3338 and seen.image.shape == (121, 121) and 0.4 < psf.fwhm < 0.6
    np.testing.assert_allclose(
        seen.variance[~seen.mask], np.load(folder / "gal1_sig.npy")[~seen.mask] ** 2, rtol=1e-6
    )
    with pytest.raises(ValueError, match="pixel_scale must be given for 'gal1_im'"):
        read_observation(folder / "gal1_im.npy", **options)


def test_hsc_blend(shared):
    blend = np.load(shared / "data" / "hsc_blend" / "hsc_cosmos_35.npz")
    for band in range(5):
        psf = make_psf(blend["psfs"][band], pixel_scale=0.168)
        seen = make_observation(
            blend["images"][band], psf=psf, variance=blend["variance"][band], pixel_scale=0.168
        )
        assert seen.status == "ok" and seen.image.shape == (58, 48) and 0.4 < psf.fwhm < 1.0
