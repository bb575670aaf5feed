"""What a telescope recorded: one stamp, its noise, its mask, its PSF, its pixel scale, checked once
and then trusted.

`make_observation` and `make_psf` take arrays, `read_observation` and `read_psf` files (through
images.py). Everything that can be wrong with an observation is found here, so that nothing
downstream looks at shapes, signs or NaN again.
"""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from astropy.coordinates import SkyCoord
from astropy.nddata import Cutout2D, NDData
from astropy.nddata.utils import NoOverlapError
from astropy.units import Quantity, UnitBase, dimensionless_unscaled
from astropy.wcs import WCS

from astrogen.data.frames import sky_to_pixels
from astrogen.data.images import (
    MAX_PIXELS,
    choose_plane,
    header_wcs,
    only_plane,
    read_images,
    read_planes,
    split_path,
    take_plane,
    write_planes,
)
from astrogen.data.masks import flag_bad
from astrogen.data.psf import (
    PSF,
    PoorInputWarning,
    check_image,
    check_positive,
    make_psf,
    off_centre,
    psf_from_model,
    read_psf,
)
from astrogen.data.units import Brightness, convert, flux_unit, is_known, read_unit, unit_text
from astrogen.errors import InputError
from astrogen.noise import outermost_eighth, robust_sigma
from astrogen.types import FilePath

__all__ = [
    "PSF",
    "Observation",
    "PoorInputWarning",
    "as_observations",
    "make_observation",
    "make_psf",
    "psf_from_model",
    "read_observation",
    "read_planes",
    "read_psf",
    "write_planes",
]

PLANE_ROLES = {
    "image": {"SCI", "IMAGE"},
    "variance": {"VAR", "VARIANCE"},
    "sigma": {"ERR", "ERROR", "SIGMA", "STD", "STDDEV"},
    "weight": {"WHT", "WEIGHT", "IVAR"},
    "mask": {"MASK", "DQ", "BPM"},
}
# ERR is the total error there; WHT weighs the read noise alone.
JWST_PLANES = {"SCI", "ERR", "VAR_POISSON", "VAR_RNOISE"}
CCDDATA_ROLES = {
    "StdDevUncertainty": "sigma",
    "VarianceUncertainty": "variance",
    "InverseVariance": "weight",
}
NDDATA_ROLES = {"std": "sigma", "var": "variance", "ivar": "weight"}
# How noise may be stated: the power of the image's unit, and the variance of a positive plane.
NOISE = {
    "variance": (2, lambda plane: plane),
    "sigma": (1, lambda plane: plane**2),
    "weight": (-2, lambda plane: 1 / plane),
}

SCALE_TOLERANCE = 0.02
MIN_BORDER_PIXELS = 16


