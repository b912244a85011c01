"""Test the lock of a folder, and that damage to a saved file is found."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.errors import TrainingError
from segnets.files import load_verified, lock, replacing


def test_a_file_system_without_locks_is_logged_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"segnets.files.{'msvcrt.locking' if os.name == 'nt' else 'fcntl.lockf'}", fail)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        caplog.clear()
        with lock(tmp_path / "lock") as file:
            assert file.writable()
        assert f"can't be locked ({os.strerror(number)})" in caplog.text
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        lock(tmp_path / "lock")


def test_one_byte_is_locked_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[tuple[int, int]] = []

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor: int, mode: int, count: int) -> None:
            if locked:
                raise PermissionError(errno.EACCES, "Permission denied")
            locked.append((mode, count))

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("segnets.files.msvcrt", Msvcrt, raising=False)
    with lock(tmp_path / "lock"):
        assert locked == [(2, 1)]
        assert lock(tmp_path / "lock") is None


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds of the pauses before a rename is tried again, as on Windows."""
    pauses: list[float] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("segnets.files.time.sleep", pauses.append)
    return pauses


def test_a_figure_that_is_open_ends_no_training(
    tmp_path: Path, windows: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def replace(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    def write(**options: bool) -> None:
        with replacing(figure, **options) as part:
            part.write_text("new")

    figure = tmp_path / "worst_best.png"
    figure.write_text("old")
    monkeypatch.setattr(Path, "replace", replace)
    write(is_optional=True)
    assert sum(windows) == pytest.approx(4.4)
    assert "worst_best.png was not written (Access is denied)" in caplog.text
    assert figure.read_text() == "old"
    assert list(tmp_path.iterdir()) == [figure]
    with pytest.raises(TrainingError, match=r"output\.not_written"):
        write()


def test_a_file_that_a_program_looks_into_for_a_moment_is_replaced(
    tmp_path: Path, windows: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(path: Path, target: Path) -> None:
        if len(windows) < 2:
            raise PermissionError(errno.EACCES, "Access is denied")
        os.replace(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with replacing(tmp_path / "latest.pt") as part:
        part.write_text("new")
    assert (tmp_path / "latest.pt").read_text() == "new"


def test_any_damage_to_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    torch.save({"a": torch.arange(1000.0), "step": 3}, whole)
    content, rng, outcomes = whole.read_bytes(), np.random.default_rng(0), Counter()
    for n in range(200):
        some = bytearray(content)
        place = int(rng.integers(0, len(some) - 64))
        if n % 4 == 0:
            some = some[:place]
        elif n % 4 == 1:
            some = rng.bytes(500)
        else:
            some[place : place + 64] = bytes(64) if n % 4 == 2 else rng.bytes(64)
        damaged.write_bytes(some)
        try:
            state = load_verified(damaged)
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:  # it hit what only fills up
            assert torch.equal(state["a"], torch.arange(1000.0))
            assert state["step"] == 3
    assert sum(outcomes.values()) > 150
    assert len(outcomes) > 1
