"""What a lensing survey recorded of one field: shear, or a beam-smoothed convergence, with its
noise and mask. Checked once, here.

Maps of ellipticities are taken as shear: where the convergence is not small, the reduced shear
gamma / (1 - kappa) that galaxies show is larger. Axes and signs are those of
`astrogen.instruments.lensing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from astrogen.data.images import (
    choose_plane,
    header_wcs,
    only_plane,
    read_images,
    split_path,
    take_plane,
)
from astrogen.errors import InputError
from astrogen.types import FilePath

SCALE_TOLERANCE = 0.01  # relative difference of pixel scales that is taken as none
MAX_BAD_FRACTION = 0.5
# What no shear and no convergence of pixels of an arcminute reaches: beyond, and five standard
# deviations of the noise, stands the word of some program for "nothing here" (-1.6e30, -99, 999).
LARGEST = {"shear": 1.0, "kappa": 5.0}
# A value of one plane that at least so many pixels share exactly, and so many times as many as
# share any other, is no shear but stands for "nothing here" (-1, .5, 1e-30). Measured shear hardly
# ever repeats; shear of few digits repeats everywhere.
FEWEST_ALIKE = 5
FEW_LEFT, MANY_LOST = 0.2, 0.5  # shares of a field at which a mask looks like its opposite
SOME_LOST, FREE_EDGE = 0.25, 0.9  # and the same where it leaves the edges and takes the middle
KINDS = {2: "shear", 1: "kappa"}


@dataclass(frozen=True, eq=False)
class LensingField:
    """A field as it was seen.

    Parameters
    ----------
    maps : array [plane, height, width], float32: (gamma1, gamma2), or the convergence alone; zero
        where masked
    variance : array [plane, height, width], float32, of the noise, without correlation between
        pixels; one where masked
    mask : array [height, width], True = bad
    pixel_scale : float, arcmin per pixel
    beam : float, FWHM in arcmin of the Gaussian that a convergence map was smoothed with; 0: none
    wcs : astropy WCS or None
    notes : tuple of str, what was found and mended
    """

    maps: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    pixel_scale: float
    beam: float
    wcs: WCS | None
    notes: tuple[str, ...]

    @property
    def is_shear(self) -> bool:
        """Two planes of shear, or one of convergence?"""
        return len(self.maps) == 2

    @property
    def weight(self) -> np.ndarray:
        """Inverse variance [plane, height, width], 0 where masked."""
        return np.where(self.mask, 0, 1 / self.variance).astype(np.float32)


def make_field(
    maps: npt.ArrayLike,
    *,
    noise: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    pixel_scale: float | None = None,
    beam: float = 0.0,
    wcs: Any = None,
    flipped: bool = False,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> LensingField:
    """Check the maps of a field and everything that belongs to them.

    Bad pixels (NaN or infinite in a map or in its noise, values that cannot be, shear of exactly
    zero or of one value far too often, noise not positive, masked) are masked in all planes and
    counted in `notes`, which also say where a mask looks like a footprint, and where right
    ascension runs to the left.

    Parameters
    ----------
    maps : array [2, height, width], (gamma1, gamma2), or [height, width], the convergence
    noise : float or array of the shape of `maps`, standard deviation of the noise of each pixel
    mask : array [height, width], nonzero or NaN = bad
    pixel_scale : float, arcmin per pixel; None: from the WCS
    beam : float, FWHM in arcmin of the Gaussian beam of a convergence map
    wcs : astropy WCS
    flipped : bool, the sign of gamma2 was changed on purpose (`read_field` does it)
    max_bad_fraction : float, largest fraction of the unmasked pixels that may be NaN, infinite,
        impossible or empty

    Returns
    -------
    LensingField

    Raises
    ------
    ValueError : shapes differ, no good pixel, too many bad ones, a mask that leaves the empty ones,
        no pixel scale or one that is not that of the WCS, a beam on shear.
    """
    planes: np.ndarray = np.ma.getdata(maps)
    kind = "kappa" if planes.ndim == 2 else "shear"
    planes = np.array(planes, np.float64, ndmin=3)
    if planes.ndim != 3 or len(planes) != {"kappa": 1, "shear": 2}[kind] or not planes.size:
        raise InputError(
            "make_field: maps must be shear [2, height, width] or convergence [height, width], got"
            f" shape {np.shape(maps)}; stack the two planes of shear"
        )
    deviation: np.ndarray = _noise_planes(noise, planes.shape)
    bad = np.zeros(planes.shape[1:], bool)
    if isinstance(maps, np.ma.MaskedArray):
        bad |= np.ma.getmaskarray(maps).reshape(planes.shape).any(0)
    if mask is not None:
        if np.shape(mask) != planes.shape[1:]:
            raise InputError(
                f"make_field: mask must have the shape of the maps {planes.shape[1:]}, got"
                f" {np.shape(mask)}; cut both alike"
            )
        bad |= np.asarray(mask) != 0  # NaN != 0
    inverted = _looks_inverted(bad)
    if kind == "shear" and beam:
        raise InputError(
            f"make_field: beam must be 0 for shear, got {beam}; it belongs to a convergence map"
        )
    if not (np.isfinite(beam) and beam >= 0):
        raise InputError(
            f"make_field: beam must be a FWHM in arcmin, 0 or more, got {beam}; leave it out where"
            " there is none"
        )
    scale = _settle_scale(pixel_scale, wcs)
    notes = _mask_bad(planes, deviation, bad, kind, max_bad_fraction) + inverted
    if kind == "shear" and not flipped and wcs is not None and runs_to_the_left(wcs):
        notes.append(
            "right ascension runs to the left in the WCS, and gamma2 was taken along the pixels'"
            " axes; where it is along those of the sky, change its sign (--flip-e2)"
        )
    planes[:, bad], deviation[:, bad] = 0, 1
    seen, variance = planes.astype(np.float32), (deviation**2).astype(np.float32)
    for array in (seen, variance, bad):
        array.setflags(write=False)
    return LensingField(seen, variance, bad, scale, float(beam), wcs, tuple(notes))


def _noise_planes(noise, shape):
    noise = np.asarray(noise, np.float64)
    if noise.ndim == 2:
        noise = noise[None]
    if noise.ndim and noise.shape != shape:
        raise InputError(
            f"make_field: noise must be a number or have the shape of the maps {shape}, got"
            f" {noise.shape}; give the standard deviation of every plane"
        )
    return np.broadcast_to(noise, shape).copy()


def _mask_bad(planes, noise, bad, kind, max_bad_fraction):
    """Mask in place what cannot be used; sentences about it."""
    was_masked = bad.copy()
    if bad.all():
        raise InputError(
            "make_field: mask must leave a good pixel, got all masked; nonzero means bad (a"
            " footprint, nonzero where observed, is its opposite)"
        )
    notes = []
    for what, lost in _useless(planes, noise, kind):
        num, left = np.count_nonzero(lost & ~was_masked), np.count_nonzero(~was_masked)
        if num > max_bad_fraction * left:
            raise InputError(
                f"make_field: maps must have at most {max_bad_fraction:.0%} {what}, got {num} of"
                f" {left} unmasked ones; {_advice(lost, was_masked)}"
            )
        notes += [f"{num} {what} masked"] if num else []
        bad |= lost
    for index, plane in enumerate(noise):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            variance = (plane**2).astype(np.float32)
            useless = ~((plane > 0) & np.isfinite(variance) & np.isfinite(1 / variance))
        if useless[~was_masked].all():
            name = f"of gamma{index + 1}" if kind == "shear" else "of kappa"
            raise InputError(
                f"make_field: noise {name} must be positive somewhere outside the mask, got no such"
                " pixel; give the standard deviation, and check whether nonzero means bad in the"
                " mask"
            )
        notes += (
            [f"{(useless & ~bad).sum()} pixels without positive noise masked"]
            if (useless & ~bad).any()
            else []
        )
        bad |= useless
    if bad.all():
        raise InputError(
            "make_field: maps must have a good pixel, got none that is finite, unmasked and of"
            " positive noise; look at the planes"
        )
    return notes


def _useless(planes, noise, kind):
    """What makes pixels useless, in words, and where [height, width]: NaN, more than can be, and
    shear of exactly zero, or of one value far too often, where not all of it is.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lost = ~np.isfinite(planes.astype(np.float32)).all(0)
        limit = LARGEST[kind] + 5 * np.where(np.isfinite(noise) & (noise > 0), noise, 0)
        impossible = (np.abs(planes) > limit).any(0) & ~lost
    name = "|shear|" if kind == "shear" else "|convergence|"
    example = planes[(np.abs(planes) > limit) & ~lost][:1]
    yield "NaN or infinite pixels", lost
    yield (
        f"pixels of {name} > {LARGEST[kind]:g} (as {example[0]:.4g})" if len(example) else "",
        (impossible),
    )
    if kind == "shear":
        empty = (planes == 0).all(0)
        yield "pixels of exactly zero shear", empty & ~(empty | lost | impossible).all()
        usable = ~(lost | impossible | empty)
        values = [_repeated(plane[usable]) for plane in planes]
        same = [f"gamma{index}" for index, value in enumerate(values, 1) if value is not None]
        yield (
            f"pixels that share one value of {' and '.join(same)} exactly"
            f" ({', '.join(f'{value:g}' for value in values if value is not None)})",
            usable
            & np.any([plane == value for plane, value in zip(planes, values, strict=True)], 0),
        )


