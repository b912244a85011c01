"""Parse the meaning of the label values of references, and leave out voxels that are not annotated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from napari_seg.errors import InputError, Notice, listed
from napari_seg.evaluation.metrics import on_grid
from napari_seg.volume import Segmentation

BACKGROUND = "background"
MEAN = "mean"
"""Name of the table row that holds the mean over the segments of each case."""

IGNORE = "ignore"
"""Name of a class for the values of voxels that are not annotated."""

MAX_VALUES = 65536
"""Limit for the number of values of a class; a label map holds no more."""

Classes = Mapping[str, frozenset[int]]
"""Class name -> label values, in the order of the model's classes."""

_VALUES = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Meaning:
    """Meaning of the values of a reference.

    Attributes:
        classes: name -> values; classes that share values are regions. Empty: that of the names in the reference's
            file.
        is_given: the user gave the classes for this comparison, in the order of the model's classes if a result has no
            names.
        ignored: ignore labels; their voxels are not compared.
        labelled: values that are annotated; structures with other values are not compared. None: all.
    """

    classes: Classes = field(default_factory=dict)
    is_given: bool = False
    ignored: tuple[int, ...] = ()
    labelled: frozenset[int] | None = None

    @property
    def has_regions(self) -> bool:
        """True if classes share values, so that they are compared one by one."""
        return do_overlap(self.classes)

    @property
    def is_complete(self) -> bool:
        """True if each value of the reference must be in a class; names in its file are not used then."""
        return self.is_given or self.has_regions


def read_classes(assignments: Iterable[tuple[str, str]]) -> Classes:
    """Parse classes as `napari-seg train --labels` takes them: a name and values such as "2,3" or "10-19".

    Raises:
        InputError: `labels.bad_value`, also for more than `MAX_VALUES` values.
    """
    classes = {}
    for name, text in assignments:
        found = [_VALUES.fullmatch(value.strip()) for value in text.split(",")]
        bounds = [(int(match[1]), int(match[2] or match[1])) for match in found if match]
        if len(bounds) < len(found) or any(low > high for low, high in bounds):
            raise InputError("labels.bad_value", f"found {text!r}; expected label values such as 3 or 2,3 or 10-19")
        if sum(high - low + 1 for low, high in bounds) > MAX_VALUES:
            raise InputError("labels.bad_value", f"found over {MAX_VALUES} values of {name}; expected fewer")
        classes[name] = frozenset(value for low, high in bounds for value in range(low, high + 1))
    return classes


def split_ignored(classes: Classes) -> tuple[Classes, tuple[int, ...]]:
    """Return the classes without `IGNORE`, and its values."""
    ignored = sorted(classes.get(IGNORE, ()))
    return {name: values for name, values in classes.items() if name != IGNORE}, tuple(ignored)


def do_overlap(classes: Classes) -> bool:
    """Return whether two classes share a value, so that they are regions; background has no part in it."""
    values = [of_class for name, of_class in classes.items() if name != BACKGROUND]
    return any(one & other for one, other in combinations(values, 2))


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
    text = f"{np.count_nonzero(is_ignored)} voxels of {name} have an ignore label ({listed([*map(str, ignored)])})"
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
