"""DICOM files to series: tells images from reports, groups and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np

from napari_seg.errors import InputError
from napari_seg.formats.dicom.headers import (
    DIRECTORY,
    Header,
    claims_to_be_dicom,
    image_type,
    read_header,
    sop_class,
)
from napari_seg.formats.dicom.private_words import Tags, is_private, private_words, without_private_words, words

ORIENTATION_TOLERANCE = 1e-3
"""Difference between direction cosines, or relative one between pixel spacings, that a series may have in itself."""

_SCANNERS = re.compile("(Enhanced|LegacyConvertedEnhanced)?(CT|MR|PET|PositronEmissionTomography)ImageStorage")
_NOT_SCANS = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose",
    "RTIMAGE": "a picture of a treatment",
    "RTSTRUCT": "a set of contours",
    "RTPLAN": "a treatment plan",
    "PR": "a presentation state",
    "KO": "a selection of images",
    "SR": "a report",
    "REG": "a registration",
}


@dataclass(frozen=True)
class Series:
    """DICOM files that claim to be one series, in the order they were found; nothing else is checked yet.

    Attributes:
        name: such as `MR_T1w_sagittal_003`; see `series_name`.
        files: for a file whose header can't be read, that file alone.
    """

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the slices of one volume have in common.

    Attributes:
        orientation: six direction cosines; None where each frame has its own.
        rows: number of rows.
        columns: number of columns.
        spacing_mm: between rows, between columns; None where each frame has its own.
        image_type: DICOM's ImageType or FrameType, in full.
    """

    orientation: tuple[float, ...] | None
    rows: int
    columns: int
    spacing_mm: tuple[float, ...] | None
    image_type: tuple[str, ...]

    def difference(self, other: Kind) -> str:
        """Return what keeps two from one volume: "orientation", "size", "spacing" or "image_type"; "" if nothing."""
        if not _is_near(self.orientation, other.orientation, relative=False):
            return "orientation"
        if (self.rows, self.columns) != (other.rows, other.columns):
            return "size"
        if not _is_near(self.spacing_mm, other.spacing_mm, relative=True):
            return "spacing"
        return "" if self.image_type == other.image_type else "image_type"


def _is_near(one: Sequence[float] | None, other: Sequence[float] | None, *, relative: bool) -> bool:
    if one is None or other is None:
        return one is other
    return all(
        abs(a - b) <= ORIENTATION_TOLERANCE * (abs(b) if relative else 1) for a, b in zip(one, other, strict=True)
    )


@dataclass(eq=False)
class _Part:
    """Files of one series and one kind.

    Attributes:
        kind: of each.
        tags: of the first.
        files: with each its place among all.
        frames: how many slices they hold together.
    """

    kind: Kind
    tags: Tags
    files: list[tuple[int, Path]] = field(default_factory=list)
    frames: int = 0

    @property
    def may_be_a_volume(self) -> bool:
        """Whether it has two slices or more with usable directions and spacing, or they state their own."""
        if self.tags.get("PerFrameFunctionalGroupsSequence"):
            return self.frames > 1
        cosines, spacing_mm = self.kind.orientation, self.kind.spacing_mm
        if self.frames < 2 or cosines is None or spacing_mm is None:
            return False
        lengths = np.linalg.norm(np.reshape(cosines, (2, 3)), axis=1)
        return bool(np.abs(lengths - 1).max() <= ORIENTATION_TOLERANCE and min(spacing_mm) > 0)


