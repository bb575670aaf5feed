"""How processes begin and end: fresh ones for our own pools, a word where a user forked too late,
workers that end with their parent, and a parent that ends when it is told to.

Only the standard library and the errors are imported here: workers begin with it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from functools import lru_cache
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from astrogen.errors import InputError

GRACE = 5  # seconds after SIGTERM until the process ends in any case
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Terminated(BaseException):
    """SIGTERM has come: like KeyboardInterrupt, nothing that handles errors may swallow it."""


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


def follow_parent() -> None:
    """To be called first in a worker: it ends at once when its parent is gone, however that ended,
    and leaves Ctrl-C, which reaches the whole process group, to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The thread waits for a pipe that the parent's end closes: everywhere, but not while a library
    # keeps Python from running. Linux can kill by itself.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        parent: Any = multiprocessing.parent_process()
        if os.getppid() != parent.pid:  # it went before
            os._exit(1)


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def kill_children_at_interrupt() -> Iterator[None]:
    """Where the block ends by Ctrl-C or SIGTERM, processes that it started are killed, whatever
    they are at; after an error they may finish what they are at.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except Exception:
        raise
    except BaseException:
        kill_children(but=before)
        raise


def kill_children(*, but: Collection[Any] = ()) -> None:
    """Kill the child processes of this one."""
    for child in set(multiprocessing.active_children()) - set(but):
        child.kill()


@contextlib.contextmanager
def raise_at_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated in the block, in the main thread; elsewhere it is left as it is.

    A library may swallow what is raised in the middle of it, or never return: after a few seconds
    the process and its children end in any case.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        watch = threading.Timer(GRACE, _end_now)
        watch.daemon = True
        watch.start()
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _end_now():
    kill_children()
    os._exit(128 + signal.SIGTERM)
