"""The GalSim demo: its configuration and the same in Python, byte for byte; and how fast stamps
come, beside GalSim's own galaxies in the same run.

    python -m benchmarks.galsim_demo --out demo.json --cosmos ../shared/data/cosmos_real

astrogen/galsim_objects/demo.yaml draws 10,000 galaxies of the prior behind an emulated lensing
field. Stamps per second of one process, rounds of each kind of galaxy in turn, medians: 40 pixels
of 0.2 arcsec through the same PSF. The rivals are `galsim.RealGalaxy` of a RealGalaxyCatalog
(another galaxy each time, and one galaxy again and again) and `galsim.Sersic` (another index n each
time, and n = 2 again and again).
"""

import os

if __name__ == "__main__":
    os.environ.update(
        dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from importlib import resources
from pathlib import Path

import galsim
import numpy as np
from galsim import config as galsim_config

from astrogen.data.files import write_whole
from astrogen.galsim_objects import AstrogenCatalog, KappaMap

TILES = 100  # a side, as in the configuration
NUM_ROUNDS, PER_ROUND = 9, 33
SEED = 1


def main(arguments=None):
    """Run the command; the exit code: 1 where configuration and Python differ."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.galsim_demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")
    parser.add_argument(
        "--cosmos",
        type=Path,
        metavar="DIR",
        help="folder with real_galaxy_catalog.fits, for the rival; without it there is none",
    )
    parser.add_argument(
        "--tiles",
        type=int,
        default=TILES,
        metavar="N",
        help="a side of the demo; galaxies are N * N (default %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=NUM_ROUNDS,
        metavar="N",
        help=f"of {PER_ROUND} stamps of each kind (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    report = compare(options.tiles) | {
        "stamps per second": measure(options.cosmos, num_rounds=options.rounds)
    }
    _print(report)
    if options.out:
        write_whole(options.out, json.dumps(report, indent=1))
    return 0 if report["equal bytes"] else 1


# --- the demo


def compare(tiles):
    """Draw the demo by its configuration and by Python: number of galaxies, whether the bytes are
    equal, and the seconds of either.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        configured = draw_configured(folder, tiles)
        between = time.perf_counter()
        drawn = draw_python(tiles)
    return {
        "galaxies": tiles**2,
        "equal bytes": configured.tobytes() == drawn.tobytes(),
        "seconds by configuration": between - began,
        "seconds by Python": time.perf_counter() - between,
    }


def read_configuration(tiles):
    """The shipped configuration, with another number of tiles."""
    with resources.as_file(resources.files("astrogen.galsim_objects") / "demo.yaml") as path:
        (config,) = galsim_config.ReadConfig(str(path))
    config["image"] |= {"nx_tiles": tiles, "ny_tiles": tiles}
    return config


def draw_configured(folder, tiles):
    """Image [height, width] that GalSim makes of the configuration."""
    config = read_configuration(tiles)
    config["output"]["dir"] = str(folder)
    galsim_config.Process(config)
    return galsim.fits.read(str(Path(folder) / config["output"]["file_name"])).array.astype(
        np.float32
    )


def draw_python(tiles):
    """The same image without a configuration; what it says stands here once more."""
    # what a configuration with random_seed: 1 seeds the generator of its inputs with
    seed = galsim.BaseDeviate(1).raw()
    catalog = AstrogenCatalog(10000, rng=galsim.BaseDeviate(seed))
    field = KappaMap.draw(
        galsim.BaseDeviate(galsim.BaseDeviate(seed).raw()), omega_m=0.3, sigma_8=0.8
    )
    psf, image = galsim.Kolmogorov(fwhm=0.7), galsim.ImageF(40 * tiles, 40 * tiles, scale=0.2)
    for index in range(tiles**2):
        stamp = image[
            galsim.BoundsI(1, 40, 1, 40).shift(
                galsim.PositionI(40 * (index % tiles), 40 * (index // tiles))
            )
        ]
        # the sky of a pixel scale begins at pixel 0
        g1, g2, mu = field.getLensing(stamp.true_center * 0.2)
        galaxy = catalog.galaxy(
            index,
            flux=(500, 1000, 2000, 4000)[index % 4],
            half_light_radius=(0.3, 0.45, 0.7)[index % 3],
        )
        galaxy = galaxy.shear(g1=g1, g2=g2).magnify(mu)
        galsim.Convolve(psf, galaxy).drawImage(stamp, center=stamp.true_center)
    return image.array


# --- the rates


def measure(cosmos, *, num_rounds):
    """Stamps per second, medians over rounds of PER_ROUND stamps, {kind of galaxy: float}; without
    `cosmos`, no RealGalaxy.
    """
    psf, numbers = galsim.Kolmogorov(fwhm=0.7), iter(range(10**9))
    catalog = AstrogenCatalog((num_rounds + 1) * PER_ROUND, rng=galsim.BaseDeviate(SEED))
    fresh = iter(np.random.default_rng(SEED).uniform(0.5, 4.0, (num_rounds + 1) * PER_ROUND))
    kinds = {
        "AstrogenGalaxy, another each time": lambda: catalog.galaxy(
            next(numbers), flux=1000.0, half_light_radius=0.4
        ),
        "AstrogenGalaxy, one again and again": lambda: catalog.galaxy(
            0, flux=1000.0, half_light_radius=0.4
        ),
        "galsim.Sersic, another index each time": lambda: galsim.Sersic(
            float(next(fresh)), half_light_radius=0.4, flux=1000.0
        ),
        "galsim.Sersic, n = 2": lambda: galsim.Sersic(2.0, half_light_radius=0.4, flux=1000.0),
    }
    if cosmos:
        real, shown = (
            galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(cosmos)),
            iter(range(10**9)),
        )
        kinds |= {
            "galsim.RealGalaxy, another each time": lambda: galsim.RealGalaxy(
                real, index=next(shown) % real.nobjects, flux=1000.0
            ),
            "galsim.RealGalaxy, one again and again": lambda: galsim.RealGalaxy(
                real, index=0, flux=1000.0
            ),
        }
    rates = {name: [] for name in kinds}
    for turn in range(num_rounds + 1):
        for name, make in kinds.items():
            seconds = _seconds(partial(_draw, make, psf))
            if turn:  # the first round warms up
                rates[name].append(PER_ROUND / seconds)
    return {name: float(np.median(values)) for name, values in rates.items()}


def _draw(make, psf):
    for _ in range(PER_ROUND):
        galsim.Convolve(make(), psf).drawImage(nx=40, ny=40, scale=0.2)


def _seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _print(report):
    print(
        f"{report['galaxies']} galaxies, configuration and Python:"
        f" {'equal' if report['equal bytes'] else 'DIFFERENT'} bytes;"
        f" {report['galaxies'] / report['seconds by configuration']:.0f} and"
        f" {report['galaxies'] / report['seconds by Python']:.0f} stamps/s, lensing and loading"
        " included"
    )
    print("stamps/s of one process, 40 pixels of 0.2 arcsec:")
    for name, rate in report["stamps per second"].items():
        print(f"  {name:<42} {rate:8.1f}")


if __name__ == "__main__":
    sys.exit(main())
