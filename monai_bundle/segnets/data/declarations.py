"""Read what a dataset.json declares about its label values: overlapping regions, and the classes that a case has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from segnets.data.pairing import stem
from segnets.errors import TrainingError

MAX_VALUE = 1 << 24
"""Largest label value: label maps are read as float32, which does not distinguish larger integers."""


def label_value(value: Any) -> int:
    """Return a label value that a JSON file states: a number, or a key that holds one.

    Raises:
        ValueError: it is no integer, or too large.
        TypeError: it is no number.
    """
    number = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and number != value) or abs(number) > MAX_VALUE:
        raise ValueError(value)
    return number


def do_overlap(labels: Mapping[str, Sequence[int]]) -> bool:
    """Return whether some label values belong to more than one name."""
    return max(Counter(value for values in labels.values() for value in set(values)).values(), default=0) > 1


def region_labels(
    labels: Mapping[str, Sequence[int]], order: Any = None, volumes: Mapping[str, float] | None = None
) -> dict[str, int]:
    """Return name of a region -> its label in results, in ascending order of precedence.

    A result is one label map: where regions overlap, it shows the last of them.

    Args:
        labels: name -> values.
        order: nnU-Net's `regions_class_order`: labels of the regions in the order of `labels`, which is that of
            precedence. None: regions with fewer values take precedence, and a region's label is its lowest value that
            no region of higher precedence has; so a result has the values of the data set.
        volumes: name -> volume; without an order, regions of less volume take precedence, instead of fewer values.

    Raises:
        TrainingError: "dataset.bad_json", the order does not fit the names.
    """
    if order is None:
        names = sorted(labels, key=lambda name: -(len(set(labels[name])) if volumes is None else volumes[name]))
        free = count(max((value for values in labels.values() for value in values), default=0) + 1)
        return {
            name: min(set(labels[name]).difference(*(labels[later] for later in names[number:])), default=next(free))
            for number, name in enumerate(names, start=1)
        }
    is_order = isinstance(order, list) and all(type(label) is int and label > 0 for label in order)
    if not is_order or len(order) != len(labels) or len(set(order)) < len(order):
        raise TrainingError(
            "dataset.bad_json",
            f"regions_class_order of dataset.json is {order}; expected {len(labels)} different labels, one for each of "
            f"{', '.join(labels)}",
        )
    return dict(zip(labels, order, strict=True))


def labelled_values(
    description: Mapping[str, Any],
    cases: Collection[str],
    labels: Mapping[str, Sequence[int]],
    listed: Mapping[str, Any] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return name of a case -> the values that are annotated in it, for the cases for which dataset.json declares it.

    It declares them by name or value, as "labelled" of an entry of "training", or as a table of its own:
    {"labelled": {"case_01": ["liver"], "case_02": ["spleen", 3]}}.

    Args:
        description: content of dataset.json.
        cases: names of the cases.
        labels: name -> values.
        listed: name of a case -> what its entry in a list of cases declares; None: the cases of "training" in the
            description have the names of their images.

    Raises:
        TrainingError: "dataset.bad_json".
    """
    declared: dict[str, Any] = {}
    if "labelled" in description:
        stated = description["labelled"]
        declared = dict(stated) if isinstance(stated, dict) else {"all cases": stated}
    declared |= listed or {}
    listing = description.get("training") if listed is None else []
    for entry in listing if isinstance(listing, list) else ():
        if isinstance(entry, dict) and "labelled" in entry:
            declared[_name_of(entry, cases)] = entry["labelled"]
    values_of: dict[str, tuple[int, ...]] = {}
    for case, words in declared.items():
        is_list = isinstance(words, list) and all(type(word) in (str, int) for word in words)
        if case not in cases or not is_list or any(type(word) is str and word not in labels for word in words):
            raise TrainingError(
                "dataset.bad_json",
                f"dataset.json says labelled {words!r} of {case!r}; expected the name of a case and a list of names or "
                f"values among {', '.join(labels) or 'those of its label map'}",
            )
        found = {value for word in words for value in (labels[word] if isinstance(word, str) else (word,))}
        values_of[case] = tuple(sorted(found))
    return values_of


def _name_of(entry: Mapping[str, Any], cases: Collection[str]) -> str:
    """Return the name of the case of an entry of "training"."""
    image = entry.get("image", "")
    files = [image[0] if isinstance(image, list) and image else image, entry.get("label", "")]
    names = [stem(Path(str(file).replace("\\", "/"))) for file in files]
    return next((name for name in (str(entry.get("name", "")), *names) if name in cases), names[0])
