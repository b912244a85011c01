"""Names of scans that were segmented before stay, whatever lies next to them now."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import phantoms
import pydicom
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort import known_names
from napari_seg.cohort.case import Case
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.known_names import with_known_names
from napari_seg.cohort.naming import compared
from napari_seg.cohort.outputs import sha256_of
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.scan_files import fingerprint, input_bytes
from napari_seg.cohort.select import Selection, select_cases
from napari_seg.formats.scan import Scan


def case(file: Path, name: str, source: str = "x.nii.gz", levels: tuple[str, ...] = ()) -> Case:
    path = PurePosixPath(name)
    folder = path.parent
    stem = PurePosixPath(source).name.removesuffix(".nii.gz")
    return Case(path.name, source, str(file), Scan(stem, "nifti", (file,)), folder, levels=levels or file.parts[1:-1])


def file(folder: Path, name: str, content: bytes, seconds: int) -> Path:
    path = folder / name
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def row(known: Case, name: str = "") -> CaseRow:
    return CaseRow(
        1,
        name or known.key,
        "done",
        source=known.source,
        fingerprint=fingerprint(known.scan),
        input_sha256=sha256_of(known.scan.files),
        input_bytes=input_bytes(known.scan),
    )


def keys(cases: list[Case]) -> list[str]:
    return [one.key for one in cases]


def test_a_scan_keeps_its_name_when_another_of_the_same_name_arrives(tmp_path: Path) -> None:
    old, new = file(tmp_path, "old", b"old", 1), file(tmp_path, "new", b"new", 2)
    done = [row(case(old, "x"))]
    now = [case(old, "imagesTr_x"), case(new, "imagesTs_x")]
    assert keys(with_known_names(now, done, {}, "flat", "flat")) == ["x", "imagesTs_x"]
    # of series with one name in one folder, the first in the list has no number
    shifted = [case(new, "x"), case(old, "x_2")]
    assert keys(with_known_names(shifted, done, {}, "flat", "flat")) == ["x_2", "x"]
    # results of another layout lie elsewhere
    assert keys(with_known_names(now, done, {}, "mirror", "flat")) == ["imagesTr_x", "imagesTs_x"]
    below = [case(old, "a/x"), case(new, "b/x")]
    assert keys(with_known_names(below, done, {}, "mirror", "mirror")) == ["x", "b/x"]


def test_equal_sizes_and_times_are_not_the_same_scan(tmp_path: Path) -> None:
    old, new = file(tmp_path, "old", b"old", 1), file(tmp_path, "new", b"new", 1)
    done = [row(case(old, "x"))]
    assert keys(with_known_names([case(new, "a_x")], done, {}, "flat", "flat")) == ["a_x"]
    copy = Path(shutil.copyfile(old, tmp_path / "copy"))  # with another time
    assert keys(with_known_names([case(copy, "a_x")], done, {}, "flat", "flat")) == ["x"]
    # a renamed file gets a result of the new name
    assert keys(with_known_names([case(copy, "a_x", "y.nii.gz")], done, {}, "flat", "flat")) == ["a_x"]
    missing = Path(shutil.move(old, tmp_path / "elsewhere"))
    assert keys(with_known_names([case(old, "a_x"), case(missing, "b_x")], done, {}, "flat", "flat")) == ["a_x", "x"]


def test_a_scan_that_lies_twice_is_segmented_twice(tmp_path: Path) -> None:
    old = file(tmp_path, "old", b"old", 1)
    copy = Path(shutil.copy2(old, tmp_path / "copy"))
    now = [case(copy, "a_x"), case(old, "x")]
    assert keys(with_known_names(now, [row(case(old, "x"))], {}, "flat", "flat")) == ["a_x", "x"]


def test_names_of_another_model_are_not_taken(tmp_path: Path) -> None:
    old = file(tmp_path, "old", b"old", 1)
    done = [replace(row(case(old, "x")), model=7)]
    assert keys(with_known_names([case(old, "a_x")], done, {7: "liver"}, "flat", "flat")) == ["a_x"]
    one_of_two = replace(case(old, "one_x_total"), model_name="total")
    assert keys(with_known_names([one_of_two], [row(case(old, "x"))], {}, "flat", "flat")) == ["x"]


def test_a_name_that_a_list_gives_is_kept(tmp_path: Path) -> None:
    a, b = file(tmp_path, "a", b"one", 1), file(tmp_path, "b", b"two", 1)
    done = [row(case(a, "P001")), row(case(b, "P002"))]
    swapped = [replace(case(a, "P002"), is_named=True), replace(case(b, "P001"), is_named=True)]
    assert keys(with_known_names(swapped, done, {}, "flat", "flat")) == ["P002", "P001"]
    mended = [replace(case(a, "P001x"), is_named=True), replace(case(b, "P002"), is_named=True)]
    assert keys(with_known_names(mended, done, {}, "flat", "flat")) == ["P001x", "P002"]
    # another scan does not take the name of a list
    taken = [replace(case(a, "a_x"), is_named=True), case(b, "b_a_x")]
    assert keys(with_known_names(taken, [row(case(b, "a_x"))], {}, "flat", "flat")) == ["a_x", "b_a_x"]


def test_names_of_folders_that_were_swapped_or_renamed_change(tmp_path: Path) -> None:
    folders = [tmp_path / patient for patient in ("patA", "patB", "patC")]
    for folder in folders:
        folder.mkdir()
    a, b = file(folders[0], "T1.nii.gz", b"one", 1), file(folders[1], "T1.nii.gz", b"two", 1)
    done = [row(case(a, "patA_T1", "patA/T1.nii.gz")), row(case(b, "patB_T1", "patB/T1.nii.gz"))]
    swapped = [case(b, "patA_T1", "patA/T1.nii.gz"), case(a, "patB_T1", "patB/T1.nii.gz")]
    assert keys(with_known_names(swapped, done, {}, "flat", "flat")) == ["patA_T1", "patB_T1"]
    renamed = a.rename(folders[2] / "T1.nii.gz")
    for source in ("patC/T1.nii.gz", "T1.nii.gz"):
        now = [case(renamed, "patC_T1", source)]
        assert keys(with_known_names(now, done, {}, "flat", "flat")) == ["patC_T1"]
    # the folder of one patient alone: the known name is kept only if the folder still has it
    assert keys(with_known_names([case(renamed, "T1", "T1.nii.gz")], done, {}, "flat", "flat")) == ["T1"]
    assert keys(with_known_names([case(b, "T1", "T1.nii.gz")], done, {}, "flat", "flat")) == ["patB_T1"]


def test_the_name_of_another_file_is_not_taken(tmp_path: Path) -> None:
    old, new = file(tmp_path, "old", b"old", 1), file(tmp_path, "new", b"new", 1)
    now = [case(new, "x"), case(old, "one_x", "one/x.nii.gz")]
    assert keys(with_known_names(now, [row(case(old, "x"))], {}, "flat", "flat")) == ["x", "one_x"]


def _found(*inputs: Path) -> list[Case]:
    return find_cases(inputs, ("T1", "T2"))[0]


def test_names_that_end_in_digits_belong_to_their_folders(tmp_path: Path) -> None:
    study = tmp_path / "study"
    for patient in ("P001", "P002"):
        (study / patient).mkdir(parents=True)
        for channel in ("t1.nii", "t2.nii"):
            file(study / patient, channel, f"{patient} {channel}".encode(), 1)
    first = _found(study)
    assert keys(first) == ["P001", "P002"]
    done = [replace(row(one), id=number) for number, one in enumerate(first)]
    for old, new in (("P001", "x"), ("P002", "P001"), ("x", "P002")):
        (study / old).rename(study / new)
    assert [one.key for one in with_known_names(_found(study), done, {}, "flat", "flat")] == ["P001", "P002"]
    (study / "P002").rename(study / "P777")
    for inputs in (study, study / "P777"):
        assert "P777" in keys(with_known_names(_found(inputs), done, {}, "flat", "flat"))
    (study / "P777").rename(study / "P001_2")  # no number of a second scan
    assert keys(with_known_names(_found(study / "P001_2"), done, {}, "flat", "flat")) == ["P001_2"]


def test_a_number_is_kept_by_a_scan_that_was_not_moved(tmp_path: Path) -> None:
    old = file(tmp_path, "old", b"old", 1)
    now = case(old, "x", "b/x.nii.gz", ("study", "a", "b"))
    for source, name in (("b/x.nii.gz", "x_2"), ("a/b/x.nii.gz", "x_2"), ("c/x.nii.gz", "x")):
        done = [row(replace(now, source=source), "x_2")]
        assert keys(with_known_names([now], done, {}, "flat", "flat")) == [name]


@pytest.mark.parametrize("layout", ["flat", "mirror"])
def test_linked_scans_keep_the_names_of_a_run_on_a_folder_above(
    tmp_path: Path, layout: Literal["flat", "mirror"]
) -> None:
    for subject in ("sub-01", "sub-02"):
        (tmp_path / "study" / subject).mkdir(parents=True)
        (tmp_path / "annex" / subject[-1]).mkdir(parents=True)
        content = file(tmp_path / "annex" / subject[-1], "img.nii", subject.encode(), 1)
        (tmp_path / "study" / subject / "img.nii").symlink_to(content)
    selections = [
        Selection((tmp_path / "study",), layout=layout),
        Selection((tmp_path / "study" / "sub-01",), layout=layout),
    ]
    above, below = (list(select_cases(one, lambda *_: read_bundle()).cases) for one in selections)
    names = keys(above)
    done = [replace(row(one), id=number) for number, one in enumerate(above)]
    known = {0: above[0].bundle.name if above[0].bundle else ""}
    assert keys(with_known_names(below, done, known, layout, layout)) == names[:1]
    assert keys(below) != names[:1]


def test_series_below_folders_with_names_of_patients_keep_their_names(tmp_path: Path) -> None:
    for number, patient in enumerate(("Doe_Jane", "Roe_Max")):
        folder = tmp_path / "study" / patient / "MR"
        folder.mkdir(parents=True)
        phantoms.write_series(replace(phantoms.head(), array=phantoms.head().array + number), folder)
        for path in sorted(folder.iterdir()):
            dataset = pydicom.dcmread(path)
            dataset.PatientName = patient.replace("_", "^")
            dataset.save_as(path)
    above = find_cases([tmp_path / "study"])[0]
    done = [replace(row(one), id=number) for number, one in enumerate(above)]
    below = find_cases([tmp_path / "study" / "Doe_Jane"])[0]
    (kept,) = keys(with_known_names(below, done, {}, "flat", "flat"))
    assert kept in keys(above)
    assert kept not in keys(below)
    assert "Doe" not in kept


def test_new_scans_are_not_compared_with_each_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def count(name: str) -> str:
        looked.append(name)
        return compared(name)

    monkeypatch.setattr(known_names, "compared", count)
    done, new = [], []
    for number in range(40):
        path = file(tmp_path, f"new{number}", f"{number:04}".encode(), 1)
        new.append(case(path, f"b{number}_T1", "T1.nii.gz", (f"b{number}",)))
        done.append(replace(row(new[-1], f"a{number}_T1"), id=number))
    assert with_known_names(new, done, {}, "flat", "flat") == new
    assert len(looked) < 40 * 20
