"""Plan of a region: which windows, how much memory they need, and how they are made to fit a budget.

The memory of a run is the sum of what stays (what the process holds already, the image, and the accumulators of
overlapping windows, which grow with the number of classes) and of what comes and goes with each batch (the network's
feature maps, and a window's logits while they are blended and decided). `make_plan` tries the quickest way first and
then ways that need less memory and more time. First, a compiled network releases its feature maps after each batch, so
that they and the blending are never in memory together (a twentieth more time). Second, the plane is cut into strips,
which share one voxel and whose windows at the cuts run twice (the same labels). Third, the accumulators are kept in
float16. `best_plan` does that for each window size and takes the plan with the least work, in single precision if any
plan allows it. What cannot fit is refused before any window runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch

from napari_seg.errors import EnvironmentFault, counted
from napari_seg.inference.backends.cost import NetworkCost
from napari_seg.inference.decide.decider import decider_bytes
from napari_seg.inference.windows.blend import accumulator_bytes, group_shape, weights_voxels, with_least_memory
from napari_seg.inference.windows.layout import Triple, Windows
from napari_seg.memory import describe_bytes

log = logging.getLogger(__name__)

TORCH_OVERHEAD = 1.1
"""Memory of torch relative to a network's feature maps: convolution libraries keep weights and scratch of their own."""

COMPILED_MEMORY = 0.4
"""Memory of a network that OpenVINO compiled as a fraction of torch's feature maps, before it is measured: 0.36 of
nnU-Net's standard network, whose skip connections are split (see `backends.skips`)."""

MIN_TRIMMED_BYTES = 16 * 2**20
"""Size of a window's logits from which freed memory is returned to the system after each block."""


@dataclass(frozen=True)
class Plan:
    """How a region is run.

    Attributes:
        windows: windows over the region.
        cost: cost of one window.
        strips: for each strip its windows, joined as needs least memory, and its start and end on `windows.axes[1]`;
            neighbours share one voxel.
        dtype: type of the accumulators of overlapping windows.
        starts: starts of the windows, in order; those at the cuts come once per strip.
        accumulator_bytes: memory of the accumulators and of two windows' logits.
        window_count: number of windows that the network runs, empty ones excluded.
        flop: floating-point operations of all of them, mirror images and shifted copies included.
        compiled_memory: memory of the compiled network as a fraction of torch's feature maps; None: torch runs it.
        releases_memory: whether the network releases its memory after each batch, before logits are blended.
        permanent_bytes: memory of the image and the accumulators.
        temporary_bytes: additional memory while a window is blended and decided.
        peak_bytes: highest memory of the process.
    """

    windows: Windows
    cost: NetworkCost
    strips: tuple[tuple[Windows, tuple[int, int]], ...]
    dtype: torch.dtype
    starts: list[Triple]
    accumulator_bytes: int
    window_count: int
    flop: int
    compiled_memory: float | None
    releases_memory: bool
    permanent_bytes: int
    temporary_bytes: int
    peak_bytes: int

    def with_memory(self, network_bytes: int, used_bytes: int) -> Plan:
        """Return this plan with the measured memory of a batch in the network, and of the rest of the process."""
        together = _together(network_bytes, self.temporary_bytes, self.releases_memory)
        return replace(self, peak_bytes=used_bytes + self.permanent_bytes + together)

    @property
    def program(self) -> str:
        """Program that runs the network."""
        return "torch" if self.compiled_memory is None else "OpenVINO"

    @property
    def trims_memory(self) -> bool:
        """Whether so much is freed after a block that returning it to the system is worth some milliseconds."""
        return 4 * self.cost.classes * prod(self.windows.size) >= MIN_TRIMMED_BYTES

    @property
    def is_exact(self) -> bool:
        """Whether the plan needs neither strips nor half precision."""
        return len(self.strips) == 1 and self.dtype == torch.float32

    @property
    def saves_memory(self) -> bool:
        """Whether the plan needs more time, or is less precise, to fit the budget."""
        return self.releases_memory or not self.is_exact

    def __str__(self) -> str:
        strips = f" in {len(self.strips)} strips" if len(self.strips) > 1 else ""
        half = ", accumulators in float16" if self.dtype == torch.float16 else ""
        windows = f"{counted(self.window_count, 'window')} of {_times(self.windows.size)}"
        released = ", the network's memory released after each" if self.releases_memory else ""
        return f"{windows}{strips}{half}{released}, about {describe_bytes(self.peak_bytes)} of memory"


