"""A file that one process locks at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.errors import TrainingError
from napari_seg.formats.exclusive import exclusive


def test_only_one_holds_the_lock_and_its_file_is_removed(tmp_path: Path) -> None:
    path, in_use = tmp_path / "a.lock", TrainingError("run.in_use", "")
    with exclusive(path, in_use):
        assert path.is_file()
        with pytest.raises(TrainingError, match=r"run\.in_use"), exclusive(path, in_use):
            pass
        assert path.is_file()  # the one who was refused leaves it
    assert not path.exists()
    with exclusive(path, in_use):
        pass
