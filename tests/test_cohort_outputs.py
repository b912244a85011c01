"""Files of a result: all of a case or none, and nothing of anybody else is replaced."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from napari_seg.cohort.case import Case
from napari_seg.cohort.outcome import OutputFile
from napari_seg.cohort.outputs import (
    are_unchanged,
    check_not_taken,
    commit,
    move_back,
    move_forward,
    place_below,
    staged_file,
)
from napari_seg.errors import CohortError, OutputError
from napari_seg.formats.scan import Scan

NAMES = {"labels": "sub/a_seg.nii.gz", "overlay": "sub/a_seg.png", "record": "sub/a_seg.json"}


class Killed(BaseException):
    """Stands for a signal that nothing can catch."""


def case() -> Case:
    return Case("a", "a.nii", "/a.nii", Scan("a", "nifti", (Path("a.nii"),)), PurePosixPath("sub"))


def staged(output: Path, content: str, names: dict[str, str] = NAMES) -> tuple[Path, dict[str, OutputFile]]:
    staging = output / ".napari-seg" / "runner" / "1.1"
    staging.mkdir(parents=True)
    files = {}
    for role, name in names.items():
        path = staging / PurePosixPath(name).name
        path.write_text(f"{content} {role}")
        files[role] = staged_file(path, PurePosixPath(name))
    return staging, files


def content(output: Path) -> dict[str, str]:
    found = [path for path in output.rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_text() for path in found}


def fail_rename(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let a rename fail, counted from 1."""
    real, count = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_a_case_is_moved_into_place_and_nothing_else_is_left(tmp_path: Path) -> None:
    staging, new = staged(tmp_path, "new")
    notes = []
    commit(tmp_path, staging, new, {}, lambda: notes.append(content(tmp_path)))
    assert content(tmp_path) == {name: f"new {role}" for role, name in NAMES.items()}
    assert not staging.exists()
    assert all(name.startswith(".napari-seg/") for name in notes[0])  # the note comes before the renames
    assert are_unchanged(tmp_path, new)
    assert not are_unchanged(tmp_path, {})
    (tmp_path / NAMES["labels"]).write_text("edited")
    assert not are_unchanged(tmp_path, new)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_that_cannot_be_moved_away_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    commit(tmp_path, *staged(tmp_path, "old"), {}, lambda: None)
    before = content(tmp_path)
    staging, new = staged(tmp_path, "new")
    fail_rename(monkeypatch, number, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(OutputError) as caught:
        commit(tmp_path, staging, new, {}, lambda: pytest.fail("nothing may be noted"))
    assert caught.value.code == "output.not_written"
    assert {name: text for name, text in content(tmp_path).items() if not name.startswith(".")} == before


def test_a_note_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    commit(tmp_path, *staged(tmp_path, "old"), {}, lambda: None)
    before = content(tmp_path)

    def note() -> None:
        raise OutputError("output.disk_full", "no space")

    with pytest.raises(OutputError):
        commit(tmp_path, *staged(tmp_path, "new"), {}, note)
    assert {name: text for name, text in content(tmp_path).items() if not name.startswith(".")} == before


@pytest.mark.parametrize("has_old", [False, True])
def test_a_kill_before_the_note_is_undone_and_one_after_it_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_old: bool
) -> None:
    for number in range(1, 7 if has_old else 4):
        output = tmp_path / str(number)
        if has_old:
            commit(output, *staged(output, "old"), {}, lambda: None)
        staging, new = staged(output, "new")
        notes: list[bool] = []
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr("napari_seg.cohort.outputs.move_back", lambda *args: None)  # a kill undoes nothing
            fail_rename(patch, number, Killed())
            commit(output, staging, new, {}, lambda notes=notes: notes.append(True))
        if notes:
            assert move_forward(output, staging, new)
        else:
            move_back(output, staging)
        expected = "new" if notes else "old"
        found = {name: text for name, text in content(output).items() if not name.startswith(".")}
        assert found == ({name: f"{expected} {role}" for role, name in NAMES.items()} if notes or has_old else {})


def test_a_result_whose_files_were_lost_is_not_complete(tmp_path: Path) -> None:
    staging, new = staged(tmp_path, "new")
    (staging / "a_seg.png").unlink()
    assert not move_forward(tmp_path, staging, new)
    assert not (tmp_path / "sub").exists()  # nothing is renamed then


