"""Label maps as the contours of an RT structure set (PS3.3 A.19), and back.

What contours enclose is decided in `contours`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, OutputError, told_plainly
from napari_seg.formats.atomic import unproven
from napari_seg.formats.dicom.contours import enclosed, enclosed_by_odd, outlines
from napari_seg.formats.dicom.headers import file_label, quiet_pydicom, read_header, read_object
from napari_seg.formats.dicom.seg import UNICODE, source_of
from napari_seg.formats.dicom.text import dicom_text, with_dicom_names
from napari_seg.geometry import Grid
from napari_seg.version import __version__
from napari_seg.volume import Origin, Segment, Segmentation, Source, distinct_color, smallest_label_type

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES_NUMBERS_AFTER = 950
"""A structure set's series number is this much above that of its images."""

PLANE_TOLERANCE = 0.06
"""How far, in slice spacings, a contour may lie from a slice's plane; slices themselves may lie 0.05 beside theirs."""

ROUNDED_MM = 0.06
"""How much farther: many programs round coordinates to 0.1 mm."""

MAX_PLANE_TOLERANCE = 0.3
"""How far it may lie at most, in slice spacings, so that there is no doubt which slice is meant."""

BEYOND_VOXELS = 1.0
"""How far a contour may reach beyond the scan without a remark."""

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
"""Of the kinds of contours those that enclose voxels; points and open lines are marks."""

_LPS = np.array([-1.0, -1.0, 1.0])


def write_rtstruct(
    segmentation: Segmentation,
    scan: Source,
    path: Path,
    *,
    algorithm: tuple[str, str] = ("napari-seg", ""),
    origin: Origin = "AUTOMATIC",
) -> None:
    """Writes a label map as contours on the slices that it was made from, or leaves no file at all.

    The file gets its name, replacing one that had it, only after its contours were read back and gave the same labels.

    Args:
        segmentation: on the images' grid.
        scan: the images that the labels refer to; without a stack, all frames of its files.
        path: of the file.
        algorithm: name and version of what made it.
        origin: DICOM's word for whether a person took part.

    Raises:
        OutputError: `output.no_dicom`, there are no images, or they lack the identifiers that contours refer to;
            `output.not_written`; `output.not_equal`.
    """
    frames = scan.stack.frames if scan.stack is not None else ()
    sources = [source_of(image) for image in (scan.files if scan.format == "dicom" else ())]
    if not sources:
        raise OutputError("output.no_dicom", f"{path.name} needs the DICOM images that it belongs to; there are none")
    segmentation, algorithm = with_dicom_names(segmentation, algorithm, path.name)
    text = f"{path.name} can't be made from the headers of its images ({{kind}}); save as NIfTI or NRRD"
    plainly = told_plainly(OutputError, "output.no_dicom", text, passing=(OSError,))
    with unproven(path, ".dcm") as hidden, quiet_pydicom(), plainly:
        dataset = _structure_set(sources, frames, algorithm)
        slices = _slices(sources, frames, segmentation.grid)
        for number, segment in enumerate(segmentation.segments, start=1):
            _add_structure(dataset, number, segment, segmentation, slices, algorithm, origin)
        dataset.save_as(hidden, enforce_file_format=True)
        found = read_rtstruct(hidden, segmentation.grid)
        labels = [0, *(segment.label for segment in segmentation.segments)]
        if not np.array_equal(np.array(labels, segmentation.array.dtype)[found.array], segmentation.array):
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with other labels; try again")


