"""Find the image series among files: leave out other DICOM objects, group files into series, and name the series."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from napari_seg.formats.dicom.kinds import ORIENTATION_TOLERANCE, Kind, is_one_stack, names_of_kinds
from napari_seg.formats.dicom.private_words import Tags, private_words, public_words, without_private_words, words

_SCANNERS = re.compile("(Enhanced|LegacyConvertedEnhanced)?(CT|MR|PET|PositronEmissionTomography)ImageStorage")
_NOT_SCANS = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose",
    "RTIMAGE": "an image of a treatment",
    "RTSTRUCT": "a set of contours",
    "RTPLAN": "a treatment plan",
    "PR": "a presentation state",
    "KO": "a selection of images",
    "SR": "a report",
    "REG": "a registration",
}


@dataclass(frozen=True)
class Series:
    """DICOM files with the identifiers of one series, in the order in which they were found; geometry is unchecked.

    Attributes:
        name: name such as `MR_T1w_sagittal_003`; see `series_name`.
        files: files of the series; a file with an unreadable header is a series of its own.
    """

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class SeriesWords:
    """What the header of a series says about the kind of its images; not for messages, it may hold private words.

    Attributes:
        study: identifiers of patient and study.
        texts: description, protocol and sequence, the most telling first.
        has_contrast: whether a contrast agent was given.
    """

    study: tuple[str, str] = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)
    has_contrast: bool


@dataclass(eq=False)
class _Part:
    """Files of one series whose images are of one kind.

    Attributes:
        kind: kind of the images.
        tags: header values of the first file.
        files: files, each with its number among all files.
        frames: total number of slices.
        positions: position of each file.
    """

    kind: Kind
    tags: Tags
    files: list[tuple[int, Path]] = field(default_factory=list)
    frames: int = 0
    positions: list[Any] = field(default_factory=list)

    @property
    def may_be_a_volume(self) -> bool:
        """Return whether there are two slices or more with a usable orientation and spacing, or with their own ones."""
        if self.tags.get("PerFrameFunctionalGroupsSequence"):
            return self.frames > 1
        cosines, spacing_mm = self.kind.orientation, self.kind.spacing_mm
        if self.frames < 2 or cosines is None or spacing_mm is None:
            return False
        lengths = np.linalg.norm(np.reshape(cosines, (2, 3)), axis=1)
        return bool(np.abs(lengths - 1).max() <= ORIENTATION_TOLERANCE and min(spacing_mm) > 0)


def find_series(
    files: Sequence[Path], others: Container[Path] = frozenset()
) -> tuple[list[Series], list[tuple[Path, str, str]]]:
    """Return the image series among files of any format, in the order of their first files, and the files left out.

    A series that mixes images of different kinds (magnitude and phase, a reformatted plane) is split by kind, unless
    one kind has a single slice or no usable geometry, or the slices of kinds that differ only in the image type form
    one stack. Files are left out if they are not DICOM, hold no intensities (reports, segmentations, plans, dose) or no
    pixels, are localizers, or are grey images without any geometry (secondary captures, X-rays). A DICOM file with a
    damaged header becomes a series of its own, so that reading it reports what is wrong. Only the paths and positions
    of the files and the first header of each series are kept.

    Args:
        files: files of any format.
        others: those that are known to be no DICOM files.

    Returns:
        The series; and for each file left out its path, a code and a message.
    """
    groups: dict[tuple[str, ...], list[_Part]] = {}
    broken: list[tuple[int, Path]] = []
    left_out: list[tuple[Path, str, str]] = []
    private: dict[Path, frozenset[str]] = {}
    text = "is no scan of a known format"
    for n, path in enumerate(files):
        if path in others:
            left_out.append((path, "skip.not_an_image", text))
            continue
        try:
            header = read_header(path)
        except InputError:
            if claims_to_be_dicom(path):
                broken.append((n, path))
            else:
                left_out.append((path, "skip.not_an_image", text))
            continue
        folder, found_words = path.parent, private_words(header.tags)
        known = private.get(folder)
        if known is None or not found_words <= known:
            private[folder] = found_words | (known or frozenset())
        if why := _reason_to_leave_out(header):
            left_out.append((path, *why))
        else:
            _add(groups.setdefault(_series_key(path, header.tags), []), n, header)
    found: list[tuple[int, Series]] = []
    for n, path in broken:  # its own private words are unknown; those of its neighbours are used
        stem = without_private_words(path.with_suffix(""), private.get(path.parent, frozenset()))
        found.append((n, Series("_".join(words(stem)) or "unnamed", (path,))))
    text = "does not say where in the patient it lies"
    for every in groups.values():
        is_expected = any(_must_have_geometry(part.tags) for part in every)
        parts = [
            part for part in every if is_expected and (_must_have_geometry(part.tags) or not _is_captured(part.tags))
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
    """Add a file, the n-th of all, to the part of its kind."""
    kind = _kind(header.tags)
    part = next((one for one in parts if one.kind is kind or not kind.difference(one.kind)), None)
    if part is None:
        part = _Part(kind, header.tags)
        parts.append(part)
    part.files.append((n, header.path))
    part.frames += _slices_in(header.tags)
    part.positions.append(header.tags.get("ImagePositionPatient"))


def _series_of(parts: Sequence[_Part]) -> list[tuple[int, Series]]:
    """Return one series of all parts, or one for each if each may be a volume, with the number of its first file."""
    name = series_name(parts[0].tags)
    parts = _united(parts)
    if len(parts) == 1 or not all(part.may_be_a_volume for part in parts):
        files = sorted(file for part in parts for file in part.files)
        return [(files[0][0], Series(name, tuple(path for _, path in files)))]
    names = names_of_kinds([part.kind for part in parts])
    return [
        (part.files[0][0], Series(f"{name}_{kind}".rstrip("_"), tuple(path for _, path in part.files)))
        for part, kind in zip(parts, names, strict=True)
    ]


def _united(parts: Sequence[_Part]) -> list[_Part]:
    """Return parts; those that differ only in the image type and whose slices form one stack become one part."""
    groups: list[list[_Part]] = []
    for part in parts:
        group = next((one for one in groups if part.kind.difference(one[0].kind) == "image_type"), None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    united: list[_Part] = []
    for group in groups:
        files = sorted(file for part in group for file in part.files)
        stated = (_numbers(position, 3) for part in group for position in part.positions)
        positions = [position for position in stated if position is not None]
        cosines, is_known = group[0].kind.orientation, len(positions) == len(files)
        if len(group) > 1 and cosines is not None and is_known and is_one_stack(positions, cosines):
            united.append(_Part(group[0].kind, group[0].tags, files, sum(part.frames for part in group)))
        else:
            united += group
    return united


def _kind(tags: Tags) -> Kind:
    """Return the kind of the images of a file; of an enhanced object, without the geometry of its frames."""
    stated = tags.get("ImageOrientationPatient"), tags.get("PixelSpacing")
    return _kind_of(*stated, _whole(tags, "Rows"), _whole(tags, "Columns"), image_type(tags))


@lru_cache(maxsize=1024)  # the files of a series share these values
def _kind_of(orientation: Any, spacing_mm: Any, rows: int, columns: int, types: tuple[str, ...]) -> Kind:
    return Kind(_numbers(orientation, 6), rows, columns, _numbers(spacing_mm, 2), types)


def _numbers(stated: Any, count: int) -> tuple[float, ...] | None:
    """Return so many numbers; None for anything else."""
    try:
        values = tuple(float(value) for value in stated)
    except (TypeError, ValueError):
        return None
    return values if len(values) == count else None


def _reason_to_leave_out(header: Header) -> tuple[str, str] | None:
    """Return a code and a reason if an object can't be part of a scan; otherwise None."""
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
    """Return a name for a series, fit for a file name: modality, description and number, as `MR_T1w_sagittal_003`.

    Private words (see `private_words`) of the description are left out.
    """
    private = private_words(tags)
    kept = public_words(str(tags.get("SeriesDescription") or tags.get("ProtocolName") or ""), private)
    number = "_".join(words(str(tags.get("SeriesNumber") or "")))
    if len(number) > 3 and number in private:  # a shorter one is a coincidence: series 1 of patient 1
        number = ""
    parts = (
        "_".join(words(str(tags.get("Modality") or "DICOM"))),
        "_".join(kept)[:40].rstrip("_"),
        number and number.zfill(3),
    )
    return "_".join(part for part in parts if part)


