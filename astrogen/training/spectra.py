"""Spectrum and shift of convergence maps from simulations, as smooth functions of the cosmology,
and fields whose drawn maps have that spectrum.

A map cut from the sky is not periodic, and the exponential changes a spectrum: instead of
correcting for both, maps are drawn and cut in the same way, measured with the same estimator, and
the spectrum that colours the noise is changed until the two agree.
"""

from functools import partial

import numpy as np
import tensorflow as tf

from astrogen.errors import InputError, InputFileError
from astrogen.priors.convergence import (
    ARCMIN,
    SECOND_ORDER,
    TERMS,
    Table,
    draw_latent,
    hat_weights,
    polynomial_terms,
)
from astrogen.reading import read_json
from astrogen.training.map_features import band_edges, band_matrix

LOG_L = np.linspace(np.log(50.0), np.log(6700.0), 24)
NUM_BANDS, LAST = 20, 6700.0
SHIFT_MARGIN = 1.1  # lambda over the deepest void in the simulations
# of log C below the first measured band: where the spectrum bends towards its maximum at l of 20 or
# so
LOW_SLOPE = -0.6
BATCH = 32


def measured_bands(kappa, pixel_scale):
    """Band powers [num, NUM_BANDS] (steradian) of maps [num, n, m]; pixel_scale in arcmin per
    pixel.
    """
    n, m = kappa.shape[1:]
    return mean_bands(
        np.abs(np.fft.rfft2(kappa)) ** 2 * (pixel_scale * ARCMIN) ** 2 / (n * m),
        (n, m),
        pixel_scale,
    )


def mean_bands(power, shape, pixel_scale):
    """Means [..., NUM_BANDS] over the bands of powers [..., n, m // 2 + 1] of the modes of maps of
    a shape.
    """
    matrix, _ = band_matrix(*shape, pixel_scale, band_edges(NUM_BANDS, last=LAST))
    return power.reshape(*power.shape[:-2], -1) @ matrix.T


def band_multipoles(shape, pixel_scale):
    """The mean multipole [NUM_BANDS] of each band of maps of a shape."""
    return band_matrix(*shape, pixel_scale, band_edges(NUM_BANDS, last=LAST))[1]


def fit_polynomial(cosmology, values, *, num_terms=SECOND_ORDER):
    """Coefficients [TERMS, ...] of least squares, of values [num, ...] at cosmologies [num, 2];
    those beyond the first terms are zero.

    Of second order where the values are those of simulations, with their scatter; all TERMS where
    they are exact.
    """
    terms = polynomial_terms(cosmology).numpy().astype(np.float64)[:, :num_terms]
    found = np.linalg.lstsq(terms, np.asarray(values, np.float64), rcond=None)[0]
    return np.concatenate([found, np.zeros((TERMS - num_terms, *found.shape[1:]))])


def by_simulation(maps, value_fn):
    """The cosmology [S, 2] of every simulation, and the mean of value_fn(kappa) over its maps [S,
    ...].
    """
    simulations, first = np.unique(maps["simulation"], return_index=True)
    values = [np.mean(value_fn(maps["kappa"][maps["simulation"] == one]), 0) for one in simulations]
    return maps["cosmology"][first], np.stack(values)


def fit_shift(maps):
    """log lambda [TERMS]: a power law of the cosmology that lies SHIFT_MARGIN below the deepest
    void of every simulation.
    """
    cosmology, deepest = by_simulation(maps, lambda kappa: [-kappa.min()])
    coefficients = fit_polynomial(cosmology, np.log(deepest), num_terms=3)
    above = np.log(deepest) - polynomial_terms(cosmology).numpy() @ coefficients
    coefficients[0] += above.max() + np.log(SHIFT_MARGIN)
    return coefficients.astype(np.float32)


def fit_target(maps):
    """Coefficients [TERMS, NUM_BANDS] of the log of the simulations' mean band powers.

    How the spectrum changes with the cosmology is smooth in l: the coefficients but the first are
    quadratic in log l, which keeps the noise of few boxes out.
    """
    cosmology, power = by_simulation(maps, lambda kappa: measured_bands(kappa, maps["pixel_scale"]))
    terms, log_power = polynomial_terms(cosmology).numpy().astype(np.float64), np.log(power)
    coefficients = fit_polynomial(
        cosmology, log_power, num_terms=SECOND_ORDER if len(power) >= 3 * SECOND_ORDER else 3
    )
    log_l, weight = (
        np.log(band_multipoles(maps["kappa"].shape[1:], maps["pixel_scale"])),
        1 / (log_power - terms @ coefficients).std(0),
    )
    for term in range(1, SECOND_ORDER):
        coefficients[term] = np.polyval(np.polyfit(log_l, coefficients[term], 2, w=weight), log_l)
    coefficients[0] = (log_power - terms[:, 1:] @ coefficients[1:]).mean(0)
    return coefficients


