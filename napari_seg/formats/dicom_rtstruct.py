"""Label maps as the contours of an RT structure set (PS3.3 A.19), and back.

Contours run through the middle between voxels inside and voxels outside, so that a voxel belongs to a structure exactly
if its centre lies within. A hole is joined to the contour around it by a channel without width (the keyhole of PS3.3
C.8.8.6.3), because a contour has no holes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg import __version__
from napari_seg.errors import InputError, OutputError
from napari_seg.formats.dicom_seg import UNICODE, source_of
from napari_seg.formats.dicom_series import quiet_pydicom, read_header
from napari_seg.formats.proven import unproven
from napari_seg.geometry import Grid
from napari_seg.volume import Origin, Segment, Segmentation, distinct_color, smallest_label_type

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES_NUMBERS_AFTER = 950
"""A structure set's series number is this much above that of its images."""

PLANE_TOLERANCE = 0.06
"""How far, in slice spacings, a contour may lie from a slice's plane; slices themselves may lie 0.05 beside theirs."""

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Of the kinds of contours those that enclose voxels; points and open lines are marks."""

_LPS = np.array([-1.0, -1.0, 1.0])


def write_rtstruct(
    segmentation: Segmentation,
    images: Sequence[Path],
    path: Path,
    *,
    algorithm: tuple[str, str] = ("napari-seg", ""),
    origin: Origin = "AUTOMATIC",
) -> None:
    """Writes a label map as contours on the slices that it was made from, or leaves no file at all.

    The file gets its name, replacing one that had it, only after its contours were read back and gave the same labels.

    Args:
        segmentation: on the images' grid.
        images: the DICOM files of the series.
        path: of the file.
        algorithm: name and version of what made it.
        origin: DICOM's word for whether a person took part.

    Raises:
        OutputError: `output.no_dicom`, there are no images, or they lack the identifiers that contours refer to;
            `output.not_written`; `output.not_equal`.
    """
    sources = [source_of(Path(image)) for image in images]
    if not sources:
        raise OutputError("output.no_dicom", f"{path.name} needs the DICOM images that it belongs to; there are none")
    dataset = _structure_set(sources, algorithm)
    slices = _slices(sources, segmentation.grid)
    for number, segment in enumerate(segmentation.segments, start=1):
        _add_structure(dataset, number, segment, segmentation, slices, algorithm, origin)
    with unproven(path, ".dcm") as hidden, quiet_pydicom():
        dataset.save_as(hidden, enforce_file_format=True)
        found = read_rtstruct(hidden, segmentation.grid)
        labels = [0, *(segment.label for segment in segmentation.segments)]
        if not np.array_equal(np.array(labels, segmentation.array.dtype)[found.array], segmentation.array):
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with other labels; try again")


def read_rtstruct(path: Path, grid: Grid, only: Sequence[str] = ()) -> Segmentation:
    """The contours of a structure set as a label map, labels in the order of its regions.

    A voxel belongs to a structure if its centre lies inside an odd number of the structure's contours on its slice.

    Args:
        path: of the file.
        grid: of the scan that it was drawn on.
        only: names of the structures wanted; all if empty.

    Raises:
        InputError: `file.*`; `geometry.not_on_slices`, contours lie between the slices of the grid, or outside of it;
            `labels.overlap`, structures share voxels; `labels.unknown`, it lacks a structure that is wanted.
    """
    import pydicom

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path)
            names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in dataset.StructureSetROISequence}
            contours = {int(roi.ReferencedROINumber): roi for roi in dataset.get("ROIContourSequence") or ()}
            drawn = {n: (contours[n].get("ContourSequence") or () if n in contours else ()) for n in names}
            polygons = {
                n: [_polygon(c, grid, path) for c in some if c.get("ContourGeometricType") in _AREAS]
                for n, some in drawn.items()
                if not only or names[n] in only
            }
    except InputError:
        raise
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror or 'cut short'}") from None
    except Exception as error:  # not chained: it may quote what must stay private
        reason = type(error).__name__
        raise InputError("file.bad_header", f"{path.name} is not a usable RT structure set ({reason})") from None
    if missing := set(only) - set(names.values()):
        known = ", ".join(names.values())
        raise InputError("labels.unknown", f"{path.name} has no structure {', '.join(sorted(missing))}; it has {known}")
    array = np.zeros(grid.shape, smallest_label_type(len(names)))
    segments = []
    for label, (number, name) in enumerate(sorted(names.items()), start=1):
        if only and name not in only:
            continue
        color = contours[number].get("ROIDisplayColor") if number in contours else None
        red, green, blue = (int(value) for value in color) if color else distinct_color(label)
        segments.append(Segment(label, name or f"structure {number}", (red, green, blue)))
        for k, inside in _filled(polygons[number], grid):
            if overlap := int(np.count_nonzero(array[..., k][inside])):
                raise InputError(
                    "labels.overlap",
                    f"{segments[-1].name} shares {overlap} voxels with other structures of {path.name}, and a label "
                    "map holds one label a voxel; name the structures that are wanted",
                )
            array[..., k][inside] = label
    return Segmentation(array, grid, tuple(segments))


def _polygon(contour: Dataset, grid: Grid, path: Path) -> tuple[int, NDArray[np.float64]]:
    """The slice that a contour lies on, and its corners (N, 2) as fractional indices I and J."""
    points = np.reshape([float(value) for value in contour.ContourData], (-1, 3))
    indices = grid.to_index(points * _LPS)
    k = int(np.rint(indices[0, 2]))
    if np.abs(indices[:, 2] - k).max() > PLANE_TOLERANCE or not 0 <= k < grid.shape[2]:
        raise InputError(
            "geometry.not_on_slices",
            f"{path.name} has a contour at slice {indices[0, 2]:.2f} of {grid.shape[2]}; expected contours on the "
            "slices of the scan that it was drawn on",
        )
    return k, indices[:, :2]


def _filled(polygons: Sequence[tuple[int, NDArray[np.float64]]], grid: Grid) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """By slice where (I, J) lies inside an odd number of polygons."""
    by_slice = defaultdict(list)
    for k, corners in polygons:
        by_slice[k].append(corners)
    for k, several in sorted(by_slice.items()):
        crossings = np.zeros((grid.shape[0] + 1, grid.shape[1]), np.int32)
        for corners in several:
            _count_crossings(corners, crossings)
        yield k, np.cumsum(crossings[:-1], axis=0) % 2 == 1


def _count_crossings(corners: NDArray[np.float64], crossings: NDArray[np.int32]) -> None:
    """Adds 1 to the first voxel behind each place where a ring crosses a line of voxels along I.

    An edge counts alike in both directions, so that the two sides of a channel cancel out.

    Args:
        corners: (N, 2) of the ring.
        crossings: (I + 1, J).
    """
    ends = np.roll(corners, -1, axis=0)
    turned = corners[:, 1] > ends[:, 1]
    low, high = np.where(turned[:, None], ends, corners), np.where(turned[:, None], corners, ends)
    first, stop = (np.clip(np.ceil(side[:, 1]).astype(int), 0, crossings.shape[1]) for side in (low, high))
    edge = np.repeat(np.arange(len(low)), stop - first)
    j = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
    i = np.floor(low[edge, 0] + (j - low[edge, 1]) * slope).astype(int) + 1
    np.add.at(crossings, (np.clip(i, 0, len(crossings) - 1), j), 1)


def _structure_set(sources: Sequence[Dataset], algorithm: tuple[str, str]) -> Dataset:
    """All of a structure set but its structures."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    first = sources[0]
    now = datetime.now()
    answer = Dataset()
    answer.file_meta = FileMetaDataset()
    answer.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    answer.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
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
    answer.SeriesDescription = f"Contours by {algorithm[0]}"[:64]
    answer.OperatorsName = None
    answer.Manufacturer = "napari-seg"
    answer.ManufacturerModelName = algorithm[0][:64]
    answer.SoftwareVersions = __version__
    answer.StructureSetLabel = "SEGMENTATION"
    answer.StructureSetDate = answer.InstanceCreationDate = now.strftime("%Y%m%d")
    answer.StructureSetTime = answer.InstanceCreationTime = now.strftime("%H%M%S")
    answer.ApprovalStatus = "UNAPPROVED"
    answer.ReferencedFrameOfReferenceSequence = [_frame_of_reference(sources)]
    answer.StructureSetROISequence = []
    answer.ROIContourSequence = []
    answer.RTROIObservationsSequence = []
    return answer


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


