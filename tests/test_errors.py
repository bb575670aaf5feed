"""The errors of astrogen: one family, which comes back whole from another process, and names that
do nothing to a terminal.
"""

import importlib
import pickle
import pkgutil

import pytest

import astrogen
import data_pipelines
from astrogen.commands.words import complain
from astrogen.errors import AstrogenError, InputError, printable

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
