"""How much memory a segmentation will take, and how it is cut so that it fits what it may take.

What grows with the number of classes are the sums of overlapping windows (`blend.kept_bytes`). Where they do not fit,
a compiled network gives back its memory after each batch, for a twentieth more time. Where that is too little, the
plane is cut in strips, whose windows at the cuts are run twice: the same labels for more time. Where even that does
not fit, the sums are kept in float16. What can't fit at all is refused, before any window is run.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod

import torch

from napari_seg.errors import EnvironmentFault
from napari_seg.inference.backends.dry_run import NetworkCost
from napari_seg.inference.decide.cells import LOGITS_AT_ONCE
from napari_seg.inference.decide.decider import POINT_BYTES, VOXELS_AT_ONCE
from napari_seg.inference.windows.blend import kept_bytes, place_shape, thriftiest, weights_voxels
from napari_seg.inference.windows.layout import Triple, Windows
from napari_seg.memory import SAFE_SHARE, describe_bytes, free_bytes, held_bytes

log = logging.getLogger(__name__)

MARGIN = 1.1
"""Of what is predicted of torch: convolution libraries keep weights and scratch of their own."""

COMPILED_MEMORY = 0.4
"""Of the maps that torch holds at once, what a network takes when OpenVINO runs it, which works in place, its skip
connections split (see `skips.py`): 0.36 of nnU-Net's standard network. What a network does take is known once it is
compiled."""

WORTH_TRIMMING_BYTES = 16 * 2**20
"""Logits of a window from which what their deciding leaves is returned to the system each time."""


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def default_budget() -> int:
    """What this process may hold in all if nobody says otherwise: what it holds, and a safe share of what is free."""
    return held_bytes() + int(SAFE_SHARE * free_bytes())


def give_back() -> None:
    """Returns to the system what is not wanted any more: of networks, which hold themselves, and of their making."""
    gc.collect()
    trim()


def trim() -> None:
    """Has the C library return freed memory to the system, of which glibc keeps much else; others keep less."""
    release = _malloc_trim()
    if release is not None:
        release(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Plan:
    """How a region is run.

    Attributes:
        windows: over the region.
        cost: of one of them.
        strips: of each the windows, places joined as is best for it, and its begin and end on `windows.axes[1]`; one
            voxel is shared by neighbours.
        kept_dtype: of the sums of overlapping windows.
        starts: of the windows, in order; those at the cuts come for each strip.
        sums_bytes: of what is made of the logits outside the network.
        asked: how many of them the network is asked about, the others being empty.
        flop: of all that it is asked, mirror images and shifted copies included.
        share: of the maps that torch would hold at once, what a compiled network is thought to take; None: torch runs.
        rests: whether the network gives back its memory after each batch, before its logits are blended and decided.
        staying_bytes: that the image and the sums take.
        passing_bytes: that blending and deciding a window takes on top.
        peak_bytes: that the process will hold at most.
    """

    windows: Windows
    cost: NetworkCost
    strips: tuple[tuple[Windows, tuple[int, int]], ...]
    kept_dtype: torch.dtype
    starts: list[Triple]
    sums_bytes: int
    asked: int
    flop: int
    share: float | None
    rests: bool
    staying_bytes: int
    passing_bytes: int
    peak_bytes: int

    def told(self, network_bytes: int, held: int) -> Plan:
        """The same, now that it is known what a batch takes in the network, and what is held beside (`make_plan`)."""
        used = _at_once(network_bytes, self.passing_bytes, self.rests)
        return replace(self, peak_bytes=held + self.staying_bytes + used)

    @property
    def is_worth_trimming(self) -> bool:
        """Whether what is freed after a block is much beside the milliseconds that returning it takes."""
        return 4 * self.cost.classes * prod(self.windows.size) >= WORTH_TRIMMING_BYTES

    def __str__(self) -> str:
        cut = f" in {len(self.strips)} strips" if len(self.strips) > 1 else ""
        half = ", sums in float16" if self.kept_dtype == torch.float16 else ""
        windows = f"{self.asked} window{'s' * (self.asked != 1)} of {_times(self.windows.size)}"
        rests = ", the network's memory given back after each" if self.rests else ""
        return f"{windows}{cut}{half}{rests}, about {describe_bytes(self.peak_bytes)} of memory"


def best_plan(
    ways: Sequence[Windows],
    channels: int,
    cost_of: Callable[[Windows], NetworkCost],
    budget_bytes: int,
    held: Callable[[], int],
    share: Callable[[float], float | None],
    device_bytes: int = 0,
) -> Plan:
    """The quickest plan that fits, in single precision if any does; it does not depend on the budget if that is ample.

    Args:
        ways: the best first, the bundle's own size of windows last; only that one has to suit the network.
        channels: of the image.
        cost_of: the cost of one of its windows.
        budget_bytes: what the process may hold at most.
        held: says what it holds already, as `make_plan` wants it; asked once costs are known, since counting them
            loads parts of torch.
        share: as `make_plan` wants it, told the operations of all windows.
        device_bytes: as for `make_plan`.

    Raises:
        EnvironmentFault: `environment.memory`, nothing fits; it says what would.
        Exception: whatever the network raises on the last way's windows.
    """

    def plan(windows: Windows) -> Plan:
        cost = cost_of(windows)
        flop = (windows.count - len(windows.empty)) * windows.settings.looks * cost.flop
        return make_plan(windows, channels, cost, budget_bytes, held(), share(flop), device_bytes)

    found: list[Plan] = []
    for number, windows in enumerate(ways, start=1):
        try:
            found.append(plan(windows))
        except EnvironmentFault as fault:
            if number == len(ways) and not found:
                raise
            log.info("windows of %s do not fit: %s", _times(windows.size), fault.message)
        except Exception as error:  # a network that takes one size only can raise anything
            if number == len(ways):
                raise
            log.info("the network does not take windows of %s (%s)", _times(windows.size), type(error).__name__)
        else:
            if len(found[-1].strips) == 1 and found[-1].kept_dtype == torch.float32:
                break  # those to come are more work
    return min(found, key=lambda plan: (plan.kept_dtype != torch.float32, plan.flop))


def make_plan(
    windows: Windows,
    channels: int,
    cost: NetworkCost,
    budget_bytes: int,
    held: int,
    share: float | None = None,
    device_bytes: int = 0,
) -> Plan:
    """The quickest way to run a region's windows within a budget, and what it will hold.

    Args:
        windows: over the region.
        channels: of the image.
        cost: of one window.
        budget_bytes: what the process may hold at most.
        held: what it holds already, the scan and the label map included, the image not.
        share: of the maps that torch holds at once, what a compiled network takes; None: torch runs.
        device_bytes: of a GPU's own memory, that sums may take there; 0: there is no GPU.

    Raises:
        EnvironmentFault: `environment.memory`, nothing fits; it says what would.
    """
    image = (
        4
        * channels
        * (prod(windows.image_shape) + prod(windows.padded_shape) * (windows.padded_shape != windows.image_shape))
    )
    batch = windows.settings.batch
    voxels = prod(windows.size)
    block = 4 * cost.classes * voxels
    logits = batch * block
    mirrors = 2 * logits if windows.settings.looks > 1 else 0
    network = max(int((MARGIN if share is None else share) * batch * cost.peak_bytes), logits + 4 * channels * voxels)
    fixed = image + 4 * voxels + (2 * block if windows.empty else 0) + mirrors
    ways_to_hold = (False,) if share is None else (False, True)
    rows = len(windows.starts[windows.axes[1]])
    smallest = 0
    for kept_dtype in (torch.float32, torch.float16):
        for count, rests in product(range(1, max(rows, 1) + 1), ways_to_hold):
            size = kept_dtype.itemsize
            strips = tuple((thriftiest(windows, strip, size), strip) for strip in cut_in_strips(windows, count))
            kept = max(kept_bytes(joined, strip, cost.classes, size) for joined, strip in strips)
            sums = int(kept + 2 * block)
            weights = 4 * max(weights_voxels(joined, strip) for joined, strip in strips)
            largest = max(prod(place_shape(joined, strip)) for joined, strip in strips)
            if sums <= device_bytes:  # logits never leave the GPU's memory, labels alone do
                staying, in_network = image + 4 * voxels, 4 * batch * channels * voxels
                passing = decided_bytes(1, largest)
            else:
                staying, in_network = int(fixed + kept + weights), network
                passing = 4 * cost.classes * largest + decided_bytes(cost.classes, largest)
            # the network's memory holds the logits, which stay when it is given back
            passing += logits if rests else 0
            peak = held + staying + _at_once(in_network, passing, rests)
            smallest = min(smallest or peak, peak)
            if peak <= budget_bytes:
                starts = [start for joined, strip in strips for start in joined.starts_of(joined.places(strip))]
                asked = sum(start not in windows.empty for start in starts)
                flop = asked * windows.settings.looks * cost.flop
                return Plan(
                    windows, cost, strips, kept_dtype, starts, sums, asked, flop, share, rests, staying, passing, peak
                )
    raise EnvironmentFault(
        "environment.memory",
        f"{cost.classes} classes in windows of {_times(windows.size)} need {describe_bytes(smallest)} of "
        f"memory; {describe_bytes(budget_bytes)} may be used; give more with --memory, or use a smaller window",
    )


def decided_bytes(classes: int, voxels: int) -> int:
    """What deciding a block of logits holds beside them: of each voxel its class and certainty, parts, and points."""
    return 12 * voxels + 4 * 4 * min(LOGITS_AT_ONCE, classes * voxels) + POINT_BYTES * VOXELS_AT_ONCE


def _at_once(network_bytes: int, passing_bytes: int, rests: bool) -> int:
    """What the network and what is made of its logits hold at most."""
    return max(network_bytes, passing_bytes) if rests else network_bytes + passing_bytes


def check_whole(shape: Sequence[int], classes: int, budget_bytes: int, held: int) -> None:
    """Whether the logits of a whole region fit, for an inferer that gives nothing less.

    Args:
        shape: of the image, (C, I, J, K).
        classes: at least.
        budget_bytes: what the process may hold at most.
        held: what it holds already.

    Raises:
        EnvironmentFault: `environment.memory`, they don't.
    """
    voxels = prod(shape[1:])
    needed = held + 4 * voxels * (shape[0] + 2 * classes)  # logits and their sums
    if needed > budget_bytes:
        raise EnvironmentFault(
            "environment.memory",
            f"{classes} classes of a whole region of {_times(shape[1:])} voxels need "
            f"{describe_bytes(needed)} of memory; {describe_bytes(budget_bytes)} may be used; give more with --memory, "
            "or let the bundle name a SlidingWindowInferer, whose windows are streamed",
        )


def cut_in_strips(windows: Windows, count: int) -> tuple[tuple[int, int], ...]:
    """Parts of the second-longest axis of about the same number of windows; neighbours share one voxel.

    The cuts lie where windows begin, so that as few as possible are run twice.
    """
    axis = windows.axes[1]
    starts, end = windows.starts[axis], windows.padded_shape[axis]
    firsts = sorted({starts[round(n * len(starts) / count)] for n in range(count)} | {0})
    begins = [max(first - 1, 0) for first in firsts]
    return tuple(zip(begins, [*firsts[1:], end], strict=True))
