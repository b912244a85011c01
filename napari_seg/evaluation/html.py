"""Parts of a report as one self-contained HTML page (no network, no library, light and dark)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from string import Template

import numpy as np

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src $images; style-src 'unsafe-inline'; script-src 'sha256-$digest'">
<meta name="generator" content="napari-seg">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #fff; --text: #1b1f24; --faint: #667; --line: #d9dde3; --own: #2f6fd6;
  --bad: #c8372d; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171b; --text: #e8eaed; --faint: #9aa3ad; --line: #343a42;
  --own: #6aa2ff; --bad: #ff7b6e; } }
body { margin: 2rem auto; max-width: 1200px; padding: 0 1rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.2rem; }
p, figcaption, dd, small { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; }
.message { white-space: normal; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--own); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.bad { color: var(--bad); }
figure { margin: 1rem 0 1.6rem; }
figure img { max-width: 100%; display: block; border-radius: 4px; }
figcaption b { color: var(--text); }
svg { width: 100%; height: auto; }
svg text { fill: var(--text); font-size: 12px; }
svg .scale { fill: var(--faint); }
svg line { stroke: var(--line); }
svg rect { fill: var(--own); opacity: .18; }
svg .median { stroke: var(--own); stroke-width: 2.5; }
svg circle { fill: var(--own); opacity: .7; }
.matrix td { background: color-mix(in srgb, var(--bad) calc(var(--fraction) * 70%), transparent); }
.matrix .same { background: color-mix(in srgb, var(--own) calc(var(--fraction) * 55%), transparent); }
$style</style>
<h1>$title</h1>
<p>$lead</p>
$body
<script>$script</script>
""")

_SORT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[head.cellIndex].textContent.replace("−", "-");
  const order = head.classList.contains("text")
    ? (a, b) => key(a).localeCompare(key(b), "en", {numeric: true})
    : (a, b) => key(a) - key(b);
  const blank = row => key(row) === "–";
  const rows = [...body.rows].sort((a, b) => blank(a) - blank(b) || (up ? order(a, b) : order(b, a)));
  body.append(...rows);
};
"""
"""Script that sorts the tables whose headings are buttons."""


def document(
    title: str, lead: str, sections: Mapping[str, str], *, style: str = "", script: str = "", images: str = "data:"
) -> str:
    """Return a page as HTML; only the scripts given here run in it.

    Args:
        title: plain text.
        lead: HTML of the line below the title.
        sections: heading -> HTML; an empty section is left out.
        style: further style sheet.
        script: further script.
        images: sources of images that the page may load, as in a content security policy.
    """
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{text}" for heading, text in sections.items() if text)
    script = _SORT + script
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return _PAGE.substitute(
        title=escape(title), lead=lead, body=body, style=style, script=script, digest=digest, images=images
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int], sortable: bool = False) -> str:
    """Return a table; cells are HTML, and `text` lists the columns to align left."""
    kinds = [
        ' class="text message"' if n in text and n == len(heads) - 1 else " class=text" if n in text else ""
        for n in range(len(heads))
    ]
    shown = [f"<button>{head}</button>" if sortable else head for head in heads]
    top = "".join(f"<th{kind}>{head}</th>" for kind, head in zip(kinds, shown, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def strips(known: Mapping[str, Mapping[str, float]], heading: str, decimals: int, *, is_fraction: bool) -> str:
    """Return a strip plot as SVG: one row per segment, one dot per case, quartile box and median bar.

    Args:
        known: segment -> case -> value; none is nan.
        heading: name of the metric.
        decimals: number of decimals in tool tips.
        is_fraction: the values lie between 0 and 1, and 1 is best.
    """
    all_values = [value for row in known.values() for value in row.values()]
    if not all_values:
        return ""
    marks = ticks(min(*all_values, 0.9), 1.0) if is_fraction else ticks(0.0, max(all_values) or 1.0)
    low, high = marks[0], marks[-1]
    width, row_height, left = 960, 50, 10

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (width - 2 * left), 1)

    height = 34 + row_height * len(known)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(heading)} of each case">']
    for mark in marks:
        anchor = {marks[0]: "start", marks[-1]: "end"}.get(mark, "middle")
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="0" y2="{height - 30}"/>')
        parts.append(f'<text class="scale" x="{x(mark)}" y="{height - 14}" text-anchor="{anchor}">{mark:g}</text>')
    for n, (name, row) in enumerate(known.items()):
        y = row_height * n
        parts.append(f'<text x="{left + 4}" y="{y + 14}">{escape(name)}: {escape(heading)}</text>')
        if row:
            first, middle, third = np.percentile(list(row.values()), (25, 50, 75))
            parts.append(f'<rect x="{x(first)}" y="{y + 20}" width="{x(third) - x(first):.1f}" height="24"/>')
            parts.append(f'<line class="median" x1="{x(middle)}" x2="{x(middle)}" y1="{y + 20}" y2="{y + 44}"/>')
        for place, (case, value) in enumerate(row.items()):
            # golden-ratio steps spread the dots evenly and reproducibly
            dot_y = y + 23 + 18 * (place * 0.618034 % 1)
            tooltip = f"{escape(case)}: {value:.{decimals}f}"
            parts.append(f'<circle cx="{x(value)}" cy="{dot_y:.1f}" r="3"><title>{tooltip}</title></circle>')
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float) -> list[float]:
    """Return at most seven evenly spaced round numbers; the first is at most `low`, the last at least `high`."""
    steps = (factor * 10.0**power for power in range(-2, 9) for factor in (1, 2, 5))
    step = next(s for s in steps if np.ceil(high / s) - np.floor(low / s) <= 6)
    return [round(n * step, 2) for n in range(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)]
