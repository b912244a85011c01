"""Linked planes in Qt: a dock with a canvas for each plane that the main canvas does not show."""

from collections.abc import Callable

import numpy as np
from napari.qt import QtViewer
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtGui import QDropEvent, QHideEvent
from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QSplitter, QVBoxLayout, QWidget
from vispy.scene.visuals import Line

from napari_seg.plugin.controls import plain_tip
from napari_seg.plugin.docks import restore_panel_width
from napari_seg.plugin.napari_private import brush_circle, main_window, native_canvas, qt_viewer_of, scene
from napari_seg.plugin.overlay import MarksOverlay
from napari_seg.plugin.placement import PLANES
from napari_seg.plugin.planes.markers import OrientationMarkers
from napari_seg.plugin.planes.model import PlanesModel
from napari_seg.plugin.session import unwrapped
from napari_seg.plugin.views import views_of

_TURN_MS = 30

_CROSS_COLOR = (1.0, 0.85, 0.1, 0.7)


class LinkedPlanes(QWidget):
    """The planes that the main canvas does not show; all three while it is in 3D."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:  # type: ignore[name-defined] # noqa: F821
        super().__init__()
        viewer = unwrapped(napari_viewer)
        self._waiting: list[Callable[[], None]] = []
        model = self.model = PlanesModel(viewer, later=self._later)
        main_canvas = qt_viewer_of(viewer)
        self._main = _Crosshair(main_canvas, viewer)
        OrientationMarkers.for_canvas(native_canvas(main_canvas), viewer)
        self.views: dict[str, _Plane] = {}
        self._point = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._point.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._point.setToolTip("Position of the crosshair in the patient; click in a plane to move it.")
        self._splitter = QSplitter(Qt.Orientation.Vertical)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2, 2, 2, 2)
        layout.addWidget(self._splitter, 1)
        layout.addWidget(self._point)
        self.setMinimumWidth(240)
        # a change of several axes moves the crosshair several times: draw once
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(20)
        self._timer.timeout.connect(self._draw)
        model.moved.connect(self._draw_soon)
        self._connected = [viewer.dims.events.order, viewer.dims.events.ndisplay]
        for event in self._connected:
            event.connect(self._arrange)
        self._is_open = True
        self._watched = (main_window(viewer), main_canvas)
        for watched in self._watched:
            watched.installEventFilter(self)
        self._arrange()

    def close_views(self) -> None:
        """Close the planes for good and disconnect from the viewer."""
        if not self._is_open:
            return
        self._is_open = False
        self._timer.stop()
        for event in self._connected:
            event.disconnect(self._arrange)
        for watched in self._watched:
            watched.removeEventFilter(self)
        self._main.close()
        self.model.close()
        for view in self.views.values():
            view.close_view()

    def changeEvent(self, event: QEvent) -> None:  # Qt's name
        """Close the planes when napari takes the widget out of its dock."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None and hasattr(self, "_is_open"):
            self.close_views()

    def closeEvent(self, event: QEvent) -> None:  # Qt's name
        """Close the planes."""
        self.close_views()
        super().closeEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:  # Qt's name
        """Give the width of the planes back to the main canvas when they are closed or hidden."""
        super().hideEvent(event)
        window, _ = self._watched
        if window.isVisible() and not event.spontaneous():
            timer = QTimer(window, singleShot=True, interval=0)  # after the dock is gone
            timer.timeout.connect(lambda: restore_panel_width(timer.parent()))  # no reference to a closed window
            timer.timeout.connect(timer.deleteLater)
            timer.start()

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # Qt's name
        """Close the planes before napari's window is gone: a canvas without a window would crash."""
        window, main_canvas = self._watched
        # a user may cancel the closing of a window; it is hidden only if it really closes
        is_closed = watched is window and event.type() == QEvent.Type.Hide and not event.spontaneous()
        if is_closed or (watched is main_canvas and event.type() == QEvent.Type.Close):
            self.close_views()
        return False

    def _arrange(self, event: object = None) -> None:
        main = self.model.main_plane
        before = [view.isHidden() for view in self.views.values()]
        for plane, view in self.views.items():
            view.setVisible(plane != main)
        if before != [view.isHidden() for view in self.views.values()]:
            self._fit_soon()
        if self._is_open and any(plane != main and plane not in self.views for plane in PLANES):
            QTimer.singleShot(_TURN_MS, self._open_next)
        self._draw_soon()

    def _open_next(self) -> None:
        """Open one missing plane; a canvas takes so long that the window must handle events in between."""
        main = self.model.main_plane
        missing = [plane for plane in PLANES if plane != main and plane not in self.views]
        if not self._is_open or not missing:
            return
        plane = missing[0]
        view = self.views[plane] = _Plane(plane, self.model, self._watched[1])
        self._splitter.insertWidget([one for one in PLANES if one in self.views].index(plane), view)
        self._fit_soon()
        self._arrange()

    def _fit_soon(self) -> None:
        """Fit the layers into each plane after the planes have their sizes."""
        QTimer.singleShot(200, self._fit)

    def _fit(self) -> None:
        if self._is_open:
            for view in self.views.values():
                if not view.isHidden():
                    view.viewer.reset_view()

    def _later(self, act: Callable[[], None]) -> None:
        """Call functions one after the other; the window handles events in between."""
        self._waiting.append(act)
        if len(self._waiting) == 1:
            QTimer.singleShot(_TURN_MS, self._next)

    def _next(self) -> None:
        act, *self._waiting = self._waiting
        if self._waiting:
            QTimer.singleShot(_TURN_MS, self._next)
        if self._is_open:
            act()

    def _draw_soon(self) -> None:
        self._timer.start()

    def _draw(self) -> None:
        point, main = self.model.point, self.model.main_plane
        self._main.draw(point, main)
        for plane, view in self.views.items():
            view.crosshair.draw(point, plane)
        text = self.model.position_text
        self._point.setText(f"{text}{', oblique' if text and self.model.is_oblique else ''}")


