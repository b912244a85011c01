"""Read the few attributes of a DICOM file that the program needs.

`read_header` keeps the headers that it has read, so that a series that was found is read without parsing them again.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from sys import intern
from typing import IO, TYPE_CHECKING, Any, Literal

from napari_seg.errors import InputError
from napari_seg.formats.dicom.plain_header import MAX_BYTES, PlainHeader, plain_header
from napari_seg.formats.dicom.private_words import Tags, label_of, private_keywords
from napari_seg.formats.dicom.volumes import VOLUME_ATTRIBUTES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag
    from pydicom.uid import UID

DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, the table of contents of a disk."""

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
"""Transfer syntaxes of uncompressed pixels: little endian with implicit or explicit VR, big endian, and deflated."""

_PLAIN_UID = re.compile(rb"[0-9.]+\0?")
_PLAIN_NUMBERS = re.compile(rb"(?: *[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)? *(?:\\(?!$)|$))+")

_UNDEFINED = 0xFFFFFFFF
UNKNOWN = "is not a DICOM file of any known kind"
"""End of the message about a file that is no DICOM file."""

_CUT = "ends inside its header; copy or export it again"

MAX_ELEMENTS = 20_000
"""Maximum number of elements in the header of an image; a sequence counts as one."""

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
"""Attributes that must be readable; an unreadable value of any other attribute counts as missing."""

_KEYWORDS = (
    *_NEEDED,
    "FrameOfReferenceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "Modality",
    "BodyPartExamined",
    "InstanceNumber",
    "SpacingBetweenSlices",
    "SliceThickness",
    "LossyImageCompression",
    "ContrastBolusAgent",
    "BurnedInAnnotation",
)
_SEQUENCES = (
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DetectorInformationSequence",
)
"""Sequences of which only their presence is kept: an enhanced object may describe thousands of frames."""


@dataclass(frozen=True, eq=False, slots=True)
class Header:
    """A few numbers and strings of a file's header, whatever its size.

    Attributes:
        path: the file.
        tags: values by keyword: SOP class, identifiers, geometry, meaning of the pixels; `True` for a sequence.
        transfer_syntax: UID of the transfer syntax; "" if the file does not state it.
        pixel_offset: position in the file at which the pixels begin, in bytes.
        pixel_bytes: length of the pixels that the file states, in bytes; None for compressed pixels, which state none;
            0 without pixels.
        remaining_bytes: bytes in the file from `pixel_offset` on.
    """

    path: Path
    tags: Tags
    transfer_syntax: str
    pixel_offset: int
    pixel_bytes: int | None
    remaining_bytes: int

    @property
    def label(self) -> str:
        """Return the name of the file for messages, without private words."""
        return label_of(self.path, self.tags)


def read_header(path: Path, name: str = "") -> Header:
    """Read the few attributes of one file that decide what it is and where it lies.

    Args:
        path: the file.
        name: name of the file for messages if it can't be read, since its own name may be a patient's; "": its own.

    Raises:
        InputError: `file.empty`, `file.unreadable`, `file.not_dicom`, `file.bad_header`, or `file.truncated`: the file
            ends before the image begins.
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


@lru_cache(maxsize=16384)  # about 4 KB each: a series is found first and read afterwards
def _read_header(path: Path, size: int, mtime_ns: int) -> Header:
    """Read a header as `read_header` does; messages lack the name at their beginning."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(144)
            if _looks_like_dicom(head) == "no" and path.suffix.lower() != ".dcm":
                raise InputError("file.not_dicom", UNKNOWN)
            if _begins_with_zeros(head, stream):
                text = "holds zeros where a DICOM header begins, so it was not copied whole; copy or export it again"
                raise InputError("file.not_dicom", text)
            stream.seek(0)
            tags, syntax, offset, pixel_bytes = _parse_plain(stream) or _parse(stream)
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
            raise InputError("file.not_dicom", UNKNOWN)
        if sop_class(tags).endswith("ImageStorage"):
            raise InputError("file.truncated", _CUT)
    return Header(path, tags, syntax, offset, pixel_bytes, size - offset)


def _parse_plain(stream: IO[bytes]) -> tuple[dict[str, Any], str, int, int | None] | None:
    """Return what `_parse` returns for a header that `plain_header` reads; None for any other, with the stream at 0."""
    similar, known = _last[0] if _last else (None, {})
    found = plain_header(stream.read(MAX_BYTES), _names(), similar)
    stream.seek(0)
    if found is None:
        return None
    is_similar = similar is not None and found.tags is similar.tags
    tags: dict[str, Any] = dict(known) if is_similar else {}
    for tag in found.differing:
        name, (vr, value) = _names()[tag], found.elements[tag]
        if name in _SEQUENCES:
            if value and name == "DetectorInformationSequence":
                return None
            tags[name] = bool(value)
            continue
        try:
            tags[name] = _kept((tag, vr, value), partial(_converted_alone, tag, vr.decode(), value))
        except Exception:
            if name in _NEEDED:  # pydicom raises the error again
                return None
            tags.pop(name, None)
    _last.append((found, tags))
    return (tags, found.transfer_syntax, found.pixel_offset, found.pixel_bytes)


