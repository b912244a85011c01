"""Tasks of TotalSegmentator whose weights are on this machine, as bundles; nothing of a model runs here."""

from __future__ import annotations

from dataclasses import replace

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.nnunet.read import read_training
from napari_seg.bundles.totalsegmentator.table import (
    VERSION,
    described,
    licensed_download,
    note_of,
    structures_of,
    task_of,
    tasks,
    title_of,
    weights_of,
)
from napari_seg.bundles.totalsegmentator.task import PREFIX, Part, Task, TaskBundle
from napari_seg.bundles.totalsegmentator.weights import incomplete_folders, training_folder, weight_folders
from napari_seg.errors import BundleError, listed


class MissingWeights(BundleError):
    """Weights of a task are not on this machine (`bundle.weights`)."""


def read_task(name: str, *, trust: bool = False) -> TaskBundle:
    """Return a task as a bundle.

    Args:
        name: such as "total_fast" or "totalsegmentator:total_fast".
        trust: as for `read_bundle`.

    Raises:
        BundleError: `bundle.unknown`, there is no such task; `bundle.weights`, weights that it needs are not on this
            machine; `bundle.metadata`, `bundle.too_large`: a model can't be read.
    """
    task = task_of(name)
    found = tuple((part, training_folder(part)) for part in task.parts)
    if missing := [part for part, folder in found if folder is None]:
        raise _missing(task, missing)
    parts = tuple(_part(part, task, trust) for part in task.parts)
    try:
        crop = read_task(task.crop.task, trust=trust) if task.crop else None
    except BundleError as error:
        if not isinstance(error, MissingWeights) or task.crop is None:
            raise
        text = f"the task {task.name!r} first runs {task.crop.task!r} to find where it looks, and that can't be used"
        raise MissingWeights(error.code, f"{text}: {error.message}; {_advice(task)}") from error
    segments = structures_of(task)
    return TaskBundle(
        root=parts[0].root.parent,
        name=title_of(task),
        version=VERSION,
        description=described(task),
        modality=task.modality,
        in_channels=parts[0].in_channels,
        network_segments=segments,
        segments=segments,
        trusted=trust,
        kind="totalsegmentator",
        images=note_of(task),
        licence=task.licence,
        channel_names=parts[0].channel_names,
        out_channels=len(segments) + 1,
        task=task,
        parts=parts,
        crop=crop,
    )


def find_tasks() -> tuple[list[TaskBundle], list[BundleError]]:
    """Return the tasks whose weights are all on this machine, and the errors of those that can't be read."""
    bundles, faults = [], []
    if any(folder.is_dir() for folder in weight_folders()):
        for name in tasks():
            try:
                bundles.append(read_task(name))
            except MissingWeights:
                continue
            except BundleError as fault:
                faults.append(fault)
    return bundles, faults


def _part(part: Part, task: Task, trust: bool) -> NnunetBundle:
    folder = training_folder(part)
    assert folder is not None
    bundle = read_training(folder, part.folds)
    if bundle.out_channels <= max((label for label, _ in part.labels), default=0):
        text = (
            f"{folder} has {bundle.out_channels} channels; expected {len(part.labels) + 1} for the task {task.name!r}"
        )
        raise BundleError("bundle.metadata", f"{text}; it is another model")
    return replace(bundle, overlap=task.overlap, trusted=trust)


def _missing(task: Task, parts: list[Part]) -> MissingWeights:
    folders = ", ".join(str(folder) for folder in weight_folders())
    models = listed([weights_of(part.number).folder for part in parts], 1)
    text = f"the weights of TotalSegmentator's task {task.name!r} are not on this machine ({models}); {_advice(task)}"
    text = f"{text}; looked in {folders}"
    if halves := [str(folder) for part in parts for folder in incomplete_folders(part)]:
        text = f"{text}; without weights, as if unpacking was stopped: {', '.join(halves)}"
    return MissingWeights("bundle.weights", text)


def _advice(task: Task) -> str:
    if task.licence_kind == "licensed":
        return f"these weights need a licence ({task.licence}); with one, {licensed_download(task)}"
    return f"'napari-seg models add {PREFIX}{task.name}' fetches them"
