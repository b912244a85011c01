"""Names of cases: from the place of a scan alone, unique on every file system, and without names of patients."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import phantoms
import pydicom
import pytest

from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.naming import UniqueNames, input_name, is_certainty_map, is_result, named_scans
from napari_seg.formats.record import read_record, write_record
from napari_seg.formats.scan import Scan


def test_names_follow_from_the_place_alone(tmp_path: Path) -> None:
    for file in (
        "site_a/T1.nii.gz",
        "site_b/T1.nii.gz",
        "site_b/other/case.nii.gz",
        "sub-01/ses-1/anat/T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
        "flat/case.nii.gz",
        "set/imagesTr/case_1.nii.gz",
        "site_c/images/T1.nii.gz",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        phantoms.write_nifti(phantoms.head(), tmp_path / file)

    def found(*inputs: Path) -> dict[str, str]:
        return {Path(case.place).relative_to(tmp_path).as_posix(): case.name for case in find_cases(inputs)[0]}

    together = found(tmp_path)
    assert together == {
        "site_a/T1.nii.gz": "site_a_T1",
        "site_b/T1.nii.gz": "site_b_T1",
        "site_b/other/case.nii.gz": "site_b_other_case",
        "sub-01/ses-1/anat/T1w.nii.gz": "sub-01_ses-1_anat_T1w",
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz": "sub-01_ses-1_T2w",
        "flat/case.nii.gz": "flat_case",
        "set/imagesTr/case_1.nii.gz": "set_case_1",
        "site_c/images/T1.nii.gz": "site_c_T1",
    }
    assert found(tmp_path / "set") == {"set/imagesTr/case_1.nii.gz": "case_1"}
    t1 = {file: name for file, name in together.items() if file.endswith(("T1.nii.gz", "T1w.nii.gz"))}
    assert found(*(tmp_path / file for file in t1)) == t1
    for file, name in t1.items():
        assert found(tmp_path / file) == {file: name}
        assert found((tmp_path / file).parent)[file] == name
    assert found(tmp_path / "site_b", tmp_path / "site_a")["site_a/T1.nii.gz"] == "site_a_T1"
    both = {"flat/case.nii.gz": "case", "site_b/other/case.nii.gz": "other_case"}
    assert both.items() <= found(tmp_path / "flat", tmp_path / "site_b", tmp_path / "site_a" / "T1.nii.gz").items()
    assert found(tmp_path / "flat") == {"flat/case.nii.gz": "case"}
    assert found(tmp_path / "flat" / "case.nii.gz", tmp_path) == together


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_has_its_own_name_and_the_identity_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "store" / "3f").mkdir(parents=True)
    (tmp_path / "set" / "site_a").mkdir(parents=True)
    file = phantoms.write_nifti(phantoms.head(), tmp_path / "store" / "3f" / "3fa9.nii.gz")
    (tmp_path / "set" / "site_a" / "T1.nii.gz").symlink_to(file)
    (case,), _ = find_cases([tmp_path / "set"])
    assert (case.name, case.source, case.place) == ("site_a_T1", "site_a/T1.nii.gz", str(file.resolve()))


def test_a_record_that_is_none_of_ours_is_passed_over(tmp_path: Path) -> None:
    scan = phantoms.write_nifti(phantoms.head(), tmp_path / "case_seg.nii.gz")
    record = tmp_path / "case_seg.json"
    for text in (b'{"a":' * 200_000, b"\xff\xfe", b"[]", b'{"program": 3}', b"{", b"9" * 10_000):
        record.write_bytes(text)
        assert read_record(record) is None
        assert not is_result(scan)
    record.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(record)  # reading it would wait for ever
        assert not is_result(scan)
        record.unlink()


def test_a_result_is_known_by_its_record_in_every_layout(tmp_path: Path) -> None:
    for name in ("a_seg", "sub-01_dseg"):
        write_record(tmp_path / f"{name}.json", {})
        for ending in (".nii.gz", ".png", "_confidence.nii.gz"):
            (tmp_path / f"{name}{ending}").touch()
            assert is_result(tmp_path / f"{name}{ending}")
            assert is_certainty_map(tmp_path / f"{name}{ending}") == (ending != ".nii.gz")
    assert not is_result(tmp_path / "a.nii.gz")


def test_names_are_unique_on_file_systems_that_ignore_case_and_accents_in_two_forms() -> None:
    unique = UniqueNames()
    assert [unique.take(name) for name in ("Caf\u00e9", "CAFE\u0301", "caf\u00e9", "cafe")] == [
        "Caf\u00e9",
        "CAFE\u0301_2",
        "caf\u00e9_3",
        "cafe",
    ]
    assert unique.take("cafe", "folder") == "cafe"
    assert unique.take("CAFE", "Folder") == "CAFE_2"
    names = [unique.take("x") for _ in range(20_000)]  # seconds if each were compared with all others
    assert names[-1] == "x_20000"


def test_a_name_of_a_list_stays_and_others_avoid_it(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.nii.gz" for name in ("a", "b", "c")]
    scans = [Scan(file.name.removesuffix(".nii.gz"), "nifti", (file,)) for file in files]
    named = named_scans(scans, [tmp_path], ["", "", "A"])
    assert [one.name for one in named] == ["a_2", "b", "A"]


def test_folders_named_by_identifiers_of_dicom_have_digests(tmp_path: Path) -> None:
    study, one, other = (f"1.2.840.113619.2.55.3.{number}" for number in ("604688119", "604688119.1", "604688119.2"))
    for number, series in enumerate((one, other, "1.2.3")):
        folder = tmp_path / "site" / study / series
        folder.mkdir(parents=True)
        phantoms.write_series(replace(phantoms.head(), array=phantoms.head().array + number), folder)
        for path in folder.iterdir() if series == "1.2.3" else ():
            dataset = pydicom.dcmread(path)
            dataset.SeriesInstanceUID = series
            dataset.save_as(path)
    phantoms.write_nifti(phantoms.head(), tmp_path / "site" / study / "T1.nii.gz")
    cases, _ = find_cases([tmp_path])
    named = [f"{case.name} {case.source}" for case in cases]
    assert len({case.name for case in cases}) == len({case.source for case in cases}) == 4
    assert not re.search(r"\d\.\d", " ".join(named)), named
    assert all(case.source.startswith("site/uid") for case in cases)
    (alone,) = find_cases([tmp_path / "site" / study / one])[0]
    assert alone.source == "uid" + hashlib.sha256(one.encode()).hexdigest()[:8]
    assert input_name(tmp_path / "site" / study, [tmp_path / "site" / study, tmp_path], []).startswith("site/uid")


def test_inputs_without_a_common_folder_show_no_path_above_them() -> None:
    root = Path(os.path.abspath(os.sep))
    inputs = [root / "home" / "anna" / "a.nii.gz", root / "data" / "b.nii.gz"]
    scans = [Scan(path.name[0], "nifti", (path,)) for path in inputs]
    assert [one.source for one in named_scans(scans, inputs)] == ["a.nii.gz", "b.nii.gz"]
    assert [input_name(path, inputs, scans) for path in inputs] == ["a.nii.gz", "b.nii.gz"]
    together = [root / "home" / "anna", root / "home" / "bob"]
    assert [input_name(path, together, scans) for path in together] == ["anna", "bob"]
