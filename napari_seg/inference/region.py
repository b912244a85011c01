"""Task of one region: the image that the network sees, the plan of its windows, and the backend that runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import ceil, prod

import torch

from napari_seg.bundles.causes import is_of_memory
from napari_seg.bundles.modules import with_public_names
from napari_seg.bundles.output import Output
from napari_seg.bundles.precision import has_bfloat16, name_of
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid
from napari_seg.inference import plan as planning
from napari_seg.inference.backends import choose
from napari_seg.inference.backends.base import Backend
from napari_seg.inference.backends.cost import NetworkCost
from napari_seg.inference.backends.cost_cache import cached_cost
from napari_seg.inference.backends.openvino import cached_compile
from napari_seg.inference.backends.precision import MIN_CHECKED_FLOP, Agreement, agreement, checked_part
from napari_seg.inference.decide.region_labels import (
    check_inverse,
    collects_values,
    extends_blocks,
    labels_bytes,
)
from napari_seg.inference.inverse import Inverse
from napari_seg.inference.options import BackendName
from napari_seg.inference.plan import COMPILED_MEMORY, Plan
from napari_seg.inference.prepare import prepare
from napari_seg.inference.seconds import COMPILING_BATCHES, labelling_seconds, network_seconds
from napari_seg.inference.settings import RegionSettings
from napari_seg.inference.windows.covering import layouts
from napari_seg.inference.windows.layout import Triple, Windows, divisor
from napari_seg.memory import collect_garbage, describe_bytes, resident_bytes, trim_heap
from napari_seg.volume import Volume

log = logging.getLogger(__name__)

OnWindow = Callable[[int, int], None]
"""Called as (done, total) after each batch of windows; may raise to stop."""


@dataclass(frozen=True, eq=False)
class RegionTask:
    """A region that is ready to be planned and run.

    Attributes:
        image: image that the network sees, (C, I, J, K), in main memory.
        grid: grid of the image.
        offset: first voxel of the image in the bundle's preprocessed image.
        inverse: the way back from the grid of the preprocessed image; None: it is not known.
        layouts: windows over the image for each window size, the best first.
        scan_grid: grid of the scan, on which labels are decided.
        settings: how the region is segmented.
        promised_bytes: memory that the process will use besides the image and what it uses already.
    """

    image: torch.Tensor
    grid: Grid
    layouts: list[Windows]
    scan_grid: Grid
    settings: RegionSettings
    promised_bytes: int
    offset: Triple = (0, 0, 0)
    inverse: Inverse | None = None

    @classmethod
    def prepare(
        cls, volume: Volume, region: Grid | None, settings: RegionSettings, windows: WindowSettings, promised_bytes: int
    ) -> RegionTask:
        """Return the task of one region of a scan.

        Args:
            volume: the scan.
            region: grid of the region; None: the scan as it is.
            settings: how it is segmented.
            windows: window settings.
            promised_bytes: memory that the process will use besides the image and what it uses already.

        Raises:
            BundleError: `bundle.preprocessing`, the bundle's own code failed on this scan.
            EnvironmentFault: `environment.memory`, the bundle's transforms or their inverse do not fit the budget.
            InputError: `geometry.shear`, the bundle's transforms return an affine that is no grid.
        """
        output = settings.model.output
        bundle, model = settings.bundle, settings.model
        image, inverse = prepare(volume, region, bundle, model, settings.budget_bytes, settings.previous)
        if collects_values(output, inverse):
            settings = replace(settings, body_in=None)
        channels = min_channels(settings.bundle, output)
        promised_bytes += labels_bytes(output, inverse, channels, volume.grid)
        check_inverse(output, inverse, channels, settings.budget_bytes, resident_bytes() + promised_bytes)
        task = cls.crop(image, inverse.grid, volume.grid, settings, windows, promised_bytes)
        return replace(task, inverse=inverse)

    @classmethod
    def crop(
        cls,
        image: torch.Tensor,
        grid: Grid,
        scan_grid: Grid,
        settings: RegionSettings,
        windows: WindowSettings,
        promised_bytes: int,
    ) -> RegionTask:
        """Return the task of the part of an image that can have content.

        Args:
            image: image after preprocessing, (C, I, J, K).
            grid: its grid.
            scan_grid: grid of the scan.
            settings: how the region is segmented.
            windows: window settings.
            promised_bytes: memory that the process will use besides the image and what it uses already.
        """
        body = None if settings.body_in is None else settings.body_in(grid)
        begin: Triple = (0, 0, 0)
        if body is not None:
            i, j, k = sizes = Windows.over(grid.shape, windows).size
            box = body.box(sizes, (divisor(i), divisor(j), divisor(k)))
            i, j, k = (int(part.start) for part in box)
            begin = (i, j, k)
            grid = grid.box(begin, tuple(part.stop for part in box))
            if grid.shape != image.shape[1:]:
                image = image[(slice(None), *box)].clone()  # a view would keep the rest in memory

        def has_content(start: Triple, size: Triple) -> bool:
            a, b, c = (s + first for s, first in zip(start, begin, strict=True))
            return body is None or body.reaches((a, b, c), size)

        found = layouts(settings.options.windows or "fewest", grid.shape, windows)
        found = [laid.without_empty(has_content).with_small_batches() for laid in found]
        return cls(image, grid, found, scan_grid, settings, promised_bytes, begin)

    def plan(self, backend: BackendName | None = None, used_bytes: int | None = None) -> Plan:
        """Return the plan of the region.

        Args:
            backend: backend that will run the network; None: that of the options.
            used_bytes: memory that the process uses and will use besides the image; None: it is measured.

        Raises:
            EnvironmentFault: `environment.memory`, no plan fits the budget.
            BundleError: `bundle.network`, the network failed on the shape of a window.
        """
        name, model = backend or self.settings.options.backend, self.settings.model

        def compiled_memory(flop: float) -> float | None:
            known = model.statistics.compiled_memory or COMPILED_MEMORY
            return known if choose.will_compile(name, model.device, self._flop_of_run(flop)) else None

        with blaming(self.settings.bundle, model.device):
            return planning.best_plan(
                self.layouts,
                len(self.image),
                self._cost,
                self.settings.budget_bytes,
                lambda flop: self._used_bytes(name, flop) if used_bytes is None else used_bytes,
                compiled_memory,
                choose.room_for_accumulators(model.device),
                extends=self._extends_blocks(),
            )

    def _extends_blocks(self) -> bool:
        """Return whether blocks are copied to be decided; an average of several models always copies them."""
        if self.inverse is None or self.settings.takes_values is not None:
            return True
        return extends_blocks(self.settings.model.output, self.inverse, self.grid, self.scan_grid)

    def start(self, on_window: OnWindow) -> tuple[RegionTask, Plan, Backend]:
        """Return the task in the number format that the scan's first window allows, its plan and its backend.

        Args:
            on_window: see `start_backend`.

        Raises:
            EnvironmentFault: see `start_backend`.
            BundleError: see `start_backend`.
        """
        task = self._in_checked_precision()
        try:
            return task, *task.start_backend(on_window)
        except EnvironmentFault as fault:
            if fault.code != "environment.precision" or task is self:
                raise
            log.info("precision float32: %s", fault.message)
        self.settings.run.update(precision="float32")
        return self, *self.start_backend(on_window)

    def _in_checked_precision(self) -> RegionTask:
        """Return the task in the number format of the scan's first region, chosen by a check on its first window."""
        settings, run = self.settings, self.settings.run
        if "precision" not in run:
            run["precision"] = name_of(settings.model.dtype)
            found = self._agreement() if self._may_compute_in_bfloat16() else None
            if found is not None:
                run |= {"precision": "bfloat16" if found.holds else "float32", "equal_labels": round(found.equal, 5)}
                log.info("precision %s: %s", run["precision"], found)
        model = settings.model.computing_in(getattr(torch, run["precision"]))
        return self if model is settings.model else replace(self, settings=replace(settings, model=model))

    def _may_compute_in_bfloat16(self) -> bool:
        """Return whether the number format is up to us, and bfloat16 would save more than the check takes."""
        model, windows = self.settings.model, self.layouts[0]
        options = self.settings.options
        is_ours = options.precision == "auto" and options.match != "exact" and model.device.type == "cpu"
        if not is_ours or not has_bfloat16(model.device):
            return False
        try:
            flop = self._cost(windows).flop
        except Exception as error:  # a foreign network can raise anything, and does so again when it is planned
            log.debug("the network's cost is not known (%s)", type(error).__name__)
            return False
        return (windows.count - len(windows.empty)) * windows.settings.passes * flop >= MIN_CHECKED_FLOP

    def _agreement(self) -> Agreement | None:
        """Return how far the first window's labels agree in float32 and bfloat16; None if it could not be checked.

        Each scan is checked: its labels must not depend on which others were segmented before it.
        """
        model = self.settings.model
        try:
            found = agreement(model.network, checked_part(self.layouts[0], self.image), model.output)
        except Exception as error:  # a network that takes one size only can raise anything
            log.info("precision float32: bfloat16 could not be checked (%s)", type(error).__name__)
            found = None
        trim_heap()
        return found

    def start_backend(self, on_window: OnWindow) -> tuple[Plan, Backend]:
        """Return a plan and the backend that runs it; plan again if a compiled network needs more than estimated.

        Args:
            on_window: called with the first plan's windows; may raise to stop before a network is compiled.

        Raises:
            EnvironmentFault: see `plan`; `environment.backend`, the required backend can't run the network.
            BundleError: see `plan`.
        """
        model, statistics = self.settings.model, self.settings.model.statistics
        name = self.settings.options.backend
        backend: Backend | None = None
        compiled_for: tuple[int, ...] = ()
        used_bytes: int | None = None  # measured once there is a compiled network
        try:
            while True:
                plan = self._plan_with_room(name) if used_bytes is None else self.plan(name, used_bytes)
                on_window(0, plan.window_count)
                shape = self.batch_shape(plan)
                if backend is not None and (shape != compiled_for or plan.compiled_memory is None):
                    backend.close()
                    backend = None
                    cached_compile.cache_clear()
                    statistics.is_compiled = False
                if backend is None:
                    if plan.compiled_memory is None and name == "auto":
                        name = "torch"  # as planned
                    backend = choose.make_backend(
                        name, model, shape, self._flop_of_run(plan.flop), plan.accumulator_bytes
                    )
                    compiled_for = shape
                if backend.batch_cost is None:
                    if plan.compiled_memory is None:
                        return plan, backend
                    name, backend = "torch", None  # OpenVINO can't run the network
                    continue
                statistics.is_compiled = True
                needed = backend.batch_cost.memory
                statistics.batch_seconds.setdefault((plan.program, shape), backend.batch_cost.seconds)
                plan = plan.with_memory(needed, self._used_now(used_bytes or 0))
                if plan.peak_bytes > self.settings.budget_bytes:
                    collect_garbage()
                    used_bytes = self._used_now(used_bytes or 0)
                    plan = plan.with_memory(needed, used_bytes)
                if plan.peak_bytes <= self.settings.budget_bytes:
                    return plan, backend
                budget = describe_bytes(self.settings.budget_bytes)
                log.info(
                    "%s: %s is more than the budget of %s; planning again", self.settings.bundle.name, plan, budget
                )
                fraction = (needed + 1) / (shape[0] * plan.cost.peak_bytes)
                statistics.compiled_memory = max(plan.compiled_memory or 0.0, fraction)  # this plan can't fit again
        except BaseException:
            if backend is not None:
                backend.close()
            raise

    def _plan_with_room(self, backend: BackendName) -> Plan:
        """Return the plan of the region; if it has to save memory, compiled networks of other runs go first.

        Raises:
            EnvironmentFault: see `plan`.
            BundleError: see `plan`.
        """
        statistics = self.settings.model.statistics
        with suppress(EnvironmentFault):
            plan = self.plan(backend)
            if not plan.saves_memory:
                return plan
        if cached_compile.cache_info().currsize > statistics.is_compiled:
            cached_compile.cache_clear()
            statistics.is_compiled = False
        collect_garbage()  # only now, because it takes as long as a small scan
        return self.plan(backend)

    def batch_shape(self, plan: Plan) -> tuple[int, ...]:
        """Return the shape (N, C, *size) of a plan's batches."""
        return plan.windows.settings.batch, len(self.image), *plan.windows.size

    def seconds(self, plan: Plan) -> float:
        """Return the estimated seconds of running a plan, from the network's start to the region's labels."""
        batches = ceil(plan.window_count / plan.windows.settings.batch) * plan.windows.settings.passes
        logits = plan.cost.classes * prod(plan.windows.size) * len(plan.starts)
        covered = prod(self.grid.shape) * self.grid.voxel_ml / self.scan_grid.voxel_ml  # a region may be a small part
        voxels = min(round(covered), prod(self.scan_grid.shape))
        return batches * self._batch_seconds(plan, plan.program) + labelling_seconds(logits, voxels)

    def compiling_seconds(self, plan: Plan) -> float:
        """Return the estimated seconds of compiling the network for a plan; 0 if that is not needed any more."""
        is_known = (plan.program, self.batch_shape(plan)) in self.settings.model.statistics.batch_seconds
        if plan.compiled_memory is None or is_known:
            return 0.0
        return COMPILING_BATCHES * self._batch_seconds(plan, "torch")

    def _batch_seconds(self, plan: Plan, program: str) -> float:
        """Return the seconds of a batch: those of the last run, otherwise estimated from the operations."""
        model, shape = self.settings.model, self.batch_shape(plan)
        known = model.statistics.batch_seconds.get((program, shape))
        if known is not None:
            return known
        return shape[0] * network_seconds(plan.cost, model.device, model.dtype, program)

    def _cost(self, windows: Windows) -> NetworkCost:
        """Return the cost of one window; the costs of a window size are shared by all runs of the model."""
        model = self.settings.model
        costs = model.statistics.window_costs
        if windows.size not in costs:
            window = windows.cut(windows.pad(self.image), (0, 0, 0))[None]
            cost = cached_cost(model.network, window)
            # the feature maps of a GPU lie in its own memory
            is_on_gpu = model.device.type == "cuda"
            costs[windows.size] = replace(cost, peak_bytes=0) if is_on_gpu else cost
        return costs[windows.size].computed_in(model.dtype)

    def _flop_of_run(self, flop: float) -> float:
        """Return the operations of all scans of the run that can share a compiled network with this one.

        Each of them takes as many, if its windows have sizes of their own and not that of the scan.
        """
        has_own_size = all(length is not None and length > 0 for length in self.layouts[0].settings.roi_size)
        return (self.settings.options.scans if has_own_size else 1) * flop

    def _used_now(self, least: int) -> int:
        """Return the memory in use and promised, the image left out, once the network is compiled; `least` at least."""
        return max(least, resident_bytes() + self.promised_bytes - self.image.nbytes)

    def _used_bytes(self, backend: BackendName, flop: float) -> int:
        """Return the memory besides the image: in use, promised, and of the weights that are not in memory yet.

        A compiled network has its own copy of the weights, in its number format, and torch reads them from their file
        when it runs.
        """
        model, numbers = self.settings.model, self.settings.model.network.state_dict().values()
        will_compile = choose.will_compile(backend, model.device, self._flop_of_run(flop))
        if model.device.type == "cpu" and not will_compile:
            for weights in numbers:
                weights.sum()  # reads them, so that they count as memory in use
        will_be_copied = will_compile and not model.statistics.is_compiled
        copied = sum(weights.numel() for weights in numbers) * model.dtype.itemsize if will_be_copied else 0
        return resident_bytes() + self.promised_bytes - self.image.nbytes + copied


def min_channels(bundle: Bundle, output: Output) -> int:
    """Return the lowest number of channels that a bundle's network can have."""
    if output.channels:
        return 1 + max(channel.number for channel in output.channels)
    if any(step.map for step in output.steps):
        return 1
    return 1 + max((segment.label for segment in bundle.network_segments), default=1)


@contextmanager
def blaming(bundle: Bundle, device: torch.device) -> Iterator[None]:
    """Turn whatever a bundle's network raises into an error that names the network, or the lack of memory."""
    try:
        yield
    except NapariSegError:
        raise
    except Exception as error:  # a bundle's own network can raise anything
        if is_of_memory(error):
            advice = "try --device cpu" if device.type != "cpu" else "use a bundle with smaller windows"
            raise EnvironmentFault(
                "environment.memory", f"{device} has too little memory for this network's windows; {advice}"
            ) from error
        cause = with_public_names(str(error))
        raise BundleError(
            "bundle.network",
            f"the network of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {cause})",
        ) from error
