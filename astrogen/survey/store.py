"""What a survey run writes: chunk files, the catalogue (Parquet), the list of failures, the
manifest and the ledger; and how they are read back.

DIR/manifest.json        configuration, hashes of catalogue, images, weights and code
DIR/chunks/000012.npz    images, imagined solutions, latent draws and catalogue rows of one chunk
DIR/chunks/000012.json   sha256 of that file, which objects it holds, and which failed
DIR/catalogue.parquet    one row for each object and exposure; of a joint run, for each object
DIR/failures.ecsv        what gave no result, and why
DIR/ledger.json          written last: sha256 of all of them

Nothing is parsed before its sha256 is right; the JSON files carry their own.
"""

import contextlib
import io
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from astropy.table import Table, meta, vstack
from pyarrow import parquet

from astrogen.data.arrays import npz_bytes
from astrogen.data.files import write_table, write_whole
from astrogen.data.observation import make_observation, make_psf
from astrogen.data.reading import parse_npz
from astrogen.data.units import Brightness
from astrogen.errors import InputFileError, SurveyError, lacks_means
from astrogen.galaxies.quantities import QUANTITIES, Quantities, measured_words
from astrogen.galaxies.result import ExposureFit, Result, Source
from astrogen.inference.verdict import Fit
from astrogen.survey.ledger import read_hashed, read_signed, sha256_of, signed, write_signed
from astrogen.types import FilePath

FORMAT = "astrogen survey 4"
MANIFEST, CATALOGUE, FAILURES = "manifest.json", "catalogue.parquet", "failures.ecsv"
LEDGER = "ledger.json"
LARGEST = 2**28  # bytes of one object in memory: more is an archive that was made to burst
NOT_OURS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
SCALES = ("prior_scale", "target_fwhm")
DIAGNOSTICS = ("k_hat", "ess", "r_hat", "num_divergent")
ABOUT_SOURCE = ("name", "bands", "reference", "place", "x", "y", "colour", "residual_amplitude")
# between names of images or bands in a row; the word of what an object's fit lacks
SEPARATOR, INCOMPLETE = ", ", "incomplete"
COVARIANCE = [
    (one, other) for index, one in enumerate(QUANTITIES) for other in QUANTITIES[index + 1 :]
]
UNITS = {
    "half_light_radius": "arcsec",
    "half_light_radius_err": "arcsec",
    "target_fwhm": "arcsec",
    "prior_scale": "arcsec",
}


def chunk_path(out: FilePath, number: int) -> Path:
    """The file of one chunk."""
    return Path(out) / "chunks" / f"{number:06d}.npz"


class DamageWarning(UserWarning):
    """A file of a run is not as it was written, and is made again."""


# --- chunks


class Seen(NamedTuple):
    """An object and what it was seen in: names of images and their bands, and sentences
    `incomplete: ...` on what is missing.
    """

    ident: str
    images: tuple
    bands: tuple
    missing: tuple = ()


def pack(result: Any, seen: Seen, *, bands: Sequence[str], num_kept: int) -> Any:
    """What is kept of one object: a row of the catalogue, arrays, and the rest as JSON.

    Parameters
    ----------
    result : Result of one galaxy; its row holds for the reference band and the first exposure's
        axes
    seen : Seen, the object and its exposures
    bands : list of str, all bands of a joint run, in which the row has the fluxes too; else none
    num_kept : int, imagined solutions that are kept
    """
    (source,) = result.sources
    status = (*result.status, *seen.missing)
    return (
        _row(result, source, seen, bands),
        _arrays(result, source, num_kept),
        json.dumps(_about(result, source, status), sort_keys=True),
    )


def _row(result, source, seen, bands):
    """One object in the catalogue."""
    quantities, first = source.quantities, result.exposures[0]
    row = {
        "id": seen.ident,
        "image": SEPARATOR.join(seen.images),
        "band": SEPARATOR.join(dict.fromkeys(seen.bands)),
        "unit": str(result.unit),
    }
    for quantity in QUANTITIES:
        row[quantity], row[f"{quantity}_err"] = getattr(quantities, quantity)
    row |= {
        f"cov_{one}_{other}": quantities.covariance[QUANTITIES.index(one)][QUANTITIES.index(other)]
        for one, other in COVARIANCE
    }
    row["background"], row["background_err"] = first.background
    row |= _fluxes(source, bands) if bands else {}
    worst = min((exposure.fit for exposure in result.exposures), key=lambda fit: fit.p_value)
    row |= {"chi2": worst.chi2, "p_value": worst.p_value}
    row |= {name: getattr(source, name) for name in SCALES}
    row |= {name: result.diagnostics.get(name, np.nan) for name in DIAGNOSTICS}
    words = (*result.status, *measured_words(quantities), *seen.missing)
    return row | {
        "residual_amplitude": source.residual_amplitude,
        "converged": result.converged,
        "method": result.method,
        "status": " | ".join(words),
    }


