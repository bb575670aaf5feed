"""What a survey run leaves on the disk: single flipped bits, full disks, kills, two runs at once,
faults that pass. The fit is a stand-in.
"""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import survey_stand_in as stand_in
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from conftest import ROOT
from pyarrow import parquet

from astrogen.cli import main
from astrogen.data import files
from astrogen.data.arrays import npz_bytes
from astrogen.errors import SurveyError
from astrogen.survey import read_object, read_survey, run, store, work

NUM_CHUNKS = stand_in.NUM // stand_in.CHUNK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    stand_in.write_inputs(folder)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Chunks are made in this process, by the stand-in."""
    stand_in.stay_here(monkeypatch.setattr)


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
    """Reading back what the file `path` holds is refused."""
    if path.parent.name == "chunks":
        number = int(path.stem)
        for name in range(stand_in.CHUNK * number, stand_in.CHUNK * (number + 1)):
            with pytest.raises(SurveyError, match=path.name):
                read_object(out, f"o{name}")
        return
    with pytest.raises(SurveyError, match=path.name):
        read_survey(out)


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
    assert "file must be there and readable, got no such file" in capsys.readouterr().err


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
    names = [f"o{number}" for number in range(stand_in.NUM)]
    assert list(read_survey(out)["id"]) == names
    assert [read_object(out, name).name for name in names] == names


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


# Kills


