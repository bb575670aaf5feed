"""The figure of several galaxies, exposures and bands: what each exposure shows, the model and the
residual above; each galaxy deconvolved below.
"""

import textwrap

import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from astrogen.errors import printable
from astrogen.galaxies.quantities import format_value
from astrogen.galaxies.result import Result, all_status
from astrogen.report.style import (
    GOOD,
    INK,
    LIGHT,
    MASKED,
    QUIET,
    RESIDUAL_LIMIT,
    SIGNED,
    WARNING,
    extent_of,
)

MOST_EXPOSURES, MOST_SOURCES = 8, 16  # panels that one figure shows
PANEL = 2.15  # inches
IMAGINED_SEED = 0


def draw_scene(result: Result) -> Figure:
    """As a matplotlib Figure: columns of exposures, and columns of the galaxies (of the bands,
    where there is one galaxy).
    """
    exposures, cards = range(min(len(result.exposures), MOST_EXPOSURES)), _cards(result)
    columns = max(len(exposures), min(len(cards), MOST_EXPOSURES), 3)
    blocks = [cards[first : first + columns] for first in range(0, len(cards), columns)]
    rows = 3 + 3 * len(blocks)
    figure = Figure(
        figsize=(PANEL * columns + 0.5, PANEL * rows + 0.35 * (rows - 2) + 1.2),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, rect=(0.0, 0.045, 1.0, 0.89))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
        axis.set_axis_off()
    for column in exposures:
        _draw_exposure(axes[:3, column], result, column)
    for number, block in enumerate(blocks):
        for column, card in enumerate(block):
            _draw_card(axes[3 + 3 * number : 6 + 3 * number, column], *card)
    for row in range(rows):
        label = (
            ("observed", "model", "residual")[row]
            if row < 3
            else ("deconvolved", "uncertainty", "imagined")[row % 3]
        )
        axes[row, 0].text(
            -0.03,
            0.5,
            label,
            rotation=90,
            transform=axes[row, 0].transAxes,
            ha="right",
            va="center",
            fontsize=9.5,
            color=QUIET,
        )
    _write_words(figure, result)
    return figure


def _cards(result):
    """(title, mean, deviation, draw, pixel scale) of each deconvolved image: the bands of one
    galaxy, or each galaxy in its reference band.
    """
    cards = []
    for number, source in enumerate(result.sources[:MOST_SOURCES], 1):
        for band in (
            range(len(source.bands)) if len(result.sources) == 1 else [source.reference_band]
        ):
            flux = format_value(tuple(part[band] for part in source.flux))
            title = (
                f"{source.bands[band] or 'flux'} {flux}"
                if len(result.sources) == 1
                else f"{number}: {source.bands[band]} {flux}"
            )
            chosen = source.draws[
                np.random.default_rng(IMAGINED_SEED).integers(len(source.draws)), band
            ]
            cards.append(
                (title, source.images[band], source.images_std[band], chosen, source.prior_scale)
            )
    return cards


def _draw_exposure(axes, result, number):
    exposure = result.exposures[number]
    observation, level = exposure.observation, exposure.background[0]
    sigma = float(np.sqrt(np.median(observation.variance[~observation.mask])))
    model = exposure.model - level
    norm = AsinhNorm(linear_width=1.5 * sigma, vmin=-sigma, vmax=max(float(model.max()), 5 * sigma))
    extent = extent_of(model.shape, model.shape[1] * observation.pixel_scale)
    seen = np.where(observation.mask, np.nan, observation.image - level)
    residual = np.where(observation.mask, np.nan, exposure.residual / np.sqrt(observation.variance))
    for axis, image, style in zip(
        axes,
        (seen, model, residual),
        ({"cmap": LIGHT, "norm": norm},) * 2
        + ({"cmap": SIGNED, "vmin": -RESIDUAL_LIMIT, "vmax": RESIDUAL_LIMIT},),
        strict=True,
    ):
        _show(axis, image, extent, style)
    axes[0].set_title(
        printable(f"{exposure.band}  χ² {exposure.fit.chi2_all:.2f}".strip()),
        fontsize=10,
        color=INK,
        parse_math=False,
    )
    if len(result.sources) > 1:
        middle = (np.array(result.observations[0].image.shape[::-1]) - 1) / 2
        for index, source in enumerate(result.sources, 1):
            if number == 0:
                # A galaxy at the edge, or beyond it, is named inside.
                place = (
                    np.clip((np.array([source.x, source.y]) - middle) / (middle + 0.5), -0.93, 0.93)
                    * (middle + 0.5)
                    * result.observations[0].pixel_scale
                )
                axes[0].text(
                    *place,
                    str(index),
                    color="white",
                    fontsize=9,
                    ha="center",
                    va="center",
                    bbox={"facecolor": "black", "alpha": 0.45, "pad": 1, "linewidth": 0},
                )


def _draw_card(axes, title, mean, deviation, draw, prior_scale):
    extent = extent_of(mean.shape, mean.shape[1] * prior_scale)
    softness = max(
        float(np.median(deviation[mean > 0.02 * mean.max()])) if (mean > 0).any() else 0.0,
        1e-3 * float(np.abs(mean).max()),
        1e-30,
    )
    norm = AsinhNorm(
        linear_width=1.5 * softness,
        vmin=-softness,
        vmax=max(float(np.quantile(mean, 0.9995)), 5 * softness),
    )
    for axis, image in zip(axes, (mean, deviation, draw), strict=True):
        _show(axis, image, extent, {"cmap": LIGHT, "norm": norm})
    axes[0].set_title(printable(title), fontsize=10, color=INK, parse_math=False)


def _show(axis, image, extent, style):
    axis.set_axis_on()
    axis.set_facecolor(MASKED)
    axis.imshow(image, origin="lower", interpolation="nearest", extent=extent, **style)
    for spine in axis.spines.values():
        spine.set(color="0.6", linewidth=0.8)


def _write_words(figure, result):
    figure.text(
        0.012,
        0.985,
        printable(result.name),
        fontsize=14,
        weight="bold",
        color=INK,
        va="top",
        parse_math=False,
    )
    told = f"{result.method} · {result.num_draws} draws · residuals ±{RESIDUAL_LIMIT:g}σ"
    figure.text(0.012, 0.957, told, fontsize=9.5, color=QUIET, va="top", parse_math=False)
    hidden = len(result.exposures) > MOST_EXPOSURES or len(result.sources) > MOST_SOURCES
    width = int(13 * figure.get_figwidth())  # letters
    lines = [
        textwrap.shorten(sentence, width, placeholder=" …") for sentence in all_status(result)[:2]
    ] + ["more exposures or galaxies than are shown: see the file"] * hidden
    figure.text(
        0.012,
        0.008,
        "\n".join(lines) or "ok: converged, and the residuals are consistent with the noise",
        fontsize=9.5,
        color=WARNING if lines else GOOD,
        va="bottom",
        parse_math=False,
    )