def _arrays(result, source, num_kept):
    """The images and draws that are kept, {name: array}."""
    draws, observations = source.draws, result.observations
    chosen = (
        draws[np.random.default_rng(0).choice(len(draws), min(num_kept, len(draws)), replace=False)]
        if len(draws)
        else draws
    )
    return {
        "images": source.images,
        "images_std": source.images_std,
        "draws": np.resize(chosen, (num_kept, *source.images.shape)),
        "latent": source.latent_draws.astype(np.float16),
        "flux": source.flux_draws,
        "shift": source.shift_draws,
        "background": np.stack([exposure.background_draws for exposure in result.exposures]),
        "observed": np.stack([observation.image for observation in observations]),
        "variance": np.stack([observation.variance for observation in observations]),
        "mask": np.stack([observation.mask for observation in observations]),
        "model": np.stack([exposure.model for exposure in result.exposures]),
        "psf": np.concatenate([observation.psf.image.ravel() for observation in observations]),
    }


def _about(result, source, status):
    """The rest, as JSON types."""
    quantities = source.quantities
    return {
        "exposures": [_about_exposure(exposure) for exposure in result.exposures],
        "status": status,
        "diagnostics": result.diagnostics,
        "provenance": result.provenance,
        "num_failed": quantities.num_failed,
        "num_no_radius": quantities.num_no_radius,
        "covariance": quantities.covariance,
        **{name: getattr(source, name) for name in ABOUT_SOURCE},
    }


def _about_exposure(exposure):
    observation = exposure.observation
    psf = observation.psf
    return {
        "band": exposure.band,
        "psf": [len(psf.image), psf.pixel_scale, psf.pixel_response],
        "pixel_scale": observation.pixel_scale,
        "notes": observation.notes,
        "brightness": observation.brightness,
        "fit": exposure.fit._asdict(),
    }


def _fluxes(source, bands):
    """Columns of the fluxes in each band of the run and of their covariances; NaN where the object
    was not seen.
    """
    named = [band for band in bands if band]
    (values, errors), covariance = source.flux, source.flux_covariance
    place = {band: number for number, band in enumerate(source.bands)}
    columns = {"reference": source.reference}
    for band in named:
        columns[f"flux_{band}"], columns[f"flux_err_{band}"] = (
            part[place[band]] if band in place else np.nan for part in (values, errors)
        )
    for one, other in itertools.combinations(named, 2):
        columns[f"cov_flux_{one}_flux_{other}"] = (
            covariance[place[one], place[other]] if one in place and other in place else np.nan
        )
    return columns


def write_chunk(
    path: FilePath,
    packed: Sequence[Any],
    failures: Sequence[tuple[str, str]],
    *,
    unsettled: bool = False,
) -> None:
    """Write packed results and failures, (identifier, reason), of one chunk: equal input makes
    equal bytes.

    Parameters
    ----------
    unsettled : bool, the machine failed on the way: a resumed run does the chunk again
    """
    rows, arrays = [row for row, *_ in packed], [arrays for _, arrays, _ in packed]
    content: dict[str, Any] = {
        f"row/{name}": [row[name] for row in rows] for name in (rows[0] if rows else ())
    }
    for name in arrays[0] if arrays else ():
        # Arrays of one rank flat, with their shapes: stamps and PSFs may differ.
        some = [np.asarray(each[name]) for each in arrays]
        content[f"shape/{name}"] = [each.shape for each in some]
        content[f"values/{name}"] = np.concatenate([each.ravel() for each in some])
    texts = "[" + ",".join(about for *_, about in packed) + "]"  # each is JSON
    content["about"] = np.frombuffer(texts.encode(), np.uint8)
    written = npz_bytes(content, level=1)
    write_whole(path, written)
    index = {
        "format": FORMAT,
        "chunk": Path(path).stem,
        "content": sha256_of(written),
        "objects": [[row["id"], row["image"]] for row in rows],
        "failures": [list(pair) for pair in failures],
        "unsettled": unsettled,
    }
    write_signed(index_path(path), index)


def index_path(path: FilePath) -> Path:
    """The file that says what is in a chunk's file."""
    return Path(path).with_suffix(".json")


