"""DICOM files to series: reads headers, tells images from reports, groups and names."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_seg.errors import InputError

if TYPE_CHECKING:
    from pydicom.tag import BaseTag

Tags = Mapping[str, Any]
"""The values of a DICOM file, by keyword."""

_PRIVATE_KEYWORDS = (
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "OtherPatientIDs",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientBirthDate",
    "AccessionNumber",
    "InstitutionName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
)
_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "Modality",
    "ImageType",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *_PRIVATE_KEYWORDS,
)
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


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says about itself.

    Attributes:
        path: the file.
        tags: by keyword the values that decide what it is, where it lies and what its values mean; no pixels.
        transfer_syntax: how its pixels are stored; "" if it does not say.
        remaining_bytes: how much of the file is left where the header ends, pixels included.
        header_bytes: where the header ends, and the element that holds the pixels begins.
    """

    path: Path
    tags: Tags
    transfer_syntax: str
    remaining_bytes: int
    header_bytes: int


@dataclass(frozen=True)
class Series:
    """DICOM files that claim to be one series, in the order they were found; nothing else is checked yet.

    Attributes:
        name: such as `MR_T1w_sagittal_003`; see `series_name`.
        files: for a file whose header can't be read, that file alone.
    """

    name: str
    files: tuple[Path, ...]


def find_series(files: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str, str]]]:
    """The image series among some files of any kind, in the order of their first files; and what was left out.

    Left out are files that are not DICOM, objects that are no intensities (reports, segmentations, plans, dose),
    localizers, and images without any geometry (secondary captures, X-rays) that are not in colour. A DICOM file whose
    header is damaged is a series of its own, so that reading it says what is wrong.

    Returns:
        The series, and of each file that is in none the path, a code and a message.
    """
    groups: dict[tuple[str, ...], list[Header]] = {}
    broken: dict[tuple[str, ...], Series] = {}
    left_out: list[tuple[Path, str, str]] = []
    key: tuple[str, ...]
    for path in files:
        looks = _looks_like_dicom(path)
        if looks == "no":
            left_out.append((path, "skip.not_an_image", f"{path.name} is no scan of a known format"))
            continue
        try:
            header = read_header(path)
        except InputError:
            if looks == "yes":
                key = ("broken", str(path))
                groups[key] = []  # holds its place in the order
                broken[key] = Series(_safe(path.stem) or "unnamed", (path,))
            else:
                left_out.append((path, "skip.not_an_image", f"{path.name} is no scan of a known format"))
            continue
        if why := _no_scan(header.tags):
            code, text = why
            left_out.append((path, code, f"{path.name} {text}"))
        else:
            groups.setdefault(_series_key(path, header.tags), []).append(header)
    found = []
    for key, members in groups.items():
        if key in broken:
            found.append(broken[key])
        elif any(_ought_to_lie_somewhere(member.tags) for member in members):
            found.append(Series(series_name(members[0].tags), tuple(member.path for member in members)))
        else:
            text = "does not say where in the patient it lies"
            left_out += [(member.path, "skip.no_geometry", f"{member.path.name} {text}") for member in members]
    return found, left_out


def _no_scan(tags: Tags) -> tuple[str, str] | None:
    """Code and reason where an object can't be part of a scan."""
    modality = str(tags.get("Modality") or "")
    if "Rows" not in tags or modality in _NOT_SCANS:
        what = _NOT_SCANS.get(modality) or "no image"
        return "skip.not_intensities", f"is {what}"
    if "LOCALIZER" in image_type(tags):
        return "skip.localizer", "is a localizer"
    return None


