"""Tables that users have: catalogues, and lists of images. The only place that reads them.

What a file is, is seen from its first bytes: FITS, VOTable, Parquet, ECSV, or text with a line of
names (CSV and its kin; SExtractor's). Sizes that a file claims, and references to other files and
into the net, are looked for before a library follows them; no format that can hold code is read.
"""

import csv
import io
import math
import re
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np
import yaml
from astropy.table import Table

from astrogen.data.fits_layout import MAX_COLUMNS, MAX_ROWS
from astrogen.data.images import MAX_PIXELS, parse_fits, split_path
from astrogen.data.reading import only_input_errors, read_bytes
from astrogen.errors import InputFileError
from astrogen.types import FilePath

MAX_BYTES = 2**30  # of a file, decompressed
MAX_MEMORY = 2**33  # bytes of a table
MAX_HEADER = 2**18  # letters of a YAML header
MAX_ALIASES = 10  # of YAML: so few cannot multiply much
MAX_DEPTH = 32  # of XML elements
BATCH = 65_536  # rows
MAGIC = {
    "fits": rb"SIMPLE  =",
    "parquet": rb"PAR1",
    "ecsv": rb"(\xef\xbb\xbf)?# %ECSV",
    "votable": rb"(\xef\xbb\xbf)?\s*<|\xff\xfe|\xfe\xff",
}
HDF5_MAGIC = b"\x89HDF"
ECSV_DELIMITER = re.compile(r"#\s*delimiter:\s*['\"]?(.)")
DELIMITERS = ",\t;|"
YAML_TAGS = re.compile(
    r"tag:yaml\.org,2002:(omap|str|int|float|bool|seq|map|null|binary|set)"
    r"|!astropy\.units\.(Unit|Quantity)|!astropy\.table\.SerializedColumn"
    r"|!astropy\.coordinates\.(angles\.)?(Angle|Latitude|Longitude)|!"
)
VOTABLE_BYTES = {"unicodeChar": 4, "char": 4, "floatComplex": 8, "doubleComplex": 16}


class Source(NamedTuple):
    """A file that holds a table and has been looked through: kind is "fits", "parquet", "votable",
    "ecsv" or "text"; hdu as in FILE[HDU], or None."""

    path: Path
    hdu: int | str | None
    kind: str
    content: bytes


def open_table(path: FilePath) -> Source:
    """The content of a file with a table, once nothing in it can blow up.

    Parameters
    ----------
    path : path, FILE or FILE[HDU]; plain or gzip

    Returns
    -------
    Source

    Raises
    ------
    InputFileError : damaged, too large, or of another format.
    """
    file, hdu = split_path(path)
    content = read_bytes(file, max_bytes=MAX_BYTES, advice="cut the table into several")
    kind = next((kind for kind, magic in MAGIC.items() if re.match(magic, content)), "text")
    if hdu is not None and kind != "fits":
        raise InputFileError(file, f"is no FITS file, of which [{hdu}] could be chosen")
    if content.startswith(HDF5_MAGIC):  # which can name other files, and hang its library
        raise InputFileError(file, "is HDF5, which is not read; write it as FITS or Parquet")
    source = Source(file, hdu, kind, content)
    with only_input_errors(file):
        if kind in CHECKS:
            CHECKS[kind](source)
    return source


def read_table(path: FilePath) -> Table:
    """A table, whichever of the formats it is in; of a format of text without types all as text.

    Raises
    ------
    InputFileError : as `open_table`; several tables to choose from.
    """
    source = open_table(path)
    with only_input_errors(source.path):
        if source.kind == "text":
            names, cells = split_text(source)
            return Table(list(cells), names=names)
        return typed_table(source)


def typed_table(source: Source) -> Table:
    """The astropy Table of a Source whose format says the types of its columns."""
    if source.kind == "fits":
        table = _read_fits(source)
    elif source.kind == "parquet":
        table = Table.read(io.BytesIO(source.content), format="parquet")
    elif source.kind == "votable":
        table = Table.read(io.BytesIO(source.content), format="votable")
    else:
        return Table.read(source.content.decode("utf-8-sig").splitlines(), format="ascii.ecsv")
    table.convert_bytestring_to_unicode()
    return table