@dataclass(frozen=True, eq=False)
class Observation:
    """One stamp as a telescope recorded it.

    Made by `make_observation` or `read_observation`, which check it.

    image : float32 [h, w], flux per pixel in `unit`; 0 where masked
    variance : float32 [h, w], of the noise; 1 where masked
    mask : bool [h, w], True = bad
    psf : PSF
    pixel_scale : float, arcsec per pixel
    name : str
    wcs : astropy WCS with two celestial axes, or None
    unit : astropy Unit of the flux
    notes : tuple of str, what was repaired or assumed, as sentences
    status : "ok", or "no_data" where no good pixel is left
    brightness : Brightness of an image that was given per solid angle or per pixel, or None; files
        that are written hold it again
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    psf: PSF
    pixel_scale: float
    name: str
    wcs: WCS | None
    unit: UnitBase
    notes: tuple[str, ...]
    status: str
    brightness: Brightness | None = None


def make_observation(
    image: npt.ArrayLike,
    *,
    psf: Any,
    variance: Any = None,
    sigma: Any = None,
    weight: Any = None,
    mask: npt.ArrayLike | None = None,
    pixel_scale: float | None = None,
    wcs: Any = None,
    unit: Any = None,
    name: str = "object",
    max_bad_fraction: float = 0.5,
) -> Observation:
    """Check a stamp and everything that belongs to it.

    Bad pixels (NaN, infinite, variance not positive, masked) are masked and counted in `notes`.
    Without any noise plane the variance is estimated from the stamp's border.

    Parameters
    ----------
    image : array [h, w] of any real type, masked array, Quantity, or NDData / CCDData (its
        uncertainty, mask, wcs, unit count)
    psf : PSF, or what `psf_from_model` takes: an image on the observation's pixels, a model of
        photutils, a PSF of scarlet
    variance, sigma, weight : float, Quantity or array [h, w], at most one of them; `weight` is the
        inverse variance, 0 = masked
    mask : array [h, w], nonzero or NaN = bad; joined with a mask that the image brings along
    pixel_scale : float, arcsec per pixel; None: from the WCS at the middle of the stamp,
        distortions included
    wcs : astropy WCS, its celestial axes are used
    unit : astropy Unit or str of the image. Of surface brightnesses (MJy/sr) fluxes are made, with
        the area of the pixel in the middle of the stamp; units that are not known are carried as
        text
    name : str
    max_bad_fraction : float, largest fraction of NaN or infinite pixels (among all, beyond those
        masked) that is accepted

    Returns
    -------
    Observation, with status "no_data" where the stamp is empty or no good pixel is left

    Raises
    ------
    ValueError : shapes differ, two noise planes, a noise plane without any good value, no pixel
        scale, too many NaN, a PSF
        that does not fit the stamp, a unit whose sum is no flux (magnitudes, per beam).
    """
    text = unit if isinstance(unit, str) else None
    pixels, given_noise, mask, wcs, unit = _unpack(
        image, {"variance": variance, "sigma": sigma, "weight": weight}, mask, wcs, unit
    )
    pixels = check_image("make_observation", "image", pixels)
    notes: list[str] = []
    wcs, pixel_scale = _settle_scale(wcs, pixel_scale, pixels.shape, name, notes)
    unit, factor, brightness = _settle_unit(unit, text, wcs, pixel_scale, pixels.shape, notes)
    psf = psf_from_model(psf, pixel_scale=pixel_scale, name=f"psf of {name}")
    _check_psf(psf, pixel_scale, pixels.shape)
    if words := off_centre(psf, pixel_scale):
        notes.append(f"the PSF {words}")
    bad = _bad_pixels(mask, pixels.shape)
    with np.errstate(over="ignore"):
        pixels = (pixels if factor == 1 else pixels * float(factor)).astype(np.float32)
    _mask_nonfinite(pixels, bad, max_bad_fraction, name, notes)
    if bad.all():
        notes.append("no good pixel is left")
        variance = np.ones_like(pixels)
    else:
        variance = _settle_variance(given_noise, pixels, bad, factor, notes)
    for plane, filler in ((pixels, 0), (variance, 1)):
        plane[bad] = filler
        plane.setflags(write=False)
    bad.setflags(write=False)
    return Observation(
        pixels,
        variance,
        bad,
        psf,
        pixel_scale,
        str(name),
        wcs,
        unit,
        tuple(notes),
        "no_data" if bad.all() else "ok",
        brightness,
    )


def as_observations(
    stamps: Any, *, psf: Any = None, pixel_scale: float | None = None
) -> tuple[list[Observation], bool]:
    """Stamps in any of the forms that a pipeline holds them in, as Observations.

    Parameters
    ----------
    stamps : Observation, NDData, CCDData, array [h, w]; or a sequence (an array [num, h, w]) of
        them
    psf : of those that are no Observations, as in `make_observation`: one for all, or a list, tuple
        or cube [num, k, k] with one for each
    pixel_scale : float or None, arcsec per pixel of those that are no Observations; None: from
        their WCS

    Returns
    -------
    (list of Observation, bool: a single stamp was given). Names are the OBJECT of the metadata, or
    "object 1" and so on

    Raises
    ------
    ValueError : no psf where one is needed, one too many, and what `make_observation` refuses.
    """
    single = (
        isinstance(stamps, (Observation, NDData))
        or np.ndim(stamps if isinstance(stamps, np.ndarray) else ()) == 2
    )
    stamps = [stamps] if single else list(stamps)
    bare = [index for index, stamp in enumerate(stamps) if not isinstance(stamp, Observation)]
    if bare and psf is None:
        raise InputError(
            f"as_observations: psf must be given for {type(stamps[bare[0]]).__name__}, got None;"
            " give psf=, or make an Observation of it"
        )
    if not bare and (psf is not None or pixel_scale is not None):
        raise InputError(
            "as_observations: psf and pixel_scale must be None for Observations, which have"
            " their own, got one; leave it out"
        )
    each = isinstance(psf, (list, tuple)) or (getattr(psf, "ndim", 2) == 3 and not single)
    if each and len(psf) != len(stamps):
        raise InputError(
            f"as_observations: psf must be one for all or one for each of the {len(stamps)} stamps,"
            f" got {len(psf)}"
        )
    return [
        (
            stamp
            if isinstance(stamp, Observation)
            else make_observation(
                stamp,
                psf=psf[index] if each else psf,
                pixel_scale=pixel_scale,
                name=_object_name(stamp, index),
            )
        )
        for index, stamp in enumerate(stamps)
    ], single


def _object_name(stamp, index):
    meta = getattr(stamp, "meta", None) or {}
    return str(meta.get("OBJECT") or f"object {index + 1}")


def _unpack(image, noise, mask, wcs, unit):
    """Separate what NDData, masked arrays and Quantities bring along from the pixels."""
    given = {kind: plane for kind, plane in noise.items() if plane is not None}
    own_unit = getattr(image, "unit", None)
    own_mask = (
        np.ma.getmaskarray(image)
        if isinstance(image, np.ma.MaskedArray)
        else getattr(image, "mask", None)
    )
    if isinstance(image, NDData):
        wcs = image.wcs if wcs is None else wcs
        if image.uncertainty is not None:
            kind = image.uncertainty.uncertainty_type
            if kind not in NDDATA_ROLES:
                raise InputError(
                    "make_observation: image must carry an uncertainty of type"
                    f" {', '.join(NDDATA_ROLES)}, got {kind!r}; convert it"
                )
            own_noise = image.uncertainty.array
            given[f"{NDDATA_ROLES[kind]} of the image"] = (
                own_noise
                if image.uncertainty.unit is None
                else Quantity(own_noise, image.uncertainty.unit)
            )
        image = image.data
    if len(given) > 1:
        raise InputError(
            f"make_observation: noise must be given once, got {' and '.join(given)}; leave out all"
            " but one"
        )
    unit = _one_unit(read_unit(own_unit), unit)
    given = {kind: _without_unit(kind, plane, unit) for kind, plane in given.items()}
    masks = [plane for plane in (own_mask, mask) if plane is not None]
    return np.ma.getdata(getattr(image, "value", image)), given, masks, wcs, unit


def _one_unit(own, given):
    """The unit of an image that may bring one along, and be given one."""
    if given is None or own == dimensionless_unscaled:
        return own if given is None else read_unit(given)
    if read_unit(given) != own:
        raise InputError(
            f"make_observation: unit must be that of the image, {own}, got {given}; convert the"
            " image, or leave it out"
        )
    return own


def _without_unit(kind, plane, unit):
    """The numbers of a noise plane in the image's unit."""
    if not isinstance(plane, Quantity):
        return plane
    return convert(
        "make_observation", kind, plane.value, plane.unit, unit, NOISE[kind.split()[0]][0]
    )


