"""Survey runs: matching against positions that are known, joint fits, faults, kills, clusters, and
bytes.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from oracles import tiny_prior

import astrogen
from astrogen.cli import main
from astrogen.data.observation import read_observation, read_psf
from astrogen.errors import InputFileError
from astrogen.priors.storage import write_weights
from astrogen.survey import inputs, read_object, read_survey, remote, run, run_survey, store, work
from astrogen.survey.work import Fit, infer_chunk

SIZE, SCALE = 24, 0.2
FIT = Fit(size=SIZE, method="laplace", num_draws=8, num_kept=2)
NUM = 6


def _wcs(ra=150.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (
        ["RA---TAN", "DEC--TAN"],
        [ra, 2.0],
        [50.5, 40.5],
        [-SCALE / 3600, SCALE / 3600],
    )
    return wcs


def _gaussian(shape, x, y, sigma):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


POSITIONS = [(18.0, 20.0), (50.3, 20.4), (80.0, 20.0), (18.0, 60.0), (50.0, 60.2), (80.0, 60.0)]


def _write_exposure(path, positions, *, shape=(80, 100), flux=500.0, wcs=None, seed=4, blank=()):
    """Galaxies at positions (x, y), NaN about those of the numbers `blank`, and a plane of the
    noise.
    """
    image = sum(flux * _gaussian(shape, x, y, 2.2) for x, y in positions) + np.random.default_rng(
        seed
    ).normal(size=shape)
    for x, y in (positions[number] for number in blank):
        image[
            int(y) - SIZE // 2 : int(y) + SIZE // 2 + 1, int(x) - SIZE // 2 : int(x) + SIZE // 2 + 1
        ] = np.nan
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.ImageHDU(image.astype(np.float32), (wcs or _wcs()).to_header(), name="IMAGE"),
            fits.ImageHDU(np.ones(shape, np.float32), name="VARIANCE"),
        ]
    ).writeto(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exposure of six galaxies on a WCS, its noise and PSF, and catalogues in sky and in
    pixels.
    """
    folder = tmp_path_factory.mktemp("survey")
    _write_exposure(folder / "exposure.fits", POSITIONS)
    psf = _gaussian((25, 25), 12, 12, 1.7)
    np.save(folder / "psf.npy", psf / psf.sum())
    x, y = np.transpose(POSITIONS)
    Table({"id": [f"g{number}" for number in range(NUM)], "x": x, "y": y}).write(
        folder / "pixels.ecsv"
    )
    sky = _wcs().pixel_to_world(x, y)
    Table(
        {"OBJECT_ID": [f"g{number}" for number in range(NUM)], "RA": sky.ra, "DEC": sky.dec}
    ).write(folder / "sky.fits")
    return folder


def _run(folder, out, *, catalogue="pixels.ecsv", **options):
    return run_survey(
        folder / catalogue,
        [folder / "exposure.fits"],
        **{"psf": [folder / "psf.npy"], "out": out, "fit": FIT, "chunk": 2, **options},
    )


@pytest.fixture
def in_process(monkeypatch):
    """Chunks are inferred in this process: the same results up to rounding, without the many
    seconds that a new process takes to start.
    """

    def by_processes(jobs, out, exposures, fit, num_workers, crashed):
        for number, objects in jobs:
            infer_chunk(str(store.chunk_path(out, number)), objects, exposures, fit)
            yield number

    monkeypatch.setattr(run, "_by_processes", by_processes)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run by one worker."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert _run(folder, out) == (NUM, 0, 0, 0)
    return out


def _bytes(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file()
    }


# What comes in


@pytest.mark.parametrize("catalogue", ["pixels.ecsv", "sky.fits"])
def test_objects_stand_where_they_were_put(folder, catalogue):
    targets, lost = inputs.match(
        inputs.read_catalogue(folder / catalogue),
        inputs.list_exposures([folder / "exposure.fits"], psf=["psf.npy"]),
    )
    assert not lost and [target.ident for target in targets] == [
        f"g{number}" for number in range(NUM)
    ]
    np.testing.assert_allclose([(target.x, target.y) for target in targets], POSITIONS, atol=1e-6)


