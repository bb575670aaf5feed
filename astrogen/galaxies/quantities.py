"""Catalogue quantities of a galaxy: flux, half-light radius and ellipticity, measured draw by draw.

They come from the draws, one by one: the mean of many images is rounder and larger than any of
them.
"""

import math
from dataclasses import dataclass

import numpy as np

from astrogen.galsim_objects import measure_image

QUANTITIES = ("flux", "half_light_radius", "e1", "e2")
MIN_DRAWS = 8  # fewer draws give no error
MOST_LOST = 0.5  # share of the draws without a quantity from which it has no answer
# Of a quantity without an answer, and of one that some draws lack.
SHAPE_WORDS = (
    "no_ellipticity: the adaptive moments gave no answer on {num} draws: the flux is not positive,"
    " or the galaxy reaches the edge of the deconvolved image; give a larger pixel scale, or a"
    " cutout about the galaxy",
    "poor_shape: the adaptive moments gave no answer on {num} draws, which e1 and e2 leave out",
)
RADIUS_WORDS = (
    "no_radius: the flux of {num} draws is not positive, or half of it does not lie within a circle"
    " about the galaxy that the deconvolved image holds; give a larger pixel scale, or a cutout"
    " about the galaxy",
    "poor_radius: {num} draws have no half-light radius, which leaves them out: their flux is not"
    " positive, or too much of it lies beyond the deconvolved image",
)


@dataclass(frozen=True)
class Quantities:
    """Catalogue quantities, each (value, error): the median over the draws and half of their
    central 68 % interval.

    Of the image at the target resolution, about the fitted place. The error is nan with fewer than
    8 draws; a quantity that less than half of the draws have is nan, and `measured_words` says why.
    flux: in the units of the observation; half_light_radius: arcsec; e1, e2: distortion convention,
    along the pixel axes; num_failed: draws without adaptive moments (left out of e1, e2);
    num_no_radius: draws without a half-light radius; covariance [4, 4] of the four in this
    order over the draws where all of them could be measured, as nested tuples, nan with fewer than
    8.
    """

    flux: tuple
    half_light_radius: tuple
    e1: tuple
    e2: tuple
    num_failed: int
    num_no_radius: int
    covariance: tuple


def measured_words(quantities):
    """Sentences on quantities that some or all draws do not have; none where there are none."""
    sentences = []
    for num, pair, words in (
        (quantities.num_failed, quantities.e1, SHAPE_WORDS),
        (quantities.num_no_radius, quantities.half_light_radius, RADIUS_WORDS),
    ):
        if num:
            sentences.append(words[math.isfinite(pair[0])].format(num=num))
    return tuple(sentences)


def measure(draws, *, pixel_scale, places=None, fluxes=None):
    """Flux, half-light radius and ellipticity of each draw by GalSim, summed up over the draws.

    Parameters
    ----------
    draws : array [num_draws, height, width], flux per pixel
    pixel_scale : float, arcsec per pixel
    places : array [num_draws, 2] or None, (x, y) arcsec from the images' middle, where the galaxy
        stands in each; None: there
    fluxes : array [num_draws] or None, of all the light; None: of what the images hold

    Returns
    -------
    Quantities
    """
    places = np.zeros((len(draws), 2)) if places is None else places
    fluxes = [None] * len(draws) if fluxes is None else fluxes
    rows = np.array(
        [
            measure_image(draw, pixel_scale=pixel_scale, place=place, flux=flux)
            for draw, place, flux in zip(draws, places, fluxes, strict=True)
        ]
    ).reshape(-1, 4)
    lost = np.isnan(rows).sum(0)
    rows[:, lost > MOST_LOST * len(rows)] = np.nan
    return Quantities(
        *(_median_and_error(column) for column in rows.T),
        num_failed=int(lost[2]),
        num_no_radius=int(lost[1]),
        covariance=_covariance(rows),
    )


def _covariance(rows):
    matrix = covariance_of(rows[np.isfinite(rows).all(1)])
    return tuple(tuple(float(value) for value in line) for line in matrix)


def covariance_of(draws):
    """Covariance [n, n] of draws [num_draws, n], in float64; nan of fewer than 8."""
    num = draws.shape[1]
    if len(draws) < MIN_DRAWS:
        return np.full((num, num), np.nan)
    return np.cov(draws.T.astype(float)).reshape(num, num)


def _median_and_error(values):
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    return float(middle), float((high - low) / 2) if len(values) >= MIN_DRAWS else math.nan


def mean_and_error(draws):
    """(mean, standard deviation) of draws [num_draws] as floats, summed in float64; nan of none."""
    if not len(draws):
        return math.nan, math.nan
    return float(draws.mean(dtype=np.float64)), float(draws.std(dtype=np.float64))


def format_value(pair):
    """`value ± error` with as many digits as the error allows; a dash for what could not be
    measured.
    """
    value, error = pair
    if not math.isfinite(value):
        return "-"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    exponent = math.floor(math.log10(max(abs(value), error)))
    if not -4 < exponent < 6:
        return f"({format_value((value / 10.0**exponent, error / 10.0**exponent))})e{exponent:+03d}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