def _same_shape(name, plane, shape):
    if plane.shape != shape:
        raise InputError(
            f"make_observation: {name} must have the image's shape {shape}, got {plane.shape}; cut"
            " both alike"
        )
    return plane


def _bad_pixels(masks, shape):
    bad = np.zeros(shape, bool)
    for mask in masks:
        bad |= _same_shape("mask", np.asarray(mask), shape) != 0  # NaN != 0
    return bad


def _mask_nonfinite(pixels, bad, max_bad_fraction, name, notes):
    """Mask NaN and infinite pixels in place; too many of them are an error, unless they are all
    there is.
    """
    lost = ~np.isfinite(pixels) & ~bad
    num_lost = np.count_nonzero(lost)
    if num_lost > max_bad_fraction * pixels.size and not (bad | lost).all():
        raise InputError(
            f"make_observation: image must have at most {max_bad_fraction:.0%} NaN or infinite"
            f" pixels, got {num_lost} of {pixels.size} in {name!r}; mask them or raise"
            " max_bad_fraction"
        )
    if num_lost:
        notes.append(f"{num_lost} NaN or infinite pixels masked")
    bad |= lost


def _settle_variance(given_noise, pixels, bad, factor, notes):
    """Variance float32 [h, w]; pixels without a usable one are masked in place. factor: what turns
    the image as given, and so its noise, into `pixels`.
    """
    if not given_noise:
        variance = _border_variance(pixels, bad)
        notes.append(f"no noise plane: variance {variance:.4g} estimated from the stamp's border")
        return np.full(pixels.shape, variance, np.float32)
    ((kind, plane),) = given_noise.items()
    plane = _same_shape(
        kind,
        np.broadcast_to(plane, pixels.shape) if np.ndim(plane) == 0 else np.asarray(plane),
        pixels.shape,
    )
    exact = _to_variance(kind.split()[0], plane.astype(np.float64)) * factor**2
    with np.errstate(over="ignore", invalid="ignore"):
        variance = exact.astype(np.float32)
        usable = np.isfinite(variance) & (variance >= np.finfo(np.float32).tiny)
        sound = np.isfinite(exact) & (exact > 0)
    if not usable.any():
        if sound.any():
            raise InputError(
                f"make_observation: {kind} must be a variance within float32, got"
                f" {np.median(exact[sound]):.3g}; multiply the image by a constant"
            )
        raise InputError(
            f"make_observation: {kind} must be positive and finite somewhere, got none of"
            f" {plane.size} pixels; check that this is the right plane"
        )
    if num_lost := np.count_nonzero(~usable & ~bad):
        notes.append(f"{num_lost} pixels masked whose {kind} is not positive and finite")
    bad |= ~usable
    return variance


