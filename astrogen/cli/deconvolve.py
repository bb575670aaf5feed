"""`astrogen deconvolve`: survey images in; FITS files, a table and a page out."""

import math
import sys
from functools import partial
from pathlib import Path

from astrogen.cli.together import check_together, fit_together
from astrogen.cli.words import (
    add_inference,
    complain,
    count,
    exit_code,
    fraction,
    in_options,
    note_failure,
    note_lost,
    number_or_name,
    positive,
    progress,
    say,
    short_warnings,
    whole,
)
from astrogen.data.files import write_table
from astrogen.errors import AstrogenError, InputError

TEXT = "Deconvolve images of galaxies and say how far the result can be trusted."
NOISE = ("variance", "sigma", "weight")
COMPANIONS = ("psf", *NOISE, "mask")
MOST_UNTRACED = 32  # objects, one batch: done in less time than it takes to trace what does it


def add_options(verb):
    _add_images(verb)
    _add_planes(verb)
    _add_psf(verb)
    _add_pixels(verb)
    _add_together(verb)
    _add_how(verb)
    _add_output(verb)


def _add_images(verb):
    verb.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="FITS or .npy image, or FILE[HDU]; stands before the options",
    )
    verb.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for index.html, results.ecsv, and a FITS file and a figure per object",
    )


def _add_planes(verb):
    planes = verb.add_argument_group(
        "PSF, noise and mask", "each may be one for all images, or one for each in their order"
    )
    planes.add_argument(
        "--psf",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="FITS or .npy image, or a PsfEx model",
    )
    noise = planes.add_mutually_exclusive_group()
    for kind, text in zip(
        NOISE,
        ("variance of the noise", "its standard deviation", "inverse variance, 0 = masked"),
        strict=True,
    ):
        noise.add_argument(
            f"--{kind}",
            nargs="+",
            action="extend",
            default=[],
            metavar="FILE",
            help=(
                f"{text}: a file, or a number; by default the plane in the image's own file, or"
                " estimated from the border"
            ),
        )
    planes.add_argument(
        "--mask",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="nonzero = bad, unless --bad-bits says more",
    )
    planes.add_argument(
        "--bad-bits",
        nargs="+",
        metavar="BIT",
        type=number_or_name,
        help="names or values of the mask's bits that make a pixel bad",
    )
    planes.add_argument(
        "--mask-neighbours",
        action="store_true",
        help=(
            "mask what sep finds beside the galaxy in the middle (of the first image, with --joint)"
        ),
    )


def _add_psf(verb):
    psf = verb.add_argument_group("how the PSF is sampled")
    psf.add_argument(
        "--psf-oversampling",
        type=positive,
        default=1.0,
        metavar="K",
        help="pixels of the PSF image per observed pixel (default 1)",
    )
    psf.add_argument(
        "--psf-without-pixel",
        action="store_true",
        help="the PSF image does not contain the pixel response",
    )
    psf.add_argument(
        "--psf-recentre",
        action="store_true",
        help=(
            "move the centre of the PSF's light to its middle pixel: for even sides of any"
            " convention, or where it is off by a fraction of a pixel"
        ),
    )
    psf.add_argument(
        "--psf-position",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="pixel (from 0) of the exposure where a PsfEx model is evaluated",
    )
    psf.add_argument(
        "--psf-hdu", type=number_or_name, metavar="HDU", help="which HDU of the PSF file"
    )
    psf.add_argument(
        "--psf-plane",
        type=int,
        metavar="N",
        help="which plane of a cube of PSFs, or row of a merged PsfEx table",
    )


def _add_pixels(verb):
    image = verb.add_argument_group("which pixels")
    image.add_argument(
        "--hdu", type=number_or_name, metavar="HDU", help="which HDU of the image file"
    )
    image.add_argument("--plane", type=int, metavar="N", help="which plane of a cube")
    image.add_argument(
        "--position",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="centre of a cutout, pixels from 0",
    )
    image.add_argument("--size", type=count, metavar="N", help="side of the cutout in pixels")
    image.add_argument(
        "--pixel-scale",
        type=positive,
        metavar="ARCSEC",
        help="per pixel of the image (default: from its WCS)",
    )
    image.add_argument(
        "--max-bad-fraction",
        type=fraction,
        default=0.5,
        metavar="X",
        help="of a stamp's unmasked pixels that may be NaN or infinite (default 0.5)",
    )
    image.add_argument(
        "--max-pixels",
        type=count,
        metavar="N",
        help="of one plane of a file; larger ones are refused (default 100 million)",
    )


