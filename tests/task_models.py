"""Tiny models in the folders of TotalSegmentator's weights, with seeded weights, for tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import nnunet_models
import pytest
from web import Web

from napari_seg.bundles.totalsegmentator import table
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


def serve_task(web: Web, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the release of all models that a task needs, in place of TotalSegmentator's.

    Args:
        web: the server.
        name: of the task.
        folder: where the models are written.
        monkeypatch: changes the address of the releases.
    """
    monkeypatch.setattr(table, "RELEASES", web.url)
    write_task(folder, name)
    for part in parts_needed(tasks()[name]):
        weights = weights_of(part.number)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for path in sorted((folder / weights.folder).rglob("*")):
                archive.write(path, path.relative_to(folder).as_posix())
        web.files[f"/{weights.release}/{weights.folder}.zip"] = packed.getvalue()
