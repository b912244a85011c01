"""The report of a training as one self-contained HTML page: curves, scores of the cases, worst and best cases, plan."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.evaluation.html import document, strips, table
from napari_seg.evaluation.statistics import RESAMPLES, summarise_table
from napari_seg.formats.atomic import atomic_write
from napari_seg.progress import describe_seconds
from napari_seg.training.comparison import COMPARED_RULE, HEADS
from napari_seg.training.curves import PAGE, draw_curves
from napari_seg.training.describe import plan_rows
from napari_seg.training.history import RUN, RunState, read_case_scores, read_patients, read_state, run_folders
from napari_seg.training.scores import KEPT_RULE, MEAN, Cases, case_means, explain, read_evaluation, score_rows
from napari_seg.training.write import PLAN
from napari_seg.version import __version__

REPORT = Path(RUN, "report.html")
"""Report, relative to the bundle's folder."""

_OPTIMISTIC = (
    "Measured on {where} validation cases, which also selected the best epoch: slightly optimistic. Evaluate the model "
    "on cases of other patients with napari-seg evaluate."
)


def write_report(
    root: Path,
    runs: Path | None = None,
    compared: Sequence[Sequence[str]] = (),
    left_out: Mapping[str, str] | None = None,
) -> Path | None:
    """Write the report of a bundle's runs and return its file; None if no run has begun.

    Args:
        root: folder of the bundle.
        runs: folder that holds the folders of its runs; default: the bundle's.
        compared: rows of the table of compared configurations (`comparison.Row.cells`).
        left_out: configuration that was not compared -> reason.
    """
    folders = run_folders(runs or root)
    if not folders:
        return None
    plan = json.loads((root / PLAN).read_text(encoding="utf-8")) if (root / PLAN).is_file() else None
    states = [read_state(folder) for folder in folders]
    cases = {case: scores for folder in folders for case, scores in read_case_scores(folder).items()}
    path = root / REPORT
    path.parent.mkdir(exist_ok=True)
    patients = {case: patient for folder in folders for case, patient in read_patients(folder).items()}
    atomic_write(path, page(root.name, plan, states, cases, read_evaluation(root), compared, patients, left_out))
    return path


