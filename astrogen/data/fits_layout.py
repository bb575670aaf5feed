"""What the headers of a FITS file promise, compared with the bytes that are there, before any
library follows a promise: one card NAXIS = 1000000000000 is a loop of hours in Astropy.

Only structural keywords are read (FITS standard 4.0, sections 4.4 and 7), and they must stand as
the standard says; whatever else a header holds is none of this module's business.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from astrogen.errors import InputFileError
from astrogen.types import FilePath

BLOCK, CARD = 2880, 80
END = b"END".ljust(CARD)
MAX_CARDS = 20_000  # of a header; coadds with the history of all their inputs have some thousands
MAX_CONTINUE = 1_000  # cards that go on with a text: Astropy's time grows with their square
MAX_HDUS = 2_000
MAX_AXES = 32
MAX_COLUMNS = 999
MAX_ROWS = 20_000_000
MAX_OVERLAP = 16  # bytes that rows take from the heap of a table, over those that it has
BITPIX = (8, 16, 32, 64, -32, -64)
FIELD_BYTES = dict(zip("LXBIJKAEDCMPQ", (1, 0, 1, 2, 4, 8, 1, 4, 8, 8, 16, 8, 16), strict=True))
STRUCTURE = re.compile(
    rb"(?:HIERARCH\s+)?\s*"
    rb"(SIMPLE|XTENSION|BITPIX|Z?NAXIS\d*|PCOUNT|GCOUNT|GROUPS|TFIELDS|THEAP|TFORM\d+|TBCOL\d+"
    rb"|TDIM\d+|ZIMAGE|ZTABLE|ZTILE\d+|ZBITPIX)\s*=",
    re.IGNORECASE,
)
VALUE = re.compile(rb"\s*(?:([+-]?\d+)|'((?:[^']|'')*)'|([TF]))\s*(?:/.*)?", re.DOTALL)


class Extent(NamedTuple):
    """One HDU: name of its kind ("PRIMARY", "IMAGE", "BINTABLE", ...), structural keywords, and the
    bytes where its data begin and end."""

    kind: str
    cards: dict
    start: int
    end: int

    @property
    def is_table(self) -> bool:
        """Whether rows are meant, and not an image in disguise."""
        return self.kind in ("BINTABLE", "TABLE") and self.cards.get("ZIMAGE") is not True


def read_layout(path: FilePath, content: bytes, *, max_pixels: int) -> list[Extent]:
    """The HDUs of a FITS file, every promise of whose headers the file keeps.

    Parameters
    ----------
    path : path, for messages
    content : bytes of the file
    max_pixels : int, cap on the pixels of one image, decompressed

    Returns
    -------
    list of Extent; what follows the last one is blank

    Raises
    ------
    InputFileError : a header without end, a card that is not as the standard says, a size that is
        negative, larger than the file or than a cap, a table whose columns do not fill its rows.
    """
    if not content.startswith(b"SIMPLE  ="):
        raise InputFileError(path, f"is no FITS file: it begins with {content[:9]!r}")
    extents: list[Extent] = []
    place = 0
    while place < len(content) and content[place : place + CARD].strip(b"\0 "):
        if len(extents) == MAX_HDUS:
            raise InputFileError(path, f"has more than {MAX_HDUS} HDUs")
        extents.append(_read_extent(path, content, place, len(extents), max_pixels))
        place = -(-extents[-1].end // BLOCK) * BLOCK
    if content[place:].strip(b"\0 "):
        raise InputFileError(path, f"is damaged: bytes after byte {place} belong to no HDU")
    return extents


def _read_extent(path, content, place, index, max_pixels):
    cards, start = _structure(path, content, place, f"HDU {index}")
    kind = "PRIMARY" if index == 0 else str(cards.get("XTENSION")).strip()
    said = f"HDU {index} ({kind})"
    num_axes = _whole(path, said, cards, "NAXIS", MAX_AXES)
    order = ["XTENSION" if index else "SIMPLE", "BITPIX", "NAXIS"]
    order += [f"NAXIS{axis}" for axis in range(1, num_axes + 1)]
    if list(cards)[: len(order)] != order or cards.get("SIMPLE", True) is not True:
        raise InputFileError(
            path, f"{said} must begin with the cards {', '.join(order[:4])}, got {list(cards)[:4]}"
        )
    if cards["BITPIX"] not in BITPIX or cards.get("GROUPS", False) is not False:
        raise InputFileError(
            path, f"{said} must be of BITPIX {BITPIX} without groups, got {cards['BITPIX']}"
        )
    shape = [_whole(path, said, cards, name) for name in order[3:]]
    more, times = (
        _whole(path, said, cards, *how) for how in (("PCOUNT", None, 0), ("GCOUNT", None, 1))
    )
    held = math.prod(shape) if shape else 0
    size = abs(cards["BITPIX"]) // 8 * times * (more + held) if shape else 0
    end = start + size
    if end > len(content):
        raise InputFileError(
            path,
            f"is truncated, or its header lies: {said} ends at byte {end} of {len(content)}",
        )
    extent = Extent(kind, cards, start, end)
    if kind in ("BINTABLE", "TABLE"):
        _check_table(path, said, extent, content)
    if not extent.is_table:
        _check_image(path, said, extent, shape[::-1], max_pixels)
    return extent


def _structure(path, content, place, said):
    """Values of the structural keywords of a header, in its order, and where its data begin."""
    cards, num_continue = {}, 0
    for number in range(MAX_CARDS):
        card = content[place + number * CARD : place + (number + 1) * CARD]
        if card == END:
            return cards, place + -(-(number + 1) // (BLOCK // CARD)) * BLOCK
        if len(card) < CARD or re.match(rb"END(?![A-Z0-9_-])", card):
            raise InputFileError(path, f"is truncated, or damaged: the header of {said} has no END")
        num_continue += card.startswith(b"CONTINUE")
        if num_continue > MAX_CONTINUE:
            break
        if match := STRUCTURE.match(card):
            name = match[1].decode().upper()
            value = VALUE.fullmatch(card, 10)
            if card[:10] != name.encode().ljust(8) + b"= " or not value or name in cards:
                raise InputFileError(
                    path, f"is damaged: {said} has the card {_shown(card)}, which no FITS file has"
                )
            digits, text, truth = value.groups()
            cards[name] = (
                int(digits) if digits else truth == b"T" if truth else text.decode("latin-1")
            )
    raise InputFileError(
        path,
        f"the header of {said} has more than {MAX_CARDS} cards, or {MAX_CONTINUE} of them CONTINUE",
    )


def _shown(card):
    return repr(card.rstrip().decode("latin-1"))


def _whole(path, said, cards, name, most=None, default=None):
    """A whole number that is not negative; an error about the card otherwise."""
    value = cards.get(name, default)
    if type(value) is not int or value < 0 or (most is not None and value > most):
        limit = "" if most is None else f" of at most {most}"
        raise InputFileError(
            path, f"its header lies: {said} must have a whole number {name}{limit}, got {value!r}"
        )
    return value


def _check_image(path, said, extent, shape, max_pixels):
    cards = extent.cards
    if cards.get("ZIMAGE") is True:
        axes = range(1, _whole(path, said, cards, "ZNAXIS", MAX_AXES) + 1)
        shape = [_whole(path, said, cards, f"ZNAXIS{axis}") for axis in axes][::-1]
    # One side may be zero, and the product with it, while the others are not small.
    if max(shape, default=0) > max_pixels or math.prod(shape) > max_pixels:
        raise InputFileError(
            path,
            f"{said} has shape {tuple(shape)}, more than {max_pixels} pixels; raise max_pixels if"
            " that is meant",
        )
    if cards.get("ZIMAGE") is True:
        _check_tiles(path, said, cards, shape[::-1], max_pixels)


def _check_tiles(path, said, cards, sides, max_pixels):
    """A compressed image has one row of its table for each tile."""
    axes = range(1, len(sides) + 1)
    tiles = [
        _whole(path, said, cards, f"ZTILE{axis}", None, side if axis == 1 else 1)
        for axis, side in zip(axes, sides, strict=True)
    ]
    fits = min(tiles, default=0) > 0 and math.prod(tiles) <= max_pixels
    num = math.prod(-(-side // max(tile, 1)) for side, tile in zip(sides, tiles, strict=True))
    if not fits or num != cards["NAXIS2"] or cards.get("ZBITPIX") not in BITPIX:
        raise InputFileError(
            path,
            f"its header lies: {said} is a compressed image of {sides} in tiles of {tiles}, {num}"
            f" of them in {cards['NAXIS2']} rows",
        )


# --- tables


def _check_table(path, said, extent, content):
    cards = extent.cards
    for name, wanted in (("BITPIX", 8), ("NAXIS", 2), ("GCOUNT", 1)):
        if cards.get(name, wanted) != wanted:
            raise InputFileError(
                path, f"its header lies: {said} must have {name} {wanted}, got {cards[name]!r}"
            )
    num_rows = _whole(path, said, cards, "NAXIS2", MAX_ROWS)
    num_columns = _whole(path, said, cards, "TFIELDS", MAX_COLUMNS)
    forms = [cards.get(f"TFORM{column}") for column in range(1, num_columns + 1)]
    if not all(isinstance(form, str) for form in forms):
        raise InputFileError(path, f"its header lies: {said} must have {num_columns} TFORM")
    if extent.kind == "TABLE":
        _check_text_columns(path, said, cards, forms)
        return
    fields = [re.fullmatch(r"\s*(\d{0,12})([LXBIJKAEDCMPQ])(.*)", form.upper()) for form in forms]
    if None in fields:
        raise InputFileError(
            path, f"is damaged: {said} has the TFORM {forms[fields.index(None)]!r}"
        )
    widths = [_field_bytes(field) for field in fields]
    if sum(widths) != cards["NAXIS1"]:
        raise InputFileError(
            path,
            f"its header lies: rows of {said} have {cards['NAXIS1']} bytes, its columns"
            f" {sum(widths)}",
        )
    rows = np.frombuffer(content, np.uint8, num_rows * cards["NAXIS1"], extent.start)
    rows = rows.reshape(num_rows, cards["NAXIS1"])
    places = np.cumsum([0, *widths])
    for field, first, last in zip(fields, places, places[1:], strict=False):
        if field[2] in "PQ" and last > first:
            _check_heap(path, said, cards, field, rows[:, first:last])


def _field_bytes(field):
    repeat = int(field[1] or 1)
    return -(-repeat // 8) if field[2] == "X" else repeat * FIELD_BYTES[field[2]]


def _check_text_columns(path, said, cards, forms):
    for number, form in enumerate(forms, 1):
        match = re.fullmatch(r"\s*[AIFED](\d{1,12})(\.\d{1,12})?\s*", form.upper())
        first = _whole(path, said, cards, f"TBCOL{number}", cards["NAXIS1"])
        if not match or first < 1 or first - 1 + int(match[1]) > cards["NAXIS1"]:
            raise InputFileError(
                path,
                f"its header lies: {said} has the TFORM {form!r} in rows of {cards['NAXIS1']}"
                " bytes",
            )


def _check_heap(path, said, cards, field, rows):
    """Arrays of variable length must lie in the heap, and not all be the same piece of it."""
    item = re.match(r"([LXBIJKAEDCM])", field[3])
    if not item:
        raise InputFileError(path, f"is damaged: {said} has the TFORM {field[0]!r}")
    told = np.ascontiguousarray(rows).view(">i8" if field[2] == "Q" else ">i4").reshape(-1, 2)
    lengths, places = told.astype(np.float64).T  # whatever the bytes say, without overflow
    size = lengths / 8 if item[1] == "X" else lengths * FIELD_BYTES[item[1]]
    first = cards["NAXIS1"] * cards["NAXIS2"]
    theap, more = (
        _whole(path, said, cards, *how) for how in (("THEAP", None, first), ("PCOUNT", None, 0))
    )
    room = first + more - theap
    if not (
        theap >= first
        and room >= 0
        and (told >= 0).all()
        and (places + size <= room)[lengths > 0].all()
        and size.sum() <= MAX_OVERLAP * room
    ):
        raise InputFileError(
            path, f"its header lies: arrays of {said} do not lie in its heap of {room} bytes"
        )
