"""Prepare the images of a scan as segmentations and contours refer to them.

The scan's `Source` carries the identifiers and positions of all images. The patient's and the study's attributes are
not kept in memory: they are read from the header of the first image again when a result is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.errors import InputError, OutputError
from napari_seg.formats.dicom.headers import quiet_pydicom, read_header
from napari_seg.formats.dicom.objects import read_object
from napari_seg.formats.dicom.read import solve_source
from napari_seg.volume import SolvedStack, Source

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes of type 2, which must be present and may be empty; anonymisers delete them nevertheless."""

_OF_EACH_IMAGE = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
)
"""Attributes that all images of a stack share and that highdicom reads from each of them."""


def read_source(scan: Source, name: str) -> tuple[Dataset, SolvedStack]:
    """Return the first image's header without pixels, and the stack of a scan.

    Missing attributes of type 2 are added without a value.

    Args:
        scan: source of the scan.
        name: name of the result, for messages.

    Raises:
        OutputError: `output.no_dicom`, the scan is not DICOM, is no longer there, is not the one that was read, or
            lacks the identifiers that results refer to.
    """
    if scan.format != "dicom" or not scan.files:
        is_other = scan.format != "dicom" and bool(scan.files)
        found = f"{scan.files[0].name} is no DICOM series" if is_other else "found none"
        way = "name their folder with --scan FOLDER"
        raise OutputError("output.no_dicom", f"{name} needs the DICOM images that it belongs to; {found}; {way}")
    try:
        files, stack = solve_source(scan)
    except InputError as error:
        raise OutputError("output.no_dicom", f"the images of {name} can't be used: {error.message}") from error
    _check_identifiers(files, stack)
    try:
        first = read_object(files[0], stop_before_pixels=True)
    except InputError as error:
        text = "an image of this scan can't be read again; is its folder there?"
        raise OutputError("output.no_dicom", text) from error
    if str(first.get("SOPInstanceUID")) != stack.instances[0].sop_instance_uid:
        text = "the images of this scan were replaced after it was read; open it again"
        raise OutputError("output.no_dicom", text)
    for keyword in _TYPE_2:
        if not _conforms(first, keyword):
            setattr(first, keyword, None)
    return first, stack


def source_images(first: Dataset, stack: SolvedStack, thickness_mm: float) -> list[Dataset]:
    """Return a dataset for each file of a stack, with the attributes that highdicom reads from source images.

    Args:
        first: header of the first file; it becomes the first dataset.
        stack: the stack.
        thickness_mm: slice thickness in case the first file states none; highdicom requires one, but writes the grid's.
    """
    from pydicom.dataset import Dataset

    _set_thickness(first, thickness_mm)
    first_slices: dict[int, int] = {}
    for k, (file, _) in enumerate(stack.slices):
        first_slices.setdefault(file, k)
    images = [first]
    with quiet_pydicom():
        for file, instance in enumerate(stack.instances[1:], start=1):
            image = Dataset()
            for keyword in _OF_EACH_IMAGE:
                if keyword in first:
                    image[keyword] = first[keyword]
            image.SOPClassUID = instance.sop_class_uid
            image.SOPInstanceUID = instance.sop_instance_uid
            image.ImagePositionPatient = stack.positions_mm[first_slices[file]].tolist()
            images.append(image)
    return images


def _check_identifiers(files: Sequence[Path], stack: SolvedStack) -> None:
    """Refuse images without the identifiers that results refer to."""
    of_series = {
        "StudyInstanceUID": stack.study_uid,
        "SeriesInstanceUID": stack.series_uid,
        "FrameOfReferenceUID": stack.frame_of_reference_uid,
    }
    for file, instance in zip(files, stack.instances, strict=True):
        known = {"SOPClassUID": instance.sop_class_uid, "SOPInstanceUID": instance.sop_instance_uid, **of_series}
        if missing := [keyword for keyword, uid in known.items() if not uid]:
            header = read_header(file)
            differs = " that all its images share" if header.tags.get(missing[0]) else ""
            raise OutputError(
                "output.no_dicom",
                f"{header.label} has no {' and no '.join(missing)}{differs}, which a DICOM segmentation must refer to; "
                "save as NIfTI",
            )


def _set_thickness(first: Dataset, thickness_mm: float) -> None:
    """Add a slice thickness to a header that states none, in its functional groups if it has any."""
    shared, frames = (first.get(f"{name}FunctionalGroupsSequence") or () for name in ("Shared", "PerFrame"))
    measures = [item for groups in (*shared, *frames) for item in groups.get("PixelMeasuresSequence") or ()]
    for place in measures or [first]:
        if place.get("SliceThickness") is None:
            place.SliceThickness = thickness_mm


def _conforms(dataset: Dataset, keyword: str) -> bool:
    """Return whether an attribute is present with a value that may be written; some scans hold words as dates."""
    from pydicom.valuerep import DA, TM

    value = dataset.get(keyword)
    kinds: dict[str, Any] = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    try:
        if value and keyword in kinds:
            kinds[keyword](value)
    except ValueError:
        return False
    return keyword in dataset and (keyword != "PatientSex" or value in ("M", "F", "O", "", None))
