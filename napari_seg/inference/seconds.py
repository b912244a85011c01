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

from napari_seg.inference.backends.base import Backend
from napari_seg.inference.decide.cells import winners_of
from napari_seg.inference.plan import Plan, held_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

COMPILED_TIME = 0.4
"""Of torch's seconds, what a network takes once OpenVINO has compiled it: 0.35 to 0.45 on AMD EPYC, 0.6 on two AVX2
cores."""

USUAL_SHARE = 0.4
"""Of the speed of a product of two matrices, what torch reaches in a network: 0.35 to 0.5 of a large one, 0.25 of one
with few channels."""

TRIAL_SECONDS = 2.0
"""That a batch may be expected to take if it is tried."""

BLENDED = 1.3
"""What blending costs each logit of a window, in times of `seconds_a_logit`."""

DECIDED = 4.0
"""What deciding costs each logit of the network's grid."""

SCANNED = 35.0
"""What deciding costs each voxel of a scan that lies on the network's grid."""

RESAMPLED = 65.0
"""What it costs each voxel of another scan."""

FINISHED = 20.0
"""What is done once labels are decided costs each voxel of the scan."""

SMALLEST_SECONDS = 0.08
"""What handing over any scan and its labels takes, however small they are."""

COMPILED = 1e9
COMPILED_BATCHES = 1.0
"""What compiling a network costs: in times of `seconds_a_logit`, and in batches of torch. Measured on networks of 4 and
60 classes: 4.8 and 7.7 s where a batch took 2.3 and 3.5 s."""


def expected_seconds(plan: Plan, batch_seconds: float, scan_voxels: int, resampled: bool) -> float:
    """What a plan will take.

    Args:
        plan: of one region.
        batch_seconds: what the network takes for a batch.
        scan_voxels: that will be decided.
        resampled: whether they lie between those of the network's grid.
    """
    windows, classes = plan.windows, plan.cost.classes
    batches = ceil(plan.asked / windows.settings.batch) * windows.settings.looks
    logits = classes * prod(windows.size) * len(plan.starts)
    decided = classes * prod(windows.image_shape)
    scanned = (RESAMPLED if resampled else SCANNED) * scan_voxels
    return batches * batch_seconds + (BLENDED * logits + DECIDED * decided + scanned) * seconds_a_logit()


def tried_seconds(backend: Backend, shape: tuple[int, ...], expected: float) -> float:
    """Return what a batch takes, from a trial where that is thought to be short; smaller windows would tell little.

    Args:
        backend: runs the network.
        shape: (N, C, *size) of a batch.
        expected: seconds that its operations take; returned where that is more than `TRIAL_SECONDS`.
    """
    if expected > TRIAL_SECONDS:
        return expected
    windows = torch.zeros(shape)

    def run() -> float:
        return float(backend(windows).flatten()[0])  # a number, so that a GPU is waited for

    start = time.perf_counter()
    run()
    taken = time.perf_counter() - start
    # the first one makes things that the others find made
    return usual(run, TRIAL_SECONDS / 4) if taken < TRIAL_SECONDS / 2 else taken


def compiling_seconds(batch_seconds: float) -> float:
    """Return what it takes to compile a network whose batches take torch so long: tracing, compiling, checking."""
    return COMPILED * seconds_a_logit() + COMPILED_BATCHES * batch_seconds


def finishing_seconds(scan_voxels: int) -> float:
    """Return what is done with the labels of a scan once they are decided: counting, judging, passing on, writing."""
    return SMALLEST_SECONDS + FINISHED * scan_voxels * seconds_a_logit()


def describe_seconds(seconds: float) -> str:
    """Such as "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n and not (hours and unit == "s")) or "0 s"


def seconds_a_logit() -> float:
    """Of finding the greatest of 32 classes, as quick as this machine is now."""
    return _seconds_a_logit(_now())


def seconds_a_flop(device: torch.device, dtype: torch.dtype) -> float:
    """Of a product of two matrices, as quick as this machine is now."""
    return _seconds_a_flop(device, dtype, _now())


def _now() -> int:
    """The minute: what others do on a machine changes its speed."""
    return int(time.monotonic() / 60)


@lru_cache(maxsize=1)
def _seconds_a_logit(now: int) -> float:
    logits = torch.rand(32, 250_000, generator=torch.Generator().manual_seed(0))
    return usual(lambda: winners_of(logits, None)) / logits.numel()


@lru_cache(maxsize=4)
def _seconds_a_flop(device: torch.device, dtype: torch.dtype, now: int) -> float:
    one, other = torch.ones(2, 1024, 1024, device=device, dtype=dtype)
    return usual(lambda: float((one @ other)[0, 0])) / (2 * 1024**3)


def usual(work: Callable[[], object], within_seconds: float = 0.2) -> float:
    """Return the mean seconds of some trials, the first left out: on a busy machine the quickest one flatters."""
    work()
    start = time.perf_counter()
    count = 0
    while not count or time.perf_counter() - start < within_seconds:
        work()
        count += 1
    return (time.perf_counter() - start) / count


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
