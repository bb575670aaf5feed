"""`astrogen demo`: the shipped exposure, deconvolved and compared with the truth; maps emulated,
and the mass map of a shipped field.
"""

from pathlib import Path

from astrogen.cli.words import DONE

TEXT = (
    "Deconvolve a simulated exposure and map the mass of a simulated field, both shipped, and"
    " compare with the truth."
)


def add_options(verb):
    verb.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the page and its figures"
    )
    verb.add_argument("--seed", type=int, default=1, metavar="N", help="(default 1)")


def run(options):
    from astrogen.demo.galaxies import run_demo
    from astrogen.demo.maps import run_demo_maps

    run_demo(options.out, options.seed)
    run_demo_maps(options.out / "dark_matter", options.seed)
    return DONE