def test_a_record_that_came_before_its_lost_labels_goes_again(tmp_path: Path) -> None:
    commit(tmp_path, *staged(tmp_path, "old"), {}, lambda: None)
    before = content(tmp_path)
    staging, new = staged(tmp_path, "new")
    (staging / "replaced" / "sub").mkdir(parents=True)
    for name in NAMES.values():  # a power cut after the first rename, which the labels did not survive
        (tmp_path / name).rename(staging / "replaced" / name)
    (staging / "a_seg.json").rename(tmp_path / NAMES["record"])
    (staging / "a_seg.nii.gz").unlink()
    assert not move_forward(tmp_path, staging, new)
    move_back(tmp_path, staging, new)
    assert {name: text for name, text in content(tmp_path).items() if not name.startswith(".")} == before


def test_a_folder_in_the_way_is_never_moved(tmp_path: Path) -> None:
    (tmp_path / NAMES["overlay"]).mkdir(parents=True)
    (tmp_path / NAMES["overlay"] / "mine").touch()
    staging, new = staged(tmp_path, "new")
    with pytest.raises(OutputError, match=r"a_seg\.png is a folder"):
        commit(tmp_path, staging, new, {}, lambda: None)
    assert (tmp_path / NAMES["overlay"] / "mine").is_file()
    assert not (tmp_path / NAMES["labels"]).exists()


def test_files_of_others_and_edited_ones_are_refused(tmp_path: Path) -> None:
    check_not_taken(tmp_path, case(), {})
    staging, new = staged(tmp_path, "new")
    commit(tmp_path, staging, new, {}, lambda: None)
    check_not_taken(tmp_path, case(), new)
    with pytest.raises(OutputError, match="is not a result of this run"):
        check_not_taken(tmp_path, case(), {})
    (tmp_path / NAMES["labels"]).write_text("edited")
    with pytest.raises(OutputError, match="was changed after it was written"):
        check_not_taken(tmp_path, case(), new)
    (tmp_path / NAMES["labels"]).unlink()
    (tmp_path / "sub" / "a_seg_entropy.nii.gz").touch()  # a file that this result would not have
    with pytest.raises(OutputError, match=r"entropy\.nii\.gz already exists"):
        check_not_taken(tmp_path, case(), new)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user, outside of the output folder and behind a link in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "home" / "victim").write_text("mine")
    try:
        (tmp_path / "out" / "link").symlink_to(tmp_path / "home")
    except OSError:
        pytest.skip("this system allows no links")
    return tmp_path / "home" / "victim"


@pytest.mark.parametrize("named", ["../home/victim", "{0}", "sub/../../home/victim", "link/victim"])
def test_no_manifest_reaches_files_outside_of_its_folder(named: str, victim: Path) -> None:
    output, path = victim.parents[1] / "out", named.format(victim)
    staging, new = staged(output, "new")
    theirs = {"labels": OutputFile(path, "00" * 32, 0, 0)}
    (staging / "victim").write_text("theirs")
    with pytest.raises(CohortError, match=r"cohort\.manifest"):
        move_forward(output, staging, theirs)
    with pytest.raises(CohortError, match=r"cohort\.manifest"):
        commit(output, staging, new, theirs, lambda: None)
    with pytest.raises(CohortError, match=r"cohort\.manifest"):
        move_back(output, staging, theirs)
    assert victim.read_text() == "mine"


def test_links_in_a_staging_folder_give_no_file_away(victim: Path) -> None:
    output = victim.parents[1] / "out"
    staging, _ = staged(output, "new")
    (staging / "replaced").symlink_to(victim.parent)
    with pytest.raises(CohortError, match=r"cohort\.manifest"):
        move_back(output, staging)
    assert victim.read_text() == "mine"


def test_paths_of_windows_lead_elsewhere_there_and_are_names_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("10:30.nii.gz", "..\\a.nii.gz")
    if os.name != "nt":
        assert [place_below(tmp_path, named) for named in names] == [tmp_path / named for named in names]
        monkeypatch.setattr("napari_seg.cohort.outputs.os.name", "nt")
    for named in names:
        with pytest.raises(CohortError, match=r"cohort\.manifest"):
            place_below(tmp_path, named)
