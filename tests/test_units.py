"""Units: of images (fluxes, surface brightness, words that nobody knows), of noise planes, and of
several exposures.
"""

import re

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import Table
from astropy.wcs import WCS
from conftest import lone_result

from astrogen.data.images import read_planes, write_planes
from astrogen.data.observation import make_observation, make_psf, read_observation, to_unit
from astrogen.data.units import flux_unit, read_unit, unit_text
from astrogen.errors import InputError
from astrogen.galaxies.conclude import make_exposure
from astrogen.galaxies.deblend import unlike_scales
from astrogen.galaxies.result import read_result, results_table
from astrogen.survey.store import Seen, chunk_path, pack, read_object, write_chunk

SCALE, FINER = 0.2, 0.1  # arcsec, of the observed and of the deconvolved pixel
ARCSEC2 = (np.pi / 180 / 3600) ** 2  # sr
UNKNOWN = (
    "nanomaggy",
    "ELECTRONS/S",
    "counts/sec",
    "ADU/s",
    "e-/s",
    "DN",
    "2.5 Jy",
    "1e400 Jy",
    "a,b",
    "no unit at all",
)
PSF = make_psf(np.eye(5)[2][:, None] * np.eye(5)[2], pixel_scale=SCALE, pixel_response=SCALE)
STAMP = np.random.default_rng(3).normal(2, 1, (24, 24)).astype(np.float32)


def observe(image=STAMP, **options):
    options = {"sigma": 0.5, "pixel_scale": SCALE, "name": "A"} | options
    return make_observation(image, psf=PSF, **options)


def result_of(observation):
    draws = np.random.default_rng(1).uniform(0, 1, (9, 32, 32))
    return lone_result(
        observation,
        prior_scale=FINER,
        target_fwhm=0.2,
        draws=draws,
        model=observation.image,
        latent_draws=np.zeros((9, 2)),
        flux_draws=draws.sum((1, 2)),
        shift_draws=np.zeros((9, 2)),
        background_draws=np.zeros(9),
        method="laplace",
        diagnostics={},
        provenance={},
    )


# --- unknown to FITS or astropy


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_unit_that_nobody_knows_is_written_and_read_letter_for_letter(text, tmp_path):
    result = result_of(observe(unit=text))
    assert str(result.observation.unit) == text
    result.write_fits(tmp_path / "r.fits")
    with fits.open(tmp_path / "r.fits") as hdus:
        assert hdus["IMAGE"].header["BUNIT"] == hdus["OBSERVED"].header["BUNIT"] == text
        assert hdus["VARIANCE"].header["BUNIT"] == f"({text})**2"
        assert hdus[0].header["FLUXUNIT"] == text
    again = read_result(tmp_path / "r.fits")
    assert again.observation.unit == result.observation.unit
    np.testing.assert_array_equal(again.image, result.image)
    assert str(result.to_ccddata().unit) == text
    table = results_table([result, again])
    assert str(table["flux"].unit) == text and list(table["unit"]) == [text, text]
    for name, format in (("t.ecsv", "ascii.ecsv"), ("t.parquet", "parquet"), ("t.vot", "votable")):
        table.write(tmp_path / name, format=format)
        assert list(Table.read(tmp_path / name, format=format)["unit"]) == [text, text]


@pytest.mark.parametrize("text", ["nanomaggy", "ELECTRONS/S", "counts/sec"])
def test_an_image_whose_unit_nobody_knows_is_read_from_fits(text, tmp_path):
    header = fits.Header({"BUNIT": text})
    hdus = [fits.ImageHDU(STAMP, header, "SCI"), fits.ImageHDU(STAMP**2 + 1, header, "VAR")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "i.fits")
    seen = read_observation(tmp_path / "i.fits", psf=PSF, pixel_scale=SCALE)
    assert str(seen.unit) == text and seen.brightness is None
    np.testing.assert_array_equal(seen.image, STAMP)


def test_text_that_fits_cannot_hold_is_written_escaped(tmp_path):
    write_planes(tmp_path / "p.fits", {"IMAGE": STAMP}, unit=read_unit("électron"))
    assert fits.getheader(tmp_path / "p.fits", 1)["BUNIT"] == "\\xe9lectron"


def test_noise_in_a_unit_that_nobody_knows_must_be_in_the_same_words():
    given = CCDData(
        STAMP, unit=read_unit("ELECTRONS/S"), uncertainty=StdDevUncertainty(STAMP * 0 + 2)
    )
    seen = make_observation(given, psf=PSF, pixel_scale=SCALE)
    assert str(seen.unit) == "ELECTRONS/S" and np.all(seen.variance == 4)
    with pytest.raises(InputError, match=r"sigma must be convertible .* ELECTRONS/S, got Jy"):
        observe(sigma=1 * u.Jy, unit="ELECTRONS/S")
    with pytest.raises(
        InputError, match=r"variance must be convertible .*\(ADU/s\)\*\*2, got adu2"
    ):
        observe(sigma=None, variance=1 * u.adu**2, unit="ADU/s")


