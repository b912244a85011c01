"""A region that a network will be run over: what it is shown, how that is done, and how long it will take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from napari_seg.bundle import Bundle
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid, is_same_lattice
from napari_seg.inference import backends, budget
from napari_seg.inference.compiled import compiled_once
from napari_seg.inference.covering import stride, ways_to_lay
from napari_seg.inference.dry_run import network_cost
from napari_seg.inference.speed import expected_seconds
from napari_seg.inference.windows import Triple, Windows, WindowSettings

if TYPE_CHECKING:
    from napari_seg.inference.backends import Backend, BackendName
    from napari_seg.inference.body import Body
    from napari_seg.inference.budget import Plan
    from napari_seg.inference.covering import Placement
    from napari_seg.inference.dry_run import NetworkCost
    from napari_seg.inference.model import Model

log = logging.getLogger(__name__)

OnWindow = Callable[[int, int], None]
"""Called as (done, total) after every batch of windows; may raise to stop."""


@dataclass(frozen=True)
class Means:
    """By what a region is segmented.

    Attributes:
        budget_bytes: what the process may hold at most.
        backend: what runs the network.
        placement: how the windows are laid.
        body_in: what is worth a look in an image on a grid; None: all of it.
    """

    budget_bytes: int
    backend: BackendName = "auto"
    placement: Placement = "fewest"
    body_in: Callable[[Grid], Body | None] | None = None


@dataclass(frozen=True, eq=False)
class RegionTask:
    """A region before it is run.

    Attributes:
        image: what is looked at, (C, I, J, K), in main memory.
        grid: where it lies.
        ways: to lay windows over it, the best first.
        scan_grid: that its labels are decided on.
        bundle: for the messages.
        model: the bundle's.
        means: by which it is done.
        promised_bytes: that the process will hold beside the image and what it holds already.
    """

    image: torch.Tensor
    grid: Grid
    ways: list[Windows]
    scan_grid: Grid
    bundle: Bundle
    model: Model
    means: Means
    promised_bytes: int

    @classmethod
    def of(
        cls,
        image: torch.Tensor,
        grid: Grid,
        scan_grid: Grid,
        bundle: Bundle,
        model: Model,
        settings: WindowSettings,
        means: Means,
        promised_bytes: int,
    ) -> RegionTask:
        """Of what `prepare` gave: its part that is worth a look, and windows of such settings over it."""
        body = None if means.body_in is None else means.body_in(grid)
        begin: tuple[int, ...] = (0, 0, 0)
        if body is not None:
            i, j, k = sizes = Windows.over(grid.shape, settings).size
            box = body.box(sizes, (stride(i), stride(j), stride(k)))
            begin, end = (tuple(getattr(part, name) for part in box) for name in ("start", "stop"))
            grid = grid.box(begin, end)
            if grid.shape != image.shape[1:]:
                image = image[(slice(None), *box)].clone()  # a view would keep the rest in memory

        def holds_something(start: Triple, size: Triple) -> bool:
            a, b, c = (s + first for s, first in zip(start, begin, strict=True))
            return body is None or body.reaches((a, b, c), size)

        ways = [windows.sparing(holds_something) for windows in ways_to_lay(means.placement, grid.shape, settings)]
        return cls(image, grid, ways, scan_grid, bundle, model, means, promised_bytes)

    def plan(self, backend: BackendName | None = None, beside_bytes: int | None = None) -> Plan:
        """How it will be run.

        Args:
            backend: what will run the network; None: what was wanted.
            beside_bytes: what the process holds and will hold beside the image; None: it is looked up.

        Raises:
            EnvironmentFault: `environment.memory`, it can't be done within the budget.
            BundleError: `bundle.network`, the network failed on the shape of a window.
        """
        wanted, device = backend or self.means.backend, self.model.device

        def share_of(flop: float) -> float | None:
            return self.model.compiled_memory if backends.will_compile(wanted, device, flop) else None

        def beside() -> int:
            return self._beside() if beside_bytes is None else beside_bytes

        with blaming(self.bundle, device):
            return budget.best_plan(self.ways, len(self.image), self._cost, self.means.budget_bytes, beside, share_of)

    def ready(self, on_window: OnWindow) -> tuple[Plan, Backend]:
        """How it will be run, and what runs it; planned anew if that takes more memory than it was thought to.

        Args:
            on_window: told of the first plan; may raise to stop before a network is compiled.

        Raises:
            EnvironmentFault: as `plan` does; `environment.backend`, the backend that is wanted can't run the network.
            BundleError: as `plan` does.
        """
        wanted = self.means.backend
        backend: Backend | None = None
        compiled_for: tuple[int, ...] = ()
        known: int | None = None  # what is held beside with a compiled network, once there was one
        try:
            while True:
                plan = self.plan(wanted, known)
                on_window(0, plan.asked)
                shape = self.batch_shape(plan)
                if backend is None or shape != compiled_for or plan.share is None:
                    if backend is not None:
                        backend.close()
                        backend = None
                        compiled_once.cache_clear()
                    if plan.share is None and wanted == "auto":
                        wanted = "torch"  # as it was planned
                    backend = backends.make_backend(wanted, self.model, shape, plan.flop, plan.sums_bytes)
                    compiled_for = shape
                if backend.batch_cost is None:
                    if plan.share is None:
                        return plan, backend
                    wanted, backend = "torch", None  # the network can't be compiled after all
                    continue
                self.model.let_go()
                budget.give_back()
                known = max(known or 0, self._beside())
                taken = backend.batch_cost.memory
                plan = plan.told(taken, known)
                if plan.peak_bytes <= self.means.budget_bytes:
                    return plan, backend
                # with what is known now, this plan does not fit again
                text = "%s: %s is more than the %s that may be used; planned anew"
                log.info(text, self.bundle.name, plan, budget.describe_bytes(self.means.budget_bytes))
                share = (taken + 1) / (shape[0] * plan.cost.peak_bytes)
                self.model.compiled_memory = max(self.model.compiled_memory, share)
        except BaseException:
            if backend is not None:
                backend.close()
            raise

    def batch_shape(self, plan: Plan) -> tuple[int, ...]:
        """(N, C, *size) of the batches that a plan asks for."""
        return plan.windows.settings.batch, len(self.image), *plan.windows.size

    def seconds(self, plan: Plan, backend: Backend) -> float:
        """What a plan will take."""
        resampled = not is_same_lattice(self.grid, self.scan_grid)
        covered = prod(self.grid.shape) * self.grid.voxel_ml / self.scan_grid.voxel_ml  # a region may be a small part
        scan_voxels = min(round(covered), prod(self.scan_grid.shape))
        with blaming(self.bundle, self.model.device):
            return expected_seconds(plan, backend, self.model.outline, len(self.image), scan_voxels, resampled)

    def _cost(self, windows: Windows) -> NetworkCost:
        window = windows.cut(windows.pad(self.image), (0, 0, 0))[None]
        cost = network_cost(self.model.outline, window, lambda: self.model.network)
        if self.model.device.type == "cuda":
            return cost  # it may have to hand over to the processor, which goes on in float32
        return cost.computed_in(self.model.dtype)

    def _beside(self) -> int:
        return budget.held_bytes() + self.promised_bytes - self.image.nbytes


@contextmanager
def blaming(bundle: Bundle, device: torch.device) -> Iterator[None]:
    """Says of whatever a bundle's network raises that it was the network, or that memory ran out."""
    try:
        yield
    except NapariSegError:
        raise
    except Exception as error:  # a bundle's own network can raise anything
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
            advice = "try --device cpu" if device.type != "cpu" else "use a bundle with smaller windows"
            raise EnvironmentFault(
                "environment.memory", f"{device} has too little memory for this network's windows; {advice}"
            ) from error
        raise BundleError(
            "bundle.network",
            f"the network of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {error})",
        ) from error
