"""Names and colours of structures in XML, as Caret and TotalSegmentator keep them in the header of a NIfTI file.

The table is `CaretExtension/VolumeInformation/LabelTable`, with an element for each label:
`<Label Key="5" Red="1.0" Green="0.5" Blue="0.0" Alpha="1"><![CDATA[liver]]></Label>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from napari_seg.volume import MAX_LABEL, Segment, distinct_color

MARK = b"<CaretExtension"
"""Start of the element by which a table is recognised among other extensions of a header."""

MAX_TABLE_BYTES = 1 << 20
"""Maximum size of a table; TotalSegmentator's 117 structures take 12 KiB."""

MAX_NAME_LENGTH = 1024

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 can't hold."""


def to_xml(segments: Sequence[Segment]) -> bytes:
    """Return the table of some segments; empty without segments, or if reading would refuse the table.

    Characters that XML can't hold become "?", and any white space a single space. A segment without a name gets that of
    its label, because TotalSegmentator reads no empty names.
    """
    labels = []
    for segment in segments:
        name = _clean(_NOT_XML.sub("?", segment.name)) or f"label {segment.label}"
        if len(name) > MAX_NAME_LENGTH:
            return b""
        text = name.replace("]]>", "]]]]><![CDATA[>")
        red, green, blue = (f"{value / 255:.6f}" for value in segment.color)
        color = f'Red="{red}" Green="{green}" Blue="{blue}" Alpha="1"'
        labels.append(f'<Label Key="{segment.label}" {color}><![CDATA[{text}]]></Label>')
    table = "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            '<CaretExtension><VolumeInformation Index="0"><LabelTable>',
            *labels,
            "</LabelTable><VolumeType><![CDATA[Label]]></VolumeType></VolumeInformation></CaretExtension>",
        ]
    ).encode()
    return table if labels and len(table) <= MAX_TABLE_BYTES else b""


def from_xml(table: bytes) -> tuple[Segment, ...]:
    """Return the segments of a table; none if it holds none.

    Labels without a name, and numbers that are no labels, such as 0 for background, are left out. A label without a
    colour gets one.

    Args:
        table: the table; it may come from anybody.

    Raises:
        ValueError: the table is damaged, too large, states a label twice, or declares entities, which could expand.
    """
    if len(table) > MAX_TABLE_BYTES:
        raise ValueError(f"it is larger than {MAX_TABLE_BYTES >> 20} MiB")
    if b"<!DOCTYPE" in table:  # read as UTF-8 whatever it states, so these bytes are in any declaration of entities
        raise ValueError("it has a document type")
    try:
        root = ElementTree.fromstring(table, ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from error
    segments: dict[int, Segment] = {}
    labels = root.find("VolumeInformation/LabelTable")
    for label in () if labels is None else labels.findall("Label"):
        key, name = label.get("Key", ""), _clean(label.text or "")
        if not re.fullmatch("-?[0-9]{1,9}", key):
            raise ValueError(f"{key[:20]!r} is no label")
        number = int(key)
        if len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"a name has {len(name)} characters; expected at most {MAX_NAME_LENGTH}")
        if number in segments:
            raise ValueError(f"it states label {number} twice")
        if name and 1 <= number <= MAX_LABEL:
            segments[number] = Segment(number, name, _color(label, number))
    return tuple(segments[number] for number in sorted(segments))


def _clean(name: str) -> str:
    return " ".join(name.split())


def _color(label: ElementTree.Element, number: int) -> tuple[int, int, int]:
    """Return the colour of an element; a colour of our own if it states none from 0 to 1."""
    try:
        red, green, blue = (float(label.get(channel, "")) for channel in ("Red", "Green", "Blue"))
    except ValueError:
        return distinct_color(number)
    if not all(0 <= value <= 1 for value in (red, green, blue)):  # NaN fails this too
        return distinct_color(number)
    return round(255 * red), round(255 * green), round(255 * blue)
