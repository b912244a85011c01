"""One DICOM file: what its header says, and what it is called without the names of people."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from sys import intern
from typing import IO, TYPE_CHECKING, Any, Literal

from napari_seg.errors import InputError
from napari_seg.formats.dicom.volumes import MARKS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

Tags = Mapping[str, Any]
"""The values of a DICOM file, by keyword: plain numbers and strings, or tuples of them."""

DIRECTORY = "1.2.840.10008.1.3.10"
"""The class of a DICOMDIR, the table of contents of a disk."""

DEFLATED = "1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF
_UNKNOWN = "is not a DICOM file of any known kind"
_CUT = "ends inside its header; copy or export it again"

MAX_ELEMENTS = 20_000
"""More than this, sequences counted as one, are no header of an image."""

_PRIVATE_KEYWORDS = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "AccessionNumber",
    "AdmissionID",
    "InstitutionName",
    "InstitutionAddress",
)
"""Besides those whose values are names of persons, whoever they are."""

_NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImageType",
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
)
"""A file in which one of these can't be read is refused; of the others the value counts as missing."""

_KEYWORDS = (
    *_NEEDED,
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "Modality",
    "InstanceNumber",
    "SpacingBetweenSlices",
    "SliceThickness",
    "LossyImageCompression",
)
_SEQUENCES = (
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DetectorInformationSequence",
)
"""Of these only whether they are there is kept: an enhanced object may describe thousands of frames."""


@dataclass(frozen=True, eq=False, slots=True)
class Header:
    """What one file says about itself: a few numbers and strings, whatever the size of its header.

    Attributes:
        path: the file.
        tags: by keyword the values that decide what it is, where it lies and what its values mean; no pixels. Of
            sequences only that they are there.
        transfer_syntax: how its pixels are stored; "" if it does not say.
        pixel_offset: where in the file the values of its pixels begin.
        pixel_bytes: how long the file says that they are; None if it does not, as of compressed ones; 0 if it has none.
        remaining_bytes: how much of the file is left from there on.
    """

    path: Path
    tags: Tags
    transfer_syntax: str
    pixel_offset: int
    pixel_bytes: int | None
    remaining_bytes: int

    @property
    def label(self) -> str:
        """What a message calls the file."""
        return label_of(self.path, self.tags)


