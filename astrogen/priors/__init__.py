"""What galaxies and dark matter look like: priors that turn standard normals into images at the
target PSF, or into maps of the convergence.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import tensorflow as tf

from astrogen.errors import WeightsError
from astrogen.priors.convergence import MEMBERS, convergence_prior
from astrogen.priors.convolutional import convolutional_prior
from astrogen.priors.galaxy import basis_prior
from astrogen.priors.storage import CARD, read_card, read_weights, weights_hash
from astrogen.processes import refuse_fork
from astrogen.types import FilePath

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS = "weights"  # what training calls the folder of the weights in its own
KINDS = {
    "basis": basis_prior,
    "convolutional": convolutional_prior,
    "convergence": convergence_prior,
}
MAX_LAYERS = 32
SIZES = {  # of networks and images, several times those of the shipped priors
    "latent": 1024,
    "width": 1024,
    "side": 128,
    "encoder_widths": 4096,
    "decoder_widths": 4096,
    "spread_widths": 4096,
    "encoder_channels": 512,
    "decoder_channels": 512,
    "channels": 512,
    "dilations": 64,
    "image_shape": 4096,
}


def load_prior(name: FilePath) -> Any:
    """A prior that is shipped with the package, or one from a folder that `astrogen train` wrote.

    Never uses the network. Loaded once per process: the same folder with the same content gives the
    same object, with the graphs that belong to it; its attributes cannot be set.

    Parameters
    ----------
    name : str or path, "galaxy", "galaxy-conv", "kappa", or a folder with a card.json, or the one
        that training wrote it into; weights of convergence maps hold three fields: with "-gaussian"
        or "-lognormal" after the name or folder, one of the two without a network

    Raises
    ------
    WeightsError : the weights are missing, damaged, of another version or kind.
    """
    refuse_fork("load_prior")
    directory, member = _find(str(name))
    if not directory.is_dir():
        raise WeightsError(
            directory,
            f"load_prior: name must be one of {shipped_priors()} or a folder with weights, got"
            f" {str(name)!r}",
        )
    directory = _weights_inside(directory).resolve()
    card = read_card(directory)
    stamps = tuple(_stamp(directory / file) for file in sorted(card["files"]))
    return _load(directory, member, weights_hash(card), stamps)


def _stamp(path):
    """Changes when a file does; None where there is none."""
    if not path.is_file():
        return None
    told = path.stat()
    return told.st_size, told.st_mtime_ns


@lru_cache(maxsize=8)
def _load(directory, member, card_hash, stamps):
    """A prior; the last two change when its folder does."""
    card, arrays = read_weights(directory)
    if not isinstance(card["kind"], str) or card["kind"] not in KINDS:
        raise WeightsError(
            directory,
            f"load_prior: kind must be one of {sorted(KINDS)}, got {card['kind']!r}; use the"
            " release that wrote it",
        )
    if member and card["kind"] != "convergence":
        raise WeightsError(
            directory,
            f"load_prior: name must end in -{member} for convergence maps only, got"
            f" '{directory.name}-{member}' of kind {card['kind']!r}; leave it out",
        )
    try:
        _check_sizes(card)
        prior = KINDS[card["kind"]](card, arrays, **({"member": member} if member else {}))
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        tf.errors.OpError,
    ) as error:
        raise WeightsError(
            directory,
            f"load_prior: card and arrays must describe a whole {card['kind']} prior, got"
            f" {type(error).__name__}: {error}; copy the weights again",
        ) from error
    prior.frozen = True
    return prior


def _weights_inside(directory):
    """The folder itself, or the one of the weights in what training writes."""
    if (directory / CARD).is_file() or not (directory / WEIGHTS).is_dir():
        if not (directory / CARD).is_file() and (directory / "checkpoints").is_dir():
            raise WeightsError(
                directory,
                "load_prior: name must be a folder with weights, got one of a training that has"
                " not finished (checkpoints, but no weights); go on with `astrogen train ..."
                " --resume`",
            )
        return directory
    return directory / WEIGHTS


def _check_sizes(card):
    """Refuse numbers that no prior has, before networks of that size are made."""
    network = card.get("network", {})
    for name, most in SIZES.items():
        for size in _as_list(card.get(name, network.get(name, []))):
            if type(size) is not int or not 1 <= size <= most:
                raise ValueError(f"{name} must be whole numbers of at most {most}, got {size!r}")
    for name in ("pixel_scale", "target_fwhm"):
        value = card.get(name, 1.0)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value!r}")


def _as_list(sizes):
    sizes = sizes if isinstance(sizes, list) else [sizes]
    if len(sizes) > MAX_LAYERS:
        raise ValueError(f"a network of {len(sizes)} layers")
    return sizes


def _find(name):
    """The folder of a name, and the member after its last hyphen (None without)."""
    directory = SHIPPED / name if (SHIPPED / name / CARD).is_file() else Path(name)
    stem, _, member = name.rpartition("-")
    return (
        (directory, None)
        if directory.is_dir() or member not in MEMBERS
        else (_find(stem)[0], member)
    )


def shipped_priors() -> list[str]:
    """Names of the priors that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/card.json"))