def test_a_cutout_is_that_of_read_observation(folder):
    exposure = inputs.list_exposures([folder / "exposure.fits"], psf=[str(folder / "psf.npy")])[0]
    for x, y in ((50.3, 20.4), (13.0, 66.0)):
        ours = inputs.cut_out(inputs.Target("a", 0, x, y), exposure, size=SIZE, name="a")
        theirs = read_observation(
            folder / "exposure.fits",
            psf=read_psf(folder / "psf.npy", pixel_scale=SCALE),
            position=(x, y),
            size=SIZE,
        )
        for name in ("image", "variance", "mask"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        # read, and measured, once
        assert (
            ours.psf
            is inputs.cut_out(inputs.Target("b", 0, 20.0, 20.0), exposure, size=SIZE, name="b").psf
        )
        assert ours.pixel_scale == pytest.approx(
            SCALE, rel=1e-6
        ) and ours.wcs.wcs.crpix == pytest.approx(theirs.wcs.wcs.crpix)


def test_sextractor_counts_from_one(tmp_path):
    Table({"NUMBER": [7], "X_IMAGE": [5.0], "Y_IMAGE": [6.0]}).write(tmp_path / "c.fits")
    ident, sky, pixels = inputs.read_catalogue(tmp_path / "c.fits")
    assert (ident, sky) == (["7"], None) and pixels.tolist() == [[4.0, 5.0]]


def test_a_table_of_images_names_their_companions(folder, tmp_path):
    Table({"image": ["exposure.fits"], "psf": ["psf.npy"], "band": ["i"], "sigma": ["2.0"]}).write(
        folder / "images.csv", overwrite=True
    )
    (exposure,) = inputs.list_exposures([folder / "images.csv"])
    assert exposure == inputs.Exposure(
        str(folder / "exposure.fits"), str(folder / "psf.npy"), sigma="2.0", band="i"
    )
    assert (
        inputs.cut_out(inputs.Target("a", 0, 50, 20), exposure, size=SIZE, name="a").variance[3, 3]
        == 4
    )


def psf_of_position(image, x, y, pixel_scale):
    """A PSF that a user computes."""
    return _gaussian((25, 25), 12, 12, 1.5 + 0.01 * x)


def test_a_psf_may_be_a_function(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    exposure = inputs.Exposure(str(folder / "exposure.fits"), "test_survey:psf_of_position")
    narrow, broad = (
        inputs.cut_out(inputs.Target("a", 0, x, 40), exposure, size=SIZE, name="a").psf.fwhm
        for x in (10.0, 90.0)
    )
    assert broad / narrow == pytest.approx(2.4 / 1.6, rel=0.02)


def test_a_stamp_that_is_mostly_nan_is_refused_and_the_edge_is_not(folder, tmp_path):
    with fits.open(folder / "exposure.fits") as file:
        file["IMAGE"].data[:, :18] = np.nan
        file.writeto(tmp_path / "torn.fits")
    exposure = inputs.Exposure(str(tmp_path / "torn.fits"), str(folder / "psf.npy"))
    with pytest.raises(
        ValueError,
        match="image must have at most 50% NaN or infinite pixels, got 336 of 576 in 'a'",
    ):
        inputs.cut_out(inputs.Target("a", 0, 15.5, 20.5), exposure, size=SIZE, name="a")
    corner = inputs.cut_out(inputs.Target("b", 0, 98.0, 78.0), exposure, size=SIZE, name="b")
    assert corner.notes == (f"{corner.mask.mean():.0%} of the stamp lies beyond the exposure",)


def test_images_without_wcs_are_refused_before_the_run(folder):
    np.save(folder / "bare.npy", np.zeros((80, 100)))
    with pytest.raises(
        ValueError,
        match="match: images must have a celestial WCS, got none that works in .*bare.npy",
    ):
        inputs.match(
            inputs.read_catalogue(folder / "pixels.ecsv"),
            inputs.list_exposures([folder / "bare.npy"], psf=["psf.npy"]),
        )


def test_several_exposures_and_objects_in_none(folder, tmp_path):
    with fits.open(folder / "exposure.fits") as file:
        # 30 pixels to the east
        file["IMAGE"].header.update(_wcs(150.0 + 30 * SCALE / 3600).to_header())
        file.writeto(tmp_path / "other.fits")
    exposures = inputs.list_exposures(
        [folder / "exposure.fits", tmp_path / "other.fits"], psf=["psf.npy"]
    )
    targets, lost = inputs.match(inputs.read_catalogue(folder / "sky.fits"), exposures)
    assert not lost and [(t.ident, t.exposure) for t in targets if t.exposure] == [
        ("g0", 1),
        ("g1", 1),
        ("g3", 1),
        ("g4", 1),
    ]
    Table(
        {"id": ["here", "nowhere", "blank"], "ra": [150.0, 151.0, np.nan], "dec": [2.0, 2.0, 2.0]}
    ).write(tmp_path / "c.csv")
    targets, lost = inputs.match(inputs.read_catalogue(tmp_path / "c.csv"), exposures[:1])
    assert [t.ident for t in targets] == ["here"] and lost == [
        ("nowhere", "no image holds its position"),
        ("blank", "no image holds its position"),
    ]


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            {"id": ["a", "a"], "x": [1, 2], "y": [1, 2]},
            "identifiers must be different, got 'a' twice",
        ),
        (
            {"id": ["a"], "u": [1]},
            "catalogue must have ra and dec, or x and y, got the columns id, u",
        ),
        ({"id": [], "x": [], "y": []}, "catalogue must hold objects, got an empty table"),
    ],
    ids=["twice", "no position", "empty"],
)
def test_catalogues_that_cannot_be_used(tmp_path, columns, message):
    Table(columns).write(tmp_path / "c.ecsv")
    with pytest.raises(ValueError, match=message):
        inputs.read_catalogue(tmp_path / "c.ecsv")


