"""Planes in mm, and the ways to define one on an oblique grid."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball, points_mm

from napari_seg.editing.change import whole
from napari_seg.editing.plane import Plane, center_plane, plane_between, plane_through_line
from napari_seg.errors import InputError


def test_distances_are_signed_and_in_mm() -> None:
    plane = Plane(GRID.center_mm + np.array([3, -2, 1]), (2.0, 1.0, -2.0))
    expected = (points_mm() - plane.point_mm) @ [2 / 3, 1 / 3, -2 / 3]
    assert np.allclose(plane.distances_mm(GRID, whole(GRID.shape)), expected)
    box = (slice(3, 9), slice(20, 26), slice(1, 2))
    assert np.allclose(plane.distances_mm(GRID, box), expected[box])


def test_a_point_and_its_reflection_lie_at_the_same_distance_on_both_sides() -> None:
    plane = Plane((4.0, -3.0, 7.0), (0.0, 3.0, 4.0))
    mirrored = plane.reflection() @ [10.0, 2.0, 12.0, 1.0]
    # 5 * 0.6 + 5 * 0.8 = 7 mm from the plane
    assert mirrored == pytest.approx([10.0, 2.0 - 14 * 0.6, 12.0 - 14 * 0.8, 1.0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_line_in_a_slice_gives_the_plane_through_all_slices(axis: int) -> None:
    first, second = np.array([4.0, 5.0, 6.0]), np.array([11.5, 17.0, 2.0])
    second[axis] = first[axis]
    plane = plane_through_line(GRID, first.tolist(), second.tolist(), axis)
    for start in (first, second, (first + second) / 2):
        for steps in (-3, 0, 8):
            point = start.copy()
            point[axis] += steps
            assert (GRID.to_world(point) - plane.point_mm) @ plane.normal == pytest.approx(0, abs=1e-9)
    turned = np.cross(GRID.directions[:, axis], GRID.to_world(second) - GRID.to_world(first))
    assert plane.normal @ turned == pytest.approx(np.linalg.norm(turned))


def test_the_plane_through_the_centre_mirrors_voxels_on_voxels() -> None:
    plane = center_plane(GRID)
    assert plane.normal[0] > 0.9  # to the right
    assert abs(plane.normal @ GRID.directions[:, 0]) == pytest.approx(1)
    mirrored = plane.reflection() @ np.append(GRID.to_world((2, 5, 6)), 1)
    assert GRID.to_index(mirrored[:3]) == pytest.approx((GRID.shape[0] - 1 - 2, 5, 6))


def test_the_plane_between_two_structures_mirrors_one_centroid_on_the_other() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[ball((4, 10, 5), 4.0)] = 3
    labels[ball((15, 12, 8), 5.0)] = 8
    plane = plane_between(labels, GRID, 3, 8)
    centers = [GRID.to_world(np.argwhere(labels == label).mean(axis=0)) for label in (3, 8)]
    assert (plane.reflection() @ [*centers[0], 1])[:3] == pytest.approx(centers[1])
    assert plane.normal @ (centers[1] - centers[0]) > 0


def test_planes_without_a_direction_are_refused() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3, 3, 3] = 1
    refused = [
        lambda: Plane((0, 0, 0), (0, 0, 0)),
        lambda: Plane((0, np.nan, 0), (0, 0, 1)),
        lambda: Plane((0, 0), (0, 0, 1)),
        lambda: plane_through_line(GRID, (3, 4, 5), (3, 4, 5), 2),
        lambda: plane_through_line(GRID, (3, 4, 5), (3, 4, 9), 2),
        lambda: plane_between(labels, GRID, 1, 1),
    ]
    for call in refused:
        with pytest.raises(InputError, match=r"edit\.plane"):
            call()
    with pytest.raises(InputError, match=r"edit\.absent"):
        plane_between(labels, GRID, 1, 2)
    with pytest.raises(InputError, match=r"edit\.axis"):
        plane_through_line(GRID, (3, 4, 5), (4, 4, 5), 3)
