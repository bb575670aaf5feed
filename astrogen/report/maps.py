"""The figure and the page of a mass map: what direct inversion and the Wiener filter see, what is believed, how well it is known, and three maps that could be true."""
import base64
import io
import json
import math
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from astrogen.report.style import GOOD, INK, LIGHT, QUIET, SIGNED, STYLE, WARNING, write_whole

NUM_DRAWN = 3
WIDTH, DPI = 14.0, 110


def write_mass_report(result, directory, *, title):
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
    picture = base64.b64encode(stream.getvalue()).decode()
    page = PAGE.format(title=escape(title), style=STYLE, overview=escape(result.summary()), picture=picture, alternative=escape(f"Mass map of {title}: {result.summary()}"),
                       status=_list("status", result.status), notes=_list("notes", result.field.notes), numbers=_table(_numbers(result)), provenance=_table(result.provenance))
    write_whole(directory / "index.html", page.encode())
    return directory / "index.html"


def draw_mass_map(result, *, title):
    """The figure, as a matplotlib Figure of eight panels; all maps of convergence share one stretch."""
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    figure.get_layout_engine().set(rect=(0.005, 0.055, 0.99, 0.89), w_pad=0.03, h_pad=0.05)
    axes = figure.subplots(2, 4)
    low, high = _stretch(result)
    direct = ("observed, smoothed by its beam", result.field.maps[0]) if result.ks is None else (f"Kaiser–Squires, {result.provenance['ks_smoothing']:g}′ smoothing", result.ks[0])
    shown = [direct, ("Wiener filter", result.wiener), ("posterior mean", result.mean), ("standard deviation", result.std), ("signal to noise", result.signal_to_noise)]
    shown += [(f"draw {number + 1}", result.draws[index]) for number, index in enumerate(np.linspace(0, len(result.draws) - 1, NUM_DRAWN).astype(int))]
    bars = {"standard deviation": ("viridis", 0.0, float(result.std.max())), "signal to noise": (SIGNED, -4.0, 4.0)}
    for axis, (name, pixels) in zip(axes.ravel(), shown, strict=True):
        colours, vmin, vmax = bars.get(name, (LIGHT, low, high))
        picture = axis.imshow(pixels, origin="lower", cmap=colours, vmin=vmin, vmax=vmax, extent=_extent(result), interpolation="nearest")
        axis.set_title(name, fontsize=11.5, color=INK)
        axis.tick_params(labelsize=8, colors=QUIET)
        _outline_mask(axis, result)
        figure.colorbar(picture, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=8, colors=QUIET)
    axes[1, 0].set_xlabel("arcmin", fontsize=9, color=QUIET)
    axes[1, 0].set_ylabel("arcmin", fontsize=9, color=QUIET)
    figure.text(0.012, 0.965, title, fontsize=15, weight="bold", color=INK, va="center", parse_math=False)
    figure.text(0.988, 0.965, f"{result.provenance['prior']} prior · {len(result.draws)} draws · {result.field.pixel_scale:g}′ per pixel", fontsize=10.5, color=QUIET, va="center",
                ha="right", parse_math=False)
    words = "; ".join(result.status) or f"ok: R-hat {result.diagnostics['r_hat']:.3f}, reduced χ² of the draws {result.diagnostics['reduced_chi2']:.3f}"
    figure.text(0.012, 0.025, words, fontsize=10.5, color=WARNING if result.status else GOOD, va="center", parse_math=False, wrap=True)
    return figure


def _stretch(result):
    """Colours from the lowest to the highest that the mean and the Wiener map hold, and a little more for the draws."""
    both = np.stack([result.mean, result.wiener])
    return float(np.quantile(both, 0.002)), 1.3 * float(np.quantile(both, 0.999))


def _extent(result):
    height, width = (side * result.field.pixel_scale / 2 for side in result.mean.shape)
    return -width, width, -height, height


def _outline_mask(axis, result):
    if result.field.mask.any() and not result.field.mask.all():
        fine = np.kron(result.field.mask, np.ones((4, 4)))            # lines follow the edges of pixels
        axis.contour(fine, levels=[0.5], colors="0.75", linewidths=0.7, extent=_extent(result), origin="lower")


def _numbers(result):
    observed = np.count_nonzero(~result.field.mask)
    median = float(np.sqrt(np.median(result.field.variance[:, ~result.field.mask])))
    return {"pixels observed": f"{observed} of {result.field.mask.size}", "median noise per pixel": f"{median:.4g}",
            "standard deviation, observed pixels": f"{result.std[~result.field.mask].mean():.4g}",
            "standard deviation, masked pixels": f"{result.std[result.field.mask].mean():.4g}" if result.field.mask.any() else "no masked pixels",
            **{name.replace("_", " "): f"{value:.4g}" if math.isfinite(value) else "-" for name, value in result.diagnostics.items()}}


def _table(rows):
    return "<table>" + "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
                               for name, value in rows.items()) + "</table>"


def _list(kind, texts):
    return f'<ul class="{kind}">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>' if texts else ""


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="overview">{overview}</p>
</header>
<main>
<section><img alt="{alternative}" src="data:image/png;base64,{picture}">{status}{notes}</section>
<p class="note">Convergence maps share one stretch; lines enclose masked pixels. The estimate is the posterior mean, its error the standard deviation; the draws show what maps
consistent with the observation look like. Everything is in massmap.fits.</p>
<section><h2>Numbers</h2>{numbers}</section>
</main>
<footer>
<h2>Provenance</h2>
{provenance}
</footer>
</body>
</html>
"""
