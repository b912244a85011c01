"""Names of scans that were segmented before stay, whatever lies next to them now."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

from napari_seg.cohort.case import Case
from napari_seg.cohort.known_names import with_known_names
from napari_seg.cohort.outputs import sha256_of
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.scan_files import fingerprint, input_bytes
from napari_seg.formats.scan import Scan


def case(file: Path, name: str, source: str = "x.nii.gz") -> Case:
    path = PurePosixPath(name)
    folder = path.parent
    return Case(path.name, source, str(file), Scan(file.name, "nifti", (file,)), folder)


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
    assert keys(with_known_names([case(new, "y")], done, {}, "flat", "flat")) == ["y"]
    copy = Path(shutil.copyfile(old, tmp_path / "copy"))  # with another time
    assert keys(with_known_names([case(copy, "y")], done, {}, "flat", "flat")) == ["x"]
    # a renamed file gets a result of the new name
    assert keys(with_known_names([case(copy, "y", "y.nii.gz")], done, {}, "flat", "flat")) == ["y"]
    missing = Path(shutil.move(old, tmp_path / "elsewhere"))
    assert keys(with_known_names([case(old, "y"), case(missing, "z")], done, {}, "flat", "flat")) == ["y", "x"]


def test_a_scan_that_lies_twice_is_segmented_twice(tmp_path: Path) -> None:
    old = file(tmp_path, "old", b"old", 1)
    copy = Path(shutil.copy2(old, tmp_path / "copy"))
    now = [case(copy, "a_x"), case(old, "x")]
    assert keys(with_known_names(now, [row(case(old, "x"))], {}, "flat", "flat")) == ["a_x", "x"]


def test_names_of_another_model_are_not_taken(tmp_path: Path) -> None:
    old = file(tmp_path, "old", b"old", 1)
    done = [replace(row(case(old, "x")), model=7)]
    assert keys(with_known_names([case(old, "y")], done, {7: "liver"}, "flat", "flat")) == ["y"]