def read_target(path, *, shape, pixel_scale):
    """Coefficients as of `fit_target` from band powers that theory expects (`python -m
    data_pipelines expected-spectrum`).

    Raises
    ------
    InputFileError : the file is none of this kind. InputError : it is of other maps.
    """
    try:
        stored = read_json(path)
        cosmologies, power, l = (
            np.array(stored[name], float) for name in ("cosmologies", "power", "multipoles")
        )
        of = (float(stored["pixel_scale"]), tuple(int(side) for side in stored["image_shape"]))
        str(stored["what"])
    except (InputFileError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            path,
            "read_target: spectrum must be a file of `python -m data_pipelines expected-spectrum`,"
            f" got {getattr(error, 'reason', error)}",
        ) from error
    if of != (pixel_scale, tuple(shape)):
        raise InputError(
            f"read_target: spectrum must be of maps of {tuple(shape)} pixels of {pixel_scale:g}"
            f" arcmin as the records are, got {of[1]} of {of[0]:g} in {path}"
        )
    if (
        cosmologies.shape[1:] != (2,)
        or power.shape != (len(cosmologies), NUM_BANDS)
        or len(cosmologies) < TERMS
        or l.shape != (NUM_BANDS,)
        or not np.allclose(l, band_multipoles(shape, pixel_scale))
        or not all(np.all((values > 0) & np.isfinite(values)) for values in (power, cosmologies))
    ):
        raise InputFileError(
            path,
            f"read_target: spectrum must have positive powers in the {NUM_BANDS} bands of this"
            f" release at {TERMS} cosmologies or more, got shape {power.shape}; make the file"
            " again",
        )
    return fit_polynomial(cosmologies, np.log(power), num_terms=TERMS)


def start_table(target, pixel_scale, shape):
    """A table whose spectrum is that of the bands, extended to lower multipoles, as the first guess
    of a Gaussian field.
    """
    l = band_multipoles(shape, pixel_scale)
    knots = np.stack([np.interp(LOG_L, np.log(l), row) for row in target])
    knots[0] += LOW_SLOPE * np.minimum(0.0, LOG_L - np.log(l[0]))
    return Table(knots, np.zeros(TERMS), np.zeros(TERMS))


def match_spectrum(prior, target, *, num_maps, num_iterations, seed):
    """Change the prior's table, in place, until cut maps have the band powers of the target, at
    nine cosmologies of its range.

    The mean convergence of the maps becomes zero; with a network it stays as it was learnt,
    together with the density of pixels.

    Parameters
    ----------
    prior : ConvergencePrior
    target : array [TERMS, NUM_BANDS], of `fit_target`
    num_maps : int, per cosmology

    Returns
    -------
    float : the largest relative difference of a band of 250 < l < 3000, before the last change
    """
    limits = [np.linspace(*prior.cosmology_range[name], 3) for name in ("omega_m", "sigma_8")]
    design = np.stack(np.meshgrid(*limits, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    terms, l = (
        polynomial_terms(design).numpy(),
        band_multipoles(prior.image_shape, prior.pixel_scale),
    )
    wanted = None
    for _ in range(num_iterations):
        draw = tf.function(prior.draw)  # traced anew: the table is a constant of the graph
        summaries = [_summarise(draw, prior, one[None], num_maps, seed) for one in design]
        power, mean, std = (np.stack(x) for x in zip(*summaries))
        error = terms @ target - np.log(power)
        wanted = (mean if prior.kind == "network" else 0 * mean) if wanted is None else wanted
        _change_table(prior, design, l, error, (mean, wanted), std)
    return float(np.abs(np.expm1(error[:, (l > 250) & (l < 3000)])).max())


def _summarise(draw, prior, cosmology, num_maps, seed):
    """Mean band powers, mean convergence, and log standard deviation of g, of maps cut from one
    cosmology.
    """
    power, mean, variance = [], [], []
    for start in range(0, num_maps, BATCH):
        latent = draw_latent(range(start, start + BATCH), prior.image_shape, seed=seed)
        kappa = draw(latent, cosmology).numpy()
        power.append(measured_bands(kappa, prior.pixel_scale).mean(0))
        mean.append(kappa.mean())
        variance.append(prior.colour(latent, cosmology).numpy().var())
    return np.mean(power, 0), np.mean(mean), 0.5 * np.log(np.mean(variance))


def _change_table(prior, design, l, error, mean, std):
    # A shift of the mean of g multiplies the density: what it does to the spectrum is not to be
    # corrected twice.
    found, wanted = (x + prior.shift(design).numpy() for x in mean)
    move = 0 * found if prior.kind == "gaussian" else np.log(wanted / found)
    # As many terms as cosmologies: the network's own way with the cosmology is followed exactly at
    # each. Of second order, up to 4 % of power were left.
    fit = partial(fit_polynomial, design, num_terms=TERMS)
    correction = fit(error - 2 * move[:, None]) @ hat_weights(np.exp(LOG_L), np.log(l)).T
    spectrum = prior.table.log_spectrum.numpy() + correction
    unit = (
        prior.table.log_std.numpy() if prior.kind == "network" else fit(std)
    )  # the network goes on in the unit that it learned in
    prior.table = Table(
        *(
            tf.constant(x, tf.float32)
            for x in (spectrum, prior.table.mean.numpy() + fit(move), unit)
        )
    )


def lognormal_start(gaussian, log_shift, design):
    """First guess of the table of a lognormal field: the Gaussian's divided by lambda^2, with the
    mean that makes the convergence vanish on average.
    """
    spectrum, std = gaussian.log_spectrum.copy(), gaussian.log_std.copy()
    spectrum -= 2 * log_shift[:, None]
    std = std - log_shift
    variance = np.exp(2 * polynomial_terms(design).numpy() @ std)
    mean = polynomial_terms(design).numpy() @ log_shift - 0.5 * variance
    return Table(spectrum, fit_polynomial(design, mean), std)
