"""Colours and style that figures and pages share, and how their files are written."""
import os

LIGHT, SIGNED, MASKED = "magma", "RdBu_r", "0.72"
GOOD, WARNING, INK, QUIET = "#1b7f4b", "#b3261e", "#1a1a24", "#6b6b78"

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


def write_whole(path, content):
    """Write bytes to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
