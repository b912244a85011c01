"""The plugin's docks in napari's main window, and their widths."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow

_WIDE_WINDOW = 1500
"""Width of a window, in pixels, from which the docks get their full widths."""


PLUGIN = "napari-seg"


def open_dock(name: str) -> tuple[QDockWidget, Any]:
    """Return a dock of the current viewer and its widget; open it if it is closed.

    Args:
        name: display name of the widget in the manifest.

    Raises:
        RuntimeError: there is no window.
    """
    from napari.viewer import current_viewer

    viewer = current_viewer()
    if viewer is None:
        raise RuntimeError("there is no napari window")
    dock, widget = viewer.window.add_plugin_dock_widget(PLUGIN, name)
    return dock, widget


def open_planes() -> Any:
    """Return the linked planes; open them next to the main canvas if they are closed."""
    dock, widget = open_dock("Linked planes")
    dock.show()
    window = dock.window()
    if isinstance(window, QMainWindow):
        place_planes(window, dock)
    return widget


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
