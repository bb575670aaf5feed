"""All statistics of a set of convergence maps, and how far one set is from another, in the numbers
that the benchmark of maps states.
"""

from typing import NamedTuple

import numpy as np

from astrogen.darkmatter import statistics

L_EDGES = np.geomspace(250, 3000, 12)
# wide, because triangles of long waves are few in a field of 2.45 degrees
TRIANGLE_EDGES = np.geomspace(320, 3000, 5)
LONG_SIDE = (140, 320)
AT_ONCE = 512  # maps, to bound the memory
NUM_SPLITS = 16  # random halves of the simulations, averaged over
DEFINITIONS = {
    "P(l), mean": "|P/P_sim - 1|, mean over 11 logarithmic bands of 250 < l < 3000",
    "P(l), worst band": "the largest of these",
    "P(l) scatter": (
        "|s/s_sim - 1| of the map-to-map standard deviation of P(l), mean over the bands"
    ),
    "PDF": (
        "sum |p - p_sim| / sum p_sim over 30 equal bins between the simulations' quantiles .001 and"
        " .999"
    ),
    "peaks": (
        "|n/n_sim - 1| by height, mean over 12 bins: 10 equal ones between the simulations'"
        " quantiles .01 and .99, and what is beyond"
    ),
    "minima": "the same of minima",
    "V0": (
        "|V - V_sim| over the largest |V_sim|, the largest of 25 thresholds from -2 to 4 standard"
        " deviations"
    ),
    "V1": "the same",
    "V2": "the same",
    "V0, mean": "the mean instead of the largest",
    "V1, mean": "the same",
    "V2, mean": "the same",
    "equilateral B": "|B/B_sim - 1|, mean over 4 logarithmic bands of 320 < l < 3000",
    "squeezed B": (
        "the same, with the long side in 140 < l < 320 and the two short ones in each of those"
        " bands"
    ),
    "skewness": "|S - S_sim| of all pixels together",
    "classifier": (
        "accuracy on held-out maps of a network trained to tell the sets apart; simulations are"
        " split by simulation"
    ),
}
TARGETS = {
    "P(l), mean": 0.02,
    "P(l), worst band": 0.05,
    "P(l) scatter": 0.10,
    "PDF": 0.03,
    "peaks": 0.05,
    "minima": 0.06,
    "V0": 0.005,
    "V1": 0.015,
    "V2": 0.03,
    "equilateral B": 0.10,
    "classifier": 0.60,
}


class Bins(NamedTuple):
    """Where distributions are measured, chosen by the simulations: edges of the pixels' values, of
    peaks and minima by height, thresholds.
    """

    pixels: np.ndarray
    peaks: np.ndarray
    minima: np.ndarray
    thresholds: np.ndarray


def choose_bins(maps):
    """The bins that DEFINITIONS speaks of, for simulated maps [num, h, w]."""
    fine = np.linspace(maps.min(), maps.max() + 1e-6, 4001)
    heights, depths = (
        count_fn(maps, edges=fine).sum(0)
        for count_fn in (statistics.peak_counts, statistics.minimum_counts)
    )
    return Bins(
        np.linspace(*np.quantile(maps, (0.001, 0.999)), 31),
        _height_edges(fine, heights),
        _height_edges(fine, depths),
        maps.mean() + maps.std() * np.linspace(-2, 4, 25),
    )


def _height_edges(fine, counts):
    low, high = np.interp((0.01, 0.99), np.concatenate([[0], counts.cumsum()]) / counts.sum(), fine)
    return np.concatenate([[-np.inf], np.linspace(low, high, 11), [np.inf]])


