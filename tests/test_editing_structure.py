"""Place of a structure in a label map, distances, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, nearest_mm

from napari_seg.editing import structure
from napari_seg.errors import InputError


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_structure_is_found_with_the_smallest_box_and_a_margin(order: str) -> None:
    labels = np.zeros(GRID.shape, np.uint8, order=order)
    labels[3:5, 10, 13] = 2
    labels[4, 7, 13] = 2
    labels[0, 0, 0] = 1
    box, mask = structure.find_structure(labels, 2)
    assert box == (slice(3, 5), slice(7, 11), slice(13, 14))
    assert np.argwhere(mask).tolist() == [[0, 3, 0], [1, 0, 0], [1, 3, 0]]
    box, _ = structure.find_structure(labels, 2, (1, 8, 2))
    assert box == (slice(2, 6), slice(0, 19), slice(11, 14))
    assert np.array_equal(labels, np.asarray(labels))


def test_distances_are_those_between_the_centres_of_voxels_in_mm() -> None:
    targets = np.zeros(GRID.shape, bool)
    targets[3, 20, 5] = targets[15, 4, 9] = True
    targets[8:11, 9:12, 7] = True
    assert np.allclose(structure.distance_mm(targets, GRID), nearest_mm(targets), atol=1e-4)
    assert np.isinf(structure.distance_mm(np.zeros((2, 3, 4), bool), GRID)).all()
    assert not structure.distance_mm(np.ones((2, 3, 4), bool), GRID).any()


def test_a_length_is_covered_by_whole_voxels() -> None:
    assert structure.margin_of(GRID, 3.0) == (3, 3, 2)
    assert structure.margin_of(GRID, 2.6) == (2, 3, 2)


def test_what_a_label_map_does_not_have_is_refused() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    refused = {
        "edit.absent": lambda: structure.find_structure(labels, 3),
        "edit.label": lambda: structure.check_label(labels, 256),
        "edit.size": lambda: structure.check_size(-1.0, "a test"),
        "edit.outside": lambda: structure.check_voxel((1, 5, 1), labels.shape),
        "edit.shape": lambda: structure.check_shape(labels[1:], labels, "an image"),
        "edit.axis": lambda: structure.check_slice(3, 0, labels.shape),
    }
    for code, call in refused.items():
        with pytest.raises(InputError) as error:
            call()
        assert error.value.code == code
    for size in (0.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(InputError, match=r"edit\.size"):
            structure.check_size(size, "a test")
    for index in (-1, 5):
        with pytest.raises(InputError, match=r"edit\.outside"):
            structure.check_slice(1, index, labels.shape)
    with pytest.raises(InputError, match=r"edit\.label"):
        structure.check_label(labels, 0)
    structure.check_label(labels, 0, background=True)
    structure.check_size(0.0, "a test", zero=True)


def test_parts_that_lie_apart_are_worked_on_in_boxes_of_their_own() -> None:
    mask = np.zeros((60, 50, 40), bool)
    mask[2:5, 3:6, 4:9] = mask[50:53, 40, 30] = mask[20, 20, 20] = mask[22, 20, 20] = True
    assert sorted(structure.pieces(mask, (1, 2, 0)), key=lambda box: box[0].start) == [
        (slice(1, 6), slice(1, 8), slice(4, 9)),
        (slice(19, 24), slice(18, 23), slice(20, 21)),
        (slice(49, 54), slice(38, 43), slice(30, 31)),
    ]
    # boxes that would share voxels become one
    assert len(structure.pieces(mask, (9, 9, 9))) == 2
    assert structure.pieces(mask, (99, 99, 99)) == [(slice(0, 60), slice(0, 50), slice(0, 40))]
    assert structure.pieces(np.zeros((4, 4, 4), bool)) == []


def test_a_mask_of_many_specks_is_one_piece() -> None:
    mask = np.zeros((200, 200, 100), bool)
    mask[::40, ::40, ::20] = True
    assert structure.pieces(mask) == [(slice(0, 200), slice(0, 200), slice(0, 100))]


def test_thin_structures_in_a_large_box_are_divided_into_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_VOXELS", 1000)
    mask = np.zeros((300, 300, 200), bool)
    for n in range(190):
        mask[100 + n, n, n] = True
    margin = (3, 2, 1)
    found = structure.regions(mask, margin)
    assert len(found) > 10
    near = np.zeros(mask.shape, bool)
    for i, j, k in np.argwhere(mask):
        near[max(i - 3, 0) : i + 4, max(j - 2, 0) : j + 3, max(k - 1, 0) : k + 2] = True
    times = np.zeros(mask.shape, np.uint8)
    for box, around in found:
        times[box] += 1
        assert around == structure.enlarged(box, margin, mask.shape)
    assert times.max() == 1
    assert times[near].all()
    assert sum(mask[around].size for _, around in found) < mask.size / 5


def test_a_compact_structure_is_one_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_VOXELS", 1000)
    mask = np.zeros((90, 80, 70), bool)
    mask[10:70, 20:70, 10:60] = True
    box = (slice(8, 72), slice(18, 72), slice(8, 62))
    assert structure.regions(mask, (2, 2, 2)) == [(box, box)]
