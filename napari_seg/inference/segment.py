"""Segmentation of a scan: `segment`, which command line, plugin and Python call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.ways import way_of
from napari_seg.inference.as_written import segment_as_written
from napari_seg.inference.fitness import fitted
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.scan import segment_scan
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import Segmentation, Volume


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
    return segment_scan(volume, bundle, options, report)
