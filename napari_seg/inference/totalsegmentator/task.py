"""Segmentation of a scan by a task of TotalSegmentator: several models on one grid, whose labels become one map.

The chain for each scan is: find the part to look at with a coarser task (`_locate`), bring that part to the grid of the
models once for all of them (`TaskGrid`), run each model and merge its labels, correct the label map on that grid
(`steps`), and give each voxel of the scan the nearest label. The order, the voxel sizes and the rounding are those of
TotalSegmentator 2.18 on a processor. Unlike it, a large scan is not cut into three parts, because the engine needs no
more memory for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.totalsegmentator.read import read_task
from napari_seg.bundles.totalsegmentator.task import ImprovedPart, Part, RoughCrop, TaskBundle
from napari_seg.errors import Notice
from napari_seg.inference.fitness import check_fit, task_doubts, whole_number_doubts
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.plausibility import find_implausible
from napari_seg.inference.scan import locating, segment_scan
from napari_seg.inference.totalsegmentator import steps
from napari_seg.inference.totalsegmentator.task_grid import Box, TaskGrid, box_around, header_spacing
from napari_seg.memory import check_fits, limited_to, resident_bytes
from napari_seg.progress import Progress
from napari_seg.volume import ConfidenceMaps, Segment, Segmentation, Volume, smallest_label_type

log = logging.getLogger(__name__)

RunPart = Callable[[Volume, NnunetBundle, SegmentOptions, Progress], Segmentation]
"""Function that segments an image by one model, as `segment_scan` does."""


def segment_task(
    volume: Volume, bundle: TaskBundle, options: SegmentOptions, report: Progress, run_part: RunPart = segment_scan
) -> Segmentation:
    """Return the structures that a task finds in a scan, on the scan's own grid.

    Args:
        volume: the scan, of one channel.
        bundle: the task.
        options: how the scan is segmented.
        report: takes the progress over all models.
        run_part: runs one model.

    Raises:
        BundleError: the task was made for other scans; `bundle.intensities`, see `whole_number_doubts`;
            `bundle.unknown`, the weights of the coarser task are missing.
        EnvironmentFault: `environment.memory`, the image that the models are shown does not fit.
    """
    check_fit(volume, bundle)
    scan_notices = [*volume.notices, *task_doubts(volume, bundle, bundle.task.spacing_mm)]
    segments = _required(bundle, options)
    label_type = smallest_label_type(max((segment.label for segment in bundle.segments), default=1))
    located = _locate(volume, bundle, options, report, run_part)
    if located is not None and located.box is None:
        text = f"no {_listed(located.structures)} found in the scan, where {bundle.name!r} looks; the result is empty"
        maps = _no_confidence(volume.grid.shape) if options.confidence_maps else None
        labels = np.zeros(volume.grid.shape, label_type)
        empty = Segmentation(labels, volume.grid, segments, confidence_maps=maps)
        return replace(
            empty, run=located.run, notices=(*scan_notices, *located.notices, Notice("result.nowhere", text))
        )
    task_grid = TaskGrid.of(volume.grid, bundle.task.spacing_mm, None if located is None else located.box)
    if task_grid.truncates:
        scan_notices += whole_number_doubts(volume, bundle)
    image = _image(volume, task_grid, bundle, options)
    merged = _run_parts(image, bundle, segments, options, report, run_part, label_type)
    labels = _corrected(merged, bundle, task_grid, located)
    del image
    kept = {segment.label for segment in segments}
    steps.remove_labels(labels, sorted({segment.label for segment in bundle.segments} - kept))
    maps = None
    if merged.maps is not None:
        of_scan = (task_grid.back(one) for one in (merged.maps.confidence, merged.maps.entropy))
        maps = ConfidenceMaps(*of_scan)
    result = Segmentation(labels, volume.grid, segments, confidence_maps=maps)
    counts = result.voxel_counts()
    confidence = {label: mean for label, mean in merged.confidence.items() if counts.get(label)}
    notices = [*scan_notices, *(() if located is None else located.notices), *merged.notices]
    notices += find_implausible(result, min_confidence=0)
    run = {"parts": merged.run} | ({} if located is None else located.run)
    return replace(result, confidence=confidence, notices=tuple(dict.fromkeys(notices)), run=run)


def task_runs(
    volume: Volume, bundle: TaskBundle, options: SegmentOptions
) -> Iterator[tuple[Volume, NnunetBundle, SegmentOptions]]:
    """Yield the image, the model and the options of each run of a model, for an estimate before anything runs.

    Where the task looks is not known yet, so that the images are those of the whole scan.

    Args:
        volume: the scan.
        bundle: the task.
        options: how the scan is segmented.
    """
    crop, rough = _rough(bundle, options)
    if crop is not None and rough is not None:
        yield from task_runs(volume, rough, _of_rough(options))
    task_grid = TaskGrid.of(volume.grid, bundle.task.spacing_mm)
    image = _image(volume, task_grid, bundle, options)
    for _, model in _needed(bundle, _required(bundle, options)):
        yield image, model, _of_part(options)


def _image(volume: Volume, task_grid: TaskGrid, bundle: TaskBundle, options: SegmentOptions) -> Volume:
    """Return the image that the models are shown.

    Raises:
        EnvironmentFault: `environment.memory`, it does not fit.
    """
    budget = options.memory_bytes
    with limited_to(None if budget is None else budget - resident_bytes()):
        needed = task_grid.image_bytes(volume.array.dtype)
        check_fits(needed, f"bringing this scan to the voxel size of {bundle.name!r}")
    return Volume(task_grid.image(volume.array[0])[None], task_grid.grid, volume.name, volume.modality)


@dataclass(frozen=True, eq=False)
class _Located:
    """Result of a coarser task.

    Attributes:
        structures: names of the structures that were looked for.
        box: part of the scan around them; None: none of them was found.
        found: its label map.
        notices: on this machine.
    """

    structures: tuple[str, ...]
    box: Box | None
    found: Segmentation
    notices: tuple[Notice, ...]

    @property
    def run(self) -> dict[str, Any]:
        """How the coarser task was run, and the first and last voxel of the part that it found."""
        box = self.box and [[part.start, part.stop - 1] for part in self.box]
        return {"crop": {"structures": list(self.structures), "voxels": box, **self.found.run}}


def _locate(
    volume: Volume, bundle: TaskBundle, options: SegmentOptions, report: Progress, run_part: RunPart
) -> _Located | None:
    """Return the part of the scan that a task looks at; None if that is all of it."""
    crop, rough = _rough(bundle, options)
    if crop is None or rough is None:
        return None
    log.info("%s: looking for %s first, by %s", bundle.name, _listed(crop.structures), rough.name)

    found = segment_task(volume, rough, _of_rough(options), locating(report), run_part)
    mask = _mask(found, crop.structures)
    notices = tuple(notice for notice in found.notices if notice.code.startswith("environment."))
    return _Located(crop.structures, box_around(mask, volume.grid, crop.margin_mm), found, notices)


def _rough(bundle: TaskBundle, options: SegmentOptions) -> tuple[RoughCrop | None, TaskBundle | None]:
    """Return where a task looks and the task that finds it; None for the whole scan."""
    names = options.structures
    if bundle.task.crop is not None or not (names and bundle.task.subset_task):
        return bundle.task.crop, bundle.crop
    rough = _subset_bundle(bundle)
    if not {segment.name for segment in rough.segments}.issuperset(names):
        return None, None
    return RoughCrop(bundle.task.subset_task, names), rough


def _subset_bundle(bundle: TaskBundle) -> TaskBundle:
    """Return the task that finds the required structures roughly."""
    if bundle.task.subset_task == bundle.task.name:
        return replace(bundle, task=replace(bundle.task, subset_task=""))
    return read_task(bundle.task.subset_task, trust=bundle.trusted)


def _of_rough(options: SegmentOptions) -> SegmentOptions:
    """Return the options of the coarser task."""
    return replace(options, confidence_maps=False, structures=())


@dataclass(frozen=True, eq=False)
class _Merged:
    """Labels of all models of a task on their grid.

    Attributes:
        labels: label map.
        masks: label maps of the models that are not merged, in their order.
        confidence: label -> mean probability.
        notices: on the run.
        run: how the models were run, by the name of their data set.
        maps: confidence of the model that gave the label, or of the most doubtful one where none gave a label; None if
            they were not required.
    """

    labels: NDArray[np.unsignedinteger]
    masks: tuple[NDArray[np.bool_], ...]
    confidence: dict[int, float]
    notices: tuple[Notice, ...]
    run: dict[str, Any]
    maps: ConfidenceMaps | None = None


def _run_parts(
    image: Volume,
    bundle: TaskBundle,
    segments: tuple[Segment, ...],
    options: SegmentOptions,
    report: Progress,
    run_part: RunPart,
    label_type: np.dtype,
) -> _Merged:
    """Run the models that can find one of the required structures, and merge their labels; later ones overwrite."""
    parts = _needed(bundle, segments)
    labels = np.zeros(image.grid.shape, label_type)
    masks: list[NDArray[np.bool_]] = []
    confidence: dict[int, float] = {}
    notices: list[Notice] = []
    maps: ConfidenceMaps | None = None
    if options.confidence_maps:
        maps = ConfidenceMaps(np.full(labels.shape, 255, np.uint8), np.zeros(labels.shape, np.uint8))
    runs: dict[str, Any] = {}
    windows = 0
    for number, (part, model) in enumerate(parts):

        def on_step(stage: str, done: int, total: int, number: int = number) -> None:
            nonlocal windows
            if stage != "segmenting" and not number:
                report(stage, done, total)
                return
            if stage == "segmenting":
                windows = total
            # the other parts are assumed to have as many windows as this one; their loading is no stage of its own
            report("segmenting", number * windows + done * (stage == "segmenting"), len(parts) * windows)

        log.info("%s: part %d of %d, %s", bundle.name, number + 1, len(parts), model.name)
        found = run_part(image, model, _of_part(options), on_step)
        made_by = {"improved": f"{model.name} {model.version}".strip()} if isinstance(model, ImprovedPart) else {}
        runs[model.data_set] = {**found.run, **made_by}
        notices += [notice for notice in found.notices if not notice.code.startswith(("fitness.", "result."))]
        if not part.labels:
            masks.append(found.array == 1)
            continue
        table = _table(part, int(found.array.max(initial=0)), label_type)
        for into, plane in zip(labels, found.array, strict=True):
            mapped = table[plane]
            np.copyto(into, mapped, where=mapped != 0)
        if maps is not None and found.confidence_maps is not None:
            _merge_maps(maps, found.confidence_maps, labels, table[found.array] != 0)
        confidence |= {int(table[n]): mean for n, mean in found.confidence.items() if n < len(table) and table[n]}
    return _Merged(labels, tuple(masks), confidence, tuple(notices), runs, maps)


def _needed(bundle: TaskBundle, segments: Sequence[Segment]) -> list[tuple[Part, NnunetBundle]]:
    """Return the models that can find one of some segments, and those that help a step.

    They take one slice: in the task's voxel size a thin scan, which passed `check_fit`, may have no more.
    """
    wanted = {segment.label for segment in segments}
    return [
        (part, replace(model, overlap=bundle.task.overlap, takes_one_slice=True))
        for part, model in zip(bundle.task.parts, bundle.parts, strict=True)
        if not part.labels or wanted.intersection(label for _, label in part.labels)
    ]


def _merge_maps(
    maps: ConfidenceMaps, found: ConfidenceMaps, labels: NDArray[np.unsignedinteger], is_labelled: NDArray[np.bool_]
) -> None:
    """Take the confidence of a model over, where it gave a label, or where it is the most doubtful one of no label."""
    for own, other, worse in (
        (maps.confidence, found.confidence, np.minimum),
        (maps.entropy, found.entropy, np.maximum),
    ):
        np.copyto(own, other, where=is_labelled)
        worse(own, other, out=own, where=labels == 0)


def _of_part(options: SegmentOptions) -> SegmentOptions:
    """Return the options of one model: TotalSegmentator never averages mirror images."""
    return replace(options, tta=options.tta or "none", structures=())


def _table(part: Part, highest: int, label_type: np.dtype) -> NDArray[np.unsignedinteger]:
    """Return the label in the task's result for each label of a model up to the highest; 0 for unknown ones."""
    table = np.zeros(max(highest, *(own for own, _ in part.labels)) + 1, label_type)
    for own, label in part.labels:
        table[own] = label
    return table


