"""A simulated population of galaxies, rich enough to be a prior for real ones.

Every galaxy is drawn at the prior's resolution: convolved with the target PSF and sampled (not
pixel-integrated) on the prior's grid. Shapes are resampled from the COSMOS parametric fits
distributed with GalSim (Mandelbaum et al. 2012; Leauthaud et al. 2007): the quantile tables below
restate the viable fits of `real_galaxy_catalog_23.5_example_fits.fits`, and the size-magnitude
relation is theirs, flattened at the faint end where the fits stop. Smooth models alone make a prior
that is confidently wrong on real galaxies, hence spiral arms, bars, clumps, texture, lopsidedness,
irregulars, companions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import galsim
import numpy as np

SIDE = 64  # pixels of the prior's stamp
PIXEL_SCALE = 0.1  # arcsec/pixel
TARGET_FWHM = 0.2  # arcsec, Gaussian
OVERSAMPLING = 4  # of the grid on which structured galaxies are painted
MAG_RANGE = (18.0, 26.0)  # i band
# to be raised with every change of what is drawn: trained weights name the recipe they learned from
RECIPE_VERSION = 2

# Quantiles of the COSMOS fits: probability, then value at it.
QUANTILES = np.array([0.0, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 1.0])
SERSIC_INDEX = np.array([0.30, 0.56, 0.67, 0.90, 1.42, 3.36, 5.10, 6.00, 6.00])
BULGE_TO_TOTAL = np.array([0.05, 0.15, 0.17, 0.26, 0.45, 0.62, 0.75, 0.80, 0.90])
BULGE_TO_DISK_SIZE = np.array([0.08, 0.10, 0.13, 0.22, 0.46, 0.70, 0.90, 1.00, 1.00])

FAST = galsim.GSParams(folding_threshold=1e-2, maxk_threshold=5e-3, kvalue_accuracy=1e-4)


@dataclass(frozen=True)
class Galaxy:
    """One simulated galaxy.

    Parameters
    ----------
    image : float32 ndarray [64, 64], of unit flux, at the target PSF
    magnitude : float, i band
    half_light_radius : float, arcsec, of the profile drawn from, before the target PSF and without
        knots, clumps and companions
    axis_ratio : float, minor over major axis of the same profile
    family : str, one of FAMILIES
    """

    image: np.ndarray
    magnitude: float
    half_light_radius: float
    axis_ratio: float
    family: str


def _quantile(rng, table):
    return float(np.interp(rng.uniform(), QUANTILES, table))


def _magnitude_and_size(rng):
    """Number counts rising to the faint end; log-normal sizes about the COSMOS relation, within
    what the stamp holds.
    """
    magnitude = MAG_RANGE[0] + (MAG_RANGE[1] - MAG_RANGE[0]) * rng.beta(2.4, 1.3)
    log_radius = np.log(0.20) - 0.20 * (magnitude - 23.5) + 0.48 * rng.normal()
    return magnitude, float(np.clip(np.exp(log_radius), 0.035, 0.80))


def _axis_ratio(rng):
    return float(np.clip(rng.beta(2.2, 1.3), 0.15, 1.0))


def _sheared(profile, axis_ratio, angle):
    return profile.shear(q=axis_ratio, beta=angle * galsim.radians)


def _sersic(rng, radius):
    # A coarse index lets GalSim reuse its tables: a new index each time costs twenty times more.
    index = np.clip(round(_quantile(rng, SERSIC_INDEX), 1), 0.4, 6.0)
    return galsim.Sersic(n=index, half_light_radius=radius, gsparams=FAST)


def _bulge_and_disk(rng, radius, axis_ratio, angle):
    fraction = _quantile(rng, BULGE_TO_TOTAL)
    disk = _sheared(galsim.Exponential(half_light_radius=radius, gsparams=FAST), axis_ratio, angle)
    bulge_radius = max(radius * _quantile(rng, BULGE_TO_DISK_SIZE), 0.02)
    bulge_ratio = axis_ratio + (1 - axis_ratio) * rng.uniform(0.2, 0.9)
    index = round(rng.uniform(1.5, 4.0), 1)
    bulge = _sheared(
        galsim.Sersic(n=index, half_light_radius=bulge_radius, gsparams=FAST),
        bulge_ratio,
        angle + 0.3 * rng.normal(),
    )
    return (1 - fraction) * disk + fraction * bulge


def _knots(rng, radius, axis_ratio, angle):
    num = 3 + rng.poisson(8)
    return _sheared(
        galsim.RandomKnots(
            num,
            half_light_radius=radius,
            rng=galsim.BaseDeviate(int(rng.integers(1, 2**31 - 1))),
            gsparams=FAST,
        ),
        axis_ratio,
        angle,
    )


def _draw_parametric(rng, radius, axis_ratio, angle):
    """A Sersic or bulge+disk galaxy, in part broken up into knots."""
    profile = (
        _bulge_and_disk(rng, radius, axis_ratio, angle)
        if rng.uniform() < 0.4
        else _sheared(_sersic(rng, radius), axis_ratio, angle)
    )
    if rng.uniform() < 0.4:
        fraction = rng.uniform(0.05, 0.4)
        profile = (1 - fraction) * profile + fraction * _knots(
            rng, radius * rng.uniform(0.6, 1.2), axis_ratio, angle
        )
    return _draw(profile)


def _draw(profile):
    target = galsim.Gaussian(fwhm=TARGET_FWHM, gsparams=FAST)
    return (
        galsim.Convolve(profile, target, gsparams=FAST)
        .drawImage(nx=SIDE, ny=SIDE, scale=PIXEL_SCALE, method="no_pixel")
        .array.astype(float)
    )


def _fine_grid():
    axis = (
        (np.arange(SIDE * OVERSAMPLING) - (SIDE * OVERSAMPLING - 1) / 2)
        * PIXEL_SCALE
        / OVERSAMPLING
    )
    return np.meshgrid(axis, axis)


FINE_X, FINE_Y = _fine_grid()


def _elliptical(axis_ratio, angle, x=FINE_X, y=FINE_Y):
    """Deprojected coordinates (arcsec) of the fine grid."""
    cos, sin = np.cos(angle), np.sin(angle)
    stretch = np.sqrt(axis_ratio)
    return (cos * x + sin * y) * stretch, (-sin * x + cos * y) / stretch


def _sersic_field(radius_grid, radius, index):
    b = 2 * index - 1 / 3 + 0.009876 / index  # Prugniel & Simien (1997), eq. A3
    return np.exp(-b * (radius_grid / radius) ** (1 / index))


def _unit(field):
    return field / field.sum()


def _texture(rng, correlation):
    """A Gaussian random field of unit variance with the given correlation length (arcsec) on the
    fine grid.
    """
    num = SIDE * OVERSAMPLING
    step = PIXEL_SCALE / OVERSAMPLING
    k = np.hypot(np.fft.fftfreq(num, step)[:, None], np.fft.rfftfreq(num, step)[None])
    field = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(num, num)))
        * np.exp(-0.5 * (2 * np.pi * k * correlation) ** 2),
        s=(num, num),
    )
    return field / field.std()


def _blobs(rng, positions, sizes, fluxes):
    """A sum of round Gaussian blobs; positions, sizes in arcsec.

    Separable, so that fifty cost as little as one field.
    """
    axis = FINE_X[0]
    across = np.exp(-0.5 * ((axis - positions[:, :1]) / sizes[:, None]) ** 2) / sizes[:, None]
    along = np.exp(-0.5 * ((axis - positions[:, 1:]) / sizes[:, None]) ** 2) / sizes[:, None]
    return along.T @ (across * fluxes[:, None])


def _clumps(rng, radius, axis_ratio, angle):
    """Star-forming clumps scattered over an elliptical disk."""
    num = 2 + rng.poisson(rng.uniform(1, 12))
    distance = radius * rng.gamma(2.0, 0.55, size=num)
    phase = rng.uniform(0, 2 * np.pi, size=num)
    x, y = (
        distance * np.cos(phase) / np.sqrt(axis_ratio),
        distance * np.sin(phase) * np.sqrt(axis_ratio),
    )
    cos, sin = np.cos(angle), np.sin(angle)
    sizes = np.maximum(radius * rng.uniform(0.05, 0.4, size=num), 0.025)
    return _unit(
        _blobs(
            rng,
            np.stack([cos * x - sin * y, sin * x + cos * y], 1),
            sizes,
            rng.lognormal(0, 0.8, size=num),
        )
    )


def _disk_field(rng, radius, axis_ratio, angle):
    """An exponential-like disk with arms, texture and a lopsided side, each with its own chance."""
    x, y = _elliptical(axis_ratio, angle)
    distance, phase = np.hypot(x, y) + 1e-3, np.arctan2(y, x)
    field = _sersic_field(distance, radius, rng.choice([0.6, 0.8, 1.0, 1.0, 1.3]))
    if rng.uniform() < 0.6:
        arms, pitch = (
            rng.choice([1, 2, 2, 2, 3, 4]),
            np.radians(rng.uniform(10, 40)) * rng.choice([-1, 1]),
        )
        winding = arms * (phase - np.log(distance / radius) / np.tan(pitch)) + rng.uniform(
            0, 2 * np.pi
        )
        field = field * np.exp(
            rng.uniform(0.2, 1.3) * np.cos(winding) * distance / (distance + 0.4 * radius)
        )
    if rng.uniform() < 0.75:
        field = field * np.exp(
            rng.uniform(0.1, 1.1) * _texture(rng, radius * rng.uniform(0.1, 0.6))
        )
    if rng.uniform() < 0.5:
        field = field * (
            1
            + rng.uniform(0.1, 0.8)
            * np.cos(phase - rng.uniform(0, 2 * np.pi))
            * distance
            / (distance + radius)
        )
    return _unit(field)


def _bar(rng, radius, axis_ratio, angle):
    x, y = _elliptical(rng.uniform(0.2, 0.5), angle + rng.normal() * 0.7)
    return _unit(_sersic_field(np.hypot(x, y), radius * rng.uniform(0.2, 0.8), 0.5))


def _bulge(rng, radius, axis_ratio, angle):
    x, y = _elliptical(axis_ratio + (1 - axis_ratio) * rng.uniform(0.2, 0.9), angle)
    return _unit(
        _sersic_field(
            np.hypot(x, y), max(radius * rng.uniform(0.08, 0.5), 0.02), rng.uniform(0.8, 3.0)
        )
    )


def _paint_disk(rng, radius, axis_ratio, angle, *, with_bulge):
    field = _disk_field(rng, radius, axis_ratio, angle)
    for paint, chance, most in ((_bar, 0.35, 0.35), (_clumps, 0.7, 0.7)):
        if rng.uniform() < chance:
            share = rng.uniform(0.05, most)
            field = (1 - share) * field + share * paint(rng, radius, axis_ratio, angle)
    if with_bulge:
        share = rng.uniform(0.08, 0.7)
        field = (1 - share) * field + share * _bulge(rng, radius, axis_ratio, angle)
    return field


def _paint_irregular(rng, radius, axis_ratio, angle):
    """Clumps along a random walk over a faint, lopsided body: Magellanic and tadpole galaxies, and
    mergers.
    """
    num = 2 + rng.poisson(4)
    steps = rng.normal(size=(num, 2)) * radius * rng.uniform(0.3, 0.8)
    walk = np.cumsum(steps, 0) if rng.uniform() < 0.5 else steps * 1.6
    walk = (walk - walk.mean(0)) @ np.diag([1, axis_ratio])
    cos, sin = np.cos(angle), np.sin(angle)
    walk = walk @ np.array([[cos, sin], [-sin, cos]])
    sizes = np.maximum(radius * rng.lognormal(-0.9, 0.5, size=num), 0.025)
    clumps = _unit(_blobs(rng, walk, sizes, rng.lognormal(0, 0.7, size=num)))
    share = rng.uniform(0.2, 0.9)
    return share * clumps + (1 - share) * _disk_field(
        rng, radius * rng.uniform(0.8, 1.5), axis_ratio, angle
    )


def _observe_field(field):
    """The fine field convolved with the target PSF and sampled at the prior's pixel centres."""
    num, step = field.shape[0], PIXEL_SCALE / OVERSAMPLING
    ky, kx = (
        2 * np.pi * np.fft.fftfreq(num, step)[:, None],
        2 * np.pi * np.fft.rfftfreq(num, step)[None],
    )
    sigma = TARGET_FWHM / np.sqrt(8 * np.log(2))
    # The centre of a coarse pixel lies between two fine ones: move the field by half a fine pixel,
    # then take every fourth.
    transfer = np.exp(
        -0.5 * sigma**2 * (kx**2 + ky**2) + 1j * (kx + ky) * (OVERSAMPLING / 2 - 0.5) * step
    )
    return (
        np.fft.irfft2(np.fft.rfft2(field) * transfer, s=field.shape)[::OVERSAMPLING, ::OVERSAMPLING]
        * OVERSAMPLING**2
    )


