"""Orientation markers (R, L, A, P, S, I) at the edges of a canvas, in Qt."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QLabel, QWidget

from napari_seg.plugin.planes.orientation import orientation_letters

_STYLE = "color: #ffd91a; background: rgba(0, 0, 0, 120); font-weight: bold; font-size: 13px; padding: 0 2px;"

_NAME = "napari-seg orientation markers"


class OrientationMarkers(QObject):
    """Four letters that follow the displayed plane; hidden while the patient's left and right are unknown.

    Args:
        canvas: Qt widget of the canvas.
        viewer: viewer shown on this canvas.
        main_viewer: main viewer, whose layers carry patient geometry; differs from `viewer` only for linked planes.
    """

    def __init__(self, canvas: QWidget, viewer: Any, main_viewer: Any) -> None:
        super().__init__(canvas)
        self.setObjectName(_NAME)
        self._canvas, self._viewer, self._main_viewer = canvas, viewer, main_viewer
        self._labels = [QLabel(canvas, textFormat=Qt.TextFormat.PlainText) for _ in range(4)]
        for label in self._labels:
            label.setStyleSheet(_STYLE)
            label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
            label.hide()
        canvas.installEventFilter(self)
        self._connected = [
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
            viewer.camera.events.orientation,
            main_viewer.layers.events.inserted,
            main_viewer.layers.events.removed,
        ]
        for event in self._connected:
            event.connect(self.refresh, position="last")  # after the panel has set the geometry of a new layer
        canvas.destroyed.connect(self._disconnect)
        self.refresh()

    @classmethod
    def for_canvas(cls, canvas: QWidget, viewer: Any, main_viewer: Any | None = None) -> OrientationMarkers:
        """Return the markers of a canvas; create them if there are none."""
        found = next((child for child in canvas.children() if child.objectName() == _NAME), None)
        return found if isinstance(found, cls) else cls(canvas, viewer, viewer if main_viewer is None else main_viewer)

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the visible letters at the left, right, upper and lower edge; "" for a hidden one."""
        return tuple("" if label.isHidden() else label.text() for label in self._labels)

    def close(self) -> None:
        """Remove the markers."""
        self._disconnect()
        self._canvas.removeEventFilter(self)
        for label in self._labels:
            label.deleteLater()
        self.setParent(None)
        self.deleteLater()

    def _disconnect(self, *_: object) -> None:
        for event in self._connected:
            event.disconnect(self.refresh)
        self._connected = []

    def refresh(self, event: object = None) -> None:
        """Show the letters of the displayed plane."""
        for label, text in zip(self._labels, orientation_letters(self._viewer, self._main_viewer.layers), strict=True):
            label.setText(text)
            label.setVisible(bool(text))
            label.adjustSize()
        self._place()

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # Qt's name
        """Reposition the markers when the canvas is resized."""
        if event.type() == QEvent.Type.Resize:
            self._place()
        return False

    def _place(self) -> None:
        width, height = self._canvas.width(), self._canvas.height()
        left, right, upper, lower = self._labels
        for label, x, y in (
            (left, 4, (height - left.height()) // 2),
            (right, width - right.width() - 4, (height - right.height()) // 2),
            (upper, (width - upper.width()) // 2, 2),
            (lower, (width - lower.width()) // 2, height - lower.height() - 2),
        ):
            label.move(x, y)
