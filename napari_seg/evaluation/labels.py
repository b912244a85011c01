"""What the values of references mean, where a model was trained to call them otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count

import numpy as np

from napari_seg.errors import InputError
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
