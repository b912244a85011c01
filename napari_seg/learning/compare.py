"""Compare two models on the validation part of a training set: Dice of each structure, case by case."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np

from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.spec import METADATA, WEIGHTS, Bundle
from napari_seg.errors import InputError
from napari_seg.evaluation.statistics import compare
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.read import read
from napari_seg.inference.segment import segment
from napari_seg.learning.scans import scan_of
from napari_seg.learning.training_set import AcceptedCase, TrainingSet
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import Segmentation, as_labels

SCORES = "scores"
"""Folder of a training set with the scores of models, so that none is evaluated twice on the same labels."""

MEAN = "mean"
"""Name of the row with the mean over the structures of each case."""

Scores = dict[str, dict[str, float]]
"""Case -> structure -> Dice; nan where neither the labels nor the result hold the structure. Structures that the model
does not know are absent."""


@dataclass(frozen=True)
class ComparedStructure:
    """Dice of the old and the new model in one structure.

    Attributes:
        structure: name, or `MEAN`.
        cases: number of cases in which both have a Dice.
        before: mean Dice of the old model over these cases; nan if it does not know the structure.
        after: mean Dice of the new model over the same cases, or over its own if the old one has none.
        low: lower end of the 95 % interval of the mean difference, paired; nan for fewer than two cases.
        high: upper end of the interval.
    """

    structure: str
    cases: int
    before: float
    after: float
    low: float = nan
    high: float = nan

    @property
    def difference(self) -> float:
        """Mean Dice of the new model minus that of the old one; nan if the old one does not know the structure."""
        return self.after - self.before


def evaluate(folder: Path, content: TrainingSet, bundle: Bundle, progress: Progress = ignore_progress) -> Scores:
    """Return the scores of a model on the validation part; those that were computed before are read.

    Args:
        folder: training set.
        content: its content.
        bundle: the model; it is run as `segment` runs it for anybody.
        progress: called with the stage "comparing" and the number of cases.

    Raises:
        NapariSegError: a scan can't be read, or the model does not run.
    """
    path = folder / SCORES / f"{_digest(bundle)}.json"
    cases = content.part_of("validation")
    known = _read(path)
    found: Scores = {}
    for number, case in enumerate(cases):
        progress("comparing", number, len(cases))
        if (key := _key(case, content)) not in known:
            known[key] = _score(folder, content, case, bundle)
            with suppress(OSError):  # then it is computed again
                path.parent.mkdir(exist_ok=True)
                atomic_write(path, json.dumps(known) + "\n")
        found[case.name] = {name: nan if dice is None else dice for name, dice in known[key].items()}
    progress("comparing", len(cases), len(cases))
    return found


def _digest(bundle: Bundle) -> str:
    """Return a digest of what makes a model's results: of a trained bundle its weights and configs, not its runs."""
    files = [bundle.root / file for file in (WEIGHTS, METADATA, METADATA.with_name("inference.yaml"))]
    if bundle.kind != "monai" or bundle.coarse is not None or not all(file.is_file() for file in files):
        return model_digest(bundle)
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _key(case: AcceptedCase, content: TrainingSet) -> str:
    """Return the labels of a case, with the names of the structures that they were annotated for."""
    return " ".join((Path(case.labels).name, case.scan, *(f"{n}={content.structures[n]}" for n in case.annotated)))


def _score(folder: Path, content: TrainingSet, case: AcceptedCase, bundle: Bundle) -> dict[str, float | None]:
    """Return structure -> Dice in one case; None where neither labels nor result hold it."""
    labels = as_labels(read(folder / case.labels).array[0], case.name)
    result = segment(scan_of(folder, case), bundle)
    if result.array.shape != labels.shape:
        raise InputError("geometry.shape", f"the labels of {case.name} have another shape than its scan; accept again")
    named = _labels_of(result)
    scores: dict[str, float | None] = {}
    for name in case.annotated:
        if (own := named.get(name.casefold())) is not None:
            dice = _dice(labels == content.structures[name], np.isin(result.array, own))
            scores[name] = None if math.isnan(dice) else dice
    return scores


def _labels_of(result: Segmentation) -> dict[str, list[int]]:
    """Return name in lower case -> labels."""
    found: dict[str, list[int]] = {}
    for one in result.segments:
        found.setdefault(one.name.casefold(), []).append(one.label)
    return found


def _dice(reference: np.ndarray, found: np.ndarray) -> float:
    total = int(reference.sum()) + int(found.sum())
    return 2 * int((reference & found).sum()) / total if total else nan


def compared(before: Scores, after: Scores) -> list[ComparedStructure]:
    """Return a row for each structure, and last one for the mean over the structures that both models know."""
    names = sorted({name for scores in (*before.values(), *after.values()) for name in scores})
    rows = [_row(name, _column(before, name), _column(after, name)) for name in names]
    return [*rows, _row(MEAN, *_means(before, after))] if rows else []


def _column(scores: Scores, name: str) -> dict[str, float]:
    return {case: of_case[name] for case, of_case in scores.items() if not math.isnan(of_case.get(name, nan))}


def _means(before: Scores, after: Scores) -> tuple[dict[str, float], dict[str, float]]:
    """Return the means over the structures of each case for which both models have a Dice."""
    means: tuple[dict[str, float], dict[str, float]] = {}, {}
    for case in before.keys() & after.keys():
        both = [n for n in before[case] if not math.isnan(before[case][n] + after[case].get(n, nan))]
        if both:
            for of_model, scores in zip(means, (before, after), strict=True):
                of_model[case] = sum(scores[case][name] for name in both) / len(both)
    return means


def _row(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> ComparedStructure:
    both = sorted(before.keys() & after.keys())
    if not both:
        return ComparedStructure(name, len(after), nan, _mean(list(after.values())))
    difference = compare(after, before)
    was, is_now = (_mean([of_model[case] for case in both]) for of_model in (before, after))
    return ComparedStructure(name, len(both), was, is_now, difference.low, difference.high)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def _read(path: Path) -> dict[str, dict[str, float | None]]:
    """Return what was computed before; nothing if the file is missing or damaged."""
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        content = json.loads(path.read_bytes())
        is_ours = all(
            isinstance(dice, float | int | None) and not (dice and not 0 <= dice <= 1)
            for scores in content.values()
            for dice in scores.values()
        )
        return dict(content) if is_ours else {}
    return {}
