"""Files are written whole or not at all: what a reader, a crash and a full disk find."""

import os

import pytest

from astrogen.files import whole_file, write_whole


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    """Whoever reads while it is written finds the old content."""
    path = tmp_path / "result.fits"
    path.write_bytes(b"old")
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half of the")
        assert path.read_bytes() == b"old"
        with open(temporary, "ab") as file:
            file.write(b" new one")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"half of the new one"
    assert os.listdir(tmp_path) == ["result.fits"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "result.fits"
    path.write_bytes(b"old")
    with pytest.raises(error), whole_file(path) as temporary:
        temporary.write_bytes(b"half")
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
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert not path.exists()
    write_whole(path, "text, in UTF-8: \u03ba")
    assert path.read_bytes() == b"text, in UTF-8: \xce\xba"