def measure(maps, bins, *, pixel_scale):
    """Every statistic of each map, as a dict of name -> array [num, bins].

    Parameters
    ----------
    maps : array [num, height, width]
    pixel_scale : float, arcmin per pixel
    """
    parts = [
        _measure(maps[start : start + AT_ONCE], bins, pixel_scale)
        for start in range(0, len(maps), AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(maps, bins, pixel_scale):
    shapes = statistics.minkowski_functionals(
        maps, pixel_scale=pixel_scale, thresholds=bins.thresholds
    )
    pixels = maps.reshape(len(maps), -1).astype(float)
    return {
        "spectrum": statistics.power_spectrum(maps, pixel_scale=pixel_scale, edges=L_EDGES),
        "pdf": statistics.pixel_pdf(maps, edges=bins.pixels),
        "peaks": statistics.peak_counts(maps, edges=bins.peaks),
        "minima": statistics.minimum_counts(maps, edges=bins.minima),
        "V0": shapes[:, 0],
        "V1": shapes[:, 1],
        "V2": shapes[:, 2],
        "equilateral": statistics.bispectrum(
            maps, pixel_scale=pixel_scale, triangles=statistics.equilateral(TRIANGLE_EDGES)
        ),
        "squeezed": statistics.bispectrum(
            maps,
            pixel_scale=pixel_scale,
            triangles=statistics.squeezed(TRIANGLE_EDGES, long=LONG_SIDE),
        ),
        "powers": np.stack([np.mean(pixels**power, 1) for power in (1, 2, 3)], 1),
    }


def skewness(powers):
    """Skewness of all pixels from the means of their first three powers in each map [num, 3]."""
    mean, square, cube = powers.mean(0)
    return (cube - 3 * mean * square + 2 * mean**3) / (square - mean**2) ** 1.5


def compare(measured, reference):
    """How far one set of maps is from another: a dict of the names in DEFINITIONS -> float, from
    what `measure` gave of each.
    """
    means = {name: (values.mean(0), reference[name].mean(0)) for name, values in measured.items()}
    ratio = {
        name: np.abs(one / other - 1)
        for name, (one, other) in means.items()
        if name in ("spectrum", "peaks", "minima", "equilateral", "squeezed")
    }
    shapes = {
        name: np.abs(means[name][0] - means[name][1]) / np.abs(means[name][1]).max()
        for name in ("V0", "V1", "V2")
    }
    one, other = means["pdf"]
    return {
        "P(l), mean": ratio["spectrum"].mean(),
        "P(l), worst band": ratio["spectrum"].max(),
        "P(l) scatter": np.mean(
            np.abs(measured["spectrum"].std(0) / reference["spectrum"].std(0) - 1)
        ),
        "PDF": np.abs(one - other).sum() / other.sum(),
        "peaks": ratio["peaks"].mean(),
        "minima": ratio["minima"].mean(),
        **{name: departure.max() for name, departure in shapes.items()},
        **{f"{name}, mean": departure.mean() for name, departure in shapes.items()},
        "equilateral B": ratio["equilateral"].mean(),
        "squeezed B": ratio["squeezed"].mean(),
        "skewness": abs(skewness(measured["powers"]) - skewness(reference["powers"])),
    }


def sampling_floor(measured, simulation, *, seed):
    """What `compare` gives for two halves of the simulations, no simulation in both: root mean
    square over random halves.

    An emulator without error would show half of it or a little more: each half has half the maps.
    """
    rng, names = np.random.default_rng(seed), np.unique(simulation)
    results = []
    for _ in range(NUM_SPLITS):
        first = np.isin(simulation, rng.permutation(names)[: len(names) // 2])
        results.append(
            compare(
                *(
                    {name: values[half] for name, values in measured.items()}
                    for half in (first, ~first)
                )
            )
        )
    return {
        name: float(np.sqrt(np.mean([result[name] ** 2 for result in results])))
        for name in results[0]
    }


def variety(maps):
    """`statistics.diversity` of at most 1024 maps, as a dict for JSON: spread, and the correlation
    of the two maps most alike.
    """
    found = statistics.diversity(maps[:1024])
    return {"spread": found.spread, "most alike": float(found.nearest.max())}


def summarise(measured, groups=None):
    """Mean and jackknife error of every statistic, with the skewness of all pixels and the scatter
    of the spectrum, as nested dicts of lists for JSON.
    """
    summaries = {
        name: statistics.jackknife(values, groups=groups)
        for name, values in measured.items()
        if name != "powers"
    }
    summaries["skewness"] = statistics.jackknife(
        measured["powers"], groups=groups, summary_fn=skewness
    )
    summaries["spectrum scatter"] = statistics.jackknife(
        measured["spectrum"], groups=groups, summary_fn=lambda values: values.std(0)
    )
    return {
        name: {"mean": np.asarray(mean).tolist(), "error": np.asarray(error).tolist()}
        for name, (mean, error) in summaries.items()
    }
