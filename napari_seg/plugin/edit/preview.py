"""Preview of a change: what it adds and removes, before a person applies it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change
from napari_seg.plugin.edit.operations import Situation
from napari_seg.plugin.edit.step import step_of
from napari_seg.plugin.layer_info import placement_of
from napari_seg.plugin.napari_private import Atom
from napari_seg.plugin.views import ADDED, MOVED, REMOVED


@dataclass(frozen=True, eq=False)
class Preview:
    """Change of a labels layer that was computed and not applied.

    Attributes:
        name: name of the action.
        layer: layer to change.
        label: label of the structure.
        paints: value of `LabelsState.paints` that the change was computed for.
        step: boxes of the change with their labels before and after.
        added: voxels that the structure gains.
        removed: voxels that the structure loses.
        taken: voxels of `added` that other structures lose.
        moved: voxels that other structures gain.
        new_labels: labels in the change that no structure had, in ascending order.
        voxel_ml: volume of a voxel in ml.
        is_exact: whether the voxels are those of the file; a resampled layer changes about as many there.
        slice_shown: axis and number of the slice that the main viewer showed, as in `Situation`.
        note: what else a person should know, such as a plane that was chosen; "" for nothing.
        areas: boxes of the label map with the kind of each changed voxel, as in `Marks.areas`.
    """

    name: str
    layer: Labels
    label: int
    paints: int
    step: list[Atom]
    added: int
    removed: int
    taken: int
    moved: int
    new_labels: tuple[int, ...]
    voxel_ml: float
    is_exact: bool
    slice_shown: tuple[int, int] | None
    note: str
    areas: tuple[tuple[Box, NDArray[np.uint8]], ...]

    @classmethod
    def of(cls, change: Change, name: str, layer: Labels, paints: int, situation: Situation) -> Preview:
        """Return the preview of a change; slow, call outside the main thread."""
        label = situation.label
        added, removed = change.count(label)
        taken = int((change.is_changed & (change.after == label) & (change.before != 0)).sum())
        moved = int((change.is_changed & (change.after != label) & (change.after != 0)).sum())
        step = step_of(change)
        areas = tuple(((i, j, k), _kinds(before, after, label)) for (i, j, k), before, after in step)
        new_labels = {*np.unique(change.after[change.is_changed]).tolist()} & {*situation.free}
        return cls(
            name,
            layer,
            label,
            paints,
            step,
            added,
            removed,
            taken,
            moved,
            tuple(sorted(new_labels)),
            situation.grid.voxel_ml,
            placement_of(layer).is_view,
            situation.slice_shown,
            "; ".join(situation.notes),
            areas,
        )

    @property
    def is_empty(self) -> bool:
        """Return whether no label changes."""
        return not self.step

    @property
    def text(self) -> str:
        """What the structure gains and loses, such as "+1.20 ml, −0.30 ml"."""
        parts = []
        if self.added:
            taken = f" ({_volume(self.taken, self.voxel_ml)} from other structures)" if self.taken else ""
            parts.append(f"+{_volume(self.added, self.voxel_ml)}{taken}")
        if self.removed:
            parts.append(f"−{_volume(self.removed, self.voxel_ml)}")
        if self.moved:
            parts.append(f"{_volume(self.moved, self.voxel_ml)} to other structures")
        volumes = ("" if self.is_exact else "about ") + ", ".join(parts)
        return f"{volumes}; {self.note}" if self.note else volumes


def _kinds(before: NDArray, after: NDArray, label: int) -> NDArray[np.uint8]:
    kinds = np.where(after == label, ADDED, np.where(after == 0, REMOVED, MOVED)).astype(np.uint8)
    kinds[before == after] = 0
    return kinds


def _volume(voxels: int, voxel_ml: float) -> str:
    ml = voxels * voxel_ml
    digits = 0 if ml >= 100 else 1 if ml >= 10 else 2 if ml >= 0.1 else 3
    return f"{ml:.{digits}f} ml"
