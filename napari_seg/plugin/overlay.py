"""Drawing of marks over the layers of one canvas, in vispy: marks are no layers, so nobody selects or saves them."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.qt import QtViewer
from numpy.typing import NDArray
from qtpy.QtCore import QObject
from vispy.scene.visuals import Image, Line, Markers
from vispy.visuals.transforms import STTransform

from napari_seg.plugin.napari_private import native_canvas, scene
from napari_seg.plugin.views import ADDED, EXCLUDED, INCLUDED, MOVED, REMOVED, Marks, Views

_COLORS = {
    ADDED: (90, 255, 120),
    REMOVED: (255, 60, 150),
    MOVED: (255, 200, 40),
    INCLUDED: (60, 220, 255),
    EXCLUDED: (255, 110, 30),
}
_FILL, _EDGE = 90, 235
"""Opacity of the inner and of the outermost voxels of an area, 0 to 255."""

_NAME = "napari-seg marks"


class MarksOverlay(QObject):
    """Marks of one canvas, in the plane that it shows; nothing is drawn in 3D.

    Args:
        qt_viewer: canvas.
        viewer: viewer of the canvas.
        views: source of the marks.
    """

    def __init__(self, qt_viewer: QtViewer, viewer: Any, views: Views) -> None:
        super().__init__(native_canvas(qt_viewer))
        self.setObjectName(_NAME)
        self._viewer, self._views = viewer, views
        parent = scene(qt_viewer)
        self._areas = Image(np.zeros((1, 1, 4), np.uint8), interpolation="nearest", parent=parent)
        self._points = Markers(parent=parent)
        self._path = Line(
            pos=np.zeros((2, 2), np.float32), color=(1, 1, 1, 0.9), width=2, connect="strip", parent=parent
        )
        for order, visual in enumerate((self._areas, self._points, self._path)):
            visual.order = 900 + order
            visual.visible = False
            visual.set_gl_state("translucent", depth_test=False)
        self._connected = [viewer.dims.events.point, viewer.dims.events.order, viewer.dims.events.ndisplay]
        for event in self._connected:
            event.connect(self._draw)
        viewer.layers.events.removed.connect(self._on_removed)
        views.marks_changed.connect(self._draw)
        views.path_changed.connect(self._draw_path)
        self._draw()

    @classmethod
    def for_canvas(cls, qt_viewer: QtViewer, viewer: Any, views: Views) -> MarksOverlay:
        """Return the marks of a canvas; create them if there are none."""
        found = next((one for one in native_canvas(qt_viewer).children() if one.objectName() == _NAME), None)
        return found if isinstance(found, cls) else cls(qt_viewer, viewer, views)

    def close(self) -> None:
        """Remove the marks from the canvas."""
        for event in self._connected:
            event.disconnect(self._draw)
        self._viewer.layers.events.removed.disconnect(self._on_removed)
        self._views.marks_changed.disconnect(self._draw)
        self._views.path_changed.disconnect(self._draw_path)
        for visual in (self._areas, self._points, self._path):
            visual.parent = None
        self.setParent(None)
        self.deleteLater()

    @property
    def _is_drawable(self) -> bool:
        dims = self._viewer.dims
        return bool(self._viewer.layers) and dims.ndim == 3 and dims.ndisplay == 2

    def _on_removed(self, event: object = None) -> None:
        """Hide everything at once: drawing in a canvas without layers crashes in the OpenGL driver."""
        if not self._viewer.layers:
            for visual in (self._areas, self._points, self._path):
                visual.visible = False

    def _draw(self, event: object = None) -> None:
        marks = self._views.marks if self._is_drawable else None
        if marks is None:
            self._areas.visible = self._points.visible = False
            return
        axis, down, right = self._viewer.dims.order
        index = round((self._viewer.dims.point[axis] - marks.translate[axis]) / marks.scale[axis])
        colors = rgba_of(marks, (axis, down, right), index)
        self._areas.visible = colors is not None
        if colors is not None:
            self._areas.set_data(colors)
            scale = marks.scale[[right, down]]
            self._areas.transform = STTransform(scale=scale, translate=marks.translate[[right, down]] - scale / 2)
        shown = marks.points[:, axis] == index
        self._points.visible = bool(shown.any())
        if shown.any():
            kinds = marks.kinds[shown]
            self._points.set_data(
                (marks.points[shown] * marks.scale + marks.translate)[:, [right, down]].astype(np.float32),
                size=11,
                edge_width=1.5,
                edge_color="black",
                face_color=np.array([_COLORS[int(kind)] for kind in kinds], np.float32) / 255,
                symbol=np.where(kinds == EXCLUDED, "diamond", "disc"),
            )

    def _draw_path(self) -> None:
        path = self._views.path
        self._path.visible = self._is_drawable and self._views.path_viewer is self._viewer and len(path) > 1
        if self._path.visible:
            self._path.set_data(path[:, list(self._viewer.dims.order[:0:-1])].astype(np.float32))


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
    for kind, color in _COLORS.items():
        table[kind] = (*color, _FILL if kind in (ADDED, REMOVED, MOVED) else _EDGE)
    colors = table[kinds]
    padded = np.pad(kinds, 1)
    middle = padded[1:-1, 1:-1]
    is_edge = np.zeros(kinds.shape, bool)
    for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        is_edge |= neighbour != middle
    colors[is_edge & (kinds > 0), 3] = _EDGE
    return colors
