"""The index of a training set: what is read, what is refused, and when another process may write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from napari_seg.errors import InputError
from napari_seg.learning.training_set import (
    INDEX,
    AcceptedCase,
    Provenance,
    StructureChange,
    TrainingSet,
    as_index,
    from_index,
    locked,
    read_training_set,
    write_training_set,
)


def case(number: int, **values: Any) -> AcceptedCase:
    name = f"case{number:04d}"
    given: dict[str, Any] = {
        "name": name,
        "image": f"./imagesTr/{name}.nii.gz",
        "labels": f"./labelsTr/{name}_r1.nii.gz",
        "patient": f"patient {number}",
        "part": "training",
        "annotated": ("Liver",),
        "scan": "ab",
        "provenance": Provenance("Ada", "2026-01-01T00:00:00+00:00", ("liver_ct", "1"), changes={}),
    }
    return AcceptedCase(**given | values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    changes = {"Liver": StructureChange(5, 0.5, 4, 0.4, 2, 1), "Spleen": StructureChange(0, 0.0)}
    record = Provenance("Ada", "2026-01-01T00:00:00+00:00", None, "ab", ("smooth",), changes)
    cases = (case(1, who="cd"), case(3, provenance=record))
    content = TrainingSet({"Liver": 1, "Spleen": 7}, ("MR",), 1, cases, 4, (case(2, part="validation"),), "salt")
    write_training_set(folder, content)
    assert read_training_set(folder) == content


def test_a_folder_that_is_missing_or_empty_is_an_empty_set(tmp_path: Path) -> None:
    assert read_training_set(tmp_path) == read_training_set(tmp_path / "new") == TrainingSet()


@pytest.mark.parametrize(
    "damage",
    [
        "no JSON",
        "[]",
        "{}",
        '{"training": [], "labels": {}, "modality": {}}',
        '{"training": [], "labels": {}, "modality": {}, "napari_seg": {"kind": "x", "version": 1}}',
        "[" * 100_000,
    ],
)
def test_another_index_is_refused(folder: Path, damage: str) -> None:
    (folder / INDEX).write_text(damage)
    with pytest.raises(InputError, match=r"accept\.not_a_set"):
        read_training_set(folder)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("labels",), {"background": 0, "Liver": 1, "Spleen": 1}),
        (("labels",), {"background": 0, "Liver": 1, "liver": 2}),
        (("labels",), {"background": 0, "Liver": 10**10}),
        (("labels",), {"background": 0, "Liver": -1}),
        (("labels",), {"background": 0, "Liver": 1.5}),
        (("labels",), {"background": 1, "Liver": 2}),
        (("labels",), {"background": 0, "Liver": 1, "a\x1b[31m": 2}),
        (("labels",), {"background": 0, "Spleen": 1}),
        (("modality",), {"0": "$print(1)"}),
        (("training", 0, "patient"), "Doe, Jane"),
        (("training", 0, "label"), "./labelsTr/case0001_r999999.nii.gz"),
        (("napari_seg", "next"), 999999),
        (("napari_seg", "removed"), [{}]),
    ],
)
def test_an_index_that_would_mix_structures_or_spoil_the_set_is_refused(
    folder: Path, where: tuple[str | int, ...], value: Any
) -> None:
    write_training_set(folder, TrainingSet({"Liver": 1}, ("MR",), 1, (case(1),), 2))
    content = json.loads((folder / INDEX).read_text())
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"accept\.not_a_set"):
        read_training_set(folder)


def test_two_cases_of_one_name_are_refused(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps(as_index(TrainingSet({"Liver": 1}, ("MR",), 1, (case(1), case(1)), 2))))
    with pytest.raises(InputError, match=r"accept\.not_a_set"):
        read_training_set(folder)


def test_files_of_a_round_stay_until_it_is_removed(folder: Path) -> None:
    for name in ("imagesTr/case0001.nii.gz", "imagesTr/mine.nii.gz", "labelsTr/case0001_r1.nii.gz"):
        (folder / name).touch()
    (folder / "rounds").mkdir()
    round_1 = folder / "rounds" / "round1.json"
    round_1.write_text(json.dumps({"index": as_index(TrainingSet({"Liver": 1}, (), 1, (case(1),), 2))}))
    content = TrainingSet({"Liver": 1}, (), 1, (case(1, labels="./labelsTr/case0001_r2.nii.gz"),), 2)
    write_training_set(folder, content)
    assert (folder / "labelsTr" / "case0001_r1.nii.gz").is_file()
    round_1.write_text("half")
    write_training_set(folder, content)
    assert (folder / "labelsTr" / "case0001_r1.nii.gz").is_file()
    round_1.unlink()
    write_training_set(folder, content)
    assert sorted(path.name for path in folder.rglob("*.nii.gz")) == ["case0001.nii.gz", "mine.nii.gz"]


def test_a_process_waits_and_then_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.learning.training_set._LOCK_SECONDS", 0.1)
    with FileLock(folder / ".lock"), pytest.raises(InputError, match=r"accept\.busy"), locked(folder):
        pass
    with locked(folder):
        pass


def test_the_number_of_the_next_case_is_free() -> None:
    content = as_index(TrainingSet({"Liver": 1}, (), 1, (case(7),), 8))
    content["napari_seg"]["next"] = 7  # the next case would replace the image of case0007
    with pytest.raises(ValueError, match="next"):
        from_index(content)


def test_patients_have_other_digests_in_other_sets() -> None:
    one, other = TrainingSet(salt="a"), TrainingSet(salt="b")
    assert one.digest_of("4711") == one.digest_of("4711") != other.digest_of("4711")
    assert one.digest_of("") == ""
    assert len(one.digest_of("4711")) == 32


def test_the_corrected_structures_are_those_that_were_changed() -> None:
    same = StructureChange(8, 1.0, 8, 1.0, 0, 0)
    cases = (case(1, annotated=("liver", "spleen")), case(2, annotated=("liver",)))
    found = TrainingSet({"liver": 1, "spleen": 2, "rib": 3}, (), 1, cases, 3)
    assert found.corrected == ("liver", "spleen")
    changes = {"liver": same, "spleen": replace(same, added=1), "rib": replace(same, removed=1)}
    corrected = replace(cases[0], provenance=replace(cases[0].provenance, changes=changes))
    assert replace(found, cases=(corrected, cases[1])).corrected == ("spleen",)
    kept = found.without({"spleen"})
    assert kept.structures == {"liver": 1, "rib": 3}
    assert [one.annotated for one in kept.cases] == [("liver",), ("liver",)]
