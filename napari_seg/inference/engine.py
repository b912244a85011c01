"""Runs a bundle's network over a volume and decides the labels on the scan's own grid, while the windows come."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.bundles.spec import Bundle
from napari_seg.inference.backends.base import averaged, check_answer, computing_in, first_answer, resting
from napari_seg.inference.decide.decider import Decider
from napari_seg.inference.plan import check_whole, describe_bytes, held_bytes, trim
from napari_seg.inference.prepare import prepare
from napari_seg.inference.region import Means, OnWindow, RegionTask, blaming
from napari_seg.inference.seconds import describe_seconds, finishing_seconds, measuring
from napari_seg.inference.windows.blend import blend
from napari_seg.inference.windows.layout import Windows
from napari_seg.localise import Region
from napari_seg.volume import Certainty, Volume

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model
    from napari_seg.inference.backends.base import Backend, Run

log = logging.getLogger(__name__)

BACKGROUND_LOGIT = 10.0
"""Of background in a window that is empty; all other classes have its opposite."""


def segment_region(
    volume: Volume,
    region: Region,
    bundle: Bundle,
    model: Model,
    label_map: NDArray[np.unsignedinteger],
    on_window: OnWindow,
    means: Means,
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
        means: by which it is done.
        certainty: on the scan's grid; changed in place wherever labels are.

    Returns:
        Class -> mean softmax probability over the network's voxels where it wins; background left out.

    Raises:
        BundleError: `bundle.preprocessing` or `bundle.network`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, it can't be done within the budget, or the device has too little memory
            for one batch of windows; `environment.backend`, that backend is not there or can't run the network.
        InputError: `geometry.shear`, the bundle's transforms leave a grid that is none.
    """
    promised = (1 if certainty is None else 3) * label_map.nbytes  # in memory once they are written to
    image, grid = prepare(volume, region.grid, bundle, model)
    settings = means.settings(bundle, model)
    with torch.inference_mode():
        if settings is None:
            check_whole(image.shape, _classes(bundle), means.budget_bytes, held_bytes() + promised - image.nbytes)
            decider = Decider(
                grid, volume.grid, label_map, region.labels, certainty=certainty, thresholds=bundle.thresholds
            )
            decider.add((0, 0, 0), _whole_logits(image, bundle, model, on_window))
            return decider.confidence()

        task = RegionTask.of(image, grid, volume.grid, bundle, model, settings, means, promised)
        del image  # the task may hold a part of it only
        plan, backend = task.ready(on_window)
        windows = plan.windows
        padded = windows.pad(task.image)
        expected = task.seconds(plan, backend)
        whole = ""
        if region.grid is None and means.began is not None:  # told before, where regions had to be found
            spent = time.perf_counter() - means.began
            rest = expected + finishing_seconds(prod(volume.grid.shape))
            whole = f" ({describe_seconds(spent + rest)} in all)"
        log.info("%s: %s, about %s%s, with %s", region.name, plan, describe_seconds(expected), whole, backend.name)
        decider = Decider(task.grid, volume.grid, label_map, region.labels, windows.axes, certainty, bundle.thresholds)
        nothing = _background(windows, plan.cost.classes, bundle.thresholds, backend.home)
        with closing(backend), measuring() as measured:
            timed = _timed(backend, task.batch_shape(plan), model)
            run = resting(timed, backend.rest, measured.look) if plan.rests else timed
            run = averaged(run, settings.mirror_axes, settings.shifts, settings.shifts > 1 and not bundle.thresholds)
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
        means.notices.extend(notice for notice in backend.notices if notice not in means.notices)
        took = f"took {describe_seconds(measured.seconds)}, expected {describe_seconds(expected)}"
        memory = f"{describe_bytes(measured.peak_bytes)} of memory, expected {describe_bytes(plan.peak_bytes)}"
        figures = {"plan": plan, "expected_seconds": expected, "measured": measured}
        log.info("%s: %s; %s", region.name, took, memory, extra=figures)
        return decider.confidence()


def _background(
    windows: Windows, classes: int, thresholds: tuple[float, ...], device: torch.device
) -> torch.Tensor | None:
    """Logits (classes, *size) of a window in which there is nothing; None if there is no such window."""
    if not windows.empty:
        return None
    logits = torch.full((classes, *windows.size), -BACKGROUND_LOGIT, device=device)
    if not thresholds:
        logits[0] = BACKGROUND_LOGIT
    return logits


def _whole_logits(image: torch.Tensor, bundle: Bundle, model: Model, on_window: OnWindow) -> torch.Tensor:
    """(classes, I, J, K) of an inferer that gives nothing less than the whole image's."""
    on_window(0, 1)
    with blaming(bundle, model.device), computing_in(model.dtype, model.device):
        logits = first_answer(model.inferer(image[None].to(model.device), model.network))
        check_answer(logits, 1, image.shape[1:], _classes(bundle))
    on_window(1, 1)
    return logits[0].float()


def _timed(backend: Backend, shape: tuple[int, ...], model: Model) -> Run:
    """The same logits; what a batch takes on the average is noted for the next region and the next scan."""
    count, seconds = 0, 0.0

    def timed(windows: torch.Tensor) -> torch.Tensor:
        nonlocal count, seconds
        start = time.perf_counter()
        logits = backend(windows)
        if not logits.is_cuda:  # a GPU may be computing still
            count, seconds = count + 1, seconds + time.perf_counter() - start
            model.statistics.batch_seconds[(backend.name, shape)] = seconds / count
        return logits

    return timed


def _told(run: Run, windows: Windows, count: int, bundle: Bundle, device: torch.device, on_window: OnWindow) -> Run:
    """The same, each batch of in all so many windows being told, and its faults as the network's."""
    done = 0

    def told(batch: torch.Tensor) -> torch.Tensor:
        nonlocal done
        with blaming(bundle, device):
            logits = run(batch)
            check_answer(logits, len(batch), windows.size, _classes(bundle))
        done += len(batch)
        on_window(done, count)
        return logits

    return told


def _classes(bundle: Bundle) -> int:
    """Channels that a bundle's network must have at least."""
    return len(bundle.thresholds) or 1 + max((segment.label for segment in bundle.network_segments), default=1)
