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

from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.read import inner_bundles
from napari_seg.bundles.spec import METADATA, WEIGHTS, Bundle
from napari_seg.evaluation.matching import Structure, matched_by
from napari_seg.evaluation.metrics import compare_label_maps
from napari_seg.evaluation.statistics import Both, means_of_cases, of_structure, paired
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.label_maps import on_grid
from napari_seg.inference.segment import segment
from napari_seg.learning.scans import labels_of, scan_of
from napari_seg.learning.training_set import AcceptedCase, TrainingSet
from napari_seg.progress import Progress, ignore_progress
from napari_seg.structure_names import match_names
from napari_seg.version import __version__
from napari_seg.volume import Segment, Segmentation, distinct_color

SCORES = "scores"
"""Folder of a training set with the scores of models, so that none is evaluated twice on the same labels."""

MEAN = "mean"
"""Name of the row with the mean over the structures of each case."""

MIN_PATIENTS = 6
"""Patients from which on differences have an interval; the spread of fewer is too uncertain."""

Scores = dict[str, dict[str, float]]
"""Case -> structure -> Dice; nan where neither the labels nor the result hold the structure. Structures that the model
does not know are absent."""


@dataclass(frozen=True)
class ComparedStructure:
    """Dice of the old and the new model in one structure.

    Attributes:
        structure: name, or `MEAN`.
        cases: number of cases in which either has a Dice, see `paired`.
        before: mean Dice of the old model over the patients of these cases; nan if it does not know the structure.
            The mean of a patient is that of his cases.
        after: mean Dice of the new model over the same patients, or over its own if the old one has none.
        low: lower end of the 95 % interval of the mean difference, paired, from a t distribution over the patients;
            nan for fewer than `MIN_PATIENTS`.
        high: upper end of the interval.
        patients: number of patients of the cases.
        one_empty: number of cases in which only one of the models finds a structure, and the labels do not contain it.
    """

    structure: str
    cases: int
    before: float
    after: float
    low: float = nan
    high: float = nan
    patients: int = 0
    one_empty: int = 0

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
    """Return a digest of what makes a model's results: this program's version, and the model.

    Of a trained bundle the weights and configs count, not its runs.
    """
    own = hashlib.sha256(__version__.encode())
    files = [bundle.root / file for file in (WEIGHTS, METADATA, METADATA.with_name("inference.yaml"))]
    if bundle.kind != "monai" or inner_bundles(bundle) or not all(file.is_file() for file in files):
        own.update(model_digest(bundle).encode())
        return own.hexdigest()
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    own.update(b"".join(digests))
    return own.hexdigest()


def _key(case: AcceptedCase, content: TrainingSet) -> str:
    """Return the labels of a case, with the names of the structures that they were annotated for."""
    return " ".join((Path(case.labels).name, case.scan, *(f"{n}={content.structures[n]}" for n in case.annotated)))


def _score(folder: Path, content: TrainingSet, case: AcceptedCase, bundle: Bundle) -> dict[str, float | None]:
    """Return structure -> Dice in one case; None where neither labels nor result hold it."""
    scan = scan_of(folder, case)
    labels = labels_of(folder, case, scan.grid)
    result = on_grid(segment(scan, bundle), scan.grid, folder / case.image)
    labels_of_name: dict[str, set[int]] = {}
    for one in result.segments:
        labels_of_name.setdefault(one.name, set()).add(one.label)
    same = match_names(case.annotated, labels_of_name)
    structures = [
        Structure(
            Segment(number, name, distinct_color(number)),
            frozenset(labels_of_name[same[name]]),
            frozenset([content.structures[name]]),
        )
        for number, name in enumerate(same, 1)
    ]
    matched = matched_by(structures, result, Segmentation(labels, scan.grid, ()))
    found = compare_label_maps(matched.prediction, matched.reference, matched.structures, tolerance_mm=None).scores
    return {name: None if math.isnan(scores.dice) else scores.dice for name, scores in found.items()}


def compared(before: Scores, after: Scores, patients: Mapping[str, str] | None = None) -> list[ComparedStructure]:
    """Return a row for each structure, and last one for the mean over the structures that both models know.

    Args:
        before: scores of the old model.
        after: scores of the new model.
        patients: case -> patient; a case that is not in it is of a patient of its own.
    """
    names = sorted({name for scores in (*before.values(), *after.values()) for name in scores})
    pairs = paired(before, after)
    rows = [
        _row(name, of_structure(pairs, name), patients or {}) or _alone(name, after, patients or {}) for name in names
    ]
    mean = _row(MEAN, means_of_cases(pairs), patients or {}) or ComparedStructure(MEAN, 0, nan, nan)
    return [*rows, mean] if rows else []


def _row(name: str, pairs: Mapping[str, Both], patients: Mapping[str, str]) -> ComparedStructure | None:
    """Return the row of a structure, or of the means; None without a case."""
    if not pairs:
        return None
    was = _means_of_patients({case: both.a for case, both in pairs.items()}, patients)
    is_now = _means_of_patients({case: both.b for case, both in pairs.items()}, patients)
    low, high = _interval([is_now[patient] - was[patient] for patient in was])
    one_empty = sum(both.one_empty for both in pairs.values())
    return ComparedStructure(
        name, len(pairs), _mean(list(was.values())), _mean(list(is_now.values())), low, high, len(is_now), one_empty
    )


def _alone(name: str, after: Scores, patients: Mapping[str, str]) -> ComparedStructure:
    """Return the row of a structure that the old model does not know."""
    known = {case: of_case[name] for case, of_case in after.items() if not math.isnan(of_case.get(name, nan))}
    means = _means_of_patients(known, patients)
    return ComparedStructure(name, len(known), nan, _mean(list(means.values())), patients=len(means))


def _means_of_patients(scores: Mapping[str, float], patients: Mapping[str, str]) -> dict[str, float]:
    """Return patient -> mean over his cases: scans of one patient are no independent draws."""
    found: dict[str, list[float]] = {}
    for case in sorted(scores):
        found.setdefault(patients.get(case, f"patient of {case}"), []).append(scores[case])
    return {patient: _mean(values) for patient, values in found.items()}


def _interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean from the t distribution (Student 1908, doi:10.1093/biomet/6.1.1)."""
    if len(differences) < MIN_PATIENTS:
        return nan, nan
    from scipy.stats import sem, t

    half = float(t.ppf(0.975, len(differences) - 1) * sem(differences))
    return _mean(differences) - half, _mean(differences) + half


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