# --- surface brightness


@pytest.mark.parametrize(
    "text, flux, per_pixel",
    [
        ("MJy/sr", "nJy", 1e15 * ARCSEC2 * SCALE**2),
        ("MJy sr-1", "nJy", 1e15 * ARCSEC2 * SCALE**2),
        ("nJy/arcsec2", "nJy", SCALE**2),
        ("uJy/arcmin2", "nJy", 1e3 / 3600 * SCALE**2),
        ("electron/s/arcsec2", "electron / s", SCALE**2),
        ("erg/s/cm2/sr", "1e-11 erg / (s cm2)", 1e11 * ARCSEC2 * SCALE**2),
        ("electron/s/pix", "electron / s", 1.0),
        ("adu/pixel", "adu", 1.0),
    ],
)
def test_fluxes_are_sums_and_images_are_what_bunit_says(text, flux, per_pixel, tmp_path):
    seen = observe(unit=text)
    assert seen.unit == u.Unit(flux)
    np.testing.assert_allclose(seen.image, STAMP * per_pixel, rtol=1e-5)
    np.testing.assert_allclose(seen.variance, (0.5 * per_pixel) ** 2, rtol=1e-5)
    result = result_of(seen)
    assert result.to_table()["flux"].unit == u.Unit(flux)
    # Per solid angle a quarter of the flux in a quarter of the pixel is the same number.
    finer = 1 if "pix" in text else per_pixel / (SCALE / FINER) ** 2
    result.write_fits(tmp_path / "r.fits")
    planes, header, _ = read_planes(tmp_path / "r.fits")
    assert u.Unit(header["FLUXUNIT"]) == u.Unit(flux)
    np.testing.assert_allclose(planes["OBSERVED"], STAMP, rtol=1e-5)
    np.testing.assert_allclose(planes["VARIANCE"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(planes["IMAGE"], result.image / finer, rtol=1e-5)
    with fits.open(tmp_path / "r.fits") as hdus:
        assert hdus["IMAGE"].header["BUNIT"] == text
        assert u.Unit(hdus["VARIANCE"].header["BUNIT"]) == u.Unit(text) ** 2
    given = result.to_ccddata()
    assert given.unit == u.Unit(text)
    np.testing.assert_allclose(given.data, planes["IMAGE"], rtol=1e-6)
    np.testing.assert_allclose(given.uncertainty.array, planes["IMAGE_STD"], rtol=1e-6)
    again = read_result(tmp_path / "r.fits")
    assert again.observation.brightness == seen.brightness
    for name in ("image", "image_std", "draws", "model", "residual"):
        np.testing.assert_allclose(getattr(again, name), getattr(result, name), rtol=1e-5)
    np.testing.assert_allclose(again.observation.variance, seen.variance, rtol=1e-5)


def test_the_area_is_that_of_the_pixel_here_not_of_the_middle_of_the_exposure():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix = [150, 2], [12.5, 12.5]
    wcs.wcs.cdelt = [-1.01 * SCALE / 3600, SCALE / 3600]
    seen = observe(unit="nJy/arcsec2", wcs=wcs, pixel_scale=SCALE)
    np.testing.assert_allclose(seen.image, STAMP * SCALE**2 * 1.01, rtol=1e-5)


@pytest.mark.parametrize(
    "unit, words",
    [
        ("mag/arcsec2", "magnitudes do not add up"),
        ("mag(AB)", "magnitudes do not add up"),
        (u.ABmag, "magnitudes do not add up"),
        ("MAG", "magnitudes do not add up"),
        ("Jy/beam", "area of a beam is not known"),
        ("JY/BEAM", "area of a beam is not known"),
        ("MJY/SR", "does not know this unit per solid angle"),
        ("ELECTRONS/S/ARCSEC2", "does not know this unit per solid angle"),
    ],
)
def test_what_does_not_sum_up_to_a_flux_is_refused_with_the_reason(unit, words):
    with pytest.raises(InputError, match=f"unit must be one whose sum .* {words}"):
        observe(unit=unit)


@pytest.mark.parametrize(
    "text", ["nJy", "adu", "electron / s", "erg / (Angstrom s cm2)", "", "maggies", "image"]
)
def test_units_of_flux_stay(text):
    assert flux_unit("f", read_unit(text)) == (read_unit(text), None)


# --- noise


@pytest.mark.parametrize(
    "kind, unit, factor",
    [
        ("sigma", "mJy", 1e-3),
        ("variance", "uJy2", 1e-12),
        ("weight", "uJy-2", 1e-12),
        ("sigma", "Jy", 1.0),
        ("variance", "Jy", 1.0),  # copied from the image, as pipelines do
        ("variance", "", 1.0),
        ("weight", "UNITLESS", 1.0),
    ],
)
def test_noise_planes_have_units_of_their_own(kind, unit, factor, tmp_path):
    plane = np.full(STAMP.shape, 4.0)
    names = {"sigma": "ERR", "variance": "VAR", "weight": "WHT"}
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.ImageHDU(STAMP, fits.Header({"BUNIT": "Jy"}), "SCI"),
            fits.ImageHDU(plane, fits.Header({"BUNIT": unit}), names[kind]),
        ]
    )
    hdus.writeto(tmp_path / "i.fits")
    seen = read_observation(tmp_path / "i.fits", psf=PSF, pixel_scale=SCALE)
    wanted = {"sigma": (4 * factor) ** 2, "variance": 4 * factor, "weight": factor / 4}[kind]
    np.testing.assert_allclose(seen.variance, wanted, rtol=1e-5)