def _left(process):
    """The processes of a group that still run; what only waits to be collected does not."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just gone
            continue
        if int(group) == process.pid and state != "Z":
            found.append(status.parent.name)
    return found


def _wait_until_gone(process, seconds=10):
    deadline = time.monotonic() + seconds
    while _left(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _left(process)


def _wait_for(path, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _kill_and_resume(folder, whole, out, number, rng, *, after=store.chunk_path):
    """The parent alone is killed, at a random moment after the first chunk, or (`after` None) after
    its start; then the run goes on.
    """
    with _started(folder, out, "--workers", "2", STAND_IN_SECONDS="0.2") as process:
        if after:
            _wait_for(after(out, 0), process)
        time.sleep(rng.uniform(0, 1.2 if after else 8))
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        _wait_until_gone(process)
    if number == signal.SIGTERM and process.returncode not in (0, -number):  # done; not yet begun
        assert process.returncode == 143
        assert told.splitlines() == ["astrogen: terminated"]
    with _started(folder, out, "--resume") as process:
        assert process.wait(120) == 0
    assert _bytes(out) == _bytes(whole)


proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks up processes in /proc")
NUMBERS = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])


@proc
@NUMBERS
def test_a_killed_parent_leaves_nothing_and_a_resumed_run_has_the_same_bytes(
    folder, whole, tmp_path, number
):
    _kill_and_resume(folder, whole, tmp_path / "run", number, np.random.default_rng())


@proc
@NUMBERS
@pytest.mark.slow
def test_ten_killed_parents(folder, whole, tmp_path, number):
    rng = np.random.default_rng()
    for index in range(10):
        after = None if index % 2 else store.chunk_path
        _kill_and_resume(folder, whole, tmp_path / str(index), number, rng, after=after)


@pytest.mark.parametrize("stop", range(8), ids="{} steps".format)
def test_what_a_kill_between_two_steps_of_writing_leaves(
    folder, whole, tmp_path, here, monkeypatch, stop
):
    """Before the n-th file is put in its place the process is gone: temporary file and lock
    stay.
    """
    out, replace, left = tmp_path / "run", os.replace, [stop]

    class Gone(BaseException):
        pass

    def replace_or_go(source, target):
        if not left[0]:
            raise Gone
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_or_go)
        patched.setattr(os, "unlink", lambda path: None)
        with pytest.raises(Gone):
            _command(folder, out)
    assert any(name.endswith(files.TEMPORARY) for name in _bytes(out))
    assert _command(folder, out, "--resume") == 0
    assert _bytes(out) == _bytes(whole)


# Disks


@pytest.mark.parametrize("room", [0, 300, 9000, 30000, 70000, 137000, 145000], ids="{} B".format)
def test_a_full_disk_ends_the_run_in_words(
    folder, whole, tmp_path, here, monkeypatch, capsys, room
):
    """A disk of so many bytes (137 kB: the catalogue is what does not fit)."""
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        _fill_after(patched, room)
        assert _command(folder, out) == 4
    (told,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in told and str(out) in told and "--resume" in told
    assert all(whole_bytes == _bytes(whole)[name] for name, whole_bytes in _bytes(out).items())
    assert _command(folder, out, "--resume") == 0
    assert _bytes(out) == _bytes(whole)


def _fill_after(patched, room):
    """After so many bytes what is written does not reach the disk."""
    left = [room]

    class Stream:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *told):
            self.stream.close()

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, content):
            fits = min(len(content), left[0])
            left[0] -= fits
            self.stream.write(content[:fits])
            if fits < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    new_file = files._new_file
    patched.setattr(files, "_new_file", lambda *told: Stream(new_file(*told)))


@pytest.mark.slow
def test_at_20_sizes_of_a_real_disk(folder, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for size in np.linspace(4, 172, 20).astype(int) * 1024:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
        )
        if made.returncode:
            pytest.skip("may not mount a file system")
        try:
            with _started(folder, disk / "run", "--workers", "2") as process:
                told = process.communicate(timeout=120)[1]
            assert process.returncode == 4, told
            (line,) = told.splitlines()
            assert "No space left on device" in line and str(disk / "run") in line
            subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
            with _started(folder, disk / "run", "--resume") as process:
                assert process.wait(120) == 0
            assert _bytes(disk / "run") == _bytes(whole)
        finally:
            subprocess.run(["umount", disk], check=True)


# Two at once


def test_a_folder_belongs_to_one_run_at_a_time(folder, tmp_path, here, capsys):
    out = tmp_path / "run"
    with files.hold_folder(out, error=SurveyError):
        assert _command(folder, out) == 4
        told = capsys.readouterr().err
        assert f"got another that is at work: process {os.getpid()} on " in told
        assert _command(folder, out, "--shard", "1/2") == 4
    assert not list(out.iterdir())
    with files.hold_folder(out, error=SurveyError, part="1-of-2"):
        assert _command(folder, out) == 4 and _command(folder, out, "--shard", "1/2") == 4
        assert _command(folder, out, "--shard", "2/2") == 0
    assert _command(folder, out, "--shard", "1/2", "--resume") == 0
    assert len(read_survey(out)) == stand_in.NUM


def test_a_lock_that_a_dead_process_left_holds_nobody_up(tmp_path):
    (tmp_path / files.LOCK).write_text("process 1 on elsewhere\n")
    with files.hold_folder(tmp_path, error=SurveyError):
        pass
    assert not list(tmp_path.iterdir())


def test_file_systems_without_locks_are_written_to(tmp_path, monkeypatch):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.hold_folder(tmp_path / "run", error=SurveyError):
        files.write_whole(tmp_path / "run" / "a", "text")
    assert (tmp_path / "run" / "a").read_text() == "text"


# Faults that pass


def _failing(monkeypatch, error_fn, ident="o3"):
    """An object that the fit fails on, with the error that `error_fn(calls)` gives, if any."""
    fit, calls = work._fit_each, []

    def fit_each(told, cuts):
        if any(cut.seen.ident == ident for cut in cuts):
            calls.append(ident)
            if error := error_fn(len(calls)):
                raise error
        return fit(told, cuts)

    monkeypatch.setattr(work, "_fit_each", fit_each)
    return calls


def _read_error():
    """As a reader raises that met a bad sector."""
    error = ValueError("image must be readable")
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    return error


FAULTS = pytest.mark.parametrize(
    "error_fn",
    [
        lambda: MemoryError("no memory"),
        lambda: ImportError("libcuda.so: cannot open shared object file"),
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        _read_error,
    ],
    ids=["memory", "import", "disk", "read"],
)


@FAULTS
def test_a_fault_of_the_machine_that_passes_leaves_no_trace(
    folder, whole, tmp_path, here, monkeypatch, error_fn
):
    calls = _failing(monkeypatch, lambda count: error_fn() if count < 3 else None)
    assert _command(folder, tmp_path / "run") == 0 and len(calls) == 3
    assert _bytes(tmp_path / "run") == _bytes(whole)


@FAULTS
def test_a_fault_of_the_machine_that_stays_is_tried_again_by_resume(
    folder, whole, tmp_path, here, monkeypatch, error_fn
):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        _failing(patched, lambda count: error_fn())
        assert _command(folder, out) == 3
    (row,) = Table.read(out / store.FAILURES)
    assert row["id"] == "o3" and "fault of the machine: a resumed run tries again" in row["reason"]
    assert _command(folder, out, "--resume") == 0
    assert _bytes(out) == _bytes(whole)


def test_a_fault_of_an_object_stays(folder, tmp_path, here, monkeypatch):
    out = tmp_path / "run"
    calls = _failing(monkeypatch, lambda count: ValueError("no galaxy"))
    # both objects of the chunk, then it alone
    assert _command(folder, out) == 3 and len(calls) == 2
    assert _command(folder, out, "--resume") == 3 and len(calls) == 2


def test_a_machine_that_lets_nothing_be_done_ends_the_run(
    folder, whole, tmp_path, here, monkeypatch, capsys
):
    out = tmp_path / "run"

    def fit_each(fit, cuts):
        raise MemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(work, "_fit_each", fit_each)
        assert _command(folder, out) == 4
    (told,) = capsys.readouterr().err.splitlines()
    assert "000000.npz: run_survey: machine must have memory" in told and "3 tries" in told
    assert not (out / "chunks").exists()
    assert _command(folder, out, "--resume") == 0
    assert _bytes(out) == _bytes(whole)


# Files of a run that somebody made


def _signed_anew(path, content):
    """A chunk's file with other content, and an index that vouches for it."""
    path.write_bytes(content)
    index = store.read_signed(store.index_path(path), format=store.FORMAT)
    index["content"] = store.sha256_of(content)
    store.write_signed(store.index_path(path), index)