def best_plan(
    layouts: Sequence[Windows],
    channels: int,
    cost_of: Callable[[Windows], NetworkCost],
    budget_bytes: int,
    used_bytes: Callable[[float], int],
    compiled_memory: Callable[[float], float | None],
    gpu_bytes: int = 0,
    *,
    extends: bool = True,
) -> Plan:
    """Return the quickest plan that fits, in single precision if any does; an ample budget does not change it.

    Args:
        layouts: windows over the region, the best first and the bundle's own size last; only that one has to suit the
            network.
        channels: channels of the image.
        cost_of: function that returns the cost of one window.
        budget_bytes: highest memory that the process may use.
        used_bytes: function from operations to the memory in use already, see `make_plan`; called after the costs are
            known, since counting them loads parts of torch.
        compiled_memory: function from the operations of all windows to the argument of `make_plan`.
        gpu_bytes: see `make_plan`.
        extends: see `make_plan`.

    Raises:
        EnvironmentFault: `environment.memory`, no plan fits; the message names the memory that would be needed.
        Exception: whatever the network raises on windows of the bundle's own size.
    """
    found: list[Plan] = []
    for number, windows in enumerate(layouts, start=1):
        is_last = number == len(layouts)
        try:
            cost = cost_of(windows)
            flop = (windows.count - len(windows.empty)) * windows.settings.passes * cost.flop
            used, compiled = used_bytes(flop), compiled_memory(flop)
            plan = make_plan(windows, channels, cost, budget_bytes, used, compiled, gpu_bytes, extends=extends)
        except EnvironmentFault as fault:
            if is_last and not found:
                raise
            log.info("windows of %s do not fit: %s", _times(windows.size), fault.message)
        except Exception as error:  # a network that takes one size only can raise anything
            if is_last:
                raise
            log.info("the network does not take windows of %s (%s)", _times(windows.size), type(error).__name__)
        else:
            found.append(plan)
            if plan.is_exact:
                break  # the layouts that follow are more work
    return min(found, key=lambda plan: (plan.dtype != torch.float32, plan.flop))


