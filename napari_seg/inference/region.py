"""A region that a network will be run over: what it is shown, how that is done, and how long it will take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import TYPE_CHECKING

import torch

from napari_seg.bundles.spec import TTA, Bundle
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError, Notice
from napari_seg.geometry import Grid, is_same_lattice
from napari_seg.inference import plan as budget
from napari_seg.inference.backends import base as backends
from napari_seg.inference.backends.dry_run import network_cost
from napari_seg.inference.backends.openvino import compiled_once
from napari_seg.inference.seconds import (
    COMPILED_TIME,
    TRIAL_SECONDS,
    USUAL_SHARE,
    expected_seconds,
    seconds_a_flop,
    tried_seconds,
)
from napari_seg.inference.windows.covering import stride, ways_to_lay
from napari_seg.inference.windows.layout import Triple, Windows, WindowSettings

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model
    from napari_seg.inference.backends.base import Backend, BackendName
    from napari_seg.inference.backends.dry_run import NetworkCost
    from napari_seg.inference.body import Body
    from napari_seg.inference.plan import Plan
    from napari_seg.inference.windows.covering import Placement

log = logging.getLogger(__name__)

WORTH_TRYING = 10
"""Times as long as a trial a region must be thought to take before its network is tried in the midst of a run."""

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
        tta: test-time averaging; None: as the bundle's inferer does it.
        began: when the segmentation of the scan began, by `time.perf_counter`.
        notices: takes what a person should hear of how it was done.
    """

    budget_bytes: int
    backend: BackendName = "auto"
    placement: Placement = "fewest"
    body_in: Callable[[Grid], Body | None] | None = None
    tta: TTA | None = None
    began: float | None = None
    notices: list[Notice] = field(default_factory=list)

    def settings(self, bundle: Bundle, model: Model) -> WindowSettings | None:
        """How the windows of a bundle's inferer are laid and averaged; None of one that does anything else.

        Raises:
            BundleError: `bundle.tta`, its network can't be averaged so.
        """
        settings = WindowSettings.of(model.inferer)
        wanted = self.tta in ("shifts", "mirror")
        if settings is None and wanted:
            raise BundleError(
                "bundle.tta",
                f"the inferer of bundle {bundle.root.name!r} is no SlidingWindowInferer, whose windows can be "
                "averaged; choose --tta none",
            )
        if self.tta == "mirror" and bundle.localiser and any(region.mirror for region in bundle.localiser.regions):
            raise BundleError(
                "bundle.tta",
                f"the network of bundle {bundle.root.name!r} knows one side of the body only, so a mirror image means "
                "nothing to it; choose --tta shifts or none",
            )
        return None if settings is None else settings.averaging(self.tta)


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

        laid = ways_to_lay(means.placement, grid.shape, settings)
        ways = [windows.sparing(holds_something).in_one_batch() for windows in laid]
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
            known = self.model.statistics.compiled_memory or budget.COMPILED_MEMORY
            return known if backends.will_compile(wanted, device, flop) else None

        def beside() -> int:
            if beside_bytes is not None:
                return beside_bytes
            # a compiled network has weights of its own
            copied = self._weights_bytes() if backends.will_compile(wanted, device, inf) else 0
            return self._beside() + copied

        with blaming(self.bundle, device):
            on_gpu = backends.room_for_sums(device)
            ways, most = self.ways, self.means.budget_bytes
            return budget.best_plan(ways, len(self.image), self._cost, most, beside, share_of, on_gpu)

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
                self.model.statistics.compiled_memory = max(plan.share or 0.0, share)
        except BaseException:
            if backend is not None:
                backend.close()
            raise

    def batch_shape(self, plan: Plan) -> tuple[int, ...]:
        """(N, C, *size) of the batches that a plan asks for."""
        return plan.windows.settings.batch, len(self.image), *plan.windows.size

    def seconds(self, plan: Plan, backend: Backend, may_try: bool | None = None, compiled: bool = False) -> float:
        """What a plan will take.

        Args:
            plan: how the region is run.
            backend: that runs it.
            may_try: whether the network may be tried first; None: where that takes little beside the whole.
            compiled: whether OpenVINO will run it in place of `backend`.
        """
        resampled = not is_same_lattice(self.grid, self.scan_grid)
        covered = prod(self.grid.shape) * self.grid.voxel_ml / self.scan_grid.voxel_ml  # a region may be a small part
        scan_voxels = min(round(covered), prod(self.scan_grid.shape))
        known = self.model.statistics.batch_seconds.get(
            (backends.described("OpenVINO", backend), self.batch_shape(plan))
        )
        if not compiled or known is None:
            known = self.batch_seconds(plan, backend, may_try) * (COMPILED_TIME if compiled else 1)
        return expected_seconds(plan, known, scan_voxels, resampled)

    def batch_seconds(self, plan: Plan, backend: Backend, may_try: bool | None = None) -> float:
        """What a batch takes: as long as the ones before, else by a trial or by its operations; see `seconds`."""
        if backend.batch_cost is not None:
            return backend.batch_cost.seconds
        shape = self.batch_shape(plan)
        known = (backend.name, shape)
        if known in self.model.statistics.batch_seconds:
            return self.model.statistics.batch_seconds[known]
        seconds = shape[0] * plan.cost.flop * seconds_a_flop(backend.device, backend.dtype) / USUAL_SHARE
        worth = seconds * plan.asked / shape[0] > WORTH_TRYING * TRIAL_SECONDS
        if worth if may_try is None else may_try:
            with blaming(self.bundle, self.model.device):
                seconds = self.model.statistics.batch_seconds[known] = tried_seconds(backend, shape, seconds)
        return seconds

    def _cost(self, windows: Windows) -> NetworkCost:
        window = windows.cut(windows.pad(self.image), (0, 0, 0))[None]
        cost = network_cost(self.model.network, window)
        if self.model.device.type == "cuda":
            return replace(cost, peak_bytes=0)  # its maps lie in the GPU's memory
        return cost.computed_in(self.model.dtype)

    def _weights_bytes(self) -> int:
        return sum(value.nbytes for value in self.model.network.state_dict().values())

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