def _read_fits(source):
    path, hdu = source.path, source.hdu
    tables = [
        (number, found)
        for number, found in enumerate(parse_fits(path, source.content, max_pixels=MAX_PIXELS))
        if not found.is_image and hasattr(found, "columns")
    ]
    named = [found for number, found in tables if hdu in (number, found.name)]
    # The catalogues of SExtractor have a table with the image's header before that of the objects.
    named = named or [found for _, found in tables if hdu is None and found.name == "LDAC_OBJECTS"]
    named = named or [found for _, found in tables if hdu is None]
    if len(named) != 1:
        told = "; ".join(f"{number} {found.name or 'unnamed'}" for number, found in tables)
        raise InputFileError(
            path,
            f"must hold one table, or FILE[HDU] must choose one, got {told or 'images only'}",
        )
    return Table.read(named[0], format="fits")


# --- Parquet


def _check_parquet(source):
    """A few bytes may stand for billions of rows, or for one long text in
    each of many rows.
    """
    from pyarrow import parquet

    path, content = source.path, source.content
    file = parquet.ParquetFile(io.BytesIO(content))
    layout, schema = file.metadata, file.schema_arrow
    _check_size(path, layout.num_rows, layout.num_columns)
    size = sum(layout.row_group(group).total_byte_size for group in range(layout.num_row_groups))
    if not 0 <= size <= MAX_MEMORY:
        raise InputFileError(path, f"holds {size} bytes when decompressed, more than {MAX_MEMORY}")
    for text in (schema.metadata or {}).get(b"table_meta_yaml", b"").split(b"\x00"):
        check_yaml(path, text.decode())
    nested = [field.name for field in schema if field.type.num_fields]
    if nested:
        raise InputFileError(path, f"must have columns of plain values, got {nested[0]!r}")
    _check_texts(path, content, [field.name for field in schema if _is_text(field.type)])


def _is_text(kind):
    return any(word in str(kind) for word in ("string", "binary"))


def _check_texts(path, content, names):
    """The longest text of each column times its rows is what an array of NumPy takes."""
    from pyarrow import compute, parquet

    # As dictionaries, in which a text that stands in many rows stands once.
    file = parquet.ParquetFile(io.BytesIO(content), read_dictionary=names)
    for name in names:
        longest = num = 0
        for batch in file.iter_batches(BATCH, columns=[name]):
            values = getattr(batch.column(0), "dictionary", batch.column(0))
            longest = max(longest, compute.max(compute.binary_length(values)).as_py() or 0)
            num += len(batch)
            _check_size(path, num, 1, 4 * longest)


def _check_size(path, num_rows, num_columns, row_bytes=1):
    if not (
        0 <= num_rows <= MAX_ROWS
        and 0 <= num_columns <= MAX_COLUMNS
        and num_rows * row_bytes <= MAX_MEMORY
    ):
        raise InputFileError(
            path,
            f"is a table of {num_rows} rows of {row_bytes} bytes in {num_columns} columns; at most"
            f" {MAX_ROWS} rows, {MAX_COLUMNS} columns and {MAX_MEMORY} bytes are read",
        )


# --- VOTable


def _check_xml(source):
    """Refuse what a VOTable needs not have: entities, which multiply, data elsewhere or compressed
    inside; and rows that would not fit.
    """
    path, content = source.path, source.content
    depth, tables, fields = 0, [], []

    def refuse(what):
        raise InputFileError(path, f"is a VOTable with {what}, which is not read")

    def begin(name, given):
        nonlocal depth
        depth, name = depth + 1, name.rpartition(":")[2]
        if depth > MAX_DEPTH:
            refuse(f"elements more than {MAX_DEPTH} deep")
        if name == "STREAM" and ("href" in given or given.get("encoding", "base64") != "base64"):
            refuse("data in another file, or compressed")
        if name in ("FITS", "PARQUET"):
            refuse(f"{name} inside")
        if name == "TABLE":
            fields.clear()
            tables.append([0, int(given.get("nrows", 0)), 0])
        if name == "FIELD":
            fields.append(_votable_bytes(given))
            if tables:
                tables[-1][2] = sum(fields)
        if name == "TR" and tables:
            tables[-1][0] += 1
        if name in ("BINARY", "BINARY2") and not sum(fields):
            refuse("rows without columns")

    def end(name):
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.EntityDeclHandler = lambda *told: refuse("entities")
    parser.Parse(content, True)
    for seen, told, width in tables:
        _check_size(path, max(seen, told), len(fields), width)
        if told > max(1, len(content)):
            refuse(f"{told} rows in {len(content)} bytes")


def _votable_bytes(given):
    """Bytes that a value of a FIELD takes in memory: fixed sizes are allocated for each row."""
    sides = [int(side) for side in re.findall(r"(\d+)(?!\d|\*)", given.get("arraysize", "1"))]
    if len(given.get("arraysize", "")) > 64:
        raise ValueError("arraysize")
    return math.prod(sides) * VOTABLE_BYTES.get(given.get("datatype"), 8)


