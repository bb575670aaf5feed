"""Files that are read back only as they were written.

A JSON file carries the sha256 of its own content; the others' stand in such a file, and their bytes
are compared with it before a parser sees them: a damaged file can make one hang, or answer wrongly.
"""

import hashlib
import json
from typing import Any

from astrogen.data.files import write_whole
from astrogen.data.reading import open_regular, parse_json
from astrogen.errors import InputFileError, SurveyError
from astrogen.types import FilePath

DIGEST = "sha256"  # the name in a JSON file of that of the rest
AGAIN = "run it again with resume=True, which does again what is damaged"


def sha256_of(content: bytes) -> str:
    """In hexadecimal, of bytes."""
    return hashlib.sha256(content).hexdigest()


def signed(content: dict[str, Any]) -> bytes:
    """The bytes of a JSON file of a dict, with the digest of all else in it."""
    return _text(content | {DIGEST: sha256_of(_text(content))})


def _text(content):
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def write_signed(path: FilePath, content: dict[str, Any]) -> None:
    """Write a dict that JSON can hold."""
    write_whole(path, signed(content))


def read_signed(path: FilePath, *, format: str, advice: str = AGAIN) -> dict[str, Any]:
    """The dict of a JSON file, without its digest.

    Every byte counts: what would be read as the same content is refused too.

    Raises
    ------
    SurveyError : the file is missing, of another format, or not as it was written.
    """
    content = _read(path, advice)
    try:
        found = parse_json(content.decode())
    except ValueError as error:
        raise SurveyError(
            path, f"file must be JSON as it was written, got {error}; {advice}"
        ) from error
    told = found.get("format") if isinstance(found, dict) else type(found).__name__
    if told != format:
        raise SurveyError(
            path, f"format must be {format!r}, got {told!r}; use the release that wrote it"
        )
    digest = found.pop(DIGEST, None)
    if signed(found) != content:  # byte for byte
        raise SurveyError(
            path,
            f"sha256 must be {digest}, got {sha256_of(_text(found))}: the file was changed or"
            f" damaged; {advice}",
        )
    return found


def read_hashed(path: FilePath, digest: str | None, *, advice: str = AGAIN) -> bytes:
    """The bytes of a file whose sha256 is `digest`.

    Raises
    ------
    SurveyError : the file is missing or not as it was written.
    """
    content = _read(path, advice)
    if sha256_of(content) != digest:
        raise SurveyError(
            path,
            f"sha256 must be {digest}, got {sha256_of(content)}: the file was changed or damaged;"
            f" {advice}",
        )
    return content


def _read(path, advice):
    try:
        with open_regular(path) as file:
            return file.read()
    except (InputFileError, OSError) as error:
        words = error.reason if isinstance(error, InputFileError) else error.strerror or error
        raise SurveyError(
            path, f"file must be there and readable, got {words}; {advice}"
        ) from error
