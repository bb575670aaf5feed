"""What a survey run reads: a catalogue of objects, exposures with their companions, and the cutout
of one object.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from astrogen.data.frames import sky_to_pixels
from astrogen.data.images import list_extents, read_psfex, split_path
from astrogen.data.observation import (
    NOISE,
    Frame,
    Observation,
    check_frame,
    cut_frame,
    make_psf,
    read_frame,
    read_psf,
)
from astrogen.data.tables import read_table
from astrogen.data.units import level_or_path
from astrogen.errors import InputError, InputFileError
from astrogen.survey.columns import read_columns, read_pixels, read_sky
from astrogen.types import FilePath

NAMES = {  # column names that catalogues use, in the order in which they are looked for
    "id": ("id", "object_id", "objid", "objectid", "source_id", "number", "name", "ident"),
    "ra": ("ra", "ra_deg", "alpha_j2000", "alphawin_j2000", "raj2000", "coord_ra"),
    "dec": ("dec", "dec_deg", "delta_j2000", "deltawin_j2000", "dej2000", "dedeg", "coord_dec"),
    "x": ("x", "x_image", "xwin_image", "xcentroid"),
    "y": ("y", "y_image", "ywin_image", "ycentroid"),
}
ONE_BASED = ("x_image", "y_image", "xwin_image", "ywin_image")  # SExtractor counts from 1
COMPANIONS = ("psf", *NOISE, "mask")  # paths, beside the image's band


class Exposure(NamedTuple):
    """Paths (str, or None) of an image and of what belongs to it; noise may be a number. band: ""
    where none is said.
    """

    image: str
    psf: str
    variance: str | float | None = None
    sigma: str | float | None = None
    weight: str | float | None = None
    mask: str | None = None
    band: str = ""


class Target(NamedTuple):
    """One object in one exposure: its identifier, the exposure's number, its position (x, y),
    pixels from 0, and how many exposures before this one hold it too.
    """

    ident: str
    exposure: int
    x: float
    y: float
    before: int = 0


def read_catalogue(path: FilePath) -> tuple[list[str], Any, np.ndarray | None]:
    """The objects of a table: identifiers, and positions.

    Parameters
    ----------
    path : path of FITS (or FILE[HDU]), VOTable, Parquet, ECSV, CSV or other text with a line of
        names; identifiers are text, letter for letter.
        Columns of positions have the unit that they name; without one ra and dec are in degrees
        (as text: 10:12:03.4 is hours), x and y in pixels

    Returns
    -------
    (ident, sky, pixels) : list of str; SkyCoord or None; array [num, 2] from 0 or None, one of
    which is there

    Raises
    ------
    InputFileError : the file is damaged or no table.
    InputError : it has no positions, or an identifier occurs twice or is missing; a column has a
        unit of another kind, or an impossible value.
    """
    columns = read_columns(
        path,
        text=NAMES["id"],
        numbers=[name for role in ("ra", "dec", "x", "y") for name in NAMES[role]],
    )
    if not columns.num_rows:
        raise InputError(
            f"read_catalogue: catalogue must hold objects, got an empty table in {path}"
        )
    ident = _identifiers(path, columns)
    found = {
        role: next((name for name in names if name in columns.numbers), None)
        for role, names in NAMES.items()
    }
    if found["ra"] and found["dec"]:
        names = found["ra"], found["dec"]
        return (
            ident,
            read_sky(path, columns.numbers[names[0]], columns.numbers[names[1]], names),
            None,
        )
    if "sky" in columns.numbers:
        return ident, columns.numbers["sky"], None
    if found["x"] and found["y"]:
        pixels = [
            read_pixels(path, name, columns.numbers[name]) - (name in ONE_BASED)
            for name in (found["x"], found["y"])
        ]
        return ident, None, np.stack(pixels, 1)
    raise InputError(
        "read_catalogue: catalogue must have ra and dec, or x and y, got the columns"
        f" {', '.join(columns.names)} in {path}; rename two"
    )


def _identifiers(path, columns):
    """One for each row, as the file says it; the rows' numbers where it says none."""
    name = next((name for name in NAMES["id"] if name in columns.text), None)
    if name is None:
        return [str(row) for row in range(1, columns.num_rows + 1)]
    ident = columns.text[name]
    missing = next((row for row, value in enumerate(ident, 1) if not (value or "").strip()), None)
    if missing:
        raise InputError(
            f"read_catalogue: identifiers must be there in every row, got none in row {missing} of"
            f" column {name} in {path}; fill it, or leave out the row"
        )
    if len(set(ident)) < len(ident):
        seen = set()
        twice = next(value for value in ident if value in seen or seen.add(value))
        raise InputError(
            f"read_catalogue: identifiers must be different, got {twice!r} twice in {path}; results"
            " could not be told apart"
        )
    return ident


