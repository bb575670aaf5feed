"""The page of a run: a table of all objects and the figures of the first ones, in one file that
needs nothing else.
"""

import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave

from astrogen.data.files import write_whole
from astrogen.galaxies.quantities import QUANTITIES, format_value
from astrogen.galaxies.result import Result, all_status, file_names
from astrogen.report.figure import (
    common_stretch,
    figure_bytes,
    fitted_background,
    number_text,
    sentences_in_figure,
)
from astrogen.report.style import LIGHT, list_of, page_of, picture_of, plain
from astrogen.types import FilePath

MAX_FIGURES = 24  # figures in one page; about 0.25 MB each


def write_report(
    results: Sequence[Result],
    directory: FilePath,
    *,
    title: str,
    failures: Sequence[tuple[str, str]] = (),
    max_figures: int = MAX_FIGURES,
    picture: FilePath | None = None,
    caption: str = "",
) -> Path:
    """Write index.html on a run: a table of all objects and the figure of the first ones, in one
    file that needs nothing else.

    The figures in the page are also written beside it, as NAME.png.

    Parameters
    ----------
    results : sequence of Result
    directory : path, made where it is missing
    title : str
    failures : sequence of (name, reason), inputs that gave no result
    max_figures : int, how many objects get a figure; the page says so where it is not all
    picture : path of a PNG about the whole run, or None; shown under the table with its caption

    Returns
    -------
    Path of index.html
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = file_names(results)
    figures = []
    for result, name in zip(results[:max_figures], names, strict=False):
        figures.append(figure_bytes(result, dpi=110))
        write_whole(directory / f"{name}.png", figures[-1])
    rows = "\n".join(
        _row(result, number, number <= max_figures) for number, result in enumerate(results, 1)
    )
    sections = [
        _section(result, number, png)
        for number, (result, png) in enumerate(zip(results, figures, strict=False), 1)
    ]
    body = "\n".join(
        [
            TABLE.format(rows=rows),
            _failed(failures),
            _lead(picture, caption),
            *sections,
            _omitted(results, max_figures),
        ]
    )
    write_whole(
        directory / "index.html",
        page_of(
            title, overview=_overview(results, failures), body=body, provenance=_provenance(results)
        ),
    )
    return directory / "index.html"


TABLE = """<div class="scroll">
<table class="objects">
<thead><tr><th>observed</th><th>deconvolved</th><th class="text">object</th><th class="text">status</th><th>flux</th><th>half-light radius</th><th>e<sub>1</sub></th><th>e<sub>2</sub></th>
<th>reduced χ²</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="note">Values are medians of the posterior draws, errors half of their central 68 % interval. Sizes and ellipticities
(distortion, along the pixel axes) are those at the resolution of the deconvolved image. χ² is that of the residual inside the galaxy.</p>"""


def _lead(picture, caption):
    if picture is None:
        return ""
    return (
        f"<section>{picture_of(Path(picture).read_bytes(), caption)}<p"
        f' class="note">{escape(caption)}</p></section>'
    )


def _failed(failures):
    """What could not be used, and why, in red under the table."""
    if not failures:
        return ""
    items = "".join(
        f"<li><strong>{escape(str(name))}</strong>: {escape(reason)}</li>"
        for name, reason in failures
    )
    return f'<section><h2>{len(failures)} failed</h2><ul class="status">{items}</ul></section>'


def _overview(results, failures):
    flagged = sum(bool(all_status(result)) for result in results)
    methods = escape(", ".join(sorted({result.method for result in results})))
    text = f"<strong>{len(results)}</strong> {'object' if len(results) == 1 else 'objects'}"
    text += f" · deconvolved by {methods}" if methods else ""
    text += (
        f' · <span class="bad">{flagged} flagged</span>'
        if flagged
        else " · none flagged"
        if results
        else ""
    )
    return text + (f' · <span class="bad">{len(failures)} failed</span>' if failures else "")


def _row(result, number, has_figure):
    sentences = all_status(result)
    linked = (
        f'<a href="#object-{number}">{escape(result.name)}</a>'
        if has_figure
        else escape(result.name)
    )
    quantities = [format_value(getattr(result, quantity)) for quantity in QUANTITIES]
    units = [f" {result.unit}".rstrip(), "″", "", ""]
    cells = "".join(
        f'<td>{escape(text)}<span class="unit">{escape(unit if text != "-" else "")}</span></td>'
        for text, unit in zip(quantities, units, strict=True)
    )
    return (
        f"<tr{' class=flagged' if sentences else ''}><td>{_thumbnail(result, 'observed')}</td><td>{_thumbnail(result, 'deconvolved')}</td>"
        f'<td class="text">{linked}</td><td class="text'
        f' badges">{_badges(sentences)}</td>{cells}<td>{number_text(result.chi2)}</td></tr>'
    )


def _badges(sentences):
    words = dict.fromkeys(sentence.split(":")[0] for sentence in sentences)
    return (
        " ".join(
            '<span class="badge bad"'
            f' title="{escape(_meaning(sentences, word))}">{escape(word.replace("_", " "))}</span>'
            for word in words
        )
        or '<span class="badge">ok</span>'
    )


def _meaning(sentences, word):
    return " ".join(sentence for sentence in sentences if sentence.startswith(word))


def _thumbnail(result, which):
    norm = common_stretch(result)
    if which == "observed":
        image, mask, scale = (
            result.observation.image - fitted_background(result),
            result.observation.mask,
            result.observation.pixel_scale,
        )
    else:
        image, mask, scale = result.image, np.zeros(result.image.shape, bool), result.prior_scale
    if not image.size:
        return ""
    step = math.ceil(max(image.shape) / 128)
    colours = colormaps[LIGHT](norm(image[::-step, ::step] / scale**2))
    colours[mask[::-step, ::step]] = (0.72, 0.72, 0.72, 1)
    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(255 * colours[..., :3]).astype(np.uint8), format="png")
    return picture_of(stream.getvalue(), which, attributes='loading="lazy" ')


def _section(result, number, png):
    sentences, notes = all_status(result), result.observation.notes
    unsaid = [sentence for sentence in sentences if sentence not in sentences_in_figure(sentences)]
    lists = list_of("status", unsaid) + list_of("notes", notes)
    alternative = (
        "Observed, model, residual, deconvolved, uncertainty and imagined solutions of"
        f" {result.name}. {' '.join(sentences)}"
    )
    picture = picture_of(png, alternative, attributes='loading="lazy" ')
    return f'<section id="object-{number}">{picture}{lists}</section>'


def _omitted(results, max_figures):
    if len(results) <= max_figures:
        return ""
    return (
        f'<p class="note">Figures are shown for the first {max_figures} of {len(results)} objects; '
        "<code>astrogen.report.write_figure</code> draws the others from their FITS files.</p>"
    )


def _provenance(results):
    """What made the results; what differs between objects is said to differ."""
    told = {}
    for key in dict.fromkeys(key for result in results for key in result.provenance):
        texts = list(
            dict.fromkeys(
                plain(result.provenance[key]) for result in results if key in result.provenance
            )
        )
        told[key] = (
            texts[0]
            if len(texts) == 1
            else (
                f"{len(texts)} different ones:"
                f" {', '.join(texts[:3])}{', …' if len(texts) > 3 else ''}"
            )
        )
    return told
