"""Mass maps of simulated shear: the posterior under the network and the lognormal prior against
Kaiser-Squires and the Wiener filter.

    python -m benchmarks.massmap --records DIR [--ktng FILE] --out massmap.json

Each map is continued over its edges by reflection, sheared on the larger periodic grid, and seen
with the shape noise of 30 galaxies per square arcmin (sigma_e .26 per component) and round holes
over 10 % of the field. Every method knows the noise, the holes and the cosmology; Wiener and the
posteriors know the prior's spectrum. The kappaTNG map, averaged to the prior's pixels, has deeper
sources than the prior: its sigma_8 is raised by as much as its spectrum (--ktng-sigma-8), not
fitted.

r and rmse are over all pixels of the mean-subtracted maps, rmse in units of the truth's standard
deviation; the amplitude is the sum of the estimate over that of the truth where that is above .04;
coverage is that of the central 68 % of the draws. Means over maps, with standard errors. CPU
seconds (process_time) on one thread, after a warm-up map.
"""

import os

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
# before the libraries are imported, which read it once
os.environ.update(dict.fromkeys(THREADS, "1"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from astrogen.darkmatter.map_mass import map_mass
from astrogen.darkmatter.statistics import power_spectrum
from astrogen.data.field import make_field, rebin_field
from astrogen.data.files import write_whole
from astrogen.data.images import read_images
from astrogen.instruments.lensing import Grid, kaiser_squires, make_grid, observe, shear_kernels
from astrogen.priors import load_prior
from astrogen.training.records import load_maps

DENSITY, SIGMA_E = 30.0, 0.26  # galaxies per square arcmin; shape noise per component
MASKED, RADII = 0.10, (1.0, 3.5)  # of the field; of the round holes, pixels
PEAK = 0.04
# FWHM in arcmin that Kaiser-Squires chooses from
SMOOTHINGS = 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0
EDGES = (250, 500, 800, 1200, 1700, 2300, 3000)  # of the bands of l
TAPER = 0.1
# arcmin per pixel; Omega_m, and a sigma_8 that makes up for the deeper sources
KTNG_SCALE, KTNG_COSMOLOGY = 0.29, (0.3089, 0.92)
TARGETS = {
    "amplitude": "at least .60",
    "coverage": ".65 to .71",
    "coverage in holes": ".65 to .71",
    "r": "no less than Wiener's",
    "rmse": "no more than Wiener's",
    "spectrum": "worst band within .05",
    "r_hat": "below 1.05",
    "seconds": "at most 60",
}


def main(arguments=None):
    """Run the command; the exit code."""
    options = _parser().parse_args(arguments)
    priors = {
        "lognormal": load_prior(f"{options.prior}-lognormal"),
        "network": load_prior(options.prior),
    }
    sources = priors["network"].card["source_redshift"]
    sets = {
        str(folder): choose_maps(load_maps(folder, source_redshift=sources), options.num)
        for folder in options.records
    }
    if options.ktng:
        kappa = average_map(
            read_images(options.ktng)[0].pixels, KTNG_SCALE, priors["network"].pixel_scale
        )
        sets[str(options.ktng)] = kappa[None], np.array([[KTNG_COSMOLOGY[0], options.ktng_sigma_8]])
    report = {}
    for name, (kappa, cosmology) in sets.items():
        report[name] = measure(kappa, cosmology, priors, num_draws=options.draws, seed=options.seed)
        print_table(name, report[name])
    if options.out:
        write_whole(options.out, json.dumps(report, indent=1))
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.massmap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="records of held-out simulations",
    )
    parser.add_argument(
        "--ktng", type=Path, metavar="FILE", help="a convergence map of 0.29 arcmin per pixel"
    )
    parser.add_argument(
        "--ktng-sigma-8",
        type=float,
        default=KTNG_COSMOLOGY[1],
        metavar="X",
        help="(default %(default)s)",
    )
    parser.add_argument(
        "--prior",
        default="kappa",
        metavar="NAME",
        help=(
            "kappa (default), or the folder of a trained prior; its lognormal field is measured"
            " beside it"
        ),
    )
    parser.add_argument(
        "--num",
        type=int,
        default=16,
        metavar="N",
        help=(
            "maps of each folder, of different simulations as far as there are (default"
            " %(default)s)"
        ),
    )
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="(default 200)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    return parser


def choose_maps(records, num):
    """(kappa [num, h, w], cosmology [num, 2]): one map of each simulation in turn, until there are
    enough.
    """
    _, inverse = np.unique(records["simulation"], return_inverse=True)
    turn = np.array(
        [np.count_nonzero(inverse[:index] == inverse[index]) for index in range(len(inverse))]
    )
    chosen = np.lexsort((inverse, turn))[:num]
    return records["kappa"][chosen], records["cosmology"][chosen]


def average_map(kappa, fine, coarse):
    """A noiseless map on coarser pixels, cut to an even number of whole ones."""
    field = rebin_field(make_field(kappa, noise=1.0, pixel_scale=fine), coarse)
    side = int(min(kappa.shape) * fine / coarse) // 2 * 2
    top, left = ((length - side) // 2 for length in field.mask.shape)
    return field.maps[0, top : top + side, left : left + side]


def simulate(kappa, *, pixel_scale, seed):
    """The LensingField that a survey would see of a map [h, w] that its mirror images surround."""
    rng = np.random.default_rng(seed)
    height, width = kappa.shape
    around = np.pad(kappa, [(height // 2, height // 2), (width // 2, width // 2)], mode="symmetric")
    shear = observe(
        around, shear_kernels(*around.shape), Grid(height, width, *around.shape)
    ).numpy()
    sigma = SIGMA_E / np.sqrt(DENSITY * pixel_scale**2)
    return make_field(
        shear + sigma * rng.normal(size=shear.shape),
        noise=sigma,
        mask=round_holes((height, width), rng),
        pixel_scale=pixel_scale,
    )


def round_holes(shape, rng):
    """A mask with discs until MASKED of the field is covered."""
    mask = np.zeros(shape, bool)
    rows, columns = np.indices(shape)
    while mask.mean() < MASKED:
        row, column = rng.uniform(0, shape)
        mask |= np.hypot(rows - row, columns - column) < rng.uniform(*RADII)
    return mask


def measure(kappa, cosmology, priors, *, num_draws, seed):
    """Every method on every map: dict of method -> dict of measure -> [mean, standard error], and
    the spectra.

    Parameters
    ----------
    kappa : array [num, h, w], of the priors' pixel scale
    cosmology : array [num, 2]
    priors : dict, name -> ConvergencePrior
    """
    pixel_scale = next(iter(priors.values())).pixel_scale
    fields = [
        simulate(truth, pixel_scale=pixel_scale, seed=[seed, index])
        for index, truth in enumerate(kappa)
    ]
    rows = {
        f"Kaiser-Squires {smoothing:g}'": [
            score(_inverted(field, smoothing), truth, field.mask)
            for field, truth in zip(fields, kappa, strict=True)
        ]
        for smoothing in SMOOTHINGS
    }
    best = min(rows, key=lambda name: np.mean([row["rmse"] for row in rows[name]]))
    rows = {best: rows[best], "Wiener": []}
    spectra = {}
    for name, prior in priors.items():
        results = _posteriors(fields, cosmology, prior, num_draws=num_draws, seed=seed, name=name)
        rows[name] = [
            _row(result, truth, seconds)
            for (result, seconds), truth in zip(results, kappa, strict=True)
        ]
        rows["Wiener"] = [
            score(result.wiener, truth, result.field.mask)
            for (result, _), truth in zip(results, kappa, strict=True)
        ]
        spectra |= _spectra(
            name, [result.draws for result, _ in results], kappa, cosmology, prior, seed=seed
        )
    return {
        "methods": {name: _summarise(found) for name, found in rows.items()},
        "spectra": spectra,
        "edges": list(EDGES),
        "num": len(kappa),
    }


def _inverted(field, smoothing):
    return kaiser_squires(
        field.maps, make_grid(field.mask.shape), smoothing=smoothing / field.pixel_scale
    )[0]


def _posteriors(fields, cosmology, prior, *, num_draws, seed, name):
    """[(MassMap, CPU seconds)]; the first field is mapped twice, because its graphs have to be
    built.
    """
    map_mass(fields[0], prior=prior, cosmology=cosmology[0], num_draws=32, num_burnin=2, seed=seed)
    found = []
    for index, field in enumerate(tqdm(fields, desc=name, file=sys.stderr, leave=False)):
        began = time.process_time()
        result = map_mass(
            field, prior=prior, cosmology=cosmology[index], num_draws=num_draws, seed=seed + index
        )
        found.append((result, time.process_time() - began))
    return found


def score(estimate, truth, mask):
    """What can be said of any estimate [h, w]: dict of measure -> float."""
    estimated, true = estimate - estimate.mean(), truth - truth.mean()
    peaks = truth > PEAK
    return {
        "r": float(np.corrcoef(estimated.ravel(), true.ravel())[0, 1]),
        "rmse": float(np.sqrt(((estimated - true) ** 2).mean()) / true.std()),
        "r in holes": float(np.corrcoef(estimate[mask], truth[mask])[0, 1]),
        "amplitude": (
            float(estimate[peaks].sum() / truth[peaks].sum()) if peaks.any() else float("nan")
        ),
    }


def _row(result, truth, seconds):
    low, high = np.quantile(result.draws, [0.16, 0.84], axis=0)
    inside, mask = (low < truth) & (truth < high), result.field.mask
    return score(result.mean, truth, mask) | {
        "coverage": float(inside[~mask].mean()),
        "coverage in holes": float(inside[mask].mean()),
        "amplitude of draws": float(_amplitude(result.draws, truth)),
        "r_hat": result.diagnostics["r_hat"],
        "ess": result.diagnostics["ess"],
        "seconds": seconds,
        "converged": float(result.converged),
    }


def _amplitude(draws, truth):
    peaks = truth > PEAK
    return draws[:, peaks].mean(0).sum() / truth[peaks].sum() if peaks.any() else np.nan


def _spectra(name, draws, truths, cosmology, prior, *, seed):
    """Mean spectrum [band] of the draws over that of maps of the prior, and over that of the
    truths, which have the same luck on large scales.
    """
    options = dict(pixel_scale=prior.pixel_scale, edges=EDGES, taper=TAPER)
    num = max(16, 256 // len(draws))
    of_prior = [
        prior.sample(
            num, omega_m=float(omega_m), sigma_8=float(sigma_8), shape=truths.shape[1:], seed=seed
        ).numpy()
        for omega_m, sigma_8 in cosmology
    ]
    drawn, expected = (
        np.mean([power_spectrum(some, **options).mean(0) for some in maps], 0)
        for maps in (draws, of_prior)
    )
    return {
        f"{name}, draws / prior's": (drawn / expected).tolist(),
        f"{name}, draws / truth's": (drawn / power_spectrum(truths, **options).mean(0)).tolist(),
    }


def _summarise(rows):
    """Means and standard errors over maps; the worst R-hat instead of the mean."""
    summary = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        summary[name] = [
            float(values.max() if name == "r_hat" else values.mean()) if len(values) else None,
            error,
        ]
    return summary


def print_table(name, found):
    """The report of one set of maps, for people."""
    print(
        f"\n{name}: {found['num']} maps, {DENSITY:g} galaxies per square arcmin, sigma_e"
        f" {SIGMA_E:g}, {MASKED:.0%} masked"
    )
    measures = list(
        dict.fromkeys(measure for summary in found["methods"].values() for measure in summary)
    )
    for measure in measures:
        cells = "   ".join(
            f"{method} {_cell(summary[measure])}"
            for method, summary in found["methods"].items()
            if measure in summary
        )
        print(
            f"  {measure:<20}"
            f" {cells}{'   target ' + TARGETS[measure] if measure in TARGETS else ''}"
        )
    for label, ratio in found["spectra"].items():
        print(
            f"  P(l), {label}, l edges {found['edges']}:"
            f" {' '.join(f'{value:.3f}' for value in ratio)}   target {TARGETS['spectrum']}"
        )


def _cell(pair):
    value, error = pair
    return (
        "-" if value is None else f"{value:.3f}" + (f" +- {error:.3f}" if error is not None else "")
    )


if __name__ == "__main__":
    sys.exit(main())
