"""Whether to trust a fit: how it compares with the noise, and sentences on what stands against it."""

import numpy as np
from scipy import stats

R_HAT_MAX = 1.01  # Vehtari et al. 2021, section 4
K_HAT_MAX = 0.7  # Vehtari et al. 2024, section 3.2.4
POOR_FIT_P = 1e-3
SMALLEST_P = 1e-9  # smaller ones are printed as smaller
MIN_PIXELS = 9  # fewer pixels are no test of a fit
EDGE_WIDTH, EDGE_SIGMA = (
    2,
    3.0,
)  # observed pixels; isolated galaxies of the benchmark stay below 0.5 sigma


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
    return total / freedom, float(stats.chi2.sf(total, freedom))


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


def judge(diagnostics, chi2, p_value, *, num_lost=0, edge=0.0):
    """Sentences on what stands against a result; none where nothing does.

    Parameters
    ----------
    diagnostics : dict of str -> float; r_hat, k_hat, num_divergent, map_converged are looked at
    chi2, p_value : float
    num_lost : int, draws that were not finite
    edge : float, as of `edge_significance`

    Returns
    -------
    tuple of str, `not_converged: ...`, `poor_fit: ...` or `cut_off: ...`
    """
    sentences = []
    if diagnostics.get("map_converged", 1) < 1:
        sentences.append(
            "not_converged: the search for the best fit stopped before its end; give a smaller"
            " stamp or better starting values"
        )
    if not diagnostics.get("r_hat", 1) <= R_HAT_MAX:
        sentences.append(
            f"not_converged: R-hat is {diagnostics['r_hat']:.3f}, more than {R_HAT_MAX}: the chains"
            " disagree; take more draws or chains"
        )
    if not diagnostics.get("k_hat", 0) <= K_HAT_MAX:
        sentences.append(
            f"not_converged: k-hat is {diagnostics['k_hat']:.2f}, more than {K_HAT_MAX}: the"
            " posterior is not Gaussian enough for the Laplace approximation; use method hmc"
        )
    if diagnostics.get("num_divergent", 0) > 0:
        sentences.append(
            f"not_converged: {int(diagnostics['num_divergent'])} divergent steps: a corner of the"
            " posterior was missed; take more draws"
        )
    if num_lost:
        sentences.append(f"not_converged: {num_lost} draws were not finite and were left out")
    if p_value < POOR_FIT_P:
        sentences.append(
            f"poor_fit: reduced chi2 is {chi2:.2f} inside the galaxy ({format_p(p_value)}): star,"
            " blend or artefact outside the prior, or the variance or the PSF is wrong; look at"
            " the residual"
        )
    if edge > EDGE_SIGMA:
        sentences.append(
            f"cut_off: the galaxy's light reaches the edge of the stamp ({edge:.0f} sigma), where"
            " it cannot be told from the background; take a larger cutout"
        )
    return tuple(sentences)


def format_p(p_value):
    """A p-value as `p = 0.12` or `p < 1e-09`."""
    return f"p < {SMALLEST_P:.0e}" if p_value < SMALLEST_P else f"p = {p_value:.2g}"


def name_in(name, sentence):
    """A sentence `word: explanation` that says of what it is: `word: name: explanation`."""
    word, explanation = sentence.split(": ", 1)
    return f"{word}: {name}: {explanation}"
