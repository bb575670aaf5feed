"""Emulated maps beyond the training size: have they the spectrum of small ones, and do they show
seams or a period?
"""

import numpy as np
import tensorflow as tf

from astrogen.darkmatter import statistics
from astrogen.priors.convergence import draw_latent
from benchmarks.map_statistics import L_EDGES

BATCH = 64  # maps of the training size that are drawn together
LARGE = 256  # pixels
TAPER = 0.15


def draw_maps(prior, num, cosmology, *, seed, side=None):
    """Maps [num, side, side] of one cosmology (Omega_m, sigma_8), as many at a time as BATCH maps
    of the training size need memory for.

    Map i is that of `prior.sample` with the same seed.
    """
    side = side or prior.image_shape[0]
    step = max(1, BATCH * prior.image_shape[0] ** 2 // side**2)
    parameters = tf.constant([cosmology], tf.float32)
    prior.check_cosmology(*cosmology)
    return np.concatenate(
        [
            prior.draw(
                draw_latent(range(start, min(start + step, num)), (side, side), seed=seed),
                parameters,
            ).numpy()
            for start in range(0, num, step)
        ]
    )


def compare_sizes(prior, cosmology, *, num, seed):
    """Spectra of large maps, whole and cut into blocks of the training size, over those of maps of
    that size; and what their seams and opposite edges show.

    Blocks are the exact comparison. Whole maps hold other modes in each band: their spectrum is
    brought to the small maps' mean l, and what differs still in the lowest bands is the small maps'
    own bias at their edges (see `statistics.power_spectrum`).

    Parameters
    ----------
    num : int, large maps of 256 x 256; as many small ones as they have blocks

    Returns
    -------
    dict : "blocks" and "whole", each with ratio and error by band; "seam" and "opposite edges", as
        `seam_excess` and `edge_correlation` give them
    """
    side = prior.image_shape[0]
    large = draw_maps(prior, num, cosmology, seed=seed, side=LARGE)
    per_side = LARGE // side
    small = draw_maps(prior, num * per_side**2, cosmology, seed=seed + 1)
    blocks = (
        large.reshape(num, per_side, side, per_side, side).swapaxes(2, 3).reshape(-1, side, side)
    )
    groups = np.repeat(np.arange(num), per_side**2)
    spectra = {
        name: statistics.jackknife(
            statistics.power_spectrum(
                maps, pixel_scale=prior.pixel_scale, edges=L_EDGES, taper=taper
            ),
            groups=labels,
        )
        for name, maps, taper, labels in (
            ("blocks", blocks, 0, groups),
            ("small", small, 0, None),
            ("whole", large, TAPER, None),
            ("tapered", small, TAPER, None),
        )
    }
    shift = _at_the_same_frequency(prior, spectra["whole"][0], side)
    return {
        "num_large_maps": num,
        "side": LARGE,
        "blocks": _ratio(spectra["blocks"], spectra["small"]),
        "whole": _ratio(spectra["whole"], spectra["tapered"], shift),
        "seam": seam_excess(large, block=side),
        "opposite edges": edge_correlation(large),
    }


def _at_the_same_frequency(prior, spectrum, side):
    """Factor [band] that brings a spectrum of large maps from their mean l to that of small ones,
    along a line in log l and log C.
    """
    whole, small = (
        np.log(
            statistics.mean_frequency(
                (length, length), pixel_scale=prior.pixel_scale, edges=L_EDGES
            )
        )
        for length in (LARGE, side)
    )
    return np.exp(np.interp(small, whole, np.log(spectrum)) - np.log(spectrum))


def _ratio(first, second, factor=1.0):
    (one, one_error), (other, other_error) = first, second
    ratio = factor * one / other
    return {
        "ratio": ratio.tolist(),
        "error": (ratio * np.hypot(one_error / one, other_error / other)).tolist(),
        "mean": float(np.mean(np.abs(ratio - 1))),
        "worst": float(np.max(np.abs(ratio - 1))),
    }


def seam_excess(maps, *, block):
    """Correlation of neighbouring pixels across the lines between blocks, minus that across all
    other lines: 0 where blocks know nothing of their borders.

    Parameters
    ----------
    maps : array [num, side, side]
    block : int, pixels; lines lie at its multiples, along both axes

    Returns
    -------
    {"excess": float, "error": float}
    """
    along = np.concatenate([maps, maps.swapaxes(1, 2)], 1)
    along = along - maps.mean()
    products = np.mean(along[:, :, 1:] * along[:, :, :-1], 1) / maps.var()
    seam = np.arange(1, maps.shape[1]) % block == 0
    excess, error = statistics.jackknife(products[:, seam].mean(1) - products[:, ~seam].mean(1))
    return {"excess": float(excess), "error": float(error)}


def edge_correlation(maps):
    """Correlation of the pixels on opposite edges: 0, unless the map is a whole period.

    Arguments and result as those of `seam_excess`.
    """
    centred = maps - maps.mean()
    products = (
        np.stack(
            [
                np.mean(centred[:, :, 0] * centred[:, :, -1], 1),
                np.mean(centred[:, 0] * centred[:, -1], 1),
            ],
            1,
        )
        / maps.var()
    )
    correlation, error = statistics.jackknife(products.mean(1))
    return {"correlation": float(correlation), "error": float(error)}
