"""A model of one part of a TotalSegmentator task as a model of nnU-Net of its own, to train it further.

TotalSegmentator shows its models a scan with canonical axes, in the voxel size of the task. As a model of its own a
part brings the scan to RAS, and its plans resample it to the same voxel size, with nnU-Net's interpolation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from math import isclose

from napari_seg.bundles.nnunet.configuration import NnunetBundle, why_not_single
from napari_seg.bundles.spec import Bundle, PartOf
from napari_seg.bundles.totalsegmentator.table import (
    is_weights_folder,
    model_name,
    structures_of,
    tasks,
    title_of,
)
from napari_seg.bundles.totalsegmentator.task import ImprovedPart, Part, Task, TaskBundle
from napari_seg.errors import InputError, listed, one_line

READER = "NibabelIOWithReorient"
"""nnU-Net's reader that brings images to RAS."""

_SAME = 0.01
"""Relative difference of voxel sizes up to which they count as equal."""


@dataclass(frozen=True, kw_only=True)
class PartModel(NnunetBundle):
    """The model of a part; its segments have the names of the task and the labels of the network.

    Attributes:
        others: names of the task's structures that other parts find.
    """

    others: tuple[str, ...] = ()


def why_not_part(task: Task, model: NnunetBundle) -> str:
    """Return why a model of a task is no model of its own; "" if it is one."""
    if task.crop is not None:
        return "is run where another task finds something"
    if task.steps or task.body or task.auxiliary or task.remove_outside:
        return "belongs to a task that changes its labels by further steps"
    if reason := why_not_single(model):
        return reason
    sizes = zip(task.spacing_mm or (), _xyz(model), strict=False)
    if not all(isclose(shown, own, rel_tol=_SAME) for shown, own in sizes):
        return "resamples the images of its task once more"
    return ""


def part_model(task: Task, part: Part, model: NnunetBundle) -> PartModel:
    """Return the model of a part as one of its own; `why_not_part` has no reason."""
    named = {one.label: one for one in structures_of(task)}
    label_of = dict(part.labels)
    segments = tuple(
        replace(named[label_of[one.label]], label=one.label) if one.label in label_of else one
        for one in model.network_segments
    )
    values = {field.name: getattr(model, field.name) for field in fields(NnunetBundle)}
    values |= {
        "name": one_line(f"{title_of(task)}, {model.data_set}", 120),
        "part_of": PartOf(task.name, model_name(part)),
        "network_segments": segments,
        "segments": segments,
        "licence": task.licence,
        "configuration": replace(model.configuration, reader=READER),
    }
    others = tuple(one.name for label, one in named.items() if label not in label_of.values())
    return PartModel(**values, others=others)


def part_of_folder(model: NnunetBundle) -> NnunetBundle | str:
    """Return a model in a folder of TotalSegmentator's weights as one of its own, or why it is none.

    A model that lies anywhere else is returned as it is.
    """
    if not is_weights_folder(model.data_set):
        return model
    reason = "is a model of TotalSegmentator that no task runs"
    for task in tasks().values():
        for part in task.parts:
            if model_name(part) == f"{model.data_set}/{model.root.name}":
                reason = why_not_part(task, model)
                if not reason:
                    return part_model(task, part, model)
    return reason


def part_with(bundle: TaskBundle, names: Collection[str]) -> Bundle:
    """Return the model of a task that finds all of some structures; names that are none of the task do not matter.

    It is a `PartModel`, or an improved model as a bundle of its own.

    Args:
        bundle: a task whose parts are models of their own.
        names: names of structures.

    Raises:
        InputError: `improve.parts`, several models find them, or none does.
    """
    wanted = {name.casefold() for name in names}
    found: dict[int, list[str]] = {}
    for number, part in enumerate(bundle.task.parts):
        labels = {label for _, label in part.labels}
        own = [one.name for one in bundle.segments if one.label in labels and one.name.casefold() in wanted]
        found |= {number: own} if own else {}
    if len(bundle.parts) == 1 and not found:
        found = {0: []}
    if len(found) != 1:
        parts = "; ".join(f"{bundle.parts[number].data_set}: {listed(own)}" for number, own in found.items())
        text = f"the corrected structures belong to {len(found)} models of {bundle.name!r}"
        raise InputError(
            "improve.parts",
            f"{text} ({parts or listed(sorted(names))}); expected those of one model, because each learns alone; make "
            "a training set with the structures of one model, or choose a task with one model, such as "
            "totalsegmentator:total_fast",
        )
    (number,) = found
    model = bundle.parts[number]
    if isinstance(model, ImprovedPart):
        return replace(model.bundle, trusted=model.bundle.trusted or bundle.trusted)
    return part_model(bundle.task, bundle.task.parts[number], model)


def _xyz(model: NnunetBundle) -> tuple[float, ...]:
    """Return the voxel size of a model's network along x, y and z of a canonical scan."""
    size, transpose = model.configuration.spacing_mm, model.configuration.transpose
    return tuple(size[transpose.index(axis)] for axis in (2, 1, 0))
