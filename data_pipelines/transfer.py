"""The transfer that brings the simulations' planes to the HMCode-2020 spectrum: sqrt(P_HMCode /
P_simulated) of wavenumber, time and cosmology.

It is a smooth table, transfer.json, measured once by `python -m data_pipelines measure-transfer`:
fixed-amplitude pairs of simulations (the second with all signs turned, which cancels most of the
sample variance; Angulo & Pontzen 2016) at the middle of the range of cosmologies and at eight
points of its edge. It makes up for softened forces at k > 1 and takes out shot noise at k > 6;
below k = 0.3 it is one.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from astrogen.data.reading import read_json
from data_pipelines.cosmology import Cosmology, linear_spectrum, nonlinear_spectrum
from data_pipelines.lightcone import grid_window, place_planes, plane_wavenumbers, simulate_planes
from data_pipelines.particle_mesh import draw_modes

TABLE = Path(__file__).with_name("transfer.json")
KNOTS = np.array([0.3, 0.6, 1.0, 1.6, 2.5, 4.0, 6.0, 9.0])  # h/Mpc
EDGES = np.geomspace(0.2, 10, 33)  # h/Mpc, of the bins in which spectra are measured
POINTS = [
    (0.3, 0.8),
    (0.2, 0.6),
    (0.2, 1.0),
    (0.4, 0.6),
    (0.4, 1.0),
    (0.2, 0.8),
    (0.4, 0.8),
    (0.3, 0.6),
    (0.3, 1.0),
]
MODES_ENOUGH = 2000  # in a bin; more say nothing about the smoothness of the table
TERMS = ("1", "s", "m", "u", "s^2", "u^2", "s u", "m u")


def _terms(cosmology, a):
    s, m, u = (
        (cosmology.sigma_8 - 0.8) / 0.2,
        (cosmology.omega_m - 0.3) / 0.1,
        (np.asarray(a, float) - 0.75) / 0.25,
    )
    return np.stack(np.broadcast_arrays(1.0, s, m, u, s**2, u**2, s * u, m * u), axis=-1)


def _hats(k):
    """Linear interpolation in log k between the knots, zero at and below the first: [..., num_knots
    - 1].
    """
    return np.stack(
        [
            np.interp(np.log(np.maximum(k, 1e-9)), np.log(KNOTS), unit)
            for unit in np.eye(len(KNOTS))[1:]
        ],
        axis=-1,
    )


@lru_cache(maxsize=1)
def _coefficients():
    return np.array(read_json(TABLE)["coefficients"])


def transfer(cosmology: Cosmology, k: np.ndarray, a: float) -> Any:
    """Factor of a plane's Fourier amplitude at wavenumber k (h/Mpc) and scale factor a, for the
    recipe's simulations.
    """
    log_transfer = _hats(k) @ (_terms(cosmology, a) @ _coefficients())
    # Beyond the last knot: white shot noise against a spectrum that falls as k^-2.5.
    return np.exp(log_transfer) * np.minimum(1, KNOTS[-1] / np.maximum(k, 1e-9)) ** 1.25


def no_transfer(k: np.ndarray, a: float) -> Any:
    """The simulations as they are."""
    return 1.0


def plane_spectra(planes: np.ndarray, box_size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power spectra of planes in the bins of EDGES, (Mpc/h)^3, the painting undone: [num_planes,
    num_bins], and the bins' mean k and numbers of modes.
    """
    num_grid = planes.shape[-1]
    k = np.hypot(*plane_wavenumbers(num_grid, box_size)).ravel()
    window = grid_window(num_grid, 2)
    count = partial(np.bincount, np.digitize(k, EDGES), minlength=len(EDGES) + 1)
    num_modes = count()[1:-1]
    power = [
        np.mean(np.abs(np.fft.rfft2(plane) / window) ** 2, axis=0).ravel()
        * box_size**3
        / num_grid**4
        for plane in planes
    ]
    return (
        np.stack([count(one)[1:-1] / num_modes for one in power]),
        count(k)[1:-1] / num_modes,
        num_modes,
    )


