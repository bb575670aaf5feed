"""Results on the disk: one FITS layout for one galaxy or several, in one exposure or several.

The layout stands in `Result.write_fits`. Files know arrays, tables and JSON; what these are parts
of is said in `result`.
"""

import json
from dataclasses import asdict, replace

import numpy as np
from astropy.table import Table

from astrogen.data.images import read_plane_wcs, read_planes, write_planes
from astrogen.data.observation import Observation, as_given
from astrogen.data.psf import PSF
from astrogen.data.reading import parse_json
from astrogen.data.units import Brightness, read_unit
from astrogen.errors import InputFileError
from astrogen.galaxies.quantities import QUANTITIES, Quantities
from astrogen.inference.verdict import Fit

FORMAT = "astrogen result 3"
# What a file says of each source and each exposure beside its images.
ABOUT_SOURCE = (
    *("name", "bands", "reference", "place", "x", "y", "prior_scale", "target_fwhm"),
    *("colour", "residual_amplitude"),
)
ABOUT_OBSERVATION = ("name", "pixel_scale", "notes", "status")
ABOUT_RESULT = ("method", "status", "converged", "diagnostics", "provenance")
SEEN = ("OBSERVED", "VARIANCE", "MASK", "MODEL", "RESIDUAL")


def _numbers(num):
    """What tells planes of several from each other; nothing where there is one."""
    return [""] if num == 1 else [str(number) for number in range(1, num + 1)]


def write_result(result, path, *, status, tables, num_draws_kept):
    """Write a Result; see `Result.write_fits`.

    status : sequence of sentences, for the header; tables : dict of name -> Table, beside those
    that are read back
    """
    planes, wcs, unit = {}, {}, {}
    first = result.exposures[0].observation
    for number, source in zip(_numbers(len(result.sources)), result.sources, strict=True):
        factor, given = as_given(first, source.prior_scale)
        ours = {
            name: plane * np.float32(factor)
            for name, plane in _planes_of_source(source, number, num_draws_kept).items()
        }
        planes, wcs = planes | ours, wcs | dict.fromkeys(ours, source.wcs)
        unit |= dict.fromkeys(ours, given)
    for index, number in enumerate(_numbers(len(result.exposures))):
        observation = result.exposures[index].observation
        ours = _planes_of_exposure(result, index, number)
        planes, wcs = planes | ours, wcs | dict.fromkeys(ours, observation.wcs)
        unit |= dict.fromkeys(ours, as_given(observation)[1])
        planes[f"PSF{number}"] = observation.psf.image
    about = {
        "format": FORMAT,
        "exposures": [_about_exposure(exposure) for exposure in result.exposures],
        "sources": [_about_source(source) for source in result.sources],
        **{name: getattr(result, name) for name in ABOUT_RESULT},
    }
    values = [json.dumps(value) for value in about.values()]
    write_planes(
        path,
        planes,
        wcs=wcs,
        unit=unit,
        header=header_of(result, status),
        tables=tables
        | {"LATENT": _draws_table(result), "ABOUT": Table({"name": list(about), "value": values})},
    )


def _planes_of_source(source, number, num_kept):
    images, deviations, draws = source.images, source.images_std, source.draws[:num_kept]
    if len(source.bands) == 1:
        cubes = {f"DRAWS{number}": draws[:, 0]}
        images, deviations = images[0], deviations[0]
    else:
        cubes = {f"DRAWS{number}_{band + 1}": draws[:, band] for band in range(len(source.bands))}
    return {
        f"IMAGE{number}": images,
        f"IMAGE_STD{number}": deviations,
        **{name: cube for name, cube in cubes.items() if len(cube)},
    }


def _planes_of_exposure(result, index, number):
    exposure = result.exposures[index]
    observation = exposure.observation
    seen = (
        *(observation.image, observation.variance, observation.mask),
        *(exposure.model, exposure.residual),
    )
    planes = {f"{name}{number}": plane for name, plane in zip(SEEN, seen, strict=True)}
    if len(result.sources) > 1:
        planes |= {
            f"SOURCE{which}_{number}".rstrip("_"): source.models[index]
            for which, source in enumerate(result.sources, 1)
        }
    return {name: _as_held(name, plane, observation) for name, plane in planes.items()}


def _as_held(name, plane, observation, power=1):
    """A plane of fluxes per observed pixel as surface brightness, where the observation was given
    as such; with power -1 the inverse.
    """
    factor = as_given(observation)[0]
    power *= 0 if name.startswith("MASK") else 2 if name.startswith("VARIANCE") else 1
    return plane if factor == 1 or not power else (plane * factor**power).astype(plane.dtype)


def _draws_table(result):
    """One row for each draw; of one galaxy, band or exposure without that axis."""
    columns = {
        "latent": np.stack([source.latent_draws for source in result.sources], 1),
        "flux": np.concatenate([source.flux_draws for source in result.sources], 1),
        "shift": np.stack([source.shift_draws for source in result.sources], 1),
        "background": np.stack([exposure.background_draws for exposure in result.exposures], 1),
    }
    return Table(
        {name: values[:, 0] if values.shape[1] == 1 else values for name, values in columns.items()}
    )


def _about_exposure(exposure):
    observation = exposure.observation
    return {name: getattr(observation, name) for name in ABOUT_OBSERVATION} | {
        "band": exposure.band,
        "unit": str(observation.unit),
        "brightness": observation.brightness,
        "psf": [observation.psf.pixel_scale, observation.psf.pixel_response],
        "fit": exposure.fit._asdict(),
    }


def _about_source(source):
    return {name: getattr(source, name) for name in ABOUT_SOURCE} | {
        "quantities": asdict(source.quantities)
    }


