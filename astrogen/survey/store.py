"""What a survey run writes: chunk files (HDF5), the catalogue (Parquet), the list of failures, the
manifest; and how they are read back.

DIR/manifest.json             configuration, hashes of catalogue, images, weights and code
DIR/chunks/000012.h5          images, imagined solutions, latent draws and catalogue rows of one
chunk DIR/catalogue.parquet         one row for each object and exposure; of a joint run, for each
object DIR/failures.ecsv             what gave no result, and why
"""

import contextlib
import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from astropy.table import Table, vstack

from astrogen.errors import SurveyError
from astrogen.files import whole_file, write_whole
from astrogen.joint_result import JointResult, Source
from astrogen.observation import make_observation, make_psf
from astrogen.result import QUANTITIES, Quantities, Result, measured_words
from astrogen.units import Brightness

FORMAT = "astrogen survey 3"
MANIFEST, CATALOGUE, FAILURES = "manifest.json", "catalogue.parquet", "failures.ecsv"
SCALES = ("prior_scale", "target_fwhm")
DIAGNOSTICS = ("k_hat", "ess", "r_hat", "num_divergent", "residual_amplitude")
JOINT_SOURCE = ("name", "bands", "reference", "place", "x", "y", "colour", "residual_amplitude")
JOINT_FIT = ("chi2", "p_values", "chi2_all")
SEPARATOR, INCOMPLETE = (
    ", ",
    "incomplete",
)  # between names of images or bands in a row; the word of what an object's fit lacks
COVARIANCE = [
    (one, other) for index, one in enumerate(QUANTITIES) for other in QUANTITIES[index + 1 :]
]
UNITS = {
    "half_light_radius": "arcsec",
    "half_light_radius_err": "arcsec",
    "target_fwhm": "arcsec",
    "prior_scale": "arcsec",
}


def chunk_path(out, number):
    """The file of one chunk."""
    return Path(out) / "chunks" / f"{number:06d}.h5"


# --- chunks


class Seen(NamedTuple):
    """An object and what it was seen in: names of images and their bands, and sentences
    `incomplete: ...` on what is missing.
    """

    ident: str
    images: tuple
    bands: tuple
    missing: tuple = ()


def pack(result, seen, *, bands, num_kept):
    """What is kept of one object: a row of the catalogue, arrays, and the rest as JSON.

    Parameters
    ----------
    result : Result, or JointResult of one galaxy: its row has the same columns, which hold for the
        reference band and the first exposure's axes, and the fluxes in each band
    seen : Seen, the object and its exposures
    bands : list of str, all bands of the run
    num_kept : int, imagined solutions that are kept
    """
    jointly = isinstance(result, JointResult)
    source, observations, models = (
        (result.sources[0], result.observations, result.models)
        if jointly
        else (result, (result.observation,), (result.model,))
    )
    row = {
        "id": seen.ident,
        "image": SEPARATOR.join(seen.images),
        "band": SEPARATOR.join(dict.fromkeys(seen.bands)),
        "unit": str(observations[0].unit),
    }
    quantities, worst = source.quantities, int(np.argmin(result.p_values)) if jointly else None
    for quantity in QUANTITIES:
        row[quantity], row[f"{quantity}_err"] = getattr(quantities, quantity)
    row |= {
        f"cov_{one}_{other}": quantities.covariance[QUANTITIES.index(one)][QUANTITIES.index(other)]
        for one, other in COVARIANCE
    }
    row |= _fluxes(source, bands) if jointly else {}
    row |= (
        {"chi2": result.chi2[worst], "p_value": result.p_values[worst]}
        if jointly
        else {"chi2": result.chi2, "p_value": result.p_value}
    )
    diagnostics = result.diagnostics | (
        {"residual_amplitude": source.residual_amplitude} if jointly else {}
    )
    row |= {name: getattr(source, name) for name in SCALES} | {
        name: diagnostics.get(name, np.nan) for name in DIAGNOSTICS
    }
    row |= {
        "converged": result.converged,
        "method": result.method,
        "status": " | ".join((*result.status, *measured_words(quantities), *seen.missing)),
    }
    draws = source.draws
    chosen = (
        draws[np.random.default_rng(0).choice(len(draws), min(num_kept, len(draws)), replace=False)]
        if len(draws)
        else draws
    )
    image, image_std = (source.images if jointly else source.image), source.image_std
    arrays = {
        "image": image,
        "image_std": image_std,
        "draws": np.resize(chosen, (num_kept, *image.shape)),
        "latent": source.latent_draws.astype(np.float16),
        "flux": source.flux_draws,
        "shift": source.shift_draws,
        "background": result.background_draws,
        "observed": np.stack([observation.image for observation in observations]),
        "variance": np.stack([observation.variance for observation in observations]),
        "mask": np.stack([observation.mask for observation in observations]),
        "model": np.stack(models),
        "psf": np.concatenate([observation.psf.image.ravel() for observation in observations]),
    }
    about = {
        "exposures": [
            {
                "psf": [
                    len(observation.psf.image),
                    observation.psf.pixel_scale,
                    observation.psf.pixel_response,
                ],
                "pixel_scale": observation.pixel_scale,
                "notes": observation.notes,
                "brightness": observation.brightness,
            }
            for observation in observations
        ],
        "bands": seen.bands,
        "status": [*result.status, *seen.missing],
        "diagnostics": result.diagnostics,
        "provenance": result.provenance,
        "num_failed": quantities.num_failed,
        "num_no_radius": quantities.num_no_radius,
        "covariance": quantities.covariance,
    }
    if jointly:
        about |= {name: getattr(source, name) for name in JOINT_SOURCE} | {
            name: getattr(result, name) for name in JOINT_FIT
        }
    return row, arrays, json.dumps(about, sort_keys=True)


