"""Columns of tables that others made, read without guessing: identifiers and names are the text
that the file holds, letter for letter, and numbers are in the unit that their column names.
"""

import io
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from astropy.coordinates import Angle, SkyCoord
from astropy.table import Column, Table
from astropy.table.meta import get_header_from_yaml
from astropy.units import deg, hourangle, pix, rad

from astrogen.data.reading import only_input_errors
from astrogen.data.tables import is_number, open_table, split_text, typed_table
from astrogen.data.units import read_unit
from astrogen.errors import InputError
from astrogen.types import FilePath

EXACT_INTEGER = 2**53  # beyond, a floating-point number has lost digits
MISSING = ("", "--", "nan", "null", "none", "n/a")  # as text in a column of numbers
UNIT_WORDS = {  # what headers say, in lower case, and astropy does not know
    r"deg(s|rees?)?\.?|decimal degrees?|dd:mm:ss\S*|d:m:s": "deg",
    r"rads?|radians?": "rad",
    r"h|hrs?|hours?|hour[ _]?angles?|hms|h:m:s|hh:mm:ss\S*": "hourangle",
    r"arcs(ecs?)?|asec|arcseconds?": "arcsec",
    r"arcmins?|amin|arcminutes?": "arcmin",
    r"pix(els?)?|px": "pix",
}
# The LSST pipelines write radians under these names, its released tables degrees.
RADIANS_OR_DEGREES = ("coord_ra", "coord_dec")


class Columns(NamedTuple):
    """What was asked for of a table, under names in lower case.

    names : list of str, all columns as the file calls them; num_rows : int
    text : dict of name -> list of str, None where missing
    numbers : dict of name -> astropy Column (of numbers or text), or SkyCoord
    """

    names: list
    num_rows: int
    text: dict
    numbers: dict


def read_columns(path: FilePath, *, text: Collection[str], numbers: Collection[str]) -> Columns:
    """Columns of a table in one of the formats of `astrogen.data.tables`.

    Parameters
    ----------
    path : path
    text, numbers : collections of str, names of columns in lower case, where they are there

    Returns
    -------
    Columns

    Raises
    ------
    InputFileError : the file is no table. InputError : a column of text holds floating-point
        numbers, whose digits are not those of the file.
    """
    source = open_table(path)
    with only_input_errors(source.path):
        if source.kind == "parquet":
            return _read_parquet(source, text, numbers)
        names, cells = split_text(source) if source.kind in ("text", "ecsv") else ((), ())
        if source.kind == "text":
            table = Table(list(map(list, cells)), names=names)
        else:
            table = typed_table(source)
        columns = {name.lower(): column for name, column in reversed(table.columns.items())}
        written = dict(zip((name.lower() for name in names), cells, strict=True))
        texts = {
            name: _texts(path, name, columns[name], exact=name not in numbers)
            if name not in written
            else _as_written(columns[name], written[name].tolist())
            for name in text
            if name in columns
        }
    found = {name: columns[name] for name in numbers if name in columns}
    if skies := [column for column in columns.values() if isinstance(column, SkyCoord)]:
        found["sky"] = skies[0]
    return Columns(table.colnames, len(table), texts, found)


def _as_written(column, cells):
    """The cells of a column of text; what a typed table calls missing is."""
    mask = np.broadcast_to(getattr(column, "mask", False), len(cells))
    return [None if lost else cell for cell, lost in zip(cells, mask, strict=True)]


def _texts(path, name, column, exact):
    """A typed column as text, None where masked; `exact` refuses numbers that may have lost
    digits.
    """
    return [_text(path, name, row, value, exact) for row, value in enumerate(column.tolist(), 1)]


def _text(path, name, row, value, exact=True):
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and exact and value == value:  # NaN is a missing value
        if not value.is_integer() or abs(value) > EXACT_INTEGER:
            raise InputError(
                f"read_columns: column {name} must hold text or whole numbers, got the"
                f" floating-point number {value!r} in row {row} of {path}; write it as text"
            )
        return str(int(value))
    return None if value is None or value != value else str(value)


def _read_parquet(source, text, numbers):
    """Through Arrow: whole numbers with gaps stay whole, and of wide tables only what is asked for
    is read.
    """
    from pyarrow.parquet import ParquetFile

    path = source.path
    with ParquetFile(io.BytesIO(source.content)) as file:
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
        names = {name.lower(): name for name in reversed(schema.names)}
        chosen = {name: names[name] for name in (*text, *numbers) if name in names}
        masks = {f"{name}.mask" for name in chosen.values()} & set(schema.names)
        table = file.read(columns=[*chosen.values(), *masks])
    units = _parquet_units(schema)
    values = {name: table.column(column).to_pylist() for name, column in chosen.items()}
    for name, column in chosen.items():
        if (mask := f"{column}.mask") in masks:  # astropy keeps it beside the numbers
            lost = table.column(mask).to_pylist()
            values[name] = [
                None if gone else value for value, gone in zip(values[name], lost, strict=True)
            ]
    return Columns(
        schema.names,
        num_rows,
        {
            name: [
                _text(path, name, row, value, exact=name not in numbers)
                for row, value in enumerate(values[name], 1)
            ]
            for name in text
            if name in chosen
        },
        {name: _column(values[name], units.get(names[name])) for name in numbers if name in chosen},
    )


def _column(values, unit):
    if any(isinstance(value, str) for value in values):
        return Column(["" if value is None else str(value) for value in values], unit=unit)
    return Column([np.nan if value is None else float(value) for value in values], unit=unit)


