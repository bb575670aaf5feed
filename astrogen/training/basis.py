"""The image basis: principal components of unit-norm, centred galaxies, the same under every
rotation by 90 degrees and every mirror.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

CHUNK = 4000  # galaxies at a time: bounds the memory
JITTER = 0.2  # pixels: the basis has to hold galaxies that are slightly off-centre


class Basis(NamedTuple):
    """images [k, height, width] orthonormal, mean [k] and std [k] of the population's coefficients,
    residual: the share of the power left out.
    """

    images: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    residual: float


def fit_basis(images, *, num_components, seed):
    """Principal components of the population after division by each galaxy's L2 norm, so that the
    loss is the mean NMSE.

    Parameters
    ----------
    images : array [num, side, side], any flux, centred
    num_components : int

    Returns
    -------
    (Basis, array [8, num, k] float16) : the basis, and the whitened coefficients of every galaxy in
    its eight orientations, each jittered anew
    """
    rng = np.random.default_rng([seed, 0])
    side = images.shape[-1]
    second_moment = sum(x.T @ x for x in _jittered(images, rng)).astype(np.float64) / len(images)
    second_moment = _symmetrised(second_moment, side)
    power, vectors = scipy.linalg.eigh(
        second_moment, subset_by_index=[side**2 - num_components, side**2 - 1]
    )
    flat = np.ascontiguousarray(vectors[:, ::-1].T).astype(np.float32)
    coefficients = np.stack(
        [
            np.concatenate([x @ flat.T for x in _jittered(images, rng, orientation)])
            for orientation in range(8)
        ]
    )
    mean, std = (
        coefficients.mean((0, 1), dtype=np.float64),
        coefficients.std((0, 1), dtype=np.float64),
    )
    mean[np.abs(mean) < 0.02 * std] = 0.0  # components without the galaxy's full symmetry have none
    basis = Basis(
        flat.reshape(-1, side, side),
        mean.astype(np.float32),
        std.astype(np.float32),
        float(1 - power.sum() / np.trace(second_moment)),
    )
    return basis, np.stack(
        [((x - basis.mean) / basis.std).astype(np.float16) for x in coefficients]
    )


def oriented(images, orientation):
    """Images in one of the eight orientations of the square: rotated by 90 degrees `orientation %
    4` times, mirrored first from 4 on.
    """
    return np.rot90(images if orientation < 4 else images[..., ::-1], orientation % 4, (-2, -1))


def whiten(images, basis):
    """Whitened coefficients [num, k] of images [num, height, width], each divided by its norm."""
    flat = images.reshape(len(images), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return ((flat @ basis.images.reshape(len(basis.images), -1).T - basis.mean) / basis.std).astype(
        np.float32
    )


def _jittered(images, rng, orientation=0):
    """Unit-norm images as rows, chunk by chunk, moved by a fraction of a pixel."""
    side = images.shape[-1]
    ky, kx = (
        np.fft.fftfreq(side)[:, None].astype(np.float32),
        np.fft.rfftfreq(side)[None].astype(np.float32),
    )
    for start in range(0, len(images), CHUNK):
        chunk = oriented(images[start : start + CHUNK], orientation)
        shift = JITTER * rng.standard_normal((len(chunk), 2, 1, 1), np.float32)
        moved = np.fft.irfft2(
            np.fft.rfft2(chunk)
            * np.exp(-2j * np.pi * (kx * shift[:, 0] + ky * shift[:, 1])).astype(np.complex64),
            s=(side, side),
        )
        flat = moved.reshape(len(chunk), -1).astype(np.float32)
        yield flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _symmetrised(second_moment, side):
    pixel = np.arange(side**2).reshape(side, side)
    total = 0
    for orientation in range(8):
        order = oriented(pixel, orientation).ravel()
        total = total + second_moment[np.ix_(order, order)]
    return total / 8
