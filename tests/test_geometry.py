"""Grid and resample, against numbers worked out by hand and against scipy-free references."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from phantoms import ORIENTATIONS, rotation

from napari_seg.errors import InputError
from napari_seg.geometry import Grid, is_same_lattice, resample


def oblique_grid() -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(7, -11, 5) * [0.8, 1.5, 3.0]
    affine[:3, 3] = [-40.0, 12.0, -7.0]
    return Grid((12, 9, 5), affine)


def lps_grid() -> Grid:
    return Grid((4, 3, 2), np.array([[-2.0, 0, 0, 10], [0, -3.0, 0, 20], [0, 0, 4.0, -5], [0, 0, 0, 1]]))


def test_what_a_grid_says_of_itself() -> None:
    grid = lps_grid()
    assert grid.spacing_mm == (2.0, 3.0, 4.0)
    assert grid.orientation == "LPS"
    assert grid.voxel_ml == pytest.approx(0.024)
    assert grid.size_mm == (8.0, 9.0, 8.0)
    np.testing.assert_allclose(grid.center_mm, [10 - 2 * 1.5, 20 - 3 * 1, -5 + 4 * 0.5])
    np.testing.assert_allclose(grid.to_world([1, 2, 1]), [8, 14, -1])
    np.testing.assert_allclose(grid.to_index([8, 14, -1]), [1, 2, 1])
    assert grid.corners_mm.shape == (8, 3)
    np.testing.assert_allclose(grid.corners_mm[-1], [4, 14, -1])


def test_contains_counts_the_outer_half_voxel() -> None:
    grid = lps_grid()
    np.testing.assert_array_equal(grid.contains([[10.9, 20, -5], [11.1, 20, -5], [10, 20, -6.9]]), [True, False, True])


def test_world_and_index_undo_each_other_when_oblique() -> None:
    grid = oblique_grid()
    indices = np.random.default_rng(0).uniform(-3, 20, (50, 3))
    np.testing.assert_allclose(grid.to_index(grid.to_world(indices)), indices, atol=1e-9)


def test_equal_grids_hash_alike_and_cannot_be_changed() -> None:
    assert lps_grid() == lps_grid()
    assert hash(lps_grid()) == hash(lps_grid())
    with pytest.raises(ValueError, match="read-only"):
        lps_grid().affine[0, 0] = 5


@pytest.mark.parametrize(
    ("affine", "code"),
    [
        (np.diag([1.0, 1, np.nan, 1]), "geometry.affine"),
        (np.diag([1.0, 1, 0, 1]), "geometry.affine"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "geometry.affine"),
        (np.array([[1.0, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "geometry.shear"),
    ],
)
def test_an_affine_that_is_no_geometry_is_refused(affine: np.ndarray, code: str) -> None:
    with pytest.raises(InputError) as caught:
        Grid((4, 4, 4), affine)
    assert caught.value.code == code


def test_an_empty_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"geometry\.shape"):
        Grid((4, 0, 4), np.eye(4))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reoriented_holds_the_same_voxels(orientation: str) -> None:
    grid = oblique_grid()
    turned = grid.reoriented(orientation)
    assert turned.orientation == orientation
    key = lambda points: sorted(map(tuple, np.round(points, 6)))  # noqa: E731
    assert key(turned.corners_mm) == key(grid.corners_mm)
    array = np.arange(np.prod(grid.shape), dtype=np.int16).reshape(grid.shape)
    there = resample(array, grid, turned)
    assert there.dtype == np.int16
    # one marked voxel stands at the same place in the world
    spot = np.unravel_index(int(np.flatnonzero(there.ravel() == 123)[0]), there.shape)
    np.testing.assert_allclose(turned.to_world(spot), grid.to_world(np.unravel_index(123, grid.shape)), atol=1e-9)
    np.testing.assert_array_equal(resample(there, turned, grid), array)


def test_axes_of_any_rotation_are_those_of_nibabel() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        affine = np.eye(4)
        affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.5, 3, 3)
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine))
        turned = Grid((4, 5, 6), affine).reoriented("RAS")
        assert turned.shape == canonical.shape
        assert np.allclose(turned.affine, canonical.affine)
        assert turned.orientation == "RAS"


def test_reoriented_refuses_letters_that_are_no_orientation() -> None:
    with pytest.raises(InputError, match=r"geometry\.orientation"):
        oblique_grid().reoriented("RRS")


def test_mirrored_samples_the_mirror_image() -> None:
    grid = oblique_grid()
    array = np.random.default_rng(1).normal(size=grid.shape).astype(np.float32)
    np.testing.assert_array_equal(resample(array, grid, grid.mirrored(0)), array[::-1])
    assert np.linalg.det(grid.mirrored(0).affine) < 0 < np.linalg.det(grid.affine)
    assert grid.mirrored(1).mirrored(1).matches(grid, 1e-9)


def test_box_crops_and_reaches_outside() -> None:
    grid = lps_grid()
    array = np.arange(24, dtype=np.uint8).reshape(grid.shape)
    box = grid.box((1, -1, 0), (3, 2, 2))
    assert box.shape == (2, 3, 2)
    np.testing.assert_allclose(box.affine[:3, 3], [8, 23, -5])
    inner = resample(array, grid, box, outside=99)
    np.testing.assert_array_equal(inner[:, 1:], array[1:3, :2])
    assert (inner[:, 0] == 99).all()
    np.testing.assert_array_equal(resample(array, grid, box)[:, 0], array[1:3, 0])


def test_around_places_a_box_by_its_middle() -> None:
    box = Grid.around((-27, -21, -14), (40, 56, 40), (1, 1, 1))
    assert box.shape == (40, 56, 40)
    np.testing.assert_allclose(box.center_mm, [-27, -21, -14])
    assert Grid.around((0, 0, 0), (4.1, 4, 4), (2, 2, 2)).shape == (3, 2, 2)


def test_linear_resampling_of_a_linear_field_is_exact() -> None:
    source, target = oblique_grid(), Grid.around(oblique_grid().center_mm, (5, 5, 5), (0.7, 0.9, 1.1))

    def field(grid: Grid) -> np.ndarray:
        points = grid.to_world(np.stack(np.indices(grid.shape), axis=-1))
        return points @ [0.3, -0.2, 0.5] + 4

    answer = resample(field(source).astype(np.float32), source, target)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, field(target), atol=1e-4)


def test_labels_keep_their_type_and_values() -> None:
    source = oblique_grid()
    labels = (np.indices(source.shape)[0] > 5).astype(np.uint8) * 7
    target = Grid.around(source.center_mm, (8, 8, 8), (0.5, 0.5, 0.5))
    answer = resample(labels, source, target, order=0, outside=0)
    assert answer.dtype == np.uint8
    assert set(np.unique(answer)) == {0, 7}


def test_channels_are_resampled_alike() -> None:
    source, target = lps_grid(), Grid.around(lps_grid().center_mm, (4, 4, 4), (1, 1, 1))
    array = np.random.default_rng(2).normal(size=(2, *source.shape)).astype(np.float32)
    both = resample(array, source, target)
    np.testing.assert_array_equal(both[1], resample(array[1], source, target))


def test_a_shift_of_a_third_of_a_voxel_is_no_whole_voxel_shift() -> None:
    grid = lps_grid()
    shifted = Grid(grid.shape, grid.affine + np.array([[0, 0, 0, 0.7], [0] * 4, [0] * 4, [0] * 4]))
    assert not is_same_lattice(grid, shifted)
    assert is_same_lattice(grid, grid.box((-3, 2, 5), (1, 4, 9)).mirrored(2))


def test_array_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"geometry\.shape"):
        resample(np.zeros((2, 2, 2)), lps_grid(), lps_grid())


def test_grids_of_voxels_in_nanometres_match_only_if_their_voxels_do() -> None:
    grid = Grid((30, 20, 10), np.diag([1e-5, 1e-5, 2.5e-5, 1]))
    rounded = Grid(grid.shape, grid.affine.astype(np.float32))
    assert grid.matches(rounded)
    assert not grid.matches(grid.mirrored(2))
    assert not grid.matches(grid.box((1, 0, 0), (31, 20, 10)))
