"""From a simulated box to convergence maps: density planes along the line of sight, and the Born
approximation.

The box is stacked along the line of sight out to the sources. Each plane is the overdensity of the
whole box at the time the light passed its middle, projected along one of its axes; slabs thinner
than the box would cut modes along the line of sight (4-8 % of power at l < 300). A map looks
through every plane at a random place, along a random axis, turned by a random angle and mirrored at
random, so that a structure is not met twice at the same place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxpm.painting import cic_paint_2d
from scipy.ndimage import map_coordinates

from data_pipelines import particle_mesh
from data_pipelines.cosmology import HUBBLE_DISTANCE, distance, scale_factor_at

ARCMIN = np.pi / 180 / 60  # radian
SUBSTEPS = 200  # of the integral of the lensing weight over one plane
FEWEST_RAYS = 3  # along a side of a pixel; one more for every two cells that it covers


@dataclass(frozen=True)
class Lens:
    """The planes between us and the sources, nearest first.

    Parameters
    ----------
    distance : ndarray [num_planes], Mpc/h to the middle of each
    scale_factor : ndarray [num_planes], when the light passed there
    weight : ndarray [num_planes], convergence per mean overdensity of the plane's depth
    """

    distance: np.ndarray
    scale_factor: np.ndarray
    weight: np.ndarray


def lensing_weight(omega_m: float, chi: Any, chi_source: Any) -> Any:
    """Convergence per overdensity and comoving length (h/Mpc) at distances chi (Mpc/h), in a flat
    universe.
    """
    a = scale_factor_at(omega_m, chi)
    return np.where(
        chi < chi_source, 1.5 * omega_m / HUBBLE_DISTANCE**2 * chi * (1 - chi / chi_source) / a, 0
    )


def place_planes(omega_m: float, *, box_size: float, source_redshift: float) -> Lens:
    """The planes, each one box deep, that light from the sources passes."""
    chi_source = distance(omega_m, source_redshift)
    near = box_size * np.arange(np.ceil(chi_source / box_size))
    inside = near[:, None] + box_size * (np.arange(SUBSTEPS) + 0.5) / SUBSTEPS
    middle = near + 0.5 * box_size
    return Lens(
        middle,
        scale_factor_at(omega_m, middle),
        box_size * lensing_weight(omega_m, inside, chi_source).mean(axis=1),
    )


@partial(jax.jit, static_argnames="num_grid")
def _project(positions, cells_per_cell, *, num_grid):
    """Overdensity of the box projected along each of its axes: [3, num_grid, num_grid], by
    cloud-in-cell.
    """
    scaled = positions * cells_per_cell
    counts = jnp.stack(
        [
            cic_paint_2d(jnp.zeros((num_grid, num_grid)), scaled[:, axes], None)
            for axes in (jnp.array([1, 2]), jnp.array([0, 2]), jnp.array([0, 1]))
        ]
    )
    return counts * (num_grid**2 / positions.shape[0]) - 1


def simulate_planes(
    modes: np.ndarray, omega_m: float, lens: Lens, *, box_size: float, num_grid: int
) -> np.ndarray:
    """Run one simulation and project it at the time of every plane: float32 ndarray [num_planes, 3
    axes, num_grid, num_grid], overdensity.
    """
    snapshots = particle_mesh.simulate(
        modes, omega_m, box_size=box_size, outputs=lens.scale_factor[::-1]
    )
    scale = num_grid / (particle_mesh.MESH_PER_PARTICLE * modes.shape[0])
    return np.stack(
        [np.asarray(_project(positions, scale, num_grid=num_grid)) for positions in snapshots]
    )[::-1]


def plane_wavenumbers(num_grid: int, box_size: float) -> tuple[np.ndarray, np.ndarray]:
    """The two axes of wavenumbers (h/Mpc) of a plane's rfft2, broadcastable to [n, n / 2 + 1]."""
    spacing = box_size / num_grid
    return (
        2 * np.pi * np.fft.fftfreq(num_grid, spacing)[:, None],
        2 * np.pi * np.fft.rfftfreq(num_grid, spacing)[None, :],
    )


