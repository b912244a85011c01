"""Prompts in the order in which a person gave them, so that they can be undone one by one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.editing.change import Box
from napari_seg.editing.prompts import Prompts
from napari_seg.plugin.views import EXCLUDED, INCLUDED

_MAX_CLICKS = 64
"""Number of voxels up to which prompts of unknown origin are shown as clicks."""


class Strokes:
    """Prompts for one structure; a later one replaces earlier ones in the same voxels.

    A stroke is what a person gave at once: a click, a scribble, a box, or a lasso, which includes some voxels and
    excludes others.
    """

    def __init__(self) -> None:
        self._strokes: list[Prompts] = []
        self._joined = [Prompts()]  # the prompts up to each stroke

    def __len__(self) -> int:
        return len(self._strokes)

    def add(self, voxels: ArrayLike, is_included: bool) -> None:
        """Add a click (one voxel) or a scribble (N, 3)."""
        array = np.asarray(voxels, np.intp).reshape(-1, 3)
        self.add_prompts(Prompts(array) if is_included else Prompts(negative=array))

    def add_prompts(self, prompts: Prompts) -> None:
        """Add prompts as one stroke; a box replaces earlier ones."""
        self._strokes.append(prompts)
        self._joined.append(self._joined[-1].joined(prompts))

    def undo(self) -> None:
        """Remove the latest stroke, if there is one."""
        if self._strokes:
            self._strokes.pop()
            self._joined.pop()

    def clear(self) -> None:
        """Remove all strokes."""
        self._strokes, self._joined = [], [Prompts()]

    @property
    def prompts(self) -> Prompts:
        """All prompts."""
        return self._joined[-1]

    @prompts.setter
    def prompts(self, prompts: Prompts) -> None:
        self.clear()
        if prompts.box is not None:
            self.add_prompts(Prompts(box=prompts.box))
        for voxels, is_included in ((prompts.positive, True), (prompts.negative, False)):
            if len(voxels) > _MAX_CLICKS:
                self.add(voxels, is_included)
            else:
                for voxel in voxels:
                    self.add(voxel, is_included)

    @property
    def clicks(self) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Voxels (N, 3) of the clicks and their kinds (N,), as in `Marks`."""
        clicks = [(voxels[0], kinds[0]) for voxels, kinds in map(_marked, self._strokes) if len(voxels) == 1]
        voxels, kinds = [voxel for voxel, _ in clicks], [kind for _, kind in clicks]
        return np.array(voxels, np.intp).reshape(-1, 3), np.array(kinds, np.uint8)

    @property
    def areas(self) -> tuple[tuple[Box, NDArray[np.uint8]], ...]:
        """Boxes with the voxels of the scribbles and lassos, as in `Marks`."""
        marked = map(_marked, self._strokes)
        return tuple(_area(voxels, kinds) for voxels, kinds in marked if len(voxels) > 1)

    @property
    def text(self) -> str:
        """Number of prompts, such as "3 include, 1 exclude, a box"; "" without prompts."""
        included = sum(len(stroke.positive) > 0 for stroke in self._strokes)
        excluded = sum(len(stroke.negative) > 0 and not len(stroke.positive) for stroke in self._strokes)
        parts = [f"{n} {what}" for n, what in ((included, "include"), (excluded, "exclude")) if n]
        return ", ".join(parts + (["a box"] if self.prompts.box is not None else []))


def _marked(stroke: Prompts) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Return the voxels (N, 3) of a stroke and their kinds (N,)."""
    kinds = np.repeat(np.array([INCLUDED, EXCLUDED], np.uint8), [len(stroke.positive), len(stroke.negative)])
    return np.concatenate([stroke.positive, stroke.negative]), kinds


def _area(voxels: NDArray[np.intp], kinds: NDArray[np.uint8]) -> tuple[Box, NDArray[np.uint8]]:
    first, last = voxels.min(axis=0), voxels.max(axis=0) + 1
    area = np.zeros(last - first, np.uint8)
    area[tuple((voxels - first).T)] = kinds
    i, j, k = (slice(int(start), int(stop)) for start, stop in zip(first, last, strict=True))
    return (i, j, k), area
