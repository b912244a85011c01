"""Write label maps as the contours of an RT structure set (PS3.3 A.19)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import OutputError, without_private_text
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.dicom.contours import outlines
from napari_seg.formats.dicom.headers import quiet_pydicom
from napari_seg.formats.dicom.rtstruct import read_rtstruct
from napari_seg.formats.dicom.source import read_source
from napari_seg.formats.dicom.text import UNICODE, series_description, with_dicom_names
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.version import __version__
from napari_seg.volume import (
    BY_NAPARI_SEG,
    DicomInstance,
    LabelOrigin,
    Segment,
    Segmentation,
    SolvedStack,
    Source,
    smallest_label_type,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES_NUMBERS_AFTER = 950
"""Difference between the series number of a structure set and that of its images."""

_LPS = np.diag(RAS_FROM_LPS)[:3]
"""Signs that turn points in LPS+ into RAS+, and back."""

_OF_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Attributes that a structure set takes over from its images."""


def write_rtstruct(
    segmentation: Segmentation,
    scan: Source,
    path: Path,
    *,
    made_by: LabelOrigin = BY_NAPARI_SEG,
) -> None:
    """Write a label map as contours on the slices of its scan, or leave no file at all.

    The file gets its name, and replaces an older file, only after its contours were read back and gave the same labels.

    Args:
        segmentation: label map on the images' grid.
        scan: source of the scan; if only its files are known, all their frames count.
        path: path of the new file.
        made_by: origin of the label map; it is left out if it is not known.

    Raises:
        OutputError: `output.no_dicom`, there are no images, or they lack the identifiers that contours refer to;
            `output.not_written`; `output.not_equal`.
    """
    first, stack = read_source(scan, path.name)
    segmentation, made_by = with_dicom_names(segmentation, made_by, path.name)
    text = f"{path.name} can't be made from the headers of its images ({{kind}}); save as NIfTI or NRRD"
    plainly = without_private_text(OutputError, "output.no_dicom", text, passing=(OSError,))
    with verified_write(path, ".dcm") as hidden, quiet_pydicom(), plainly:
        dataset = _structure_set(first, stack, made_by)
        images = _images_of_slices(stack, segmentation.grid)
        for number, segment in enumerate(segmentation.segments, start=1):
            _add_structure(dataset, number, segment, segmentation, images, made_by)
        dataset.save_as(hidden, enforce_file_format=True)
        found = read_rtstruct(hidden, segmentation.grid)
        labels = [0, *(segment.label for segment in segmentation.segments)]
        if not np.array_equal(np.array(labels, smallest_label_type(max(labels)))[found.array], segmentation.array):
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with other labels; try again")


