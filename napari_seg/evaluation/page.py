"""The evaluation report as one self-contained HTML page (no network, no library, light and dark)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from html import escape
from math import isnan
from string import Template
from typing import Any

import numpy as np

from napari_seg.errors import NapariSegError
from napari_seg.evaluation.labels import BACKGROUND
from napari_seg.evaluation.overlay import draw_comparison, draw_comparison_2d
from napari_seg.evaluation.pairs import MEAN, CaseScores

# metric -> heading without unit, number of decimals
_COLUMNS = {
    "dice": ("Dice", 3),
    "iou": ("IoU", 3),
    "precision": ("Precision", 3),
    "recall": ("Recall", 3),
    "accuracy": ("Accuracy", 4),
    "volume_ml": ("Result", 3),
    "reference_ml": ("Reference", 3),
    "difference_ml": ("Difference", 3),
    "hd95_mm": ("HD95", 2),
    "nsd": ("NSD", 3),
}
_OVERVIEW = ("hd95_mm", "nsd", "iou", "precision", "recall", "difference_ml")

_LEGEND = "The result is outlined in colour, the reference in white; voxels that differ are tinted red."
_LEGEND_OF_PLANES = (
    " The planes pass through the point of greatest disagreement. The patient's right is on the left of the image."
)

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
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
</style>
<h1>$title</h1>
<p>$lead</p>
$body
<script>
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
</script>
""")


def page(results: Sequence[CaseScores], facts: Mapping[str, Any], *, figures: bool = True) -> str:
    """Return the page as HTML.

    Args:
        results: scores of all cases, failed ones included.
        facts: `report.summary` of these results.
        figures: draw the worst cases, which reads their files again.
    """
    done = [r for r in results if not r.code]
    worst = [next(r for r in done if r.name == name) for name in facts["segments"][MEAN]["worst"]]
    names = [name for name in facts["segments"] if name != MEAN]
    unit = facts["unit"]
    legend = f"<p>{_LEGEND}{_LEGEND_OF_PLANES if unit == 'mm' else ''}</p>" if figures and worst else ""
    sections = {
        "Failed": _failed(facts["failed"]),
        "Overview": _overview(facts["segments"], unit),
        "Comparison with the other results": _versus(facts.get("versus", {}), unit),
        "Distribution": _strips(done, names, "dice", unit) + _strips(done, names, "hd95_mm", unit),
        "Worst cases": "".join(_figure(result, figures) for result in worst) + legend,
        "Confusion": _confusion(facts["confusion_ml"], names, unit),
        "Cases": _cases(done, unit),
        "Definitions": _definitions(facts),
    }
    return _PAGE.substitute(
        title=f"Evaluation of {len(done)} case{'s' * (len(done) != 1)}",
        lead=f"{len(names)} segment{'s' * (len(names) != 1)}, tolerance {facts['tolerance_mm']:g} {unit}, "
        f"{escape(facts['program'])}. For research; not a medical device.",
        body="\n".join(f"<h2>{title}</h2>\n{text}" for title, text in sections.items() if text),
    )


def _heading(metric: str, unit: str) -> str:
    units = {"mm": unit, "ml": _volume_unit(unit)}
    return f"{_COLUMNS[metric][0]} {units.get(metric[-2:], '')}".rstrip()


def _volume_unit(unit: str) -> str:
    """Return the unit of volumes; a pixel of a 2D image counts as 1 mm^3, so that 1000 pixels are 1 ml."""
    return "ml" if unit == "mm" else "1000 pixels"


def _failed(failed: Sequence[Mapping[str, str]]) -> str:
    if not failed:
        return ""
    rows = [[escape(f["name"]), escape(f["code"]), escape(f["message"])] for f in failed]
    return "<p class=bad>These cases are not included below.</p>" + _table(
        ["case", "code", "message"], rows, text=(0, 1, 2)
    )