def list_exposures(images: Any, **companions: Any) -> list[Exposure]:
    """Exposures of a list of images, or of a table of them.

    Parameters
    ----------
    images : sequence of paths; or one path of a table with the column `image` and any of psf,
        variance, sigma, weight, mask, band, whose paths may be relative to it
    companions : for each of psf, variance, sigma, weight, mask (paths) and band (names) a sequence
        of one, or of one for each image; what the table has counts first

    Returns
    -------
    list of Exposure; paths are absolute, so that workers elsewhere find them

    Raises
    ------
    ValueError : a wrong number of companions, no PSF, or a table without images.
    """
    images, companions = (
        [str(path) for path in images],
        {kind: [str(value) for value in values or ()] for kind, values in companions.items()},
    )
    if len(images) == 1 and not _is_image(images[0]):
        return _exposures_of_table(Path(images[0]), companions)
    for kind, values in companions.items():
        if len(values) not in (0, 1, len(images)):
            raise InputError(
                f"list_exposures: {kind} must be one for all images or one for each of the"
                f" {len(images)}, got {len(values)}"
            )
    if not companions.get("psf"):
        raise InputError(
            "list_exposures: psf must be given, got none; give one for all images, or one for each"
        )
    columns = {
        kind: values * len(images) if len(values) == 1 else values
        for kind, values in companions.items()
        if values
    }
    return [
        _absolute(Exposure(image, **{kind: values[row] for kind, values in columns.items()}))
        for row, image in enumerate(images)
    ]


def _absolute(exposure):
    named = {
        kind: getattr(exposure, kind) for kind in ("image", *COMPANIONS) if getattr(exposure, kind)
    }
    return exposure._replace(
        **{
            kind: name if is_callable(name) or _is_noise(kind, name) else os.path.abspath(name)
            for kind, name in named.items()
        }
    )


def _is_noise(kind, name):
    """Whether a companion is a noise level, with or without a unit, and no path."""
    return kind in NOISE and not isinstance(level_or_path(name), str)


def _is_image(path):
    """By its name; a FITS file may also hold a table of images, by what it holds."""
    if not re.search(r"\.(fits?|fts|npy)(\.(gz|fz))?(\[.*\])?$", path, re.IGNORECASE):
        return False
    try:
        tables = [extent for extent in list_extents(split_path(path)[0]) if extent.is_table]
        return not tables or "image" not in read_table(path).colnames
    except InputFileError:  # no table: an image, or a file that will be refused as one
        return True


def _exposures_of_table(path, companions):
    columns = read_columns(
        path,
        text=Exposure._fields,
        numbers=NOISE,
    )
    if "image" not in columns.text or not columns.num_rows:
        raise InputError(
            "list_exposures: a table of images must have the column image, and rows, got"
            f" {', '.join(columns.names)} with {columns.num_rows} rows in {path}"
        )
    units = {kind: str(column.unit or "") for kind, column in columns.numbers.items()}
    exposures = []
    for row in range(columns.num_rows):
        fields = {kind: values[0] for kind, values in companions.items() if values}
        given = {
            kind: values[row]
            for kind, values in columns.text.items()
            if (values[row] or "").strip() not in ("", "--")
        }
        if "image" not in given:
            raise InputError(
                f"list_exposures: image must be there in every row, got none in row {row + 1} of"
                f" {path}"
            )
        fields |= {
            kind: name if kind == "band" else _beside(path, kind, name, units.get(kind, ""))
            for kind, name in given.items()
        }
        exposures.append(_absolute(Exposure(**{"psf": "", **fields})))
    if not all(exposure.psf for exposure in exposures):
        raise InputError(
            "list_exposures: psf must be given for every image, got none for"
            f" {next(e.image for e in exposures if not e.psf)}; add a column psf to {path}, or"
            " give one"
        )
    return exposures


def _beside(table, kind, name, unit):
    """A noise level stays one, in the unit of its column; a path that is not there is looked for
    beside the table.

    Code is never run because a file says so.
    """
    beside = table.parent / name
    if _is_noise(kind, name) and not beside.exists():
        return f"{name} {unit}".strip()
    if is_callable(name) and not beside.exists():
        raise InputFileError(
            table,
            f"list_exposures: {kind} must be a file in a table of images, got {name!r}; a function"
            " is taken from psf= alone",
        )
    return name if Path(name).exists() else str(beside)


