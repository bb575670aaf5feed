"""`astrogen deconvolve --joint` and `--deblend`: images of one field fitted together, or all
galaxies of each image.
"""

from functools import partial

from astrogen.cli.words import (
    ALL_FAILED,
    exit_code,
    in_options,
    note_failure,
    note_lost,
    progress,
    say,
)
from astrogen.errors import InputError


def check_together(options):
    """Options that do not belong together are usage errors."""
    for name, needed in (("bands", "joint"), ("aligned", "joint"), ("sources", "deblend")):
        if getattr(options, name) and not getattr(options, needed):
            options.parser.error(f"--{name} needs --{needed}")
    if options.mask_neighbours and options.deblend:
        options.parser.error("--mask-neighbours contradicts --deblend, which fits them")
    if options.bands and len(options.bands) != len(options.images):
        options.parser.error(
            f"--bands must be one for each of the {len(options.images)} images, got"
            f" {len(options.bands)}"
        )


def fit_together(observations, failures, options):
    """Fit, write a FITS file and a figure for each fit and results.ecsv for all, print; the exit
    code.

    observations : list of (path, Observation); failures : list of (path, reason), added to
    """
    from astrogen.data.files import write_table
    from astrogen.galaxies.result import file_names, results_table
    from astrogen.report import write_figure

    fitted, results = [], []
    for paths, stamps, bands in progress(_fields(observations, options), "fitting"):
        try:
            fitted.append((paths[0], _fit(stamps, bands, options)))
        except InputError as error:
            note_failure(error, paths[0], failures, options)
    names = file_names([result for _, result in fitted])
    for name, (path, result) in zip(names, fitted, strict=True):
        try:
            result.write_fits(options.out / f"{name}.fits", num_draws_kept=options.keep_draws)
            picture = write_figure(result, options.out / f"{name}.png")
        except Exception as error:
            note_lost(error, path, failures, options)
            continue
        results.append(result)
        say(f"{in_options(result.summary(), options)}\n{picture}")
    if not results:
        return ALL_FAILED
    write_table(options.out / "results.ecsv", results_table(results))
    return exit_code(results, 0, failures, options)


def _fields(observations, options):
    """(paths, observations, bands or None) of each fit: all images together, or each alone."""
    if not options.joint:
        return [([path], [stamp], None) for path, stamp in observations]
    bands = options.bands and [
        options.bands[options.images.index(path)] for path, _ in observations
    ]
    return [([path for path, _ in observations], [stamp for _, stamp in observations], bands)]


def _fit(stamps, bands, options):
    from astrogen import deblend, deconvolve_jointly

    fit = (
        partial(deblend, sources=_positions(options.sources))
        if options.deblend
        else deconvolve_jointly
    )
    return fit(
        stamps,
        bands=bands,
        aligned=options.aligned,
        prior=options.prior,
        method=options.method,
        num_draws=options.draws,
        seed=options.seed,
        prior_scale=options.prior_scale,
        background=options.background,
    )


def _positions(path):
    """Where a catalogue says that galaxies are: SkyCoord or pixels; None without a catalogue."""
    if path is None:
        return None
    from astrogen.survey.inputs import read_catalogue

    _, sky, pixels = read_catalogue(path)
    return pixels if sky is None else sky
