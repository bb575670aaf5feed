"""Records as training reads them: sharded TFRecords with a manifest, checked before anything is
used.

A directory holds `<kind>-00000.tfrecord`, ... and `manifest.json`: the recipe (kind, version, seed,
software), pixel_scale, the fields with dtype, shape and unit, for each shard its range of indices,
its number of records, the entries that had to be left out, and its sha256, and its own sha256.
`python -m data_pipelines` writes them: galaxies (simulated or real) and convergence maps.

Images travel as little-endian bytes; every twentieth index belongs to the validation split,
whatever the shards.
"""

import contextlib
import hashlib
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from astrogen.data.reading import read_json
from astrogen.errors import InputError, InputFileError, RecordsError

FORMAT, VERSION = "astrogen records", 1
MANIFEST = "manifest.json"
VALIDATION_EVERY = 20  # 5 %
SHUFFLE_BUFFER = 4096  # records
SPLITS = (None, "train", "validation")
DTYPES = ("string", "int64", "float32", "bool")
MAX_VALUES, MAX_RECORDS = 2**24, 2**40  # of a field, of a set of records
READERS = (
    "'real' is read by read_real_records, 'galaxies' by read_records, 'convergence' by load_maps"
)


def sha256_of(path):
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(manifest):
    """The sha256 that a manifest states of itself: of everything else in it, as compact JSON with
    sorted keys.
    """
    stated = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(
        json.dumps(stated, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def shard_starts(header):
    """The first index of every shard of a recipe, finished or not."""
    return range(0, header["num"], header["shard_size"])


def load_manifest(directory):
    """The manifest, whole and unchanged, of a run that may not have finished; errors as those of
    `read_manifest`.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise RecordsError(
            path,
            "read_manifest: directory must hold a manifest, got none; write records with `python -m"
            " data_pipelines`",
        )
    try:
        manifest = read_json(path)
    except InputFileError as error:
        raise RecordsError(
            path,
            f"read_manifest: manifest must be JSON, got {error.reason}; write the records again",
        ) from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (
        FORMAT,
        VERSION,
    ):
        got = (
            (manifest.get("format"), manifest.get("version"))
            if isinstance(manifest, dict)
            else type(manifest).__name__
        )
        raise RecordsError(
            path,
            f"read_manifest: format must be {(FORMAT, VERSION)}, got {got}; write the records again"
            " with this version",
        )
    if manifest.get("sha256") != digest(manifest):
        raise RecordsError(
            path,
            f"read_manifest: sha256 must be {digest(manifest)}, got {manifest.get('sha256')}; it"
            " was changed: write the records again",
        )
    missing = [
        name
        for name in ("kind", "num", "shard_size", "pixel_scale", "fields", "shards")
        if name not in manifest
    ]
    if missing:
        raise RecordsError(
            path,
            f"read_manifest: manifest must name {', '.join(missing)}, got only"
            f" {', '.join(manifest)}; write the records again",
        )
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path, manifest):
    """Whatever is read later must be of its kind: also a manifest with the right sha256 may be made
    up.
    """

    def demand(fulfilled, what, got):
        if not fulfilled:
            raise RecordsError(path, f"read_manifest: {what}, got {got!r}; write the records again")

    scale, fields, shards = (manifest[name] for name in ("pixel_scale", "fields", "shards"))
    for name in ("num", "shard_size"):
        demand(_is_count(manifest[name], 1), f"{name} must be a positive number", manifest[name])
    demand(
        scale is None or (type(scale) in (int, float) and 0 < scale < math.inf),
        "pixel_scale must be a positive number",
        scale,
    )
    demand(isinstance(fields, dict) and "index" in fields, "fields must include index", fields)
    for name, field in fields.items():
        demand(
            isinstance(field, dict)
            and field.get("dtype") in DTYPES
            and isinstance(field.get("shape"), list)
            and all(_is_count(side, 1) for side in field["shape"])
            and math.prod(field["shape"]) <= MAX_VALUES,
            f"field {name} must have one of the types {', '.join(DTYPES)} and a shape",
            field,
        )
    demand(isinstance(shards, list), "shards must be a list", type(shards).__name__)
    for shard in shards:
        known = isinstance(shard, dict)
        demand(
            known
            and isinstance(shard.get("file"), str)
            and Path(shard["file"]).name == shard["file"],
            "shard must be a file of the directory",
            shard.get("file") if known else shard,
        )
        demand(
            _is_count(shard.get("num"), 0)
            and _is_count(shard.get("start"), 0)
            and isinstance(shard.get("skipped"), list)
            and isinstance(shard.get("sha256"), str),
            "shard must have start, num, skipped and sha256",
            sorted(shard),
        )


def _is_count(value, least):
    return type(value) is int and least <= value <= MAX_RECORDS


def read_manifest(directory):
    """The manifest of a finished set of records.

    Raises
    ------
    RecordsError : no manifest, not of this format, or the run that writes it has not finished.
    """
    manifest = load_manifest(directory)
    num_shards = len(shard_starts(manifest))
    if len(manifest["shards"]) != num_shards:
        raise RecordsError(
            Path(directory) / MANIFEST,
            f"read_manifest: all {num_shards} shards must be written, got"
            f" {len(manifest['shards'])}; finish the run with `python -m"
            " data_pipelines ... --resume`",
        )
    return manifest


def _check_shards(directory, manifest):
    for shard in manifest["shards"]:
        path = Path(directory) / shard["file"]
        got = sha256_of(path) if path.is_file() else "no file"
        if got != shard["sha256"]:
            raise RecordsError(
                path,
                f"read_records: sha256 must be {shard['sha256']}, got {got}; write the shard again"
                " with `python -m data_pipelines ... --resume`",
            )


@contextlib.contextmanager
def _only_records_errors(directory):
    """What TensorFlow says of records that are not as their manifest says."""
    try:
        yield
    except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RecordsError(
            Path(directory) / MANIFEST,
            f"read_records: records must be as their manifest says, got {told}; write them again",
        ) from error


def _checked(directory, kind, pixel_scale, split, *, unfinished=False):
    if split not in SPLITS:
        raise InputError(
            f"read_records: split must be one of {SPLITS}, got {split!r}; leave it out to read"
            " everything"
        )
    manifest = load_manifest(directory) if unfinished else read_manifest(directory)
    path = Path(directory) / MANIFEST
    if manifest["kind"] != kind:
        raise RecordsError(
            path, f"read_records: kind must be {kind!r}, got {manifest['kind']!r}; {READERS}"
        )
    scale = manifest["pixel_scale"]
    if pixel_scale is not None and (scale is None or abs(scale - pixel_scale) > 1e-6 * pixel_scale):
        unit = manifest.get("pixel_scale_unit", "arcsec")
        raise RecordsError(
            path,
            f"read_records: pixel_scale must be {pixel_scale} {unit}, got {scale}; give the pixel"
            " scale of the prior, or records made at it",
        )
    if not sum(shard["num"] for shard in manifest["shards"]):
        raise RecordsError(
            path,
            "read_records: shards must hold records, got 0 of them; see what was skipped in the"
            " manifest",
        )
    _check_shards(directory, manifest)
    return manifest


def _parse(serialized, fields):
    """The fields of one serialized record, or of a batch of them."""
    kinds = {"string": tf.string, "int64": tf.int64, "float32": tf.float32}
    features = {
        name: tf.io.FixedLenFeature([], tf.string if field["shape"] else kinds[field["dtype"]])
        for name, field in fields.items()
    }
    parsed = tf.io.parse_example(serialized, features)
    for name, field in fields.items():
        if field["shape"]:
            stored = "uint8" if field["dtype"] == "bool" else field["dtype"]
            flat = tf.io.decode_raw(parsed[name], stored)
            parsed[name] = tf.cast(
                tf.reshape(flat, tf.concat([tf.shape(serialized), field["shape"]], 0)),
                field["dtype"],
            )
            parsed[name].set_shape([*serialized.shape, *field["shape"]])
    return parsed


def _in_split(index, split):
    return (index % VALIDATION_EVERY == VALIDATION_EVERY - 1) == (split == "validation")


def _dataset(directory, manifest, *, batch_size, shuffle_seed, repeat, split):
    files = [str(Path(directory) / shard["file"]) for shard in manifest["shards"] if shard["num"]]
    dataset = tf.data.Dataset.from_tensor_slices(files)
    if shuffle_seed is None:
        dataset = tf.data.TFRecordDataset(dataset)
    else:
        dataset = dataset.shuffle(len(files), seed=shuffle_seed)
        dataset = dataset.interleave(
            tf.data.TFRecordDataset, cycle_length=min(8, len(files)), block_length=8
        )
    if split is not None:
        index = {"index": manifest["fields"]["index"]}
        dataset = dataset.filter(
            lambda serialized: _in_split(_parse(serialized, index)["index"], split)
        )
    if shuffle_seed is not None:
        dataset = dataset.shuffle(SHUFFLE_BUFFER, seed=shuffle_seed)
    if repeat:
        dataset = dataset.repeat()
    parse_fn = partial(_parse, fields=manifest["fields"])
    with _only_records_errors(directory):  # the first record stands for all: their sha256 is right
        for serialized in tf.data.TFRecordDataset(files[0]).take(1):
            parse_fn(serialized[None])
        return (
            dataset.batch(batch_size)
            .map(parse_fn, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(2)
        )


def read_records(
    directory, *, batch_size, pixel_scale=0.1, split=None, shuffle_seed=None, repeat=False
):
    """Simulated galaxies as batches, after every shard's sha256 has been verified.

    Parameters
    ----------
    directory : path, as written by `python -m data_pipelines galaxies`
    batch_size : int; the last batch is smaller unless `repeat`
    pixel_scale : float, arcsec/pixel of the prior that will learn from them; records at another
        scale are refused
    split : None (everything), "train" or "validation" (every twentieth index)
    shuffle_seed : int or None (in order of index); each epoch is shuffled anew, equally for equal
        seeds
    repeat : bool, start again at the end

    Returns
    -------
    tf.data.Dataset of dicts: image float32 [batch, 64, 64] of unit flux, magnitude,
    half_light_radius (arcsec), axis_ratio, family, index, each [batch]

    Raises
    ------
    RecordsError : manifest missing, unfinished or of another kind or pixel scale; a shard missing
        or changed.
    ValueError : no such split.
    """
    manifest = _checked(directory, "galaxies", pixel_scale, split)
    return _dataset(
        directory,
        manifest,
        batch_size=batch_size,
        shuffle_seed=shuffle_seed,
        repeat=repeat,
        split=split,
    )


def read_real_records(directory, *, batch_size, split=None, shuffle_seed=None, repeat=False):
    """Real galaxies as batches, each with its own PSF and noise; options and errors as those of
    `read_records`.

    Returns
    -------
    tf.data.Dataset of dicts, as data_pipelines/real.py describes them: image [batch, stamp, stamp],
    mask (True = bad), psf [batch, k, k], variance [batch], correlated [batch], noise_correlation
    [batch, 11, 11], pixel_scale [batch] (arcsec/pixel), magnitude, ident, index, ...
    """
    manifest = _checked(directory, "real", None, split)
    return _dataset(
        directory,
        manifest,
        batch_size=batch_size,
        shuffle_seed=shuffle_seed,
        repeat=repeat,
        split=split,
    )


def load_images(directory, *, pixel_scale=0.1, split=None, max_num=None):
    """Simulated galaxies as arrays in memory, in order of index: the fast way where they fit (16 kB
    each).

    Parameters
    ----------
    directory, pixel_scale, split : as for `read_records`
    max_num : int or None, the first so many only

    Returns
    -------
    dict of ndarrays: image float32 [num, 64, 64] of unit flux, and every other field [num], family
    as str

    Raises
    ------
    RecordsError : as read_records; no record in the split.
    """
    manifest = _checked(directory, "galaxies", pixel_scale, split)
    num = sum(shard["num"] for shard in manifest["shards"])
    num = num if max_num is None else min(num, max_num)
    batches = _dataset(
        directory, manifest, batch_size=256, shuffle_seed=None, repeat=False, split=split
    )
    arrays, filled = None, 0
    with _only_records_errors(directory):
        for batch in batches.as_numpy_iterator():
            if arrays is None:
                arrays = {
                    name: np.empty((num, *value.shape[1:]), value.dtype)
                    for name, value in batch.items()
                }
            size = min(len(batch["index"]), num - filled)
            for name, value in batch.items():
                arrays[name][filled : filled + size] = value[:size]
            filled += size
            if filled == num:
                break
    if arrays is None:
        raise RecordsError(
            Path(directory) / MANIFEST,
            f"load_images: split must hold records, got none in {split!r}; write at least"
            f" {VALIDATION_EVERY}",
        )
    return {
        name: _text(array[:filled]) if array.dtype == object else array[:filled]
        for name, array in arrays.items()
    }


def load_maps(
    directory, *, pixel_scale=2.3, source_redshift=None, transform="kappa", unfinished=False
):
    """Convergence maps as arrays in memory, in order of index (16 kB each).

    Parameters
    ----------
    directory : path, as written by `python -m data_pipelines convergence` or `maps`
    pixel_scale : float, arcmin per pixel of the prior that will learn from them; records at another
        scale are refused
    source_redshift : float or None, of the sources; records of others are refused
    transform : str, what the pixels hold ("kappa": physical convergence); records of something else
        are refused
    unfinished : bool, take the shards that are finished while the run that writes them goes on

    Returns
    -------
    dict : kappa float32 [num, side, side], cosmology float32 [num, 2] (Omega_m, sigma_8),
        simulation int64 [num] (split by it), pixel_scale float (arcmin)

    Raises
    ------
    RecordsError : as read_records; another transform.
    """
    manifest = _checked(directory, "convergence", pixel_scale, None, unfinished=unfinished)
    if manifest.get("transform") != transform:
        reason = (
            f"load_maps: transform must be {transform!r}, got {manifest.get('transform')!r}; write"
            " the records again from physical convergence"
        )
        raise RecordsError(Path(directory) / MANIFEST, reason)
    if source_redshift is not None and manifest.get("source_redshift") != source_redshift:
        reason = (
            f"load_maps: source_redshift must be {source_redshift}, got"
            f" {manifest.get('source_redshift')}; take records of the same sources as the prior's"
        )
        raise RecordsError(Path(directory) / MANIFEST, reason)
    dataset = _dataset(
        directory, manifest, batch_size=256, shuffle_seed=None, repeat=False, split=None
    )
    with _only_records_errors(directory):
        batches = list(dataset.as_numpy_iterator())
        kappa, omega_m, sigma_8, simulation = (
            np.concatenate([batch[name] for batch in batches])
            for name in ("kappa", "omega_m", "sigma_8", "simulation")
        )
    return {
        "kappa": kappa,
        "cosmology": np.stack([omega_m, sigma_8], axis=1),
        "simulation": simulation,
        "pixel_scale": manifest["pixel_scale"],
    }


def _text(values):
    return np.array([value.decode() for value in values])
