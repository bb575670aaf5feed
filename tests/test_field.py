"""Fields: what is refused, what is mended, and averaging to coarser pixels against sums by hand."""

import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from astrogen.data.field import make_field, read_field, rebin_field
from astrogen.errors import InputFileError


def sky(scale, shape):
    """A WCS of square pixels of `scale` arcmin about the middle of an image, right ascension to the
    left.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.1, 2.2]
    wcs.wcs.crpix, wcs.wcs.cdelt = np.array(shape[::-1]) / 2 + 0.5, np.array([-scale, scale]) / 60
    return wcs


def test_a_field_keeps_what_it_is_given(rng):
    shear, noise = rng.normal(size=(2, 5, 7)), rng.uniform(1, 2, size=(2, 5, 7))
    field = make_field(shear, noise=noise, pixel_scale=1.5)
    np.testing.assert_allclose(field.maps, shear, rtol=1e-6)
    np.testing.assert_allclose(field.weight, 1 / noise**2, rtol=1e-6)
    assert (
        field.is_shear and not field.mask.any() and field.notes == () and field.pixel_scale == 1.5
    )
    with pytest.raises(ValueError, match="read-only"):
        field.maps[0, 0, 0] = 1


def test_a_convergence_map_is_one_plane_with_a_beam(rng):
    field = make_field(rng.normal(size=(4, 6)), noise=0.1, pixel_scale=2.3, beam=4.0)
    assert field.maps.shape == (1, 4, 6) and not field.is_shear and field.beam == 4.0


@pytest.mark.parametrize(
    "dtype", [">f4", ">f8", np.int16], ids=["big-endian", "big-endian double", "integers"]
)
def test_every_kind_of_number_becomes_native_float32(dtype):
    field = make_field(np.arange(24).reshape(2, 3, 4).astype(dtype), noise=10, pixel_scale=1)
    assert field.maps.dtype == np.float32 and field.maps[1, 2, 3] == 23


def test_bad_pixels_are_masked_in_all_planes_and_counted():
    shear, noise = np.ones((2, 4, 4)), np.ones((2, 4, 4))
    shear[0, 0, 0], shear[1, 0, 1], noise[0, 1, 1], noise[1, 2, 2], noise[0, 3, 3] = (
        np.nan,
        np.inf,
        0,
        -1,
        np.nan,
    )
    field = make_field(shear, noise=noise, mask=np.eye(4)[::-1], pixel_scale=1)
    assert np.array_equal(
        field.mask, (np.eye(4) + np.eye(4)[::-1] + (np.arange(16).reshape(4, 4) == 1)) > 0
    )
    assert field.notes == (
        "2 NaN or infinite pixels masked",
        "2 pixels without positive noise masked",
        "1 pixels without positive noise masked",
    )
    assert np.isfinite(field.maps).all() and (field.weight[:, field.mask] == 0).all()


def test_masked_arrays_bring_their_mask():
    shear = np.ma.array(np.ones((2, 3, 3)), mask=[np.eye(3), np.zeros((3, 3))])
    assert np.array_equal(make_field(shear, noise=1, pixel_scale=1).mask, np.eye(3) > 0)


# --- what stands for "nothing here"


@pytest.mark.parametrize(
    "sentinel, words",
    [
        (-1.6375e30, r"10 pixels of \|shear\| > 1 \(as -1.63[78]e\+30\) masked"),
        (-99.0, r"10 pixels of \|shear\| > 1 \(as -99\) masked"),
        (99.0, r"10 pixels of \|shear\| > 1 \(as 99\) masked"),
        (1.5, r"10 pixels of \|shear\| > 1"),
        (0.0, "10 pixels of exactly zero shear masked"),
        (np.inf, "10 NaN or infinite pixels masked"),
    ],
    ids=["unseen", "-99", "99", "1.5", "zero", "infinity"],
)
@pytest.mark.parametrize("planes", [(0, 1), (0,), (1,)], ids=["both", "first", "second"])
def test_values_that_stand_for_nothing_are_masked(sentinel, words, planes, rng):
    if sentinel == 0 and len(planes) == 1:
        pytest.skip("one component of zero is a shear")
    shear = rng.normal(0, 0.03, (2, 10, 10))
    for plane in planes:
        shear[plane, :, 3] = sentinel
    field = make_field(shear, noise=0.03, pixel_scale=2.3)
    assert np.array_equal(field.mask, np.arange(10) == np.full((10, 1), 3))
    assert len(field.notes) == 1 and re.fullmatch(words + ".*", field.notes[0])
    assert np.abs(field.maps).max() < 0.2


def test_noise_may_make_a_shear_that_cannot_be(rng):
    """A pixel of two galaxies has noise of .2: 1.5 is then four standard deviations from none."""
    shear = rng.normal(0, 0.2, (2, 10, 10))
    shear[0, 0, 0], shear[1, 5, 5] = 1.5, 2.5
    field = make_field(shear, noise=0.2, pixel_scale=1)
    assert not field.mask[0, 0] and field.mask[5, 5] and field.mask.sum() == 1


def test_a_convergence_map_has_sentinels_too():
    kappa = np.zeros((8, 8))
    kappa[2:4], kappa[0, 0] = 1.2, -99.0
    field = make_field(kappa, noise=0.1, pixel_scale=1)
    assert field.mask.sum() == 1 and field.notes == (
        "1 pixels of |convergence| > 5 (as -99) masked",
    )


def observed(rng):
    """Shear of a survey in the middle of a field, nothing around it; and where it was observed."""
    footprint = np.zeros((20, 20), bool)
    footprint[5:15, 4:16] = True
    return rng.normal(0, 0.03, (2, 20, 20)) * footprint, footprint


@pytest.mark.parametrize("empty", [0.0, np.nan, -99.0], ids=["zero", "NaN", "-99"])
def test_a_footprint_given_as_mask_is_recognised_by_what_it_leaves(empty, rng):
    shear, footprint = observed(rng)
    shear[:, ~footprint] = empty
    with pytest.raises(ValueError, match="footprint .--footprint.; it seems to be the other one"):
        make_field(shear, noise=0.03, mask=footprint, pixel_scale=1)
    field = make_field(shear, noise=0.03, mask=~footprint, pixel_scale=1)
    assert field.notes == ()


def test_a_mask_that_leaves_the_edges_is_said(rng):
    """Noise all over the field hides what was observed; the shape of the mask does not."""
    footprint = np.zeros((20, 20), bool)
    footprint[2:18, 2:18] = True
    shear = rng.normal(0, 0.03, (2, 20, 20))
    field = make_field(shear, noise=0.03, mask=footprint, pixel_scale=1)
    assert "the mask leaves 36% of the pixels, 100% along the edges" in field.notes[0]
    holes = np.zeros((20, 20), bool)
    holes[3:6, 3:6] = True
    few = make_field(shear, noise=0.03, mask=~holes, pixel_scale=1)
    assert "the mask leaves 2% of the pixels" in few.notes[0]
    for good in (holes, ~footprint):
        assert make_field(shear, noise=0.03, mask=good, pixel_scale=1).notes == ()


def test_right_ascension_to_the_left_is_said(rng):
    shear = rng.normal(0, 0.03, (2, 8, 8))
    words = "right ascension runs to the left in the WCS"
    assert words in make_field(shear, noise=0.03, wcs=sky(1.0, (8, 8))).notes[0]
    assert make_field(shear, noise=0.03, wcs=sky(1.0, (8, 8)), flipped=True).notes == ()
    right = sky(1.0, (8, 8))
    right.wcs.cdelt = np.abs(right.wcs.cdelt)
    assert make_field(shear, noise=0.03, wcs=right).notes == ()
    assert make_field(shear[0], noise=0.03, wcs=sky(1.0, (8, 8))).notes == ()


BAD = {
    "one plane of three axes": (
        dict(maps=np.ones((1, 4, 4))),
        r"maps must be shear \[2, height, width\] or convergence.*got shape \(1, 4, 4\)",
    ),
    "a vector": (dict(maps=np.ones(4)), r"maps must be shear.*got shape \(4,\)"),
    "no pixels": (dict(maps=np.ones((2, 0, 4))), r"maps must be shear.*got shape \(2, 0, 4\)"),
    "noise of another shape": (
        dict(noise=np.ones((2, 4, 5))),
        r"noise must be a number or have the shape of the maps \(2, 4, 4\), got \(2, 4, 5\)",
    ),
    "mask of another shape": (
        dict(mask=np.zeros((4, 5))),
        r"mask must have the shape of the maps \(4, 4\), got \(4, 5\)",
    ),
    "all masked": (
        dict(mask=np.ones((4, 4))),
        "mask must leave a good pixel, got all masked.*footprint",
    ),
    "zero noise": (dict(noise=0.0), "noise of gamma1 must be positive somewhere"),
    "zero noise of the second": (
        dict(noise=np.stack([np.ones((4, 4)), np.zeros((4, 4))])),
        "noise of gamma2 must be positive somewhere",
    ),
    "NaN noise": (dict(noise=np.nan), "noise of gamma1 must be positive somewhere"),
    "mostly NaN": (
        dict(maps=np.where(np.arange(16).reshape(4, 4) < 9, np.nan, np.ones((2, 4, 4)))),
        "at most 50% NaN or infinite pixels, got 9 of 16",
    ),
    "nothing good together": (
        dict(noise=np.stack([1.0 * np.eye(4), 1 - np.eye(4)])),
        "maps must have a good pixel, got none",
    ),
    "no scale": (dict(pixel_scale=None), "pixel_scale must be given where there is no WCS"),
    "negative scale": (
        dict(pixel_scale=-1.0),
        "pixel_scale must be a positive number of arcmin, got -1",
    ),
    "another scale than the WCS": (
        dict(pixel_scale=0.3, wcs=sky(0.29, (4, 4))),
        "pixel_scale must be that of the WCS, 0.29 arcmin, got 0.3",
    ),
    "beam on shear": (dict(beam=3.0), "beam must be 0 for shear, got 3"),
    "NaN beam": (
        dict(maps=np.ones((4, 4)), beam=np.nan),
        "beam must be a FWHM in arcmin, 0 or more, got nan",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_refused(case):
    options, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        make_field(**{"maps": np.ones((2, 4, 4)), "noise": 1.0, "pixel_scale": 2.3, **options})


def test_the_scale_comes_from_the_wcs():
    assert make_field(
        np.ones((2, 8, 8)), noise=1, wcs=sky(0.29, (8, 8))
    ).pixel_scale == pytest.approx(0.29, rel=1e-6)


# --- averaging


def test_averages_are_weighted_by_inverse_variance(rng):
    """Six times six pixels to two times two, sums by hand; a coarse pixel with nothing good is
    masked.
    """
    shear, noise, mask = (
        rng.normal(size=(2, 6, 6)),
        rng.uniform(0.5, 2, size=(2, 6, 6)),
        rng.random((6, 6)) < 0.2,
    )
    mask[:3, 3:] = True
    field = rebin_field(make_field(shear, noise=noise, mask=mask, pixel_scale=1), 3.0)
    for row, column in ((0, 0), (1, 0), (1, 1)):
        block = np.s_[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        weight = (~mask)[block] / noise[:, *block] ** 2
        np.testing.assert_allclose(
            field.variance[:, row, column], 1 / weight.sum((1, 2)), rtol=1e-5
        )
        np.testing.assert_allclose(
            field.maps[:, row, column],
            (weight * shear[:, *block]).sum((1, 2)) / weight.sum((1, 2)),
            rtol=1e-4,
            atol=1e-6,
        )
    assert np.array_equal(field.mask, [[False, True], [False, False]])
    assert (
        field.notes[-1]
        == "averaged with inverse variances from 1 to 3 arcmin per pixel, 2 x 2 pixels"
    )


def test_noise_stays_white_and_its_variance_right_at_any_ratio(rng):
    """Pixels of 0.29 to 2.3 arcmin, a ratio of 7.93: unit variance of map / noise, and no
    correlation of neighbours.
    """
    white = np.concatenate(
        [
            rebin_field(
                make_field(0.3 * rng.normal(size=(2, 360, 360)), noise=0.3, pixel_scale=0.29), 2.3
            ).maps
            for _ in range(3)
        ]
    )
    field = rebin_field(make_field(np.zeros((2, 360, 360)), noise=0.3, pixel_scale=0.29), 2.3)
    white = white / np.sqrt(np.tile(field.variance, (3, 1, 1)))
    assert field.mask.shape == (46, 46)
    assert white.var() == pytest.approx(1, abs=5 * np.sqrt(2 / white.size))
    assert abs((white[:, 1:] * white[:, :-1]).mean()) < 5 / np.sqrt(white.size)


def test_positions_stay_where_they_are(rng):
    """A bright spot keeps its place in the sky to half a fine pixel, by the WCS of both fields."""
    kappa = np.zeros((120, 90))
    kappa[40:48, 61:69] = 1.0
    fine = make_field(kappa, noise=1, wcs=sky(0.29, kappa.shape))
    coarse = rebin_field(fine, 2.3)

    def centre(field):
        rows, columns = np.indices(field.mask.shape)
        weight = field.maps[0] * field.weight[0]
        return field.wcs.pixel_to_world_values(
            (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
        )

    np.testing.assert_allclose(60 * np.subtract(centre(fine), centre(coarse)), 0, atol=0.5 * 2.3)
    # the exact centre of the field has no rounding at all
    middle = [np.array(field.mask.shape[::-1]) / 2 - 0.5 for field in (fine, coarse)]
    np.testing.assert_allclose(
        fine.wcs.pixel_to_world_values(*middle[0]),
        coarse.wcs.pixel_to_world_values(*middle[1]),
        atol=1e-9,
    )
    assert make_field(kappa[:4, :4], noise=1, wcs=coarse.wcs).pixel_scale == pytest.approx(
        2.3, rel=1e-3
    )


def test_a_wcs_with_a_matrix_is_scaled_too():
    wcs = sky(0.5, (10, 10))
    wcs.wcs.cd = np.array([[-0.5, 0.1], [0.1, 0.5]]) / 60
    scale = make_field(np.ones((10, 10)), noise=1, wcs=wcs).pixel_scale
    assert make_field(
        np.ones((2, 2)),
        noise=1,
        wcs=rebin_field(make_field(np.ones((10, 10)), noise=1, wcs=wcs), 5 * scale).wcs,
    ).pixel_scale == pytest.approx(5 * scale, rel=1e-6)


def test_equal_scales_change_nothing_and_larger_pixels_are_refused():
    field = make_field(np.ones((2, 4, 4)), noise=1, pixel_scale=2.31)
    assert rebin_field(field, 2.3) is field
    with pytest.raises(
        ValueError, match="must be at most those of the prior, 2.3 arcmin, got 5; take a prior"
    ):
        rebin_field(make_field(np.ones((2, 4, 4)), noise=1, pixel_scale=5.0), 2.3)


# --- files


@pytest.fixture
def files(tmp_path, rng):
    """Two maps, two noise maps, a mask and its opposite, written as FITS."""
    planes = {
        "e1": 0.1 * rng.normal(size=(6, 8)),
        "e2": 0.1 * rng.normal(size=(6, 8)),
        "std1": np.full((6, 8), 0.1),
        "std2": np.full((6, 8), 0.2),
        "mask": (rng.random((6, 8)) < 0.3).astype(float),
    }
    planes["footprint"] = 1 - planes["mask"]
    for name, pixels in planes.items():
        fits.PrimaryHDU(pixels, header=sky(0.5, (6, 8)).to_header()).writeto(
            tmp_path / f"{name}.fits"
        )
    return {name: str(tmp_path / f"{name}.fits") for name in planes}, planes


def test_reading_a_field(files):
    paths, planes = files
    field = read_field(
        [paths["e1"], paths["e2"]], noise=[paths["std1"], paths["std2"]], mask=paths["mask"]
    )
    assert field.pixel_scale == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(np.sqrt(field.variance[1, ~field.mask]), 0.2, rtol=1e-6)
    assert np.array_equal(field.mask, planes["mask"] > 0)
    opposite = read_field(
        [paths["e1"], paths["e2"]], noise=[0.1], footprint=paths["footprint"], flip_second=True
    )
    assert np.array_equal(opposite.mask, field.mask)
    np.testing.assert_array_equal(opposite.maps[0], field.maps[0])
    np.testing.assert_array_equal(opposite.maps[1], -field.maps[1])


def test_reading_a_convergence_map(files):
    paths, planes = files
    field = read_field([paths["e1"]], noise=[0.1], beam=1.0)
    np.testing.assert_allclose(field.maps[0], planes["e1"], rtol=1e-6)


def test_files_of_different_shapes_are_named(files, tmp_path):
    paths, _ = files
    np.save(tmp_path / "small.npy", np.zeros((3, 3)))
    small = str(tmp_path / "small.npy")
    for options in (
        dict(files=[paths["e1"], small], noise=[0.1]),
        dict(files=[paths["e1"], paths["e2"]], noise=[0.1], mask=small),
        dict(files=[paths["e1"], paths["e2"]], noise=[small, 0.1]),
    ):
        with pytest.raises(
            ValueError, match=r"one shape, got \(6, 8\) of .*e1.fits and \(3, 3\) of .*small.npy"
        ):
            read_field(**options)
    with pytest.raises(
        ValueError, match="noise must be one for all maps or one for each of the 2, got 3"
    ):
        read_field([paths["e1"], paths["e2"]], noise=[0.1, 0.1, 0.1])


def test_a_damaged_file_is_an_input_error(files, tmp_path):
    paths, _ = files
    (tmp_path / "junk.fits").write_bytes(b"junk")
    with pytest.raises(InputFileError, match="junk.fits: is no FITS file"):
        read_field([paths["e1"], str(tmp_path / "junk.fits")], noise=[0.1])


@pytest.mark.parametrize("value", [-1.0, 0.5, 1e-30, 2.0], ids=["-1", "half", "tiny", "2, noisy"])
@pytest.mark.parametrize("planes", [[0, 1], [1]], ids=["both", "gamma2"])
def test_a_value_that_repeats_is_no_shear(value, planes, rng):
    """Constants that shear could have, where nothing was observed; noise so large that 2 could be
    shear.
    """
    shear = rng.normal(0, 0.4, (2, 20, 20))
    shear[np.ix_(planes, range(20), range(3))] = value
    field = make_field(shear, noise=0.4, pixel_scale=2.3)
    assert np.array_equal(field.mask, np.arange(20) < np.full((20, 1), 3))
    names = " and ".join(f"gamma{index + 1}" for index in planes)
    (note,) = field.notes
    assert note.startswith(f"60 pixels that share one value of {names} exactly ({value:g}")


def test_what_remains_outside_of_a_footprint_is_refused(rng):
    """All that the mask leaves is one value: the mask is the other one."""
    observed = np.hypot(*(np.mgrid[:20, :20] - 9.5)) < 7
    shear = np.where(observed, rng.normal(0, 0.02, (2, 20, 20)), -1.0)
    with pytest.raises(ValueError, match="share one value .*observed in a footprint"):
        make_field(shear, noise=0.02, mask=observed, pixel_scale=2.3)


@pytest.mark.parametrize("digits", [2, 3, 8], ids=lambda digits: f"{digits} digits")
def test_shear_of_few_digits_is_left_alone(digits, rng):
    shear = np.round(rng.normal(0, 0.02, (2, 32, 32)), digits) + 1e-6
    field = make_field(shear, noise=0.02, pixel_scale=2.3)
    assert not field.mask.any() and not field.notes


def test_a_mask_that_takes_the_middle_alone_looks_like_a_footprint(rng):
    shear = rng.normal(0, 0.02, (2, 40, 40))
    middle = np.hypot(*(np.mgrid[:40, :40] - 19.5)) < 14
    (note,) = make_field(shear, noise=0.02, mask=middle, pixel_scale=2.3).notes
    assert note.startswith("the mask leaves 62% of the pixels, 100% along the edges")
    assert make_field(shear, noise=0.02, mask=~middle, pixel_scale=2.3).notes == ()
