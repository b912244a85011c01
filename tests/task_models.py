"""Tiny models in the folders of TotalSegmentator's weights, with seeded weights, for tests."""

from __future__ import annotations

from pathlib import Path

import nnunet_models

from napari_seg.bundles.totalsegmentator.table import parts_needed, tasks, weights_of
from napari_seg.bundles.totalsegmentator.task import Part, Task


def write_part(
    results: Path, part: Part, spacing_mm: tuple[float, float, float] = (3, 3, 3), modality: str = "CT"
) -> Path:
    """Write the model of a part with random weights, and return the folder with its plans.json."""
    count = max((label for label, _ in part.labels), default=1)
    labels = {"background": 0} | {f"structure_{n}": n for n in range(1, count + 1)}
    normalised = {"normalization_schemes": ["CTNormalization"]} if modality == "CT" else {}
    root = nnunet_models.write_model(
        results,
        part.configuration,
        nnunet_models.configuration(spacing=tuple(reversed(spacing_mm)), **normalised),
        dataset_changes={"labels": labels, "channel_names": {"0": modality}},
        folds=part.folds or (0,),
        trainer=part.trainer,
        dataset_folder=weights_of(part.number).folder,
        seed=part.number,
    )
    return root.rename(root.with_name(f"{part.trainer}__{part.plans}__{part.configuration}"))


def write_task(results: Path, name: str) -> None:
    """Write all models that a task needs and that are not there."""
    for task in needed_tasks(tasks()[name]):
        for part in task.parts:
            training = f"{part.trainer}__{part.plans}__{part.configuration}"
            if not (results / weights_of(part.number).folder / training).exists():
                write_part(results, part, task.spacing_mm or (3, 3, 3), task.modality)


def needed_tasks(task: Task) -> list[Task]:
    """Return a task and those that it runs first."""
    others = [task.crop.task if task.crop else "", task.subset_task]
    found = [one for name in others if name and name != task.name for one in needed_tasks(tasks()[name])]
    assert {part.number for one in (task, *found) for part in one.parts} == {part.number for part in parts_needed(task)}
    return [task, *found]
