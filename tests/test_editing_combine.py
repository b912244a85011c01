"""Union, minus and within of two structures, against distances in mm that are compared point by point."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball, edited, nearest_mm

from napari_seg.editing.combine import minus, union, within
from napari_seg.errors import InputError

LABEL, OTHER, THIRD = 4, 9, 2


def structures() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[ball((7, 10, 6), 8.0)] = LABEL
    labels[12:17, 8:15, 3:9] = OTHER
    labels[2:5, 20:24, 10:12] = THIRD
    return labels


def test_the_union_takes_a_structure_of_the_label_map() -> None:
    labels = structures()
    expected = np.where(labels == OTHER, LABEL, labels)
    assert np.array_equal(edited(labels, union(labels, GRID, LABEL, OTHER)), expected)


def test_the_union_with_a_mask_leaves_structures_that_are_not_overwritten() -> None:
    labels = structures()
    mask = np.zeros(GRID.shape, bool)
    mask[3:14, 12:22, 5:12] = True
    expected = labels.copy()
    expected[mask & (labels == 0)] = LABEL
    assert np.array_equal(edited(labels, union(labels, GRID, LABEL, mask)), expected)
    expected[mask & (labels == THIRD)] = LABEL
    assert np.array_equal(edited(labels, union(labels, GRID, LABEL, mask, {THIRD})), expected)
    new = edited(labels, union(labels, GRID, 77, mask))
    assert np.array_equal(new == 77, mask & (labels == 0))


@pytest.mark.parametrize("margin_mm", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("is_mask", [True, False])
def test_minus_and_within_split_a_structure_by_the_distance_to_the_other(margin_mm: float, is_mask: bool) -> None:
    labels = structures()
    if is_mask:
        other = np.zeros(GRID.shape, bool)
        other[5:12, 4:13, 8:14] = True
        target = other
    else:
        other, target = OTHER, labels == OTHER
    is_near = nearest_mm(target) <= margin_mm + 1e-6
    without = np.where((labels == LABEL) & is_near, 0, labels)
    assert np.array_equal(edited(labels, minus(labels, GRID, LABEL, other, margin_mm=margin_mm)), without)
    inside = np.where((labels == LABEL) & ~is_near, 0, labels)
    assert np.array_equal(edited(labels, within(labels, GRID, LABEL, other, margin_mm=margin_mm)), inside)


def test_structures_that_are_absent_or_the_same_are_refused() -> None:
    labels = structures()
    empty = np.zeros(GRID.shape, bool)
    for function in (union, minus, within):
        for other, code in (
            (LABEL, "edit.same"),
            (5, "edit.absent"),
            (empty, "edit.absent"),
            (empty[1:], "edit.shape"),
        ):
            with pytest.raises(InputError) as error:
                function(labels, GRID, LABEL, other)
            assert error.value.code == code
    for function in (minus, within):
        with pytest.raises(InputError, match=r"edit\.size"):
            function(labels, GRID, LABEL, OTHER, margin_mm=-1)
        with pytest.raises(InputError, match=r"edit\.absent"):
            function(labels, GRID, 5, OTHER)
    with pytest.raises(InputError, match=r"edit\.label"):
        union(labels, GRID, 300, OTHER)
