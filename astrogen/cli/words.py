"""What the verbs share: exit codes, types of options, progress, and errors as one line that names
options.
"""

import argparse
import contextlib
import math
import re
import sys
import traceback
import warnings

from astrogen.errors import AstrogenError, printable

DONE, SOME_FAILED, ALL_FAILED, INTERRUPTED, TERMINATED = 0, 3, 4, 130, 143

# Options that are not called as the argument that they give; "function.argument" where only that
# function's is meant. None: what is no argument, though an option has its name.
OPTIONS = {
    "band": "--bands",
    "load_prior.name": "--prior",
    "num_burnin": "--burn-in",
    "num_chains": "--chains",
    "num_draws": "--draws",
    "num_draws_kept": "--keep-draws",
    "num_steps": "--steps",
    "num_workers": "--workers",
    "oversampling": "--psf-oversampling",
    "read_rows.chunk": None,
    "recentre": "--psf-recentre",
    "run_survey.workers": None,
}
# Arguments that not every verb has an option for, and what to do instead; "": what else the message
# offers is all that there is.
INSTEAD = {
    "aligned": "",
    "extrapolate": "",
    "force": "",
    "max_bad_fraction": "",
    "max_pixels": "write the part that is meant to a file of its own",
    "num_burnin": "",
    "num_chains": "",
    "num_draws": "",
    "oversampling": "",
    "pixel_response": "",
    "pixel_scale": "give the image a WCS",
    "plane": "write the plane that is meant to a file of its own",
    "prior_scale": "",
    "recentre": "",
    "resume": "go on with `astrogen survey ... --resume`",
    "sigma": "",
    "sources": "",
    "variance": "",
    "weight": "",
}
# How sentences that name no argument, those on results, are taken up by options.
PHRASES = (
    (r"\bmethod hmc\b", "--method hmc"),
    (r"\bmore draws\b", "more draws (--draws)"),
    (r"\bor chains\b", "or chains (--chains)"),
    (r"\bfit it too \(deblend\)", "fit it too (--deblend)"),
    (r"\blonger burn-in\b", "longer burn-in (--burn-in)"),
)
# How messages of the library name an argument: `name=VALUE` or `name=` in what to do, a name with
# an underscore anywhere, and in front of "must" (after the function's).
MARK = re.compile(r"(?<![\w.=/\[\]'\"-])([a-z][a-z0-9_]*)=([^\s,;:()]*)")
BARE = re.compile(r"(?<![\w.=/\[\]'\"-])([a-z]+(?:_[a-z0-9]+)+)(?![\w.=/\[\]'\"(-])")
SUBJECT = re.compile(r"(\w+): ((?:\w+(?:, | and | or ))*\w+)(?= must\b)")
TWICE = re.compile(r"\b(\w+) \(--\1\)")
ASIDE = re.compile(r" \((--[^()]*)\)")


