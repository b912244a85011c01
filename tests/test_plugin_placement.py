"""The plugin's geometry: whatever the axis order and tilt of a scan, a point of the patient is shown in its place."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from phantoms import ORIENTATIONS, rotation

from napari_seg.geometry import Grid
from napari_seg.plugin.placement import PLANES, LayerPlacement, place

SHAPE = (7, 10, 13)
SPACING_MM = (0.7, 1.3, 2.1)
MARK = (5, 2, 9)

TILTS = {"straight": rotation(0, 0, 0), "tilted": rotation(9, -6, 4), "steep": rotation(25, 18, -30)}


def phantom(orientation: str, tilt: NDArray[np.float64]) -> tuple[NDArray[np.int16], Grid]:
    """Every voxel another value; the same world box in any axis order, each axis with a spacing of its own."""
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(SPACING_MM)
    affine[:3, 3] = (-31.0, 12.5, 40.25)
    grid = Grid(SHAPE, affine).reoriented(orientation)
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(grid.shape)
    return array, grid


def world_of(placement: LayerPlacement, index: tuple[int, ...]) -> NDArray[np.float64]:
    """As napari computes it for a layer."""
    return np.array(index) * placement.scale + placement.translate


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_is_shown_where_it_lies_and_comes_back_bit_by_bit(orientation: str, tilt: str) -> None:
    array, grid = phantom(orientation, TILTS[tilt])
    placement = place(grid)
    shown = placement.show(array)

    assert placement.is_view
    assert np.shares_memory(shown, array)
    assert min(placement.scale) > 0
    for index in [(0, 0, 0), MARK, tuple(n - 1 for n in grid.shape)]:
        index = tuple(min(i, n - 1) for i, n in zip(index, grid.shape, strict=True))
        found = tuple(int(i[0]) for i in np.nonzero(shown == array[index]))
        # By hand: undo the tilt, then I is -z, P is -y, L is -x.
        x, y, z = TILTS[tilt].T @ grid.to_world(index)
        np.testing.assert_allclose(world_of(placement, found), (-z, -y, -x), atol=1e-9)
        np.testing.assert_allclose(placement.to_patient_mm((-z, -y, -x)), grid.to_world(index), atol=1e-9)
        np.testing.assert_allclose(placement.to_layer_mm(grid.to_world(index)), (-z, -y, -x), atol=1e-9)

    back = placement.restore(shown)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(placement.native.affine, grid.affine)


def test_a_straight_scan_is_shown_as_worked_out_by_hand() -> None:
    # Voxel (1, 2, 3) of an LPS scan lies at x = 90 - 1, y = 80 - 2 * 2, z = -50 + 3 * 3 mm.
    grid = Grid((4, 5, 6), np.array([[-1, 0, 0, 90], [0, -2, 0, 80], [0, 0, 3, -50], [0, 0, 0, 1]]))
    array = np.zeros(grid.shape, np.uint8)
    array[1, 2, 3] = 7
    placement = place(grid)
    shown = placement.show(array)
    assert shown.shape == (6, 5, 4)
    assert np.argwhere(shown == 7).tolist() == [[2, 2, 1]]  # the slices are turned: the head comes first
    assert placement.scale == (3.0, 2.0, 1.0)
    assert placement.translate == pytest.approx((35.0, -80.0, -90.0))
    np.testing.assert_array_equal(placement.frame, np.eye(3))


def test_planes_are_drawn_as_radiologists_read_them() -> None:
    """napari draws the last axis to the right, the one before downwards; world axes grow to I, P and L."""
    drawn = {plane: tuple("IPL"[axis] for axis in order[1:]) for plane, order in PLANES.items()}
    assert drawn == {"axial": ("P", "L"), "coronal": ("I", "L"), "sagittal": ("I", "P")}


def test_two_scans_of_one_patient_lie_in_one_world() -> None:
    tilt = TILTS["tilted"]
    _, first = phantom("LPS", tilt)
    array, second = phantom("AIR", tilt)
    second = Grid(second.shape, np.vstack([np.hstack([second.affine[:3, :3], [[3.3], [-8.1], [20]]]), [0, 0, 0, 1]]))
    placement, voxel = place(second, place(first).frame), (5, 1, 2)
    assert placement.is_view
    found = tuple(int(i[0]) for i in np.nonzero(placement.show(array) == array[voxel]))
    expected = place(first).to_layer_mm(second.to_world(voxel))
    np.testing.assert_allclose(world_of(placement, found), expected, atol=1e-3)


@pytest.mark.parametrize(("degrees", "is_view"), [(0.002, True), (0.05, False)])
def test_a_scan_is_resampled_only_if_a_voxel_moved_otherwise(degrees: float, is_view: bool) -> None:
    _, first = phantom("RAS", TILTS["straight"])
    array, second = phantom("LPS", rotation(degrees, 0, 0))
    placement = place(second, place(first).frame)
    assert placement.is_view is is_view
    if is_view:  # and then every voxel is within a micrometre of its place
        for voxel in ((0, 0, 0), tuple(n - 1 for n in second.shape)):
            found = tuple(int(i[0]) for i in np.nonzero(placement.show(array) == array[voxel]))
            expected = place(first).to_layer_mm(second.to_world(voxel))
            np.testing.assert_allclose(world_of(placement, found), expected, atol=1e-3)


@pytest.mark.parametrize("orientation", ["RAS", "PIL", "SLA"])
def test_a_scan_in_another_frame_is_resampled_into_place(orientation: str) -> None:
    _, first = phantom("LPS", TILTS["steep"])
    _, second = phantom(orientation, TILTS["tilted"])
    first_placement = place(first)
    placement = place(second, first_placement.frame)
    assert not placement.is_view
    # Each layer axis keeps the spacing of the scan's axis that it follows.
    np.testing.assert_allclose(sorted(placement.scale), sorted(SPACING_MM), atol=1e-9)
    # All of it is in the picture, ...
    assert placement.shown.contains(second.corners_mm).all()
    # ... a smooth field of world coordinates is shown in place, ...
    field = np.moveaxis(second.to_world(np.moveaxis(np.indices(second.shape), 0, -1)), -1, 0)
    center = tuple(n // 2 for n in placement.shown.shape)
    patient = [placement.show(f.astype(np.float64))[center] for f in field]
    np.testing.assert_allclose(first_placement.to_layer_mm(patient), world_of(placement, center), atol=1e-6)
    # ... and labels go back to the scan's own grid.
    labels = np.zeros(second.shape, np.uint8)
    labels[2:-2, 2:-2, 2:-2] = 3
    back = placement.restore(placement.show(labels, order=0))
    assert back.shape == labels.shape
    assert back.dtype == labels.dtype
    inside = np.zeros(labels.shape, bool)
    inside[3:-3, 3:-3, 3:-3] = True
    assert (back[inside] == 3).all()
    assert not back[0].any()
    assert not back[:, :, -1].any()
