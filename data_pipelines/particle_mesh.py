"""Particle-mesh N-body simulations of dark matter in a periodic box, with the kernels of jaxpm.

Second-order Lagrangian start at a = 0.1 with exact derivatives (jaxpm's own start damps small
scales by its finite-difference gradient), forces on a mesh twice as fine as the particles, and
kicks and drifts by the factors of FastPM (Feng et al. 2016, equations 12 to 17), which move every
linear mode exactly; a plain Euler step errs there by 24 % in power. Positions are in cells of the
force mesh, momenta p = a^2 dx/dt / H0 in the same cells.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxpm.kernels import cic_compensation, gradient_kernel, invlaplace_kernel

# The public functions of jaxpm 0.1.6 want as many cells as particles; these do not. The version is
# pinned for their sake.
from jaxpm.painting import _cic_paint_impl, _cic_read_impl

from astrogen.errors import InputError
from data_pipelines.cosmology import expansion, growth, growth_slope

# scale factors between the 40 steps: 20 lose 5 to 15 % of power at k > 1
STEPS = np.concatenate([np.linspace(0.1, 0.5, 21), np.linspace(0.5, 1, 21)[1:]])
MESH_PER_PARTICLE = 2


def wavenumbers(num_side: int, box_size: float) -> tuple[list[np.ndarray], np.ndarray]:
    """The three axes of wavenumbers (h/Mpc) of a real field's FFT, each broadcastable to [n, n, n /
    2 + 1], and their squared sum.
    """
    whole, half = (
        2 * np.pi * np.fft.fftfreq(num_side, box_size / num_side),
        2 * np.pi * np.fft.rfftfreq(num_side, box_size / num_side),
    )
    axes = [whole[:, None, None], whole[None, :, None], half[None, None, :]]
    return axes, axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2


def draw_modes(
    power_fn: Callable[[np.ndarray], np.ndarray],
    *,
    num_side: int,
    box_size: float,
    rng: np.random.Generator,
    fixed: bool = False,
) -> np.ndarray:
    """Fourier modes of the linear density today.

    Parameters
    ----------
    power_fn : callable k (h/Mpc) -> linear power spectrum today, (Mpc/h)^3
    num_side, box_size : int and float, particles along a side, and the side in Mpc/h
    rng : numpy Generator
    fixed : bool, every mode at its rms amplitude with a random phase (Angulo & Pontzen 2016): for
        measuring a mean spectrum, never for maps

    Returns
    -------
    complex ndarray [n, n, n / 2 + 1], as numpy.fft.rfftn gives them
    """
    white = np.fft.rfftn(rng.standard_normal((num_side,) * 3))
    if fixed:
        white *= num_side**1.5 / np.abs(white)
    _, squared = wavenumbers(num_side, box_size)
    return white * np.sqrt(power_fn(np.sqrt(squared)) * num_side**3 / box_size**3)


def _field(modes):
    return np.fft.irfftn(modes, (modes.shape[0],) * 3, axes=(0, 1, 2))


def displacements(modes: np.ndarray, box_size: float) -> tuple[np.ndarray, np.ndarray]:
    """First- and second-order Lagrangian displacements, Mpc/h, for growth factor 1: x = q + D psi_1
    + D^2 psi_2, each [3, n, n, n].
    """
    axes, squared = wavenumbers(modes.shape[0], box_size)
    inverse = np.divide(1, squared, out=np.zeros_like(squared), where=squared > 0)
    # A derivative has no value at the Nyquist frequency of a real field.
    axes = [np.where(np.abs(axis) < np.abs(axis).max(), axis, 0) for axis in axes]
    second = {
        (i, j): _field(axes[i] * axes[j] * inverse * modes) for i in range(3) for j in range(i, 3)
    }
    source = sum(
        second[i, i] * second[j, j] - second[i, j] ** 2 for i, j in ((0, 1), (0, 2), (1, 2))
    )
    # Jenkins (2010), equations 2 and 3, with D_2 = -3/7 D^2.
    both = modes, 3 / 7 * np.fft.rfftn(source)
    linear, quadratic = (
        np.stack([_field(1j * axis * inverse * part) for axis in axes]) for part in both
    )
    return linear, quadratic


def lagrangian_start(
    modes: np.ndarray, omega_m: float, *, box_size: float, a: float
) -> tuple[Any, Any]:
    """Positions and momenta [n^3, 3] of particles that left a grid, by second-order perturbation
    theory, in cells of the force mesh.
    """
    num_side = modes.shape[0]
    cells = MESH_PER_PARTICLE * num_side / box_size
    first, second = (cells * psi.reshape(3, -1).T for psi in displacements(modes, box_size))
    linear, slope = growth(omega_m, a), growth_slope(omega_m, a)
    grid = np.stack(
        np.meshgrid(*[MESH_PER_PARTICLE * np.arange(num_side)] * 3, indexing="ij"), -1
    ).reshape(-1, 3)
    positions = grid + linear * first + linear**2 * second
    momenta = a**3 * expansion(omega_m, a) * slope * (first + 2 * linear * second)
    return jnp.asarray(positions, jnp.float32), jnp.asarray(momenta, jnp.float32)


@partial(jax.jit, static_argnames="num_mesh")
def accelerations(positions: jax.Array, *, num_mesh: int) -> jax.Array:
    """-grad of the potential whose Laplacian is the overdensity, at the particles [num, 3],
    everything in cells of the mesh.
    """
    axes, _ = wavenumbers(num_mesh, num_mesh)
    axes = [jnp.asarray(axis, jnp.float32) for axis in axes]
    density = _cic_paint_impl(jnp.zeros((num_mesh,) * 3), positions) * (
        num_mesh**3 / positions.shape[0]
    )
    # Painting and reading by cloud-in-cell soften the force twice. Undone, P at k = 2 and redshift
    # .4 goes from .72 to .87 of HMCode-2020, at no cost.
    # (It also sharpens the images of the starting lattice: 1 % of power at k = .3, 4 % at .6. A
    # wave on a lattice at rest would feel them fully.)
    potential = jnp.fft.rfftn(density) * invlaplace_kernel(axes) * cic_compensation(axes) ** 2
    return jnp.stack(
        [
            _cic_read_impl(
                jnp.fft.irfftn(-gradient_kernel(axes, i) * potential, density.shape), positions
            )
            for i in range(3)
        ],
        axis=-1,
    )


def _kick(omega_m, start, stop, reference):
    """FastPM's factor of the acceleration known at `reference`, over scale factors from start to
    stop.
    """

    def _momentum_growth(a):
        return a**3 * expansion(omega_m, a) * growth_slope(omega_m, a)

    # The derivative of a^3 E dD/da, by the equation of linear growth, cancels the factor 1.5
    # Omega_m / (a^2 E) of the force.
    return (_momentum_growth(stop) - _momentum_growth(start)) / growth(omega_m, reference)


def _drift(omega_m, start, stop, reference):
    """FastPM's factor of the momentum known at `reference`, over scale factors from start to
    stop.
    """
    rate = reference**3 * expansion(omega_m, reference) * growth_slope(omega_m, reference)
    return (growth(omega_m, stop) - growth(omega_m, start)) / rate


@jax.jit
def _moved(values, factor, slopes):
    return values + factor * slopes


def simulate(
    modes: np.ndarray,
    omega_m: float,
    *,
    box_size: float,
    outputs: Sequence[float] | np.ndarray,
    steps: np.ndarray = STEPS,
) -> Iterator[Any]:
    """Let the particles fall, and yield their positions at chosen times.

    Parameters
    ----------
    modes : complex ndarray, linear density today, as `draw_modes` gives it
    omega_m : float, of flat LCDM
    box_size : float, Mpc/h
    outputs : rising sequence of scale factors, within those of `steps`
    steps : ndarray, scale factors between the steps; the first is that of the Lagrangian start

    Yields
    ------
    positions : Array [n^3, 3], in cells of the force mesh, not wrapped into the box, at each of
        `outputs`
    """
    outputs = list(outputs)
    if outputs != sorted(outputs) or outputs[0] < steps[0] or outputs[-1] > steps[-1]:
        raise InputError(
            f"simulate: outputs must rise within scale factors {steps[0]:g} to {steps[-1]:g}, got"
            f" {outputs}; sort them, or change the steps"
        )
    num_mesh = MESH_PER_PARTICLE * modes.shape[0]
    positions, momenta = lagrangian_start(modes, omega_m, box_size=box_size, a=steps[0])
    forces = accelerations(positions, num_mesh=num_mesh)
    for start, stop in zip(steps, steps[1:]):
        middle = 0.5 * (start + stop)
        momenta = _moved(momenta, _kick(omega_m, start, middle, start), forces)
        while outputs and outputs[0] <= stop:
            yield _moved(positions, _drift(omega_m, start, outputs.pop(0), middle), momenta)
        if not outputs:
            return
        positions = _moved(positions, _drift(omega_m, start, stop, middle), momenta)
        forces = accelerations(positions, num_mesh=num_mesh)
        momenta = _moved(momenta, _kick(omega_m, middle, stop, stop), forces)
