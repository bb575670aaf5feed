"""The errors of astrogen: one family, which comes back whole from another process, and names that
do nothing to a terminal.
"""

import errno
import importlib
import pickle
import pkgutil

import pytest

import astrogen
import data_pipelines
from astrogen.cli.words import complain
from astrogen.data.reading import only_input_errors, read_bytes
from astrogen.errors import AstrogenError, InputError, InputFileError, is_machines, printable

EVIL = "galaxy\x1b]0;evil\x07\x1b[2J\n\u202e4711"


def subclasses(kind):
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def all_kinds():
    for package in (astrogen, data_pipelines):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    return sorted(set(subclasses(AstrogenError)), key=lambda kind: kind.__qualname__)


def test_every_error_survives_the_road_from_another_process():
    kinds = all_kinds()
    assert {"InputError", "InputFileError", "RecordsError", "SurveyError", "WeightsError"} <= {
        kind.__name__ for kind in kinds
    }
    for kind in kinds:
        error = kind("must be") if issubclass(kind, InputError) else kind("a.fits", "must be")
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is kind and str(back) == str(error)
        assert (back.path, back.reason) == (error.path, "must be")


def test_names_do_nothing_to_a_terminal(capsys):
    complain(EVIL)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.rstrip("\n").isprintable()
    assert printable("flux 3 ± 1, é, 星系") == "flux 3 ± 1, é, 星系"


@pytest.mark.parametrize("text", [EVIL, "\x9b31m", "a\u2028b"])
def test_what_is_printed_can_be_printed(text):
    assert printable(text).isprintable()


FAULTS = {
    "memory": MemoryError("no 8 GiB"),
    "disk_full": OSError(errno.ENOSPC, "No space left on device"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "files": OSError(errno.EMFILE, "Too many open files"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_of_the_machine_are_no_faults_of_a_file(fault):
    with pytest.raises(type(fault)) as caught, only_input_errors("a.fits"):
        raise fault
    assert caught.value is fault and is_machines(fault)


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), OSError("Thrift: no footer"), OSError(errno.EINVAL, "seek"), EOFError()],
    ids=lambda error: type(error).__name__,
)
def test_what_a_library_says_of_a_file_is_one_kind_of_error(error):
    with pytest.raises(InputFileError, match="a.fits: cannot be read") as caught:
        with only_input_errors("a.fits"):
            raise error
    assert caught.value.__cause__ is error and not is_machines(caught.value)


def test_a_file_that_the_machine_cannot_open_is_tried_again(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr("astrogen.data.reading.os.open", fail)
    with pytest.raises(OSError, match="Too many open files"):
        read_bytes(tmp_path / "a", max_bytes=9)
