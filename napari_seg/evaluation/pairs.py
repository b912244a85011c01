"""Which label map belongs to which reference, and how well they agree."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.errors import InputError, NapariSegError
from napari_seg.formats import nifti_ending
from napari_seg.volume import Segment, Segmentation


@dataclass(frozen=True)
class PairResult:
    """One label map held against its reference.

    Attributes:
        name: the case's.
        dice: segment name -> Dice; nan where neither holds the segment.
        code: of the error that prevented it; "" if compared.
        message: of that error.
    """

    name: str
    dice: dict[str, float] = field(default_factory=dict)
    code: str = ""
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes null."""
        dice = {name: None if math.isnan(value) else value for name, value in self.dice.items()}
        return {"name": self.name, "dice": dice, "code": self.code, "message": self.message}


def find_pairs(predictions: Path, references: Path) -> tuple[list[tuple[str, Path, Path]], list[PairResult]]:
    """(case, label map, reference) for each name that both have, and a failed result for each that one lacks.

    Raises:
        InputError: `input.missing`, one of the two is not there.
    """
    for path in (predictions, references):
        if not path.exists():
            raise InputError("input.missing", f"there is no file or folder {path}")
    if predictions.is_file() and references.is_file():
        return [(_stem(predictions), predictions, references)], []
    known = {_stem(path): path for path in _label_maps(references)}
    pairs, lonely = [], []
    for path in _label_maps(predictions):
        stem = _stem(path)
        name = next((n for n in (stem, stem.removesuffix("_seg")) if n in known), None)
        if name is None:
            lonely.append(PairResult(stem, code="input.unpaired", message=f"{path.name} has no reference of its name"))
        else:
            pairs.append((name, path, known[name]))
    for name in sorted(set(known) - {name for name, _, _ in pairs}):
        lonely.append(
            PairResult(name, code="input.unpaired", message=f"{known[name].name} has no label map of its name")
        )
    return pairs, lonely


def compare_pair(name: str, prediction: Path, reference: Path) -> PairResult:
    """Dice of each segment of one pair, or the reason why there is none."""
    from napari_seg.evaluation.metrics import dice_per_label

    try:
        found, expected = read_label_map(prediction), read_label_map(reference)
        names = {s.label: s.name for s in (*expected.segments, *found.segments)}
        scores = dice_per_label(found, expected)
        return PairResult(name, {names.get(label, f"label {label}"): score for label, score in scores.items()})
    except NapariSegError as error:
        return PairResult(name, code=error.code, message=error.message)


def mean_dice(results: Sequence[PairResult]) -> dict[str, float]:
    """Segment name -> mean over the cases that hold it in either label map, then their "mean"."""
    names = list(dict.fromkeys(name for result in results for name in result.dice))
    means = {}
    for name in names:
        values = [r.dice[name] for r in results if name in r.dice and not math.isnan(r.dice[name])]
        if values:
            means[name] = sum(values) / len(values)
    if means:
        means["mean"] = sum(means.values()) / len(means)
    return means


def read_label_map(path: Path) -> Segmentation:
    """A label map from a file, with the names in the record beside it where there is one.

    Raises:
        InputError: the file can't be read, or `labels.type`: its values are no whole numbers from 0 up.
    """
    from napari_seg.formats import read

    volume = read(path)
    array = volume.array[0]
    if volume.array.shape[0] != 1 or array.min() < 0 or not np.array_equal(array, np.rint(array)):
        raise InputError(
            "labels.type", f"{path.name} holds values that are no labels; expected whole numbers from 0 up"
        )
    highest = int(array.max())
    if highest > np.iinfo(np.uint16).max:
        raise InputError("labels.type", f"{path.name} holds the value {highest}; expected labels up to 65535")
    return Segmentation(array.astype(np.min_scalar_type(highest)), volume.grid, _recorded_segments(path))


def _recorded_segments(path: Path) -> tuple[Segment, ...]:
    record = path.with_name(f"{_stem(path)}.json")
    try:
        entries = json.loads(record.read_text(encoding="utf-8"))["segments"]
        return tuple(Segment(int(e["label"]), str(e["name"]), tuple(e["color"])) for e in entries)
    except (OSError, ValueError, KeyError, TypeError):  # names are a courtesy: the labels themselves are compared
        return ()


def _label_maps(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.iterdir() if nifti_ending(p) and not p.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name.removesuffix(nifti_ending(path) or path.suffix)