_last: deque[tuple[PlainHeader, Mapping[str, Any]]] = deque(maxlen=1)
"""The plain header that was read last, and its values."""


@lru_cache(maxsize=1)
def _names() -> dict[int, str]:
    """Return the tag and the name of each attribute that a header keeps; that of the character set, too."""
    from pydicom.datadict import keyword_for_tag

    names = {attribute.tag: attribute.name for attribute in VOLUME_ATTRIBUTES if attribute.tag is not None}
    return {int(tag): names.get(int(tag)) or intern(keyword_for_tag(tag)) for tag in (*_tags(), 0x00080005)}


def _converted_alone(tag: int, vr: str, value: bytes) -> Any:
    """Return the plain value of an element of ASCII text, or of numbers in little endian with explicit VR."""
    from pydicom.dataelem import RawDataElement, convert_raw_data_element, empty_value_for_VR
    from pydicom.tag import Tag

    # each file has an identifier and a position of its own, for which pydicom takes long
    if vr == "UI" and _PLAIN_UID.fullmatch(value):
        return intern(value.rstrip(b"\0").decode())
    if vr == "DS" and _PLAIN_NUMBERS.fullmatch(value):
        numbers = tuple(map(float, value.split(b"\\")))
        return numbers if len(numbers) > 1 else numbers[0]
    stored = value or empty_value_for_VR(vr, raw=True)
    raw = RawDataElement(Tag(tag), vr, len(value), stored, 0, False, True)
    with quiet_pydicom():
        return plain_value(convert_raw_data_element(raw).value)


def _parse(stream: IO[bytes]) -> tuple[dict[str, Any], str, int, int | None]:
    """Return values by keyword, the transfer syntax, and where the pixels begin and how long they are, in bytes."""
    from pydicom.filereader import read_partial

    with quiet_pydicom():
        # `force`: files without preamble are valid otherwise; the caller checks whether this is DICOM at all.
        dataset = read_partial(stream, _stop_after_header(), specific_tags=list(_tags()), force=True)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID") or "")
        tags = _plain_tags(dataset)
        if syntax == DEFLATED:  # the stream has ended
            return tags, syntax, stream.tell(), None
        is_implicit, is_little = dataset.original_encoding
        offset = stream.tell()
        length_bytes, pixel_bytes = _pixel_element(stream.read(12), bool(is_implicit), bool(is_little))
        return tags, syntax, offset + length_bytes, pixel_bytes


def _looks_like_dicom(head: bytes) -> Literal["yes", "maybe", "no"]:
    """Judge the first 132 bytes of a file: "maybe" if they begin like a DICOM file without preamble."""
    if head[128:132] == b"DICM":
        return "yes"
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    return "maybe" if little or big else "no"


def _begins_with_zeros(head: bytes, stream: IO[bytes]) -> bool:
    """Return whether zeros replace the start of the file meta group or of the next group.

    pydicom would parse megabytes of them.

    Args:
        head: first 144 bytes of the file.
        stream: the file.
    """
    start = 132 if head[128:132] == b"DICM" else 0
    if head[start : start + 8] == b"\2\0\0\0UL\4\0":  # FileMetaInformationGroupLength
        stream.seek(start + 12 + int.from_bytes(head[start + 8 : start + 12], "little"))
        return stream.read(8) == bytes(8)
    return head[start : start + 8] == bytes(8)


def _stop_after_header() -> Callable[[BaseTag, str | None, int], bool]:
    """Return a function that ends the parsing at the pixels, and refuses what is no header."""
    elements = count()

    def is_after(tag: BaseTag, vr: str | None, length: int) -> bool:
        # No file holds an element of group 0, which zeros look like; nor does a header continue without end.
        number = int(tag)  # tags compare slowly
        if number < 0x00020000 or next(elements) > MAX_ELEMENTS:
            raise InputError("file.not_dicom", UNKNOWN)
        return number >= 0x7FE00008

    return is_after


def _pixel_element(start: bytes, is_implicit: bool, is_little: bool) -> tuple[int, int | None]:
    """Return the length of the head of the pixel element and the stated length of its value, both in bytes.

    Args:
        start: first 12 bytes of the element.
        is_implicit: whether the VR is implicit.
        is_little: whether the byte order is little endian.
    """
    order: Literal["little", "big"] = "little" if is_little else "big"
    if int.from_bytes(start[:2], order) != 0x7FE0:
        return 0, 0
    first = 8 if is_implicit else 12
    length = int.from_bytes(start[first - 4 : first], order)
    return first, None if length == _UNDEFINED else length


