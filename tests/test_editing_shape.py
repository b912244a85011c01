"""Smooth, fill holes, erode and dilate, against distances in mm that are compared point by point."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball, edited, nearest_mm, points_mm
from phantoms import oblique_grid

from napari_seg.editing import structure
from napari_seg.editing.shape import dilate, erode, fill_holes, smooth
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

NEIGHBOUR = 9
LABEL = 4


def two_structures() -> np.ndarray:
    """A ball with a notch, and a neighbour that touches it."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[ball((8.3, 11.2, 6.4), 8.0)] = LABEL
    labels[6:8, 11:14, 4] = 0
    labels[13:17, 8:15, 3:9] = NEIGHBOUR
    return labels


@pytest.mark.parametrize("size_mm", [1.25, 1.6, 2.5, 4.0])
def test_dilation_adds_what_lies_within_the_distance(size_mm: float) -> None:
    labels = two_structures()
    is_near = nearest_mm(labels == LABEL) <= size_mm + 1e-6
    expected = labels.copy()
    expected[is_near & (labels == 0)] = LABEL
    assert np.array_equal(edited(labels, dilate(labels, GRID, LABEL, size_mm)), expected)
    expected[is_near & (labels == NEIGHBOUR)] = LABEL
    assert np.array_equal(edited(labels, dilate(labels, GRID, LABEL, size_mm, {NEIGHBOUR})), expected)


@pytest.mark.parametrize("size_mm", [1.25, 2.0, 3.2])
def test_erosion_removes_what_lies_within_the_distance_of_the_outside(size_mm: float) -> None:
    labels = two_structures()
    expected = labels.copy()
    expected[(labels == LABEL) & (nearest_mm(labels != LABEL) <= size_mm + 1e-6)] = 0
    assert np.array_equal(edited(labels, erode(labels, GRID, LABEL, size_mm)), expected)


def test_erosion_does_not_start_at_the_edge_of_the_scan() -> None:
    labels = np.full(GRID.shape, LABEL, np.uint8)
    labels[:, :5] = 0
    after = edited(labels, erode(labels, GRID, LABEL, 1.25))
    assert (after[:, 6:] == LABEL).all()
    assert not after[:, :6].any()


def test_erosion_of_everything_is_refused() -> None:
    labels = two_structures()
    with pytest.raises(InputError) as error:
        erode(labels, GRID, LABEL, 30.0)
    assert error.value.code == "edit.nothing_left"


def test_holes_are_filled_in_3d_and_other_structures_stay() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:15, 4:20, 2:11] = LABEL
    labels[5:8, 6:9, 4:7] = 0  # a hole
    labels[6, 7, 5] = NEIGHBOUR  # in it another structure
    labels[10:12, 12:14, 5:14] = 0  # a hollow that is open above
    labels[8, 9, 7] = 0  # touches the hole by a corner only: a hole of its own
    expected = labels.copy()
    expected[5:8, 6:9, 4:7] = LABEL
    expected[8, 9, 7] = LABEL
    expected[6, 7, 5] = NEIGHBOUR
    assert np.array_equal(edited(labels, fill_holes(labels, GRID, LABEL)), expected)
    expected[6, 7, 5] = LABEL
    assert np.array_equal(edited(labels, fill_holes(labels, GRID, LABEL, overwrite={NEIGHBOUR})), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_holes_are_filled_slice_by_slice(axis: int) -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:15, 4:20, 2:11] = LABEL
    tunnel = [slice(6, 8), slice(9, 12), slice(4, 6)]
    tunnel[axis] = slice(None)  # open at both ends, so it is no hole in 3D
    labels[tuple(tunnel)] = 0
    assert fill_holes(labels, GRID, LABEL).is_empty
    full = np.zeros(GRID.shape, np.uint8)
    full[3:15, 4:20, 2:11] = LABEL
    assert np.array_equal(edited(labels, fill_holes(labels, GRID, LABEL, axis=axis)), full)
    for other in {0, 1, 2} - {axis}:
        assert fill_holes(labels, GRID, LABEL, axis=other).is_empty


def test_a_hollow_that_is_open_at_the_edge_of_the_scan_is_no_hole() -> None:
    labels = np.full(GRID.shape, LABEL, np.uint8)
    labels[5, 5, 0:3] = 0
    assert fill_holes(labels, GRID, LABEL).is_empty
    assert not fill_holes(labels, GRID, LABEL, axis=2).is_empty


def test_smoothing_is_the_gaussian_in_mm_that_keeps_the_volume() -> None:
    labels = two_structures()
    labels[labels == NEIGHBOUR] = 0
    mask, points, size_mm = labels == LABEL, points_mm(), 1.8
    blurred = np.zeros(GRID.shape)
    for point in points[mask]:
        blurred += np.exp(-(np.linalg.norm(points - point, axis=-1) ** 2) / (2 * size_mm**2))
    highest = np.sort(blurred, axis=None)[-int(mask.sum())]
    after = edited(labels, smooth(labels, GRID, LABEL, size_mm)) == LABEL
    assert (after != (blurred >= highest)).sum() <= 2  # voxels at the threshold: the Gaussian ends at 3 sigma
    assert 0 <= after.sum() - mask.sum() <= 4  # voxels of equal value stay together
    assert (after != mask).sum() > 5  # the notch is filled