FAMILIES = ("parametric", "disk", "bulge_disk", "irregular")
FAMILY_SHARE = (0.32, 0.28, 0.14, 0.26)


def _draw_family(rng, family, radius):
    axis_ratio, angle = _axis_ratio(rng), rng.uniform(0, np.pi)
    if family == "parametric":
        return _draw_parametric(rng, radius, axis_ratio, angle), axis_ratio
    if family == "irregular":
        return _observe_field(_paint_irregular(rng, radius, axis_ratio, angle)), axis_ratio
    return (
        _observe_field(
            _paint_disk(rng, radius, axis_ratio, angle, with_bulge=family == "bulge_disk")
        ),
        axis_ratio,
    )


def weighted_centroid(image: np.ndarray, sigma: float = 2.5) -> np.ndarray:
    """Centroid with a Gaussian weight that follows it.

    Parameters
    ----------
    image : ndarray [height, width], flux per pixel
    sigma : float, pixels, of the weight

    Returns
    -------
    ndarray [2] : x, y in pixels from the stamp's centre, at most 8.
    """
    axis = np.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    centre = np.zeros(2)
    for _ in range(20):
        weight_x, weight_y = (
            np.exp(-0.5 * ((axis - centre[0]) / sigma) ** 2),
            np.exp(-0.5 * ((axis - centre[1]) / sigma) ** 2),
        )
        weighted = image * weight_y[:, None] * weight_x
        total = weighted.sum()
        # A weighted mean moves only part of the way to the centre of a Gaussian source: twice the
        # step converges faster.
        step = (
            np.array(
                [
                    (weighted.sum(0) * (axis - centre[0])).sum(),
                    (weighted.sum(1) * (axis - centre[1])).sum(),
                ]
            )
            / total
        )
        centre = np.clip(centre + 1.5 * step, -8, 8)
    return centre


