"""What the simulations say of a convergence field (its shift, and where no theory is given its
spectrum), and what a network does to the spectrum of theory, taken out again.
"""

import numpy as np
import tensorflow as tf

from astrogen.data.reading import read_json
from astrogen.errors import InputFileError
from astrogen.priors.convergence import (
    CHANGE_TERMS,
    LAGS,
    SECOND_ORDER,
    TERMS,
    Change,
    ConvergencePrior,
    MapFrame,
    Theory,
    change_design,
    change_terms,
    change_weights,
    exact_terms,
    lag_cosines,
    lag_pairs,
)
from astrogen.priors.grid_power import ARCMIN, mode_counts, pixel_covariance, windowed_power
from astrogen.training.map_features import band_edges, band_matrix

NUM_BANDS, LAST = 20, 6700.0
SHIFT_MARGIN = 1.1  # lambda over the deepest void in the simulations
LOWEST = 147.0  # multipole of the lowest mode of the maps that a network learns from
# beyond, modes lie along diagonals alone
CHANGE_LOG_L = np.linspace(np.log(LOWEST), np.log(5600.0), 14)
RIDGE = 1e-5  # relative to a mode's weight: knots and cosines together are nearly alike at low l
SIDE = 256  # pixels of the periodic maps by which a network's field is brought to theory


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
    terms = exact_terms(cosmology)[:, :num_terms]
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
    above = np.log(deepest) - exact_terms(cosmology) @ coefficients
    coefficients[0] += above.max() + np.log(SHIFT_MARGIN)
    return coefficients.astype(np.float32)


def fit_target(maps):
    """Coefficients [TERMS, NUM_BANDS] of the log of the simulations' mean band powers.

    How the spectrum changes with the cosmology is smooth in l: the coefficients but the first are
    quadratic in log l, which keeps the noise of few boxes out.
    """
    cosmology, power = by_simulation(maps, lambda kappa: measured_bands(kappa, maps["pixel_scale"]))
    terms, log_power = exact_terms(cosmology), np.log(power)
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


