"""The demonstration of dark matter: a sheet of emulated maps, and the mass map of a simulated field
from noisy, masked shear.

The field comes from a particle-mesh simulation that no prior was trained on; `python -m
data_pipelines.demo_map` wrote it.
"""

import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import tensorflow as tf

from astrogen.darkmatter.map_mass import map_mass
from astrogen.data.field import LensingField, make_field
from astrogen.data.images import read_planes
from astrogen.instruments.lensing import make_grid, observe, shear_kernels
from astrogen.priors import load_prior
from astrogen.report import write_map_sheet
from astrogen.report.maps import write_mass_report
from astrogen.types import FilePath

GALAXIES = 30.0  # per arcmin^2
SHAPE_NOISE = 0.26  # of one component of a galaxy's ellipticity
NUM_HOLES, HOLE = 9, 4.5  # bright stars, and their radius in pixels: a tenth of the field
OMEGA_M, SIGMA_8 = (0.2, 0.3, 0.4), (0.7, 0.9)


def run_demo_maps(out: FilePath, seed: int, *, num_draws: int = 128) -> dict[str, float]:
    """Draw maps of six cosmologies, map one field, print errors against the truth, and write the
    sheet and the page.

    Parameters
    ----------
    out : Path of a directory, made where it is missing
    seed, num_draws : int

    Returns
    -------
    dict of str -> float: Pearson `r` and `rmse` (over the truth's standard deviation) of astrogen,
    wiener and ks (`r_astrogen`, ...), and `coverage68`
    """
    out = Path(out)
    began, prior = time.perf_counter(), load_prior("kappa")
    rows = [
        [
            (
                f"Ωm {omega_m}, σ8 {sigma_8}",
                prior.sample(1, omega_m=omega_m, sigma_8=sigma_8, seed=seed).numpy()[0],
            )
            for omega_m in OMEGA_M
        ]
        for sigma_8 in SIGMA_8
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_map_sheet(rows, out / "emulated.png", pixel_scale=prior.pixel_scale)
    with as_file(files("astrogen") / "demo/data") as folder:
        planes, header, _ = read_planes(folder / "kappa.fits")
    truth = planes["KAPPA"] - planes["KAPPA"].mean()  # shear says nothing of the mean
    result = map_mass(
        observe_truth(truth, header["PIXSCALE"], seed),
        prior=prior,
        cosmology=(header["OMEGA_M"], header["SIGMA_8"]),
        num_draws=num_draws,
        seed=seed,
    )
    page = write_mass_report(result, out, title="Dark matter of a simulated field")
    assert result.ks is not None  # the field is of shear
    summary = {
        f"{name}_{method}": score
        for method, image in (
            ("astrogen", result.mean),
            ("wiener", result.wiener),
            ("ks", result.ks[0]),
        )
        for name, score in zip(("r", "rmse"), _scores(image, truth), strict=True)
    }
    low, high = np.quantile(
        result.draws - result.draws.mean((1, 2), keepdims=True), [0.16, 0.84], axis=0
    )
    summary["coverage68"] = float(np.mean((truth >= low) & (truth <= high)))
    print(
        "\nmass map               Kaiser-Squires   Wiener   astrogen\ncorrelation with truth"
        f" {summary['r_ks']:14.3f} {summary['r_wiener']:8.3f} {summary['r_astrogen']:10.3f}\nerror"
        f" / truth's rms    {summary['rmse_ks']:14.3f} {summary['rmse_wiener']:8.3f}"
        f" {summary['rmse_astrogen']:10.3f}\nThe truth lies within the 68 % interval of"
        f" {summary['coverage68']:.0%} of the pixels.\n{page} ({time.perf_counter() - began:.0f} s)"
    )
    return summary


def observe_truth(truth: np.ndarray, pixel_scale: float, seed: int) -> LensingField:
    """Noisy shear of a convergence map [height, width], with holes where stars are; the mass beyond
    the field is taken as empty.
    """
    rng, grid = np.random.default_rng(seed), make_grid(truth.shape)
    around = np.zeros((grid.n, grid.m), np.float32)
    around[grid.top : grid.top + grid.height, grid.left : grid.left + grid.width] = truth
    shear = observe(tf.constant(around[None]), shear_kernels(grid.n, grid.m), grid).numpy()[0]
    noise = SHAPE_NOISE / np.sqrt(GALAXIES * pixel_scale**2)
    y, x = np.indices(truth.shape)
    mask = np.zeros(truth.shape, bool)
    for centre in rng.uniform(0, truth.shape, (NUM_HOLES, 2)):
        mask |= np.hypot(y - centre[0], x - centre[1]) < HOLE
    return make_field(
        shear + noise * rng.normal(size=shear.shape),
        noise=np.full(shear.shape, noise, np.float32),
        mask=mask,
        pixel_scale=pixel_scale,
    )


def _scores(image, truth):
    """Pearson correlation, and root mean square error over the truth's."""
    image = image - image.mean()
    return float(np.corrcoef(image.ravel(), truth.ravel())[0, 1]), float(
        np.sqrt(np.mean((image - truth) ** 2)) / truth.std()
    )