def _corrected(
    merged: _Merged, bundle: TaskBundle, task_grid: TaskGrid, located: _Located | None
) -> NDArray[np.unsignedinteger]:
    """Return the label map of the scan, after the steps on the models' grid and those on the scan's."""
    task, labels = bundle.task, merged.labels
    by_name = {segment.name: segment.label for segment in bundle.segments}
    spacing_mm, own_mm = header_spacing(task_grid.grid.affine), header_spacing(task_grid.scan_grid.affine)
    steps.remove_labels(labels, task.auxiliary)
    if task.body:
        steps.clean_body(labels, by_name, spacing_mm)
    if "vertebrae_pp" in task.steps:
        labels = steps.separate_vertebrae(labels, by_name, spacing_mm)
    labels = task_grid.back(labels)
    if "vertebrae_pp_refined" in task.steps:
        bodies = task_grid.back(merged.masks[0].astype(np.uint8)) > 0
        labels = steps.refine_vertebrae(labels, bodies, sorted(by_name.values()), own_mm)
    if task.remove_outside and located is not None:
        steps.remove_outside(labels, _mask(located.found, task.remove_outside), own_mm, task.remove_outside_mm)
    return labels


def _required(bundle: TaskBundle, options: SegmentOptions) -> tuple[Segment, ...]:
    """Return the segments of a task that are required; by default all."""
    names = options.structures
    return tuple(segment for segment in bundle.segments if not names or segment.name in names)


def _mask(found: Segmentation, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return where one of some structures was found."""
    return np.isin(found.array, [segment.label for segment in found.segments if segment.name in names])


def _no_confidence(shape: tuple[int, int, int]) -> ConfidenceMaps:
    """Return the confidence maps of a scan that no model was shown."""
    return ConfidenceMaps(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(names) if len(names) < 4 else f"{', '.join(names[:3])} or others"
