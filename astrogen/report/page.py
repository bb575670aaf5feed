"""The page of a run: a table of all objects and the figures of the first ones, in one file that needs nothing else."""
import base64
import io
import json
import math
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave

from astrogen.report.figure import common_stretch, figure_bytes, fitted_background, number_text, sentences_in_figure
from astrogen.report.style import LIGHT, STYLE, write_whole
from astrogen.result import QUANTITIES, all_status, file_names, format_value

MAX_FIGURES = 24          # figures in one page; about 0.25 MB each


def write_report(results, directory, *, title, failures=(), max_figures=MAX_FIGURES, picture=None, caption=""):
    """Write index.html on a run: a table of all objects and the figure of the first ones, in one file that needs nothing else.

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
    page = PAGE.format(
        title=escape(title), style=STYLE, overview=_overview(results, failures), rows="\n".join(_row(result, number, number <= max_figures) for number, result in enumerate(results, 1)),
        sections="\n".join(_section(result, number, png) for number, (result, png) in enumerate(zip(results, figures, strict=False), 1)), omitted=_omitted(results, max_figures),
        failed=_failed(failures), lead=_lead(picture, caption), provenance=_provenance(results))
    write_whole(directory / "index.html", page.encode())
    return directory / "index.html"


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
<div class="scroll">
<table class="objects">
<thead><tr><th>observed</th><th>deconvolved</th><th class="text">object</th><th class="text">status</th><th>flux</th><th>half-light radius</th><th>e<sub>1</sub></th><th>e<sub>2</sub></th>
<th>reduced χ²</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="note">Values are medians of the posterior draws, errors half of their central 68 % interval. Sizes and ellipticities
(distortion, along the pixel axes) are those at the resolution of the deconvolved image. χ² is that of the residual inside the galaxy.</p>
{failed}
{lead}
{sections}
{omitted}
</main>
<footer>
<h2>Provenance</h2>
{provenance}
</footer>
</body>
</html>
"""

def _lead(picture, caption):
    if picture is None:
        return ""
    return f'<section><img alt="{escape(caption)}" src="{_inline(Path(picture).read_bytes())}"><p class="note">{escape(caption)}</p></section>'


def _failed(failures):
    """What could not be used, and why, in red under the table."""
    if not failures:
        return ""
    items = "".join(f"<li><strong>{escape(str(name))}</strong>: {escape(reason)}</li>" for name, reason in failures)
    return f'<section><h2>{len(failures)} failed</h2><ul class="status">{items}</ul></section>'


def _overview(results, failures):
    flagged = sum(bool(all_status(result)) for result in results)
    methods = escape(", ".join(sorted({result.method for result in results})))
    text = f"<strong>{len(results)}</strong> {'object' if len(results) == 1 else 'objects'}"
    text += f" · deconvolved by {methods}" if methods else ""
    text += f' · <span class="bad">{flagged} flagged</span>' if flagged else " · none flagged" if results else ""
    return text + (f' · <span class="bad">{len(failures)} failed</span>' if failures else "")


def _row(result, number, has_figure):
    sentences = all_status(result)
    linked = f'<a href="#object-{number}">{escape(result.name)}</a>' if has_figure else escape(result.name)
    quantities = [format_value(getattr(result, quantity)) for quantity in QUANTITIES]
    units = [f" {result.observation.unit}".rstrip(), "″", "", ""]
    cells = "".join(f'<td>{escape(text)}<span class="unit">{escape(unit if text != "-" else "")}</span></td>' for text, unit in zip(quantities, units, strict=True))
    return (f'<tr{" class=flagged" if sentences else ""}><td>{_thumbnail(result, "observed")}</td><td>{_thumbnail(result, "deconvolved")}</td>'
            f'<td class="text">{linked}</td><td class="text badges">{_badges(sentences)}</td>{cells}<td>{number_text(result.chi2)}</td></tr>')


def _badges(sentences):
    words = dict.fromkeys(sentence.split(":")[0] for sentence in sentences)
    return " ".join(f'<span class="badge bad" title="{escape(_meaning(sentences, word))}">{escape(word.replace("_", " "))}</span>'
                    for word in words) or '<span class="badge">ok</span>'


def _meaning(sentences, word):
    return " ".join(sentence for sentence in sentences if sentence.startswith(word))


def _thumbnail(result, which):
    norm = common_stretch(result)
    if which == "observed":
        image, mask, scale = result.observation.image - fitted_background(result), result.observation.mask, result.observation.pixel_scale
    else:
        image, mask, scale = result.image, np.zeros(result.image.shape, bool), result.pixel_scale
    if not image.size:
        return ""
    step = math.ceil(max(image.shape) / 128)
    colours = colormaps[LIGHT](norm(image[::-step, ::step] / scale**2))
    colours[mask[::-step, ::step]] = (0.72, 0.72, 0.72, 1)
    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(255 * colours[..., :3]).astype(np.uint8), format="png")
    return f'<img loading="lazy" alt="{which}" src="{_inline(stream.getvalue())}">'


def _inline(png):
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _section(result, number, png):
    sentences, notes = all_status(result), result.observation.notes
    unsaid = [sentence for sentence in sentences if sentence not in sentences_in_figure(sentences)]
    lists = "".join(f'<ul class="{kind}">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'
                    for kind, texts in (("status", unsaid), ("notes", notes)) if texts)
    alternative = f"Observed, model, residual, deconvolved, uncertainty and imagined solutions of {result.name}. {' '.join(sentences)}"
    return f'<section id="object-{number}"><img loading="lazy" alt="{escape(alternative)}" src="{_inline(png)}">{lists}</section>'


def _omitted(results, max_figures):
    if len(results) <= max_figures:
        return ""
    return (f'<p class="note">Figures are shown for the first {max_figures} of {len(results)} objects; '
            "<code>astrogen.report.write_figure</code> draws the others from their FITS files.</p>")


def _provenance(results):
    """Table of what made the results; what differs between objects is said to differ."""
    keys = dict.fromkeys(key for result in results for key in result.provenance)
    rows = []
    for key in keys:
        texts = dict.fromkeys(_plain(result.provenance[key]) for result in results if key in result.provenance)
        text = next(iter(texts)) if len(texts) == 1 else f"{len(texts)} different ones: {', '.join(list(texts)[:3])}{', …' if len(texts) > 3 else ''}"
        rows.append(f"<tr><th>{escape(str(key))}</th><td>{escape(text)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _plain(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
