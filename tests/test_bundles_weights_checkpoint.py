"""Files of weights are read as tensors and plain data, in one way only."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_seg.bundles.weights.checkpoint import UnsafeCheckpoint, read_checkpoint


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], **changes: Any) -> None:
    names = {"float32": "F32", "int64": "I64", "float16": "F16", "bool": "BOOL"}
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        end = len(content) + array.nbytes
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(content), end],
        } | changes
        content += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_tensors_and_arrays_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    values = {
        "w": torch.arange(6.0).reshape(2, 3),
        "n": np.arange(4, dtype=np.int32),
        "x": np.float64(2),
        "e": [1, "a"],
    }
    for legacy in (False, True):
        torch.save(values, path, _use_new_zipfile_serialization=not legacy)
        found = read_checkpoint(path)
        assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["n"].tolist() == [0, 1, 2, 3]
        assert (found["x"], found["e"]) == (2, [1, "a"])


def test_weights_stay_as_they_are_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1000)}, path)
    found = read_checkpoint(path)["w"]
    torch.save({"w": torch.zeros(1000)}, path)
    assert found.sum() == 1000


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {
        "half": np.arange(3, dtype=np.float16),  # the next one is not aligned
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    write_safetensors(path, arrays)
    for name, tensor in read_checkpoint(path).items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [0, 10**12]},
        {"data_offsets": [-4, 0]},
        {"shape": [2**40, 2**40]},
        {"shape": [-1, -6]},
        {"dtype": "F99"},
        {"shape": "x"},
    ],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.arange(6, dtype=np.float32)}, **changes)
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_checkpoint(path)
    for content in (b"", b"x" * 7, struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"[[[["):
        path.write_bytes(content)
        with pytest.raises((ValueError, RuntimeError)):
            read_checkpoint(path)


class Evil:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trap),)


def test_other_objects_are_refused_by_name_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for legacy in (False, True):
        torch.save({"w": torch.ones(1), "x": Evil(tmp_path / "trap")}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UnsafeCheckpoint, match="mkdir") as caught:
            read_checkpoint(path)
        assert "weights_only" not in str(caught.value)
    objects = np.array([Evil(tmp_path / "trap"), None], dtype=object)
    torch.save({"x": objects}, path)
    with pytest.raises(UnsafeCheckpoint):
        read_checkpoint(path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + b"x" * 100, b"\x80\x02."])
def test_a_damaged_file_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)