def header_of(result, status):
    """The numbers that a catalogue needs, {keyword: value}, and the sentences of the status."""
    header = {
        "OBJECT": result.name,
        "METHOD": result.method,
        "CONVERGD": bool(result.converged),
        "NUMSRC": len(result.sources),
        "NUMEXP": len(result.exposures),
        "NUMDRAWS": result.num_draws,
        "FLUXUNIT": str(result.unit),
    }
    if result.is_lone:
        header |= {
            "PRIORSCL": result.prior_scale,
            "TARGFWHM": result.target_fwhm,
            "PIXSCALE": result.observation.pixel_scale,
            "CHI2": result.chi2,
            "P_VALUE": result.p_value,
            "NUMFAIL": result.quantities.num_failed,
        }
        for keyword, quantity in zip(("FLUX", "HLR", "E1", "E2"), QUANTITIES, strict=True):
            header[keyword], header[f"{keyword}_ERR"] = getattr(result.quantities, quantity)
        header["SKY"], header["SKY_ERR"] = result.background
    return header | {f"STATUS{number}": sentence for number, sentence in enumerate(status, 1)}


def read_parts(path):
    """What a file of `write_result` holds.

    Returns
    -------
    (sources, exposures, rest) : list of dict, list of dict, dict: the fields of `result.Source`,
        `result.ExposureFit`, and of `result.Result`

    Raises
    ------
    InputFileError : the file is damaged, or no result of astrogen.
    """
    planes, _, tables = read_planes(path)
    try:
        about = {str(row["name"]): parse_json(row["value"]) for row in tables["ABOUT"]}
        if about["format"] != FORMAT:
            raise InputFileError(path, f"is {about['format']!r}; this version reads {FORMAT!r}")
        return _parts(path, planes, tables["LATENT"], about)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            path, f"is no result of astrogen, or a damaged one ({type(error).__name__}: {error})"
        ) from error


def _parts(path, planes, draws, about):
    exposures = [
        _read_exposure(path, planes, number, told)
        for number, told in zip(_numbers(len(about["exposures"])), about["exposures"], strict=True)
    ]
    observations = [exposure["observation"] for exposure in exposures]
    levels = _of_draws(draws, "background", len(exposures))
    for index, exposure in enumerate(exposures):
        exposure["background_draws"] = levels[:, index]
    sources = [
        _read_source(path, planes, number, told, observations)
        for number, told in zip(_numbers(len(about["sources"])), about["sources"], strict=True)
    ]
    _share_draws(sources, draws)
    rest = {name: about[name] for name in ABOUT_RESULT}
    return sources, exposures, rest | {"status": tuple(rest["status"])}


def _of_draws(draws, name, num):
    """A column of the table of draws with the axis of its `num` parts: [num_draws, num, ...]."""
    values = np.asarray(draws[name], np.float32)
    return values[:, None] if num == 1 else values


def _share_draws(sources, draws):
    """Add what each galaxy has of the table of draws."""
    bands = [len(source["bands"]) for source in sources]
    fluxes = np.split(_of_draws(draws, "flux", sum(bands)), np.cumsum(bands)[:-1], axis=1)
    shifts, latents = (_of_draws(draws, name, len(sources)) for name in ("shift", "latent"))
    for index, source in enumerate(sources):
        source |= {
            "flux_draws": fluxes[index],
            "shift_draws": shifts[:, index],
            "latent_draws": latents[:, index],
        }


def _read_exposure(path, planes, number, told):
    brightness = told["brightness"]
    seen = Observation(
        image=planes[f"OBSERVED{number}"],
        variance=planes[f"VARIANCE{number}"],
        mask=planes[f"MASK{number}"].astype(bool),
        psf=PSF(planes[f"PSF{number}"], *told["psf"]),
        wcs=read_plane_wcs(path, f"OBSERVED{number}"),
        unit=read_unit(told["unit"]),
        brightness=brightness and Brightness(*brightness),
        **{name: _tuple(told[name]) for name in ABOUT_OBSERVATION},
    )
    model, residual, image, variance = (
        _as_held(name, planes[f"{name}{number}"], seen, -1)
        for name in ("MODEL", "RESIDUAL", "OBSERVED", "VARIANCE")
    )
    return {
        "observation": replace(seen, image=image, variance=variance),
        "band": told["band"],
        "model": model,
        "residual": residual,
        "fit": Fit(**{name: _tuple(value) for name, value in told["fit"].items()}),
    }


def _read_source(path, planes, number, told, observations):
    factor = np.float32(as_given(observations[0], told["prior_scale"])[0])
    bands = told["bands"]
    images, deviations = (
        planes[name].reshape(len(bands), *planes[name].shape[-2:]) / factor
        for name in (f"IMAGE{number}", f"IMAGE_STD{number}")
    )
    nothing = np.zeros((0, *images.shape[1:]), np.float32)
    cubes = [
        planes.get(f"DRAWS{number}" if len(bands) == 1 else f"DRAWS{number}_{band}", nothing)
        for band in range(1, len(bands) + 1)
    ]
    quantities = {name: _tuple(value) for name, value in told["quantities"].items()}
    quantities["covariance"] = tuple(map(tuple, quantities["covariance"]))
    several = [
        _as_held("SOURCE", planes[f"SOURCE{number}_{exposure}".rstrip("_")], seen, -1)
        for exposure, seen in zip(_numbers(len(observations)), observations, strict=True)
        if number
    ]
    return {
        "wcs": read_plane_wcs(path, f"IMAGE{number}"),
        "images": images,
        "images_std": deviations,
        "draws": np.stack(cubes, 1) / factor,
        "models": tuple(several),
        "measured": Quantities(**quantities),
        **{name: _tuple(told[name]) for name in ABOUT_SOURCE},
    }


def _tuple(value):
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
