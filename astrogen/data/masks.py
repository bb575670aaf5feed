"""Mask planes of surveys: which of their flags make a pixel bad."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from astrogen.errors import InputError

LSST_BAD = ("BAD", "SAT", "CR", "EDGE", "SUSPECT", "NO_DATA", "UNMASKEDNAN")
# DECam Community Pipeline, bits until version 3.4 (legacypipe, bits.py).
DECAM_BITS = {
    "BAD": 1,
    "SATURATED": 2,
    "INTERPOLATED": 4,
    "CR": 16,
    "BLEED": 64,
    "TRANSIENT": 128,
    "EDGE": 256,
    "EDGE2": 512,
}
# From version 3.5 on the planes hold one code per pixel, no bits: 5 is a cosmic ray, not 1 + 4
# (legacypipe, image.py).
DECAM_CODES = {
    "BAD": 1,
    "NO_DATA": 2,
    "SATURATED": 3,
    "BLEED": 4,
    "CR": 5,
    "LOW_WEIGHT": 6,
    "TRANSIENT": 7,
    "STREAK": 8,
}
DECAM_CODES_SINCE = (3, 5)
DECAM_GOOD = ("STREAK",)  # as in the Legacy Surveys: the streak finder flags too many good pixels


class Flags(NamedTuple):
    """What the values of a mask plane mean: {name: value}, the names that are good by default, and
    whether values are codes, one for a pixel, rather than bits.
    """

    meanings: Mapping[str, int]
    good: Collection[str]
    are_codes: bool = False


def flag_bad(flags: np.ndarray, source: Any, bad_bits: Sequence[int | str] | None) -> np.ndarray:
    """Bad pixels of a mask plane.

    Parameters
    ----------
    flags : array [h, w], integers, bool, or floats (NaN and fractions are bad)
    source : ImagePlane that they come from; its header says which survey's flags they are
    bad_bits : sequence of names and values, or None for the survey's default (`read_observation`
        documents both)

    Returns
    -------
    bool [h, w], True = bad

    Raises
    ------
    ValueError : a name that the survey does not know, a value that is no positive integer.
    """
    if flags.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = np.nan_to_num(flags, nan=1, posinf=1, neginf=1).astype(np.int64)
        flags = np.where(whole == flags, whole, 1)
    meanings, good, are_codes = _mask_meanings(source)
    if bad_bits is None and not meanings:
        return flags != 0
    names = [name for name in meanings if name not in good] if bad_bits is None else bad_bits
    values = [
        _flag_value(name, meanings)
        for name in ((names,) if isinstance(names, (str, int)) else names)
    ]
    if are_codes:
        return np.isin(flags, values)
    return (
        flags.astype(np.int64)
        & np.int64(np.bitwise_or.reduce(np.array(values, np.int64), initial=0))
    ) != 0


def _mask_meanings(source):
    found = (flags_of(source) for flags_of in SURVEYS)
    return next((flags for flags in found if flags), Flags({}, ()))


def _rubin_flags(source):
    """Rubin and HSC pipelines write the number of each bit into the mask's header (MP_SAT = 1 and
    so on).
    """
    bits = {
        str(key)[3:]: 1 << number
        for key, number in source.header.items()
        if str(key).startswith("MP_") and isinstance(number, int) and 0 <= number < 62
    }
    return Flags(bits, set(bits) - set(LSST_BAD)) if bits else None


def _decam_flags(source):
    version = re.search(r"(\d+)\.(\d+)", str(source.keyword("PLVER", "")))
    if str(source.keyword("INSTRUME", "")).strip().lower() != "decam" or not version:
        return None
    codes = (int(version[1]), int(version[2])) >= DECAM_CODES_SINCE
    return Flags(DECAM_CODES if codes else DECAM_BITS, DECAM_GOOD, codes)


# Of a survey: a function of a mask plane that gives its Flags, or None for another survey's plane.
SURVEYS = (_rubin_flags, _decam_flags)


def _flag_value(name, meanings):
    if isinstance(name, (int, np.integer)) and 0 < name < 1 << 62:
        return int(name)
    if str(name).upper() in meanings:
        return meanings[str(name).upper()]
    raise InputError(
        f"read_observation: bad_bits must be values (1, 2, 4, ...) or names of {sorted(meanings)},"
        f" got {name!r}; see the survey's description of its masks"
    )
