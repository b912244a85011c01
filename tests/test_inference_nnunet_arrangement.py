"""Order and direction of the axes, and voxel sizes, as nnU-Net's readers return them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunet_models import resolved

from napari_seg.formats.nifti import read_nifti
from napari_seg.geometry import RAS_FROM_LPS, Grid, resample
from napari_seg.inference.nnunet.arrangement import arranged_grid, arranged_spacing, network_spacing, viewed
from napari_seg.volume import Source, Volume

TURNED = np.array([[0, -1.1, 0, 3], [0, 0, 0.9, -20], [-1.3, 0, 0, 7], [0, 0, 0, 1.0]])


def volume_of(affine: np.ndarray, shape: tuple[int, int, int] = (6, 5, 4), source: Source | None = None) -> Volume:
    array = np.random.default_rng(0).integers(-500, 500, (1, *shape)).astype(np.int16)
    return Volume(array, Grid(shape, affine), source=source or Source())


def shown(volume: Volume, **changes: object) -> np.ndarray:
    return viewed(volume.array, volume.grid, arranged_grid(volume, resolved(**changes)))[0]


def test_axes_come_as_simpleitk_reads_them(tmp_path: Path) -> None:
    volume = volume_of(TURNED)
    nibabel.save(nibabel.Nifti1Image(volume.array[0], TURNED), tmp_path / "a.nii")
    image = SimpleITK.ReadImage(str(tmp_path / "a.nii"))
    found = shown(volume)
    assert found.base is not None
    assert np.array_equal(found, SimpleITK.GetArrayFromImage(image))
    assert np.allclose(arranged_spacing(volume, resolved()), image.GetSpacing()[::-1])
    turned = shown(volume, transpose=(2, 0, 1))
    assert np.array_equal(turned, SimpleITK.GetArrayFromImage(image).transpose(2, 0, 1))


@pytest.mark.parametrize("reader", ["SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_readers_that_reorient_bring_it_to_ras(tmp_path: Path, reader: str) -> None:
    volume = volume_of(TURNED)
    nibabel.save(nibabel.Nifti1Image(volume.array[0], TURNED), tmp_path / "a.nii")
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "a.nii")), "RAS")
    assert np.array_equal(shown(volume, reader=reader), SimpleITK.GetArrayFromImage(image))
    canonical = nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii"))
    assert np.array_equal(shown(volume, reader=reader), np.asarray(canonical.dataobj).transpose(2, 1, 0))
    assert np.allclose(arranged_spacing(volume, resolved(reader=reader)), image.GetSpacing()[::-1])


def test_the_grid_tells_where_the_voxels_are() -> None:
    volume = volume_of(TURNED)
    for reader in ("SimpleITKIO", "NibabelIOWithReorient"):
        grid = arranged_grid(volume, resolved(reader=reader, transpose=(1, 2, 0)))
        assert np.array_equal(viewed(volume.array, volume.grid, grid), resample(volume.array, volume.grid, grid))
        part = grid.box((1, 0, 2), (4, 3, 4))
        assert np.array_equal(viewed(volume.array, volume.grid, part), resample(volume.array, volume.grid, part))


def test_voxel_sizes_are_those_of_the_header(tmp_path: Path) -> None:
    # a rotated affine does not have columns of exactly that length
    turn = np.radians(20)
    directions = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    for sizes in ((0.7, 0.7, 5.0), (0.9765625, 0.48828125, 1.1), (1 / 3, 0.8, 3.0)):
        affine = np.eye(4)
        affine[:3, :3] = directions * sizes
        nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.int16), affine), tmp_path / "a.nii")
        image = SimpleITK.ReadImage(str(tmp_path / "a.nii"))
        volume = read_nifti(tmp_path / "a.nii")
        assert arranged_spacing(volume, resolved()) == pytest.approx(image.GetSpacing()[::-1], rel=1e-7)
    exact = volume_of(affine, source=Source("itk"))
    assert arranged_spacing(exact, resolved())[:2] == (3.0, 0.8)
    # 5 voxels of 0.7 mm become 3.5 of 1 mm: as float32 that is below a half
    affine = np.diag([0.7, 1, 1, 1])
    assert round(5 * arranged_spacing(volume_of(affine), resolved())[2]) == 3
    assert round(5 * arranged_spacing(volume_of(affine, source=Source("itk")), resolved())[2]) == 4


def test_planes_of_2d_images_are_far_from_each_other() -> None:
    image = volume_of(RAS_FROM_LPS, (6, 5, 1), Source("image2d"))
    found = resolved(patch_size=(8, 8), spacing_mm=(2.0, 2.0))
    assert shown(image).shape == (1, 5, 6)
    assert arranged_spacing(image, found) == (999, 1, 1)
    assert network_spacing(found, (999, 1, 1)) == (999, 2, 2)
