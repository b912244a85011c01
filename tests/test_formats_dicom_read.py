from __future__ import annotations

import tracemalloc
from itertools import count
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from phantoms import CANARIES, write_enhanced, write_nifti, write_series
from pydicom.dataset import Dataset
from pydicom.uid import UID, RLELossless, generate_uid

from napari_seg.errors import InputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.read import read
from napari_seg.geometry import resample
from napari_seg.volume import Volume


def refusal(folder) -> InputError:
    scans = find_scans(folder)
    assert len(scans) == 1
    with pytest.raises(InputError) as caught:
        scans[0].read()
    assert not any(canary.lower() in str(caught.value).lower() for canary in CANARIES)
    return caught.value


# what is read


def test_an_oblique_series_equals_the_nifti_file_of_the_same_head(tmp_path, head):
    write_series(head, tmp_path / "series")
    series, nifti = read(tmp_path / "series"), read(write_nifti(head, tmp_path / "head.nii.gz"))
    assert series.array.dtype == nifti.array.dtype == np.int16
    assert np.array_equal(series.array, nifti.array)
    assert np.allclose(series.grid.affine, nifti.grid.affine, rtol=0, atol=1e-4)
    assert np.allclose(series.grid.affine, head.grid.affine, rtol=0, atol=1e-4)
    assert (series.name, series.modality, series.notices) == ("MR_T1w_sagittal_003", "MR", ())


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_slices_are_ordered_by_position(tmp_path, head, order):
    k = np.arange(head.grid.shape[2])[::-1] if order == "reversed" else np.random.default_rng(0).permutation(14)

    def mislead(k, dataset):
        dataset.InstanceNumber = 1
        dataset.SliceThickness = 99

    paths = write_series(head, tmp_path, slices=k, edit=mislead)
    volume = read(tmp_path)
    assert np.array_equal(volume.array, head.array)
    assert np.allclose(volume.grid.affine, head.grid.affine, rtol=0, atol=1e-4)
    assert volume.source.files == tuple(paths[n] for n in np.argsort(k))


def test_a_series_may_run_against_its_normal(tmp_path, head):
    # Rows swapped end for end: the cross product of row and column now points down, and the array follows it.
    turned = head.grid.mirrored(1).mirrored(2)
    upside_down = phantoms.Volume(head.array[:, :, ::-1, ::-1], turned)
    write_series(upside_down, tmp_path)
    volume = read(tmp_path)
    assert volume.grid.matches(turned)
    assert np.array_equal(volume.array, upside_down.array)


def test_copies_of_an_instance_count_once(tmp_path, head):
    write_series(head, tmp_path, slices=[*range(14), 3, 3, 9])
    assert np.array_equal(read(tmp_path).array, head.array)


def test_copies_with_other_pixels_are_refused(tmp_path, head):
    paths = write_series(head, tmp_path / "original")
    (tmp_path / "packed").mkdir()
    (tmp_path / "denoised").mkdir()
    for path in paths[3:5]:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(tmp_path / "packed" / path.name)
    assert np.array_equal(read(tmp_path).array, head.array)
    dataset = pydicom.dcmread(paths[7])
    dataset.PixelData = (dataset.pixel_array // 2).tobytes()
    dataset.save_as(tmp_path / "denoised" / paths[7].name)
    error = refusal(tmp_path)
    assert error.code == "series.two_versions"
    assert "original" in error.message
    assert "denoised" in error.message
    assert np.array_equal(read(tmp_path / "original").array, head.array)


@pytest.mark.parametrize("folder", ["a", "z"])
def test_copies_that_can_not_be_decoded_are_left_out(tmp_path, head, folder):
    paths = write_series(head, tmp_path / "original")
    (tmp_path / folder).mkdir()
    for path in paths[3:5]:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.205")
        dataset.save_as(tmp_path / folder / path.name)
    volume = read(tmp_path)
    assert np.array_equal(volume.array, head.array)
    assert [notice.code for notice in volume.notices] == ["series.transfer_syntax"]
    assert f"2 copies of slices of MR_T1w_sagittal_003, such as one in {folder}," in volume.notices[0].message


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path, head):
    slopes = [0.5 + 0.01 * k for k in range(14)]
    write_series(head, tmp_path, rescale=lambda k: (slopes[k], -20.0 - k))
    volume = read(tmp_path)
    assert volume.array.dtype == np.float32
    # stored values are rounded, so each slice is right to half its slope
    off_by = np.abs(volume.array - head.array).max(axis=(0, 1, 2))
    assert (off_by <= np.array(slopes) / 2 + 1e-3).all()
    assert off_by.max() > 0


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_slices_without_the_rescaling_of_the_others_are_refused(tmp_path, head, keyword):
    def remove(k, dataset):
        if k % 2:
            delattr(dataset, keyword)

    write_series(head, tmp_path / "mixed", rescale=lambda k: (0.5, -1024.0), edit=remove)
    error = refusal(tmp_path / "mixed")
    assert error.code == "series.mixed_rescale"
    assert keyword in error.message
    write_series(head, tmp_path / "plain", edit=remove)  # without effect
    assert np.array_equal(read(tmp_path / "plain").array, head.array)