def read_theory(path):
    """The Theory of a file of `python -m data_pipelines expected-spectrum`, and the redshift of its
    sources.

    Raises
    ------
    InputFileError : the file is none of this kind.
    """
    try:
        stored = read_json(path)
        points, spectrum, l = (
            np.array(stored[name], float) for name in ("cosmologies", "spectrum", "multipoles")
        )
        redshift = float(stored["source_redshift"])
    except (InputFileError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputFileError(
            path,
            "read_theory: spectrum must be a file of `python -m data_pipelines expected-spectrum`,"
            f" got {getattr(error, 'reason', error)}",
        ) from error
    if (
        points.shape[1:] != (2,)
        or spectrum.shape != (*points.shape[:1], *l.shape)
        or l.ndim != 1
        or len(points) < TERMS
        or not all(np.all((values > 0) & np.isfinite(values)) for values in (spectrum, points, l))
        or not np.all(np.diff(l) > 0)
        or not np.isfinite(redshift)
    ):
        raise InputFileError(
            path,
            f"read_theory: spectrum must be positive at rising multipoles, at {TERMS} cosmologies"
            f" or more, got shape {spectrum.shape} for {points.shape} of them and {l.shape}"
            " multipoles; make the file again",
        )
    return Theory(np.log(l), fit_polynomial(points, np.log(spectrum), num_terms=TERMS)), redshift


def fit_theory(maps, shape_of):
    """A Theory whose maps have the mean band powers of simulations: that of `shape_of`, another
    Theory, times a smooth factor, which is constant below the lowest mode of the maps.

    Parameters
    ----------
    maps : dict, of `load_maps`
    shape_of : Theory
    """
    side, scale = maps["kappa"].shape[1], maps["pixel_scale"]
    points = np.unique(maps["cosmology"], axis=0)
    covariance = pixel_covariance(
        shape_of.log_l,
        exact_terms(points) @ shape_of.log_spectrum,
        (2 * side, 2 * side),
        pixel_scale=scale,
    )[:, :side, :side]
    power = windowed_power(covariance, np.ones(side), pixel_scale=scale)
    num_terms = SECOND_ORDER if len(points) >= 3 * SECOND_ORDER else min(3, len(points))
    expected = fit_polynomial(
        points, np.log(mean_bands(power, (side, side), scale)), num_terms=num_terms
    )
    ratio = fit_target(maps) - expected
    log_l = np.log(band_multipoles((side, side), scale))
    return Theory(
        shape_of.log_l,
        shape_of.log_spectrum + [np.interp(shape_of.log_l, log_l, row) for row in ratio],
    )


def no_change():
    """A Change that changes nothing."""
    return Change(
        CHANGE_LOG_L,
        np.zeros((CHANGE_TERMS, len(CHANGE_LOG_L))),
        np.zeros((CHANGE_TERMS, LAGS)),
        np.zeros(CHANGE_TERMS),
    )


def lognormal_of(prior):
    """The lognormal field that a prior's network starts from."""
    return ConvergencePrior(
        kind="lognormal",
        name=prior.name,
        theory=prior.theory,
        log_shift=prior.log_shift,
        change=None,
        network=None,
        frame=MapFrame(
            pixel_scale=prior.pixel_scale,
            image_shape=prior.image_shape,
            cosmology_range=prior.cosmology_range,
        ),
        card=prior.card,
    )


def match_theory(prior, *, num_maps, num_rounds, seed, side=None):
    """Change the noise that a network's field is made of, in place, until the maps have the
    spectrum of theory and mean zero, at the 25 cosmologies of `change_design`.

    Whole periodic maps, larger than those that the network learned from, are compared with
    lognormal maps of the same noise, whose spectrum and mean are known: what both share by chance
    falls out. The factor is a smooth function of l, constant below the lowest mode of the network's
    own maps, times one of few lags, which follows the pattern of the pixels.

    Parameters
    ----------
    prior : ConvergencePrior with a network
    num_maps : int, per cosmology and round
    side : int, pixels of the periodic maps; None: SIDE

    Returns
    -------
    float : the largest change of power, relative, of the last round
    """
    side = side or SIDE
    points, lognormal = change_design(prior.cosmology_range), lognormal_of(prior)
    solve = np.linalg.pinv(change_terms(points).numpy().astype(np.float64))
    for _ in range(num_rounds):
        draw = tf.function(prior.decode)  # traced anew: the change is a constant of the graph
        found = [
            _power_and_mean(draw, lognormal, one, num_maps, seed=seed, side=side) for one in points
        ]
        excess, mean = (np.stack(parts) for parts in zip(*found, strict=True))
        gain, lags, largest = _log_gain(excess, prior, side)
        # A shift of the mean of g multiplies the density: what it does to the spectrum is not to be
        # taken out twice.
        move = np.log1p(mean / prior.shift(points).numpy())
        gain -= 2 * move[:, None]
        change = prior.change
        prior.change = Change(
            change.log_l,
            change.log_gain - solve @ gain,
            change.log_lags - solve @ lags,
            change.mean - solve @ move,
        )
    return largest


def _power_and_mean(draw, lognormal, cosmology, num_maps, *, seed, side):
    """What a network's maps of one cosmology have more than the lognormal ones of the same noise:
    power [side, side // 2 + 1] relative to theory, and mean.
    """
    cosmology = tf.constant(cosmology[None], tf.float32)
    expected = lognormal.kappa_power(side, side, cosmology)[0].numpy()
    scale = (lognormal.pixel_scale * ARCMIN / side) ** 2
    excess, mean = 0.0, 0.0
    for index in range(num_maps):
        latent = tf.random.stateless_normal([1, side, side], [seed, index])
        ours, theirs = (
            fn(latent, cosmology).numpy()[0].astype(np.float64) for fn in (draw, lognormal.decode)
        )
        power = [np.abs(np.fft.rfft2(one)) ** 2 for one in (ours, theirs)]
        excess = excess + (power[0] - power[1]) * scale / expected / num_maps
        mean += (ours.mean() - theirs.mean()) / num_maps
    return excess, mean


def _log_gain(excess, prior, side):
    """Logarithm of the power over theory, as gains of a Change: [num, knots] and [num, LAGS], by
    least squares over the modes of excess [num, side, side // 2 + 1]; and the largest of a mode,
    relative.
    """
    weights = change_weights(side, side, prior.pixel_scale, tuple(prior.change.log_l))
    along_y, along_x = lag_cosines(side, side)
    cosines = np.einsum("lij,ni,mj->nml", lag_pairs(), along_y, along_x, optimize=True)
    basis = np.concatenate([weights, cosines], -1).reshape(side * (side // 2 + 1), -1)
    counts = mode_counts(side, side).reshape(-1, 1).copy()
    counts[0] = 0  # the mean of a map is no wave
    weighted = counts * basis
    normal = basis.T @ weighted + RIDGE * counts.sum() * np.eye(basis.shape[1])

    def fitted(values):
        return np.linalg.solve(normal, weighted.T @ values)

    # The logarithm of what was made smooth: that of single modes would be biased by their scatter.
    smooth = basis @ fitted(excess.reshape(len(excess), -1).T)
    found = fitted(np.log1p(np.maximum(smooth, -0.9))).T
    knots = weights.shape[-1]
    return found[:, :knots], found[:, knots:], float(np.abs(smooth[1:]).max())