def test_what_is_no_table_or_has_the_wrong_number(tmp_path):
    (tmp_path / "c.fits").write_bytes(b"junk")
    with pytest.raises(ValueError, match="catalogue must hold objects, got an empty table"):
        inputs.read_catalogue(tmp_path / "c.fits")
    with pytest.raises(
        ValueError,
        match="list_exposures: psf must be one for all images or one for each of the 3, got 2",
    ):
        inputs.list_exposures(["a.fits", "b.fits", "c.fits"], psf=["p", "q"])
    with pytest.raises(ValueError, match="list_exposures: psf must be given, got none"):
        inputs.list_exposures(["a.fits", "b.fits"])
    with pytest.raises(
        ValueError,
        match=r"match: positions must be on the sky \(ra, dec\) where there are several images",
    ):
        inputs.match((["a"], None, np.zeros((1, 2))), ["one", "two"])


# What comes out


def test_the_catalogue_is_what_deconvolve_says(folder, whole):
    table = read_survey(whole)
    assert list(table["id"]) == [f"g{number}" for number in range(NUM)]
    psf = read_psf(folder / "psf.npy", pixel_scale=SCALE)
    stamps = [
        read_observation(
            folder / "exposure.fits", psf=psf, position=place, size=SIZE, name=f"g{number}"
        )
        for number, place in enumerate(POSITIONS)
    ]
    for row, result in zip(
        table,
        astrogen.deconvolve(stamps, method="laplace", num_draws=8, seed=1, batch_size=32),
        strict=True,
    ):
        # Sums in another order end the climb within rounding of the same mode, and of a few draws
        # another one may then be resampled.
        assert row["flux"] == pytest.approx(result.flux[0], abs=0.2 * result.flux[1]) and row[
            "flux_err"
        ] == pytest.approx(result.flux[1], rel=0.1)
        assert row["cov_flux_half_light_radius"] == pytest.approx(
            result.quantities.covariance[0][1], rel=0.3, abs=1e-2
        )
    assert table["half_light_radius"].unit == "arcsec" and "cov_e1_e2" in table.colnames


def test_any_object_can_be_looked_at(whole, tmp_path, capsys):
    result, row = read_object(whole, "g4"), read_survey(whole)[4]
    assert (
        result.flux == (row["flux"], row["flux_err"])
        and result.draws.shape[0] == 2
        and result.latent_draws.shape[0] == 8
    )
    assert result.quantities.covariance[0][1] == pytest.approx(row["cov_flux_half_light_radius"])
    assert main(["show", str(whole), "g4", "--out", str(tmp_path / "g4.png")]) == 0
    assert (tmp_path / "g4.png").read_bytes().startswith(
        b"\x89PNG"
    ) and "g4: 24 x 24 pixels" in capsys.readouterr().out
    with pytest.raises(store.SurveyError, match="ident must be an object of the run, got 'g9'"):
        read_object(whole, "g9")


def test_poisoned_inputs_alone_are_on_the_list(tmp_path, in_process):
    """1 % of 200 objects: pixels that are NaN for one, a PSF function that fails for the other."""
    positions = [(13.0 + 25 * column, 13.0 + 25 * row) for row in range(10) for column in range(20)]
    _write_exposure(tmp_path / "exposure.fits", positions, shape=(250, 500), blank=(77,))
    x, y = np.transpose(positions)
    Table({"id": [f"p{number}" for number in range(200)], "x": x, "y": y}).write(
        tmp_path / "c.ecsv"
    )
    assert run_survey(
        tmp_path / "c.ecsv",
        [tmp_path / "exposure.fits"],
        psf=["test_survey:poisoned_psf"],
        out=tmp_path,
        fit=FIT,
        chunk=100,
    ) == (198, 2, 0, 0)
    reasons = {row["id"]: row["reason"] for row in Table.read(tmp_path / store.FAILURES)}
    assert reasons == {"p77": "no_data: every pixel is masked", "p130": "RuntimeError: no PSF here"}
    table = read_survey(tmp_path)
    assert list(table["id"]) == [f"p{number}" for number in range(200) if number not in (77, 130)]
    assert not any(
        np.isnan(table[name]).any()
        for name in ("flux", "half_light_radius_err", "cov_flux_half_light_radius")
    )
    assert abs(np.median(table["flux"]) - 500) < 15 and np.std(table["flux"]) < 60
    with pytest.raises(
        store.SurveyError, match="object 'p130' has no result: RuntimeError: no PSF here"
    ):
        read_object(tmp_path, "p130")


