"""Islands of a structure, counted and placed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, edited

from napari_seg.editing.islands import Island, keep_largest, list_islands, remove_small_islands, take_island
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

LABEL = 4
VOXEL_ML = 1.5 * 1.25 * 2.5 / 1000


def three_islands() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint16)
    labels[2:5, 3:7, 1:3] = LABEL  # 24 voxels
    labels[12, 20, 9] = labels[13, 21, 10] = LABEL  # 2, connected by a corner
    labels[18, 2:5, 12] = LABEL  # 3
    labels[8:12, 8:12, 8] = 9  # another structure
    return labels


def test_islands_are_listed_with_their_size_and_place() -> None:
    islands = list_islands(three_islands(), GRID, LABEL)
    assert [island.voxels for island in islands] == [24, 3, 2]
    assert [island.ml for island in islands] == pytest.approx([24 * VOXEL_ML, 3 * VOXEL_ML, 2 * VOXEL_ML])
    assert [island.box for island in islands] == [
        (slice(2, 5), slice(3, 7), slice(1, 3)),
        (slice(18, 19), slice(2, 5), slice(12, 13)),
        (slice(12, 14), slice(20, 22), slice(9, 11)),
    ]
    for island, center in zip(islands, [(3, 4.5, 1.5), (18, 3, 12), (12.5, 20.5, 9.5)], strict=True):
        assert island.centroid_mm == pytest.approx(tuple(GRID.to_world(center)))


def test_the_largest_island_remains() -> None:
    labels = three_islands()
    expected = labels.copy()
    expected[12:14, 20:22, 9:11] = 0
    expected[18, 2:5, 12] = 0
    assert np.array_equal(edited(labels, keep_largest(labels, GRID, LABEL)), expected)


@pytest.mark.parametrize(("min_voxels", "left"), [(2, [24, 3, 2]), (2.5, [24, 3]), (3, [24, 3]), (4, [24]), (25, [])])
def test_islands_below_a_volume_are_removed(min_voxels: float, left: list[int]) -> None:
    labels = three_islands()
    after = edited(labels, remove_small_islands(labels, GRID, LABEL, min_voxels * VOXEL_ML))
    assert (after == LABEL).sum() == sum(left)
    assert np.array_equal(after == 9, labels == 9)
    if left:
        assert [island.voxels for island in list_islands(after, GRID, LABEL)] == left


def test_an_island_is_taken_by_a_voxel() -> None:
    labels = three_islands()
    removed, given, kept = (labels.copy() for _ in range(3))
    removed[18, 2:5, 12] = 0
    given[18, 2:5, 12] = 9
    kept[2:5, 3:7, 1:3] = kept[12, 20, 9] = kept[13, 21, 10] = 0
    voxel = (18, 3, 12)
    assert np.array_equal(edited(labels, take_island(labels, GRID, LABEL, voxel)), removed)
    assert np.array_equal(edited(labels, take_island(labels, GRID, LABEL, voxel, into=9)), given)
    assert np.array_equal(edited(labels, take_island(labels, GRID, LABEL, voxel, is_kept=True)), kept)
    for wrong, code in (((9, 9, 8), r"edit\.not_in_structure"), ((99, 0, 0), r"edit\.outside")):
        with pytest.raises(InputError, match=code):
            take_island(labels, GRID, LABEL, wrong)


def test_a_structure_without_voxels_is_refused() -> None:
    labels = three_islands()
    for function in (keep_largest, list_islands):
        with pytest.raises(InputError, match=r"edit\.absent"):
            function(labels, GRID, 5)
    with pytest.raises(InputError, match=r"edit\.volume"):
        remove_small_islands(labels, GRID, LABEL, -1.0)


def test_many_islands_are_those_of_scipy() -> None:
    from scipy.ndimage import label as connected

    labels = np.where(np.random.default_rng(5).random((40, 30, 20)) < 0.06, np.uint8(LABEL), np.uint8(0))
    parts, count = connected(labels == LABEL, np.ones((3, 3, 3)))
    grid = Grid(labels.shape, GRID.affine)
    islands = list_islands(labels, grid, LABEL)
    assert len(islands) == count > 100
    expected = [np.argwhere(parts == number) for number in range(1, count + 1)]

    def place(island: Island) -> tuple:
        return island.voxels, *((one.start, one.stop - 1) for one in island.box), *np.round(island.centroid_mm, 6)

    def place_of(voxels: np.ndarray) -> tuple:
        box = zip(voxels.min(0).tolist(), voxels.max(0).tolist(), strict=True)
        return len(voxels), *box, *np.round(grid.to_world(voxels.mean(axis=0)), 6)

    assert sorted(map(place, islands)) == sorted(map(place_of, expected))
