"""Several images become the channels of one case, on the grid of the first one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
from pydicom.dataset import Dataset

from napari_seg import read_channels
from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.formats.channels import in_order, joined
from napari_seg.formats.nifti import read_nifti, write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Volume


@pytest.fixture
def flair(head: Volume) -> Volume:
    """Other values than those of the head, on its grid."""
    return replace(head, array=(head.array // 2 + 5).astype(np.int16), name="flair")


def code_of(volumes: dict[str, Volume]) -> str:
    with pytest.raises(InputError) as caught:
        joined(volumes)
    return caught.value.code


def test_images_on_one_grid_are_stacked_without_a_notice(tmp_path: Path, head: Volume, flair: Volume) -> None:
    files = {"T1": tmp_path / "a.nii", "FLAIR": tmp_path / "b.nii"}
    phantoms.write_nifti(head, files["T1"])
    phantoms.write_nifti(flair, files["FLAIR"])
    found = read_channels(files)
    assert found.channel_names == ("T1", "FLAIR")
    assert found.array.dtype == np.int16
    np.testing.assert_array_equal(found.array, np.concatenate([head.array, flair.array]))
    assert found.grid.matches(head.grid)
    assert (found.name, found.source.files, found.notices) == ("a", (files["T1"],), ())


def test_the_order_is_that_of_the_model(tmp_path: Path, head: Volume, flair: Volume) -> None:
    files = {"t2-flair": tmp_path / "b.nii", "t1w": tmp_path / "a.nii"}
    phantoms.write_nifti(flair, files["t2-flair"])
    phantoms.write_nifti(head, files["t1w"])
    found = read_channels(files, order=("T1", "FLAIR"))
    assert found.channel_names == ("T1", "FLAIR")
    np.testing.assert_array_equal(found.array[0], head.array[0])
    np.testing.assert_array_equal(found.array[1], flair.array[0])
    messages = [notice.message for notice in found.notices if notice.code == "channels.synonym"]
    assert messages == ["t1w was taken for T1", "t2-flair was taken for FLAIR"]
    with pytest.raises(InputError, match="found the channel 'T1X'; did you mean T1"):
        read_channels({"T1X": files["t1w"], "FLAIR": files["t2-flair"]}, order=("T1", "FLAIR"))


def test_one_image_for_two_channels_is_reported(tmp_path: Path, head: Volume) -> None:
    phantoms.write_nifti(head, tmp_path / "a.nii")
    found = read_channels({"T1": tmp_path / "a.nii", "T1c": tmp_path / "." / "a.nii"})
    assert [notice.code for notice in found.notices] == ["channels.repeated"]
    assert "T1 and T1c" in found.notices[0].message


def test_two_volumes_of_one_file_are_two_images(head: Volume) -> None:
    source = replace(head.source, files=(Path("both.nii"),))
    one, other = replace(head, source=source), replace(head, source=source, array=head.array + 1)
    assert joined({"T1": one, "T2": other}).notices == ()
    assert [notice.code for notice in joined({"T1": one, "T2": one}).notices] == ["channels.repeated"]


def test_another_axis_order_is_only_permuted(head: Volume, flair: Volume) -> None:
    grid = flair.grid.reoriented("PSL")
    turned = replace(flair, array=resample(flair.array, flair.grid, grid), grid=grid)
    found = joined({"T1": head, "FLAIR": turned})
    np.testing.assert_array_equal(found.array[1], flair.array[0])
    assert found.array.dtype == np.int16
    assert not found.notices


def test_another_grid_is_resampled_and_reported(head: Volume) -> None:
    fine = Grid((40, 50, 40), head.grid.affine @ np.diag([0.6, 0.6, 0.4, 1]))
    ramp = fine.to_world(np.moveaxis(np.indices(fine.shape), 0, -1))[..., 2].astype(np.float32)
    found = joined({"T1": head, "FLAIR": Volume(ramp[None], fine, name="ramp")})
    assert found.grid == head.grid
    assert found.array.dtype == np.float32
    assert [notice.code for notice in found.notices] == ["channels.resampled"]
    assert "FLAIR" in found.notices[0].message
    assert "40 x 50 x 40 voxels" in found.notices[0].message
    place = (10, 12, 7)
    assert found.array[1][place] == pytest.approx(head.grid.to_world(place)[2], abs=1e-3)


def test_a_shift_below_a_voxel_is_reported_with_its_distance(head: Volume, flair: Volume) -> None:
    affine = flair.grid.affine.copy()
    affine[:3, 3] += [0.3, 0, 0.4]
    found = joined({"T1": head, "FLAIR": replace(flair, grid=Grid(flair.grid.shape, affine))})
    assert found.notices[0].code == "channels.resampled"
    assert "voxels up to 0.5 mm from those of T1" in found.notices[0].message


def test_a_partial_image_ends_with_its_lowest_value(head: Volume, flair: Volume) -> None:
    part = flair.grid.box((0, 0, 0), (20, 26, 7))
    found = joined({"T1": head, "FLAIR": replace(flair, array=flair.array[..., :7], grid=part)})
    assert [notice.code for notice in found.notices] == ["channels.partial"]
    np.testing.assert_array_equal(found.array[1, ..., :7], flair.array[0, ..., :7])
    assert (found.array[1, ..., 7:] == flair.array[..., :7].min()).all()


def test_what_can_be_no_case_is_refused(head: Volume, flair: Volume) -> None:
    far = flair.grid.affine.copy()
    far[0, 3] += 500
    assert code_of({"T1": head, "FLAIR": replace(flair, grid=Grid(flair.grid.shape, far))}) == "channels.no_overlap"
    both = replace(flair, array=np.concatenate([flair.array] * 2))
    assert code_of({"T1": head, "FLAIR": both}) == "channels.count"


def test_memory_is_checked_before_joining(tmp_path: Path, head: Volume) -> None:
    path = phantoms.write_nifti(head, tmp_path / "a.nii")
    with pytest.raises(EnvironmentFault):
        read_channels({"T1": path, "T2": path}, memory_bytes=1000)


def test_series_keep_the_source_of_the_first(tmp_path: Path, head: Volume, flair: Volume) -> None:
    phantoms.write_series(head, tmp_path / "t1", edit=in_frame("1.2.3", "A"))
    files = phantoms.write_series(flair, tmp_path / "flair", edit=in_frame("1.2.3", "A"))
    found = read_channels({"T1": tmp_path / "t1", "FLAIR": files[3]})  # one file stands for its series
    np.testing.assert_array_equal(found.array, np.concatenate([head.array, flair.array]))
    assert found.modality == "MR"
    assert found.source.format == "dicom"
    assert {file.parent.name for file in found.source.files} == {"t1"}
    assert found.source.stack is not None


def in_frame(frame: str, patient: str) -> object:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.FrameOfReferenceUID, dataset.PatientID = frame, patient

    return edit


@pytest.mark.parametrize(
    ("frame", "patient", "code"), [("1.2.4", "A", "channels.frame"), ("1.2.3", "B", "channels.patient")]
)
def test_series_of_other_frames_or_patients_are_refused(
    tmp_path: Path, head: Volume, flair: Volume, frame: str, patient: str, code: str
) -> None:
    phantoms.write_series(head, tmp_path / "t1", edit=in_frame("1.2.3", "A"))
    phantoms.write_series(flair, tmp_path / "flair", edit=in_frame(frame, patient))
    with pytest.raises(InputError) as caught:
        read_channels({"T1": tmp_path / "t1", "FLAIR": tmp_path / "flair"})
    assert caught.value.code == code


def test_a_damaged_channel_is_named(tmp_path: Path, head: Volume) -> None:
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"channel FLAIR: b\.nii\.gz") as caught:
        read_channels({"T1": phantoms.write_nifti(head, tmp_path / "a.nii"), "FLAIR": tmp_path / "b.nii.gz"})
    assert caught.value.code == "file.not_nifti"


def test_channels_are_put_into_the_order_of_a_model(head: Volume, flair: Volume) -> None:
    volume = joined({"FLAIR": flair, "T1": head})
    found = in_order(volume, ("T1", "FLAIR"))
    np.testing.assert_array_equal(found.array[0], head.array[0])
    assert found.channel_names == ("T1", "FLAIR")
    assert in_order(head, ("T1",)) is head
    found = in_order(volume, ("T1w", "FLAIR"))
    assert [notice.message for notice in found.notices] == ["T1 was taken for T1w"]
    with pytest.raises(InputError, match="the model expects T1, T2"):
        in_order(volume, ("T1", "T2"))


def test_the_volumes_of_a_4d_file_are_its_channels(tmp_path: Path, head: Volume, flair: Volume) -> None:
    both = joined({"T1": head, "FLAIR": flair})
    path = tmp_path / "both.nii.gz"
    write_volume(both, path)
    found = read_nifti(path, channels=2)
    np.testing.assert_array_equal(found.array, both.array)
    assert found.grid.matches(head.grid)
    np.testing.assert_array_equal(read(path, channels=2).array, both.array)
    np.testing.assert_array_equal(read_nifti(path, volume=1, channels=2).array, flair.array)
    with pytest.raises(InputError, match="holds 2 volumes; expected 4") as caught:
        read_nifti(path, channels=4)
    assert caught.value.code == "channels.count"
    assert read_nifti(phantoms.write_nifti(head, tmp_path / "a.nii"), channels=4).array.shape[0] == 1


def test_scaled_4d_files_are_scaled_in_every_channel(tmp_path: Path) -> None:
    image = nibabel.nifti1.Nifti1Image(np.arange(2 * 3 * 4 * 2, dtype=np.int16).reshape(2, 3, 4, 2), np.eye(4))
    image.header.set_slope_inter(0.5, 1)
    nibabel.loadsave.save(image, tmp_path / "scaled.nii")
    expected = np.moveaxis(np.asarray(nibabel.loadsave.load(tmp_path / "scaled.nii").dataobj), -1, 0)
    np.testing.assert_allclose(read_nifti(tmp_path / "scaled.nii", channels=2).array, expected)