# --- text


def split_text(source: Source) -> tuple[list[str], list[np.ndarray]]:
    """(names, cells): the columns of a text table, one array of str each, as they are written."""
    path, text = source.path, source.content.decode("utf-8-sig")
    if "\0" in text:
        raise InputFileError(
            path, "is no table that is read: FITS, VOTable, Parquet, ECSV, or text with names"
        )
    if source.kind == "ecsv":
        comments, lines = _parts(text)
        told = [match[1] for line in comments if (match := ECSV_DELIMITER.match(line))]
        return _split_columns(path, None, told[0] if told else " ", lines)
    return _split_columns(path, *_find_names(path, text))


def _check_ecsv(source):
    comments, _ = _parts(source.content.decode("utf-8-sig"))
    check_yaml(source.path, "\n".join(line[2:] for line in comments[1:]))
    split_text(source)


def check_yaml(path: FilePath, text: str) -> None:
    """Refuse a YAML header that makes more of itself than plain values: many references, objects.

    Raises
    ------
    InputFileError : too long, with more than MAX_ALIASES references, or with another tag than those
        of values, units and columns; no YAML.
    """
    if len(text) > MAX_HEADER:
        raise InputFileError(path, f"its header has more than {MAX_HEADER} letters")
    num_aliases = 0
    with only_input_errors(path):
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            num_aliases += isinstance(event, yaml.AliasEvent)
            tag = getattr(event, "tag", None)
            if num_aliases > MAX_ALIASES or (tag and not YAML_TAGS.fullmatch(tag)):
                raise InputFileError(
                    path, f"its header has references or objects, which are not read ({tag})"
                )


def _parts(text):
    """(comment lines at the beginning, the lines after them)."""
    lines = re.split("(?<=\n)", text.replace("\r\n", "\n").replace("\r", "\n"))
    first = next(
        (number for number, line in enumerate(lines) if line.strip() and line[0] != "#"),
        len(lines),
    )
    return [line.strip("\n") for line in lines[:first] if line.strip()], lines[first:]


def _find_names(path, text):
    """(names or None where they are the first row, delimiter, lines) of a table of text."""
    comments, lines = _parts(text)
    if not lines:
        raise InputFileError(path, "is no table that is read: text without a line of names")
    numbered = [re.match(r"#\s*(\d+)\s+(\S+)", line) for line in comments]
    if any(numbered):  # SExtractor; vectors leave numbers out
        found = {int(match[1]): match[2] for match in numbered if match}
        if list(found) != list(range(1, len(found) + 1)):
            raise InputFileError(path, "its columns must be numbered one by one from 1")
        return list(found.values()), " ", lines
    named = comments[-1][1:] if comments else ""
    delimiter = _delimiter(lines[0])
    first = next(_rows([lines[0]], delimiter))
    if named and any(is_number(text) or text.lower() == "nan" for text in first):
        names = next(_rows([named], _delimiter(named)), [])
        if len(names) == len(first):
            return names, delimiter, lines
    return None, delimiter, lines


def _delimiter(line):
    return next((delimiter for delimiter in DELIMITERS if delimiter in line), " ")


def is_number(text: str) -> bool:
    """Whether a text is a finite number as people write it."""
    return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text))


def _rows(lines, delimiter):
    lines = (line.strip(" ") if delimiter == " " else line for line in lines)
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return (row for row in rows if row)


def _split_columns(path, names, delimiter, lines):
    """(names, one array of str for each column)."""
    rows = _rows(lines, delimiter)
    names = [name.strip() for name in (next(rows, []) if names is None else names)]
    if not all(names) or len(set(names)) < len(names) or not names:
        raise InputFileError(path, f"must have a different name for each column, got {names[:20]}")
    parts, num_rows, longest = [], 0, 0
    while batch := list(islice(rows, BATCH)):
        for number, row in enumerate(batch, num_rows + 1):
            if len(row) > len(names):
                raise InputFileError(
                    path, f"row {number} has {len(row)} cells for {len(names)} columns"
                )
            row += [""] * (len(names) - len(row))
        num_rows += len(batch)
        longest = max(longest, max(map(len, chain(*batch))))
        _check_size(path, num_rows, len(names), 4 * longest)
        parts.append([np.array(column, str) for column in zip(*batch, strict=True)])
    if not parts:
        return names, [np.array([], str) for _ in names]
    return names, [np.concatenate(column) for column in zip(*parts, strict=True)]


CHECKS = {"parquet": _check_parquet, "votable": _check_xml, "ecsv": _check_ecsv}
