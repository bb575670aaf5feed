"""What a start costs: one stamp from the command line, and twenty in a loop of one process.

    python -m benchmarks.start --out start.json

CPU seconds, user and system, on one thread. From the command line `astrogen deconvolve` fits one
cutout of the shipped exposure with the defaults, in a process of its own, the least of several.
In the loop each call is `deconvolve([stamp], prior="galaxy")`, as a pipeline calls it: of one stamp
again and again; of stamps whose sides, signal-to-noise ratios and galaxies all differ; and of
chunks of 32 galaxies of a survey, in the function that its workers run. Growth is that of resident
memory after the first call.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

import astrogen
from astrogen.data.files import write_whole
from astrogen.quiet import keep_tensorflow_quiet, untraced

NUM_CALLS, NUM_CHUNKS = 20, 6
PLACE, SIDE = (80, 27), 35  # pixels, of the second galaxy of the exposure
SIDES, SIGNAL_TO_NOISE = (33, 65), (15.0, 200.0)  # of the stamps that differ
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)
LOOPS = ("equal", "different", "survey")


def main(arguments=None):
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="(default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    parser.add_argument("--part", choices=("stages", *LOOPS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(_stages() if options.part == "stages" else _loop(options.part)))
        return 0
    report = {"command line": min(_command_line() for _ in range(options.repeat))}
    for kind in ("stages", *LOOPS):
        told = _child([sys.executable, "-m", "benchmarks.start", "--part", kind]).stdout
        report[kind] = json.loads(told.splitlines()[-1])
    _print(report)
    if options.out:
        write_whole(options.out, json.dumps(report, indent=1))
    return 0


def _child(command):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **ONE_THREAD}
    )


def _deconvolve_command(folder, out):
    exposure = str(folder / "exposure.fits")
    return [
        *("-m", "astrogen", "deconvolve", exposure, "--psf", exposure, "--psf-hdu", "PSF"),
        *("--position", *map(str, PLACE), "--size", str(SIDE), "--out", out),
    ]


def _command_line():
    """CPU seconds of one stamp."""
    with as_file(files("astrogen.demo") / "data") as folder, tempfile.TemporaryDirectory() as out:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _child([sys.executable, *_deconvolve_command(folder, out)])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _stages():
    """CPU seconds of the parts of a start, in the order in which the command does them."""
    stages, began = {}, 0.0  # what this process has used so far is the interpreter's

    def done(name):
        nonlocal began
        now = time.process_time()
        stages[name], began = now - began, now

    done("interpreter and NumPy")
    keep_tensorflow_quiet()
    importlib.import_module("astrogen.data.observation")
    done("import of readers (astropy)")
    importlib.import_module("astrogen.priors")
    done("import of TensorFlow and Keras")
    importlib.import_module("astrogen.galaxies.deconvolve")
    done("import of inference (SciPy, GalSim)")
    prior = astrogen.load_prior("galaxy")
    done("weights")
    with as_file(files("astrogen.demo") / "data") as folder:
        exposure = f"{folder / 'exposure.fits'}"
        psf = astrogen.read_psf(exposure, pixel_scale=0.2, hdu="PSF")
        stamp = astrogen.read_observation(exposure, psf=psf, position=PLACE, size=SIDE)
    done("reading")
    results = untraced(astrogen.deconvolve)([stamp], prior=prior, seed=1)
    done("fit")
    with tempfile.TemporaryDirectory() as out:
        results[0].write_fits(Path(out) / "galaxy.fits")
        done("FITS file")
        astrogen.write_report(results, out, title="Start")
        done("page and figure (Matplotlib)")
    return stages


# --- calls in one process


def _loop(kind):
    """CPU seconds of each call, and growth of resident memory (MB) after the first."""
    seconds, sizes = [], []
    with tempfile.TemporaryDirectory() as out:
        calls = _chunks(Path(out)) if kind == "survey" else _calls(different=kind == "different")
        for call in calls:
            began = time.process_time()
            call()
            seconds.append(time.process_time() - began)
            sizes.append(_resident())
    return {"CPU seconds": seconds, "growth, MB": sizes[-1] - sizes[0]}


def _resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _calls(*, different):
    rng = np.random.default_rng(5)
    stamps = [
        _stamp(row, side=int(rng.integers(*SIDES, endpoint=True)), signal_to_noise=ratio)
        for row, ratio in enumerate(np.exp(rng.uniform(*np.log(SIGNAL_TO_NOISE), NUM_CALLS)))
    ]
    if not different:
        stamps = [_stamp(0, side=48, signal_to_noise=50.0)] * NUM_CALLS
    return [
        lambda stamp=stamp: astrogen.deconvolve([stamp], prior="galaxy", seed=1) for stamp in stamps
    ]


def _stamp(seed, *, side, signal_to_noise):
    """An Observation of an exponential galaxy of some size and ellipticity."""
    import galsim

    rng = np.random.default_rng(seed)
    psf = galsim.Moffat(beta=3.0, fwhm=0.7)
    galaxy = galsim.Exponential(half_light_radius=rng.uniform(0.3, 1.0))
    galaxy = galaxy.shear(g1=rng.uniform(-0.3, 0.3), g2=rng.uniform(-0.3, 0.3))
    seen = galsim.Convolve(galaxy, psf).drawImage(nx=side, ny=side, scale=0.2, dtype=float).array
    sigma = float(np.sqrt((seen**2).sum()) / signal_to_noise)
    return astrogen.make_observation(
        seen + rng.normal(0, sigma, seen.shape),
        psf=astrogen.psf_from_galsim(psf, pixel_scale=0.2, num_pixels=41),
        sigma=sigma,
        pixel_scale=0.2,
        name=f"galaxy {seed}",
    )


def _chunks(out):
    """What a worker of a survey does: chunk after chunk of a whole batch, of one galaxy of the
    shipped exposure under other names.
    """
    from astrogen.survey.inputs import list_exposures, match, read_catalogue
    from astrogen.survey.run import as_objects
    from astrogen.survey.work import BATCH, Fit, infer_chunk

    folder = Path(str(files("astrogen.demo") / "data"))
    table = out / "objects.csv"
    table.write_text(
        "id,x,y\n" + "".join(f"o{row},{PLACE[0]},{PLACE[1]}\n" for row in range(NUM_CHUNKS * BATCH))
    )
    exposure = str(folder / "exposure.fits")
    exposures = list_exposures([exposure], psf=[f"{exposure}[PSF]"])
    targets, _ = match(read_catalogue(table), exposures)
    objects = as_objects(targets, joint=False)
    return [
        lambda start=start: infer_chunk(
            out / f"{start}.npz", objects[start : start + BATCH], exposures, Fit(size=SIDE)
        )
        for start in range(0, len(objects), BATCH)
    ]


def _print(report):
    print(f"one stamp from the command line: {report['command line']:.2f} CPU seconds (target 7)")
    for part, seconds in report["stages"].items():
        print(f"  {part:<32} {seconds:6.2f}")
    for loop in LOOPS:
        first, *later = report[loop]["CPU seconds"]
        print(
            f"{len(later) + 1} calls, {loop:<10} first {first:5.2f}, later {np.median(later):.2f},"
            f" at most {max(later):.2f} CPU seconds; growth {report[loop]['growth, MB']:.1f} MB"
        )


if __name__ == "__main__":
    sys.exit(main())
