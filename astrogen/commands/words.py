"""What the verbs share: exit codes, types of options, progress, and errors as one line."""

import argparse
import contextlib
import math
import sys
import traceback
import warnings

from astrogen.errors import AstrogenError, printable

DONE, SOME_FAILED, ALL_FAILED, INTERRUPTED, TERMINATED = 0, 3, 4, 130, 143


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
        choices=("map", "laplace", "hmc", "auto"),
        default="laplace",
        help="(default laplace)",
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
    from astrogen.verdict import is_failed, is_poor

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
def short_warnings(path):
    """Print each different warning of the package as one line, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(
        one_line(w.message) for w in caught if w.category.__module__.startswith("astrogen.")
    ):
        complain(f"warning: {path}: {text}")


def note_failure(error, path, failures, options):
    """Record what a user can mend; let errors of the package through."""
    if options.traceback or not is_users(error):
        raise error
    words = reason(error)
    failures.append((path, words))
    complain(words if str(path) in words else f"{path}: {words}")


def note_lost(error, path, failures, options):
    """Record that one result could not be written, whatever the reason: the others, which are
    computed as well, are not lost with it.
    """
    if options.traceback or not is_users(error):
        traceback.print_exception(error)
    words = f"could not be written: {reason(error)}"
    failures.append((path, words))
    complain(f"{path}: {words}")


def is_users(error):
    """Errors about input, options or the disk; anything else is a fault of the package and keeps
    its traceback.
    """
    return isinstance(error, (AstrogenError, OSError))


def reason(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return one_line(error)


def one_line(message):
    return " ".join(str(message).split())


def complain(text):
    """One line on stderr."""
    print(f"astrogen: {printable(one_line(text))}", file=sys.stderr)


def say(text):
    """Lines on stdout, in which nothing but their ends moves a terminal."""
    print("\n".join(map(printable, str(text).split("\n"))))
