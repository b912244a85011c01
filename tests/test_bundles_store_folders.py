"""Folders of the store move and vanish whole, and belong to one program at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.bundles.store.folders import Damage, damages, delete, digests_of, locked, move, size_of, writing
from napari_seg.errors import OutputError, StoreError


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_a_folder_takes_the_place_of_another_one(tmp_path: Path) -> None:
    part = tmp_path / "part"
    new, old = folder(part / "new", "new"), folder(tmp_path / "model", "old")
    move(new, old, part)
    assert (old / "file").read_text() == "new"


def test_a_folder_that_can_not_be_moved_leaves_the_old_one(tmp_path: Path) -> None:
    old = folder(tmp_path / "model", "old")
    (tmp_path / "part").mkdir()
    with pytest.raises(OutputError), writing(old):
        move(tmp_path / "part" / "missing", old, tmp_path / "part")
    assert (old / "file").read_text() == "old"


def test_removing_returns_the_size_and_leaves_the_target_of_a_link(tmp_path: Path) -> None:
    theirs = folder(tmp_path / "theirs", "four")
    link = tmp_path / "link"
    link.symlink_to(theirs, target_is_directory=True)
    assert delete(link) == 0
    assert not link.exists()
    assert size_of(theirs) == delete(theirs) == 4


def test_one_program_at_a_time(tmp_path: Path) -> None:
    part = tmp_path / "part"
    with locked(part, "model"), pytest.raises(StoreError) as caught, locked(part, "model"):
        pass
    assert caught.value.code == "store.busy"


def test_differences_of_digests(tmp_path: Path) -> None:
    now = digests_of(folder(tmp_path / "model", "text"))
    assert list(now) == ["file"]
    assert damages({"file": "0", "lost": "1"}, now | {"more": "2"}) == [
        Damage("file", "changed"),
        Damage("lost", "missing"),
        Damage("more", "added"),
    ]
