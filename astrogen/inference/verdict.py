"""Whether to trust a fit: how it compares with the noise, and what stands against it, in words."""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from astrogen.noise import robust_sigma

# One table of limits, for galaxies, blends and maps. R-hat is told of what a catalogue or a map
# reports, not of parameters that nobody asks for: at the limit the mean of eight half chains errs
# by a ninth of the posterior's standard deviation, as much again as that of 80 draws does. Chains
# that may go on do so until the aim, so that chance does not decide on the limit.
R_HAT_MAX, R_HAT_AIM = 1.05, 1.02
# of the log-density of a map, which mixes slowest of all: beyond it the burn-in was too short
R_HAT_DRIFT = 1.3
K_HAT_MAX = 0.7  # Vehtari et al. 2024, section 3.2.4
POOR_FIT_P = 1e-3
PEAK_P = 1e-4  # chance of a peak of the residual anywhere in the stamp
FAILED_CHI2 = 100.0  # reduced: no model, or no noise level, of this image
FAILED_SIGMA = 5.0  # of a negative flux
NOISE_P, NOISE_FACTOR = 1e-4, 1.25  # of a variance that is too large, or too small
LEAST_DETECTION, LEAST_FLUX = 4.0, 3.0  # sigma of the data along the model, and of the flux
SMALLEST_P = 1e-9  # smaller ones are printed as smaller
MIN_PIXELS = 9  # fewer pixels are no test of a fit
# observed pixels; isolated galaxies of the benchmark stay below 0.5 sigma
EDGE_WIDTH, EDGE_SIGMA = 2, 3.0


class Fit(NamedTuple):
    """How a model compares with an observation.

    chi2, p_value : as of `goodness_of_fit`
    chi2_all, p_low : reduced chi-square over all good pixels, and the probability of a smaller one
    scatter : variance of most residuals (from their median absolute deviation) over the noise's
    detection : sigma of the data along the model
    peak, place : largest excess or lack of light of the residual under a Gaussian as wide as the
        PSF, in sigma (of the residual's own scatter where that is larger), and its pixel (x, y)
    num_good : good pixels
    """

    chi2: float
    p_value: float
    chi2_all: float
    p_low: float
    scatter: float
    detection: float
    peak: float
    place: tuple
    num_good: int


NO_FIT = Fit(*(math.nan,) * 7, place=(0, 0), num_good=0)  # of what could not be fitted


def compare(residual, source, observation, *, num_fitted=0.0):
    """The Fit of a model: inside the galaxy and over the whole stamp, both ways.

    Parameters are those of `goodness_of_fit`.
    """
    good = ~observation.mask
    pixels = (residual[good] / np.sqrt(observation.variance[good])).astype(np.float64)
    freedom = max(pixels.size - num_fitted, 1.0)
    total = float((pixels**2).sum())
    scatter = robust_sigma(pixels) ** 2
    weight = np.where(good, 1 / observation.variance.astype(np.float64), 0.0)
    power = math.sqrt(float((weight * source.astype(np.float64) ** 2).sum()))
    detection = float((weight * source * (residual + source)).sum()) / power if power else 0.0
    peak, place = _peak(residual, weight, observation, max(scatter, 1.0))
    return Fit(
        *goodness_of_fit(residual, source, observation, num_fitted=num_fitted),
        total / freedom,
        float(special.chdtr(freedom, total)),
        scatter,
        detection,
        peak,
        place,
        pixels.size,
    )


def _peak(residual, weight, observation, scatter):
    """(significance, (x, y)) of the largest excess or lack of light as wide as the PSF."""
    psf, scale = observation.psf, observation.pixel_scale
    pixel = max(scale**2 - psf.pixel_response**2, 0.0) / 12
    sigma = math.sqrt(psf.fwhm**2 / (8 * math.log(2)) + pixel) / scale
    light = _blurred(residual * weight, sigma)
    noise = np.sqrt(np.maximum(_blurred(weight, sigma / math.sqrt(2)) * scatter, 1e-300))
    map_of_sigma = np.where(weight > 0, light / noise, 0.0)
    row, column = np.unravel_index(np.argmax(np.abs(map_of_sigma)), map_of_sigma.shape)
    return float(map_of_sigma[row, column]), (int(column), int(row))


