"""How every file of the package is written: whole, or not at all; and what the name of one may
mean.
"""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def whole_file(path):
    """The Path of a temporary file beside `path`, to be written in the block; at its end it is on
    the disk and in its place, and where the block fails nothing is left.

    The folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_whole(path, content):
    """Write bytes or text to a file."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def number_or_path(text):
    """What a user gives as a noise level: a number, unless a file of that name exists."""
    with contextlib.suppress(ValueError):
        return text if Path(text).exists() else float(text)
    return text
