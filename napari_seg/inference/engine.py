"""Runs a bundle's network over a volume and decides the labels on the scan's own grid, while the windows come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundle import Bundle
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid, is_same_lattice
from napari_seg.inference.prepare import prepare
from napari_seg.localise import Region
from napari_seg.volume import Certainty, Volume

if TYPE_CHECKING:
    import torch

    from napari_seg.inference.backends import Backend, BackendName, Run
    from napari_seg.inference.body import Body
    from napari_seg.inference.budget import NetworkCost, Plan
    from napari_seg.inference.covering import Placement
    from napari_seg.inference.model import Model
    from napari_seg.inference.windows import Triple, Windows, WindowSettings

log = logging.getLogger(__name__)

BACKGROUND_LOGIT = 10.0
"""Of background in a window that is empty; all other classes have its opposite."""

OnWindow = Callable[[int, int], None]
"""Called as (done, total) after every batch of windows; may raise to stop."""


def segment_region(
    volume: Volume,
    region: Region,
    bundle: Bundle,
    model: Model,
    label_map: NDArray[np.unsignedinteger],
    on_window: OnWindow,
    budget_bytes: int,
    backend_name: BackendName = "auto",
    placement: Placement = "fewest",
    body_in: Callable[[Grid], Body | None] | None = None,
    certainty: Certainty | None = None,
) -> dict[int, float]:
    """Writes what a network finds in one region into the scan's label map.

    The windows of MONAI's sliding-window inferer are streamed: no logits of the whole region are ever held. Any other
    inferer is run as it is.

    Args:
        volume: the scan.
        region: what the network is shown, and which labels its classes stand for.
        bundle: for the messages.
        model: the bundle's network, preprocessing and inferer.
        label_map: (I, J, K) on the scan's grid; changed in place where it is 0.
        on_window: told of each batch of windows.
        budget_bytes: what the process may hold at most.
        backend_name: what runs the network.
        placement: how the windows are laid.
        body_in: what is worth a look in an image on a grid; None: all of it.
        certainty: on the scan's grid; changed in place wherever labels are.

    Returns:
        Class -> mean softmax probability over the network's voxels where it wins; background left out.

    Raises:
        BundleError: `bundle.preprocessing` or `bundle.network`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, it can't be done within the budget, or the device has too little memory
            for one batch of windows; `environment.backend`, that backend is not there or can't run the network.
        InputError: `geometry.shear`, the bundle's transforms leave a grid that is none.
    """
    import torch

    from napari_seg.inference.backends import averaged_over_mirrors, resting
    from napari_seg.inference.blend import blend
    from napari_seg.inference.budget import check_whole, describe_bytes, held_bytes, trim
    from napari_seg.inference.decide import Decider
    from napari_seg.inference.speed import describe_seconds, expected_seconds, measuring
    from napari_seg.inference.windows import WindowSettings

    promised = (1 if certainty is None else 3) * label_map.nbytes  # in memory once they are written to
    image, grid = prepare(volume, region.grid, bundle, model)
    settings = WindowSettings.of(model.inferer)
    with torch.inference_mode():
        if settings is None:
            check_whole(image.shape, _classes(bundle), budget_bytes, held_bytes() + promised - image.nbytes)
            decider = Decider(
                grid, volume.grid, label_map, region.labels, certainty=certainty, thresholds=bundle.thresholds
            )
            decider.add((0, 0, 0), _whole_logits(image, bundle, model, on_window))
            return decider.confidence()

        def held() -> int:
            return held_bytes() + promised - image.nbytes

        image, grid, ways = ways_over(image, grid, settings, placement, None if body_in is None else body_in(grid))
        plan, backend = _ready(image, ways, bundle, model, budget_bytes, held, backend_name, on_window)
        windows = plan.windows
        padded = windows.pad(image)
        with _blaming(bundle, model.device):
            resampled = not is_same_lattice(grid, volume.grid)
            expected = expected_seconds(plan, backend, model.outline, len(image), prod(volume.grid.shape), resampled)
        log.info("%s: %s, about %s, with %s", region.name, plan, describe_seconds(expected), backend.name)
        decider = Decider(grid, volume.grid, label_map, region.labels, windows.axes, certainty, bundle.thresholds)
        nothing = _background(windows, plan.cost.classes, bundle.thresholds, backend.home)
        with closing(backend), measuring() as measured:
            run = resting(backend, measured.look) if plan.rests else backend
            run = averaged_over_mirrors(run, settings.mirror_axes)
            run = _told(run, windows, plan.asked, bundle, model.device, on_window)
            answers = windows.answers(padded, plan.starts, run, nothing)
            for joined, strip in plan.strips:
                for block in blend(joined, strip, answers, plan.kept_dtype):
                    measured.look()
                    inner = windows.without_padding(block.start, block.logits.shape[1:])
                    if inner is not None:
                        begin = max(strip[0] - windows.before[windows.axes[1]], 0)
                        decider.add(inner[0], block.logits[(slice(None), *inner[1])], begin)
                    del block
                    if plan.is_worth_trimming:
                        trim()
        took = f"took {describe_seconds(measured.seconds)}, expected {describe_seconds(expected)}"
        memory = f"{describe_bytes(measured.peak_bytes)} of memory, expected {describe_bytes(plan.peak_bytes)}"
        figures = {"plan": plan, "expected_seconds": expected, "measured": measured}
        log.info("%s: %s; %s", region.name, took, memory, extra=figures)
        return decider.confidence()


def _ready(
    image: torch.Tensor,
    ways: Sequence[Windows],
    bundle: Bundle,
    model: Model,
    budget_bytes: int,
    held: Callable[[], int],
    backend_name: BackendName,
    on_window: OnWindow,
) -> tuple[Plan, Backend]:
    """How a region will be run, and what runs it; planned anew if that takes more memory than it was thought to."""
    from napari_seg.inference.backends import make_backend
    from napari_seg.inference.budget import describe_bytes, give_back
    from napari_seg.inference.compiled import compiled_once

    backend: Backend | None = None
    compiled_for: tuple[int, ...] = ()
    known = 0

    def beside() -> int:
        return known or held()  # with a compiled network, once there was one

    try:
        while True:
            plan = plan_region(image, ways, bundle, model, budget_bytes, beside, backend_name)
            on_window(0, plan.asked)  # may stop before a network is compiled
            shape = (plan.windows.settings.batch, len(image), *plan.windows.size)
            if backend is None or shape != compiled_for or plan.share is None:
                if backend is not None:
                    backend.close()
                    backend = None
                    compiled_once.cache_clear()
                if plan.share is None and backend_name == "auto":
                    backend_name = "torch"  # as it was planned
                backend, compiled_for = make_backend(backend_name, model, shape, plan.flop, plan.sums_bytes), shape
            if backend.batch_cost is None:
                if plan.share is None:
                    return plan, backend
                backend_name, backend = "torch", None  # the network can't be compiled after all
                continue
            model.let_go()
            give_back()
            known = max(known, held())
            taken = backend.batch_cost.memory
            plan = plan.told(taken, known)
            if plan.peak_bytes <= budget_bytes:
                return plan, backend
            # with what is known now, this plan does not fit again
            text = "%s: %s is more than the %s that may be used; planned anew"
            log.info(text, bundle.name, plan, describe_bytes(budget_bytes))
            model.compiled_memory = max(model.compiled_memory, (taken + 1) / (shape[0] * plan.cost.peak_bytes))
    except BaseException:
        if backend is not None:
            backend.close()
        raise


def plan_region(
    image: torch.Tensor,
    ways: Sequence[Windows],
    bundle: Bundle,
    model: Model,
    budget_bytes: int,
    held: Callable[[], int],
    backend_name: BackendName,
) -> Plan:
    """How a region will be run.

    Args:
        image: what is looked at, (C, I, J, K).
        ways: to lay windows over it, the best first.
        bundle: for the messages.
        model: the bundle's.
        budget_bytes: what the process may hold at most.
        held: says what it holds beside the image.
        backend_name: what will run the network.

    Raises:
        EnvironmentFault: `environment.memory`, it can't be done within the budget.
        BundleError: `bundle.network`, the network failed on the shape of a window.
    """
    from napari_seg.inference.backends import will_compile
    from napari_seg.inference.budget import best_plan, network_cost

    def cost_of(windows: Windows) -> NetworkCost:
        window = windows.cut(windows.pad(image), (0, 0, 0))[None]
        return network_cost(model.outline, window, lambda: model.network)

    def share_of(flop: float) -> float | None:
        return model.compiled_memory if will_compile(backend_name, model.device, flop) else None

    with _blaming(bundle, model.device):
        return best_plan(ways, len(image), cost_of, budget_bytes, held, share_of)


def ways_over(
    image: torch.Tensor, grid: Grid, settings: WindowSettings, placement: Placement, body: Body | None
) -> tuple[torch.Tensor, Grid, list[Windows]]:
    """The part of an image (C, I, J, K) that is looked at, its grid, and ways to lay windows over it, the best first.

    Args:
        image: as `prepare` gave it.
        grid: where it lies.
        settings: of the windows.
        placement: how they are laid.
        body: what is worth a look; None: all of it.
    """
    from napari_seg.inference.covering import stride, ways_to_lay
    from napari_seg.inference.windows import Windows

    if body is None:
        return image, grid, ways_to_lay(placement, grid.shape, settings)
    i, j, k = sizes = Windows.over(grid.shape, settings).size
    box = body.box(sizes, (stride(i), stride(j), stride(k)))
    begin, end = ([getattr(part, name) for part in box] for name in ("start", "stop"))
    grid = grid.box(begin, end)

    def holds_something(start: Triple, size: Triple) -> bool:
        a, b, c = (s + first for s, first in zip(start, begin, strict=True))
        return body.reaches((a, b, c), size)

    return (
        image[(slice(None), *box)],
        grid,
        [windows.sparing(holds_something) for windows in ways_to_lay(placement, grid.shape, settings)],
    )


def _background(
    windows: Windows, classes: int, thresholds: tuple[float, ...], device: torch.device
) -> torch.Tensor | None:
    """Logits (classes, *size) of a window in which there is nothing; None if there is no such window."""
    import torch

    if not windows.empty:
        return None
    logits = torch.full((classes, *windows.size), -BACKGROUND_LOGIT, device=device)
    if not thresholds:
        logits[0] = BACKGROUND_LOGIT
    return logits


@contextmanager
def _blaming(bundle: Bundle, device: torch.device) -> Iterator[None]:
    """Says of whatever a bundle's network raises that it was the network, or that memory ran out."""
    import torch

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


