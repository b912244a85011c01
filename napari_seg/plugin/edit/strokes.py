"""Prompts in the order in which a person gave them, so that they can be undone one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.editing.change import Box
from napari_seg.editing.prompts import Prompts
from napari_seg.plugin.views import EXCLUDED, INCLUDED

_MAX_CLICKS = 64
"""Number of voxels up to which prompts of unknown origin are shown as clicks."""


@dataclass(frozen=True, eq=False)
class Stroke:
    """One click, one scribble or one box.

    Attributes:
        voxels: (N, 3) voxels of the label map; one for a click.
        is_included: whether they belong to the structure.
        box: box that encloses the structure; None for a click or a scribble.
    """

    voxels: NDArray[np.intp]
    is_included: bool = True
    box: Box | None = None


class Strokes:
    """Prompts for one structure; a later one replaces earlier ones in the same voxels."""

    def __init__(self) -> None:
        self._strokes: list[Stroke] = []

    def __len__(self) -> int:
        return len(self._strokes)

    def add(self, voxels: ArrayLike, is_included: bool) -> None:
        """Add a click (one voxel) or a scribble (N, 3)."""
        self._strokes.append(Stroke(np.asarray(voxels, np.intp).reshape(-1, 3), is_included))

    def add_box(self, box: Box) -> None:
        """Add a box; it replaces earlier ones."""
        self._strokes.append(Stroke(np.empty((0, 3), np.intp), box=box))

    def undo(self) -> None:
        """Remove the latest prompt, if there is one."""
        self._strokes = self._strokes[:-1]

    def clear(self) -> None:
        """Remove all prompts."""
        self._strokes = []

    @property
    def box(self) -> Box | None:
        """Latest box; None if there is none."""
        return next((stroke.box for stroke in reversed(self._strokes) if stroke.box is not None), None)

    @property
    def prompts(self) -> Prompts:
        """All prompts."""
        is_included: dict[tuple[int, int, int], bool] = {}
        for stroke in self._strokes:
            for i, j, k in stroke.voxels.tolist():
                is_included[i, j, k] = stroke.is_included
        positive = [voxel for voxel, included in is_included.items() if included]
        negative = [voxel for voxel, included in is_included.items() if not included]
        return Prompts(np.array(positive, np.intp), np.array(negative, np.intp), self.box)

    @prompts.setter
    def prompts(self, prompts: Prompts) -> None:
        self.clear()
        if prompts.box is not None:
            self.add_box(prompts.box)
        for voxels, is_included in ((prompts.positive, True), (prompts.negative, False)):
            if len(voxels) > _MAX_CLICKS:
                self.add(voxels, is_included)
            else:
                for voxel in voxels:
                    self.add(voxel, is_included)

    @property
    def clicks(self) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Voxels (N, 3) of the clicks and their kinds (N,), as in `Marks`."""
        clicks = [stroke for stroke in self._strokes if len(stroke.voxels) == 1]
        voxels = [stroke.voxels[0] for stroke in clicks]
        kinds = [INCLUDED if stroke.is_included else EXCLUDED for stroke in clicks]
        return np.array(voxels, np.intp).reshape(-1, 3), np.array(kinds, np.uint8)

    @property
    def areas(self) -> tuple[tuple[Box, NDArray[np.uint8]], ...]:
        """Boxes with the voxels of the scribbles, as in `Marks`."""
        return tuple(_area(stroke) for stroke in self._strokes if len(stroke.voxels) > 1)

    @property
    def text(self) -> str:
        """Number of prompts, such as "3 include, 1 exclude, a box"; "" without prompts."""
        included = sum(stroke.is_included for stroke in self._strokes if stroke.box is None)
        excluded = sum(not stroke.is_included for stroke in self._strokes)
        parts = [f"{n} {what}" for n, what in ((included, "include"), (excluded, "exclude")) if n]
        return ", ".join(parts + (["a box"] if self.box is not None else []))


def _area(stroke: Stroke) -> tuple[Box, NDArray[np.uint8]]:
    first, last = stroke.voxels.min(axis=0), stroke.voxels.max(axis=0) + 1
    area = np.zeros(last - first, np.uint8)
    i, j, k = (stroke.voxels - first).T
    area[i, j, k] = INCLUDED if stroke.is_included else EXCLUDED
    a, b, c = (slice(int(start), int(stop)) for start, stop in zip(first, last, strict=True))
    return (a, b, c), area
