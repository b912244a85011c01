"""A model is loaded, or the error says whether the bundle or the machine is at fault."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from bundles import write_plain_bundle

from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.workers import PASSING_CODES
from napari_seg.errors import NapariSegError

SHORT = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
STALE = OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "environment.memory"),
        (SHORT, "environment.memory"),
        (STALE, "environment.drive"),
        (ValueError("damaged"), "bundle.weights"),
        (PermissionError(errno.EACCES, "Permission denied"), "bundle.weights"),
    ],
)
def test_a_lack_of_memory_or_of_a_drive_is_no_fault_of_the_weights(
    error: Exception, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> Any:
        raise error

    bundle = read_bundle(write_plain_bundle(tmp_path / "plain"))
    monkeypatch.setattr("napari_seg.bundles.weights.checkpoint.read_checkpoint", failing)
    with pytest.raises(NapariSegError) as caught:
        load_model(bundle, "cpu")
    assert caught.value.code == code
    assert (code in PASSING_CODES) == (code != "bundle.weights")


def test_a_lack_of_memory_for_the_network_is_no_fault_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise SHORT

    bundle = read_bundle(write_plain_bundle(tmp_path / "plain"))
    monkeypatch.setattr("napari_seg.bundles.monai._sections", failing)
    with pytest.raises(NapariSegError, match=r"environment\.memory"):
        load_model(bundle, "cpu")
