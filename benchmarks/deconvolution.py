"""Deconvolve a benchmark file as a user would, and write what its score.py reads; or make the whole
table.

    python -m benchmarks.deconvolution --bench FILE.npz --case lsst --snr 50 --draws 100 --out
    recon.npz [--score] python -m benchmarks.deconvolution --table --bench-dir ../shared/bench
    --draws 200 --out table.json [--baselines]

Only stamps, noise level and PSF are read (`benchmarks.bench_file`). The clock runs over everything
a user pays for each galaxy once the arrays are in memory: checking, planning, inference, images;
what a process pays once (imports, weights, tracing) is paid by a warm-up before.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from astrogen.data.files import whole_file, write_whole
from benchmarks.bench_file import CASES, SPLITS, read_stamps

TABLE = {
    "bright": (("lsst", 20), ("lsst", 50), ("lsst", 100), ("euclid", 50)),
    "cosmos": (("lsst", 20), ("lsst", 50), ("lsst", 100)),
    "param": (("lsst", 20), ("lsst", 50), ("lsst", 100)),
}
BASELINES = ("rl", "wiener", "lmmse_tune", "sersic")
COLUMNS = {
    "nmse": ".4f",
    "flux_bias": "+.3f",
    "flux_sd": ".3f",
    "e_rmse": ".3f",
    "cov68_pix": ".2f",
    "cov95_pix": ".2f",
    "cov68_flux": ".2f",
    "cov95_flux": ".2f",
    "cov68_e": ".2f",
    "cov95_e": ".2f",
    "cpu_ms": ".0f",
}
SEED = 1


class Reconstruction(NamedTuple):
    """recon [n, 64, 64], samples [draw, n, 64, 64], flux per truth pixel; index [n]; wall_s, cpu_s:
    seconds per galaxy.
    """

    recon: np.ndarray
    samples: np.ndarray
    index: np.ndarray
    wall_s: float
    cpu_s: float


def reconstruct(stamps, *, prior="galaxy", method="laplace", num_draws=200, warm=True):
    """Deconvolve stamps to the truth's grid, timed.

    Parameters
    ----------
    stamps : Stamps
    prior, method, num_draws : as in `astrogen.deconvolve`
    warm : bool, run once before the clock starts

    Returns
    -------
    Reconstruction
    """
    from astrogen import deconvolve, load_prior

    prior = load_prior(prior)

    def run():
        results = deconvolve(
            stamps.observations(),
            prior=prior,
            method=method,
            num_draws=num_draws,
            seed=SEED,
            prior_scale=stamps.truth_scale,
            background="fixed",
        )
        images, draws = (
            np.stack([result.image for result in results]),
            np.stack([result.draws for result in results], 1),
        )
        return images / np.float32(stamps.psf_light), draws / np.float32(stamps.psf_light)

    if warm:
        run()
    wall, cpu = time.perf_counter(), time.process_time()
    images, draws = run()
    num = len(stamps.index)
    return Reconstruction(
        images,
        draws,
        stamps.index,
        (time.perf_counter() - wall) / num,
        (time.process_time() - cpu) / num,
    )


def main(arguments=None):
    """Run one command; the exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.table:
        if options.bench_dir is None:
            parser.error("--table needs --bench-dir DIR")
        _write_table(options)
        return 0
    if None in (options.bench, options.case, options.snr):
        parser.error("give --bench FILE, --case and --snr; or --table")
    stamps = read_stamps(options.bench, case=options.case, snr=options.snr, split=options.split)
    done = reconstruct(stamps, prior=options.prior, method=options.method, num_draws=options.draws)
    _write_arrays(options.out, done)
    print(
        f"{len(done.index)} galaxies, {len(done.samples)} draws, {1e3 * done.wall_s:.0f} ms wall"
        f" and {1e3 * done.cpu_s:.0f} ms CPU per galaxy: {options.out}"
    )
    if options.score:
        command = [
            sys.executable,
            "score.py",
            "--bench",
            options.bench.resolve(),
            "--case",
            options.case,
            "--snr",
            str(options.snr),
            "--split",
            options.split,
            "--recon",
            options.out.resolve(),
        ]
        subprocess.run(command, cwd=options.bench.resolve().parent, check=True)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deconvolution",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bench", type=Path, metavar="FILE", help="a bench_*.npz")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--snr", type=int, metavar="N")
    parser.add_argument("--split", choices=["all", *SPLITS], default="all")
    parser.add_argument(
        "--score", action="store_true", help="run the score.py beside the file on what was written"
    )
    parser.add_argument(
        "--table", action="store_true", help="all sets, cases and S/N of the development table"
    )
    parser.add_argument(
        "--bench-dir",
        type=Path,
        metavar="DIR",
        help="folder of the files and score.py, for --table",
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=list(TABLE),
        default=list(TABLE),
        help="which files, for --table (default: all)",
    )
    parser.add_argument(
        "--baselines", action="store_true", help="run run_baselines.py too, in the same session"
    )
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="(default 200)")
    parser.add_argument(
        "--method", choices=["laplace", "map", "hmc", "vi", "auto"], default="laplace"
    )
    parser.add_argument("--prior", default="galaxy", metavar="NAME")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="recon.npz, or with --table a JSON file",
    )
    return parser


