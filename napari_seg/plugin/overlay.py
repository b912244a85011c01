"""Drawing of marks over the layers of one canvas, in vispy: marks are no layers, so nobody selects or saves them."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.qt import QtViewer
from qtpy.QtCore import QObject
from vispy.scene.visuals import Image, Line, Markers
from vispy.visuals.transforms import STTransform

from napari_seg.plugin.napari_private import native_canvas, scene
from napari_seg.plugin.views import COLORS, EXCLUDED, Views, rgba_of

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
                face_color=np.array([COLORS[int(kind)] for kind in kinds], np.float32) / 255,
                symbol=np.where(kinds == EXCLUDED, "diamond", "disc"),
            )

    def _draw_path(self) -> None:
        path = self._views.path
        self._path.visible = self._is_drawable and self._views.path_viewer is self._viewer and len(path) > 1
        if self._path.visible:
            self._path.set_data(path[:, list(self._viewer.dims.order[:0:-1])].astype(np.float32))