def find_series(files: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str, str]]]:
    """The image series among some files of any kind, in the order of their first files; and what was left out.

    A series that mixes images of different kinds (magnitude and phase, a reformatted plane) becomes one series a kind,
    unless a kind has a single slice or no usable geometry. Left out are files that are not DICOM, objects that are no
    intensities (reports, segmentations, plans, dose) or have no pixels, localizers, and images without any geometry
    (secondary captures, X-rays) that are not in colour. A DICOM file whose header is damaged is a series of its own, so
    that reading it says what is wrong. Of each file only its path is kept, and of each series the first header.

    Returns:
        The series, and of each file that is in none the path, a code and a message.
    """
    groups: dict[tuple[str, ...], list[_Part]] = {}
    broken: list[tuple[int, Path]] = []
    left_out: list[tuple[Path, str, str]] = []
    private: dict[Path, frozenset[str]] = {}
    text = "is no scan of a known format"
    for n, path in enumerate(files):
        try:
            header = read_header(path)
        except InputError:
            if claims_to_be_dicom(path):
                broken.append((n, path))
            else:
                left_out.append((path, "skip.not_an_image", text))
            continue
        private[path.parent] = private.get(path.parent, frozenset()) | private_words(header.tags)
        if why := _no_scan(header):
            left_out.append((path, *why))
        else:
            _add(groups.setdefault(_series_key(path, header.tags), []), n, header)
    found: list[tuple[int, Series]] = []
    for n, path in broken:  # its own private words are not known; those of its neighbours are
        stem = without_private_words(path.with_suffix(""), private.get(path.parent, frozenset()))
        found.append((n, Series("_".join(words(stem)) or "unnamed", (path,))))
    text = "does not say where in the patient it lies"
    for every in groups.values():
        ought = any(_ought_to_lie_somewhere(part.tags) for part in every)
        parts = [
            part for part in every if ought and (_ought_to_lie_somewhere(part.tags) or not _is_captured(part.tags))
        ]
        if parts:
            found += _series_of(parts)
        for part in every:
            if part not in parts:
                left_out += [(path, "skip.no_geometry", text) for _, path in part.files]
    found.sort(key=lambda one: one[0])
    named = []
    for path, code, text in left_out:
        name = without_private_words(path, private.get(path.parent, frozenset())) or "a file"
        named.append((path, code, f"{name} {text}"))
    return [series for _, series in found], named


def _add(parts: list[_Part], n: int, header: Header) -> None:
    kind = _kind(header.tags)
    part = next((one for one in parts if not kind.difference(one.kind)), None)
    if part is None:
        part = _Part(kind, header.tags)
        parts.append(part)
    part.files.append((n, header.path))
    part.frames += _slices_in(header.tags)


def _series_of(parts: Sequence[_Part]) -> list[tuple[int, Series]]:
    """One series of all parts, or one a part if each may be a volume; each with the place of its first file."""
    name = series_name(parts[0].tags)
    if len(parts) == 1 or not all(part.may_be_a_volume for part in parts):
        files = sorted(file for part in parts for file in part.files)
        return [(files[0][0], Series(name, tuple(path for _, path in files)))]
    names = names_of_kinds([part.kind for part in parts])
    return [
        (part.files[0][0], Series(f"{name}_{own}".rstrip("_"), tuple(path for _, path in part.files)))
        for part, own in zip(parts, names, strict=True)
    ]


def _kind(tags: Tags) -> Kind:
    def numbers(keyword: str, count: int) -> tuple[float, ...] | None:
        try:
            values = tuple(float(value) for value in tags[keyword])
        except (KeyError, TypeError, ValueError):
            return None
        return values if len(values) == count else None

    orientation, spacing_mm = numbers("ImageOrientationPatient", 6), numbers("PixelSpacing", 2)
    return Kind(orientation, _whole(tags, "Rows"), _whole(tags, "Columns"), spacing_mm, image_type(tags))


def names_of_kinds(kinds: Sequence[Kind]) -> list[str]:
    """What tells kinds of images apart, fit for a file, such as `M_FFE` and `PHASE_MAP_P`; no two are equal."""
    planes = [plane_of(kind.orientation) for kind in kinds]
    sizes = [f"{kind.columns}x{kind.rows}" for kind in kinds]
    spacings = [f"{min(kind.spacing_mm or (0.0,)):.3g}mm".replace(".", "p") for kind in kinds]
    names = [""] * len(kinds)
    for words_of_all in (_tails([kind.image_type for kind in kinds]), planes, sizes, spacings):
        if len(set(names)) < len(names) and len(set(words_of_all)) > 1:  # the ones before do not tell all of them apart
            names = [f"{name}_{own}".strip("_") for name, own in zip(names, words_of_all, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name}_{n}".lstrip("_") for n, name in enumerate(names, start=1)]
    return names


def _tails(types: Sequence[tuple[str, ...]]) -> list[str]:
    """Of several image types the values that are not common to all; never nothing."""
    plain = [["".join(words(value)) for value in one] for one in types]
    columns = list(zip_longest(*plain, fillvalue=""))
    differing = [n for n, column in enumerate(columns) if len(set(column)) > 1]
    if differing and any(not any(columns[n][m] for n in differing) for m in range(len(types))):
        differing.insert(0, differing[0] - 1)  # AXIAL and AXIAL_ADD rather than nothing and ADD
    return ["_".join(columns[n][m] for n in differing if n >= 0 and columns[n][m])[:40] for m in range(len(types))]


def plane_of(orientation: Sequence[float] | None) -> str:
    """Return the plane that slices lie nearest to: axial, coronal or sagittal; "" where it is not known.

    Args:
        orientation: six direction cosines, of rows and columns.
    """
    if orientation is None:
        return ""
    normal = np.cross(orientation[:3], orientation[3:])
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]


