"""Runs a bundle's network over a volume and decides the labels on the scan's own grid, while the windows come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundle import Bundle, Model
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid
from napari_seg.inference.prepare import prepare
from napari_seg.localise import Region
from napari_seg.volume import Volume

if TYPE_CHECKING:
    import torch

    from napari_seg.inference.backends import BackendName, Run
    from napari_seg.inference.windows import Triple, Windows

log = logging.getLogger(__name__)

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
    from napari_seg.inference.budget import held_bytes, make_plan, network_cost
    from napari_seg.inference.decide import Decider
    from napari_seg.inference.windows import Windows, WindowSettings

    held = held_bytes()
    image, grid = prepare(volume, region.grid, bundle, model)
    settings = WindowSettings.of(model.inferer)
    try:
        with torch.inference_mode():
            if settings is None:
                return _as_a_whole(image, grid, volume, region, bundle, model, label_map, on_window)
            windows = Windows.over(grid.shape, settings)
            cost = network_cost(model.network, len(image), windows.size)
            plan = make_plan(windows, len(image), cost, budget_bytes, held)
            shape = (settings.batch, len(image), *windows.size)
            backend = make_backend(backend_name, model.network, model.device, shape, plan.flop)
            log.info("%s: %s, with %s", region.name, plan, backend.name)
            decider = Decider(grid, volume.grid, label_map, region.labels, windows.axes)
            run = averaged_over_mirrors(backend, settings.mirror_axes)
            answers = _answers(image, windows, plan.starts, run, bundle, on_window)
            for joined, strip in plan.strips:
                for block in blend(joined, strip, answers, plan.kept_dtype):
                    inner = windows.without_padding(block.start, block.logits.shape[1:])
                    if inner is not None:
                        begin = max(strip[0] - windows.before[windows.axes[1]], 0)
                        decider.add(inner[0], block.logits[(slice(None), *inner[1])], begin)
            return decider.confidence()
    except NapariSegError:
        raise
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            "environment.memory", f"{model.device} has too little memory for this network's windows; try --device cpu"
        ) from error
    except Exception as error:  # a bundle's own network can raise anything
        raise BundleError(
            "bundle.network",
            f"the network of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {error})",
        ) from error


def _as_a_whole(
    image: torch.Tensor,
    grid: Grid,
    volume: Volume,
    region: Region,
    bundle: Bundle,
    model: Model,
    label_map: NDArray[np.unsignedinteger],
    on_window: OnWindow,
) -> dict[int, float]:
    """As `segment_region`, with an inferer that only gives the logits of the whole region."""
    from napari_seg.inference.decide import Decider

    on_window(0, 1)
    logits = model.inferer(image[None].to(model.device), model.network)
    _check(logits, grid.shape, bundle)
    decider = Decider(grid, volume.grid, label_map, region.labels)
    decider.add((0, 0, 0), logits[0].float())
    on_window(1, 1)
    return decider.confidence()


def _answers(
    image: torch.Tensor,
    windows: Windows,
    starts: list[Triple],
    run: Run,
    bundle: Bundle,
    on_window: OnWindow,
) -> Iterator[torch.Tensor]:
    """Each window's logits (classes, *windows.size), a batch at a time through the network."""
    import torch

    padded = windows.pad(image)
    on_window(0, len(starts))
    for first in range(0, len(starts), windows.settings.batch):
        batch = starts[first : first + windows.settings.batch]
        logits = run(torch.stack([windows.cut(padded, start) for start in batch]))
        _check(logits, windows.size, bundle)
        on_window(first + len(batch), len(starts))
        yield from logits


def _check(logits: Any, size: tuple[int, ...], bundle: Bundle) -> None:
    classes = 1 + max((segment.label for segment in bundle.network_segments), default=1)
    if logits.shape[2:] != size or logits.shape[1] < classes:
        raise BundleError(
            "bundle.network",
            f"the network of bundle {bundle.root.name!r} answered {tuple(logits.shape[1:])} for an image of {size}; "
            f"expected {classes} classes of the image's size",
        )
