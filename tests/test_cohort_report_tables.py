"""Test the tables of a run."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from cohorts import START, add_done, add_failed, add_model, new_manifest

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.facts import gather
from napari_seg.cohort.report.tables import (
    CASE_COLUMNS,
    CASES_CSV,
    CASES_JSON,
    VOLUMES_LONG,
    VOLUMES_WIDE,
    utc,
    write_tables,
)
from napari_seg.cohort.rows import CaseRow
from napari_seg.errors import Notice
from napari_seg.formats.csv_cells import text_cell


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    with new_manifest(tmp_path / "out") as manifest:
        yield manifest


def written(manifest: Manifest) -> Path:
    folder = manifest.path.parent
    write_tables(manifest.rows(), gather(manifest), folder)
    return folder


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_of_a_run_with_two_models(manifest: Manifest) -> None:
    head, body = add_model(manifest), add_model(manifest, "body, whole", "1.0")
    notice = Notice("result.islands", "islands", "front")
    add_done(manifest, "a_head", {"front": 1.25, "back": 0.0}, model=head, notices=(notice,))
    add_done(manifest, "a_body", {"liver": 1400.123456}, model=body)
    add_failed(manifest, "b_head", message='found "text"', model=head)
    manifest.add_case("c_head", {"state": "waiting", "model": head})
    folder = written(manifest)

    cases = cells(folder / CASES_CSV)
    assert tuple(cases[0]) == CASE_COLUMNS
    assert [(case["name"], case["state"]) for case in cases] == [
        ("a_head", "done"),
        ("a_body", "done"),
        ("b_head", "failed"),
        ("c_head", "waiting"),
    ]
    assert cases[0]["notices"] == "result.islands"
    assert cases[0]["labels"] == "a_head_seg.nii.gz"
    assert cases[0]["started"] == "2027-01-15T08:00:00Z"
    assert (cases[1]["model"], cases[1]["model_version"]) == ("body, whole", "1.0")
    assert (cases[2]["code"], cases[2]["message"]) == ("file.not_nifti", 'found "text"')

    long = cells(folder / VOLUMES_LONG)
    assert [(row["name"], row["structure"], row["volume_ml"], row["confidence"]) for row in long] == [
        ("a_head", "front", "1.25", "0.9"),
        ("a_head", "back", "0", ""),
        ("a_body", "liver", "1400.12", "0.9"),
    ]
    assert cells(folder / VOLUMES_WIDE) == [
        {
            "name": "a_head",
            "source": "scans/a_head.nii.gz",
            "model": "hippocampus",
            "front_ml": "1.25",
            "back_ml": "0",
            "liver_ml": "",
        },
        {
            "name": "a_body",
            "source": "scans/a_body.nii.gz",
            "model": "body, whole",
            "front_ml": "",
            "back_ml": "",
            "liver_ml": "1400.12",
        },
    ]

    known = json.loads((folder / CASES_JSON).read_text(encoding="utf-8"))
    assert known["counts"] == {"waiting": 1, "running": 0, "moving": 0, "done": 2, "failed": 1, "skipped": 0}
    assert known["settings"]["0"]["tta"] == "none"
    assert [case["name"] for case in known["cases"]] == ["a_head", "a_body", "b_head", "c_head"]
    assert known["cases"][0]["volumes_ml"] == {"front": 1.25, "back": 0.0}
    assert known["cases"][0]["outputs"]["labels"]["path"] == "a_head_seg.nii.gz"


def test_a_result_that_does_not_count_is_in_no_table(manifest: Manifest) -> None:
    notice = Notice("result.islands", "islands", "front")
    add_done(manifest, "a", {"front": 1.25}, notices=(notice,))
    (row,) = manifest.rows()
    manifest.change_case(row.id, {"state": "skipped", "code": "cohort.excluded"}, if_state=("done",))
    folder = written(manifest)
    (case,) = json.loads((folder / CASES_JSON).read_text(encoding="utf-8"))["cases"]
    assert (case["state"], case["code"]) == ("skipped", "cohort.excluded")
    assert not any(case[name] for name in ("volumes_ml", "confidence", "outputs", "notices", "unusual"))
    (cell,) = cells(folder / CASES_CSV)
    assert not any(cell[name] for name in ("labels", "overlay", "labels_sha256", "notices", "unusual"))
    assert not cells(folder / VOLUMES_LONG)


def test_unusual_volumes_are_marked(manifest: Manifest) -> None:
    for n in range(20):
        add_done(manifest, f"case_{n}", {"front": 1 + n / 100, "back": 0.0 if n == 7 else 2.0})
    add_done(manifest, "large", {"front": 9.0, "back": 2.0})
    folder = written(manifest)
    unusual = {(row["name"], row["structure"]) for row in cells(folder / VOLUMES_LONG) if row["is_unusual"] == "true"}
    assert unusual == {("large", "front"), ("case_7", "back")}
    scores = {row["name"]: row["modified_z"] for row in cells(folder / VOLUMES_LONG) if row["structure"] == "front"}
    assert float(scores["large"]) > 3.5 > float(scores["case_0"])
    assert {row["name"]: row["unusual"] for row in cells(folder / CASES_CSV)}["large"] == "front"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_formula_is_text_everywhere(start: str, manifest: Manifest) -> None:
    attack = f"{start}HYPERLINK(evil)"
    model = manifest.add_model(attack, attack, "monai", attack)
    add_done(manifest, attack, {attack: 1.0}, model=model, source=attack, notices=(Notice(attack, attack, attack),))
    add_failed(manifest, f"{attack}2", attack, attack, source=attack)
    folder = written(manifest)
    for name in (CASES_CSV, VOLUMES_LONG, VOLUMES_WIDE):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) >= 2
        for cell in (cell for row in rows for cell in row):
            assert not cell.startswith(start), f"{name}: {cell!r}"
    assert json.loads((folder / CASES_JSON).read_text(encoding="utf-8"))["cases"][0]["name"] == attack
    assert text_cell(attack) == f"'{attack}"


def test_quotes_commas_line_ends_and_all_alphabets_come_back(manifest: Manifest) -> None:
    name = 'a, "b"\r\nc\nd; é 頭 😀'
    add_done(manifest, name, {name: 1.5})
    folder = written(manifest)
    assert (folder / CASES_CSV).read_bytes().startswith(b"name,state,")
    assert b"\r\n" in (folder / VOLUMES_WIDE).read_bytes()
    for table in (CASES_CSV, VOLUMES_LONG, VOLUMES_WIDE):
        assert cells(folder / table)[0]["name"] == name
    frame = pd.read_csv(folder / VOLUMES_WIDE)
    assert frame[f"{name}_ml"].tolist() == [1.5]
    assert pd.read_csv(folder / VOLUMES_LONG)["is_unusual"].tolist() == [False]


def test_a_run_without_cases_has_tables_without_rows(manifest: Manifest) -> None:
    folder = written(manifest)
    assert cells(folder / CASES_CSV) == cells(folder / VOLUMES_WIDE) == []
    assert json.loads((folder / CASES_JSON).read_text())["cases"] == []


def test_a_fault_leaves_the_old_tables(manifest: Manifest) -> None:
    add_done(manifest, "a", {"front": 1.0})
    folder = written(manifest)
    before = {path.name: path.read_bytes() for path in folder.glob("*s*.[cj]s*")}
    assert len(before) == 4

    def rows() -> Iterator[CaseRow]:
        yield from manifest.rows()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_tables(rows(), gather(manifest), folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*s*.[cj]s*")} == before
    assert not list(folder.glob(".*"))


def test_memory_does_not_grow_with_the_cases(tmp_path: Path, manifest: Manifest) -> None:
    structures = {f"s{n}": 1.0 + n for n in range(20)}
    add_done(manifest, "a", structures)
    facts = gather(manifest)
    (row,) = manifest.rows()

    def peak(count: int) -> int:
        tracemalloc.start()
        write_tables((row for _ in range(count)), facts, tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(20)  # the first call loads what stays
    assert peak(300) < peak(20) + 20_000


def test_times_are_utc_and_never_fail() -> None:
    assert utc(START) == "2027-01-15T08:00:00Z"
    assert utc(None) == utc(1e300) == utc(float("nan")) == ""
