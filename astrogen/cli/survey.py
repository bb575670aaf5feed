"""`astrogen survey`: a catalogue and images in; one table and chunk files out."""

import argparse
import glob
import re
import sys
from functools import partial
from pathlib import Path

from astrogen.cli.words import (
    ALL_FAILED,
    DONE,
    SOME_FAILED,
    add_inference,
    complain,
    count,
    in_options,
    number_or_name,
    say,
    short_warnings,
)
from astrogen.errors import InputError
from astrogen.processes import raise_at_sigterm

TEXT = "Deconvolve every object of a catalogue; resumable, in parallel, nothing lost."


def add_options(verb):
    _add_inputs(verb)
    _add_run(verb)
    _add_how(verb)


def _add_inputs(verb):
    verb.add_argument(
        "catalogue",
        metavar="CATALOG",
        type=Path,
        help=(
            "table with id and ra, dec (deg) or x, y (pixels from 0): FITS, ECSV, CSV, Parquet, ..."
        ),
    )
    verb.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="GLOB",
        help="images with WCS; or one table with the column image, and psf, variance, mask, band",
    )
    verb.add_argument(
        "--psf",
        nargs="+",
        default=[],
        metavar="FILE",
        help="one for all images or one for each: an image, a PsfEx model, or module:function",
    )
    for kind, text in (
        ("variance", "variance of the noise"),
        ("sigma", "its standard deviation"),
        ("weight", "inverse variance, 0 = masked"),
        ("mask", "nonzero = bad"),
    ):
        verb.add_argument(
            f"--{kind}",
            nargs="+",
            default=[],
            metavar="FILE",
            help=(
                f"{text}: one for all images or one for each; by default the plane in the image's"
                " file"
            ),
        )
    verb.add_argument(
        "--bands",
        nargs="+",
        default=[],
        metavar="NAME",
        help="band of each image, or one for all; a table of images has them in its column band",
    )
    verb.add_argument(
        "--bad-bits",
        nargs="+",
        metavar="BIT",
        type=number_or_name,
        help="names or values of the mask's bits that make a pixel bad",
    )
    verb.add_argument(
        "--mask-neighbours",
        action="store_true",
        help="mask what sep finds beside the object in its cutout",
    )
    verb.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")


def _add_run(verb):
    run = verb.add_argument_group("the run")
    run.add_argument(
        "--chunk",
        type=count,
        default=256,
        metavar="N",
        help="objects that are written together (default 256)",
    )
    run.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="local processes of one thread each (default 1)",
    )
    run.add_argument(
        "--scheduler",
        metavar="tcp://...",
        help="an existing Dask scheduler instead of local processes",
    )
    run.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="i/n",
        help="do every n-th chunk only, from the i-th on",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in DIR; it ends with the bytes of an uninterrupted one",
    )
    run.add_argument(
        "--force",
        action="store_true",
        help="with --resume: even if configuration, weights or code have changed",
    )


def _add_how(verb):
    how = add_inference(verb)
    how.add_argument(
        "--joint",
        action="store_true",
        help=(
            "fit all exposures and bands that hold an object together: one row for each object,"
            " with fluxes in each band"
        ),
    )
    how.add_argument(
        "--size",
        type=count,
        default=48,
        metavar="N",
        help="side of the cutouts in pixels (default 48)",
    )
    how.add_argument(
        "--keep",
        type=count,
        default=3,
        metavar="N",
        help="imagined solutions kept of each object (default 3)",
    )


def run(options):
    with raise_at_sigterm(), short_warnings(options.out, options):
        done = _run(options)
    return _report(done, options)


def _run(options):
    from astrogen.survey import run_survey
    from astrogen.survey.work import Fit

    fit = Fit(
        joint=options.joint,
        size=options.size,
        prior=options.prior,
        prior_scale=options.prior_scale,
        method=options.method,
        num_draws=options.draws,
        num_kept=options.keep,
        background=options.background,
        bad_bits=tuple(options.bad_bits) if options.bad_bits else None,
        mask_neighbours=options.mask_neighbours,
        seed=options.seed,
    )
    return run_survey(
        options.catalogue,
        _expanded(options.images),
        out=options.out,
        fit=fit,
        chunk=options.chunk,
        num_workers=options.workers,
        scheduler=options.scheduler,
        shard=options.shard,
        resume=options.resume,
        force=options.force,
        progress=sys.stderr.isatty(),
        words_fn=partial(in_options, options=options),
        **{
            kind: _expanded(getattr(options, kind))
            for kind in ("psf", "variance", "sigma", "weight", "mask")
        },
        band=options.bands,
    )


def _report(done, options):
    """Say what became of the run; the exit code."""
    if done.num_unfinished:
        say(f"{done.num_unfinished} chunks are left to the other shards: {options.out}")
        return DONE
    say(f"{done.num} results, {done.num_failed} failures: {options.out / 'catalogue.parquet'}")
    if done.num_incomplete:
        complain(
            f"{done.num_incomplete} objects were not seen in all bands, or fitted without a bad"
            " exposure: see the column status (incomplete)"
        )
    if done.num_failed:
        complain(f"{done.num_failed} objects have no result, see {options.out / 'failures.ecsv'}")
    return ALL_FAILED if not done.num else SOME_FAILED if done.num_failed else DONE


def _expanded(patterns):
    """Files that a pattern names, sorted; what is no pattern stays."""
    paths = []
    for pattern in patterns:
        found = _matching(pattern)
        if not found:
            raise InputError(f"survey: {pattern} must match files, got none")
        paths += found
    return paths


def _matching(pattern):
    """The files of one pattern; the brackets at its end may also choose an HDU of each."""
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [pattern]
    if found := sorted(glob.glob(pattern)):
        return found
    file, bracket, hdu = pattern.rpartition("[")
    return [path + bracket + hdu for path in sorted(glob.glob(file))] if hdu[-1:] == "]" else []


def _shard(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be i/n with i from 1 to n, got {text}")
    return int(match[1]), int(match[2])