def read_rtstruct(path: Path, grid: Grid, only: Sequence[str] = (), *, extend: bool = False) -> Segmentation:
    """Read the contours of a structure set as a label map, labels in the order of its regions.

    A voxel belongs to a structure if its centre lies inside the structure's contours on its slice, see
    `contours.enclosed`; where a structure is of the kind CLOSEDPLANAR_XOR, inside an odd number of them.

    Args:
        path: the file.
        grid: grid of the scan that it was drawn on.
        only: names of the structures wanted; all if empty.
        extend: enlarge the grid by whole voxels where contours reach beyond it.

    Raises:
        InputError: `file.*`; `geometry.not_on_slices`, contours lie between the slices of the grid, or outside of it;
            `labels.overlap`, structures share voxels; `labels.unknown`, it lacks a structure that is wanted.
    """
    dataset, file_name = read_object(path), file_label(path)
    text = f"{file_name} is not a usable RT structure set ({{kind}})"
    with quiet_pydicom(), told_plainly(InputError, "file.bad_header", text):
        names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in dataset.StructureSetROISequence}
        drawn: dict[int, list[Dataset]] = {n: [] for n in names if not only or names[n] in only}
        for item in dataset.get("ROIContourSequence") or ():  # some programs write several of one structure
            if int(item.ReferencedROINumber) in drawn:
                drawn[int(item.ReferencedROINumber)].append(item)
        contours = {n: [one for item in items for one in _contours(item, grid)] for n, items in drawn.items()}
        colors = {n: next((color for item in items if (color := _color(item))), None) for n, items in drawn.items()}
        open_ones = [names[n] for n in drawn if not contours[n] and any(one.get("ContourSequence") for one in drawn[n])]
    if missing := set(only) - set(names.values()):
        known = ", ".join(names.values())
        raise InputError("labels.unknown", f"{file_name} has no structure {', '.join(sorted(missing))}; it has {known}")
    text = f"in {file_name} has no closed contour, only points or open lines; no voxel is inside"
    notices = [Notice("labels.not_closed", f"{name} {text}", name) for name in open_ones]
    if extend:
        grid, contours = _extended(grid, contours)
    else:
        notices += _beyond({names[n]: some for n, some in contours.items()}, grid, file_name)
    _check_slices({names[n]: some for n, some in contours.items()}, grid, file_name)
    array = np.zeros(grid.shape, smallest_label_type(len(names)))
    segments = []
    for label, number in enumerate(sorted(names), start=1):
        if number not in contours:
            continue
        color = colors.get(number) or distinct_color(label)
        segments.append(Segment(label, names[number] or f"structure {number}", color))
        crossing, count = [], 0
        for k, inside, is_overlapping in _filled(contours[number], grid):
            if is_overlapping:
                crossing.append(k)
            if overlap := int(np.count_nonzero(array[..., k][inside])):
                raise InputError(
                    "labels.overlap",
                    f"{segments[-1].name} shares {overlap} voxels with other structures of {file_name}, and a label "
                    "map holds one label a voxel; name the structures that are wanted",
                )
            array[..., k][inside] = label
            count += int(np.count_nonzero(inside))
        if contours[number] and not count:
            text = f"the contours of {segments[-1].name} in {file_name} enclose the centre of no voxel; it has 0 voxels"
            notices.append(Notice("labels.no_voxels", text, segments[-1].name))
        if crossing:
            text = f"contours of {segments[-1].name} in {file_name} overlap on slices {_listed(crossing)}"
            notice = f"{text}; all that they enclose counts as inside"
            notices.append(Notice("labels.contours_overlap", notice, segments[-1].name))
    return Segmentation(array, grid, tuple(segments), notices=tuple(notices))


@dataclass(frozen=True, eq=False)
class _Contour:
    """A closed contour.

    Attributes:
        k: index of the slice that is nearest to it.
        off_slice: how far it lies from that, in slice spacings.
        corners: (N, 2) as fractional indices I and J.
        is_xor: whether it encloses what an odd number of contours of its kind enclose.
    """

    k: int
    off_slice: float
    corners: NDArray[np.float64]
    is_xor: bool


