"""What no editing function may do: modify its input, touch other structures, or depend on the order of the axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from edited import GRID, ball, edited
from numpy.typing import NDArray

from napari_seg.editing.change import Change
from napari_seg.editing.combine import minus, union, within
from napari_seg.editing.cut import cut_by_lasso, cut_by_plane
from napari_seg.editing.grow import grow
from napari_seg.editing.interpolate import interpolate
from napari_seg.editing.islands import keep_largest, remove_small_islands
from napari_seg.editing.move import copy_to_mirror, copy_to_slice
from napari_seg.editing.plane import Plane, center_plane
from napari_seg.editing.shape import dilate, erode, fill_holes, smooth
from napari_seg.editing.split import split
from napari_seg.geometry import Grid, resample

LABEL, OTHER, THIRD = 4, 9, 2
CLICK = (6, 11, 6)

Call = Callable[[NDArray[np.uint8], Grid], Change]


def structures() -> NDArray[np.uint8]:
    """A structure in two parts with a hole, gaps and a notch, and two others that touch it."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[ball((7.2, 11.4, 6.3), 9.0)] = LABEL
    labels[5, 9, 5] = labels[9:12, 12:15, 4] = 0
    labels[18, 3:6, 2] = LABEL
    labels[11:16, 8:15, 3:9] = OTHER
    labels[3:8, 3:8, 3:7] = THIRD
    return labels


def image(grid: Grid) -> NDArray[np.float64]:
    """Return intensities that depend on the place in mm only."""
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return 100 - np.linalg.norm(points - GRID.to_world((6, 11, 6)) - np.array([1, 2, 3]), axis=-1)


def place(grid: Grid, voxel: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the index in another grid of a voxel of `GRID`."""
    return tuple(np.rint(grid.to_index(GRID.to_world(voxel))).astype(int).tolist())


def axis_of(grid: Grid, axis: int) -> int:
    """Return the index axis of another grid that is parallel to an axis of `GRID`."""
    return int(np.abs(grid.directions.T @ GRID.directions[:, axis]).argmax())


def other_mask(grid: Grid) -> NDArray[np.bool_]:
    return image(grid) < 92


PLANE = Plane(GRID.center_mm, (0.48, -0.6, 0.64))

IN_MM: dict[str, Call] = {
    "smooth": lambda labels, grid: smooth(labels, grid, LABEL, 1.7),
    "fill holes": lambda labels, grid: fill_holes(labels, grid, LABEL),
    "fill holes in slices": lambda labels, grid: fill_holes(labels, grid, LABEL, axis=axis_of(grid, 1)),
    "dilate": lambda labels, grid: dilate(labels, grid, LABEL, 2.6),
    "erode": lambda labels, grid: erode(labels, grid, LABEL, 1.6),
    "keep largest": lambda labels, grid: keep_largest(labels, grid, LABEL),
    "remove small islands": lambda labels, grid: remove_small_islands(labels, grid, LABEL, 0.1),
    "union": lambda labels, grid: union(labels, grid, LABEL, other_mask(grid)),
    "minus": lambda labels, grid: minus(labels, grid, LABEL, OTHER, margin_mm=2.0),
    "within": lambda labels, grid: within(labels, grid, LABEL, other_mask(grid), margin_mm=2.0),
    "cut by plane": lambda labels, grid: cut_by_plane(labels, grid, LABEL, PLANE, into=7),
    "copy to slice": lambda labels, grid: copy_to_slice(
        labels, grid, LABEL, axis_of(grid, 0), *(place(grid, (n, 0, 0))[axis_of(grid, 0)] for n in (6, 15))
    ),
    "copy to mirror": lambda labels, grid: copy_to_mirror(labels, grid, LABEL, center_plane(grid), into=7),
    "grow": lambda labels, grid: grow(
        labels, grid, LABEL, image(grid), place(grid, CLICK), 88, 200, max_mm=14, neck_mm=1.3
    ),
    "fill between": lambda labels, grid: interpolate(with_gaps(labels, grid), grid, LABEL, axis_of(grid, 2)),
}

BY_INDEX: dict[str, Call] = {
    "cut by lasso": lambda labels, grid: cut_by_lasso(labels, grid, LABEL, [(2.2, 3.3), (9.1, 4.2), (5.5, 16.3)], 2),
    "split": lambda labels, grid: split(labels, grid, LABEL),
    "split at clicks": lambda labels, grid: split(labels, grid, LABEL, seeds=[(7, 14, 6), (9, 7, 6)]),
}


def with_gaps(labels: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """Return a label map whose structure has only three slices."""
    kept = labels.copy()
    for k in set(range(GRID.shape[2])) - {3, 6, 9}:
        axis = axis_of(grid, 2)
        plane = np.moveaxis(kept, axis, 0)[place(grid, (0, 0, k))[axis]]
        plane[plane == LABEL] = 0
    return kept


@pytest.mark.parametrize("name", [*IN_MM, *BY_INDEX])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_input_and_other_structures_stay(name: str, order: str) -> None:
    labels = np.array(structures(), order=order)
    before = labels.copy()
    labels.setflags(write=False)
    change = {**IN_MM, **BY_INDEX}[name](labels, GRID)
    assert not change.is_empty
    assert change.after.dtype == change.before.dtype == np.uint8
    base = with_gaps(before, GRID) if name == "fill between" else before
    after = edited(base, change)
    for label in (OTHER, THIRD):
        assert np.array_equal(after == label, base == label)
    assert np.array_equal(labels, before)
    changed = np.argwhere(after != base)
    assert ((changed >= [one.start for one in change.box]) & (changed < [one.stop for one in change.box])).all()


@pytest.mark.parametrize("orientation", ["RAS", "SLA", "IPR", "ALI"])
@pytest.mark.parametrize("name", IN_MM)
def test_the_result_does_not_depend_on_the_order_of_the_axes(name: str, orientation: str) -> None:
    turned = GRID.reoriented(orientation)
    to_turned = partial(resample, source=GRID, target=turned, order=0)
    labels, moved = structures(), to_turned(structures())
    if name == "fill between":
        labels, moved = with_gaps(labels, GRID), with_gaps(moved, turned)
    expected = to_turned(edited(labels, IN_MM[name](labels, GRID)))
    assert np.array_equal(edited(moved, IN_MM[name](moved, turned)), expected)