def test_a_ct_without_intercept_has_a_notice(tmp_path, head):
    def remove(k, dataset):
        dataset.Modality = "CT"
        del dataset.RescaleIntercept

    below = phantoms.Volume(head.array - 1000, head.grid)
    for name, volume, codes in (("stored", head, ["series.no_intercept"]), ("hounsfield", below, [])):
        write_series(volume, tmp_path / name, edit=remove)
        assert [notice.code for notice in read(tmp_path / name).notices] == codes


def test_whole_intercepts_keep_integers_while_they_fit(tmp_path, head):
    write_series(head, tmp_path / "fits", rescale=lambda k: (1.0, -1024.0))
    assert read(tmp_path / "fits").array.dtype == np.int16
    assert np.array_equal(read(tmp_path / "fits").array, head.array)
    far = phantoms.Volume(head.array.astype(np.int32) + 32760, head.grid)
    write_series(far, tmp_path / "far", rescale=lambda k: (1.0, 32760.0))
    assert read(tmp_path / "far").array.dtype == np.float32
    assert np.array_equal(read(tmp_path / "far").array, far.array)


def test_files_without_preamble_and_compressed_ones_are_read(tmp_path, head):
    paths = write_series(head, tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[132:])
    bare = pydicom.dcmread(paths[4])
    bare.preamble, bare.file_meta = None, pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(paths[4], bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert paths[4].read_bytes()[128:132] != b"DICM"
    packed = pydicom.dcmread(paths[5])
    packed.compress(RLELossless)
    packed.SOPInstanceUID = generate_uid()
    packed.save_as(paths[5])
    assert np.array_equal(read(tmp_path).array, head.array)


def test_an_enhanced_file_is_read_by_its_functional_groups(tmp_path, head):
    write_enhanced(head, tmp_path / "mf", order=[5, 2, 0, 1, 3, 4, 13, 12, 11, 10, 9, 8, 7, 6])
    volume = read(tmp_path)
    assert np.array_equal(volume.array, head.array)
    assert np.allclose(volume.grid.affine, head.grid.affine, rtol=0, atol=1e-4)


def test_series_in_one_study_and_one_folder_are_separate(tmp_path, head):
    other = phantoms.Volume(head.array[..., :9] * 2, head.grid.box((0, 0, 0), (20, 26, 9)))
    write_series(head, tmp_path, edit=lambda k, d: setattr(d, "StudyInstanceUID", "1.2.3"))
    write_series(
        other, tmp_path, number=4, file_name="IM-{:04d}b", edit=lambda k, d: setattr(d, "StudyInstanceUID", "1.2.3")
    )
    first, second = find_scans(tmp_path)
    assert np.array_equal(first.read().array, head.array)
    assert np.array_equal(second.read().array, other.array)


def test_positions_rounded_by_the_scanner_pass(tmp_path, head):
    def rounded(k, dataset):
        dataset.ImagePositionPatient = [round(float(v), 2) for v in dataset.ImagePositionPatient]

    write_series(head, tmp_path, edit=rounded)
    assert read(tmp_path).grid.matches(head.grid, tolerance_mm=0.02)


def test_doubts_are_reported_as_notices(tmp_path, head):
    def doubtful(k, dataset):
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.LossyImageCompression = "01"

    write_series(head, tmp_path, slices=[4, 5, 6], edit=doubtful)
    volume = read(tmp_path)
    assert [n.code for n in volume.notices] == ["geometry.few_slices", "series.monochrome1", "series.lossy"]
    assert np.array_equal(volume.array, head.array[..., 4:7])


@pytest.mark.parametrize("codes", phantoms.ORIENTATIONS)
def test_a_head_stored_in_any_order_of_axes_lies_where_it_lies(tmp_path, head, codes):
    small = phantoms.Volume(head.array[:, 4:14, 4:16, 2:10], head.grid.box((4, 4, 2), (14, 16, 10)))
    grid = small.grid.reoriented(codes)
    if np.linalg.det(grid.affine[:3, :3]) * np.linalg.det(small.grid.affine[:3, :3]) < 0:
        grid = grid.mirrored(2)  # DICOM's slices go by the cross product of columns and rows; the files go backwards
    turned = phantoms.Volume(resample(small.array, small.grid, grid), grid)
    write_series(turned, tmp_path, slices=range(grid.shape[2])[::-1])
    volume = read(tmp_path)
    assert np.array_equal(volume.array, turned.array)
    assert np.array_equal(resample(volume.array, volume.grid, small.grid), small.array)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_unused_bits_are_ignored(tmp_path, head, signed, compressed):
    values = head.array - 500 * signed
    junk = np.random.default_rng(0).integers(0, 16, head.array.shape, np.uint16) << 12

    def store(k, dataset):
        stored = np.ascontiguousarray((values[0, :, :, k].T.astype(np.uint16) & 0xFFF) | junk[0, :, :, k].T, "<u2")
        dataset.PixelData, dataset.PixelRepresentation = stored.tobytes(), 0
        if compressed:
            dataset.compress(RLELossless)
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(signed)

    write_series(head, tmp_path, edit=store)
    assert np.array_equal(read(tmp_path).array, values)


def test_eight_bits_are_read(tmp_path, head):
    def store(k, dataset):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PixelData = (head.array[0, :, :, k].T // 4).astype(np.uint8).tobytes()

    write_series(head, tmp_path, edit=store)
    volume = read(tmp_path)
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array, head.array // 4)


# what is refused


def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path, head):
    def claim(k, dataset):
        dataset.Rows = dataset.Columns = 65535
        dataset.NumberOfFrames = 1000

    write_series(head, tmp_path / "plain", slices=[0, 1], edit=claim)
    assert refusal(tmp_path / "plain").code == "file.truncated"

    def claim_compressed(k, dataset):
        dataset.compress(RLELossless)
        dataset.Rows = dataset.Columns = 65535

    write_series(head, tmp_path / "rle", slices=[0, 1, 2, 3], edit=claim_compressed)
    tracemalloc.start()
    assert refusal(tmp_path / "rle").code in ("file.truncated", "file.too_large")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_missing_slice_is_named(tmp_path, head):
    write_series(head, tmp_path, slices=[k for k in range(14) if k != 6])
    error = refusal(tmp_path)
    assert error.code == "geometry.missing_slice"
    assert "1 missing between IM-0006 and IM-0007" in error.message


def test_uneven_spacing_is_refused(tmp_path, head):
    normal = np.cross(*_cosines(head))

    def widen(k, dataset):
        dataset.ImagePositionPatient = [*(np.array(dataset.ImagePositionPatient, float) + normal * 0.04 * k**2)]

    write_series(head, tmp_path, edit=widen)
    assert refusal(tmp_path).code == "geometry.uneven_spacing"


def test_a_tilted_gantry_is_computed_from_the_positions(tmp_path, head):
    _, down = _cosines(head)

    def tilt(k, dataset):
        shift = down * 2.5 * np.tan(np.radians(14)) * k
        dataset.ImagePositionPatient = [*(np.array(dataset.ImagePositionPatient, float) + shift)]

    write_series(head, tmp_path, edit=tilt)
    error = refusal(tmp_path)
    assert error.code == "geometry.shear"
    assert "14.0 degrees" in error.message


def test_one_slice_off_the_line_is_refused(tmp_path, head):
    right, _ = _cosines(head)

    def nudge(k, dataset):
        if k == 5:
            dataset.ImagePositionPatient = [*(np.array(dataset.ImagePositionPatient, float) + right)]

    write_series(head, tmp_path, edit=nudge)
    error = refusal(tmp_path)
    assert error.code == "geometry.shear"
    assert "IM-0006" in error.message


def _renew(k, dataset):
    dataset.SOPInstanceUID = generate_uid()


def test_two_slices_at_one_position_are_refused(tmp_path, head):
    write_series(head, tmp_path, slices=[*range(14), 6], edit=_renew)
    error = refusal(tmp_path)
    assert error.code == "geometry.duplicate_position"
    assert "IM-0007" in error.message
    assert "IM-0015" in error.message


def test_all_slices_at_one_position_are_refused(tmp_path, head):
    write_series(head, tmp_path, slices=[6, 6, 6], edit=_renew)
    assert refusal(tmp_path).code == "geometry.duplicate_position"


def test_several_complete_stacks_are_refused_as_4d(tmp_path, head):
    numbers = count(1)

    def renew(k, dataset):
        _renew(k, dataset)
        dataset.InstanceNumber = next(numbers)

    write_series(head, tmp_path, slices=[*range(14), *range(14)], edit=renew)
    error = refusal(tmp_path)
    assert error.code == "series.4d"
    assert "2 complete stacks at the same 14 positions" in error.message
    assert (error.option, error.count) == ("volume", 2)


def _set(keyword, value, only=range(7, 14)):
    def edit(k, dataset):
        if k in only:
            setattr(dataset, keyword, value)

    return edit


def _halve(k, dataset):
    if k == 9:
        dataset.Rows //= 2
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


def _turn(k, dataset):
    if k == 2:
        dataset.ImageOrientationPatient = [*dataset.ImageOrientationPatient[3:], *dataset.ImageOrientationPatient[:3]]


def _cut_pixels(k, dataset):
    if k == 13:
        dataset.PixelData = dataset.PixelData[:-100]


def _forget_position(k, dataset):
    if k == 4:
        del dataset.ImagePositionPatient


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_turn, "geometry.mixed_orientation"),
        (_halve, "series.mixed_size"),
        (_set("PixelSpacing", [1.25, 1.6], only=[9]), "series.mixed_spacing"),
        (_set("ImageType", ["ORIGINAL", "PRIMARY", "P"], only=[9]), "series.mixed_image_type"),
        (_set("PhotometricInterpretation", "RGB"), "series.colour"),
        (_set("SamplesPerPixel", 3), "series.colour"),
        (_set("NumberOfFrames", 2), "file.truncated"),
        (_cut_pixels, "file.truncated"),
        (_set("RescaleSlope", 0), "file.bad_header"),
        (_forget_position, "geometry.incomplete"),
        (_set("PixelSpacing", [0, 1.5]), "geometry.incomplete"),
        (_set("ImageOrientationPatient", [1, 0, 0, 0, 2, 0]), "geometry.incomplete"),
    ],
)
def test_a_series_with_one_fault_is_refused(tmp_path, head, edit, code):
    write_series(head, tmp_path, edit=edit)
    assert refusal(tmp_path).code == code