def match(catalogue: Any, exposures: Sequence[Exposure]) -> tuple[list[Target], Any]:
    """Every object in every exposure that holds its position, and the objects that no exposure
    holds.

    Parameters
    ----------
    catalogue : of `read_catalogue`
    exposures : list of Exposure

    Returns
    -------
    (targets, lost) : list of Target in the order of exposures and objects, list of (identifier,
    reason)

    Raises
    ------
    ValueError : pixel positions with several exposures; an exposure without a WCS.
    """
    ident, sky, pixels = catalogue
    if sky is None and len(exposures) > 1:
        raise InputError(
            "match: positions must be on the sky (ra, dec) where there are several images, got x"
            f" and y for {len(exposures)}"
        )
    targets, seen = [], np.zeros(len(ident), int)
    for number, exposure in enumerate(exposures):
        frame = _whole(exposure, None).frame
        x, y = pixels.T if sky is None else sky_to_pixels(frame.wcs, sky, name=str(exposure.image))
        # False where NaN
        inside = (
            (x > -0.5)
            & (y > -0.5)
            & (x < frame.image.shape[1] - 0.5)
            & (y < frame.image.shape[0] - 0.5)
        )
        targets += [
            Target(ident[row], number, float(x[row]), float(y[row]), int(seen[row]))
            for row in np.flatnonzero(inside)
        ]
        seen += inside
    return targets, [
        (ident[row], "no image holds its position") for row in np.flatnonzero(seen == 0)
    ]


def as_objects(targets: Sequence[Target], *, joint: bool) -> list[tuple[Target, ...]]:
    """What is inferred at once, as tuples of Targets: each target alone, or (`joint`) all of one
    object, objects of the same exposures together.
    """
    if not joint:
        return [(target,) for target in targets]
    found: dict[str, list[Target]] = {}
    for target in targets:
        found.setdefault(target.ident, []).append(target)
    return sorted(map(tuple, found.values()), key=lambda some: [target.exposure for target in some])


class _Whole(NamedTuple):
    """An exposure as its files say, and its pixel scale (arcsec) in the middle: one for all stamps,
    so that they share what is computed for a PSF.
    """

    frame: Frame
    pixel_scale: float


@lru_cache(maxsize=2)
def _whole(exposure, bad_bits):
    noise = {
        kind: level_or_path(getattr(exposure, kind))
        for kind in NOISE
        if getattr(exposure, kind) is not None
    }
    frame = read_frame(exposure.image, mask=exposure.mask, bad_bits=bad_bits, **noise)
    pixel_scale = frame.pixel_scale
    if pixel_scale is None:
        raise InputError(
            f"match: images must have a celestial WCS, got none that works in {exposure.image}; add"
            " one, if only for the pixel scale"
        )
    return _Whole(frame, pixel_scale)


def cut_out(
    target: Target,
    exposure: Exposure,
    *,
    size: int,
    name: str,
    bad_bits: Sequence[int | str] | None = None,
) -> Observation:
    """The Observation of one target: its stamp of `size` pixels with its own PSF; what lies beyond
    the exposure is masked.
    """
    whole, centre = _whole(exposure, bad_bits), (target.x, target.y)
    stamp = check_frame(
        cut_frame(whole.frame, centre, size),
        psf=_psf(exposure, whole.pixel_scale, centre),
        pixel_scale=whole.pixel_scale,
        name=name,
    )
    low = np.ceil(np.array(centre) - size / 2)
    held = np.minimum(low + size, whole.frame.image.shape[::-1]) - np.maximum(low, 0)
    beyond = 1 - float(np.prod(held)) / size**2
    if not beyond > 0:
        return stamp
    return replace(
        stamp, notes=(*stamp.notes, f"{beyond:.0%} of the stamp lies beyond the exposure")
    )


def _psf(exposure, pixel_scale, centre):
    """The PSF at a position: of an image, a PsfEx model, or what a function `module:function` makes
    of it.
    """
    if not is_callable(exposure.psf):
        return _psf_in(exposure.psf, pixel_scale, centre if _varies(exposure.psf) else None)
    made = _function(exposure.psf)(
        image=exposure.image, x=centre[0], y=centre[1], pixel_scale=pixel_scale
    )
    return (
        made
        if hasattr(made, "pixel_response")
        else make_psf(np.asarray(made), pixel_scale=pixel_scale)
    )


@lru_cache(maxsize=16)
def _psf_in(path, pixel_scale, position):
    """What stamps share, they share as one object: what has been found out about it is not found
    out again.
    """
    return read_psf(path, pixel_scale=pixel_scale, position=position)


@lru_cache(maxsize=16)
def _varies(path):
    """Whether the PSF of a file depends on the position."""
    return read_psfex(split_path(path)[0]) is not None


def is_callable(name: Any) -> bool:
    """Whether a PSF is named as module:function."""
    return bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name)) and not Path(name).exists()


@lru_cache
def _function(name):
    module, function = name.split(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"cut_out: psf must name a function that can be imported, got {name!r}: {error}"
        ) from error


def function_hash(name: str) -> str:
    """The sha256 of the file that holds `module:function`."""
    module = name.split(":")[0]
    try:
        found: Any = importlib.util.find_spec(module)
        return file_hash(found.origin)
    # no such package; no such module; one without a file
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise InputError(
            f"run_survey: psf must name a function that can be imported, got {name!r}: {error}"
        ) from error


def file_hash(path: FilePath) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
