"""What one worker does: a chunk of objects into one file.

Nothing here depends on who does it, or when.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from astrogen.data.detection import mask_neighbours
from astrogen.errors import SurveyError, is_machines
from astrogen.survey.inputs import cut_out
from astrogen.survey.store import INCOMPLETE, Seen, pack, write_chunk
from astrogen.types import FilePath

# objects inferred at once; always so many, so that nothing depends on how many a chunk holds
BATCH = 32
# seconds before a chunk that met a fault of the machine is done again
PAUSES = (1, 10)


class Fit(NamedTuple):
    """How objects are cut out and inferred. joint: all exposures of an object together; size:
    pixels of a stamp; mask_neighbours: as the function of that name; num_kept: imagined solutions
    kept of each; the others as of `astrogen.deconvolve`."""

    joint: bool = False
    size: int = 48
    prior: str = "galaxy"
    prior_scale: float | None = None
    method: str = "auto"
    num_draws: int = 200
    num_kept: int = 3
    num_chains: int = 4
    background: str = "fit"
    bad_bits: tuple | None = None
    mask_neighbours: bool = False
    seed: int = 1


class _Cut(NamedTuple):
    """One object and its stamps, one for each exposure that it can be seen in."""

    seen: Seen
    stamps: tuple


def infer_chunk(
    path: FilePath,
    objects: Sequence[Any],
    exposures: Sequence[Any],
    fit: Fit,
    known_failures: Sequence[Any] = (),
) -> Any:
    """Infer objects, tuples of Targets, and write their chunk; returns its path.

    One bad input never touches the others. After a fault of the machine all of it is done again, so
    that the bytes are those of a run that met none; what cannot be done even then is on the list,
    and done again by a resumed run.

    Raises
    ------
    SurveyError : the machine lets nothing be done, or the chunk cannot be written.
    """
    packed, failures, faults = _patiently(
        path, partial(_packed, objects, exposures, fit, list(known_failures))
    )
    try:
        write_chunk(path, packed, failures, unsettled=bool(faults))
    except OSError as error:
        raise cannot_write(error.filename or path, error) from error
    return path


def cannot_write(path: FilePath, error: OSError) -> SurveyError:
    """The SurveyError of a file of a run that an OSError keeps from being written."""
    return SurveyError(
        path,
        "run_survey: machine must let files be written and processes be started, got"
        f" {error.strerror or error}; mend that and go on with resume=True: finished chunks are"
        " kept",
    )


def _patiently(path, infer_fn):
    """What `infer_fn` gives, (packed, failures), and the faults of the machine that it met in the
    last try; in the tries before, the first fault ends it.
    """
    for pause in PAUSES:
        try:
            return *infer_fn(_raise_machines), []
        except Exception as error:
            if not is_machines(error):
                raise
            time.sleep(pause)
    faults = []
    try:
        packed, failures = infer_fn(partial(_note_machines, faults))
    except Exception as error:
        if not is_machines(error):
            raise
        raise _machine_failed(path, _reason(error)) from error
    if faults and not packed:
        raise _machine_failed(path, faults[0])
    return packed, failures, faults


def _machine_failed(path, words):
    return SurveyError(
        path,
        f"run_survey: machine must have memory, disk and libraries for a chunk, got {words} in each"
        f" of {len(PAUSES) + 1} tries; mend that, or use smaller chunks in another folder, and go"
        " on with resume=True: finished chunks are kept",
    )


def _raise_machines(error):
    """The reason why an object fails; a fault of the machine is raised."""
    if is_machines(error):
        raise error
    return _reason(error)


def _note_machines(faults, error):
    """The reason why an object fails; one of the machine is put on the list."""
    if not is_machines(error):
        return _reason(error)
    faults.append(_reason(error))
    return f"{_reason(error)} (a fault of the machine: a resumed run tries again)"


def _packed(objects, exposures, fit, known_failures, reason_fn):
    """Results as they are kept, in the order of the objects, and failures."""
    failures = list(known_failures)
    bands = list(dict.fromkeys(exposure.band for exposure in exposures)) if fit.joint else []
    keep_fn = partial(pack, bands=bands, num_kept=fit.num_kept)
    cuts = _cut(objects, exposures, fit, failures, reason_fn)
    packed = dict(_infer(cuts, fit, failures, keep_fn, reason_fn))
    return [packed[index] for index in sorted(packed)], failures


def survives(objects: Sequence[Any], exposures: Sequence[Any], fit: Fit) -> Any:
    """Infer objects and forget them: a process that dies of one tells so by dying."""
    cuts = _cut(objects, exposures, fit, [], _reason)
    for _ in _infer(cuts, fit, [], lambda result, seen: None, _reason):
        pass


def _cut(objects, exposures, fit, failures, reason_fn):
    """The _Cut of each object that can be seen at all.

    Exposure after exposure, so that each is read once for a chunk.
    """
    found = {}
    for target in sorted(
        (target for some in objects for target in some), key=lambda target: target.exposure
    ):
        # draws come from the name
        name = (
            target.ident
            if fit.joint or not target.before
            else f"{target.ident} ({target.before + 1})"
        )
        try:
            stamp = cut_out(
                target, exposures[target.exposure], size=fit.size, name=name, bad_bits=fit.bad_bits
            )
            found[target] = (
                mask_neighbours(stamp) if fit.mask_neighbours and stamp.status == "ok" else stamp
            )
            if found[target].status != "ok":
                found[target] = f"{found[target].status}: every pixel is masked"
        except Exception as error:  # whatever a file or a user's function does, the others go on
            found[target] = reason_fn(error)
    cuts = []
    for some in objects:
        lost = [target for target in some if isinstance(found[target], str)]
        if len(lost) < len(some):
            cuts.append(
                _as_cut(
                    [target for target in some if target not in lost], lost, found, exposures, fit
                )
            )
        else:
            failures.append(
                (some[0].ident, "; ".join(dict.fromkeys(found[target] for target in lost)))
            )
    return cuts


def _as_cut(good, lost, found, exposures, fit):
    seen = [exposures[target.exposure] for target in good]
    missing = [
        f"{INCOMPLETE}: {os.path.basename(exposures[target.exposure].image)} was left out:"
        f" {found[target]}"
        for target in lost
    ]
    if fit.joint and (
        bands := [
            band
            for band in dict.fromkeys(exposure.band for exposure in exposures)
            if band not in {exposure.band for exposure in seen}
        ]
    ):
        missing.append(f"{INCOMPLETE}: not seen in {', '.join(bands)}")
    names = tuple(os.path.basename(exposure.image) for exposure in seen)
    return _Cut(
        Seen(good[0].ident, names, tuple(exposure.band for exposure in seen), tuple(missing)),
        tuple(found[target] for target in good),
    )


def _infer(cuts, fit, failures, keep_fn, reason_fn):
    """(index, what `keep_fn` makes of result and Seen) for the cuts as they come; what fails alone
    is put on the list.
    """
    yield from _halving(
        partial(_fit_jointly if fit.joint else _fit_each, fit),
        keep_fn,
        list(enumerate(cuts)),
        failures,
        reason_fn,
    )


def _halving(fit_fn, keep_fn, cuts, failures, reason_fn):
    """Those of (index, cut) that can be done; after an error what is not done yet by halves, down
    to the one that is to blame.
    """
    left = dict(cuts)
    try:
        for place, result in fit_fn([cut for _, cut in cuts]):
            index, cut = cuts[place]
            kept = keep_fn(result, cut.seen)
            del left[index]
            yield index, kept
    except Exception as error:
        reason = reason_fn(error)
        if len(left) <= 1:
            failures += [(cut.seen.ident, reason) for cut in left.values()]
            return
        left = list(left.items())
        for some in (left[: len(left) // 2], left[len(left) // 2 :]):
            yield from _halving(fit_fn, keep_fn, some, failures, reason_fn)


def _fit_each(fit, cuts):
    """(place, Result) of each cut, batch by batch."""
    from astrogen.galaxies.deconvolve import deconvolve_each
    from astrogen.galaxies.plans import How
    from astrogen.priors import load_prior

    return deconvolve_each(
        [cut.stamps[0] for cut in cuts],
        load_prior(fit.prior),
        How(*(getattr(fit, name) for name in How._fields)),
        batch_size=BATCH,
    )


def _fit_jointly(fit, cuts):
    """(place, Result) of each cut, one after the other."""
    from astrogen.galaxies.deblend import deconvolve_jointly
    from astrogen.priors import load_prior

    prior = load_prior(fit.prior)
    for index, cut in enumerate(cuts):
        yield (
            index,
            deconvolve_jointly(
                cut.stamps,
                bands=cut.seen.bands,
                prior=prior,
                method=fit.method,
                num_draws=fit.num_draws,
                seed=fit.seed,
                prior_scale=fit.prior_scale,
                background=fit.background,
            ),
        )


def _reason(error):
    return " ".join(f"{type(error).__name__}: {error}".split())