def _fluxes(source, bands):
    """Columns of the fluxes in each band of the run and of their covariances; NaN where the object
    was not seen.
    """
    named = [band for band in bands if band]
    values, errors, covariance = *source.flux, source.flux_covariance
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


def write_chunk(path, packed, failures):
    """Write packed results and failures, (identifier, reason), of one chunk: equal input makes
    equal bytes.
    """
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        text = h5py.string_dtype()
        file.create_dataset("failures", data=np.array(failures, object).reshape(-1, 2), dtype=text)
        file.create_dataset("about", data=[about for *_, about in packed], dtype=text)
        file.attrs["columns"] = list(packed[0][0]) if packed else []
        for name in packed[0][0] if packed else ():
            values = [row[name] for row, *_ in packed]
            file.create_dataset(
                f"row/{name}", data=values, dtype=text if isinstance(values[0], str) else None
            )
        for name in packed[0][1] if packed else ():
            _write_arrays(
                file.create_group(f"array/{name}"), [arrays[name] for _, arrays, _ in packed]
            )


def _write_arrays(group, arrays):
    """Arrays of one rank as one flat dataset with their shapes: stamps and PSFs may differ."""
    group.create_dataset("shape", data=[array.shape for array in arrays])
    group.create_dataset(
        "values",
        data=np.concatenate([np.ravel(array) for array in arrays]),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    # Otherwise this happens when the last reference to the dataset goes, which a profiler may hold
    # (that of Dask does): the order in the file would depend on it.
    group.file.flush()


@contextlib.contextmanager
def _opened(path):
    """A chunk's file, read; one that is not whole says so."""
    try:
        with h5py.File(path) as file:
            if file.attrs.get("format") != FORMAT:
                raise OSError(f"format {file.attrs.get('format')!r}")
            yield file
    except (OSError, KeyError) as error:
        raise SurveyError(
            path,
            f"read_rows: chunk must be whole, got {error}; delete it and run again with --resume",
        ) from error


def read_rows(path):
    """(Table of the chunk's catalogue rows, list of (identifier, reason) that failed)."""
    with _opened(path) as file:
        rows = {name: file[f"row/{name}"] for name in file.attrs["columns"]}
        return Table(
            {
                name: np.array(values.asstr()[:], str) if values.dtype.kind == "O" else values[:]
                for name, values in rows.items()
            }
        ), [tuple(pair) for pair in file["failures"].asstr()[:]]


def is_whole(path):
    """Whether a chunk's file can be read to its end."""
    try:
        with h5py.File(path) as file:
            file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)
            return file.attrs.get("format") == FORMAT
    except (OSError, RuntimeError):
        return False


def read_object(out, ident, *, image=None):
    """One object of a survey run, with the imagined solutions that were kept.

    Parameters
    ----------
    out : path of the run
    ident : str, identifier in the catalogue
    image : str or None, which exposure, where the object was in several

    Returns
    -------
    Result, or JointResult of a joint run; observations and images without their WCS

    Raises
    ------
    SurveyError : no such object, or several exposures to choose from.
    """
    found, reasons = [], []
    for path in sorted((Path(out) / "chunks").glob("*.h5")):
        with _opened(path) as file:
            names, images = (
                file[f"row/{name}"].asstr()[:] if "row" in file else np.array([])
                for name in ("id", "image")
            )
            found += [
                (path, row, images[row])
                for row in np.flatnonzero(names == str(ident))
                if image in (None, *images[row].split(SEPARATOR))
            ]
            reasons += [why for name, why in file["failures"].asstr()[:] if name == str(ident)]
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
    return _unpack(*found[0][:2])


