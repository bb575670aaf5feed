"""The figure and the page of a mass map: what direct inversion and the Wiener filter see, what is
believed, how well it is known, and three maps that could be true.
"""

import io
import math
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from astrogen.darkmatter.map_mass import MassMap
from astrogen.data.files import write_whole
from astrogen.report.style import (
    GOOD,
    INK,
    LIGHT,
    QUIET,
    SIGNED,
    WARNING,
    list_of,
    page_of,
    picture_of,
    rows_of,
)
from astrogen.types import FilePath

NUM_DRAWN = 3
WIDTH, DPI = 14.0, 110
NOTE = (
    "Convergence maps share one stretch; lines enclose masked pixels. The estimate is the posterior"
    " mean, its error the standard deviation; the draws show what maps consistent with the"
    " observation look like. Everything is in massmap.fits."
)


def write_mass_report(result: MassMap, directory: FilePath, *, title: str) -> Path:
    """Write index.html and massmap.png on a MassMap; the page needs nothing else.

    Parameters
    ----------
    result : MassMap
    directory : path, made where it is missing
    title : str

    Returns
    -------
    Path of index.html
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    draw_mass_map(result, title=title).savefig(stream, dpi=DPI, format="png", facecolor="white")
    write_whole(directory / "massmap.png", stream.getvalue())
    picture = picture_of(stream.getvalue(), f"Mass map of {title}: {result.summary()}")
    body = (
        f"<section>{picture}{list_of('status', result.status)}{list_of('notes', result.field.notes)}</section>\n<p"
        f' class="note">{NOTE}</p>\n<section><h2>Numbers</h2>{rows_of(_numbers(result))}</section>'
    )
    write_whole(
        directory / "index.html",
        page_of(title, overview=escape(result.summary()), body=body, provenance=result.provenance),
    )
    return directory / "index.html"


def draw_mass_map(result: MassMap, *, title: str) -> Figure:
    """The figure, as a matplotlib Figure of eight panels; all maps of convergence share one
    stretch.
    """
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    figure.get_layout_engine().set(rect=(0.005, 0.055, 0.99, 0.89), w_pad=0.03, h_pad=0.05)
    axes = figure.subplots(2, 4)
    low, high = _stretch(result)
    bars = {
        "standard deviation": ("viridis", 0.0, float(result.std.max())),
        "signal to noise": (SIGNED, -4.0, 4.0),
    }
    for axis, (name, pixels) in zip(axes.ravel(), _panels(result), strict=True):
        colours, vmin, vmax = bars.get(name, (LIGHT, low, high))
        picture = axis.imshow(
            pixels,
            origin="lower",
            cmap=colours,
            vmin=vmin,
            vmax=vmax,
            extent=_extent(result),
            interpolation="nearest",
        )
        axis.set_title(name, fontsize=11.5, color=INK)
        axis.tick_params(labelsize=8, colors=QUIET)
        _outline_mask(axis, result)
        figure.colorbar(picture, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(
            labelsize=8, colors=QUIET
        )
    axes[1, 0].set_xlabel("arcmin", fontsize=9, color=QUIET)
    axes[1, 0].set_ylabel("arcmin", fontsize=9, color=QUIET)
    _write_around(figure, result, title)
    return figure


def _panels(result):
    """(name, pixels) of the eight panels."""
    direct = (
        ("observed, smoothed by its beam", result.field.maps[0])
        if result.ks is None
        else (f"Kaiser–Squires, {result.provenance['ks_smoothing']:g}′ smoothing", result.ks[0])
    )
    drawn = np.linspace(0, len(result.draws) - 1, NUM_DRAWN).astype(int)
    return [
        direct,
        ("Wiener filter", result.wiener),
        ("posterior mean", result.mean),
        ("standard deviation", result.std),
        ("signal to noise", result.signal_to_noise),
        *((f"draw {number + 1}", result.draws[index]) for number, index in enumerate(drawn)),
    ]


def _write_around(figure, result, title):
    """What stands above and below the panels."""
    style = {"va": "center", "parse_math": False}
    figure.text(0.012, 0.965, title, fontsize=15, weight="bold", color=INK, **style)
    about = (
        f"{result.provenance['prior']} prior · {len(result.draws)} draws ·"
        f" {result.field.pixel_scale:g}′ per pixel"
    )
    figure.text(0.988, 0.965, about, fontsize=10.5, color=QUIET, ha="right", **style)
    words = (
        "; ".join(result.status)
        or f"ok: R-hat {result.diagnostics['r_hat']:.3f}, reduced χ² of the draws {result.diagnostics['reduced_chi2']:.3f}"
    )
    colour = WARNING if result.status else GOOD
    figure.text(0.012, 0.025, words, fontsize=10.5, color=colour, wrap=True, **style)


def _stretch(result):
    """Colours from the lowest to the highest that the mean and the Wiener map hold, and a little
    more for the draws.
    """
    both = np.stack([result.mean, result.wiener])
    return float(np.quantile(both, 0.002)), 1.3 * float(np.quantile(both, 0.999))


def _extent(result):
    height, width = (side * result.field.pixel_scale / 2 for side in result.mean.shape)
    return -width, width, -height, height


def _outline_mask(axis, result):
    if result.field.mask.any() and not result.field.mask.all():
        fine = np.kron(result.field.mask, np.ones((4, 4)))  # lines follow the edges of pixels
        axis.contour(
            fine,
            levels=[0.5],
            colors="0.75",
            linewidths=0.7,
            extent=_extent(result),
            origin="lower",
        )


def _numbers(result):
    observed = np.count_nonzero(~result.field.mask)
    median = float(np.sqrt(np.median(result.field.variance[:, ~result.field.mask])))
    return {
        "pixels observed": f"{observed} of {result.field.mask.size}",
        "median noise per pixel": f"{median:.4g}",
        "standard deviation, observed pixels": f"{result.std[~result.field.mask].mean():.4g}",
        "standard deviation, masked pixels": (
            f"{result.std[result.field.mask].mean():.4g}"
            if result.field.mask.any()
            else "no masked pixels"
        ),
        **{
            name.replace("_", " "): f"{value:.4g}" if math.isfinite(value) else "-"
            for name, value in result.diagnostics.items()
        },
    }
