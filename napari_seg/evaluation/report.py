"""Write the results of an evaluation: cases.csv, summary.json and report.html."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.errors import InputError, Notice, OutputError, listed
from napari_seg.evaluation.labels import MEAN
from napari_seg.evaluation.metrics import DEFINITIONS, Scores
from napari_seg.evaluation.pairs import CaseScores, segment_names, spelled_alike
from napari_seg.evaluation.statistics import (
    RESAMPLES,
    Difference,
    Summary,
    compare,
    means_of_cases,
    of_structure,
    paired,
    summarise_columns,
    worst,
)
from napari_seg.formats.atomic import atomic_write, refuse_other_files
from napari_seg.formats.csv_cells import text_cell
from napari_seg.version import __version__

AVERAGED = ("dice", "iou", "precision", "recall", "hd95_mm", "nsd")
PERFECT = {"dice": 1.0, "hd95_mm": 0.0, "nsd": 1.0}
"""Metrics that are compared with those of other results, and their best values."""

_SIGNS = {"cases.csv": "case,segment,", "summary.json": '"tolerance_mm": ', "report.html": "<title>Evaluation of "}
"""File -> text at its beginning by which a file of an earlier evaluation is recognised."""

EMPTY_RULE = (
    "If neither label map contains a structure, its metrics are nan and the case is left out of its mean. If only one "
    "contains it, the overlap metrics and the NSD are 0, and HD95 is the diagonal of the field of view. Where two "
    "results are compared, the reference does not contain a structure and one result does, the other one has Dice and "
    "NSD 1 and HD95 0."
)
_UNNAMED = re.compile(r"label \d+")


def values(results: Sequence[CaseScores], segment: str, metric: str) -> dict[str, float]:
    """Return case -> metric of one segment, or of `MEAN`; nan where the segment is absent; failed cases left out."""
    if segment != MEAN:
        return {r.name: getattr(r.scores.get(segment, Scores()), metric) for r in results if not r.code}
    found = {}
    for result in results:
        known = [value for s in result.scores.values() if not isnan(value := getattr(s, metric))]
        if not result.code:
            found[result.name] = float(np.mean(known)) if known else nan
    return found


def summaries(results: Sequence[CaseScores]) -> dict[str, dict[str, Summary]]:
    """Return segment -> metric -> summary over the cases; `MEAN` has the metrics that can be averaged over segments."""
    rows = {name: tuple(DEFINITIONS) for name in segment_names(results)} | {MEAN: AVERAGED}
    places = [(name, metric) for name, metrics in rows.items() for metric in metrics]
    found = iter(summarise_columns([[*values(results, name, metric).values()] for name, metric in places]))
    return {name: {metric: next(found) for metric in metrics} for name, metrics in rows.items()}


def one_sided(results: Sequence[CaseScores]) -> tuple[dict[str, int], dict[str, int]]:
    """Return structure -> number of cases in which only the reference contains it; and only the result."""
    missed: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    for result in results:
        missed.update(name for name, s in result.scores.items() if s.reference_ml > 0 and s.volume_ml == 0)
        extra.update(name for name, s in result.scores.items() if s.volume_ml > 0 and s.reference_ml == 0)
    return dict(missed.most_common()), dict(extra.most_common())


def differences(
    ours: Sequence[CaseScores], others: Sequence[CaseScores]
) -> tuple[dict[str, dict[str, Difference]], tuple[Notice, ...]]:
    """Return structure (and `MEAN`) -> metric -> paired difference, ours minus others, see `paired`; and notices.

    The structures of both are compared, spelled as in ours, and those without a name ("label 3"), which a result may
    lack because it does not contain them.

    Raises:
        InputError: `evaluation.versus`, no case of both has structures of the same names, or one names a label of the
            references that the other does not name.
    """
    compared = {result.name for result in ours if not result.code} & {one.name for one in others if not one.code}
    ours, others = ([result for result in results if result.name in compared] for results in (ours, others))
    others = spelled_alike(others, segment_names(ours))
    ours_know, others_know = set(segment_names(ours)), set(segment_names(others))
    held = {(r.name, name) for r in (*ours, *others) for name, scores in r.scores.items() if scores.reference_ml > 0}
    unnamed = {name for name in ours_know ^ others_know if _UNNAMED.fullmatch(name)}
    if not ours_know & others_know or unnamed & {name for _, name in held}:
        first, second = (", ".join(sorted(names)) or "none" for names in (ours_know, others_know))
        text = f"found the structures {first}, and in the results to compare with {second}"
        text += "; expected the same names: name structures alike, or give the meaning of the references with --labels"
        raise InputError("evaluation.versus", f"{text} ({len(compared)} cases have both)")
    names = [name for name in segment_names([*others, *ours]) if name in (ours_know & others_know) | unnamed]
    table: dict[str, dict[str, Difference]] = {name: {} for name in (*names, MEAN)}
    for metric in PERFECT:
        a, b = (
            {
                r.name: {
                    name: getattr(r.scores.get(name, Scores()), metric)
                    for name in names
                    if name in r.scores or (r.name, name) not in held  # else it has no name in this case
                }
                for r in results
            }
            for results in (ours, others)
        )
        pairs = paired(a, b, PERFECT[metric])
        for name in names:
            table[name][metric] = compare(of_structure(pairs, name))
        table[MEAN][metric] = compare(means_of_cases(pairs))
    only = [sorted(one - other - unnamed) for one, other in ((ours_know, others_know), (others_know, ours_know))]
    places = zip(("these results", "the results to compare with"), only, strict=True)
    where = "; ".join(f"only in {place}: {listed(of_place)}" for place, of_place in places if of_place)
    return table, (Notice("labels.names_differ", f"{where}; not compared"),) if where else ()


def pooled_confusion_ml(results: Sequence[CaseScores]) -> dict[str, dict[str, float]]:
    """Return segment in the reference -> segment in the result -> volume in ml over all cases; zeros omitted."""
    pooled: dict[str, dict[str, float]] = {}
    for result in results:
        for expected, row in result.confusion_ml.items():
            total = pooled.setdefault(expected, {})
            for found, volume_ml in row.items():
                total[found] = total.get(found, 0.0) + volume_ml
    return pooled


def unit(results: Sequence[CaseScores]) -> str:
    """Return the unit of distances: "mm", or "pixels" for 2D images (1000 pixels count as 1 ml)."""
    return "pixels" if any(r.pair and r.pair.is_image_2d for r in results) else "mm"


def summary(
    results: Sequence[CaseScores],
    tolerance_mm: float,
    versus: Mapping[str, Mapping[str, Difference]] | None = None,
    table: Mapping[str, Mapping[str, Summary]] | None = None,
) -> dict[str, Any]:
    """Return the summary of an evaluation, without the metrics per case, as plain values for JSON; nan becomes null."""
    table = summaries(results) if table is None else table
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
    results: Sequence[CaseScores],
    output_dir: Path,
    tolerance_mm: float,
    *,
    figures: bool = True,
    versus: Mapping[str, Mapping[str, Difference]] | None = None,
    table: Mapping[str, Mapping[str, Summary]] | None = None,
) -> None:
    """Write cases.csv, summary.json and report.html; files of an earlier evaluation are replaced, others are not.

    Args:
        results: scores of all cases, failed ones included.
        output_dir: folder; created if missing.
        tolerance_mm: tolerance of the NSD.
        figures: draw the worst cases, which reads their files again.
        versus: differences from another model's results.
        table: `summaries` of the results, if they were computed before.

    Raises:
        OutputError: `output.exists`, another command has written one of these files, such as a run of predict;
            `output.not_written`, the folder can't be created or written to.
    """
    from napari_seg.evaluation.page import page

    check_replaceable(output_dir)
    write_cases(results, output_dir)  # first, because the others take longer
    facts = summary(results, tolerance_mm, versus, table)
    _write(output_dir / "summary.json", json.dumps(facts, indent=2) + "\n")
    _write(output_dir / "report.html", page(results, facts, figures=figures))


def write_cases(results: Sequence[CaseScores], output_dir: Path) -> None:
    """Write cases.csv.

    Args:
        results: scores of all cases, failed ones included.
        output_dir: folder; created if missing.

    Raises:
        OutputError: `output.not_written`, the folder can't be created or written to.
    """
    _write(output_dir / "cases.csv", _csv(results))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    except OSError as error:
        raise OutputError(
            "output.not_written", f"can't write to {path.parent} ({error.strerror}); choose another folder with -o"
        ) from error


def check_replaceable(output_dir: Path) -> None:
    """Check that no file of another command would be replaced.

    Raises:
        OutputError: `output.exists`; `output.not_written`, a file can't be read.
    """
    refuse_other_files(output_dir, _SIGNS, "an evaluation")


def _csv(results: Sequence[CaseScores]) -> str:
    """Return one line for each case and segment, and one for each failed case; nan is left blank."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "segment", *DEFINITIONS, "code", "message"])
    for result in results:
        for name, scores in result.scores.items():
            numbers = ("" if isnan(value) else f"{value:.6g}" for value in asdict(scores).values())
            writer.writerow([text_cell(result.name), text_cell(name), *numbers, "", ""])
        if result.code:
            blank = ("" for _ in DEFINITIONS)
            writer.writerow([text_cell(result.name), "", *blank, result.code, text_cell(result.message)])
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