def _add_together(verb):
    together = verb.add_argument_group("several exposures, bands, galaxies")
    together.add_argument(
        "--joint",
        action="store_true",
        help="the images show one field: fit them together, by their WCS; the first gives the axes",
    )
    together.add_argument(
        "--bands",
        nargs="+",
        metavar="BAND",
        help="with --joint: of each image in their order (default: all of one band)",
    )
    together.add_argument(
        "--aligned",
        action="store_true",
        help="with --joint: the images share their pixel grid, no WCS is needed",
    )
    together.add_argument(
        "--deblend",
        action="store_true",
        help="fit all galaxies of the field, not the one in its middle",
    )
    together.add_argument(
        "--sources",
        type=Path,
        metavar="CATALOG",
        help=(
            "with --deblend: table with ra, dec (deg) or x, y (pixels from 0 of the first image);"
            " default: detected"
        ),
    )


def _add_how(verb):
    how = add_inference(verb)
    how.add_argument(
        "--chains", type=count, default=4, metavar="N", help="chains of hmc (default 4)"
    )
    how.add_argument(
        "--strict",
        action="store_true",
        help="exit with 3 also where a posterior did not converge or fits poorly",
    )


def _add_output(verb):
    output = verb.add_argument_group("output")
    output.add_argument(
        "--figures",
        type=whole,
        default=24,
        metavar="N",
        help="objects with a figure, in the page and as PNG (default 24)",
    )
    output.add_argument(
        "--keep-draws",
        type=whole,
        metavar="N",
        help="draws that each FITS file holds (default: all)",
    )


def run(options):
    tasks = _match_companions(options)
    options.out.mkdir(parents=True, exist_ok=True)
    observations, failures = _read_all(tasks, options)
    if options.mask_neighbours:
        observations = _mask_neighbours(observations, failures, options)
    if not observations:
        return _finish([], failures, options)
    if options.joint or options.deblend:
        return fit_together(observations, failures, options)
    from astrogen import load_prior

    results = _deconvolve_all(observations, load_prior(options.prior), failures, options)
    written = _write_all(results, failures, options)
    return _finish([result for _, _, result in written], failures, options)


def _match_companions(options):
    """For each image, the files that belong to it; wrong counts are usage errors."""
    if not options.images:
        options.parser.error("no IMAGE given; the images stand before the options")
    if not options.psf:
        options.parser.error("no PSF given; give --psf FILE")
    if (options.position is None) != (options.size is None):
        options.parser.error("--position and --size belong together")
    check_together(options)
    tasks = [{"image": image} for image in options.images]
    for kind in COMPANIONS:
        given = getattr(options, kind)
        if len(given) not in (0, 1, len(tasks)):
            options.parser.error(
                f"--{kind} must be one for all images or one for each of the {len(tasks)}, got"
                f" {len(given)}"
            )
        for task, path in zip(
            tasks, given * len(tasks) if len(given) == 1 else given, strict=bool(given)
        ):
            task[kind] = path
    return tasks


def _read_all(tasks, options):
    """([(path, Observation)], [(path, reason)]): one bad input does not stop the others."""
    observations, failures = [], []
    for task in progress(tasks, "reading"):
        try:
            with short_warnings(task["image"], options):
                observations.append((task["image"], _read_one(task, options)))
        except Exception as error:
            note_failure(error, task["image"], failures, options)
    return observations, failures


def _mask_neighbours(observations, failures, options):
    """Those that can be masked, [(path, Observation)]. The galaxy stands in the middle of each
    image; in those of a joint fit where the middle of the first one is on the sky.
    """
    from astrogen.data.detection import mask_neighbours

    places = [None] * len(observations)
    if options.joint and not options.aligned:
        first = observations[0][1]
        if first.wcs is not None:
            sky = first.wcs.pixel_to_world(*((side - 1) / 2 for side in first.image.shape[::-1]))
            places = [stamp.wcs and _place(stamp, sky) for _, stamp in observations]
    masked = []
    for (path, stamp), place in zip(observations, places, strict=True):
        try:
            good = stamp.status == "ok"
            masked.append((path, mask_neighbours(stamp, place=place) if good else stamp))
        except InputError as error:
            note_failure(error, path, failures, options)
    return masked


def _place(stamp, sky):
    """(x, y) pixels of a place on the sky; the middle (None) of a stamp whose WCS does not reach
    it, which cannot be fitted with the others and is refused there.
    """
    from astrogen.data.frames import sky_to_pixels

    place = tuple(map(float, sky_to_pixels(stamp.wcs, sky, name=stamp.name)))
    return place if all(map(math.isfinite, place)) else None


