"""What the plugin's menu commands do: open the panel at the right place. Nothing heavy is imported before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtpy.QtWidgets import QDockWidget, QMainWindow

    from napari_seg.plugin.panel import Panel
    from napari_seg.plugin.planes.widget import LinkedPlanes
    from napari_seg.plugin.structures.export import KindName

PLUGIN = "napari-seg"

_WIDE_WINDOW = 1500
"""Pixels from which the docks are as wide as they like."""


def panel() -> Panel:
    """The panel of the current viewer, opened if it is not.

    Raises:
        RuntimeError: there is no window.
    """
    dock, widget = _opened("Segmentation")
    dock.show()
    dock.raise_()
    return widget


def open_study() -> None:
    """Asks for a folder, and says of each series in it whether it can be used."""
    opened = panel()
    opened.show_tab(opened.study_tab)
    opened.study_tab.ask_folder()


def segment() -> None:
    """Shows the models that can be run on the selected scan."""
    opened = panel()
    opened.show_tab(opened.segment_tab)


def structures() -> None:
    """Shows the structures of the selected labels: volumes, names, colours."""
    opened = panel()
    opened.show_tab(opened.structures_tab)


def compare() -> None:
    """Asks for a reference, and compares the selected labels with it."""
    if (opened := _with_labels()) is not None:
        opened.structures_tab.ask_reference()


def export_nifti() -> None:
    """Saves the selected labels as NIfTI."""
    _export("nifti")


def export_seg() -> None:
    """Saves the selected labels as a DICOM segmentation."""
    _export("seg")


def export_rtstruct() -> None:
    """Saves the selected labels as DICOM contours."""
    _export("rtstruct")


def export_nrrd() -> None:
    """Saves the selected labels for 3D Slicer."""
    _export("nrrd")


def export_csv() -> None:
    """Saves the volumes of the selected labels as a table."""
    _export("csv")


def batch() -> None:
    """Runs a model over every scan of a folder."""
    opened = panel()
    opened.show_tab(opened.batch_tab)


def linked_planes() -> LinkedPlanes:
    """Shows the other planes beside the main one, with a crosshair that all of them share."""
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QMainWindow

    dock, widget = _opened("Linked planes")
    dock.show()
    window = dock.window()
    if isinstance(window, QMainWindow):  # between the picture and the panel
        for other in _panel_docks(window):
            window.splitDockWidget(dock, other, Qt.Orientation.Horizontal)
            widths = [240 if window.width() < _WIDE_WINDOW else 330, _panel_width(window)]  # the picture keeps the rest
            window.resizeDocks([dock, other], widths, Qt.Orientation.Horizontal)
    return widget


def give_room_back(window: QMainWindow) -> None:
    """Make the panel as wide as it was before the planes, whose room Qt gives to it alone when they are closed."""
    from qtpy.QtCore import Qt

    for dock in _panel_docks(window):
        window.resizeDocks([dock], [_panel_width(window)], Qt.Orientation.Horizontal)


def _panel_docks(window: QMainWindow) -> list[QDockWidget]:
    from qtpy.QtWidgets import QDockWidget

    docks = window.findChildren(QDockWidget)
    return [dock for dock in docks if "Segmentation" in dock.windowTitle() and not dock.isFloating()]


def _panel_width(window: QMainWindow) -> int:
    return 340 if window.width() < _WIDE_WINDOW else 420


def _export(kind: KindName) -> None:
    if (opened := _with_labels()) is not None:
        opened.structures_tab.ask_export(kind)


def _with_labels() -> Panel | None:
    """The panel at the selected labels; None, and said why, if nobody knows where these lie."""
    from napari.viewer import current_viewer

    from napari_seg.plugin.messages import Message

    opened = panel()
    opened.show_tab(opened.structures_tab)
    viewer = current_viewer()
    active = None if viewer is None else viewer.layers.selection.active
    if active is not None and active is opened.session.labels:
        return opened
    text = "Select the labels in the layer list. Labels that lie on no open scan can't be saved (output.no_geometry)."
    opened.session.say(Message("warning", text))
    return None


def _opened(name: str) -> tuple:
    from napari.viewer import current_viewer

    viewer = current_viewer()
    if viewer is None:
        raise RuntimeError("there is no napari window")
    answer: tuple = viewer.window.add_plugin_dock_widget(PLUGIN, name)
    return answer
