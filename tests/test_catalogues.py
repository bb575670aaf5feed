"""Catalogues and tables of images as others write them: identifiers letter for letter, positions in
any unit, and the refusal of what is no position.
"""

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Column, MaskedColumn, QTable, Table
from pyarrow import parquet

from astrogen.errors import InputError
from astrogen.survey.inputs import list_exposures, read_catalogue

IDS = [
    "007",
    "1e5",
    "True",
    "nan",
    "A1 ",
    "9223372036854775807",
    "0x1F",
    "1_000",
    "+1",
    "--",
    "N/A",
]
FORMATS = {
    "csv": {},
    "ecsv": {},
    "fits": {},
    "parquet": {},
    "vot": {"format": "votable"},
}
RA, DEC = np.array([150.1, 2.5, 359.9]), np.array([2.2, -45.0, 89.0])


def read(folder, ending, **columns):
    path = folder / f"t.{ending}"
    Table(columns).write(path, **FORMATS[ending])
    return read_catalogue(path)


# --- identifiers


@pytest.mark.parametrize("ending", FORMATS)
def test_identifiers_are_text_letter_for_letter(ending, tmp_path):
    place = np.arange(float(len(IDS)))
    found, *_ = read(tmp_path, ending, id=IDS, x=place, y=place)
    # Spaces at the end are lost where these formats (or their writers) do not keep them.
    exact = ending == "parquet"
    assert found == (IDS if exact else [name.rstrip() for name in IDS])


@pytest.mark.parametrize("delimiter", [",", " "])
def test_ecsv_keeps_what_is_between_the_quotes(delimiter, tmp_path):
    rows = [("id", "x", "y"), ('"A1 "', "1", "2"), ("A1", "3", "4"), ('"a, ""b"', "5", "6")]
    types = "".join(
        f"# - {{name: {name}, datatype: {kind}}}\n"
        for name, kind in (("id", "string"), ("x", "float64"), ("y", "float64"))
    )
    (tmp_path / "t.ecsv").write_text(
        f"# %ECSV 1.0\n# ---\n# delimiter: '{delimiter}'\n# datatype:\n{types}"
        + "".join(delimiter.join(row) + "\n" for row in rows)
    )
    assert read_catalogue(tmp_path / "t.ecsv")[0] == ["A1 ", "A1", 'a, "b']


def test_csv_keeps_what_is_between_the_commas(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffID, x,y\n007 , 1,2\n"a,""b",1e0,\n00123456789012345678901,-.5,+3.\n')
    ident, _, pixels = read_catalogue(path)
    assert ident == ["007 ", 'a,"b', "00123456789012345678901"]
    np.testing.assert_array_equal(pixels, [[1, 2], [1, np.nan], [-0.5, 3]])


@pytest.mark.parametrize("ending", FORMATS)
def test_large_whole_numbers_keep_their_digits(ending, tmp_path):
    numbers = [2**62 + 1, 2**62 + 3, -(2**53) - 1]
    found, *_ = read(tmp_path, ending, objid=numbers, x=RA, y=RA)
    assert found == [str(number) for number in numbers]


@pytest.mark.parametrize("ending", FORMATS)
def test_masked_identifiers_are_refused_with_their_row(ending, tmp_path):
    ident = MaskedColumn([5, 6, 7], mask=[False, True, False])
    with pytest.raises(InputError, match="there in every row, got none in row 2 of column id in"):
        read(tmp_path, ending, id=ident, x=RA, y=RA)


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "parquet"])
def test_empty_identifiers_are_refused_with_their_row(ending, tmp_path):
    with pytest.raises(InputError, match="got none in row 3"):
        read(tmp_path, ending, id=["a", "b", ""], x=RA, y=RA)


@pytest.mark.parametrize(
    "values, kind", [([2**62 + 1, None, 3], pa.int64()), (["a", None, "c"], pa.string())]
)
def test_gaps_of_arrow_are_refused_and_do_not_make_floats(values, kind, tmp_path):
    columns = {"id": pa.array(values, kind), "x": pa.array([1.0, 2, 3]), "y": pa.array([1.0, 2, 3])}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="got none in row 2"):
        read_catalogue(tmp_path / "t.parquet")


def test_floating_point_identifiers_must_be_exact(tmp_path):
    assert read(tmp_path, "parquet", id=[1.0, 2.0, 2.0**52], x=RA, y=RA)[0][2] == str(2**52)
    for number, ending in ((1.5, "fits"), (2.0**60, "vot")):
        with pytest.raises(InputError, match="text or whole numbers, got the floating.* row 3"):
            read(tmp_path, ending, id=[1.0, 2.0, number], x=RA, y=RA)


