"""Series that hold more than one plain volume: mosaics, magnitude and phase, reformatted planes, foreign objects."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_enhanced, write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, RawDataStorage, SecondaryCaptureImageStorage, generate_uid

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats import Scan, find, find_scans
from napari_seg.formats.label_maps import read_label_map, write_label_map
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segment, Segmentation, Volume

# mosaics


def csa_header(slices: int | None, normal: np.ndarray | None) -> bytes:
    """The part of Siemens' private header (version 2) that describes a mosaic."""
    tags = []
    if slices is not None:
        tags.append(("NumberOfImagesInMosaic", b"US  ", [f"{slices}"]))
    if normal is not None:
        tags.append(("SliceNormalVector", b"FD  ", [f"{value:.8f}" for value in normal]))
    answer = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, kind, values in tags:
        answer += struct.pack("<64si4siii", name.encode(), len(values), kind, 0, len(values), 77)
        for value in values:
            text = value.encode() + b"\0" * (-len(value) % 4)
            answer += struct.pack("<4i", len(value), len(value), 77, len(value)) + text
    return answer


def write_mosaic(
    volume: Volume,
    path: Path,
    *,
    is_reversed: bool = False,
    number: int = 1,
    edit: Callable[[Dataset], None] = lambda dataset: None,
    csa: Callable[[int, np.ndarray], bytes | None] = csa_header,
) -> None:
    """A volume as one image of 4 x 4 tiles; reversed: the last slice first."""
    write_series(volume, path.parent, slices=[0], file_name=path.name)
    dataset = pydicom.dcmread(path)
    columns, rows, count = volume.grid.shape
    order = list(range(count))[:: -1 if is_reversed else 1]
    pixels = np.zeros((4 * rows, 4 * columns), np.int16)
    for n, k in enumerate(order):
        pixels[n // 4 * rows :, n % 4 * columns :][:rows, :columns] = volume.array[0, :, :, k].T
    to_lps = np.array([-1, -1, 1])
    # the mosaic's corner: the first slice, grown around its centre
    corner = volume.grid.to_world((-1.5 * columns, -1.5 * rows, order[0])) * to_lps
    normal = volume.grid.directions[:, 2] * to_lps * (-1 if is_reversed else 1)
    dataset.ImagePositionPatient = [round(float(value), 6) for value in corner]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.SpacingBetweenSlices, dataset.SliceThickness = volume.grid.spacing_mm[2], 1.0
    dataset.Rows, dataset.Columns, dataset.PixelData = *pixels.shape, pixels.astype("<i2").tobytes()
    dataset.InstanceNumber = dataset.AcquisitionNumber = number
    dataset.SeriesInstanceUID = dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = "1.2.3"
    dataset.SOPInstanceUID = generate_uid()
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    if (header := csa(count, normal)) is not None:
        dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    edit(dataset)
    dataset.save_as(path)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_mosaic_becomes_slices_that_lie_right(tmp_path: Path, head: Volume, is_reversed: bool) -> None:
    write_mosaic(head, tmp_path / "m.dcm", is_reversed=is_reversed)
    (scan,) = find_scans(tmp_path)
    volume = scan.read()
    assert volume.grid.matches(head.grid)
    assert np.array_equal(volume.array, head.array)
    assert not volume.notices


def test_several_mosaics_are_the_volumes_of_one_scan(tmp_path: Path, head: Volume) -> None:
    for time in (0, 1, 2):
        brighter = Volume(head.array + np.int16(1000 * time), head.grid)
        write_mosaic(brighter, tmp_path / f"{5 - time}.dcm", number=time + 1)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded, match="AcquisitionNumber 1, 2, 3"):
        scan.read()
    for time in (0, 1, 2):
        assert np.array_equal(scan.read(volume=time).array, head.array + 1000 * time)


@pytest.mark.parametrize(
    ("csa", "edit"),
    [
        (lambda count, normal: None, lambda dataset: None),
        (lambda count, normal: csa_header(count, None), lambda dataset: None),
        (lambda count, normal: csa_header(count + 1, normal), lambda dataset: None),
        (lambda count, normal: csa_header(count, normal[::-1]), lambda dataset: None),
        (lambda count, normal: csa_header(count, normal)[:100], lambda dataset: None),
        (
            csa_header,
            lambda dataset: dataset.__delattr__("SpacingBetweenSlices") or dataset.__delattr__("SliceThickness"),
        ),
    ],
    ids=["no CSA", "no normal", "counts differ", "other normal", "cut", "no spacing"],
)
def test_a_mosaic_that_does_not_say_how_it_is_stacked_is_refused(
    tmp_path: Path, head: Volume, csa: Callable[[int, np.ndarray], bytes | None], edit: Callable[[Dataset], None]
) -> None:
    write_mosaic(head, tmp_path / "m.dcm", csa=csa, edit=edit)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError) as caught:
        scan.read()
    assert caught.value.code in ("series.mosaic", "file.bad_header")


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_labels_of_a_mosaic_become_dicom(tmp_path: Path, head: Volume, kind: str) -> None:
    write_mosaic(head, tmp_path / "m" / "m.dcm")
    (scan,) = find_scans(tmp_path / "m")
    volume = scan.read()
    labels = Segmentation((volume.array[0] > 500).astype(np.uint8), volume.grid, (Segment(1, "left", (255, 0, 0)),))
    path = tmp_path / "labels.dcm"
    write_label_map(labels, path, scan=volume.source, dicom=kind)  # type: ignore[arg-type]
    assert np.array_equal(read_label_map(path, volume.grid).array, labels.array)


# images of different kinds in one series


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


