"""Label maps as DICOM segmentations (PS3.3 A.51), written and read by highdicom.

highdicom places the frames from an array and an affine; only under a tilted gantry, where no affine holds them, are
they matched to the slices here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, OutputError, told_plainly
from napari_seg.formats.atomic import unproven
from napari_seg.formats.dicom.geometry import Stack
from napari_seg.formats.dicom.headers import file_label, quiet_pydicom, read_header, read_object
from napari_seg.formats.dicom.read import MAX_EXCESS, stack_of
from napari_seg.formats.dicom.seg_geometry import functional_groups, layout_of, value_of
from napari_seg.formats.dicom.text import dicom_text, with_dicom_names
from napari_seg.formats.dicom.tilt import on_images
from napari_seg.geometry import Grid, is_same_lattice, resample
from napari_seg.version import __version__
from napari_seg.volume import (
    Origin,
    Segment,
    Segmentation,
    Source,
    Term,
    distinct_color,
    select_segments,
    smallest_label_type,
)

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

TISSUE = Term("85756007", "SCT", "Tissue")
"""What a structure is said to be that nobody has described: PS3.16, CID 7150 and 7151."""

UNICODE = "ISO_IR 192"
"""DICOM's name of UTF-8: segments and patients may have any name."""

SERIES_NUMBERS_AFTER = 900
"""A segmentation's series number is this much above that of its images."""

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
"""Attributes that must be there and may be empty; anonymisers leave them out all the same."""


def write_dicom_seg(
    segmentation: Segmentation,
    scan: Source,
    path: Path,
    *,
    kind: Literal["binary", "labelmap"] = "binary",
    algorithm: tuple[str, str] = ("napari-seg", __version__),
    origin: Origin = "AUTOMATIC",
) -> None:
    """Writes a label map as a DICOM segmentation beside the images that it was made from, or leaves no file at all.

    It becomes a series of its own in the images' study, with the patient's attributes as they stand there, a mark of
    de-identification among them. A binary one numbers its segments from 1 on, whatever their labels; a label map
    (PS3.3 A.51, 2024) keeps labels, but fewer programs read it. The file gets its name, replacing one that had it, only
    after it was read back and found equal.

    Args:
        segmentation: on the images' grid; where a tilted gantry's slices were shifted onto it, labels go back to them.
        scan: the images that the labels refer to; without a stack, all frames of its files.
        path: of the file.
        kind: how segments are stored.
        algorithm: name and version of what made it.
        origin: DICOM's word for whether a person took part.

    Raises:
        OutputError: `output.no_dicom`, there are no images, or they lack the identifiers that a segmentation refers to;
            `output.no_segments`; `output.not_written`; `output.not_equal`.
    """
    import highdicom

    images = scan.files if scan.format == "dicom" else ()
    frames = scan.stack.frames if scan.stack is not None else ()
    segmentation, algorithm = with_dicom_names(segmentation, algorithm, path.name)
    numbered = _numbered(segmentation) if kind == "binary" else segmentation
    if not numbered.segments:
        raise OutputError("output.no_segments", f"{path.name} would hold no segment; expected at least one")
    sources = [source_of(image) for image in images]
    chosen = _keep_frames(sources[0], frames[0]) if len(sources) == 1 and frames else ()
    if not sources:
        raise OutputError("output.no_dicom", f"{path.name} needs the DICOM images that it belongs to; there are none")
    first = sources[0]
    for source in sources:
        _give_thickness(source, segmentation.grid.spacing_mm[2])
    pixels: Any
    stack = _tilted(images, frames, segmentation.grid)
    if stack is None:
        pixels = highdicom.Volume(
            numbered.array.transpose(2, 1, 0),
            segmentation.grid.affine[:, [2, 1, 0, 3]],
            coordinate_system="PATIENT",
            frame_of_reference_uid=first.get("FrameOfReferenceUID"),
            from_reference_convention="RAS",
        )
    else:
        pixels = on_images(numbered.array, stack)
        order = {str(frame.path): n for n, frame in enumerate(stack.frames)}
        sources.sort(key=lambda source: order[str(source.filename)])
    text = f"{path.name} can't be made from the headers of its images ({{kind}}); save as NIfTI or NRRD"
    plainly = told_plainly(OutputError, "output.no_dicom", text, passing=(OSError,))
    with unproven(path, ".dcm") as hidden, quiet_pydicom(), plainly:
        dataset = highdicom.seg.Segmentation(
            sources,
            pixels,
            kind.upper(),
            [_description(segment, algorithm, origin) for segment in numbered.segments],
            series_instance_uid=highdicom.UID(),
            series_number=int(first.get("SeriesNumber") or 0) + SERIES_NUMBERS_AFTER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="napari-seg",
            manufacturer_model_name=algorithm[0],
            software_versions=__version__,
            device_serial_number=__version__,
            content_label="SEGMENTATION",
            specific_character_set=UNICODE,
            series_description=dicom_text(f"Segmentation by {algorithm[0]}"),
        )
        if chosen:
            _refer_to_frames(dataset, chosen)
        dataset.save_as(hidden)
        if stack is None:
            came_back = same_labels(read_dicom_seg(hidden, scan=numbered.grid), numbered)
        else:
            came_back = np.array_equal(_at_images(hidden, stack), pixels)
        if not came_back:
            raise OutputError("output.not_equal", f"{path.name} came back from the disk with other labels; try again")


