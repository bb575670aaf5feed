"""Survey runs: matching against positions that are known, faults, kills, and bytes."""
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import astrogen
from astrogen.cli import main
from astrogen.observation import read_observation, read_psf
from astrogen.survey import inputs, read_object, read_survey, run_survey, store
from astrogen.survey.work import Fit

SIZE, SCALE = 24, 0.2
FIT = Fit(size=SIZE, num_draws=8, num_kept=2)
NUM = 6


def _wcs(ra=150.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [ra, 2.0], [50.5, 40.5], [-SCALE / 3600, SCALE / 3600]
    return wcs


def _gaussian(shape, x, y, sigma):
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    return np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


POSITIONS = [(18.0, 20.0), (50.3, 20.4), (80.0, 20.0), (18.0, 60.0), (50.0, 60.2), (80.0, 60.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exposure of six galaxies on a WCS, its noise and PSF, and catalogues in sky and in pixels."""
    folder, rng = tmp_path_factory.mktemp("survey"), np.random.default_rng(4)
    image = sum(500 * _gaussian((80, 100), x, y, 2.2) for x, y in POSITIONS) + rng.normal(size=(80, 100))
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image.astype(np.float32), _wcs().to_header(), name="IMAGE"),
                  fits.ImageHDU(np.ones((80, 100), np.float32), name="VARIANCE")]).writeto(folder / "exposure.fits")
    psf = _gaussian((25, 25), 12, 12, 1.7)
    np.save(folder / "psf.npy", psf / psf.sum())
    x, y = np.transpose(POSITIONS)
    Table({"id": [f"g{number}" for number in range(NUM)], "x": x, "y": y}).write(folder / "pixels.ecsv")
    sky = _wcs().pixel_to_world(x, y)
    Table({"OBJECT_ID": [f"g{number}" for number in range(NUM)], "RA": sky.ra, "DEC": sky.dec}).write(folder / "sky.fits")
    return folder


def _run(folder, out, *, catalogue="pixels.ecsv", **options):
    return run_survey(folder / catalogue, [folder / "exposure.fits"], **{"psf": [folder / "psf.npy"], "out": out, "fit": FIT, "chunk": 2, **options})


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run by one worker."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert _run(folder, out) == (NUM, 0, 0)
    return out


def _bytes(out):
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(out).rglob("*")) if path.is_file()}


# What comes in

@pytest.mark.parametrize("catalogue", ["pixels.ecsv", "sky.fits"])
def test_objects_stand_where_they_were_put(folder, catalogue):
    targets, lost = inputs.match(inputs.read_catalogue(folder / catalogue), inputs.list_exposures([folder / "exposure.fits"], psf=["psf.npy"]))
    assert not lost and [target.ident for target in targets] == [f"g{number}" for number in range(NUM)]
    np.testing.assert_allclose([(target.x, target.y) for target in targets], POSITIONS, atol=1e-6)


def test_a_cutout_is_that_of_read_observation(folder):
    exposure = inputs.list_exposures([folder / "exposure.fits"], psf=[str(folder / "psf.npy")])[0]
    for x, y in ((50.3, 20.4), (3.0, 77.0)):
        ours = inputs.cut_out(inputs.Target("a", 0, x, y), exposure, size=SIZE)
        theirs = read_observation(folder / "exposure.fits", psf=read_psf(folder / "psf.npy", pixel_scale=SCALE), position=(x, y), size=SIZE)
        for name in ("image", "variance", "mask"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert ours.pixel_scale == pytest.approx(SCALE, rel=1e-6) and ours.wcs.wcs.crpix == pytest.approx(theirs.wcs.wcs.crpix)


def test_sextractor_counts_from_one(tmp_path):
    Table({"NUMBER": [7], "X_IMAGE": [5.0], "Y_IMAGE": [6.0]}).write(tmp_path / "c.fits")
    ident, sky, pixels = inputs.read_catalogue(tmp_path / "c.fits")
    assert (ident, sky) == (["7"], None) and pixels.tolist() == [[4.0, 5.0]]


def test_a_table_of_images_names_their_companions(folder, tmp_path):
    Table({"image": ["exposure.fits"], "psf": ["psf.npy"], "band": ["i"], "sigma": ["2.0"]}).write(folder / "images.csv", overwrite=True)
    exposure, = inputs.list_exposures([folder / "images.csv"])
    assert exposure == inputs.Exposure(str(folder / "exposure.fits"), str(folder / "psf.npy"), sigma="2.0", band="i")
    assert inputs.cut_out(inputs.Target("a", 0, 50, 20), exposure, size=SIZE).variance[3, 3] == 4


def psf_of_position(image, x, y, pixel_scale):
    """A PSF that a user computes."""
    return _gaussian((25, 25), 12, 12, 1.5 + 0.01 * x)


def test_a_psf_may_be_a_function(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    exposure = inputs.Exposure(str(folder / "exposure.fits"), "test_survey:psf_of_position")
    narrow, broad = (inputs.cut_out(inputs.Target("a", 0, x, 40), exposure, size=SIZE).psf.fwhm for x in (10.0, 90.0))
    assert broad / narrow == pytest.approx(2.4 / 1.6, rel=0.02)


def test_several_exposures_and_objects_in_none(folder, tmp_path):
    with fits.open(folder / "exposure.fits") as file:
        file["IMAGE"].header.update(_wcs(150.0 + 30 * SCALE / 3600).to_header())          # 30 pixels to the east
        file.writeto(tmp_path / "other.fits")
    exposures = inputs.list_exposures([folder / "exposure.fits", tmp_path / "other.fits"], psf=["psf.npy"])
    targets, lost = inputs.match(inputs.read_catalogue(folder / "sky.fits"), exposures)
    assert not lost and [(t.ident, t.exposure) for t in targets if t.exposure] == [("g0", 1), ("g1", 1), ("g3", 1), ("g4", 1)]
    Table({"id": ["here", "nowhere", "blank"], "ra": [150.0, 151.0, np.nan], "dec": [2.0, 2.0, 2.0]}).write(tmp_path / "c.csv")
    targets, lost = inputs.match(inputs.read_catalogue(tmp_path / "c.csv"), exposures[:1])
    assert [t.ident for t in targets] == ["here"] and lost == [("nowhere", "no image holds its position"), ("blank", "no image holds its position")]


@pytest.mark.parametrize("columns, message", [
    ({"id": ["a", "a"], "x": [1, 2], "y": [1, 2]}, "identifiers must be different, got 'a' twice"),
    ({"id": ["a"], "u": [1]}, "catalogue must have ra and dec, or x and y, got the columns id, u"),
    ({"id": [], "x": [], "y": []}, "catalogue must hold objects, got an empty table"),
], ids=["twice", "no position", "empty"])
def test_catalogues_that_cannot_be_used(tmp_path, columns, message):
    Table(columns).write(tmp_path / "c.ecsv")
    with pytest.raises(ValueError, match=message):
        inputs.read_catalogue(tmp_path / "c.ecsv")


def test_what_is_no_table_or_has_the_wrong_number(tmp_path):
    (tmp_path / "c.fits").write_bytes(b"junk")
    with pytest.raises(ValueError, match="read_catalogue: catalogue must be a table that Astropy reads"):
        inputs.read_catalogue(tmp_path / "c.fits")
    with pytest.raises(ValueError, match="list_exposures: psf must be one for all images or one for each of the 3, got 2"):
        inputs.list_exposures(["a.fits", "b.fits", "c.fits"], psf=["p", "q"])
    with pytest.raises(ValueError, match="list_exposures: psf must be given, got none"):
        inputs.list_exposures(["a.fits", "b.fits"])
    with pytest.raises(ValueError, match=r"match: positions must be on the sky \(ra, dec\) where there are several images"):
        inputs.match((["a"], None, np.zeros((1, 2))), ["one", "two"])


# What comes out

def test_the_catalogue_is_what_deconvolve_says(folder, whole):
    table = read_survey(whole)
    assert list(table["id"]) == [f"g{number}" for number in range(NUM)]
    psf = read_psf(folder / "psf.npy", pixel_scale=SCALE)
    stamps = [read_observation(folder / "exposure.fits", psf=psf, position=place, size=SIZE, name=f"g{number}") for number, place in enumerate(POSITIONS)]
    for row, result in zip(table, astrogen.deconvolve(stamps, num_draws=8, seed=1, batch_size=32), strict=True):
        # Sums in another order end the climb within rounding of the same mode, and of a few draws another one may then be resampled.
        assert row["flux"] == pytest.approx(result.flux[0], abs=0.2 * result.flux[1]) and row["flux_err"] == pytest.approx(result.flux[1], rel=0.1)
        assert row["cov_flux_half_light_radius"] == pytest.approx(result.quantities.covariance[0][1], rel=0.3, abs=1e-2)
    assert table["half_light_radius"].unit == "arcsec" and "cov_e1_e2" in table.colnames


def test_any_object_can_be_looked_at(whole, tmp_path, capsys):
    result, row = read_object(whole, "g4"), read_survey(whole)[4]
    assert result.flux == (row["flux"], row["flux_err"]) and result.draws.shape[0] == 2 and result.latent_draws.shape[0] == 8
    assert result.quantities.covariance[0][1] == pytest.approx(row["cov_flux_half_light_radius"])
    assert main(["show", str(whole), "g4", "--out", str(tmp_path / "g4.png")]) == 0
    assert (tmp_path / "g4.png").read_bytes().startswith(b"\x89PNG") and "g4: 24 x 24 pixels" in capsys.readouterr().out
    with pytest.raises(store.SurveyError, match="ident must be an object of the run, got 'g9'"):
        read_object(whole, "g9")


def test_poisoned_inputs_alone_are_on_the_list(folder, whole, tmp_path, monkeypatch):
    """A PSF function that fails for one object, gives NaN for another: the others are as they were."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    done = _run(folder, tmp_path, psf=["test_survey:poisoned_psf"])
    assert done == (NUM - 2, 2, 0)
    failures = Table.read(tmp_path / store.FAILURES)
    assert sorted(failures["id"]) == ["g1", "g5"]
    assert any("no PSF here" in reason for reason in failures["reason"]) and any("nan" in reason.lower() for reason in failures["reason"])
    clean = read_survey(whole)
    table = read_survey(tmp_path)
    np.testing.assert_allclose(table["flux"], clean["flux"][[0, 2, 3, 4]], rtol=1e-3)
    with pytest.raises(store.SurveyError, match="object 'g1' has no result: RuntimeError: no PSF here"):
        read_object(tmp_path, "g1")


def poisoned_psf(image, x, y, pixel_scale):
    """Fails at one position, NaN at another."""
    if (x, y) == POSITIONS[1]:
        raise RuntimeError("no PSF here")
    psf = _gaussian((25, 25), 12, 12, 1.7)
    return psf * np.nan if (x, y) == POSITIONS[5] else psf / psf.sum()


def deadly_psf(image, x, y, pixel_scale):
    """Kills its process at one position."""
    if (x, y) == POSITIONS[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return poisoned_psf(image, 0, 0, pixel_scale)


@pytest.mark.slow
def test_an_object_that_kills_its_process_is_quarantined(folder, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert _run(folder, tmp_path, psf=["test_survey:deadly_psf"]) == (NUM - 1, 1, 0)
    failure, = Table.read(tmp_path / store.FAILURES)
    assert failure["id"] == "g3" and "the worker process died on it" in failure["reason"]


# Nothing lost

def test_a_killed_run_goes_on_to_the_same_bytes(folder, whole, tmp_path):
    """SIGKILL to the whole process group at a random moment, then again with another number of workers."""
    command = [sys.executable, "-m", "astrogen", "survey", str(folder / "pixels.ecsv"), "--images", str(folder / "exposure.fits"), "--psf", str(folder / "psf.npy"),
               "--size", str(SIZE), "--draws", "8", "--keep", "2", "--chunk", "2", "--out", str(tmp_path), "--resume"]
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list((tmp_path / "chunks").glob("*.h5")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1.5))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = {name for name in _bytes(tmp_path) if name.endswith(".tmp")}
    assert {name: value for name, value in _bytes(tmp_path).items() if name not in left} == _bytes(whole)


@pytest.mark.slow
def test_shards_make_the_same_run(folder, whole, tmp_path):
    assert _run(folder, tmp_path, shard=(2, 2)) == (0, 0, 2)
    assert _run(folder, tmp_path, shard=(1, 2), resume=True) == (NUM, 0, 0)
    assert _bytes(tmp_path) == _bytes(whole)


@pytest.mark.parametrize("options, message", [
    ({}, "out must hold no run, got a manifest; go on with --resume"),
    ({"resume": True, "fit": FIT._replace(seed=2)}, 'must be of the same fit, got fit .* now '),
    ({"resume": True, "chunk": 3}, "must be of the same chunk, got chunk 2 now 3; choose another folder, or mix them with --force"),
], ids=["again", "seed", "chunk"])
def test_runs_are_not_mixed(folder, whole, options, message):
    before = _bytes(whole)
    with pytest.raises(store.SurveyError, match=message):
        _run(folder, whole, **options)
    assert _bytes(whole) == before


def test_a_damaged_chunk_is_made_again(folder, whole, tmp_path):
    _run(folder, tmp_path)
    path = store.chunk_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:2000])
    assert not store.is_whole(path)
    with pytest.raises(store.SurveyError, match="read_rows: chunk must be whole"):
        store.read_rows(path)
    assert _run(folder, tmp_path, resume=True) == (NUM, 0, 0)
    assert _bytes(tmp_path) == _bytes(whole)


@pytest.mark.slow
def test_chunk_size_changes_nothing_but_rounding(folder, whole, tmp_path):
    """Of the mode, and so now and then which of the eight draws is resampled."""
    _run(folder, tmp_path, chunk=5)
    one, other = read_survey(whole), read_survey(tmp_path)
    for name in ("flux", "half_light_radius", "e1"):
        assert np.all(np.abs(one[name] - other[name]) < 0.2 * one[f"{name}_err"])


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
    with pytest.raises(store.SurveyError, match="read_manifest: format must be 'astrogen survey 1', got None"):
        store.read_manifest(tmp_path / "manifest.json")