def test_typed_text_tables_give_the_text_of_numbers(tmp_path):
    (tmp_path / "t.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: id, datatype: float64}\n"
        "# - {name: x, datatype: float64}\n# - {name: y, datatype: float64}\n"
        "id x y\n1e5 1 2\n007 3 4\n2.50 5 6\n"
    )
    assert read_catalogue(tmp_path / "t.ecsv")[0] == ["1e5", "007", "2.50"]


# --- positions on the sky


@pytest.mark.parametrize("ending", ["ecsv", "fits", "parquet", "vot"])
@pytest.mark.parametrize(
    "ra_unit, dec_unit",
    [
        ("deg", "deg"),
        ("rad", "rad"),
        ("hourangle", "deg"),
        ("arcsec", "arcmin"),
        ("mas", "rad"),
    ],
)
def test_positions_are_converted_from_the_unit_of_their_column(ending, ra_unit, dec_unit, tmp_path):
    as_text = u.UnrecognizedUnit if ra_unit == "hourangle" else u.Unit  # FITS has no such unit
    columns = {
        "ra": Column((RA * u.deg).to_value(ra_unit), unit=as_text(ra_unit)),
        "dec": Column((DEC * u.deg).to_value(dec_unit), unit=dec_unit),
    }
    _, sky, _ = read(tmp_path, ending, **columns)
    np.testing.assert_allclose(sky.ra.deg, RA, rtol=1e-12)
    np.testing.assert_allclose(sky.dec.deg, DEC, rtol=1e-12)


@pytest.mark.parametrize(
    "spelt, unit",
    [
        ("degrees", "deg"),
        ("DEG", "deg"),
        ("Degree", "deg"),
        ("radians", "rad"),
        ("RAD", "rad"),
        ("hours", "hourangle"),
        ("h", "hourangle"),
        ("hr", "hourangle"),
        ('"h:m:s"', "hourangle"),
        ("arcseconds", "arcsec"),
        ("ARCSEC", "arcsec"),
    ],
)
def test_units_are_known_in_the_spellings_of_headers(spelt, unit, tmp_path):
    ra = Column((RA * u.deg).to_value(unit), unit=u.UnrecognizedUnit(spelt))
    _, sky, _ = read(tmp_path, "fits", ra=ra, dec=DEC)
    np.testing.assert_allclose(sky.ra.deg, RA, rtol=1e-12)


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "parquet", "vot"])
@pytest.mark.parametrize(
    "ra, dec",
    [
        ("10:12:03.4", "-00:10:11"),
        ("10 12 03.4", "-0 10 11"),
        ("10h12m03.4s", "-0d10m11s"),
        ("153d00m51s", "-0d10m11s"),
    ],
)
def test_sexagesimal_text_is_read(ending, ra, dec, tmp_path):
    _, sky, _ = read(tmp_path, ending, id=["a", "b"], ra=[ra, ra], dec=[dec, "+02:10:11"])
    np.testing.assert_allclose(sky.ra.deg, 15 * (10 + 12 / 60 + 3.4 / 3600), rtol=1e-10)
    np.testing.assert_allclose(
        sky.dec.deg, [-(10 / 60 + 11 / 3600), 2 + 10 / 60 + 11 / 3600], rtol=1e-10
    )


def test_numbers_as_text_have_the_unit_of_their_column(tmp_path):
    ra = Column([f"{value:.12f}" for value in np.radians(RA)], unit="rad")
    _, sky, _ = read(tmp_path, "fits", ra=ra, dec=DEC)
    np.testing.assert_allclose(sky.ra.deg, RA, rtol=1e-9)


def test_text_of_a_column_in_degrees_is_degrees(tmp_path):
    ra = Column(["150:06:00", "2:30:00"], unit="deg")
    _, sky, _ = read(tmp_path, "ecsv", ra=ra, dec=["1:00:00", "2:00:00"])
    np.testing.assert_allclose(sky.ra.deg, [150.1, 2.5])


def test_quantities_and_sky_coordinates_are_read(tmp_path):
    QTable({"ra": RA * u.deg, "dec": (DEC * u.deg).to(u.rad)}).write(tmp_path / "q.ecsv")
    QTable({"place": SkyCoord(RA, DEC, unit="deg")}).write(tmp_path / "s.ecsv")
    for name in ("q.ecsv", "s.ecsv"):
        sky = read_catalogue(tmp_path / name)[1]
        np.testing.assert_allclose([sky.ra.deg, sky.dec.deg], [RA, DEC], rtol=1e-10)


def test_units_in_the_fields_of_arrow_are_seen(tmp_path):
    fields = [pa.field(name, pa.float64(), metadata={"unit": "rad"}) for name in ("ra", "dec")]
    values = [pa.array(np.radians(RA)), pa.array(np.radians(DEC))]
    parquet.write_table(
        pa.Table.from_arrays(values, schema=pa.schema(fields)), tmp_path / "t.parquet"
    )
    np.testing.assert_allclose(read_catalogue(tmp_path / "t.parquet")[1].ra.deg, RA)


def test_missing_positions_are_nan(tmp_path):
    ra = MaskedColumn(RA, mask=[False, True, False], unit="deg")
    for ending in ("ecsv", "fits", "parquet", "vot"):
        (tmp_path / ending).mkdir()
        sky = read(tmp_path / ending, ending, ra=ra, dec=DEC)[1]
        assert np.isnan(sky.ra.deg).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "columns, words",
    [
        (
            {"ra": Column(RA, unit="pix"), "dec": DEC},
            "column ra must be an angle, got the unit 'pix'",
        ),
        (
            {"ra": Column(RA, unit="Jy"), "dec": DEC},
            "column ra must be an angle, got the unit 'Jy'",
        ),
        (
            {"ra": RA, "dec": Column(DEC / 15, unit="h")},
            "dec must be an angle, not of hours, .*'h'",
        ),
        ({"ra": RA, "dec": [1.0, -90.5, 3.0]}, "dec must be between -90 .*, got -90.5 in row 2"),
        ({"ra": RA * 3600, "dec": DEC}, "ra must be between -360 .*, got 540360 in row 1"),
        ({"ra": ["150:06:00", "1:0:0"], "dec": ["1", "2"]}, "'150:06:00' in row 1 .*hours"),
        ({"ra": ["10:12:03", "12.5"], "dec": ["1", "2"]}, "'12.5' in row 2 .*decimal among"),
        ({"ra": ["10:12:03", "here"], "dec": ["1", "2"]}, "'here' in row 2"),
        (
            {"coord_ra": [1.0, 2.0], "coord_dec": [0.1, -0.2]},
            "must have a unit.*radians or degrees",
        ),
        ({"x": Column([1.0, 2], unit="arcsec"), "y": [1.0, 2]}, "x must be in pixels.*'arcsec'"),
        ({"x": Column([1.0, 2], unit="mm"), "y": [1.0, 2]}, "x must be in pixels.*'mm'"),
        ({"x": ["1", "one"], "y": ["1", "2"]}, "x must hold numbers, got 'one' in row 2"),
    ],
)
def test_what_is_no_position_is_refused_with_column_and_value(columns, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read(tmp_path, "ecsv", **columns)


def test_values_too_large_for_radians_are_degrees(tmp_path):
    _, sky, _ = read(tmp_path, "parquet", coord_ra=RA, coord_dec=DEC)
    np.testing.assert_allclose(sky.ra.deg, RA)


@pytest.mark.parametrize("unit", ["pix", "pixel", "PIXELS", None])
def test_pixels_are_read_in_every_spelling(unit, tmp_path):
    unit = unit and u.UnrecognizedUnit(unit)
    _, _, pixels = read(
        tmp_path, "fits", x_image=Column(RA, unit=unit), y_image=Column(RA, unit=unit)
    )
    np.testing.assert_allclose(pixels[:, 0], RA - 1)


# --- tables of images


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "parquet", "vot"])
def test_names_of_images_and_bands_are_text_and_noise_has_its_unit(ending, tmp_path):
    table = Table(
        {
            "image": ["1.0", "007"],
            "psf": ["2", "1e5"],
            "band": ["001", "1e5"],
            "sigma": Column([0.5, 0.25], unit=None if ending == "csv" else "nJy"),
        }
    )
    table.write(tmp_path / f"t.{ending}", **FORMATS[ending])
    exposures = list_exposures([tmp_path / f"t.{ending}"])
    assert [exposure.image for exposure in exposures] == [str(tmp_path / n) for n in ("1.0", "007")]
    assert [exposure.psf for exposure in exposures] == [str(tmp_path / n) for n in ("2", "1e5")]
    assert [exposure.band for exposure in exposures] == ["001", "1e5"]
    level = "0.5" if ending == "csv" else "0.5 nJy"
    assert exposures[0].sigma == level


def test_an_image_that_is_missing_in_a_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,psf\na.fits,p.fits\n,p.fits\n")
    with pytest.raises(InputError, match="image must be there in every row, got none in row 2"):
        list_exposures([tmp_path / "t.csv"])
