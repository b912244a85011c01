"""Engine: runs a bundle's network over a region and decides labels on the scan's own grid while windows are computed.

The chain for each batch of windows is: cut it from the image, run the network, average mirror images or shifted copies
(`averaged`), blend it with the windows before (`blend`), and decide the labels of the voxels that are final
(`Decider`). Everything is a generator, so no logits of the whole region are ever in memory.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.bundles.output import Output
from napari_seg.bundles.precision import name_of
from napari_seg.bundles.windows import WindowSettings
from napari_seg.inference.backends.averaging import averaged, displaced
from napari_seg.inference.backends.base import autocast, check_output, first_output
from napari_seg.inference.decide.region_labels import RegionLabels, check_inverse, labels_bytes
from napari_seg.inference.not_finite import naming_overflow
from napari_seg.inference.plan import Plan, check_whole
from napari_seg.inference.prepare import prepare
from napari_seg.inference.region import OnWindow, RegionTask, blaming, min_channels
from napari_seg.inference.seconds import Measured, labelling_seconds, measuring
from napari_seg.inference.settings import RegionSettings
from napari_seg.inference.windows.blend import blend
from napari_seg.inference.windows.layout import Windows
from napari_seg.localise import Region
from napari_seg.memory import describe_bytes, resident_bytes, trim_heap
from napari_seg.progress import describe_seconds
from napari_seg.volume import ConfidenceMaps, Volume

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model
    from napari_seg.inference.backends.base import Backend, Run

log = logging.getLogger(__name__)

BACKGROUND_LOGIT = 10.0
"""Logit of background in a window without content; all other classes have its opposite."""


def segment_region(
    volume: Volume,
    region: Region,
    settings: RegionSettings,
    label_map: NDArray[np.unsignedinteger],
    on_window: OnWindow,
    maps: ConfidenceMaps | None = None,
    estimated_regions: int = 1,
) -> dict[int, float]:
    """Write the labels of one region into the scan's label map, and return the confidence of each class.

    Windows of a sliding-window inferer are streamed. Any other inferer of a bundle is run as it is.

    Args:
        volume: the scan.
        region: part of the scan that the network sees, and the labels that its classes stand for.
        settings: how it is segmented.
        label_map: (I, J, K) on the scan's grid; changed in place where it is 0.
        on_window: called after each batch of windows.
        maps: on the scan's grid; changed in place wherever labels are.
        estimated_regions: number of regions, all like this one, in the total time that is logged; 0 logs no total.

    Returns:
        Label of the network -> mean probability over the network's voxels where it wins; background excluded.

    Raises:
        BundleError: `bundle.preprocessing` or `bundle.network`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, it does not fit the budget, or the device has too little memory for one
            batch of windows; `environment.backend`, that backend is not installed or can't run the network.
        InputError: `geometry.shear`, the bundle's transforms return an affine that is no grid.
    """
    promised = settings.promised_bytes(label_map.size, label_map.dtype)
    with torch.inference_mode():
        if settings.windows is None:
            return _decide_whole(volume, region, settings, label_map, on_window, maps, promised)
        task = RegionTask.prepare(volume, region.grid, settings, settings.windows, promised)
        task, plan, backend = task.start(on_window)
        settings.run["backend"] = plan.program.lower()
        output, windows = settings.model.output, plan.windows
        padded = windows.pad(task.image)
        estimated = task.seconds(plan)
        in_all = ""
        if estimated_regions:
            remaining = estimated_regions * estimated + labelling_seconds(0, prod(volume.grid.shape))
            in_all = f" ({describe_seconds(time.perf_counter() - settings.began + remaining)} in all)"
        log.info("%s: %s, about %s%s, with %s", region.name, plan, describe_seconds(estimated), in_all, backend.name)
        assert task.inverse is not None
        taker = settings.takes_values or RegionLabels
        labels = taker(
            output,
            task.inverse,
            task.grid,
            task.offset,
            volume.grid,
            label_map,
            region.labels,
            windows.axes,
            maps,
            settings.budget_bytes,
        )
        empty_logits = _empty_logits(windows, plan.cost.classes, output, backend.output_device)
        precision = name_of(task.settings.model.dtype)
        with closing(backend), measuring() as measured, naming_overflow(precision):
            run = _network_run(backend, task, plan, settings.windows, on_window, measured)
            logits = windows.logits(padded, plan.starts, run, empty_logits)
            for joined, strip in plan.strips:
                for block in blend(joined, strip, logits, plan.dtype):
                    measured.look()
                    inner = windows.without_padding(block.start, block.logits.shape[1:])
                    if inner is not None:
                        begin = max(strip[0] - windows.before[windows.axes[1]], 0)
                        labels.add(inner[0], block.logits[(slice(None), *inner[1])], begin)
                    del block
                    if plan.trims_memory:
                        trim_heap()
        with naming_overflow(precision):
            confidence, notices = labels.finish()
        notices = [*backend.notices, *notices]
        settings.notices.extend(notice for notice in notices if notice not in settings.notices)
        _log_measured(region.name, plan, estimated, measured)
        return confidence


def _decide_whole(
    volume: Volume,
    region: Region,
    settings: RegionSettings,
    label_map: NDArray[np.unsignedinteger],
    on_window: OnWindow,
    maps: ConfidenceMaps | None,
    promised_bytes: int,
) -> dict[int, float]:
    """Segment a region as `segment_region` does, with an inferer that returns the logits of the whole image."""
    bundle, model = settings.bundle, settings.model
    settings.run["precision"] = name_of(model.dtype)
    assert not isinstance(model.inferer, WindowSettings)
    image, inverse = prepare(volume, region.grid, bundle, model, settings.budget_bytes)
    channels = min_channels(bundle, model.output)
    promised_bytes += labels_bytes(model.output, inverse, channels, volume.grid)
    used_bytes = resident_bytes() + promised_bytes - image.nbytes
    check_whole(image.shape, channels, settings.budget_bytes, used_bytes)
    check_inverse(model.output, inverse, channels, settings.budget_bytes, used_bytes)
    taker = settings.takes_values or RegionLabels
    labels = taker(
        model.output,
        inverse,
        inverse.grid,
        (0, 0, 0),
        volume.grid,
        label_map,
        region.labels,
        maps=maps,
        budget_bytes=settings.budget_bytes,
    )
    on_window(0, 1)
    with blaming(bundle, model.device), autocast(model.dtype, model.device):
        shown = image[..., 0] if model.spatial_dims == 2 else image
        logits = first_output(model.inferer(shown[None].to(model.device), model.network))
        check_output(logits, 1, shown.shape[1:], channels)
    on_window(1, 1)
    logits = logits[0].float()
    with naming_overflow(name_of(model.dtype)):
        labels.add((0, 0, 0), logits[..., None] if model.spatial_dims == 2 else logits)
        confidence, notices = labels.finish()
    settings.notices.extend(notices)
    return confidence


def _empty_logits(windows: Windows, classes: int, output: Output, device: torch.device) -> torch.Tensor | None:
    """Return the logits of background for a window without content; None if there is no such window."""
    if not windows.empty:
        return None
    logits = torch.full((classes, *windows.size), -BACKGROUND_LOGIT, device=device)
    if output.decision == "argmax":
        logits[0] = BACKGROUND_LOGIT
    return logits


def _network_run(
    backend: Backend, task: RegionTask, plan: Plan, windows: WindowSettings, on_window: OnWindow, measured: Measured
) -> Run:
    """Return the function from windows to logits: timed, averaged, checked, and reported as progress.

    Args:
        backend: backend that runs the network.
        task: the region.
        plan: its plan.
        windows: window settings, for averaging.
        on_window: called after each batch.
        measured: notes the memory after each batch.
    """
    bundle, model = task.settings.bundle, task.settings.model
    channels = min_channels(bundle, model.output)
    is_softmax = windows.shifts > 1 and model.output.decision == "argmax"
    timed = _timed(backend, model, plan, task.batch_shape(plan), measured)
    shown = displaced(timed, windows.shift, windows.reversed_axes)
    run = averaged(shown, windows.mirror_axes, windows.shifts, is_softmax)
    done = 0

    def checked(batch: torch.Tensor) -> torch.Tensor:
        nonlocal done
        with blaming(bundle, model.device):
            logits = run(batch)
            check_output(logits, len(batch), plan.windows.size, channels)
        done += len(batch)
        on_window(done, plan.window_count)
        return logits

    return checked


def _timed(backend: Backend, model: Model, plan: Plan, shape: tuple[int, ...], measured: Measured) -> Run:
    """Return the backend as a function that keeps the mean seconds of a batch for the next region and the next scan.

    It releases the network's memory after each batch if the plan says so.
    """
    count, seconds = 0, 0.0

    def timed(windows: torch.Tensor) -> torch.Tensor:
        nonlocal count, seconds
        start = time.perf_counter()
        logits = backend(windows)
        is_computed = not logits.is_cuda  # a GPU may still be computing
        if is_computed and backend.device == model.device:  # a GPU without memory leaves the network to the CPU
            count, seconds = count + 1, seconds + time.perf_counter() - start
            model.statistics.batch_seconds[(plan.program, shape)] = seconds / count
        if plan.releases_memory:
            measured.look()
            backend.release_memory()
        return logits

    return timed


def _log_measured(name: str, plan: Plan, estimated_seconds: float, measured: Measured) -> None:
    took = f"took {describe_seconds(measured.seconds)}, estimated {describe_seconds(estimated_seconds)}"
    memory = f"{describe_bytes(measured.peak_bytes)} of memory, estimated {describe_bytes(plan.peak_bytes)}"
    figures = {"plan": plan, "estimated_seconds": estimated_seconds, "measured": measured}
    log.info("%s: %s; %s", name, took, memory, extra=figures)
