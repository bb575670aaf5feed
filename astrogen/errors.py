"""What goes wrong with what a user gives: one family of errors, all with a `path` and a `reason`,
all of which survive the road back from another process.

Anything else that is raised is a fault of the package and keeps its traceback.
"""

import errno
from typing import Any

# What the system says when it has no room, memory, files or answer: about the machine, not about
# what was asked of it.
MACHINE = {
    getattr(errno, name)
    for name in (
        "EAGAIN EBUSY EDQUOT EFBIG EHOSTDOWN EHOSTUNREACH EIO EMFILE ENETDOWN ENETUNREACH ENFILE"
        " ENOBUFS ENODEV ENOLCK ENOMEM ENOSPC ENXIO EREMOTEIO EROFS ESTALE ETIMEDOUT ETXTBSY"
    ).split()
    if hasattr(errno, name)
}


class AstrogenError(Exception):
    """Base of all errors about input, files and runs.

    path : str, the file or folder that is to blame, or None where it is a value
    reason : str, what was expected, what came, and what to do
    """

    def __init__(self, path: Any, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = None if path is None else str(path), str(reason)

    def __str__(self):
        lines = self.reason.split("\n")
        text = "\n".join(map(printable, lines))
        return text if self.path is None else f"{printable(self.path)}: {text}"


def printable(text: Any) -> str:
    """One line of text that does nothing to whoever shows it.

    Names and headers come from files: control characters move a terminal's cursor and set its
    title, and those that turn the direction of writing hide what stands there. They are shown as
    Python writes them.
    """
    text = str(text)
    if text.isprintable():  # at once also for the megabytes of a page
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class InputError(AstrogenError, ValueError):
    """A value that cannot be used."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)

    def __reduce__(self):
        return type(self), (self.reason,)


class FileError(AstrogenError):
    """A file or folder that cannot be used."""


class InputFileError(FileError):
    """An image, a table or a catalogue that cannot be used."""


class WeightsError(FileError):
    """Weights that cannot be used."""


class RecordsError(FileError):
    """Training records that cannot be used or written."""


class SurveyError(FileError):
    """A survey run that cannot be started, gone on with, or read."""


def lacks_means(error: BaseException) -> bool:
    """Whether an error itself says that the machine has no memory, room, or answer of a disk."""
    return isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno in MACHINE


def is_machines(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is about the machine: memory, disk, a library
    that could not be loaded. The same input may go well another time.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ImportError) or lacks_means(error):
            return True
        # TensorFlow's error for memory that it cannot have; it is not loaded to ask.
        if type(error).__name__ == "ResourceExhaustedError":
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
