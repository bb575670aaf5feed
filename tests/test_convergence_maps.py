"""Users' maps: every format gives the records of the simulated ones, and whatever is wrong with a
file is named.
"""

import numpy as np
import pytest
from astropy.io import fits

from astrogen.errors import InputFileError, RecordsError
from astrogen.training.records import load_maps
from data_pipelines import healpix, maps
from data_pipelines.__main__ import main
from data_pipelines.pixels import average_pixels, cut_maps


def _fits(path, pixels, **keywords):
    fits.PrimaryHDU(np.float32(pixels), fits.Header(keywords)).writeto(path)
    return path


def _npy(path, pixels):
    np.save(path, pixels)
    return path


def test_whole_blocks_average_to_their_means(rng):
    image = rng.standard_normal((12, 8))
    np.testing.assert_allclose(
        average_pixels(image, 1 / 4),
        image.reshape(3, 4, 2, 4).mean(axis=(1, 3)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_broken_pixels_share_what_they_straddle():
    np.testing.assert_allclose(
        average_pixels(np.array([[1.0, 2.0, 4.0]] * 3), 1 / 1.5)[0],
        [(1 + 0.5 * 2) / 1.5, (0.5 * 2 + 4) / 1.5],
        rtol=1e-6,
    )


def test_averaging_keeps_the_mean_of_a_ramp():
    ramp = np.add.outer(np.arange(100.0), 2 * np.arange(100.0))
    averaged = average_pixels(ramp, 0.37)
    centres = (np.arange(37) + 0.5) / 0.37 - 0.5
    np.testing.assert_allclose(averaged, np.add.outer(centres, 2 * centres), rtol=1e-4, atol=0.15)


def test_squares_lie_side_by_side():
    image = np.arange(5 * 7).reshape(5, 7)
    np.testing.assert_array_equal(
        cut_maps(image, 2), [image[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2, 4)]
    )


@pytest.mark.parametrize(
    "map_format, side, pixel_scale",
    [("ktng", 1024, 300 / 1024), ("massivenus", 512, 210 / 512), ("columbia", 1024, 0.2)],
)
def test_released_maps_are_averaged_by_their_own_pixel_scale(
    tmp_path, map_format, side, pixel_scale
):
    """A wave of 40 arcmin stays one of 40 arcmin."""
    wave = np.cos(2 * np.pi * np.arange(side) * pixel_scale / 40)[None, :] * np.ones((side, 1))
    path = _fits(
        tmp_path / "map.fits",
        wave,
        **({"ANGLE": 0.2 * 1024 / 60} if map_format == "columbia" else {}),
    )
    kappa = maps.read_maps(path, map_format=map_format)
    assert (
        kappa.shape == (int(side * pixel_scale / 2.3 / 64 + 1e-6) ** 2, 64, 64)
        and kappa.dtype == np.float32
    )
    centres = (np.arange(64) + 0.5) * 2.3 - 0.5 * pixel_scale
    np.testing.assert_allclose(
        kappa[0][5], np.sinc(2.3 / 40) * np.cos(2 * np.pi * centres / 40), atol=2e-3
    )


def test_a_fortran_record_is_read(tmp_path, rng):
    pixels = rng.standard_normal((1024, 1024))
    marker = np.int32(pixels.nbytes).tobytes()
    (tmp_path / "kappa.dat").write_bytes(marker + pixels.tobytes() + marker)
    np.testing.assert_array_equal(
        maps.read_maps(tmp_path / "kappa.dat", map_format="ktng"),
        maps.read_maps(_npy(tmp_path / "k.npy", pixels), map_format="ktng"),
    )


def test_ring_pixels_are_found_from_their_centres():
    """The centres of all pixels of the rings, Gorski et al. (2005), equations 4 to 9."""
    num_side, centres = 8, []
    for ring in range(1, 4 * num_side):
        cap = min(ring, 4 * num_side - ring)
        if cap < num_side:
            z, count, first = 1 - cap**2 / (3 * num_side**2), 4 * cap, 0.5
            z = z if ring < 2 * num_side else -z
        else:
            z, count, first = (
                4 / 3 - 2 * ring / (3 * num_side),
                4 * num_side,
                0.5 * ((ring - num_side + 1) % 2),
            )
        centres += [(z, 2 * np.pi * (i + first) / count) for i in range(count)]
    cos_theta, longitude = np.array(centres).T
    np.testing.assert_array_equal(
        healpix.pixel_at(num_side, cos_theta, longitude + 1e-9), np.arange(12 * num_side**2)
    )


def test_squares_of_the_sky_see_its_dipole():
    """On a sky that is sin(latitude), a square's mean tells its latitude, and its rows rise to the
    north.
    """
    num_side = 64
    z = np.zeros(12 * num_side**2)
    latitude, longitude = np.meshgrid(
        np.arcsin(np.linspace(-1, 1, 4001)[1:-1]),
        np.linspace(0, 2 * np.pi, 1200, endpoint=False),
        indexing="ij",
    )
    z[healpix.pixel_at(num_side, np.sin(latitude), longitude)] = np.sin(latitude)
    squares = healpix.cut_squares(z, "sky", side=16, pixel_scale=60.0)
    centres = healpix.square_centres(16 * 60 * healpix.ARCMIN)
    assert len(squares) == centres.shape[1] > 40
    np.testing.assert_allclose(
        squares[:, 7:9, 7:9].mean(axis=(1, 2)), np.sin(centres[1]), atol=0.02
    )
    assert np.all(squares[:, -1].mean(axis=1) > squares[:, 0].mean(axis=1))


def test_squares_of_the_sky_do_not_overlap():
    """No direction lies within two squares."""
    width = np.radians(5)
    longitude, latitude = healpix.square_centres(width)
    rng = np.random.default_rng(1)
    up, around = rng.uniform(-1, 1, 4000)[:, None], rng.uniform(0, 2 * np.pi, 4000)[:, None]
    flat = np.sqrt(1 - up**2)
    depth = np.sin(latitude) * up + np.cos(latitude) * flat * np.cos(around - longitude)
    x = flat * np.sin(around - longitude) / depth
    y = (np.cos(latitude) * up - np.sin(latitude) * flat * np.cos(around - longitude)) / depth
    inside = (depth > 0) & (np.abs(x) < width / 2) & (np.abs(y) < width / 2)
    assert inside.sum(axis=1).max() == 1 and inside.any(axis=1).mean() > 0.7


def test_command_writes_records_and_reports_bad_files(tmp_path, capfd, rng):
    good = [_npy(tmp_path / f"{i}.npy", rng.standard_normal((2, 70, 70)) * 0.01) for i in range(2)]
    broken = np.load(good[0])
    broken[0, 3, 3] = np.nan
    arguments = [
        "maps",
        str(good[0]),
        str(_npy(tmp_path / "bad.npy", broken)),
        str(good[1]),
        "--map-pixel-scale",
        "2.3",
        "--omega-m",
        "0.3",
        "--sigma-8",
        "0.8",
    ]
    assert main([*arguments, "--workers", "1", "--out", str(tmp_path / "out")]) == 3
    told = capfd.readouterr()
    assert (
        "4 maps in 3 shards" in told.out
        and "2 of 6 entries left out" in told.err
        and "map must be finite, got 1 pixels that are not" in told.err
    )
    read = load_maps(tmp_path / "out", source_redshift=1.0)
    with pytest.raises(RecordsError, match="source_redshift must be 0.7, got 1.0; take records of"):
        load_maps(tmp_path / "out", source_redshift=0.7)
    assert read["simulation"].tolist() == [0, 0, 2, 2]
    np.testing.assert_allclose(read["cosmology"], [[0.3, 0.8]] * 4)
    np.testing.assert_allclose(read["kappa"][0], np.load(good[0])[0, :64, :64], rtol=1e-5)


def _recipe(paths, **changed):
    return maps.recipe(
        paths,
        **{
            "map_format": "image",
            "omega_m": 0.3,
            "sigma_8": 0.8,
            "source_redshift": 1.0,
            "map_pixel_scale": 2.3,
            **changed,
        },
    )


@pytest.mark.parametrize(
    "pixels, options, words",
    [
        (
            np.zeros((64, 64)),
            {},
            "read_maps: pixel scale must be known, got none; give --map-pixel-scale ARCMIN",
        ),
        (
            np.zeros((64, 64)),
            {"map_format": "columbia"},
            "pixel scale must be a header with ANGLE, in degrees, got none",
        ),
        (
            np.zeros((64, 64)),
            {"map_pixel_scale": 3.0},
            "read_maps: pixels must be at most 2.3 arcmin, got 3; the file is too coarse",
        ),
        (
            np.zeros((63, 64)),
            {"map_pixel_scale": 2.3},
            "map must be at least 64 pixels of 2.3 arcmin wide, got less; give larger maps",
        ),
        (
            np.full((64, 64), np.inf),
            {"map_pixel_scale": 2.3},
            "map must be finite, got 4096 pixels that are not",
        ),
        (
            np.zeros(64),
            {"map_pixel_scale": 2.3},
            r"map must have 2 or 3 axes, got shape \(64,\); give one map or a cube of maps",
        ),
        (
            np.zeros(100),
            {"map_format": "cosmogrid"},
            r"sky must have 12 nside\^2 pixels, got 100; give a full HEALPix map in RING order",
        ),
        (
            np.zeros(12 * 512**2),
            {"map_format": "cosmogrid"},
            "pixels must be at most 2.3 arcmin, got 6.87 at nside 512; the sky is too coarse",
        ),
    ],
    ids=["no scale", "no angle", "coarse", "small", "infinite", "flat", "no sky", "coarse sky"],
)
def test_files_that_cannot_be_used_say_why(tmp_path, pixels, options, words):
    path = _npy(tmp_path / "map.npy", pixels)
    with pytest.raises(InputFileError, match=words):
        maps.read_maps(path, **{"map_format": "image", **options})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputFileError, match="read_maps: file must exist, got no regular file"):
        maps.read_maps(tmp_path / "none.fits", map_format="image")


@pytest.mark.parametrize(
    "changed, words",
    [
        (
            {"omega_m": 0.0},
            (
                "recipe: omega_m must be positive and below 10, got 0.0; give what the maps were"
                " made with"
            ),
        ),
        ({"sigma_8": float("nan")}, "recipe: sigma_8 must be positive"),
        ({"source_redshift": -1.0}, "recipe: source_redshift must be positive"),
    ],
    ids=["omega_m", "sigma_8", "redshift"],
)
def test_an_impossible_cosmology_is_refused(tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        _recipe([_npy(tmp_path / "map.npy", np.zeros((64, 64)))], **changed)


def test_files_of_another_size_are_left_out(tmp_path):
    paths = [
        _npy(tmp_path / "one.npy", np.zeros((64, 64))),
        _npy(tmp_path / "two.npy", np.zeros((64, 128))),
    ]
    records, skipped = maps.draw_records(_recipe(paths), 0, 2)
    assert len(records) == 1 and skipped[0]["ident"] == "two.npy"
    assert (
        "file must yield 1 maps as the first one, got 2; bring in files of another size apart"
        in skipped[0]["reason"]
    )
