"""Linked planes in Qt: the planes that the main picture does not show, beside it; what they do stands in `mirrored`."""

from collections.abc import Callable

import numpy as np
from napari.qt import QtViewer
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtGui import QHideEvent
from qtpy.QtWidgets import QHBoxLayout, QLabel, QPushButton, QSplitter, QVBoxLayout, QWidget
from vispy.scene.visuals import Line

from napari_seg.plugin.commands import give_room_back
from napari_seg.plugin.napari_private import (
    brush_circle,
    canvas_widget,
    main_window,
    native_canvas,
    open_dropped,
    scene,
)
from napari_seg.plugin.placement import PLANES
from napari_seg.plugin.planes.letters import Letters
from napari_seg.plugin.planes.model import MirroredPlanes
from napari_seg.plugin.session import unwrapped

_TURN_MS = 30

_CROSS_COLOR = (1.0, 0.85, 0.1, 0.7)


class LinkedPlanes(QWidget):
    """The planes beside the main picture; all three while that is in 3D."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:  # type: ignore[name-defined] # noqa: F821
        super().__init__()
        viewer = self._viewer = unwrapped(napari_viewer)
        self._waiting: list[Callable[[], None]] = []
        planes = self.planes = MirroredPlanes(viewer, later=self._later)
        self._main = _Cross(canvas_widget(viewer), viewer)
        Letters.on(native_canvas(canvas_widget(viewer)), viewer)
        self.views: dict[str, _Plane] = {}
        self._point = QLabel(wordWrap=True)
        self._point.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._point.setToolTip("Where the crosshair is in the patient; click in a plane to move it.")
        self._splitter = QSplitter(Qt.Orientation.Vertical)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2, 2, 2, 2)
        layout.addWidget(self._splitter, 1)
        layout.addWidget(self._point)
        self.setMinimumWidth(240)
        # Many moves come at once, when several axes change: they are drawn together.
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(20)
        self._timer.timeout.connect(self._draw)
        planes.moved.connect(self._draw_soon)
        self._connected = [viewer.dims.events.order, viewer.dims.events.ndisplay]
        for event in self._connected:
            event.connect(self._arrange)
        self._is_open = True
        self._watched = (main_window(viewer), canvas_widget(viewer))
        for watched in self._watched:
            watched.installEventFilter(self)
        self._arrange()

    def close_views(self) -> None:
        """Closes the planes and lets go of the viewer; nothing can be shown here again."""
        if not self._is_open:
            return
        self._is_open = False
        self._timer.stop()
        for event in self._connected:
            event.disconnect(self._arrange)
        for watched in self._watched:
            watched.removeEventFilter(self)
        self._main.close()
        self.planes.close()
        for view in self.views.values():
            view.close_view()

    def changeEvent(self, event: QEvent) -> None:  # Qt's name
        """Closes the planes when napari takes the widget out of its dock."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None and hasattr(self, "_is_open"):
            self.close_views()

    def closeEvent(self, event: QEvent) -> None:  # Qt's name
        """Closes the planes."""
        self.close_views()
        super().closeEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:  # Qt's name
        """Give the room of the planes back to the picture when they are closed or hidden."""
        super().hideEvent(event)
        window, _ = self._watched
        if window.isVisible() and not event.spontaneous():
            timer = QTimer(window, singleShot=True, interval=0)  # once the dock is gone
            timer.timeout.connect(lambda: give_room_back(timer.parent()))  # a window that is closed must be gone
            timer.timeout.connect(timer.deleteLater)
            timer.start()

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # Qt's name
        """Closes the planes before napari's window is gone: a canvas without a window would crash."""
        window, picture = self._watched
        # a window that a person may still keep is hidden only once it is closed
        is_closed = watched is window and event.type() == QEvent.Type.Hide and not event.spontaneous()
        if is_closed or (watched is picture and event.type() == QEvent.Type.Close):
            self.close_views()
        return False

    def _arrange(self, event: object = None) -> None:
        main = self.planes.main_plane
        before = [view.isHidden() for view in self.views.values()]
        for plane, view in self.views.items():
            view.setVisible(plane != main)
        if before != [view.isHidden() for view in self.views.values()]:
            self._fit_soon()
        if self._is_open and any(plane != main and plane not in self.views for plane in PLANES):
            QTimer.singleShot(_TURN_MS, self._open_next)
        self._draw_soon()

    def _open_next(self) -> None:
        """Opens one of the planes that are to be seen; a canvas takes so long that the window must live in between."""
        main = self.planes.main_plane
        missing = [plane for plane in PLANES if plane != main and plane not in self.views]
        if not self._is_open or not missing:
            return
        plane = missing[0]
        view = self.views[plane] = _Plane(plane, self.planes, self._viewer)
        self._splitter.insertWidget([one for one in PLANES if one in self.views].index(plane), view)
        self._fit_soon()
        self._arrange()

    def _fit_soon(self) -> None:
        """Show all of each picture, once the planes have their sizes."""
        QTimer.singleShot(200, self._fit)

    def _fit(self) -> None:
        if self._is_open:
            for view in self.views.values():
                if not view.isHidden():
                    view.viewer.reset_view()

    def _later(self, act: Callable[[], None]) -> None:
        """Calls one function after the other, with the window's turn in between."""
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
        point, main = self.planes.point, self.planes.main_plane
        self._main.draw(point, main)
        for plane, view in self.views.items():
            view.marks.draw(point, plane)
        words = self.planes.point_in_words
        self._point.setText(f"{words}{', oblique' if words and self.planes.is_oblique else ''}")


