"""Headers that are read without pydicom's data sets: the same values, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import phantoms
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from napari_seg.formats.dicom import plain_header as module
from napari_seg.formats.dicom.headers import _converted_alone, _last, _names, _parse, _parse_plain
from napari_seg.formats.dicom.plain_header import PlainHeader, plain_header

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


@pytest.fixture(autouse=True)
def _without_the_last_header() -> None:
    _last.clear()


def content(header: PlainHeader | None) -> Any:
    """Return all of a header but how it was found."""
    if header is None:
        return None
    values = header.transfer_syntax, header.pixel_offset, header.pixel_bytes, header.tags, header.positions
    return list(header.elements.items()), *values


def both(path: Path) -> tuple[Any, Any]:
    with path.open("rb") as stream:
        plain = _parse_plain(stream)
        assert stream.tell() == 0
        return plain, _parse(stream)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    phantoms.write_series(phantoms.head(), tmp_path)
    return sorted(tmp_path.iterdir())[0]


def sequence(is_undefined: bool, depth: int = 1) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "T-D1100", "SRT"
    if depth > 1:
        item.AnatomicRegionModifierSequence = sequence(is_undefined, depth - 1)
        item["AnatomicRegionModifierSequence"].is_undefined_length = is_undefined
    item.is_undefined_length_sequence_item = is_undefined
    return Sequence([item, item])


def test_a_plain_header_gives_what_pydicom_gives(file: Path) -> None:
    plain, expected = both(file)
    assert plain is not None
    assert plain == expected
    assert list(plain[0]) == list(expected[0])


@pytest.mark.parametrize("is_undefined", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_sequences_are_passed_over(file: Path, is_undefined: bool, depth: int) -> None:
    dataset = pydicom.dcmread(file)
    dataset.AnatomicRegionSequence = sequence(is_undefined, depth)
    dataset["AnatomicRegionSequence"].is_undefined_length = is_undefined
    dataset.SharedFunctionalGroupsSequence = sequence(is_undefined)
    dataset["SharedFunctionalGroupsSequence"].is_undefined_length = is_undefined
    dataset.PerFrameFunctionalGroupsSequence = Sequence([])
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = is_undefined
    dataset.save_as(file)
    plain, expected = both(file)
    assert plain == expected
    assert plain[0]["SharedFunctionalGroupsSequence"] is True
    assert plain[0]["PerFrameFunctionalGroupsSequence"] is False


def test_empty_and_odd_values_are_those_of_pydicom(file: Path) -> None:
    dataset = pydicom.dcmread(file)
    dataset.SeriesDescription, dataset.SeriesNumber, dataset.ProtocolName = "", None, " padded "
    dataset.OperatorsName, dataset.ImageType = ["A^B", "C"], ["ORIGINAL", "", "M"]
    dataset.save_as(file)
    plain, expected = both(file)
    assert plain is not None
    assert repr(plain) == repr(expected)


@pytest.mark.parametrize("vr", ["DS", "UI"])
@pytest.mark.parametrize(
    "value",
    [
        *(
            b"1.2.840.1",
            b"1.2\0",
            b"1.2 ",
            b"1.2\0\0",
            b"-12.5\\100\\7e-1 ",
            b" 3 ",
            b"1.",
            b".5",
            b"+1E5",
            b"1e999",
            b"",
        ),
        *(b"1\\", b"1\\\\2", b"\\1", b"1\n", b"1 2", b"1\\2\n", b"nan", b"12345678901234567890", b"1\0\\2", b"- 1"),
    ],
)
def test_single_values_are_those_of_pydicom(vr: str, value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def converted() -> str:
        try:
            return repr(_converted_alone(0x00200032 if vr == "DS" else 0x00080018, vr, value))
        except ValueError:
            return "no value"

    found = converted()
    for name in ("_PLAIN_UID", "_PLAIN_NUMBERS"):
        monkeypatch.setattr(f"napari_seg.formats.dicom.headers.{name}", re.compile(rb"(?!)"))
    assert found == converted()


@pytest.mark.filterwarnings("ignore:Failed to encode")
@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192", "ISO_IR 13", "\\ISO 2022 IR 87"])
def test_text_beyond_ascii_is_left_to_pydicom(file: Path, character_set: str) -> None:
    dataset = pydicom.dcmread(file)
    dataset.SpecificCharacterSet = character_set.split("\\") if "\\" in character_set else character_set
    for name in ("Tweety~", "M\u00fcller", "\u5c71\u7530"):
        dataset.PatientName = name
        try:
            dataset.save_as(file)
        except (UnicodeEncodeError, ValueError):
            continue
        plain, expected = both(file)
        assert plain is None or repr(plain) == repr(expected)


@pytest.mark.parametrize("syntax", [pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian])
def test_other_encodings_are_left_to_pydicom(file: Path, syntax: Any) -> None:
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = syntax
    is_implicit = syntax == pydicom.uid.ImplicitVRLittleEndian
    pydicom.dcmwrite(file, dataset, implicit_vr=is_implicit, little_endian=is_implicit, force_encoding=True)
    assert both(file)[0] is None


def test_a_cut_or_damaged_header_is_left_to_pydicom_or_gives_the_same(file: Path) -> None:
    whole = file.read_bytes()
    expected = plain_header(whole, _names())
    assert expected is not None
    for length in range(0, expected.pixel_offset - 12):
        assert plain_header(whole[:length], _names()) is None
    for position in range(132, expected.pixel_offset):  # nothing is raised, and no loop is endless
        for byte in (0, 0xFF, 0x20):
            plain_header(whole[:position] + bytes([byte]) + whole[position + 1 :], _names())


def test_a_header_is_the_same_whichever_was_read_before(file: Path) -> None:
    whole = file.read_bytes()
    first = plain_header(whole, _names())
    assert first is not None
    others = []
    for position in range(128, first.pixel_offset + 2):
        others += [whole[:position] + bytes([byte]) + whole[position + 1 :] for byte in (0, 0x31, 0xFF)]
        others += [whole[:position]] * (position % 50 == 0)
    dataset = pydicom.dcmread(file)
    for keyword, value in (
        ("InstanceNumber", 1234),
        ("ImagePositionPatient", [-1.25, 100, 7]),
        ("SeriesDescription", ""),
        ("PatientName", "M\u00fcller"),
        ("StudyID", "added"),
        ("AnatomicRegionSequence", sequence(True)),
        ("AnatomicRegionSequence", sequence(False, 2)),
        ("SpecificCharacterSet", "ISO_IR 13"),
    ):
        setattr(dataset, keyword, value)
        dataset.save_as(file)
        others.append(file.read_bytes())
        del dataset[keyword]
        dataset.save_as(file)
        others.append(file.read_bytes())
    similar: PlainHeader | None = first
    for block in others:
        expected = content(plain_header(block, _names()))
        assert content(plain_header(block, _names(), first)) == expected
        assert content(plain_header(block, _names(), similar)) == expected
        similar = plain_header(block, _names(), similar) or similar


def test_only_what_differs_from_the_file_before_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantoms.write_series(phantoms.head(), tmp_path)
    parsed: list[int] = []
    parse = module._element_at
    monkeypatch.setattr(module, "_element_at", lambda *args: (parsed.append(0), parse(*args))[1])
    headers = []
    for file in sorted(tmp_path.iterdir()):
        parsed.clear()
        with file.open("rb") as stream:
            headers.append((_parse_plain(stream), len(parsed)))
            stream.seek(0)
            assert headers[-1][0] == _parse(stream)
    assert headers[0][1] > 30
    assert max(count for _, count in headers[1:]) < 10


def test_sequences_in_sequences_without_end_are_no_plain_header(file: Path) -> None:
    whole = file.read_bytes()
    start = plain_header(whole, _names()).pixel_offset - 12  # type: ignore[union-attr]
    opening = b"\xe0\x7f\x01\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    assert plain_header(whole[:start] + opening * 5000, _names()) is None


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the collection of real files is not here")
def test_real_files_give_what_pydicom_gives() -> None:
    count = 0
    for path in sorted(CORPUS.rglob("*")):
        if not path.is_file() or path.read_bytes()[128:132] != b"DICM":
            continue
        with path.open("rb") as stream:
            plain = _parse_plain(stream)
            if plain is not None:
                count += 1
                assert repr(plain) == repr(_parse(stream)), path
    assert count > 50
