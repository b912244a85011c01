"""Files that are left out of a series, and files of two patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RawDataStorage, SecondaryCaptureImageStorage, generate_uid

from napari_seg.errors import InputError
from napari_seg.formats.find import find, find_scans
from napari_seg.volume import Volume


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
def test_objects_without_pixels_or_geometry_are_left_out_of_a_series(
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


def test_a_dicomdir_is_no_scan(tmp_path: Path, head: Volume) -> None:
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


def test_two_patients_are_two_scans_whatever_their_series_is_called(tmp_path: Path, head: Volume) -> None:
    def name_patient(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3", "A" if k < 8 else "B"

    count = len(write_series(head, tmp_path, edit=name_patient))
    assert [len(scan.files) for scan in find_scans(tmp_path)] == [8, count - 8]
