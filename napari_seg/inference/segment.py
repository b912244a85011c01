"""`segment`: what the command line, the plugin and Python all call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from napari_seg.bundles.spec import TTA, Bundle, read_bundle, read_coarse
from napari_seg.bundles.trust import check_runnable
from napari_seg.errors import BundleError, EnvironmentFault, Notice
from napari_seg.geometry import Grid
from napari_seg.localise import Progress, is_crop, localise
from napari_seg.volume import Certainty, Segment, Segmentation, Volume, modality_code, smallest_label_type

if TYPE_CHECKING:
    from napari_seg.bundles.precision import Precision
    from napari_seg.inference.backends.base import BackendName
    from napari_seg.inference.body import Body
    from napari_seg.inference.windows.covering import Placement


log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """How a scan is segmented; see `segment`."""

    device: str
    backend: BackendName
    precision: Precision
    memory_bytes: int | None
    windows: Placement
    crop: bool
    certainty: bool
    tta: TTA | None
    keep_islands: bool


def segment(
    volume: Volume,
    bundle: Bundle | str | Path | None = None,
    *,
    device: str = "auto",
    backend: BackendName = "auto",
    precision: Precision = "auto",
    memory_bytes: int | None = None,
    windows: Placement = "fewest",
    crop: bool = True,
    certainty: bool = False,
    tta: TTA | None = None,
    keep_islands: bool = False,
    progress: Progress | None = None,
) -> Segmentation:
    """The structures that a bundle finds in a scan, on the scan's own grid.

    Args:
        volume: the scan, (C, I, J, K) on its grid.
        bundle: which bundle; None: the shipped one.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:<n>".
        backend: what runs the network; "auto": OpenVINO on the CPU where it is installed and worth its start, else
            torch.
        precision: what the network computes in; "auto": float16 on a GPU, by torch's autocast, and float32 on a
            processor. "bfloat16" takes about half the time, and half of the network's memory, on processors that have
            it.
        memory_bytes: what this process may hold at most, in all; None: what it holds and four fifths of what is free.
        windows: "fewest" lays as few as cover the scan, evenly and up to half as long again; "even" lays windows of the
            bundle's size evenly, as nnU-Net does; "bundle" lays them exactly as MONAI does.
        crop: leave out what lies outside the body, where a CT or MR scan shows it, and what a bundle's coarse pass
            leaves out.
        tta: test-time averaging, "shifts", "mirror" or "none"; None: the bundle's own choice.
        keep_islands: keep what lies apart from the main piece of a segment that the bundle declares to be in one piece.
        certainty: give the winner's probability and the entropy of every voxel too.
        progress: called with a stage ("locating", "loading", "segmenting"), what is done and the total; at every
            iteration and every window.

    Returns:
        A label map of the smallest unsigned type, with a confidence for every segment that was found, the
        scan's notices and those on the result (`result.implausible`).

    Raises:
        BundleError: the bundle is unknown, untrusted, incomplete or made for other scans.
        LocaliseError: the bundle's regions were not found in the scan.
        EnvironmentFault: `environment.device`, there is no such device; `environment.memory`, it can't be done within
            that memory; `environment.backend`, that backend is not installed or can't run the network;
            `environment.precision`, the device does not compute in it.
        Cancelled: `progress` raised it.
    """
    bundle = read_bundle(bundle)
    check_runnable(bundle)
    check_fit(volume, bundle)
    device = resolve_device(device, precision)
    report = progress or _silent
    began = time.perf_counter()
    report("loading", 0, 1)
    from napari_seg.bundles.load import load_model
    from napari_seg.inference.engine import segment_region
    from napari_seg.inference.estimate import foreseen
    from napari_seg.inference.plan import default_budget
    from napari_seg.inference.region import Means
    from napari_seg.inference.seconds import describe_seconds

    model = load_model(bundle, device, precision)
    report("loading", 1, 1)
    budget_bytes = default_budget() if memory_bytes is None else memory_bytes
    means = Means(budget_bytes, backend, windows, tta=tta or bundle.tta, began=began)
    means.settings(bundle, model)  # refuses what the network can't do
    if bundle.localiser is not None and not is_crop(volume, bundle.localiser):
        known = foreseen(volume, bundle, model, means)
        if known is not None:
            spent = time.perf_counter() - began
            log.info("about %s in all, finding the place included", describe_seconds(spent + known.seconds))
    regions, place_notices = localise(volume, bundle, progress)

    segments = _merged(tuple(s for region in regions for s in region.segments))
    label_map = np.zeros(volume.grid.shape, dtype=smallest_label_type(max((s.label for s in segments), default=1)))
    shape = volume.grid.shape
    sure = Certainty(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)) if certainty else None
    whole = all(region.grid is None for region in regions)
    if sure is not None and whole:
        sure.confidence.fill(255)  # air is background beyond doubt
    if crop and whole:
        options = Options(
            device=device, backend=backend, precision=precision, memory_bytes=memory_bytes, windows=windows
        )
        means = replace(means, body_in=_body(volume, bundle, options, report, means.notices))
    confidence: dict[int, float] = {}
    finished = 0
    for number, region in enumerate(regions):
        asked = 0

        def on_window(done: int, total: int, number: int = number, finished: int = finished) -> None:
            nonlocal asked
            asked = total
            # the regions to come are taken to be like this one
            report("segmenting", finished + done, finished + (len(regions) - number) * total)

        found = segment_region(volume, region, bundle, model, label_map, on_window, means, sure)
        finished += asked
        confidence |= {region.labels[c]: mean for c, mean in found.items() if c in region.labels}

    from napari_seg.inference.plausibility import doubts, remove_islands

    islands = () if keep_islands else remove_islands(label_map, volume.grid.voxel_ml, segments)
    counts = Segmentation(label_map, volume.grid, segments).voxel_counts()
    # on a coarse scan a structure can win voxels of the network's grid and none of the scan's
    confidence = {label: mean for label, mean in confidence.items() if counts[label] > 0}
    result = Segmentation(label_map, volume.grid, segments, confidence, certainty=sure)
    notices = (
        *volume.notices,
        *place_notices,
        *means.notices,
        *islands,
        *doubts(result, bundle.min_confidence, segments),
    )
    return replace(result, notices=notices)


def _body(
    volume: Volume, bundle: Bundle, options: Options, report: Progress, notices: list[Notice]
) -> Callable[[Grid], Body | None]:
    """Return what says of an image on a grid what is worth a look: around what a coarse pass found, else the body.

    Args:
        volume: the scan.
        bundle: which bundle.
        options: of the coarse pass.
        report: takes the progress of it.
        notices: takes what a person should hear of how it was run.
    """
    from napari_seg.inference.body import around, find_body

    modality = modality_code(volume.modality) or modality_code(bundle.modality)
    if bundle.coarse is not None:

        def locating(stage: str, done: int, total: int) -> None:
            if stage == "segmenting":
                report("locating", done, total)

        found, margin_mm = segment(volume, read_coarse(bundle), progress=locating, **options), bundle.coarse.margin_mm
        notices.extend(notice for notice in found.notices if notice.code.startswith("environment."))
        if found.array.any():
            return lambda grid: around(found.array, found.grid, grid, margin_mm)
    return lambda grid: find_body(volume, grid, modality)


def check_fit(volume: Volume, bundle: Bundle) -> None:
    """Whether a bundle was made for scans like this one.

    Raises:
        BundleError: `bundle.channels` or `bundle.modality`, it was not.
    """
    channels = volume.array.shape[0]
    if channels != bundle.in_channels:
        raise BundleError(
            "bundle.channels",
            f"the scan has {channels} channel(s); bundle {bundle.name!r} expects {bundle.in_channels}",
        )
    found, wanted = (modality_code(name) for name in (volume.modality, bundle.modality))
    if found and wanted and found != wanted:
        raise BundleError(
            "bundle.modality",
            f"the scan is {volume.modality}; bundle {bundle.name!r} was trained on {bundle.modality}; choose another "
            "scan or another bundle ('napari-seg bundles' lists them)",
        )


def resolve_device(device: str, precision: Precision = "auto") -> str:
    """torch's name of a device that is here and computes so; "auto" becomes "cuda" or "cpu".

    Raises:
        EnvironmentFault: `environment.device`, there is no such device; `environment.precision`, it does not compute
            in that precision.
    """
    import torch

    from napari_seg.bundles.precision import compute_dtype

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise EnvironmentFault("environment.device", f"unknown device {device!r}; expected 'auto', 'cpu' or 'cuda'")
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise EnvironmentFault(
            "environment.device", f"there is no device {device!r} here; expected 'auto' or 'cpu' on this machine"
        )
    compute_dtype(precision, torch.device(device))
    return device


def _merged(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return tuple(sorted({s.label: s for s in segments}.values(), key=lambda s: s.label))


def _silent(stage: str, done: int, total: int) -> None:
    pass
