"""`astrogen massmap`: shear or a noisy convergence map in; draws of the convergence, with
Kaiser-Squires and Wiener maps, a figure and a page out.
"""

import sys
from pathlib import Path

from astrogen.cli.words import (
    DONE,
    SOME_FAILED,
    complain,
    count,
    in_options,
    positive,
    progress,
    say,
)
from astrogen.data.files import number_or_path

TEXT = "Map the dark matter of a field from shear, and say how well it is known."


def add_options(verb):
    _add_maps(verb)
    _add_how(verb)


def _add_maps(verb):
    verb.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for massmap.fits, massmap.png and index.html",
    )
    maps = verb.add_argument_group(
        "what was observed",
        "FITS or .npy files, or FILE[HDU]; axes and signs as in astrogen.instruments.lensing",
    )
    kind = maps.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--shear", nargs=2, metavar=("E1", "E2"), help="the two components of the shear"
    )
    kind.add_argument("--kappa", metavar="MAP", help="a noisy convergence map instead")
    maps.add_argument(
        "--beam",
        type=positive,
        metavar="ARCMIN",
        help="FWHM of the Gaussian that --kappa was smoothed with before its noise",
    )
    maps.add_argument(
        "--noise",
        required=True,
        nargs="+",
        type=number_or_path,
        metavar="STD",
        help="standard deviation of the noise of each map, or one for both: a file, or a number",
    )
    where = maps.add_mutually_exclusive_group()
    where.add_argument("--mask", metavar="FILE", help="nonzero = bad")
    where.add_argument(
        "--footprint", metavar="FILE", help="the opposite of a mask: nonzero = observed"
    )
    maps.add_argument(
        "--pixel-scale",
        type=positive,
        metavar="ARCMIN",
        help=(
            "per pixel (default: from the WCS); finer pixels than the prior's are averaged to them"
        ),
    )
    maps.add_argument(
        "--flip-e2",
        action="store_true",
        help=(
            "the first axis runs to decreasing x (right ascension to the left): change the sign"
            " of E2"
        ),
    )


def _add_how(verb):
    how = verb.add_argument_group("inference")
    how.add_argument(
        "--prior",
        default="kappa",
        metavar="NAME",
        help="kappa (default), kappa-lognormal, kappa-gaussian, or the folder of a trained prior",
    )
    how.add_argument("--omega-m", type=positive, default=0.3, metavar="X", help="(default 0.3)")
    how.add_argument("--sigma-8", type=positive, default=0.8, metavar="X", help="(default 0.8)")
    how.add_argument(
        "--sample-cosmology",
        action="store_true",
        help=(
            "draw Omega_m and sigma_8 too, uniform over the prior's range; takes several times"
            " longer"
        ),
    )
    how.add_argument(
        "--draws", type=count, default=200, metavar="N", help="posterior draws (default 200)"
    )
    how.add_argument("--chains", type=count, default=4, metavar="N", help="(default 4)")
    how.add_argument(
        "--burn-in",
        type=count,
        metavar="N",
        help=(
            "trajectories of each chain that are thrown away, half as many again for a network"
            " (default 40, or 120 where the cosmology is sampled)"
        ),
    )
    how.add_argument("--seed", type=int, default=1, metavar="N", help="(default 1)")
    how.add_argument(
        "--strict", action="store_true", help="exit with 3 where the chains did not converge"
    )


def run(options):
    if options.beam and options.shear:
        options.parser.error("--beam belongs to --kappa")
    from astrogen import load_prior
    from astrogen.darkmatter.map_mass import SAMPLED, map_mass
    from astrogen.data.field import read_field
    from astrogen.report.maps import write_mass_report

    field = read_field(
        options.shear or [options.kappa],
        noise=options.noise,
        mask=options.mask,
        footprint=options.footprint,
        pixel_scale=options.pixel_scale,
        beam=options.beam or 0.0,
        flip_second=options.flip_e2,
    )
    prior = load_prior(options.prior)
    cosmology = SAMPLED if options.sample_cosmology else (options.omega_m, options.sigma_8)
    result = map_mass(
        field,
        prior=prior,
        cosmology=cosmology,
        num_draws=options.draws,
        num_chains=options.chains,
        num_burnin=options.burn_in,
        seed=options.seed,
        progress=_progress,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    result.write_fits(options.out / "massmap.fits")
    page = write_mass_report(
        result, options.out, title=Path(options.kappa or options.shear[0]).name
    )
    for note in result.field.notes:
        complain(in_options(note, options))
    say(f"{in_options(result.summary(), options)}\n{page}")
    return SOME_FAILED if options.strict and not result.converged else DONE


def _progress(steps):
    return progress(steps, "sampling") if sys.stderr.isatty() else steps
