"""What a segmentation will take, told before it is run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from napari_seg.bundle import Bundle, check_runnable
from napari_seg.geometry import Grid
from napari_seg.inference.segment import check_fit, resolve_device
from napari_seg.localise import is_crop
from napari_seg.volume import Volume, modality_code

if TYPE_CHECKING:
    from napari_seg.inference.backends import BackendName, Precision
    from napari_seg.inference.covering import Placement

COMPILED_TIME = 0.6
"""Of torch's seconds, what a network takes once OpenVINO has compiled it: 7.3 of 12.3 s for nnU-Net's standard network
on two AVX2 cores."""


@dataclass(frozen=True)
class Foresight:
    """What a segmentation will take.

    Attributes:
        windows: that the network will be asked about, in all regions.
        seconds: that these will take; finding regions comes on top.
        peak_bytes: that this process will hold at most.
        locates: whether regions must be found in the scan first.
        time: the seconds in words.
        memory: the bytes in words.
    """

    windows: int
    seconds: float
    peak_bytes: int
    locates: bool
    time: str
    memory: str


def foresee(
    volume: Volume,
    bundle: Bundle,
    *,
    device: str = "auto",
    backend: BackendName = "auto",
    precision: Precision = "auto",
    memory_bytes: int | None = None,
    windows: Placement = "fewest",
    crop: bool = True,
) -> Foresight | None:
    """What `segment` with the same arguments will take; None of a bundle whose inferer tells nothing of its windows.

    The network is loaded, as it will be anyway, and at most tried: a processor on a small window, a GPU on a batch. A
    coarse pass is not run, so a bundle that has one takes less.

    Args:
        volume: the scan.
        bundle: which bundle.
        device: as for `segment`.
        backend: as for `segment`.
        precision: as for `segment`.
        memory_bytes: as for `segment`.
        windows: as for `segment`.
        crop: as for `segment`.

    Raises:
        NapariSegError: what `segment` would raise before its first window.
    """
    import torch

    from napari_seg.inference.backends import make_backend
    from napari_seg.inference.body import find_body
    from napari_seg.inference.budget import default_budget, describe_bytes
    from napari_seg.inference.model import load_model
    from napari_seg.inference.prepare import prepare
    from napari_seg.inference.speed import describe_seconds
    from napari_seg.inference.task import Means, RegionTask
    from napari_seg.inference.windows import WindowSettings

    check_runnable(bundle)
    check_fit(volume, bundle)
    model = load_model(bundle, resolve_device(device), precision)
    settings = WindowSettings.of(model.inferer)
    if settings is None:
        return None
    regions: list[Grid | None] = [None]
    spec = bundle.localiser
    if spec is not None and not is_crop(volume, spec):  # where they lie is not known yet, but how large they are
        regions = [Grid.around(volume.grid.center_mm, r.size_mm, spec.spacing_mm) for r in spec.regions]
    budget_bytes = default_budget() if memory_bytes is None else memory_bytes
    modality = modality_code(volume.modality) or modality_code(bundle.modality)
    body_in = (lambda grid: find_body(volume, grid, modality)) if crop and regions == [None] else None
    means = Means(budget_bytes, backend, windows, body_in)
    count, seconds, peak_bytes = 0, 0.0, 0
    with torch.inference_mode():
        for region in regions:
            image, grid = prepare(volume, region, bundle, model)
            promised = prod(volume.grid.shape)
            task = RegionTask.of(image, grid, volume.grid, bundle, model, settings, means, promised)
            del image
            plan = task.plan()
            one = make_backend("torch", model, task.batch_shape(plan), plan.flop, plan.sums_bytes)
            seconds += task.seconds(plan, one) * (1 if plan.share is None else COMPILED_TIME)
            count += plan.asked
            peak_bytes = max(peak_bytes, plan.peak_bytes)
            if plan.share is not None:
                model.let_go()  # OpenVINO will run it
    words = describe_seconds(seconds), describe_bytes(peak_bytes)
    return Foresight(count, seconds, peak_bytes, regions[0] is not None, *words)
