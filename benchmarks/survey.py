"""Survey runs at scale: stamps per second, memory of the workers, cost per object, with local
processes and with a Dask cluster; equal bytes from all of them.

    python -m benchmarks.survey --num 20000 --workers 2 --out survey.json

Galaxies of the prior with signal-to-noise 15 to 150, on grids of 48 pixels of 0.2 arcsec in
exposures with WCS, seeing of 0.7 arcsec (`--psf position`: 0.65 to 0.75, another one for each
object). Runs of the command `astrogen survey`: `small` (1,000 objects), `one` (worker), `many`
(--workers), `dask` (as many workers of `dask worker`), all from the start of the command to the
finished catalogue. With --poison every hundredth object is bad: its pixels or its PSF are NaN. CPU
time and memory are those of the worker processes, looked up twice a second; wall times suffer from
whatever else the machine does.
"""

import os

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import galsim
import numpy as np
import tensorflow as tf
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from astrogen import load_prior
from astrogen.data.files import write_whole
from astrogen.instruments import telescope

TILES, SIZE, SCALE = 64, 48, 0.2  # galaxies a side of an exposure, pixels of each, arcsec/pixel
FWHM, SPREAD, PSF_SIDE = 0.7, 0.1, 41
SMALL = 1000
RUNS = ("small", "one", "many", "dask")
BAD_PIXELS, BAD_PSF, PERIOD = 7, 107, 200  # of each 200 objects
SEED, BATCH = 1, 256
ROOT = Path(__file__).resolve().parent.parent


def main(arguments=None):
    """Run the command; the exit code: 1 where runs differ, or others than the poisoned objects
    failed.
    """
    options = _parser().parse_args(arguments)
    with (
        contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
    ) as folder:
        report = measure(Path(folder), options)
    _print(report)
    if options.out:
        write_whole(options.out, json.dumps(report, indent=1))
    return (
        0
        if report["equal bytes"]
        and all(run["failed as expected"] for run in report["runs"].values())
        else 1
    )


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.survey",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--num", type=int, default=20000, metavar="N", help="objects (default %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="processes of the runs many and dask (default %(default)s)",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=RUNS,
        default=RUNS,
        metavar="RUN",
        help=f"of {', '.join(RUNS)} (default all)",
    )
    parser.add_argument(
        "--psf",
        choices=("image", "position"),
        default="image",
        help="one for all, or another one for each object (default %(default)s)",
    )
    parser.add_argument("--poison", action="store_true", help="make every hundredth object bad")
    parser.add_argument(
        "--chunk",
        type=int,
        default=256,
        metavar="N",
        help="objects written together (default %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help=(
            "for inputs and outputs, some GB for 20,000 objects; emptied of outputs after each run"
            " (default: a temporary one)"
        ),
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    return parser


def measure(folder, options):
    """The report, {"runs": {name: dict}, "equal bytes": bool, ...}, printed line by line on the
    way.
    """
    began = time.perf_counter()
    bad = make_inputs(folder, options.num, varying=options.psf == "position", poison=options.poison)
    report = {
        "num": options.num,
        "psf": options.psf,
        "poison": options.poison,
        "cores": os.cpu_count(),
        "seconds for inputs": time.perf_counter() - began,
        "runs": {},
    }
    kind = "varying_psf" if options.psf == "position" else "one_psf"
    psf = (
        f"benchmarks.survey:poisoned_{kind}"
        if options.poison
        else (
            "benchmarks.survey:varying_psf"
            if options.psf == "position"
            else str(folder / "psf.npy")
        )
    )
    digests = set()
    for name in options.runs:
        num = min(SMALL, options.num) if name == "small" else options.num
        run, digest = _run(
            folder,
            psf,
            num,
            workers=1 if name == "one" else options.workers,
            dask=name == "dask",
            chunk=options.chunk,
            bad=bad,
        )
        report["runs"][name] = run
        if name != "small":
            digests.add(digest)
        print(f"{name}: {json.dumps(run)}", flush=True)
    return report | {"equal bytes": len(digests) <= 1}


# --- what is observed