def test_one_slice_is_no_volume(tmp_path, head):
    write_series(head, tmp_path, slices=[5])
    assert refusal(tmp_path).code == "geometry.single_slice"


def test_one_slice_of_a_known_thickness_is_read_on_request(tmp_path, head):
    def edit(k, dataset):
        dataset.SliceThickness = 2.5

    write_series(head, tmp_path / "a", slices=[5], edit=edit)
    (scan,) = find_scans(tmp_path / "a")
    found = scan.read(one_slice=True)
    assert np.array_equal(found.array[0, :, :, 0], head.array[0, :, :, 5])
    assert found.grid.matches(head.grid.box([0, 0, 5], [*head.grid.shape[:2], 6]))  # its slices are 2.5 mm apart
    write_series(head, tmp_path / "b", slices=[5])
    (scan,) = find_scans(tmp_path / "b")
    with pytest.raises(InputError, match="expected its SliceThickness"):
        scan.read(one_slice=True)


def test_a_cut_compressed_file_is_refused(tmp_path, head):
    paths = write_series(head, tmp_path)
    packed = pydicom.dcmread(paths[5])
    packed.compress(RLELossless)
    packed.save_as(paths[5])
    paths[5].write_bytes(paths[5].read_bytes()[:-300])
    error = refusal(tmp_path)
    assert error.code == "file.truncated"
    assert "IM-0006" in error.message


