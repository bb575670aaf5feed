"""Emulated convergence maps against held-out simulations: all statistics for each cosmology, beyond
the training size, and in maps per second.

    python -m benchmarks.maps --records DIR [DIR ...] --out maps.json

Each DIR holds records of one cosmology that no training map came from. The network's maps are
compared with them, and so are the lognormal and the Gaussian field of the same weights. The floor
is what two halves of the simulations, split by simulation, differ by.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from astrogen.darkmatter.statistics import mean_frequency
from astrogen.darkmatter.statistics.classifier import classify
from astrogen.data.files import write_whole
from astrogen.priors import load_prior
from astrogen.report.statistics import write_statistics
from astrogen.training.records import load_maps
from benchmarks import map_statistics as ms
from benchmarks.map_sizes import compare_sizes, draw_maps

MIN_SIMULATIONS = 4
DRAWN = 4  # emulated maps for each simulated one: their own scatter then adds little
PARTS = ("classifier", "size", "speed")
ONE_CORE = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ),
    "1",
) | {"CUDA_VISIBLE_DEVICES": ""}
SPEED_TARGETS = {"one new simulation per map": 1000, "one more map of a finished simulation": 50}


def main(arguments=None):
    """Run the command; the exit code."""
    options = _parser().parse_args(arguments)
    priors = {
        kind: load_prior(options.prior + ending)
        for kind, ending in (
            ("network", ""),
            ("lognormal", "-lognormal"),
            ("Gaussian", "-gaussian"),
        )
    }
    report = {
        "prior": options.prior,
        "seed": options.seed,
        "definitions": ms.DEFINITIONS,
        "targets": ms.TARGETS,
        "cosmologies": [],
    }
    for directory in options.records:
        compared = compare_cosmology(
            directory,
            priors,
            num=options.num,
            seed=options.seed,
            with_classifier="classifier" not in options.without,
        )
        report["cosmologies"].append(compared)
        print(table(compared), flush=True)
        write_whole(options.out, json.dumps(report, indent=1))
    report |= _beyond(priors["network"], report["cosmologies"][0], options)
    write_whole(options.out, json.dumps(report, indent=1))
    if options.figure:
        write_statistics(report["cosmologies"][0], options.figure)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="held-out simulations, one cosmology each",
    )
    parser.add_argument(
        "--prior",
        default="kappa",
        metavar="NAME_OR_DIR",
        help="shipped prior, or weights that `astrogen train kappa` wrote (default %(default)s)",
    )
    parser.add_argument(
        "--num",
        type=int,
        default=1024,
        metavar="N",
        help=(
            "simulated maps of each cosmology, or all that there are; emulated are four times as"
            " many (default %(default)s)"
        ),
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file")
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="figure of all statistics of the first cosmology",
    )
    parser.add_argument(
        "--without", nargs="+", choices=PARTS, default=[], help="leave out what takes minutes"
    )
    return parser


def read_simulations(directory, *, num, pixel_scale, source_redshift=None):
    """Maps of one cosmology, as many of each simulation as possible: (maps [num, h, w], simulation
    [num], (Omega_m, sigma_8)).

    Raises
    ------
    ValueError : maps of several cosmologies, or of too few simulations.
    """
    records = load_maps(directory, pixel_scale=pixel_scale, source_redshift=source_redshift)
    cosmologies, simulation = np.unique(records["cosmology"], axis=0), records["simulation"]
    if len(cosmologies) != 1:
        raise ValueError(
            f"read_simulations: {directory} must hold maps of one cosmology, got"
            f" {len(cosmologies)}; write each cosmology to a folder of its own"
        )
    names, first = np.unique(simulation, return_index=True)
    if len(names) < MIN_SIMULATIONS:
        raise ValueError(
            f"read_simulations: {directory} must hold at least {MIN_SIMULATIONS} simulations, got"
            f" {len(names)}; halves of them are compared"
        )
    rank = np.empty(len(simulation), int)
    for name in names:
        rank[simulation == name] = np.arange(np.sum(simulation == name))
    chosen = np.sort(np.argsort(rank, kind="stable")[:num])
    return (
        records["kappa"][chosen],
        simulation[chosen],
        tuple(float(f"{value:.5g}") for value in cosmologies[0]),
    )


def compare_cosmology(directory, priors, *, num, seed, with_classifier):
    """All statistics of the simulations in one folder and of each prior at their cosmology, as a
    dict for JSON.
    """
    network = priors["network"]
    maps, simulation, cosmology = read_simulations(
        directory,
        num=num,
        pixel_scale=network.pixel_scale,
        source_redshift=network.card["source_redshift"],
    )
    bins = ms.choose_bins(maps)
    measured = ms.measure(maps, bins, pixel_scale=network.pixel_scale)
    compared = {
        "records": str(directory),
        "omega_m": cosmology[0],
        "sigma_8": cosmology[1],
        "num_maps": len(maps),
        "num_simulations": len(np.unique(simulation)),
        "l": (
            mean_frequency(
                maps.shape[1:], pixel_scale=network.pixel_scale, edges=ms.L_EDGES
            ).tolist()
        ),
        "l_triangles": np.sqrt(ms.TRIANGLE_EDGES[1:] * ms.TRIANGLE_EDGES[:-1]).tolist(),
        "bins": {
            name: [float(edge) if np.isfinite(edge) else None for edge in edges]
            for name, edges in bins._asdict().items()
        },
        "floor": ms.sampling_floor(measured, simulation, seed=seed),
        "simulations": ms.summarise(measured, simulation),
        "variety": ms.variety(maps),
        "priors": {},
    }
    for kind, prior in priors.items():
        drawn = draw_maps(prior, DRAWN * len(maps), cosmology, seed=seed)
        ours = ms.measure(drawn, bins, pixel_scale=prior.pixel_scale)
        distances = {name: float(value) for name, value in ms.compare(ours, measured).items()}
        if with_classifier:
            answer = classify(maps, drawn[: len(maps)], seed=seed, first_groups=simulation)
            distances["classifier"], compared["floor"]["classifier"] = answer.accuracy, 0.5
            compared["classifier error"] = answer.error
        compared["priors"][kind] = {
            "distances": distances,
            "statistics": ms.summarise(ours),
            "variety": ms.variety(drawn),
        }
    return compared


def table(compared):
    """The distances of one cosmology as text: a line for each statistic, a column for each kind of
    maps.
    """
    kinds = list(compared["priors"])
    lines = [
        (
            f"Omega_m {compared['omega_m']:g}, sigma_8 {compared['sigma_8']:g}:"
            f" {compared['num_maps']} maps of {compared['num_simulations']} simulations"
        ),
        f"  {'':<18}{'target':>9}{'floor':>9}" + "".join(f"{kind:>12}" for kind in kinds),
    ]
    for name in compared["priors"]["network"]["distances"]:
        values = [compared["priors"][kind]["distances"][name] for kind in kinds]
        target = ms.TARGETS.get(name)
        verdict = "" if target is None else "  met" if values[0] <= target else "  NOT met"
        wanted, floor = "" if target is None else f"{target:.3f}", compared["floor"][name]
        lines.append(
            f"  {name:<18}{wanted:>9}{floor:>9.4f}"
            + "".join(f"{value:>12.4f}" for value in values)
            + verdict
        )
    skewness = [
        compared["simulations"],
        *(compared["priors"][kind]["statistics"] for kind in kinds),
    ]
    variety = [compared["variety"], *(compared["priors"][kind]["variety"] for kind in kinds)]
    return "\n".join(
        [
            *lines,
            _sentence("skewness", kinds, [values["skewness"]["mean"] for values in skewness]),
            _sentence(
                "spread of the maps (1: independent)",
                kinds,
                [values["spread"] for values in variety],
            ),
            _sentence(
                "correlation of the two most alike",
                kinds,
                [values["most alike"] for values in variety],
            ),
            "",
        ]
    )


def _sentence(name, kinds, values):
    return f"  {name}: " + ", ".join(
        f"{kind} {value:.3f}" for kind, value in zip(["simulations", *kinds], values, strict=True)
    )


def _beyond(prior, compared, options):
    """The parts that need no simulated maps, printed and returned."""
    cosmology, beyond = (compared["omega_m"], compared["sigma_8"]), {}
    if "size" not in options.without:
        beyond["size"] = size = compare_sizes(
            prior, cosmology, num=max(4, options.num // 16), seed=options.seed
        )
        words = {
            name: (
                f"{size[name]['mean']:.3f} on average, {size[name]['worst']:.3f} in the worst band"
                f" (standard error of a band {np.mean(size[name]['error']):.3f})"
            )
            for name in ("blocks", "whole")
        }
        print(
            f"{size['side']}x{size['side']} against the training size: P(l) of blocks"
            f" {words['blocks']}; of whole maps {words['whole']}\n  neighbours across block"
            f" borders, correlation in excess of all others {size['seam']['excess']:+.4f} +-"
            f" {size['seam']['error']:.4f}; opposite edges"
            f" {size['opposite edges']['correlation']:+.4f} +-"
            f" {size['opposite edges']['error']:.4f}"
        )
    if "speed" not in options.without:
        beyond["speed"] = time_on_one_core(
            options.prior, cosmology, num=min(options.num, 1024), seed=options.seed
        )
        print("\n".join(speed_lines(beyond["speed"])))
    return beyond


def time_on_one_core(prior, cosmology, *, num, seed):
    """What benchmarks.map_speed measures, in a process of its own: libraries read their number of
    threads once.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.map_speed",
        prior,
        *map(str, (*cosmology, num, seed)),
    ]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_CORE
    )
    return json.loads(done.stdout.splitlines()[-1])


def speed_lines(speed):
    """The times as text, with their ratios to the targets."""
    lines = [
        f"CPU time on one core; emulator: {speed['maps per second']:.0f} maps/s; four times as many"
        f" raise the peak of memory by {speed['memory growth, MB']:.0f} MB"
    ]
    if speed["simulations"] is None:
        return [*lines, "  simulations not timed: pip install 'astrogen[simulations]'"]
    for (name, target), seconds in zip(
        SPEED_TARGETS.items(), speed["simulations"].values(), strict=True
    ):
        ratio = speed["maps per second"] * seconds
        lines.append(
            f"  {name}: {seconds:.3g} s; the emulator is {ratio:.0f} times as fast   target at"
            f" least {target}: {'met' if ratio >= target else 'NOT met'}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
