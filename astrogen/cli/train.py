"""`astrogen train`: a prior from records."""

from pathlib import Path

from astrogen.cli.words import DONE, count
from astrogen.training import RECIPES

TEXT = "Train a prior on records of images."


def add_options(verb):
    _add_records(verb)
    _add_training(verb)


def _add_records(verb):
    verb.add_argument("prior", choices=tuple(RECIPES), help="which prior")
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--records",
        type=Path,
        metavar="DIR",
        help="records written by `python -m data_pipelines`",
    )
    source.add_argument(
        "--teacher",
        type=Path,
        metavar="DIR",
        help=(
            "kappa: weights whose network is not symmetric; one that is learns from the mean of"
            " its eight orientations (with --spectrum)"
        ),
    )
    verb.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, logs, and the trained prior",
    )
    verb.add_argument(
        "--real",
        type=Path,
        metavar="DIR",
        help="galaxy: records of real stamps, learned from under their own PSF and noise",
    )
    verb.add_argument(
        "--validation",
        type=Path,
        metavar="DIR",
        help="kappa: records of other simulations (default: every tenth is kept apart)",
    )
    verb.add_argument(
        "--spectrum",
        type=Path,
        metavar="FILE",
        help=(
            "kappa: of `python -m data_pipelines expected-spectrum`; the maps are made of it"
            " (default: that of the shipped prior, changed as the simulations ask for)"
        ),
    )


def _add_training(verb):
    verb.add_argument(
        "--loss",
        choices=("wgan-gp", "gan"),
        help="kappa: gan is the loss of the first GAN, to see it fail (default: wgan-gp)",
    )
    verb.add_argument(
        "--steps", type=count, metavar="N", help="training steps (default: the recipe's)"
    )
    verb.add_argument("--seed", type=int, default=1, metavar="N", help="(default 1)")
    verb.add_argument(
        "--strategy",
        choices=("one", "mirrored", "multi-worker"),
        default="one",
        help=(
            "galaxy, kappa: one device, all GPUs of this host, or the hosts that TF_CONFIG names,"
            " with the same command on each (default one)"
        ),
    )
    verb.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR")


def run(options):
    if options.teacher:
        if options.prior != "kappa" or not options.spectrum:
            options.parser.error("--teacher belongs to kappa, with --spectrum")
        from astrogen.training.kappa import symmetrise_kappa

        symmetrise_kappa(
            options.teacher,
            options.out,
            spectrum=options.spectrum,
            num_steps=options.steps or 5000,
            seed=options.seed,
        )
        return DONE
    from astrogen.training import train_prior

    train_prior(
        options.prior,
        records=options.records,
        out=options.out,
        num_steps=options.steps,
        seed=options.seed,
        resume=options.resume,
        real=options.real,
        validation=options.validation,
        spectrum=options.spectrum,
        loss=options.loss,
        strategy=None if options.strategy == "one" else options.strategy,
    )
    return DONE