def _to_variance(kind, plane):
    """Variance of a noise plane; NaN where it is no noise level."""
    plane = np.where(plane > 0, plane, np.nan)
    with np.errstate(over="ignore", divide="ignore"):
        return NOISE[kind][1](plane)


def _border_variance(pixels, bad):
    """Robust variance (median absolute deviation) of the stamp's outermost eighth."""
    values = pixels[outermost_eighth(pixels.shape) & ~bad].astype(np.float64)
    variance = robust_sigma(values) ** 2 if len(values) >= MIN_BORDER_PIXELS else 0.0
    if not variance >= np.finfo(np.float32).tiny:
        raise InputError(
            f"make_observation: variance must be given for this stamp, got none and {len(values)}"
            f" good border pixels with an estimate of {variance:.3g}; give variance=, sigma="
            " or weight="
        )
    return variance


def _settle_scale(wcs, pixel_scale, shape, name, notes):
    """(celestial WCS or None, pixel scale in arcsec), from the option or else from the WCS."""
    sides = None
    if wcs is not None:
        wcs = wcs.celestial if getattr(wcs, "has_celestial", False) else None
        sides = _wcs_pixel_sides(wcs, shape)
    if pixel_scale is not None:
        pixel_scale = check_positive(
            "make_observation", "pixel_scale", pixel_scale, "arcsec per pixel"
        )
        if sides and abs(sides[2] / pixel_scale - 1) > SCALE_TOLERANCE:
            notes.append(
                f"pixel scale {pixel_scale:.5g} arcsec as given, although the WCS says"
                f" {sides[2]:.5g}"
            )
            warnings.warn(f"make_observation: {name}: {notes[-1]}", PoorInputWarning, stacklevel=3)
        return wcs, pixel_scale
    if sides is None:
        raise InputError(
            f"make_observation: pixel_scale must be given for {name!r}, which has no celestial WCS,"
            " got None; give pixel_scale in arcsec per pixel"
        )
    if abs(sides[0] / sides[1] - 1) > SCALE_TOLERANCE:
        notes.append(
            f"pixels are not square: {sides[0]:.5g} x {sides[1]:.5g} arcsec; the side of a square"
            " of their area is used"
        )
    return wcs, sides[2]


def _settle_unit(unit, text, wcs, pixel_scale, shape, notes):
    """(unit of the flux, what the image must be multiplied by, Brightness or None); text: of the
    unit, where it was given as such.
    """
    flux, per_area = flux_unit("make_observation", unit)
    if per_area is None:
        return flux, 1.0, None if flux == unit else Brightness(text or unit_text(unit), None)
    # With distortions a pixel here has another area than in the middle of the exposure, whose scale
    # may be given for all its stamps; a scale that contradicts the WCS is taken at its word.
    sides = _wcs_pixel_sides(wcs, shape)
    if sides and abs(sides[2] / pixel_scale - 1) <= SCALE_TOLERANCE:
        pixel_scale = sides[2]
    factor = per_area * pixel_scale**2
    notes.append(
        f"surface brightness in {unit}: fluxes are sums over pixels of {pixel_scale**2:.4g}"
        f" arcsec2, in {flux}"
    )
    return flux, factor, Brightness(text or unit_text(unit), 1 / factor)