def _huge_member():
    """An array that would fill the memory, in a few kB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("row/id.npy", "w", force_zip64=True) as member:
            member.write(bytes(2**24))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content_fn",
    [
        lambda: b"",
        lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
        lambda: npz_bytes({"row/id": ["o2"]}),
        lambda: npz_bytes({"row/id": [1, 2], "about": np.zeros(3, np.uint8)}),
        _huge_member,
    ],
    ids=["empty", "HDF5", "less", "other", "bomb"],
)
def test_a_chunk_that_others_made_is_refused(whole, tmp_path, monkeypatch, content_fn):
    monkeypatch.setattr(store, "LARGEST", 2**22)
    out = shutil.copytree(whole, tmp_path / "run")
    _signed_anew(store.chunk_path(out, 1), content_fn())
    with pytest.raises(SurveyError, match="000001.npz: file must hold what astrogen writes"):
        read_object(out, "o2")


@pytest.mark.parametrize("name", [store.MANIFEST, store.LEDGER, store.CATALOGUE])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(whole, tmp_path, name):
    out = shutil.copytree(whole, tmp_path / "run")
    (out / name).unlink()
    os.mkfifo(out / name)
    with pytest.raises(SurveyError, match=f"{name}: file must be there and readable"):
        read_survey(out)


def test_json_that_nests_without_end_is_refused(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    (out / store.MANIFEST).write_text("[" * 100_000)
    with pytest.raises(SurveyError, match="must be JSON"):
        store.read_manifest(out / store.MANIFEST)


def test_an_object_that_failed_in_another_exposure_is_read(tmp_path, here, capsys):
    stand_in.write_inputs(tmp_path)
    with fits.open(tmp_path / "exposure.fits") as hdus:
        sky = WCS(hdus["IMAGE"].header).pixel_to_world(*2 * [10.0 + 7 * np.arange(stand_in.NUM)])
        hdus["IMAGE"].data[:45] = np.nan
        hdus.writeto(tmp_path / "half.fits")
    ident = [f"o{number}" for number in range(stand_in.NUM)]
    Table({"id": ident, "ra": sky.ra, "dec": sky.dec}).write(tmp_path / "sky.ecsv")
    words = ["--psf", str(tmp_path / "psf.npy"), "--size", "16", "--out", str(tmp_path / "run")]
    images = [str(tmp_path / name) for name in ("half.fits", "exposure.fits")]
    assert main(["survey", str(tmp_path / "sky.ecsv"), "--images", *images, *words]) == 3
    failed = Table.read(tmp_path / "run" / store.FAILURES)
    assert "o1" in failed["id"] and "o9" not in failed["id"]
    # Seen in both, done in one.
    assert list(read_survey(tmp_path / "run")["id"]).count("o1") == 1
    result = read_object(tmp_path / "run", "o1")
    assert result.name.startswith("o1") and not result.observation.mask.any()
    picture = str(tmp_path / "o1.png")
    assert main(["show", str(tmp_path / "run"), "o1", "--out", picture]) == 0
    assert "o1" in capsys.readouterr().out and Path(picture).exists()
    # Done in both: one has to be chosen, by what `show` calls it.
    assert main(["show", str(tmp_path / "run"), "o9", "--out", picture]) == 4
    said = capsys.readouterr().err
    assert "--image must be given for 'o9', which is in half.fits, exposure.fits" in said
    assert main(["show", str(tmp_path), "o9"]) == 4
    assert "folder must hold a survey run, got no chunks" in capsys.readouterr().err
    chosen = [str(tmp_path / "run"), "o9", "--image", "half.fits", "--out", picture]
    assert main(["show", *chosen]) == 0


# Words


def test_failures_are_told_in_the_words_of_who_ran_it(folder, here, tmp_path):
    """An even PSF is advised to be recentred: by Python's argument, and not on a command line that
    has no option for it.
    """
    even = np.ones((6, 6)) / 36
    np.save(tmp_path / "even.npy", even)
    out = {name: tmp_path / name for name in ("command", "python")}
    assert _command(folder, out["command"], "--psf", str(tmp_path / "even.npy")) == 4
    done = run.run_survey(
        folder / "objects.ecsv",
        [str(folder / "exposure.fits")],
        psf=[str(tmp_path / "even.npy")],
        out=out["python"],
        fit=work.Fit(size=stand_in.SIZE),
    )
    assert (done.num, done.num_failed) == (0, stand_in.NUM)
    told = {name: (path / store.FAILURES).read_text() for name, path in out.items()}
    assert all("must have odd sides, got (6, 6)" in text for text in told.values())
    assert "recentre=True" in told["python"] and "recentre=" not in told["command"]
