"""Weights on disk: a card in JSON that says what they are, and arrays. No code, no pickles; every
file is checked against the card before use.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from astrogen.data.arrays import npz_bytes
from astrogen.data.files import write_whole
from astrogen.data.reading import parse_npz, read_bytes, read_json
from astrogen.errors import InputFileError, WeightsError
from astrogen.types import FilePath

FORMAT, VERSION, CARD = "astrogen prior", 1, "card.json"
LARGEST = 64 * 2**20  # bytes of one file of arrays
LARGEST_INSIDE = 2**30  # of its arrays, decompressed


def refuse_change(prior: Any, name: str, value: Any) -> None:
    """What a prior does when an attribute is set: after `load_prior`, which gives one object to all
    of a process, it refuses.
    """
    if vars(prior).get("frozen"):
        raise AttributeError(
            f"{prior.name}: {name} must stay as it was loaded, since all of this process share the"
            " prior; make one of your own from a folder with another card"
        )
    object.__setattr__(prior, name, value)


def write_weights(
    directory: FilePath, *, card: dict[str, Any], arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Write arrays {file: {name: array}} and the card that describes them.

    Floats are kept in half precision: the file is halved, and the least residual scale is a hundred
    times the rounding.

    Returns
    -------
    dict : the card as written, with the sha256, shapes and dtypes of every file
    """
    directory = Path(directory)
    files = {}
    for name, content in arrays.items():
        content = {
            key: np.asarray(value, np.float16 if np.ndim(value) > 1 else np.float32)
            for key, value in content.items()
        }
        written = npz_bytes(content)
        write_whole(directory / f"{name}.npz", written)
        files[f"{name}.npz"] = {
            "sha256": hashlib.sha256(written).hexdigest(),
            "arrays": {
                key: [list(value.shape), str(value.dtype)] for key, value in content.items()
            },
        }
    card = {"format": FORMAT, "version": VERSION, **card, "files": files}
    write_whole(directory / CARD, json.dumps(card, indent=1) + "\n")
    return card


def read_weights(directory: FilePath) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """The card and the arrays {file: {name: float32 array}} of a directory.

    Raises
    ------
    WeightsError : a file is missing, truncated, changed, of another version, or holds anything but
        the arrays that the card names.
    """
    directory = Path(directory)
    card = read_card(directory)
    return card, {
        Path(name).stem: _read_arrays(directory / name, entry)
        for name, entry in card["files"].items()
    }


def weights_hash(card: dict[str, Any]) -> str:
    """One sha256 that stands for a prior: of its card, which holds those of its arrays."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def read_card(directory: FilePath) -> dict[str, Any]:
    """The card of a directory, of which the arrays have not been read; errors of `read_weights`."""
    path = Path(directory) / CARD
    if not path.exists():
        raise WeightsError(
            path,
            "load_prior: directory must hold a card.json, got none; give the folder that `astrogen"
            " train` wrote",
        )
    try:
        card = read_json(path)
    except InputFileError as error:
        raise WeightsError(
            path, f"load_prior: card must be JSON, got {error.reason}; copy the weights again"
        ) from error
    found = (
        (card.get("format"), card.get("version")) if isinstance(card, dict) else type(card).__name__
    )
    if found != (FORMAT, VERSION):
        raise WeightsError(
            path,
            f"load_prior: format must be {(FORMAT, VERSION)}, got {found}; train again or use the"
            " release that wrote it",
        )
    missing = [key for key in ("kind", "name", "pixel_scale", "files") if key not in card]
    if missing:
        raise WeightsError(
            path,
            f"load_prior: card must have {missing}, got only {sorted(card)}; copy the weights"
            " again",
        )
    if not isinstance(card["files"], dict) or not all(
        isinstance(entry, dict) and {"sha256", "arrays"} <= set(entry)
        for entry in card["files"].values()
    ):
        raise WeightsError(
            path,
            "load_prior: files must name the sha256 and the arrays of each file, got something"
            " else; copy the weights again",
        )
    strange = [
        name for name in card["files"] if Path(name).name != name or not name.endswith(".npz")
    ]
    if strange:
        raise WeightsError(
            path,
            f"load_prior: files must be .npz files of the same folder, got {strange}; arrays are"
            " all that is loaded",
        )
    return card


def _read_arrays(path, entry):
    try:
        content = read_bytes(path, max_bytes=LARGEST)
    except InputFileError as error:
        raise WeightsError(
            path, f"load_prior: weights must be readable, got {error.reason}; copy them again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise WeightsError(
            path,
            f"load_prior: sha256 must be {entry['sha256']}, got {found}; the file was changed or"
            " cut short, copy it again",
        )
    try:
        arrays = parse_npz(path, content, max_bytes=LARGEST_INSIDE)
    except InputFileError as error:  # an archive of Keras opens as one of NumPy
        raise WeightsError(
            path,
            f"load_prior: weights must be plain arrays, got {error.reason}; pickles and archives"
            " with code are refused",
        ) from error
    shapes = {key: [list(value.shape), str(value.dtype)] for key, value in arrays.items()}
    if shapes != entry["arrays"]:
        raise WeightsError(
            path,
            f"load_prior: arrays must be {entry['arrays']}, got {shapes}; the card and the file do"
            " not belong together",
        )
    if not all(np.isfinite(value).all() for value in arrays.values()):
        raise WeightsError(
            path, "load_prior: arrays must be finite, got NaN or infinity; train again"
        )
    return {key: value.astype(np.float32) for key, value in arrays.items()}
