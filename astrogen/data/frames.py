"""Where several exposures look: the affine map from the pixel axes of the first to those of each,
and the place of objects in them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from astropy.wcs import NoConvergence
from astropy.wcs.utils import fit_wcs_from_points, skycoord_to_pixel

from astrogen.errors import InputError

STEP = 2.0  # pixels from the middle over which the Jacobian is taken


class Frame(NamedTuple):
    """A point (x, y), in arcsec from the middle of the first stamp along its pixel axes, is seen at
    matrix @ point + offset: arcsec from the middle of this one.
    """

    matrix: np.ndarray
    offset: np.ndarray

    def see(self, point: np.ndarray) -> np.ndarray:
        """Where a point of the first stamp lies in this one, arcsec."""
        return self.matrix @ point + self.offset


def find_frames(observations: Sequence[Any], *, aligned: bool = False) -> list[Frame]:
    """A Frame for each exposure, from the WCS at the middle of the first, linearised there:
    rotation, shear, parity and scale.

    Parameters
    ----------
    observations : sequence of Observation
    aligned : bool, the exposures share their pixel grid; no WCS is looked at

    Returns
    -------
    list of Frame

    Raises
    ------
    ValueError : an exposure without WCS among several; aligned exposures of different shapes; a WCS
        that does not reach the first exposure's sky.
    """
    same = Frame(np.eye(2), np.zeros(2))
    first = observations[0]
    if aligned:
        for other in observations[1:]:
            if other.image.shape != first.image.shape or not np.isclose(
                other.pixel_scale, first.pixel_scale
            ):
                raise InputError(
                    "find_frames: observations must have one shape and pixel scale where they are"
                    f" aligned, got {first.image.shape} of {first.pixel_scale:.4g} arcsec for"
                    f" {first.name!r} and {other.image.shape} of {other.pixel_scale:.4g} for"
                    f" {other.name!r}; give their WCS instead"
                )
        return [same] * len(observations)
    if len(observations) > 1 and (
        bare := [observation.name for observation in observations if observation.wcs is None]
    ):
        raise InputError(
            "find_frames: observations must have a WCS where there are several, got none for"
            f" {bare[0]!r}; give their WCS, or aligned=True if all share one pixel grid"
        )
    return [same, *(_frame(first, other) for other in observations[1:])]


def sky_to_pixels(wcs: Any, sky: Any, *, name: str) -> np.ndarray:
    """Where places on the sky are in an image.

    Parameters
    ----------
    wcs : astropy WCS of the image
    sky : SkyCoord [...]
    name : str, of the image, for messages

    Returns
    -------
    float array [2, ...], (x, y) pixels from 0; NaN where the WCS does not reach: far from an image
    its distortion cannot be inverted

    Raises
    ------
    InputError : the WCS gives no place at all.
    """
    try:
        # That of the WCS itself gives places that it warns of, anywhere.
        return np.array(skycoord_to_pixel(sky, wcs, mode="all"), float)
    except NoConvergence as error:
        found = np.array(error.best_solution, float)
        for rows in (error.divergent, error.slow_conv):
            if rows is not None:
                found[rows] = np.nan
        return found.T.reshape(2, *sky.shape)
    except Exception as error:  # wcslib has many errors
        raise InputError(
            f"read_observation: wcs must be one that gives pixels of places on the sky, got {error}"
            f" for {name!r}; give positions in pixels, or mend its header"
        ) from error


def _frame(first, other):
    height, width = first.image.shape
    steps = STEP * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    sky = first.wcs.pixel_to_world(*(steps + [(width - 1) / 2, (height - 1) / 2]).T)
    seen = sky_to_pixels(other.wcs, sky, name=other.name).T
    seen = (seen - (np.array(other.image.shape[::-1]) - 1) / 2) * other.pixel_scale
    if not np.isfinite(seen).all():
        raise no_overlap(first, other)
    matrix = np.stack([seen[1] - seen[2], seen[3] - seen[4]], 1) / (2 * STEP * first.pixel_scale)
    return Frame(matrix, seen[0])


def no_overlap(first: Any, other: Any) -> InputError:
    """The error about an exposure that does not show what another one shows."""
    return InputError(
        f"find_frames: observations must show the same sky, got {other.name!r}, which holds no"
        f" object of {first.name!r}; look at their WCS and leave it out"
    )


def inside(observation: Any, place: npt.ArrayLike) -> bool:
    """Whether a place, in arcsec from the middle of the stamp, lies in it."""
    return bool(
        (
            np.abs(place) <= np.array(observation.image.shape[::-1]) / 2 * observation.pixel_scale
        ).all()
    )


def to_pixels(observation: Any, place: npt.ArrayLike) -> np.ndarray:
    """(x, y) pixels from 0 of a place in arcsec from the middle of the stamp."""
    return (
        np.asarray(place) / observation.pixel_scale
        + (np.array(observation.image.shape[::-1]) - 1) / 2
    )


def from_pixels(observation: Any, pixels: npt.ArrayLike) -> np.ndarray:
    """The inverse of `to_pixels`."""
    return (
        np.asarray(pixels, float) - (np.array(observation.image.shape[::-1]) - 1) / 2
    ) * observation.pixel_scale


def deconvolved_wcs(
    wcs: Any, observed_shape: tuple[int, int], *, ratio: float, shape: tuple[int, int]
) -> Any:
    """WCS of a grid with the same geometric centre and orientation, and another pixel scale.

    The centre of n pixels is the FITS pixel coordinate (n + 1) / 2. Distortions of the observed WCS
    beyond the projection are replaced by their linear part over the stamp.

    Parameters
    ----------
    wcs : astropy WCS [2 axes] of the observed stamp
    observed_shape, shape : (height, width) of the stamp and of the new grid
    ratio : float, observed over new pixel scale

    Returns
    -------
    astropy WCS
    """
    linear = _without_distortion(wcs, observed_shape) if wcs.has_distortion else wcs.deepcopy()
    old_centre, new_centre = ((np.array(sides[::-1]) + 1) / 2 for sides in (observed_shape, shape))
    linear.wcs.crpix = (linear.wcs.crpix - old_centre) * ratio + new_centre
    if linear.wcs.has_cd():
        linear.wcs.cd = linear.wcs.cd / ratio
    else:
        linear.wcs.cdelt = linear.wcs.cdelt / ratio
    linear.pixel_shape = shape[::-1]
    linear.wcs.set()
    return linear


def _without_distortion(wcs, shape):
    x, y = (
        axis.ravel() for axis in np.meshgrid(*(np.linspace(0, side - 1, 5) for side in shape[::-1]))
    )
    return fit_wcs_from_points((x, y), wcs.pixel_to_world(x, y), projection=wcs)
