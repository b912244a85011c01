"""Map the label values of references to the classes of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, count

import numpy as np

from napari_seg.errors import InputError, Notice
from napari_seg.evaluation.metrics import on_grid
from napari_seg.volume import Segment, Segmentation, distinct_color

BACKGROUND = "background"
IGNORE = "ignore"
"""Name of a class for the values of voxels that are not annotated."""

MAX_IGNORED = 65536
"""Limit for the number of values that are ignored."""

Classes = Mapping[str, tuple[tuple[int, int], ...]]
"""Class name -> inclusive ranges of label values, in the order of the model's classes."""

_VALUES = re.compile(r"(\d+)(?:-(\d+))?")


def read_classes(assignments: Iterable[tuple[str, str]]) -> Classes:
    """Parse classes as `napari-seg train --labels` takes them: a name and values such as "2,3" or "10-19".

    Raises:
        InputError: `labels.bad_value`.
    """
    classes = {}
    for name, text in assignments:
        found = [_VALUES.fullmatch(value.strip()) for value in text.split(",")]
        bounds = tuple((int(match[1]), int(match[2] or match[1])) for match in found if match)
        if len(bounds) < len(found) or any(low > high for low, high in bounds):
            raise InputError("labels.bad_value", f"found {text!r}; expected label values such as 3 or 2,3 or 10-19")
        classes[name] = bounds
    return classes


def split_ignored(classes: Classes) -> tuple[Classes, tuple[int, ...]]:
    """Return the classes without `IGNORE`, and its values.

    Raises:
        InputError: `labels.bad_value`, there are more than `MAX_IGNORED` values.
    """
    bounds = classes.get(IGNORE, ())
    if sum(high - low + 1 for low, high in bounds) > MAX_IGNORED:
        raise InputError("labels.bad_value", f"found over {MAX_IGNORED} ignored values; expected fewer")
    values = tuple(value for low, high in bounds for value in range(low, high + 1))
    return {name: of_class for name, of_class in classes.items() if name != IGNORE}, values


def do_overlap(classes: Classes) -> bool:
    """Return whether two classes share a value, so that they are regions; background has no part in it."""
    bounds = [(name, *pair) for name, pairs in classes.items() if name != BACKGROUND for pair in pairs]
    return any(
        name != other and low <= end and start <= high
        for (name, low, high), (other, start, end) in combinations(bounds, 2)
    )


def is_annotated(bounds: tuple[tuple[int, int], ...], labelled: Collection[int]) -> bool:
    """Return whether all values of a class are annotated, given those that are."""
    return all(value in labelled for low, high in bounds for value in range(low, high + 1))


def only_labelled(
    labelled: Sequence[int], classes: Classes | None, prediction: Segmentation, reference: Segmentation
) -> tuple[Segmentation, Segmentation]:
    """Return a label map and its reference without the classes that are not annotated in the reference.

    Args:
        labelled: values that are annotated.
        classes: meaning of the reference's values, from which its labels were made (`as_classes`); None: its labels are
            its values.
        prediction: the label map.
        reference: the reference, with the labels of the prediction.
    """
    kept = set(labelled)
    if classes:
        complete = {name for name, bounds in classes.items() if is_annotated(bounds, labelled)}
        kept = {segment.label for segment in reference.segments if segment.name in complete}
    prediction, reference = (
        replace(
            side,
            array=np.where(np.isin(side.array, [*kept]), side.array, np.zeros_like(side.array)),
            segments=tuple(segment for segment in side.segments if segment.label in kept),
        )
        for side in (prediction, reference)
    )
    return prediction, reference


def as_classes(reference: Segmentation, classes: Classes, result: Segmentation) -> Segmentation:
    """Return the reference relabelled with the classes of a model.

    A class gets the label of the result's segment with the same name. If the result has no names, classes are numbered
    from 1 in the order of `classes`, background excluded.

    Args:
        reference: reference with its original label values.
        classes: meaning of these values.
        result: segmentation by the model.

    Raises:
        InputError: `labels.names`, a class is missing in the result; `labels.overlap`, a value belongs to two classes;
            `labels.unknown`, a value in the reference belongs to no class.
    """
    names = [name for name in classes if name != BACKGROUND]
    label_of = {segment.name: segment.label for segment in result.segments} or {n: i for i, n in enumerate(names, 1)}
    if missing := [name for name in names if name not in label_of]:
        raise InputError("labels.names", f"the result has no {missing[0]!r}; it has {', '.join(label_of)}")
    label_of_value = np.full(int(reference.array.max()) + 1, -1)
    for name, bounds in classes.items():
        for low, high in bounds:
            if (label_of_value[low : high + 1] >= 0).any():
                raise InputError(
                    "labels.overlap",
                    f"a value in {low}-{high} belongs to {name} and another class; expected one class for each value",
                )
            label_of_value[low : high + 1] = label_of.get(name, 0)
    label_of_value[0] = max(label_of_value[0], 0)
    if len(unknown := np.setdiff1d(reference.array, np.flatnonzero(label_of_value >= 0))):
        first_unknown = ", ".join(map(str, unknown[:6]))
        text = (
            f"the reference contains {first_unknown}, which no class has; assign these values, for example "
            f"background={first_unknown}"
        )
        raise InputError("labels.unknown", text)
    array = label_of_value.astype(np.min_scalar_type(max(label_of_value.max(), 0)))[reference.array]
    segments = tuple(Segment(label_of[name], name, distinct_color(label_of[name])) for name in names)
    return Segmentation(array, reference.grid, segments, notices=reference.notices)


def with_labels_of(result: Segmentation, reference: Segmentation) -> Segmentation:
    """Return the reference relabelled so that segments with equal names have equal labels.

    A DICOM segmentation, for example, numbers its segments from 1, whatever their labels were. The reference is
    returned unchanged if the two share no name, or if either has a name twice.

    Args:
        result: segmentation whose labels are kept; it may have no names.
        reference: segmentation to relabel; it may have no names.
    """
    label_of = {segment.name: segment.label for segment in result.segments}
    names = [segment.name for segment in reference.segments]
    if label_of.keys().isdisjoint(names) or len(set(names)) < len(names) or len(label_of) < len(result.segments):
        return reference
    highest = max(int(reference.array.max()), *(s.label for s in (*reference.segments, *result.segments)))
    free = count(highest + 1)
    table = np.array([0, *(next(free) for _ in range(highest))])  # an unnamed label must not take a label of the result
    segments = []
    for segment in reference.segments:
        table[segment.label] = label_of.get(segment.name, table[segment.label])
        segments.append(replace(segment, label=int(table[segment.label])))
    array = table.astype(np.min_scalar_type(int(table.max())))[reference.array]
    return replace(reference, array=array, segments=tuple(sorted(segments, key=lambda segment: segment.label)))


def mask_ignored(
    ignored: Sequence[int], prediction: Segmentation, reference: Segmentation, name: str
) -> tuple[Segmentation, Segmentation]:
    """Return a label map and its reference, both set to background where the reference has an ignore label.

    A notice of the reference gives the number of voxels.

    Args:
        ignored: ignore labels of the reference.
        prediction: the label map.
        reference: the reference, on the same voxels; its axes may be permuted or flipped.
        name: name of the reference in the notice.

    Raises:
        InputError: `geometry.mismatch`, the two lie on different grids.
    """
    array = on_grid(reference, prediction.grid)
    is_ignored = np.isin(array, np.array(ignored, np.int64))
    if not is_ignored.any():
        return prediction, reference
    text = f"{np.count_nonzero(is_ignored)} voxels of {name} have an ignore label ({', '.join(map(str, ignored))})"
    notice = Notice("labels.ignored", f"{text}; they were not compared")
    kept = tuple(segment for segment in reference.segments if segment.label not in ignored)
    return (
        replace(prediction, array=np.where(is_ignored, np.zeros_like(prediction.array), prediction.array)),
        replace(
            reference,
            array=np.where(is_ignored, np.zeros_like(array), array),
            grid=prediction.grid,
            segments=kept,
            notices=(*reference.notices, notice),
        ),
    )
