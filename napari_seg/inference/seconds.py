"""Seconds of a run: estimated from the operations of the network and the speed of this machine, and measured.

A batch of windows takes as long as the batches of the last run did. Before the first run the network is not run either:
its floating-point operations are multiplied by the time of one in a matrix product, the numbers that it reads and
writes by the time per number of finding the greatest of some logits, and both are added. These two speeds of the
machine are measured in a fraction of a second. Blending, deciding and writing labels are a fixed number of passes over
logits and voxels. So estimates before the first run are right within a factor of about 2; after the first batch the
progress tells the time that is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from napari_seg.inference.backends.cost import NetworkCost
from napari_seg.inference.decide.cells import winners_of
from napari_seg.memory import peak_bytes, resident_bytes

COMPILED_SECONDS = 0.4
"""Time of a network that OpenVINO compiled relative to torch: 0.35 to 0.6."""

COMPILING_BATCHES = 2.2
"""Batches by torch that compiling takes as long as: 2.1 and 2.2 of networks of 4 and 60 classes."""

LOGIT_PASSES = 4.0
"""Cost of blending and deciding a logit of a window, in times of `seconds_per_value`."""

VOXEL_PASSES = 40.0
"""Cost of a voxel of the scan, once when its label is decided and once when it is judged and written."""


def network_seconds(cost: NetworkCost, device: torch.device, dtype: torch.dtype, program: str) -> float:
    """Return the estimated seconds of one window in a network.

    Args:
        cost: cost of the window.
        device: device that the network is on.
        dtype: number format of its computations.
        program: program that runs it, see `Plan.program`.
    """
    # torch takes 0.5 to 1.2 times as long as this sum, for five networks of 2 to 400 GFLOP a window
    seconds = cost.flop * seconds_per_flop(device, dtype) + cost.values * seconds_per_value(device)
    return seconds if program == "torch" else COMPILED_SECONDS * seconds


def labelling_seconds(logits: int, voxels: int) -> float:
    """Return the estimated seconds of blending and deciding logits, and of deciding or writing voxels of a scan.

    Args:
        logits: logits of all windows, classes times voxels.
        voxels: voxels of the scan.
    """
    return (LOGIT_PASSES * logits + VOXEL_PASSES * voxels) * seconds_per_value(torch.device("cpu"))


def seconds_per_flop(device: torch.device, dtype: torch.dtype) -> float:
    """Return the seconds of one operation of a matrix product on this machine; measured again every minute."""
    return _seconds_per_flop(device, dtype, _minute())


def seconds_per_value(device: torch.device) -> float:
    """Return the seconds per logit of finding the greatest of 32 classes; measured again every minute."""
    return _seconds_per_value(device, _minute())


def _minute() -> int:
    return int(time.monotonic() / 60)  # other programs change the speed of a machine


@lru_cache(maxsize=4)
def _seconds_per_flop(device: torch.device, dtype: torch.dtype, minute: int) -> float:
    one, other = torch.ones(2, 1024, 1024, device=device, dtype=dtype)
    return _mean_seconds(lambda: float((one @ other)[0, 0])) / (2 * 1024**3)


@lru_cache(maxsize=4)
def _seconds_per_value(device: torch.device, minute: int) -> float:
    logits = torch.rand(32, 250_000, generator=torch.Generator().manual_seed(0)).to(device)
    return _mean_seconds(lambda: int(winners_of(logits, None)[0])) / logits.numel()


def _mean_seconds(work: Callable[[], object], within_seconds: float = 0.1) -> float:
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
        self.peak_bytes = max(self.peak_bytes, resident_bytes())


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
