"""What a posterior costs, beside a least-squares Sersic fit by GalSim and scipy in the same
process.

    python -m benchmarks.cost --bench-dir ../shared/bench --out cost.json

CPU time (process_time) per galaxy after a warm-up, on one thread; peak memory is that of a process
of its own. 50 galaxies of `bright`, case lsst, S/N 50.
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
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
from scipy.optimize import least_squares

from astrogen.data.files import write_whole
from benchmarks.bench_file import read_stamps

NUM = 50
NUM_STAMPS = 256
SEEING = 0.70  # arcsec, of case lsst
SEEINGS = (0.60, 0.85)  # of the different PSFs
FAST = galsim.GSParams(folding_threshold=1e-2, maxk_threshold=5e-3, kvalue_accuracy=1e-4)
TARGETS = {
    "posterior / Sersic": 1.0,
    "posterior, a PSF each / Sersic": 4.0,
    "HMC / Sersic": 20.0,
    "peak memory, GB": 4.0,
}
SEED = 1


def main(arguments=None):
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bench-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with bench_bright_dev.npz",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    parser.add_argument(
        "--num",
        type=int,
        default=NUM,
        metavar="N",
        help="galaxies (default %(default)s, or all that there are)",
    )
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="(default 200)")
    parser.add_argument(
        "--without",
        nargs="+",
        choices=["hmc", "memory"],
        default=[],
        help="leave out what takes minutes",
    )
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    bench = options.bench_dir / "bench_bright_dev.npz"
    if options.memory_only:
        print(json.dumps(_peak_memory(bench, options.draws)))
        return 0
    report = measure(
        bench, num=options.num, num_draws=options.draws, with_hmc="hmc" not in options.without
    )
    if "memory" not in options.without:
        command = [
            sys.executable,
            "-m",
            "benchmarks.cost",
            "--bench-dir",
            options.bench_dir,
            "--draws",
            str(options.draws),
            "--memory-only",
        ]
        report["peak memory, GB"] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[
                -1
            ]
        )
    _print(report, options.num)
    if options.out:
        write_whole(options.out, json.dumps(report, indent=1))
    return 0


def measure(bench, *, num, num_draws, with_hmc):
    """CPU milliseconds per galaxy and their ratios, as a dict of names -> float."""
    from astrogen import load_prior

    prior = load_prior("galaxy")
    stamps = read_stamps(bench, case="lsst", snr=50, num=num)
    one, many = stamps.observations(), _observations_with_own_psfs(stamps)
    report = {
        "Sersic": _cpu_ms(
            lambda: [
                fit_sersic(image, sigma)
                for image, sigma in zip(stamps.image, stamps.sigma, strict=True)
            ],
            len(one),
            warm=False,
        ),
        "posterior": _cpu_ms(lambda: _posterior(one, prior, "laplace", num_draws), len(one)),
        "posterior, a PSF each": _cpu_ms(
            lambda: _posterior(many, prior, "laplace", num_draws), len(many)
        ),
    }
    if with_hmc:
        report["HMC"] = _cpu_ms(lambda: _posterior(one, prior, "hmc", num_draws), len(one))
    return report | {
        f"{name} / Sersic": value / report["Sersic"]
        for name, value in report.items()
        if name != "Sersic"
    }


def _posterior(observations, prior, method, num_draws):
    from astrogen import deconvolve

    return deconvolve(
        observations, prior=prior, method=method, num_draws=num_draws, seed=SEED, background="fixed"
    )


def _cpu_ms(run, num, *, warm=True):
    if warm:
        run()
    began = time.process_time()
    run()
    return 1e3 * (time.process_time() - began) / num


def _observations_with_own_psfs(stamps):
    """The same stamps, each with a PSF of another width: what is inferred is wrong, what it costs
    is not.
    """
    observations = []
    for row, seeing in enumerate(np.linspace(*SEEINGS, len(stamps.index))):
        psf = (
            galsim.Kolmogorov(fwhm=float(seeing))
            .drawImage(nx=33, ny=33, scale=stamps.pixel_scale, dtype=float)
            .array
        )
        chosen = slice(row, row + 1)
        observations += replace(
            stamps,
            psf_image=psf / psf.sum(),
            index=stamps.index[chosen],
            image=stamps.image[chosen],
            sigma=stamps.sigma[chosen],
        ).observations()
    return observations


def _peak_memory(bench, num_draws):
    """Resident memory (GB) that this process needed at most for 256 stamps: those of the file,
    again and again.
    """
    from astrogen import load_prior

    stamps = read_stamps(bench, case="lsst", snr=50)
    observations = stamps.observations()
    observations = [observations[row % len(observations)] for row in range(NUM_STAMPS)]
    results = _posterior(observations, load_prior("galaxy"), "laplace", num_draws)
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        if len(results) == NUM_STAMPS
        else float("nan")
    )


def fit_sersic(image, sigma):
    """Least-squares fit of one Sersic galaxy (flux, radius, index, shear, centre), seen by GalSim
    through the true PSF.

    The settings (start, bounds, steps, tolerances) are those of the benchmark's run_baselines.py,
    so that times can be compared.

    Parameters
    ----------
    image : array [h, w], flux per pixel of 0.2 arcsec
    sigma : float

    Returns
    -------
    array [7] : flux over the sum of the stamp, log half-light radius (arcsec), Sersic index, g1,
        g2, x, y (arcsec)
    """
    psf = galsim.Kolmogorov(fwhm=SEEING)
    total = max(float(image.sum()), 1e-3 * float(np.abs(image).max()))

    def residual(values):
        flux, log_radius, index, g1, g2, x, y = values
        strongest = max(np.hypot(g1, g2) / 0.9, 1.0)
        galaxy = galsim.Sersic(
            n=round(float(np.clip(index, 0.4, 5.0)), 2),
            half_light_radius=float(np.clip(np.exp(log_radius), 0.02, 3.0)),
            flux=float(flux * total),
            gsparams=FAST,
        )
        galaxy = galaxy.shear(g1=g1 / strongest, g2=g2 / strongest).shift(x, y)
        try:
            seen = (
                galsim.Convolve(galaxy, psf, gsparams=FAST)
                .drawImage(nx=image.shape[1], ny=image.shape[0], scale=0.2)
                .array
            )
        except galsim.GalSimError:
            return np.full(image.size, 1e3)
        return ((seen - image) / sigma).ravel()

    fit = least_squares(
        residual,
        [1.0, np.log(0.25), 1.2, 0.0, 0.0, 0.0, 0.0],
        method="trf",
        max_nfev=25,
        ftol=1e-4,
        xtol=1e-4,
        bounds=([0, np.log(0.02), 0.4, -0.9, -0.9, -5, -5], [5, np.log(3.0), 5, 0.9, 0.9, 5, 5]),
        diff_step=[1e-2, 2e-2, 2e-2, 1e-2, 1e-2, 1e-2, 1e-2],
        x_scale=[0.1, 0.2, 0.5, 0.1, 0.1, 0.5, 0.5],
    )
    return fit.x


def _print(report, num):
    print(
        f"CPU ms per galaxy, {num} galaxies of bright, lsst, S/N 50, in one batch; one thread"
        f" ({', '.join(f'{name}=1' for name in THREADS)}); after a warm-up"
    )
    for name, value in report.items():
        target = TARGETS.get(name)
        verdict = (
            ""
            if target is None
            else f"   target at most {target:g}: {'met' if value <= target else 'NOT met'}"
        )
        print(f"  {name:<32} {value:8.2f}{verdict}")


if __name__ == "__main__":
    sys.exit(main())
