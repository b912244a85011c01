"""Copies of a structure to another slice and to the mirror side."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball, edited, points_mm

from napari_seg.editing.move import copy_to_mirror, copy_to_slice
from napari_seg.editing.plane import Plane, center_plane
from napari_seg.errors import InputError

LABEL, OTHER = 4, 9


def structures() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[ball((5, 12, 6), 6.0)] = LABEL
    labels[14:18, 8:15, 3:9] = OTHER
    return labels


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("into", [LABEL, 7, OTHER])
def test_a_slice_is_copied_to_another(axis: int, into: int) -> None:
    labels = structures()
    source, target = (5, 12, 6)[axis], (15, 13, 5)[axis]
    old, new = np.moveaxis(labels, axis, 0), np.moveaxis(labels.copy(), axis, 0)
    may_change = (old[target] == 0) | (old[target] == into)
    new[target][(old[source] == LABEL) & may_change] = into
    after = edited(labels, copy_to_slice(labels, GRID, LABEL, axis, source, target, into=into))
    assert np.array_equal(np.moveaxis(after, axis, 0), new)
    new[target][old[source] == LABEL] = into
    change = copy_to_slice(labels, GRID, LABEL, axis, source, target, into=into, overwrite={OTHER, LABEL})
    assert np.array_equal(np.moveaxis(edited(labels, change), axis, 0), new)


def test_the_mirror_image_about_the_centre_is_an_exact_flip() -> None:
    labels = structures()
    mirrored = np.flip(labels == LABEL, axis=0)
    expected = labels.copy()
    expected[mirrored & (labels == 0)] = 7
    assert np.array_equal(edited(labels, copy_to_mirror(labels, GRID, LABEL, center_plane(GRID), into=7)), expected)
    expected[mirrored] = 7
    change = copy_to_mirror(labels, GRID, LABEL, center_plane(GRID), into=7, overwrite={OTHER})
    assert np.array_equal(edited(labels, change), expected)


@pytest.mark.parametrize("normal", [(1.0, 0.0, 0.0), (0.9, 0.3, -0.2)])
def test_the_mirror_image_about_any_plane_takes_the_nearest_voxel(normal: tuple[float, float, float]) -> None:
    labels = structures()
    plane = Plane(GRID.center_mm + np.array([1.3, 0.4, 0.2]), normal)
    points = points_mm()
    mirrored = points - 2 * ((points - plane.point_mm) @ plane.normal)[..., None] * plane.normal
    index = np.rint(GRID.to_index(mirrored)).astype(int)
    inside = ((index >= 0) & (index < GRID.shape)).all(axis=-1)
    is_copy = np.zeros(GRID.shape, bool)
    is_copy[inside] = labels[tuple(index[inside].T)] == LABEL
    expected = labels.copy()
    expected[is_copy & (labels == 0)] = 7
    after = edited(labels, copy_to_mirror(labels, GRID, LABEL, plane, into=7))
    assert np.array_equal(after, expected)
    assert 0.7 < (after == 7).sum() / (labels == LABEL).sum() < 1.1


def test_what_can_not_be_copied_is_refused() -> None:
    labels = structures()
    away = Plane(GRID.center_mm + np.array([60, 0, 0]), (1, 0, 0))
    refused = [
        ("edit.empty_slice", lambda: copy_to_slice(labels, GRID, LABEL, 2, 0, 1)),
        ("edit.outside", lambda: copy_to_slice(labels, GRID, LABEL, 2, 6, 14)),
        ("edit.axis", lambda: copy_to_slice(labels, GRID, LABEL, -1, 6, 7)),
        ("edit.label", lambda: copy_to_slice(labels, GRID, LABEL, 2, 6, 7, into=0)),
        ("edit.outside", lambda: copy_to_mirror(labels, GRID, LABEL, away, into=7)),
        ("edit.absent", lambda: copy_to_mirror(labels, GRID, 5, center_plane(GRID), into=7)),
        ("edit.label", lambda: copy_to_mirror(labels, GRID, LABEL, center_plane(GRID), into=0)),
    ]
    for code, call in refused:
        with pytest.raises(InputError) as error:
            call()
        assert error.value.code == code
