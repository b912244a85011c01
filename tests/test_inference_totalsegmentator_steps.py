"""Corrections of a task's label map, against small maps whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.inference.totalsegmentator.steps import (
    clean_body,
    grown,
    refine_vertebrae,
    remove_labels,
    remove_outside,
    separate_vertebrae,
)

BODY = {"body_trunc": 1, "body_extremities": 2}
SPINE = {"vertebrae_C1": 1, "vertebrae_C2": 2, "vertebrae_L5": 3, "sacrum": 4}


def stack(labels: list[int], gap: int = 2) -> np.ndarray:
    """Return a column of bodies of 5 x 5 x 4 voxels, the first one on top, with gaps between them."""
    column = np.zeros((9, 9, 1 + len(labels) * (4 + gap)), np.uint8)
    for number, label in enumerate(reversed(labels)):
        begin = 1 + number * (4 + gap)
        column[2:7, 2:7, begin : begin + 4] = label
    return column


def order(column: np.ndarray) -> list[int]:
    """Return the labels along the middle of a column from the top, each once."""
    middle = [int(n) for n in column[4, 4, ::-1]]
    return [n for n, before in zip(middle, [0, *middle], strict=False) if n and n != before]


def test_labels_are_removed() -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    remove_labels(labels, [2, 5, 9])
    assert labels.ravel().tolist() == [0, 1, 0, 3, 4, 0]


def test_the_largest_piece_of_the_trunk_and_large_pieces_of_the_extremities_stay() -> None:
    labels = np.zeros((40, 20, 20), np.uint8)
    labels[0:5, 0:5, 0:5] = 1
    labels[5, 5, 5] = 1  # touches the small piece by a corner only
    labels[10:20, 0:10, 0:10] = 1
    labels[22:28, 0:8, 0:8] = 2  # 384 voxels
    labels[30:40, 10:20, 10:14] = 2  # 400 voxels
    clean_body(labels, BODY, (5.0, 5.0, 5.1))  # 50000 mm3 are 392.2 voxels
    assert (labels == 1).sum() == 1000
    assert (labels == 2).sum() == 400
    assert not labels[22:28].any()


def test_a_map_without_body_stays_empty() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    clean_body(labels, BODY, (1, 1, 1))
    assert not labels.any()


def test_labels_grow_into_the_background_and_the_lower_one_first() -> None:
    labels = np.zeros((1, 1, 9), np.uint8)
    labels[..., 2], labels[..., 6] = 4, 3
    assert grown(labels, [3, 4], (1, 1, 1), 2).ravel().tolist() == [4, 4, 4, 4, 3, 3, 3, 3, 3]
    assert grown(labels, [4], (1, 1, 2), 2).ravel().tolist() == [0, 4, 4, 4, 0, 0, 3, 0, 0]


def test_vertebrae_that_do_not_touch_only_grow() -> None:
    column = stack([1, 2, 3])
    found = separate_vertebrae(column, SPINE, (2.0, 2.0, 2.0))
    assert order(found) == [1, 2, 3]
    assert (found[column > 0] == column[column > 0]).all()
    assert (found > 0).sum() > (column > 0).sum()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 3, 4], [2, 3, 4]),  # from the last one upwards
        ([2, 2, 3], [1, 2, 3]),  # two of the same name
        ([1, 1, 2], [1, 2, 3]),  # C1 without L5: from the top
    ],
)
def test_touching_vertebrae_are_numbered_again(labels: list[int], expected: list[int]) -> None:
    column = stack(labels)
    lowest = column[2:7, 2:7, 1:5]
    lowest[0] = 1 if labels[-1] != 1 else 2  # a part of the lowest body has another label
    column[8, 8, 12] = 4  # a speck below 100 mm3
    assert order(separate_vertebrae(column, SPINE, (2.0, 2.0, 2.0))) == expected


def test_specks_of_touching_vertebrae_give_nothing() -> None:
    column = np.zeros((6, 6, 6), np.uint8)
    column[2, 2, 2:4] = 1, 2
    assert not separate_vertebrae(column, SPINE, (1.0, 1.0, 1.0)).any()


def test_refined_vertebrae_stay_within_all_bodies() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[2, 2, 2] = 3
    bodies = np.zeros(labels.shape, bool)
    bodies[2, 2] = True
    refined = refine_vertebrae(labels, bodies, [1, 2, 3], (1.0, 1.0, 2.0))
    assert refined[2, 2].tolist() == [0, 3, 3, 3, 0]
    assert refined.sum() == 9


def test_labels_far_from_the_mask_are_removed() -> None:
    labels = np.ones((9, 9, 9), np.uint8)
    mask = np.zeros(labels.shape, bool)
    mask[4, 4, 4] = True
    remove_outside(labels, mask, (1.0, 1.0, 4.0), 5.0)  # two steps of the mean voxel size
    assert labels.sum() == 25
    assert labels[4, 4, 2] == 1
    assert labels[3, 3, 2] == 0
