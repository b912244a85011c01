"""Atomic and verified writes: a name stands for a whole file or for none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from napari_seg.errors import InputError, OutputError
from napari_seg.formats.atomic import atomic_file, atomic_write, make_output_folder, set_aside, verified_write


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    atomic_write(tmp_path / "a", b"\0\r\n")
    assert (tmp_path / "a").read_bytes() == b"\0\r\n"


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_file(path) as hidden:
            hidden.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_does_not_read_back_gets_no_name(tmp_path: Path) -> None:
    def cut_short() -> None:
        with verified_write(tmp_path / "a.nii", ".nii") as hidden:
            hidden.write_text("half")
            raise InputError("file.truncated", "cut short")

    with pytest.raises(OutputError, match=r"output\.not_written: .*: cut short"):
        cut_short()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    refused = pytest.raises(OutputError, match=r"output\.not_written")
    with refused, verified_write(tmp_path / "missing" / "a", "") as hidden:
        hidden.write_text("x")
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "missing" / "a", "x")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"output\.folder"):
        make_output_folder(tmp_path / "file" / "below")


def test_a_file_is_set_aside_when_the_other_gets_its_name(tmp_path: Path) -> None:
    labels, record = tmp_path / "a.nii", tmp_path / "a.json"
    record.write_text("old")

    def interrupted(after: bool) -> None:
        with set_aside(record):
            with atomic_file(labels) as hidden:
                hidden.write_text("new")
                assert record.read_text() == "old"  # what stays if the program is killed here
                if not after:
                    raise KeyboardInterrupt
            assert not record.exists()
            raise KeyboardInterrupt

    for after in (False, True):
        with pytest.raises(KeyboardInterrupt):
            interrupted(after)
        assert record.read_text() == "old"
    with set_aside(record):
        atomic_write(labels, "newer")
    assert not record.exists()
    atomic_write(record, "old")
    with set_aside(record):
        pass
    labels.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_program_looks_into_is_renamed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pauses = os.replace, list[float]()

    def replace(source: Path, target: Path) -> None:
        if len(pauses) < 3:
            raise PermissionError(13, "Access is denied")
        real(source, target)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("napari_seg.formats.atomic.time.sleep", pauses.append)
    monkeypatch.setattr(os, "replace", replace)
    atomic_write(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    assert len(pauses) == 3
