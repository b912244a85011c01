"""Filling between painted slices, against slices by hand and distances in mm that are compared point by point."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, edited, points_mm

from napari_seg.editing.interpolate import interpolate, interpolate_sides
from napari_seg.errors import Cancelled, InputError
from napari_seg.geometry import Grid

LABEL, OTHER = 4, 9


def bands(axis: int, painted: dict[int, list[tuple[int, int]]]) -> np.ndarray:
    """Return a label map with bands of rows (first, last) through all columns of some slices."""
    labels = np.zeros(GRID.shape, np.uint8)
    slices = np.moveaxis(labels, axis, 0)
    for k, rows in painted.items():
        for first, last in rows:
            slices[k, first : last + 1] = LABEL
    return labels


AXES = pytest.mark.parametrize("axis", [0, 1, 2])


@AXES
def test_outlines_move_linearly_from_slice_to_slice(axis: int) -> None:
    labels = bands(axis, {2: [(4, 7)], 6: [(8, 11)], 8: [(6, 13)], 9: [(6, 12)], 12: [(3, 9)]})
    between = {3: (5, 8), 4: (6, 9), 5: (7, 10), 7: (7, 12), 10: (5, 11), 11: (4, 10)}
    expected = bands(axis, {2: [(4, 7)], 6: [(8, 11)], 8: [(6, 13)], 9: [(6, 12)], 12: [(3, 9)]})
    expected |= bands(axis, {k: [rows] for k, rows in between.items()})
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, axis)), expected)


@AXES
def test_a_branch_divides_the_part_that_it_begins_at(axis: int) -> None:
    painted = {3: [(5, 14)], 5: [(1, 5), (14, 18)]}
    # rows 5 to 9 are nearest to the first branch, 10 to 14 to the second; both parts move half of the way
    expected = bands(axis, {**painted, 4: [(3, 7), (12, 16)]})
    labels = bands(axis, painted)
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, axis)), expected)


@AXES
def test_a_shifted_contour_keeps_its_shape(axis: int) -> None:
    shape = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0]], bool)
    labels, expected = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    for k, (row, column) in enumerate([(1, 2), (2, 3), (3, 4), (4, 5)], start=4):
        np.moveaxis(expected, axis, 0)[k, row : row + 4, column : column + 3][shape] = LABEL
    painted = [slice(None)] * 3
    painted[axis] = slice(4, 8, 3)  # the contours of both slices share no voxels
    labels[tuple(painted)] = expected[tuple(painted)]
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, axis)), expected)


@AXES
def test_shapes_are_blended_by_signed_distances_in_mm(axis: int) -> None:
    grid = Grid((15, 17, 19), GRID.affine)
    labels = np.zeros(grid.shape, np.uint8)
    slices, points = np.moveaxis(labels, axis, 0), np.moveaxis(points_mm(grid), axis, 0)
    slices[3, 3:12, 6:9] = slices[3, 6:9, 3:12] = LABEL  # a cross, and a square around the same centre
    slices[7, 5:10, 5:10] = LABEL

    def signed(k: int) -> np.ndarray:
        inside = slices[k] == LABEL
        to = {is_in: np.full(inside.shape, np.inf) for is_in in (True, False)}
        for is_in, away in to.items():
            for point in points[k][inside == is_in]:
                np.minimum(away, np.linalg.norm(points[k] - point, axis=-1), out=away)
        return np.where(inside, to[False], -to[True])

    after = np.moveaxis(edited(labels, interpolate(labels, grid, LABEL, axis)), axis, 0)
    for k, fraction in {4: 0.25, 5: 0.5, 6: 0.75}.items():
        blended = (1 - fraction) * signed(3) + fraction * signed(7)
        is_clear = np.abs(blended) > 1e-4
        assert np.array_equal((after[k] == LABEL)[is_clear], (blended > 0)[is_clear])
    assert np.array_equal(after[[3, 7]], slices[[3, 7]])


def test_parts_that_are_far_from_each_other_are_not_joined() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:4, 2:5, 5] = LABEL
    labels[15:18, 20:23, 5] = labels[15:18, 20:23, 7] = LABEL
    labels[1:3, 22:24, 7] = LABEL
    expected = labels.copy()
    expected[15:18, 20:23, 6] = LABEL
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, 2)), expected)


def test_a_branch_that_overlaps_nothing_begins_at_the_nearest_part() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:9, 4:12, 5] = labels[4:9, 4:12, 7] = LABEL
    labels[4:9, 14:16, 7] = LABEL  # 3.75 mm beside it, slices 5 mm apart
    after = edited(labels, interpolate(labels, GRID, LABEL, 2))
    assert (after[4:9, 4:12, 6] == LABEL).all()
    assert (after[5:8, 12:14, 6] == LABEL).any()
    labels[4:9, 14:16, 7] = 0
    labels[4:9, 20:22, 7] = LABEL  # 11 mm beside it
    after = edited(labels, interpolate(labels, GRID, LABEL, 2))
    assert not after[:, 13:, 6].any()


def test_other_structures_stay_unless_they_are_overwritten() -> None:
    labels = bands(2, {2: [(4, 7)], 6: [(4, 7)]})
    labels[5:7, :, 4] = OTHER
    labels[0, 0, 4] = OTHER
    expected = bands(2, {k: [(4, 7)] for k in range(2, 7)})
    expected[labels == OTHER] = OTHER
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, 2)), expected)
    expected[5:7, :, 4] = LABEL
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, 2, overwrite={OTHER})), expected)


def test_a_slice_that_fills_the_scan_shrinks_to_the_next() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:, :, 3] = labels[8:12, 11:15, 9] = LABEL
    counts = (edited(labels, interpolate(labels, GRID, LABEL, 2)) == LABEL).sum(axis=(0, 1))[3:10]
    assert counts[0] == labels[:, :, 3].size
    assert counts[-1] == 16
    assert (np.diff(counts) < 0).all()


def test_one_side_is_filled_while_the_other_is_complete() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:7, 3:8, 3:10] = labels[12:17, 10:15, 3:10] = LABEL
    expected = labels.copy()
    labels[12:17, 10:15, 5:8] = 0
    with pytest.raises(InputError, match=r"edit\.nothing_between"):
        interpolate(labels, GRID, LABEL, 2)
    region = (slice(10, 20), slice(8, 26), slice(0, 14))
    assert np.array_equal(edited(labels, interpolate(labels, GRID, LABEL, 2, region=region)), expected)


@AXES
def test_each_side_is_filled_whatever_slices_the_others_have(axis: int) -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    slices = np.moveaxis(labels, axis, 0)
    slices[1:11, 0:4, 0:6] = LABEL  # complete, at two edges of the scan
    with pytest.raises(InputError, match=r"edit\.nothing_between"):
        interpolate_sides(labels, GRID, LABEL, axis)
    slices[[2, 6], 7:10, 2:6] = slices[[4, 9], 7:10, 9:12] = LABEL
    slices[4, 8, 4] = OTHER
    expected = labels.copy()
    filled = np.moveaxis(expected, axis, 0)
    filled[2:7, 7:10, 2:6] = filled[4:10, 7:10, 9:12] = LABEL
    assert np.array_equal(edited(labels, interpolate_sides(labels, GRID, LABEL, axis, overwrite=(OTHER,))), expected)
    filled[4, 8, 4] = OTHER
    assert np.array_equal(edited(labels, interpolate_sides(labels, GRID, LABEL, axis)), expected)
    with pytest.raises(InputError, match=r"edit\.absent"):
        interpolate_sides(labels, GRID, 7, axis)


def test_what_can_not_be_filled_is_refused() -> None:
    labels = bands(2, {2: [(4, 7)], 3: [(4, 7)], 4: [(4, 7)]})
    for code, call in {
        "edit.nothing_between": lambda: interpolate(labels, GRID, LABEL, 2),
        "edit.absent": lambda: interpolate(labels, GRID, OTHER, 2),
        "edit.axis": lambda: interpolate(labels, GRID, LABEL, 3),
    }.items():
        with pytest.raises(InputError) as error:
            call()
        assert error.value.code == code


def test_the_work_can_be_stopped() -> None:
    labels = bands(2, {2: [(4, 7)], 6: [(4, 7)], 9: [(4, 7)]})
    seen: list[tuple[str, int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        if done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        interpolate(labels, GRID, LABEL, 2, progress=stop)
    assert seen == [("filling", 0, 2), ("filling", 1, 2)]
