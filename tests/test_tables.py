"""Tables that users have, in every format, and the tricks that each format offers to whoever wants
to harm.
"""

import gzip
import struct
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from astrogen.data.tables import read_table
from astrogen.errors import InputFileError

FORMATS = {
    "a.fits": "fits",
    "a.ecsv": "ascii.ecsv",
    "a.csv": "ascii.csv",
    "a.vot": "votable",
    "a.parquet": "parquet",
    "a.tsv": "ascii.tab",
    "a.txt": "ascii.basic",
    "a.dat": "ascii.commented_header",
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_a_table_is_the_same_in_every_format(tmp_path, name, zipped):
    ident = ["007", "1e5", "-0", "9007199254740993"]
    table = Table(
        {"id": ident, "ra": [1.5, 2, 3, -4e-7], "n": [2**53 + 1, 2, 3, 4], "band": list("griz")}
    )
    table.write(tmp_path / name, format=FORMATS[name])
    if zipped:
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    found = read_table(tmp_path / name)
    assert list(found["id"]) == ident and list(found["band"]) == list("griz")
    assert [float(value) for value in found["ra"]] == table["ra"].tolist()
    assert [int(value) for value in found["n"]] == [2**53 + 1, 2, 3, 4]


def test_text_keeps_its_words(tmp_path):
    (tmp_path / "a.csv").write_text('ID,ra,name\n"0, 1",3.5,\n2,,"x\ny"\n3\n')
    table = read_table(tmp_path / "a.csv")
    assert list(table["ID"]) == ["0, 1", "2", "3"] and list(table["ra"]) == ["3.5", "", ""]
    assert list(table["name"]) == ["", "x\ny", ""]


def test_the_catalogues_of_sextractor(tmp_path):
    (tmp_path / "a.cat").write_text(
        "#   1 NUMBER     Running object number\n#   2 X_IMAGE    Position [pixel]\n"
        "    1   3.5\n    2   4.5\n"
    )
    assert read_table(tmp_path / "a.cat")["X_IMAGE"].tolist() == ["3.5", "4.5"]
    header = fits.BinTableHDU(Table({"Field Header Card": ["SIMPLE = T"]}), name="LDAC_IMHEAD")
    objects = fits.BinTableHDU(Table({"NUMBER": [1, 2]}), name="LDAC_OBJECTS")
    fits.HDUList([fits.PrimaryHDU(), header, objects]).writeto(tmp_path / "a.ldac")
    assert read_table(tmp_path / "a.ldac")["NUMBER"].tolist() == [1, 2]
    assert read_table(f"{tmp_path / 'a.ldac'}[1]").colnames == ["Field Header Card"]
    objects.name = "OTHER"
    fits.HDUList([fits.PrimaryHDU(), header, objects]).writeto(tmp_path / "b.ldac")
    with pytest.raises(InputFileError, match="must choose one, got 1 LDAC_IMHEAD; 2 OTHER"):
        read_table(tmp_path / "b.ldac")


def test_a_damaged_fits_catalogue_is_found_by_its_checksum(tmp_path, rng):
    Table({"id": ["a", "b"], "ra": [1.0, 2.0]}).write(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits") as hdus:
        hdus.writeto(tmp_path / "sum.fits", checksum=True)
    content = bytearray((tmp_path / "sum.fits").read_bytes())
    content[-2880 + 5] ^= 1  # the exponent of the first ra
    (tmp_path / "sum.fits").write_bytes(content)
    with pytest.raises(InputFileError, match="is damaged: (Datasum|Checksum) verification failed"):
        read_table(tmp_path / "sum.fits")


def _votable(field='<FIELD name="a" datatype="int"/>', table="", rows="", before="", inside=None):
    inside = f"<TABLEDATA>{rows}</TABLEDATA>" if inside is None else inside
    return (
        f'<?xml version="1.0"?>{before}<VOTABLE version="1.3"><RESOURCE><TABLE {table}>{field}'
        f"<DATA>{inside}</DATA></TABLE></RESOURCE></VOTABLE>"
    ).encode()


def _laughs():
    entities = '<!ENTITY l0 "ha">' + "".join(
        f'<!ENTITY l{i} "{"".join([f"&l{i - 1};"] * 10)}">' for i in range(1, 12)
    )
    return _votable(rows="<TR><TD>&l11;</TD></TR>", before=f"<!DOCTYPE VOTABLE [{entities}]>")


def _ecsv(header):
    lines = ["%ECSV 1.0", "---", "datatype:", "- {name: a, datatype: int64}", *header]
    return "\n".join([*(f"# {line}" for line in lines), "a", "1", ""]).encode()


def _parquet(folder):
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 100_000])
    )
    parquet.write_table(pa.table({"id": values}), folder / "long.parquet")
    return (folder / "long.parquet").read_bytes()


