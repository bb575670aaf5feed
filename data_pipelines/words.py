"""Words that several commands take: whole numbers with their limits, and the options of everything
that writes records.
"""

import argparse
import os
from pathlib import Path


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def seed(text: str) -> int:
    """A whole number that is not negative."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def odd(text: str) -> int:
    """An odd whole number of at least 3."""
    number = int(text)
    if number < 3 or number % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be odd and at least 3, got {number}")
    return number


# argparse names the type in its messages: "invalid whole number value: 'ten'".
positive.__name__ = seed.__name__ = odd.__name__ = "whole number"


def record_options(*, shard_size: int) -> argparse.ArgumentParser:
    """The options of every verb that writes records, as a parent parser."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory to write, made if missing"
    )
    shared.add_argument(
        "--workers",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: one per core, %(default)s)",
    )
    shared.add_argument(
        "--shard-size",
        type=positive,
        default=shard_size,
        metavar="N",
        help="entries per file (default: %(default)s)",
    )
    shared.add_argument(
        "--resume",
        action="store_true",
        help="keep the finished shards of an interrupted run in DIR, after verifying their sha256",
    )
    return shared
