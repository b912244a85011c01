"""How long a segmentation will take, told by a short trial of the network and of the memory; and what it did take."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import TYPE_CHECKING

import torch

from napari_seg.inference.backends import Backend, smaller
from napari_seg.inference.budget import Plan, held_bytes
from napari_seg.inference.cells import winners_of
from napari_seg.inference.dry_run import network_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

WORTH_TRYING_FLOP = 1e11
"""Operations below which a trial would take longer than it tells."""

LARGE_FLOP = 5e10
"""Operations of a window above which half of it tells enough; the halves of smaller ones are run less well."""

HALVES_ARE_QUICKER = 1.3
"""By what whole windows take longer than halves for each operation, since fewer of their maps stay in caches: 1.25 to
1.45 of networks of nnU-Net's kind on AMD EPYC, 1.2 to 1.3 on Intel Xeon."""

USUAL_SHARE = 0.45
"""Of the speed of a product of two matrices, what torch reaches in a network: 0.5 on AMD EPYC, 0.35 on Intel Xeon."""

BLENDED = 1.3
"""What blending costs each logit of a window, in times of `seconds_a_logit`."""

DECIDED = 4.0
"""What deciding costs each logit of the network's grid."""

SCANNED = 35.0
"""What deciding costs each voxel of a scan that lies on the network's grid."""

RESAMPLED = 90.0
"""What it costs each voxel of another scan."""


def expected_seconds(
    plan: Plan, backend: Backend, network: torch.nn.Module, channels: int, scan_voxels: int, resampled: bool
) -> float:
    """What a plan will take.

    Args:
        plan: of one region.
        backend: that runs it.
        network: that it runs, or its outline.
        channels: of the image.
        scan_voxels: that will be decided.
        resampled: whether they lie between those of the network's grid.
    """
    windows, classes = plan.windows, plan.cost.classes
    shape = (windows.settings.batch, channels, *windows.size)
    batches = ceil(plan.asked / shape[0]) * 2 ** len(windows.settings.mirror_axes)
    if backend.batch_cost is not None:
        one = backend.batch_cost.seconds
    elif plan.flop < WORTH_TRYING_FLOP:
        one = shape[0] * plan.cost.flop * seconds_a_flop(backend.device, backend.dtype) / USUAL_SHARE
    else:
        one = _tried(backend, network, shape, plan.cost.flop)
    logits = classes * prod(windows.size) * len(plan.starts)
    decided = classes * prod(windows.image_shape)
    scanned = (RESAMPLED if resampled else SCANNED) * scan_voxels
    return batches * one + (BLENDED * logits + DECIDED * decided + scanned) * seconds_a_logit()


def _tried(backend: Backend, network: torch.nn.Module, shape: tuple[int, ...], flop: int) -> float:
    """Seconds a batch: on a processor from windows half as long in each direction, unless they are small already."""
    half, whole = (torch.zeros(size) for size in (smaller(shape), shape))

    def seconds(batch: torch.Tensor) -> float:
        return quickest(lambda: float(backend(batch).flatten()[0]), trials=3)  # a number, so that a GPU is waited for

    if flop > LARGE_FLOP and backend.device.type == "cpu":
        try:
            return HALVES_ARE_QUICKER * seconds(half) * flop / network_cost(network, half[:1]).flop
        except Exception as error:  # a network of one size only can raise anything
            log.debug("the network is tried on whole windows (%s)", type(error).__name__)
    return seconds(whole)


def describe_seconds(seconds: float) -> str:
    """Such as "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n and not (hours and unit == "s")) or "0 s"


@lru_cache(maxsize=1)
def seconds_a_logit() -> float:
    """Of finding the greatest of 32 classes."""
    logits = torch.rand(32, 250_000, generator=torch.Generator().manual_seed(0))
    return quickest(lambda: winners_of(logits, None)) / logits.numel()


@lru_cache(maxsize=4)
def seconds_a_flop(device: torch.device, dtype: torch.dtype) -> float:
    """Of a product of two matrices."""
    one, other = torch.ones(2, 1024, 1024, device=device, dtype=dtype)
    return quickest(lambda: float((one @ other)[0, 0]), within_seconds=0.1) / (2 * 1024**3)


def quickest(work: Callable[[], object], trials: int = 10, within_seconds: float = 1.0) -> float:
    """Seconds of the quickest of some trials; the first is not counted, and there is no end of them before one is.

    Args:
        work: what is tried.
        trials: at most.
        within_seconds: when no further one begins.
    """
    work()
    taken: list[float] = []
    began = time.perf_counter()
    while not taken or (len(taken) < trials and time.perf_counter() - began < within_seconds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@dataclass
class Measured:
    """What something took; its seconds are filled in at its end.

    Attributes:
        seconds: of the wall's clock.
        peak_bytes: resident memory of this process at its highest.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def look(self) -> None:
        """Notes what is held now; to be called where much is."""
        self.peak_bytes = max(self.peak_bytes, held_bytes())


@contextmanager
def measuring() -> Iterator[Measured]:
    """Measures what is done within: exactly if it is the most that the process ever held, else whenever it looks."""
    measured = Measured()
    start, most = time.perf_counter(), _most_ever()
    try:
        yield measured
    finally:
        measured.seconds = time.perf_counter() - start
        if _most_ever() > most:
            measured.peak_bytes = _most_ever()
        measured.look()


def _most_ever() -> int:
    """Bytes that this process held at most since it began; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