def words_of_series(file: Path) -> SeriesWords:
    """Return what the header of one file of a series says about its images.

    Raises:
        InputError: as of `read_header`.
    """
    tags = read_header(file).tags
    texts = (str(tags.get(keyword) or "") for keyword in ("SeriesDescription", "ProtocolName", "SequenceName"))
    agent = str(tags.get("ContrastBolusAgent") or "").strip().lower()
    study = (patient_of(file), str(tags.get("StudyInstanceUID") or ""))
    return SeriesWords(study, tuple(filter(None, texts)), agent not in ("", "no", "none"))


def patient_of(file: Path) -> str:
    """Return the identifier of the patient in a file, not for messages; "" if it states none."""
    return str(read_header(file).tags.get("PatientID") or "")


def study_of(file: Path) -> str:
    """Return the identifier of the study in a file, not for messages; "" if it states none."""
    return str(read_header(file).tags.get("StudyInstanceUID") or "")


def series_of(file: Path) -> str:
    """Return the identifier of the series in a file, not for messages; "" if it states none."""
    return str(read_header(file).tags.get("SeriesInstanceUID") or "")


def _series_key(path: Path, tags: Tags) -> tuple[str, ...]:
    """Return what the files of one series have in common."""
    study, series = str(tags.get("StudyInstanceUID") or ""), str(tags.get("SeriesInstanceUID") or "")
    patient = str(tags.get("PatientID") or "")  # copies may give two patients the identifiers of one series
    if series:
        return patient, study, series
    # Identifiers were removed: files of one folder with one series number and description count as a series.
    return patient, study, str(path.parent), str(tags.get("SeriesNumber")), str(tags.get("SeriesDescription"))


def _must_have_geometry(tags: Tags) -> bool:
    """Return whether images have geometry or require it: a CT without it is refused, a photograph is left out."""
    has_geometry = tags.get("PerFrameFunctionalGroupsSequence") or tags.get("DetectorInformationSequence")
    has_geometry = has_geometry or (tags.get("ImagePositionPatient") and tags.get("ImageOrientationPatient"))
    return bool(has_geometry) or _is_in_colour(tags) or bool(_SCANNERS.fullmatch(sop_class(tags)))


def _is_in_colour(tags: Tags) -> bool:
    """Return whether images are in colour, as photographs and ultrasound; captured screens do not count."""
    return not _is_captured(tags) and not str(tags.get("PhotometricInterpretation") or "").startswith("MONOCHROME")


def _is_captured(tags: Tags) -> bool:
    """Return whether an image is a secondary capture, which scanners add of their screens."""
    return sop_class(tags).endswith("SecondaryCaptureImageStorage")


def _slices_in(tags: Tags) -> int:
    return max(_whole(tags, "NumberOfFrames"), 1)


def _whole(tags: Tags, keyword: str) -> int:
    """Return a whole number; 0 if it is missing or no number."""
    value = tags.get(keyword)
    return int(value) if isinstance(value, (int, float)) else 0
