"""What the header of a scan states, read without its voxels: modality, series, part of the body, and size."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.errors import InputError
from napari_seg.formats.endings import nifti_ending
from napari_seg.formats.scan import Scan

if TYPE_CHECKING:
    from napari_seg.formats.channels import ChannelSet

MAX_SIDECAR_BYTES = 1 << 20

_MODALITIES = {"MRI": "MR", "PET": "PT", "CBCT": "CT", "CTA": "CT", "MRA": "MR"}
"""Other names of a modality -> its code in DICOM."""

_WORDS = {
    "CT": re.compile("ct|cta|cbct|ncct|cect"),
    "MR": re.compile("mri?|t1(w|c|ce|gd|n)?|t2(w|f|star)?|pdw?|flair|dwi|adc|swi|bold|mprage"),
    "PT": re.compile("pet|pt|suv"),
}
"""Words in the name of a file that state a modality, in lower case."""


@dataclass(frozen=True)
class ScanFacts:
    """What the headers of a scan state.

    Attributes:
        modality: code of the modality in DICOM, such as "CT"; "" if unknown.
        series: description of the series, not for messages, it may hold private words; "" if unknown.
        body_part: part of the body in DICOM's words, such as "CHEST"; "" if unknown.
        shape: columns, rows and slices as stored, (I, J, K) of a file with a grid.
        thickness_mm: thickness of a slice, or the distance of slices if it is not stated; NaN if unknown.
    """

    modality: str
    series: str = field(repr=False)
    body_part: str
    shape: tuple[int, int, int]
    thickness_mm: float

    @property
    def slices(self) -> int:
        """Number of slices, of all volumes of a DICOM series."""
        return self.shape[2]

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return prod(self.shape)


def modality_code(text: str) -> str:
    """Return DICOM's code of a modality: "MR" for "mri", "PT" for "PET"; any other word in upper case."""
    word = text.strip().upper()
    return _MODALITIES.get(word, word)


def facts_of(scan: Scan | ChannelSet) -> ScanFacts:
    """Return what the header of a scan states, of the first channel of several images.

    A NIfTI file states no modality; it is taken from the JSON file that dcm2niix and BIDS put next to it, or else from
    a word such as "ct" or "T1w" in the name of the file. Of a DICOM series the first header is read.

    Raises:
        InputError: the header can't be read.
    """
    if not isinstance(scan, Scan):
        return facts_of(scan.channels[0][1])
    if scan.format == "dicom":
        return _of_series(scan)
    file = scan.files[0]
    if scan.format == "nifti":
        from napari_seg.formats.nifti import stated_size

        sizes, lengths = stated_size(file)
    elif scan.format == "itk":
        from napari_seg.formats.itk import stated_size

        sizes, lengths = stated_size(file)
    elif scan.format == "image2d":
        from napari_seg.formats.image2d import stated_size as size_of_image

        (columns, rows), lengths = size_of_image(file), (math.nan,) * 3
        sizes = (columns, rows, 1)
    else:
        raise InputError("archive.nested", f"{file.name} can't be unpacked; unpack it first")
    beside = _sidecar(file) if scan.format == "nifti" else {}
    modality = modality_code(str(beside.get("Modality") or "")) or _modality_in(scan.name)
    series = str(beside.get("SeriesDescription") or beside.get("ProtocolName") or "")
    body_part = str(beside.get("BodyPartExamined") or beside.get("BodyPart") or "").upper()
    return ScanFacts(modality, series, body_part, (sizes[0], sizes[1], sizes[2]), lengths[2])


def _of_series(scan: Scan) -> ScanFacts:
    from napari_seg.formats.dicom.headers import read_header

    tags = read_header(scan.files[0]).tags

    def number(keyword: str) -> float:
        value = tags.get(keyword)
        return float(value) if isinstance(value, int | float) else math.nan

    frames, columns, rows = (number(keyword) for keyword in ("NumberOfFrames", "Columns", "Rows"))
    slices = len(scan.files) * (int(frames) if frames > 0 else 1)
    spacing_mm, thickness_mm = abs(number("SpacingBetweenSlices")), number("SliceThickness")
    return ScanFacts(
        modality_code(str(tags.get("Modality") or "")),
        str(tags.get("SeriesDescription") or tags.get("ProtocolName") or ""),
        str(tags.get("BodyPartExamined") or "").upper(),
        (int(columns) if columns > 0 else 0, int(rows) if rows > 0 else 0, slices),
        thickness_mm if thickness_mm > 0 else spacing_mm,
    )


def _sidecar(file: Path) -> dict[str, Any]:
    """Return the content of the JSON file next to an image; empty if there is none, or none that can be read."""
    path = file.with_name(f"{file.name.removesuffix(nifti_ending(file) or file.suffix)}.json")
    if not path.is_file():  # opening a pipe would block
        return {}
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(MAX_SIDECAR_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _modality_in(name: str) -> str:
    """Return the modality that the words of a name state; "" if they state none, or several."""
    words = re.split(r"[-_. ]+", name.casefold())
    found = {code for code, pattern in _WORDS.items() if any(pattern.fullmatch(word) for word in words)}
    return found.pop() if len(found) == 1 else ""