def _parquet_units(schema):
    """Units by column: in the header that astropy writes, or in the metadata of a field."""
    yaml = (schema.metadata or {}).get(b"table_meta_yaml", b"").decode()
    told = get_header_from_yaml(yaml.split("\n"))["datatype"] if yaml else []
    units = {column["name"]: str(column["unit"]) for column in told if "unit" in column}
    for field in schema:
        metadata = field.metadata or {}
        unit = metadata.get(b"unit", metadata.get(b"units"))
        if unit is not None:
            units.setdefault(field.name, unit.decode())
    return units


# --- numbers with units


def read_sky(path: FilePath, ra: Any, dec: Any, names: tuple[str, str]) -> SkyCoord:
    """Positions on the sky.

    Parameters
    ----------
    path : path, for the error
    ra, dec : astropy Columns: of numbers in the unit that they name, degrees where they name none;
        or of text, decimal or sexagesimal (right ascension in hours, unless the unit or letters
        say otherwise)
    names : (name of ra, name of dec) in lower case

    Returns
    -------
    SkyCoord [num], NaN where missing

    Raises
    ------
    ValueError : a unit that is no angle, text that is no position, a value beyond the sphere, or
        columns without a unit that may be radians or degrees.
    """
    default = deg
    if any(
        name in RADIANS_OR_DEGREES and not _has_unit(c)
        for name, c in zip(names, (ra, dec), strict=True)
    ):
        default = None
    values = [
        _angles(path, name, column, default, sexagesimal)
        for name, column, sexagesimal in zip(names, (ra, dec), (hourangle, deg), strict=True)
    ]
    if default is None:
        _refuse_radians(path, names, values)
    for name, degrees, low, high in zip(names, values, (-360, -90), (720, 90), strict=True):
        beyond = np.flatnonzero((degrees < low) | (degrees > high) | np.isinf(degrees))
        if len(beyond):
            raise InputError(
                f"read_catalogue: column {name} must be between {low} and {high} degrees, got"
                f" {degrees[beyond[0]]:.6g} in row {beyond[0] + 1} of {path}; give its unit, and"
                " leave out rows without a position"
            )
    return SkyCoord(*values, unit="deg")


def _refuse_radians(path, names, values):
    """Numbers without a unit that are small enough for radians could be either."""
    ra, dec = (np.nanmax(np.abs(v), initial=0.0) if not np.isnan(v).all() else 0.0 for v in values)
    if ra <= 2 * np.pi and dec <= np.pi / 2:
        raise InputError(
            f"read_catalogue: columns {' and '.join(names)} must have a unit, got none and values"
            f" that can be radians or degrees in {path}; write the unit, or call them ra and dec if"
            " they are degrees"
        )


def _has_unit(column):
    return str(getattr(column, "unit", None) or "").strip() != ""


def _unit_of(column, path, name, wanted, what):
    """The unit of a column, in any spelling, as one of those that are wanted; None without one."""
    if not _has_unit(column):
        return None
    text = str(column.unit).strip().strip("\"'").lower()
    word = next((unit for spelt, unit in UNIT_WORDS.items() if re.fullmatch(spelt, text)), None)
    unit = read_unit(word or column.unit)
    if (word == "hourangle" and what != "an angle") or not unit.is_equivalent(wanted):
        raise InputError(
            f"read_catalogue: column {name} must be {what}, got the unit {str(column.unit)!r} in"
            f" {path}; convert it, or name its unit as astropy does"
        )
    return unit


def _angles(path, name, column, default, sexagesimal):
    """Degrees [num]."""
    what = "an angle" if sexagesimal == hourangle else "an angle, not of hours"
    unit = _unit_of(column, path, name, rad, what)
    values, written = _numbers(column)
    if written is None:
        return values * (unit or default or deg).to(deg)
    wrong = np.flatnonzero([is_number(text) or text == "" for text in written])
    if len(wrong) > written.count(""):
        row = next(row for row in wrong if written[row])
        raise _no_position(path, name, row, written[row], "decimal among sexagesimal ones")
    there = [row for row, text in enumerate(written) if text]
    degrees = np.full(len(written), np.nan)
    try:
        degrees[there] = Angle([written[row] for row in there], unit=unit or sexagesimal).deg
    except Exception:  # of the parser; which row it was, it does not say
        for row in there:
            try:
                Angle(written[row], unit=unit or sexagesimal)
            except Exception as error:
                raise _no_position(path, name, row, written[row], error) from error
        raise
    return degrees


def _no_position(path, name, row, text, reason):
    return InputError(
        f"read_catalogue: column {name} must hold angles, got {text!r} in row {row + 1} of {path}"
        f" ({reason}); write all as numbers, or all as 10:12:03.4, and name the unit"
    )


def _numbers(column):
    """(float [num], None), NaN where missing; or (None, list of str) of text that is no number."""
    mask = np.broadcast_to(getattr(column, "mask", False), len(column))
    if np.asarray(column).dtype.kind not in "USO":
        values = np.array(getattr(column, "unmasked", column), float)
        values[mask] = np.nan
        return values, None
    written = [
        "" if lost or str(text).strip().lower() in MISSING else str(text).strip()
        for text, lost in zip(_texts("", "", column, exact=False), mask, strict=True)
    ]
    if all(is_number(text) for text in written if text):
        return np.array([float(text or "nan") for text in written]), None
    return None, written


def read_pixels(path: FilePath, name: str, column: Any) -> np.ndarray:
    """Pixel coordinates [num], NaN where missing.

    Raises
    ------
    ValueError : the column's unit is not pixels, or it holds text.
    """
    _unit_of(column, path, name, pix, "in pixels")
    values, written = _numbers(column)
    if written is not None:
        row = next(row for row, text in enumerate(written) if text and not is_number(text))
        raise InputError(
            f"read_catalogue: column {name} must hold numbers, got {written[row]!r} in row"
            f" {row + 1} of {path}; leave the cell empty where there is none"
        )
    return values