def read_header(path: Path) -> Header:
    """The few tags of one file that decide what it is and where it lies.

    Raises:
        InputError: `file.empty`, `file.unreadable`, `file.not_dicom`, `file.bad_header`, or `file.truncated`: it ends
            before the image begins.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
    if not status.st_size:
        raise InputError("file.empty", f"{path.name} has 0 bytes; copy or export it again")
    return _read_header(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)  # a series is found first and read afterwards
def _read_header(path: Path, size: int, mtime_ns: int) -> Header:
    import pydicom

    try:
        with quiet_pydicom(), open(path, "rb") as stream:
            # `force`: files without preamble are sound otherwise; whether this is DICOM at all shows below.
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_tags(), force=True)
            header_bytes = stream.tell()
            # pydicom converts values when they are first touched; a malformed one is to fail here, not anywhere later.
            tags = {element.keyword: element.value for element in dataset}
            syntax = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    except EOFError:
        raise _cut(path) from None
    except OSError as error:
        raise InputError("file.unreadable", f"{path.name} can't be read: {error.strerror}") from error
    except Exception as error:
        # Not chained: pydicom quotes values in its errors, and those may be names.
        kind = type(error).__name__
        raise InputError("file.bad_header", f"{path.name} has a DICOM header that can't be read ({kind})") from None
    if "Rows" not in tags:
        if not tags.get("SOPClassUID") and not tags.get("Modality"):
            raise InputError("file.not_dicom", f"{path.name} is not a DICOM file of any known kind")
        if _sop_class(tags).endswith("ImageStorage"):
            raise _cut(path)
    return Header(path, tags, syntax, size - header_bytes, header_bytes)


@lru_cache(maxsize=1)
def _tags() -> list[BaseTag]:
    from pydicom.tag import Tag

    return [Tag(keyword) for keyword in _KEYWORDS]


def series_name(tags: Tags) -> str:
    """A name for a series, fit for a file: modality, description and number, such as `MR_T1w_sagittal_003`.

    Words of the description that also stand in the patient's name or identifier, or name the people and the
    institution around, are left out.
    """
    private = _private_words(tags)
    description = _words(str(tags.get("SeriesDescription") or tags.get("ProtocolName") or ""))
    kept = [word for word in description if not _is_private(word, private)]
    number = _safe(str(tags.get("SeriesNumber") or ""))
    if len(number) > 3 and number in private:  # a shorter one is a coincidence: series 1 of patient 1
        number = ""
    parts = (
        _safe(str(tags.get("Modality") or "DICOM")),
        "_".join(kept)[:40].rstrip("_"),
        number and number.zfill(3),
    )
    return "_".join(part for part in parts if part)


def public_name(text: str, tags: Tags) -> str:
    """A text, such as a folder's name, without words that stand in a file's private attributes; "" if none is left."""
    values = " ".join(str(tags.get(keyword) or "") for keyword in _PRIVATE_KEYWORDS).casefold()
    if any(word in text.casefold() for word in re.findall(r"\w{2,}", values) if not word.isascii()):
        return ""
    private, words = _private_words(tags), _words(text)
    kept = [word for word in words if not _is_private(word, private)]
    return text if kept == words else "_".join(kept)


def _private_words(tags: Tags) -> set[str]:
    private: set[str] = set()
    for keyword in _PRIVATE_KEYWORDS:
        words = _words(str(tags.get(keyword) or ""))
        private |= {*words, "".join(words)} - {""}
    return private


def image_type(tags: Tags) -> tuple[str, ...]:
    """The values of ImageType; empty if the file has none."""
    values = tags.get("ImageType") or ()
    return (values,) if isinstance(values, str) else tuple(values)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silences pydicom's warnings while it reads: they quote header values, and those may be names."""
    import pydicom.config

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _looks_like_dicom(path: Path) -> Literal["yes", "maybe", "no"]:
    """What the first bytes say; "maybe" where only a first tag stands that a file without preamble would have."""
    if path.suffix.lower() == ".dcm":
        return "yes"
    try:
        with open(path, "rb") as stream:
            head = stream.read(132)
    except OSError:
        return "yes"  # a slice we may not open must not just be missing; reading it says why
    if head[128:] == b"DICM":
        return "yes"
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    return "maybe" if little or big else "no"


def _series_key(path: Path, tags: Tags) -> tuple[str, ...]:
    study, series = str(tags.get("StudyInstanceUID") or ""), str(tags.get("SeriesInstanceUID") or "")
    if series:
        return study, series
    # Anonymised too well; what lies in one folder under one number and description is taken for a series.
    return study, str(path.parent), str(tags.get("SeriesNumber")), str(tags.get("SeriesDescription"))


def _ought_to_lie_somewhere(tags: Tags) -> bool:
    """Whether it has geometry, or is of a kind that must have: a CT without it is refused, a photograph passed over."""
    has_geometry = "PerFrameFunctionalGroupsSequence" in tags or bool(
        tags.get("ImagePositionPatient") and tags.get("ImageOrientationPatient")
    )
    return has_geometry or _is_in_colour(tags) or bool(_SCANNERS.fullmatch(_sop_class(tags)))


def _is_in_colour(tags: Tags) -> bool:
    """A photograph or an ultrasound image; a screen that was captured, which a scanner adds unasked, is passed over."""
    captured = _sop_class(tags).endswith("SecondaryCaptureImageStorage")
    return not captured and not str(tags.get("PhotometricInterpretation") or "").startswith("MONOCHROME")


def _sop_class(tags: Tags) -> str:
    """Such as `CTImageStorage`; "" where it is missing or unknown."""
    return str(getattr(tags.get("SOPClassUID"), "keyword", ""))


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z0-9]+", plain)


def _is_private(word: str, private: set[str]) -> bool:
    word = word.lower()
    return any(p.lower() == word or (len(p) >= 3 and p.lower() in word) for p in private)


def _safe(text: str) -> str:
    return "_".join(_words(text))


def _cut(path: Path) -> InputError:
    return InputError("file.truncated", f"{path.name} ends inside its header; copy or export it again")
