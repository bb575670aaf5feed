"""The figure of one object, in the order in which it is understood: observed, model seen through
the PSF, residual, deconvolved, uncertainty, three imagined solutions.

Everything but the residual is shown as surface brightness above the fitted background, on one
stretch, so that panels can be compared by eye.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from astrogen.data.files import write_whole
from astrogen.errors import printable
from astrogen.galaxies.quantities import format_value
from astrogen.galaxies.result import Result, all_status
from astrogen.inference.verdict import format_p
from astrogen.report.scene import draw_scene
from astrogen.report.style import (
    GOOD,
    INK,
    LIGHT,
    QUIET,
    RESIDUAL_LIMIT,
    SIGNED,
    WARNING,
    extent_of,
)
from astrogen.types import FilePath

NUM_IMAGINED = 3


def write_figure(result: Result, path: FilePath, *, dpi: int = 110) -> Path:
    """Draw the figure of a result to a file, PNG or whatever else the ending says.

    Parameters
    ----------
    result : Result
    path : path
    dpi : int, pixels per inch; of one galaxy in one exposure 14 x 8.2 inches

    Returns
    -------
    Path of the file
    """
    path = Path(path)
    write_whole(path, figure_bytes(result, dpi=dpi, kind=path.suffix.lstrip(".") or "png"))
    return path


def figure_bytes(result: Result, *, dpi: int, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    draw_figure(result).savefig(stream, dpi=dpi, format=kind, facecolor="white")
    return stream.getvalue()


def draw_figure(result: Result) -> Figure:
    """The figure of a result, as a matplotlib Figure: eight panels of one galaxy in one exposure,
    or those of `scene`.
    """
    if not result.is_lone:
        return draw_scene(result)
    figure = Figure(figsize=(14, 8.2), layout="constrained")
    figure.get_layout_engine().set(
        w_pad=0.04, h_pad=0.06, wspace=0.02, hspace=0.03, rect=(0.007, 0.092, 0.986, 0.85)
    )
    axes = figure.subplots(2, 4).ravel()
    norm = common_stretch(result)
    for axis, (title, brightness, width) in zip(axes, _panels(result), strict=True):
        _draw_panel(axis, title, brightness, width, norm)
    _draw_residual(axes[2], result)
    _hatch_masked(axes[:3], result)
    _outline_field(axes[:3], result)
    for axis in (axes[0], axes[3]):
        _scale_bar(axis)
    _colour_bars(figure, axes, result)
    _write_words(figure, result)
    return figure


def _panels(result):
    """(title, surface brightness, width in arcsec) of each panel; the image is None where there is
    nothing to show.
    """
    observed_area, deconvolved_area = result.observation.pixel_scale**2, result.prior_scale**2
    stamp = result.observation.image.shape[1] * result.observation.pixel_scale
    field = result.image.shape[1] * result.prior_scale
    spread = result.image_std / deconvolved_area if len(result.draws) > 1 else None
    imagined = [None] * NUM_IMAGINED
    if len(result.draws) >= NUM_IMAGINED:
        imagined = list(
            result.draw_images(NUM_IMAGINED, seed=result.provenance.get("seed", 0))
            / deconvolved_area
        )
    background = fitted_background(result)
    images = [
        ("Observed", (result.observation.image - background) / observed_area, stamp),
        ("Model seen through the PSF", (result.model - background) / observed_area, stamp),
        ("Residual", result.residual / observed_area, stamp),
        ("Deconvolved", result.image / deconvolved_area, field),
        ("Uncertainty", spread, field),
    ]
    return images + [
        (f"Imagined solution {number}", image, field) for number, image in enumerate(imagined, 1)
    ]


def fitted_background(result: Result) -> float:
    """Posterior mean of the background, flux per observed pixel: figures show light above it."""
    return result.background[0] if len(result.background_draws) else 0.0


def common_stretch(result: Result) -> AsinhNorm:
    """Asinh from the noise of the stamp to the brightest of the deconvolved image, as surface
    brightness.
    """
    observation = result.observation
    good = ~observation.mask
    noise = (
        float(np.sqrt(np.median(observation.variance[good]))) / observation.pixel_scale**2
        if good.any()
        else 1.0
    )
    brightest = max(float(np.quantile(result.image, 0.9995)) / result.prior_scale**2, 5 * noise)
    return AsinhNorm(linear_width=1.5 * noise, vmin=-noise, vmax=brightest)


def _draw_panel(axis, title, brightness, width, norm):
    axis.set_title(title, fontsize=11.5, color=INK, pad=5, y=1.0)  # a given y keeps it there
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="0.6", linewidth=0.8)
    if brightness is None:
        axis.set_facecolor("0.95")
        axis.set_box_aspect(1)
        axis.text(
            0.5, 0.5, "no draws", transform=axis.transAxes, ha="center", va="center", color=QUIET
        )
        return
    axis.imshow(
        brightness,
        origin="lower",
        cmap=LIGHT,
        norm=norm,
        interpolation="nearest",
        extent=extent_of(brightness.shape, width),
    )


def _draw_residual(axis, result):
    axis.images[0].remove()
    significance = result.residual / np.sqrt(result.observation.variance)
    width = significance.shape[1] * result.observation.pixel_scale
    axis.imshow(
        significance,
        origin="lower",
        cmap=SIGNED,
        vmin=-RESIDUAL_LIMIT,
        vmax=RESIDUAL_LIMIT,
        interpolation="nearest",
        extent=extent_of(significance.shape, width),
    )


def _hatch_masked(axes, result):
    """Grey and hatched where the mask is; the model panel keeps its light and gets the hatches
    only.
    """
    mask = result.observation.mask
    if not mask.any():
        return
    extent = extent_of(mask.shape, mask.shape[1] * result.observation.pixel_scale)
    fine = np.kron(mask, np.ones((4, 4)))  # contours follow the pixels' edges
    for axis, covered in zip(axes, (True, False, True), strict=True):
        if covered:
            axis.imshow(
                np.where(mask, 1.0, np.nan),
                origin="lower",
                cmap="Greys",
                vmin=0,
                vmax=3.2,
                extent=extent,
                interpolation="nearest",
            )
        hatched = axis.contourf(
            fine, levels=[0.5, 1.5], colors="none", hatches=["////"], extent=extent, origin="lower"
        )
        hatched.set_edgecolor("0.45")
        hatched.set_linewidth(0)


def _outline_field(axes, result):
    """The field of the deconvolved image, where it is smaller than the stamp."""
    field = result.image.shape[1] * result.prior_scale
    stamp = min(result.observation.image.shape) * result.observation.pixel_scale
    if field < 0.97 * stamp:
        for axis, colour in zip(axes, ("white", "white", "0.3"), strict=True):
            axis.add_patch(
                Rectangle(
                    (-field / 2, -field / 2),
                    field,
                    field,
                    fill=False,
                    edgecolor=colour,
                    linewidth=0.9,
                    linestyle=(0, (5, 4)),
                )
            )


def _scale_bar(axis):
    left, right = axis.get_xlim()
    bottom, top = axis.get_ylim()
    longest = (right - left) / 3
    unit = 10.0 ** math.floor(math.log10(longest))
    length = max(step * unit for step in (1, 2, 5) if step * unit <= longest)
    x, y = left + 0.06 * (right - left), bottom + 0.07 * (top - bottom)
    # readable on bright and masked pixels too
    outlined = [withStroke(linewidth=3.5, foreground="black", alpha=0.6)]
    axis.plot(
        [x, x + length],
        [y, y],
        color="white",
        linewidth=2.2,
        solid_capstyle="butt",
        path_effects=outlined,
    )
    axis.text(
        x + length / 2,
        y + 0.02 * (top - bottom),
        f"{length:g}″",
        color="white",
        ha="center",
        va="bottom",
        fontsize=10,
        path_effects=outlined,
    )


def _colour_bars(figure, axes, result):
    unit = f"{result.unit}".strip() or "flux"
    light = figure.colorbar(
        axes[0].images[0],
        ax=list(axes),
        fraction=0.03,
        pad=0.008,
        aspect=42,
        ticks=_ticks(axes[0].images[0].norm),
    )
    light.set_label(
        f"surface brightness  [{unit} / arcsec²]", fontsize=10, color=INK, parse_math=False
    )
    light.formatter = FuncFormatter(lambda value, _: f"{value:g}")
    light.minorticks_off()
    residual = figure.colorbar(
        axes[2].images[0],
        cax=axes[2].inset_axes([0.72, 1.03, 0.18, 0.03]),
        orientation="horizontal",
        ticks=[],
    )
    for x, side, sign in ((0.71, "right", "−"), (0.91, "left", "+")):
        axes[2].text(
            x,
            1.042,
            f"{sign}{RESIDUAL_LIMIT:g}σ",
            transform=axes[2].transAxes,
            ha=side,
            va="center",
            fontsize=9,
            color=INK,
        )
    for bar in (light, residual):
        bar.outline.set(edgecolor="0.6", linewidth=0.8)
        bar.ax.tick_params(labelsize=9, labelcolor=INK, color="0.6")


def _ticks(norm):
    """Zero, and 1, 2, 5 in every decade above the noise as far as there is room for them."""
    decades = range(math.floor(math.log10(norm.linear_width)), math.ceil(math.log10(norm.vmax)) + 1)
    steps = (1,) if len(decades) > 4 else (1, 3)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [0, *(tick for tick in ticks if norm.linear_width < tick <= norm.vmax)]


def _write_words(figure, result):
    """Name above; numbers and status below. Names are never read as formulas."""
    figure.text(
        0.012,
        0.967,
        printable(result.name),
        fontsize=15,
        weight="bold",
        color=INK,
        va="center",
        parse_math=False,
    )
    method = (
        f"{result.method} · {result.num_draws} {'draw' if result.num_draws == 1 else 'draws'} ·"
        f" resolution {result.target_fwhm:.3g}″ · {result.prior_scale:.3g}″ per pixel"
    )
    figure.text(
        0.988, 0.967, method, fontsize=10.5, color=QUIET, va="center", ha="right", parse_math=False
    )
    figure.text(
        0.012,
        0.068,
        "     ".join(f"{label} {text}" for label, text in _labelled_quantities(result)),
        fontsize=12,
        color=INK,
        va="center",
        parse_math=False,
    )
    sentences = all_status(result)
    shown = [sentence.replace("_", " ", 1) for sentence in sentences_in_figure(sentences)]
    if len(shown) < len(sentences):
        shown.append(f"and {len(sentences) - len(shown)} more, see the file")
    text = "\n".join(shown) or "ok: converged, and the residual is consistent with the noise"
    figure.text(
        0.012,
        0.027,
        text,
        fontsize=10.5,
        color=WARNING if sentences else GOOD,
        va="center",
        parse_math=False,
    )


def _labelled_quantities(result):
    """(label, text) of every number of a catalogue."""
    unit = f" {result.unit}".rstrip()
    return [
        ("flux", format_value(result.flux) + unit),
        ("half-light radius", format_value(result.half_light_radius) + "″"),
        ("e₁", format_value(result.e1)),
        ("e₂", format_value(result.e2)),
        ("reduced χ²", f"{number_text(result.chi2)} ({format_p(result.p_value)})"),
    ]


def sentences_in_figure(sentences: Sequence[str]) -> list[str]:
    """Two lines of at most 190 letters fit under the panels."""
    fitting = [sentence for sentence in sentences if len(sentence) <= 190]
    return fitting[:2] if len(fitting) == len(sentences) <= 2 else fitting[:1]


def number_text(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
