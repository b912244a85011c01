"""Test who the patient of a case is: stated, found by a pattern, or named by a file or a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from empty_sets import code_of, touch
from segnets.data import find_dataset
from segnets.data.patients import ONE_FOLDER, Origin, lie_in_one_folder, patients_of


def groups(patients: list[str]) -> list[int]:
    """Return for each case the first case of its patient."""
    return [patients.index(who) for who in patients]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        # sessions above the patients, who are named by files, numbers or folders
        ("ses-1/sub-1.nii ses-1/sub-2.nii ses-2/sub-1.nii ses-2/sub-2.nii", [0, 1, 0, 1]),
        ("baseline/pat1.nii baseline/pat2.nii followup/pat1.nii", [0, 1, 0]),
        ("v/visit1/images/00.nii v/visit1/images/01.nii v/visit2/images/00.nii", [0, 1, 0]),
        ("day1/A7/ct.nii day1/B2/ct.nii day2/A7/ct.nii day2/B2/ct.nii", [0, 1, 0, 1]),
        ("scan1/rat1/x.nii scan1/rat2/x.nii scan2/rat1/x.nii", [0, 1, 0]),
        ("2024-01-05/sub-1.nii 2024-01-05/sub-2.nii 2024-02-05/sub-1.nii", [0, 1, 0]),
        ("train/ses-1/sub-1.nii train/ses-1/sub-2.nii test/ses-1/sub-3.nii train/ses-2/sub-1.nii", [0, 1, 2, 0]),
        # sessions below the patients
        ("rat1/scan1/t1.nii rat1/scan2/t1.nii rat2/scan1/t1.nii", [0, 0, 2]),
        ("A7/ct.nii A7/mr.nii B2/ct.nii B2/mr.nii", [0, 0, 2, 2]),
        ("patient1/case_1/ct.nii patient1/case_2/ct.nii patient2/case_3/ct.nii", [0, 0, 2]),
        ("sub-1_ses-1/t1.nii sub-1_ses-2/t1.nii sub-2_ses-1/t1.nii", [0, 0, 2]),
        # folders that distinguish patients, and cases of their own
        ("north/sub-1_a.nii north/sub-1_b.nii south/sub-1_a.nii", [0, 0, 2]),
        ("A/p01/x.nii A/p02/x.nii B/p01/x.nii B/p02/x.nii", [0, 1, 2, 3]),
        ("scan1/t1.nii scan2/t1.nii scan3/t1.nii", [0, 1, 2]),
        ("day1/t1.nii day2/t1.nii day3/t1.nii", [0, 1, 2]),
        ("scan1/left.nii scan1/right.nii scan2/left.nii scan2/right.nii", [0, 0, 2, 2]),
        ("scan1/left/t1.nii scan1/right/t1.nii scan2/left/t1.nii scan2/right/t1.nii", [0, 0, 2, 2]),
        ("patient1/sub-1/t1.nii patient1/sub-2/t1.nii patient2/sub-1/t1.nii", [0, 0, 2]),
        ("sub-cohort/sub-1/t1.nii sub-cohort/sub-2/t1.nii sub-cohort/sub-2/t2.nii", [0, 1, 1]),
        ("images/a.nii images/b.nii", [0, 1]),
        # one folder above all cases
        ("case1/a.nii case1/b.nii", [0, 1]),
        ("case1/sub-1_a.nii case1/sub-1_b.nii case1/sub-2.nii", [0, 0, 2]),
        ("mouse1/A7/ct.nii mouse1/A7/mr.nii mouse1/B2/ct.nii", [0, 0, 2]),
    ],
)
def test_patients_by_paths(paths: str, expected: list[int]) -> None:
    assert groups(patients_of([Origin(path) for path in paths.split()])) == expected


@pytest.mark.parametrize(
    ("paths", "above", "shared"),
    [
        ("rat1/a.nii rat1/b.nii", "data", True),
        ("rat1/day1/x.nii rat1/day2/x.nii", "data", True),
        ("a.nii b.nii", "patient07", True),
        ("a.nii b.nii", "data", False),
        ("rat1/a.nii rat2/b.nii", "data", False),
        ("rat1/sub-1_a.nii rat1/sub-2_a.nii", "data", False),
        ("rat1/sub-1/a.nii rat1/sub-2/a.nii", "data", False),
    ],
)
def test_all_cases_in_the_folder_of_one_patient(paths: str, above: str, shared: bool) -> None:
    assert lie_in_one_folder([Origin(path) for path in paths.split()], above) == shared


def test_a_folder_of_one_patient_is_a_note(tmp_path: Path) -> None:
    root = touch(tmp_path / "rat1", *(f"{kind}/scan{n}.nii.gz" for kind in ("images", "labels") for n in (1, 2)))
    assert find_dataset(root).unused == (ONE_FOLDER,)
    assert find_dataset(root, patient="scan.").unused == ()


def test_other_folders_of_named_cases_are_no_patients() -> None:
    paths = ["batch1/a.nii", "batch1/b.nii", "batch2/c.nii", "batch2/d.nii"]
    named = [Origin(path, Path(path).stem) for path in paths]
    assert patients_of(named, only_named=True) == ["a", "b", "c", "d"]
    named = [Origin(path.replace("batch", "mouse"), Path(path).stem) for path in paths]
    assert groups(patients_of(named, only_named=True)) == [0, 0, 2, 2]
    stated = [Origin(path, Path(path).stem, "Anna" if path < "batch2" else "") for path in paths]
    assert groups(patients_of(stated, only_named=True)) == [0, 0, 2, 3]


def test_names_count_before_folders() -> None:
    cases = [Origin(f"{folder}/sub-1_{folder}.nii", f"sub-1_{folder}") for folder in ("t1", "flair")]
    assert patients_of(cases, only_named=True) == ["sub-1", "sub-1"]


def numbered(root: Path) -> Path:
    """Write a list of cases whose files have equal names."""
    names = [f"patient{patient:02d}/scan{scan}" for patient in range(4) for scan in (1, 2)]
    touch(root, *(f"{name}/{file}.nii.gz" for name in names for file in ("t1", "seg")))
    rows = [f"{name}/t1.nii.gz,{name}/seg.nii.gz" for name in names]
    (root / "cases.csv").write_text("\n".join(["image,label", *rows]))
    return root / "cases.csv"


@pytest.mark.parametrize(
    ("pattern", "count"), [(None, 4), (r"patient\d+", 4), ("^[^/]+", 4), (r"scan\d", 2), (r"patient\d+/scan\d", 8)]
)
def test_patients_of_numbered_cases(tmp_path: Path, pattern: str | None, count: int) -> None:
    dataset = find_dataset(numbered(tmp_path), patient=pattern)
    assert [case["name"] for case in dataset.cases][:2] == ["case_0001", "case_0002"]
    assert len(set(dataset.patients.values())) == count
    assert not dataset.is_unmatched


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    table = numbered(tmp_path)
    assert find_dataset(table, patient="subject").is_unmatched
    assert code_of(table, patient="(") == "dataset.patient"
