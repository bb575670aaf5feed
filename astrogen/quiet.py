"""TensorFlow without what it says when it is loaded: six lines on processors that it may use, which
no setting of it keeps off a user's terminal.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile


def keep_tensorflow_quiet():
    """From now on, when this process loads TensorFlow, nothing is printed unless it fails; nor
    later, short of errors. Loads nothing by itself.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and not any(
        isinstance(finder, _Finder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder())


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


def _load_quietly(load, module):
    with _silence():
        load(module)
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
