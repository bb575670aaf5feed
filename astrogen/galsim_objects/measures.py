"""PSFs that are GalSim objects, and measurements that GalSim does."""

import math
from functools import lru_cache
from typing import Any

import galsim
import numpy as np

from astrogen.data.psf import PSF, make_psf
from astrogen.errors import InputError
from astrogen.types import Place

FINENESS = 3  # of the interpolation on which the half-light radius is counted
REACH = 8  # pixels about the centre in which half of the light is looked for first
WING_FRACTION = 1e-5  # flux of a PSF that may lie outside its image
# Sigma of the adaptive weight from its centre to the image's edge: an ellipticity errs by .005
# then, and by .03 at 1.7.
LEAST_MARGIN = 2.25
FARTHEST = (
    4.0  # pixels, or one sigma, from the place that is asked for to an adaptive centroid of it
)


def psf_from_galsim(
    gsobject: Any, *, pixel_scale: float, oversampling: int = 4, num_pixels: int = 127
) -> PSF:
    """Draw a GalSim object as a PSF without pixel response, on a grid finer than the observation's.

    The image is large enough for all but 1e-5 of the light, or `num_pixels` observed pixels wide,
    whichever is smaller: wings like those of Kolmogorov's profile would fill any image. Convolved
    with a galaxy, it agrees with GalSim's own drawing to 1e-5 of the peak where the wings fit
    (tests/test_result.py).

    Parameters
    ----------
    gsobject : galsim.GSObject, the PSF of atmosphere and optics, without the pixel; any positive
        flux
    pixel_scale : float, arcsec per pixel of the observation
    oversampling : int, pixels of the PSF image per observed pixel
    num_pixels : int, largest side of the PSF in observed pixels; an observation takes PSFs up to
        twice its own side

    Returns
    -------
    PSF, its image at pixel_scale / oversampling, `pixel_response` 0

    Raises
    ------
    TypeError : not a GSObject (a chromatic object must be evaluated at a wavelength first).
    ValueError : no positive flux, or structure finer than the grid.
    """
    if not isinstance(gsobject, galsim.GSObject):
        raise TypeError(
            f"psf_from_galsim: gsobject must be a galsim.GSObject, got {type(gsobject).__name__}; "
            "evaluate a chromatic object at one wavelength first"
        )
    if not (math.isfinite(gsobject.flux) and gsobject.flux > 0):
        raise InputError(
            f"psf_from_galsim: gsobject must have a positive flux, got {gsobject.flux}; use"
            " withFlux(1)"
        )
    if not pixel_scale > 0:
        raise InputError(
            f"psf_from_galsim: pixel_scale must be positive, got {pixel_scale}; give the"
            " observation's, in arcsec per pixel"
        )
    # Half of the sampling rate is the highest frequency that an image can hold (GalSim calls the
    # object's own maxk).
    needed = gsobject.maxk * pixel_scale / math.pi
    if oversampling < needed:
        raise InputError(
            f"psf_from_galsim: oversampling must be at least {min(needed, 1e9):.3g} for this"
            f" object, got {oversampling}; raise it, or smooth the object (a point source has no"
            " image)"
        )
    scale = pixel_scale / oversampling
    precise = gsobject.withFlux(1.0).withGSParams(
        folding_threshold=WING_FRACTION, kvalue_accuracy=1e-7
    )
    side = (min(precise.getGoodImageSize(scale), num_pixels * oversampling) - 1) // 2 * 2 + 1
    image = precise.drawImage(nx=side, ny=side, scale=scale, method="no_pixel", dtype=float)
    return make_psf(
        image.array, pixel_scale=scale, pixel_response=0.0, name=type(gsobject).__name__
    )


def measure_image(
    image: np.ndarray, *, pixel_scale: float, place: Place | None = None, flux: float | None = None
) -> tuple[float, float, float, float]:
    """Measure an image without noise: flux, half-light radius and adaptive-moment ellipticity of
    the galaxy at a place.

    The radius is that of the circle with half of the light, counted on a three times finer
    band-limited interpolation, about the adaptive centroid; about `place` where the moments do not
    converge to one near it. It is GalSim's `calculateHLR`, and right to 3 % for a radius of one
    pixel, 1 % from two pixels on. A circle or an adaptive weight that the image cuts off gives
    nothing.

    Parameters
    ----------
    image : array [height, width], flux per pixel
    pixel_scale : float, arcsec per pixel
    place : (x, y) or None, arcsec from the image's middle, where the galaxy stands; None: where the
        moments lead, and there is no radius where they lead nowhere
    flux : float or None, of all its light, where some of it lies beyond the image; None: the
        image's sum

    Returns
    -------
    (flux, half_light_radius, e1, e2) : floats; radius in arcsec; e1, e2 in the distortion
        convention (a^2 - b^2) / (a^2 + b^2). What cannot be measured is nan.
    """
    image = np.asarray(image, np.float64)
    flux = image.sum() if flux is None else float(flux)
    middle = (np.array(image.shape[::-1]) - 1) / 2
    start = None if place is None else np.asarray(place, np.float64) / pixel_scale + middle
    if not flux > 0:
        return flux, math.nan, math.nan, math.nan
    centre, e1, e2 = _adaptive_moments(image, start)
    if centre is None:
        return flux, math.nan, e1, e2
    return flux, _half_light_radius(image, tuple(centre), 0.5 * flux) * pixel_scale, e1, e2


