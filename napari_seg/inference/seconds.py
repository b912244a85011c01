"""Seconds of a run: estimated from the operations of the network and the speed of this machine, and measured.

A batch of windows takes as long as the batches of the last run did. Before the first run its floating-point operations
are divided by the speed of a matrix product on this machine, which is measured in a fraction of a second; the network
is not run for the estimate. Blending, deciding and writing labels take a fixed number of times what finding the
greatest of some logits takes, which is measured too. So estimates before the first run are right within a factor of
about 2, and after the first batch the progress tells the time that is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from napari_seg.inference.decide.cells import winners_of
from napari_seg.memory import held_bytes, peak_bytes

TORCH_EFFICIENCY = 0.4
"""Speed of a network in torch relative to a matrix product: 0.35 to 0.5 of large networks, 0.25 with few channels."""

COMPILED_EFFICIENCY = 1.0
"""Speed of a network that OpenVINO compiled, relative to a matrix product: 0.7 to 1.1."""

COMPILING_BATCHES = 2.2
"""Batches by torch that compiling takes as long as: 2.1 and 2.2 of networks of 4 and 60 classes."""

LOGIT_PASSES = 4.0
"""Cost of blending and deciding a logit of a window, in times of `seconds_per_logit`."""

VOXEL_PASSES = 40.0
"""Cost of a voxel of the scan, once when its label is decided and once when it is judged and written."""


def network_seconds(flop: float, device: torch.device, dtype: torch.dtype, compiled: bool) -> float:
    """Return the estimated seconds of so many floating-point operations of a network.

    Args:
        flop: the operations.
        device: device that the network is on.
        dtype: number format of its computations.
        compiled: whether OpenVINO runs it, otherwise torch.
    """
    return flop * seconds_per_flop(device, dtype) / (COMPILED_EFFICIENCY if compiled else TORCH_EFFICIENCY)


def labelling_seconds(logits: int, voxels: int) -> float:
    """Return the estimated seconds of blending and deciding logits, and of deciding or writing voxels of a scan.

    Args:
        logits: logits of all windows, classes times voxels.
        voxels: voxels of the scan.
    """
    return (LOGIT_PASSES * logits + VOXEL_PASSES * voxels) * seconds_per_logit()


def seconds_per_flop(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of one operation of a matrix product on this machine; measured again every minute."""
    return _seconds_per_flop(device, dtype, _minute())


def seconds_per_logit() -> float:
    """Return the seconds per logit of finding the greatest of 32 classes; measured again every minute."""
    return _seconds_per_logit(_minute())


def _minute() -> int:
    return int(time.monotonic() / 60)  # other programs change the speed of a machine


@lru_cache(maxsize=4)
def _seconds_per_flop(device: torch.device, dtype: torch.dtype, minute: int) -> float:
    one, other = torch.ones(2, 1024, 1024, device=device, dtype=dtype)
    return _mean_seconds(lambda: float((one @ other)[0, 0])) / (2 * 1024**3)


@lru_cache(maxsize=1)
def _seconds_per_logit(minute: int) -> float:
    logits = torch.rand(32, 250_000, generator=torch.Generator().manual_seed(0))
    return _mean_seconds(lambda: winners_of(logits, None)) / logits.numel()


def _mean_seconds(work: Callable[[], object], within_seconds: float = 0.2) -> float:
    """Return the mean seconds of some calls, without the first: on a busy machine the quickest one is optimistic."""
    work()
    start = time.perf_counter()
    count = 0
    while not count or time.perf_counter() - start < within_seconds:
        work()
        count += 1
    return (time.perf_counter() - start) / count


@dataclass
class Measured:
    """Time and memory of a piece of work.

    Attributes:
        seconds: wall-clock seconds; set at the end.
        peak_bytes: highest resident memory of this process.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def look(self) -> None:
        """Note the memory of this process; call it where much is in use."""
        self.peak_bytes = max(self.peak_bytes, held_bytes())


@contextmanager
def measuring() -> Iterator[Measured]:
    """Measure the work in the block.

    The memory is exact if the process never used more, and otherwise the highest of what `Measured.look` noted.
    """
    measured = Measured()
    start, before = time.perf_counter(), peak_bytes()
    try:
        yield measured
    finally:
        measured.seconds = time.perf_counter() - start
        if peak_bytes() > before:
            measured.peak_bytes = peak_bytes()
        measured.look()
