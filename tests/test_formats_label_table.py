"""Names of structures in the header of a NIfTI file: ours, TotalSegmentator's, damaged and hostile ones."""

from __future__ import annotations

import struct
import xml.dom.minidom
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.label_table import MAX_NAME_LENGTH, MAX_TABLE_BYTES, from_xml, to_xml
from napari_seg.formats.nifti import header_segments, write_nifti
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, distinct_color

GRID = Grid((4, 3, 2), np.diag([1.0, 2.0, 3.0, 1.0]))
SEGMENTS = (
    Segment(1, "liver ]]> & <b>", (255, 128, 1)),
    Segment(2, "Größe 肝臓 😀", (0, 2, 3)),
    Segment(300, "c", (9, 9, 9)),
)
HEAD = '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <Date><![CDATA[2013-07-14T05:45:09]]></Date>   '


def table(labels: str, head: str = HEAD) -> bytes:
    """A table with the words and the white space of TotalSegmentator's own."""
    text = f'{head}<VolumeInformation Index="0">   <LabelTable>\n{labels}\n  </LabelTable>  <StudyMetaDataLinkSet>  '
    end = "</StudyMetaDataLinkSet>  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>"
    return f"{text}{end}\n              ".encode()


def found() -> Segmentation:
    array = np.zeros(GRID.shape, np.uint16)
    array[0], array[1], array[2] = 1, 2, 300
    return Segmentation(array, GRID, SEGMENTS)


def saved(path: Path, content: bytes, header: nibabel.nifti1.Nifti1Header | None = None, code: int = 0) -> Path:
    """A label map with an extension in its header, by nibabel."""
    kind = nibabel.nifti2.Nifti2Image if "v2" in path.name else nibabel.nifti1.Nifti1Image
    kind = nibabel.nifti1.Nifti1Pair if path.suffix in (".hdr", ".img") else kind
    image = kind(found().array, GRID.affine, header)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"a comment"))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, content))
    nibabel.loadsave.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_names_are_written_and_read_by_others_and_by_us(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    write_nifti(found(), path)
    assert read_label_map(path).segments == SEGMENTS
    once = path.read_bytes()
    write_nifti(found(), path)
    assert path.read_bytes() == once
    image = nibabel.loadsave.load(path)
    assert isinstance(image, nibabel.nifti1.Nifti1Image)
    assert np.array_equal(np.asarray(image.dataobj), found().array)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T, found().array)
    (extension,) = image.header.extensions  # as TotalSegmentator reads it: the first one, code 0, by a parser of XML
    assert extension.get_code() == 0
    labels = xml.dom.minidom.parseString(extension.get_content()).getElementsByTagName("Label")
    names = {int(one.getAttribute("Key")): "".join(text.data for text in one.childNodes) for one in labels}
    assert names == {segment.label: segment.name for segment in SEGMENTS}


