"""Real galaxies from any `galsim.RealGalaxyCatalog`, each on its own pixels with its own PSF and
noise.

Nothing is resampled or deconvolved: training that knows the PSF and the noise of each stamp wants
the pixels that were recorded. The catalogue may be the full COSMOS sample
(`galsim_download_cosmos`) or a small one. Entries whose image, PSF or noise cannot be used are left
out and reported with the reason.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import galsim
import numpy as np

from astrogen.data.images import list_extents
from astrogen.errors import FileError, InputError, InputFileError
from astrogen.types import FilePath
from data_pipelines.population import shifted

RECIPE_VERSION = 1
CORRELATION_SIDE = (
    11  # pixels of the stored noise correlation: drizzling correlates neighbours within three
)


class CatalogError(FileError):
    """A catalogue of real galaxies that cannot be read."""


def _fields(stamp, psf_stamp):
    def _field(dtype, shape, unit):
        return {"dtype": dtype, "shape": shape, "unit": unit}

    return {
        "image": _field(
            "float32",
            [stamp, stamp],
            "the catalogue's flux per pixel (COSMOS: counts/s in F814W), 0 where masked",
        ),
        "mask": _field(
            "bool", [stamp, stamp], "True = bad: outside of the catalogue's cut, or not finite"
        ),
        "psf": _field(
            "float32",
            [psf_stamp, psf_stamp],
            "sum 1, centred on the middle pixel, effective: the pixel response is in it",
        ),
        "variance": _field("float32", [], "of one pixel's noise, square of the image's unit"),
        "correlated": _field(
            "int64",
            [],
            "1: the noise is correlated as noise_correlation says; 0: it is taken to be white",
        ),
        "noise_correlation": _field(
            "float32", [CORRELATION_SIDE, CORRELATION_SIDE], "1 at the middle pixel, offset zero"
        ),
        "pixel_scale": _field("float32", [], "arcsec per pixel of image and psf"),
        "centre_offset": _field(
            "float32", [2], "x, y in pixels of the cut's centre from the stamp's: 0 or -0.5"
        ),
        "cut_side": _field(
            "int64",
            [],
            "pixels, longer side of the catalogue's cut: light may be missing where it exceeds the"
            " stamp",
        ),
        "magnitude": _field("float32", [], "mag, as in the catalogue (COSMOS: F814W)"),
        "band": _field("string", [], ""),
        "ident": _field("string", [], ""),
        "index": _field("int64", [], "row of the catalogue"),
    }


@lru_cache(maxsize=1024)
def _check_layout(path):
    """Refuse a file whose headers would keep the library behind GalSim busy for ever."""
    try:
        list_extents(path)
    except InputFileError as error:
        raise CatalogError(
            path, f"open_catalog: files must be whole FITS files, got one that {error.reason}"
        ) from error


def _check_files(catalog, index):
    """The files that a row names lie in the catalogue's folder, and are whole."""
    files = [catalog.gal_file_name[index], catalog.psf_file_name[index]]
    if catalog.noise_file_name is not None:
        files.append(catalog.noise_file_name[index])
    for file in files:
        if Path(file).parent.resolve() != Path(catalog.image_dir).resolve():
            raise CatalogError(
                file, "read_entries: files must lie beside the catalogue, got one elsewhere"
            )
        _check_layout(file)


@lru_cache(maxsize=2)
def _open(path):
    if not Path(path).is_file():
        raise CatalogError(
            path,
            "open_catalog: catalog must be an existing file, got none; give the"
            " real_galaxy_catalog*.fits of the sample",
        )
    _check_layout(path)
    try:
        catalog = galsim.RealGalaxyCatalog(path)
    except Exception as error:  # galsim and astropy raise whatever the broken byte leads to
        raise CatalogError(
            path,
            f"open_catalog: catalog must be a galsim.RealGalaxyCatalog, got {type(error).__name__}:"
            f" {error}; check the file",
        ) from error
    if not catalog.nobjects:
        raise CatalogError(path, "open_catalog: catalog must list galaxies, got 0; check the file")
    return catalog


def recipe(catalog_path: FilePath, *, stamp: int, psf_stamp: int) -> dict[str, Any]:
    """What the records of a catalogue are made of, as their manifest states it (JSON).

    Parameters
    ----------
    catalog_path : path of the `real_galaxy_catalog*.fits`, beside its images, PSFs and noise
    stamp : int, side of the galaxies' stamps in the catalogue's pixels
    psf_stamp : int, odd side of the PSFs' stamps

    Raises
    ------
    CatalogError : no such file, or not a catalogue of galaxies.
    ValueError : a side that is not positive, or an even one of the PSF.
    """
    if stamp < 8:
        raise InputError(
            f"recipe: stamp must be at least 8 pixels, got {stamp}; COSMOS galaxies want about 128"
        )
    if psf_stamp < 3 or psf_stamp % 2 == 0:
        raise InputError(
            f"recipe: psf_stamp must be odd and at least 3 pixels, got {psf_stamp}; HST PSFs want"
            " about 65"
        )
    catalog = _open(str(catalog_path))
    scales = np.unique(np.round(np.asarray(catalog.pixel_scale, float), 6))
    return {
        "kind": "real",
        "recipe_version": RECIPE_VERSION,
        "catalog": Path(catalog_path).name,
        "catalog_sha256": hashlib.sha256(Path(catalog_path).read_bytes()).hexdigest(),
        "num": int(catalog.nobjects),
        "stamp": stamp,
        "psf_stamp": psf_stamp,
        "pixel_scale": float(scales[0]) if len(scales) == 1 else None,
        "target_fwhm": None,
        "fields": _fields(stamp, psf_stamp),
        "software": {"galsim": galsim.__version__, "numpy": np.__version__},
    }


