"""How every file of the package is written: whole, or not at all; who may write to a folder; and
what the name of a file may mean.
"""

import contextlib
import errno
import fcntl
import io
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astrogen.types import FilePath

TEMPORARY = ".astrogen-tmp"  # the end of the name of a file that is being written
LOCK = ".astrogen-lock"
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What file systems without locks answer: writing is as safe as before, two at a time are not seen.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def whole_file(path: FilePath) -> Iterator[Any]:
    """A binary stream, to be written in the block: at its end the content is on the disk and in
    the place of `path`, and where the block fails nothing is left.

    The stream is of a new file of a random name beside `path`, never of one that somebody else put
    there. What an earlier process that was killed left of this file is removed. The folder is made
    where it is missing. A device or a pipe (/dev/stdout) is written to as it is.

    Raises
    ------
    OSError : it cannot be written; its filename is `path`.
    """
    path = Path(path)
    with _named(path):
        if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            with open(path, "wb") as stream:
                yield stream
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        start = f".{path.name[:100]}."
        _remove_left_behind(path.parent, start)
        with _new_file(path.parent, start) as stream:
            try:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(stream.name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(stream.name)
                raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def _named(path):
    """An OSError of the block is about `path`, not about a name that the user never saw."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or str(error.filename).endswith(TEMPORARY)
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _new_file(folder, start):
    """A stream to a new file, which is locked while it is open: it is not left behind."""
    while True:
        name = str(folder / f"{start}{secrets.token_hex(8)}{TEMPORARY}")
        # With the permissions of the process, as `open` gives them.
        stream = open(name, "wb", opener=lambda name, _: os.open(name, NEW, 0o666))  # noqa: SIM115
        _lock(stream.fileno(), fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:  # nobody took it for left behind in between
            return stream
        stream.close()


def _lock(descriptor, kind):
    """Whether the lock could be had, or the file system has none."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _remove_left_behind(folder, start):
    """Remove temporary files of one name that no process holds any more."""
    with os.scandir(folder) as entries:
        names = [
            entry.path
            for entry in entries
            if entry.name.startswith(start)
            and entry.name.endswith(TEMPORARY)
            and len(entry.name) == len(start) + 16 + len(TEMPORARY)
            and entry.is_file(follow_symlinks=False)
        ]
    for name in names:
        with contextlib.suppress(OSError):
            descriptor = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name)
            finally:
                os.close(descriptor)


def _sync_folder(folder):
    """Put the names of a folder on the disk: without it a new file may be gone after a crash."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: FilePath, content: bytes | str) -> None:
    """Write bytes or text to a file."""
    with whole_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_table(path: FilePath, table: Any) -> None:
    """Write an astropy Table as ECSV, the text of which is made before the file."""
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    write_whole(path, text.getvalue())


@contextlib.contextmanager
def hold_folder(folder: FilePath, *, error: type[Exception], part: str = "") -> Iterator[None]:
    """No other process writes to the folder, or to the same part of it, during the block.

    Parameters
    ----------
    folder : path, made where it is missing
    error : class of errors (path, reason)
    part : str, what of the folder; "" for all of it

    Raises
    ------
    `error` : another process holds it; the reason names process and host.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / LOCK, folder, error, shared=bool(part)):
        if part:
            with _held(folder / f"{LOCK}.{part}", folder, error, shared=False):
                yield
        else:
            yield


@contextlib.contextmanager
def _held(path, folder, error, *, shared):
    descriptor = _take(path, folder, error, shared)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):  # not while others share it
                os.unlink(path)
        os.close(descriptor)


def _take(path, folder, error, shared):
    """The descriptor of a lock file that is held, and still is the file of that name."""
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            held = _lock(descriptor, kind)
            owner = "" if held else os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            if held and os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not held:
            raise error(
                folder,
                "folder must be written by one process at a time, got another that is at work:"
                f" {owner or 'a process that gave no name'}; wait for it or stop it, or choose"
                " another folder",
            )


def number_or_path(text: str) -> float | str:
    """What a user gives as a noise level: a number, unless a file of that name exists."""
    with contextlib.suppress(ValueError):
        return text if Path(text).exists() else float(text)
    return text