def shifted(image: np.ndarray, shift: Sequence[float] | np.ndarray) -> np.ndarray:
    """The image moved by `shift` through its Fourier transform: exact where it is band-limited, and
    periodic.

    Parameters
    ----------
    image : ndarray [height, width]
    shift : (x, y) in pixels

    Returns
    -------
    ndarray [height, width]
    """
    ky, kx = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])[None]
    return np.fft.irfft2(
        np.fft.rfft2(image) * np.exp(-2j * np.pi * (kx * shift[0] + ky * shift[1])), s=image.shape
    )


def draw_galaxy(seed: int, index: int) -> Galaxy:
    """The galaxy number `index` of the population `seed`: the same whatever is drawn beside it.

    Parameters
    ----------
    seed, index : int, not negative

    Returns
    -------
    Galaxy : image of unit flux, centred on its Gaussian-weighted centroid.
    """
    rng = np.random.default_rng([seed, index])
    magnitude, radius = _magnitude_and_size(rng)
    family = str(rng.choice(FAMILIES, p=FAMILY_SHARE))
    image, axis_ratio = _draw_family(rng, family, radius)
    image = image / image.sum()
    if rng.uniform() < 0.06:
        companion, _ = _draw_family(
            rng, str(rng.choice(FAMILIES, p=FAMILY_SHARE)), radius * rng.uniform(0.3, 1.0)
        )
        distance, phase = rng.uniform(3, 16), rng.uniform(0, 2 * np.pi)
        image = image + rng.uniform(0.02, 0.5) * shifted(
            companion / companion.sum(), distance * np.array([np.cos(phase), np.sin(phase)])
        )
    image = shifted(image, -weighted_centroid(image))
    return Galaxy((image / image.sum()).astype(np.float32), magnitude, radius, axis_ratio, family)


