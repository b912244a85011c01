"""Widths of the plugin's docks in napari's main window."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow

_WIDE_WINDOW = 1500
"""Width of a window, in pixels, from which the docks get their full widths."""


def place_planes(window: QMainWindow, planes: QDockWidget) -> None:
    """Put the dock of the linked planes between the main canvas and the panel; the canvas gets the remaining width."""
    for panel in _panel_docks(window):
        window.splitDockWidget(planes, panel, Qt.Orientation.Horizontal)
        widths = [240 if window.width() < _WIDE_WINDOW else 330, _panel_width(window)]
        window.resizeDocks([planes, panel], widths, Qt.Orientation.Horizontal)


def restore_panel_width(window: QMainWindow) -> None:
    """Set the usual width of the panel again: Qt gives it all the width of a dock that is closed next to it."""
    for panel in _panel_docks(window):
        window.resizeDocks([panel], [_panel_width(window)], Qt.Orientation.Horizontal)


def _panel_docks(window: QMainWindow) -> list[QDockWidget]:
    docks = window.findChildren(QDockWidget)
    return [dock for dock in docks if "Segmentation" in dock.windowTitle() and not dock.isFloating()]


def _panel_width(window: QMainWindow) -> int:
    return 340 if window.width() < _WIDE_WINDOW else 420