def _fit_to(image, side, fill=0.0):
    """The image cropped or padded about its centre to [side, side]; an odd difference leaves its
    centre half a pixel to the lower left.
    """
    out = np.full((side, side), fill, image.dtype)
    into, taken = [], []
    for length in image.shape:
        first = (side - length) // 2
        into.append(slice(max(first, 0), min(first + length, side)))
        taken.append(slice(max(-first, 0), max(-first, 0) + into[-1].stop - into[-1].start))
    out[tuple(into)] = image[tuple(taken)]
    return out


def _centred_psf(image, side):
    """The PSF on an odd stamp of sum 1, with its centre (of the array, as GalSim takes it) on the
    middle pixel.
    """
    if not np.all(np.isfinite(image)) or image.sum() <= 0:
        raise InputError(
            f"read_entries: psf must be finite with a positive sum, got sum {image.sum()}; leave"
            " the entry out"
        )
    # GalSim takes the middle of an even array, between two pixels, as the centre: pad to odd, and
    # move it onto the middle pixel.
    even = 1 - np.array(image.shape) % 2
    if even.any():
        image = shifted(np.pad(image, [(0, even[0]), (0, even[1])]), 0.5 * even[::-1])
    psf = _fit_to(image, side)
    return psf / psf.sum()


def _noise_correlation(catalog, index):
    """Noise variance of a pixel, whether it is known to be correlated, and the correlation with its
    neighbours.
    """
    white = np.zeros((CORRELATION_SIDE, CORRELATION_SIDE))
    white[CORRELATION_SIDE // 2, CORRELATION_SIDE // 2] = 1
    noise, _, variance = catalog.getNoiseProperties(index)
    if not np.isfinite(variance) or variance <= 0:
        raise InputError(
            f"read_entries: noise variance must be positive, got {variance}; leave the entry out"
        )
    if noise is None:
        return variance, 0, white
    correlation = _fit_to(noise.array, CORRELATION_SIDE)
    return variance, 1, correlation / correlation[CORRELATION_SIDE // 2, CORRELATION_SIDE // 2]


def _column(catalog, name, index, missing):
    column = getattr(catalog, name, None)
    return missing if column is None else column[index]


def _read_entry(catalog, index, stamp, psf_stamp):
    _check_files(catalog, index)
    cut = catalog.getGalImage(index).array
    image, mask = _fit_to(cut, stamp), _fit_to(~np.isfinite(cut), stamp, fill=True)
    if mask.all():
        raise InputError(
            f"read_entries: image must have finite pixels, got none in {cut.shape}; leave the"
            " entry out"
        )
    psf = _centred_psf(catalog.getPSFImage(index).array, psf_stamp)
    variance, correlated, correlation = _noise_correlation(catalog, index)
    return {
        "image": np.where(mask, 0, image),
        "mask": mask,
        "psf": psf,
        "variance": variance,
        "correlated": correlated,
        "noise_correlation": correlation,
        "pixel_scale": catalog.pixel_scale[index],
        "centre_offset": np.array([-0.5 * ((stamp - length) % 2) for length in cut.shape[::-1]]),
        "cut_side": max(cut.shape),
        "magnitude": _column(catalog, "mag", index, np.nan),
        "band": str(_column(catalog, "band", index, "")),
        "ident": str(catalog.ident[index]),
        "index": index,
    }


def read_entries(
    catalog_path: FilePath, stamp: int, psf_stamp: int, start: int, stop: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows `start` to `stop - 1` of a catalogue as records of the recipe's fields, and those
    left out.

    Parameters
    ----------
    catalog_path, stamp, psf_stamp : as for `recipe`
    start, stop : int, rows

    Returns
    -------
    records : list of dicts
    skipped : list of dicts, each with index, ident and the reason
    """
    catalog, records, skipped = _open(str(catalog_path)), [], []
    for index in range(start, stop):
        try:
            records.append(_read_entry(catalog, index, stamp, psf_stamp))
        # one bad file among thousands must not end the run; astropy raises whatever the broken byte
        # leads to
        except Exception as error:
            skipped.append(
                {
                    "index": index,
                    "ident": str(catalog.ident[index]),
                    "reason": f"{type(error).__name__}: {error}",
                }
            )
    return records, skipped
