"""One morphology in several bands: colour gradients and the ratios of the bands' fluxes, integrated
out so that what is left is a posterior of one band.

With c the coefficients (flux times morphology) in a reference band, band b shows

    c_b = scale_b (c + eta_b),     eta_b ~ N(0, LOOSENESS^2 c0 c0' + colour^2 diag(flux std)^2),

c0 the best estimate of c, scale_b that of the flux ratio, std the population's deviations. The
first term leaves the flux of the band free, and allows it to be negative; the second is the colour
gradient. All of it is normal given c, so that a band with normal equations (G, m) says about c what
(T G, T m) would say without eta. The reference band has no eta.
"""

from typing import NamedTuple

import numpy as np

LOOSENESS = 3.0  # relative to the estimated flux, or to its error where that is larger
COLOURS = (0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.35)  # of which the likeliest is taken, under
COLOUR_MEDIAN, COLOUR_SPREAD = 0.05, 1.0  # a lognormal prior


class Tie(NamedTuple):
    """How the bands of one galaxy hang together. spreads, factors [band]: covariance [k, k] of
    scale * eta given c and the data, and a root of it (None in the reference band);
    gram [k, k] : of all bands about c; scales [band]; grams [band, k, k]; reference : int."""

    spreads: list
    factors: list
    gram: np.ndarray
    scales: np.ndarray
    grams: np.ndarray
    reference: int


def flux_ratios(grams, moments, shape, reference):
    """Least-squares factors [band] of the coefficients `shape` in each band, at least their errors,
    relative to the reference band's.
    """
    seen = np.einsum("bkl,l->bk", grams, shape)
    power = np.maximum(seen @ shape, 1e-30)
    scales = np.maximum((moments @ shape) / power, power**-0.5)
    return scales / scales[reference]


def tie_bands(grams, scales, reference, *, shape, colour, deviations):
    """The Tie of bands with normal matrices [band, k, k].

    Parameters
    ----------
    scales : array [band], flux over that of the reference band
    shape : array [k], the best estimate of the coefficients in the reference band
    colour : float, colour gradients in units of `deviations`
    deviations : array [k], flux times the population's standard deviations
    """
    spreads, factors, total = [], [], np.zeros_like(grams[0])
    root = prior_root(shape, colour * deviations)
    for band, (gram, scale) in enumerate(zip(grams, scales, strict=True)):
        if band == reference:
            spreads.append(None)
            factors.append(None)
            total += gram
            continue
        ours = scale * root
        factor = np.linalg.cholesky(np.eye(len(shape)) + ours.T @ gram @ ours)
        half = np.linalg.solve(factor, ours.T).T
        spreads.append(half @ half.T)
        factors.append(half)
        seen = gram @ half
        total += scale**2 * (gram - seen @ seen.T)
    return Tie(spreads, factors, (total + total.T) / 2, scales, grams, reference)


def prior_root(shape, width):
    """A square root [k, k] of diag(width)^2 + LOOSENESS^2 shape shape'."""
    white = shape / width
    square = white @ white
    return width[:, None] * (
        np.eye(len(shape))
        + (np.sqrt(1 + LOOSENESS**2 * square) - 1) / square * np.outer(white, white)
    )


def tied_moment(tie, moments):
    """What moments [band, ..., k] of all bands say about the coefficients of the reference band:
    [..., k].
    """
    total = np.zeros_like(moments[0])
    for scale, spread, gram, moment in zip(
        tie.scales, tie.spreads, tie.grams, moments, strict=True
    ):
        total += moment if spread is None else scale * (moment - moment @ spread @ gram)
    return total


def draw_bands(tie, coefficients, moments, rng):
    """Exact draws of the coefficients of every band [band, ..., k] given those of the reference
    band [..., k] and moments [band, ..., k]; means without `rng`.
    """
    drawn = []
    for scale, spread, factor, gram, moment in zip(
        tie.scales, tie.spreads, tie.factors, tie.grams, moments, strict=True
    ):
        seen = scale * coefficients
        if spread is not None:
            seen = seen + (moment - seen @ gram) @ spread
            if rng is not None:
                seen = seen + rng.standard_normal(seen.shape) @ factor.T
        drawn.append(seen)
    return np.stack(drawn)


def likeliest_colour(grams, moments, scales, reference, *, shape, deviations):
    """The strength of colour gradients, among COLOURS, that makes the bands most probable given the
    coefficients `shape` [k] of the reference band.
    """

    def log_posterior(colour):
        value, root = (
            -0.5 * (np.log(colour / COLOUR_MEDIAN) / COLOUR_SPREAD) ** 2,
            prior_root(shape, colour * deviations),
        )
        for band, (gram, moment, scale) in enumerate(zip(grams, moments, scales, strict=True)):
            if band != reference:
                ours = scale * root
                factor = np.linalg.cholesky(np.eye(len(shape)) + ours.T @ gram @ ours)
                white = np.linalg.solve(factor, ours.T @ (moment - scale * gram @ shape))
                value += 0.5 * white @ white - np.log(np.diag(factor)).sum()
        return value

    return max(COLOURS, key=log_posterior)
