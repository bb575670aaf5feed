"""What a survey run reads: a catalogue of objects, exposures with their companions, and the cutout
of one object.
"""

import hashlib
import importlib.util
import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from astrogen.errors import InputError
from astrogen.files import number_or_path
from astrogen.images import read_psfex, split_path
from astrogen.observation import Frame, check_frame, cut_frame, make_psf, read_frame, read_psf

NAMES = {  # column names that catalogues use, in the order in which they are looked for
    "id": ("id", "object_id", "objid", "objectid", "source_id", "number", "name", "ident"),
    "ra": ("ra", "ra_deg", "alpha_j2000", "alphawin_j2000", "raj2000", "coord_ra"),
    "dec": ("dec", "dec_deg", "delta_j2000", "deltawin_j2000", "dej2000", "dedeg", "coord_dec"),
    "x": ("x", "x_image", "xwin_image", "xcentroid"),
    "y": ("y", "y_image", "ywin_image", "ycentroid"),
}
ONE_BASED = ("x_image", "y_image", "xwin_image", "ywin_image")  # SExtractor counts from 1
COMPANIONS = ("psf", "variance", "sigma", "weight", "mask")  # paths, beside the image's band


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


def read_catalogue(path):
    """The objects of a table that Astropy reads: identifiers, and positions.

    Parameters
    ----------
    path : path of FITS, ECSV, CSV, Parquet, VOTable, ...

    Returns
    -------
    (ident, sky, pixels) : list of str; SkyCoord or None; array [num, 2] from 0 or None, one of
    which is there

    Raises
    ------
    ValueError : the file is no table, has no positions, or an identifier occurs twice.
    """
    table = _read_table(path, "read_catalogue: catalogue must be a table that Astropy reads")
    found = {role: _column(table, names) for role, names in NAMES.items()}
    ident = [
        str(value) for value in (table[found["id"]] if found["id"] else range(1, len(table) + 1))
    ]
    if not ident:
        raise InputError(
            f"read_catalogue: catalogue must hold objects, got an empty table in {path}"
        )
    if len(set(ident)) < len(ident):
        twice = next(value for value in ident if ident.count(value) > 1)
        raise InputError(
            f"read_catalogue: identifiers must be different, got {twice!r} twice in {path}; results"
            " could not be told apart"
        )
    if found["ra"] and found["dec"]:
        ra, dec = (
            np.ma.filled(
                np.ma.asarray(
                    getattr(table[found[role]], "to_value", lambda unit: table[found[role]])("deg"),
                    float,
                ),
                np.nan,
            )
            for role in ("ra", "dec")
        )
        return ident, SkyCoord(ra, dec, unit="deg"), None
    if found["x"] and found["y"]:
        columns = (
            np.ma.filled(np.ma.asarray(table[found[role]], float), np.nan)
            - (found[role].lower() in ONE_BASED)
            for role in ("x", "y")
        )
        return ident, None, np.stack(list(columns), 1)
    raise InputError(
        "read_catalogue: catalogue must have ra and dec, or x and y, got the columns"
        f" {', '.join(table.colnames)} in {path}; rename two"
    )


def _read_table(path, wanted):
    try:
        return Table.read(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise InputError(f"{wanted}, got {path}: {error}; see `Table.read`") from error


def _column(table, names):
    lowered = {name.lower(): name for name in table.colnames}
    return next((lowered[name] for name in names if name in lowered), None)


def list_exposures(images, **companions):
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
            kind: name if is_callable(name) or _is_number(name) else os.path.abspath(name)
            for kind, name in named.items()
        }
    )


def _is_number(name):
    return not Path(name).exists() and bool(re.fullmatch(r"[-+.\deE]+", name))


def _is_image(path):
    """By its name; a FITS file may also hold a table of images, by what it holds."""
    if not re.search(r"\.(fits?|fts|npy)(\.(gz|fz))?(\[.*\])?$", path, re.IGNORECASE):
        return False
    try:
        return "image" not in Table.read(path).colnames
    except Exception:  # no table: an image, or a file that will be refused as one
        return True


def _exposures_of_table(path, companions):
    table = _read_table(
        path, "list_exposures: images must be FITS or .npy files, or a table of them"
    )
    if "image" not in table.colnames or not len(table):
        raise InputError(
            "list_exposures: a table of images must have the column image, and rows, got"
            f" {', '.join(table.colnames)} with {len(table)} rows in {path}"
        )
    exposures = []
    for row in table:
        fields = {kind: values[0] for kind, values in companions.items() if values}
        given = {
            kind: str(row[kind])
            for kind in Exposure._fields
            if kind in table.colnames and str(row[kind]).strip() not in ("", "--")
        }
        fields |= {
            kind: name if kind == "band" else _beside(path, name) for kind, name in given.items()
        }
        exposures.append(_absolute(Exposure(**{"psf": "", **fields})))
    if not all(exposure.psf for exposure in exposures):
        raise InputError(
            "list_exposures: psf must be given for every image, got none for"
            f" {next(e.image for e in exposures if not e.psf)}; add a column psf to {path}, or"
            " give one"
        )
    return exposures


def _beside(table, name):
    """A number stays one; a path that is not there is looked for beside the table."""
    return (
        name if Path(name).exists() or _is_number(name) or ":" in name else str(table.parent / name)
    )


def match(catalogue, exposures):
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
        x, y = frame.wcs.world_to_pixel(sky) if sky is not None else pixels.T
        inside = (
            (x > -0.5)
            & (y > -0.5)
            & (x < frame.image.shape[1] - 0.5)
            & (y < frame.image.shape[0] - 0.5)
        )  # False where NaN
        targets += [
            Target(ident[row], number, float(x[row]), float(y[row]), int(seen[row]))
            for row in np.flatnonzero(inside)
        ]
        seen += inside
    return targets, [
        (ident[row], "no image holds its position") for row in np.flatnonzero(seen == 0)
    ]


def as_objects(targets, *, joint):
    """What is inferred at once, as tuples of Targets: each target alone, or (`joint`) all of one
    object, objects of the same exposures together.
    """
    if not joint:
        return [(target,) for target in targets]
    found = {}
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
        kind: number_or_path(getattr(exposure, kind))
        for kind in ("variance", "sigma", "weight")
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


def cut_out(target, exposure, *, size, name, bad_bits=None):
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


def is_callable(name):
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


def function_hash(name):
    """The sha256 of the file that holds `module:function`."""
    module = name.split(":")[0]
    try:
        return file_hash(importlib.util.find_spec(module).origin)
    except (
        ImportError,
        AttributeError,
        TypeError,
        OSError,
    ) as error:  # no such package; no such module; one without a file
        raise InputError(
            f"run_survey: psf must name a function that can be imported, got {name!r}: {error}"
        ) from error


def file_hash(path):
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
