"""Colours and style that figures share, and the frame of the pages: title, overview, body,
provenance.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from astrogen.errors import printable

LIGHT, SIGNED, MASKED = "magma", "RdBu_r", "0.72"
GOOD, WARNING, INK, QUIET = "#1b7f4b", "#b3261e", "#1a1a24", "#6b6b78"
RESIDUAL_LIMIT = 4.0  # standard deviations at the ends of the residual's colours

STYLE = """
:root { color-scheme: light; --ink: #1a1a24; --quiet: #6b6b78; --line: #e3e3ea; --good: #1b7f4b; --warning: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 28px 48px; background: #fff; color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 8px; overflow-wrap: anywhere; }
.overview { color: var(--quiet); margin: 0 0 24px; }
.overview strong { color: var(--ink); } .overview .bad { color: var(--warning); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.objects { width: 100%; }
th { text-align: right; font-weight: 600; font-size: 12.5px; color: var(--quiet); padding: 6px 10px; border-bottom: 2px solid var(--ink); white-space: nowrap; }
td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: middle; }
th:first-child, td:first-child { padding-left: 0; text-align: left; } th:nth-child(2), td:nth-child(2) { text-align: left; }
.text { text-align: left; } td.text { overflow-wrap: anywhere; white-space: normal; min-width: 130px; max-width: 300px; } td.badges { min-width: 70px; max-width: 140px; }
.unit { color: var(--quiet); font-size: 12.5px; }
td img { width: 56px; height: 56px; object-fit: contain; display: block; image-rendering: pixelated; background: #f1f1f4; border-radius: 3px; }
tr.flagged td { background: #fdf3f2; }
a { color: inherit; text-decoration-color: #b9b9c6; text-underline-offset: 3px; } a:hover { text-decoration-color: currentColor; }
.badge { display: inline-block; font-size: 12.5px; font-weight: 600; padding: 1px 9px; border-radius: 99px; color: var(--good); background: #e6f4ec; white-space: nowrap; }
.badge.bad { color: var(--warning); background: #fbe3e1; }
.note { color: var(--quiet); font-size: 13px; max-width: 86ch; margin: 12px 0 0; }
section { margin-top: 40px; padding-top: 20px; border-top: 1px solid var(--line); content-visibility: auto; contain-intrinsic-size: auto 760px; }
section img { width: 100%; height: auto; display: block; }
ul.status, ul.notes { margin: 8px 0 0; padding-left: 20px; font-size: 14px; } ul.status { color: var(--warning); } ul.notes { color: var(--quiet); }
footer { margin-top: 48px; padding-top: 20px; border-top: 2px solid var(--ink); font-size: 13px; }
footer td, footer th { text-align: left; vertical-align: top; white-space: normal; overflow-wrap: anywhere; padding: 3px 16px 3px 0; border: 0; }
footer th { color: var(--quiet); font-weight: 600; white-space: nowrap; } footer td { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media print { section { content-visibility: visible; break-inside: avoid; } body { padding: 0; } }
"""


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
{body}
</main>
<footer>
<h2>Provenance</h2>
{provenance}
</footer>
</body>
</html>
"""


def extent_of(shape: tuple[int, int], width: float) -> tuple[float, float, float, float]:
    height = width * shape[0] / max(shape[1], 1)
    return -width / 2, width / 2, -height / 2, height / 2


def page_of(title: str, *, overview: str, body: str, provenance: Mapping[str, Any]) -> str:
    """A whole page that needs no other file; `overview` and `body` are HTML, `title` is text,
    `provenance` a dict.

    Control characters and such as turn the direction of writing are shown as Python writes them.
    """
    page = PAGE.format(
        title=escape(title),
        style=STYLE,
        overview=overview,
        body=body,
        provenance=rows_of(provenance),
    )
    return "\n".join(map(printable, page.split("\n")))


def rows_of(items: Mapping[str, Any]) -> str:
    """A dict as an HTML table of two columns."""
    return (
        "<table>"
        + "".join(
            f"<tr><th>{escape(str(name))}</th><td>{escape(plain(value))}</td></tr>"
            for name, value in items.items()
        )
        + "</table>"
    )


def list_of(kind: str, texts: Sequence[str]) -> str:
    """Sentences as an HTML list of the class "status" or "notes"; nothing where there are none."""
    return (
        f'<ul class="{kind}">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'
        if texts
        else ""
    )


def picture_of(png: bytes, alternative: str, *, attributes: str = "") -> str:
    """The bytes of a PNG as an HTML image that is part of the page."""
    return (
        f'<img {attributes}alt="{escape(alternative)}"'
        f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def plain(value: Any) -> str:
    """A value of a provenance as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