@pytest.mark.parametrize(("slices", "size_mm"), [(1, 1.0), (1, 2.0), (2, 2.0), (3, 2.0), (5, 2.0)])
def test_smoothing_keeps_the_volume_of_a_flat_structure(slices: int, size_mm: float) -> None:
    """The slices next to a disc have one value each; at the threshold they would add up to 150 % of its volume."""
    grid = Grid((64, 64, 30), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    i, j = np.ogrid[:64, :64]
    labels[..., 12 : 12 + slices][(i - 32) ** 2 + (j - 32) ** 2 <= 28**2] = LABEL
    before = np.count_nonzero(labels)
    after = np.count_nonzero(edited(labels, smooth(labels, grid, LABEL, size_mm)))
    assert after == pytest.approx(before, rel=0.01)


def test_smoothing_a_thin_shell_keeps_its_volume() -> None:
    """All but 4 of its 866 voxels leave it for the hollow inside."""
    grid = Grid((40, 40, 40), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:23, 10:23, 10:23] = LABEL
    labels[11:22, 11:22, 11:22] = 0
    after = edited(labels, smooth(labels, grid, LABEL, 8.0))
    assert np.count_nonzero(after) == pytest.approx(866, rel=0.02)
    assert not after[labels == LABEL].all()


def test_smoothing_evens_the_outline_of_a_flat_structure() -> None:
    grid = Grid((60, 60, 20), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:50, 10:50, 7:12] = LABEL
    labels[28:31, 10:14, 7:12] = 0  # a notch
    labels[28:30, 50:54, 7:12] = LABEL  # a spike
    after = edited(labels, smooth(labels, grid, LABEL, 2.0))
    assert np.count_nonzero(after) == pytest.approx(np.count_nonzero(labels), rel=0.01)
    assert (after[28:31, 12:14, 9] == LABEL).all()
    assert not after[28:30, 52:54].any()


@pytest.mark.parametrize("overwrite", [(), (NEIGHBOUR,)])
@pytest.mark.parametrize("is_enclosed", [True, False])
def test_smoothing_opens_no_gap_towards_other_structures(overwrite: tuple[int, ...], is_enclosed: bool) -> None:
    """A rough core that a shell encloses, or covers on one side."""
    labels = np.zeros(GRID.shape, np.uint8)
    centre = (9.0, 11.0, 7.0)
    labels[ball(centre, 11.0)] = NEIGHBOUR
    if not is_enclosed:
        labels[:10] = 0
    rough = ball(centre, 7.0) & (np.random.default_rng(0).random(GRID.shape) > 0.2)
    labels[rough] = LABEL
    after = edited(labels, smooth(labels, GRID, LABEL, 2.0, overwrite))
    count = np.count_nonzero(labels == LABEL)
    assert np.count_nonzero(after == LABEL) == pytest.approx(count, rel=0.01)
    assert not ((after == 0) & (labels != 0))[11:].any()
    if not overwrite:
        assert np.array_equal(after == NEIGHBOUR, labels == NEIGHBOUR)
    assert np.array_equal(after, labels) == (is_enclosed and not overwrite)


def test_smoothing_removes_a_spike_and_fills_a_notch() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:15, 5:20, 3:10] = LABEL
    labels[9, 12, 10:12] = LABEL
    labels[5, 9, 9] = 0
    after = edited(labels, smooth(labels, GRID, LABEL, 1.5)) == LABEL
    assert not after[9, 12, 10:12].any()
    assert after[5, 9, 9]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_smoothing_leaves_a_plane_that_reaches_the_edges_as_it_is(axis: int) -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    np.moveaxis(labels, axis, 0)[:6] = LABEL
    assert smooth(labels, GRID, LABEL, 3.0).is_empty


def test_smoothing_leaves_other_structures() -> None:
    labels = two_structures()
    after = edited(labels, smooth(labels, GRID, LABEL, 2.0))
    assert np.array_equal(after == NEIGHBOUR, labels == NEIGHBOUR)
    assert not np.array_equal(after, labels)


@pytest.mark.parametrize("function", [smooth, dilate, erode])
def test_sizes_and_absent_structures_are_refused(function) -> None:
    labels = two_structures()
    with pytest.raises(InputError, match=r"edit\.absent"):
        function(labels, GRID, 5, 1.0)
    with pytest.raises(InputError, match=r"edit\.size"):
        function(labels, GRID, LABEL, 0.0)


@pytest.mark.parametrize("function", [smooth, dilate, erode])
def test_parts_that_lie_apart_give_what_one_box_around_them_gives(function, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = oblique_grid((64, 60, 40), (1.5, 1.25, 2.5))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:14, 3:17, 4:12] = labels[40:60, 35:57, 20:36] = LABEL
    labels[13, 16, 11] = labels[45, 60 - 8, 22:30] = 0
    labels[8, 20, 30] = NEIGHBOUR
    apart = edited(labels, function(labels, grid, LABEL, 2.0))
    monkeypatch.setattr(structure, "_MAX_PIECES", 0)
    assert np.array_equal(apart, edited(labels, function(labels, grid, LABEL, 2.0)))
    assert not np.array_equal(apart, labels)


@pytest.mark.parametrize("function", [smooth, dilate, erode])
def test_tiles_of_a_thin_structure_give_what_one_box_gives(function, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = oblique_grid((96, 90, 80), (1.5, 1.25, 2.5))
    labels = np.zeros(grid.shape, np.uint8)
    for n in range(70):
        labels[n + 5 : n + 9 + n % 7, n + 3 : n + 8, n + 4 : n + 7] = LABEL
    size_mm = 1.6 if function is smooth else 2.0
    whole = edited(labels, function(labels, grid, LABEL, size_mm))
    monkeypatch.setattr(structure, "_MAX_VOXELS", 1000)
    monkeypatch.setattr(structure, "_TILE", 12)
    mask = labels == LABEL
    assert len(structure.regions(mask, structure.margin_of(grid, 4.8))) > 5
    assert np.array_equal(whole, edited(labels, function(labels, grid, LABEL, size_mm)))
    assert not np.array_equal(whole, labels)
