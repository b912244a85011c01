"""What the values of references mean, where a model was trained to call them otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from napari_seg.errors import InputError, Notice
from napari_seg.evaluation.metrics import on_grid
from napari_seg.volume import Segment, Segmentation, distinct_color

BACKGROUND = "background"

Classes = Mapping[str, tuple[tuple[int, int], ...]]
"""Name -> the values that stand for it, from and to, both included; in the order of the model's classes."""

_VALUES = re.compile(r"(\d+)(?:-(\d+))?")


def read_classes(words: Iterable[tuple[str, str]]) -> Classes:
    """Classes as `napari-seg train --labels` takes them: a name, and values such as "2,3" or "10-19".

    Raises:
        InputError: `labels.bad_value`.
    """
    classes = {}
    for name, text in words:
        found = [_VALUES.fullmatch(value.strip()) for value in text.split(",")]
        bounds = tuple((int(match[1]), int(match[2] or match[1])) for match in found if match)
        if len(bounds) < len(found) or any(low > high for low, high in bounds):
            raise InputError("labels.bad_value", f"{text!r} are no label values; expected as 3, 2,3 or 10-19")
        classes[name] = bounds
    return classes


def as_classes(reference: Segmentation, classes: Classes, result: Segmentation) -> Segmentation:
    """A reference with the labels and names of a model's classes in place of its own values.

    A class has the label of that name in the result; where the result names nothing, the place in the list, counted
    from 1 without the background.

    Args:
        reference: with the values that `classes` speaks of.
        classes: what they mean.
        result: the model's.

    Raises:
        InputError: `labels.names`, the result does not know a class; `labels.overlap`, one value, two classes;
            `labels.unknown`, no class has a value.
    """
    names = [name for name in classes if name != BACKGROUND]
    numbers = {segment.name: segment.label for segment in result.segments} or {n: i for i, n in enumerate(names, 1)}
    if strange := [name for name in names if name not in numbers]:
        raise InputError("labels.names", f"the result has no {strange[0]!r}; it has {', '.join(numbers)}")
    meant = np.full(int(reference.array.max()) + 1, -1)
    for name, bounds in classes.items():
        for low, high in bounds:
            if (meant[low : high + 1] >= 0).any():
                raise InputError("labels.overlap", f"a value of {low}-{high} stands for {name} and for another class")
            meant[low : high + 1] = numbers.get(name, 0)
    meant[0] = max(meant[0], 0)
    if len(strangers := np.setdiff1d(reference.array, np.flatnonzero(meant >= 0))):
        some = ", ".join(map(str, strangers[:6]))
        raise InputError("labels.unknown", f"the reference holds {some}; say what that is, as background={some}")
    array = meant.astype(np.min_scalar_type(max(meant.max(), 0)))[reference.array]
    return Segmentation(
        array, reference.grid, tuple(Segment(numbers[name], name, distinct_color(numbers[name])) for name in names)
    )


def with_labels_of(result: Segmentation, reference: Segmentation) -> Segmentation:
    """A reference whose segments have the labels that the result gives to segments of their names.

    A DICOM segmentation, say, numbers its segments from 1 on, whatever their labels were. Where the two have no name in
    common, or one of them has a name twice, the reference stays as it is.

    Args:
        result: with names, or without.
        reference: the same.
    """
    numbers = {segment.name: segment.label for segment in result.segments}
    names = [segment.name for segment in reference.segments]
    if numbers.keys().isdisjoint(names) or len(set(names)) < len(names) or len(numbers) < len(result.segments):
        return reference
    highest = max(int(reference.array.max()), *(s.label for s in (*reference.segments, *result.segments)))
    free = count(highest + 1)
    table = np.array([0, *(next(free) for _ in range(highest))])  # what has no name must not become one of the result's
    segments = []
    for segment in reference.segments:
        table[segment.label] = numbers.get(segment.name, table[segment.label])
        segments.append(replace(segment, label=int(table[segment.label])))
    array = table.astype(np.min_scalar_type(int(table.max())))[reference.array]
    return replace(reference, array=array, segments=tuple(sorted(segments, key=lambda segment: segment.label)))


def without(
    ignored: Sequence[int], prediction: Segmentation, reference: Segmentation, name: str
) -> tuple[Segmentation, Segmentation]:
    """Return a label map and its reference without the voxels that stand for no class in the reference.

    They become background in both, and a notice says how many there were.

    Args:
        ignored: values of the reference that stand for no class.
        prediction: the label map.
        reference: on the same voxels, in any order of axes.
        name: what the notice calls the reference.

    Raises:
        InputError: `geometry.mismatch`, the two lie on different grids.
    """
    array = on_grid(reference, prediction.grid)
    left_out = np.isin(array, np.array(ignored, np.int64))
    if not left_out.any():
        return prediction, reference
    text = f"{np.count_nonzero(left_out)} voxels of {name} have the value {', '.join(map(str, ignored))}"
    notice = Notice("labels.ignored", f"{text}, which stands for no class; they were left out of the comparison")
    kept = tuple(segment for segment in reference.segments if segment.label not in ignored)
    return (
        replace(prediction, array=np.where(left_out, np.zeros_like(prediction.array), prediction.array)),
        replace(
            reference,
            array=np.where(left_out, np.zeros_like(array), array),
            grid=prediction.grid,
            segments=kept,
            notices=(*reference.notices, notice),
        ),
    )


def declared_ignored(references: Path) -> tuple[int, ...]:
    """Return the values that a data set's dataset.json means to be ignored, as training does; empty without one.

    Args:
        references: a label map, or a folder of them; the description lies there or in the folder above.
    """
    folder = references if references.is_dir() else references.parent
    for description in (folder / "dataset.json", folder.parent / "dataset.json"):
        try:
            labels = json.loads(description.read_text(encoding="utf-8"))["labels"]
            values = [labels["ignore"]] if "ignore" in labels else [k for k, name in labels.items() if name == "ignore"]
            return tuple(int(value) for value in values)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # none, or of another kind
            continue
    return ()
