"""Compiled networks on disk: OpenVINO's core, the files of the cache, and their keys."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import platform
import struct
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_seg.formats.atomic import atomic_file
from napari_seg.inference.backends.base import BatchCost
from napari_seg.version import __version__
from napari_seg.worker import core_count

log = logging.getLogger(__name__)

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
"""Blocks the package through which OpenVINO reports its import to an analytics server; OpenVINO runs without it."""

MAX_CACHE_BYTES = 4 * 2**30
"""Size limit of the cache on disk; the least recently used networks are removed first."""

CACHE_VARIABLE = "NAPARI_SEG_CACHE"
"""Environment variable with the folder of the cache; empty: nothing is cached."""

_HEADER = struct.Struct("<dqII")
"""Header of a cache file: its `BatchCost`, and the checksums of that and of the payload."""

_COST = struct.Struct("<dq")

_PAYLOAD_OFFSET = 4096
"""Page-aligned offset of the payload in a cache file, so that it can be memory-mapped."""


@dataclass
class Compiled:
    """A network compiled by OpenVINO.

    Attributes:
        model: OpenVINO's compiled model.
        batch_cost: cost of a batch, measured in the last run or after compilation.
        cache_file: file of the network in the cache; None: not cached.
        mapped: memory map of that file, which the model still references.
    """

    model: Any
    batch_cost: BatchCost
    cache_file: Path | None = None
    mapped: Any = None

    def record_batch_seconds(self, seconds: float) -> None:
        """Record the mean seconds of a batch for later estimates; a whole run measures them better than a trial."""
        self.batch_cost = self.batch_cost._replace(seconds=seconds)
        if self.cache_file is not None:
            with suppress(OSError), self.cache_file.open("r+b") as file:  # the file may have been removed
                file.write(_cost_bytes(self.batch_cost))


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the one OpenVINO core of this process.

    Each core gives the thread that creates it an alternate signal stack and frees it when the core is destroyed. With
    two cores, the thread can be left with a freed stack, and the next signal (Ctrl-C, the end of a child) kills the
    process.
    """
    import openvino

    return openvino.Core()


def compile_settings(dtype: torch.dtype) -> dict[str, object]:
    """Return OpenVINO's settings of a network for this process.

    A process with a share of the cores must not keep its threads on them: all processes would choose the same ones.
    """
    return {
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": usable_cores(),
        "PERFORMANCE_HINT": "LATENCY",
        **({"ENABLE_CPU_PINNING": False} if usable_cores() < core_count() else {}),
    }


def usable_cores() -> int:
    """Return the number of cores that this process may use, limited by torch's threads (OMP_NUM_THREADS)."""
    return min(core_count(), torch.get_num_threads())


def cache_dir() -> Path | None:
    """Return the folder of the cache; None: nothing is cached, as requested or because the user has no home folder."""
    folder_setting = os.environ.get(CACHE_VARIABLE)
    if folder_setting is not None:
        return Path(folder_setting) if folder_setting else None
    with suppress(RuntimeError):  # a container may run as a user that its system does not know
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home(), "napari-seg", "cache")
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "napari-seg"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "napari-seg")
    return None


def cache_key(network_digest: str, shape: tuple[int, ...], dtype: torch.dtype, version: str) -> str:
    """Return a hash of a network, batch shape, number format, versions and processor.

    Args:
        network_digest: from `traced_digest` or `network_key.network_digest`.
        shape: (N, C, *size) of the batches.
        dtype: number format of the computation.
        version: of OpenVINO.
    """
    settings = sorted(compile_settings(dtype).items())
    key = f"{__version__} {_HEADER.format} {version} {settings} {_processor()} {shape} {network_digest}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def traced_digest(traced: Any) -> str:
    """Return a hash of the operations and weights of OpenVINO's model of a network."""
    digest = hashlib.sha256()
    numbers: dict[str, int] = {}
    for number, operation in enumerate(traced.get_ordered_ops()):  # numbered: OpenVINO's names differ between runs
        numbers[operation.get_friendly_name()] = number
        inputs = [(numbers[i.get_node().get_friendly_name()], i.get_index()) for i in operation.input_values()]
        constant = operation.get_type_name() == "Constant"
        attributes = {} if constant else operation.get_attributes()
        outputs = [str(output.get_partial_shape()) for output in operation.outputs()]
        digest.update(f"{operation.get_type_name()} {inputs} {outputs} {sorted(attributes.items())}".encode())
        if constant:
            digest.update(operation.get_data().tobytes())
    return digest.hexdigest()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = {line.partition(":")[0].strip(): line for line in lines if line.startswith(("model name", "flags"))}
    return " ".join(found.values()) or platform.processor()


def _cost_bytes(cost: BatchCost) -> bytes:
    """Return the begin of a header, which changes after each run."""
    packed = _COST.pack(*cost)
    return packed + zlib.crc32(packed).to_bytes(4, "little")


def read_cache(cache_file: Path, dtype: torch.dtype) -> Compiled | None:
    """Return a cached network; None if its file is missing or damaged."""
    import openvino

    try:
        with cache_file.open("rb") as file:
            header = file.read(_HEADER.size)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        *cost, cost_checksum, checksum = _HEADER.unpack(header)
        payload = np.frombuffer(mapped, np.uint8, offset=_PAYLOAD_OFFSET)
        # OpenVINO notices damaged operations, but not damaged weights
        if zlib.crc32(header[: _COST.size]) != cost_checksum or zlib.crc32(payload.data) != checksum:
            raise ValueError("damaged")
        tensor = openvino.Tensor(payload, shared_memory=True)
        model = openvino_core().import_model(tensor, "CPU", compile_settings(dtype))
        if hasattr(mmap, "MADV_DONTNEED"):  # the model has its own copy of the weights; drop the mapped pages
            mapped.madvise(mmap.MADV_DONTNEED)
        os.utime(cache_file)  # mark as recently used, for `_evict_oldest`
        return Compiled(model, BatchCost(*cost), cache_file, tensor)
    except FileNotFoundError:
        return None
    except Exception:  # OpenVINO may raise any exception for a damaged file
        log.info("the cached network can't be read; it is compiled again")
        return None


def write_cache(path: Path, compiled: Compiled) -> None:
    """Write a compiled network under a temporary name and rename it; a folder that can't be written to is no error."""
    payload = compiled.model.export_model().getbuffer()
    header = _cost_bytes(compiled.batch_cost) + zlib.crc32(payload).to_bytes(4, "little")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, ".part") as part, part.open("wb") as file:
            file.write(header.ljust(_PAYLOAD_OFFSET, b"\0"))
            file.write(payload)
        _evict_oldest(path.parent)
    except OSError as error:
        log.info("the compiled network could not be cached (%s)", error.strerror)


def _evict_oldest(folder: Path) -> None:
    """Remove the least recently used files of the cache until it is within its size limit."""
    try:
        files = [(path.stat(), path) for path in folder.glob("*.blob")]
    except OSError as error:  # another process may have removed a file
        log.info("the cache of compiled networks could not be listed (%s)", error.strerror)
        return
    files.sort(key=lambda file: file[0].st_mtime)
    excess = sum(stat.st_size for stat, _ in files) - MAX_CACHE_BYTES
    for stat, path in files[:-1]:
        if excess <= 0:
            break
        try:
            path.unlink()
            excess -= stat.st_size
        except OSError as error:  # Windows can't delete a mapped file
            log.info("a compiled network could not be removed from the cache (%s)", error.strerror)