def _unpack(path, number):
    with _opened(path) as file:
        row = {
            name: values.asstr()[number] if values.dtype.kind == "O" else values[number]
            for name, values in file["row"].items()
        }
        arrays = {name: _read_array(group, number) for name, group in file["array"].items()}
        about = json.loads(file["about"].asstr()[number])
    observations = _observations(row, arrays, about)
    residuals = tuple(
        np.where(observation.mask, 0, observation.image - model).astype(np.float32)
        for observation, model in zip(observations, arrays["model"], strict=True)
    )
    pairs = [(float(row[name]), float(row[f"{name}_err"])) for name in QUANTITIES]
    measured = Quantities(
        *pairs,
        num_failed=about["num_failed"],
        num_no_radius=about["num_no_radius"],
        covariance=tuple(map(tuple, about["covariance"])),
    )
    source = {name: float(row[name]) for name in SCALES} | {
        "image_std": arrays["image_std"],
        "draws": arrays["draws"],
        "latent_draws": arrays["latent"].astype(np.float32),
        "flux_draws": arrays["flux"],
        "shift_draws": arrays["shift"],
        "measured": measured,
    }
    fit = {
        "background_draws": arrays["background"],
        "method": row["method"],
        "status": tuple(about["status"]),
        "converged": bool(row["converged"]),
        "diagnostics": about["diagnostics"],
        "provenance": about["provenance"],
    }
    if "reference" not in row:
        return Result(
            observation=observations[0],
            image=arrays["image"],
            model=arrays["model"][0],
            residual=residuals[0],
            chi2=float(row["chi2"]),
            p_value=float(row["p_value"]),
            **source,
            **fit,
        )
    light = tuple(arrays["model"] - arrays["background"].mean(0)[:, None, None])
    joint = Source(
        images=arrays["image"],
        wcs=None,
        models=light,
        **source,
        **{name: _tuple(about[name]) for name in JOINT_SOURCE},
    )
    return JointResult(
        observations=observations,
        bands=tuple(about["bands"]),
        sources=(joint,),
        models=tuple(arrays["model"]),
        residuals=residuals,
        **fit,
        **{name: _tuple(about[name]) for name in JOINT_FIT},
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


def _read_array(group, number):
    shapes = group["shape"][:]
    ends = np.cumsum(shapes.prod(1))
    return group["values"][ends[number] - shapes[number].prod() : ends[number]].reshape(
        shapes[number]
    )


# --- the run


def read_survey(out):
    """The catalogue of a finished run, as an astropy Table.

    Raises
    ------
    SurveyError : the run has not finished.
    """
    path = Path(out) / CATALOGUE
    if not path.is_file():
        raise SurveyError(
            path, "read_survey: run must have finished, got no catalogue; go on with --resume"
        )
    return Table.read(path)


def write_catalogue(out, num_chunks, lost):
    """The rows of all chunks as one table, the failures as another; returns the numbers of rows, of
    failures, and of rows that lack something.
    """
    parts = [read_rows(chunk_path(out, number)) for number in range(num_chunks)]
    tables, failures = (
        [table for table, _ in parts if len(table)],
        [pair for _, some in parts for pair in some] + list(lost),
    )
    catalogue = vstack(tables) if tables else Table()
    for name, unit in UNITS.items():
        if name in catalogue.colnames:
            catalogue[name].unit = unit
    if tables:
        with whole_file(Path(out) / CATALOGUE) as temporary:
            catalogue.write(temporary, format="parquet")
    listed = Table(
        {
            "id": np.array([name for name, _ in failures], str),
            "reason": np.array([reason for _, reason in failures], str),
        }
    )
    with whole_file(Path(out) / FAILURES) as temporary:
        listed.write(temporary, format="ascii.ecsv")
    return (
        len(catalogue),
        len(failures),
        sum(INCOMPLETE in status for status in catalogue["status"]) if tables else 0,
    )


def settle_manifest(out, wanted, *, resume, force=False):
    """Write the manifest of a new run, or see that an old one is of the same configuration.

    Raises
    ------
    SurveyError : the folder holds a run and `resume` is not set, or its configuration, weights or
        code were others.
    """
    path = Path(out) / MANIFEST
    if path.is_file():
        if not resume:
            raise SurveyError(
                path,
                "run_survey: out must hold no run, got a manifest; go on with --resume, or choose"
                " another folder",
            )
        found = read_manifest(path)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing and not force:
            told = "; ".join(
                f"{name} {_short(found.get(name))} now {_short(wanted[name])}" for name in differing
            )
            raise SurveyError(
                path,
                f"run_survey: a resumed run must be of the same {' and '.join(differing)}, got"
                f" {told}; choose another folder, or mix them with --force",
            )
        if not differing:
            return
    write_whole(path, json.dumps({"format": FORMAT, **wanted}, indent=1, sort_keys=True) + "\n")


def _short(value):
    text = json.dumps(value, sort_keys=True)
    return text if len(text) < 80 else hashlib.sha256(text.encode()).hexdigest()[:12]


def read_manifest(path):
    """The manifest of a run, as a dict."""
    try:
        manifest = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SurveyError(
            path,
            f"read_manifest: manifest must be JSON, got {error}; start again in another folder",
        ) from error
    if manifest.get("format") != FORMAT:
        raise SurveyError(
            path,
            f"read_manifest: format must be {FORMAT!r}, got {manifest.get('format')!r}; use the"
            " release that wrote it",
        )
    return manifest
