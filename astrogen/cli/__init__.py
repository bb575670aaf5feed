"""The command line: `astrogen VERB`.

Parses, calls a verb of `astrogen.cli`, and says in its exit code what became of it.

Exit codes: 0 done, 2 usage, 3 some objects failed (under --strict also: did not converge, or fit
poorly), 4 bad input or all failed, 130 interrupted, 143 terminated. An object whose status is
failed_fit or no_source counts as failed, although its result is written.
"""

import argparse

from astrogen import __version__
from astrogen.cli import deconvolve, demo, emulate, massmap, show, survey, train
from astrogen.cli.words import (
    ALL_FAILED,
    INTERRUPTED,
    TERMINATED,
    complain,
    is_users,
    reason,
)
from astrogen.processes import Terminated
from astrogen.quiet import keep_tensorflow_quiet

VERBS = {
    "deconvolve": deconvolve,
    "survey": survey,
    "show": show,
    "massmap": massmap,
    "emulate": emulate,
    "train": train,
    "demo": demo,
}


def main(arguments=None):
    """Run the command line and return its exit code; `arguments` defaults to those of the
    process.
    """
    keep_tensorflow_quiet()
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Terminated:
        complain("terminated")
        return TERMINATED
    except Exception as error:
        if options.traceback or not is_users(error):
            raise
        complain(reason(error, options))
        return ALL_FAILED


def _parser():
    parser = argparse.ArgumentParser(
        prog="astrogen",
        description="Inverse problems and emulation in astronomy with learned priors.",
        epilog=(
            "exit codes: 0 done, 2 usage, 3 some objects failed (status failed_fit and no_source"
            " included), 4 bad input or all failed, 130 interrupted, 143 terminated"
        ),
    )
    parser.add_argument("--version", action="version", version=f"astrogen {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.TEXT, description=module.TEXT, allow_abbrev=False)
        verb.set_defaults(run=module.run, parser=verb)
        module.add_options(verb)
    return parser