def _contours(region: Dataset, grid: Grid) -> list[_Contour]:
    """Return the closed contours of a structure; points and open lines are marks."""
    found = []
    for contour in region.get("ContourSequence") or ():
        if contour.get("ContourGeometricType") in _AREAS:
            values = contour.get_item("ContourData").value
            if isinstance(values, bytes):  # not converted yet, or too long for an explicit VR and of unknown kind
                values = values.decode("ascii").strip(" \0").split("\\")
            points = np.reshape(np.array(values or [], float), (-1, 3))
            indices = grid.to_index(points * _LPS)
            if not np.isfinite(indices).all():
                raise ValueError
            if len(indices):
                k = int(np.rint(indices[:, 2].mean()))
                off_slice = float(np.abs(indices[:, 2] - k).max())
                is_xor = contour.ContourGeometricType != "CLOSED_PLANAR"
                found.append(_Contour(k, off_slice, indices[:, :2], is_xor))
    return found


def _color(region: Dataset) -> tuple[int, int, int] | None:
    color = [int(value) for value in region.get("ROIDisplayColor") or ()]
    return (color[0], color[1], color[2]) if len(color) == 3 else None


def _extended(grid: Grid, contours: Mapping[int, Sequence[_Contour]]) -> tuple[Grid, dict[int, list[_Contour]]]:
    """Return the grid enlarged by whole voxels until it holds all contours, and the contours in its indices."""
    every = [contour for some in contours.values() for contour in some]
    low, high = np.zeros(3, int), np.array(grid.shape)
    for contour in every:
        corners = np.column_stack([contour.corners, np.full(len(contour.corners), contour.k)])
        low = np.minimum(low, np.ceil(corners.min(axis=0) - 0.5).astype(int))
        high = np.maximum(high, np.floor(corners.max(axis=0) + 0.5).astype(int) + 1)
    moved = {
        n: [replace(one, k=one.k - int(low[2]), corners=one.corners - low[:2]) for one in some]
        for n, some in contours.items()
    }
    return grid.box(low.tolist(), high.tolist()), moved


def _beyond(contours: Mapping[str, Sequence[_Contour]], grid: Grid, name: str) -> list[Notice]:
    """Return a notice for each structure whose contours reach beyond the slices that they lie on."""
    notices = []
    for structure, some in contours.items():
        reach = [
            np.concatenate([-0.5 - one.corners, one.corners - np.array(grid.shape[:2]) + 0.5]).max() for one in some
        ]
        if max(reach, default=0.0) > BEYOND_VOXELS:
            text = f"contours of {structure} in {name} reach up to {max(reach):.1f} voxels beyond the scan"
            notices.append(Notice("labels.beyond_scan", f"{text}; what lies there is left out", structure))
    return notices


def _check_slices(contours: Mapping[str, Sequence[_Contour]], grid: Grid, name: str) -> None:
    """Refuse contours that are on no slice of the grid; by the names of their structures."""
    count = grid.shape[2]
    tolerance = min(MAX_PLANE_TOLERANCE, PLANE_TOLERANCE + ROUNDED_MM / grid.spacing_mm[2])
    faults = {}
    for structure, some in contours.items():
        outside = sorted({one.k for one in some if not 0 <= one.k < count})
        between = sorted({one.k for one in some if 0 <= one.k < count and one.off_slice > tolerance})
        texts = [f"on slices {_listed(outside)} outside of the scan"] if outside else []
        texts += [f"off the planes of slices {_listed(between)}"] if between else []
        if texts:
            faults[structure] = " and ".join(texts)
    if faults:
        found = "; ".join(f"{structure} has contours {text}" for structure, text in faults.items())
        fitting = [structure for structure in contours if structure not in faults]
        advice = f"; or read the others alone: --segments {' '.join(map(repr, fitting))}" if fitting else ""
        raise InputError(
            "geometry.not_on_slices",
            f"in {name}, {found} (the scan has slices 0 to {count - 1}); expected contours on the slices of the scan "
            f"that it was drawn on{advice}",
        )


