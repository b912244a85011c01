"""Finding the scans of a run: below folders, in archives and in lists; each once, each file opened once."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import phantoms
import pytest

from napari_seg.cohort.discover import find_candidates, find_cases, units_of
from napari_seg.formats.channels import ChannelSet


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two T1 images, a FLAIR, and a DICOM series in the folder of a patient."""
    root = tmp_path / "scans"
    root.mkdir()
    for name in ("p1_T1", "p1_FLAIR", "p2_T1"):
        phantoms.write_nifti(phantoms.head(), root / f"{name}.nii.gz")
    phantoms.write_series(phantoms.head(), root / "CANARY_Tweety" / "dicom")
    return root


def write_list(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_name_that_two_lists_give_to_different_scans_is_refused(tmp_path: Path) -> None:
    for site in ("one", "two"):
        (tmp_path / site).mkdir()
        phantoms.write_nifti(phantoms.head(), tmp_path / site / "x.nii.gz")
        (tmp_path / f"{site}.csv").write_text(f"path,name\n{site}/x.nii.gz,{'P001' if site == 'one' else 'p001'}\n")
    found = find_candidates([tmp_path / "one.csv", tmp_path / "two.csv"]).candidates
    assert [one.problem and one.problem.code for one in found] == [None, "cohort.list_name"]
    again = find_candidates([tmp_path / "one.csv", tmp_path / "one.csv"]).candidates
    assert [one.problem for one in again] == [None]


def test_a_datalist_and_a_table_are_inputs_as_folders_are(scans: Path, tmp_path: Path) -> None:
    datalist = write_list(scans / "list.json", {"testing": [{"image": "p1_T1.nii.gz"}, {"image": "CANARY_Tweety"}]})
    table = write_list(tmp_path / "list.csv", "path,name\nscans/p2_T1.nii.gz,second\n")
    cases, faults = find_cases([datalist, table])
    assert faults == []
    assert [case.name for case in cases] == ["p1_T1", "MR_T1w_sagittal_003", "second"]


def test_a_missing_file_of_a_list_is_a_fault_of_its_own_and_names_no_folder(scans: Path) -> None:
    table = write_list(scans / "list.csv", "path\nnone.nii.gz\np1_T1.nii.gz\nCANARY_Woodstock\nlist.csv/x\n")
    cases, faults = find_cases([table])
    assert [case.name for case in cases] == ["p1_T1"]
    assert [(path.name, fault.code) for path, fault in faults] == [
        ("none.nii.gz", "input.missing"),
        ("line_4", "input.missing"),
        ("line_5", "input.missing"),
    ]
    assert faults[1][1].message == "list.csv, line 4: found no file or folder at this path; correct the path"


def test_a_list_with_a_fault_costs_no_other_input(scans: Path) -> None:
    table = write_list(scans / "list.csv", "file\na\n")
    cases, faults = find_cases([table, scans / "p1_T1.nii.gz"])
    assert [case.name for case in cases] == ["p1_T1"]
    assert [fault.code for _, fault in faults] == ["cohort.list"]


def test_a_list_states_images_that_are_channels_in_their_order(scans: Path) -> None:
    images = ["p1_FLAIR.nii.gz", "p1_T1.nii.gz"]
    found = find_candidates([write_list(scans / "list.json", [{"image": images, "name": "one"}])])
    (unit,) = units_of(found.candidates, ("FLAIR", "T1"))
    assert isinstance(unit.scan, ChannelSet)
    assert [(name, scan.name) for name, scan in unit.scan.channels] == [("FLAIR", "p1_FLAIR"), ("T1", "p1_T1")]
    assert unit.problem is None
    (unit,) = units_of(found.candidates, ("T1", "T2", "FLAIR"))
    assert unit.problem is not None
    assert unit.problem.code == "channels.count"


def test_scans_of_a_list_without_names_are_grouped_as_those_of_a_folder(scans: Path) -> None:
    found = find_candidates([write_list(scans / "list.json", ["p1_FLAIR.nii.gz", "p1_T1.nii.gz", "p2_T1.nii.gz"])])
    units = units_of(found.candidates, ("T1", "FLAIR"))
    assert [unit.scan.name for unit in units] == ["p1", "p2"]


def test_a_scan_below_two_inputs_is_found_once_and_counted(scans: Path) -> None:
    table = write_list(scans.parent / "list.csv", "path,model\nscans/p1_T1.nii.gz,\nscans/p1_T1.nii.gz,a\n")
    found = find_candidates([scans, scans / "p1_T1.nii.gz", table])
    assert found.repeated == 2  # below the folder twice, and in the list; with another model it is another case
    assert [one.model for one in found.candidates if one.scan.name == "p1_T1"] == ["", "a"]
    if sys.platform != "win32":
        (scans.parent / "link").symlink_to(scans)
        assert find_candidates([scans, scans.parent / "link"]).repeated == 4


def test_a_second_name_for_a_scan_is_refused_and_not_lost(scans: Path) -> None:
    table = write_list(scans / "list.csv", "path,name\np1_T1.nii.gz,pat1\np1_T1.nii.gz,pat2\np2_T1.nii.gz,\n")
    cases, faults = find_cases([table])
    assert [case.name for case in cases] == ["pat1", "p2_T1"]
    assert [fault.code for _, fault in faults] == ["cohort.list_twice"]
    assert "the scan of pat1" in faults[0][1].message


@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_list_says_has_priority_over_the_folder(scans: Path, is_first: bool) -> None:
    table = write_list(scans.parent / "list.csv", "path,name,model\nscans/p1_T1.nii.gz,pat1,\nscans/p2_T1.nii.gz,,m\n")
    found = find_candidates([table, scans] if is_first else [scans, table])
    told = {(one.name, one.model) for one in found.candidates if one.scan.name in ("p1_T1", "p2_T1")}
    assert told == {("pat1", ""), ("", "m")}
    assert (len(found.candidates), found.repeated) == (4, 2)


def test_an_archive_in_a_list_is_unpacked(scans: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "both"), "zip", scans, "CANARY_Tweety")
    cases, faults = find_cases([write_list(tmp_path / "list.json", [archive])])
    assert ([case.name for case in cases], faults) == (["MR_T1w_sagittal_003"], [])


def test_other_files_are_counted_and_opened_once(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        (scans / f"notes{number}.txt").write_text("no scan\n" * 100)
    opened: Counter[str] = Counter()
    real = builtins.open

    def count(file: Any, *args: Any, **options: Any) -> Any:
        opened[str(file)] += 1
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", count)
    found = find_candidates([scans])
    assert len(found.candidates) == 4
    assert found.other_files["skip.not_an_image"] == 50
    assert {opened[name] for name in opened if name.endswith(".txt")} == {1}
