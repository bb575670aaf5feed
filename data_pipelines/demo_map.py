"""The convergence map of `astrogen demo`: one of a particle-mesh simulation that no prior was
trained on. Of four, the second scatters most like an average map.

python -m data_pipelines convergence --cosmology 0.3 0.8 --num-cosmologies 1 --maps-per-simulation 4
--seed 990 --out records python -m data_pipelines.demo_map --records records --index 1 --out
astrogen/demo/data
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from astrogen.data.images import write_planes
from astrogen.training.records import load_maps, read_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.demo_map",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--records",
        type=Path,
        required=True,
        metavar="DIR",
        help="of `python -m data_pipelines convergence`",
    )
    parser.add_argument(
        "--index", type=int, default=1, metavar="N", help="which map (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for kappa.fits"
    )
    options = parser.parse_args(arguments)
    maps, manifest = load_maps(options.records), read_manifest(options.records)
    omega_m, sigma_8 = (round(float(value), 6) for value in maps["cosmology"][options.index])
    write_planes(
        options.out / "kappa.fits",
        {"KAPPA": maps["kappa"][options.index]},
        header={
            "PIXSCALE": maps["pixel_scale"],
            "PIXUNIT": "arcmin",
            "OMEGA_M": omega_m,
            "SIGMA_8": sigma_8,
            "SEED": manifest["seed"],
            "INDEX": options.index,
        },
    )
    print(options.out / "kappa.fits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