def to_unit(observation: Observation, unit: Any) -> Observation:
    """The same observation in another unit of flux; a ValueError where there is no way to it."""
    if observation.unit == unit:
        return observation
    factor = float(convert("to_unit", observation.name, 1.0, observation.unit, unit))
    brightness = observation.brightness
    if brightness and brightness.per_flux:
        brightness = brightness._replace(per_flux=brightness.per_flux / factor)
    image, variance = observation.image * factor, observation.variance * factor**2
    variance[observation.mask] = 1
    for plane in (image, variance):
        plane.setflags(write=False)
    return replace(
        observation,
        image=image,
        variance=variance,
        unit=unit,
        notes=(*observation.notes, f"converted from {observation.unit} to {unit}"),
        brightness=brightness,
    )


def as_given(
    observation: Observation, pixel_scale: float | None = None
) -> tuple[float, str | None]:
    """(factor, unit): what turns flux per pixel, of `pixel_scale` arcsec or else of the
    observation, into the numbers and the unit that the image was given in.
    """
    brightness = observation.brightness
    if brightness is None:
        return 1.0, observation.unit
    finer = 1.0 if pixel_scale is None else (observation.pixel_scale / pixel_scale) ** 2
    return (brightness.per_flux * finer if brightness.per_flux else 1.0), brightness.text


def _wcs_pixel_sides(wcs, shape):
    """Sides along x, along y, and of the square of equal area, in arcsec, of the middle pixel; None
    where undefined.

    Measured on the sphere through the full WCS: with TPV or SIP distortion the linear matrix alone
    is wrong by some 0.2%.
    """
    if wcs is None:
        return None
    y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    try:
        world = wcs.all_pix2world(
            np.array([[x - 0.5, y], [x + 0.5, y], [x, y - 0.5], [x, y + 0.5]]), 0
        )
    except Exception:  # wcslib has many errors; all of them mean that this WCS gives no scale
        return None
    lon, lat = np.radians(world[:, wcs.wcs.lng]), np.radians(world[:, wcs.wcs.lat])
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    along_x, along_y = points[1] - points[0], points[3] - points[2]
    area = np.linalg.norm(np.cross(along_x, along_y))
    sides = np.degrees([np.linalg.norm(along_x), np.linalg.norm(along_y), math.sqrt(area)]) * 3600
    return tuple(sides.tolist()) if np.isfinite(sides).all() and (sides > 0).all() else None


def _check_psf(psf, pixel_scale, shape):
    """A PSF must be sampled at least as finely as the stamp, contain its pixel or none, and fit the
    padded stamp.
    """
    if psf.pixel_scale > pixel_scale * (1 + SCALE_TOLERANCE):
        raise InputError(
            "make_observation: psf must be sampled at least as finely as the image, got"
            f" {psf.pixel_scale:.5g} arcsec per pixel for an image of {pixel_scale:.5g}; say how it"
            " is sampled (oversampling=)"
        )
    if psf.pixel_response and abs(psf.pixel_response / pixel_scale - 1) > SCALE_TOLERANCE:
        raise InputError(
            "make_observation: psf must contain the pixel of the image or none, got a pixel of"
            f" {psf.pixel_response:.5g} arcsec for one of {pixel_scale:.5g}; give pixel_response"
        )
    extent, limit = len(psf.image) * psf.pixel_scale, 2 * max(shape) * pixel_scale
    if min(shape) and extent > limit * (1 + SCALE_TOLERANCE):
        raise InputError(
            f"make_observation: psf must be no larger than the padded stamp, got {psf.image.shape}"
            f" pixels, {extent:.4g} arcsec, for a stamp of {shape}, {limit:.4g} arcsec with"
            " padding; crop the PSF or cut a larger stamp"
        )


# --- from files