def read_header(path: Path, name: str = "") -> Header:
    """Read the few tags of one file that decide what it is and where it lies.

    Args:
        path: of the file.
        name: what a message calls it if it can't be read, since its own name may be a patient's; "": its own.

    Raises:
        InputError: `file.empty`, `file.unreadable`, `file.not_dicom`, `file.bad_header`, or `file.truncated`: it ends
            before the image begins.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError("file.unreadable", f"{name or path.name} can't be read: {error.strerror}") from error
    if not status.st_size:
        raise InputError("file.empty", f"{name or path.name} has 0 bytes; copy or export it again")
    try:
        return _read_header(path, status.st_size, status.st_mtime_ns)
    except InputError as error:
        raise InputError(error.code, f"{name or path.name} {error.message}") from None


@lru_cache(maxsize=4096)  # a series is found first and read afterwards
def _read_header(path: Path, size: int, mtime_ns: int) -> Header:
    """As `read_header`; messages lack the name at their beginning."""
    from pydicom.filereader import read_partial

    try:
        with quiet_pydicom(), open(path, "rb") as stream:
            if _begins_with_zeros(stream):
                text = "holds zeros where a DICOM header begins, so it was not copied whole; copy or export it again"
                raise InputError("file.not_dicom", text)
            stream.seek(0)
            # `force`: files without preamble are sound otherwise; whether this is DICOM at all shows below.
            dataset = read_partial(stream, _stop_behind_header(), specific_tags=list(_tags()), force=True)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID") or "")
            tags = _plain_tags(dataset)
            offset, pixel_bytes = stream.tell(), None
            if syntax != DEFLATED:  # there the stream has ended
                is_implicit, is_little = dataset.original_encoding
                length_bytes, pixel_bytes = _pixel_element(stream.read(12), bool(is_implicit), bool(is_little))
                offset += length_bytes
    except EOFError:
        raise InputError("file.truncated", _CUT) from None
    except OSError as error:
        raise InputError("file.unreadable", f"can't be read: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:
        # Not chained: pydicom quotes values in its errors, and those may be names.
        kind = type(error).__name__
        raise InputError("file.bad_header", f"has a DICOM header that can't be read ({kind})") from None
    if "Rows" not in tags:
        if not tags.get("SOPClassUID") and not tags.get("Modality"):
            raise InputError("file.not_dicom", _UNKNOWN)
        if sop_class(tags).endswith("ImageStorage"):
            raise InputError("file.truncated", _CUT)
    return Header(path, tags, syntax, offset, pixel_bytes, size - offset)


def looks_like_dicom(head: bytes) -> Literal["yes", "maybe", "no"]:
    """What the first 132 bytes say; "maybe" where only a first tag stands that a file without preamble would have."""
    if head[128:] == b"DICM":
        return "yes"
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    return "maybe" if little or big else "no"


def _begins_with_zeros(stream: IO[bytes]) -> bool:
    """Whether zeros stand where the file's own group or the one behind it begins; pydicom parses megabytes of them."""
    head = stream.read(144)
    start = 132 if head[128:132] == b"DICM" else 0
    if head[start : start + 8] == b"\2\0\0\0UL\4\0":  # says how long the file's own group is
        stream.seek(start + 12 + int.from_bytes(head[start + 8 : start + 12], "little"))
        return stream.read(8) == bytes(8)
    return head[start : start + 8] == bytes(8)


def _stop_behind_header() -> Callable[[BaseTag, str | None, int], bool]:
    elements = count()

    def is_behind(tag: BaseTag, vr: str | None, length: int) -> bool:
        # No file holds an element of group 0, which zeros look like; nor does a header go on for ever.
        number = int(tag)  # tags compare slowly
        if number < 0x00020000 or next(elements) > MAX_ELEMENTS:
            raise InputError("file.not_dicom", _UNKNOWN)
        return number >= 0x7FE00008

    return is_behind


def _pixel_element(start: bytes, is_implicit: bool, is_little: bool) -> tuple[int, int | None]:
    """How many bytes stand before the values of the pixels, and how many bytes they claim, from the element's start."""
    order: Literal["little", "big"] = "little" if is_little else "big"
    if int.from_bytes(start[:2], order) != 0x7FE0:
        return 0, 0
    first = 8 if is_implicit else 12
    length = int.from_bytes(start[first - 4 : first], order)
    return first, None if length == _UNDEFINED else length


@lru_cache(maxsize=1)
def _tags() -> tuple[BaseTag, ...]:
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    keywords = (*_KEYWORDS, *_SEQUENCES, *private_keywords(), *(mark.name for mark in MARKS if mark.tag is None))
    known = (tag_for_keyword(keyword) for keyword in keywords)
    return tuple(Tag(tag) for tag in (*known, *(mark.tag for mark in MARKS)) if tag is not None)


def _plain_tags(dataset: Dataset) -> dict[str, Any]:
    """Return plain values by keyword, those of `MARKS` that have none by their names."""
    from pydicom.datadict import keyword_for_tag

    names = {mark.tag: mark.name for mark in MARKS if mark.tag is not None}
    tags: dict[str, Any] = {}
    for tag in dataset.keys():  # noqa: SIM118  # items would be converted
        name = names.get(int(tag)) or intern(keyword_for_tag(tag))
        if name in _SEQUENCES:
            raw = dataset.get_item(tag)
            tags[name] = bool(raw is not None and raw.value)
            if tags[name] and name == "DetectorInformationSequence":  # of planar images it gives no place
                tags[name] = "ImagePositionPatient" in dataset[tag].value[0]
            continue
        try:
            # pydicom converts values when they are first touched; a malformed one is to fail here, not anywhere later.
            tags[name] = _plain(dataset[tag].value)
        except Exception:
            if name in _NEEDED:
                raise
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:  # it stands nowhere else
        tags["SOPClassUID"] = DIRECTORY
    return tags


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bytes):
        return value if value is None or len(value) <= 64 else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if hasattr(value, "__iter__") and not isinstance(value, str) and not hasattr(value, "family_name"):
        return tuple(_plain(part) for part in value)
    return intern(str(value))


