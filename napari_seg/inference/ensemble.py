"""Segmentation of a scan by an ensemble: models whose probabilities are averaged on the scan's grid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.spec import EnsembleBundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.bundles.ways import way_of
from napari_seg.errors import Notice
from napari_seg.inference.fitness import check_fit
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.scan import one_of, ready, run_of
from napari_seg.inference.settings import RegionSettings
from napari_seg.localise import localise
from napari_seg.memory import default_budget
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import ConfidenceMaps, Segmentation, Volume, smallest_label_type

if TYPE_CHECKING:
    from napari_seg.inference.decide.average import ProbabilityAverage


def segment_ensemble(volume: Volume, bundle: EnsembleBundle, options: SegmentOptions, report: Progress) -> Segmentation:
    """Return the structures that several models find together in a scan, on the scan's own grid; see `segment`.

    Args:
        volume: the scan, with the channels of the bundle in their order.
        bundle: the models.
        options: how the scan is segmented.
        report: takes the progress over all models.
    """
    from napari_seg.inference.decide.average import ProbabilityAverage
    from napari_seg.inference.nnunet.largest import keep_largest
    from napari_seg.inference.nnunet.prepare import box_of_content
    from napari_seg.inference.plausibility import find_implausible

    check_fit(volume, bundle)
    if way_of(bundle).kind == "refused":
        check_runnable(bundle)  # says why
    shape, segments = volume.grid.shape, bundle.segments
    label_map = np.zeros(shape, smallest_label_type(max((segment.label for segment in segments), default=1)))
    maps: ConfidenceMaps | None = None
    if options.confidence_maps:  # where no model looks is background beyond doubt
        maps = ConfidenceMaps(np.full(shape, 255, np.uint8), np.zeros(shape, np.uint8))
    budget = default_budget() if options.memory_bytes is None else options.memory_bytes
    options = replace(options, memory_bytes=budget)  # one budget for all, whatever the first model uses
    start, stop = (0, 0, 0), shape
    if isinstance(bundle.members[0], NnunetBundle):  # nnU-Net leaves out empty borders
        start, stop = box_of_content(volume.array)
    notices: list[Notice] = []
    runs: dict[str, Any] = {}
    with ProbabilityAverage(volume.grid, start, stop, bundle.out_channels, bundle.output, budget) as average:
        for number, member in enumerate(bundle.members):
            settings, step = ready(volume, member, options, one_of(report, number, len(bundle.members)))
            add_probabilities(volume, settings, average, label_map, step, len(bundle.members) - number)
            notices += settings.notices
            runs[member.root.name] = run_of(settings)
        labels = {segment.label: segment.label for segment in segments}
        confidence = average.decide(label_map, labels, maps)
    result = Segmentation(label_map, volume.grid, segments, confidence_maps=maps, run={"members": runs})
    counts = result.voxel_counts()
    result = replace(result, confidence={label: mean for label, mean in confidence.items() if counts.get(label)})
    if bundle.largest:
        result = keep_largest(result, [(label,) for label in bundle.largest])
    found = (*volume.notices, *notices, *result.notices, *find_implausible(result, bundle.min_confidence))
    return replace(result, notices=tuple(dict.fromkeys(found)))


def add_probabilities(
    volume: Volume,
    settings: RegionSettings,
    average: ProbabilityAverage,
    label_map: NDArray[np.unsignedinteger],
    report: Progress = ignore_progress,
    estimated_models: int = 0,
) -> None:
    """Add the probabilities of a model for a scan to an average.

    Args:
        volume: the scan.
        settings: how the model is run; takes notices.
        average: sums of probabilities on the scan's grid.
        label_map: (I, J, K), into which the labels will be decided; only its memory counts here.
        report: takes the progress.
        estimated_models: number of models, all like this one, in the total time that is logged; 0 logs no total.
    """
    from napari_seg.inference.engine import segment_region

    settings = replace(settings, takes_values=average.of_region)
    (region,), _ = localise(volume, settings.bundle, report)

    def on_window(done: int, total: int) -> None:
        report("segmenting", done, total)

    segment_region(volume, region, settings, label_map, on_window, estimated_regions=estimated_models)