def _many_rows(folder):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": np.zeros(25_000_000, np.int8)}), folder / "many.parquet")
    return (folder / "many.parquet").read_bytes()


BOMBS = {
    "laughs": (lambda _: _laughs(), "VOTable with entities"),
    "elsewhere": (
        lambda _: _votable(inside='<BINARY><STREAM href="file:///etc/passwd"/></BINARY>'),
        "data in another file",
    ),
    "zipped_inside": (
        lambda _: _votable(inside='<BINARY><STREAM encoding="gzip">AAAA</STREAM></BINARY>'),
        "data in another file, or compressed",
    ),
    "votable_rows": (
        lambda _: _votable(table='nrows="999999999999"'),
        "table of 999999999999 rows",
    ),
    "votable_width": (
        lambda _: _votable(
            '<FIELD name="a" datatype="char" arraysize="999999999999"/>',
            rows="<TR><TD>1</TD></TR>",
        ),
        "table of 1 rows of 3999999999996 bytes",
    ),
    "votable_without_columns": (
        lambda _: _votable("", inside='<BINARY><STREAM encoding="base64">AAAA</STREAM></BINARY>'),
        "rows without columns",
    ),
    "votable_deep": (
        lambda _: b'<?xml version="1.0"?><VOTABLE>' + b"<RESOURCE>" * 1000,
        "elements more than 32 deep",
    ),
    "yaml_aliases": (
        lambda _: _ecsv(["meta:", "  a: &a [1, 2]"] + [f"  b{i}: *a" for i in range(11)]),
        "references or objects",
    ),
    "yaml_object": (
        lambda _: _ecsv(["meta: !!python/object/apply:os.system ['true']"]),
        r"references or objects.*os\.system",
    ),
    "yaml_array": (
        lambda _: _ecsv(["meta: !numpy.ndarray {buffer: '', dtype: object, shape: [9]}"]),
        "references or objects.*ndarray",
    ),
    "yaml_deep": (lambda _: _ecsv(["meta: " + "[" * 5000]), "cannot be read"),
    "parquet_rows": (_many_rows, "table of 25000000 rows"),
    "parquet_text": (_parquet, "table of [0-9]+ rows of 400000 bytes"),
    "long_cell": (
        lambda _: b"a,b\n" + b"1,2\n" * 100_000 + b"1," + b"x" * 100_000 + b"\n",
        "rows of 400000 bytes",
    ),
    "gzip": (lambda _: gzip.compress(bytes(2**30 + 1), 1), "more than [0-9]+ bytes when decomp"),
    "hdf5": (
        lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100),
        "is HDF5, which is not read",
    ),
    "npz": (lambda _: b"PK\x03\x04" + bytes(100), "is no table that is read"),
    "binary": (lambda _: struct.pack("<8d", *range(8)), "is no table|cannot be read"),
    "uneven": (lambda _: b"a,b\n1,2\n1,2,3\n", "row 2 has 3 cells for 2 columns"),
    "twice": (lambda _: b"a,a\n1,2\n", "a different name for each column"),
    "empty": (lambda _: b"", "is empty"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_would_blow_up_is_refused_at_once(tmp_path, bomb):
    make, message = BOMBS[bomb]
    (tmp_path / "bomb").write_bytes(make(tmp_path))
    began = time.process_time()
    with pytest.raises(InputFileError, match=f"bomb: .*(?:{message})"):
        read_table(tmp_path / "bomb")
    assert time.process_time() - began < 10
