"""Segmentation of a scan by one model: all its regions, and the notices on the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.read import read_coarse
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import Notice
from napari_seg.geometry import Grid
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.settings import RegionSettings, set_up
from napari_seg.localise import Region, localise
from napari_seg.progress import Progress
from napari_seg.volume import ConfidenceMaps, Segment, Segmentation, Volume, smallest_label_type

if TYPE_CHECKING:
    from napari_seg.inference.body import Body


def segment_scan(volume: Volume, bundle: Bundle, options: SegmentOptions, report: Progress) -> Segmentation:
    """Return the structures that one model finds in a scan, on the scan's own grid; see `segment`.

    Args:
        volume: the scan, with the channels of the bundle in their order.
        bundle: a bundle that the engine runs.
        options: how the scan is segmented.
        report: takes the progress.
    """
    settings, regions, place_notices, report = located(volume, bundle, options, report)
    label_map, maps, confidence = run_regions(volume, regions, settings, report)
    return _judged(volume, label_map, maps, confidence, regions, settings, place_notices)


def located(
    volume: Volume, bundle: Bundle, options: SegmentOptions, report: Progress
) -> tuple[RegionSettings, list[Region], tuple[Notice, ...], Progress]:
    """Return the settings of a run, its regions with notices on their place, and what takes its progress."""
    settings, report = ready(volume, bundle, options, report)
    regions, notices = localise(volume, bundle, report)
    if bundle.coarse is not None and settings.body_in is not None:
        settings = replace(settings, body_in=_around_coarse_result(volume, settings, report))
    return settings, regions, notices, report


def ready(volume: Volume, bundle: Bundle, options: SegmentOptions, report: Progress) -> tuple[RegionSettings, Progress]:
    """Return the settings of a run and what takes its progress; the previous stage of a cascade runs first."""
    if bundle.previous is None:
        return set_up(volume, bundle, options, report), report
    previous = segment_scan(volume, bundle.previous, replace(options, confidence_maps=False), one_of(report, 0, 2))
    report = one_of(report, 1, 2)
    return replace(set_up(volume, bundle, options, report), previous=previous), report


def one_of(report: Progress, number: int, count: int) -> Progress:
    """Return the progress of one of several runs, which are assumed to have as many windows each."""

    def on_step(stage: str, done: int, total: int) -> None:
        if stage == "segmenting":
            report(stage, number * total + done, count * total)
        else:
            report(stage, done, total)

    return on_step


def locating(report: Progress) -> Progress:
    """Return the progress of a run that only finds where to look: its windows are reported as "locating"."""

    def on_step(stage: str, done: int, total: int) -> None:
        if stage == "segmenting":
            report("locating", done, total)

    return on_step


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

    assert settings.bundle.coarse is not None
    margin_mm = settings.bundle.coarse.margin_mm
    found = segment_scan(volume, read_coarse(settings.bundle), settings.options.of_coarse_pass(), locating(report))
    settings.notices.extend(notice for notice in found.notices if notice.code.startswith("environment."))
    if not found.array.any():
        return settings.body_in
    return lambda grid: around(found.array, found.grid, grid, margin_mm)


def run_regions(
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
    result = Segmentation(label_map, volume.grid, segments, confidence, confidence_maps=maps, run=run_of(settings))
    notices = (
        *volume.notices,
        *place_notices,
        *settings.notices,
        *islands,
        *find_implausible(result, settings.bundle.min_confidence),
    )
    return replace(result, notices=notices)


def run_of(settings: RegionSettings) -> dict[str, Any]:
    """Return how the model was run, with the digests of its weights if it is one of nnU-Net."""
    run = {"match": settings.options.match, **settings.run}
    if isinstance(settings.bundle, NnunetBundle):
        run["weights"] = dict(settings.model.weights_sha256)
    if settings.previous is not None:
        run["previous"] = dict(settings.previous.run)
    return run


def _segments(regions: list[Region]) -> tuple[Segment, ...]:
    """Return the segments of all regions, each label once, in ascending order."""
    by_label = {segment.label: segment for region in regions for segment in region.segments}
    return tuple(sorted(by_label.values(), key=lambda segment: segment.label))
