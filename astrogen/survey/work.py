"""What one worker does: a chunk of targets into one file. Nothing here depends on who does it, or when."""
import os
from functools import lru_cache
from typing import NamedTuple

from astrogen.survey.inputs import cut_out
from astrogen.survey.store import pack, write_chunk

BATCH = 32               # objects inferred at once; always so many, so that nothing depends on how many a chunk holds


class Fit(NamedTuple):
    """How objects are cut out and inferred. size: pixels of a stamp; num_kept: imagined solutions kept of each; the others as of `astrogen.deconvolve`."""

    size: int = 48
    prior: str = "galaxy"
    prior_scale: float | None = None
    method: str = "laplace"
    num_draws: int = 200
    num_kept: int = 3
    num_chains: int = 4
    background: str = "fit"
    bad_bits: tuple | None = None
    seed: int = 1


def infer_chunk(path, targets, exposures, fit, known_failures=()):
    """Infer targets and write their chunk; returns its path. One bad input never touches the others."""
    packed, failures = [], list(known_failures)
    for start in range(0, len(targets), BATCH):
        some = targets[start:start + BATCH]
        for target, result in _infer(some, exposures, fit, failures):
            exposure = exposures[target.exposure]
            packed.append(pack(result, exposure=os.path.basename(exposure.image), band=exposure.band, num_kept=fit.num_kept))
    write_chunk(path, packed, failures)
    return path


def survives(targets, exposures, fit):
    """Infer targets and forget them: a process that dies of one tells so by dying."""
    for start in range(0, len(targets), BATCH):
        list(_infer(targets[start:start + BATCH], exposures, fit, []))


def _infer(targets, exposures, fit, failures):
    """(target, Result) of a batch; what fails alone is put on the list."""
    good = []
    for target in targets:
        try:
            good.append((target, cut_out(target, exposures[target.exposure], size=fit.size, bad_bits=fit.bad_bits)))
        except Exception as error:                       # whatever a file or a user's function does, the others go on
            failures.append((target.ident, _reason(error)))
    try:
        return list(zip([target for target, _ in good], _deconvolve([stamp for _, stamp in good], fit), strict=True))
    except Exception:
        return list(_each_alone(good, fit, failures))


def _each_alone(good, fit, failures):
    for target, stamp in good:
        try:
            yield target, _deconvolve([stamp], fit)[0]
        except Exception as error:
            failures.append((target.ident, _reason(error)))


def _deconvolve(stamps, fit):
    from astrogen.deconvolution import deconvolve
    return deconvolve(stamps, prior=_prior(fit.prior), method=fit.method, num_draws=fit.num_draws, seed=fit.seed, pixel_scale=fit.prior_scale,
                      background=fit.background, num_chains=fit.num_chains, batch_size=BATCH)


@lru_cache(maxsize=1)
def _prior(name):
    from astrogen.priors import load_prior
    return load_prior(name)


def _reason(error):
    return " ".join(f"{type(error).__name__}: {error}".split())
