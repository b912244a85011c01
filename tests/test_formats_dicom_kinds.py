"""Series with images of different kinds: magnitude and phase, sizes, orientations; and the names of kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.dicom.kinds import plane_of
from napari_seg.formats.find import find_scans
from napari_seg.formats.scan import Scan
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Volume


def mixed(volume: Volume, folder: Path, edit: Callable[[int, Dataset], None]) -> list[Scan]:
    """A series that holds every slice twice, the second time brighter and edited."""
    for second in (False, True):

        def both(k: int, dataset: Dataset, second: bool = second) -> None:
            dataset.SeriesInstanceUID = dataset.StudyInstanceUID = "1.2.3"
            dataset.SOPInstanceUID = generate_uid()
            if second:
                edit(k, dataset)

        brighter = Volume(volume.array + np.int16(1000 * second), volume.grid)
        write_series(brighter, folder, edit=both, file_name=f"{int(second)}-{{:04d}}")
    return find_scans(folder)


def _to_256(k: int, dataset: Dataset) -> None:
    pixels = np.kron(dataset.pixel_array, np.ones((2, 2), np.int16))
    dataset.Rows, dataset.Columns, dataset.PixelData = *pixels.shape, pixels.tobytes()
    dataset.PixelSpacing = [float(value) / 2 for value in dataset.PixelSpacing]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (["ORIGINAL", "PRIMARY", "M_FFE", "M"], ["ORIGINAL", "PRIMARY", "PHASE MAP", "P"], ["MFFE_M", "PHASEMAP_P"]),
        (["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"], ["AXIAL", "AXIAL_ADD"]),
        (["ORIGINAL", "PRIMARY", "M", "B0"], ["ORIGINAL", "PRIMARY", "B0 MAP", "B0"], ["M", "B0MAP"]),
    ],
)
def test_images_of_different_kinds_become_scans_of_their_own(
    tmp_path: Path, head: Volume, first: list[str], second: list[str], names: list[str]
) -> None:
    mixed(head, tmp_path, lambda k, dataset: setattr(dataset, "ImageType", second))
    for path in tmp_path.glob("0-*"):
        dataset = pydicom.dcmread(path)
        dataset.ImageType = first
        dataset.save_as(path)
    scans = find_scans(tmp_path)
    assert [scan.name for scan in scans] == [f"MR_T1w_sagittal_003_{name}" for name in names]
    for n, scan in enumerate(scans):
        volume = scan.read()
        assert (volume.name, len(scan.files)) == (scan.name, 14)
        assert np.array_equal(volume.array, head.array + 1000 * n)


def test_images_of_different_sizes_become_scans_of_their_own(tmp_path: Path, head: Volume) -> None:
    small, large = mixed(head, tmp_path, _to_256)
    assert (small.name, large.name) == ("MR_T1w_sagittal_003_20x26", "MR_T1w_sagittal_003_40x52")
    assert np.array_equal(small.read().array, head.array)
    assert large.read().grid.shape == (40, 52, 14)


def test_images_of_different_orientations_become_scans_of_their_own(tmp_path: Path, head: Volume) -> None:
    write_series(head, tmp_path, edit=lambda k, d: setattr(d, "SeriesInstanceUID", "1.2.3"), file_name="a{:04d}")
    grid = head.grid.reoriented("PIR")
    grid = Grid(grid.shape, grid.affine) if np.linalg.det(grid.affine[:3, :3]) > 0 else grid.mirrored(2)
    turned = Volume(resample(head.array, head.grid, grid), grid)
    write_series(turned, tmp_path, edit=lambda k, d: setattr(d, "SeriesInstanceUID", "1.2.3"), file_name="b{:04d}")
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = "1.2"
        dataset.save_as(path)
    axial, sagittal = find_scans(tmp_path)
    assert [scan.name.rsplit("_", 1)[1] for scan in (axial, sagittal)] == ["axial", "sagittal"]
    assert np.array_equal(axial.read().array, head.array)
    assert np.array_equal(sagittal.read().array, turned.array)


def test_a_kind_with_one_slice_is_refused_with_its_series(tmp_path: Path, head: Volume) -> None:
    def odd(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "P" if k == 13 else "M"]

    write_series(head, tmp_path, edit=odd)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"series\.mixed_image_type"):
        scan.read()


@pytest.mark.parametrize("is_second", [lambda k: k > 6, lambda k: k % 2, lambda k: k == 13])
def test_a_stack_that_is_derived_in_parts_is_one_volume(
    tmp_path: Path, head: Volume, is_second: Callable[[int], bool]
) -> None:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED" if is_second(k) else "ORIGINAL", "PRIMARY", "AXIAL"]

    write_series(head, tmp_path, edit=edit)
    (scan,) = find_scans(tmp_path)
    for volume in (scan.read(), scan.read(volume=0)):
        assert np.array_equal(volume.array, head.array)
        assert [notice.code for notice in volume.notices] == ["series.mixed_image_type"]


def test_a_stack_of_two_kinds_is_one_scan_of_two_volumes(tmp_path: Path, head: Volume) -> None:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "P" if k > 6 else "M"]

    write_series(head, tmp_path, edit=edit)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded, match=r"series\.mixed_image_type.*2 volumes.*M.*P.*--volume, 0 to 1"):
        scan.read()
    for volume, slices in ((0, slice(0, 7)), (1, slice(7, 14))):
        assert np.array_equal(scan.read(volume=volume).array, head.array[..., slices])


def test_one_kind_of_the_frames_in_a_file_is_chosen(tmp_path: Path, head: Volume) -> None:
    order = [*range(14), *range(14)]
    write_enhanced(head, tmp_path / "mf", order=order)
    dataset = pydicom.dcmread(tmp_path / "mf")
    for n, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.FrameType = ["ORIGINAL", "PRIMARY", "M" if n < 14 else "P", "NONE"]
        frame.MRImageFrameTypeSequence = Items([item])
    slices = [head.array[0, :, :, k].T + 1000 * (n >= 14) for n, k in enumerate(order)]
    dataset.PixelData = np.stack(slices).astype("<i2").tobytes()
    dataset.save_as(tmp_path / "mf")
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded, match=r"series\.mixed_image_type.*2 volumes.*M.*P.*--volume, 0 to 1"):
        scan.read()
    assert np.array_equal(scan.read(volume=0).array, head.array)
    assert np.array_equal(scan.read(volume=1).array, head.array + 1000)


@pytest.mark.parametrize(
    ("cosines", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0.94, -0.34], "axial"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        (None, ""),
    ],
)
def test_the_plane_of_slices_follows_from_their_directions(cosines: list[float] | None, plane: str) -> None:
    assert plane_of(cosines) == plane