def _read_one(task, options):
    from astrogen.data.images import MAX_PIXELS
    from astrogen.data.observation import read_observation
    from astrogen.data.psf import make_psf
    from astrogen.data.units import level_or_path

    planes = {kind: level_or_path(task[kind]) for kind in NOISE if kind in task}
    read = partial(
        read_observation,
        task["image"],
        **planes,
        mask=task.get("mask"),
        bad_bits=options.bad_bits,
        hdu=options.hdu,
        plane=options.plane,
        pixel_scale=options.pixel_scale,
        position=options.position,
        size=options.size,
        max_bad_fraction=options.max_bad_fraction,
        max_pixels=options.max_pixels or MAX_PIXELS,
    )
    # A PSF needs the pixel scale, which may stand in the image's WCS: then the image is read with a
    # point first.
    pixel_scale = (
        options.pixel_scale
        or read(psf=make_psf([[1.0]], pixel_scale=1e-6, pixel_response=0.0)).pixel_scale
    )
    return read(psf=_read_psf(task["psf"], pixel_scale, options))


def _read_psf(path, pixel_scale, options):
    """The PSF; an error about its file names the options of the PSF, not those of the image."""
    from astrogen.data.images import MAX_PIXELS
    from astrogen.data.psf import read_psf

    try:
        return read_psf(
            path,
            pixel_scale=pixel_scale,
            oversampling=options.psf_oversampling,
            includes_pixel=not options.psf_without_pixel,
            recentre=options.psf_recentre,
            position=options.psf_position or options.position,
            hdu=options.psf_hdu,
            plane=options.psf_plane,
            max_pixels=options.max_pixels or MAX_PIXELS,
        )
    except AstrogenError as error:
        error.reason = error.reason.replace(" plane=", " psf_plane=")
        raise


def _is_quick(observations, options):
    """Whether the work is done before it would have been traced; chains are, in any case."""
    return options.method in ("map", "laplace", "auto") and len(observations) <= MOST_UNTRACED


def _deconvolve_all(observations, prior, failures, options):
    """[(path, Result)]: all together, and one by one where something is wrong with one of them."""
    from astrogen import deconvolve
    from astrogen.quiet import untraced

    fit = partial(
        untraced(deconvolve) if _is_quick(observations, options) else deconvolve,
        prior=prior,
        method=options.method,
        num_draws=options.draws,
        seed=options.seed,
        prior_scale=options.prior_scale,
        background=options.background,
        num_chains=options.chains,
        progress=sys.stderr.isatty(),
    )
    paths, stamps = zip(*observations, strict=True)
    try:
        return list(zip(paths, fit(list(stamps)), strict=True))
    except InputError as error:
        if len(stamps) == 1:
            note_failure(error, paths[0], failures, options)
            return []
    results = []
    for path, stamp in progress(observations, "one by one"):
        try:
            results.append((path, fit([stamp])[0]))
        except InputError as error:
            note_failure(error, path, failures, options)
    return results


def _write_all(results, failures, options):
    """A FITS file for each result, the table, the page and its figures; [(name, path, result)] of
    those that could be written.
    """
    from astrogen.galaxies.result import file_names
    from astrogen.report import write_report

    names, written = file_names([result for _, result in results]), []
    for name, (path, result) in progress(list(zip(names, results, strict=True)), "writing"):
        try:
            result.write_fits(options.out / f"{name}.fits", num_draws_kept=options.keep_draws)
        except Exception as error:
            note_lost(error, path, failures, options)
            continue
        written.append((name, path, result))
    if written:
        write_table(options.out / "results.ecsv", _table(written, failures))
        write_report(
            [result for *_, result in written],
            options.out,
            title="Deconvolved galaxies",
            failures=failures,
            max_figures=options.figures,
        )
    return written


def _table(written, failures):
    """One row for each image, those that failed included, as an astropy Table."""
    from astropy.table import Table, vstack

    from astrogen.galaxies.result import results_table

    names, paths, results = zip(*written, strict=True)
    table = results_table(results)
    table.add_columns(
        [list(paths), [f"{name}.fits" for name in names]],
        indexes=[1, 1],
        names=["image", "file"],
    )
    if not failures:
        return table
    blank = {
        name: (
            ""
            if table[name].dtype.kind == "U"
            else False
            if table[name].dtype.kind == "b"
            else math.nan
        )
        for name in table.colnames
    }
    return vstack(
        [
            table,
            Table(
                [
                    {**blank, "image": path, "status": f"failed: {reason}"}
                    for path, reason in failures
                ]
            ),
        ]
    )


def _finish(results, failures, options):
    """Print what was found, and choose the exit code."""
    for result in results:
        say(in_options(result.summary(), options))
    if results:
        say(
            f"{len(results)} of {len(results) + len(failures)} objects:"
            f" {options.out / 'index.html'}"
        )
    num_empty = sum(result.observation.status == "no_data" for result in results)
    if num_empty:
        complain(f"{num_empty} of {len(results)} images hold no good pixel")
    return exit_code(results, num_empty, failures, options)
