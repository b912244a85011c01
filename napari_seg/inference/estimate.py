"""Estimate of a segmentation: what `segment` does up to its first window, with the plans of all regions as result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.read import read_bundle, read_coarse
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.bundles.ways import way_of
from napari_seg.errors import Notice
from napari_seg.geometry import Grid
from napari_seg.inference.fitness import check_fit, fitted, fitted_options
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.settings import RegionSettings, is_shown_whole, set_up
from napari_seg.localise import locating_seconds
from napari_seg.memory import default_budget, describe_bytes
from napari_seg.progress import describe_seconds
from napari_seg.volume import Segmentation, Volume, smallest_label_type


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a segmentation.

    Attributes:
        windows: number of windows that the network runs, in all regions.
        seconds: from the loaded model to the labels: locating regions, compiling, running, deciding.
        peak_bytes: highest memory of this process.
        locates: whether regions must be located in the scan first.
        doubts: notices on a scan that differs from what the network was trained on; see `fitness`.
    """

    windows: int
    seconds: float
    peak_bytes: int
    locates: bool
    doubts: tuple[Notice, ...] = ()

    @property
    def time(self) -> str:
        """Seconds in words."""
        return describe_seconds(self.seconds)

    @property
    def memory(self) -> str:
        """Memory in words."""
        return describe_bytes(self.peak_bytes)


def estimate(
    volume: Volume, bundle: Bundle | str | Path | None = None, options: SegmentOptions | None = None, **changes: Any
) -> Estimate | None:
    """Return what `segment` with the same arguments will cost; None if that is unknown.

    It is unknown if the bundle's inferer does not slide windows, or if its own workflow runs. The network is loaded, as
    it will be anyway, but not run.

    Args:
        volume: the scan.
        bundle: as for `segment`.
        options: as for `segment`.
        changes: as for `segment`.

    Raises:
        NapariSegError: what `segment` would raise before its first window.
    """
    bundle = read_bundle(bundle)
    volume = fitted(volume, bundle)
    options = fitted_options(replace(options or SegmentOptions(), **changes), bundle)
    if way_of(bundle).kind == "workflow":
        check_fit(volume, bundle)
        check_runnable(bundle)
        return None
    if isinstance(bundle, EnsembleBundle | TaskBundle) or bundle.previous is not None:
        return _estimate_models(volume, bundle, options)
    settings = set_up(volume, bundle, options)
    found = _estimate_run(volume, settings)
    if found is None or bundle.coarse is None or settings.body_in is None:
        return found
    first = estimate(volume, read_coarse(bundle), options.of_coarse_pass())
    return found if first is None else replace(found, seconds=found.seconds + first.seconds)


def _estimate_models(volume: Volume, bundle: Bundle, options: SegmentOptions) -> Estimate | None:
    """Return what several models cost that run one after another; None if that of one is unknown.

    A part of the scan that a task looks at is not known yet, so that its models are counted for all of it.
    """
    budget = default_budget() if options.memory_bytes is None else options.memory_bytes
    options = replace(options, memory_bytes=budget)  # one budget for all, whatever the first model uses
    total = Estimate(0, 0.0, 0, False)
    for image, model, own_options in _runs(volume, bundle, options):
        settings = set_up(image, model, own_options)
        if model.previous is not None:  # its labels, which are not known
            settings = replace(settings, previous=_empty(image))
        found = _estimate_run(image, settings)
        if found is None:
            return None
        total = Estimate(
            total.windows + found.windows,
            total.seconds + found.seconds,
            max(total.peak_bytes, found.peak_bytes),
            False,
            tuple(dict.fromkeys((*total.doubts, *found.doubts))),
        )
    if isinstance(bundle, EnsembleBundle):
        from napari_seg.inference.decide.average import memory_bytes

        sums = memory_bytes(bundle.out_channels, volume.grid, budget)
        total = replace(total, peak_bytes=total.peak_bytes + sums)
    return total


def _runs(volume: Volume, bundle: Bundle, options: SegmentOptions) -> Iterator[tuple[Volume, Bundle, SegmentOptions]]:
    """Yield the image, the model and the options of each run of a model."""
    if isinstance(bundle, TaskBundle):
        from napari_seg.inference.totalsegmentator.task import task_runs

        for image, model, own_options in task_runs(volume, bundle, options):
            yield from _runs(image, model, own_options)
    elif isinstance(bundle, EnsembleBundle):
        for member in bundle.members:
            yield from _runs(volume, member, options)
    else:
        if bundle.previous is not None:
            yield from _runs(volume, bundle.previous, replace(options, confidence_maps=False))
        yield volume, bundle, options


def _empty(volume: Volume) -> Segmentation:
    """Return an empty label map of a scan."""
    return Segmentation(np.zeros(volume.grid.shape, np.uint8), volume.grid, ())


def _estimate_run(volume: Volume, settings: RegionSettings) -> Estimate | None:
    """Return what the regions of a scan will cost, see `estimate`; a coarse pass is not counted.

    Args:
        volume: the scan.
        settings: from `set_up`.
    """
    import torch

    from napari_seg.inference.region import RegionTask
    from napari_seg.inference.seconds import labelling_seconds

    if settings.windows is None:
        return None
    bundle, voxels = settings.bundle, prod(volume.grid.shape)
    label_type = smallest_label_type(max((segment.label for segment in bundle.segments), default=1))
    promised = settings.promised_bytes(voxels, label_type)
    count, peak_bytes = 0, 0
    seconds = locating_seconds(volume, bundle) + labelling_seconds(0, voxels)
    compiled: set[tuple[int, ...]] = set()
    with torch.inference_mode():
        for grid, number in _estimated_regions(volume, bundle):
            task = RegionTask.prepare(volume, grid, settings, settings.windows, promised_bytes=promised)
            plan = task.plan()
            seconds += number * task.seconds(plan)
            if (shape := task.batch_shape(plan)) not in compiled:
                seconds += task.compiling_seconds(plan)
                compiled.add(shape)
            count += number * plan.window_count
            peak_bytes = max(peak_bytes, plan.peak_bytes)
    return Estimate(count, seconds, peak_bytes, not is_shown_whole(volume, bundle), tuple(settings.notices))


def _estimated_regions(volume: Volume, bundle: Bundle) -> list[tuple[Grid | None, int]]:
    """Return a grid for each size of region, and the number of regions of that size.

    The grids lie in the middle of the scan, because the place of the regions is not known before they are located.
    """
    spec = bundle.localiser
    if spec is None or is_shown_whole(volume, bundle):
        return [(None, 1)]
    sizes = Counter(region.size_mm for region in spec.regions)
    return [(Grid.around(volume.grid.center_mm, size, spec.spacing_mm), number) for size, number in sizes.items()]
