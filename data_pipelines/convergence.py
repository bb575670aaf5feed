"""The recipe of the simulated convergence maps: a design of cosmologies, one small N-body
simulation for each, many maps through each simulation.

A simulation is small, so that it costs 10 s on one core and many independent ones can be had: 64^3
particles, 128^3 mesh, 128 Mpc/h. At (0.3, 0.8) the mean spectrum P(l) of 32 simulations over
HMCode-2020 is, with errors of .03 below l = 350, .02 to 1350, .01 to 2500 and .006 beyond:

| l | 150-250 | -350 | -500 | -700 | -1000 | -1350 | -1700 | -2000 | -2500 | -3000 | -4000 |
|---|---|---|---|---|---|---|---|---|---|---|---|
| as it is | .99 | .97 | .99 | .98 | .95 | .93 | .90 | .88 | .86 | .84 | .83 |
| with the transfer (transfer.py) | .99 | .97 | 1.00 | 1.00 | .99 | 1.01 | 1.01 | 1.01 | 1.01 | 1.01
| 1.00 |

Within 10 % for 150 < l < 1350 as it is, within 3 % to l = 4000 with the transfer; the transfer is
larger at larger sigma_8. The first row is that of 8 simulations, times what their modes differ by
from all 32 in the second. `python -m data_pipelines check-convergence` makes the table of any
records, `convergence --uncorrected` the maps of its first row. What no transfer mends: haloes are
softer than 1 Mpc/h, and a particle weighs 6.7e11 Msun/h at Omega_m = 0.3, so that on the scale of
one pixel part of the structure is shot noise.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.stats import qmc

from astrogen.errors import InputError
from data_pipelines.cosmology import Cosmology, linear_spectrum
from data_pipelines.lightcone import draw_map, filter_planes, place_planes, simulate_planes
from data_pipelines.particle_mesh import MESH_PER_PARTICLE, STEPS, draw_modes
from data_pipelines.pixels import FIELDS, PIXEL_SCALE, SIDE
from data_pipelines.transfer import measure_transfer, no_transfer, transfer

RANGE = {"omega_m": (0.2, 0.4), "sigma_8": (0.6, 1.0)}
SOURCE_REDSHIFT = 1.0
# along a side; Mpc/h: as wide as the view at the sources for every cosmology of the range
NUM_PARTICLES, BOX_SIZE = 64, 128.0
NUM_GRID = 512  # cells along a side of a plane
# to be raised with every change of what is drawn: trained weights name the recipe they learned from
RECIPE_VERSION = 2


def design(num: int, seed: int) -> list[tuple[float, float]]:
    """Cosmologies that fill the range evenly: `num` pairs (Omega_m, sigma_8) of a scrambled Halton
    sequence.
    """
    low, high = zip(*RANGE.values())
    points = qmc.scale(qmc.Halton(2, scramble=True, rng=seed).random(num), low, high)
    return [(round(float(omega_m), 5), round(float(sigma_8), 5)) for omega_m, sigma_8 in points]


def check_cosmology(omega_m: float, sigma_8: float) -> None:
    """Refuse a cosmology outside of the range over which the transfer was measured.

    Raises
    ------
    ValueError : outside, or not a number.
    """
    for name, value in (("omega_m", omega_m), ("sigma_8", sigma_8)):
        low, high = RANGE[name]
        if not low <= value <= high:
            raise InputError(
                f"recipe: {name} must be within {low} to {high}, got {value}; the simulations are"
                " corrected to theory only there"
            )


def recipe(
    points: Sequence[tuple[float, float]],
    *,
    maps_per_simulation: int,
    seed: int,
    corrected: bool = True,
) -> dict[str, Any]:
    """What simulated maps are made of, as their manifest states it (JSON).

    Parameters
    ----------
    points : list of (Omega_m, sigma_8), one for each simulation
    maps_per_simulation, seed : int
    corrected : bool, whether the planes are brought to the HMCode-2020 spectrum
    """
    for point in points:
        check_cosmology(*point)
    fixed = Cosmology(*points[0])
    return {
        "kind": "convergence",
        "recipe_version": RECIPE_VERSION,
        "seed": seed,
        "num": len(points) * maps_per_simulation,
        "maps_per_simulation": maps_per_simulation,
        "points": [list(point) for point in points],
        "pixel_scale": PIXEL_SCALE,
        "pixel_scale_unit": "arcmin",
        "source_redshift": SOURCE_REDSHIFT,
        "transform": "kappa",
        "corrected": corrected,
        "fixed": {
            "hubble": fixed.hubble,
            "omega_b": fixed.omega_b,
            "spectral_index": fixed.spectral_index,
            "neutrino_mass": 0,
            "curvature": 0,
            "w": -1,
        },
        "simulation": {
            "particles": NUM_PARTICLES,
            "mesh": MESH_PER_PARTICLE * NUM_PARTICLES,
            "box_size": BOX_SIZE,
            "steps": len(STEPS) - 1,
            "first_scale_factor": STEPS[0],
            "plane_grid": NUM_GRID,
        },
        "fields": FIELDS,
        "software": {name: version(name) for name in ("jaxpm", "jax", "camb", "numpy")},
    }


@lru_cache(maxsize=1)
def _simulate(point, seed, simulation, *, num_particles, num_grid, corrected):
    """The filtered planes of one simulation, and where they are."""
    cosmology = Cosmology(*point)
    lens = place_planes(cosmology.omega_m, box_size=BOX_SIZE, source_redshift=SOURCE_REDSHIFT)
    rng = np.random.default_rng([seed, simulation])
    modes = draw_modes(
        linear_spectrum(cosmology), num_side=num_particles, box_size=BOX_SIZE, rng=rng
    )
    planes = simulate_planes(modes, cosmology.omega_m, lens, box_size=BOX_SIZE, num_grid=num_grid)
    return (
        filter_planes(
            planes,
            lens,
            partial(transfer, cosmology) if corrected else no_transfer,
            box_size=BOX_SIZE,
        ),
        lens,
    )


def draw_records(header: dict[str, Any], start: int, stop: int) -> Any:
    """Maps `start` to `stop - 1` of a recipe as records of its fields, and those left out (none).

    A map depends on the recipe's seed, the number of its simulation and its own number in it alone.
    """
    records, size = [], header["simulation"]
    for index in range(start, stop):
        simulation, number = divmod(index, header["maps_per_simulation"])
        point = tuple(header["points"][simulation])
        planes, lens = _simulate(
            point,
            header["seed"],
            simulation,
            num_particles=size["particles"],
            num_grid=size["plane_grid"],
            corrected=header["corrected"],
        )
        rng = np.random.default_rng([header["seed"], simulation, number + 1])
        kappa = draw_map(
            planes, lens, box_size=BOX_SIZE, side=SIDE, pixel_scale=PIXEL_SCALE, rng=rng
        )
        records.append(
            {
                "kappa": kappa,
                "omega_m": point[0],
                "sigma_8": point[1],
                "simulation": simulation,
                "index": index,
            }
        )
    return records, []


def measure_recipe_transfer(seed: int, progress_fn: Callable[[str], object]) -> dict[str, Any]:
    """The transfer of this recipe's simulations, measured anew (dict)."""
    return measure_transfer(
        seed,
        num_particles=NUM_PARTICLES,
        box_size=BOX_SIZE,
        num_grid=NUM_GRID,
        source_redshift=SOURCE_REDSHIFT,
        progress_fn=progress_fn,
    )
