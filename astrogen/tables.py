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
from xml.parsers import expat

import numpy as np
import yaml
from astropy.table import Column, MaskedColumn, Table

from astrogen.errors import InputFileError
from astrogen.fits_layout import MAX_COLUMNS, MAX_ROWS
from astrogen.images import MAX_PIXELS, parse_fits, split_path
from astrogen.reading import only_input_errors, read_bytes

MAX_BYTES = 2**30  # of a file, decompressed
MAX_MEMORY = 2**33  # bytes of a table
MAX_HEADER = 2**18  # letters of a YAML header
MAX_ALIASES = 10  # of YAML: so few cannot multiply much
MAX_DEPTH = 32  # of XML elements
BATCH = 65_536  # rows
PARQUET_MAGIC, ECSV_MAGIC = b"PAR1", "# %ECSV"
DELIMITERS = ",\t;|"
YAML_TAGS = re.compile(
    r"tag:yaml\.org,2002:(omap|str|int|float|bool|seq|map|null|binary|set)"
    r"|!astropy\.units\.Unit|!astropy\.table\.SerializedColumn|!"
)
VOTABLE_BYTES = {"unicodeChar": 4, "char": 4, "floatComplex": 8, "doubleComplex": 16}


def read_table(path, *, as_text=()):
    """A table, whichever of the formats it is in.

    Parameters
    ----------
    path : path, FILE or FILE[HDU]; plain or gzip
    as_text : names of columns in lower case, whose text stays as it stands in the file where the
        format is one of text: `007` is not 7

    Returns
    -------
    astropy Table; text as str, what is missing masked

    Raises
    ------
    InputFileError : damaged, too large, of another format, or several tables to choose from.
    """
    file, hdu = split_path(path)
    content = read_bytes(file, max_bytes=MAX_BYTES, advice="cut the table into several")
    with only_input_errors(file):
        if content.startswith(b"SIMPLE  ="):
            table = _read_fits(file, content, hdu)
        elif hdu is not None:
            raise InputFileError(file, f"is no FITS file, of which [{hdu}] could be chosen")
        elif content.startswith(PARQUET_MAGIC):
            table = _read_parquet(file, content)
        elif re.match(rb"(\xef\xbb\xbf)?\s*<", content) or content[:2] in (
            b"\xff\xfe",
            b"\xfe\xff",
        ):
            table = _read_votable(file, content)
        else:
            table = _read_text(file, content, as_text)
        table.convert_bytestring_to_unicode()
    return table


def _read_fits(path, content, hdu):
    tables = [
        (number, found)
        for number, found in enumerate(parse_fits(path, content, max_pixels=MAX_PIXELS))
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


def _read_parquet(path, content):
    """Columns of plain values; a few bytes may stand for billions of rows, or for one long text in
    each of many rows.
    """
    from pyarrow import parquet

    file = parquet.ParquetFile(io.BytesIO(content))
    layout, schema = file.metadata, file.schema_arrow
    _check_size(path, layout.num_rows, layout.num_columns)
    flat = [
        field.name
        for field in schema
        if not hasattr(field.type, "num_fields") or not field.type.num_fields
    ]
    size = sum(layout.row_group(group).total_byte_size for group in range(layout.num_row_groups))
    if not 0 <= size <= MAX_MEMORY:
        raise InputFileError(path, f"holds {size} bytes when decompressed, more than {MAX_MEMORY}")
    for text in (schema.metadata or {}).get(b"table_meta_yaml", b"").split(b"\x00"):
        check_yaml(path, text.decode())
    _check_texts(path, content, [name for name in flat if _is_text(schema.field(name).type)])
    return Table.read(io.BytesIO(content), format="parquet", include_names=flat)


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


def _read_votable(path, content):
    _check_xml(path, content)
    return Table.read(io.BytesIO(content), format="votable")


def _check_xml(path, content):
    """Refuse what a VOTable needs not have: entities, which multiply, data elsewhere or compressed
    inside; and rows that would not fit.
    """
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


def _read_text(path, content, as_text):
    text = content.decode("utf-8-sig")
    if "\0" in text:
        raise InputFileError(
            path, "is no table that is read: FITS, VOTable, Parquet, ECSV, or text with names"
        )
    if text.startswith(ECSV_MAGIC):
        return _read_ecsv(path, text, as_text)
    names, columns = _split_columns(path, *_find_names(path, text))
    return Table(
        {
            name: _column(values, number=name.lower() not in as_text)
            for name, values in zip(names, columns, strict=True)
        }
    )


def _read_ecsv(path, text, as_text):
    comments, lines = _parts(text)
    check_yaml(path, "\n".join(line[2:] for line in comments[1:]))
    names, columns = _split_columns(path, None, _delimiter(lines[0] if lines else ""), lines)
    table = Table.read(text.splitlines(), format="ascii.ecsv")
    for name, values in zip(names, columns, strict=True):
        if name.lower() in as_text and name in table.colnames and len(values) == len(table):
            table[name] = _column(values, number=False)
    return table


def check_yaml(path, text):
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
    width = len(next(_rows([lines[0]], delimiter)))
    if named and any(map(_is_number, next(_rows([lines[0]], delimiter)))):
        names = next(_rows([named], _delimiter(named)), [])
        if len(names) == width:
            return names, delimiter, lines
    return None, delimiter, lines


def _delimiter(line):
    return next((delimiter for delimiter in DELIMITERS if delimiter in line), " ")


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(lines, delimiter):
    lines = (line.strip(" ") if delimiter == " " else line for line in lines)
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    return ([cell.strip() for cell in row] for row in rows if row)


def _split_columns(path, names, delimiter, lines):
    """(names, one array of str for each column)."""
    rows = _rows(lines, delimiter)
    names = next(rows, []) if names is None else names
    if not all(names) or len(set(names)) < len(names) or not names:
        raise InputFileError(path, f"must have a different name for each column, got {names[:20]}")
    parts, num_rows, longest = [], 0, 0
    while batch := list(islice(rows, BATCH)):
        wrong = next((row for row in batch if len(row) != len(names)), None)
        if wrong is not None:
            number = num_rows + batch.index(wrong) + 1
            raise InputFileError(
                path, f"row {number} must have {len(names)} columns, got {len(wrong)}"
            )
        num_rows += len(batch)
        longest = max(longest, max(map(len, chain(*batch))))
        _check_size(path, num_rows, len(names), 4 * longest)
        parts.append([np.array(column, str) for column in zip(*batch, strict=True)])
    if not parts:
        return names, [np.array([], str) for _ in names]
    return names, [np.concatenate(column) for column in zip(*parts, strict=True)]


def _column(values, *, number):
    """Values as numbers where all of them are and `number` allows; empty ones masked."""
    empty = values == ""
    if number and not empty.all():
        filled = np.where(empty, "0", values)
        for kind in (np.int64, np.float64):
            try:
                values = filled.astype(kind)
                break
            except (ValueError, OverflowError):
                continue
    return MaskedColumn(values, mask=empty) if empty.any() else Column(values)
