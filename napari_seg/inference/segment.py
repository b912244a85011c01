"""Segmentation of a scan: `segment`, which command line, plugin and Python call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.spec import Bundle, read_bundle, read_coarse
from napari_seg.bundles.ways import way_of
from napari_seg.errors import Notice
from napari_seg.geometry import Grid
from napari_seg.inference.as_written import segment_as_written
from napari_seg.inference.fitness import fitted
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.settings import RegionSettings, set_up
from napari_seg.localise import Region, localise
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import ConfidenceMaps, Segment, Segmentation, Volume, smallest_label_type

if TYPE_CHECKING:
    from napari_seg.inference.body import Body

log = logging.getLogger(__name__)


def segment(
    volume: Volume,
    bundle: Bundle | str | Path | None = None,
    options: SegmentOptions | None = None,
    *,
    progress: Progress | None = None,
    **changes: Any,
) -> Segmentation:
    """Return the structures that a bundle finds in a scan, on the scan's own grid.

    Args:
        volume: the scan, (C, I, J, K) on its grid; channels with names may have any order.
        bundle: the bundle, its folder or its name; None: the shipped one.
        options: how the scan is segmented; None: the defaults of `SegmentOptions`.
        progress: called at every iteration and every window with a stage ("loading", "locating", "segmenting"), what
            is done and the total.
        changes: single options, such as `device="cpu"`; they replace those of `options`.

    Returns:
        A label map of the smallest unsigned type, with a confidence for every segment that was found, the scan's
        notices and those on the result (`result.implausible`).

    Raises:
        InputError: `channels.*`, the names of the channels are not those of the bundle.
        BundleError: the bundle is unknown, untrusted, incomplete or made for other scans.
        LocaliseError: the bundle's regions were not found in the scan.
        EnvironmentFault: `environment.device`, there is no such device; `environment.memory`, the scan does not fit
            that memory; `environment.backend`, that backend is not installed or can't run the network;
            `environment.precision`, the device does not compute in it.
        Cancelled: `progress` raised it.
    """
    bundle = read_bundle(bundle)
    volume = fitted(volume, bundle)
    options = replace(options or SegmentOptions(), **changes)
    report = progress or ignore_progress
    if way_of(bundle).kind == "workflow":
        return segment_as_written(volume, bundle, options, report)
    settings = set_up(volume, bundle, options, report)
    regions, place_notices = localise(volume, bundle, progress)
    if bundle.coarse is not None and settings.body_in is not None:
        settings = replace(settings, body_in=_around_coarse_result(volume, settings, report))
    label_map, maps, confidence = _run_regions(volume, regions, settings, report)
    return _judged(volume, label_map, maps, confidence, regions, settings, place_notices)


def _around_coarse_result(
    volume: Volume, settings: RegionSettings, report: Progress
) -> Callable[[Grid], Body | None] | None:
    """Run the bundle's coarse pass, and return which part of an image it finds worth the network's time.

    Args:
        volume: the scan.
        settings: of the run; takes notices about this machine. If the coarse pass finds nothing, its own body stands.
        report: takes the progress as the stage "locating".
    """
    from napari_seg.inference.body import around

    def locating(stage: str, done: int, total: int) -> None:
        if stage == "segmenting":
            report("locating", done, total)

    assert settings.bundle.coarse is not None
    margin_mm = settings.bundle.coarse.margin_mm
    found = segment(volume, read_coarse(settings.bundle), settings.options.of_coarse_pass(), progress=locating)
    settings.notices.extend(notice for notice in found.notices if notice.code.startswith("environment."))
    if not found.array.any():
        return settings.body_in
    return lambda grid: around(found.array, found.grid, grid, margin_mm)


def _run_regions(
    volume: Volume, regions: list[Region], settings: RegionSettings, report: Progress
) -> tuple[NDArray[np.unsignedinteger], ConfidenceMaps | None, dict[int, float]]:
    """Return the label map of all regions, their confidence maps if required, and label -> mean confidence."""
    from napari_seg.inference.engine import segment_region

    shape = volume.grid.shape
    label_map = np.zeros(shape, dtype=smallest_label_type(max((s.label for s in _segments(regions)), default=1)))
    maps: ConfidenceMaps | None = None
    if settings.options.confidence_maps:
        maps = ConfidenceMaps(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
        if all(region.grid is None for region in regions):
            maps.confidence.fill(255)  # air is background beyond doubt
    confidence: dict[int, float] = {}
    finished = 0
    for number, region in enumerate(regions):
        count = 0

        def on_window(done: int, total: int, number: int = number, finished: int = finished) -> None:
            nonlocal count
            count = total
            # the remaining regions are assumed to have as many windows as this one
            report("segmenting", finished + done, finished + (len(regions) - number) * total)

        found = segment_region(
            volume, region, settings, label_map, on_window, maps, estimated_regions=0 if number else len(regions)
        )
        finished += count
        confidence |= {region.labels[n]: mean for n, mean in found.items() if n in region.labels}
    return label_map, maps, confidence


def _judged(
    volume: Volume,
    label_map: NDArray[np.unsignedinteger],
    maps: ConfidenceMaps | None,
    confidence: dict[int, float],
    regions: list[Region],
    settings: RegionSettings,
    place_notices: tuple[Notice, ...],
) -> Segmentation:
    """Return the result without islands, and with the notices on the scan, the run and the result."""
    from napari_seg.inference.plausibility import find_implausible, remove_islands

    segments = _segments(regions)
    islands = () if settings.options.keep_islands else remove_islands(label_map, volume.grid.voxel_ml, segments)
    counts = Segmentation(label_map, volume.grid, segments).voxel_counts()
    # on a coarse scan a structure can win voxels of the network's grid and none of the scan's
    confidence = {label: mean for label, mean in confidence.items() if counts[label] > 0}
    result = Segmentation(label_map, volume.grid, segments, confidence, confidence_maps=maps)
    notices = (
        *volume.notices,
        *place_notices,
        *settings.notices,
        *islands,
        *find_implausible(result, settings.bundle.min_confidence),
    )
    return replace(result, notices=notices)


def _segments(regions: list[Region]) -> tuple[Segment, ...]:
    """Return the segments of all regions, each label once, in ascending order."""
    by_label = {segment.label: segment for region in regions for segment in region.segments}
    return tuple(sorted(by_label.values(), key=lambda segment: segment.label))
