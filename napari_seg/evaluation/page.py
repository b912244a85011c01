"""The evaluation report as one self-contained HTML page (no network, no library, light and dark)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from math import isnan
from typing import Any

from PIL import Image

from napari_seg.errors import NapariSegError, counted
from napari_seg.evaluation.html import document, strips, table
from napari_seg.evaluation.labels import BACKGROUND, MEAN
from napari_seg.evaluation.overlay import draw_comparison, draw_comparison_2d
from napari_seg.evaluation.pairs import CaseScores

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
_LEGEND_OF_PLANES = " The planes meet in a voxel that differs. The patient's right is on the left of the image."


def page(results: Sequence[CaseScores], facts: Mapping[str, Any], *, figures: bool = True) -> str:
    """Return the page as HTML.

    Args:
        results: scores of all cases, failed ones included.
        facts: `report.summary` of these results.
        figures: draw the worst cases, which reads their files again.
    """
    done = [r for r in results if not r.code]
    worst = [next(r for r in done if r.name == name) for name in facts["segments"][MEAN]["worst"]]
    segments, versus = (
        {name: row for name, row in facts.get(key, {}).items() if name == MEAN or row["dice"]["count"]}
        for key in ("segments", "versus")
    )
    absent = len(facts["segments"]) - len(segments)
    names = [name for name in segments if name != MEAN]
    unit = facts["unit"]
    legend = f"<p>{_LEGEND}{_LEGEND_OF_PLANES if unit == 'mm' else ''}</p>" if figures and worst else ""
    sections = {
        "Failed": _failed(facts["failed"]),
        "Overview": _overview(segments, absent, unit),
        "Comparison with the other results": _versus(versus, unit),
        "Distribution": _strips(done, names, "dice", unit) + _strips(done, names, "hd95_mm", unit),
        "Worst cases": "".join(_figure(result, figures) for result in worst) + legend,
        "Confusion": _confusion(facts["confusion_ml"], names, unit),
        "Cases": _cases(done, unit),
        "Definitions": _definitions(facts),
    }
    return document(
        f"Evaluation of {counted(len(done), 'case')}",
        f"{counted(len(names), 'structure')}, tolerance {facts['tolerance_mm']:g} {unit}, "
        f"{escape(facts['program'])}. For research; not a medical device.",
        sections,
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
    return "<p class=bad>These cases are not included below.</p>" + table(
        ["case", "code", "message"], rows, text=(0, 1, 2)
    )


def _overview(segments: Mapping[str, Mapping[str, Any]], absent: int, unit: str) -> str:
    heads = ["structure", "cases", "Dice mean", "95 % interval", "median", *(_heading(n, unit) for n in _OVERVIEW)]
    rows = []
    for name, row in segments.items():
        dice = row["dice"]
        interval = "–" if dice["low"] is None else f"{dice['low']:.3f} to {dice['high']:.3f}"
        means = (_number(row[n]["mean"] if n in row else None, n) for n in _OVERVIEW)
        head = f"<b>{escape(name)}</b>" if name == MEAN else escape(name)
        rows.append(
            [head, str(dice["count"]), _number(dice["mean"], "dice"), interval, _number(dice["median"], "dice"), *means]
        )
    left_out = f"<p>{counted(absent, 'structure')} more, in no label map of either side.</p>" if absent else ""
    return table(heads, rows, text=(0,)) + (
        left_out
        + "<p>Means over the cases in which the result or the reference contains the segment. For the last row, each "
        "case is averaged over its structures first. The interval holds for the mean (95 %, bootstrap over cases).</p>"
    )


def _versus(versus: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    if not versus:
        return ""
    rows = []
    for name, row in versus.items():
        cells = [escape(name), str(row["dice"]["count"]), str(row["dice"]["one_empty"])]
        for metric, d in row.items():
            interval = "" if d["low"] is None else f" ({_number(d['low'], metric)} to {_number(d['high'], metric)})"
            p = "–" if d["p"] is None else f"{d['p']:.2g}"
            cells += [_number(d["mean"], metric) + interval, p]
        rows.append(cells)
    heads = [head for metric in next(iter(versus.values())) for head in (f"Δ {_heading(metric, unit)}", "p")]
    return table(["structure", "cases", "one empty", *heads], rows, text=(0,)) + (
        "<p>These results minus the others, over the cases that both contain, with the 95 % interval of the mean "
        "difference (paired bootstrap) and the p-value of Wilcoxon's signed-rank test. In the cases <i>one empty</i>, "
        "which are among them, the reference does not contain the structure, and one of the two results does.</p>"
    )


def _strips(done: Sequence[CaseScores], names: Sequence[str], metric: str, unit: str) -> str:
    """Return a strip plot of one metric: one row per segment, one dot per case."""
    known = {
        name: {r.name: value for r in done if name in r.scores and not isnan(value := getattr(r.scores[name], metric))}
        for name in names
    }
    return strips(known, _heading(metric, unit), _COLUMNS[metric][1], is_fraction=not metric.endswith("_mm"))


def _figure(result: CaseScores, with_image: bool) -> str:
    """Return a figure of one case with its scores as caption."""
    dice = ", ".join(f"{escape(n)} {_number(s.dice, 'dice')}" for n, s in result.scores.items() if not isnan(s.dice))
    image = _images(result) if with_image else ""
    caption = f"<b>{escape(result.name)}</b> mean Dice {_number(result.mean_dice, 'dice')} ({dice})"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _images(result: CaseScores) -> str:
    """Return the image, one for each region if the classes overlap, or the reason why there is no image."""
    from napari_seg.formats.image2d import read_image2d
    from napari_seg.formats.read import read

    pair = result.pair
    assert pair is not None  # failed cases are not drawn
    read_scan, draw = (read_image2d, draw_comparison_2d) if pair.is_image_2d else (read, draw_comparison)
    try:
        matched = pair.read()
        scan = read_scan(pair.scan) if pair.scan else None
        if not matched.has_regions:
            sheet = draw(scan, matched.prediction, matched.reference)
            return _image(sheet, f"where result and reference of {result.name} differ")
        regions = [(region, *matched.masks(region)) for region in matched.prediction.segments]
        return "".join(
            f"<p>{escape(region.name)}</p>"
            + _image(draw(scan, found, expected), f"where {region.name} of {result.name} differs from the reference")
            for region, found, expected in regions
            if found.array.any() or expected.array.any()
        )
    except NapariSegError as error:
        return f"<p class=bad>No image: {escape(str(error))}</p>"


def _image(sheet: Image.Image, alt: str) -> str:
    """Return the tag of an image that it contains."""
    text = io.BytesIO()
    sheet.save(text, format="JPEG", quality=88)
    encoded = base64.b64encode(text.getvalue()).decode("ascii")
    size = f'width="{sheet.width}" height="{sheet.height}"'
    return f'<img {size} alt="{escape(alt)}" src="data:image/jpeg;base64,{encoded}">'


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
        "<p>Each row gives the labels that the results assign to one structure of the references, over all cases; a "
        "row adds up to 100 %.</p>"
    )


def _cases(done: Sequence[CaseScores], unit: str) -> str:
    rows = [
        [escape(r.name), escape(name), *(_number(value, metric) for metric, value in asdict(scores).items())]
        for r in done
        for name, scores in r.scores.items()
    ]
    heads = ["case", "structure", *(_heading(metric, unit) for metric in _COLUMNS)]
    return table(heads, rows, text=(0, 1), sortable=True)


def _definitions(facts: Mapping[str, Any]) -> str:
    entries = "".join(
        f"<dt>{_heading(metric, facts['unit'])}</dt><dd>{escape(text)}</dd>"
        for metric, text in facts["definitions"].items()
    )
    if facts["unit"] != "mm":
        entries += "<dt>2D images</dt><dd>a pixel counts as 1 mm, and 1000 pixels as 1 ml</dd>"
    return f"<dl>{entries}<dt>Empty structures</dt><dd>{escape(facts['empty_segments'])}</dd></dl>"


def _number(value: float | None, metric: str) -> str:
    if value is None or isnan(value):
        return "–"
    return f"{value:.{_COLUMNS[metric][1]}f}".replace("-", "−")
