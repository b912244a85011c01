"""Removal of all but the largest piece, as nnU-Net does it."""

from __future__ import annotations

import numpy as np

from napari_seg.geometry import Grid
from napari_seg.inference.nnunet.largest import keep_largest
from napari_seg.volume import Segment, Segmentation

SEGMENTS = (Segment(1, "one", (255, 0, 0)), Segment(2, "two", (0, 255, 0)))


def result_of(array: np.ndarray) -> Segmentation:
    grid = Grid((array.shape[0], array.shape[1], array.shape[2]), np.eye(4))
    return Segmentation(array, grid, SEGMENTS, {1: 0.9, 2: 0.8})


def test_only_the_largest_piece_of_the_labels_together_stays() -> None:
    array = np.zeros((8, 4, 4), np.uint8)
    array[0:2, 0, 0], array[2, 1, 1], array[5:7, 3, 3] = 1, 2, 2  # the first two touch at a corner
    found = keep_largest(result_of(array), [(1, 2)])
    expected = array.copy()
    expected[5:7] = 0
    assert np.array_equal(found.array, expected)
    assert [notice.code for notice in found.notices] == ["result.islands"]
    assert array[5, 3, 3] == 2  # the result before is as it was


def test_steps_follow_each_other_and_equal_pieces_stay() -> None:
    array = np.zeros((9, 3, 3), np.uint8)
    array[0:3, 0, 0], array[5, 0, 0], array[8, 2, 2] = 1, 2, 2
    found = keep_largest(result_of(array), [(2,), (1,)])
    assert np.array_equal(found.array, array)  # both pieces of two have one voxel
    assert found.notices == ()
    found = keep_largest(result_of(array), [(1, 2)])
    assert set(np.unique(found.array)) == {0, 1}
    assert found.confidence == {1: 0.9}


def test_labels_that_are_not_there_change_nothing() -> None:
    array = np.ones((3, 3, 3), np.uint8)
    assert np.array_equal(keep_largest(result_of(array), [(2,), (900,)]).array, array)
