"""Galaxies of a prior as GalSim objects.

An image of a prior stands at the prior's target PSF. As in `galsim.RealGalaxy`, that PSF is divided
out, so that whoever convolves the object applies the telescope's PSF, once; the telescope's PSF has
to be the broader one.
"""

import math
from typing import Any

import galsim
import numpy as np
import numpy.typing as npt

from astrogen.errors import InputError

CHUNK = 256  # galaxies that a catalogue decodes at once


class AstrogenGalaxy(galsim.Convolution):
    """One galaxy of a prior, a GSObject without any PSF.

    Parameters
    ----------
    latent : array [d], standard normals that the prior decodes; or [d + k], with those of what the
        decoder cannot make (a galaxy as rough as the population)
    flux : float, or dict of band -> float: one morphology in all bands
    band : str, which of the fluxes; None where flux is a number
    half_light_radius : float or None, arcsec, of the galaxy at the prior's resolution; it sets the
        pixel scale
    prior_scale : float or None, arcsec per pixel of the prior's image, which is scale-free; None:
        the prior's own
    prior : str, path or prior; see `astrogen.load_prior`
    gsparams : galsim.GSParams or None

    Raises
    ------
    ValueError : a latent of another size, not finite; a flux that is none; a size that is not
        positive; both sizes at once.
    """

    def __init__(
        self,
        latent: npt.ArrayLike,
        *,
        flux: float = 1.0,
        band: str | None = None,
        half_light_radius: float | None = None,
        prior_scale: float | None = None,
        prior: Any = "galaxy",
        gsparams: Any = None,
    ) -> None:
        prior = _load(prior)
        latent = np.asarray(latent, np.float32)
        sizes = prior.latent_size, sum(prior.draw_sizes)
        if latent.ndim != 1 or len(latent) not in sizes or not np.isfinite(latent).all():
            raise InputError(
                f"AstrogenGalaxy: latent must be {sizes[0]} finite numbers, or {sizes[1]} with"
                f" those of the residual, got shape {latent.shape}; draw them from a standard"
                " normal"
            )
        self._set(
            decode(prior, latent[None])[0],
            prior,
            flux=flux,
            band=band,
            half_light_radius=half_light_radius,
            prior_scale=prior_scale,
            gsparams=gsparams,
        )

    @classmethod
    def _of_image(cls, image, prior, **options):
        galaxy = cls.__new__(cls)
        galaxy._set(image, prior, **options)
        return galaxy

    def _set(self, image, prior, *, flux, band, half_light_radius, prior_scale, gsparams):
        self.flux_in_band = _flux_of(flux, band)
        self.prior_scale = _scale_of(image, prior, half_light_radius, prior_scale)
        self.target_fwhm = prior.target_fwhm / prior.pixel_scale * self.prior_scale
        target = galsim.Gaussian(fwhm=self.target_fwhm)
        # The image is band-limited by the target and fills its stamp: neither scale has to be
        # searched for. GalSim's default interpolant would damp it near its
        # Nyquist frequency, by 0.4 % of the peak; this one costs the same and is right to 1e-4.
        seen = galsim.InterpolatedImage(
            galsim.Image(np.asarray(image, np.float64), scale=self.prior_scale),
            flux=self.flux_in_band,
            x_interpolant="lanczos15",
            calculate_stepk=False,
            calculate_maxk=False,
        )
        super().__init__([seen, galsim.Deconvolve(target)], gsparams=gsparams)

    def __repr__(self):
        return (
            f"AstrogenGalaxy(flux={self.flux_in_band!r}, prior_scale={self.prior_scale!r},"
            f" target_fwhm={self.target_fwhm!r})"
        )

    __str__ = __repr__