def clean_psf(image, x, y, pixel_scale):
    """A PSF like that of the folder."""
    psf = _gaussian((25, 25), 12, 12, 1.7)
    return psf / psf.sum()


def poisoned_psf(image, x, y, pixel_scale):
    """Fails at one position."""
    if (x, y) == (13.0 + 25 * 10, 13.0 + 25 * 6):
        raise RuntimeError("no PSF here")
    return clean_psf(image, x, y, pixel_scale)


def test_what_fails_in_inference_is_found_by_halves():
    """Of eight, the fit fails with number 5 in it, and with number 2 as soon as its turn comes."""
    calls = []

    def fit_fn(cuts):
        calls.append(list(cuts))
        if 5 in cuts:
            raise ValueError("five")
        for place, cut in enumerate(cuts):
            if cut == 2:
                raise ValueError("two")
            yield place, 10 * cut

    class Cut(int):
        seen = property(lambda self: store.Seen(f"o{int(self)}", (), ()))

    failures = []
    kept = dict(
        work._halving(
            fit_fn,
            lambda result, seen: (result, seen.ident),
            list(enumerate(map(Cut, range(8)))),
            failures,
            work._reason,
        )
    )
    assert kept == {number: (10 * number, f"o{number}") for number in (0, 1, 3, 4, 6, 7)}
    assert failures == [("o2", "ValueError: two"), ("o5", "ValueError: five")] and len(calls) < 13


