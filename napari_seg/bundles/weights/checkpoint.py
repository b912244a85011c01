"""Files of weights: tensors and plain data, read without running anything that they hold.

A `.pt` file is a pickle. It is read by `torch.load(weights_only=True)`, with NumPy's arrays and scalars allowed, and
never in another way: a file that needs more is refused.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch

from napari_seg.bundles.weights.files import inspect_weights

_MAX_HEADER = 2**25
"""Size limit of a safetensors header in bytes; that of a large network has some 100 KB."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class UnsafeCheckpoint(ValueError):
    """A file of weights holds more than tensors and plain data."""


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what a `.pt` or `.safetensors` file holds, on a device.

    On Linux, weights that stay on the CPU take no memory until they are used.

    Raises:
        UnsafeCheckpoint: a `.pt` file holds other objects than tensors, NumPy arrays and plain data.
        Exception: whatever a damaged file raises.
    """
    if path.suffix == ".safetensors":
        return {name: tensor.to(device) for name, tensor in _read_safetensors(path).items()}
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            if str(device) == "cpu" and is_zipfile(path):  # torch maps zip files only
                with suppress(OSError), _mappable_copy(path) as copy:
                    return torch.load(copy, map_location=device, weights_only=True, mmap=True)
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            # torch's own text advises to load the file in a way that runs it
            raise _refusal(path) from None
        raise


def _check_archive(path: Path) -> None:
    """Refuse a zip file whose content is larger than the file: torch compresses nothing, and unpacks whatever it finds.

    Raises:
        ValueError: it is compressed, or its parts overlap.
    """
    if not is_zipfile(path):
        return
    with ZipFile(path) as archive:
        entries = archive.infolist()
    is_compressed = any(entry.compress_type != ZIP_STORED for entry in entries)
    if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it is a compressed archive, which torch does not write, and would fill the memory")


def _refusal(path: Path) -> ValueError:
    content = inspect_weights(path)
    if content.kind == "program":
        return ValueError("it is a program, such as TorchScript, not a state dictionary")
    if content.kind != "pickle":
        return ValueError("it is damaged, or no checkpoint of torch")
    calls = ", ".join(content.calls[:3])
    return UnsafeCheckpoint(f"it holds objects other than tensors ({calls}), which can run code")


@contextmanager
def _mappable_copy(path: Path) -> Iterator[str]:
    """Give the name of a copy of a file, which has no other name and is gone with the process.

    Whoever writes to a mapped file changes the network or ends this process.

    Raises:
        OSError: the system gives no such copy, or the disk is full.
    """
    if sys.platform != "linux":
        raise OSError("only Linux names an open file")
    with TemporaryFile() as copy, path.open("rb") as file:
        shutil.copyfileobj(file, copy)
        copy.flush()
        yield f"/proc/self/fd/{copy.fileno()}"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    try:
        with _mappable_copy(path) as copy:
            content = torch.from_file(copy, shared=False, size=size, dtype=torch.uint8)
    except OSError:
        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    length = int.from_bytes(bytes(content[:8].tolist()), "little")
    if not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise ValueError("its header is damaged")
    header = json.loads(bytes(content[8 : 8 + length].numpy()))
    data = content[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = _DTYPES[entry["dtype"]], [int(n) for n in entry["shape"]]
        begin, end = (int(n) for n in entry["data_offsets"])
        if (
            not 0 <= begin <= end <= len(data)
            or end - begin != math.prod(shape) * dtype.itemsize
            or min(shape, default=0) < 0
        ):
            raise ValueError(f"its tensor {name!r} is damaged")
        part = data[begin:end]
        if part.storage_offset() % dtype.itemsize:
            part = part.clone()
        tensors[name] = part.view(dtype).reshape(shape)
    return tensors


def _numpy_globals() -> list[Any]:
    """Return NumPy's functions and types in pickles of arrays and scalars, by their old and new names."""
    import numpy as np
    from numpy._core import multiarray

    functions = {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}
    named = [
        (function, f"numpy.{module}.multiarray.{name}")
        for module in ("core", "_core")
        for name, function in functions.items()
    ]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return [*named, np.ndarray, np.dtype, *dtypes, (_encoded, "_codecs.encode")]


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes as old pickles write them; stands for `_codecs.encode`, which would look up any codec."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")