class _Plane(QWidget):
    """One plane: its name, a button that exchanges it with the main picture, and its canvas."""

    def __init__(self, plane: str, planes: MirroredPlanes, viewer: object) -> None:
        super().__init__()
        self.viewer = planes.open(plane)
        self.qt_viewer = _QtPlane(viewer, self.viewer)
        self.marks = _Cross(self.qt_viewer, self.viewer)
        self._letters = Letters.on(native_canvas(self.qt_viewer), self.viewer, planes.viewer)
        swap = QPushButton("⤢")
        swap.setFixedWidth(26)
        swap.setToolTip(f"Show the {plane} plane in the main picture.")
        swap.clicked.connect(lambda *_: planes.show_in_main(plane))
        head = QHBoxLayout()
        head.addWidget(QLabel(plane.capitalize()), 1)
        head.addWidget(swap)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        layout.addLayout(head)
        layout.addWidget(self.qt_viewer, 1)

    def close_view(self) -> None:
        """Closes the canvas."""
        self.marks.close()
        self._letters.close()
        self.qt_viewer.close()


class _QtPlane(QtViewer):
    """napari's canvas and sliders; files dropped on it are opened by the main viewer."""

    def __init__(self, main: object, viewer: object) -> None:
        super().__init__(viewer)
        self._main = main

    def _qt_open(self, *args: object, **kwargs: object) -> None:
        open_dropped(self._main, *args, **kwargs)


class _Cross:
    """The crosshair of one canvas."""

    def __init__(self, qt_viewer: QtViewer, viewer: object) -> None:
        self._viewer = viewer
        self._line = Line(
            pos=np.zeros((4, 2), np.float32), color=_CROSS_COLOR, connect="segments", parent=scene(qt_viewer)
        )
        self._line.order = 1000
        self._line.set_gl_state("translucent", depth_test=False)
        self._line.visible = False
        viewer.layers.events.removed.connect(self._on_removed)  # type: ignore[attr-defined]
        # napari leaves the box behind the brush there when the brush is put away: as the crosshair in an empty canvas
        brush_circle(viewer).box = False

    def close(self) -> None:
        self._viewer.layers.events.removed.disconnect(self._on_removed)  # type: ignore[attr-defined]
        self._line.parent = None

    def draw(self, point: tuple[float, float, float] | None, plane: str | None) -> None:
        """Draw the crosshair through a point of napari's world; nothing in an empty canvas."""
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
        """Hide all at once: a line that is drawn in a canvas without layers ends the program in its OpenGL driver."""
        if not self._viewer.layers:  # type: ignore[attr-defined]
            self._hide()