def read_index(path: FilePath) -> dict[str, Any]:
    """What is in a chunk: dict of the sha256 of its file, objects [(identifier, images)],
    failures [(identifier, reason)], unsettled.
    """
    index = read_signed(index_path(path), format=FORMAT)
    with _as_written(index_path(path)):
        index |= {
            name: [(str(ident), str(text)) for ident, text in index[name]]
            for name in ("objects", "failures")
        }
        found = index["chunk"], index["content"], index["unsettled"]
    if found[0] != Path(path).stem:
        raise SurveyError(
            index_path(path),
            f"chunk must be {Path(path).stem}, got that of {index['chunk']}: the file was moved;"
            " delete it and run again with resume=True",
        )
    return index


@contextlib.contextmanager
def _as_written(path):
    """A file whose sha256 is right, and which holds something else than is written: not ours."""
    try:
        yield
    except (*NOT_OURS, InputFileError) as error:
        if lacks_means(error):
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise SurveyError(
            path, f"file must hold what astrogen writes, got {told}; it was made by something else"
        ) from error


def _read_arrays(path, index, *, start=""):
    """The arrays of a chunk's file, {name: array}; of those whose name begins with `start`."""
    content = read_hashed(path, index["content"])
    most = LARGEST * (1 + len(index["objects"]))
    with _as_written(path):
        return parse_npz(path, content, max_bytes=most, kinds="biufU", start=start)


def _read_rows(path, index):
    """Table of the catalogue rows of the chunk that the index is of."""
    rows = _read_arrays(path, index, start="row/")
    with _as_written(path):
        return Table({name.removeprefix("row/"): values for name, values in rows.items()})


def is_whole(path: FilePath, objects: Any = None) -> bool:
    """Whether a chunk is there as it was written, and settled; of these objects, tuples of
    Targets, where they are given.

    What is there and damaged is warned of: the caller makes it again.
    """
    if not Path(path).exists() and not index_path(path).exists():
        return False
    try:
        index = read_index(path)
        read_hashed(path, index["content"])
    except SurveyError as error:
        if Path(path).exists() and index_path(path).exists():
            warnings.warn(f"done again: {error}", DamageWarning, stacklevel=2)
        return False
    if objects is not None:
        held = sorted(ident for ident, _ in index["objects"] + index["failures"])
        if held != sorted(some[0].ident for some in objects):
            return False
    return not index["unsettled"]


def read_object(out: FilePath, ident: str, *, image: str | None = None) -> Any:
    """One object of a survey run, with the imagined solutions that were kept.

    Parameters
    ----------
    out : path of the run
    ident : str, identifier in the catalogue
    image : str or None, which exposure, where the object was in several

    Returns
    -------
    Result; observations and images without their WCS

    Raises
    ------
    SurveyError : no such object, or several exposures to choose from.
    """
    if not (Path(out) / "chunks").is_dir():
        raise SurveyError(
            out,
            "read_object: folder must hold a survey run, got no chunks; give the one that `astrogen"
            " survey --out` named",
        )
    found, reasons = [], []
    for path in sorted((Path(out) / "chunks").glob("*.json")):
        path = path.with_suffix(".npz")
        index = read_index(path)
        found += [
            (path, index, row, images)
            for row, (name, images) in enumerate(index["objects"])
            if name == str(ident) and image in (None, *images.split(SEPARATOR))
        ]
        reasons += [why for name, why in index["failures"] if name == str(ident)]
    if not found and reasons:
        raise SurveyError(
            out, f"read_object: object {ident!r} has no result: {'; '.join(dict.fromkeys(reasons))}"
        )
    if not found:
        raise SurveyError(
            out, f"read_object: ident must be an object of the run, got {ident!r}; see {CATALOGUE}"
        )
    if len(found) > 1:
        raise SurveyError(
            out,
            f"read_object: image must be given for {ident!r}, which is in"
            f" {', '.join(str(name) for *_, name in found)}",
        )
    path, index, number, _ = found[0]
    stored = _read_arrays(path, index)
    with _as_written(path):
        return _unpack(stored, number)


def _unpack(stored, number):
    kinds = [name.split("/", 1) for name in stored if "/" in name]
    row = {name: stored[f"row/{name}"][number].item() for kind, name in kinds if kind == "row"}
    arrays = {
        name: _one_of(stored[f"shape/{name}"], stored[f"values/{name}"], number)
        for kind, name in kinds
        if kind == "values"
    }
    about = json.loads(stored["about"].tobytes())[number]
    observations = _observations(row, arrays, about)
    measured = Quantities(
        *((float(row[name]), float(row[f"{name}_err"])) for name in QUANTITIES),
        num_failed=about["num_failed"],
        num_no_radius=about["num_no_radius"],
        covariance=tuple(map(tuple, about["covariance"])),
    )
    source = Source(
        images=arrays["images"],
        images_std=arrays["images_std"],
        draws=arrays["draws"],
        latent_draws=arrays["latent"].astype(np.float32),
        flux_draws=arrays["flux"],
        shift_draws=arrays["shift"],
        wcs=None,
        measured=measured,
        **{name: float(row[name]) for name in SCALES},
        **{name: _tuple(about[name]) for name in ABOUT_SOURCE},
    )
    exposures = [
        ExposureFit(
            observation,
            told["band"],
            model,
            np.where(observation.mask, 0, observation.image - model).astype(np.float32),
            levels,
            Fit(**{name: _tuple(value) for name, value in told["fit"].items()}),
        )
        for observation, told, model, levels in zip(
            observations, about["exposures"], arrays["model"], arrays["background"], strict=True
        )
    ]
    return Result(
        sources=(source,),
        exposures=tuple(exposures),
        method=row["method"],
        status=tuple(about["status"]),
        converged=bool(row["converged"]),
        diagnostics=about["diagnostics"],
        provenance=about["provenance"],
    )


def _observations(row, arrays, about):
    ends = np.cumsum([told["psf"][0] ** 2 for told in about["exposures"]])
    made = []
    for told, end, image, variance, mask in zip(
        about["exposures"],
        ends,
        arrays["observed"],
        arrays["variance"],
        arrays["mask"],
        strict=True,
    ):
        side, scale, response = told["psf"]
        psf = make_psf(
            arrays["psf"][end - side**2 : end].reshape(side, side),
            pixel_scale=scale,
            pixel_response=response,
        )
        seen = make_observation(
            image,
            psf=psf,
            variance=variance,
            mask=mask,
            pixel_scale=told["pixel_scale"],
            unit=row["unit"] or None,
            name=row["id"],
        )
        brightness = told["brightness"] and Brightness(*told["brightness"])
        made.append(replace(seen, notes=tuple(told["notes"]), brightness=brightness))
    return tuple(made)


def _tuple(value):
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _one_of(shapes, values, number):
    ends = np.cumsum(shapes.prod(1))
    return values[ends[number] - shapes[number].prod() : ends[number]].reshape(shapes[number])


# --- the run


def read_survey(out: FilePath) -> Table:
    """The catalogue of a finished run, as an astropy Table.

    Raises
    ------
    SurveyError : the run has not finished, or its catalogue, list of failures or manifest are not
        as they were written.
    """
    path = Path(out) / CATALOGUE
    if not (Path(out) / LEDGER).exists():
        raise SurveyError(
            path, "read_survey: run must have finished, got no ledger; go on with resume=True"
        )
    with _as_written(Path(out) / LEDGER):
        files = dict(read_signed(Path(out) / LEDGER, format=FORMAT)["files"])
    if CATALOGUE not in files:
        raise SurveyError(
            path, f"read_survey: run must have results, got failures alone; see {FAILURES}"
        )
    for name in (MANIFEST, FAILURES):
        read_hashed(Path(out) / name, files.get(name))
    content = read_hashed(path, files[CATALOGUE])
    with _as_written(path):
        return Table.read(io.BytesIO(content), format="parquet")


def write_catalogue(
    out: FilePath, num_chunks: int, lost: Any, words_fn: Callable[[str], str]
) -> Any:
    """The rows of all chunks as one table, the failures as another, in the words that `words_fn`
    makes of theirs, and the ledger; returns the numbers of rows, of failures, and of rows that lack
    something.
    """
    paths = [chunk_path(out, number) for number in range(num_chunks)]
    for path in set((Path(out) / "chunks").glob("*.npz")) - set(paths):  # of a run that was forced
        for file in (index_path(path), path):
            file.unlink(missing_ok=True)
    indices = [read_index(path) for path in paths]
    tables = [_read_rows(path, index) for path, index in zip(paths, indices, strict=True)]
    tables = [table for table in tables if len(table)]
    failures = [pair for index in indices for pair in index["failures"]] + list(lost)
    catalogue = vstack(tables) if tables else Table()
    for name, unit in UNITS.items():
        if name in catalogue.colnames:
            catalogue[name].unit = unit
    if tables:
        write_whole(Path(out) / CATALOGUE, _parquet(catalogue))
    listed = {
        "id": np.array([name for name, _ in failures], str),
        "reason": np.array([words_fn(reason) for _, reason in failures], str),
    }
    write_table(Path(out) / FAILURES, Table(listed))
    names = [MANIFEST, FAILURES, *([CATALOGUE] if tables else [])]
    ledger = {
        "format": FORMAT,
        "files": {name: sha256_of((Path(out) / name).read_bytes()) for name in names},
        "chunks": [index["content"] for index in indices],
    }
    write_signed(Path(out) / LEDGER, ledger)
    return (
        len(catalogue),
        len(failures),
        sum(INCOMPLETE in status for status in catalogue["status"]) if tables else 0,
    )