def _whole_logits(image: torch.Tensor, bundle: Bundle, model: Model, on_window: OnWindow) -> torch.Tensor:
    """(classes, I, J, K) of an inferer that gives nothing less than the whole image's."""
    from napari_seg.inference.backends import check_answer, first_answer

    on_window(0, 1)
    with _blaming(bundle, model.device):
        logits = first_answer(model.inferer(image[None].to(model.device), model.network))
        check_answer(logits, 1, image.shape[1:], _classes(bundle))
    on_window(1, 1)
    return logits[0].float()


def _told(run: Run, windows: Windows, count: int, bundle: Bundle, device: torch.device, on_window: OnWindow) -> Run:
    """The same, each batch of in all so many windows being told, and its faults as the network's."""
    from napari_seg.inference.backends import check_answer

    done = 0

    def told(batch: torch.Tensor) -> torch.Tensor:
        nonlocal done
        with _blaming(bundle, device):
            logits = run(batch)
            check_answer(logits, len(batch), windows.size, _classes(bundle))
        done += len(batch)
        on_window(done, count)
        return logits

    return told


def _classes(bundle: Bundle) -> int:
    """Channels that a bundle's network must have at least."""
    return len(bundle.thresholds) or 1 + max((segment.label for segment in bundle.network_segments), default=1)