def count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive(text):
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def whole(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def fraction(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def number_or_name(text):
    return int(text) if text.isdecimal() else text


def add_inference(verb):
    """The options of inference that all verbs that deconvolve share; returns their group."""
    how = verb.add_argument_group("inference")
    how.add_argument(
        "--prior",
        default="galaxy",
        metavar="NAME",
        help="galaxy (default), galaxy-conv, or the folder of a trained prior",
    )
    how.add_argument(
        "--prior-scale",
        type=positive,
        metavar="ARCSEC",
        help="per pixel of the deconvolved image (default: chosen so that the galaxy fits)",
    )
    how.add_argument(
        "--method",
        choices=("auto", "laplace", "hmc", "vi", "map"),
        default="auto",
        help="auto (default): laplace where it can be trusted, else hmc until its chains agree",
    )
    how.add_argument(
        "--draws", type=count, default=200, metavar="N", help="posterior draws (default 200)"
    )
    how.add_argument(
        "--background",
        choices=("fit", "fixed"),
        default="fit",
        help="fit a constant, or take it as subtracted (default fit)",
    )
    how.add_argument("--seed", type=int, default=1, metavar="N", help="(default 1)")
    return how


def progress(items, words):
    from tqdm import tqdm

    return tqdm(
        items, desc=words, file=sys.stderr, leave=False, disable=None if len(items) > 1 else True
    )


def exit_code(results, num_empty, failures, options):
    """What became of results (of which `num_empty` have no data) and of inputs that failed, as an
    exit code, and a line on stderr for what is not right.
    """
    from astrogen.inference.verdict import is_failed, is_poor

    num_failed = sum(is_failed(result.status) for result in results)
    if num_failed:
        complain(f"{num_failed} of {len(results)} fits failed or found no galaxy: see the status")
    if num_empty + num_failed == len(results):
        return ALL_FAILED
    num_unconverged = num_poor = 0
    if options.strict:
        num_unconverged = sum(not result.converged for result in results)
        num_poor = sum(is_poor(result.status) for result in results)
    if num_unconverged:
        complain(f"{num_unconverged} of {len(results)} posteriors did not converge")
    if num_poor:
        complain(f"{num_poor} of {len(results)} fit poorly: see the status")
    lost = failures or num_empty or num_failed or num_unconverged or num_poor
    return SOME_FAILED if lost else DONE


@contextlib.contextmanager
def short_warnings(path, options):
    """Print each different warning of the package as one line, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(
        one_line(w.message) for w in caught if w.category.__module__.startswith("astrogen.")
    ):
        complain(f"warning: {path}: {in_options(text, options)}")


def note_failure(error, path, failures, options):
    """Record what a user can mend; let errors of the package through."""
    if options.traceback or not is_users(error):
        raise error
    words = reason(error, options)
    failures.append((path, words))
    complain(words if str(path) in words else f"{path}: {words}")


def note_lost(error, path, failures, options):
    """Record that one result could not be written, whatever the reason: the others, which are
    computed as well, are not lost with it.
    """
    if options.traceback or not is_users(error):
        traceback.print_exception(error)
    words = f"could not be written: {reason(error, options)}"
    failures.append((path, words))
    complain(f"{path}: {words}")


def is_users(error):
    """Errors about input, options or the machine; anything else is a fault of the package and keeps
    its traceback.
    """
    return isinstance(error, (AstrogenError, OSError, MemoryError))


def reason(error, options):
    """An error as one line, in the words of the verb whose options these are."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if not isinstance(error, AstrogenError):
        return one_line(error) or "out of memory"  # Python's own says nothing
    words = in_options(one_line(error.reason), options)
    words = printable(words)
    return words if error.path is None else f"{printable(error.path)}: {words}"


def in_options(text, options):
    """A message of the library in the words of a verb: its options in place of arguments.

    Advice that the verb has no option for is left out, or replaced by other advice (INSTEAD).

    Parameters
    ----------
    text : str, what the library says to somebody who calls it
    options : argparse.Namespace, with the verb's `parser`

    Returns
    -------
    str
    """
    flags = {
        name: action.nargs == 0
        for action in options.parser._actions
        for name in action.option_strings
    }
    text = TWICE.sub(lambda match: f"{match[1]}=" if match[1] in INSTEAD else match[0], text)
    first, *advice = text.split("; ")
    first = SUBJECT.sub(lambda match: _subject(match, flags), first, count=1)
    advice = [way for clause in advice if (way := _possible(clause, flags))]
    text = MARK.sub(lambda match: _marked(match, flags), "; ".join([first, *advice]))
    text = BARE.sub(lambda match: _option(flags, match[1]) or match[0], text)
    text = ASIDE.sub(
        lambda match: match[0] * (set(re.findall(r"--[\w-]+", match[1])) <= set(flags)), text
    )
    text = re.sub(r"(--[\w-]+) \(\1[^()]*\)", r"\1", text)
    for pattern, phrase in PHRASES:
        if set(re.findall(r"--[\w-]+", phrase)) <= set(flags):
            text = re.sub(rf"{pattern}(?! \()", phrase, text)
    return text


def _option(flags, *names):
    """The verb's option for an argument, or None; the first name that OPTIONS has counts."""
    known = [OPTIONS[name] for name in names if name in OPTIONS]
    option = known[0] if known else f"--{names[-1].replace('_', '-')}"
    return option if option in flags else None


def _subject(match, flags):
    return f"{match[1]}: " + re.sub(
        r"\w+", lambda word: _option(flags, f"{match[1]}.{word[0]}", word[0]) or word[0], match[2]
    )


def _marked(match, flags):
    name, value = match.groups()
    option = _option(flags, name)
    if option is None:
        return f"{name.replace('_', ' ')} {value}".strip() if name in INSTEAD else match[0]
    return option if flags[option] or not value else f"{option} {value}"


def _possible(clause, flags):
    """Advice without the ways that need an argument for which the verb has no option; other advice
    where none is left.
    """
    ways = re.split(r"(,? or )", clause)
    lost = [
        [
            name
            for name in {*dict(MARK.findall(way)), *BARE.findall(way)}
            if name in INSTEAD and not _option(flags, name)
        ]
        for way in ways
    ]
    if not any(lost):
        return clause
    left = [way for way, names in zip(ways[::2], lost[::2], strict=True) if not names]
    return ", or ".join(left) or next(INSTEAD[name] for names in lost for name in names)


def one_line(message):
    return " ".join(str(message).split())


def complain(text):
    """One line on stderr."""
    print(f"astrogen: {printable(one_line(text))}", file=sys.stderr)


def say(text):
    """Lines on stdout, in which nothing but their ends moves a terminal."""
    print("\n".join(map(printable, str(text).split("\n"))))
