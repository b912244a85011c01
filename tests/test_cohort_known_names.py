"""Names of scans that were segmented before stay, whatever lies next to them now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import phantoms
import pydicom
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.known_names import with_known_names
from napari_seg.cohort.outputs import sha256_of
from napari_seg.cohort.rows import CaseRow, ModelRow
from napari_seg.cohort.scan_files import fingerprint, place_digest
from napari_seg.cohort.select import Selection, select_cases
from napari_seg.formats.dicom.private_words import without_uids
from napari_seg.formats.scan import Scan

MODEL = read_bundle()
MODELS = {1: ModelRow(1, MODEL.name, "1", "monai", "d1")}


def case(file: Path, name: str, bundle: Bundle = MODEL) -> Case:
    path = PurePosixPath(name)
    source = "/".join(file.parts[-2:])
    return Case(path.name, source, str(file), Scan("x", "nifti", (file,)), path.parent, bundle=bundle)


def file(folder: Path, name: str, content: bytes, seconds: int) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def row(known: Case, name: str = "", model: int = 1) -> CaseRow:
    return CaseRow(
        1,
        name or known.key,
        "done",
        source=known.source,
        place=place_digest(known.scan, "salt"),
        fingerprint=fingerprint(known.scan),
        input_sha256=sha256_of(known.scan.files),
        model=model,
    )


def keys(cases: Sequence[Case], done: Sequence[CaseRow] = (), models: dict[int, ModelRow] = MODELS) -> list[str]:
    digests = {"one": "d1", "two": "d2"}
    known = with_known_names(cases, done, models, "salt", lambda bundle: digests[bundle.root.name])
    return [one.key for one in known]


def test_a_failed_scan_keeps_its_name_after_its_repair(tmp_path: Path) -> None:
    damaged = case(file(tmp_path, "old", b"damaged", 1), "x")
    failed = replace(row(damaged), state="failed")
    repaired = file(tmp_path, "old", b"repaired", 2)
    assert keys([case(repaired, "new_x")], [failed]) == ["x"]
    elsewhere = file(tmp_path / "moved", "old", b"repaired", 2)
    assert keys([replace(case(elsewhere, "new_x"), source=damaged.source)], [failed]) == ["new_x"]


UID = "1.2.826.0.1.3680043.2.1125.1"


def test_scans_below_folders_named_by_uids_keep_the_names_of_earlier_versions(tmp_path: Path) -> None:
    before = case(file(tmp_path, f"one/{UID}/T1", b"one", 1), f"{UID}_T1")
    known = row(before)
    (tmp_path / "one").rename(tmp_path / "two")
    place = tmp_path / "two" / UID / "T1"
    now = replace(case(place, f"{without_uids(UID)}_T1"), source=f"{without_uids(UID)}/T1")
    for state in ("done", "failed", "waiting", "running"):  # moved as a whole
        assert keys([now], [replace(known, state=state)]) == [before.key]
    assert keys([replace(now, name="T1")], [known]) == [before.key]
    assert keys([replace(now, name="T1")], [replace(known, state="waiting")]) == ["T1"]


def test_a_waiting_scan_keeps_its_name_in_its_place(tmp_path: Path) -> None:
    before = case(file(tmp_path, "a/T1", b"one", 1), "a_T1")
    for state in ("waiting", "running", "moving"):
        assert keys([replace(before, name="T1")], [replace(row(before), state=state)]) == ["a_T1"]
    stacks = [replace(before, name=name) for name in ("x", "x_2")]  # of one file
    assert keys(stacks, [replace(row(stacks[0]), state="waiting"), row(stacks[1])]) == ["x", "x_2"]
    elsewhere = case(file(tmp_path, "b/a/T1", b"one", 1), "b_a_T1")  # the same path below another input
    assert keys([elsewhere], [replace(row(before), state="waiting")]) == ["b_a_T1"]


def test_a_scan_keeps_its_name_when_another_of_the_same_name_arrives(tmp_path: Path) -> None:
    old, new = file(tmp_path, "old", b"old", 1), file(tmp_path, "new", b"new", 2)
    done = [row(case(old, "x"))]
    assert keys([case(old, "imagesTr_x"), case(new, "imagesTs_x")], done) == ["x", "imagesTs_x"]
    # of series with one name in one folder, the first in the list has no number
    assert keys([case(new, "x"), case(old, "x_2")], done) == ["x_2", "x"]
    assert keys([case(old, "a/x"), case(new, "b/x")], done) == ["x", "b/x"]


def test_only_the_same_place_and_the_same_content_keep_a_name(tmp_path: Path) -> None:
    old = file(tmp_path, "a/T1", b"old", 1)
    done = [row(case(old, "a_T1"))]
    os.utime(old, (9, 9))  # its content counts
    assert keys([case(old, "T1")], done) == ["a_T1"]
    copy = file(tmp_path, "b/T1", b"old", 1)
    assert keys([case(copy, "T1"), case(old, "x")], done) == ["T1", "a_T1"]
    old.unlink()
    assert keys([case(copy, "b_T1")], done) == ["b_T1"]
    file(tmp_path, "a/T1", b"new", 1)
    assert keys([case(old, "T1")], done) == ["T1"]


def test_a_data_set_that_was_moved_as_a_whole_keeps_its_names(tmp_path: Path) -> None:
    a, b = file(tmp_path, "one/a/T1", b"one", 1), file(tmp_path, "one/b/T1", b"two", 1)
    done = [row(case(a, "T1")), row(case(b, "b_T1"))]
    (tmp_path / "one").rename(tmp_path / "two")
    moved = [tmp_path / "two" / name / "T1" for name in "ab"]
    assert keys([case(moved[0], "a_T1"), case(moved[1], "b_T1")], done) == ["T1", "b_T1"]
    # the result of a scan that is in its place is not that of a copy
    copy = file(tmp_path, "three/a/T1", b"one", 1)
    done = [row(case(moved[0], "T1")), row(case(moved[1], "b_T1"))]
    assert keys([case(moved[0], "a_T1"), case(copy, "copy_T1")], done) == ["T1", "copy_T1"]
    # a manifest of an earlier version knows no places
    assert keys([case(moved[0], "a_T1")], [replace(done[0], place="")]) == ["T1"]
    assert with_known_names([case(moved[0], "a_T1")], [replace(done[0], place="")], MODELS, "", str)[0].name == "T1"


def test_names_of_folders_that_were_swapped_change(tmp_path: Path) -> None:
    a, b = file(tmp_path, "a/T1", b"one", 1), file(tmp_path, "b/T1", b"two", 1)
    done = [row(case(a, "a_T1")), row(case(b, "b_T1"))]
    a.parent.rename(tmp_path / "c")
    b.parent.rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    assert keys([case(a, "a_T1"), case(b, "b_T1")], done) == ["a_T1", "b_T1"]
    assert keys([case(a, "T1")], done) == ["T1"]


def test_a_name_belongs_to_a_model(tmp_path: Path) -> None:
    scan = file(tmp_path, "x", b"x", 1)
    one, two = (replace(MODEL, root=tmp_path / name) for name in ("one", "two"))
    done = [row(case(scan, "x"))]
    assert keys([case(scan, "a_x", replace(one, name="liver"))], done) == ["a_x"]
    # a model that changed has the results of the former one; another one of the same title has not
    assert keys([case(scan, "a_x", two)], done) == ["x"]
    both = [case(scan, "x_two", two), case(scan, "x_one", one)]
    assert keys(both, done) == ["x_two", "x"]
    models = MODELS | {2: ModelRow(2, MODEL.name, "1", "monai", "d2")}
    swapped = [row(case(scan, "x_one"), model=2), row(case(scan, "x_two"), model=1)]
    assert keys(both, swapped, models) == ["x_one", "x_two"]


def test_a_name_that_a_list_gives_is_kept(tmp_path: Path) -> None:
    a, b = file(tmp_path, "a", b"one", 1), file(tmp_path, "b", b"two", 1)
    done = [row(case(a, "P001")), row(case(b, "P002"))]
    swapped = [replace(case(a, "P002"), is_named=True), replace(case(b, "P001"), is_named=True)]
    assert keys(swapped, done) == ["P002", "P001"]
    # another scan does not take the name of a list
    taken = [replace(case(a, "a_x"), is_named=True), case(b, "b_a_x")]
    assert keys(taken, [row(case(b, "a_x"))]) == ["a_x", "b_a_x"]


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
    assert keys(below, done) == names[:1]
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
    below = [replace(one, bundle=MODEL) for one in find_cases([tmp_path / "study" / "Doe_Jane"])[0]]
    (kept,) = keys(below, done)
    assert kept in keys(above)
    assert kept not in keys(below)
    assert "Doe" not in kept
