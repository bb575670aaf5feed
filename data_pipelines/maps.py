"""Convergence maps that users have, brought to the records of the simulated ones: averaged to the
same pixels and cut into the same squares.

The formats differ in what a file says of itself; the cosmology and the redshift of the sources
stand in none of them reliably, and are given by the user.

| format | file | pixel scale |
|---|---|---|
| image | FITS or .npy, one map or a cube | given |
| ktng | kappaTNG: Fortran record of 1024 x 1024 float64 (.dat), or FITS | 5 deg over the side |
| massivenus | MassiveNuS: FITS | 3.5 deg over the side |
| columbia | Columbia lensing group (LensTools): FITS, the side in degrees in ANGLE | from the
header | | cosmogrid | CosmoGrid: HEALPix map in RING order, .npy or FITS image | squares in tangent
planes all over the sky |
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from astrogen.data.images import only_plane, read_images
from astrogen.data.reading import read_bytes
from astrogen.errors import InputError, InputFileError
from astrogen.types import FilePath
from data_pipelines.healpix import cut_squares
from data_pipelines.pixels import FIELDS, PIXEL_SCALE, SIDE, average_pixels, cut_maps

RECIPE_VERSION = 1
WIDTHS = {"ktng": 5.0, "massivenus": 3.5}  # degrees
FORMATS = ("image", "ktng", "massivenus", "columbia", "cosmogrid")
KTNG_BYTES = 1024 * 1024 * 8
MAX_BYTES, MAX_SIDE = 2**31, 16_384  # of a file, of a map in pixels
ARCMIN_PER_DEGREE = 60


def _fortran_record(path):
    """The square map of a Fortran record between two markers that state its length, or None where
    the file is not one.
    """
    content = read_bytes(path, max_bytes=MAX_BYTES)
    if (
        len(content) != KTNG_BYTES + 8
        or content[:4] != content[-4:]
        or int.from_bytes(content[:4], "little") != KTNG_BYTES
    ):
        return None
    return np.frombuffer(content, "<f8", offset=4, count=KTNG_BYTES // 8).reshape(1024, 1024)


def _only_image(path):
    planes = read_images(path)
    return only_plane(path, planes, planes, "the map")


def _pixel_scale(path, plane, map_format, stated):
    """Arcmin per pixel of a map, from the user, from the format, or from the header."""
    side = WIDTHS.get(map_format) if map_format != "columbia" else plane.keyword("ANGLE")
    if stated is not None:
        return stated
    if side is None:
        wanted = "a header with ANGLE, in degrees" if map_format == "columbia" else "known"
        raise InputFileError(
            path,
            f"read_maps: pixel scale must be {wanted}, got none; give --map-pixel-scale ARCMIN",
        )
    if not (isinstance(side, (int, float)) and 0 < side < 360):
        raise InputFileError(
            path, f"read_maps: ANGLE must be a positive number of degrees, got {side!r}"
        )
    return float(side) * ARCMIN_PER_DEGREE / plane.pixels.shape[-1]


def _flat_maps(path, map_format, stated):
    """All maps of a file, [num, height, width], and their arcmin per pixel."""
    record = _fortran_record(path) if map_format == "ktng" else None
    if record is not None:
        return record[None], stated or WIDTHS["ktng"] * ARCMIN_PER_DEGREE / len(record)
    plane = _only_image(path)
    if plane.pixels.ndim not in (2, 3):
        raise InputFileError(
            path,
            f"read_maps: map must have 2 or 3 axes, got shape {plane.pixels.shape}; give one map or"
            " a cube of maps",
        )
    if not 0 < max(plane.pixels.shape[-2:]) <= MAX_SIDE:
        raise InputFileError(
            path,
            f"read_maps: map must have sides of at most {MAX_SIDE} pixels, got"
            f" {plane.pixels.shape}; cut it first",
        )
    return plane.pixels.reshape(-1, *plane.pixels.shape[-2:]), _pixel_scale(
        path, plane, map_format, stated
    )


def read_maps(
    path: FilePath, *, map_format: str, map_pixel_scale: float | None = None
) -> np.ndarray:
    """All maps on the grid of the records (64x64 pixels of 2.3 arcmin) that a file yields.

    Parameters
    ----------
    path : path
    map_format : str, one of FORMATS
    map_pixel_scale : float or None, arcmin per pixel of the file, where its format does not say

    Returns
    -------
    float32 ndarray [num, 64, 64], the mean convergence of every pixel

    Raises
    ------
    astrogen.data.images.InputFileError : damaged, not of this format, not finite, coarser than the
    pixels wanted, or smaller than one map.
    """
    if not Path(path).is_file():
        raise InputFileError(path, "read_maps: file must exist, got no regular file")
    if map_format == "cosmogrid":
        maps = cut_squares(
            _finite(path, _only_image(path).pixels), path, side=SIDE, pixel_scale=PIXEL_SCALE
        )
    else:
        flat, own_scale = _flat_maps(path, map_format, map_pixel_scale)
        if not 0 < own_scale <= PIXEL_SCALE:
            raise InputFileError(
                path,
                f"read_maps: pixels must be at most {PIXEL_SCALE} arcmin, got {own_scale:.4g}; the"
                " file is too coarse",
            )
        maps = np.concatenate(
            [
                cut_maps(average_pixels(one, own_scale / PIXEL_SCALE), SIDE)
                for one in _finite(path, flat)
            ]
        )
    if not len(maps):
        raise InputFileError(
            path,
            f"read_maps: map must be at least {SIDE} pixels of {PIXEL_SCALE} arcmin wide, got less;"
            " give larger maps",
        )
    return maps.astype(np.float32)


def _finite(path, pixels):
    bad = int(np.sum(~np.isfinite(pixels)))
    if bad:
        raise InputFileError(
            path,
            f"read_maps: map must be finite, got {bad} pixels that are not; cut them out first",
        )
    return np.asarray(pixels, np.float64)


def recipe(
    paths: Sequence[FilePath],
    *,
    map_format: str,
    omega_m: float,
    sigma_8: float,
    source_redshift: float,
    map_pixel_scale: float | None = None,
) -> dict[str, Any]:
    """What the records of users' maps are made of, as their manifest states it (JSON); every file
    counts as one simulation.

    Raises
    ------
    ValueError : a cosmology or redshift that cannot be.
    astrogen.data.images.InputFileError : as `read_maps`, of the first file.
    """
    for name, value in (
        ("omega_m", omega_m),
        ("sigma_8", sigma_8),
        ("source_redshift", source_redshift),
    ):
        if not 0 < value < 10:
            raise InputError(
                f"recipe: {name} must be positive and below 10, got {value}; give what the maps"
                " were made with"
            )
    maps_per_file = len(read_maps(paths[0], map_format=map_format, map_pixel_scale=map_pixel_scale))
    return {
        "kind": "convergence",
        "recipe_version": RECIPE_VERSION,
        "num": len(paths) * maps_per_file,
        "maps_per_simulation": maps_per_file,
        "files": [str(path) for path in paths],
        "format_read": map_format,
        "map_pixel_scale": map_pixel_scale,
        "omega_m": omega_m,
        "sigma_8": sigma_8,
        "pixel_scale": PIXEL_SCALE,
        "pixel_scale_unit": "arcmin",
        "source_redshift": source_redshift,
        "transform": "kappa",
        "fields": FIELDS,
    }


def draw_records(header: dict[str, Any], start: int, stop: int) -> Any:
    """Maps `start` to `stop - 1` of a recipe, whole files, as records of its fields, and those left
    out with the reason.
    """
    records, skipped, per_file = [], [], header["maps_per_simulation"]
    for simulation in range(start // per_file, -(-stop // per_file)):
        path, first = header["files"][simulation], simulation * per_file
        try:
            maps = read_maps(
                path, map_format=header["format_read"], map_pixel_scale=header["map_pixel_scale"]
            )
            if len(maps) != per_file:
                raise InputFileError(
                    path,
                    f"draw_records: file must yield {per_file} maps as the first one, got"
                    f" {len(maps)}; bring in files of another size apart",
                )
        except (InputFileError, OSError) as error:
            skipped += [
                {"index": index, "ident": Path(path).name, "reason": str(error)}
                for index in range(first, first + per_file)
            ]
            continue
        records += [
            {
                "kappa": kappa,
                "omega_m": header["omega_m"],
                "sigma_8": header["sigma_8"],
                "simulation": simulation,
                "index": first + number,
            }
            for number, kappa in enumerate(maps)
        ]
    return records, skipped
