"""The command line of the data pipelines: parse, call, print. Exit codes: 0 done, 2 usage, 3 some
entries left out, 4 bad input or all left out, 130 interrupted, 143 terminated.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from astrogen.errors import AstrogenError, printable
from astrogen.processes import Terminated, raise_at_sigterm
from astrogen.quiet import keep_tensorflow_quiet
from data_pipelines import map_commands
from data_pipelines.words import odd, positive, record_options, seed


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines",
        description=(
            "Write what a prior learns from, galaxies or convergence maps, as sharded TFRecords"
            " with a manifest (recipe, seed, counts, units, sha256). An interrupted run goes on"
            " with --resume and ends with the same bytes."
        ),
        epilog=(
            "Exit codes: 0 done, 2 usage, 3 some entries left out, 4 bad input or all left out, 130"
            " interrupted, 143 terminated."
        ),
    )
    verbs = parser.add_subparsers(
        dest="verb",
        required=True,
        metavar="{" + ",".join(["galaxies", "real", *map_commands.VERBS]) + "}",
    )
    shared = record_options(shard_size=2000)

    _add_galaxies(verbs, shared)
    _add_real(verbs, shared)
    map_commands.add_verbs(verbs)
    return parser


def _add_galaxies(verbs, shared):
    galaxies = verbs.add_parser(
        "galaxies",
        parents=[shared],
        help="a simulated population drawn with GalSim",
        description=(
            "Draw a simulated population (i = 18-26; Sersic, bulge+disk, knots, arms, bars,"
            " lopsided disks, irregulars, companions) on the grid of the galaxy prior: 64x64 pixels"
            ' of 0.1", Gaussian target PSF of FWHM 0.2", unit flux.'
        ),
    )
    galaxies.add_argument(
        "--num",
        type=positive,
        required=True,
        metavar="N",
        help="number of galaxies; 40000 take about 15 minutes on 2 cores",
    )
    galaxies.add_argument(
        "--seed",
        type=seed,
        required=True,
        help="of the population: galaxy i of a seed never depends on --num or --workers",
    )


def _add_real(verbs, shared):
    real = verbs.add_parser(
        "real",
        parents=[shared],
        help="the galaxies of a galsim.RealGalaxyCatalog",
        description=(
            "Copy the galaxies of a galsim.RealGalaxyCatalog (as galsim_download_cosmos fetches"
            " it), each on its own pixels with its own PSF, noise variance and noise correlation."
            " Entries without a usable image, PSF or noise are left out and reported."
        ),
    )
    real.add_argument(
        "--catalog",
        type=Path,
        required=True,
        metavar="FITS",
        help="real_galaxy_catalog*.fits, its images and PSFs beside it",
    )
    real.add_argument(
        "--stamp",
        type=positive,
        default=128,
        metavar="PIXELS",
        help="side of the galaxies' stamps (default: %(default)s)",
    )
    real.add_argument(
        "--psf-stamp",
        type=odd,
        default=65,
        metavar="PIXELS",
        help="odd side of the PSFs' stamps (default: %(default)s)",
    )


def _report(manifest, directory):
    """Print what was written and what was left out; the exit code."""
    num = sum(shard["num"] for shard in manifest["shards"])
    skipped = [entry for shard in manifest["shards"] for entry in shard["skipped"]]
    size = sum((directory / shard["file"]).stat().st_size for shard in manifest["shards"])
    unit = "maps" if manifest["kind"] == "convergence" else "galaxies"
    print(f"{num} {unit} in {len(manifest['shards'])} shards, {size / 1e6:.1f} MB: {directory}")
    if not skipped:
        return 0
    print(
        f"{len(skipped)} of {manifest['num']} entries left out (each is named in the manifest):",
        file=sys.stderr,
    )
    for reason, count in Counter(entry["reason"] for entry in skipped).most_common(5):
        idents = [entry["ident"] for entry in skipped if entry["reason"] == reason]
        print(
            printable(
                f"  {count} x {reason} (ident {', '.join(idents[:5])}"
                f"{', ...' if count > 5 else ''})"
            ),
            file=sys.stderr,
        )
    return 3 if num else 4


def _write_galaxies(options):
    """The manifest of the galaxies that were asked for."""
    from data_pipelines import population, real  # GalSim
    from data_pipelines.records import write_records

    if options.verb == "galaxies":
        header, draw_fn = (
            {**population.recipe(options.seed), "num": options.num},
            partial(population.draw_records, options.seed),
        )
    else:
        header = real.recipe(options.catalog, stamp=options.stamp, psf_stamp=options.psf_stamp)
        draw_fn = partial(real.read_entries, options.catalog, options.stamp, options.psf_stamp)
    header["shard_size"] = options.shard_size
    return write_records(
        options.out,
        header=header,
        draw_fn=draw_fn,
        num_workers=options.workers,
        resume=options.resume,
    )


def _run(options):
    keep_tensorflow_quiet()
    try:
        manifest = (
            map_commands.run(options)
            if options.verb in map_commands.VERBS
            else _write_galaxies(options)
        )
    except (AstrogenError, OSError) as error:
        print(f"data_pipelines: {error}", file=sys.stderr)
        return 4
    return _report(manifest, options.out) if manifest else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with raise_at_sigterm():
            return _run(options)
    except (KeyboardInterrupt, Terminated) as ended:
        kept = (
            f"; finished shards are kept in {options.out}, go on with --resume"
            if hasattr(options, "resume")
            else ""
        )
        word, code = ("terminated", 143) if isinstance(ended, Terminated) else ("interrupted", 130)
        print(f"data_pipelines: {word}{kept}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