def make_plan(
    windows: Windows,
    channels: int,
    cost: NetworkCost,
    budget_bytes: int,
    used_bytes: int,
    compiled_memory: float | None = None,
    gpu_bytes: int = 0,
    *,
    extends: bool = True,
) -> Plan:
    """Return the quickest way to run a region's windows within a budget.

    Args:
        windows: windows over the region.
        channels: channels of the image.
        cost: cost of one window.
        budget_bytes: highest memory that the process may use.
        used_bytes: memory in use already: the scan and the label map included, the image excluded.
        compiled_memory: memory of the compiled network as a fraction of torch's feature maps; None: torch runs it.
        gpu_bytes: memory of a GPU that accumulators may use; 0: there is no GPU.
        extends: whether blocks are copied to be decided, see `decider_bytes`.

    Raises:
        EnvironmentFault: `environment.memory`, no way fits; the message names the memory that would be needed.
    """
    is_padded = windows.padded_shape != windows.image_shape
    image = 4 * channels * (prod(windows.image_shape) + prod(windows.padded_shape) * is_padded)
    batch = windows.settings.batch
    voxels = prod(windows.size)
    block = 4 * cost.classes * voxels
    logits = batch * block
    averaged = 2 * logits if windows.settings.passes > 1 else 0
    fraction = TORCH_OVERHEAD if compiled_memory is None else compiled_memory
    network = max(int(fraction * batch * cost.peak_bytes), logits + 4 * channels * voxels)
    fixed = image + 4 * voxels + (2 * block if windows.empty else 0) + averaged
    releases_choices = (False,) if compiled_memory is None else (False, True)
    rows = len(windows.starts[windows.axes[1]])
    smallest = 0
    for dtype in (torch.float32, torch.float16):
        for count, releases in product(range(1, max(rows, 1) + 1), releases_choices):
            size = dtype.itemsize
            strips = tuple((with_least_memory(windows, strip, size), strip) for strip in cut_in_strips(windows, count))
            accumulators = max(accumulator_bytes(joined, strip, cost.classes, size) for joined, strip in strips)
            weights = 4 * max(weights_voxels(joined, strip) for joined, strip in strips)
            largest = max(prod(group_shape(joined, strip)) for joined, strip in strips)
            blending = int(accumulators + 2 * block)
            if blending <= gpu_bytes:  # logits stay in the GPU's memory, only labels leave it
                permanent, in_network = image + 4 * voxels, 4 * batch * channels * voxels
                temporary = decider_bytes(1, largest, extends=False)
            else:
                permanent, in_network = int(fixed + accumulators + weights), network
                temporary = decider_bytes(cost.classes, largest, extends=extends)
            temporary += logits if releases else 0  # they are part of the network's memory, but stay
            peak = used_bytes + permanent + _together(in_network, temporary, releases)
            smallest = min(smallest or peak, peak)
            if peak <= budget_bytes:
                starts = [start for joined, strip in strips for start in joined.starts_of(joined.groups(strip))]
                runs = sum(start not in windows.empty for start in starts)
                flop = runs * windows.settings.passes * cost.flop
                return Plan(
                    windows,
                    cost,
                    strips,
                    dtype,
                    starts,
                    blending,
                    runs,
                    flop,
                    compiled_memory,
                    releases,
                    permanent,
                    temporary,
                    peak,
                )
    raise EnvironmentFault(
        "environment.memory",
        f"{cost.classes} classes in windows of {_times(windows.size)} need {describe_bytes(smallest)} of "
        f"memory; {describe_bytes(budget_bytes)} may be used; give more with --memory, or use a smaller window",
    )


def check_whole(shape: Sequence[int], classes: int, budget_bytes: int, used_bytes: int) -> None:
    """Raise if the logits of a whole region do not fit, for an inferer that returns nothing less.

    Args:
        shape: shape of the image, (C, I, J, K).
        classes: lower bound of the number of classes.
        budget_bytes: highest memory that the process may use.
        used_bytes: memory in use already.

    Raises:
        EnvironmentFault: `environment.memory`, they do not fit.
    """
    voxels = prod(shape[1:])
    needed = used_bytes + 4 * voxels * (shape[0] + 2 * classes)  # logits and their accumulators
    if needed > budget_bytes:
        raise EnvironmentFault(
            "environment.memory",
            f"{classes} classes of a whole region of {_times(shape[1:])} voxels need "
            f"{describe_bytes(needed)} of memory; {describe_bytes(budget_bytes)} may be used; give more with --memory, "
            "or let the bundle name a SlidingWindowInferer, whose windows are streamed",
        )


def cut_in_strips(windows: Windows, count: int) -> tuple[tuple[int, int], ...]:
    """Return parts of the second-longest axis with about the same number of windows; neighbours share one voxel.

    The cuts lie where windows begin, so that as few as possible run twice.
    """
    axis = windows.axes[1]
    starts, end = windows.starts[axis], windows.padded_shape[axis]
    firsts = sorted({starts[round(n * len(starts) / count)] for n in range(count)} | {0})
    begins = [max(first - 1, 0) for first in firsts]
    return tuple(zip(begins, [*firsts[1:], end], strict=True))


def _together(network_bytes: int, temporary_bytes: int, releases_memory: bool) -> int:
    """Return the highest memory of the network and of blending and deciding."""
    return max(network_bytes, temporary_bytes) if releases_memory else network_bytes + temporary_bytes


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
