"""Read and write label maps as 3D Slicer's .seg.nrrd: layers of labels with a table of segments in the header."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_seg.errors import InputError, Notice, OutputError, without_private_text
from napari_seg.formats.atomic import verified_write
from napari_seg.formats.endings import SEG_NRRD_ENDINGS
from napari_seg.formats.itk import ItkImage, name_for_itk, read_image, to_itk
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.volume import (
    MAX_LABEL,
    Segment,
    Segmentation,
    Term,
    as_labels,
    distinct_color,
    select_segments,
    smallest_label_type,
)

if TYPE_CHECKING:
    from SimpleITK import Image


def write_seg_nrrd(segmentation: Segmentation, path: Path) -> None:
    """Write a label map as compressed .seg.nrrd, and read it back before the file gets its name.

    An existing file is replaced.

    Raises:
        OutputError: `output.not_written`; `output.not_equal`, the file read back differs.
    """
    image = to_itk(segmentation.array, segmentation.grid)
    for key, value in _header_entries(segmentation).items():
        image.SetMetaData(key, value)
    with verified_write(path, SEG_NRRD_ENDINGS[0]) as hidden:
        hidden.touch()  # raises why it can't be written, which SimpleITK does not report
        try:
            _write_image(image, hidden)
        except RuntimeError:
            raise OutputError(
                "output.not_written", f"{path} could not be written; is there room, and a folder?"
            ) from None
        found = read_seg_nrrd(hidden)
        same = np.array_equal(found.array, segmentation.array) and found.grid.matches(segmentation.grid)
        if not same or [s.name for s in found.segments] != [s.name for s in segmentation.segments]:
            raise OutputError("output.not_equal", f"{path.name} differs when it is read back; try again")


def _write_image(image: Image, path: Path) -> None:
    import SimpleITK

    try:
        str(path).encode()
    except UnicodeEncodeError:  # SimpleITK ends the process if a path is not UTF-8
        with TemporaryFolder() as folder:
            copy = folder / f"labels{SEG_NRRD_ENDINGS[0]}"
            with name_for_itk(copy) as name:
                SimpleITK.WriteImage(image, name, useCompression=True)
            shutil.copyfile(copy, path)
    else:
        with name_for_itk(path) as name:
            SimpleITK.WriteImage(image, name, useCompression=True)


def read_seg_nrrd(path: Path, only: Sequence[str] = ()) -> Segmentation:
    """Read a label map from .seg.nrrd, with its segments by label; layers without common voxels are merged.

    Args:
        path: file to read.
        only: names of the segments to read; all if empty.

    Raises:
        InputError: `file.*`, `geometry.*`; `labels.overlap`, segments share voxels; `labels.type`, values are no
            labels; `labels.unknown`, a segment of `only` is missing.
    """
    image = read_image(path)
    text = f"{path.name} has a header whose segments can't be read ({{kind}}); export it again"
    with without_private_text(InputError, "file.bad_header", text):
        numbers = sorted({int(found[1]) for key in image.words if (found := re.match(r"Segment(\d+)_ID$", key))})
        # without shared layers, 3D Slicer up to 4.10 writes one for each segment, and does not say so
        own = (lambda n: n) if len(image.array) > 1 else (lambda n: 0)
        described = [(_segment(image.words, n), int(image.words.get(f"Segment{n}_Layer", own(n)))) for n in numbers]
    _check_layers(image, described, path.name)
    if len(image.array) > 1:
        return _merged(image, described, only, path.name)
    segments = sorted((segment for segment, _ in described), key=lambda segment: segment.label)
    return Segmentation(as_labels(image.array[0], path.name), image.grid, tuple(segments), notices=image.notices)


def seg_nrrd_names(path: Path) -> list[str]:
    """Return the names of the segments of a .seg.nrrd, each once.

    Raises:
        InputError: as `read_seg_nrrd`.
    """
    words = read_image(path).words
    keys = [key for key in words if re.match(r"Segment\d+_Name$", key)]
    return list(dict.fromkeys(words[key] for key in keys))


def _check_layers(image: ItkImage, described: Sequence[tuple[Segment, int]], name: str) -> None:
    """Refuse segments that are not assigned to voxels.

    Args:
        image: layers.
        described: segments with the numbers of their layers.
        name: name of the file in messages.

    Raises:
        InputError: `labels.layers`.
    """
    count = len(image.array)
    is_unassigned = any(not 0 <= layer < count for _, layer in described) or (count > 1 and not described)
    if is_unassigned or len({(segment.label, layer) for segment, layer in described}) < len(described):
        text = f"{name} holds {count} layer{'s' * (count > 1)}, and its segments are not assigned to them"
        raise InputError("labels.layers", f"{text}; expected a layer and a value of each; export it again")


def _merged(image: ItkImage, described: Sequence[tuple[Segment, int]], only: Sequence[str], name: str) -> Segmentation:
    """Merge several layers into one label map; if layers use the same values, labels are renumbered from 1."""
    values = [segment.label for segment, _ in described]
    labels = values if len(set(values)) == len(values) else list(range(1, len(values) + 1))
    segments = [replace(segment, label=label) for (segment, _), label in zip(described, labels, strict=True)]
    selected = select_segments(segments, only, name)
    array = np.zeros(image.grid.shape, smallest_label_type(max(labels)))
    undescribed = _undescribed(image, described)
    for segment, (described_as, layer) in zip(segments, described, strict=True):
        if segment in selected:
            inside = image.array[layer] == described_as.label
            if undescribed[layer] and not inside.any():
                text = f"{segment.name} has no voxel in {name}, whose layer {layer} has voxels of other values"
                raise InputError("labels.layers", f"{text} that no segment has; export it again")
            if overlap := int(np.count_nonzero(array[inside])):
                raise InputError(
                    "labels.overlap",
                    f"{segment.name} shares {overlap} voxels with other segments of {name}, and a label map holds one "
                    "label a voxel; name the segments to read",
                )
            array[inside] = segment.label
    notices = image.notices
    if (left_out := sum(undescribed)) and not only:
        text = f"{name} holds {left_out} voxels of values that it does not describe; they count as background"
        notices = (*notices, Notice("labels.undescribed", text))
    ordered = tuple(sorted(selected, key=lambda segment: segment.label))
    return Segmentation(array, image.grid, ordered, notices=notices)


def _undescribed(image: ItkImage, described: Sequence[tuple[Segment, int]]) -> list[int]:
    """Return for each layer the number of voxels whose value no segment has."""
    counts = [int(np.count_nonzero(layer)) for layer in image.array]
    for segment, layer in described:
        counts[layer] -= int(np.count_nonzero(image.array[layer] == segment.label))
    return counts


def _header_entries(segmentation: Segmentation) -> dict[str, str]:
    """Return Slicer's header entries of the segments (see its documentation of vtkMRMLSegmentationStorageNode)."""
    i, j, k = segmentation.grid.shape
    words = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for n, segment in enumerate(segmentation.segments):
        own = {
            "ID": f"Segment_{segment.label}",
            "Name": segment.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{value / 255:.6f}" for value in segment.color),
            "ColorAutoGenerated": "0",
            "Extent": f"0 {i - 1} 0 {j - 1} 0 {k - 1}",
            "LabelValue": str(segment.label),
            "Layer": "0",
            "Tags": f"TerminologyEntry:{_terminology(segment)}|" if segment.category and segment.kind else "",
        }
        words |= {f"Segment{n}_{key}": value for key, value in own.items()}
    return words


