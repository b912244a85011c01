"""Decide whether a DICOM segmentation or RT structure set was made from a scan.

Positions are comparable within one frame of reference only (PS3.3 C.7.4.1): the same coordinates in another patient,
study or session are another place. If a file names no frame of reference, its referenced images decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_seg.errors import InputError, Notice, without_private_text
from napari_seg.formats.dicom.headers import quiet_pydicom
from napari_seg.formats.dicom.objects import object_label, read_object
from napari_seg.structure_names import match_each

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

OTHER_FRAME = "geometry.other_frame_of_reference"
"""Code of the error that `ignore_frame` turns into a notice."""


@dataclass(frozen=True)
class ScanRelation:
    """Relation of a segmentation or an RT structure set to a scan.

    Attributes:
        relation: "same_frame" if both have the same frame of reference; "referenced" if one of them has none and the
            file refers to the scan's images; "other" if the file was made from another scan; otherwise "unknown".
        message: doubts and contradictions; "" without any.
    """

    relation: Literal["same_frame", "referenced", "unknown", "other"]
    message: str = ""


@dataclass
class References:
    """Identifiers of the patient, the images and the frames of reference that a DICOM object refers to.

    Attributes:
        label: name of the file for messages.
        frames: frame of reference UID -> names of the structures drawn in it; no names for images.
        series: series UID of an image; UIDs of the series that a segmentation refers to.
        instances: SOP instance UID of an image; UIDs of the images that a segmentation refers to.
        study: study UID; "" if it is missing.
        patient: patient identifier, for comparison only.
    """

    label: str
    frames: dict[str, list[str]] = field(default_factory=dict)
    series: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    study: str = ""
    patient: str = ""


def relation_to_scan(path: Path, images: Sequence[Path], only: Sequence[str] = ()) -> ScanRelation:
    """Return the relation of a segmentation or an RT structure set to a scan.

    Args:
        path: DICOM segmentation or RT structure set.
        images: files of the scan, or another segmentation of it; without DICOM files the relation is unknown.
        only: names of the structures to consider, which may have different frames of reference; all if empty.

    Raises:
        InputError: `file.*`, the file can't be read.
    """
    own = references_of(path, only)
    label = own.label
    scan = _references_of_scan(images)
    if scan is None:
        text = f"{label} can't be checked against a scan that names no frame of reference; compare the two by eye"
        return ScanRelation("unknown", text)
    is_referenced = _agree(own.series, scan.series)
    if not is_referenced and (not own.frames or not scan.frames):  # files of one series may have lost its identifier
        is_referenced = _agree(own.instances, instances_of(images)) or is_referenced
    is_same_patient = _agree({own.patient}, {scan.patient})
    elsewhere = [name for frame, names in own.frames.items() if frame not in scan.frames for name in names]
    if own.frames and scan.frames:
        if own.frames.keys() <= scan.frames.keys():
            if is_same_patient is False and not is_referenced:
                return ScanRelation("other", f"{label} is of another patient than the scan")
            if is_same_patient is False:
                return ScanRelation("same_frame", f"{label} refers to this scan, but has another patient identifier")
            if not is_referenced and _agree({own.study}, {scan.study}) is False:
                return ScanRelation("same_frame", f"{label} is of another study in the same frame of reference")
            return ScanRelation("same_frame")
        which = f" ({', '.join(elsewhere)})" if elsewhere and own.frames.keys() & scan.frames.keys() else ""
        return ScanRelation("other", f"{label}{which} lies in another frame of reference than the scan")
    if is_referenced:
        if is_same_patient is False:
            return ScanRelation("referenced", f"{label} refers to this scan, but has another patient identifier")
        return ScanRelation("referenced")
    if is_referenced is False:
        return ScanRelation("other", f"{label} names no frame of reference and refers to other images than the scan's")
    if is_same_patient is False or _agree({own.study}, {scan.study}) is False:
        return ScanRelation("other", f"{label} is of another patient or study than the scan")
    text = f"{label} or its scan names no frame of reference; whether they belong together is unknown"
    return ScanRelation("unknown", text)


def check_frame_of_reference(
    path: Path, images: Sequence[Path], only: Sequence[str] = (), *, ignore_frame: bool = False
) -> tuple[Notice, ...]:
    """Refuse a segmentation that was made from another scan, and return doubts about its scan.

    Args:
        path: see `relation_to_scan`.
        images: see `relation_to_scan`.
        only: see `relation_to_scan`.
        ignore_frame: accept a segmentation of another scan, with a notice; for files with replaced identifiers.

    Raises:
        InputError: `geometry.other_frame_of_reference`; `file.*`.
    """
    found = relation_to_scan(path, images, only)
    if found.relation == "other":
        if not ignore_frame:
            text = "expected the scan that it was drawn on; choose that scan"
            raise InputError(OTHER_FRAME, f"{found.message}; {text}")
        text = "was placed by its coordinates nevertheless, as requested; check it by eye"
        return (Notice("geometry.frame_of_reference_ignored", f"{found.message}; it {text}"),)
    if found.relation == "unknown":
        return (Notice("geometry.frame_of_reference_unknown", found.message),)
    return (Notice("geometry.identifiers_differ", found.message),) if found.message else ()


def references_of(path: Path, only: Sequence[str] = ()) -> References:
    """Return the identifiers of the patient, the images and the frames of reference that a DICOM file refers to.

    Args:
        path: image, segmentation or RT structure set.
        only: names of the structures to consider; all if empty.

    Raises:
        InputError: `file.*`, it is no DICOM file or damaged.
    """
    dataset = read_object(path, stop_before_pixels=True)
    label = object_label(dataset, path)
    text = f"{label} has a DICOM header that can't be read ({{kind}})"
    with quiet_pydicom(), without_private_text(InputError, "file.bad_header", text):
        found = References(label, study=_uid(dataset, "StudyInstanceUID"), patient=_uid(dataset, "PatientID"))
        if dataset.get("Modality") not in ("SEG", "RTSTRUCT"):
            found.series.add(_uid(dataset, "SeriesInstanceUID"))
            found.instances.add(_uid(dataset, "SOPInstanceUID"))
        for series in _referenced_series(dataset):
            found.series.add(_uid(series, "SeriesInstanceUID"))
            items = (*_items(series, "ReferencedInstanceSequence"), *_items(series, "ContourImageSequence"))
            found.instances |= {_uid(item, "ReferencedSOPInstanceUID") for item in items}
        for group in (dataset, *_items(dataset, "PerFrameFunctionalGroupsSequence")):
            for derivation in (group, *_items(group, "DerivationImageSequence")):
                sources = _items(derivation, "SourceImageSequence")
                found.instances |= {_uid(item, "ReferencedSOPInstanceUID") for item in sources}
        if "StructureSetROISequence" in dataset:
            stated = _items(dataset, "ReferencedFrameOfReferenceSequence")
            default = next((uid for item in (*stated, dataset) if (uid := _uid(item, "FrameOfReferenceUID"))), "")
            names = [str(roi.get("ROIName") or "") for roi in _items(dataset, "StructureSetROISequence")]
            chosen = match_each(only, names).values()
            for roi, name in zip(_items(dataset, "StructureSetROISequence"), names, strict=True):
                if not only or name in chosen:  # PS3.3 C.8.8.5: each structure names its frame of reference
                    frame = _uid(roi, "ReferencedFrameOfReferenceUID") or default
                    found.frames.setdefault(frame, []).append(name)
            for drawn in _items(dataset, "ROIContourSequence"):
                for contour in _items(drawn, "ContourSequence"):
                    images = _items(contour, "ContourImageSequence")
                    found.instances |= {_uid(item, "ReferencedSOPInstanceUID") for item in images}
        else:
            found.frames[_uid(dataset, "FrameOfReferenceUID")] = []
    found.frames.pop("", None)
    return found


def segment_names(path: Path) -> list[str]:
    """Return the names of the structures of a segmentation or a structure set, each once.

    Raises:
        InputError: `file.*`, it is no DICOM file or damaged.
    """
    dataset = read_object(path, stop_before_pixels=True)
    segments = [str(one.get("SegmentLabel") or "") for one in _items(dataset, "SegmentSequence")]
    contours = [str(one.get("ROIName") or "") for one in _items(dataset, "StructureSetROISequence")]
    return list(dict.fromkeys(name for name in (*segments, *contours) if name))


def _references_of_scan(images: Sequence[Path]) -> References | None:
    """Return the identifiers of the first image of a scan; None without images, or if it is not DICOM."""
    try:
        return references_of(images[0]) if images else None
    except InputError:
        return None


def instances_of(images: Sequence[Path]) -> set[str]:
    """Return the SOP instance UIDs of images, and of the images that they refer to."""
    return set().union(*(references_of(image).instances for image in images))


def _agree(ones: set[str], others: set[str]) -> bool | None:
    """Return whether two sets have an identifier in common; None if one of them is empty."""
    ones, others = ones - {""}, others - {""}
    return not ones.isdisjoint(others) if ones and others else None


def _referenced_series(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the items that describe the series which an object refers to."""
    yield from _items(dataset, "ReferencedSeriesSequence")
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in _items(frame, "RTReferencedStudySequence"):
            yield from _items(study, "RTReferencedSeriesSequence")


def _items(dataset: Dataset, keyword: str) -> Sequence[Any]:
    return dataset.get(keyword) or ()


def _uid(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
