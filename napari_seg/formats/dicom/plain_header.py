"""Read the elements of a plain DICOM header from its bytes, many times faster than with a data set of pydicom.

A folder may hold 100,000 files, of which only some elements each are needed. Plain means: a preamble, little endian
with explicit VR, text in ASCII, and pixels that begin in the first 16 KiB. Every other header is left to pydicom, and
so is the conversion of values, so that the result is the same.

The files of a series have the same elements, and most of their bytes. What a header shares with the one before is found
by comparing bytes, and only the elements that differ are parsed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

_EXPLICIT = "1.2.840.10008.1.2.1"
_ENCAPSULATED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")
"""Transfer syntaxes with explicit VR and little endian: of uncompressed pixels, and beginnings of all others."""

MAX_BYTES = 1 << 14
_MAX_VALUE_BYTES = 256
_MAX_DEPTH = 16
_FIRST = 132
"""Position of the first element, after the preamble."""
_UNDEFINED = 0xFFFFFFFF
_SYNTAX, _CHARACTER_SET, _PIXELS = 0x00020010, 0x00080005, 0x7FE00010

_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"),
        *(b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
"""VRs with a length of four bytes, and of two."""

_TEXT = frozenset((b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"))
"""VRs whose values depend on the character set."""

_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_HEAD, _LENGTH, _ITEM_HEAD = struct.Struct("<HH2sH"), struct.Struct("<I"), struct.Struct("<HHI")


@dataclass(frozen=True)
class PlainHeader:
    """Elements of a plain header.

    Attributes:
        elements: tag -> VR and stored bytes, of the elements that were asked for.
        transfer_syntax: UID of the transfer syntax.
        pixel_offset: position in the file at which the pixels begin.
        pixel_bytes: length of the pixels that the file states; None for compressed pixels, which state none.
        block: the first bytes of the file.
        tags: tags of all elements, that of the pixels last.
        positions: positions of all elements in the block.
        differing: tags of those `elements` that may differ from those of the header that was given as similar.
    """

    elements: dict[int, tuple[bytes, bytes]]
    transfer_syntax: str
    pixel_offset: int
    pixel_bytes: int | None
    block: bytes = field(repr=False)
    tags: list[int] = field(repr=False)
    positions: list[int] = field(repr=False)
    differing: list[int] = field(repr=False)


def plain_header(block: bytes, wanted: Mapping[int, str], similar: PlainHeader | None = None) -> PlainHeader | None:
    """Return the elements of a plain header; None for any other header, or one that is damaged.

    Args:
        block: the first bytes of the file.
        wanted: tags of the elements to return.
        similar: header of another file, for the same `wanted`: bytes that are equal are not parsed again.
    """
    if block[128:132] != b"DICM":
        return None
    found = None if similar is None else _parsed_like(block, wanted, similar)
    return found or _parsed(block, wanted)


def _parsed(block: bytes, wanted: Mapping[int, str]) -> PlainHeader | None:
    """Return the elements of a plain header; see `plain_header`."""
    elements = _Elements(block, wanted, {}, "")
    tags: list[int] = []
    position, before = _FIRST, 0
    while True:
        tag, position = elements.take(position)
        if position < 0 or tag <= before:
            return None
        before = tag
        tags.append(tag)
        if tag == _PIXELS:
            return elements.header(tags, position)


def _parsed_like(block: bytes, wanted: Mapping[int, str], similar: PlainHeader) -> PlainHeader | None:
    """Return the elements of a plain header; None if they do not have the tags of a similar one."""
    elements = _Elements(block, wanted, dict(similar.elements), similar.transfer_syntax)
    position = _FIRST
    while True:
        position = _pass_equal(block, position, similar, elements.positions)
        expected = similar.tags[len(elements.positions)]
        tag, position = elements.take(position)
        if position < 0 or tag != expected:
            return None
        if tag == _PIXELS:
            return elements.header(similar.tags, position)


class _Elements:
    """Takes the elements of a header one after the other.

    Args:
        block: the first bytes of the file.
        wanted: tags of the elements to keep.
        elements: as for `PlainHeader`, of a similar header; changed here.
        syntax: transfer syntax of a similar header.
    """

    def __init__(
        self, block: bytes, wanted: Mapping[int, str], elements: dict[int, tuple[bytes, bytes]], syntax: str
    ) -> None:
        self._block = block
        self._wanted = wanted
        self._elements = elements
        self._syntax = syntax
        self._pixel_bytes: int | None = None
        self._differing: list[int] = []
        self.positions: list[int] = []

    def header(self, tags: list[int], pixel_offset: int) -> PlainHeader:
        """Return the header, after its pixels were taken."""
        return PlainHeader(
            self._elements,
            self._syntax,
            pixel_offset,
            self._pixel_bytes,
            self._block,
            tags,
            self.positions,
            self._differing,
        )

    def take(self, position: int) -> tuple[int, int]:
        """Take the element at a position; return its tag and the position of the next one, or of the pixels.

        The position is -1 if the header is not plain.
        """
        block = self._block
        if position > len(block) - 12:
            return 0, -1
        self.positions.append(position)
        tag, vr, start, length = _element_at(block, position)
        if vr == b"SQ" and length == _UNDEFINED:
            length = _end_of_sequence(block, start) - start
        if vr == b"" or length < 0:
            return tag, -1
        if tag == _PIXELS:
            if self._syntax != _EXPLICIT and not self._syntax.startswith(_ENCAPSULATED):
                return tag, -1
            self._pixel_bytes = None if length == _UNDEFINED else length
            return tag, start
        stop = start + length
        if tag > _PIXELS - 8 or length == _UNDEFINED or stop > len(block):
            return tag, -1
        if tag == _SYNTAX:
            self._syntax = block[start:stop].decode("latin-1").rstrip("\0 ")
        if tag == _CHARACTER_SET and b"13" in block[start:stop]:  # "~" means something else there
            return tag, -1
        if tag in self._wanted:
            # a private element of unknown VR needs the dictionary of its creator
            if vr == b"UN" or (length > _MAX_VALUE_BYTES and vr != b"SQ"):
                return tag, -1
            value = block[start:stop]
            if vr == b"SQ":  # only whether it has items
                value = value[:2] if value[2:4] == b"\0\xe0" else b""
            if vr in _TEXT and not _is_plain_ascii(value):
                return tag, -1
            self._elements[tag] = vr, value
            self._differing.append(tag)
        return tag, stop


def _pass_equal(block: bytes, position: int, similar: PlainHeader, positions: list[int]) -> int:
    """Pass over the elements that are equal to those of a similar header, and return the position behind them.

    Args:
        block: the first bytes of the file.
        position: position of an element.
        similar: header with an element of the same number; its pixels are never passed over.
        positions: positions of the elements before; those of the equal ones are added.
    """
    known, first = similar.positions, len(positions)
    low, high = first, len(known) - 1
    shift = position - known[first]
    while low < high:
        middle = (low + high + 1) // 2
        start, stop = known[low], known[middle]
        if block[start + shift : stop + shift] == similar.block[start:stop]:
            low = middle
        else:
            high = middle - 1
    positions += known[first:low] if shift == 0 else [one + shift for one in known[first:low]]
    return known[low] + shift


def _element_at(block: bytes, position: int) -> tuple[int, bytes, int, int]:
    """Return tag, VR, start and length of the element at a position."""
    group, element, vr, length = _HEAD.unpack_from(block, position)
    position += 8
    if vr in _LONG:
        (length,) = _LENGTH.unpack_from(block, position)
        position += 4
    elif vr not in _SHORT:
        vr = b""
    return group << 16 | element, vr, position, length


def _end_of_sequence(block: bytes, position: int, depth: int = 0) -> int:
    """Return the position after a sequence of undefined length; -1 if it does not end in the block."""
    end = len(block) - 12
    while position <= end and depth < _MAX_DEPTH:
        group, element, length = _ITEM_HEAD.unpack_from(block, position)
        tag = group << 16 | element
        position += 8
        if tag == _END_OF_SEQUENCE:
            return position
        if tag != _ITEM:
            return -1
        if length != _UNDEFINED:
            position += length
            continue
        while position <= end:
            tag, vr, start, length = _element_at(block, position)
            if tag == _END_OF_ITEM:
                position += 8
                break
            if length == _UNDEFINED:
                position = _end_of_sequence(block, start, depth + 1) if vr == b"SQ" else -1
            else:
                position = start + length
            if not vr or position < 0:
                return -1
    return -1


def _is_plain_ascii(value: bytes) -> bool:
    return value.isascii() and b"\x1b" not in value
