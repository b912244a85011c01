"""What many compared cases come to: cases.csv, summary.json and report.html."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.errors import OutputError
from napari_seg.evaluation.metrics import DEFINITIONS, Scores
from napari_seg.evaluation.pairs import MEAN, CaseResult, segment_names
from napari_seg.evaluation.statistics import RESAMPLES, Difference, Summary, compare, summarise, worst
from napari_seg.version import __version__

AVERAGED = ("dice", "iou", "precision", "recall", "hd95_mm", "nsd")
COMPARED = ("dice", "hd95_mm", "nsd")
EMPTY_RULE = (
    "Neither holds the segment: nan, and the case does not count for it. One of them alone holds it: 0 for the shares "
    "and NSD, and the diagonal of the field of view for HD95."
)


def values(results: Sequence[CaseResult], segment: str, number: str) -> dict[str, float]:
    """Case -> one number of one segment, or of `MEAN`; nan where neither label map holds it; without failed cases."""
    if segment != MEAN:
        return {r.name: getattr(r.scores.get(segment, Scores()), number) for r in results if not r.code}
    found = {}
    for result in results:
        known = [value for s in result.scores.values() if not isnan(value := getattr(s, number))]
        if not result.code:
            found[result.name] = float(np.mean(known)) if known else nan
    return found


def summaries(results: Sequence[CaseResult]) -> dict[str, dict[str, Summary]]:
    """Segment -> number -> its summary over the cases; then `MEAN`, for numbers that may be averaged over segments."""
    rows = {name: tuple(DEFINITIONS) for name in segment_names(results)}
    return {
        name: {number: summarise(list(values(results, name, number).values())) for number in numbers}
        for name, numbers in (rows | {MEAN: AVERAGED}).items()
    }


def differences(ours: Sequence[CaseResult], others: Sequence[CaseResult]) -> dict[str, dict[str, Difference]]:
    """Segment, then `MEAN` -> number -> how much ours is above the others', case by case."""
    return {
        name: {number: compare(values(ours, name, number), values(others, name, number)) for number in COMPARED}
        for name in (*segment_names(ours), MEAN)
    }


def pooled_confusion_ml(results: Sequence[CaseResult]) -> dict[str, dict[str, float]]:
    """Segment in the reference -> segment in the result -> ml over all cases; what is 0 is absent."""
    pooled: dict[str, dict[str, float]] = {}
    for result in results:
        for expected, row in result.confusion_ml.items():
            total = pooled.setdefault(expected, {})
            for found, volume_ml in row.items():
                total[found] = total.get(found, 0.0) + volume_ml
    return pooled


def unit(results: Sequence[CaseResult]) -> str:
    """Of distances: "mm", or "pixels" of pictures, whose volumes in ml are thousands of pixels."""
    return "pixels" if any(r.pair and r.pair.is_picture for r in results) else "mm"


def summary(
    results: Sequence[CaseResult],
    tolerance_mm: float,
    versus: Mapping[str, Mapping[str, Difference]] | None = None,
) -> dict[str, Any]:
    """Everything but the cases' own numbers, as plain values for JSON; nan becomes null."""
    table = summaries(results)
    return _plain(
        {
            "program": f"napari-seg {__version__}",
            "unit": unit(results),
            "tolerance_mm": tolerance_mm,
            "definitions": DEFINITIONS,
            "empty_segments": EMPTY_RULE,
            "interval": f"95 % of the mean: percentile bootstrap over cases, {RESAMPLES} resamples",
            "cases": sum(not r.code for r in results),
            "failed": [{"name": r.name, "code": r.code, "message": r.message} for r in results if r.code],
            "segments": {
                name: {number: asdict(summary) for number, summary in row.items()}
                | {"worst": worst(values(results, name, "dice"))}
                for name, row in table.items()
            },
            "confusion_ml": pooled_confusion_ml(results),
        }
        | ({"versus": {n: {k: asdict(d) for k, d in row.items()} for n, row in versus.items()}} if versus else {})
    )


def write_report(
    results: Sequence[CaseResult],
    output_dir: Path,
    tolerance_mm: float,
    *,
    pictures: bool = True,
    versus: Mapping[str, Mapping[str, Difference]] | None = None,
) -> None:
    """Writes cases.csv, summary.json and report.html, replacing those of an earlier evaluation.

    Args:
        results: of all cases, failed ones included.
        output_dir: made if it is not there.
        tolerance_mm: that the NSD was computed with.
        pictures: draw the worst cases; reads their files again.
        versus: how the results differ from another model's.

    Raises:
        OutputError: `output.not_written`, the folder can't be made or written to.
    """
    from napari_seg.evaluation.page import page

    facts = summary(results, tolerance_mm, versus)
    texts = {
        "cases.csv": _csv(results),
        "summary.json": json.dumps(facts, indent=2) + "\n",
        "report.html": page(results, facts, pictures=pictures),
    }
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            unfinished = output_dir / f".{name}.unfinished"
            unfinished.write_text(text, encoding="utf-8", newline="")
            os.replace(unfinished, output_dir / name)
    except OSError as error:
        raise OutputError(
            "output.not_written", f"can't write to {output_dir} ({error.strerror}); choose another folder with -o"
        ) from error


def _csv(results: Sequence[CaseResult]) -> str:
    """One line a case and segment, and one for a case that failed; nan is left blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "segment", *DEFINITIONS, "code", "message"])
    for result in results:
        for name, scores in result.scores.items():
            numbers = ("" if isnan(value) else f"{value:.6g}" for value in asdict(scores).values())
            writer.writerow([result.name, name, *numbers, "", ""])
        if result.code:
            writer.writerow([result.name, "", *("" for _ in DEFINITIONS), result.code, result.message])
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