class AstrogenCatalog:
    """Galaxies drawn from a prior with GalSim's random numbers, decoded in batches as they are
    asked for.

    Equal seeds give equal galaxies, in Python and in a configuration, in any order. A configuration
    with `random_seed: N` gives its inputs the generator
    `galsim.BaseDeviate(galsim.BaseDeviate(N).raw())` (GalSim 2.6 and later).

    Parameters
    ----------
    num : int, galaxies
    rng : galsim.BaseDeviate
    prior : str, path or prior; see `astrogen.load_prior`
    """

    _req_params = {"num": int}
    _opt_params = {"prior": str}
    _single_params: list[dict[str, type]] = []
    _takes_rng = True

    def __init__(self, num: int, *, rng: Any, prior: Any = "galaxy") -> None:
        if num < 1:
            raise InputError(
                f"AstrogenCatalog: num must be at least 1, got {num}; give the number of galaxies"
            )
        self.prior, self.nobjects = _load(prior), int(num)
        # One stream of random numbers for each chunk: galaxy 7 is the same whatever else is asked
        # for.
        self._seeds = [rng.raw() for _ in range(-(-self.nobjects // CHUNK))]
        self._chunk, self._images = -1, np.empty(0)

    def getNObjects(self) -> int:
        """The number of galaxies, as GalSim asks for it."""
        return self.nobjects

    def latents(self, chunk: int) -> np.ndarray:
        """Standard normals [CHUNK, d + k] of one chunk of the catalogue."""
        size = sum(self.prior.draw_sizes)
        numbers = np.empty(CHUNK * size)
        galsim.GaussianDeviate(self._seeds[chunk]).generate(numbers)
        return numbers.reshape(CHUNK, size).astype(np.float32)

    def image(self, index: int) -> np.ndarray:
        """Image [height, width] of unit flux of galaxy `index`, at the prior's target PSF."""
        if not 0 <= index < self.nobjects:
            raise IndexError(
                f"AstrogenCatalog: index must be from 0 to {self.nobjects - 1}, got {index}; draw a"
                " larger catalogue"
            )
        if self._chunk != index // CHUNK:
            self._chunk, self._images = (
                index // CHUNK,
                decode(self.prior, self.latents(index // CHUNK)),
            )
        return self._images[index % CHUNK]

    def galaxy(
        self,
        index: int,
        *,
        flux: float = 1.0,
        band: str | None = None,
        half_light_radius: float | None = None,
        prior_scale: float | None = None,
        gsparams: Any = None,
    ) -> AstrogenGalaxy:
        """Galaxy `index` as an AstrogenGalaxy; the options are its."""
        return AstrogenGalaxy._of_image(
            self.image(index),
            self.prior,
            flux=flux,
            band=band,
            half_light_radius=half_light_radius,
            prior_scale=prior_scale,
            gsparams=gsparams,
        )


def decode(prior: Any, latent: npt.ArrayLike) -> np.ndarray:
    """Images [batch, height, width] of unit flux; latent [batch, d], or [batch, d + k] with the
    residual's normals.
    """
    latent, normals = np.split(latent, [prior.latent_size], 1)
    return prior.draw(latent, normals if normals.size else None).numpy()


def _load(prior):
    if hasattr(prior, "components"):
        return prior
    from astrogen.priors import load_prior  # TensorFlow: only for those who draw

    return load_prior(prior)


def _flux_of(flux, band):
    if isinstance(flux, dict):
        if band not in flux:
            raise InputError(
                f"AstrogenGalaxy: band must be one of {sorted(flux)}, got {band!r}; name one of the"
                " bands of flux"
            )
        flux = flux[band]
    elif band is not None:
        raise InputError(
            f"AstrogenGalaxy: flux must be a dict of bands where band is given ({band!r}), got"
            f" {flux!r}; give {{band: flux}}"
        )
    if not math.isfinite(flux):
        raise InputError(f"AstrogenGalaxy: flux must be finite, got {flux}")
    return float(flux)


def _scale_of(image, prior, half_light_radius, prior_scale):
    if half_light_radius is not None and prior_scale is not None:
        raise InputError(
            "AstrogenGalaxy: one of half_light_radius and prior_scale must be given, got"
            f" {half_light_radius} and {prior_scale}; leave one out"
        )
    for name, value in (("half_light_radius", half_light_radius), ("prior_scale", prior_scale)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(
                f"AstrogenGalaxy: {name} must be positive, got {value}; give it in arcsec"
            )
    if half_light_radius is None:
        return float(prior_scale or prior.pixel_scale)
    return half_light_radius / galsim.Image(np.asarray(image, np.float64), scale=1.0).calculateHLR()