def _blurred(image, sigma):
    """The image under a Gaussian of peak 1 about each pixel."""
    matrices = (
        np.exp(-0.5 * np.square(np.subtract.outer(np.arange(side), np.arange(side)) / sigma))
        for side in image.shape
    )
    down, across = matrices
    return down @ image @ across.T


def goodness_of_fit(residual, source, observation, *, num_fitted=0.0):
    """Reduced chi-square of the residual inside the galaxy, and the probability of a larger one.

    Inside means unmasked pixels where the model (not the data, which would select its own noise)
    exceeds the noise's standard deviation, or the nine most significant ones where the galaxy is
    fainter than that. Pixels are taken as independent.

    Parameters
    ----------
    residual, source : arrays [h, w], flux per pixel: observed minus model; model without background
    observation : Observation
    num_fitted : float, effective number of fitted parameters

    Returns
    -------
    (chi2, p_value) : floats
    """
    sigma = np.sqrt(observation.variance)
    significance = np.where(observation.mask, -np.inf, source / sigma)
    num_good = int((~observation.mask).sum())
    threshold = min(1.0, np.sort(significance, axis=None)[-min(MIN_PIXELS, num_good)])
    pixels = residual[significance >= threshold] / sigma[significance >= threshold]
    freedom = max(pixels.size - num_fitted, 1.0)
    total = float(np.square(pixels, dtype=np.float64).sum())
    return total / freedom, float(special.chdtrc(freedom, total))


def edge_significance(source, observation):
    """How far the mean light of a model rises above the noise of the mean in the stamp's outermost
    pixels (EDGE_WIDTH), in sigma.

    Parameters
    ----------
    source : array [h, w], model without background
    observation : Observation

    Returns
    -------
    float; zero where no pixel of the edge is good
    """
    weight = np.where(observation.mask, 0, 1 / observation.variance).astype(np.float64)
    weight[EDGE_WIDTH:-EDGE_WIDTH, EDGE_WIDTH:-EDGE_WIDTH] = 0
    return float((weight * source).sum() / np.sqrt(weight.sum())) if weight.any() else 0.0


def judge_fit(fit, flux=(math.nan, math.nan)):
    """Sentences on what stands against a model of an image, each with the likely cause first, the
    gravest first; none where nothing does.

    Parameters
    ----------
    fit : Fit
    flux : (value, error) of the galaxy; nan where there are several

    Returns
    -------
    tuple of str : `failed_fit`, `no_source`, `noise_overestimated`, `poor_fit`
    """
    value, error = flux
    worst = max(fit.chi2, fit.chi2_all)
    x, y = fit.place
    lit = bool(special.ndtr(-abs(fit.peak)) * 2 * fit.num_good < PEAK_P)
    sentences = []
    if not worst <= FAILED_CHI2:
        sentences.append(
            f"failed_fit: the variance is far too small or of another unit, or this is no galaxy of"
            f" the prior: reduced chi2 is {worst:.3g}; check noise and units, and look at the image"
        )
    elif negative := judge_flux(flux):
        sentences += negative
    elif fit.detection < LEAST_DETECTION or value < LEAST_FLUX * error:
        sentences.append(
            "no_source: the position is not that of a galaxy, or it is too faint: "
            + (f"flux {value:.3g} +- {error:.2g}" if math.isfinite(value) else "no light")
            + " where the model stands"
            + (f", but light at pixel ({x}, {y}), {fit.peak:.0f} sigma" * (lit and fit.peak > 0))
            + "; give the position as (x, y) pixels from 0, or a deeper image"
        )
    if fit.scatter < 1 / NOISE_FACTOR and fit.p_low < NOISE_P:
        sentences.append(
            "noise_overestimated: the variance is about"
            f" {1 / max(fit.scatter, SMALLEST_P):.3g} times too large: reduced chi2 is"
            f" {fit.chi2_all:.2g} over the stamp; give the variance in the image's unit squared,"
            " errors are too large by the square root"
        )
    if not sentences or sentences[0].startswith("noise"):
        sentences += _poor_fit(fit, lit)
    return tuple(sentences)


def judge_flux(flux):
    """A sentence `failed_fit: ...` where a flux (value, error) is negative beyond the noise."""
    value, error = flux
    if not value < -FAILED_SIGMA * error:
        return ()
    return (
        "failed_fit: too much background is subtracted, or the image is negative: the flux is"
        f" {value:.4g} +- {error:.2g}; check the sky level",
    )


