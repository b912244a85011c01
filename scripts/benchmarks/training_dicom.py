"""Data sets of DICOM series with SEG or RTSTRUCT, for `scripts/training_kinds.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmarks.training_sets import PARTS, DataSet, Scan, Scans, crops, of_crops, with_data

_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Axial slices of 1 mm: columns run to the left, rows to the back."""


def write_dicom_seg(scans: Scans, root: Path) -> DataSet:
    """Write series with a SEG each, in folders that are called after patients."""
    return _write(scans, root, "seg")


def write_dicom_rtstruct(scans: Scans, root: Path) -> DataSet:
    """Write series with an RTSTRUCT each, in folders that are called after patients."""
    return _write(scans, root, "rtstruct")


def _write(scans: Scans, root: Path, kind: str) -> DataSet:
    from napari_seg.formats.kinds import write_label_map
    from napari_seg.formats.read import read
    from napari_seg.volume import Segment, Segmentation

    segments = tuple(Segment(n, name, (80 * n, 60, 200)) for n, name in enumerate(PARTS, 1))
    cases = [replace(scan, affine=_AFFINE, image=_as_stored(scan)) for scan in crops(scans)]
    series = root
    for number, (scan, folder) in enumerate(with_data(root, cases)):
        patient = folder / f"Smith{number}^Jane"
        series = write_series(scan, patient / "series", f"ID{number}777", patient.name)
        if folder.name == "data":
            volume = read(series)
            segmentation = Segmentation(scan.labels, volume.grid, segments)
            file = patient / f"{kind}.dcm"
            write_label_map(segmentation, file, scan=volume.source, dicom="seg" if kind == "seg" else "rtstruct")
    return of_crops(root, cases, [series])


def _as_stored(scan: Scan) -> np.ndarray:
    return np.clip(scan.image / max(1.0, float(scan.image.max())) * 1000, 0, 30000).astype(np.int16)


def write_series(scan: Scan, folder: Path, patient_id: str, patient_name: str) -> Path:
    """Write an axial MR series and return its folder.

    Args:
        scan: whole numbers, on axial slices of 1 mm.
        folder: created if missing.
        patient_id: PatientID.
        patient_name: PatientName.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(scan.image.shape[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.PatientID, slice_.PatientName = patient_id, patient_name
        slice_.Modality, slice_.SeriesDescription, slice_.SeriesNumber = "MR", "T1w", 2
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        slice_.InstanceNumber = k + 1
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 1
        pixels = np.ascontiguousarray(scan.image[..., k].T, dtype="<i2")
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 1
        slice_.PixelData = pixels.tobytes()
        slice_.save_as(folder / f"IM-{k:04d}", enforce_file_format=True)
    return folder