def file_label(path: Path) -> str:
    """Return what a message calls a file of any kind: if it is DICOM, its name without private words."""
    try:
        if not path.is_file():  # opening a pipe would block
            return path.name
        with path.open("rb") as stream:
            looks = looks_like_dicom(stream.read(132))
        return path.name if looks == "no" else read_header(path).label
    except OSError:
        return path.name
    except InputError:  # which of its words are private is not known
        return "the DICOM file" if looks == "yes" else path.name


def label_of(path: Path, tags: Tags) -> str:
    """The name of a file without words that stand in its private attributes; its instance number if none is left."""
    number = tags.get("InstanceNumber")
    nameless = "the DICOM file" if number is None else f"instance {number}"
    return without_private_words(path, private_words(tags)) or nameless


def public_name(text: str, tags: Tags) -> str:
    """A text, such as a folder's name, without words that stand in a file's private attributes; "" if none is left."""
    return _without(text, private_words(tags))


@lru_cache(maxsize=1024)  # asked for each frame of a file
def without_private_words(path: Path, private: frozenset[str]) -> str:
    """The name of a file without some words; "" if none is left."""
    suffix = path.suffix if re.fullmatch(r"\.[A-Za-z]{1,5}", path.suffix) else ""
    name = _without(path.name.removesuffix(suffix), private)
    return name and name + suffix


def _without(text: str, private: frozenset[str]) -> str:
    if any(word in text.casefold() for word in private if not word.isascii()):
        return ""
    found = words(text)
    kept = [word for word in found if not is_private(word, private)]
    return text if kept == found else "_".join(kept)


def private_words(tags: Tags) -> frozenset[str]:
    """Every word of the attributes that name the patient, other persons and the institution, in lower case."""
    return _private_words(tuple(str(tags[keyword]) for keyword in private_keywords() if tags.get(keyword)))


@lru_cache(maxsize=1024)  # the files of one patient share them
def _private_words(values: tuple[str, ...]) -> frozenset[str]:
    private: set[str] = set()
    for value in values:
        found = [word.lower() for word in words(value)]
        private |= {*found, "".join(found)} - {""}
        private |= {word for word in re.findall(r"\w{2,}", value.casefold()) if not word.isascii()}
    return frozenset(private)


@lru_cache(maxsize=1)
def private_keywords() -> tuple[str, ...]:
    """The keywords of the attributes whose words appear in no name and no message."""
    from pydicom.datadict import DicomDictionary

    return (*_PRIVATE_KEYWORDS, *(entry[4] for entry in DicomDictionary.values() if entry[0] == "PN"))


def is_private(word: str, private: frozenset[str]) -> bool:
    """Whether a word is one of some, or has one of three letters or more in it."""
    word = word.lower()
    return any(p == word or (len(p) >= 3 and p in word) for p in private)


def words(text: str) -> list[str]:
    """The words of a text in plain letters, without accents."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[A-Za-z0-9]+", plain)


def image_type(tags: Tags) -> tuple[str, ...]:
    """The values of ImageType; empty if the file has none."""
    values = tags.get("ImageType") or ()
    return (values,) if isinstance(values, str) else tuple(str(value) for value in values)


def sop_class(tags: Tags) -> str:
    """Such as `CTImageStorage`; "" where it is missing or unknown."""
    from pydicom.uid import UID

    return UID(str(tags.get("SOPClassUID") or "")).keyword


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silences pydicom's warnings while it reads: they quote header values, and those may be names."""
    import pydicom.config

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield
