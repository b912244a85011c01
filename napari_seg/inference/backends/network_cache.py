"""Verified networks on disk: OpenVINO's core, the folders of the cache, and their keys.

A folder holds OpenVINO's model of a network before compilation. To compile it for a window size takes a fraction of a
second, and its weights, 130 MB of a standard network, are kept once instead of once for each of some twenty sizes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import platform
import re
import shutil
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from napari_seg.formats.atomic import atomic_write
from napari_seg.inference.backends.base import BatchCost
from napari_seg.version import __version__
from napari_seg.worker import core_count

log = logging.getLogger(__name__)

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
"""Blocks the package through which OpenVINO reports its import to an analytics server; OpenVINO runs without it."""

MAX_CACHE_BYTES = 4 * 2**30
"""Size limit of the cache on disk; the least recently used networks are removed first."""

NETWORKS = "networks"
"""Folder of the networks in the cache."""

_NETWORK, _WEIGHTS, _FIGURES = "network.xml", "network.bin", "figures.json"
"""Files of a network: OpenVINO's model, its weights, and its `Figures`."""

_FORMAT = 2
"""Version of these files."""

_OWN_NAME = re.compile(r"[0-9a-f]{32}(\.blob)?|\.[0-9a-f]{32}\.part")
"""Names that this module and its earlier versions give; anything else in the cache belongs to somebody else."""

_TOO_LARGE = 2**24
"""Limit of the seconds and bytes of a voxel, which no network reaches."""

_NEW_SECONDS = 0.1
"""Relative change from which the time of a run is written."""


@dataclass(frozen=True)
class Figures:
    """Figures of a verified network; time and memory grow with the voxels of a batch.

    Attributes:
        seconds: seconds of a voxel on one core.
        memory: bytes of a voxel.
        checksum: CRC-32 of the model's files.
    """

    seconds: float
    memory: float
    checksum: int = 0

    @classmethod
    def measured(cls, cost: BatchCost, shape: tuple[int, ...]) -> Figures:
        """Return the figures that follow from the cost of a batch (N, C, *size)."""
        voxels = _voxels(shape)
        return cls(cost.seconds * usable_cores() / voxels, cost.memory / voxels)

    @classmethod
    def read(cls, folder: Path) -> Figures:
        """Return the figures of a network in the cache.

        Raises:
            Exception: the file is missing or damaged.
        """
        figures = cls(**json.loads((folder / _FIGURES).read_text()))
        if not (0 < figures.seconds < _TOO_LARGE and 0 < figures.memory < _TOO_LARGE):
            raise ValueError("damaged")
        return figures

    def cost(self, shape: tuple[int, ...]) -> BatchCost:
        """Return the cost of a batch (N, C, *size)."""
        voxels = _voxels(shape)
        return BatchCost(self.seconds * voxels / usable_cores(), round(self.memory * voxels))


@dataclass
class Compiled:
    """A network compiled by OpenVINO.

    Attributes:
        model: OpenVINO's compiled model.
        shape: (N, C, *size) of its batches.
        figures: time of the last run, or of a trial after verification, and memory of the trial.
        folder: folder of the network in the cache; None: not cached.
        mapped: memory map of the weights, which the model still references.
    """

    model: Any
    shape: tuple[int, ...]
    figures: Figures
    folder: Path | None = None
    mapped: Any = None

    @property
    def batch_cost(self) -> BatchCost:
        """Cost of a batch."""
        return self.figures.cost(self.shape)

    def record_batch_seconds(self, seconds: float) -> None:
        """Record the mean seconds of a batch for later estimates; a whole run measures them better than a trial."""
        measured = Figures.measured(BatchCost(seconds, 0), self.shape).seconds
        self.figures = replace(self.figures, seconds=measured)
        if self.folder is None:
            return
        with suppress(Exception):  # the folder may have been removed
            known = Figures.read(self.folder)
            if abs(measured - known.seconds) > _NEW_SECONDS * known.seconds:
                atomic_write(self.folder / _FIGURES, json.dumps(asdict(replace(known, seconds=measured))))


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


def cache_key(network_digest: str, verified_for: str, dtype: torch.dtype, version: str) -> str:
    """Return a hash of a network, the batches that it was verified for, number format, versions and processor.

    Args:
        network_digest: from `traced_digest` or `network_key.network_digest`.
        verified_for: one shape of batches, or the operations of all shapes on which the network does the same.
        dtype: number format of the computation.
        version: of OpenVINO.
    """
    key = f"{__version__} {_FORMAT} {version} {dtype} {_processor()} {verified_for} {network_digest}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def traced_digest(traced: Any) -> str:
    """Return a hash of the operations and weights of OpenVINO's model of a network, whatever size it was traced on."""
    digest = hashlib.sha256()
    numbers: dict[str, int] = {}
    for number, operation in enumerate(traced.get_ordered_ops()):  # numbered: OpenVINO's names differ between runs
        kind = operation.get_type_name()
        numbers[operation.get_friendly_name()] = number
        inputs = [(numbers[i.get_node().get_friendly_name()], i.get_index()) for i in operation.input_values()]
        attributes = {} if kind in ("Constant", "Parameter") else operation.get_attributes()
        digest.update(f"{kind} {inputs} {sorted(attributes.items())}".encode())
        if kind == "Constant":
            digest.update(str(operation.output(0).get_partial_shape()).encode())
            digest.update(operation.get_data().tobytes())
    return digest.hexdigest()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = {line.partition(":")[0].strip(): line for line in lines if line.startswith(("model name", "flags"))}
    return " ".join(found.values()) or platform.processor()


