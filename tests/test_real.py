"""Records of real catalogues: a catalogue made here, with every fault, and the shared HST galaxies
where they are.
"""

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from data_pipelines.real import CORRELATION_SIDE, CatalogError, read_entries, recipe

SCALE = 0.03
VARIANCE = 4e-6


def _gaussian(num_x, num_y, sigma=0.06):
    return (
        galsim.Gaussian(sigma=sigma)
        .drawImage(nx=num_x, ny=num_y, scale=SCALE, method="no_pixel")
        .array.astype(float)
    )


def _write_images(path, images):
    fits.HDUList(
        [fits.PrimaryHDU(images[0]), *(fits.ImageHDU(image) for image in images[1:])]
    ).writeto(path)


ROWS = [  # what is special, the cut's sides (x, y), the PSF's
    ("plain", (41, 37), (31, 31)),
    ("even", (40, 38), (30, 28)),
    ("larger than the stamp", (71, 90), (51, 41)),
    ("a pixel not finite", (33, 33), (31, 31)),
    ("no PSF in the file", (33, 33), (31, 31)),
    ("a PSF of zeros", (33, 33), (31, 31)),
    ("no variance", (33, 33), (31, 31)),
]
NAMES = [name for name, _, _ in ROWS]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """A galsim.RealGalaxyCatalog of Gaussians, three of its seven rows unusable."""
    folder = tmp_path_factory.mktemp("catalog")
    cuts, psfs = (
        [10 * _gaussian(*side, sigma=0.2) for _, side, _ in ROWS],
        [0.98 * _gaussian(*side) for _, _, side in ROWS],
    )
    cuts[3][10, 12] = np.nan
    psfs[5][:] = 0
    _write_images(folder / "images.fits", cuts)
    _write_images(folder / "psfs.fits", psfs)
    correlation = np.zeros((21, 21))
    correlation[9:12, 9:12] = 0.3 * VARIANCE
    correlation[10, 10] = VARIANCE
    _write_images(folder / "noise.fits", [correlation])
    num = len(ROWS)
    table = Table(
        {
            "IDENT": [100 + row for row in range(num)],
            "MAG": 20.0 + np.arange(num),
            "BAND": ["F814W"] * num,
            "WEIGHT": np.ones(num),
            "GAL_FILENAME": ["images.fits"] * num,
            "GAL_HDU": range(num),
            "PSF_FILENAME": ["psfs.fits"] * num,
            "PSF_HDU": [0, 1, 2, 3, 99, 5, 6],
            "PIXEL_SCALE": np.full(num, SCALE),
            "NOISE_MEAN": np.zeros(num),
            "NOISE_VARIANCE": [VARIANCE] * (num - 1) + [0.0],
            "NOISE_FILENAME": ["noise.fits"] * num,
        }
    )
    table.write(folder / "catalog.fits")
    return folder / "catalog.fits"


@pytest.fixture(scope="module")
def entries(catalog):
    records, skipped = read_entries(catalog, 64, 41, 0, len(ROWS))
    return {NAMES[record["index"]]: record for record in records}, {
        NAMES[entry["index"]]: entry for entry in skipped
    }


def test_unusable_rows_are_left_out_with_the_reason(entries):
    records, skipped = entries
    assert list(records) == NAMES[:4]
    assert {name: entry["ident"] for name, entry in skipped.items()} == {
        "no PSF in the file": "104",
        "a PSF of zeros": "105",
        "no variance": "106",
    }
    assert (
        "psf must be finite with a positive sum, got sum 0.0" in skipped["a PSF of zeros"]["reason"]
    )
    assert "noise variance must be positive, got 0.0" in skipped["no variance"]["reason"]
    assert skipped["no PSF in the file"]["reason"]


@pytest.mark.parametrize("name", NAMES[:4])
def test_records_have_the_shapes_of_their_recipe(catalog, entries, name):
    record, fields = entries[0][name], recipe(catalog, stamp=64, psf_stamp=41)["fields"]
    assert set(record) == set(fields)
    assert all(list(np.shape(record[field])) == fields[field]["shape"] for field in fields)


@pytest.mark.parametrize("name", NAMES[:3])
def test_psf_is_the_gaussian_on_the_middle_pixel(entries, name):
    expected = _gaussian(41, 41)
    np.testing.assert_allclose(
        entries[0][name]["psf"], expected / expected.sum(), atol=2e-6 * expected.max()
    )