def _listed(slices: Sequence[int]) -> str:
    """Return slice numbers in words, runs shortened: "3 to 7, 9"."""
    runs: list[list[int]] = []
    for k in slices:
        if runs and k == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], k]
        else:
            runs.append([k])
    shown = [" to ".join(map(str, run)) for run in runs]
    return ", ".join(shown[:6] + (["..."] if len(shown) > 6 else []))


def _filled(contours: Sequence[_Contour], grid: Grid) -> Iterator[tuple[int, NDArray[np.bool_], bool]]:
    """Yield slice by slice what contours enclose (I, J), and whether some overlap partially."""
    shape, pixel_mm = grid.shape[:2], grid.spacing_mm[:2]
    for k in sorted({contour.k for contour in contours}):
        here = [contour for contour in contours if contour.k == k]
        corners = [contour.corners for contour in here]
        if len(here) == 1 or any(contour.is_xor for contour in here):
            yield k, enclosed_by_odd(corners, shape), False
        else:
            yield k, *enclosed(corners, shape, pixel_mm)


def _structure_set(sources: Sequence[Dataset], frames: Sequence[Sequence[int]], algorithm: tuple[str, str]) -> Dataset:
    """All of a structure set but its structures."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    first = sources[0]
    now = datetime.now()
    answer = Dataset()
    answer.file_meta = FileMetaDataset()
    answer.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    # explicit value representations allow 64 KiB a value, which is few for the outline of a whole slice
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
    answer.SeriesDescription = dicom_text(f"Contours by {algorithm[0]}")
    answer.OperatorsName = None
    answer.Manufacturer = "napari-seg"
    answer.ManufacturerModelName = algorithm[0]
    answer.SoftwareVersions = __version__
    answer.StructureSetLabel = "SEGMENTATION"
    answer.StructureSetDate = answer.InstanceCreationDate = now.strftime("%Y%m%d")
    answer.StructureSetTime = answer.InstanceCreationTime = now.strftime("%H%M%S")
    answer.ApprovalStatus = "UNAPPROVED"
    answer.ReferencedFrameOfReferenceSequence = [_frame_of_reference(sources, frames)]
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


def _frame_of_reference(sources: Sequence[Dataset], frames: Sequence[Sequence[int]]) -> Dataset:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    series = Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [
        _reference(source, [n + 1 for n in own] if len(own) < int(source.get("NumberOfFrames") or 1) else ())
        for source, own in zip(sources, frames or [()] * len(sources), strict=True)
    ]
    study = Dataset()
    study.ReferencedSOPClassUID = UID("1.2.840.10008.3.1.2.3.1")  # retired, and still what PS3.3 asks for
    study.ReferencedSOPInstanceUID = sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(source: Dataset, frames: Sequence[int] = ()) -> Dataset:
    """Return a reference to some frames of an image, counted from 1; to all if there are no numbers."""
    from pydicom.dataset import Dataset

    answer = Dataset()
    answer.ReferencedSOPClassUID = source.SOPClassUID
    answer.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frames:
        answer.ReferencedFrameNumber = frames[0] if len(frames) == 1 else list(frames)
    return answer


def _slices(sources: Sequence[Dataset], frames: Sequence[Sequence[int]], grid: Grid) -> dict[int, Dataset]:
    """By slice of the grid the image that lies there, as contours refer to it."""
    from napari_seg.formats.dicom.read import frames_among

    headers = [read_header(Path(source.filename)) for source in sources]
    by_path = {header.path: source for header, source in zip(headers, sources, strict=True)}
    found = {}
    for frame in frames_among(headers, frames):
        source = by_path[frame.path]
        k = int(np.rint(grid.to_index(frame.position * _LPS)[2]))
        found[k] = _reference(source, [frame.index + 1] if int(source.get("NumberOfFrames") or 1) > 1 else ())
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
    region.ROIName = segment.name
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