class _Plane(QWidget):
    """One plane: its name, a button that shows it in the main canvas, and its own canvas."""

    def __init__(self, plane: str, model: PlanesModel, main_canvas: QtViewer) -> None:
        super().__init__()
        self.viewer = model.open(plane)
        self.qt_viewer = _PlaneCanvas(main_canvas, self.viewer)
        self.crosshair = _Crosshair(self.qt_viewer, self.viewer)
        self._markers = OrientationMarkers.for_canvas(native_canvas(self.qt_viewer), self.viewer, model.viewer)
        self._marks = MarksOverlay.for_canvas(self.qt_viewer, self.viewer, views_of(model.viewer))
        swap = QPushButton("⤢")
        swap.setFixedWidth(26)
        swap.setToolTip(plain_tip(f"Show the {plane} plane in the main canvas."))
        swap.clicked.connect(lambda *_: model.show_in_main(plane))
        head = QHBoxLayout()
        head.addWidget(QLabel(plane.capitalize(), textFormat=Qt.TextFormat.PlainText), 1)
        head.addWidget(swap)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        layout.addLayout(head)
        layout.addWidget(self.qt_viewer, 1)

    def close_view(self) -> None:
        """Close the canvas."""
        self.crosshair.close()
        self._markers.close()
        self._marks.close()
        self.qt_viewer.close()


class _PlaneCanvas(QtViewer):
    """napari's canvas and sliders for one plane; files dropped on it are opened by the main viewer."""

    def __init__(self, main_canvas: QtViewer, viewer: object) -> None:
        super().__init__(viewer)
        self._main_canvas = main_canvas

    def dropEvent(self, event: QDropEvent) -> None:  # Qt's name
        """Hand dropped files to the main canvas."""
        self._main_canvas.dropEvent(event)


class _Crosshair:
    """Crosshair of one canvas."""

    def __init__(self, qt_viewer: QtViewer, viewer: object) -> None:
        self._viewer = viewer
        self._line = Line(
            pos=np.zeros((4, 2), np.float32), color=_CROSS_COLOR, connect="segments", parent=scene(qt_viewer)
        )
        self._line.order = 1000
        self._line.set_gl_state("translucent", depth_test=False)
        self._line.visible = False
        viewer.layers.events.removed.connect(self._on_removed)  # type: ignore[attr-defined]
        # napari keeps the box behind the brush after the brush is put away; drawing it in an empty canvas would crash
        brush_circle(viewer).box = False

    def close(self) -> None:
        self._viewer.layers.events.removed.disconnect(self._on_removed)  # type: ignore[attr-defined]
        self._line.parent = None

    def draw(self, point: tuple[float, float, float] | None, plane: str | None) -> None:
        """Draw the crosshair through a point of napari's world; hide it in an empty canvas."""
        is_empty = not self._viewer.layers or self._viewer.dims.ndim != 3  # type: ignore[attr-defined]
        if point is None or plane is None or is_empty:
            self._hide()
            return
        self._line.visible = True
        down, right = PLANES[plane][1:]
        extent = self._viewer.layers.extent.world  # type: ignore[attr-defined]
        (top, left), (bottom, far) = extent[0][[down, right]], extent[1][[down, right]]
        x, y = point[right], point[down]
        self._line.set_data(np.array([[left, y], [far, y], [x, top], [x, bottom]], np.float32))

    def _hide(self) -> None:
        self._line.visible = False

    def _on_removed(self, event: object = None) -> None:
        """Hide the crosshair at once: drawing a line in a canvas without layers crashes in the OpenGL driver."""
        if not self._viewer.layers:  # type: ignore[attr-defined]
            self._hide()