def _repeated(values):
    """The value, not zero, that far too many of `values` share exactly, or None; None too where
    there are hardly any others.
    """
    found, counts = np.unique(values, return_counts=True)
    if len(found) < 2 * FEWEST_ALIKE:
        return None
    value, (second, most) = float(found[np.argmax(counts)]), np.sort(counts)[-2:]
    return value if value and most >= FEWEST_ALIKE * second else None


def _advice(lost, was_masked):
    """What to do about too many useless pixels: is the mask its opposite?"""
    if was_masked.any() and lost[was_masked].mean() < 0.5:
        return (
            "those that the mask covers are good: nonzero means bad in a mask, and observed in a"
            " footprint (--footprint); it seems to be the other one"
        )
    return "mask what was not observed (--mask), and look for the value that stands for it"


def _looks_inverted(bad):
    """A sentence where a mask leaves few pixels, or those around a field rather than the field."""
    border = np.ones(bad.shape, bool)
    border[1:-1, 1:-1] = False
    left, at_border = 1 - bad.mean(), 1 - bad[border].mean()
    if bad.all() or not (
        left < FEW_LEFT
        or (left < 1 - MANY_LOST and at_border > left)
        or (left < 1 - SOME_LOST and at_border > FREE_EDGE)
    ):
        return []
    return [
        f"the mask leaves {left:.0%} of the pixels, {at_border:.0%} along the edges: nonzero means"
        " bad in a mask (--mask) and observed in a footprint (--footprint); look whether it is the"
        " other one"
    ]


