"""What a segmentation will take, told before it is run."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from napari_seg.bundles.spec import TTA, Bundle, read_coarse
from napari_seg.bundles.trust import check_runnable
from napari_seg.geometry import Grid
from napari_seg.localise import is_crop, locating_seconds
from napari_seg.volume import Volume, modality_code

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model
    from napari_seg.bundles.precision import Precision
    from napari_seg.inference.backends.base import BackendName
    from napari_seg.inference.region import Means
    from napari_seg.inference.windows.covering import Placement


@dataclass(frozen=True)
class Foresight:
    """What a segmentation will take.

    Attributes:
        windows: that the network will be asked about, in all regions.
        seconds: from the start to the labels, the model being loaded: finding regions, compiling, running, deciding.
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
    tta: TTA | None = None,
) -> Foresight | None:
    """What `segment` with the same arguments will take; None of a bundle whose inferer tells nothing of its windows.

    The network is loaded, as it will be anyway, and tried for no more than a few seconds; one that would take longer is
    judged by its operations and this machine's speed.

    Args:
        volume: the scan.
        bundle: which bundle.
        device: as for `segment`.
        backend: as for `segment`.
        precision: as for `segment`.
        memory_bytes: as for `segment`.
        windows: as for `segment`.
        crop: as for `segment`.
        tta: as for `segment`.

    Raises:
        NapariSegError: what `segment` would raise before its first window.
    """
    from napari_seg.bundles.load import load_model
    from napari_seg.inference.body import find_body
    from napari_seg.inference.plan import default_budget
    from napari_seg.inference.region import Means
    from napari_seg.inference.segment import check_fit, resolve_device

    check_runnable(bundle)
    check_fit(volume, bundle)
    device = resolve_device(device, precision)
    model = load_model(bundle, device, precision)
    modality = modality_code(volume.modality) or modality_code(bundle.modality)
    whole = crop and (bundle.localiser is None or is_crop(volume, bundle.localiser))
    body_in = (lambda grid: find_body(volume, grid, modality)) if whole else None
    budget_bytes = default_budget() if memory_bytes is None else memory_bytes
    means = Means(budget_bytes, backend, windows, body_in, tta or bundle.tta)
    known = foreseen(volume, bundle, model, means, may_try=True)
    if known is None or bundle.coarse is None or not whole:
        return known
    first = foresee(
        volume,
        read_coarse(bundle),
        device=device,
        backend=backend,
        precision=precision,
        memory_bytes=memory_bytes,
        windows=windows,
    )
    return known if first is None else _described(known.windows, known.seconds + first.seconds, known.peak_bytes, False)


def foreseen(
    volume: Volume, bundle: Bundle, model: Model, means: Means, *, may_try: bool | None = None
) -> Foresight | None:
    """As `foresee`, of a model that is loaded.

    Args:
        volume: the scan.
        bundle: which bundle.
        model: the bundle's.
        means: by which it will be run.
        may_try: whether the network may be tried; None: where that takes little beside the whole.

    Raises:
        NapariSegError: as `foresee`.
    """
    import torch

    from napari_seg.inference.backends.base import described, make_backend
    from napari_seg.inference.prepare import prepare
    from napari_seg.inference.region import RegionTask
    from napari_seg.inference.seconds import compiling_seconds, finishing_seconds

    settings = means.settings(bundle, model)
    if settings is None:
        return None
    regions: list[Grid | None] = [None]
    spec = bundle.localiser
    if spec is not None and not is_crop(volume, spec):  # where they lie is not known yet, but how large they are
        regions = [Grid.around(volume.grid.center_mm, r.size_mm, spec.spacing_mm) for r in spec.regions]
    count, peak_bytes = 0, 0
    seconds = locating_seconds(volume, bundle) + finishing_seconds(prod(volume.grid.shape))
    compiled: set[tuple[int, ...]] = set()
    with torch.inference_mode():
        for region in regions:
            image, grid = prepare(volume, region, bundle, model)
            promised = prod(volume.grid.shape)
            task = RegionTask.of(image, grid, volume.grid, bundle, model, settings, means, promised)
            del image
            plan = task.plan()
            shape = task.batch_shape(plan)
            backend = make_backend("torch", model, shape, plan.flop, plan.sums_bytes)
            seconds += task.seconds(plan, backend, may_try, plan.share is not None)
            if plan.share is not None:
                if (
                    shape not in compiled
                    and (described("OpenVINO", backend), shape) not in model.statistics.batch_seconds
                ):
                    seconds += compiling_seconds(task.batch_seconds(plan, backend, may_try))
                compiled.add(shape)
            count += plan.asked
            peak_bytes = max(peak_bytes, plan.peak_bytes)
    return _described(count, seconds, peak_bytes, regions[0] is not None)


def _described(count: int, seconds: float, peak_bytes: int, locates: bool) -> Foresight:
    from napari_seg.inference.plan import describe_bytes
    from napari_seg.inference.seconds import describe_seconds

    return Foresight(count, seconds, peak_bytes, locates, describe_seconds(seconds), describe_bytes(peak_bytes))