def read_dicom_seg(path: Path, only: Sequence[str] = (), scan: Grid | None = None) -> Segmentation:
    """Read a DICOM segmentation as a label map, on a grid that spans its frames: empty slices may be absent.

    Probabilities count as present from a half on, which a notice says.

    Args:
        path: the file.
        only: names of the segments wanted; all if empty.
        scan: grid of its scan, which tells how far apart slices lie; None: the file has to.

    Raises:
        InputError: `file.*`, it can't be read; `geometry.*`, its frames do not lie on a regular grid; `labels.overlap`,
            segments share voxels, which a label map can't hold; `labels.unknown`, it lacks a segment that is wanted.
    """
    dataset, file_name = read_object(path), file_label(path)
    text = f"{file_name} is not a usable DICOM segmentation ({{kind}})"
    with quiet_pydicom(), told_plainly(InputError, "file.bad_header", text):
        background = int(dataset.get("PixelPaddingValue") or 0)
        described = [item for item in dataset.SegmentSequence if int(item.SegmentNumber) not in (0, background)]
        segments = tuple(sorted((_segment(item) for item in described), key=lambda segment: segment.label))
        layout = layout_of(dataset, file_name, scan)
        numbers = _segment_numbers(dataset, file_name)
        maximum = int(dataset.get("MaximumFractionalValue") or 255) if dataset.SegmentationType == "FRACTIONAL" else 1
    wanted = select_segments(segments, only, file_name)
    notices = [*layout.notices, *_excess(dataset, file_name)]
    if dataset.SegmentationType == "FRACTIONAL":
        text = f"{file_name} holds probabilities; what has a half or more counts as present"
        notices.append(Notice("labels.fractional", text))
    labels = {segment.label for segment in wanted}
    array = np.zeros(layout.grid.shape, smallest_label_type(max(labels, default=0)))
    chosen = [n for n, number in enumerate(numbers) if number is None or number in labels]
    chosen.sort(key=lambda n: numbers[n] or 0)
    overlaps, strange = Counter[int](), 0
    for frame, values in zip(chosen, _decoded(dataset, chosen, path), strict=True):
        plane = array[..., layout.slices[frame]]
        if (label := numbers[frame]) is None:
            known_here = np.isin(values, list(labels))
            strange += int(np.count_nonzero(~known_here & (values != background)))
            plane[...] = np.where(known_here, values, 0).T
        else:
            inside = (values.astype(np.uint32) * 2 >= maximum).T & (values > 0).T
            overlaps[label] += int(np.count_nonzero((plane[inside] != 0) & (plane[inside] != label)))
            plane[inside] = label
    if shared := +overlaps:
        label, count = next(iter(shared.items()))
        name = next(segment.name for segment in wanted if segment.label == label)
        raise InputError(
            "labels.overlap",
            f"{name} shares {count} voxels with other segments of {file_name}, and a label map holds one label a "
            "voxel; name the segments that are wanted",
        )
    if not only and (missing := {number for number in numbers if number is not None} - labels - {0, background}):
        text = f"{file_name} holds frames of segments {', '.join(map(str, sorted(missing)))} that it does not describe"
        notices.append(Notice("labels.undescribed", f"{text}; they are left out"))
    if strange and not only:
        text = f"{file_name} holds {strange} voxels of numbers that it does not describe; they count as background"
        notices.append(Notice("labels.undescribed", text))
    return Segmentation(array, layout.grid, wanted, notices=tuple(notices))


