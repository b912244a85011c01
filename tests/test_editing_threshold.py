"""Painting and trimming by a range of intensities, in small arrays by hand."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, edited

from napari_seg.editing.threshold import otsu_range, threshold_stroke, threshold_within
from napari_seg.errors import InputError

LABEL, OTHER = 4, 9


def image() -> np.ndarray:
    i, j, k = np.indices(GRID.shape)
    return (100 * i + 10 * j + k).astype(np.int16)


def test_a_stroke_takes_only_voxels_in_the_range() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3, 4, 0] = OTHER
    labels[3, 2, 0] = labels[3, 7, 0] = LABEL
    stroke = np.array([(3, j, 0) for j in range(1, 7)] + [(3, 3, 0)])  # a brush may touch a voxel twice
    expected = labels.copy()
    expected[3, 3, 0] = expected[3, 5, 0] = LABEL  # 330 and 350; 320 has it already; 310 and 360 are out of the range
    assert np.array_equal(edited(labels, threshold_stroke(labels, GRID, LABEL, image(), stroke, 320, 350)), expected)
    expected[3, 4, 0] = LABEL
    change = threshold_stroke(labels, GRID, LABEL, image(), stroke, 320, 350, {OTHER})
    assert np.array_equal(edited(labels, change), expected)


@pytest.mark.parametrize("into", [0, 7])
def test_a_structure_keeps_only_voxels_in_the_range(into: int) -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:5, 3:6, 1] = LABEL
    labels[2:5, 8, 1] = OTHER
    expected = labels.copy()
    expected[2, 3, 1] = expected[4, 4:6, 1] = into  # 231, 441 and 451
    change = threshold_within(labels, GRID, LABEL, image(), 240, 435, into=into)
    assert np.array_equal(edited(labels, change), expected)


def test_voxels_without_a_number_are_in_no_range() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2, 3, 1:4] = LABEL
    values = image().astype(float)
    values[2, 3, 2] = np.nan
    after = edited(labels, threshold_within(labels, GRID, LABEL, values, -np.inf, np.inf))
    assert np.argwhere(after).tolist() == [[2, 3, 1], [2, 3, 3]]


def test_the_range_is_one_of_two_groups_of_intensities() -> None:
    values = np.zeros(GRID.shape, np.int16)
    values[:, :, :7] = 10 + np.arange(7)
    values[:, :, 7:] = 200 + np.arange(7)
    values[0, 0, 0] = 3000  # outside the region
    region = (slice(2, 8), slice(3, 9), slice(2, 12))
    assert otsu_range(values, region) == (200.0, 204.0)
    assert otsu_range(values, region, 14) == (12.0, 16.0)
    assert otsu_range(values, region, 250) == (200.0, 204.0)


def test_what_can_not_be_thresholded_is_refused() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    inside = np.array([(1, 2, 3)])
    refused = [
        ("edit.absent", lambda: threshold_within(labels, GRID, LABEL, image(), 0, 1)),
        ("edit.shape", lambda: threshold_within(labels, GRID, LABEL, image()[1:], 0, 1)),
        ("edit.shape", lambda: threshold_stroke(labels, GRID, LABEL, image()[1:], inside, 0, 1)),
        ("edit.label", lambda: threshold_stroke(labels, GRID, 0, image(), inside, 0, 1)),
        ("edit.outside", lambda: threshold_stroke(labels, GRID, LABEL, image(), np.array([(1, 2, 14)]), 0, 1)),
        ("edit.outside", lambda: threshold_stroke(labels, GRID, LABEL, image(), np.array([(-1, 2, 3)]), 0, 1)),
        ("edit.outside", lambda: threshold_stroke(labels, GRID, LABEL, image(), np.empty((0, 3), int), 0, 1)),
        ("edit.flat", lambda: otsu_range(image(), (slice(1, 2), slice(1, 2), slice(1, 2)))),
    ]
    for code, call in refused:
        with pytest.raises(InputError) as error:
            call()
        assert error.value.code == code
