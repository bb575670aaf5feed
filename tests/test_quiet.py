"""A TensorFlow that talks while it is loaded is not heard, unless loading fails."""

import subprocess
import sys
from pathlib import Path

import pytest

FAKE = """import logging, os
os.write(2, b"could not find a drum machine\\n")
{what}
def get_logger():
    return logging.getLogger("fake")
"""
LOAD = (
    "from astrogen.quiet import keep_tensorflow_quiet as quiet; quiet(); quiet(); import"
    " tensorflow, os, sys; os.write(2, b'heard'); assert not"
    " tensorflow.get_logger().isEnabledFor(30)"
)


@pytest.mark.parametrize(
    "what, heard",
    [("", "heard"), ("raise ImportError('no drums')", "could not find a drum machine")],
    ids=["loads", "fails"],
)
def test_loading_is_heard_only_where_it_fails(tmp_path, what, heard):
    (tmp_path / "tensorflow.py").write_text(FAKE.format(what=what))
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"},
        check=False,
    )
    assert done.stderr.startswith(heard) and (done.returncode == 0) is (what == "")
    assert (what == "" and done.stderr == heard) or "ImportError: no drums" in done.stderr


def test_without_tensorflow_the_error_is_the_usual_one(tmp_path):
    load = (
        f"import sys; sys.path[:] = [{str(Path(__file__).parent.parent)!r}, *(place for place in"
        " sys.path if 'site-packages' not in place)]; " + LOAD
    )
    done = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "ModuleNotFoundError: No module named 'tensorflow'" in done.stderr


def test_what_tensorflow_does_not_need_is_not_loaded_with_it_but_later(tmp_path):
    (tmp_path / "pandas.py").write_text("")
    (tmp_path / "tensorflow.py").write_text(
        "import logging\n"
        "try:\n    import pandas\nexcept ImportError:\n    pandas = None\n"
        "def get_logger():\n    return logging.getLogger('fake')\n"
    )
    load = LOAD + "; assert tensorflow.pandas is None; import pandas"
    done = subprocess.run(
        [sys.executable, "-c", load],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


UNTRACED = """
import tensorflow as tf
from astrogen.quiet import untraced

runs = []

@tf.function(autograph=False)
def chain(x):
    runs.append(1)
    def step(i, y):
        return i + 1, tf.map_fn(lambda row: tf.tensordot(row, tf.sin(y), 1) + y[0] / 3, y)
    return tf.while_loop(lambda i, y: i < 5, step, (0, x))[1] / 7

x = tf.random.stateless_normal([16, 16], [1, 2])
once = untraced(chain)
first, second, traced = once(x), once(x), chain(x)
assert len(runs) == 3, runs
assert (first.numpy() == traced.numpy()).all() and (second.numpy() == traced.numpy()).all()
"""


def test_untraced_numbers_are_those_of_the_graph_bit_by_bit():
    """In a process of its own: the optimiser of graphs stays off."""
    done = subprocess.run(
        [sys.executable, "-c", UNTRACED],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
