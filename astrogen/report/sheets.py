"""Many stamps on one picture: a contact sheet of populations, and galaxies beside their truth and a
rival.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from astrogen.data.files import write_whole
from astrogen.errors import printable
from astrogen.galaxies.result import Result
from astrogen.report.figure import fitted_background
from astrogen.report.style import INK, LIGHT, MASKED, extent_of
from astrogen.types import FilePath


def write_contact_sheet(rows: Mapping[str, np.ndarray], path: FilePath, *, dpi: int = 80) -> None:
    """Many stamps on one sheet, each divided by its peak and shown on the same asinh stretch, so
    that populations can be compared by eye.

    Parameters
    ----------
    rows : dict, label -> array [rows, columns, height, width]
    path : path of the picture
    """
    lines = [
        (label if index == 0 else "", line)
        for label, block in rows.items()
        for index, line in enumerate(block)
    ]
    columns = max(len(line) for _, line in lines)
    figure = Figure(figsize=(0.9 * columns + 1.2, 0.9 * len(lines)))
    norm = AsinhNorm(linear_width=0.03, vmin=-0.03, vmax=1.0)
    for number, (label, line) in enumerate(lines):
        for column, image in enumerate(line):
            axis = figure.add_axes(
                [
                    (1.2 + 0.9 * column) / (0.9 * columns + 1.2),
                    1 - (number + 1) / len(lines),
                    0.88 / (0.9 * columns + 1.2),
                    0.98 / len(lines),
                ]
            )
            axis.imshow(image / image.max(), origin="lower", cmap=LIGHT, norm=norm)
            axis.set_axis_off()
        figure.text(
            0.005,
            1 - (number + 0.5) / len(lines),
            label.replace(", ", ",\n").replace(" from", "\nfrom"),
            va="center",
            fontsize=9,
            color=INK,
        )
    stream = io.BytesIO()
    figure.savefig(stream, dpi=dpi, facecolor="white")
    write_whole(Path(path), stream.getvalue())


def write_map_sheet(
    rows: Sequence[Any], path: FilePath, *, pixel_scale: float, dpi: int = 90
) -> None:
    """Convergence maps on one sheet and one stretch, so that cosmologies can be compared by eye.

    Parameters
    ----------
    rows : sequence of sequences of (title, array [height, width])
    path : path of the picture
    pixel_scale : float, arcmin per pixel
    """
    figure = Figure(figsize=(2.7 * len(rows[0]) + 0.6, 2.5 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    everything = np.concatenate([kappa.ravel() for row in rows for _, kappa in row])
    low, high = np.quantile(everything, [0.001, 0.999])
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, kappa) in zip(line, row, strict=True):
            height, width = (side * pixel_scale / 120 for side in kappa.shape)
            shown = axis.imshow(
                kappa,
                origin="lower",
                cmap=LIGHT,
                vmin=low,
                vmax=high,
                interpolation="nearest",
                extent=(-width, width, -height, height),
            )
            axis.set_title(title, fontsize=10, color=INK)
            axis.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel("degrees", fontsize=9)
    figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.01).set_label("convergence")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=dpi, facecolor="white")
    write_whole(Path(path), stream.getvalue())


def write_comparison(
    results: Sequence[Result],
    rivals: np.ndarray,
    truths: np.ndarray,
    path: FilePath,
    *,
    rival_name: str,
    dpi: int = 110,
) -> FilePath:
    """Observed, another method, deconvolved and truth of simulated galaxies side by side, each
    galaxy on one stretch of surface brightness.

    Parameters
    ----------
    results : sequence of Result
    rivals, truths : arrays [num, height, width], flux per pixel on the results' grids
    path : path of the picture
    rival_name : str
    dpi : int

    Returns
    -------
    path
    """
    blocks = 2 if len(results) > 3 else 1
    lines = math.ceil(len(results) / blocks)
    figure = Figure(figsize=(6.6 * blocks, 1.62 * lines + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.0)
    for part, block in enumerate(figure.subfigures(1, blocks, squeeze=False)[0]):
        axes = block.subplots(lines, 4, squeeze=False)
        for line, number in enumerate(range(part * lines, (part + 1) * lines)):
            if number >= len(results):
                for axis in axes[line]:
                    axis.set_axis_off()
                continue
            _draw_comparison(axes[line], results[number], rivals[number], truths[number])
        for axis, title in zip(axes[0], ("observed", rival_name, "astrogen", "truth"), strict=True):
            axis.set_title(title, fontsize=11, color=INK, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=dpi, facecolor="white")
    write_whole(Path(path), stream.getvalue())
    return path


def _draw_comparison(axes, result, rival, truth):
    """One line of panels, all cut to the field that they share."""
    observation = result.observation
    stamp, field = (
        observation.image.shape[1] * observation.pixel_scale,
        truth.shape[1] * result.prior_scale,
    )
    noise = float(np.sqrt(np.median(observation.variance))) / observation.pixel_scale**2
    norm = AsinhNorm(
        linear_width=1.5 * noise,
        vmin=-noise,
        vmax=max(float(truth.max()) / result.prior_scale**2, 5 * noise),
    )
    seen = (
        np.where(observation.mask, np.nan, observation.image - fitted_background(result))
        / observation.pixel_scale**2
    )
    for axis, brightness, width in zip(
        axes,
        (seen, *(image / result.prior_scale**2 for image in (rival, result.image, truth))),
        (stamp, field, field, field),
        strict=True,
    ):
        axis.set_facecolor(MASKED)
        axis.imshow(
            brightness,
            origin="lower",
            cmap=LIGHT,
            norm=norm,
            interpolation="nearest",
            extent=extent_of(brightness.shape, width),
        )
        axis.set(xticks=[], yticks=[], xlim=(-field / 2, field / 2), ylim=(-field / 2, field / 2))
        for spine in axis.spines.values():
            spine.set(color="0.6", linewidth=0.8)
    axes[0].set_ylabel(printable(result.name), fontsize=9.5, color=INK, parse_math=False)