FIELDS = {
    "image": {"dtype": "float32", "shape": [SIDE, SIDE], "unit": "fraction of the flux per pixel"},
    "magnitude": {"dtype": "float32", "shape": [], "unit": "AB mag, i band"},
    "half_light_radius": {"dtype": "float32", "shape": [], "unit": "arcsec, before the target PSF"},
    "axis_ratio": {"dtype": "float32", "shape": [], "unit": ""},
    "family": {"dtype": "string", "shape": [], "unit": ""},
    "index": {"dtype": "int64", "shape": [], "unit": "of the galaxy in the population"},
}


def recipe(seed: int) -> dict[str, Any]:
    """What makes the population of `seed` what it is, as its manifest states it (JSON)."""
    return {
        "kind": "galaxies",
        "recipe_version": RECIPE_VERSION,
        "seed": seed,
        "pixel_scale": PIXEL_SCALE,
        "target_fwhm": TARGET_FWHM,
        "magnitude_range": list(MAG_RANGE),
        "families": dict(zip(FAMILIES, FAMILY_SHARE)),
        "fields": FIELDS,
        "software": {"galsim": galsim.__version__, "numpy": np.__version__},
    }


def draw_records(seed: int, start: int, stop: int) -> Any:
    """The galaxies `start` to `stop - 1` of the population as records of FIELDS, and those left
    out: none.
    """
    return [{**vars(draw_galaxy(seed, index)), "index": index} for index in range(start, stop)], []
