"""Segmentation of a scan: `segment`, which command line, plugin and Python call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.nnunet.postprocessing import read_postprocessing
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.ways import way_of
from napari_seg.errors import Notice
from napari_seg.formats.label_maps import label_map_doubts
from napari_seg.inference.as_written import segment_as_written
from napari_seg.inference.ensemble import segment_ensemble
from napari_seg.inference.fitness import fitted, fitted_options
from napari_seg.inference.nnunet.largest import keep_largest
from napari_seg.inference.not_finite import Float16Overflow
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
        BundleError: `bundle.structures`, it has no structure of a required name; `bundle.no_postprocessing`, it has no
            such steps of nnU-Net; or the bundle is unknown, untrusted,
            incomplete or made for other scans.
        LocaliseError: the bundle's regions were not found in the scan.
        EnvironmentFault: `environment.device`, there is no such device; `environment.memory`, the scan does not fit
            that memory; `environment.backend`, that backend is not installed or can't run the network;
            `environment.precision`, the device does not compute in it.
        Cancelled: `progress` raised it.
    """
    bundle = read_bundle(bundle)
    volume = fitted(volume, bundle)
    volume = replace(volume, notices=(*volume.notices, *label_map_doubts(volume)))
    options = fitted_options(replace(options or SegmentOptions(), **changes), bundle)
    report = progress or ignore_progress
    steps = read_postprocessing(bundle) if options.postprocess else ()
    found = _found(volume, bundle, options, report)
    if isinstance(bundle, TaskBundle):
        return found
    return _only(keep_largest(found, steps) if steps else found, options.structures)


def _found(volume: Volume, bundle: Bundle, options: SegmentOptions, report: Progress) -> Segmentation:
    """Return what a bundle finds, in float32 if float16 can't hold its values."""
    run: Callable[..., Segmentation]
    if isinstance(bundle, TaskBundle):
        from napari_seg.inference.totalsegmentator.task import segment_task as run
    elif isinstance(bundle, EnsembleBundle):
        run = segment_ensemble
    else:
        run = segment_as_written if way_of(bundle).kind == "workflow" else segment_scan
    with suppress(Float16Overflow):
        return run(volume, bundle, options, report)
    found = run(volume, bundle, replace(options, precision="float32"), report)
    text = "the scan was segmented again in float32, because float16 can't hold the network's values; choose "
    notice = Notice("environment.overflow", f"{text}--precision float32, which saves the first attempt")
    return replace(found, notices=(*found.notices, notice))


def _only(found: Segmentation, names: Sequence[str]) -> Segmentation:
    """Return a result with some of its structures only; all if no names are given."""
    if not names:
        return found
    segments = tuple(segment for segment in found.segments if segment.name in names)
    if found.segments and not segments:  # on a crop the model does not tell left from right
        has = ", ".join(segment.name for segment in found.segments)
        text = f"on this scan the model names {has}; found none of the required {', '.join(names)}; the result is empty"
        found = replace(found, notices=(*found.notices, Notice("result.structures", text)))
    labels = [segment.label for segment in segments]
    array = found.array.copy()
    for plane in array:
        plane[~np.isin(plane, labels)] = 0
    confidence = {label: mean for label, mean in found.confidence.items() if label in labels}
    return replace(found, array=array, segments=segments, confidence=confidence)