def test_two_patients_are_two_scans_whatever_their_series_is_called(tmp_path: Path, head: Volume) -> None:
    def name_patient(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3", "A" if k < 8 else "B"

    count = len(write_series(head, tmp_path, edit=name_patient))
    assert [len(scan.files) for scan in find_scans(tmp_path)] == [8, count - 8]


def test_a_kind_with_one_slice_is_refused_with_its_series(tmp_path: Path, head: Volume) -> None:
    def odd(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "P" if k == 13 else "M"]

    write_series(head, tmp_path, edit=odd)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"series\.mixed_image_type"):
        scan.read()


def test_kinds_of_frames_in_one_file_are_chosen_among(tmp_path: Path, head: Volume) -> None:
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


# what is no image


def write_object(path: Path, sop_class: str, **values: object) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("sop_class", "code"),
    [
        (RawDataStorage, "skip.not_intensities"),
        ("1.3.46.670589.11.0.0.12.1", "skip.not_intensities"),  # private, of Philips
        ("1.2.840.10008.5.1.4.1.1.4", "skip.not_intensities"),  # an MR image in name alone
        ("1.2.840.10008.5.1.4.1.1.4.2", "skip.not_intensities"),  # spectroscopy
        (SecondaryCaptureImageStorage, "skip.no_geometry"),
    ],
)
def test_what_has_no_pixels_or_no_place_is_left_out_of_a_series(
    tmp_path: Path, head: Volume, sop_class: str, code: str
) -> None:
    paths = write_series(head, tmp_path)
    first = pydicom.dcmread(paths[0])
    shared = {keyword: first[keyword].value for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Modality")}
    captured = {"PhotometricInterpretation": "RGB", "BitsAllocated": 8, "SamplesPerPixel": 3, "PixelData": b"\0" * 12}
    extra = captured if sop_class == SecondaryCaptureImageStorage else {}
    write_object(tmp_path / "XX_0001", sop_class, Rows=2, Columns=2, **shared, **extra)
    found = find(tmp_path)
    assert [(len(scan.files), scan.name) for scan in found.scans] == [(14, "MR_T1w_sagittal_003")]
    assert [one.code for one in found.skipped] == [code]
    assert np.array_equal(found.scans[0].read().array, head.array)


def test_an_image_whose_pixels_were_cut_off_is_refused(tmp_path: Path, head: Volume) -> None:
    paths = write_series(head, tmp_path)
    data = paths[13].read_bytes()
    paths[13].write_bytes(data[: data.rindex(b"\xe0\x7f\x10\x00OW")])
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"file\.truncated"):
        scan.read()


def test_a_directory_of_a_disk_is_no_scan(tmp_path: Path, head: Volume) -> None:
    write_series(head, tmp_path / "IMAGES")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.FileSetID = "DISK"
    dataset.DirectoryRecordSequence = []
    for name in ("DICOMDIR", "anything.dcm"):
        pydicom.dcmwrite(tmp_path / name, dataset, enforce_file_format=True)
    found = find(tmp_path)
    assert len(found.scans) == 1
    assert [one.code for one in found.skipped] == ["skip.not_an_image"] * 2


# nuclear medicine


@pytest.mark.parametrize("sign", [1, -1])
def test_slices_of_nuclear_medicine_follow_from_a_step(tmp_path: Path, head: Volume, sign: int) -> None:
    write_nuclear(head, tmp_path / "nm", sign)
    (scan,) = find_scans(tmp_path)
    volume = scan.read()
    assert volume.grid.matches(head.grid)
    assert np.array_equal(volume.array, head.array)


def test_gates_of_nuclear_medicine_are_volumes(tmp_path: Path, head: Volume) -> None:
    write_nuclear(head, tmp_path / "nm", 1, gates=2)
    (scan,) = find_scans(tmp_path)
    with pytest.raises(ChoiceNeeded, match="TimeSlotVector 1, 2"):
        scan.read()
    for gate in (0, 1):
        assert np.array_equal(scan.read(volume=gate).array, head.array + 1000 * gate)


def test_nuclear_medicine_without_a_step_is_refused(tmp_path: Path, head: Volume) -> None:
    write_nuclear(head, tmp_path / "nm", 1)
    dataset = pydicom.dcmread(tmp_path / "nm")
    del dataset.SpacingBetweenSlices
    dataset.save_as(tmp_path / "nm")
    (scan,) = find_scans(tmp_path)
    with pytest.raises(InputError, match=r"geometry\.incomplete"):
        scan.read()


def write_nuclear(volume: Volume, path: Path, sign: int, gates: int = 1) -> None:
    """One NM file whose first slice is the lowest or, with a negative step, the highest."""
    order = [(gate, k) for k in range(14) for gate in range(gates)]
    first = 0 if sign > 0 else 13
    write_series(volume, path.parent, slices=[first], file_name=path.name)
    dataset = pydicom.dcmread(path)
    detector = Dataset()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        setattr(detector, keyword, dataset[keyword].value)
        delattr(dataset, keyword)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.20", "NM"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    dataset.DetectorInformationSequence = [detector]
    dataset.SpacingBetweenSlices = sign * volume.grid.spacing_mm[2]
    dataset.SliceThickness = volume.grid.spacing_mm[2]
    dataset.NumberOfFrames = len(order)
    dataset.SliceVector = [k + 1 if sign > 0 else 14 - k for _, k in order]
    if gates > 1:
        dataset.TimeSlotVector = [gate + 1 for gate, _ in order]
    pixels = np.stack([volume.array[0, :, :, k].T + 1000 * gate for gate, k in order])
    dataset.PixelData = pixels.astype("<i2").tobytes()
    dataset.save_as(path)
