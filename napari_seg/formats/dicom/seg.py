"""Read DICOM segmentations (PS3.3 A.51) as label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, without_private_text
from napari_seg.formats.dicom.headers import quiet_pydicom
from napari_seg.formats.dicom.objects import object_label, read_object
from napari_seg.formats.dicom.pixels import MAX_EXCESS, decoder_of
from napari_seg.formats.dicom.seg_geometry import layout_of, value_of
from napari_seg.geometry import Grid, is_same_lattice, resample
from napari_seg.volume import Segment, Segmentation, Term, distinct_color, select_segments, smallest_label_type

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_dicom_seg(path: Path, only: Sequence[str] = (), scan: Grid | None = None) -> Segmentation:
    """Read a DICOM segmentation as a label map on a grid that spans its frames; it may lack empty slices.

    Of probabilities, those of one half or more count as present, which a notice says.

    Args:
        path: the file.
        only: names of the required segments; all if empty.
        scan: grid of its scan, which gives the distance between slices; None if the file must give it.

    Raises:
        InputError: `file.*`, it can't be read; `series.transfer_syntax`; `geometry.*`, its frames do not lie on a
            regular grid; `labels.overlap`, segments share voxels, which a label map can't hold; `labels.unknown`, it
            lacks a required segment.
    """
    dataset = read_object(path)
    file_name = object_label(dataset, path)
    decoder_of(dataset.file_meta.TransferSyntaxUID, file_name)
    text = f"{file_name} is not a usable DICOM segmentation ({{kind}})"
    with quiet_pydicom(), without_private_text(InputError, "file.bad_header", text):
        background = int(dataset.get("PixelPaddingValue") or 0)
        described = [item for item in dataset.SegmentSequence if int(item.SegmentNumber) not in (0, background)]
        segments = tuple(sorted((_segment(item) for item in described), key=lambda segment: segment.label))
        layout = layout_of(dataset, file_name, scan)
        numbers = segment_numbers(dataset, layout.groups)
        maximum = int(dataset.get("MaximumFractionalValue") or 255) if dataset.SegmentationType == "FRACTIONAL" else 1
    selected = select_segments(segments, only, file_name)
    notices = [*layout.notices, *_excess(dataset, file_name)]
    if dataset.SegmentationType == "FRACTIONAL":
        text = f"{file_name} holds probabilities; voxels with a half or more count as present"
        notices.append(Notice("labels.fractional", text))
    labels = {segment.label for segment in selected}
    array = np.zeros(layout.grid.shape, smallest_label_type(max(labels, default=0)))
    chosen = [n for n, number in enumerate(numbers) if number is None or number in labels]
    chosen.sort(key=lambda n: numbers[n] or 0)
    # A frame holds either the voxels of one segment, and two segments may overlap, or labels of any segment.
    overlaps, undescribed = Counter[int](), 0
    for frame, values in zip(chosen, decoded_frames(dataset, chosen, file_name), strict=True):
        plane = array[..., layout.slices[frame]]
        if (label := numbers[frame]) is None:
            known_here = np.isin(values, list(labels))
            undescribed += int(np.count_nonzero(~known_here & (values != background)))
            plane[...] = np.where(known_here, values, 0).T
        else:
            inside = (values.astype(np.uint32) * 2 >= maximum).T & (values > 0).T
            overlaps[label] += int(np.count_nonzero((plane[inside] != 0) & (plane[inside] != label)))
            plane[inside] = label
    if shared := +overlaps:
        label, count = next(iter(shared.items()))
        name = next(segment.name for segment in selected if segment.label == label)
        raise InputError(
            "labels.overlap",
            f"{name} shares {count} voxels with other segments of {file_name}, and a label map holds one label a "
            "voxel; name the segments to read",
        )
    if not only and (missing := {number for number in numbers if number is not None} - labels - {0, background}):
        text = f"{file_name} holds frames of segments {', '.join(map(str, sorted(missing)))} that it does not describe"
        notices.append(Notice("labels.undescribed", f"{text}; they are left out"))
    if undescribed and not only:
        text = f"{file_name} holds {undescribed} voxels of numbers that it does not describe; they count as background"
        notices.append(Notice("labels.undescribed", text))
    return Segmentation(array, layout.grid, selected, notices=tuple(notices))


def same_labels(found: Segmentation, expected: Segmentation) -> bool:
    """Return whether two label maps hold the same voxels in the patient, wherever the edges of their grids are."""
    if not is_same_lattice(found.grid, expected.grid):
        return False
    moved = resample(found.array, found.grid, expected.grid, order=0, outside=0)
    return np.array_equal(moved, expected.array) and np.count_nonzero(moved) == np.count_nonzero(found.array)


def segment_numbers(dataset: Dataset, groups: Sequence[Sequence[Any]]) -> list[int | None]:
    """Return for each frame the number of its segment; None for a frame that holds labels.

    Args:
        dataset: the segmentation.
        groups: functional groups of each frame.
    """
    if dataset.SegmentationType == "LABELMAP":
        return [None] * len(groups)
    return [int(value_of(g, "SegmentIdentificationSequence", "ReferencedSegmentNumber")) for g in groups]


def decoded_frames(dataset: Dataset, frames: Sequence[int], name: str) -> Iterator[NDArray]:
    """Yield the stored values (J, I) of some frames, one at a time so that memory does not grow with their number."""
    text = f"the pixels of {name} can't be read: it is cut or damaged ({{kind}}); export it again"
    with quiet_pydicom(), without_private_text(InputError, "file.truncated", text):
        syntax = dataset.file_meta.TransferSyntaxUID
        if dataset.BitsAllocated == 1 and not syntax.is_encapsulated and syntax.is_little_endian:
            yield from _unpacked(dataset, frames)
        elif frames:
            for values, _ in decoder_of(syntax, name).iter_array(dataset, indices=list(frames), raw=True):
                yield values


def _excess(dataset: Dataset, name: str) -> list[Notice]:
    """Return a notice if there are a few more uncompressed pixels than the header claims, and refuse many more."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return []
    count = int(dataset.get("NumberOfFrames") or 1)
    claimed = (int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) * count + 7) // 8
    found = len(dataset.PixelData)
    text = f"{name} holds {found} bytes of pixels, and its header claims {claimed}"
    if found >= claimed * (1 + MAX_EXCESS) and found > claimed + 1:
        raise InputError("file.bad_header", f"{text}; expected both to agree; export it again")
    return [Notice("file.longer", f"{text}; the excess was left out")] if found > claimed + 1 else []


def _unpacked(dataset: Dataset, frames: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield frames of single bits that need not begin at a byte; pydicom 3.0 fails if they do not."""
    shape = int(dataset.Rows), int(dataset.Columns)
    size, data = shape[0] * shape[1], np.frombuffer(dataset.PixelData, np.uint8)
    for frame in frames:
        first_byte, first_bit = divmod(frame * size, 8)
        bits = np.unpackbits(data[first_byte : first_byte + (first_bit + size + 7) // 8], bitorder="little")
        yield bits[first_bit : first_bit + size].reshape(shape)


def _segment(description: Dataset) -> Segment:
    """Return a segment from its description in SegmentSequence."""
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
    """Return a coded concept; None without a code."""
    keywords = ("CodeValue", "LongCodeValue", "URNCodeValue")
    value = next((str(code.get(k)) for k in keywords if code.get(k)), "") if code is not None else ""
    if code is None or not value:
        return None
    return Term(value, str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeMeaning", "")))
