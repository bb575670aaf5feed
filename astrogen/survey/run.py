"""A survey run: objects into chunks, chunks to workers, and the end of the run.

Progress counts objects (without --joint, each in each of its exposures).
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from astrogen import __version__
from astrogen.data.files import hold_folder
from astrogen.errors import InputError, SurveyError
from astrogen.processes import follow_parent, fresh_context, kill_children_at_interrupt
from astrogen.quiet import keep_tensorflow_quiet
from astrogen.survey.inputs import (
    as_objects,
    file_hash,
    function_hash,
    is_callable,
    list_exposures,
    match,
    read_catalogue,
)
from astrogen.survey.remote import ONE_THREAD, code_hash, infer_remotely
from astrogen.survey.store import (
    chunk_path,
    index_path,
    is_whole,
    settle_manifest,
    warn_of_damage,
    write_catalogue,
)
from astrogen.survey.work import Fit, cannot_write, infer_chunk, survives
from astrogen.types import FilePath

DASK_TIMEOUT = 30  # seconds until a scheduler that does not answer counts as gone
DIED = "the worker process died on it (out of memory, or a fault of a library)"


class Done(NamedTuple):
    """num objects with a result, num_failed without; num_incomplete of the former were not seen in
    all bands or exposures; unfinished chunks (of other shards).
    """

    num: int
    num_failed: int
    num_incomplete: int
    num_unfinished: int


def run_survey(
    catalogue: FilePath,
    images: Any,
    *,
    out: FilePath,
    fit: Fit,
    psf: Sequence[Any] = (),
    variance: Sequence[Any] = (),
    sigma: Sequence[Any] = (),
    weight: Sequence[Any] = (),
    mask: Sequence[Any] = (),
    band: Sequence[str] = (),
    chunk: int = 256,
    num_workers: int = 1,
    scheduler: str | None = None,
    shard: tuple[int, int] = (1, 1),
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
    words_fn: Callable[[str], str] = str,
) -> Done:
    """Deconvolve every object of a catalogue in every image that holds it: in each alone, or in all
    together (`fit.joint`).

    Parameters
    ----------
    catalogue : path of a table that Astropy reads, with id and ra, dec (deg) or x, y (pixels)
    images : sequence of paths of images with WCS, or of one table of them; see `list_exposures`
    out : path of a folder; see astrogen/survey/store.py for what is written
    fit : Fit, how objects are cut out and inferred
    psf, variance, sigma, weight, mask : sequences of paths, one for all images or one for each; psf
        may be an image, a PsfEx model, or module:function
    band : sequence of names, likewise; fluxes of different bands are free in a joint fit
    chunk : int, objects that are done, written and lost together; memory grows with it
    num_workers : int, local processes of one thread each
    scheduler : str or None, address of a running Dask scheduler that takes the place of local
        processes
    shard : (i, n), do chunks i, i + n, ... only; the catalogue is written by whoever finds all
        chunks finished
    resume : bool, go on with a run of the same configuration; force : even of another one
    words_fn : callable of what is said of a failure -> str as failures.ecsv says it: who offers a
        run under options of other names gives theirs

    Returns
    -------
    Done

    Raises
    ------
    SurveyError : the folder holds a run (of another configuration). ValueError, InputFileError :
        catalogue, images or options are wrong.
    """
    out = Path(out)
    exposures = list_exposures(
        images, psf=psf, variance=variance, sigma=sigma, weight=weight, mask=mask, band=band
    )
    _check_fit(fit, exposures)
    targets, lost = match(read_catalogue(catalogue), exposures)
    if not targets:
        raise InputError(
            f"run_survey: images must hold objects of the catalogue, got none of {len(lost)}; check"
            " the positions and the WCS"
        )
    objects = as_objects(targets, joint=fit.joint)
    jobs = [
        (number, objects[start : start + chunk])
        for number, start in enumerate(range(0, len(objects), chunk))
    ]
    told = _manifest(catalogue, exposures, fit, chunk)
    part = "" if shard[1] == 1 else f"{shard[0]}-of-{shard[1]}"
    try:
        with hold_folder(out, error=SurveyError, part=part):
            settle_manifest(out, told, resume=resume, force=force)
            warn_of_damage(out)
            mine = [
                job
                for job in jobs
                if job[0] % shard[1] == shard[0] - 1
                and not is_whole(chunk_path(out, job[0]), job[1])
            ]
            todo = partial(_finished, mine, out, exposures, fit, num_workers, scheduler)
            _watch(todo, mine, len(objects), progress)
            return _end(out, len(jobs), lost, words_fn)
    except OSError as error:
        if error.errno is None:
            raise
        raise cannot_write(error.filename or out, error) from error


def _watch(finished_fn, jobs, num, progress):
    """Do jobs, with a bar of the objects that are done; num : int, all objects of the run."""
    sizes = {number: len(objects) for number, objects in jobs}
    initial = num - sum(sizes.values())
    with (
        tqdm(
            total=num, initial=initial, unit=" objects", disable=not progress, smoothing=0.05
        ) as bar,
        contextlib.closing(finished_fn()) as finished,
    ):
        for number in finished:
            bar.update(sizes[number])


def _end(out, num_chunks, lost, words_fn):
    """Write the catalogue, where all chunks are there."""
    paths = [chunk_path(out, number) for number in range(num_chunks)]
    unfinished = sum(not index_path(path).is_file() for path in paths)
    if unfinished:
        return Done(0, 0, 0, unfinished)
    # Shards that end at the same time write the same bytes.
    return Done(*write_catalogue(out, num_chunks, lost, words_fn), 0)


def _check_fit(fit, exposures):
    from astrogen.galaxies.deconvolve import check_options

    check_options("run_survey", fit)
    bands = {exposure.band for exposure in exposures}
    if fit.joint and "" in bands and len(bands) > 1:
        raise InputError(
            "run_survey: band must be given for all images of a joint run or for none, got none"
            f" for {next(e.image for e in exposures if not e.band)}; name its band"
        )


def _manifest(catalogue, exposures, fit, chunk):
    """What decides the bytes of a run."""
    hash_of, hash_of_function = lru_cache(None)(file_hash), lru_cache(None)(function_hash)

    def told(value):
        path = Path(str(value).split("[")[0])
        if is_callable(str(value)):
            return [value, hash_of_function(value)]
        return [Path(str(value)).name, hash_of(path)] if path.is_file() else value

    return {
        "astrogen": __version__,
        "code": code_hash(),
        "weights": _weights_hash(fit.prior),
        "catalogue": file_hash(catalogue),
        "chunk": chunk,
        "fit": fit._asdict(),
        "exposures": [
            {kind: told(value) for kind, value in exposure._asdict().items() if value}
            for exposure in exposures
        ],
    }


def _weights_hash(prior):
    from astrogen.priors import load_prior
    from astrogen.priors.storage import weights_hash

    return weights_hash(load_prior(prior).card)


def _finished(jobs, out, exposures, fit, num_workers, scheduler):
    """The numbers of chunks as they are finished."""
    crashed = []
    submitted = (
        _by_dask(jobs, out, exposures, fit, scheduler, crashed)
        if scheduler
        else _by_processes(jobs, out, exposures, fit, num_workers, crashed)
    )
    if jobs:
        yield from submitted
    for number, objects in crashed:
        _one_by_one(number, objects, out, exposures, fit)
        yield number


def _by_processes(jobs, out, exposures, fit, num_workers, crashed):
    """The numbers of chunks as they are finished; those that were under way when a process died are
    added to `crashed`, since which one did it is found out later.
    """
    waiting = list(reversed(jobs))
    while waiting:
        under_way, broken = {}, False
        with _pool(min(num_workers, len(waiting))) as pool:
            while under_way or (waiting and not broken):
                # No more than there are processes: a death then takes only these with it.
                while waiting and len(under_way) < num_workers and not broken:
                    number, objects = waiting.pop()
                    under_way[
                        pool.submit(
                            infer_chunk, str(chunk_path(out, number)), objects, exposures, fit
                        )
                    ] = number, objects
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    job = under_way.pop(future)
                    try:
                        future.result()
                    except BrokenProcessPool:
                        crashed.append(job)
                        broken = True
                        continue
                    yield job[0]


def _by_dask(jobs, out, exposures, fit, scheduler, crashed):
    """As `_by_processes`.

    A chunk that has killed workers is done again here, beside the client, where the object that did
    it can be found.
    """
    try:
        from distributed import CancelledError, Client, KilledWorker
        from distributed import as_completed as dask_as_completed
        from distributed.comm import CommClosedError
    except ImportError as error:
        raise SurveyError(
            out, f"run_survey: scheduler needs Dask, got {error}; pip install 'astrogen[dask]'"
        ) from error
    folder, code = Path(out).resolve(), code_hash()
    try:
        client = Client(scheduler, timeout=DASK_TIMEOUT, set_as_default=False)
    except OSError as error:
        raise _scheduler_gone(out, scheduler, error) from error
    try:
        with client:
            futures = {
                client.submit(
                    infer_remotely,
                    code,
                    str(chunk_path(folder, number)),
                    objects,
                    exposures,
                    fit,
                    pure=False,
                ): (number, objects)
                for number, objects in jobs
            }
            for future in dask_as_completed(futures, loop=client.loop):
                number, objects = futures[future]
                try:
                    future.result()
                except KilledWorker:
                    crashed.append((number, objects))
                    continue
                if not index_path(chunk_path(out, number)).is_file():
                    raise SurveyError(
                        chunk_path(out, number),
                        "run_survey: workers must write to the folder of the run, got no file of a"
                        " chunk that is done; use a folder that all hosts share",
                    )
                yield number
    except (CancelledError, CommClosedError) as error:
        raise _scheduler_gone(out, scheduler, error) from error


def _scheduler_gone(out, scheduler, error):
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return SurveyError(
        out,
        f"run_survey: scheduler must be there until the end, got {told} from {scheduler}; start it"
        " and its workers and go on with resume=True: finished chunks are kept",
    )


def _one_by_one(number, objects, out, exposures, fit):
    """A chunk after a crash: again by itself, then without the objects that kill their process."""
    path = str(chunk_path(out, number))
    if _alone(infer_chunk, path, objects, exposures, fit):
        return
    deadly = _bisect(objects, lambda some: _alone(survives, some, exposures, fit))
    left = [some for some in objects if some not in deadly]
    if not _alone(
        infer_chunk, path, left, exposures, fit, [(some[0].ident, DIED) for some in deadly]
    ):
        raise SurveyError(
            path,
            "run_survey: a chunk's process must live, got a crash even without the objects that"
            " crash alone; use smaller chunks, or free memory",
        )


def _bisect(objects, survives_fn):
    """Those objects that do not survive, found by halving."""
    if survives_fn(objects):
        return []
    if len(objects) == 1:
        return list(objects)
    half = len(objects) // 2
    return _bisect(objects[:half], survives_fn) + _bisect(objects[half:], survives_fn)


def _alone(function, *arguments):
    """Run in a process of its own; whether it lived."""
    with _pool(1) as pool:
        try:
            pool.submit(function, *arguments).result()
            return True
        except BrokenProcessPool:
            return False


@contextlib.contextmanager
def _pool(num_workers):
    """Spawned processes, see `fresh_context`.

    They inherit an environment of one thread, which libraries read when they are loaded.
    """
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)
    try:
        # Killed before the pool waits for them, and where it is interrupted while it waits.
        with (
            kill_children_at_interrupt(),
            ProcessPoolExecutor(
                num_workers,
                mp_context=fresh_context("run_survey"),
                initializer=_start_worker,
            ) as pool,
            kill_children_at_interrupt(),
        ):
            yield pool
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _start_worker():
    follow_parent()
    keep_tensorflow_quiet()