def _write_arrays(path, done):
    """Whole or not at all: a scorer may be waiting for the file."""
    with whole_file(path) as file:
        np.savez(file, **done._asdict())


# --- the table


def _write_table(options):
    # score.py imports bench_common from its own folder
    sys.path.insert(0, str(options.bench_dir.resolve()))
    scorer = importlib.import_module("score")
    rows = []
    print(
        _line("set", "case", "S/N", "method", "split", *COLUMNS),
        _line(*["---"] * (len(COLUMNS) + 5)),
        sep="\n",
        flush=True,
    )
    for name in options.sets:
        path = options.bench_dir / f"bench_{name}_dev.npz"
        for case, snr in TABLE[name]:
            for row in _score_ours(scorer, path, case, snr, options):
                rows.append({"set": name, "case": case, "snr": snr, **row})
                _print_row(rows[-1])
        for case, snr, method, scores in (
            _score_baselines(path, TABLE[name], options) if options.baselines else ()
        ):
            rows.append(
                {"set": name, "case": case, "snr": snr, "method": method, "split": "test", **scores}
            )
            _print_row(rows[-1])
        write_whole(options.out, json.dumps(rows, indent=1))


def _score_ours(scorer, path, case, snr, options):
    """Scores of all galaxies and of split test, from one run."""
    bench = scorer.Bench(path)
    done = reconstruct(
        read_stamps(path, case=case, snr=snr),
        prior=options.prior,
        method=options.method,
        num_draws=options.draws,
    )
    for split in ("all", "test"):
        index = bench.index(split)
        scores = scorer.score(
            bench, case, snr, done.recon[index], index, done.samples[:, index], split
        )
        yield {
            "method": f"astrogen {options.method}",
            "split": split,
            **scores,
            "cpu_ms": 1e3 * done.cpu_s,
            "wall_ms": 1e3 * done.wall_s,
        }


def _score_baselines(path, cells, options):
    """(case, snr, method, scores) of run_baselines.py, tuned on split tune and scored on split
    test.
    """
    for case in dict.fromkeys(case for case, _ in cells):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "baselines.json"
            command = [
                sys.executable,
                "run_baselines.py",
                "--bench",
                path.resolve(),
                "--cases",
                case,
                "--methods",
                ",".join(BASELINES),
                "--snrs",
                ",".join(str(snr) for other, snr in cells if other == case),
                "--samples",
                "100",
                "--out",
                out,
            ]
            subprocess.run(
                command, cwd=options.bench_dir.resolve(), check=True, stdout=subprocess.DEVNULL
            )
            scores = json.loads(out.read_text())
        for key, values in scores.items():
            _, snr, method = key.split("/")
            yield case, int(snr), method, values


def _line(*cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _print_row(row):
    values = (format(row[name], spec) if name in row else "-" for name, spec in COLUMNS.items())
    print(
        _line(*(row[key] for key in ("set", "case", "snr", "method", "split")), *values), flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
