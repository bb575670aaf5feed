"""A survey run whose fit takes no time: for tests of what is written, and of what is left after
kills.

As a program, `python survey_stand_in.py ARGUMENTS` is `astrogen survey ARGUMENTS` with that fit; an
object then takes STAND_IN_SECONDS of the environment.
"""

import os
import sys
import time
from dataclasses import replace

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from astrogen.quiet import keep_tensorflow_quiet

keep_tensorflow_quiet()  # before the modules that load it, as the command line does

from astrogen.galaxies.conclude import Drawn, Grid, make_exposure, make_result, make_source  # noqa: E402
from astrogen.galaxies.quantities import QUANTITIES, Quantities  # noqa: E402
from astrogen.survey import run, store, work  # noqa: E402

NUM, CHUNK, SIZE, SCALE = 12, 2, 16, 0.2


def fit_each(fit, cuts):
    """(place, Result) of each cut, from its pixels and its name alone."""
    for place, cut in enumerate(cuts):
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
        yield place, _result(cut.stamps[0], fit)


def _result(stamp, fit):
    rng = np.random.default_rng(sum(map(ord, stamp.name)))
    values = [(float(stamp.image.sum()) + number, 1.0) for number in range(len(QUANTITIES))]
    covariance = np.eye(len(QUANTITIES)).tolist()
    source = make_source(
        stamp,
        stamp.name,
        Grid(SCALE, 2 * SCALE),
        Drawn(
            rng.normal(size=(fit.num_draws, 1, SIZE, SIZE)),
            rng.normal(size=(fit.num_draws, 2)),
            rng.normal(size=(fit.num_draws, 4)),
            rng.normal(size=(fit.num_draws, 1)),
        ),
        residual_amplitude=1.0,
    )
    measured = Quantities(*values, num_failed=0, num_no_radius=0, covariance=covariance)
    exposure = make_exposure(
        stamp,
        light=np.zeros_like(stamp.image),
        background_draws=rng.normal(size=fit.num_draws),
    )
    result = make_result(
        [replace(source, measured=measured)],
        [exposure],
        method="laplace",
        diagnostics={"k_hat": 0.1},
        provenance={"seed": fit.seed},
    )
    return replace(result, status=("stand_in: nothing was fitted",), converged=True)


def use(patch=setattr):
    """Put the stand-ins in their places, by `setattr` or `monkeypatch.setattr`."""
    patch(work, "_fit_each", fit_each)
    patch(run, "_weights_hash", lambda prior: "none")
    patch(run, "_check_fit", lambda fit, exposures: None)


def stay_here(patch=setattr):
    """As `use`, and chunks are made in this process, without pauses after faults."""

    def by_processes(jobs, out, exposures, fit, num_workers, crashed):
        for number, objects in jobs:
            work.infer_chunk(str(store.chunk_path(out, number)), objects, exposures, fit)
            yield number

    use(patch)
    patch(run, "_by_processes", by_processes)
    patch(work, "PAUSES", (0, 0))


def write_inputs(folder):
    """exposure.fits, psf.npy and objects.ecsv of NUM objects."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [50, 50]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    image = np.random.default_rng(1).normal(size=(100, 100)).astype(np.float32)
    planes = [
        fits.PrimaryHDU(),
        fits.ImageHDU(image, wcs.to_header(), name="IMAGE"),
        fits.ImageHDU(np.ones_like(image), name="VARIANCE"),
    ]
    fits.HDUList(planes).writeto(folder / "exposure.fits")
    rows, columns = np.mgrid[-6:7, -6:7]
    psf = np.exp(-0.5 * (rows**2 + columns**2) / 1.7**2)
    np.save(folder / "psf.npy", psf / psf.sum())
    x = 10.0 + 7 * np.arange(NUM)
    ident = [f"o{number}" for number in range(NUM)]
    Table({"id": ident, "x": x, "y": x}).write(folder / "objects.ecsv")


def arguments(folder, out):
    """Of the command, after the verb."""
    told = {"--images": "exposure.fits", "--psf": "psf.npy"}
    files = [word for option, name in told.items() for word in (option, str(folder / name))]
    sizes = ["--size", str(SIZE), "--draws", "4", "--keep", "2", "--chunk", str(CHUNK)]
    return [str(folder / "objects.ecsv"), *files, *sizes, "--out", str(out)]


def infer_chunk(*told):
    """That of a worker, which knows nothing of what its parent has put in places."""
    use()
    return work.infer_chunk(*told)


def main():
    """The command line with the stand-ins, in its workers too; the exit code."""
    from astrogen import cli

    use()
    run.infer_chunk = infer_chunk
    return cli.main(["survey", *sys.argv[1:]])


if __name__ == "__main__":
    import survey_stand_in  # what workers are sent stands in a module that has a name

    sys.exit(survey_stand_in.main())
