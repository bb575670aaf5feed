"""Are the maps right? Their mean spectrum over HMCode-2020's, band by band, with errors from
simulation to simulation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from astrogen.data.images import only_plane, read_images
from astrogen.types import FilePath
from data_pipelines.convergence import RANGE
from data_pipelines.cosmology import Cosmology
from data_pipelines.pixels import average_pixels
from data_pipelines.theory import band_means, expected_map_power, limber_spectrum, map_power

BANDS = np.array([150, 250, 350, 500, 700, 1000, 1350, 1700, 2000, 2500, 3000, 4000])  # l
THEORY_L = np.geomspace(1.5, 1e5, 80)  # multipoles of the spectra that priors are made of
KTNG_COSMOLOGY = Cosmology(0.3089, 0.8159, hubble=0.6774, omega_b=0.0486, spectral_index=0.9667)
KTNG_PIXEL_SCALE = 0.29  # arcmin per pixel
# The sources of the public kappaTNG map are not at redshift 1: the theory file beside it is
# HMCode-2020 for sources at 1.2, within 4 % at 100 < l < 10^4.
KTNG_SOURCE_REDSHIFTS = (1.0, 1.2)


def _ratio(kappa, expected, pixel_scale):
    """Mean band powers of maps [num, side, side] over those that theory expects."""
    means = band_means(
        map_power(kappa, pixel_scale=pixel_scale), BANDS, pixel_scale=pixel_scale
    ).mean(axis=0)
    return means / band_means(expected, BANDS, pixel_scale=pixel_scale)


def compare_with_theory(maps: dict[str, Any], *, source_redshift: float) -> dict[str, Any]:
    """Mean power of simulated maps over HMCode-2020, each simulation at its own cosmology.

    Parameters
    ----------
    maps : dict, as astrogen.training.records.load_maps gives it
    source_redshift : float

    Returns
    -------
    dict : bands (edges in l), ratio and its standard error over simulations, num_simulations,
        num_maps, and `standard_deviation` and `skewness` of the pixels
    """
    kappa, side, ratios, expected = maps["kappa"], maps["kappa"].shape[-1], [], {}
    for simulation in np.unique(maps["simulation"]):
        own = maps["simulation"] == simulation
        point = tuple(float(value) for value in maps["cosmology"][own][0])
        if point not in expected:
            expected[point] = expected_map_power(
                Cosmology(*point),
                side=side,
                pixel_scale=maps["pixel_scale"],
                source_redshift=source_redshift,
            )
        ratios.append(_ratio(kappa[own], expected[point], maps["pixel_scale"]))
    centred = kappa - kappa.mean(dtype=np.float64)
    spread = centred.std()
    return {
        "bands": BANDS.tolist(),
        "ratio": np.mean(ratios, axis=0).tolist(),
        "error": (
            (np.std(ratios, axis=0, ddof=1) / np.sqrt(len(ratios))).tolist()
            if len(ratios) > 1
            else None
        ),
        "num_simulations": len(ratios),
        "num_maps": len(kappa),
        "standard_deviation": float(spread),
        "skewness": float(np.mean((centred / spread) ** 3)),
    }


def expected_points() -> list[tuple[float, float]]:
    """25 cosmologies over the range of the simulations: list of (Omega_m, sigma_8)."""
    return [
        (float(omega_m), float(sigma_8))
        for omega_m in np.linspace(*RANGE["omega_m"], 5).round(5)
        for sigma_8 in np.linspace(*RANGE["sigma_8"], 5).round(5)
    ]


def expected_spectra(
    points: Sequence[tuple[float, float]],
    *,
    source_redshift: float,
    progress_fn: Callable[[str], object],
) -> dict[str, Any]:
    """What HMCode-2020 expects of the convergence, before pixels and edges: the file of `astrogen
    train kappa --spectrum`.

    Parameters
    ----------
    points : list of (Omega_m, sigma_8)
    source_redshift : float, up to 1.2
    progress_fn : callable of str, told of each cosmology

    Returns
    -------
    dict : source_redshift, cosmologies [num][2], multipoles [num_l], spectrum [num][num_l] in
        steradian
    """
    spectra = []
    for number, point in enumerate(points, 1):
        found = limber_spectrum(THEORY_L, Cosmology(*point), source_redshift=source_redshift)
        spectra.append(found.tolist())
        progress_fn(f"{number}/{len(points)}: Omega_m {point[0]:g}, sigma_8 {point[1]:g}")
    return {
        "what": "angular power spectra of the convergence: HMCode-2020, Limber",
        "source_redshift": source_redshift,
        "cosmologies": points,
        "multipoles": THEORY_L.tolist(),
        "spectrum": spectra,
    }


def compare_ktng(path: FilePath, *, pixel_scale: float) -> Any:
    """Mean power of the kappaTNG map, averaged to pixels of `pixel_scale` arcmin, over HMCode-2020
    of its cosmology: a dict by source redshift.

    One map of 1.7 degrees: errors are as large as 30 % in the first bands. A sanity picture, not a
    target.
    """
    planes = read_images(path)
    kappa = average_pixels(
        only_plane(path, planes, planes, "the map").pixels, KTNG_PIXEL_SCALE / pixel_scale
    )
    return {
        f"{redshift:g}": (
            _ratio(
                kappa[None],
                expected_map_power(
                    KTNG_COSMOLOGY,
                    side=len(kappa),
                    pixel_scale=pixel_scale,
                    source_redshift=redshift,
                ),
                pixel_scale,
            ).tolist()
        )
        for redshift in KTNG_SOURCE_REDSHIFTS
    }