def _poor_fit(fit, lit):
    if fit.p_value < POOR_FIT_P and fit.scatter > NOISE_FACTOR:
        return [
            f"poor_fit: the variance is about {fit.scatter:.2g} times too small, or the noise is"
            f" not its own: reduced chi2 is {fit.chi2:.2f} inside the galaxy"
            f" ({format_p(fit.p_value)}), {fit.chi2_all:.2f} over the stamp; check the variance"
        ]
    if fit.scatter > NOISE_FACTOR and fit.p_low > 1 - NOISE_P:
        return [
            f"poor_fit: the variance is about {fit.scatter:.2g} times too small, or neighbours"
            f" fill the stamp: reduced chi2 is {fit.chi2_all:.2f} over it; check the variance"
        ]
    if fit.p_value < POOR_FIT_P:
        return [
            f"poor_fit: star, blend or artefact outside the prior, or the variance or the PSF is"
            f" wrong: reduced chi2 is {fit.chi2:.2f} inside the galaxy ({format_p(fit.p_value)});"
            " look at the residual"
        ]
    if lit:
        kind = "light that the model does not hold" if fit.peak > 0 else "a dark spot"
        cause = "a neighbour, a star or a cosmic ray" if fit.peak > 0 else "a bad pixel or column"
        x, y = fit.place
        return [
            f"poor_fit: {cause} in the stamp: {kind} at pixel ({x}, {y}), {abs(fit.peak):.0f}"
            " sigma; mask it, or fit it too (deblend)"
        ]
    return []


def judge(diagnostics, *, fits=(), num_lost=0, edge=0.0):
    """Sentences on what stands against a result, what is wrong with the image first; none where
    nothing does.

    Parameters
    ----------
    diagnostics : dict of str -> float; r_hat, k_hat, num_divergent, map_converged are looked at
    fits : sequence of str, of `judge_fit`
    num_lost : int, draws that were not finite
    edge : float, as of `edge_significance`

    Returns
    -------
    tuple of str, those of `fits`, `cut_off: ...` or `not_converged: ...`
    """
    sentences = list(fits)
    if edge > EDGE_SIGMA:
        sentences.append(
            f"cut_off: the galaxy's light reaches the edge of the stamp ({edge:.0f} sigma), where"
            " it cannot be told from the background; take a larger cutout"
        )
    if diagnostics.get("map_converged", 1) < 1:
        sentences.append(
            "not_converged: the search for the best fit stopped before its end; give a smaller"
            " stamp"
        )
    if not diagnostics.get("r_hat", 1) <= R_HAT_MAX:
        sentences.append(
            f"not_converged: R-hat is {diagnostics['r_hat']:.3f}, more than {R_HAT_MAX}: the chains"
            " disagree on the flux, the place or the shape; take more draws or chains"
        )
    if not diagnostics.get("k_hat", 0) <= K_HAT_MAX:
        sentences.append(
            f"not_converged: k-hat is {diagnostics['k_hat']:.2f}, more than {K_HAT_MAX}: the"
            " posterior is not Gaussian enough for an approximation by a normal; use method hmc"
        )
    if diagnostics.get("num_divergent", 0) > 0:
        sentences.append(
            f"not_converged: {int(diagnostics['num_divergent'])} divergent steps: a corner of the"
            " posterior was missed; take more draws"
        )
    if num_lost:
        sentences.append(f"not_converged: {num_lost} draws were not finite and were left out")
    return tuple(sentences)


def is_failed(status):
    """Whether sentences say that the fit is of nothing, so that its numbers say nothing."""
    return any(sentence.startswith(("failed_fit:", "no_source:")) for sentence in status)


def is_poor(status):
    """Whether sentences say that the model or the noise level does not describe the image."""
    return any(sentence.startswith(("poor_fit:", "noise_overestimated:")) for sentence in status)


def format_p(p_value):
    """A p-value as `p = 0.12` or `p < 1e-09`."""
    return f"p < {SMALLEST_P:.0e}" if p_value < SMALLEST_P else f"p = {p_value:.2g}"


def name_in(name, sentence):
    """A sentence `word: explanation` that says of what it is: `word: name: explanation`."""
    word, explanation = sentence.split(": ", 1)
    return f"{word}: {name}: {explanation}"