def read_observation(
    path: FilePath,
    *,
    psf: Any,
    variance: Any = None,
    sigma: Any = None,
    weight: Any = None,
    mask: FilePath | None = None,
    bad_bits: Sequence[int | str] | None = None,
    hdu: int | str | None = None,
    plane: int | None = None,
    pixel_scale: float | None = None,
    name: str | None = None,
    position: Any = None,
    size: int | tuple[int, int] | None = None,
    max_bad_fraction: float = 0.5,
    max_pixels: int = MAX_PIXELS,
) -> Observation:
    """Read a stamp, or cut one out of a larger image.

    Planes that stand in the image's own file are found by their names: SCI or IMAGE (or the only
    image without another meaning); VAR, VARIANCE; ERR, ERROR, SIGMA, STD, STDDEV; WHT, WEIGHT, IVAR
    (inverse variance); MASK, DQ, BPM; and the UNCERT of a CCDData. Where several could be meant,
    the error lists them and nothing is guessed. Planes in other files are given as paths. Every
    path may be FILE[HDU], the HDU as a number, NAME, or NAME,VERSION.

    Layouts that are known:

    - HSC and Rubin (MaskedImage): IMAGE, MASK, VARIANCE. The bits have their names in the mask's
      header (MP_SAT ...); bad by default are BAD, SAT, CR, EDGE, SUSPECT, NO_DATA and UNMASKEDNAN.
    - DECam: ooi (image), oow (as `weight`) and ood (as `mask`), one HDU per CCD. Since version 3.5
      of its pipeline the mask holds codes: BAD 1, NO_DATA 2, SATURATED 3, BLEED 4, CR 5, LOW_WEIGHT
      6, TRANSIENT 7, STREAK 8; before, bits: BAD 1, SATURATED 2, INTERPOLATED 4, CR 16, BLEED 64,
      TRANSIENT 128, EDGE 256, EDGE2 512. Bad by default are all but STREAK.
    - JWST: SCI and ERR, the total error; WHT and the VAR_* are parts of it.
    - any other mask: every nonzero value is bad by default.

    Parameters
    ----------
    path : path, FITS (plain or gzip) or .npy, or FILE[HDU]
    psf : PSF
    variance, sigma, weight : path, float or Quantity, at most one; `weight` is the inverse
        variance, 0 = masked
    mask : path
    bad_bits : sequence of names and values (1, 2, 4, ...: as the survey prints them, sums allowed;
        codes where the mask holds
        codes) that make a pixel bad; None: the default of the survey
    hdu : int, str or None, the image's HDU
    plane : int or None, which plane of a cube (of the image and of every other cube)
    pixel_scale : float or None, arcsec per pixel; None: from the WCS
    name : str or None; None: the file's name without its endings
    position : (x, y) pixels from 0, or SkyCoord, centre of a cutout
    size : int or (h, w), pixels of the cutout, which must lie inside the image
    max_bad_fraction : float, as in `make_observation`
    max_pixels : int, cap on the pixels of each plane

    Returns
    -------
    Observation

    Raises
    ------
    InputFileError : a file is damaged or too large, or does not say which plane is meant.
    ValueError : what `make_observation` refuses; a cutout outside the image; unknown `bad_bits`.
    """
    frame = read_frame(
        path,
        variance=variance,
        sigma=sigma,
        weight=weight,
        mask=mask,
        bad_bits=bad_bits,
        hdu=hdu,
        plane=plane,
        max_pixels=max_pixels,
    )
    if position is not None or size is not None:
        _check_box(frame, position, size)
        frame = cut_frame(frame, position, size)
    return check_frame(
        frame,
        psf=psf,
        pixel_scale=pixel_scale,
        name=_name_of(split_path(path)[0]) if name is None else name,
        max_bad_fraction=max_bad_fraction,
    )


class Frame(NamedTuple):
    """What the files of an image say, of which nothing has been checked but that the planes fit
    each other: image [h, w]; noise {kind: plane or float}, one or none; bad [h, w] or None;
    wcs or None; unit (str or None)."""

    image: np.ndarray
    noise: dict
    bad: np.ndarray | None
    wcs: WCS | None
    unit: str | None

    @property
    def pixel_scale(self) -> float | None:
        """Arcsec per pixel in the middle; None where no WCS tells."""
        sides = _wcs_pixel_sides(self.wcs, self.image.shape)
        return sides and sides[2]