def _terminology(segment: Segment) -> str:
    """Return codes in Slicer's form: "...~SCT^123^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes~^^~^^"."""
    terms = (segment.category, segment.kind, segment.modifier)
    words = "~".join("^^" if term is None else f"{term.scheme}^{term.value}^{term.meaning}" for term in terms)
    return f"Segmentation category and type~{words}~Anatomic codes~^^~^^"


def _segment(words: dict[str, str], number: int) -> Segment:
    def word(key: str, otherwise: str = "") -> str:
        return words.get(f"Segment{number}_{key}", otherwise)

    label = int(word("LabelValue", "1"))  # as 3D Slicer reads it
    if not 1 <= label <= MAX_LABEL:
        background = ", which stands for background" if label == 0 else ""
        text = f"segment {number} has the value {label}{background}; expected 1 to {MAX_LABEL}"
        raise InputError("labels.type", text)
    stated = word("Color", word("DefaultColor"))  # the second is the key of older versions
    red, green, blue = (round(255 * float(value)) for value in (stated or "0 0 0").split())
    entry = re.search(r"TerminologyEntry:([^|]*)", word("Tags"))
    terms = [_term(text) for text in (entry[1].split("~")[1:4] if entry else ())]
    category, kind, modifier = (*terms, None, None, None)[:3]
    color = (red, green, blue) if stated else distinct_color(label)
    return Segment(label, word("Name", f"label {label}"), color, category=category, kind=kind, modifier=modifier)


def _term(text: str) -> Term | None:
    scheme, value, meaning = [*text.split("^"), "", ""][:3]
    return Term(value, scheme, meaning) if value else None
