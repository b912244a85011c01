"""Runs a bundle's network over a volume and decides the labels on the scan's own grid, while the windows come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundle import Bundle, Model
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid, is_same_lattice
from napari_seg.inference.prepare import prepare
from napari_seg.localise import Region
from napari_seg.volume import Certainty, Volume

if TYPE_CHECKING:
    import torch

    from napari_seg.inference.backends import BackendName, Run
    from napari_seg.inference.body import Body
    from napari_seg.inference.budget import NetworkCost, Plan
    from napari_seg.inference.covering import Placement
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

    from napari_seg.inference.backends import averaged_over_mirrors, make_backend
    from napari_seg.inference.blend import blend
    from napari_seg.inference.budget import check_whole, describe_bytes, held_bytes
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

        image, grid, plan = plan_region(image, grid, bundle, model, settings, budget_bytes, placement, body_in, held)
        windows = plan.windows
        padded = windows.pad(image)
        shape = (settings.batch, len(image), *windows.size)
        on_window(0, plan.asked)  # may stop before a network is compiled
        backend = make_backend(backend_name, model.network, model.device, shape, plan.flop, plan.sums_bytes)
        if backend.batch_cost is not None:
            plan = plan.told(backend.batch_cost.memory, held())
        with _blaming(bundle, model.device):
            resampled = not is_same_lattice(grid, volume.grid)
            expected = expected_seconds(plan, backend, model.network, len(image), prod(volume.grid.shape), resampled)
        log.info("%s: %s, about %s, with %s", region.name, plan, describe_seconds(expected), backend.name)
        run = averaged_over_mirrors(backend, settings.mirror_axes)
        decider = Decider(grid, volume.grid, label_map, region.labels, windows.axes, certainty, bundle.thresholds)
        run = _told(run, windows, plan.asked, bundle, model.device, on_window)
        answers = windows.answers(
            padded, plan.starts, run, _background(windows, plan.cost.classes, bundle.thresholds, backend.home)
        )
        with closing(backend), measuring() as measured:
            for joined, strip in plan.strips:
                for block in blend(joined, strip, answers, plan.kept_dtype):
                    measured.look()
                    inner = windows.without_padding(block.start, block.logits.shape[1:])
                    if inner is not None:
                        begin = max(strip[0] - windows.before[windows.axes[1]], 0)
                        decider.add(inner[0], block.logits[(slice(None), *inner[1])], begin)
                    del block
        took = f"took {describe_seconds(measured.seconds)}, expected {describe_seconds(expected)}"
        memory = f"{describe_bytes(measured.peak_bytes)} of memory, expected {describe_bytes(plan.peak_bytes)}"
        figures = {"plan": plan, "expected_seconds": expected, "measured": measured}
        log.info("%s: %s; %s", region.name, took, memory, extra=figures)
        return decider.confidence()


def plan_region(
    image: torch.Tensor,
    grid: Grid,
    bundle: Bundle,
    model: Model,
    settings: WindowSettings,
    budget_bytes: int,
    placement: Placement,
    body_in: Callable[[Grid], Body | None] | None,
    held: Callable[[], int],
) -> tuple[torch.Tensor, Grid, Plan]:
    """How a region will be run: the part of its image (C, I, J, K) that is looked at, that part's grid, and the plan.

    Args:
        image: as `prepare` gave it.
        grid: where it lies.
        bundle: for the messages.
        model: the bundle's.
        settings: of its windows.
        budget_bytes: what the process may hold at most.
        placement: how the windows are laid.
        body_in: what is worth a look in an image on a grid; None: all of it.
        held: what the process holds beside the image.

    Raises:
        EnvironmentFault: `environment.memory`, it can't be done within the budget.
        BundleError: `bundle.network`, the network failed on the shape of a window.
    """
    from napari_seg.inference.budget import best_plan, network_cost

    image, grid, ways = _looks(image, grid, settings, placement, None if body_in is None else body_in(grid))

    def cost_of(windows: Windows) -> NetworkCost:
        return network_cost(model.network, windows.cut(windows.pad(image), (0, 0, 0))[None])

    with _blaming(bundle, model.device):
        return image, grid, best_plan(ways, len(image), cost_of, budget_bytes, held)


def _looks(
    image: torch.Tensor, grid: Grid, settings: WindowSettings, placement: Placement, body: Body | None
) -> tuple[torch.Tensor, Grid, list[Windows]]:
    """The part of an image (C, I, J, K) that is looked at, its grid, and ways to lay windows over it."""
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
