"""Image files: the only place that opens FITS and .npy files, and the only one that trusts nothing
in them.

A file is read whole into memory under a cap, its headers are compared with its size before any
pixel is decoded, and its checksums are verified where it has them. Whatever is wrong with a file,
exactly one kind of exception comes out: `InputFileError(path, reason)`. What the pixels mean
(noise, mask, PSF) is decided in observation.py.
"""

import contextlib
import gzip
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.units import UnitsWarning
from astropy.wcs import WCS

from astrogen.data.files import whole_file, write_whole
from astrogen.data.fits_layout import BLOCK, MAX_AXES, Extent, read_layout
from astrogen.data.reading import NPY_MAGIC, only_input_errors, parse_npy, read_bytes
from astrogen.data.units import unit_text
from astrogen.errors import InputError, InputFileError
from astrogen.types import FilePath, Place

MAX_PIXELS = 100_000_000  # a full DECam chip has 8e6, an HSC coadd patch 2e7
BYTES_PER_PIXEL = 16  # image, variance and mask of a 4-byte type each, and room
HEADER_BYTES = 2**20
MAX_SIP_ORDER = 9  # of the SIP convention; astropy allocates whatever the header asks for


@dataclass(frozen=True, eq=False)
class ImagePlane:
    """One array of a file, undecided as to what it means.

    `pixels` keeps its type (bit masks stay integers) in native byte order; `header` belongs to its
    own HDU, `primary_header` to the file. An .npy file is one plane with empty headers.
    """

    index: int
    name: str
    version: int
    pixels: np.ndarray
    header: fits.Header
    primary_header: fits.Header

    def keyword(self, key: str, default: Any = None) -> Any:
        """Value of a header keyword, from the HDU or else from the primary header."""
        return self.header.get(key, self.primary_header.get(key, default))

    def __str__(self):
        sides = " x ".join(str(side) for side in self.pixels.shape)
        return f"{self.index} {self.name or 'unnamed'} ({sides} {self.pixels.dtype})"


def _read_bytes(path, max_pixels):
    return read_bytes(
        path,
        max_bytes=BYTES_PER_PIXEL * max_pixels + HEADER_BYTES,
        advice="raise max_pixels if that is meant",
    )


# --- FITS


def read_hdus(path: FilePath, *, max_pixels: int = MAX_PIXELS) -> fits.HDUList:
    """HDUs of a FITS file, checked against its size and checksums, all pixels loaded.

    Parameters
    ----------
    path : path, a FITS file, plain or gzip
    max_pixels : int, cap on the pixels of one HDU; also limits the size of the (decompressed) file

    Returns
    -------
    astropy HDUList in memory

    Raises
    ------
    InputFileError : whatever is wrong with the file.
    """
    content = _read_bytes(path, max_pixels)
    return parse_fits(path, content, max_pixels=max_pixels)


