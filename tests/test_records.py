"""Records: equal bytes whatever the workers, resumed as if never interrupted, refused when anything
about them is wrong.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from test_workers import die

from astrogen.data.files import TEMPORARY
from astrogen.errors import RecordsError
from astrogen.training.records import (
    digest,
    load_images,
    read_manifest,
    read_real_records,
    read_records,
)
from data_pipelines.__main__ import main
from data_pipelines.population import draw_galaxy, draw_records, recipe
from data_pipelines.records import write_records

SEED, NUM, SHARD_SIZE = 3, 60, 25
HEADER = {**recipe(SEED), "num": NUM, "shard_size": SHARD_SIZE}


def _write(directory, *, num_workers=1, header=HEADER, **options):
    return write_records(
        directory,
        header=header,
        draw_fn=partial(draw_records, header["seed"]),
        num_workers=num_workers,
        show_progress=False,
        **options,
    )


def _contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records") / "galaxies"
    _write(directory, num_workers=2)
    return directory


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


@pytest.fixture(scope="module")
def galaxies():
    return [draw_galaxy(SEED, index) for index in range(NUM)]


def _edit_manifest(directory, **changes):
    manifest = {**json.loads((directory / "manifest.json").read_text()), **changes}
    (directory / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))


# Writing


def test_manifest_states_the_recipe_the_units_and_every_shard(written):
    manifest = read_manifest(written)
    assert {
        name: manifest[name]
        for name in ("seed", "num", "pixel_scale", "target_fwhm", "recipe_version")
    } == {"seed": SEED, "num": NUM, "pixel_scale": 0.1, "target_fwhm": 0.2, "recipe_version": 2}
    assert [(shard["file"], shard["start"], shard["num"]) for shard in manifest["shards"]] == [
        ("galaxies-00000.tfrecord", 0, 25),
        ("galaxies-00001.tfrecord", 25, 25),
        ("galaxies-00002.tfrecord", 50, 10),
    ]
    assert manifest["fields"]["half_light_radius"]["unit"].startswith("arcsec")
    assert set(manifest["software"]) == {"galsim", "numpy"}


def test_resume_redraws_only_what_is_missing_or_changed(written, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    _edit_manifest(copy, shards=manifest["shards"][:2])  # as if killed during the third shard
    left = copy / f".galaxies-00002.tfrecord.{16 * '0'}{TEMPORARY}"
    (copy / "galaxies-00002.tfrecord").rename(left)
    damaged = copy / "galaxies-00001.tfrecord"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    kept = (copy / "galaxies-00000.tfrecord").stat().st_mtime_ns
    _write(copy, resume=True)
    assert _contents(copy) == _contents(written)
    assert (copy / "galaxies-00000.tfrecord").stat().st_mtime_ns == kept


def test_resume_of_a_finished_run_draws_nothing(copy):
    before = _contents(copy)
    write_records(copy, header=HEADER, draw_fn=die, num_workers=1, resume=True, show_progress=False)
    assert _contents(copy) == before


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 4}, "seed must be 3 to resume this run, got 4"),
        ({"num": 61}, "num must be 60 to resume this run, got 61"),
        (
            {"software": {"galsim": "1.0"}},
            "software must be {.*} to resume this run, got {'galsim': '1.0'}",
        ),
    ],
    ids=["seed", "num", "software"],
)
def test_resume_with_another_recipe_is_refused(copy, change, words):
    with pytest.raises(RecordsError, match=words):
        _write(copy, header={**HEADER, **change}, resume=True)


def test_records_are_never_overwritten(copy):
    with pytest.raises(
        RecordsError,
        match=(
            "directory must hold no records, got a manifest; resume that run, or choose another"
            " directory"
        ),
    ):
        _write(copy)


def test_a_worker_that_dies_is_reported_and_leaves_no_partial_shard(tmp_path):
    with pytest.raises(
        RecordsError,
        match="a worker process died .*; free memory or use fewer workers, then resume",
    ):
        write_records(tmp_path, header=HEADER, draw_fn=die, num_workers=1, show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_killed_run_of_one_worker_resumes_to_the_bytes_of_two_uninterrupted(written, tmp_path):
    command = [
        sys.executable,
        "-m",
        "data_pipelines",
        "galaxies",
        "--num",
        str(NUM),
        "--seed",
        str(SEED),
        "--shard-size",
        str(SHARD_SIZE),
        "--workers",
        "1",
    ]
    with subprocess.Popen(
        [*command, "--out", tmp_path], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 60
        while (
            not (tmp_path / "galaxies-00000.tfrecord").exists()
            and run.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    with pytest.raises(
        RecordsError, match="all 3 shards must be written, got [012]; finish the run"
    ):
        read_manifest(tmp_path)
    _write(tmp_path, resume=True)
    assert _contents(tmp_path) == _contents(written)


# Reading


def test_records_read_back_as_they_were_drawn(written, galaxies):
    batches = list(read_records(written, batch_size=32).as_numpy_iterator())
    assert [len(batch["index"]) for batch in batches] == [32, 28]
    read = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_array_equal(read["index"], np.arange(NUM))
    np.testing.assert_array_equal(read["image"], [galaxy.image for galaxy in galaxies])
    for name in ("magnitude", "half_light_radius", "axis_ratio"):
        np.testing.assert_array_equal(
            read[name], np.float32([getattr(galaxy, name) for galaxy in galaxies])
        )
    assert [family.decode() for family in read["family"]] == [galaxy.family for galaxy in galaxies]


def test_load_images_gives_the_same_as_arrays(written, galaxies):
    loaded = load_images(written)
    np.testing.assert_array_equal(loaded["image"], [galaxy.image for galaxy in galaxies])
    assert loaded["family"].tolist() == [galaxy.family for galaxy in galaxies]
    np.testing.assert_array_equal(load_images(written, max_num=37)["index"], np.arange(37))


def test_splits_part_the_records(written):
    train, validation = (
        load_images(written, split=split)["index"] for split in ("train", "validation")
    )
    np.testing.assert_array_equal(validation, [19, 39, 59])
    assert sorted([*train, *validation]) == list(range(NUM))


def _order(directory, seed, num_batches=10):
    batches = read_records(
        directory, batch_size=30, shuffle_seed=seed, repeat=True, split="train"
    ).take(num_batches)
    return [batch["index"].tolist() for batch in batches.as_numpy_iterator()]


def test_shuffling_is_a_function_of_the_seed(written):
    first = _order(written, 1)
    assert first == _order(written, 1) and first != _order(written, 2)
    assert all(len(batch) == 30 for batch in first)
    epochs = np.concatenate(first)[: 3 * 57].reshape(3, 57)
    assert all(
        sorted(epoch) == [index for index in range(NUM) if index % 20 != 19] for epoch in epochs
    )
    assert not np.array_equal(epochs[0], epochs[1])


def test_shapes_are_known_before_anything_is_read(written):
    spec = read_records(written, batch_size=8).element_spec
    assert spec["image"].shape.as_list() == [None, 64, 64] and spec[
        "magnitude"
    ].shape.as_list() == [None]


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"version": 2},
            r"format must be \('astrogen records', 1\), got \('astrogen records', 2\)",
        ),
        (
            {"pixel_scale": 0.2},
            (
                "pixel_scale must be 0.1 arcsec, got 0.2; give the pixel scale of the prior, or"
                " records made at it"
            ),
        ),
        ({"pixel_scale": None}, "pixel_scale must be 0.1 arcsec, got None"),
        (
            {"kind": "real"},
            "kind must be 'galaxies', got 'real'; 'real' is read by read_real_records",
        ),
        ({"num": 120}, "all 5 shards must be written, got 3; finish the run"),
        (
            {"shards": [{"file": "../secret", "start": 0, "num": 1}]},
            "shard must be a file of the directory, got '../secret'",
        ),
    ],
    ids=["version", "pixel scale", "no pixel scale", "kind", "unfinished", "path"],
)
def test_records_of_another_sort_are_refused(copy, changes, words):
    _edit_manifest(copy, **changes)
    with pytest.raises(RecordsError, match=words):
        read_records(copy, batch_size=8)


def test_galaxies_are_no_real_records(written):
    with pytest.raises(RecordsError, match="kind must be 'real', got 'galaxies'"):
        read_real_records(written, batch_size=8)


def test_a_manifest_without_records_is_refused(copy):
    shards = json.loads((copy / "manifest.json").read_text())["shards"]
    _edit_manifest(copy, shards=[{**shard, "num": 0} for shard in shards])
    with pytest.raises(RecordsError, match="shards must hold records, got 0 of them"):
        read_records(copy, batch_size=8)


def test_a_split_that_is_empty_is_refused(tmp_path):
    _write(tmp_path, header={**HEADER, "num": 3})
    with pytest.raises(
        RecordsError, match="split must hold records, got none in 'validation'; write at least 20"
    ):
        load_images(tmp_path, split="validation")


def test_an_unknown_split_is_refused(written):
    with pytest.raises(
        ValueError, match=r"split must be one of \(None, 'train', 'validation'\), got 'test'"
    ):
        read_records(written, batch_size=8, split="test")


HOLLOW = {"format": "astrogen records", "version": 1}


@pytest.mark.parametrize(
    "text, words",
    [
        (
            None,
            (
                "directory must hold a manifest, got none; write records with `python -m"
                " data_pipelines`"
            ),
        ),
        ("{", "manifest must be JSON, got .*Expecting property name"),
        ("[]", r"format must be \('astrogen records', 1\), got list"),
        (
            '{"format": "astrogen records", "version": 1}',
            "sha256 must be [0-9a-f]{64}, got None; it was changed: write the records again",
        ),
        (
            json.dumps({**HOLLOW, "sha256": digest(HOLLOW)}),
            "manifest must name kind, num, .*, got only format, version",
        ),
    ],
    ids=["missing", "junk", "list", "unsigned", "hollow"],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RecordsError, match=words):
        read_manifest(tmp_path)


def test_a_missing_shard_is_named(copy):
    (copy / "galaxies-00001.tfrecord").unlink()
    with pytest.raises(
        RecordsError,
        match=(
            "galaxies-00001.tfrecord: read_records: sha256 must be [0-9a-f]{64}, got no file; write"
            " the shard again"
        ),
    ):
        read_records(copy, batch_size=8)


def test_no_damaged_byte_gets_through(written, copy, rng):
    names = [path.name for path in sorted(written.glob("*.tfrecord"))]
    for _ in range(20):
        name = names[rng.integers(len(names))]
        damaged = bytearray((written / name).read_bytes())
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        (copy / name).write_bytes(
            damaged if rng.uniform() < 0.5 else damaged[: rng.integers(len(damaged))]
        )
        with pytest.raises(RecordsError, match=f"{name}: read_records: sha256 must be "):
            read_records(copy, batch_size=8)
        shutil.copy(written / name, copy / name)


def test_damaged_manifests_raise_nothing_but_records_errors(written, copy, rng):
    text = (written / "manifest.json").read_bytes()
    for _ in range(300):
        damaged = bytearray(text)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        (copy / "manifest.json").write_bytes(
            damaged if rng.uniform() < 0.7 else damaged[: rng.integers(len(damaged))]
        )
        try:
            assert read_manifest(copy) == read_manifest(written)  # the bit was one of white space
        except RecordsError as error:
            assert error.path == str(copy / "manifest.json") and error.reason


# The command line


def test_command_writes_reports_and_resumes(tmp_path, capfd):
    arguments = [
        "galaxies",
        "--num",
        "30",
        "--seed",
        "1",
        "--out",
        str(tmp_path),
        "--workers",
        "1",
        "--shard-size",
        "20",
    ]
    assert main(arguments) == 0
    captured = capfd.readouterr()
    assert "30 galaxies in 2 shards" in captured.out and "30/30" in captured.err
    assert main(arguments) == 4
    assert "directory must hold no records" in capfd.readouterr().err
    assert main([*arguments, "--resume"]) == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            [],
            (
                "required:"
                " {galaxies,real,convergence,maps,check-convergence,expected-spectrum,measure-transfer}"
            ),
        ),
        (
            ["galaxies", "--num", "0", "--seed", "1", "--out", "x"],
            "argument --num: must be at least 1, got 0",
        ),
        (
            ["galaxies", "--num", "ten", "--seed", "1", "--out", "x"],
            "argument --num: invalid whole number value: 'ten'",
        ),
        (
            ["galaxies", "--num", "1", "--seed", "-1", "--out", "x"],
            "argument --seed: must not be negative, got -1",
        ),
        (
            ["real", "--catalog", "c", "--out", "x", "--psf-stamp", "64"],
            "argument --psf-stamp: must be odd and at least 3, got 64",
        ),
    ],
    ids=["nothing", "none", "words", "seed", "even PSF"],
)
def test_command_explains_usage(arguments, words, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in capfd.readouterr().err


def test_command_refuses_a_missing_catalogue(tmp_path, capfd):
    assert (
        main(["real", "--catalog", str(tmp_path / "none.fits"), "--out", str(tmp_path / "out")])
        == 4
    )
    assert "none.fits: open_catalog: catalog must be an existing file" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_names_the_entries_it_left_out(shared, tmp_path, capfd):
    catalog = shared / "data/cosmos_bright10/real_galaxy_catalog_23.5.fits"
    assert main(["real", "--catalog", str(catalog), "--out", str(tmp_path), "--workers", "1"]) == 4
    assert (
        "10 of 10 entries left out" in (told := capfd.readouterr().err)
        and "10 x CatalogError" in told
        and "no such file" in told
        and "ident 141190" in told
    )


def test_real_records_read_back_with_their_own_psf_and_noise(shared, tmp_path):
    catalog = shared / "data/cosmos_real/real_galaxy_catalog.fits"
    assert (
        main(
            [
                "real",
                "--catalog",
                str(catalog),
                "--out",
                str(tmp_path),
                "--workers",
                "1",
                "--stamp",
                "64",
                "--psf-stamp",
                "41",
            ]
        )
        == 0
    )
    (batch,) = read_real_records(tmp_path, batch_size=64).as_numpy_iterator()
    assert (
        batch["image"].shape == (33, 64, 64)
        and batch["mask"].dtype == bool
        and batch["psf"].shape == (33, 41, 41)
    )
    np.testing.assert_allclose(batch["psf"].sum((1, 2)), 1, atol=1e-5)
    assert (
        (batch["variance"] > 0).all()
        and (batch["correlated"] == 1).all()
        and batch["mask"].any()
        and not batch["mask"].all((1, 2)).any()
    )
    np.testing.assert_allclose(batch["pixel_scale"], 0.03)
    assert (
        sum(len(b["index"]) for b in read_real_records(tmp_path, batch_size=8, split="train")) == 32
    )


def test_interruption_is_an_exit_code(tmp_path, capfd, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_pipelines.records.write_records", interrupt)
    assert main(["galaxies", "--num", "1", "--seed", "1", "--out", str(tmp_path)]) == 130
    assert "interrupted; finished shards are kept" in capfd.readouterr().err


def test_a_full_disk_is_reported_in_one_line(tmp_path, capfd, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("data_pipelines.records.write_records", full)
    assert main(["galaxies", "--num", "1", "--seed", "1", "--out", str(tmp_path)]) == 4
    assert "data_pipelines: [Errno 28] No space left on device" in capfd.readouterr().err