def read_frame(
    path: FilePath,
    *,
    variance: Any = None,
    sigma: Any = None,
    weight: Any = None,
    mask: FilePath | None = None,
    bad_bits: Sequence[int | str] | None = None,
    hdu: int | str | None = None,
    plane: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Frame:
    """An image and what belongs to it, to cut many stamps out of: a Frame.

    Parameters and errors are those of `read_observation`.
    """
    file, bracket = split_path(path)
    planes = read_images(file, max_pixels=max_pixels)
    science = _choose_science(file, planes, bracket if hdu is None else hdu)
    image = take_plane(file, science, plane)
    given = {
        kind: source
        for kind, source in (("variance", variance), ("sigma", sigma), ("weight", weight))
        if source is not None
    }
    if len(given) > 1:
        raise InputError(
            f"read_observation: noise must be given once, got {' and '.join(given)}; leave out all"
            " but one"
        )
    unit = str(science.keyword("BUNIT", "")).strip() or None
    noise = _read_noise(file, planes, science, given, plane, max_pixels, unit)
    bad = _read_mask(file, planes, science, mask, bad_bits, plane, max_pixels)
    for kind, pixels in (*noise.items(), ("mask", bad)):
        if pixels is not None and np.ndim(pixels):
            _same_shape(kind, pixels, image.shape)
    return Frame(
        image,
        noise,
        bad,
        header_wcs(science.header),
        unit,
    )


def cut_frame(frame: Frame, position: Any, size: Any) -> Frame:
    """Cut the image and what belongs to it alike; what lies beyond the image is masked. position:
    (x, y) pixels from 0, or SkyCoord; size: int or (h, w).
    """
    if position is None or size is None:
        raise InputError(
            f"read_observation: position and size must be given together, got position={position},"
            f" size={size}; give both"
        )
    if isinstance(position, SkyCoord) and frame.wcs is None:
        raise InputError(
            "read_observation: position must be in pixels, because the image has no WCS, got"
            f" {position}; give (x, y)"
        )

    place = tuple(_on_image(frame, position)) if isinstance(position, SkyCoord) else position

    def _cut(pixels):
        return Cutout2D(pixels, place, size, wcs=frame.wcs, mode="partial", fill_value=0, copy=True)

    try:
        stamp = _cut(frame.image)
    except (NoOverlapError, ValueError, TypeError) as error:
        raise InputError(
            "read_observation: position and size must describe a box that meets the image"
            f" {frame.image.shape}, got {position}, {size} ({error}); give pixels from 0"
        ) from error
    beyond = np.ones(stamp.shape, bool)
    beyond[stamp.slices_cutout] = False
    noise = {
        kind: _cut(pixels).data if np.ndim(pixels) else pixels
        for kind, pixels in frame.noise.items()
    }
    return Frame(
        stamp.data,
        noise,
        beyond if frame.bad is None else beyond | _cut(frame.bad).data,
        stamp.wcs,
        frame.unit,
    )


def _on_image(frame, position):
    """(x, y) pixels from 0 of a SkyCoord; refused where the WCS does not reach it."""
    place = sky_to_pixels(frame.wcs, position, name="the image")
    if not np.isfinite(place).all():
        raise InputError(
            "read_observation: position must lie on the image, got (RA, Dec)"
            f" {position.to_string('decimal')}, where its WCS gives no pixel; give one inside"
        )
    return place


def _check_box(frame, position, size):
    """A cutout must lie inside the image: what is beyond says nothing, and a position beyond is a
    mistake, often sky coordinates in place of pixels.
    """
    if position is None or size is None or isinstance(position, SkyCoord) and frame.wcs is None:
        return
    on_sky = isinstance(position, SkyCoord)
    place = _on_image(frame, position) if on_sky else position
    try:
        place, shape = np.asarray(place, float).reshape(2), frame.image.shape
        sides = np.broadcast_to(size, 2).astype(float)[::-1]  # along x, along y
    except (TypeError, ValueError):
        return  # no box at all, which `cut_frame` refuses
    hint = "" if on_sky else _sky_hint(frame, place)
    low = np.ceil(place - sides / 2)
    if (low >= 0).all() and (low + sides <= shape[::-1]).all():
        if hint:
            warnings.warn(
                f"read_observation: position {tuple(place.tolist())} is taken as pixels; {hint}",
                PoorInputWarning,
                stacklevel=3,
            )
        return
    inside = (place > -0.5).all() and (place < np.array(shape[::-1]) - 0.5).all()
    where = ", ".join(f"{part:.6g}" for part in place)
    side = int(min(2 * np.min(np.r_[place + 0.5, np.array(shape[::-1]) - 0.5 - place]), 1e9))
    advice = f"take a smaller size (at most about {side})" if inside else "give pixels from 0"
    raise InputError(
        "read_observation: position and size must describe a box inside the image of"
        f" {shape[1]} x {shape[0]} pixels, got ({where}), which lies"
        f" {'too near its edge for' if inside else 'outside it, and'} a size of"
        f" {sides[0]:g} x {sides[1]:g}; {hint or advice}"
    )


def _sky_hint(frame, place):
    """What to say of a position in pixels that the WCS would take for RA and Dec in the image."""
    if frame.wcs is None or not abs(place[1]) <= 90:
        return ""
    try:
        x, y = (float(part) for part in frame.wcs.world_to_pixel(SkyCoord(*place, unit="deg")))
    except Exception:  # wcslib has many errors; none of them leaves a hint
        return ""
    if not (0 <= x < frame.image.shape[1] and 0 <= y < frame.image.shape[0]):
        return ""
    return f"as RA and Dec in degrees it is pixel ({x:.1f}, {y:.1f}) of the image: give that"


def check_frame(frame: Frame, **how: Any) -> Observation:
    """The Observation of a frame; further parameters and errors are those of `make_observation`."""
    return make_observation(
        frame.image, mask=frame.bad, wcs=frame.wcs, unit=frame.unit, **frame.noise, **how
    )


def _name_of(file):
    return re.sub(r"(\.(fits?|fts|npy))?(\.(gz|fz))?$", "", Path(file).name, flags=re.IGNORECASE)


def _role(plane):
    """What a plane's name says that it is, or None."""
    if plane.name == "UNCERT":
        return CCDDATA_ROLES.get(plane.keyword("UTYPE", "StdDevUncertainty"))
    return next((role for role, names in PLANE_ROLES.items() if plane.name in names), None)


def _choose_science(file, planes, hdu):
    if hdu is not None:
        return choose_plane(file, planes, hdu)
    named = [plane for plane in planes if _role(plane) == "image"]
    return only_plane(
        file, named or [plane for plane in planes if _role(plane) is None], planes, "the image"
    )


def _of_roles(file, planes, science, roles):
    """The plane of `science`'s own file that has one of `roles`, or None."""
    found = [plane for plane in planes if _role(plane) in roles and plane is not science]
    siblings = [plane for plane in found if plane.version == science.version] or found
    if {plane.name for plane in planes} >= JWST_PLANES:
        siblings = [plane for plane in siblings if _role(plane) != "weight"]
    choice = " or ".join(f"{_role(plane)}={file}[{plane.name}]" for plane in siblings)
    return (
        only_plane(file, siblings, planes, f"the {' or '.join(roles)}", choice=choice)
        if found
        else None
    )


def _read_other(path, role, science, max_pixels):
    """The plane of another file that is meant by option `role`: by brackets, role, being alone, or
    the image's own name.
    """
    file, bracket = split_path(path)
    planes = read_images(file, max_pixels=max_pixels)
    if bracket is not None:
        return choose_plane(file, planes, bracket)
    named = [plane for plane in planes if _role(plane) == role]
    same = [
        plane
        for plane in planes
        if plane.name and (plane.name, plane.version) == (science.name, science.version)
    ]
    return only_plane(file, planes if len(planes) == 1 else named or same, planes, f"the {role}")


def _read_noise(file, planes, science, given, plane, max_pixels, unit):
    """{kind: pixels} of the noise plane that is given as path or number, or that stands in the
    image's file; else {}. In the image's `unit`.
    """
    for kind, source in given.items():
        if isinstance(source, (int, float, Quantity)):
            return {kind: source}
        other = _read_other(source, kind, science, max_pixels)
        return {kind: _in_unit_of(unit, kind, take_plane(source, other, plane), other)}
    found = _of_roles(file, planes, science, tuple(NOISE))
    return (
        {_role(found): _in_unit_of(unit, _role(found), take_plane(file, found, plane), found)}
        if found
        else {}
    )


def _in_unit_of(image_unit, kind, pixels, source):
    """The pixels of a noise plane in the image's unit (text, or None).

    A header without a unit, or with that of the image word for word, which pipelines copy to all
    planes, says nothing new.
    """
    own = str(source.keyword("BUNIT", "")).strip()
    if not own or not image_unit or own == image_unit:
        return pixels
    unit, wanted = read_unit(own), read_unit(image_unit)
    if not (is_known(unit) and is_known(wanted)) or unit == dimensionless_unscaled:
        return pixels
    return convert("read_observation", kind, pixels, unit, wanted, NOISE[kind][0])


def _read_mask(file, planes, science, mask, bad_bits, plane, max_pixels):
    """Bad pixels, bool [h, w], or None without any mask."""
    found = (
        _of_roles(file, planes, science, ("mask",))
        if mask is None
        else _read_other(mask, "mask", science, max_pixels)
    )
    if found is None:
        if bad_bits is not None:
            raise InputError(
                f"read_observation: mask must be given with bad_bits, got bad_bits={bad_bits!r} and"
                f" no mask in {file}; give mask="
            )
        return None
    return flag_bad(take_plane(mask or file, found, plane), found, bad_bits)
