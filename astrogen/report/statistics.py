"""The figure of map statistics: simulations with their errors, and every kind of emulated maps,
each above its departure from the simulations.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from astrogen.data.files import write_whole
from astrogen.report.style import INK, QUIET
from astrogen.types import FilePath

STYLES = {
    "network": ("#c2410c", "-", 1.8),
    "lognormal": ("#2563a8", "--", 1.3),
    "Gaussian": ("#6b7f2a", ":", 1.3),
}
BAND = "0.82"
# statistic: title, label along x, is the departure relative (else in units of the largest value)
PANELS = {
    "spectrum": (r"$\ell^2 C_\ell\,/\,2\pi$", r"$\ell$", True),
    "spectrum scatter": (r"scatter of $\ell^2 C_\ell\,/\,2\pi$ from map to map", r"$\ell$", True),
    "equilateral": (r"equilateral bispectrum $\ell^4 B_\ell$", r"$\ell$", True),
    "pdf": ("pixels, probability density", r"$\kappa$", True),
    "peaks": ("peaks per map", r"$\kappa$ of the peak", True),
    "minima": ("minima per map", r"$\kappa$ of the minimum", True),
    "V0": (r"$V_0$: area above the threshold", r"threshold in $\kappa$", False),
    "V1": (r"$V_1$: length of the border [arcmin$^{-1}$]", r"threshold in $\kappa$", False),
    "V2": (r"$V_2$: Euler characteristic [arcmin$^{-2}$]", r"threshold in $\kappa$", False),
}


def write_statistics(compared: dict[str, Any], path: FilePath, *, dpi: int = 110) -> None:
    """Draw all statistics of one cosmology to a file.

    Parameters
    ----------
    compared : dict, one of the cosmologies in the JSON of `python -m benchmarks.maps`
    path : path of the picture
    dpi : int
    """
    path, stream = Path(path), io.BytesIO()
    kind = path.suffix.lstrip(".") or "png"
    draw_statistics(compared).savefig(stream, dpi=dpi, format=kind, facecolor="white")
    write_whole(path, stream.getvalue())


def draw_statistics(compared: dict[str, Any]) -> Figure:
    """The figure of one cosmology, as a matplotlib Figure of nine statistics.

    Argument as that of `write_statistics`.
    """
    figure = Figure(figsize=(14, 11.5), layout="constrained")
    grid = figure.add_gridspec(6, 3, height_ratios=[3, 1.2] * 3)
    for number, (name, (title, label, relative)) in enumerate(PANELS.items()):
        row, column = divmod(number, 3)
        upper = figure.add_subplot(grid[2 * row, column])
        lower = figure.add_subplot(grid[2 * row + 1, column], sharex=upper)
        _draw_statistic(upper, lower, name, compared, relative)
        upper.set_title(title, fontsize=11, color=INK)
        upper.tick_params(labelbottom=False)
        lower.set_xlabel(label, fontsize=9.5, color=INK)
    figure.axes[0].legend(fontsize=9, frameon=False)
    figure.suptitle(
        rf"$\Omega_m$ = {compared['omega_m']:g}, $\sigma_8$ = {compared['sigma_8']:g}:"
        rf" {compared['num_maps']} maps of {compared['num_simulations']} simulations "
        "(grey: standard error), and four times as many of each emulator",
        fontsize=12,
        color=INK,
    )
    return figure


def _draw_statistic(upper, lower, name, compared, relative):
    x, factor = _positions(name, compared)
    simulated, error = (
        factor * np.array(compared["simulations"][name][part]) for part in ("mean", "error")
    )
    unit = simulated if relative else np.abs(simulated).max()
    upper.fill_between(x, simulated - error, simulated + error, color=BAND, label="simulations")
    upper.plot(x, simulated, color=INK, linewidth=0.8)
    lower.fill_between(x, -np.abs(error / unit), np.abs(error / unit), color=BAND)
    for kind, values in compared["priors"].items():
        colour, line, width = STYLES[kind]
        mean = factor * np.array(values["statistics"][name]["mean"])
        upper.plot(x, mean, color=colour, linestyle=line, linewidth=width, label=kind)
        lower.plot(x, (mean - simulated) / unit, color=colour, linestyle=line, linewidth=width)
    limit = 0.2 if relative else 0.08
    lower.set(ylim=(-limit, limit))
    lower.axhline(0, color=INK, linewidth=0.6)
    lower.set_ylabel("departure" if relative else "departure\n/ largest", fontsize=8.5, color=QUIET)
    if x[0] > 1:
        upper.set_xscale("log")
        lower.xaxis.set(
            major_locator=FixedLocator([300, 500, 1000, 2000, 3000]),
            minor_locator=NullLocator(),
            major_formatter=ScalarFormatter(),
        )
    else:
        lower.xaxis.set_major_locator(MaxNLocator(5))
    if name in ("spectrum", "equilateral"):
        upper.set_ylim(bottom=0)
    for axis in (upper, lower):
        axis.tick_params(labelsize=8.5, colors=INK)


def _positions(name, compared):
    """Where the values of a statistic stand along x, and what they are multiplied by."""
    if name in ("spectrum", "spectrum scatter"):
        l = np.array(compared["l"])
        return l, l**2 / (2 * np.pi)
    if name == "equilateral":
        l = np.array(compared["l_triangles"])
        return l, l**4
    if name.startswith("V"):
        return np.array(compared["bins"]["thresholds"]), 1.0
    edges = compared["bins"]["pixels" if name == "pdf" else name]
    if edges[0] is None:  # open at both ends: drawn one bin further
        edges = [2 * edges[1] - edges[2], *edges[1:-1], 2 * edges[-2] - edges[-3]]
    return (np.array(edges[1:]) + edges[:-1]) / 2, 1.0