def _frame_of_reference(sources: Sequence[Dataset]) -> Dataset:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    series = Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(source) for source in sources]
    study = Dataset()
    study.ReferencedSOPClassUID = UID("1.2.840.10008.3.1.2.3.1")  # retired, and still what PS3.3 asks for
    study.ReferencedSOPInstanceUID = sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(source: Dataset, frame: int | None = None) -> Dataset:
    from pydicom.dataset import Dataset

    answer = Dataset()
    answer.ReferencedSOPClassUID = source.SOPClassUID
    answer.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame is not None:
        answer.ReferencedFrameNumber = frame
    return answer


def _slices(sources: Sequence[Dataset], grid: Grid) -> dict[int, Dataset]:
    """By slice of the grid the image that lies there, as contours refer to it."""
    from napari_seg.formats.dicom_geometry import frames_of

    found = {}
    for source in sources:
        frames = frames_of(read_header(Path(source.filename)))
        for frame in frames:
            k = int(np.rint(grid.to_index(frame.position * _LPS)[2]))
            found[k] = _reference(source, frame.index + 1 if len(frames) > 1 else None)
    return found


def _add_structure(
    dataset: Dataset,
    number: int,
    segment: Segment,
    segmentation: Segmentation,
    slices: dict[int, Dataset],
    algorithm: tuple[str, str],
    origin: Origin,
) -> None:
    from pydicom.dataset import Dataset

    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
    region.ROIName = segment.name[:64]
    region.ROIGenerationAlgorithm = origin
    region.ROIGenerationDescription = f"{algorithm[0]} {algorithm[1]}".strip()[:64]
    dataset.StructureSetROISequence.append(region)
    drawn = Dataset()
    drawn.ReferencedROINumber = number
    drawn.ROIDisplayColor = list(segment.color)
    contours = [
        _contour(corners, k, segmentation.grid, slices.get(k))
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


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed outlines (N, 2) of a mask (I, J), as fractional indices, holes joined to what is around them.

    They run half-way between neighbours of which one is inside. Pieces that touch at a corner alone are apart.
    """
    import contourpy

    padded = np.pad(mask, 1).astype(float)
    lines = contourpy.contour_generator(z=padded.T, fill_type=contourpy.FillType.OuterOffset).filled(0.5, 2.0)
    answer = []
    for points, offsets in zip(*lines, strict=True):
        rings = [points[a : b - 1] - 1 for a, b in pairwise(offsets)]  # the last is the first
        outline = rings[0]
        for hole in sorted(rings[1:], key=lambda ring: ring[:, 0].min()):
            outline = _joined(outline, hole)
        answer.append(outline)
    return answer


def _joined(outline: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """One ring that goes around an outline and, through a channel at their nearest corners, around a hole in it."""
    from scipy.spatial import cKDTree

    distances, nearest = cKDTree(hole).query(outline)
    n = int(distances.argmin())
    start = int(nearest[n])
    return np.concatenate([outline[: n + 1], hole[start:], hole[: start + 1], outline[n:]])