def test_a_noise_plane_of_another_kind_is_refused(tmp_path):
    planes = [("SCI", "Jy"), ("WHT", "s")]
    hdus = [fits.ImageHDU(STAMP, fits.Header({"BUNIT": unit}), name) for name, unit in planes]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "i.fits")
    with pytest.raises(InputError, match="weight must be convertible to the image's Jy-2, got s"):
        read_observation(tmp_path / "i.fits", psf=PSF, pixel_scale=SCALE)


def test_a_unit_beside_that_of_the_image_is_refused_where_it_differs():
    assert observe(STAMP * u.uJy, unit="uJy").unit == u.uJy
    with pytest.raises(InputError, match="unit must be that of the image, uJy, got nJy"):
        observe(STAMP * u.uJy, unit="nJy")


# --- several exposures


def test_exposures_are_converted_to_one_unit():
    seen = to_unit(observe(STAMP, unit="nJy"), u.uJy)
    np.testing.assert_allclose(seen.image, STAMP * 1e-3, rtol=1e-6)
    np.testing.assert_allclose(seen.variance, 0.25e-6, rtol=1e-6)
    assert seen.unit == u.uJy and "converted from nJy to uJy" in seen.notes


@pytest.mark.parametrize("power, text", [(1, "adu pix-1"), (2, "adu2 pix-2")])
def test_powers_of_units_as_a_header_says_them(power, text):
    assert unit_text(u.adu / u.pix, power) == text


@pytest.mark.parametrize(
    "factor, bands, said",
    [
        (2.5, ("", ""), "A is 1.00 and B 2.50 times the model"),
        (0.8, ("r", "r"), r"one band \(r\) differ in flux, B is 0.80 and A 1.00"),
        (1.03, ("", ""), None),
        (2.5, ("g", "r"), None),
    ],
)
def test_exposures_of_one_band_with_other_zero_points_are_named(factor, bands, said):
    y, x = np.mgrid[-12:12, -12:12] + 0.5
    light = 50 * np.exp(-(x**2 + y**2) / 20)
    noise = np.random.default_rng(2).normal(0, 0.5, (2, 24, 24))
    seen = [
        observe(light + 3 + noise[0]),
        observe(factor * light - 2 + noise[1], name="B"),
    ]
    found = unlike_scales(
        [
            make_exposure(one, light=light, background_draws=np.full(9, level), band=band)
            for one, level, band in zip(seen, (3.0, -2.0), bands, strict=True)
        ]
    )
    assert (len(found) == 1 and re.search(said, found[0])) if said else not found


@pytest.mark.parametrize("text", ["MJy/sr", "electron/s/pix", "ELECTRONS/S", "DN/s/arcsec2"])
def test_an_object_of_a_survey_keeps_its_units(text, tmp_path):
    result = result_of(observe(unit=text))
    seen = Seen("007", ("a.fits",), ("",))
    packed = pack(result, seen, bands=[], num_kept=3)
    write_chunk(chunk_path(tmp_path, 0), [packed], [])
    again = read_object(tmp_path, "007")
    assert str(again.observation.unit) == str(result.observation.unit)
    assert again.observation.brightness == result.observation.brightness
    again.write_fits(tmp_path / "r.fits")
    planes, *_ = read_planes(tmp_path / "r.fits")
    np.testing.assert_allclose(planes["OBSERVED"], STAMP, rtol=1e-5)
