"""Emulated convergence maps against theory: HMCode-2020 through Limber's integral, computed anew.

    python -m benchmarks.map_theory --shape 64 240 --num 4000 [--json FILE]

Maps are multiplied by a Hann window, and so is the theory: window, pixels and what is folded back
from beyond the Nyquist frequency are in it without approximation. Bands of l: theory, the mean over
maps, its standard error, their ratio; the power of waves that run along x over that along y; and
that of waves near the axes of the pixels over that near their diagonals, over what theory expects
of it. Errors come from the scatter from map to map.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from astrogen.galsim_objects.emulate import draw_maps
from astrogen.priors import load_prior
from data_pipelines.cosmology import Cosmology
from data_pipelines.theory import ARCMIN, expected_map_power

EDGES = np.array(
    [30, 50, 80, 120, 170, 250, 400, 600, 900, 1200, 1600, 2000, 2500, 3000, 3800, 4600]
)
JUDGED = (30, 3000)  # multipoles of the bands that are judged
TOLERANCE, SIGMAS, MEAN_SIGMAS = 0.02, 3.0, 2.0


def main(arguments=None):
    """Run the command; the exit code: 1 where something is not met."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.map_theory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prior", default="kappa", metavar="NAME_OR_DIR", help="(%(default)s)")
    parser.add_argument("--omega-m", type=float, default=0.3, metavar="X", help="(%(default)s)")
    parser.add_argument("--sigma-8", type=float, default=0.8, metavar="X", help="(%(default)s)")
    parser.add_argument(
        "--shape", type=int, nargs="+", default=[64, 240], metavar="N", help="sides (%(default)s)"
    )
    parser.add_argument("--num", type=int, default=4000, metavar="N", help="maps (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")
    options = parser.parse_args(arguments)
    prior, cosmology = load_prior(options.prior), (options.omega_m, options.sigma_8)
    report = {}
    for side in options.shape:
        found = compare_with_theory(prior, cosmology, side, num=options.num, seed=options.seed)
        report[str(side)] = found
        print(table(found), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(found["met"] for found in report.values()) else 1


def compare_with_theory(prior, cosmology, side, *, num, seed):
    """Everything that the command prints about maps of one size, as a dict for JSON."""
    hann = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    expected = expected_map_power(
        Cosmology(*cosmology),
        side=side,
        pixel_scale=prior.pixel_scale,
        source_redshift=prior.card["source_redshift"],
        window=hann,
    )[:, : side // 2 + 1]
    bands = Bands(side, prior.pixel_scale)
    omega_m, sigma_8 = cosmology
    rows, means = [], []
    for maps in draw_maps(
        num, omega_m=omega_m, sigma_8=sigma_8, shape=(side, side), seed=seed, prior=prior
    ):
        scale = (prior.pixel_scale * ARCMIN / np.sum(hann**2)) ** 2
        power = np.abs(np.fft.rfft2(maps * hann[:, None] * hann)) ** 2 * scale
        rows.append(bands.means(power))
        means.append(maps.mean((1, 2), dtype=np.float64))
    return summarise(np.concatenate(rows), np.concatenate(means), bands, expected)


class Bands:
    """Bands of l that maps of a side have modes in, each whole and in four parts: along x, along y,
    near the axes, near the diagonals; NaN where a part has none.
    """

    def __init__(self, side, pixel_scale):
        ky, kx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
        l = 2 * np.pi * np.hypot(ky, kx) / (pixel_scale * ARCMIN)
        square = np.cos(4 * np.arctan2(ky, kx))
        counts = np.where((kx == 0) | (kx == 0.5), 1.0, 2.0) * np.ones_like(l)
        parts = (l > 0, np.abs(kx) > np.abs(ky), np.abs(ky) > np.abs(kx), square > 0, square < 0)
        self.edges, weights = [], []
        for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
            inside = [counts * ((l >= low) & (l < high) & part) for part in parts]
            if inside[0].any():
                self.edges.append((int(low), int(high)))
                weights.append([part / (part.sum() or np.nan) for part in inside])
        self.weights = np.array(weights).reshape(len(weights), len(parts), -1)

    def means(self, power):
        """Means [..., band, part] of powers [..., side, side // 2 + 1]."""
        return np.einsum("...k,bpk->...bp", power.reshape(*power.shape[:-2], -1), self.weights)


def summarise(rows, means, bands, expected):
    """Ratios and errors of the powers [num, band, part] of maps and of their means [num]."""
    theory, found, num = bands.means(expected), rows.mean(0), len(rows)
    error = rows[:, :, 0].std(0, ddof=1) / np.sqrt(num)

    def ratio(one, other):
        value = found[:, one] / found[:, other]
        scatter = rows[:, :, one] / found[:, one] - rows[:, :, other] / found[:, other]
        return value, value * scatter.std(0, ddof=1) / np.sqrt(num)

    (x_over_y, x_error), (square, square_error) = ratio(1, 2), ratio(3, 4)
    square_theory = theory[:, 3] / theory[:, 4]
    judged = np.array([JUDGED[0] <= low and high <= JUDGED[1] for low, high in bands.edges])
    off = np.abs(found[:, 0] - theory[:, 0])
    good = (off < SIGMAS * error) | (off < TOLERANCE * theory[:, 0])
    uneven = np.abs(x_over_y - 1)
    even = ~((uneven > SIGMAS * x_error) & (uneven > TOLERANCE))  # also where there are none
    worst = int(np.nanargmax(uneven))
    mean, mean_error = means.mean(), means.std(ddof=1) / np.sqrt(num)
    return {
        "num_maps": num,
        "bands": bands.edges,
        "theory": theory[:, 0].tolist(),
        "emulated": found[:, 0].tolist(),
        "error": error.tolist(),
        "ratio": (found[:, 0] / theory[:, 0]).tolist(),
        "x over y": x_over_y.tolist(),
        "error of x over y": x_error.tolist(),
        "axes over diagonals": (square / square_theory).tolist(),
        "error of axes over diagonals": (square_error / square_theory).tolist(),
        "mean": float(mean),
        "error of mean": float(mean_error),
        "power met": bool(good[judged].all()),
        "x over y met": bool(even.all()),
        "x over y within tolerance": bool(uneven[worst] <= TOLERANCE),
        "band of worst x over y": worst,
        "mean met": bool(abs(mean) < MEAN_SIGMAS * mean_error),
        "met": bool(good[judged].all() and even.all() and abs(mean) < MEAN_SIGMAS * mean_error),
    }


def table(found):
    """The numbers of one size as text."""
    lines = [
        f"{found['num_maps']} maps",
        "        l         theory   emulated   ratio   error    P_x/P_y  error    axes/diagonals"
        "  error",
    ]
    for index, (low, high) in enumerate(found["bands"]):
        theory, emulated, error = (found[name][index] for name in ("theory", "emulated", "error"))
        lines.append(
            f"{low:6d} - {high:4d}  {theory:10.3e} {emulated:10.3e}  {emulated / theory:6.3f}"
            f"  {error / theory:6.3f}    {found['x over y'][index]:6.3f} "
            f" {found['error of x over y'][index]:6.3f}    "
            f"    {found['axes over diagonals'][index]:6.3f}   "
            f" {found['error of axes over diagonals'][index]:6.3f}"
        )
    words = {True: "met", False: "NOT met"}
    worst = found["band of worst x over y"]
    low, high = found["bands"][worst]
    return "\n".join(
        [
            *lines,
            f"mean {found['mean']:+.2e} +- {found['error of mean']:.1e}:"
            f" {words[found['mean met']]}; power for {JUDGED[0]} < l < {JUDGED[1]} within"
            f" {SIGMAS:g} errors or {TOLERANCE:.0%}: {words[found['power met']]}",
            f"P_x/P_y furthest from 1 at {low} < l < {high}: {found['x over y'][worst]:.3f} +-"
            f" {found['error of x over y'][worst]:.3f}; all within {TOLERANCE:.0%}:"
            f" {words[found['x over y within tolerance']]}; all within {SIGMAS:g} errors or"
            f" {TOLERANCE:.0%}: {words[found['x over y met']]}",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
