"""Operations by name, on the structures of a label map one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball

from napari_seg.editing.change import Change
from napari_seg.editing.interpolate import interpolate
from napari_seg.editing.islands import keep_largest, remove_small_islands
from napari_seg.editing.operations import OPERATIONS, Operation, apply_operations
from napari_seg.editing.shape import dilate, erode, fill_holes, smooth
from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation

LABEL, OTHER = 4, 9


def labels() -> np.ndarray:
    array = np.zeros(GRID.shape, np.uint8)
    array[ball((8, 11, 6), 8.0)] = LABEL
    array[8, 11, 6] = 0  # a hole
    array[18, 2, 3] = LABEL  # an island
    array[14:18, 18:22, 3] = array[14:18, 18:22, 9] = OTHER
    return array


def segmentation(grid: Grid = GRID) -> Segmentation:
    segments = (Segment(LABEL, "ball", (255, 0, 0)), Segment(OTHER, "bars", (0, 255, 0)))
    return Segmentation(labels(), grid, segments, confidence={LABEL: 0.5})


@pytest.mark.parametrize(
    ("operation", "change", "text"),
    [
        (Operation("fill-holes"), fill_holes(labels(), GRID, LABEL), "fill-holes"),
        (Operation("fill-holes-in", view="axial"), fill_holes(labels(), GRID, LABEL, axis=2), "fill-holes-in axial"),
        (Operation("keep-largest"), keep_largest(labels(), GRID, LABEL), "keep-largest"),
        (
            Operation("remove-islands", 0.02),
            remove_small_islands(labels(), GRID, LABEL, 0.02),
            "remove-islands 0.02 ml",
        ),
        (Operation("smooth", 1.5), smooth(labels(), GRID, LABEL, 1.5), "smooth 1.5 mm"),
        (Operation("erode", 1.5), erode(labels(), GRID, LABEL, 1.5), "erode 1.5 mm"),
        (Operation("dilate", 2.0), dilate(labels(), GRID, LABEL, 2.0), "dilate 2 mm"),
    ],
)
def test_each_operation_is_its_function(operation: Operation, change: Change, text: str) -> None:
    expected = labels()
    change.apply(expected)
    after = apply_operations(segmentation(), [operation], [LABEL])
    assert np.array_equal(after.array, expected)
    assert not np.array_equal(after.array, labels())
    assert str(operation) == text
    assert not after.confidence  # of the labels before


@pytest.mark.parametrize(("view", "orientation"), [("axial", "LPS"), ("axial", "SAR"), ("coronal", "RAS")])
def test_a_view_is_the_nearest_index_axis(view: str, orientation: str) -> None:
    grid = GRID.reoriented(orientation)
    axis = {"LPS": 2, "SAR": 0, "RAS": 1}[orientation]
    array = np.zeros(grid.shape, np.uint8)
    slices = np.moveaxis(array, axis, 0)
    slices[2, 3:8, 4:9] = slices[7, 3:8, 4:9] = LABEL
    expected = array.copy()
    interpolate(array, grid, LABEL, axis).apply(expected)
    before = Segmentation(array, grid, (Segment(LABEL, "box", (255, 0, 0)),))
    after = apply_operations(before, [Operation("fill-between", view=view)], [LABEL])
    assert np.array_equal(after.array, expected)
    assert (np.moveaxis(after.array, axis, 0)[4, 3:8, 4:9] == LABEL).all()


def test_operations_follow_their_order_and_skip_what_they_can_not_change() -> None:
    before = segmentation()
    one = [Operation("erode", 1.5), Operation("dilate", 1.5)]
    opened, closed = (apply_operations(before, order, [LABEL]).array for order in (one, one[::-1]))
    assert not np.array_equal(opened, closed)
    assert opened[18, 2, 3] == 0
    assert closed[8, 11, 6] == LABEL
    # the island of the bars go, then there is nothing to smooth; the ball has no empty slices
    rest = [Operation("remove-islands", 1.0), Operation("smooth", 1.0), Operation("fill-between", view="axial")]
    after = apply_operations(before, rest, [OTHER, LABEL])
    assert not (after.array == OTHER).any()
    assert np.array_equal(before.array, labels())


def test_an_operation_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"edit\.nothing_left"):
        apply_operations(segmentation(), [Operation("erode", 50.0)], [LABEL])
    assert set(OPERATIONS) >= {"fill-holes", "keep-largest", "smooth"}


def test_an_operation_below_a_voxel_says_that_it_changed_nothing() -> None:
    below, above = Operation("dilate", 1.2), Operation("dilate", 1.3)  # voxels of 1.5 x 1.25 x 2.5 mm
    after = apply_operations(segmentation(), [below, Operation("remove-islands", 1e-6), above], [LABEL, OTHER])
    text = "edit.below_voxel: dilate 1.2 mm changed nothing; it is smaller than the voxels of 1.5 x 1.25 x 2.5 mm"
    assert [str(notice) for notice in after.notices] == [f"{text}; choose a larger size"]
    absent = apply_operations(segmentation(), [below], [LABEL + 1])
    assert not absent.notices
