"""Viewers that show the layers of one window, and what is drawn over their layers. Without Qt.

A window has a main viewer and, with linked planes, one more for each plane. Tools act in all of them, and the marks of
the Edit tab are drawn in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.editing.change import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.components import ViewerModel

ADDED, REMOVED, MOVED, INCLUDED, EXCLUDED = range(1, 6)
"""Kinds of marks: voxels that a change adds, removes or gives to another structure; prompts."""


COLORS = {
    ADDED: (90, 255, 120),
    REMOVED: (255, 60, 150),
    MOVED: (255, 200, 40),
    INCLUDED: (60, 220, 255),
    EXCLUDED: (255, 110, 30),
}
"""Kind of mark -> red, green and blue, each 0 to 255."""

_FILL, _EDGE = 90, 235
"""Opacity of the inner and of the outermost voxels of an area, 0 to 255."""


@dataclass(frozen=True, eq=False)
class Marks:
    """What is drawn over the layers, in voxel indices of a label map.

    Attributes:
        shape: (I, J, K) of the label map.
        scale: mm per voxel along napari's axes.
        translate: position of the first voxel in napari's world, in mm.
        areas: boxes of the label map with the kind of each voxel; 0 where nothing is drawn.
        points: (N, 3) voxels of clicks.
        kinds: (N,) kind of each click.
    """

    shape: tuple[int, ...]
    scale: NDArray[np.float64]
    translate: NDArray[np.float64]
    areas: tuple[tuple[Box, NDArray[np.uint8]], ...] = ()
    points: NDArray[np.intp] = field(default_factory=lambda: np.empty((0, 3), np.intp))
    kinds: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


class Views:
    """Viewers of one window, and their marks.

    Attributes:
        added: emitted with each new viewer.
        marks_changed: emitted after the marks have changed.
        path_changed: emitted after the path has changed.
        is_claimed: whether a tool uses the clicks, so that they don't move the crosshair.
        marks: what is drawn over the layers; None if nothing is.
        path: (N, 3) line that a person is drawing, in napari's world, in mm; empty if there is none.
        path_viewer: viewer in which it is drawn.
    """

    added = Signal(object)
    marks_changed = Signal()
    path_changed = Signal()

    def __init__(self) -> None:
        self._viewers: WeakSet[ViewerModel] = WeakSet()
        self.is_claimed = False
        self.marks: Marks | None = None
        self.path: NDArray[np.float64] = np.empty((0, 3))
        self.path_viewer: ViewerModel | None = None

    def __iter__(self) -> Iterator[ViewerModel]:
        return iter(list(self._viewers))

    def add(self, viewer: ViewerModel) -> None:
        """Add a viewer, unless it is known."""
        if viewer not in self._viewers:
            self._viewers.add(viewer)
            self.added.emit(viewer)

    def remove(self, viewer: ViewerModel) -> None:
        """Forget a viewer that was closed."""
        self._viewers.discard(viewer)

    def show(self, marks: Marks | None) -> None:
        """Replace the marks."""
        self.marks = marks
        self.marks_changed.emit()

    def draw_path(self, path: NDArray[np.float64], viewer: ViewerModel) -> None:
        """Replace the line that is being drawn in a viewer."""
        self.path, self.path_viewer = path, viewer if len(path) else None
        self.path_changed.emit()


_VIEWS: WeakKeyDictionary[ViewerModel, Views] = WeakKeyDictionary()


def views_of(viewer: ViewerModel) -> Views:
    """Return the views of a main viewer; the first one is that viewer."""
    if viewer not in _VIEWS:
        views = _VIEWS[viewer] = Views()
        views.add(viewer)
    return _VIEWS[viewer]


def rgba_of(marks: Marks, order: tuple[int, int, int], index: int) -> NDArray[np.uint8] | None:
    """Return the image (rows, columns, 4) of the areas of marks in a slice; None if nothing of them lies in it.

    Args:
        marks: what is drawn.
        order: axis of the slices, then the axes that grow down and to the right.
        index: number of the slice.
    """
    axis, down, right = order
    kinds = np.zeros((marks.shape[down], marks.shape[right]), np.uint8)
    for box, area in marks.areas:
        if box[axis].start <= index < box[axis].stop:
            part = area.take(index - box[axis].start, axis=axis)
            part = part.T if down > right else part
            place = kinds[box[down], box[right]]
            place[part > 0] = part[part > 0]
    if not kinds.any():
        return None
    table = np.zeros((6, 4), np.uint8)
    for kind, color in COLORS.items():
        table[kind] = (*color, _FILL if kind in (ADDED, REMOVED, MOVED) else _EDGE)
    colors = table[kinds]
    padded = np.pad(kinds, 1)
    middle = padded[1:-1, 1:-1]
    is_edge = np.zeros(kinds.shape, bool)
    for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        is_edge |= neighbour != middle
    colors[is_edge & (kinds > 0), 3] = _EDGE
    return colors
