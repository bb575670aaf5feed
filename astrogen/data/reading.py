"""How bytes come in that others may have damaged, or made in order to harm: from regular files
only, whole, under a cap; and JSON, .npy and .npz, which can claim more than they hold.

Whatever is wrong, one kind of exception comes out, `InputFileError(path, reason)`; readers of other
files say it in the words of their own.
"""

import contextlib
import gzip
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from astrogen.errors import AstrogenError, InputFileError, lacks_means
from astrogen.types import FilePath

CHUNK_BYTES = 2**20
GZIP_MAGIC = b"\x1f\x8b"
NPY_MAGIC = b"\x93NUMPY"
MAX_JSON_BYTES = 2**25
MAX_JSON_DEPTH = 64
MAX_INTEGER = 2**63
MAX_MEMBERS = 10_000


@contextlib.contextmanager
def only_input_errors(path: FilePath) -> Iterator[None]:
    """Turn whatever a damaged file makes the libraries raise into InputFileError; that the machine
    has no memory or that its disk fails is no fault of the file, and goes on as it is.
    """
    try:
        yield
    except AstrogenError:
        raise
    except Exception as error:  # libraries raise a dozen kinds, some of them bare
        if lacks_means(error):
            raise
        raise InputFileError(path, f"cannot be read ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def open_regular(path: FilePath) -> Iterator[Any]:
    """The file opened for reading bytes.

    A pipe would wait for its writer and a device may never end: both are refused, and without
    waiting, since what stands at a path may change between a look and the opening.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise InputFileError(path, "no such file") from None
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        if lacks_means(error):
            raise
        raise InputFileError(path, f"cannot be opened ({error})") from error
    with contextlib.ExitStack() as closing:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            closing.callback(os.close, descriptor)
            raise InputFileError(path, "is a folder or no regular file")
        yield closing.enter_context(os.fdopen(descriptor, "rb"))


def read_bytes(
    path: FilePath, *, max_bytes: int, advice: str = "it is not what was asked for"
) -> bytes:
    """Content of a regular file, decompressed if it is gzip.

    Parameters
    ----------
    path : path
    max_bytes : int, cap on the (decompressed) content
    advice : str, what a user can do beyond that

    Returns
    -------
    bytes, at least one

    Raises
    ------
    InputFileError : missing, no regular file, empty, too large, or damaged.
    """
    with open_regular(path) as raw, only_input_errors(path):
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        content = bytearray()
        while chunk := stream.read(CHUNK_BYTES):
            content += chunk
            if len(content) > max_bytes:
                raise InputFileError(
                    path,
                    f"holds more than {max_bytes} bytes{' when decompressed' if zipped else ''};"
                    f" {advice}",
                )
    if not content:
        raise InputFileError(path, "is empty")
    return bytes(content)


# --- JSON


def read_json(path: FilePath) -> Any:
    """What a file of JSON says; errors as those of `read_bytes`."""
    content = read_bytes(path, max_bytes=MAX_JSON_BYTES)
    try:
        return parse_json(content.decode())
    except ValueError as error:
        raise InputFileError(path, f"is no JSON that can be used: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says, with integers of 64 bits and a bounded depth.

    Raises
    ------
    ValueError : no JSON; a larger integer; nested deeper than MAX_JSON_DEPTH; half a character.
    """
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}") from None
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _contained(outer)]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _contained(value):
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _integer(text):
    if len(text) > 20 or not -MAX_INTEGER <= int(text) < MAX_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


# --- arrays


def parse_npy(
    path: FilePath, content: bytes, *, max_values: int, kinds: str = "biuf"
) -> np.ndarray:
    """The array of an .npy file in native byte order, its size checked against the header first
    (np.load would allocate).

    Parameters
    ----------
    path : path, for messages
    content : bytes
    max_values : int, cap on the number of values
    kinds : str, the kinds of dtype that are allowed; objects never are

    Raises
    ------
    InputFileError : damaged, too large, or of another kind.
    """
    stream = io.BytesIO(content)
    with only_input_errors(path):
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
        if dtype.kind not in kinds or dtype.hasobject:
            raise InputFileError(path, f"holds {dtype}; only plain numbers are read")
        num = math.prod(shape)
        held, promised = len(content) - stream.tell(), num * dtype.itemsize
        sides = (0, *shape)
        if held != promised or min(sides) < 0 or max(*sides, num) > max_values:
            raise InputFileError(
                path,
                f"its header promises {shape} {dtype}, {promised} bytes, but it holds {held} "
                f"(and at most {max_values} values are read)",
            )
        flat = np.frombuffer(content, dtype, count=num, offset=stream.tell())
        array = flat.reshape(shape, order="F" if fortran else "C")
        return np.array(array, dtype.newbyteorder("="), order="C")


def read_npy(path: FilePath, *, max_bytes: int, kinds: str = "biuf") -> np.ndarray:
    """The array of an .npy file; parameters and errors as of `read_bytes` and `parse_npy`."""
    content = read_bytes(path, max_bytes=max_bytes)
    return parse_npy(path, content, max_values=max_bytes, kinds=kinds)


def read_npz(path: FilePath, *, max_bytes: int, kinds: str = "biuf") -> dict[str, np.ndarray]:
    """The arrays {name: array} of an .npz file; parameters as of `parse_npz`."""
    return parse_npz(path, read_bytes(path, max_bytes=max_bytes), max_bytes=max_bytes, kinds=kinds)


def parse_npz(
    path: FilePath, content: bytes, *, max_bytes: int, kinds: str = "biuf", start: str = ""
) -> dict[str, np.ndarray]:
    """The arrays {name: array} of an .npz file, whose sizes are added up before anything is
    decompressed.

    Parameters
    ----------
    path : path, for messages
    content : bytes
    max_bytes : int, cap on all arrays together
    kinds : as for `parse_npy`
    start : str, of the names of those that are read; the others are not decompressed

    Raises
    ------
    InputFileError : damaged, too large, or anything but plain arrays.
    """
    with only_input_errors(path), zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > MAX_MEMBERS or total > max_bytes:
            raise InputFileError(
                path,
                f"holds {len(members)} arrays of {total} bytes when decompressed; at most"
                f" {MAX_MEMBERS} of {max_bytes} bytes are read",
            )
        if len({member.filename for member in members}) < len(members):
            raise InputFileError(path, "names an array twice")
        return {
            member.filename.removesuffix(".npy"): parse_npy(
                path, _member(path, archive, member), max_values=max_bytes, kinds=kinds
            )
            for member in members
            if member.filename.startswith(start)
        }


def _member(path, archive, member):
    """The content of one member: no more than it says, whatever the compressed bytes hold."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputFileError(
            path, f"{member.filename!r} is compressed in a way that NumPy does not use"
        )
    with archive.open(member) as stream:
        content = stream.read(member.file_size + 1)
        if len(content) != member.file_size or stream.read(1):
            raise InputFileError(
                path,
                f"{member.filename!r} must hold {member.file_size} bytes, got {len(content)}",
            )
    return content
