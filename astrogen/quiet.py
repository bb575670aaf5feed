"""TensorFlow as a command needs it: without what it says when it is loaded (six lines on processors
that it may use, which no setting of it keeps off a user's terminal), without the packages that it
would load in passing, and, for work that is done once, without tracing.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

# Loaded by Keras and TensorFlow where they are installed, for conversions that nothing here asks
# for: two of the five seconds of CPU that the import takes.
UNNEEDED = ("IPython", "jax", "matplotlib", "pandas", "sklearn", "torch")


def keep_tensorflow_quiet() -> None:
    """From now on, when this process loads TensorFlow, nothing is printed unless it fails; nor
    later, short of errors. Loads nothing by itself.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and not any(
        isinstance(finder, _Finder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder())


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as Python calls it, step by step: nothing of it is traced.

    What is computed once is done before it would have been traced; what is repeated takes five
    times as long. The optimiser of graphs is switched off with it, so that the numbers are those of
    a graph without one, bit by bit (tests/test_quiet.py). Loads TensorFlow.
    """
    import tensorflow as tf

    def step_by_step(*arguments, **options):
        tf.config.run_functions_eagerly(True)
        try:
            return tf.autograph.experimental.do_not_convert(function)(*arguments, **options)
        finally:
            tf.config.run_functions_eagerly(False)

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    return step_by_step


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow as the others do, and loads it quietly."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _load_quietly(load, module)
        return spec


class _Absent(importlib.abc.MetaPathFinder):
    """Packages that are not there, as far as TensorFlow can see."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in UNNEEDED:
            raise ImportError(f"{name} is not loaded with TensorFlow", name=name)


def _load_quietly(load, module):
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        with _silence():
            load(module)
    finally:
        sys.meta_path.remove(absent)
    module.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def _silence():
    """What libraries write to the process's stderr is shown after an error only."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(terminal, 2)
            said.seek(0)
            os.write(2, said.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