# privacy


def test_private_words_appear_nowhere(tmp_path, head, recwarn, caplog):
    write_series(head, tmp_path, description="Canary, TWEETY T1w can4711 at Birdhouse")
    scan = find_scans(tmp_path)[0]
    assert scan.name == "MR_T1w_at_003"
    volume = scan.read()
    seen = f"{scan.name} {volume.name} {volume.notices} {caplog.text} {[str(w.message) for w in recwarn]}".lower()
    assert not any(canary.lower() in seen for canary in CANARIES)


def test_a_series_number_that_is_the_patients_is_left_out(tmp_path, head):
    write_series(head, tmp_path, number=4711, edit=lambda k, dataset: setattr(dataset, "PatientID", "4711"))
    assert find_scans(tmp_path)[0].name == "MR_T1w_sagittal"


def _cosines(volume):
    """(2, 3) column and row direction in LPS+."""
    return volume.grid.directions[:, :2].T * np.array([-1, -1, 1])


def test_volumes_that_instance_numbers_do_not_distinguish_are_not_mixed(tmp_path, head):
    def renew(k, dataset):
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), k + 1

    write_series(head, tmp_path, slices=[*range(14), *range(14)], edit=renew)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"series\.4d.*instance numbers are equal"):
        scan.read(volume=0)


def test_text_that_is_burned_into_the_images_is_noticed(tmp_path: Path, head: Volume) -> None:
    def burn(k: int, dataset: Dataset) -> None:
        dataset.BurnedInAnnotation = "YES" if k == 3 else "NO"

    write_series(head, tmp_path, edit=burn)
    (scan,) = find_scans(tmp_path)
    assert "series.burned_in_text" in [notice.code for notice in scan.read().notices]
