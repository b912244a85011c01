"""Write label maps as DICOM segmentations (PS3.3 A.51) with highdicom.

highdicom places the frames from an array and an affine. Only the slices of a tilted gantry, which no affine describes,
are matched to their images here.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import OutputError, without_private_text
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.dicom.headers import quiet_pydicom
from napari_seg.formats.dicom.objects import read_object
from napari_seg.formats.dicom.seg import decoded_frames, read_dicom_seg, same_labels, segment_numbers
from napari_seg.formats.dicom.seg_geometry import functional_groups, value_of
from napari_seg.formats.dicom.source import read_source, source_images
from napari_seg.formats.dicom.text import UNICODE, series_description, with_dicom_names
from napari_seg.formats.dicom.tilt import in_file_order, on_images
from napari_seg.version import __version__
from napari_seg.volume import (
    BY_NAPARI_SEG,
    LabelOrigin,
    Segment,
    Segmentation,
    SolvedStack,
    Source,
    Term,
    smallest_label_type,
)

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

TISSUE = Term("85756007", "SCT", "Tissue")
"""Category and type of a structure that has none (PS3.16, CID 7150 and 7151)."""

SERIES_NUMBERS_AFTER = 900
"""Difference between the series number of a segmentation and that of its images."""


def write_dicom_seg(
    segmentation: Segmentation,
    scan: Source,
    path: Path,
    *,
    kind: Literal["binary", "labelmap"] = "binary",
    made_by: LabelOrigin = BY_NAPARI_SEG,
) -> None:
    """Write a label map as a DICOM segmentation that refers to the images of its scan, or leave no file at all.

    It becomes a series of its own in the images' study, with the patient's attributes as the images state them, a mark
    of de-identification included. A binary segmentation numbers its segments from 1 on, whatever their labels; a label
    map (PS3.3 A.51, 2024) keeps the labels, but fewer programs read it. The file gets its name, and replaces an older
    file, only after it was read back and found equal.

    Args:
        segmentation: label map on the images' grid; if a tilted gantry's slices were shifted onto that grid, the labels
            are shifted back.
        scan: source of the scan; if only its files are known, all their frames count.
        path: path of the new file.
        kind: how segments are stored.
        made_by: origin of the label map.

    Raises:
        OutputError: `output.no_dicom`, there are no images, or they lack the identifiers that a segmentation refers to;
            `output.unknown_origin`, the origin must be stated and is not known; `output.no_segments`;
            `output.not_written`; `output.not_equal`.
    """
    import highdicom

    if made_by.origin is None:
        text = f"{path.name} must state whether a person or a program made its segments, which is not known"
        raise OutputError("output.unknown_origin", f"{text}; pass --origin manual, semiautomatic or automatic")
    segmentation, made_by = with_dicom_names(segmentation, made_by, path.name)
    numbered = _numbered(segmentation) if kind == "binary" else segmentation
    if not numbered.segments:
        raise OutputError("output.no_segments", f"{path.name} would hold no segment; expected at least one")
    first, stack = read_source(scan, path.name)
    chosen = _keep_frames(first, stack.frames[0]) if len(stack.instances) == 1 else ()
    is_tilted = stack.is_tilted and stack.grid.matches(segmentation.grid)
    pixels: Any
    if is_tilted:
        pixels = on_images(numbered.array, stack)
    else:
        pixels = highdicom.Volume(
            numbered.array.transpose(2, 1, 0),
            segmentation.grid.affine[:, [2, 1, 0, 3]],
            coordinate_system="PATIENT",
            frame_of_reference_uid=stack.frame_of_reference_uid,
            from_reference_convention="RAS",
        )
    text = f"{path.name} can't be made from the headers of its images ({{kind}}); save as NIfTI or NRRD"
    plainly = without_private_text(OutputError, "output.no_dicom", text, passing=(OSError,))
    with verified_write(path, ".dcm") as hidden, quiet_pydicom(), plainly:
        dataset = highdicom.seg.Segmentation(
            source_images(first, stack, segmentation.grid.spacing_mm[2]),
            pixels,
            kind.upper(),
            [_description(segment, made_by) for segment in numbered.segments],
            series_instance_uid=highdicom.UID(),
            series_number=int(first.get("SeriesNumber") or 0) + SERIES_NUMBERS_AFTER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="napari-seg",
            manufacturer_model_name=made_by.algorithm[0] if made_by.algorithm else "napari-seg",
            software_versions=__version__,
            device_serial_number=__version__,
            content_label="SEGMENTATION",
            specific_character_set=UNICODE,
            series_description=series_description("Segmentation", made_by),
        )
        if chosen:
            _refer_to_frames(dataset, chosen)
        dataset.save_as(hidden)
        if is_tilted:
            is_equal = np.array_equal(_at_images(hidden, stack), pixels)
        else:
            is_equal = same_labels(read_dicom_seg(hidden, scan=numbered.grid), numbered)
        if not is_equal:
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with other labels; try again")


def _keep_frames(source: Dataset, frames: Sequence[int]) -> tuple[int, ...]:
    """Remove all frames but some from the header of an enhanced image.

    Args:
        source: header of the image.
        frames: numbers of the frames to keep, counted from 0, ascending.

    Returns:
        These frames; empty if all were kept, or the image describes none.
    """
    described = source.get("PerFrameFunctionalGroupsSequence") or ()
    if len(described) <= len(frames):
        return ()
    source.PerFrameFunctionalGroupsSequence = [described[n] for n in frames]
    source.NumberOfFrames = len(frames)
    return tuple(frames)


def _refer_to_frames(dataset: Dataset, frames: Sequence[int]) -> None:
    """Replace the numbers of referenced frames among those kept by their numbers in the whole image."""
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence") or ():
            for image in derivation.get("SourceImageSequence") or ():
                if (number := image.get("ReferencedFrameNumber")) is not None:
                    numbers = [frames[int(n) - 1] + 1 for n in np.atleast_1d(number)]
                    image.ReferencedFrameNumber = numbers if len(numbers) > 1 else numbers[0]
    images = deepcopy(list(dataset.get("SourceImageSequence") or ()))  # highdicom shares them with another sequence
    for image in images:
        image.ReferencedFrameNumber = [n + 1 for n in frames]
    dataset.SourceImageSequence = images


def _at_images(path: Path, stack: SolvedStack) -> NDArray:
    """Return (K, J, I) the labels that a file has at the slices of a stack, matched by position, in file order."""
    dataset = read_object(path)
    groups = functional_groups(dataset, path.name)
    numbers = segment_numbers(dataset, groups)
    places = stack.positions_mm[in_file_order(stack)]
    found = np.zeros((len(places), int(dataset.Rows), int(dataset.Columns)), np.uint16)
    for n, values in enumerate(decoded_frames(dataset, range(len(groups)), path.name)):
        position = np.array(value_of(groups[n], "PlanePositionSequence", "ImagePositionPatient"), float)
        k = int(np.linalg.norm(places - position, axis=1).argmin())
        found[k] += values.astype(np.uint16) * (numbers[n] or 1)
    return found


def _numbered(segmentation: Segmentation) -> Segmentation:
    """Return a label map with labels 1, 2, 3, ..., which binary segmentations require."""
    labels = [segment.label for segment in segmentation.segments]
    numbers = range(1, len(labels) + 1)
    if labels == list(numbers):
        return segmentation
    table = np.zeros(max(int(segmentation.array.max()), *labels) + 1, smallest_label_type(len(labels)))
    table[labels] = numbers
    segments = (replace(s, label=n) for n, s in zip(numbers, segmentation.segments, strict=True))
    return Segmentation(table[segmentation.array], segmentation.grid, tuple(segments))


def _description(segment: Segment, made_by: LabelOrigin) -> SegmentDescription:
    """Return the description of a segment for SegmentSequence."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    name, version = made_by.algorithm or ("unknown", "")
    description = SegmentDescription(
        segment.label,
        segment.name,
        _code(segment.category or TISSUE),
        _code(segment.kind or TISSUE),
        str(made_by.origin),
        None
        if made_by.origin == "MANUAL"
        else AlgorithmIdentificationSequence(name, codes.DCM.ArtificialIntelligence, version or "unknown"),
        display_color=CIELabColor.from_rgb(*segment.color),
    )
    if not made_by.is_model and made_by.origin != "MANUAL":  # the name stays; highdicom requires a family with it
        del description.SegmentationAlgorithmIdentificationSequence
    if segment.modifier is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            _code(segment.modifier)
        ]
    return description


def _code(term: Term) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(term.value, term.scheme, term.meaning)
