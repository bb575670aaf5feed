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
    assert what == "" and done.stderr == heard or "ImportError: no drums" in done.stderr


def test_without_tensorflow_the_error_is_the_usual_one(tmp_path):
    load = (
        f"import sys; sys.path[:] = [{str(Path(__file__).parent.parent)!r}, *(place for place in"
        " sys.path if 'site-packages' not in place)]; " + LOAD
    )
    done = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "ModuleNotFoundError: No module named 'tensorflow'" in done.stderr