def _structure_set(first: Dataset, stack: SolvedStack, made_by: LabelOrigin) -> Dataset:
    """Return a structure set without structures.

    Args:
        first: header of the first image.
        stack: the images.
        made_by: origin of the label map.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    now = datetime.now()
    answer = Dataset()
    answer.file_meta = FileMetaDataset()
    answer.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    # an explicit VR allows 64 KiB a value, too few for the outline of a whole slice
    answer.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    for keyword in (*_OF_PATIENT_AND_STUDY, "FrameOfReferenceUID", "PositionReferenceIndicator"):
        if keyword in first:
            answer[keyword] = first[keyword]
    answer.PositionReferenceIndicator = first.get("PositionReferenceIndicator")
    answer.SpecificCharacterSet = UNICODE
    answer.SOPClassUID = RTStructureSetStorage
    answer.SOPInstanceUID = generate_uid(prefix=None)
    answer.file_meta.MediaStorageSOPInstanceUID = answer.SOPInstanceUID
    answer.SeriesInstanceUID = generate_uid(prefix=None)
    answer.SeriesNumber = int(first.get("SeriesNumber") or 0) + SERIES_NUMBERS_AFTER
    answer.Modality = "RTSTRUCT"
    answer.SeriesDescription = series_description("Contours", made_by)
    answer.OperatorsName = None
    answer.Manufacturer = "napari-seg"
    answer.ManufacturerModelName = made_by.algorithm[0] if made_by.algorithm else "napari-seg"
    answer.SoftwareVersions = __version__
    answer.StructureSetLabel = "SEGMENTATION"
    answer.StructureSetDate = answer.InstanceCreationDate = now.strftime("%Y%m%d")
    answer.StructureSetTime = answer.InstanceCreationTime = now.strftime("%H%M%S")
    answer.ApprovalStatus = "UNAPPROVED"
    answer.ReferencedFrameOfReferenceSequence = [_frame_of_reference(stack)]
    answer.StructureSetROISequence = []
    answer.ROIContourSequence = []
    answer.RTROIObservationsSequence = []
    return answer


def _frame_of_reference(stack: SolvedStack) -> Dataset:
    """Return the frame of reference with its study, series and images."""
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    series = Dataset()
    series.SeriesInstanceUID = stack.series_uid
    series.ContourImageSequence = [
        _reference(instance, frames if len(frames) < instance.frame_count else ())
        for instance, frames in zip(stack.instances, stack.frames, strict=True)
    ]
    study = Dataset()
    study.ReferencedSOPClassUID = UID("1.2.840.10008.3.1.2.3.1")  # retired, and still required by PS3.3
    study.ReferencedSOPInstanceUID = stack.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = stack.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(instance: DicomInstance, frames: Sequence[int] = ()) -> Dataset:
    """Return a reference to some frames of an image, counted from 0; to the whole image without frames."""
    from pydicom.dataset import Dataset

    answer = Dataset()
    answer.ReferencedSOPClassUID = instance.sop_class_uid
    answer.ReferencedSOPInstanceUID = instance.sop_instance_uid
    if frames:
        numbers = [frame + 1 for frame in frames]
        answer.ReferencedFrameNumber = numbers[0] if len(numbers) == 1 else numbers
    return answer


def _images_of_slices(stack: SolvedStack, grid: Grid) -> dict[int, Dataset]:
    """Return for each slice of a grid a reference to the image that lies there."""
    indices = np.rint(grid.to_index(stack.positions_mm * _LPS)[:, 2]).astype(int)
    images = {}
    for k, (file, frame) in zip(indices.tolist(), stack.slices, strict=True):
        instance = stack.instances[file]
        images[k] = _reference(instance, (frame,) if instance.frame_count > 1 else ())
    return images


def _add_structure(
    dataset: Dataset,
    number: int,
    segment: Segment,
    segmentation: Segmentation,
    images: Mapping[int, Dataset],
    made_by: LabelOrigin,
) -> None:
    """Add a segment to a structure set, with contours on every slice that has voxels of it."""
    from pydicom.dataset import Dataset

    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    region.ROIName = segment.name
    region.ROIGenerationAlgorithm = made_by.origin  # may be empty
    if made_by.algorithm is not None:
        region.ROIGenerationDescription = " ".join(made_by.algorithm).strip()[:64]
    dataset.StructureSetROISequence.append(region)
    drawn = Dataset()
    drawn.ReferencedROINumber = number
    drawn.ROIDisplayColor = list(segment.color)
    contours = [
        _contour(corners, k, segmentation.grid, images.get(k))
        for k in np.flatnonzero((segmentation.array == segment.label).any(axis=(0, 1))).tolist()
        for corners in outlines(segmentation.array[..., k] == segment.label)
    ]
    if contours:
        drawn.ContourSequence = contours
    dataset.ROIContourSequence.append(drawn)
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = "ORGAN"
    observation.ROIInterpreter = None
    dataset.RTROIObservationsSequence.append(observation)


def _contour(corners: NDArray[np.float64], k: int, grid: Grid, image: Dataset | None) -> Dataset:
    """Return a contour on slice k, whose image it refers to if there is one."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    points = grid.to_world(np.column_stack([corners, np.full(len(corners), k)])) * _LPS
    answer = Dataset()
    if image is not None:
        answer.ContourImageSequence = [image]
    answer.ContourGeometricType = "CLOSED_PLANAR"
    answer.NumberOfContourPoints = len(points)
    answer.ContourData = [format_number_as_ds(float(value)) for value in points.ravel()]
    return answer