def runs_to_the_left(wcs: Any) -> bool:
    """Does right ascension grow towards smaller x, declination being up?"""
    return float(np.linalg.det(wcs.celestial.pixel_scale_matrix)) < 0


def _settle_scale(pixel_scale, wcs):
    """Arcmin per pixel: given, or of the WCS; the two must not differ."""
    of_wcs = (
        None
        if wcs is None
        else 60 * float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs.celestial))))
    )
    if pixel_scale is None and of_wcs is None:
        raise InputError(
            "make_field: pixel_scale must be given where there is no WCS, got neither; give arcmin"
            " per pixel (--pixel-scale)"
        )
    scale = of_wcs if pixel_scale is None else float(pixel_scale)
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(
            f"make_field: pixel_scale must be a positive number of arcmin, got {scale}; give arcmin"
            " per pixel (--pixel-scale)"
        )
    if of_wcs is not None and abs(scale / of_wcs - 1) > SCALE_TOLERANCE:
        raise InputError(
            f"make_field: pixel_scale must be that of the WCS, {of_wcs:.4g} arcmin, got"
            f" {scale:.4g}; leave one of them out"
        )
    return scale


def read_field(
    files: Sequence[FilePath],
    *,
    noise: Any,
    mask: FilePath | None = None,
    footprint: FilePath | None = None,
    pixel_scale: float | None = None,
    beam: float = 0.0,
    flip_second: bool = False,
) -> LensingField:
    """Read a field from images, FITS or .npy; each may be FILE or (FILE, HDU).

    Parameters
    ----------
    files : sequence of two paths (gamma1, gamma2), or of one (convergence)
    noise : sequence of as many, or of one for all: paths, or numbers, standard deviations
    mask : path, nonzero = bad; or `footprint`, nonzero = observed
    pixel_scale : float, arcmin per pixel; None: from the WCS of the first file
    beam : float, FWHM in arcmin
    flip_second : bool, change the sign of gamma2: for components along right ascension, which runs
        to the left

    Returns
    -------
    LensingField

    Raises
    ------
    InputFileError : a file that cannot be read. ValueError : as `make_field`.
    """
    planes, noises = (
        [_read_plane(path) for path in files],
        [item if isinstance(item, float) else _read_plane(item)[0] for item in noise],
    )
    if len(noises) not in (1, len(planes)):
        raise InputError(
            f"read_field: noise must be one for all maps or one for each of the {len(planes)}, got"
            f" {len(noises)}; give the standard deviations"
        )
    noises = noises * len(planes) if len(noises) == 1 else noises
    shape = planes[0][0].shape
    named = [
        *zip(files, (pixels for pixels, _ in planes)),
        *((path, pixels) for path, pixels in zip(noise, noises) if np.ndim(pixels)),
    ]
    bad = None
    if mask is not None or footprint is not None:
        bad = _read_plane(mask if mask is not None else footprint)[0]
        named.append((mask or footprint, bad))
        bad = bad != 0 if mask is not None else (bad == 0) | np.isnan(bad)
    for path, pixels in named:
        if pixels.shape != shape:
            raise InputError(
                f"read_field: maps, noise and mask must have one shape, got {shape} of {files[0]}"
                f" and {pixels.shape} of {path}; cut them alike"
            )
    maps = np.stack([pixels for pixels, _ in planes])
    deviations = np.stack([np.broadcast_to(pixels, shape) for pixels in noises])
    if flip_second:
        maps[1:] *= -1
    if len(files) == 1:
        maps, deviations = maps[0], deviations[0]
    return make_field(
        maps,
        noise=deviations,
        mask=bad,
        pixel_scale=pixel_scale,
        beam=beam,
        wcs=planes[0][1],
        flipped=flip_second,
    )


