"""A task of TotalSegmentator: which models it runs, on what grid, and how their labels become one map. Plain data.

The rules are those of TotalSegmentator (https://github.com/wasserth/TotalSegmentator, Apache-2.0; Wasserthal et al.,
Radiology: Artificial Intelligence 5, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.spec import Bundle

PREFIX = "totalsegmentator:"
"""Prefix of a task's name where models of all kinds are named."""


@dataclass(frozen=True)
class Part:
    """One model of a task.

    Attributes:
        number: of its data set, such as 291.
        trainer: name of the trainer.
        plans: name of the plans.
        configuration: such as "3d_fullres".
        folds: folds that are averaged; empty: all that are there.
        labels: label of the network -> label in the task's result; empty: the model only helps a step, and its label 1
            is the mask.
    """

    number: int
    trainer: str
    plans: str
    configuration: str
    folds: tuple[int, ...]
    labels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RoughCrop:
    """The part of a scan that a task looks at.

    Attributes:
        task: name of the task that finds it, such as "total_fastest".
        structures: names of its structures, around all of which the scan is cropped.
        margin_mm: along the scan's index axes.
    """

    task: str
    structures: tuple[str, ...]
    margin_mm: tuple[float, float, float] = (20.0, 20.0, 20.0)


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: such as "total_fast".
        modality: DICOM's code.
        spacing_mm: voxel size of the grid, along x, y and z, that the models are shown; None: the scan's own.
        parts: its models; where several label a voxel, the last one counts.
        overlap: fraction of a window that the next one repeats.
        crop: where it looks; None: at the whole scan.
        auxiliary: labels that are removed from the result.
        body: whether the body's own steps follow: the largest island of the trunk, no small islands of the extremities.
        steps: names of further steps on the label map: "vertebrae_pp" on the grid of the models, "vertebrae_pp_refined"
            on that of the scan.
        subset_task: name of the task that finds the structures if only some are required; "": the whole scan is
            segmented then.
        remove_outside: names of structures of the crop's task, outside of which nothing is labelled.
        remove_outside_mm: distance from them up to which labels stay.
        licence: of the weights.
        licence_kind: its class.
    """

    name: str
    modality: Literal["CT", "MR"]
    spacing_mm: tuple[float, float, float] | None
    parts: tuple[Part, ...]
    overlap: float = 0.5
    crop: RoughCrop | None = None
    auxiliary: tuple[int, ...] = ()
    body: bool = False
    steps: tuple[str, ...] = ()
    subset_task: str = ""
    remove_outside: tuple[str, ...] = ()
    remove_outside_mm: float = 0.0
    licence: str = "Apache-2.0"
    licence_kind: Literal["open", "non-commercial", "licensed"] = "open"


@dataclass(frozen=True, kw_only=True)
class ImprovedPart(NnunetBundle):
    """A model that was made from one of a task's, in the place of that; it is run as that one is, with other weights.

    Attributes:
        bundle: the model as a bundle of its own, in `root`.
        replaced: the model of the task.
    """

    bundle: Bundle
    replaced: NnunetBundle

    @property
    def data_set(self) -> str:
        """Name of the folder of the data set of the replaced model."""
        return self.replaced.data_set


@dataclass(frozen=True, kw_only=True)
class TaskBundle(Bundle):
    """A task whose weights are on this machine.

    Attributes:
        task: the task.
        parts: a model for each of its parts, in their order; some may be an `ImprovedPart`.
        crop: the task that finds where it looks.
    """

    task: Task
    parts: tuple[NnunetBundle, ...]
    crop: TaskBundle | None = None

    @property
    def improved(self) -> tuple[ImprovedPart, ...]:
        """The improved models among its parts."""
        return tuple(one for one in self.parts if isinstance(one, ImprovedPart))

    @property
    def reference(self) -> str:
        """Name of the task, such as "totalsegmentator:total", with the folders of improved models behind a "+" each."""
        return "+".join((PREFIX + self.task.name, *(str(one.root) for one in self.improved)))
