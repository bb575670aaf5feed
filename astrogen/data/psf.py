"""The point-spread function of an observation: an image of a star, checked once when it is made."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from astrogen.data.images import (
    MAX_PIXELS,
    choose_plane,
    only_plane,
    read_images,
    read_psfex,
    split_path,
    take_plane,
)
from astrogen.errors import InputError, printable
from astrogen.noise import robust_sigma
from astrogen.types import FilePath, Place

SUM_TOLERANCE = 0.01
CENTRE_TOLERANCE = 0.02  # pixels of the observation
# Widths of the Gaussian weights, in those of the PSF, that say where its centre is: the second one
# says it, and a PSF on which they disagree has no centre that is better known than that.
CENTRE_WIDTHS = (0.6, 1.0, 1.6)
CENTRE_SIGMA = 4.0  # errors of the centre from the image's own noise, from which it is off
LEAST_WIDTH = 1.2  # pixels, sigma of the narrowest weight: samples of a narrower one alias
MOST_STEPS, SETTLED = 100, 1e-5  # of the weight that follows the centre, pixels
PSFEX_FIELD = 1.0  # in sides of the field that was fitted, whose border is at 0.5
FWHM_GRID = 512  # sides to which a PSF is interpolated to measure it
# of the maximum: pixels above it, and their neighbours, are interpolated to find the half maximum
CORE = 0.3


class PoorInputWarning(UserWarning):
    """Input that can be used, but that somebody should look at."""

    def __str__(self):
        return printable(super().__str__())


@dataclass(frozen=True, eq=False)
class PSF:
    """A point-spread function as an image. Made by `make_psf` or `read_psf`, which check it.

    image : float64 [k, k], k odd, sum 1, centred on the middle pixel
    pixel_scale : float, arcsec per pixel of this image, which may be finer than that of the
        observation
    pixel_response : float, side in arcsec of the square pixel that the image already contains (0:
        none)
    """

    image: np.ndarray
    pixel_scale: float
    pixel_response: float

    @cached_property
    def fwhm(self) -> float:
        """Full width at half maximum in arcsec: the diameter of a circle with the area above half
        the maximum.

        The pixel response is included where the image contains it. Right to 0.2% for Gaussian and
        Moffat profiles of 3 or more pixels, to 3% at 1.8 pixels (tests/test_observation.py).
        """
        factor = max(1, min(8, FWHM_GRID // len(self.image)))
        bright = np.argwhere(self.image > CORE * self.image.max())
        box = [
            slice(max(low - 2, 0) * factor, (high + 3) * factor)
            for low, high in zip(bright.min(0), bright.max(0), strict=True)
        ]
        fine = _interpolate(self.image, factor, *box)
        half = fine.max() / 2
        slope = np.maximum(np.hypot(*np.gradient(fine)), 1e-12 * half)
        # pixels cut by the contour count in part
        area = np.clip((fine - half) / slope + 0.5, 0, 1).sum()
        return 2 * math.sqrt(area / math.pi) / factor * self.pixel_scale

    @cached_property
    def offset(self) -> Place:
        """(x, y) arcsec of the light's centre from the middle pixel; zero where it cannot be told
        from zero, because of the image's noise or of an asymmetry.

        The centre is the fixed point of a centroid under a round Gaussian as wide as the PSF: the
        centre of symmetry of any PSF that has one.
        """
        centre, doubt = _find_centre(self.image, self.fwhm / self.pixel_scale)
        known = float(np.hypot(*centre)) > doubt
        return tuple(float(part) * self.pixel_scale * known for part in centre)


def _interpolate(image, factor, rows, columns):
    """Fourier interpolation of an odd square image onto a `factor` times finer periodic grid, of
    which `rows` and `columns` are returned.
    """
    matrix = _interpolation(len(image), factor)
    return matrix[rows] @ image @ matrix[columns].T


@lru_cache(maxsize=8)
def _interpolation(size, factor):
    """The matrix [factor * size, size] for one axis."""
    spectrum, padded = np.fft.fft(np.eye(size), axis=0), np.zeros([factor * size, size], complex)
    padded[np.fft.fftfreq(size, 1 / size).astype(int)] = spectrum
    return np.fft.ifft(padded, axis=0).real * factor


def make_psf(
    image: npt.ArrayLike,
    *,
    pixel_scale: float,
    pixel_response: float | None = None,
    recentre: bool = False,
    name: str = "psf",
) -> PSF:
    """Check a PSF image and normalise it.

    Parameters
    ----------
    image : array [h, w], any real type; odd sides, padded with zeros to a square where they differ
    pixel_scale : float, arcsec per pixel of this image
    pixel_response : float or None, side in arcsec of the pixel that the image contains; None: an
        effective PSF on the
        observation's own grid, that is `pixel_scale`; 0: no pixel in it
    recentre : bool, move the centre of the light to the middle pixel (Fourier), from wherever it
        is: between the middle pixels of even sides, on either of them, or off by a fraction
    name : str, for messages

    Returns
    -------
    PSF

    Raises
    ------
    ValueError : not 2-d, NaN, sum not positive, even sides without `recentre`, impossible scale.

    Warns
    -----
    PoorInputWarning : the sum is off by more than 1% (it is renormalised), or the light is off the
        middle by more than .02 pixels of the observation.
    """
    return _make_psf(image, pixel_scale, pixel_response, recentre, name, pixel_response or None)


def _make_psf(image, pixel_scale, pixel_response, recentre, name, observed_scale):
    """As `make_psf`; observed_scale : arcsec per pixel of the observation, None: unknown."""
    pixel_scale = check_positive(
        "make_psf", "pixel_scale", pixel_scale, "arcsec per pixel of the PSF image"
    )
    pixel_response = pixel_scale if pixel_response is None else float(pixel_response)
    if not 0 <= pixel_response < math.inf:
        raise InputError(
            f"make_psf: pixel_response must be 0 or a side in arcsec, got {pixel_response}; "
            "give 0 for a PSF without pixel"
        )
    image = check_image("make_psf", name, image).astype(np.float64)
    if not np.isfinite(image).all():
        raise InputError(
            f"make_psf: {name} must be finite, got {np.count_nonzero(~np.isfinite(image))} NaN or"
            f" infinite pixels of {image.size}; repair or crop it"
        )
    total = image.sum()
    if not total > 0 or not math.isfinite(total):
        raise InputError(
            f"make_psf: {name} must have a positive sum, got {total:.6g}; it holds no point source"
        )
    image = _odd_square(image, recentre, name)
    if abs(total - 1) > SUM_TOLERANCE:
        warnings.warn(
            f"make_psf: {name} sums to {total:.6g} instead of 1; it was renormalised",
            PoorInputWarning,
            stacklevel=3,
        )
    psf = _as_psf(image, pixel_scale, pixel_response)
    if recentre:
        psf = _recentred(psf)
    if words := off_centre(psf, observed_scale or pixel_scale):
        warnings.warn(
            f"make_psf: {name} {words}; give recentre=True"
            " if its middle pixel is not meant to be the star's place",
            PoorInputWarning,
            stacklevel=3,
        )
    return psf


def _as_psf(image, pixel_scale, pixel_response):
    image = image / image.sum()
    image.setflags(write=False)
    return PSF(image, pixel_scale, pixel_response)


def off_centre(psf: PSF, pixel_scale: float) -> str | None:
    """What there is to say about a PSF whose light is not on its middle pixel, or "".

    pixel_scale : float, arcsec per pixel of the observation
    """
    dx, dy = (part / pixel_scale for part in psf.offset)
    if math.hypot(dx, dy) <= CENTRE_TOLERANCE:
        return ""
    return (
        f"is centred {dx:+.2f}, {dy:+.2f} pixels from its middle pixel; positions will be off by"
        " as much"
    )


def _find_centre(image, fwhm):
    """(centre (x, y) in pixels from the middle, how far from the middle it must be to count); fwhm
    in pixels.
    """
    top, left = np.unravel_index(np.argmax(image), image.shape)
    middle = len(image) // 2
    sigma = fwhm / math.sqrt(8 * math.log(2))
    places, errors = zip(
        *(
            _weighted_centroid(
                image, max(factor * sigma, LEAST_WIDTH), np.array([left - middle, top - middle])
            )
            for factor in CENTRE_WIDTHS
        ),
        strict=True,
    )
    centre, error = places[1], errors[1]
    spread = max(float(np.hypot(*(place - centre))) for place in places)
    return centre, max(2 * spread, CENTRE_SIGMA * error)


def _weighted_centroid(image, sigma, centre):
    """(centroid (x, y) from the middle under a Gaussian that follows it, its error) in pixels; the
    start and an infinite error where the weight holds no light.
    """
    offsets = np.arange(len(image)) - len(image) // 2
    place = centre.astype(float)
    for _ in range(MOST_STEPS):
        x, y = offsets - place[0], offsets - place[1]
        weight = np.exp(-0.5 * (x**2 + y[:, None] ** 2) / sigma**2)
        light = image * weight
        if not light.sum() > 0 or (np.abs(place) > len(image) / 2).any():
            return centre.astype(float), math.inf
        step = np.array([light.sum(0) @ x, light.sum(1) @ y]) / light.sum()
        place = place + 1.5 * step  # under a weight of its own width a Gaussian moves by half
        if np.abs(step).max() < SETTLED:
            break
    border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel()])
    noise = robust_sigma(border)
    return place, 2 * noise * math.sqrt((weight**2 * x**2).sum()) / float(light.sum())


def _odd_square(image, recentre, name):
    """Padded with zeros to an odd square; even sides, which have no middle pixel, are refused
    where they are not to be recentred.
    """
    even = image.shape[0] % 2 == 0 or image.shape[1] % 2 == 0
    padded = np.pad(image, [(0, 1 - side % 2) for side in image.shape])
    side = max(padded.shape)
    square = np.pad(padded, [((side - n) // 2,) * 2 for n in padded.shape])
    if even and not recentre:
        psf = _as_psf(square, 1.0, 1.0)
        centre, _ = _find_centre(psf.image, psf.fwhm)
        x, y = (part + n // 2 for part, n in zip(centre, image.shape[::-1], strict=True))
        raise InputError(
            f"make_psf: {name} must have odd sides, got {image.shape} with its light about pixel"
            f" ({x:.2f}, {y:.2f}) from 0; give recentre=True,"
            " which moves it to the middle pixel, or crop it so that its centre is"
            " the middle pixel"
        )
    return square


def _recentred(psf):
    """The PSF with its light's centre on the middle pixel, within a thousandth."""
    moved, total = psf, np.zeros(2)
    for _ in range(4):
        centre, _ = _find_centre(moved.image, psf.fwhm / psf.pixel_scale)
        total = total + centre
        moved = _as_psf(_shifted(psf.image, total), psf.pixel_scale, psf.pixel_response)
        if np.abs(centre).max() < 1e-3:
            break
    return moved


