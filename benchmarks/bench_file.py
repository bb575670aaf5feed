"""The benchmark's files as a user would meet them: stamps, their noise level, a PSF.

The truth in them is for score.py alone and is never read here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from astrogen.data.observation import make_observation
from astrogen.data.psf import make_psf

# Case: observed pixel (arcsec), truth pixel (arcsec), array with the PSF. The truth's Gaussian
# resolution is two of its pixels.
CASES = {
    "lsst": (0.200, 0.100, "psf_lsst"),
    "hsc": (0.168, 0.084, "psf_hsc"),
    "euclid": (
        0.100,
        0.050,
        "kernel_euclid",
    ),  # undersampled: only an oversampled PSF tells what lies beyond the pixels' Nyquist frequency
    "same": (0.100, 0.100, "psf_same"),
}
SPLITS = {"tune": 0, "test": 1}


@dataclass(frozen=True, eq=False)
class Stamps:
    """What a user has.

    index [n] : of the galaxies in the file
    image [n, h, w], sigma [n] : flux per pixel
    psf_image [k, k] : sums to 1; psf_scale, arcsec per pixel of it; pixel_response, side in arcsec
        of the pixel that it contains
    psf_light : fraction of a star's light that the PSF image held before it was made to sum to 1;
        the rest is in wings beyond it, so that fluxes
        measured with it are too small by this factor
    pixel_scale, truth_scale : arcsec per pixel of the stamps and of the wanted images
    """

    index: np.ndarray
    image: np.ndarray
    sigma: np.ndarray
    psf_image: np.ndarray
    psf_scale: float
    pixel_response: float
    psf_light: float
    pixel_scale: float
    truth_scale: float

    def observations(self):
        """One Observation for each stamp, named by its index."""
        psf = make_psf(
            self.psf_image, pixel_scale=self.psf_scale, pixel_response=self.pixel_response
        )
        return [
            make_observation(
                image,
                psf=psf,
                sigma=float(sigma),
                pixel_scale=self.pixel_scale,
                name=f"galaxy {index}",
            )
            for index, image, sigma in zip(self.index, self.image, self.sigma, strict=True)
        ]


def read_stamps(path, *, case, snr, split="all", num=None):
    """Read obs, sigma and the PSF of one case and S/N of a benchmark file, and nothing else
    (`split` is looked at where one is chosen).

    Parameters
    ----------
    path : path of a bench_*.npz
    case : str, one of CASES
    snr : int
    split : "all", "tune" or "test"
    num : int or None, at most so many galaxies

    Returns
    -------
    Stamps

    Raises
    ------
    ValueError : the file holds no such case, S/N or split.
    """
    pixel_scale, truth_scale, psf_name = CASES[case]
    with np.load(Path(path)) as file:
        names = {
            "image": f"obs_{case}_snr{snr}",
            "sigma": f"sigma_{case}_snr{snr}",
            "psf": psf_name,
        }
        missing = [name for name in names.values() if name not in file.files]
        if missing:
            held = sorted(
                name.removeprefix("obs_") for name in file.files if name.startswith("obs_")
            )
            raise ValueError(
                f"read_stamps: case and snr must be in {path}, got {case} {snr} without"
                f" {', '.join(missing)}; it holds {', '.join(held)}"
            )
        image, sigma, psf_image = (file[name] for name in names.values())
        index = (
            np.arange(len(image))
            if split == "all"
            else np.flatnonzero(file["split"] == SPLITS[split])
        )
    index = index[:num]
    psf_scale = pixel_response = pixel_scale
    if psf_name.startswith("kernel"):
        psf_image, psf_scale, pixel_response = (
            _without_pixel(_as_psf(psf_image), 1.0),
            truth_scale,
            0.0,
        )
    light = float(psf_image.sum())
    return Stamps(
        index,
        image[index],
        sigma[index],
        psf_image / light,
        psf_scale,
        pixel_response,
        light,
        pixel_scale,
        truth_scale,
    )


def _as_psf(kernel):
    """The PSF (with the pixel of its own grid) of a kernel that the Gaussian resolution, two pixels
    wide, was divided out of.
    """
    sigma = 2.0 / np.sqrt(8 * np.log(2))
    y, x = (2 * np.pi * np.fft.fftfreq(side) for side in kernel.shape)
    return np.fft.ifft2(
        np.fft.fft2(kernel) * np.exp(-0.5 * sigma**2 * (x**2 + y[:, None] ** 2))
    ).real


def _without_pixel(image, side):
    """A sampled PSF with the square pixel of `side` samples that it contains divided out: a PSF of
    optics alone.
    """
    y, x = (np.fft.fftfreq(length) for length in image.shape)
    return np.fft.ifft2(np.fft.fft2(image) / (np.sinc(side * x) * np.sinc(side * y)[:, None])).real
