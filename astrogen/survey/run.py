"""A survey run: targets into chunks, chunks to workers, and the end of the run. Progress counts objects."""
import hashlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from astrogen import __version__
from astrogen.survey.inputs import file_hash, is_callable, list_exposures, match, read_catalogue
from astrogen.survey.store import SurveyError, chunk_path, is_whole, settle_manifest, write_catalogue
from astrogen.survey.work import infer_chunk, survives

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
DIED = "the worker process died on it (out of memory, or a fault of a library)"


class Done(NamedTuple):
    """num objects with a result, num_failed without; unfinished chunks (of other shards)."""

    num: int
    num_failed: int
    num_unfinished: int


def run_survey(catalogue, images, *, out, fit, psf=(), variance=(), sigma=(), weight=(), mask=(), chunk=256, num_workers=1, scheduler=None, shard=(1, 1), resume=False,
               force=False, progress=False):
    """Deconvolve every object of a catalogue in every image that holds it.

    Parameters
    ----------
    catalogue : path of a table that Astropy reads, with id and ra, dec (deg) or x, y (pixels)
    images : sequence of paths of images with WCS, or of one table of them; see `list_exposures`
    out : path of a folder; see astrogen/survey/store.py for what is written
    fit : Fit, how objects are cut out and inferred
    psf, variance, sigma, weight, mask : sequences of paths, one for all images or one for each; psf may be an image, a PsfEx model, or module:function
    chunk : int, objects that are done, written and lost together; memory grows with it
    num_workers : int, local processes of one thread each
    scheduler : str or None, address of a running Dask scheduler that takes the place of local processes
    shard : (i, n), do chunks i, i + n, ... only; the catalogue is written by whoever finds all chunks finished
    resume : bool, go on with a run of the same configuration; force : even of another one

    Returns
    -------
    Done

    Raises
    ------
    SurveyError : the folder holds a run (of another configuration). ValueError, InputFileError : catalogue, images or options are wrong.
    """
    out = Path(out)
    exposures = list_exposures(images, psf=psf, variance=variance, sigma=sigma, weight=weight, mask=mask)
    targets, lost = match(read_catalogue(catalogue), exposures)
    if not targets:
        raise ValueError(f"run_survey: images must hold objects of the catalogue, got none of {len(lost)}; check the positions and the WCS")
    jobs = [(number, targets[start:start + chunk]) for number, start in enumerate(range(0, len(targets), chunk))]
    settle_manifest(out, _manifest(catalogue, exposures, fit, chunk), resume=resume, force=force)
    mine = [job for job in jobs if job[0] % shard[1] == shard[0] - 1 and not is_whole(chunk_path(out, job[0]))]
    with tqdm(total=len(targets), initial=len(targets) - sum(len(some) for _, some in mine), unit=" objects", disable=not progress, smoothing=0.05) as bar:
        for number in _finished(mine, out, exposures, fit, num_workers, scheduler):
            bar.update(len(jobs[number][1]))
    unfinished = sum(not chunk_path(out, number).is_file() for number, _ in jobs)
    return Done(0, 0, unfinished) if unfinished else Done(*write_catalogue(out, len(jobs), lost), 0)


def _manifest(catalogue, exposures, fit, chunk):
    """What decides the bytes of a run."""
    paths = sorted({str(path).split("[")[0] for exposure in exposures for path in exposure if isinstance(path, str) and Path(str(path).split("[")[0]).is_file()})
    functions = sorted({exposure.psf for exposure in exposures if is_callable(exposure.psf)})
    return {"astrogen": __version__, "code": code_hash(), "weights": _weights_hash(fit.prior), "catalogue": file_hash(catalogue), "chunk": chunk, "fit": fit._asdict(),
            "images": {Path(path).name: file_hash(path) for path in paths}, "psf_functions": functions}


def code_hash():
    """The sha256 over the package's source files."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _weights_hash(prior):
    from astrogen.priors import load_prior
    from astrogen.priors.storage import weights_hash
    return weights_hash(load_prior(prior).card)


def _finished(jobs, out, exposures, fit, num_workers, scheduler):
    """The numbers of chunks as they are finished."""
    if not jobs:
        return
    if scheduler:
        yield from _by_dask(jobs, out, exposures, fit, scheduler)
        return
    crashed = []
    with _pool(min(num_workers, len(jobs))) as pool:
        futures = {pool.submit(infer_chunk, str(chunk_path(out, number)), targets, exposures, fit): (number, targets) for number, targets in jobs}
        for future in as_completed(futures):
            try:
                future.result()
                yield futures[future][0]
            except BrokenProcessPool:                # all that were under way or waiting: which one did it is found out below
                crashed.append(futures[future])
    for number, targets in crashed:
        _one_by_one(number, targets, out, exposures, fit)
        yield number


def _one_by_one(number, targets, out, exposures, fit):
    """A chunk after a crash: again by itself, then without the objects that kill their process."""
    path = str(chunk_path(out, number))
    if _alone(infer_chunk, path, targets, exposures, fit):
        return
    deadly = _bisect(targets, lambda some: _alone(survives, some, exposures, fit))
    left = [target for target in targets if target not in deadly]
    if not _alone(infer_chunk, path, left, exposures, fit, [(target.ident, DIED) for target in deadly]):
        raise SurveyError(path, "run_survey: a chunk's process must live, got a crash even without the objects that crash alone; use smaller chunks, or free memory")


def _bisect(targets, survives_fn):
    """Those targets that do not survive, found by halving."""
    if survives_fn(targets):
        return []
    if len(targets) == 1:
        return list(targets)
    half = len(targets) // 2
    return _bisect(targets[:half], survives_fn) + _bisect(targets[half:], survives_fn)


def _alone(function, *arguments):
    """Run in a process of its own; whether it lived."""
    with _pool(1) as pool:
        try:
            pool.submit(function, *arguments).result()
            return True
        except BrokenProcessPool:
            return False


def _pool(num_workers):
    # Spawned, never forked: TensorFlow does not survive a fork.
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker():
    # One thread each, before numpy is imported: workers never fight for cores, and sums do not depend on how many cores there are.
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _by_dask(jobs, out, exposures, fit, scheduler):
    try:
        from distributed import Client
        from distributed import as_completed as dask_as_completed
    except ImportError as error:
        raise SurveyError(out, f"run_survey: scheduler needs Dask, got {error}; pip install 'astrogen[dask]'") from error
    with Client(scheduler, timeout=30) as client:
        futures = {client.submit(infer_chunk, str(chunk_path(Path(out).resolve(), number)), targets, exposures, fit, pure=False): number for number, targets in jobs}
        for future in dask_as_completed(futures):
            future.result()
            yield futures[future]