def compile_for(model: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Return OpenVINO's model of a network compiled for batches (N, C, *size); the model gets their shape.

    Raises:
        RuntimeError: OpenVINO can't compile it for them, or its output has another size.
    """
    from openvino import PartialShape

    model.reshape({model.inputs[0]: PartialShape(shape)})
    compiled = openvino_core().compile_model(model, "CPU", compile_settings(dtype))
    if tuple(compiled.output(0).shape)[2:] != shape[2:]:
        raise RuntimeError("the compiled network's output differs in size from its input")
    return compiled


def read_network(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Compiled | None:
    """Return a cached network compiled for batches (N, C, *size); None if it is missing, damaged or can't take them."""
    if not folder.is_dir():
        return None
    try:
        model, figures, mapped = _read(folder)
    except Exception as error:  # OpenVINO may raise any exception for a damaged file
        log.info("the cached network is damaged (%s); it is verified again", type(error).__name__)
        _remove(folder)
        return None
    try:
        compiled = compile_for(model, shape, dtype)
    except RuntimeError as error:
        log.debug("the cached network can't be compiled for %s (%s)", shape, error)
        return None
    if hasattr(mmap, "MADV_DONTNEED"):  # the compiled model has its own copy of the weights; drop the mapped pages
        mapped.madvise(mmap.MADV_DONTNEED)
    with suppress(OSError):  # a cache that can't be written to
        os.utime(folder)  # mark as recently used, for `_evict_oldest`
    return Compiled(compiled, shape, figures, folder, mapped)


def _read(folder: Path) -> tuple[Any, Figures, mmap.mmap]:
    """Return OpenVINO's model, its figures and the memory map of its weights.

    Raises:
        Exception: a file is missing or damaged.
    """
    import openvino

    figures = Figures.read(folder)
    if _checksum(folder) != figures.checksum:  # OpenVINO does not notice damaged weights
        raise ValueError("damaged")
    with (folder / _WEIGHTS).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    weights = openvino.Tensor(np.frombuffer(mapped, np.uint8), shared_memory=True)
    return openvino_core().read_model((folder / _NETWORK).read_bytes(), weights), figures, mapped


def write_network(folder: Path, model: Any, figures: Figures) -> None:
    """Write a verified network under a temporary name and rename it; a cache that can't be written to is no error.

    Args:
        folder: folder of the network in the cache.
        model: OpenVINO's model, not compiled.
        figures: its figures.
    """
    import openvino

    part = _part_next_to(folder)
    try:
        part.mkdir(parents=True)
        openvino.save_model(model, part / _NETWORK, compress_to_fp16=False)
        atomic_write(part / _FIGURES, json.dumps(asdict(replace(figures, checksum=_checksum(part)))))
        part.rename(folder)  # fails if another process was quicker
        _evict_oldest(folder.parent)
    except (OSError, RuntimeError) as error:
        if not folder.is_dir():
            log.info("the verified network could not be kept in %s (%s)", folder.parent, error)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_next_to(folder: Path) -> Path:
    """Return a hidden name next to a folder, for one that is not whole."""
    return folder.with_name(f".{uuid4().hex}.part")


def _remove(folder: Path) -> bool:
    """Remove a folder, and return whether its name is free; a process that is killed leaves no half of it there."""
    part = _part_next_to(folder)
    try:
        folder.rename(part)
    except OSError:  # Windows can't rename a folder with a mapped file
        return not folder.exists()
    shutil.rmtree(part, ignore_errors=True)
    return True


def _checksum(folder: Path) -> int:
    checksum = 0
    for name in (_NETWORK, _WEIGHTS):
        with (folder / name).open("rb") as file:
            while block := file.read(2**20):
                checksum = zlib.crc32(block, checksum)
    return checksum


def _voxels(shape: Sequence[int]) -> int:
    return shape[0] * prod(shape[2:])


def _evict_oldest(networks: Path) -> None:
    """Remove the least recently used networks, and leftovers of killed processes, down to the size limit."""
    found = []
    try:
        for blob in filter(_is_own, networks.parent.glob("*.blob")):  # compiled networks of earlier versions
            blob.unlink()
        for path in filter(_is_own, networks.iterdir()):
            with suppress(OSError):  # another process may have removed it
                found.append((path.stat().st_mtime, _size(path), path))
    except OSError as error:
        log.info("the cache of networks could not be listed (%s)", error.strerror)
        return
    found.sort()
    excess = sum(size for _, size, _ in found) - MAX_CACHE_BYTES
    for _, size, path in found[:-1]:
        if excess > 0 and _remove(path):
            excess -= size


def _is_own(path: Path) -> bool:
    return _OWN_NAME.fullmatch(path.name) is not None


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