def _no_scan(header: Header) -> tuple[str, str] | None:
    """Code and reason where an object can't be part of a scan."""
    tags = header.tags
    modality, kind = str(tags.get("Modality") or ""), sop_class(tags)
    if tags.get("SOPClassUID") == DIRECTORY:
        return "skip.not_an_image", "is a directory of DICOM files"
    if "Rows" not in tags or modality in _NOT_SCANS:
        what = _NOT_SCANS.get(modality) or "no image"
        return "skip.not_intensities", f"is {what}"
    is_described = "BitsAllocated" in tags and "PhotometricInterpretation" in tags
    if header.pixel_bytes == 0 and not (is_described and kind.endswith("ImageStorage")):
        return "skip.not_intensities", "has no pixels"  # an image whose pixels were cut off is refused instead
    if "LOCALIZER" in image_type(tags):
        return "skip.localizer", "is a localizer"
    return None


def series_name(tags: Tags) -> str:
    """A name for a series, fit for a file: modality, description and number, such as `MR_T1w_sagittal_003`.

    Words of the description that also stand in the patient's name or identifier, or name the people and the
    institution around, are left out.
    """
    private = private_words(tags)
    description = words(str(tags.get("SeriesDescription") or tags.get("ProtocolName") or ""))
    kept = [word for word in description if not is_private(word, private)]
    number = "_".join(words(str(tags.get("SeriesNumber") or "")))
    if len(number) > 3 and number in private:  # a shorter one is a coincidence: series 1 of patient 1
        number = ""
    parts = (
        "_".join(words(str(tags.get("Modality") or "DICOM"))),
        "_".join(kept)[:40].rstrip("_"),
        number and number.zfill(3),
    )
    return "_".join(part for part in parts if part)


def _series_key(path: Path, tags: Tags) -> tuple[str, ...]:
    study, series = str(tags.get("StudyInstanceUID") or ""), str(tags.get("SeriesInstanceUID") or "")
    patient = str(tags.get("PatientID") or "")  # careless copies give two patients the identifiers of one series
    if series:
        return patient, study, series
    # Anonymised too well; what lies in one folder under one number and description is taken for a series.
    return patient, study, str(path.parent), str(tags.get("SeriesNumber")), str(tags.get("SeriesDescription"))


def _ought_to_lie_somewhere(tags: Tags) -> bool:
    """Whether it has geometry, or is of a kind that must have: a CT without it is refused, a photograph passed over."""
    has_geometry = tags.get("PerFrameFunctionalGroupsSequence") or tags.get("DetectorInformationSequence")
    has_geometry = has_geometry or (tags.get("ImagePositionPatient") and tags.get("ImageOrientationPatient"))
    return bool(has_geometry) or _is_in_colour(tags) or bool(_SCANNERS.fullmatch(sop_class(tags)))


def _is_in_colour(tags: Tags) -> bool:
    """A photograph or an ultrasound image; a screen that was captured, which a scanner adds unasked, is passed over."""
    return not _is_captured(tags) and not str(tags.get("PhotometricInterpretation") or "").startswith("MONOCHROME")


def _is_captured(tags: Tags) -> bool:
    return sop_class(tags).endswith("SecondaryCaptureImageStorage")


def _slices_in(tags: Tags) -> int:
    return max(_whole(tags, "NumberOfFrames"), 1)


def _whole(tags: Tags, keyword: str) -> int:
    value = tags.get(keyword)
    return int(value) if isinstance(value, (int, float)) else 0
