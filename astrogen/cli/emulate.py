"""`astrogen emulate`: new maps of the convergence, or new galaxies."""

from pathlib import Path

from astrogen.cli.words import DONE, count, positive

TEXT = "Draw convergence maps of a cosmology, or galaxies, into one file."


def add_options(verb):
    kinds = verb.add_subparsers(title="kinds", metavar="KIND", required=True, dest="kind")
    for kind, text in (
        ("kappa", "convergence maps of sources at one redshift"),
        ("galaxy", "galaxies of unit flux"),
    ):
        options = kinds.add_parser(kind, help=text, description=f"Draw {text}.", allow_abbrev=False)
        options.set_defaults(parser=options)
        options.add_argument("--num", type=count, required=True, metavar="N", help="how many")
        options.add_argument(
            "--seed", type=int, required=True, metavar="N", help="equal seeds draw equal images"
        )
        options.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="FILE",
            help=".fits or .npy, written as a whole or not at all",
        )
        options.add_argument(
            "--prior",
            default=kind,
            metavar="NAME_OR_DIR",
            help="shipped prior or weights of `astrogen train` (default %(default)s)",
        )
        if kind == "kappa":
            options.add_argument(
                "--omega-m", type=positive, required=True, metavar="X", help="total matter density"
            )
            options.add_argument(
                "--sigma-8",
                type=positive,
                required=True,
                metavar="X",
                help="linear rms of density in spheres of 8 Mpc/h",
            )
            options.add_argument(
                "--shape",
                type=count,
                nargs=2,
                metavar=("HEIGHT", "WIDTH"),
                help="pixels (default: the prior's)",
            )
            options.add_argument(
                "--extrapolate",
                action="store_true",
                help="allow a cosmology outside the training range; the header says so",
            )


def run(options):
    from astrogen.galsim_objects.emulate import write_galaxies, write_maps

    if options.kind == "galaxy":
        write_galaxies(options.out, options.num, seed=options.seed, prior=options.prior)
    else:
        write_maps(
            options.out,
            options.num,
            omega_m=options.omega_m,
            sigma_8=options.sigma_8,
            shape=options.shape,
            seed=options.seed,
            prior=options.prior,
            extrapolate=options.extrapolate,
        )
    return DONE
