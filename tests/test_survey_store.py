"""What a survey run leaves on the disk: single flipped bits, full disks, kills, two runs at once,
faults that pass. The fit is a stand-in.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import survey_stand_in as stand_in
from astropy.table import Table
from conftest import ROOT
from pyarrow import parquet

from astrogen import files
from astrogen.cli import main
from astrogen.errors import SurveyError
from astrogen.survey import read_object, read_survey, run, store, work
from astrogen.survey.work import infer_chunk

NUM_CHUNKS = stand_in.NUM // stand_in.CHUNK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    stand_in.write_inputs(folder)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Chunks are made in this process, by the stand-in."""

    def by_processes(jobs, out, exposures, fit, num_workers, crashed):
        for number, objects in jobs:
            infer_chunk(str(store.chunk_path(out, number)), objects, exposures, fit)
            yield number

    monkeypatch.setattr(run, "_by_processes", by_processes)
    monkeypatch.setattr(work, "PAUSES", (0, 0))
    stand_in.use(monkeypatch.setattr)


def _command(folder, out, *options):
    return main(["survey", *stand_in.arguments(folder, out), *options])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A finished run, made by a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with _started(folder, out) as process:
        assert process.wait(120) == 0
    return out


def _started(folder, out, *options, prefix=(), **environment):
    """The run as a process that leads its own group."""
    script = Path(stand_in.__file__)
    return subprocess.Popen(
        [*prefix, sys.executable, script, *stand_in.arguments(folder, out), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _bytes(out):
    found = [path for path in sorted(Path(out).rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


# Single bits


def _flips(out, num, seed):
    """(path, byte, bit) of places in the files of a run, drawn by file and then by byte."""
    rng = np.random.default_rng(seed)
    paths = sorted(path for path in Path(out).rglob("*") if path.is_file())
    for path in [paths[number % len(paths)] for number in range(num)]:
        yield path, int(rng.integers(path.stat().st_size)), int(rng.integers(8))


def _readers_refuse(out, path):
    """Whether reading back what the file `path` holds is refused."""
    if path.parent.name == "chunks":
        number = int(path.stem)
        read = [lambda: read_object(out, f"o{stand_in.CHUNK * number + row}") for row in (0, 1)]
    else:
        read = [lambda: read_survey(out)]
    for read_fn in read:
        with pytest.raises(SurveyError, match=path.name):
            read_fn()


def _check_flips(folder, whole, out, num, seed):
    shutil.copytree(whole, out)
    for path, byte, bit in _flips(out, num, seed):
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        _readers_refuse(out, path)
        path.write_bytes(content)


def test_a_flipped_bit_is_found_on_reading(folder, whole, tmp_path):
    _check_flips(folder, whole, tmp_path / "run", 60, seed=1)


@pytest.mark.slow
def test_of_500_flipped_bits_all_are_found(folder, whole, tmp_path):
    _check_flips(folder, whole, tmp_path / "run", 500, seed=2)


def test_only_what_is_damaged_is_done_again(folder, whole, tmp_path, here, monkeypatch, capsys):
    """One file after the other; the bytes at the end are those before."""
    out, done = tmp_path / "run", []
    shutil.copytree(whole, out)
    fit = work._fit_each
    monkeypatch.setattr(work, "_fit_each", lambda *told: done.append(told) or fit(*told))
    for path, byte, bit in _flips(out, len(_bytes(whole)), seed=3):
        damaged = bytearray(path.read_bytes())
        damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        done.clear()
        assert _command(folder, out, "--resume") == 0
        assert len(done) == (path.parent.name == "chunks")
        assert f"warning: {out}: " in (told := capsys.readouterr().err) and path.name in told
        assert _bytes(out) == _bytes(whole)


def test_a_manifest_that_nothing_vouches_for_is_not_mended(folder, whole, tmp_path, here, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / store.LEDGER).unlink()
    content = bytearray((out / store.MANIFEST).read_bytes())
    content[400] ^= 4
    (out / store.MANIFEST).write_bytes(content)
    assert _command(folder, out, "--resume") == 4
    assert "manifest.json: " in (told := capsys.readouterr().err) and "--force" in told
    assert _command(folder, out, "--resume", "--force") == 0
    assert _bytes(out) == _bytes(whole)


def test_chunks_without_a_manifest_are_no_new_run(folder, whole, tmp_path, here, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in (store.MANIFEST, store.LEDGER):
        (out / name).unlink()
    assert _command(folder, out) == 4
    assert "file must be there and readable, got No such file" in capsys.readouterr().err


def test_a_chunk_of_another_place_is_not_read(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in (".npz", ".json"):
        shutil.copy(out / "chunks" / f"000003{name}", out / "chunks" / f"000001{name}")
    with pytest.warns(store.DamageWarning, match="chunk must be 000001, got that of 000003"):
        assert not store.is_whole(store.chunk_path(out, 1))


def test_chunks_of_another_size_are_not_taken_for_their_own(folder, whole, tmp_path, here, capsys):
    """Mixed by force: every object is in the catalogue once all the same."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert _command(folder, out, "--resume", "--force", "--chunk", "3") == 0
    assert list(read_survey(out)["id"]) == [f"o{number}" for number in range(stand_in.NUM)]


def test_pages_of_the_catalogue_have_checksums(whole):
    """For whoever reads it without this package."""
    content = bytearray((whole / store.CATALOGUE).read_bytes())
    flux = np.asarray(read_survey(whole)["flux"])
    place = content.find(flux[:2].tobytes()) + 5
    content[place] ^= 16
    damaged = whole.parent / "damaged.parquet"
    damaged.write_bytes(content)
    with pytest.raises(OSError, match="CRC|checksum"):
        parquet.read_table(damaged, page_checksum_verification=True)
    assert Table.read(whole / store.CATALOGUE)["half_light_radius"].unit == "arcsec"