def grid_window(num_grid: int, power: int) -> np.ndarray:
    """The Fourier window, to a power, of one cell's top hat: [n, n / 2 + 1].

    Painting by cloud-in-cell, and linear interpolation, are each power 2.
    """
    return (
        np.sinc(np.fft.fftfreq(num_grid))[:, None] * np.sinc(np.fft.rfftfreq(num_grid))[None, :]
    ) ** power


def filter_planes(
    planes: np.ndarray,
    lens: Lens,
    transfer_fn: Callable[[np.ndarray, float], Any],
    *,
    box_size: float,
) -> np.ndarray:
    """Undo the planes' grid, and multiply every mode by a transfer.

    Parameters
    ----------
    planes : ndarray [num_planes, 3, n, n], by cloud-in-cell
    lens : Lens
    transfer_fn : callable k (h/Mpc), a -> factor of the amplitude

    Returns
    -------
    float32 ndarray of the same shape
    """
    num_grid = planes.shape[-1]
    first, second = plane_wavenumbers(num_grid, box_size)
    k = np.hypot(first, second)
    # Two powers by the painting, two by the straight lines between points in `look`.
    window = grid_window(num_grid, 4)
    return np.stack(
        [
            np.fft.irfft2(
                np.fft.rfft2(plane) * (transfer_fn(k, a) / window), (num_grid, num_grid)
            ).astype(np.float32)
            for plane, a in zip(planes, lens.scale_factor)
        ]
    )


def look(
    plane: np.ndarray,
    origin: Sequence[float] | np.ndarray,
    angle: float,
    cells_per_pixel: float,
    side: int,
) -> np.ndarray:
    """The mean of a periodic plane over the pixels of a square view that is turned against it.

    Along axes of the plane its cells, and the lattice of the box's waves, would line up with the
    pixels: bands of power differed by 5 % between the axes and the diagonals of a map. The mean is
    a Gauss-Legendre sum over rays, the plane is linear between its points.

    Parameters
    ----------
    plane : ndarray [n, n], values at the points of a grid
    origin : pair of floats, the middle of the view along each axis, in cells
    angle : float, radian, from the axes of the plane to those of the view
    cells_per_pixel, side : float and int, size of a pixel, and pixels along a side

    Returns
    -------
    ndarray [side, side]
    """
    # Two rays evenly spread would leave 23 % too much power at the pixels' Nyquist frequency; three
    # of Gauss and Legendre err by 0.1 %.
    nodes, weights = np.polynomial.legendre.leggauss(FEWEST_RAYS + int(cells_per_pixel / 2))
    along = cells_per_pixel * (np.arange(side)[:, None] + 0.5 + nodes / 2 - side / 2).ravel()
    first = origin[0] + np.cos(angle) * along[:, None] - np.sin(angle) * along
    second = origin[1] + np.sin(angle) * along[:, None] + np.cos(angle) * along
    seen = map_coordinates(plane, [first, second], order=1, mode="grid-wrap")
    return np.einsum(
        "yaxb,a,b->yx", seen.reshape(side, len(nodes), side, len(nodes)), weights / 2, weights / 2
    )


def draw_map(
    planes: np.ndarray,
    lens: Lens,
    *,
    box_size: float,
    side: int,
    pixel_scale: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """One convergence map through randomly placed, turned and mirrored planes.

    Parameters
    ----------
    planes : ndarray [num_planes, 3, n, n], overdensity projected along each axis
    lens : Lens
    box_size : float, Mpc/h
    side, pixel_scale : int and float, pixels along a side and arcmin per pixel; the value of a
        pixel is the mean over it
    rng : numpy Generator

    Returns
    -------
    float32 ndarray [side, side]
    """
    num_grid = planes.shape[-1]
    kappa = np.zeros((side, side), np.float32)
    for three, chi, weight in zip(planes, lens.distance, lens.weight):
        seen = look(
            three[rng.integers(3)],
            rng.uniform(0, num_grid, 2),
            rng.uniform(0, 2 * np.pi),
            pixel_scale * ARCMIN * chi * num_grid / box_size,
            side,
        )
        kappa += np.float32(weight) * seen[:: rng.choice((-1, 1))]
    return kappa
