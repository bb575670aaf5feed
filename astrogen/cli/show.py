"""`astrogen show`: the figure of one object of a survey run."""

from pathlib import Path

from astrogen.cli.words import DONE, in_options, say

TEXT = "Draw one object of a survey run."


def add_options(verb):
    verb.add_argument("run_folder", metavar="DIR", type=Path, help="folder of the run")
    verb.add_argument("ident", metavar="ID", help="the object's identifier")
    verb.add_argument(
        "--image", metavar="NAME", help="which exposure, where the object was in several"
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="figure (default ID.png)")


def run(options):
    from astrogen.galaxies.result import file_names
    from astrogen.report import write_figure
    from astrogen.survey import read_object

    result = read_object(options.run_folder, options.ident, image=options.image)
    path = options.out or Path(f"{file_names([result])[0]}.png")
    write_figure(result, path)
    say(f"{in_options(result.summary(), options)}\n{path}")
    return DONE