def make_inputs(folder, num, *, varying, poison):
    """Exposures, their PSF, and the catalogues of all and of the first 1,000 objects; returns the
    identifiers of the poisoned ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "psf.npy", _psf(FWHM))
    rng, ident, sky = np.random.default_rng(SEED), [], []
    for number, start in enumerate(range(0, num, TILES**2)):
        count = min(TILES**2, num - start)
        wcs, positions, stamps = (
            _wcs(number),
            _positions(count),
            _stamps(count, seed=number, varying=varying),
        )
        image = rng.normal(size=(SIZE * -(-count // TILES), SIZE * TILES)).astype(np.float32)
        for index, stamp in enumerate(stamps):
            row, column = divmod(index, TILES)
            image[SIZE * row : SIZE * (row + 1), SIZE * column : SIZE * (column + 1)] += (
                np.nan if poison and index % PERIOD == BAD_PIXELS else stamp
            )
        fits.HDUList(
            [fits.PrimaryHDU(), fits.ImageHDU(image, wcs.to_header(), name="IMAGE")]
        ).writeto(folder / f"exposure{number:03d}.fits", overwrite=True)
        ident += [f"{number}-{index}" for index in range(count)]
        sky.append(np.stack(wcs.all_pix2world(*positions.T, 0), 1))
    ra, dec = np.concatenate(sky).T
    catalogue = Table({"id": ident, "ra": ra, "dec": dec})
    catalogue.write(folder / "all.fits", overwrite=True)
    catalogue[:SMALL].write(folder / "small.fits", overwrite=True)
    return {
        name
        for name in ident
        if poison and int(name.split("-")[1]) % PERIOD in (BAD_PIXELS, BAD_PSF)
    }


def _wcs(number):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (
        ["RA---TAN", "DEC--TAN"],
        [150.0 + number, 0.0],
        [1.0, 1.0],
        [-SCALE / 3600, SCALE / 3600],
    )
    return wcs


def _positions(count):
    """The middles (x, y) of tiles, pixels from 0."""
    row, column = np.divmod(np.arange(count), TILES)
    return np.stack([column, row], 1) * SIZE + (SIZE - 1) / 2


def _stamps(count, *, seed, varying):
    """Galaxies of the prior as the telescope sees them [count, SIZE, SIZE], noise of 1."""
    prior, rng = load_prior("galaxy"), np.random.default_rng([SEED, seed])
    positions = _positions(count)
    for start in range(0, count, BATCH):
        num = min(BATCH, count - start)
        kernels = _kernels(
            prior, [_fwhm(x, y) for x, y in positions[start : start + num]] if varying else [FWHM]
        )
        latent = rng.standard_normal([num, prior.latent_size]).astype(np.float32)
        shift = rng.uniform(-0.5, 0.5, [num, 2]).astype(np.float32) * SCALE
        seen = telescope.render(
            prior.decode(tf.constant(latent)),
            kernels,
            shape=(SIZE, SIZE),
            pixel_scale=SCALE,
            prior_scale=prior.pixel_scale,
            shift=tf.constant(shift),
        ).numpy()
        signal_to_noise = np.exp(rng.uniform(np.log(15), np.log(150), num))
        yield from seen * (signal_to_noise / np.sqrt(np.square(seen).sum((1, 2))))[:, None, None]


def _kernels(prior, widths):
    """What `telescope.render` takes for PSFs of these FWHM, arcsec."""
    return np.stack(
        [
            telescope.kernel_transform(
                _psf(fwhm),
                psf_scale=SCALE,
                pixel_response=SCALE,
                pixel_scale=SCALE,
                prior_scale=prior.pixel_scale,
                target_fwhm=prior.target_fwhm,
            )
            for fwhm in widths
        ]
    )


def _psf(fwhm):
    """Seeing and pixel, [PSF_SIDE, PSF_SIDE], sum 1."""
    image = (
        galsim.Kolmogorov(fwhm=fwhm)
        .drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=SCALE, dtype=float)
        .array
    )
    return image / image.sum()


def _fwhm(x, y):
    """Broader from left to right, and a little from row to row: no two objects share it."""
    return FWHM + SPREAD * ((x + y / TILES) / (SIZE * TILES) - 0.5)


def varying_psf(image, x, y, pixel_scale):
    """For `astrogen survey --psf`: another one at each position."""
    return _psf(_fwhm(x, y))


def poisoned_one_psf(image, x, y, pixel_scale):
    """The same everywhere, NaN for poisoned objects."""
    return _psf(FWHM) * _poison(x, y)


def poisoned_varying_psf(image, x, y, pixel_scale):
    """As `varying_psf`, NaN for poisoned objects."""
    return varying_psf(image, x, y, pixel_scale) * _poison(x, y)


def _poison(x, y):
    return np.nan if (int(y) // SIZE * TILES + int(x) // SIZE) % PERIOD == BAD_PSF else 1.0


# --- runs


def _run(folder, psf, num, *, workers, dask, chunk, bad):
    """Numbers of one run, and the digest of all its files, which are deleted."""
    out, catalogue = (
        folder / "run",
        Table.read(folder / ("all.fits" if num > SMALL else "small.fits"))[:num],
    )
    shutil.rmtree(out, ignore_errors=True)
    catalogue.write(folder / "now.fits", overwrite=True)
    command = [
        sys.executable,
        "-m",
        "astrogen",
        "survey",
        folder / "now.fits",
        "--images",
        *sorted(folder.glob("exposure*.fits")),
        "--psf",
        psf,
        "--sigma",
        "1",
        "--out",
        out,
        "--chunk",
        str(chunk),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    with _cluster(folder, workers, environment) if dask else contextlib.nullcontext() as cluster:
        address, roots = cluster or (None, [])
        began = time.perf_counter()
        process = subprocess.Popen(
            [
                *map(str, command),
                *(["--scheduler", address] if dask else ["--workers", str(workers)]),
            ],
            env=environment,
            cwd=ROOT,
        )
        seen = _watch(process, roots or [process.pid])
        seconds = time.perf_counter() - began
    failed = {str(row["id"]) for row in Table.read(out / "failures.ecsv")}
    files = sorted(path for path in out.rglob("*") if path.is_file())
    digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
    size = sum(path.stat().st_size for path in files)
    shutil.rmtree(out)
    cpu = sum(used for used, _ in seen.values())
    # others were helpers of the workers, or never got a chunk
    busy = sorted(seen.values(), reverse=True)[:workers]
    return {
        "objects": num,
        "workers": workers,
        "seconds": seconds,
        "stamps/s": num / seconds,
        "CPU ms per object": 1e3 * cpu / num,
        "peak MB per worker": [round(peak / 1024) for _, peak in busy],
        "kB per object": size / num / 1e3,
        "failed": len(failed),
        "failed as expected": failed == bad & set(map(str, catalogue["id"])),
    }, hashlib.sha256(digests).hexdigest()


@contextlib.contextmanager
def _cluster(folder, workers, environment):
    """Address of a scheduler with workers, and the ids of the processes that hold the workers."""
    dask, address = Path(sys.executable).with_name("dask"), folder / "scheduler.json"
    address.unlink(missing_ok=True)
    with open(folder / "dask.log", "w") as log:
        told = {"stdout": log, "stderr": log, "env": environment, "cwd": ROOT}
        scheduler = subprocess.Popen(
            [
                dask,
                "scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-dashboard",
                "--scheduler-file",
                address,
            ],
            **told,
        )
        held = subprocess.Popen(
            [
                dask,
                "worker",
                "--scheduler-file",
                address,
                "--nworkers",
                str(workers),
                "--nthreads",
                "1",
                "--no-dashboard",
                "--memory-limit",
                "0",
                "--local-directory",
                folder / "dask",
            ],
            **told,
        )
        try:
            while not address.exists() and scheduler.poll() is None:
                time.sleep(0.2)
            yield json.loads(address.read_text())["address"], [held.pid]
        finally:
            for process in (held, scheduler):
                process.terminate()
                process.wait()


def _watch(process, roots):
    """Wait for the process; {process id: (CPU seconds, peak kB)} of the workers, the spawned
    descendants of `roots`.
    """
    seen = {}
    while process.poll() is None:
        for number in _descendants(roots):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                folder = Path("/proc") / str(number)
                if b"spawn_main" in (folder / "cmdline").read_bytes():
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    ticks = int(fields[11]) + int(fields[12])
                    seen[number] = (
                        ticks / os.sysconf("SC_CLK_TCK"),
                        int(re.search(r"VmHWM:\s*(\d+)", (folder / "status").read_text())[1]),
                    )
        time.sleep(0.5)
    if process.returncode not in (0, 3):
        raise RuntimeError(
            f"benchmarks.survey: the run must end, got exit code {process.returncode}; see what it"
            " printed"
        )
    return seen


def _descendants(roots):
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
    found, last = set(), set(roots)
    while last:
        found |= last
        last = {child for child, parent in parents.items() if parent in last} - found
    return found - set(roots)


def _print(report):
    print(
        f"{report['num']} objects, PSF:"
        f" {report['psf']}{', 1 % poisoned' if report['poison'] else ''}, {report['cores']} cores;"
        f" inputs took {report['seconds for inputs']:.0f} s"
    )
    print(
        f"{'run':8}{'objects':>9}{'workers':>9}{'seconds':>9}{'stamps/s':>10}"
        f"{'CPU ms/object':>15}{'peak MB per worker':>22}{'failed':>8}"
    )
    for name, run in report["runs"].items():
        peaks = " ".join(map(str, run["peak MB per worker"]))
        verdict = "" if run["failed as expected"] else "   NOT those that were poisoned"
        print(
            f"{name:8}{run['objects']:9d}{run['workers']:9d}{run['seconds']:9.0f}"
            f"{run['stamps/s']:10.2f}{run['CPU ms per object']:15.0f}{peaks:>22}"
            f"{run['failed']:8d}{verdict}"
        )
    runs = report["runs"]
    if {"one", "many"} <= runs.keys():
        print(
            f"{runs['many']['workers']} workers over 1:"
            f" {runs['many']['stamps/s'] / runs['one']['stamps/s']:.2f} times as fast"
        )
    if {"small", "many"} <= runs.keys():
        print(
            f"cost per object at {runs['many']['objects']} over that at {runs['small']['objects']}:"
            f" {runs['many']['CPU ms per object'] / runs['small']['CPU ms per object']:.2f}"
        )
    print(f"bytes of the runs: {'equal' if report['equal bytes'] else 'DIFFERENT'}")


if __name__ == "__main__":
    sys.exit(main())