def _shifted(image, place):
    """The image with what stands at `place`, (x, y) from the middle, on the middle pixel: whole
    pixels first, without wrapping around, the fraction by Fourier.
    """
    whole = np.rint(place).astype(int)
    for axis, steps in ((1, whole[0]), (0, whole[1])):
        image = np.roll(image, -steps, axis)
        gone = [slice(None), slice(None)]
        gone[axis] = slice(-steps, None) if steps > 0 else slice(0, -steps)
        if steps:
            image[tuple(gone)] = 0
    frequency = 2j * np.pi * np.fft.fftfreq(len(image))
    phase = np.exp(frequency[:, None] * (place[1] - whole[1]) + frequency * (place[0] - whole[0]))
    return np.fft.ifft2(np.fft.fft2(image) * phase).real


def read_psf(
    path: FilePath,
    *,
    pixel_scale: float,
    oversampling: float = 1,
    includes_pixel: bool = True,
    recentre: bool = False,
    position: Place | None = None,
    hdu: int | str | None = None,
    plane: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> PSF:
    """Read a PSF: a FITS or .npy image, or a PsfEx model (plain PsfEx, or the merged tables of the
    Legacy Surveys).

    Parameters
    ----------
    path : path, or FILE[HDU]
    pixel_scale : float, arcsec per pixel of the observation (not of an oversampled PSF image)
    oversampling : float, pixels of the PSF image per pixel of the observation; a PsfEx file states
        its own
    includes_pixel : bool, the PSF contains the pixel response of the observation (the usual,
        "effective" PSF)
    recentre : bool, as in `make_psf`
    position : (x, y) or None, where a PsfEx model is evaluated, in the pixels (from 0) of the image
        that it was fitted on,
        which may be larger than the stamp; None: the origin of its polynomial, usually the middle
        of the chip
    hdu : int, str or None, which HDU holds the image
    plane : int or None, which plane of a cube, or which row of a merged PsfEx table
    max_pixels : int, cap on the pixels of a file

    Returns
    -------
    PSF

    Raises
    ------
    InputFileError : the file is damaged, or does not say which image is meant.
    ValueError : what `make_psf` refuses; an `oversampling` other than 1 with a PsfEx file.
    """
    pixel_scale = check_positive(
        "read_psf", "pixel_scale", pixel_scale, "arcsec per pixel of the observation"
    )
    oversampling = check_positive(
        "read_psf", "oversampling", oversampling, "pixels of the PSF image per observed pixel"
    )
    file, bracket = split_path(path)
    model = read_psfex(file, position=position, row=plane, max_pixels=max_pixels)
    if model is None:
        planes = read_images(file, max_pixels=max_pixels)
        hdu = bracket if hdu is None else hdu
        chosen = (
            only_plane(file, planes, planes, "the PSF")
            if hdu is None
            else choose_plane(file, planes, hdu)
        )
        image, sampling = take_plane(file, chosen, plane), 1 / oversampling
    else:
        image, sampling = _psfex_image(file, model, oversampling, position)
    response = pixel_scale if includes_pixel else 0.0
    return _make_psf(
        image, pixel_scale * sampling, response, recentre, Path(file).name, pixel_scale
    )


def psf_from_model(
    model: Any,
    *,
    pixel_scale: float,
    position: Place | None = None,
    plane: int | None = None,
    name: str = "psf",
) -> PSF:
    """The PSF that another package's object stands for, recognised by what it offers, so that none
    of them has to be installed.

    Parameters
    ----------
    model : one of
        PSF : returned as it is;
        array [h, w] or [plane, h, w], or what has such an array as `.get_model()` or `.image`
        (scarlet) : effective PSF on the observation's pixels, h and w odd; photutils `ImagePSF`
        (also what `EPSFBuilder` builds) or `GriddedPSFModel` : effective PSF with its own
        oversampling and origin. Checked against the model's own values in tests/test_api.py
    pixel_scale : float, arcsec per pixel of the observation
    position : (x, y) or None, pixels from 0 of the exposure where a `GriddedPSFModel` is evaluated;
        None: its own x_0, y_0, where these have been set
    plane : int or None, which plane (band) of a cube of several
    name : str, for messages

    Returns
    -------
    PSF

    Raises
    ------
    ValueError : nothing of these, an oversampling that differs between the axes, a cube without
        `plane`, no position; and what `make_psf` refuses.
    """
    if isinstance(model, PSF):
        return model
    pixel_scale = check_positive(
        "psf_from_model", "pixel_scale", pixel_scale, "arcsec per pixel of the observation"
    )
    if hasattr(model, "oversampling") and callable(getattr(model, "evaluate", None)):
        image, oversampling = _photutils_image(model, position)
        return make_psf(
            image, pixel_scale=pixel_scale / oversampling, pixel_response=pixel_scale, name=name
        )
    image = np.asarray(
        model.get_model() if hasattr(model, "get_model") else getattr(model, "image", model)
    )
    if image.dtype.kind not in "biuf" or image.ndim not in (2, 3):
        raise InputError(
            "psf_from_model: model must be a PSF, an image or a cube, or an ImagePSF or"
            f" GriddedPSFModel of photutils, got {type(model).__name__}; draw it as an image and"
            " use make_psf"
        )
    if image.ndim == 3:
        if (plane is None and len(image) > 1) or not 0 <= (plane or 0) < len(image):
            raise InputError(
                f"psf_from_model: plane must be chosen from 0 to {len(image) - 1} for a cube of"
                f" PSFs, got {plane}; give the observation's band"
            )
        image = image[plane or 0]
    return make_psf(image, pixel_scale=pixel_scale, name=name)


def _photutils_image(model, position):
    """(image [k, k], oversampling): the model on its own grid, its origin on the middle pixel.

    Between the samples (even sides) photutils interpolates.
    """
    down, across = (float(factor) for factor in np.broadcast_to(model.oversampling, 2))
    if down != across:
        raise InputError(
            f"psf_from_model: model must be oversampled alike along both axes, got {down:g} and"
            f" {across:g}; resample it"
        )
    if position is None:
        position = tuple(float(np.asarray(getattr(model, name)).item()) for name in ("x_0", "y_0"))
        if np.ndim(model.data) == 3 and position == (0.0, 0.0):
            raise InputError(
                "psf_from_model: position must be given for a PSF that varies over the exposure,"
                " got None; give (x, y) in pixels from 0"
            )
    half = max(np.shape(model.data)[-2:]) // 2
    offset = np.arange(-half, half + 1) / across
    x, y = np.meshgrid(position[0] + offset, position[1] + offset)
    # photutils gives flux per observed pixel: its samples sum to the square of the oversampling.
    return model.evaluate(x.ravel(), y.ravel(), 1.0, *position).reshape(x.shape) / across**2, across


def _psfex_image(file, model, oversampling, position):
    image, sampling, offset = model
    if oversampling != 1:
        raise InputError(
            f"read_psf: oversampling must be 1 for a PsfEx file, got {oversampling}; "
            f"{file} states its own sampling, {sampling:.4g} pixels"
        )
    if offset > PSFEX_FIELD:
        warnings.warn(
            f"read_psf: position {position} lies {offset:.2g} field sides from the centre of the"
            f" field that {file} was fitted on; the polynomial is extrapolated",
            PoorInputWarning,
            stacklevel=3,
        )
    return image, sampling


# --- checks that observation.py shares


def check_image(caller: str, name: str, image: npt.ArrayLike) -> np.ndarray:
    """The image as an array, or a ValueError if it is no 2-d array of real numbers."""
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype.kind not in "biuf":
        raise InputError(
            f"{caller}: {name} must be a 2-d array of real numbers, got shape {image.shape} of"
            f" {image.dtype}; choose one plane"
        )
    return image


def check_positive(caller: str, name: str, value: Any, meaning: str) -> float:
    """The value as a float, or a ValueError if it is no positive finite number."""
    if isinstance(value, (int, float, np.number)) and 0 < value < math.inf:
        return float(value)
    raise InputError(f"{caller}: {name} must be positive, got {value!r}; give {meaning}")
