"""Tables of TotalSegmentator's tasks, models and structures; nothing is read but the files of this package.

`tasks.json` and `structures.json` are written by `scripts/totalsegmentator_tasks.py` from TotalSegmentator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from napari_seg.bundles.totalsegmentator.task import PREFIX, Part, RoughCrop, Task
from napari_seg.errors import BundleError, did_you_mean, one_line
from napari_seg.volume import Segment, Term, distinct_color

VERSION = "2.18.0"
"""Version of TotalSegmentator whose tasks these are."""

RELEASES = "https://github.com/wasserth/TotalSegmentator/releases/download"
"""Address of the published weights."""


@dataclass(frozen=True)
class Weights:
    """Published weights of a model.

    Attributes:
        number: of its data set, such as 291.
        folder: name of its folder, such as "Dataset291_TotalSegmentator_part1_organs_1559subj".
        release: tag of the release that holds them; "" if they are not published openly.
        size_bytes: size of the zip; None if unknown.
    """

    number: int
    folder: str
    release: str
    size_bytes: int | None

    @property
    def url(self) -> str:
        """Address of the zip; "" if there is none."""
        return f"{RELEASES}/{self.release}/{self.folder}.zip" if self.release else ""


@cache
def tasks() -> dict[str, Task]:
    """Return all tasks by name, in the order of TotalSegmentator."""
    return {one["name"]: _task(one) for one in _table()["tasks"]}


def is_task_name(text: str) -> bool:
    """Return whether a text names a task, whether it exists or not."""
    return text.lower().startswith(PREFIX)


def task_of(name: str) -> Task:
    """Return a task.

    Args:
        name: such as "total_fast" or "totalsegmentator:total_fast".

    Raises:
        BundleError: `bundle.unknown`, there is no such task.
    """
    short = name[len(PREFIX) :] if is_task_name(name) else name
    found = tasks().get(short) or next((one for key, one in tasks().items() if key.lower() == short.lower()), None)
    if found is None:
        text = f"TotalSegmentator has no task {one_line(short, 100)!r}{did_you_mean(short, tasks()) or ';'}"
        raise BundleError("bundle.unknown", f"{text} 'napari-seg models search totalsegmentator' lists the tasks")
    return found


def structures_of(task: Task) -> tuple[Segment, ...]:
    """Return the structures of a task's result, named as TotalSegmentator names them, with its colours and codes."""
    name = next(one["structures"] for one in _table()["tasks"] if one["name"] == task.name)
    return tuple(_segment(int(label), structure) for label, structure in _table()["structures"][name].items())


def title_of(task: Task) -> str:
    """Return the title of a task, such as "TotalSegmentator total"."""
    return f"TotalSegmentator {task.name}"


def described(task: Task) -> str:
    """Return what a task segments, in one sentence."""
    names = [segment.name for segment in structures_of(task)]
    image = "MR images" if task.modality == "MR" else "CT"
    what = f"{len(names)} structures" if len(names) > 3 else ", ".join(names)
    grid = "at the scan's own voxel size"
    if task.spacing_mm:
        sizes = task.spacing_mm if len(set(task.spacing_mm)) > 1 else task.spacing_mm[:1]
        grid = f"at {' × '.join(f'{size:.3g}' for size in sizes)} mm"
    return f"{what} in {image}, {grid}"


def note_of(task: Task) -> str:
    """Return what a user has to know before the task is run; "" if nothing."""
    return str(next(one["note"] for one in _table()["tasks"] if one["name"] == task.name))


def weights_of(number: int) -> Weights:
    """Return where the weights of a model are published."""
    one = _table()["weights"][str(number)]
    return Weights(number, one["folder"], one["release"], one.get("size_bytes"))


def model_name(part: Part) -> str:
    """Return the name of a model: the published folder of its data set and that of its training."""
    return f"{weights_of(part.number).folder}/{part.trainer}__{part.plans}__{part.configuration}"


def is_weights_folder(name: str) -> bool:
    """Return whether TotalSegmentator publishes weights in a folder of this name."""
    return any(one["folder"] == name for one in _table()["weights"].values())


def licensed_download(task: Task) -> str:
    """Return the commands that fetch the weights of a task for which TotalSegmentator asks a licence."""
    commands = f"'totalseg_set_license -l NUMBER' and 'totalseg_download_weights -t {task.name}'"
    return f"install TotalSegmentator, then {commands}"


def parts_needed(task: Task) -> tuple[Part, ...]:
    """Return all models that a task needs: its own, and those of the tasks that find where it looks.

    That includes the task that finds the structures if only some are required.
    """
    others = (task.crop.task if task.crop else "", task.subset_task)
    parts = [*task.parts, *(part for one in others if one and one != task.name for part in tasks()[one].parts)]
    if task.crop:
        parts += parts_needed(tasks()[task.crop.task])
    models = {(part.number, part.trainer, part.plans, part.configuration): part for part in reversed(parts)}
    return tuple(reversed(models.values()))


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(Path(__file__).with_name("tasks.json").read_text(encoding="utf-8")))


@cache
def _structures() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("structures.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["structures"])


def _segment(label: int, name: str) -> Segment:
    noted = _structures().get(name, {})
    red, green, blue = noted.get("color") or distinct_color(label)
    category, kind, modifier = (Term(*noted[key]) if key in noted else None for key in ("category", "type", "modifier"))
    return Segment(label, name, (red, green, blue), category=category, kind=kind, modifier=modifier)


def _task(one: dict[str, Any]) -> Task:
    crop = one["crop"]
    simple = ("name", "modality", "overlap", "subset_task", "body", "licence", "licence_kind")
    return Task(
        **{key: one[key] for key in simple},
        spacing_mm=_triple(one["spacing_mm"]) if one["spacing_mm"] else None,
        parts=tuple(_part(part) for part in one["parts"]),
        crop=RoughCrop(crop["task"], tuple(crop["structures"]), _triple(crop["margin_mm"])) if crop else None,
        auxiliary=tuple(one["auxiliary"]),
        steps=tuple(one["steps"]),
        remove_outside=tuple(one["remove_outside"]),
        remove_outside_mm=float(one["remove_outside_mm"]),
    )


def _part(one: dict[str, Any]) -> Part:
    labels = tuple((n, label) for n, label in enumerate(one["labels"], start=1) if label)
    names = ("number", "trainer", "plans", "configuration")
    return Part(**{key: one[key] for key in names}, folds=tuple(one["folds"]), labels=labels)


def _triple(values: list[float]) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z