def _overview(segments: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    heads = ["segment", "cases", "Dice mean", "95 % interval", "median", *(_heading(n, unit) for n in _OVERVIEW)]
    rows = []
    for name, row in segments.items():
        dice = row["dice"]
        interval = "–" if dice["low"] is None else f"{dice['low']:.3f} to {dice['high']:.3f}"
        means = (_number(row[n]["mean"] if n in row else None, n) for n in _OVERVIEW)
        head = f"<b>{escape(name)}</b>" if name == MEAN else escape(name)
        rows.append(
            [head, str(dice["count"]), _number(dice["mean"], "dice"), interval, _number(dice["median"], "dice"), *means]
        )
    return _table(heads, rows, text=(0,)) + (
        "<p>Means over the cases in which the result or the reference contains the segment. For the last row, each "
        "case is averaged over its segments first. The interval holds for the mean (95 %, bootstrap over cases).</p>"
    )


def _versus(versus: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    if not versus:
        return ""
    rows = []
    for name, row in versus.items():
        cells = [escape(name), str(row["dice"]["count"])]
        for metric, d in row.items():
            interval = "" if d["low"] is None else f" ({_number(d['low'], metric)} to {_number(d['high'], metric)})"
            p = "–" if d["p"] is None else f"{d['p']:.2g}"
            cells += [_number(d["mean"], metric) + interval, p]
        rows.append(cells)
    heads = [head for metric in next(iter(versus.values())) for head in (f"Δ {_heading(metric, unit)}", "p")]
    return _table(["segment", "cases", *heads], rows, text=(0,)) + (
        "<p>These results minus the others, over the cases that both contain, with the 95 % interval of the mean "
        "difference (paired bootstrap) and the p-value of Wilcoxon's signed-rank test.</p>"
    )


def _strips(done: Sequence[CaseScores], names: Sequence[str], metric: str, unit: str) -> str:
    """Return a strip plot as SVG: one row per segment, one dot per case, quartile box and median bar."""
    known = {
        name: {r.name: value for r in done if name in r.scores and not isnan(value := getattr(r.scores[name], metric))}
        for name in names
    }
    all_values = [value for row in known.values() for value in row.values()]
    if not all_values:
        return ""
    heading, decimals = _heading(metric, unit), _COLUMNS[metric][1]
    is_fraction = not metric.endswith("_mm")
    ticks = _ticks(min(*all_values, 0.9), 1.0) if is_fraction else _ticks(0.0, max(all_values) or 1.0)
    low, high = ticks[0], ticks[-1]
    width, row_height, left = 960, 50, 10

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (width - 2 * left), 1)

    height = 34 + row_height * len(names)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{heading} of each case">']
    for tick in ticks:
        anchor = {ticks[0]: "start", ticks[-1]: "end"}.get(tick, "middle")
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="{height - 30}"/>')
        parts.append(f'<text class="scale" x="{x(tick)}" y="{height - 14}" text-anchor="{anchor}">{tick:g}</text>')
    for n, (name, row) in enumerate(known.items()):
        y = row_height * n
        parts.append(f'<text x="{left + 4}" y="{y + 14}">{escape(name)}: {heading}</text>')
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


def _ticks(low: float, high: float) -> list[float]:
    """Return at most seven evenly spaced round numbers; the first is at most `low`, the last at least `high`."""
    steps = (factor * 10.0**power for power in range(-2, 9) for factor in (1, 2, 5))
    step = next(s for s in steps if np.ceil(high / s) - np.floor(low / s) <= 6)
    return [round(n * step, 2) for n in range(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)]


def _figure(result: CaseScores, with_image: bool) -> str:
    """Return a figure of one case with its scores as caption."""
    dice = ", ".join(f"{escape(n)} {_number(s.dice, 'dice')}" for n, s in result.scores.items() if not isnan(s.dice))
    image = _image(result) if with_image else ""
    caption = f"<b>{escape(result.name)}</b> mean Dice {_number(result.mean_dice, 'dice')} ({dice})"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _image(result: CaseScores) -> str:
    """Return the image tag, or the reason why there is no image."""
    from napari_seg.formats.image2d import read_image2d
    from napari_seg.formats.read import read

    pair = result.pair
    assert pair is not None  # failed cases are not drawn
    read_scan, draw = (read_image2d, draw_comparison_2d) if pair.is_image_2d else (read, draw_comparison)
    try:
        prediction, reference = pair.read()
        scan = read_scan(pair.scan) if pair.scan else None
        sheet = draw(scan, replace(prediction, segments=result.segments), reference)
    except NapariSegError as error:
        return f"<p class=bad>No image: {escape(str(error))}</p>"
    text = io.BytesIO()
    sheet.save(text, format="JPEG", quality=88)
    encoded = base64.b64encode(text.getvalue()).decode("ascii")
    alt = f"where result and reference of {escape(result.name)} differ"
    return f'<img width="{sheet.width}" height="{sheet.height}" alt="{alt}" src="data:image/jpeg;base64,{encoded}">'


def _confusion(confusion_ml: Mapping[str, Mapping[str, float]], names: Sequence[str], unit: str) -> str:
    if not confusion_ml:
        return ""
    all_names = [BACKGROUND, *names]
    volume = _volume_unit(unit)
    rows = []
    for expected in all_names:
        row = confusion_ml.get(expected, {})
        total = sum(row.values())
        cells = []
        for found in all_names:
            fraction = row.get(found, 0.0) / total if total else 0.0
            same = " class=same" if found == expected else ""
            tooltip = f"{row.get(found, 0.0):.3f} {volume}"
            cells.append(f'<td{same} style="--fraction:{fraction:.3f}" title="{tooltip}">{100 * fraction:.1f} %</td>')
        rows.append(f"<tr><th class=text>{escape(expected)}</th>{''.join(cells)}<td>{total:.1f}</td></tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in all_names)
    top = f"<thead><tr><th>reference ↓ result →</th>{heads}<th>{volume}</th></tr></thead>"
    return (
        f'<div class="wide"><table class="matrix">{top}<tbody>{"".join(rows)}</tbody></table></div>'
        "<p>Each row gives the labels that the results assign to one segment of the references, over all cases; a row "
        "adds up to 100 %.</p>"
    )


def _cases(done: Sequence[CaseScores], unit: str) -> str:
    rows = [
        [escape(r.name), escape(name), *(_number(value, metric) for metric, value in asdict(scores).items())]
        for r in done
        for name, scores in r.scores.items()
    ]
    heads = ["case", "segment", *(_heading(metric, unit) for metric in _COLUMNS)]
    return _table(heads, rows, text=(0, 1), sortable=True)


def _definitions(facts: Mapping[str, Any]) -> str:
    entries = "".join(
        f"<dt>{_heading(metric, facts['unit'])}</dt><dd>{escape(text)}</dd>"
        for metric, text in facts["definitions"].items()
    )
    if facts["unit"] != "mm":
        entries += "<dt>2D images</dt><dd>a pixel counts as 1 mm, and 1000 pixels as 1 ml</dd>"
    return f"<dl>{entries}<dt>Empty segments</dt><dd>{escape(facts['empty_segments'])}</dd></dl>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int], sortable: bool = False) -> str:
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


def _number(value: float | None, metric: str) -> str:
    if value is None or isnan(value):
        return "–"
    return f"{value:.{_COLUMNS[metric][1]}f}".replace("-", "−")
