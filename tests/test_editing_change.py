"""Changes of label maps."""

from __future__ import annotations

import numpy as np

from napari_seg.editing.change import Change, box_of, change_structure, whole


def test_a_change_touches_only_the_voxels_of_its_structure_and_background() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 1:4, 2] = (3, 7, 9)
    mask = np.zeros((2, 5, 6), bool)
    mask[0, 2:4, 1:3] = True
    change = change_structure(labels, (slice(1, 3), slice(0, 5), slice(0, 6)), 3, mask, overwrite=(9,))
    untouched = labels.copy()
    change.apply(labels)
    expected = untouched.copy()
    expected[1, 1, 2] = 0  # the structure loses what is not in the mask
    expected[1, 2:4, 1] = 3
    expected[1, 3, 2] = 3  # 9 may be overwritten, 7 not
    assert np.array_equal(labels, expected)
    assert change.count(3) == (3, 1)
    assert sorted(zip(*change.indices, change.values, strict=True)) == [
        (1, 1, 2, 0),
        (1, 2, 1, 3),
        (1, 3, 1, 3),
        (1, 3, 2, 3),
    ]


def test_a_change_is_empty_if_no_label_changes() -> None:
    labels = np.full((2, 2, 2), 4, np.uint16)
    assert change_structure(labels, whole(labels.shape), 4, labels == 4).is_empty
    assert not Change(whole(labels.shape), labels, labels + 1).is_empty


def test_the_box_encloses_a_mask_with_a_margin_that_ends_at_the_edge() -> None:
    mask = np.zeros((6, 7, 8), bool)
    mask[2:4, 0, 5] = True
    assert box_of(mask) == (slice(2, 4), slice(0, 1), slice(5, 6))
    assert box_of(mask, (1, 2, 9)) == (slice(1, 5), slice(0, 3), slice(0, 8))
    assert box_of(np.zeros((2, 2, 2), bool)) is None
