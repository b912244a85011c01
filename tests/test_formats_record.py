"""Records next to label maps: what is written is read again, and files of other programs stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_seg.errors import OutputError
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.origin import origin_of
from napari_seg.formats.record import (
    MAX_RECORD_BYTES,
    UNKNOWN,
    labels_record,
    made_by_in,
    new_record,
    read_record,
    record_path,
    recorded_segments,
    result_record,
    write_labels_record,
    write_record,
)
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Volume

GRID = Grid((2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
SEGMENTS = (Segment(1, "left kidney", (255, 0, 0)), Segment(4, "Niere, rechts", (0, 0, 255)))


def found() -> Segmentation:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[0, 0, :2] = 1
    return Segmentation(labels, GRID, SEGMENTS, {1: 0.87654})


@pytest.mark.parametrize(
    ("labels", "record"), [("a.nii.gz", "a.json"), ("a.NII", "a.json"), ("a.b.nii", "a.b.json"), ("a.png", "a.json")]
)
def test_a_record_has_the_name_of_its_label_map(labels: str, record: str) -> None:
    assert record_path(Path("folder", labels)) == Path("folder", record)


@pytest.mark.parametrize("made_by", [("balls", "1.2"), None])
def test_names_colours_and_maker_are_read_again(tmp_path: Path, made_by: tuple[str, str] | None) -> None:
    labels = tmp_path / "a.nii.gz"
    write_labels_record(found(), labels, made_by)
    assert recorded_segments(labels) == SEGMENTS
    assert made_by_in(labels) == made_by
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_record_does_not_invent_a_model(tmp_path: Path) -> None:
    write_labels_record(found(), tmp_path / "a.nii", UNKNOWN)
    record = read_record(tmp_path / "a.json")
    assert record is not None
    assert record.keys() == {"program", "segments"}
    assert made_by_in(tmp_path / "a.nii") == UNKNOWN
    assert origin_of(tmp_path / "a.nii").origin is None


def test_half_a_character_in_a_name_is_replaced(tmp_path: Path) -> None:
    entries = [{"label": 1, "name": "l\udcfcver", "color": [1, 2, 3]}]
    (tmp_path / "a.json").write_text(json.dumps({"segments": entries}))
    assert [one.name for one in recorded_segments(tmp_path / "a.nii")] == ["l?ver"]


def test_labels_without_a_record_are_nobodys(tmp_path: Path) -> None:
    assert made_by_in(tmp_path / "a.nii") == UNKNOWN
    assert recorded_segments(tmp_path / "a.nii") == ()


def test_a_result_and_a_failure_are_recorded(tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, *GRID.shape)), GRID, modality="MR")
    content = result_record(volume, found(), source="a.nii", made_by=("balls", "1"))
    write_record(tmp_path / "a_seg.json", content)
    record = read_record(tmp_path / "a_seg.json")
    assert record is not None
    assert record["program"].startswith("napari-seg ")
    assert record["bundle"] == {"name": "balls", "version": "1"}
    kidney, other = record["segments"]
    assert (kidney["voxels"], kidney["volume_ml"], kidney["confidence"]) == (2, 0.012, 0.8765)
    assert (other["voxels"], other["confidence"]) == (0, None)


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"program": "another"}', "[" * 100_000])
def test_files_of_other_programs_are_no_records_and_stay(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read_record(path) is None
    write_labels_record(found(), tmp_path / "a.nii", None)
    assert path.read_text() == text
    assert "output.no_record" in caplog.text


def test_a_file_too_large_for_a_record_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"program": "napari-seg", "x": "x" * MAX_RECORD_BYTES}))
    assert read_record(path) is None


def test_a_record_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"output\.not_written"):
        write_labels_record(found(), tmp_path / "missing" / "a.nii", None)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.seg.nrrd"])
def test_an_old_record_stays_only_if_its_labels_do(tmp_path: Path, name: str) -> None:
    labels = tmp_path / name
    labels.touch()
    write_record(record_path(labels), labels_record(found(), ("balls", "1.2")))

    def fails() -> None:
        with new_record(labels, labels_record(found(), None)):
            raise OutputError("output.disk_full", "no room")

    with pytest.raises(OutputError, match=r"output\.disk_full"):
        fails()
    assert made_by_in(labels) == ("balls", "1.2")
    with new_record(labels, labels_record(found(), None)):
        atomic_write(labels, "")
        assert not record_path(labels).exists()
    assert record_path(labels).exists() == (name == "a.nii.gz")
    assert made_by_in(labels) == (None if name == "a.nii.gz" else UNKNOWN)
    assert len(list(tmp_path.iterdir())) == (2 if name == "a.nii.gz" else 1)


def test_a_record_without_its_labels_is_not_replaced(tmp_path: Path) -> None:
    write_labels_record(found(), tmp_path / "a.nii", ("balls", "1.2"))
    with pytest.raises(
        OutputError, match=r"output\.exists: .*a\.json belongs to other labels than a\.nii\.gz would hold"
    ):
        write_labels_record(found(), tmp_path / "a.nii.gz", None)
    assert made_by_in(tmp_path / "a.nii") == ("balls", "1.2")


@pytest.mark.parametrize("name", ["a.dcm", "a.stl", "a.csv"])
def test_other_formats_leave_the_record_of_that_name(tmp_path: Path, name: str) -> None:
    write_labels_record(found(), tmp_path / "a.nii.gz", ("balls", "1.2"))
    with new_record(tmp_path / name, labels_record(found(), None)):
        pass
    assert made_by_in(tmp_path / "a.nii.gz") == ("balls", "1.2")


def test_a_table_of_another_program_with_other_names_is_not_left_next_to_labels(tmp_path: Path) -> None:
    text = json.dumps({"segments": [{"label": 1, "name": "left kidney", "color": [255, 0, 0]}]})
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OutputError, match=r"output\.exists: .*a\.json belongs to other labels than a\.nii would hold"):
        write_labels_record(found(), tmp_path / "a.nii", None)
    same = Segmentation(found().array, GRID, SEGMENTS[:1])
    write_labels_record(same, tmp_path / "a.nii", None)
    assert (tmp_path / "a.json").read_text() == text


@pytest.mark.parametrize(
    ("label", "known"), [(0, False), (-1, False), (1, True), (65535, True), (65536, False), (4_000_000_000, False)]
)
def test_numbers_that_are_no_labels_have_no_name(tmp_path: Path, label: int, known: bool) -> None:
    entries = [{"label": n, "name": "x", "color": [1, 2, 3]} for n in (label, 7)]
    (tmp_path / "a.json").write_text(json.dumps({"segments": entries}))
    assert [one.label for one in recorded_segments(tmp_path / "a.nii")] == [label, 7][not known :]


@pytest.mark.parametrize(
    "segments",
    [
        [{"label": float("inf"), "name": "x", "color": [1, 2, 3]}],
        [{"label": 1, "name": "x", "color": [1, 2, float("inf")]}],
        [{"label": 1, "name": "x", "color": [1, 2, 300]}],
        [{"label": 1, "name": "x", "color": [1, 2]}],
        [{"label": 1, "name": "x", "color": [1, 2, 3]}, {"label": 1, "name": "y", "color": [1, 2, 3]}],
        [{"label": 1}],
        [[1]],
        5,
    ],
)
def test_a_table_that_can_not_be_used_names_nothing(tmp_path: Path, segments: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"segments": segments}))
    assert recorded_segments(tmp_path / "a.nii") == ()
