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

from segnets.files import load_verified, lock


def test_a_file_system_without_locks_is_logged_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("segnets.files.fcntl.lockf", fail)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        caplog.clear()
        with lock(tmp_path / "lock") as file:
            assert file.writable()
        assert f"can't be locked ({os.strerror(number)})" in caplog.text
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        lock(tmp_path / "lock")


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
