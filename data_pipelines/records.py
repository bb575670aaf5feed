"""Sharded TFRecords with a manifest: written in parallel, resumable.

astrogen/training/records.py describes the format and reads them back.

The same recipe gives the same bytes whatever the number of workers; a shard and the manifest are
each replaced whole or not at all.
"""

import json
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen.data.files import hold_folder, whole_file, write_whole
from astrogen.errors import RecordsError, is_machines
from astrogen.training.records import (
    FORMAT,
    MANIFEST,
    VERSION,
    digest,
    load_manifest,
    sha256_of,
    shard_starts,
)
from astrogen.types import FilePath
from data_pipelines.workers import map_ranges

CHUNK = 50  # entries that a worker draws at a time, unless told otherwise


def _feature(value, dtype):
    if dtype == "string":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
    if np.ndim(value):
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(
                value=[np.asarray(value, np.dtype(dtype).newbyteorder("<")).tobytes()]
            )
        )
    if dtype == "int64":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))


def _serialize(record, fields):
    features = {name: _feature(record[name], field["dtype"]) for name, field in fields.items()}
    # Without `deterministic` the order of a protobuf map, and so the sha256, changes from run to
    # run.
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def _write_shard(path, drawn, fields, progress):
    """Write what is drawn, (records, skipped) by (records, skipped); the shard's entry in the
    manifest.
    """
    num, skipped = 0, []
    try:
        with whole_file(path) as stream:
            with tf.io.TFRecordWriter(stream.name) as writer:
                for records, left_out in drawn:
                    for record in records:
                        writer.write(_serialize(record, fields))
                    num, skipped = num + len(records), skipped + left_out
                    progress.update(len(records) + len(left_out))
            sha256 = sha256_of(stream.name)
    except (tf.errors.OpError, OSError) as error:
        if isinstance(error, OSError) and not is_machines(error):
            raise
        reason = getattr(error, "message", None) or getattr(error, "strerror", None) or error
        raise RecordsError(
            path,
            f"write_records: folder must have room and let files be written, got {reason}; mend"
            " that and resume: finished shards are kept",
        ) from error
    return {"file": path.name, "num": num, "skipped": skipped, "sha256": sha256}


def _write_manifest(directory, header, shards):
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **header,
        "shards": sorted(shards, key=lambda shard: shard["start"]),
    }
    written = json.dumps({**manifest, "sha256": digest(manifest)}, indent=1) + "\n"
    write_whole(directory / MANIFEST, written)
    return manifest


def _finished(directory, header):
    """The shards of an interrupted run of the same recipe that are on disk, whole."""
    manifest = load_manifest(directory)
    found = {
        name: value
        for name, value in manifest.items()
        if name not in ("format", "version", "shards", "sha256")
    }
    header = json.loads(json.dumps(header))
    for name in sorted(set(found) | set(header)):
        if found.get(name) != header.get(name):
            raise RecordsError(
                directory / MANIFEST,
                f"write_records: {name} must be {found.get(name)!r} to resume this run, got"
                f" {header.get(name)!r}; resume with the options it was started with, or choose"
                " another directory",
            )
    return [
        shard
        for shard in manifest["shards"]
        if (directory / shard["file"]).is_file()
        and sha256_of(directory / shard["file"]) == shard["sha256"]
    ]


def write_records(
    directory: FilePath,
    *,
    header: dict[str, Any],
    draw_fn: Callable[[int, int], Any],
    num_workers: int,
    resume: bool = False,
    show_progress: bool = True,
    chunk: int = CHUNK,
    unit: str = "galaxies",
) -> dict[str, Any]:
    """Draw `header["num"]` entries over processes and write them as shards with a manifest.

    Parameters
    ----------
    directory : path, made if missing
    header : dict, what the manifest says of the recipe; `kind`, `num`, `shard_size` and `fields`
        (name -> dtype, shape, unit) are required
    draw_fn : picklable callable (start, stop) -> (list of records, list of entries left out), both
        of dicts
    num_workers : int, processes
    resume : bool, keep the shards of an interrupted run of the same header whose sha256 is right
    show_progress : bool
    chunk : int, entries that a worker draws at a time
    unit : str, what the progress bar counts

    Returns
    -------
    dict : the manifest

    Raises
    ------
    RecordsError : the directory holds records already, an interrupted run had another header, or a
        worker died.
    """
    directory = Path(directory)
    with hold_folder(directory, error=RecordsError):
        return _write_held(
            directory, header, draw_fn, num_workers, resume, show_progress, chunk, unit
        )


def _write_held(directory, header, draw_fn, num_workers, resume, show_progress, chunk, unit):
    if (directory / MANIFEST).exists() and not resume:
        raise RecordsError(
            directory / MANIFEST,
            "write_records: directory must hold no records, got a manifest; resume that run, or"
            " choose another directory",
        )
    shards = _finished(directory, header) if resume and (directory / MANIFEST).exists() else []
    kept = {shard["start"] for shard in shards}
    todo = [
        (start, min(start + header["shard_size"], header["num"]))
        for start in shard_starts(header)
        if start not in kept
    ]
    manifest = _write_manifest(directory, header, shards)
    if not todo:
        return manifest
    with tqdm(
        total=header["num"],
        initial=header["num"] - sum(stop - start for start, stop in todo),
        unit=f" {unit}",
        disable=not show_progress,
    ) as progress:
        try:
            for shard in _draw_shards(
                directory, todo, header, draw_fn, num_workers, chunk, progress
            ):
                shards.append(shard)
                manifest = _write_manifest(directory, header, shards)
        except BrokenProcessPool as error:
            raise RecordsError(
                directory,
                f"write_records: a worker process died ({error}); free memory or use fewer workers,"
                " then resume",
            ) from error
    return manifest


def _draw_shards(directory, todo, header, draw_fn, num_workers, chunk, progress):
    chunks = [
        [(first, min(first + chunk, stop)) for first in range(start, stop, chunk)]
        for start, stop in todo
    ]
    with closing(map_ranges(draw_fn, sum(chunks, []), num_workers=num_workers)) as drawn:
        for (start, stop), ranges in zip(todo, chunks):
            path = directory / f"{header['kind']}-{start // header['shard_size']:05d}.tfrecord"
            yield {
                "start": start,
                "stop": stop,
                **_write_shard(path, islice(drawn, len(ranges)), header["fields"], progress),
            }