def same_labels(found: Segmentation, meant: Segmentation) -> bool:
    """Whether two label maps hold the same voxels in the patient, wherever the edges of their grids are."""
    if not is_same_lattice(found.grid, meant.grid):
        return False
    there = resample(found.array, found.grid, meant.grid, order=0, outside=0)
    return np.array_equal(there, meant.array) and np.count_nonzero(there) == np.count_nonzero(found.array)


def _segment_numbers(dataset: Dataset, name: str) -> list[int | None]:
    """Return the segment that each frame is of; None for a frame that holds labels."""
    groups = functional_groups(dataset, name)
    if dataset.SegmentationType == "LABELMAP":
        return [None] * len(groups)
    return [int(value_of(g, "SegmentIdentificationSequence", "ReferencedSegmentNumber")) for g in groups]


def _decoded(dataset: Dataset, frames: Sequence[int], path: Path) -> Iterator[NDArray]:
    """Yield the stored values (J, I) of some frames, one after the other so that memory does not grow with them."""
    from pydicom.pixels import get_decoder

    text = f"the pixels of {file_label(path)} can't be read: it is cut or damaged ({{kind}}); export it again"
    with quiet_pydicom(), told_plainly(InputError, "file.truncated", text):
        syntax = dataset.file_meta.TransferSyntaxUID
        if dataset.BitsAllocated == 1 and not syntax.is_encapsulated and syntax.is_little_endian:
            yield from _unpacked(dataset, frames)
        elif frames:
            for values, _ in get_decoder(syntax).iter_array(dataset, indices=list(frames), raw=True):
                yield values