def parse_fits(path: FilePath, content: bytes, *, max_pixels: int) -> fits.HDUList:
    """As `read_hdus`, of the content of a file."""
    extents = read_layout(path, content, max_pixels=max_pixels)
    held = content[: -(-extents[-1].end // BLOCK) * BLOCK]  # without blanks behind the last HDU
    with only_input_errors(path), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hdus = fits.open(io.BytesIO(held), memmap=False, lazy_load_hdus=False, checksum=True)
        _refuse_warnings(path, caught)
        for hdu in hdus:
            hdu.data  # noqa: B018 (this is what loads and verifies the pixels)
        _refuse_warnings(path, caught)
    return hdus


def _refuse_warnings(path, caught):
    """Treat the warnings that mean damage as errors; let the others go."""
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if re.search(
            r"truncated|checksum verification|datasum verification|error validating header",
            text,
            re.IGNORECASE,
        ):
            raise InputFileError(path, f"is damaged: {text}")


def _native(pixels):
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


# --- planes


def split_path(path: FilePath) -> tuple[Path, int | str | None]:
    """Split FILE[HDU] into the path and the HDU (number, name, or "NAME,VERSION"); the HDU is None
    without brackets.
    """
    match = re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(path), re.DOTALL)
    if not match or Path(path).exists():
        return Path(path), None
    return Path(match[1]), int(match[2]) if match[2].isdecimal() else match[2]


def read_images(path: FilePath, *, max_pixels: int = MAX_PIXELS) -> list[ImagePlane]:
    """All images of a FITS or .npy file (which of the two is seen from its first bytes).

    Parameters
    ----------
    path : path, FITS (plain or gzip) or .npy
    max_pixels : int, cap on the pixels of one image

    Returns
    -------
    list of ImagePlane, at least one

    Raises
    ------
    InputFileError : the file is damaged, too large, or holds no image.
    """
    content = _read_bytes(path, max_pixels)
    if content.startswith(NPY_MAGIC):
        return [
            ImagePlane(
                0,
                "",
                1,
                parse_npy(path, content, max_values=max_pixels),
                fits.Header(),
                fits.Header(),
            )
        ]
    hdus = parse_fits(path, content, max_pixels=max_pixels)
    with only_input_errors(path):
        found = [
            ImagePlane(
                index, hdu.name.upper(), hdu.ver, _native(hdu.data), hdu.header, hdus[0].header
            )
            for index, hdu in enumerate(hdus)
            if hdu.is_image and hdu.data is not None
        ]
    if not found:
        raise InputFileError(path, "holds no image")
    return found


def list_extents(path: FilePath, *, max_pixels: int = MAX_PIXELS) -> list[Extent]:
    """The HDUs of a FITS file as its headers describe them, no pixel read: see
    `astrogen.data.fits_layout.read_layout`. Errors as those of `read_hdus`.
    """
    return read_layout(path, _read_bytes(path, max_pixels), max_pixels=max_pixels)


def choose_plane(path: FilePath, planes: Sequence[ImagePlane], hdu: int | str | None) -> ImagePlane:
    """The plane that `hdu` names, by number, by name, or as "NAME,VERSION"."""
    name, _, version = str(hdu).upper().partition(",")
    if isinstance(hdu, int):
        matching = [plane for plane in planes if plane.index == hdu]
    else:
        matching = [
            plane
            for plane in planes
            if plane.name == name.strip() and version.strip() in ("", str(plane.version))
        ]
    return only_plane(path, matching, planes, f"the image HDU {hdu!r}")


def only_plane(
    path: FilePath,
    matching: Sequence[ImagePlane],
    planes: Sequence[ImagePlane],
    wanted: str,
    *,
    choice: str | None = None,
) -> ImagePlane:
    """The single element of `matching`, or an error that lists those that could be meant, of all
    `planes`, and how to choose: `choice`, or by hdu.
    """
    if len(matching) == 1:
        return matching[0]
    advice = choice or f"the number in front, as {path}[NUMBER]"
    raise InputFileError(
        path,
        f"{'more than one' if matching else 'no'} HDU could be {wanted}:"
        f" {'; '.join(map(str, matching or planes))}; choose with {advice}",
    )


def take_plane(file: FilePath, source: ImagePlane, plane: int | None) -> np.ndarray:
    """Pixels [h, w] of an image, or of plane number `plane` of a cube; an InputFileError if neither
    fits.
    """
    pixels = source.pixels
    if pixels.ndim == 3 and len(pixels) == 1 and plane is None:
        return pixels[0]
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3:
        raise InputFileError(file, f"HDU {source} must be an image or a cube")
    if plane is None or not 0 <= plane < len(pixels):
        raise InputFileError(
            file,
            f"HDU {source} is a cube of {len(pixels)} planes; choose one with plane=0 to"
            f" {len(pixels) - 1}, got {plane}",
        )
    return pixels[plane]


def header_wcs(header: Any) -> WCS | None:
    """Celestial WCS [2 axes] of a header, or None where it has none that works (no error: a scale
    may be given).
    """
    sizes = {f"{axis}_ORDER": MAX_SIP_ORDER for axis in ("A", "B", "AP", "BP")}
    sizes |= {f"WCSAXES{other}": MAX_AXES for other in ("", *ascii_uppercase)}
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        stated = {name: header.get(name, 0) for name in sizes}  # fails where a card is damaged
        if any(type(stated[name]) is not int or stated[name] > sizes[name] for name in sizes):
            return None
        wcs = WCS(header)
        return wcs.celestial if wcs.has_celestial else None
    return None


# --- PsfEx


def read_psfex(
    path: FilePath,
    *,
    position: Place | None = None,
    row: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Any:
    """Evaluate a PsfEx model, or return None where the file holds none.

    Two layouts: that of PsfEx itself (polynomial in header keywords, POLZERO1 and so on) and the
    merged tables of the Legacy Surveys (the same names as columns, one row per CCD). Agrees with
    galsim.des.DES_PSFEx (tests/test_observation.py).

    Parameters
    ----------
    path : path, FITS
    position : (x, y) or None, pixels from 0 of the exposure that the model was fitted on; None: the
        polynomial's origin
    row : int or None, row of a merged table with several
    max_pixels : int, cap on the file

    Returns
    -------
    (image float64 [k, k], sampling float in pixels of the exposure, offset float of the position in
    units of the fitted field's side), or None

    Raises
    ------
    InputFileError : damaged file, or a polynomial in anything else than the position.
    """
    state = os.stat(path) if os.path.exists(path) else None
    seen = state and (state.st_mtime_ns, state.st_size, state.st_ino)
    model: Any = _psfex_model(os.fspath(path), row, max_pixels, seen)
    with only_input_errors(path):
        return model and _evaluate_psfex(path, model[0], model[1], position)


@lru_cache(maxsize=16)
def _psfex_model(path, row, max_pixels, state):
    """(columns, keywords) of a PsfEx model, or None.

    Kept as long as the file's `state` is the same: a survey evaluates one at many positions.
    """
    content = _read_bytes(path, max_pixels)
    hdus = [] if content.startswith(NPY_MAGIC) else parse_fits(path, content, max_pixels=max_pixels)
    tables = [
        hdu
        for hdu in hdus
        if isinstance(hdu, fits.BinTableHDU)
        and "PSF_MASK" in (n.upper() for n in hdu.columns.names)
    ]
    if not tables:
        return None
    with only_input_errors(path):
        rows = tables[0].data
        if not len(rows) or (len(rows) > 1 and row is None) or not 0 <= (row or 0) < len(rows):
            raise InputFileError(
                path,
                f"is a PsfEx table of {len(rows)} rows; choose one with plane=0 to {len(rows) - 1},"
                f" got {row}",
            )
        columns = {name.upper(): rows[name][row or 0] for name in rows.names}
        return np.asarray(columns["PSF_MASK"], float), {**tables[0].header, **columns}


def _evaluate_psfex(path, basis, keywords, position):
    """PSF = sum over x^i y^j of the basis images, i + j <= degree, x fastest (PsfEx manual, section
    on the PSF model).
    """
    num_axes = int(keywords.get("POLNAXIS", 0))
    names = [str(keywords[f"POLNAME{axis}"]).strip() for axis in range(1, num_axes + 1)]
    positional = not names or (
        len(names) == 2 and names[0].startswith("X") and names[1].startswith("Y")
    )
    if not positional or int(keywords.get("POLNGRP", 1)) > 1:
        raise InputFileError(
            path, f"its PSF varies with {names}; only X_IMAGE, Y_IMAGE in one group are supported"
        )
    degree = int(keywords["POLDEG1"]) if names else 0
    if basis.ndim != 3 or len(basis) != (degree + 1) * (degree + 2) // 2:
        raise InputFileError(
            path,
            f"its PSF_MASK has shape {basis.shape}, which does not fit a polynomial of degree"
            f" {degree}",
        )
    x = y = 0.0
    if names and position is not None:  # PsfEx counts pixels from 1
        x = (position[0] + 1 - float(keywords["POLZERO1"])) / float(keywords["POLSCAL1"])
        y = (position[1] + 1 - float(keywords["POLZERO2"])) / float(keywords["POLSCAL2"])
    terms = [x**i * y**j for j in range(degree + 1) for i in range(degree + 1 - j)]
    return np.tensordot(terms, basis, 1), float(keywords["PSF_SAMP"]), max(abs(x), abs(y))


# --- results


def write_planes(
    path: FilePath,
    planes: Mapping[str, np.ndarray],
    *,
    wcs: Any = None,
    unit: Any = None,
    header: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> None:
    """Write named arrays and tables to one FITS file, whole or not at all.

    The file is written beside its place, flushed to the disk and moved over it, so that no reader
    ever sees a part of it; CHECKSUM and DATASUM stand in every HDU and carry no date, so that equal
    content is equal bytes.

    Parameters
    ----------
    path : path; gzip if it ends in .gz
    planes : dict of name -> array [h, w] or [n, h, w]; bool is written as uint8
    wcs : astropy WCS of all planes, or dict of name -> WCS; cubes take it for their last two axes
    unit : astropy Unit (or its text) of the floating-point planes, or dict of name -> Unit; planes
        whose names begin with VARIANCE get its square
    header : dict of keyword -> str, number, bool or None, for the primary header; NaN is written as
        undefined
    tables : dict of name -> astropy Table

    Raises
    ------
    ValueError : a plane is neither 2-d nor 3-d.
    OSError : the disk is full or the folder is missing; an older file of that name is untouched.
    """
    primary = fits.PrimaryHDU()
    with warnings.catch_warnings():
        # keywords beyond 8 letters become HIERARCH cards
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        for key, value in (header or {}).items():
            primary.header[key.upper()] = _header_value(value)
    hdus = fits.HDUList([primary])
    for name, pixels in planes.items():
        hdus.append(_image_hdu(name, np.asarray(pixels), _of(wcs, name), _of(unit, name)))
    for name, table in (tables or {}).items():
        hdus.append(_table_hdu(name, table))
    hdus.update_extend()
    for hdu in hdus:
        hdu.add_checksum(when="of this HDU")
    stream = io.BytesIO()
    hdus.writeto(stream)
    content = stream.getvalue()
    write_whole(path, gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)


def _of(option, name):
    return option.get(name) if isinstance(option, dict) else option


def _header_value(value):
    """What a FITS header can hold: ASCII without control characters, finite numbers, None for the
    undefined.
    """
    if isinstance(value, str):
        ascii_text = value.encode("ascii", "backslashreplace").decode()
        return "".join(letter if letter.isprintable() else " " for letter in ascii_text)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _table_hdu(name, table):
    """A table with its text as `_header_value` writes it, because FITS holds no other; units as
    they are, whether FITS knows them or not.
    """
    table, units = table.copy(), {}
    for number, column in enumerate(table.colnames, 1):
        if table[column].dtype.kind == "U":
            table[column] = [_header_value(str(text)) for text in table[column]]
        if table[column].unit is not None:
            units[f"TUNIT{number}"] = _header_value(unit_text(table[column].unit))
            table[column].unit = None
    hdu = fits.BinTableHDU(table, name=name)
    hdu.header.update(units)
    return hdu


def _image_hdu(name, pixels, wcs, unit):
    if pixels.ndim not in (2, 3):
        raise InputError(
            f"write_planes: planes must be [h, w] or [n, h, w], got {name!r} of shape"
            f" {pixels.shape}; reshape it"
        )
    hdu = fits.ImageHDU(
        pixels.astype(np.uint8) if pixels.dtype == bool else pixels, name=name.upper()
    )
    if wcs is not None:
        hdu.header.update(wcs.to_header(relax=True))
    if unit is not None and pixels.dtype.kind == "f":
        power = 2 if name.upper().startswith("VARIANCE") else 1
        hdu.header["BUNIT"] = _header_value(unit_text(unit, power))
    return hdu


@contextlib.contextmanager
def stream_cube(
    path: FilePath, shape: tuple[int, int, int], *, header: Mapping[str, Any]
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a float32 cube piece by piece: the memory is that of a piece, and the file appears when
    it is whole.

    Parameters
    ----------
    path : path, ending in .fits or .npy
    shape : (num, height, width)
    header : dict of keyword -> (value, comment), for the FITS header

    Yields
    ------
    function, to be called with arrays [any, height, width] until all `num` are there

    Raises
    ------
    ValueError : another ending; other images than the shape says.
    """
    ending = Path(path).suffix
    if ending not in (".fits", ".npy"):
        raise InputError(
            f"stream_cube: path must end in .fits or .npy, got {str(path)!r}; choose one of the two"
        )
    left = shape[0]
    with whole_file(path) as stream:
        stream.write(_cube_header(shape, header) if ending == ".fits" else _npy_header(shape))

        def append(images):
            nonlocal left
            if images.shape[1:] != tuple(shape[1:]) or len(images) > left:
                raise InputError(
                    f"stream_cube: images must be at most {left} of {tuple(shape[1:])}, got"
                    f" {images.shape}; declare the shape that is written"
                )
            left -= len(images)
            stream.write(images.astype(">f4" if ending == ".fits" else "<f4").tobytes())

        yield append
        if left:
            raise InputError(
                f"stream_cube: images must be {shape[0]}, got {shape[0] - left}; write them all"
                " before the file is closed"
            )
        if ending == ".fits":
            stream.write(bytes(-stream.tell() % 2880))  # FITS comes in blocks


def _cube_header(shape, header):
    cards = fits.Header(
        [
            ("SIMPLE", True),
            ("BITPIX", -32),
            ("NAXIS", 3),
            *((f"NAXIS{axis + 1}", int(side)) for axis, side in enumerate(reversed(shape))),
        ]
    )
    cards.update(
        {keyword: (_header_value(value), comment) for keyword, (value, comment) in header.items()}
    )
    return cards.tostring().encode("ascii")


def _npy_header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream,
        {"descr": "<f4", "fortran_order": False, "shape": tuple(int(side) for side in shape)},
    )
    return stream.getvalue()


def read_planes(
    path: FilePath, *, max_pixels: int = MAX_PIXELS
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """Read what `write_planes` wrote.

    Parameters
    ----------
    path : path, FITS
    max_pixels : int, cap on the pixels of one plane

    Returns
    -------
    (planes, header, tables) : dict of NAME -> array; dict of keyword -> value (None where
    undefined); dict of NAME -> Table

    Raises
    ------
    InputFileError : the file is damaged or too large.
    """
    hdus = read_hdus(path, max_pixels=max_pixels)
    with only_input_errors(path):
        planes = {
            hdu.name: _native(hdu.data) for hdu in hdus if hdu.is_image and hdu.data is not None
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)  # units that FITS does not know
            tables = {
                hdu.name: Table.read(hdu) for hdu in hdus if isinstance(hdu, fits.BinTableHDU)
            }
        cards = hdus[0].header.copy(strip=True)
        header = {
            card.keyword: None if isinstance(card.value, fits.card.Undefined) else card.value
            for card in cards.cards
            if card.keyword not in ("CHECKSUM", "DATASUM", "COMMENT", "HISTORY", "")
        }
    return planes, header, tables


def read_plane_wcs(path: FilePath, name: str, *, max_pixels: int = MAX_PIXELS) -> WCS | None:
    """Celestial WCS of one plane of a file, or None where it has none."""
    planes = read_images(path, max_pixels=max_pixels)
    return header_wcs(choose_plane(path, planes, name).header)