def deadly_psf(image, x, y, pixel_scale):
    """Kills its process at one position."""
    if (x, y) == POSITIONS[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return clean_psf(image, x, y, pixel_scale)


@pytest.mark.slow
def test_an_object_that_kills_its_process_is_quarantined(folder, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert _run(folder, tmp_path, psf=["test_survey:deadly_psf"], num_workers=2) == (
        NUM - 1,
        1,
        0,
        0,
    )
    (failure,) = Table.read(tmp_path / store.FAILURES)
    assert failure["id"] == "g3" and "the worker process died on it" in failure["reason"]


# Several exposures and bands

FLUXES = {"g": 300.0, "r": 500.0, "z": 700.0}


@pytest.fixture(scope="module")
def bands(folder, tmp_path_factory):
    """Three bands; that of z looks 30 pixels further east and does not hold g2 and g5.

    A table of them.
    """
    bands = tmp_path_factory.mktemp("bands")
    for band, flux in FLUXES.items():
        shift = 30 if band == "z" else 0
        _write_exposure(
            bands / f"{band}.fits",
            [(x + shift, y) for x, y in POSITIONS],
            flux=flux,
            wcs=_wcs(150.0 + shift * SCALE / 3600 / np.cos(np.radians(2.0))),
            seed=ord(band),
        )
    for name in ("sky.fits", "psf.npy"):
        shutil.copy(folder / name, bands)
    Table(
        {
            "image": [f"{band}.fits" for band in FLUXES],
            "psf": ["psf.npy", "psf.npy", ""],  # the third one is that of the option
            "band": list(FLUXES),
        }
    ).write(bands / "images.csv")
    return bands


def psf_that_fails_once(image, x, y, pixel_scale):
    """That of the folder, but for g4."""
    if abs(x - 80) < 1 and abs(y - 60) < 1:
        raise RuntimeError("no PSF here")
    return clean_psf(image, x, y, pixel_scale)


JOINT = FIT._replace(joint=True, num_draws=40)
FAILS_ONCE = ["test_survey:psf_that_fails_once"]


def test_a_joint_run_has_one_row_for_each_object(bands, tmp_path, in_process, capsys):
    assert run_survey(
        bands / "sky.fits", [bands / "images.csv"], psf=FAILS_ONCE, out=tmp_path, fit=JOINT, chunk=4
    ) == (NUM, 0, 3, 0)
    table = read_survey(tmp_path)
    table.add_index("id")
    assert sorted(table["id"]) == [f"g{number}" for number in range(NUM)]
    for row in table:
        seen = ["g", "r"] if row["id"] in ("g2", "g5", "g4") else ["g", "r", "z"]
        assert (
            row["band"] == ", ".join(seen)
            and row["image"] == ", ".join(f"{band}.fits" for band in seen)
            and row["reference"] in seen
        )
        for band in seen:
            assert (
                abs(row[f"flux_{band}"] - FLUXES[band]) < 5 * row[f"flux_err_{band}"]
                and 3 < row[f"flux_err_{band}"] < 60
            )
        assert (
            np.isnan(row["flux_z"])
            == np.isnan(row["flux_err_z"])
            == np.isnan(row["cov_flux_r_flux_z"])
            == ("z" not in seen)
        )
        assert (
            abs(row["cov_flux_g_flux_r"])
            <= row["flux_err_g"] * row["flux_err_r"] * (1 + 1e-6) * 40 / 39
        )
    assert (
        "incomplete: not seen in z" in table.loc["g2"]["status"]
        and "incomplete" not in table.loc["g1"]["status"]
    )
    assert "incomplete: z.fits was left out: RuntimeError: no PSF here" in table.loc["g4"]["status"]


def test_a_joint_row_is_what_deconvolve_jointly_says(bands, tmp_path, in_process, capsys):
    Table(
        {
            "id": ["g1"],
            "ra": Table.read(bands / "sky.fits")["RA"][1:2],
            "dec": Table.read(bands / "sky.fits")["DEC"][1:2],
        }
    ).write(tmp_path / "one.ecsv")
    images = [bands / f"{band}.fits" for band in "gr"]
    assert run_survey(
        tmp_path / "one.ecsv",
        images,
        psf=[bands / "psf.npy"],
        band="gr",
        out=tmp_path / "run",
        fit=JOINT,
    ) == (1, 0, 0, 0)
    row, result = read_survey(tmp_path / "run")[0], read_object(tmp_path / "run", "g1")
    stamps = [
        read_observation(
            image,
            psf=read_psf(bands / "psf.npy", pixel_scale=SCALE),
            position=POSITIONS[1],
            size=SIZE,
            name="g1",
        )
        for image in images
    ]
    direct = astrogen.deconvolve_jointly(stamps, bands="gr", method="laplace", num_draws=40, seed=1)
    values, errors = direct.sources[0].flux
    for index, band in enumerate("gr"):
        assert row[f"flux_{band}"] == pytest.approx(values[index], abs=0.2 * errors[index]) and row[
            f"flux_err_{band}"
        ] == pytest.approx(errors[index], rel=0.2)
    source = result.sources[0]
    assert source.flux[0] == pytest.approx(
        [row["flux_g"], row["flux_r"]]
    ) and source.flux_covariance[0, 1] == pytest.approx(row["cov_flux_g_flux_r"])
    assert source.quantities.half_light_radius == (
        row["half_light_radius"],
        row["half_light_radius_err"],
    ) and source.draws.shape == (2, 2, 64, 64)
    for read, made in zip(result.exposures, direct.exposures, strict=True):
        assert read.fit.chi2 == pytest.approx(made.fit.chi2, rel=0.02)
        assert np.abs(read.residual - made.residual).max() < 0.5
    assert [exposure.band for exposure in result.exposures] == ["g", "r"]
    assert main(["show", str(tmp_path / "run"), "g1", "--out", str(tmp_path / "g1.png")]) == 0
    assert (tmp_path / "g1.png").read_bytes().startswith(
        b"\x89PNG"
    ) and "g1: 2 exposures, 1 galaxy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_joint_run_resumes_to_the_same_bytes(bands, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    options = {"fit": JOINT, "chunk": 2}
    for name, workers in (("one", 1), ("two", 2)):
        assert run_survey(
            bands / "sky.fits",
            [bands / "images.csv"],
            psf=FAILS_ONCE,
            out=tmp_path / name,
            num_workers=workers,
            **options,
        ) == (NUM, 0, 3, 0)
    store.chunk_path(tmp_path / "two", 1).unlink()
    assert run_survey(
        bands / "sky.fits",
        [bands / "images.csv"],
        psf=FAILS_ONCE,
        out=tmp_path / "two",
        resume=True,
        **options,
    ) == (NUM, 0, 3, 0)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    with pytest.raises(store.SurveyError, match="must be of the same fit"):
        run_survey(
            bands / "sky.fits",
            [bands / "images.csv"],
            psf=FAILS_ONCE,
            out=tmp_path / "two",
            resume=True,
            fit=JOINT._replace(joint=False),
            chunk=2,
        )


def test_bands_are_named_for_all_images_or_for_none(bands, tmp_path):
    Table({"image": ["g.fits", "r.fits"], "psf": ["psf.npy"] * 2, "band": ["g", ""]}).write(
        bands / "unnamed.ecsv", overwrite=True
    )
    with pytest.raises(
        ValueError,
        match=(
            "run_survey: band must be given for all images of a joint run or for none, got none for"
            " .*r.fits"
        ),
    ):
        run_survey(bands / "sky.fits", [bands / "unnamed.ecsv"], out=tmp_path, fit=JOINT)
    with pytest.raises(
        ValueError,
        match="list_exposures: band must be one for all images or one for each of the 3, got 2",
    ):
        inputs.list_exposures(["a.fits", "b.fits", "c.fits"], psf=["p"], band=["g", "r"])


# Nothing lost


def test_a_killed_run_goes_on_to_the_same_bytes(folder, whole, tmp_path, rng):
    """SIGKILL to the whole process group at some moment, a finished chunk is damaged, then
    again with another number of workers.
    """
    command = [
        sys.executable,
        "-m",
        "astrogen",
        "survey",
        str(folder / "pixels.ecsv"),
        "--images",
        str(folder / "exposure.fits"),
        "--psf",
        str(folder / "psf.npy"),
        "--size",
        str(SIZE),
        "--method",
        "laplace",
        "--draws",
        "8",
        "--keep",
        "2",
        "--chunk",
        "2",
        "--out",
        str(tmp_path),
        "--resume",
    ]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 400
    while (
        not list((tmp_path / "chunks").glob("*.npz"))
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1.5))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # and a disk that lost the end of a file
    for path in list((tmp_path / "chunks").glob("*.npz"))[:1]:
        path.write_bytes(path.read_bytes()[:2000])
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = {name for name in _bytes(tmp_path) if name.endswith(".tmp")}
    assert {name: value for name, value in _bytes(tmp_path).items() if name not in left} == _bytes(
        whole
    )


@pytest.mark.slow
def test_shards_make_the_same_run(folder, whole, tmp_path):
    assert _run(folder, tmp_path, shard=(2, 2)) == (0, 0, 0, 2)
    assert _run(folder, tmp_path, shard=(1, 2), resume=True) == (NUM, 0, 0, 0)
    assert _bytes(tmp_path) == _bytes(whole)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "out must hold no run, got a manifest; go on with resume=True"),
        ({"resume": True, "fit": FIT._replace(seed=2)}, "must be of the same fit, got fit .* now "),
        (
            {"resume": True, "chunk": 3},
            (
                "must be of the same chunk, got chunk 2 now 3; choose another folder, or mix them"
                " with force=True"
            ),
        ),
        ({"resume": True, "sigma": ["2.0"]}, "must be of the same exposures, got exposures "),
        (
            {"resume": True, "fit": FIT._replace(num_draws=4)},
            "run_survey: num_draws must be at least 8, got 4",
        ),
    ],
    ids=["again", "seed", "chunk", "noise", "draws"],
)
def test_runs_are_not_mixed(folder, whole, options, message):
    before = _bytes(whole)
    with pytest.raises((store.SurveyError, ValueError), match=message):
        _run(folder, whole, **options)
    assert _bytes(whole) == before