def _excess(dataset: Dataset, name: str) -> list[Notice]:
    """Return a notice where uncompressed pixels are a few more than the header claims, and refuse many more."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return []
    count = int(dataset.get("NumberOfFrames") or 1)
    claimed = (int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) * count + 7) // 8
    found = len(dataset.PixelData)
    text = f"{name} holds {found} bytes of pixels, and its header claims {claimed}"
    if found >= claimed * (1 + MAX_EXCESS) and found > claimed + 1:
        raise InputError("file.bad_header", f"{text}; expected both to agree; export it again")
    return [Notice("file.longer", f"{text}; what lies behind these was left out")] if found > claimed + 1 else []


def _unpacked(dataset: Dataset, frames: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield frames of single bits, which need not begin with a byte; pydicom 3.0 fails where they do not."""
    shape = int(dataset.Rows), int(dataset.Columns)
    size, data = shape[0] * shape[1], np.frombuffer(dataset.PixelData, np.uint8)
    for frame in frames:
        first_byte, first_bit = divmod(frame * size, 8)
        bits = np.unpackbits(data[first_byte : first_byte + (first_bit + size + 7) // 8], bitorder="little")
        yield bits[first_bit : first_bit + size].reshape(shape)


def _keep_frames(source: Dataset, frames: Sequence[int]) -> tuple[int, ...]:
    """Leave only some frames in the header of an enhanced image.

    Args:
        source: header of the image.
        frames: which, counted from 0, ascending.

    Returns:
        The frames; empty if all were kept, or the image describes none.
    """
    described = source.get("PerFrameFunctionalGroupsSequence") or ()
    if len(described) <= len(frames):
        return ()
    source.PerFrameFunctionalGroupsSequence = [described[n] for n in frames]
    source.NumberOfFrames = len(frames)
    return tuple(frames)


def _refer_to_frames(dataset: Dataset, frames: Sequence[int]) -> None:
    """Give references to frames the numbers that these have in the whole image, of which others were left out."""
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


def _tilted(images: Sequence[Path], frames: Sequence[Sequence[int]], grid: Grid) -> Stack | None:
    """The images' stack if a tilted gantry made them, and a grid is the straight one that they were shifted onto."""
    try:
        stack = stack_of(images, frames)
    except InputError:  # a volume of several in one file
        return None
    return stack if stack.is_tilted and stack.grid.matches(grid) else None


def _at_images(path: Path, stack: Stack) -> NDArray:
    """(K, J, I) the labels that a segmentation has at the frames of its images, found by their positions."""
    dataset = read_object(path)
    groups, numbers = functional_groups(dataset, path.name), _segment_numbers(dataset, path.name)
    places = np.array([frame.position for frame in stack.frames])
    found = np.zeros((len(places), int(dataset.Rows), int(dataset.Columns)), np.uint16)
    for n, values in enumerate(_decoded(dataset, range(len(groups)), path)):
        position = np.array(value_of(groups[n], "PlanePositionSequence", "ImagePositionPatient"), float)
        k = int(np.linalg.norm(places - position, axis=1).argmin())
        found[k] += values.astype(np.uint16) * (numbers[n] or 1)
    return found


def _give_thickness(source: Dataset, thickness_mm: float) -> None:
    """Highdicom asks for SliceThickness, which some images lack; what is written follows from the grid alone."""
    shared, frames = (source.get(f"{name}FunctionalGroupsSequence") or () for name in ("Shared", "PerFrame"))
    measures = [item for groups in (*shared, *frames) for item in groups.get("PixelMeasuresSequence") or ()]
    for place in measures or [source]:
        if place.get("SliceThickness") is None:
            place.SliceThickness = thickness_mm


def _numbered(segmentation: Segmentation) -> Segmentation:
    """The same with labels 1, 2, 3, ..., as binary segmentations must have them."""
    labels = [segment.label for segment in segmentation.segments]
    numbers = range(1, len(labels) + 1)
    if labels == list(numbers):
        return segmentation
    table = np.zeros(max(int(segmentation.array.max()), *labels) + 1, smallest_label_type(len(labels)))
    table[labels] = numbers
    segments = (replace(s, label=n) for n, s in zip(numbers, segmentation.segments, strict=True))
    return Segmentation(table[segmentation.array], segmentation.grid, tuple(segments))


def source_of(path: Path) -> Dataset:
    """What a segmentation refers to, of one image; empty attributes are added where an anonymiser took them."""
    import pydicom

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except OSError as error:
        raise OutputError(
            "output.no_dicom", "an image of this scan can't be read again; is its folder there?"
        ) from error
    needed = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    if missing := [keyword for keyword in needed if not dataset.get(keyword)]:
        raise OutputError(
            "output.no_dicom",
            f"{read_header(path).label} has no {' and no '.join(missing)}, which a DICOM segmentation must refer to; "
            "save as NIfTI",
        )
    for keyword in _TYPE_2:
        if not _conforms(dataset, keyword):
            setattr(dataset, keyword, None)
    return dataset


def _conforms(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is there and has a value that may be written; some scans hold words in place of dates."""
    from pydicom.valuerep import DA, TM

    value = dataset.get(keyword)
    kinds: dict[str, Any] = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    try:
        if value and keyword in kinds:
            kinds[keyword](value)
    except ValueError:
        return False
    return keyword in dataset and (keyword != "PatientSex" or value in ("M", "F", "O", "", None))


def _description(segment: Segment, algorithm: tuple[str, str], origin: Origin) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    name, version = algorithm
    description = SegmentDescription(
        segment.label,
        segment.name,
        _code(segment.category or TISSUE),
        _code(segment.kind or TISSUE),
        origin,
        None
        if origin == "MANUAL"
        else AlgorithmIdentificationSequence(name, codes.DCM.ArtificialIntelligence, version or "unknown"),
        display_color=CIELabColor.from_rgb(*segment.color),
    )
    if segment.modifier is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            _code(segment.modifier)
        ]
    return description


def _code(term: Term) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(term.value, term.scheme, term.meaning)


def _segment(description: Dataset) -> Segment:
    from highdicom.color import CIELabColor

    number = int(description.SegmentNumber)
    stored = description.get("RecommendedDisplayCIELabValue")
    kind = description.get("SegmentedPropertyTypeCodeSequence") or [None]
    modifier = (kind[0].get("SegmentedPropertyTypeModifierCodeSequence") if kind[0] else None) or [None]
    category = description.get("SegmentedPropertyCategoryCodeSequence") or [None]
    return Segment(
        number,
        str(description.get("SegmentLabel") or f"segment {number}"),
        CIELabColor.from_dicom_value(tuple(stored)).to_rgb() if stored else distinct_color(number),
        category=_term(category[0]),
        kind=_term(kind[0]),
        modifier=_term(modifier[0]),
    )


def _term(code: Dataset | None) -> Term | None:
    keywords = ("CodeValue", "LongCodeValue", "URNCodeValue")
    value = next((str(code.get(k)) for k in keywords if code.get(k)), "") if code is not None else ""
    if code is None or not value:
        return None
    return Term(value, str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeMeaning", "")))
