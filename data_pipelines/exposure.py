"""The exposure of `astrogen demo`: a dozen simulated galaxies as a ground-based survey would record
them, and the truth behind them.

    python -m data_pipelines.exposure --seed 987654 --out astrogen/demo/data

Galaxies come from `data_pipelines.population` under a seed that no prior was trained on. The
telescope is GalSim's, not astrogen's own forward model.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from astropy.table import Table
from astropy.units import nJy
from astropy.wcs import WCS

from astrogen.data.images import write_planes
from astrogen.types import FilePath
from data_pipelines.population import PIXEL_SCALE, SIDE, TARGET_FWHM, draw_galaxy

SHAPE = (156, 204)  # pixels: rows, columns
GRID = (3, 4)  # galaxies
OBSERVED_SCALE = 0.2  # arcsec/pixel
SEEING = 0.7  # arcsec, FWHM
PSF_SIDE = 61  # wings of Kolmogorov's profile beyond it hold 0.3 % of the light
SMALLEST_RADIUS = 0.22  # arcsec: galaxies about which a ground-based telescope can say something
SKY_SIGMA = 12.0  # nJy per pixel
GAIN = 0.05  # detected photons per nJy: sources add their own noise
SIGNAL_TO_NOISE = (25.0, 150.0)  # sqrt(sum(signal^2 / variance)), evenly in the logarithm
BAD_COLUMN, COSMIC_RAY = 1, 2  # bits of the mask
NUM_COSMIC_RAYS = 14
SLANTED = np.radians(25)  # the exposure's position angle: its rows do not run east


def draw_exposure(seed: int) -> tuple[Any, ...]:
    """Planes, truth images and catalogue of one exposure.

    Parameters
    ----------
    seed : int

    Returns
    -------
    planes : dict of arrays [h, w]: IMAGE, VARIANCE (nJy), MASK (bits), PSF (effective, with the
        pixel)
    truth : float32 [num, 64, 64], nJy per pixel of 0.1 arcsec, at a Gaussian resolution of 0.2
        arcsec, centred on the catalogue's pixel
    catalogue : Table of name, x, y (pixels from 0), flux (nJy), signal_to_noise, family
    """
    rng = np.random.default_rng([seed, 1])
    psf = galsim.Kolmogorov(fwhm=SEEING)
    image, truths, rows = np.zeros(SHAPE), [], []
    levels = rng.permutation(np.geomspace(*SIGNAL_TO_NOISE, GRID[0] * GRID[1]))
    galaxies = filter(
        lambda galaxy: galaxy.half_light_radius >= SMALLEST_RADIUS,
        (draw_galaxy(seed, number) for number in count()),
    )
    for index, (signal_to_noise, galaxy) in enumerate(zip(levels, galaxies)):
        row, column = divmod(index, GRID[1])
        y, x = (
            int((place + 0.5) * side / num + rng.integers(-4, 5))
            for place, side, num in ((row, SHAPE[0], GRID[0]), (column, SHAPE[1], GRID[1]))
        )
        truth = _moved(galaxy.image, rng.uniform(-0.5, 0.5, 2) * OBSERVED_SCALE)
        light = _through_telescope(truth, psf, x, y)
        flux = _flux_of(light, signal_to_noise)
        image += flux * light
        truths.append((flux * truth).astype(np.float32))
        rows.append(
            (
                f"{index + 1:02d} {galaxy.family.replace('_', ' ')}",
                x,
                y,
                flux * truth.sum(),
                signal_to_noise,
                galaxy.family,
            )
        )
    variance = SKY_SIGMA**2 + np.maximum(image, 0) / GAIN
    image += rng.normal(size=SHAPE) * np.sqrt(variance)
    mask = _damage(rng, image)
    effective = psf.drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=OBSERVED_SCALE, dtype=float).array
    planes = {
        "IMAGE": image.astype(np.float32),
        "VARIANCE": variance.astype(np.float32),
        "MASK": mask,
        "PSF": effective / effective.sum(),
    }
    return (
        planes,
        np.array(truths),
        Table(rows=rows, names=["name", "x", "y", "flux", "signal_to_noise", "family"]),
    )


def _moved(image, shift):
    """The image moved by (x, y) arcsec. Interpolated locally: through the Fourier transform, a knot
    that its resolution does not quite band-limit would ring.
    """
    galaxy = galsim.InterpolatedImage(
        galsim.Image(image.astype(float), scale=PIXEL_SCALE), x_interpolant="quintic"
    )
    return (
        galaxy.shift(*shift)
        .drawImage(nx=SIDE, ny=SIDE, scale=PIXEL_SCALE, method="no_pixel", dtype=float)
        .array
    )


def _through_telescope(truth, psf, x, y):
    """A galaxy of unit flux as the telescope sees it, about pixel (x, y) of the exposure."""
    seen = galsim.InterpolatedImage(
        galsim.Image(truth.astype(float), scale=PIXEL_SCALE),
        x_interpolant="lanczos15",
        k_interpolant="quintic",
    )
    kernel = galsim.Convolve(psf, galsim.Deconvolve(galsim.Gaussian(fwhm=TARGET_FWHM)))
    stamp = galsim.Convolve(seen, kernel).drawImage(
        nx=SHAPE[1],
        ny=SHAPE[0],
        scale=OBSERVED_SCALE,
        dtype=float,
        offset=(x - (SHAPE[1] - 1) / 2, y - (SHAPE[0] - 1) / 2),
    )
    return stamp.array


def _flux_of(light, signal_to_noise):
    """The flux at which light of unit flux reaches a signal-to-noise ratio, its own noise
    included.
    """
    fluxes = np.geomspace(1e2, 1e7, 200)
    reached = [
        np.sqrt(((flux * light) ** 2 / (SKY_SIGMA**2 + np.maximum(flux * light, 0) / GAIN)).sum())
        for flux in fluxes
    ]
    return float(np.interp(signal_to_noise, reached, fluxes))


def _damage(rng, image):
    """Spoil a column and leave the tracks of cosmic rays, in place; the mask knows of both."""
    mask = np.zeros(SHAPE, np.int16)
    column = int(0.63 * SHAPE[1])
    image[:, column] = -80 + 5 * rng.normal(size=SHAPE[0])
    mask[:, column] |= BAD_COLUMN
    for _ in range(NUM_COSMIC_RAYS):
        start, angle, length = (
            rng.uniform(0, 1, 2) * SHAPE,
            rng.uniform(0, np.pi),
            rng.uniform(1, 9),
        )
        along = np.arange(0, length, 0.5)
        rows = np.clip(np.round(start[0] + along * np.sin(angle)), 0, SHAPE[0] - 1).astype(int)
        columns = np.clip(np.round(start[1] + along * np.cos(angle)), 0, SHAPE[1] - 1).astype(int)
        track = np.zeros(SHAPE, bool)
        track[rows, columns] = True
        image[track] += rng.gamma(2.0, 400.0)
        mask[track] |= COSMIC_RAY
    return mask


def _exposure_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [150.1, 2.2], [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2]
    step, cos, sin = OBSERVED_SCALE / 3600, np.cos(SLANTED), np.sin(SLANTED)
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * step
    return wcs


def write_exposure(directory: FilePath, seed: int) -> None:
    """Write exposure.fits (what a user has) and truth.fits (what nobody has) to a directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    planes, truth, catalogue = draw_exposure(seed)
    header = {
        "TELESCOP": "simulated",
        "FILTER": "i",
        "SEEING": SEEING,
        "SEED": seed,
        "BIT0": "bad column",
        "BIT1": "cosmic ray",
    }
    wcs = _exposure_wcs()
    write_planes(
        directory / "exposure.fits",
        planes,
        wcs={name: wcs for name in ("IMAGE", "VARIANCE", "MASK")},
        unit={"IMAGE": nJy, "VARIANCE": nJy},
        header=header,
        tables={"CATALOGUE": catalogue["name", "x", "y"]},
    )
    write_planes(
        directory / "truth.fits",
        {"TRUTH": truth},
        unit={"TRUTH": nJy},
        header={"PIXSCALE": PIXEL_SCALE, "FWHM": TARGET_FWHM, "SIDE": SIDE, "SEED": seed},
        tables={"CATALOGUE": catalogue},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.exposure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for exposure.fits and truth.fits",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=987654,
        metavar="N",
        help="of the population and the noise (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    write_exposure(options.out, options.seed)
    print(
        f"{GRID[0] * GRID[1]} galaxies: {options.out / 'exposure.fits'},"
        f" {options.out / 'truth.fits'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