def test_a_run_is_not_mixed_with_other_weights_of_the_same_name(folder, tmp_path):
    """Weights that were trained anew stand in the same folder under the same name."""
    weights, rng = tmp_path / "mine", np.random.default_rng(1)
    prior, numbers = tiny_prior(rng)
    card = {
        "kind": "basis",
        "name": "mine",
        "latent": prior.latent_size,
        "encoder_widths": [],
        "decoder_widths": [],
        **{name: 0.1 for name in ("floor", "tilt", "pixel_scale", "target_fwhm")},
        "log_amplitude": [0.3, 0.5],
    }
    arrays = {
        "basis": {name: numbers[of] for name, of in (("mean", "mean"), ("std", "std"))}
        | {"images": numbers["basis"]},
        "encoder": {"weight_00": np.zeros((6, 6)), "weight_01": np.zeros(6)},
        "decoder": {
            "weight_00": numbers["kernel"],
            "whitening_mean": numbers["whitening_mean"],
            "whitening_factor": numbers["whitening_factor"],
        },
    }
    exposures = inputs.list_exposures([folder / "exposure.fits"], psf=[folder / "psf.npy"])
    fit, seen = FIT._replace(prior=str(weights)), []
    for scale in (1.0, 1.0, 1.001):
        arrays["decoder"]["weight_01"] = scale * numbers["bias"]
        write_weights(weights, card=card, arrays=arrays)
        seen.append(run._manifest(folder / "pixels.ecsv", exposures, fit, 2))
    out = tmp_path / "run"
    store.settle_manifest(out, seen[0], resume=False)
    store.settle_manifest(out, seen[1], resume=True)
    before = _bytes(out)
    with pytest.raises(
        store.SurveyError, match="a resumed run must be of the same weights, got weights .* now "
    ):
        store.settle_manifest(out, seen[2], resume=True)
    assert _bytes(out) == before
    store.settle_manifest(out, seen[2], resume=True, force=True)


