"""What a weights file can do is found from its bytes: tensors are data, programs and calls are not."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_seg.bundles.weights.files import inspect_weights


class Evil:
    """Creates a file as it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def test_checkpoints_of_tensors_and_numbers_are_data(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2))
    optimiser = torch.optim.Adam(network.parameters())
    contents: list[Any] = [
        network.state_dict(),
        {"model": network.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3},
        {
            "half": torch.zeros(2, dtype=torch.bfloat16),
            "whole": torch.zeros(2, dtype=torch.int64),
            "size": torch.Size([1]),
        },
        {"best": np.float64(0.5), "codes": np.arange(3), "parameter": torch.nn.Parameter(torch.zeros(1))},
        {},
    ]
    for content in contents:
        torch.save(content, tmp_path / "model.pt")
        assert inspect_weights(tmp_path / "model.pt").kind == "data", content


def test_a_pickle_that_calls_functions_is_named_and_not_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    for save in (
        lambda content: torch.save(content, path),
        lambda content: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content: torch.save(content, path, pickle_protocol=4),
        lambda content: path.write_bytes(pickle.dumps(content)),
        lambda content: path.write_bytes(pickle.dumps(content, protocol=0)),
    ):
        save({"weight": torch.zeros(1), "extra": Evil(trap)})
        found = inspect_weights(path)
        assert found.kind == "pickle"
        assert any(call.endswith(".mkdir") for call in found.calls)
        assert not trap.exists()


def archive_of(*members: tuple[str, object]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings(action="ignore"):  # one name twice
        for name, content in members:
            archive.writestr(f"archive/{name}", pickle.dumps(content, protocol=2))
    return buffer.getvalue()


def test_an_archive_is_data_only_as_torch_reads_it(tmp_path: Path) -> None:
    path, evil = tmp_path / "model.pt", Evil(tmp_path / "trap")
    for members in (
        [("DATA.PKL", evil), ("data.pkl", {})],
        [("data.pkl", evil), ("data.pkl", {})],
        [("data.pkl", {}), ("DATA.pkl", {})],
        [("data.pkl", {}), ("evil.py", {})],
        [("data.pkl", {}), ("CODE/evil", {})],
    ):
        path.write_bytes(archive_of(*members))
        assert inspect_weights(path).kind != "data", members


@pytest.mark.parametrize("has_zip64", [False, True])
def test_an_archive_with_two_directories_is_no_data(has_zip64: bool, tmp_path: Path) -> None:
    """Torch follows the offset in the last record; `zipfile` takes the directory before that record."""
    hidden = archive_of(("data.pkl", Evil(tmp_path / "trap")))
    torch.save({}, tmp_path / "model.pt")
    shown = (tmp_path / "model.pt").read_bytes() if has_zip64 else archive_of(("data.pkl", {}))
    assert inspect_weights(tmp_path / "model.pt").kind == "data"
    (tmp_path / "model.pt").write_bytes(hidden + shown)
    assert inspect_weights(tmp_path / "model.pt").kind != "data"
    (tmp_path / "model.pt").write_bytes(shown[:-2] + len(hidden).to_bytes(2, "little") + hidden)  # as a comment
    assert inspect_weights(tmp_path / "model.pt").kind != "data"


def test_a_whole_module_is_a_pickle_with_calls(tmp_path: Path) -> None:
    torch.save(torch.nn.Conv3d(1, 1, 1), tmp_path / "model.pt")
    assert "torch.nn.modules.conv.Conv3d" in inspect_weights(tmp_path / "model.pt").calls


def test_torchscript_is_a_program(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2)), tmp_path / "model.pt")
    assert inspect_weights(tmp_path / "model.pt").kind == "program"


def test_a_pickle_with_an_archive_behind_it_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.pt")
    evil = pickle.dumps(Evil(tmp_path / "trap"), protocol=2)
    (tmp_path / "model.pt").write_bytes(evil + (tmp_path / "plain.pt").read_bytes())
    assert zipfile.is_zipfile(tmp_path / "model.pt")
    assert any(call.endswith(".mkdir") for call in inspect_weights(tmp_path / "model.pt").calls)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut", b"\x80\x02", b"\x80\x02}q\x00."])
def test_a_damaged_file_is_no_data(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    found = inspect_weights(tmp_path / "model.pt")
    assert found.kind in ("unknown", "pickle")
    assert found.calls == ()


def test_endless_pickles_are_not_read_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.bundles.weights.files._MAX_OPERATIONS", 1000)
    pickle = b"\x80\x02" + b"N0" * 300 + b"N."
    for number, kind in ((1, "data"), (2, "unknown")):  # 602 operations each
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            for n in range(number):
                archive.writestr(f"{n}/data.pkl", pickle)
        assert inspect_weights(tmp_path / "a.pt").kind == kind
    (tmp_path / "b.pt").write_bytes(pickle * 5)
    assert inspect_weights(tmp_path / "b.pt").kind != "data"


def test_pickles_are_large_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.bundles.weights.files._MAX_PICKLE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for n in range(3):
            archive.writestr(f"{n}/data.pkl", b"\x80\x02" + b"B" + (400).to_bytes(4, "little") + bytes(400) + b".")
    assert inspect_weights(tmp_path / "a.pt").kind == "unknown"
