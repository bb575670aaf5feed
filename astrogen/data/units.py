"""What units mean: of an image, of a sum over its pixels, and of the columns of a catalogue.

A unit that astropy or FITS does not know is carried as text, letter for letter; nothing is ever
calculated with it.
"""

import contextlib
import math
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from astropy.units import (
    Jy,
    Quantity,
    Unit,
    UnitBase,
    UnitConversionError,
    UnrecognizedUnit,
    arcsec,
    beam,
    dex,
    dimensionless_unscaled,
    nJy,
    pix,
    rad,
)

from astrogen.data.files import number_or_path
from astrogen.errors import InputError

# What the text of a unit may say that makes the sum of its pixels no flux.
PER_BEAM = r"\bbeam"
LOGARITHMIC = r"(?<![a-z])(mags?|magnitudes?|dex|db)(?![a-z])"
PER_ANGLE = (
    r"(/|\bper\b|[-^]).*(?<![a-z])(sr|ster|steradians?|(sq|square)?\W*(arcs|arcsecs?|asec|arcmins?"
    r"|arcseconds?|arcminutes?))(?![a-z])"
)


class Brightness(NamedTuple):
    """How an image was given whose numbers are no fluxes.

    text : its unit, letter for letter
    per_flux : float, its number in a pixel of the observation that has unit flux, where it is per
        solid angle; None where it is per pixel, of whatever size
    """

    text: str
    per_flux: float | None


def read_unit(unit: Any) -> Any:
    """The unit that a header or a user names.

    Parameters
    ----------
    unit : str, astropy Unit, or None (no unit)

    Returns
    -------
    astropy Unit; an UnrecognizedUnit of exactly the given text where astropy does not know it, or
    where FITS could not say it
    """
    if unit is None or isinstance(unit, UnitBase):
        return dimensionless_unscaled if unit is None else unit
    text = str(unit)
    with warnings.catch_warnings(), contextlib.suppress(ValueError, TypeError):
        warnings.simplefilter("ignore")  # about style
        known = Unit(unit, parse_strict="silent")
        # Not mag(AB), nor (km, s), which are no units to calculate with.
        if isinstance(known, UnitBase) and (
            _fits_knows(known) or _powers(known).keys() & {pix, rad}
        ):
            return known
    return UnrecognizedUnit(text)


def _fits_knows(unit):
    try:
        return unit.to_string("fits") is not None
    except ValueError:
        return False


def _powers(unit):
    """Power of each irreducible unit."""
    parts = unit.decompose()
    return dict(zip(parts.bases, parts.powers, strict=True))


def is_known(unit: Any) -> bool:
    """Whether something can be calculated with a unit."""
    return not isinstance(unit, UnrecognizedUnit)


def flux_unit(caller: str, unit: Any) -> tuple[Any, float | None]:
    """The unit of the sum over an image's pixels.

    Parameters
    ----------
    caller : str, for the error
    unit : astropy Unit of the pixels' numbers

    Returns
    -------
    (astropy Unit, float or None) : the second is what a number must be multiplied by for each
    arcsec^2 of its pixel, None where the unit is not per solid angle. Of surface brightnesses in
    flux densities the first is nJy, of others the unit without the solid angle, times the power of
    ten that keeps the numbers' size.

    Raises
    ------
    ValueError : the sum has no meaning (magnitudes, per beam), or the unit is per solid angle and
        astropy does not know it.
    """
    _refuse_sums_without_meaning(caller, unit)
    if not is_known(unit):
        return unit, None
    powers = _powers(unit)
    if powers.get(rad, 0) == -2:
        per_angle = math.prod(
            (
                base**power
                for base, power in zip(unit.bases, unit.powers, strict=True)
                if set(_powers(base)) == {rad}
            ),
            start=dimensionless_unscaled,
        )
        flux = unit / per_angle * _pixels(powers)
        if flux.is_equivalent(Jy):
            flux = nJy
        else:
            size = round(math.log10((arcsec**-2).to(per_angle) ** -1))
            flux = flux if size == 0 else Unit(10.0**size) * flux
        return flux, float((unit * _pixels(powers) * arcsec**2).to(flux))
    return (unit * _pixels(powers) if powers.get(pix, 0) < 0 else unit), None


def _pixels(powers):
    return pix ** max(0, -powers.get(pix, 0))


def _refuse_sums_without_meaning(caller, unit):
    text, powers = str(unit), _powers(unit) if is_known(unit) else {}
    if dex in powers or re.search(LOGARITHMIC, text, re.IGNORECASE):
        reason = "magnitudes do not add up; convert the image to fluxes"
    elif beam in powers or re.search(PER_BEAM, text, re.IGNORECASE):
        reason = (
            "the area of a beam is not known here; multiply by that of a pixel over that of the"
            " beam, and give the flux per pixel"
        )
    elif not is_known(unit) and re.search(PER_ANGLE, text, re.IGNORECASE):
        reason = (
            "astropy does not know this unit per solid angle; write it as astropy does (MJy/sr)"
        )
    else:
        return
    raise InputError(
        f"{caller}: unit must be one whose sum over pixels is a flux, got {text!r}; {reason}"
    )


def level_or_path(text: str) -> Any:
    """What a user gives as a noise level: a number, or one with its unit ("0.5 nJy"), unless a file
    of that name exists.
    """
    level = number_or_path(text)
    match = re.fullmatch(r"([-+.\deE]+)\s+(\S.*)", text)
    if isinstance(level, str) and match and not Path(text).exists():
        with contextlib.suppress(ValueError):
            return Quantity(float(match[1]), read_unit(match[2]))
    return level


def unit_text(unit: Any, power: int = 1) -> str:
    """A power of a unit (text or Unit) as a FITS header says it."""
    unit = unit if isinstance(unit, UnitBase) else read_unit(unit) if power != 1 else unit
    if isinstance(unit, str):
        return unit
    if not is_known(unit):
        return str(unit) if power == 1 else f"({unit})**{power}"
    unit = unit**power
    return unit.to_string("fits") if _fits_knows(unit) else unit.to_string()


def convert(
    caller: str, name: str, numbers: npt.ArrayLike, own: Any, wanted: Any, power: int = 1
) -> Any:
    """Numbers [any shape] of unit `own` in `wanted ** power`.

    Raises
    ------
    ValueError : one cannot be converted to the other.
    """
    try:
        if is_known(own) and is_known(wanted):
            return np.asarray(own.to(wanted**power, numbers))
        if power == 1 and own == wanted:
            return numbers
    except UnitConversionError:
        pass
    raise InputError(
        f"{caller}: {name} must be convertible to the image's {unit_text(wanted, power)}, got"
        f" {str(own) or 'no unit'}; give both in one unit"
    )