def _read_plane(path):
    """(pixels float64 [height, width], WCS or None) of a file or FILE[HDU]."""
    path, hdu = split_path(path)
    images = read_images(path)
    plane = (
        only_plane(path, images, images, "the map")
        if hdu is None
        else choose_plane(path, images, hdu)
    )
    return take_plane(path, plane, None).astype(np.float64), header_wcs(plane.header)


def rebin_field(field: LensingField, pixel_scale: float) -> LensingField:
    """The field on coarser pixels, by inverse-variance averages.

    Each fine pixel goes to the coarse pixel that holds its centre, so that the noise stays without
    correlation whatever the ratio of the scales; a position is off by half a fine pixel at most.
    The coarse grid is centred on the field, and reaches over its edges where the sides do not fit:
    pixels there have few fine ones and say so in their variance. A coarse pixel without any good
    one is masked.

    Parameters
    ----------
    field : LensingField
    pixel_scale : float, arcmin per pixel of the result; those of the field are at most as large

    Returns
    -------
    LensingField; the field itself where the scales agree to one per cent

    Raises
    ------
    ValueError : the field's pixels are larger.
    """
    ratio = pixel_scale / field.pixel_scale
    if abs(ratio - 1) <= SCALE_TOLERANCE:
        return field
    if ratio < 1:
        raise InputError(
            f"rebin_field: pixels of the maps must be at most those of the prior, {pixel_scale:g}"
            f" arcmin, got {field.pixel_scale:g}; take a prior trained on larger pixels"
        )
    rows, columns = (_coarse_index(side, ratio) for side in field.mask.shape)
    shape = rows[-1] + 1, columns[-1] + 1
    place = (rows[:, None] * shape[1] + columns).ravel()

    def gathered(plane):
        return np.bincount(place, weights=plane.ravel(), minlength=shape[0] * shape[1]).reshape(
            shape
        )

    weight = np.stack([gathered(plane.astype(float)) for plane in field.weight])
    bad = (weight == 0).any(0)
    total = np.stack([gathered(plane.astype(float)) for plane in field.weight * field.maps])
    weight[:, bad] = 1
    maps, variance = (
        np.where(bad, 0, total / weight).astype(np.float32),
        (1 / weight).astype(np.float32),
    )
    sides = " x ".join(map(str, shape))
    note = (
        f"averaged with inverse variances from {field.pixel_scale:g} to {pixel_scale:g} arcmin per"
        f" pixel, {sides} pixels"
    )
    return LensingField(
        maps,
        variance,
        bad,
        float(pixel_scale),
        field.beam,
        _coarse_wcs(field, ratio, shape),
        (*field.notes, note),
    )


def _coarse_index(side, ratio):
    """Which coarse pixel each fine one belongs to, the coarse grid centred on the field."""
    num = max(1, int(np.ceil(side / ratio - 1e-6)))
    return np.clip(
        np.floor((np.arange(side) + 0.5 - side / 2) / ratio + num / 2), 0, num - 1
    ).astype(int)


def _coarse_wcs(field, ratio, shape):
    if field.wcs is None:
        return None
    wcs = field.wcs.celestial.deepcopy()
    # FITS counts from one, pixel centres are whole
    middle = np.array(field.mask.shape[::-1]) / 2 + 0.5
    wcs.wcs.crpix = (wcs.wcs.crpix - middle) / ratio + np.array(shape[::-1]) / 2 + 0.5
    if wcs.wcs.has_cd():
        wcs.wcs.cd = wcs.wcs.cd * ratio
    else:
        wcs.wcs.cdelt = wcs.wcs.cdelt * ratio
    return wcs