def test_neighbours_are_masked_where_asked(folder, tmp_path, in_process):
    """The second catalogue object is a neighbour 14 pixels from the first."""
    _write_exposure(tmp_path / "exposure.fits", [(40.0, 40.0), (52.0, 47.0)])
    Table({"id": ["a"], "x": [40.0], "y": [40.0]}).write(tmp_path / "one.ecsv")
    chi2 = {}
    for masked in (False, True):
        run_survey(
            tmp_path / "one.ecsv",
            [tmp_path / "exposure.fits"],
            psf=[folder / "psf.npy"],
            out=tmp_path / str(masked),
            fit=FIT._replace(size=32, mask_neighbours=masked),
        )
        chi2[masked] = read_survey(tmp_path / str(masked))["chi2"][0]
    assert chi2[True] < 1.2 < 1.35 < chi2[False]
    assert "1 neighbours masked" in read_object(tmp_path / "True", "a").observation.notes[-1]


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "parquet", "vot"])
def test_a_table_of_images_names_no_code(folder, tmp_path, monkeypatch, ending):
    """`module:function` is imported where the command line says so, never where a file does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    table = Table({"image": [str(folder / "exposure.fits")], "psf": ["evil:psf_of"]})
    table.write(tmp_path / f"images.{ending}", format={"vot": "votable"}.get(ending))
    with pytest.raises(InputFileError, match="psf must be a file in a table of images, got 'evil:"):
        inputs.list_exposures([tmp_path / f"images.{ending}"])
    assert not (tmp_path / "ran").exists()
    table["psf"] = [str(folder / "psf.npy")]
    table.write(tmp_path / "images.csv", overwrite=True)
    (given,) = inputs.list_exposures([tmp_path / "images.csv"], psf=["evil:psf_of"])
    assert given.psf == str(folder / "psf.npy")


def test_a_run_is_not_mixed_with_another_function(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (
        "import numpy as np\n\n\ndef psf_of(image, x, y, pixel_scale):\n    return np.ones((3, 3))"
        " / 9\n"
    )
    (tmp_path / "my_psfs.py").write_text(text)
    out, exposures = (
        tmp_path / "run",
        inputs.list_exposures([folder / "exposure.fits"], psf=["my_psfs:psf_of"]),
    )
    told = run._manifest(folder / "pixels.ecsv", exposures, FIT, 2)
    store.settle_manifest(out, told, resume=False, force=False)
    (tmp_path / "my_psfs.py").write_text(text.replace("9", "(9 + 0 * x)"))
    with pytest.raises(store.SurveyError, match="must be of the same exposures"):
        store.settle_manifest(
            out, run._manifest(folder / "pixels.ecsv", exposures, FIT, 2), resume=True, force=False
        )
    with pytest.raises(
        ValueError,
        match="psf must name a function that can be imported, got 'my_psfs_of_yore:psf_of'",
    ):
        inputs.function_hash("my_psfs_of_yore:psf_of")


@pytest.mark.slow
def test_chunk_size_changes_nothing_but_rounding(folder, whole, tmp_path):
    """Of the mode, and so now and then which of the eight draws is resampled."""
    _run(folder, tmp_path, chunk=5)
    one, other = read_survey(whole), read_survey(tmp_path)
    for name in ("flux", "half_light_radius", "e1"):
        assert np.all(np.abs(one[name] - other[name]) < 0.2 * one[f"{name}_err"])


# Clusters of others


@contextlib.contextmanager
def _cluster(tmp_path, *, num_workers=1):
    """Scheduler and workers as the README starts them; a task that kills its worker is not given to
    another one. Address and the scheduler's process.
    """
    dask, environment = (
        Path(sys.executable).with_name("dask"),
        {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")},
    )
    environment |= {
        "PYTHONPATH": f"{Path(__file__).parent.parent}:{Path(__file__).parent}",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    quiet, address = (
        {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment},
        tmp_path / "scheduler.json",
    )
    scheduler = subprocess.Popen(
        [
            dask,
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            address,
        ],
        **quiet,
    )
    workers = subprocess.Popen(
        [
            dask,
            "worker",
            "--scheduler-file",
            address,
            "--nworkers",
            str(num_workers),
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            tmp_path / "dask",
        ],
        **quiet,
    )
    try:
        deadline = time.monotonic() + 60
        while not address.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield json.loads(address.read_text())["address"], scheduler
    finally:
        workers.terminate()
        scheduler.kill()
        workers.wait()
        scheduler.wait()


@pytest.mark.slow
def test_a_cluster_makes_the_same_run(folder, whole, tmp_path):
    with _cluster(tmp_path, num_workers=2) as (address, _):
        assert _run(folder, tmp_path / "run", scheduler=address) == (NUM, 0, 0, 0)
    assert _bytes(tmp_path / "run") == _bytes(whole)


@pytest.mark.slow
def test_an_object_that_kills_workers_of_a_cluster_is_quarantined(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with _cluster(tmp_path) as (address, _):
        assert _run(
            folder, tmp_path / "run", psf=["test_survey:deadly_psf"], scheduler=address
        ) == (NUM - 1, 1, 0, 0)
    (failure,) = Table.read(tmp_path / "run" / store.FAILURES)
    assert failure["id"] == "g3" and "the worker process died on it" in failure["reason"]


@pytest.mark.slow
def test_a_scheduler_that_goes_is_an_error_and_a_resume_ends_the_run(
    folder, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "DASK_TIMEOUT", 5)
    with _cluster(tmp_path) as (address, scheduler):
        killer = subprocess.Popen(
            [
                "sh",
                "-c",
                f"until ls {tmp_path}/run/chunks/*.npz; do sleep 0.1; done; kill -9 {scheduler.pid}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with pytest.raises(
            store.SurveyError,
            match="scheduler must be there until the end, got .* go on with resume=True",
        ):
            _run(folder, tmp_path / "run", scheduler=address)
        killer.wait()
    assert _run(folder, tmp_path / "run", resume=True) == (NUM, 0, 0, 0)
    assert _bytes(tmp_path / "run") == _bytes(whole)


def test_a_scheduler_that_is_not_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "DASK_TIMEOUT", 1)
    with pytest.raises(
        store.SurveyError,
        match=(
            "scheduler must be there until the end, got OSError: Timed out trying to connect to"
            " tcp://127.0.0.1:1 "
        ),
    ):
        _run(folder, tmp_path, scheduler="tcp://127.0.0.1:1")


def test_workers_of_others_keep_to_one_thread_or_refuse(tmp_path, monkeypatch):
    tf.constant(1.0) + 1  # TensorFlow has started, with as many threads as it likes
    for name in remote.ONE_THREAD:
        monkeypatch.setenv(name, "1")
    remote.keep_to_one_thread("chunk")  # the environment says so: nothing to be done
    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
        with pytest.raises(
            store.SurveyError,
            match=(
                "workers must keep TensorFlow to one thread, got one that is at work already"
                " .*start the workers anew with OMP"
            ),
        ):
            remote.keep_to_one_thread("chunk")
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(
        store.SurveyError,
        match="workers must keep linear algebra to one thread, got .*install threadpoolctl there",
    ):
        remote.keep_to_one_thread("chunk")


def test_threads_are_set_in_a_process_that_has_not_begun(tmp_path):
    """A worker with numpy at work and TensorFlow only imported: both are at one thread
    afterwards.
    """
    program = (
        "import numpy, tensorflow as tf, threadpoolctl; from astrogen.survey.remote import"
        " keep_to_one_thread; keep_to_one_thread('chunk'); print(max(pool['num_threads'] for pool"
        " in threadpoolctl.threadpool_info()),"
        " tf.config.threading.get_intra_op_parallelism_threads(),"
        " tf.config.threading.get_inter_op_parallelism_threads())"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith("_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.split() == ["1", "1", "1"], done.stderr


def test_workers_of_others_have_the_same_code(tmp_path):
    with pytest.raises(
        store.SurveyError, match="workers must have the astrogen of the client, got other code in "
    ) as caught:
        remote.infer_remotely("another", str(tmp_path / "c.npz"), [], [], FIT)
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert str(arrived) == str(caught.value) and arrived.path == str(tmp_path / "c.npz")


def test_command_line_faults(folder, tmp_path, capsys):
    base = ["survey", str(folder / "pixels.ecsv"), "--out", str(tmp_path / "x"), "--images"]
    assert main([*base, str(folder / "nothing*.fits"), "--psf", "p.npy"]) == 4
    assert "must match files, got none" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*base, "a.fits", "--shard", "3/2"])
    assert main(["show", str(tmp_path), "g1"]) == 4


def test_results_of_an_unfinished_run_are_not_read(tmp_path):
    with pytest.raises(store.SurveyError, match="read_survey: run must have finished"):
        read_survey(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(store.SurveyError, match="format must be 'astrogen survey 4', got None"):
        store.read_manifest(tmp_path / "manifest.json")
