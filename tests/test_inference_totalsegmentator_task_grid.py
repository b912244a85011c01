"""Place of a task's image, against nibabel's orientations and SciPy's zoom."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from napari_seg.geometry import Grid
from napari_seg.inference.totalsegmentator.task_grid import TaskGrid, box_around, header_spacing

SHAPE = (23, 31, 17)


def oblique_grid(seed: int) -> Grid:
    """Return a grid with anisotropic voxels and axes in any order and direction."""
    random = np.random.default_rng(seed)
    turn = np.eye(3)[random.permutation(3)] * random.choice((-1, 1), 3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() if seed % 2 else turn
    affine[:3, :3] = affine[:3, :3] * random.uniform(0.6, 4.0, 3)
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return Grid(SHAPE, affine.astype(np.float32))


@pytest.mark.parametrize("seed", range(24))
def test_image_and_way_back_are_those_of_nibabel_and_scipy(seed: int) -> None:
    grid, random = oblique_grid(seed), np.random.default_rng(seed)
    array = random.integers(-1024, 2000, SHAPE).astype(np.int16)
    box = (slice(2, 20), slice(5, 31), slice(0, 15))
    task_grid = TaskGrid.of(grid, (1.5, 1.5, 2.0), box)
    image = task_grid.image(array)

    start = [part.start for part in box]
    moved = grid.affine @ np.block([[np.eye(3), np.array(start)[:, None]], [0, 0, 0, 1]])
    cropped = nib.Nifti1Image(array[box].astype(np.int32), moved)
    canonical = nib.as_closest_canonical(cropped)
    zoom = np.array(canonical.header.get_zooms()) / np.array([1.5, 1.5, 2.0])
    expected = ndimage.zoom(canonical.get_fdata(), zoom, order=1, mode="nearest").astype(np.int32)
    assert np.array_equal(image, expected)
    affine = canonical.affine.copy()
    affine[:3, :3] /= zoom
    assert np.allclose(task_grid.grid.affine, affine, atol=1e-9)
    assert task_grid.grid.shape == expected.shape

    labels = random.integers(0, 200, expected.shape).astype(np.uint8)
    back = ndimage.zoom(labels, np.divide(canonical.shape, labels.shape), order=0, mode="nearest")
    orientation = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(grid.affine)
    )
    full = np.zeros(SHAPE, np.uint8)
    full[box] = nib.Nifti1Image(back, canonical.affine).as_reoriented(orientation).get_fdata()
    assert np.array_equal(task_grid.back(labels), full)


def test_nothing_is_copied_or_truncated_where_the_voxels_have_the_right_size() -> None:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    grid = Grid(SHAPE, np.diag([-1.5, 1.5, 3.0, 1]))
    task_grid = TaskGrid.of(grid, (1.5, 1.5, 3.0))
    image = task_grid.image(array)
    assert not task_grid.is_resampled
    assert np.shares_memory(image, array)
    assert np.array_equal(image, array[::-1])
    assert np.array_equal(task_grid.back(np.uint8(image > 0)), array > 0)


def test_values_of_a_cropped_scan_are_truncated_even_without_resampling() -> None:
    array = np.full(SHAPE, -2.7, np.float32)
    task_grid = TaskGrid.of(Grid(SHAPE, np.eye(4)), None, (slice(0, 9), slice(0, 9), slice(0, 9)))
    assert task_grid.image(array).dtype == np.int32
    assert (task_grid.image(array) == -2).all()


def test_whole_numbers_keep_their_small_type() -> None:
    array = np.zeros(SHAPE, np.int16)
    assert TaskGrid.of(Grid(SHAPE, np.eye(4)), (2.0, 2.0, 2.0)).image(array).dtype == np.int16


def test_nothing_outside_the_part_is_labelled() -> None:
    box = (slice(3, 9), slice(0, 31), slice(4, 5))
    task_grid = TaskGrid.of(Grid(SHAPE, np.diag([1, 1, 2, 1])), (1.0, 1.0, 1.0), box)
    back = task_grid.back(np.ones(task_grid.grid.shape, np.uint8), outside=7)
    assert (back[box] == 1).all()
    assert (back == 7).sum() == back.size - back[box].size


def test_the_margin_is_cut_to_whole_voxels_in_the_precision_of_a_header() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[10:12, 15, 8] = True
    # 20 / 0.8 is 25 in double and 24.9999997 with the header's 0.8
    box = box_around(mask, Grid(SHAPE, np.diag([4.9, 0.8, 20.1, 1])), (20, 8, 20))
    assert box == (slice(6, 16), slice(6, 25), slice(8, 9))
    assert box_around(np.zeros(SHAPE, bool), Grid(SHAPE, np.eye(4)), (5, 5, 5)) is None


def test_spacing_has_the_precision_of_a_header() -> None:
    assert header_spacing(np.diag([0.8, -1.5, 3.0, 1])) == (float(np.float32(0.8)), 1.5, 3.0)