def _parquet(table):
    """The bytes of a Parquet file that Astropy reads with its units; its pages have checksums for
    whoever reads it with other programs.
    """
    columns = {name: np.asarray(table[name]) for name in table.colnames}
    told = {  # as Astropy's own writer, which cannot be asked for checksums
        f"table::len::{name}": str(max(1, values.dtype.itemsize // 4))
        for name, values in columns.items()
        if values.dtype.kind == "U"
    } | {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(table))}
    made = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    made = made.replace_schema_metadata(told)
    buffer = io.BytesIO()
    parquet.write_table(made, buffer, write_page_checksum=True)
    return buffer.getvalue()


def settle_manifest(
    out: FilePath, wanted: dict[str, Any], *, resume: bool, force: bool = False
) -> Any:
    """Write the manifest of a new run, or see that an old one is of the same configuration.

    Raises
    ------
    SurveyError : the folder holds a run and `resume` is not set, or its configuration, weights or
        code were others, or cannot be read.
    """
    path, ledger = Path(out) / MANIFEST, Path(out) / LEDGER
    wanted = json.loads(json.dumps({"format": FORMAT, **wanted}))  # as it will be read
    if path.exists() and not resume:
        raise SurveyError(
            path,
            "run_survey: out must hold no run, got a manifest; go on with resume=True, or choose"
            " another folder",
        )
    if path.exists() or any((Path(out) / "chunks").glob("*.npz")):
        same = _same_manifest(path, ledger, wanted, force)
        if same:
            return
        ledger.unlink(missing_ok=True)  # what it says will no longer be so
    write_signed(path, wanted)


def _same_manifest(path, ledger, wanted, force):
    """Whether the manifest is whole, and as wanted; others are refused, but for `force`."""
    try:
        found = read_manifest(path)
    except SurveyError as error:
        # A finished run's ledger knows what the manifest was.
        if _hashes(ledger).get(MANIFEST) == sha256_of(signed(wanted)):
            warnings.warn(f"written again: {error}", DamageWarning, stacklevel=2)
            write_whole(path, signed(wanted))
            return True
        if force:
            return False
        raise
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing and not force:
        told = "; ".join(
            f"{name} {_short(found.get(name))} now {_short(wanted[name])}" for name in differing
        )
        raise SurveyError(
            path,
            f"run_survey: a resumed run must be of the same {' and '.join(differing)}, got"
            f" {told}; choose another folder, or mix them with force=True",
        )
    return not differing


def _hashes(ledger):
    """The sha256 of each file that a ledger names; none where it cannot be read."""
    try:
        return read_signed(ledger, format=FORMAT)["files"]
    except SurveyError:
        return {}


def warn_of_damage(out: FilePath) -> None:
    """Warn of files of a finished run that are not as they were written: the run is going to write
    them again.
    """
    if not (Path(out) / LEDGER).exists():
        return
    try:
        files = read_signed(Path(out) / LEDGER, format=FORMAT)["files"]
        for name in files.keys() & {MANIFEST, CATALOGUE, FAILURES}:
            read_hashed(Path(out) / name, files[name])
    except SurveyError as error:
        warnings.warn(f"written again: {error}", DamageWarning, stacklevel=2)


def _short(value):
    text = json.dumps(value, sort_keys=True)
    return text if len(text) < 80 else sha256_of(text.encode())[:12]


def read_manifest(path: FilePath) -> dict[str, Any]:
    """The manifest of a run, as a dict.

    Raises
    ------
    SurveyError : it is missing, of another format, or not as it was written.
    """
    return read_signed(
        path,
        format=FORMAT,
        advice=(
            "go on with resume=True, force=True if catalogue, images and options are those of the"
            " run, or start again in another folder"
        ),
    )