@pytest.mark.parametrize(
    "name, offset",
    [("plain", (-0.5, -0.5)), ("even", (0, 0)), ("larger than the stamp", (-0.5, 0))],
)
def test_image_is_the_cut_about_its_centre(entries, name, offset):
    record = entries[0][name]
    np.testing.assert_array_equal(record["centre_offset"], offset)
    moved = galsim.Gaussian(sigma=0.2).shift(offset[0] * SCALE, offset[1] * SCALE)
    expected = 10 * moved.drawImage(nx=64, ny=64, scale=SCALE, method="no_pixel").array
    np.testing.assert_allclose(
        record["image"][~record["mask"]], expected[~record["mask"]], atol=1e-6
    )
    num_x, num_y = (min(side, 64) for side in ROWS[NAMES.index(name)][1])
    assert (~record["mask"]).sum() == num_x * num_y and not record["image"][record["mask"]].any()


def test_a_pixel_that_is_not_finite_is_masked(entries):
    record = entries[0]["a pixel not finite"]
    first = (64 - 33) // 2
    assert record["mask"][first + 10, first + 12] and (~record["mask"]).sum() == 33 * 33 - 1
    assert np.isfinite(record["image"]).all()


def test_noise_is_told_with_its_correlation(entries):
    record = entries[0]["plain"]
    middle = CORRELATION_SIDE // 2
    expected = np.zeros((CORRELATION_SIDE, CORRELATION_SIDE))
    expected[middle - 1 : middle + 2, middle - 1 : middle + 2] = 0.3
    expected[middle, middle] = 1
    assert record["variance"] == VARIANCE and record["correlated"] == 1
    np.testing.assert_allclose(record["noise_correlation"], expected)


@pytest.mark.parametrize(
    "stamp, psf_stamp, words",
    [
        (4, 41, "recipe: stamp must be at least 8 pixels, got 4"),
        (64, 40, "recipe: psf_stamp must be odd and at least 3 pixels, got 40"),
    ],
    ids=["small stamp", "even PSF"],
)
def test_impossible_stamps_are_refused(catalog, stamp, psf_stamp, words):
    with pytest.raises(ValueError, match=words):
        recipe(catalog, stamp=stamp, psf_stamp=psf_stamp)


def test_a_missing_catalogue_is_named(tmp_path):
    with pytest.raises(
        CatalogError, match="nothing.fits: open_catalog: catalog must be an existing file, got none"
    ):
        recipe(tmp_path / "nothing.fits", stamp=64, psf_stamp=41)


def test_junk_is_no_catalogue(tmp_path):
    (tmp_path / "junk.fits").write_bytes(b"SIMPLE? no")
    with pytest.raises(
        CatalogError,
        match="junk.fits: open_catalog: files must be whole FITS files, got one that is no FITS",
    ):
        recipe(tmp_path / "junk.fits", stamp=64, psf_stamp=41)


def test_an_empty_catalogue_is_refused(catalog, tmp_path):
    Table.read(catalog)[:0].write(tmp_path / "empty.fits")
    with pytest.raises(CatalogError, match="catalog must list galaxies, got 0"):
        recipe(tmp_path / "empty.fits", stamp=64, psf_stamp=41)


def test_hubble_galaxies_come_through_as_galsim_reads_them(shared):
    path = shared / "data/cosmos_real/real_galaxy_catalog.fits"
    records, skipped = read_entries(path, 128, 65, 0, 33)
    assert len(records) == 33 and not skipped
    catalog = galsim.RealGalaxyCatalog(str(path))
    for record in records[::8]:
        cut, psf = (
            catalog.getGalImage(record["index"]).array,
            catalog.getPSFImage(record["index"]).array,
        )
        np.testing.assert_array_equal(record["image"][~record["mask"]].reshape(cut.shape), cut)
        assert record["psf"].argmax() == 32 * 65 + 32 and record["psf"].max() == pytest.approx(
            psf.max() / psf.sum(), rel=1e-4
        )
        assert record["ident"] == str(catalog.ident[record["index"]]) and record[
            "pixel_scale"
        ] == pytest.approx(0.03)
        # The variance that the catalogue claims is that of the sky in the stamp's outermost pixels,
        # within what correlated noise allows.
        edge = np.concatenate([cut[:2].ravel(), cut[-2:].ravel()])
        assert 0.4 < edge.var() / record["variance"] < 2.5


def test_a_catalogue_whose_psfs_are_missing_is_reported_entry_by_entry(shared):
    records, skipped = read_entries(
        shared / "data/cosmos_bright10/real_galaxy_catalog_23.5.fits", 128, 65, 0, 10
    )
    assert not records and len(skipped) == 10
    assert all("real_galaxy_PSF_images_23.5_n1.fits" in entry["reason"] for entry in skipped)