def _adaptive_moments(image, place):
    """(centroid [2], e1, e2) of the galaxy at `place`, pixels from 0, or wherever it is (None); the
    place and nan where the moments do not converge, lead elsewhere, or reach beyond the image.
    """
    start = (np.array(image.shape[::-1]) - 1) / 2 if place is None else place
    moments = galsim.hsm.FindAdaptiveMom(
        galsim.Image(image), guess_centroid=galsim.PositionD(*(start + 1)), strict=False
    )
    found = np.array([moments.moments_centroid.x - 1, moments.moments_centroid.y - 1])
    astray = place is not None and not np.hypot(*(found - place)) < max(
        FARTHEST, moments.moments_sigma
    )
    if moments.error_message or astray:
        return place, math.nan, math.nan
    e1, e2 = moments.observed_shape.e1, moments.observed_shape.e2
    widths = moments.moments_sigma * np.sqrt(
        np.array([1 + e1, 1 - e1]) / math.sqrt(max(1 - e1**2 - e2**2, 1e-12))
    )
    margin = np.minimum(found, np.array(image.shape[::-1]) - 1 - found)
    if (margin < LEAST_MARGIN * widths).any():
        return found, math.nan, math.nan
    return found, e1, e2


def _half_light_radius(image, centre, half):
    """Radius (pixels) of the circle about `centre`, (x, y) from 0, with the light `half` in it:
    what GalSim's `calculateHLR` says of the finer image, ten times as fast; nan where it is not
    all inside the image.

    Only rings near the radius are sorted, and where half of the light lies within REACH the image
    is interpolated there alone.
    """
    half *= FINENESS**2
    inside_image = min(*(np.array(image.shape[::-1]) - 0.5 - centre), *(np.array(centre) + 0.5))
    for reach in (REACH, math.inf):
        rows, columns = (
            _near(side, middle, reach)
            for side, middle in zip(image.shape, centre[::-1], strict=True)
        )
        fine = (
            _interpolation(image.shape[0])[rows] @ image @ _interpolation(image.shape[1])[columns].T
        )
        square = (rows / FINENESS - centre[1])[:, None] ** 2 + (columns / FINENESS - centre[0]) ** 2
        ring = square.astype(int)  # of equal area
        whole = int(ring.max()) + 1 if reach == math.inf else int((reach - 1) ** 2)
        light = np.cumsum(np.bincount(ring.ravel(), fine.ravel())[:whole])
        if len(above := np.flatnonzero(light > half)):
            break
    if not len(above) or above[0] >= max(inside_image, 0) ** 2:
        return math.nan
    chosen = (ring == above[0]) | (ring == above[0] - 1)
    order = np.argsort(square[chosen])
    square, inside = (
        square[chosen][order],
        np.cumsum(fine[chosen][order]) + (light[above[0] - 2] if above[0] > 1 else 0.0),
    )
    last = int(np.argmax(inside > half))
    before, light_before = (square[last - 1], inside[last - 1]) if last else (0.0, 0.0)
    return math.sqrt(
        before + (square[last] - before) * (half - light_before) / (inside[last] - light_before)
    )


def _near(side, middle, reach):
    """The pixels of the finer grid within `reach` pixels of a position."""
    fine = np.arange(side * FINENESS)
    return fine[np.abs(fine / FINENESS - middle) <= reach]


@lru_cache
def _interpolation(side):
    """Fourier interpolation of one axis onto a grid FINENESS times finer, as a matrix [FINENESS *
    side, side]; the first pixel's centre stays where it is.
    """
    spectrum, padded = np.fft.fft(np.eye(side), axis=0), np.zeros([FINENESS * side, side], complex)
    padded[np.fft.fftfreq(side, 1 / side).astype(int)] = spectrum
    return np.fft.ifft(padded, axis=0).real * FINENESS
