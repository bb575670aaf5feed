"""Files are whole or not there: names, links, permissions, disks, what the dead left."""

import errno
import os
import resource
import stat
import threading

import numpy as np
import pytest
from astropy.table import Table

from astrogen.data.arrays import npz_bytes, write_array
from astrogen.data.files import (
    TEMPORARY,
    whole_file,
    write_table,
    write_whole,
)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with whole_file(path) as stream:
        stream.write(b"one")
        (name,) = os.listdir(path.parent)
        assert name.startswith(".a.txt.") and name.endswith(TEMPORARY)
    assert path.read_bytes() == b"one" and os.listdir(path.parent) == ["a.txt"]


def test_after_an_error_the_old_file_is_there_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_names_of_temporaries_cannot_be_foreseen(tmp_path):
    names = set()
    for _ in range(20):
        with whole_file(tmp_path / "a") as stream:
            names.add(stream.name)
    assert len(names) == 20


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)], ids=oct)
def test_permissions_are_those_that_the_process_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_what_a_dead_process_left_goes_and_what_is_being_written_stays(tmp_path):
    dead = tmp_path / f".a.{16 * '0'}{TEMPORARY}"
    others = [
        tmp_path / f".a.b.{16 * '0'}{TEMPORARY}",  # of a file a.b
        tmp_path / f".a.notes{TEMPORARY}",  # a user's
        tmp_path / ".a.1234.tmp",
    ]
    for path in (dead, *others):
        path.write_text("left")
    link = tmp_path / f".a.{16 * '1'}{TEMPORARY}"
    link.symlink_to(others[2])
    with whole_file(tmp_path / "a") as stream:
        stream.write(b"slow")
        write_whole(tmp_path / "a", b"quick")
        assert os.path.exists(stream.name)
    assert (tmp_path / "a").read_bytes() == b"slow"
    assert not dead.exists() and all(path.exists() for path in others) and link.is_symlink()


def test_the_folder_reaches_the_disk_too(tmp_path, monkeypatch):
    """A name that is not on the disk is gone after a crash, with the file."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_mode))
    write_whole(tmp_path / "a", b"")
    assert [stat.S_ISDIR(mode) for mode in synced] == [False, True]


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    write_whole("/dev/null", b"text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"text")
    reader.join()
    assert read == [b"text"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


WRITERS = {
    "bytes": lambda path: write_whole(path, bytes(100_000)),
    "array": lambda path: write_array(path, np.zeros(100_000)),
    "table": lambda path: write_table(path, Table({"x": np.arange(30_000)})),
}


@pytest.mark.parametrize("write_fn", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("room", [0, 1, 50_000], ids="{} bytes".format)
def test_what_does_not_fit_is_not_there_and_the_error_names_it(tmp_path, write_fn, room):
    """The system's own limit on the size of a file."""
    path, before = tmp_path / "a", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_fn(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_arrays_are_what_numpy_reads_and_equal_ones_are_equal_bytes(tmp_path):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "text": np.array(["x", "yz"]), "n": 3}
    assert npz_bytes(arrays) == npz_bytes(arrays)
    (tmp_path / "a.npz").write_bytes(npz_bytes(arrays, level=1))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert stored.files == list(arrays)
        assert all(np.array_equal(stored[name], value) for name, value in arrays.items())
    columns = np.arange(12.0).reshape(3, 4).T
    write_array(tmp_path / "b.npy", columns)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy", mmap_mode="r"), columns)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    """Whoever reads while it is written finds the old content."""
    path = tmp_path / "result.fits"
    path.write_bytes(b"old")
    with whole_file(path) as stream:
        stream.write(b"half of the")
        stream.flush()
        assert path.read_bytes() == b"old"
        stream.write(b" new one")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"half of the new one"
    assert os.listdir(tmp_path) == ["result.fits"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "result.fits"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as stream:
        stream.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.fits"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file(tmp_path, monkeypatch, failing):
    """The new one is on the disk before it takes the old one's place, in one step."""
    path = tmp_path / "result.fits"
    path.write_bytes(b"old")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fails)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.fits"]


def test_a_new_file_is_not_there_before_it_is_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "deep" / "folder" / "result.txt"
    with pytest.raises(ZeroDivisionError), whole_file(path) as stream:
        stream.write(b"half")
        1 / 0  # noqa: B018
    assert not path.exists()
    write_whole(path, "text, in UTF-8: \u03ba")
    assert path.read_bytes() == b"text, in UTF-8: \xce\xba"