def test_voxels_begin_at_a_multiple_of_16_bytes(tmp_path: Path) -> None:
    write_nifti(found(), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (offset,) = struct.unpack_from("<f", content, 108)
    assert offset > 352
    assert offset % 16 == 0
    assert content[int(offset) :] == found().array.tobytes(order="F")
    write_nifti(Segmentation(found().array, GRID, ()), tmp_path / "b.nii")
    assert struct.unpack_from("<f", (tmp_path / "b.nii").read_bytes(), 108) == (352,)


@pytest.mark.parametrize("name", ["a.nii", "a_v2.nii.gz", "a.hdr"])
@pytest.mark.parametrize("order", "<>")
def test_tables_of_other_programs_are_read(tmp_path: Path, name: str, order: str) -> None:
    labels = '<Label Key="0"><![CDATA[???]]></Label><Label Key="7" Red="nan" Green="255" Blue="0">c</Label>'
    labels += '<Label Key="2" Red="0.5" Green="1.0" Blue="0" Alpha="1">a &amp; b</Label>'
    labels += '<Label Key="1"><![CDATA[ left\n kidney ]]></Label>'
    kind = nibabel.nifti2.Nifti2Header if "v2" in name else nibabel.nifti1.Nifti1PairHeader
    header = (kind if name != "a.nii" else nibabel.nifti1.Nifti1Header)(endianness=order)
    found = read_label_map(saved(tmp_path / name, table(labels), header, code=30 if order == ">" else 0))
    assert [(one.label, one.name) for one in found.segments] == [(1, "left kidney"), (2, "a & b"), (7, "c")]
    assert [one.color for one in found.segments] == [distinct_color(1), (128, 255, 0), distinct_color(7)]
    assert found.notices == ()


def test_a_record_is_preferred_to_the_header(tmp_path: Path) -> None:
    write_nifti(found(), tmp_path / "a.nii")
    entry = {"label": 1, "name": "spleen", "color": [1, 2, 3]}
    (tmp_path / "a.json").write_text(f'{{"segments": [{entry}]}}'.replace("'", '"'))
    assert read_label_map(tmp_path / "a.nii").segments == (Segment(1, "spleen", (1, 2, 3)),)
    (tmp_path / "a.json").unlink()
    assert read_label_map(tmp_path / "a.nii", header_names=False).segments == ()


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>'


HOSTILE = {
    "declared entities": table('<Label Key="1">&b;&c;</Label>', f"{ENTITIES}<CaretExtension>"),
    "unknown entity": table('<Label Key="1">&b;</Label>'),
    "cut": table('<Label Key="1">a</Label>')[:-60],
    "no number": table('<Label Key="one">a</Label>'),
    "huge number": table(f'<Label Key="{"9" * 5000}">a</Label>'),
    "no key": table("<Label>a</Label>"),
    "twice": table('<Label Key="1">a</Label><Label Key="1">b</Label>'),
    "long name": table(f'<Label Key="1">{"a" * (MAX_NAME_LENGTH + 1)}</Label>'),
    "control character": table('<Label Key="1">\0</Label>'),
    "no UTF-8": table('<Label Key="1">?</Label>').replace(b">?<", b">\xff<"),
    "deep": table("<a>" * 100_000),
    "large": b"<CaretExtension>" + b" " * MAX_TABLE_BYTES + b"-",
    "very large": b"<CaretExtension>" + b" " * (5 << 20) + b"-",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_or_hostile_table_is_ignored_with_a_notice(tmp_path: Path, kind: str) -> None:
    found = read_label_map(saved(tmp_path / "a.nii", HOSTILE[kind]))
    assert found.segments == ()
    assert [notice.code for notice in found.notices] == ["labels.bad_table"]
    assert len(found.notices[0].message) < 200


def test_extensions_of_impossible_sizes_hold_no_names(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", table('<Label Key="1">a</Label>'))
    content = bytearray(path.read_bytes())
    for size in (0, 15, -1, -(2**31), 2**31 - 1):
        struct.pack_into("<i", content, 352, size)
        path.write_bytes(content)
        assert header_segments(path) == ((), ())


def test_what_xml_cannot_hold_is_replaced_and_what_is_too_large_left_out() -> None:
    odd = Segment(1, "a\x1b[31m\ud800\tb\x85", (0, 0, 0))
    unnamed = Segment(2, " ", (0, 0, 0))
    assert [one.name for one in from_xml(to_xml([odd, unnamed]))] == ["a [31m b", "label 2"]
    assert to_xml([]) == to_xml([Segment(1, "a" * 2000, (0, 0, 0))]) == b""
    assert to_xml([Segment(n, "a" * 100, (0, 0, 0)) for n in range(1, 10_000)]) == b""


def test_names_of_totalsegmentator_itself(corpus: Path, tmp_path: Path) -> None:
    (file,) = corpus.rglob("example_seg_dicom.nii.gz")
    found = read_label_map(file)
    names = {one.label: one.name for one in found.segments}
    assert (len(names), names[5], names[117], found.notices) == (117, "liver", "costal_cartilages", ())
    write_nifti(found, tmp_path / "a.nii.gz")
    assert header_segments(tmp_path / "a.nii.gz")[0] == found.segments
