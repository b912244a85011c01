"""Scores of a bundle on cases that did not train it: measured by its own evaluation, written into its metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.spec import METADATA
from napari_seg.evaluation.statistics import Summary, summarise_table
from napari_seg.formats.atomic import atomic_write
from napari_seg.training import history
from napari_seg.training.history import read_case_scores
from napari_seg.training.write import PLAN

EVALUATION = "evaluation"
"""Folder of an evaluation inside the folder of a run, and its entry in the metadata, under `napari_seg`."""
SUMMARY = Path(EVALUATION, "summary.json")
CASES = Path(EVALUATION, "cases.jsonl")
MEAN = "mean of the structures"
"""Name of the row with the mean over the structures of their means over the cases."""

KEPT_RULE = (
    "Only the largest component of a structure is kept if that raises its mean Dice and makes no fold worse; the "
    "scores are with the components that are kept."
)

Part = Literal["test", "validation", "cross-validation"]
"""What was evaluated: cases that the training never saw; cases that selected the best epoch; all cases, each by the
fold that it did not train, whose best epoch it selected."""

Cases = Mapping[str, Mapping[str, float]]
"""Case -> structure -> Dice; nan where neither reference nor result contains the structure."""


def read_scores(folder: Path, metric: str = "mean_dice") -> dict[str, dict[str, float]]:
    """Return case -> structure -> score of the evaluation of a run; empty without one.

    Args:
        folder: folder of the run.
        metric: name of the score in the evaluation's file.
    """
    return read_case_scores(folder, CASES, metric)


def read_means(folder: Path) -> dict[str, Any] | None:
    """Return the means of the evaluation of a run, as `segnets.metrics.Summary` writes them; None if not complete.

    Args:
        folder: folder of the run.
    """
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None


def read_soft_dice(folder: Path) -> float | None:
    """Return the mean Dice of the fractions in the evaluation of a run; None if its labels are no fractions."""
    mean: float | None = ((read_means(folder) or {}).get("soft_dice") or {}).get("mean")
    return mean


def read_patients(folder: Path) -> dict[str, str]:
    """Return case -> patient in the evaluation of a run."""
    return history.read_patients(folder, CASES)


def case_means(cases: Cases) -> dict[str, float]:
    """Return case -> mean over its structures; nan for a case without any."""
    known = {case: [dice for dice in scores.values() if math.isfinite(dice)] for case, scores in cases.items()}
    return {case: sum(values) / len(values) if values else math.nan for case, values in known.items()}


def table_of(cases: Cases, names: Sequence[str]) -> NDArray[np.float64]:
    """Return the scores as (cases, structures)."""
    rows = [[scores.get(name, math.nan) for name in names] for scores in cases.values()]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(names))


def structures_of(cases: Cases) -> list[str]:
    """Return the names of all structures."""
    return list(dict.fromkeys(name for scores in cases.values() for name in scores))


def summarise_cases(cases: Cases, patients: Mapping[str, str]) -> dict[str, Summary]:
    """Return structure -> summary over the cases, and last `MEAN`, the mean over the structures of their means.

    Args:
        cases: scores.
        patients: case -> patient; intervals resample patients.
    """
    names = structures_of(cases)
    table, groups = table_of(cases, names), [patients.get(case, case) for case in cases]
    found = {name: summarise_table(table[:, [number]], groups) for number, name in enumerate(names)}
    return {**found, MEAN: summarise_table(table, groups)}


def score_rows(entry: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of structure, number of cases, mean, interval and median, as `write_scores` wrote them."""
    rows = []
    for one in entry["dice"]:
        mean, low, high, median = (
            "–" if one[key] is None else f"{one[key]:.4f}" for key in ("mean", "low", "high", "median")
        )
        interval = "–" if one["low"] is None else f"{low} to {high}"
        rows.append([one["structure"], str(one["cases"]), mean, interval, median])
    return rows


def explain(entry: Mapping[str, Any]) -> str:
    """Return what the scores of an entry were measured on."""
    seen = ""
    if "soft dice" in entry:
        seen = f"; masks of fractions above one half; the mean Dice of the fractions is {entry['soft dice']:.4f}"
    if entry.get("fine-tuned"):
        seen += "; the initial weights of the fine-tuning may have seen these cases before, then it is optimistic"
    return {
        "test": "measured on the test part, which neither trained nor selected the weights",
        "validation": "there is no test part: measured on the validation part, which also selected the best epoch, so "
        "slightly optimistic",
        "cross-validation": "each case is measured by the fold that it did not train, but whose best epoch it helped "
        "to select, so slightly optimistic",
    }[entry["part"]] + seen


def write_scores(
    root: Path,
    part: Part,
    cases: Cases,
    patients: Mapping[str, str],
    postprocessing: Sequence[dict[str, Any]] = (),
    soft_dice: float | None = None,
) -> None:
    """Write scores into a bundle's metadata: `eval_metrics`, and under `napari_seg` with intervals and counts.

    Args:
        root: folder of the bundle.
        part: part of the data set that was evaluated.
        cases: scores of its cases; without a case nothing is written.
        patients: case -> patient.
        postprocessing: steps that were tried on the folds, each with its gain.
        soft_dice: see `read_soft_dice`.
    """
    if not cases:
        return
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    summaries = summarise_cases(cases, patients)
    if part != "cross-validation" and math.isfinite(summaries[MEAN].mean):  # `ship` writes those of the folds
        metadata["eval_metrics"][f"mean Dice of the {part} part"] = round(summaries[MEAN].mean, 4)
    entry = {
        "part": part,
        "cases": len(cases),
        "patients": len({patients.get(case, case) for case in cases}),
        "grid": "of the images",
        "interval": "95 % of the mean, bootstrap over patients",
        "dice": [{"structure": name, **_plain(summary)} for name, summary in summaries.items()],
        **({"soft dice": soft_dice} if soft_dice is not None else {}),
        **({"fine-tuned": True} if _is_fine_tuned(root) else {}),
        **({"largest component": list(postprocessing)} if postprocessing else {}),
    }
    metadata["napari_seg"] = {**metadata.get("napari_seg", {}), EVALUATION: entry}
    atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")


def _is_fine_tuned(root: Path) -> bool:
    with suppress(OSError, ValueError, LookupError, TypeError):
        return bool(json.loads((root / PLAN).read_text(encoding="utf-8"))["choices"].get("fine_tune"))
    return False


def read_evaluation(root: Path) -> dict[str, Any] | None:
    """Return the scores in a bundle's metadata, as `write_scores` writes them; None without any."""
    try:
        metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
        entry: dict[str, Any] = metadata["napari_seg"][EVALUATION]
        # what the terminal and the report show must be there
        score_rows(entry)
        explain(entry)
        [f"{one['structure']}{one['gain']:f}{one['kept']}" for one in entry.get("largest component", ())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return entry


def _plain(summary: Summary) -> dict[str, Any]:
    numbers = {name: value for name, value in asdict(summary).items() if name != "missing"}
    rounded = {key: round(value, 4) if math.isfinite(value) else None for key, value in numbers.items()}
    return {"cases": rounded.pop("count"), **rounded}
