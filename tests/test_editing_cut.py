"""Cuts by planes and lassos, against the side of each voxel's centre in mm."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball, edited, points_mm

from napari_seg.editing.cut import cut_by_lasso, cut_by_plane
from napari_seg.editing.plane import Plane, plane_through_line
from napari_seg.errors import InputError

LABEL, OTHER = 4, 9


def structures() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[ball((9, 12, 6), 9.0)] = LABEL
    labels[14:18, 8:15, 3:9] = OTHER
    return labels


@pytest.mark.parametrize("into", [0, 7, OTHER])
def test_a_plane_cuts_off_the_side_of_its_normal(into: int) -> None:
    labels = structures()
    point, normal = GRID.to_world((9, 12, 6)) + np.array([1, 2, -1]), np.array([0.48, -0.6, 0.64])
    expected = labels.copy()
    expected[(labels == LABEL) & ((points_mm() - point) @ normal > 0)] = into
    after = edited(labels, cut_by_plane(labels, GRID, LABEL, Plane(point, normal), into=into))
    assert np.array_equal(after, expected)
    assert not np.array_equal(after, labels)


def test_voxels_on_the_plane_stay() -> None:
    labels = structures()
    plane = plane_through_line(GRID, (3, 12, 6), (15, 12, 6), 2)
    after = edited(labels, cut_by_plane(labels, GRID, LABEL, plane))
    expected = labels.copy()
    side = plane.normal @ GRID.directions[:, 1]
    off = slice(13, None) if side > 0 else slice(None, 12)
    expected[:, off][labels[:, off] == LABEL] = 0
    assert np.array_equal(after, expected)


TRIANGLE = [(2.5, 3.5), (17.5, 3.5), (2.5, 18.5)]


def in_triangle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a > 2.5) & (b > 3.5) & (a + b < 21)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cut_off", ["inside", "outside"])
@pytest.mark.parametrize("slices", [None, (5, 8)])
def test_a_lasso_cuts_through_slices(axis: int, cut_off: str, slices: tuple[int, int] | None) -> None:
    labels = structures()
    # moved by a little, so that no voxel lies on an edge
    polygon = np.array(TRIANGLE) + 0.01
    a, b = (np.indices(GRID.shape)[n] for n in range(3) if n != axis)
    is_cut = in_triangle(a - 0.01, b - 0.01) == (cut_off == "inside")
    n = np.indices(GRID.shape)[axis]
    first, end = slices or (0, 99)
    expected = labels.copy()
    expected[(labels == LABEL) & is_cut & (n >= first) & (n < end)] = 7
    change = cut_by_lasso(labels, GRID, LABEL, polygon, axis, slices=slices, cut_off=cut_off, into=7)
    assert np.array_equal(edited(labels, change), expected)


def test_a_lasso_that_reaches_beyond_the_scan_cuts_what_is_in_it() -> None:
    labels = structures()
    change = cut_by_lasso(labels, GRID, LABEL, [(-50, -50), (-50, 90), (8.4, 90), (8.4, -50)], 2)
    expected = labels.copy()
    expected[:9][labels[:9] == LABEL] = 0
    assert np.array_equal(edited(labels, change), expected)


def test_what_can_not_be_cut_is_refused() -> None:
    labels = structures()
    plane = Plane(GRID.center_mm, (0, 0, 1))
    refused = [
        ("edit.absent", lambda: cut_by_plane(labels, GRID, 5, plane)),
        ("edit.label", lambda: cut_by_plane(labels, GRID, LABEL, plane, into=256)),
        ("edit.absent", lambda: cut_by_lasso(labels, GRID, 5, TRIANGLE, 0)),
        ("edit.polygon", lambda: cut_by_lasso(labels, GRID, LABEL, TRIANGLE[:2], 0)),
        ("edit.axis", lambda: cut_by_lasso(labels, GRID, LABEL, TRIANGLE, 3)),
        ("edit.outside", lambda: cut_by_lasso(labels, GRID, LABEL, TRIANGLE, 2, slices=(5, 15))),
        ("edit.outside", lambda: cut_by_lasso(labels, GRID, LABEL, TRIANGLE, 2, slices=(5, 5))),
    ]
    for code, call in refused:
        with pytest.raises(InputError) as error:
            call()
        assert error.value.code == code