@lru_cache(maxsize=1)
def _tags() -> tuple[BaseTag, ...]:
    """Return the tags of all attributes that a header keeps."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    keywords = (
        *_KEYWORDS,
        *_SEQUENCES,
        *private_keywords(),
        *(attribute.name for attribute in VOLUME_ATTRIBUTES if attribute.tag is None),
    )
    known = (tag_for_keyword(keyword) for keyword in keywords)
    return tuple(Tag(tag) for tag in (*known, *(attribute.tag for attribute in VOLUME_ATTRIBUTES)) if tag is not None)


def _plain_tags(dataset: Dataset) -> dict[str, Any]:
    """Return plain values by keyword; attributes of `VOLUME_ATTRIBUTES` without a keyword by their names."""
    from pydicom.datadict import keyword_for_tag

    names = {attribute.tag: attribute.name for attribute in VOLUME_ATTRIBUTES if attribute.tag is not None}
    tags: dict[str, Any] = {}
    for tag in dataset.keys():  # noqa: SIM118  # items would be converted
        name = names.get(int(tag)) or intern(keyword_for_tag(tag))
        if name in _SEQUENCES:
            raw = dataset.get_item(tag)
            tags[name] = bool(raw is not None and raw.value)
            if tags[name] and name == "DetectorInformationSequence":  # planar images have no position there
                tags[name] = "ImagePositionPatient" in dataset[tag].value[0]
            continue
        try:
            # pydicom converts a value at its first use; a malformed one must fail here and not later.
            tags[name] = _converted(dataset, tag)
        except Exception:
            if name in _NEEDED:
                raise
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:  # stated nowhere else
        tags["SOPClassUID"] = DIRECTORY
    return tags


_values: dict[tuple[Any, ...], Any] = {}
"""Stored bytes of an element -> its plain value: the files of a series share most values, and pydicom takes long."""

_MAX_VALUES = 50_000
_ABSENT = object()


def _converted(dataset: Dataset, tag: BaseTag) -> Any:
    """Return the plain value of an element; equal bytes are converted once."""
    from pydicom.dataelem import RawDataElement

    raw = dataset.get_item(tag)
    if not isinstance(raw, RawDataElement) or not isinstance(raw.value, bytes) or len(raw.value) > 256:
        return plain_value(dataset[tag].value)
    character_set = dataset.original_character_set
    if not isinstance(character_set, str):
        character_set = tuple(character_set or ())
    key = int(tag), raw.VR, raw.value, raw.is_implicit_VR, raw.is_little_endian, character_set
    return _kept(key, lambda: plain_value(dataset[tag].value))


def _kept(key: tuple[Any, ...], convert: Callable[[], Any]) -> Any:
    """Return the value of `_values` with a key; convert and add it if it is absent."""
    value = _values.get(key, _ABSENT)
    if value is _ABSENT:
        value = convert()
        if len(_values) >= _MAX_VALUES:
            _values.clear()  # another thread may do so at any time
        _values[key] = value
    return value


def plain_value(value: Any) -> Any:
    """Return a value of pydicom as a plain number, string or tuple; None for more than 64 bytes."""
    if value is None or isinstance(value, bytes):
        return value if value is None or len(value) <= 64 else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if hasattr(value, "__iter__") and not isinstance(value, str) and not hasattr(value, "family_name"):
        return tuple(plain_value(part) for part in value)
    return intern(str(value))


def file_label(path: Path) -> str:
    """Return the name of a file of any format for messages: a DICOM file's name without private words."""
    if not path.is_file():  # opening a pipe would block
        return path.name
    try:
        return read_header(path).label
    except InputError:  # private words are not known
        return "the DICOM file" if has_preamble(path) else path.name


def claims_to_be_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its name or its first bytes, or can't be opened."""
    return path.suffix.lower() == ".dcm" or has_preamble(path) is not False


def has_preamble(path: Path) -> bool | None:
    """Return whether a file begins with the preamble of a DICOM file; None if it can't be opened."""
    try:
        with path.open("rb") as stream:
            return _looks_like_dicom(stream.read(132)) == "yes"
    except OSError:
        return None


def transfer_syntax_of(dataset: Dataset) -> UID:
    """Return the transfer syntax of a dataset; the one that its encoding implies if the file does not state it."""
    from pydicom.uid import UID

    stated = dataset.file_meta.get("TransferSyntaxUID")
    if stated is not None:
        return stated
    is_implicit, is_little = dataset.original_encoding
    return UID(IMPLICIT if is_implicit else EXPLICIT if is_little else BIG_ENDIAN)


def image_type(tags: Tags) -> tuple[str, ...]:
    """Return the values of ImageType; empty if the file has none."""
    return _types(tags.get("ImageType") or ())


@lru_cache(maxsize=256)
def _types(values: str | tuple[Any, ...]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(str(value) for value in values)


def sop_class(tags: Tags) -> str:
    """Return the keyword of the SOP class, such as `CTImageStorage`; "" if it is missing or unknown."""
    return _keyword_of(str(tags.get("SOPClassUID") or ""))


@lru_cache(maxsize=256)
def _keyword_of(uid: str) -> str:
    from pydicom.uid import UID

    return UID(uid).keyword


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings while it reads: they quote values of the header, which may be private."""
    import pydicom.config

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield
