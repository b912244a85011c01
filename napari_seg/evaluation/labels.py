"""Map the label values of references to the classes of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, count
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, listed
from napari_seg.evaluation.metrics import on_grid
from napari_seg.evaluation.names import match_names
from napari_seg.volume import Segment, Segmentation, distinct_color, labels_in

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

    A class gets the label of the result's segment with the same name, see `match_names`. If the result has no names,
    classes are numbered from 1 in the order of `classes`, background excluded.

    Args:
        reference: reference with its original label values.
        classes: meaning of these values.
        result: segmentation by the model.

    Raises:
        InputError: `labels.names`, a class is missing in the result; `labels.overlap`, a value belongs to two classes;
            `labels.unknown`, a value in the reference belongs to no class.
    """
    names = [name for name in classes if name != BACKGROUND]
    label_of = {name: number for number, name in enumerate(names, start=1)}
    if result.segments:
        of_result = {segment.name: segment.label for segment in result.segments}
        label_of = {name: of_result[its] for name, its in match_names(names, of_result).items()}
        if missing := [name for name in names if name not in label_of]:
            raise InputError("labels.names", f"the result has no {missing[0]!r}; it has {', '.join(of_result)}")
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
    array = _relabelled(reference.array, np.maximum(label_of_value, 0))
    segments = tuple(Segment(label_of[name], name, distinct_color(label_of[name])) for name in names)
    return Segmentation(array, reference.grid, segments, notices=reference.notices)


def with_names(reference: Segmentation, declared: Mapping[str, Sequence[int]], result: Segmentation) -> Segmentation:
    """Return the reference with the names that its data set declares; unchanged if it has names.

    A name of several values gets the first of them as its label, and background 0. If the result has no names, it has
    the values of the reference, so that these stay as they are, and only names of one value are given.

    Args:
        reference: reference with its original label values.
        declared: name -> values above 0.
        result: segmentation to compare with.
    """
    if not declared or _named(reference):
        return reference
    has_names = bool(_named(result))
    given = {
        name: values for name, values in declared.items() if name != BACKGROUND and (has_names or len(values) == 1)
    }
    table = np.arange(int(reference.array.max()) + 1)
    for name, values in declared.items() if has_names else ():
        table[[value for value in values if value < len(table)]] = values[0] if name in given else 0
    segments = tuple(Segment(values[0], name, distinct_color(values[0])) for name, values in given.items())
    return replace(reference, array=_relabelled(reference.array, table), segments=segments)


def with_labels_of(result: Segmentation, reference: Segmentation, name: str = "the reference") -> Segmentation:
    """Return the reference relabelled so that segments with the same name have the same label, see `match_names`.

    A DICOM segmentation, for example, numbers its segments from 1, whatever their labels were. If either has no names,
    or has a name twice, the two are compared by number, and the reference is returned unchanged.

    Args:
        result: segmentation whose labels are kept; it may have no names.
        reference: segmentation to relabel; it may have no names. A notice is added on structures that only one of the
            two names and holds.
        name: name of the reference in the notice and in errors.

    Raises:
        InputError: `labels.none_common`, both have names and share none, or only the reference has names and they share
            no label.
    """
    ours, theirs = _named(result), _named(reference)
    in_result, in_reference = (set(labels_in(side.array)) - {0} for side in (result, reference))
    if theirs and not ours and in_result and in_result.isdisjoint({*in_reference, *theirs.values()}):
        raise InputError(
            "labels.none_common",
            f"the result has the labels {listed([*map(str, sorted(in_result))])} without names, and {name} has "
            f"{numbered(theirs)}, so that no label is in both; if the result numbers the classes from 1, list them in "
            f"its order with {labels_option(theirs)}",
        )
    if not ours or not theirs or _has_repeated_name(result) or _has_repeated_name(reference):
        return reference
    same = match_names(theirs, ours)
    if not same:
        raise InputError(
            "labels.none_common",
            f"the result has {numbered(ours)}, and {name} has {numbered(theirs)}, so that no structure has the same "
            "name in both; rename them, or give the value in the reference of each structure of the result with "
            f"{labels_option(dict.fromkeys(ours, 'VALUE'))}",
        )
    highest = max((*in_result, *in_reference, *ours.values(), *theirs.values()))
    free = count(highest + 1)
    table = np.arange(highest + 1)
    segments = []
    for segment in reference.segments:
        if segment.name in theirs:
            table[segment.label] = ours[same[segment.name]] if segment.name in same else next(free)
            segments.append(replace(segment, label=int(table[segment.label])))
    for label in in_reference.difference(theirs.values()).intersection(ours.values()):
        table[label] = next(free)  # an unnamed label must not take a named one of the result
        segments.append(Segment(int(table[label]), f"label {label}", distinct_color(label)))
    only_result = [own for own, label in ours.items() if own not in same.values() and label in in_result]
    only_reference = [own for own, label in theirs.items() if own not in same and label in in_reference]
    return replace(
        reference,
        array=_relabelled(reference.array, table),
        segments=tuple(sorted(segments, key=lambda segment: segment.label)),
        notices=(*reference.notices, *_names_differ(only_result, only_reference, name)),
    )


def numbered(labels: Mapping[str, int]) -> str:
    """Return the first three labels with their names, and the number of the others."""
    return listed([f"{label} {name}" for name, label in labels.items()])


def labels_option(values: Mapping[str, object]) -> str:
    """Return the option of the command line that gives the first three names their values."""
    return " ".join(["--labels", *(quote(f"{name}={value}") for name, value in [*values.items()][:3])])


def _named(segmentation: Segmentation) -> dict[str, int]:
    """Return name -> label of the segments that have a name of their own, unlike "label 3"."""
    return {s.name: s.label for s in segmentation.segments if s.name != f"label {s.label}"}


def _has_repeated_name(segmentation: Segmentation) -> bool:
    return len({segment.name for segment in segmentation.segments}) < len(segmentation.segments)


def _relabelled(array: NDArray[np.unsignedinteger], table: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    """Return an array of labels with the value `table[label]` of each, in the smallest type."""
    relabelled: NDArray[np.unsignedinteger] = table.astype(np.min_scalar_type(int(table.max())))[array]
    return relabelled


def _names_differ(only_result: Sequence[str], only_reference: Sequence[str], name: str) -> Iterator[Notice]:
    """Yield a notice on structures without a partner: one may have been renamed, or the model does not know it."""
    places = (("the segmentation", only_result), (name, only_reference))
    if found := "; ".join(f"only in {place}: {listed(names)}" for place, names in places if names):
        text = f"structures are matched by name; {found}; these count as Dice 0; give a structure the same name in both"
        yield Notice("labels.names_differ", text)


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
