"""How processes begin: fresh ones for our own pools, and a word where a user forked too late.

Only the standard library and the errors are imported here: workers begin with it.
"""

import contextlib
import multiprocessing
import os
import sys
from functools import lru_cache
from multiprocessing.context import SpawnContext, SpawnProcess

from astrogen.errors import InputError


class _FreshProcess(SpawnProcess):
    """A spawned process that does not run the user's script again: what it is told to do stands in
    modules, and a script without `if __name__ == "__main__"` would begin its own work anew.
    """

    @staticmethod
    def _Popen(process):
        with _nameless_main():
            return SpawnProcess._Popen(process)


class _FreshContext(SpawnContext):
    Process = _FreshProcess


def fresh_context(caller: str) -> SpawnContext:
    """The context for pools of processes, never forked (TensorFlow does not survive a fork), which
    import nothing but what they are sent. Functions of the script itself cannot be sent.

    Raises
    ------
    InputError : this process may not start others, since it is a worker itself.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        raise InputError(
            f"{caller}: a process must not start its work while it imports its parent's script, got"
            f" {process.name}; put the call below if __name__ == '__main__':"
        )
    if process.daemon:
        raise InputError(
            f"{caller}: a process that starts others must not be daemonic, got {process.name};"
            " use concurrent.futures.ProcessPoolExecutor in place of multiprocessing.Pool"
        )
    return _FreshContext()


@contextlib.contextmanager
def _nameless_main():
    """What a spawned process runs of its parent's main module is read from these two names."""
    main = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(kept)


@lru_cache(maxsize=1)
def _first():
    return os.getpid()


def refuse_fork(caller: str) -> None:
    """To be called before TensorFlow computes: an InputError in a process that was forked from one
    where it had computed already, since it would wait for threads that a fork does not copy.
    """
    if _first() != os.getpid():
        raise InputError(
            f"{caller}: a process must not be forked after TensorFlow ran, got one forked from"
            f" process {_first()}; start processes by multiprocessing.get_context('spawn') (joblib:"
            " the backend loky), or fork before the first call of astrogen"
        )