def page(
    name: str,
    plan: dict[str, Any] | None,
    states: Sequence[RunState],
    cases: Cases,
    evaluation: Mapping[str, Any] | None = None,
    compared: Sequence[Sequence[str]] = (),
    patients: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        name: name of the bundle.
        plan: content of plan.json; None if it is missing.
        states: runs: one, or one for each fold.
        cases: scores of the best validations.
        evaluation: scores in the bundle's metadata (see `scores.write_scores`); None before the evaluation.
        compared: rows of the table of compared configurations.
        patients: case -> patient; intervals resample patients.
        left_out: configuration that was not compared -> reason.
    """
    names = list(dict.fromkeys(name for scores in cases.values() for name in scores))
    known = {
        name: {case: dice for case, scores in cases.items() if math.isfinite(dice := scores.get(name, math.nan))}
        for name in names
    }
    return document(
        f"Training of {name}",
        f"{_lead(states)}. napari-seg {__version__}. For research; not a medical device.",
        {
            "Configurations": _configurations(compared, left_out or {}),
            "Scores of the bundle": _evaluation(evaluation),
            "Validation": _overview(known, cases, _measured_on(plan), patients or {}),
            "Curves": draw_curves(states, PAGE, 960, 460),
            "Distribution": strips(known, "Dice", 3, is_fraction=True),
            "Worst and best validation cases": "".join(_preview(state, len(states) > 1) for state in states),
            "Validation cases": _cases(names, cases),
            "Plan": _plan(plan),
        },
    )


def _lead(states: Sequence[RunState]) -> str:
    progress = [state.progress for state in states if state.progress is not None]
    parts = [f"{len(states)} folds"] if len(states) > 1 else []
    if progress:
        steps, planned = sum(one.step for one in progress), sum(one.steps for one in progress)
        parts.append(f"{steps} of {planned} planned steps")
        parts.append(
            f"{describe_seconds(sum(one.seconds for one in progress if math.isfinite(one.seconds)))} of training"
        )
    best = [state.best for state in states if state.best is not None]
    if len(states) == 1 and best:
        parts.append(f"best validation in epoch {best[0].epoch:g}")
    return ", ".join(parts) or "No validation yet"


def _configurations(compared: Sequence[Sequence[str]], left_out: Mapping[str, str]) -> str:
    if not compared:
        return ""
    reasons = "".join(f"<p>Left out: {escape(name)}: {escape(reason)}.</p>" for name, reason in left_out.items())
    return table(HEADS, [list(map(escape, row)) for row in compared], text=(0,)) + f"<p>{COMPARED_RULE}</p>{reasons}"


def _evaluation(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    rows = [[escape(name), *numbers] for name, *numbers in score_rows(entry)]
    scores = table(["structure", "cases", "mean Dice", "95 % interval", "median"], rows, text=(0,)) + (
        f"<p>The weights of the bundle on the grids of the images: {explain(entry)}. The last row is the mean over "
        f"the structures. The interval holds for the mean (bootstrap over patients, {RESAMPLES} resamples).</p>"
    )
    tried = [
        [escape(one["structure"]), f"{one['gain']:+.4f}", "yes" if one["kept"] else "no"]
        for one in entry.get("largest component", ())
    ]
    if not tried:
        return scores
    heads = ["only the largest component of", "gain in mean Dice", "kept"]
    return scores + table(heads, tried, text=(0, 2)) + f"<p>{KEPT_RULE}</p>"


def _measured_on(plan: dict[str, Any] | None) -> str:
    """Return which of the validation cases were seen, as words before "validation cases"."""
    if plan is None:
        return "the"
    count = plan["settings"].get("val_cases", {}).get("value")
    of_them = f"{count} of the" if count else "the"
    return f"patches of {of_them}" if "validate_patches" in plan["options"] else of_them


def _overview(known: Cases, cases: Cases, where: str, patients: Mapping[str, str]) -> str:
    if not known:
        return ""
    means = {case: mean for case, mean in case_means(cases).items() if math.isfinite(mean)}
    rows = []
    for name, row in (*known.items(), (MEAN, means)):
        table_of_row = np.array(list(row.values()), dtype=np.float64)[:, None]
        summary = summarise_table(table_of_row, [patients.get(case, case) for case in row])
        interval = "–" if math.isnan(summary.low) else f"{summary.low:.3f} to {summary.high:.3f}"
        worst = min(row, key=lambda case: row[case], default=None)
        lowest = "–" if worst is None else f"{row[worst]:.3f} ({escape(worst)})"
        head = f"<b>{MEAN}</b>" if row is means else escape(name)
        rows.append([head, str(summary.count), _number(summary.mean), interval, _number(summary.median), lowest])
    heads = ["structure", "cases", "mean", "95 % interval", "median", "lowest"]
    return table(heads, rows, text=(0,)) + (
        "<p>Means over the cases in which the result or the reference contains the structure; for the last row, each "
        "case is averaged over its structures first. The interval holds for the mean (bootstrap over patients, "
        f"{RESAMPLES} resamples). {_OPTIMISTIC.format(where=where)}</p>"
    )


def _preview(state: RunState, is_fold: bool) -> str:
    if state.preview is None:
        return ""
    try:
        encoded = base64.b64encode(state.preview.read_bytes()).decode("ascii")
    except OSError:
        return ""
    alt = "outlines of reference and prediction in the worst and the best cases"
    caption = (
        f"The best validation{f' of {escape(state.folder.name)}' if is_fold else ''}. The reference is outlined solid, "
        "the prediction dashed; the planes pass through the slices with most errors."
    )
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{encoded}"><figcaption>{caption}</figcaption></figure>'


def _cases(names: Sequence[str], cases: Cases) -> str:
    if not cases:
        return ""
    rows = [
        [escape(case), *(_number(scores.get(name, math.nan)) for name in names)]
        for case, scores in sorted(cases.items(), key=lambda item: _lowest(item[1]))
    ]
    return table(["case", *map(escape, names)], rows, text=(0,), sortable=True)


def _lowest(scores: Mapping[str, float]) -> float:
    return min((dice for dice in scores.values() if math.isfinite(dice)), default=math.inf)


def _plan(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return ""
    return table(["", ""], [[escape(heading), escape(text)] for heading, text in plan_rows(plan)], text=(0, 1))


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