def _measure(omega_m, sigma_8, seed, *, num_particles, box_size, num_grid, source_redshift):
    """What the fit needs of one pair of simulations: terms, hats, log(P_simulated / P_HMCode),
    weights, and the bins' k.
    """
    cosmology = Cosmology(omega_m, sigma_8)
    lens = place_planes(omega_m, box_size=box_size, source_redshift=source_redshift)
    modes = draw_modes(
        linear_spectrum(cosmology),
        num_side=num_particles,
        box_size=box_size,
        rng=np.random.default_rng(seed),
        fixed=True,
    )
    pair = [
        plane_spectra(
            simulate_planes(sign * modes, omega_m, lens, box_size=box_size, num_grid=num_grid),
            box_size,
        )
        for sign in (1, -1)
    ]
    k, num_modes = pair[0][1:]
    log_ratio = np.log(
        0.5
        * (pair[0][0] + pair[1][0])
        / nonlinear_spectrum(cosmology)(k[None, :], lens.scale_factor[:, None])
    )
    return (
        _terms(cosmology, lens.scale_factor),
        _hats(k),
        log_ratio,
        np.sqrt(np.minimum(num_modes, MODES_ENOUGH)),
        k,
    )


def _design_matrix(terms, hats):
    """Products of the two bases for every plane and bin: [num_planes * num_bins, num_terms *
    num_hats].
    """
    return np.einsum("pt,bh->pbth", terms, hats).reshape(len(terms) * len(hats), -1)


def fit_transfer(pairs: Sequence[Any]) -> tuple[np.ndarray, float]:
    """The coefficients that fit measured spectra, by least squares, and the rms of ln T that they
    leave.

    Parameters
    ----------
    pairs : list of (terms [num_planes, num_terms], hats [num_bins, num_hats], log(P_simulated /
        P_theory) [num_planes, num_bins], weights [num_bins])

    Returns
    -------
    coefficients : ndarray [num_terms, num_hats]
    residual : float
    """
    weights = np.concatenate([np.tile(weight, len(terms)) for terms, _, _, weight in pairs])
    matrix = np.concatenate([_design_matrix(terms, hats) for terms, hats, _, _ in pairs])
    values = np.concatenate([-0.5 * log_ratio.ravel() for _, _, log_ratio, _ in pairs])
    solution = np.linalg.lstsq(matrix * weights[:, None], values * weights, rcond=None)[0]
    terms, hats, _, _ = pairs[0]
    return solution.reshape(terms.shape[1], hats.shape[1]), float(
        np.sqrt(np.mean((values - matrix @ solution) ** 2))
    )


def measure_transfer(
    seed: int,
    *,
    num_particles: int,
    box_size: float,
    num_grid: int,
    source_redshift: float,
    progress_fn: Callable[[str], object],
) -> dict[str, Any]:
    """Run a pair of simulations at each of POINTS and fit the table.

    Returns
    -------
    dict : `coefficients` [num_terms][num_knots - 1], and how it was measured
    """
    pairs = []
    for number, (omega_m, sigma_8) in enumerate(POINTS):
        *pair, k = _measure(
            omega_m,
            sigma_8,
            [seed, number],
            num_particles=num_particles,
            box_size=box_size,
            num_grid=num_grid,
            source_redshift=source_redshift,
        )
        pairs.append(pair)
        progress_fn(f"{number + 1}/{len(POINTS)}: Omega_m {omega_m}, sigma_8 {sigma_8}")
    coefficients, residual = fit_transfer(pairs)
    fiducial, middle = pairs[0][2], len(pairs[0][2]) // 3
    return {
        "what": (
            "ln T(k; a, Omega_m, sigma_8) = sum over terms and knots; see"
            " data_pipelines/transfer.py"
        ),
        "measured": (
            f"fixed-amplitude pairs at {len(POINTS)} cosmologies, seed {seed}, {num_particles}^3"
            f" particles in {box_size:g} Mpc/h"
        ),
        "command": f"python -m data_pipelines measure-transfer --seed {seed}",
        "knots": KNOTS.tolist(),
        "terms": list(TERMS),
        "coefficients": coefficients.round(5).tolist(),
        "rms_of_residual": round(residual, 4),
        "fiducial": {
            "k": k.round(3).tolist(),
            "plane": middle,
            "power_over_hmcode": np.exp(fiducial[middle]).round(3).tolist(),
        },
    }
