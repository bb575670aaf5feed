"""Draw as many maps or galaxies as are wanted, chunk by chunk: the memory does not grow with their
number.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from astrogen.data.images import stream_cube
from astrogen.errors import InputError
from astrogen.priors import load_prior
from astrogen.priors.convergence import MARGIN, draw_latent
from astrogen.priors.storage import weights_hash
from astrogen.processes import refuse_fork
from astrogen.types import FilePath

CHUNK_PIXELS = 2**18  # of the grids that are drawn together
CHUNK_GALAXIES = 256
SMALLEST = 16  # pixels, side of a map


def draw_maps(
    num: int,
    *,
    omega_m: float,
    sigma_8: float,
    shape: tuple[int, int] | None = None,
    seed: int,
    prior: Any = "kappa",
    extrapolate: bool = False,
) -> Iterator[np.ndarray]:
    """Convergence maps of one cosmology, chunk by chunk.

    Map i depends on (seed, i) alone, up to the rounding of single precision.

    Parameters
    ----------
    num : int
    shape : (height, width) in pixels, even, or None for that of the prior's training
    prior : ConvergencePrior, or what `load_prior` takes
    extrapolate : bool, allow a cosmology outside the range of the training

    Returns
    -------
    iterator of arrays float32 [chunk, height, width], convergence

    Raises
    ------
    ValueError : cosmology outside the range; sides odd or too small.
    """
    prior = _loaded(prior, "convergence")
    shape = tuple(shape or prior.image_shape)
    if any(side % 2 or side < SMALLEST for side in shape):
        raise InputError(
            f"draw_maps: shape must be even numbers of pixels, at least {SMALLEST}, got {shape};"
            " cut a larger map"
        )
    prior.check_cosmology(omega_m, sigma_8, extrapolate=extrapolate)
    cosmology = tf.constant([[omega_m, sigma_8]], tf.float32)
    chunk = max(1, CHUNK_PIXELS // math.prod(side + MARGIN for side in shape))
    draw = tf.function(lambda latent: prior.draw(latent, cosmology), autograph=False)
    return (
        draw(draw_latent(range(start, start + chunk), shape, seed=seed)).numpy()[: num - start]
        for start in range(0, num, chunk)
    )


def draw_galaxies(num: int, *, seed: int, prior: Any = "galaxy") -> Iterator[np.ndarray]:
    """Galaxies of unit flux at the prior's target PSF, chunk by chunk.

    Galaxy i depends on (seed, i) alone, up to rounding.

    Returns
    -------
    iterator of arrays float32 [chunk, height, width]
    """
    prior = _loaded(prior, "galaxy")
    draw, sizes = tf.function(prior.draw, autograph=False), prior.draw_sizes

    def one_chunk(start):
        numbers = [
            tf.random.stateless_normal([sum(sizes)], [seed, index])
            for index in range(start, start + CHUNK_GALAXIES)
        ]
        return draw(*tf.split(tf.stack(numbers), sizes, 1)).numpy()[: num - start]

    return (one_chunk(start) for start in range(0, num, CHUNK_GALAXIES))


def write_maps(
    path: FilePath,
    num: int,
    *,
    omega_m: float,
    sigma_8: float,
    shape: tuple[int, int] | None = None,
    seed: int,
    prior: Any = "kappa",
    extrapolate: bool = False,
) -> None:
    """Write `draw_maps` to a cube [num, height, width], .fits or .npy, as they come; the file
    appears when it is whole.

    The FITS header holds cosmology, source redshift, pixel scale (arcmin), seed, hash of the
    weights, and whether the cosmology lies outside the training range.
    """
    prior = _loaded(prior, "convergence")
    chunks = draw_maps(
        num,
        omega_m=omega_m,
        sigma_8=sigma_8,
        shape=shape,
        seed=seed,
        prior=prior,
        extrapolate=extrapolate,
    )
    header = {
        "QUANTITY": ("convergence", "dimensionless"),
        "OMEGA_M": (omega_m, "total matter density"),
        "SIGMA_8": (sigma_8, "linear rms in 8 Mpc/h"),
        "ZSOURCE": (prior.card["source_redshift"], "redshift of the sources"),
        "PIXSCALE": (prior.pixel_scale, "arcmin per pixel"),
        "EXTRAPOL": (
            not prior.check_cosmology(omega_m, sigma_8, extrapolate=True),
            "cosmology outside the training range",
        ),
        **_origin(prior, seed),
    }
    return _write(path, num, shape or prior.image_shape, header, chunks)


def write_galaxies(path: FilePath, num: int, *, seed: int, prior: Any = "galaxy") -> None:
    """Write `draw_galaxies` to a cube [num, height, width], .fits or .npy, as they come; the file
    appears when it is whole.
    """
    prior = _loaded(prior, "galaxy")
    header = {
        "QUANTITY": ("surface brightness", "total flux 1"),
        "PIXSCALE": (prior.pixel_scale, "arcsec per pixel"),
        "FWHM": (prior.target_fwhm, "arcsec, of the Gaussian target PSF"),
        **_origin(prior, seed),
    }
    return _write(path, num, prior.image_shape, header, draw_galaxies(num, seed=seed, prior=prior))


def _write(path, num, shape, header, chunks):
    with (
        stream_cube(path, (num, *shape), header=header) as append,
        tqdm(total=num, unit=" images", leave=False, disable=None) as progress,
    ):
        for images in chunks:
            append(images)
            progress.update(len(images))
    return Path(path)


def _origin(prior, seed):
    return {
        "PRIOR": (prior.name, "astrogen prior"),
        "SEED": (seed, "of the draws"),
        "WEIGHTS": (weights_hash(prior.card), None),
    }


def _loaded(prior, wanted):
    """The prior of a name, if it draws what is wanted: "convergence" or "galaxy"."""
    refuse_fork("emulate")
    prior = load_prior(prior) if isinstance(prior, (str, Path)) else prior
    found = "convergence" if hasattr(prior, "cosmology_range") else "galaxy"
    if found != wanted:
        raise InputError(
            "emulate: prior must be one of"
            f" {'convergence maps' if wanted == 'convergence' else 'galaxies'}, got {prior.name!r};"
            f" take prior={'kappa' if wanted == 'convergence' else 'galaxy'}"
        )
    return prior
