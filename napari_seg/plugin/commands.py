"""Menu commands of the plugin: they open the panel at the right tab. Heavy modules are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from napari_seg.formats.kinds import FormatName
    from napari_seg.plugin.panel import Panel
    from napari_seg.plugin.planes.widget import LinkedPlanes


def panel() -> Panel:
    """Return the panel of the current viewer; open it if it is closed.

    Raises:
        RuntimeError: there is no window.
    """
    from napari_seg.plugin.docks import open_dock

    dock, widget = open_dock("Segmentation")
    dock.show()
    dock.raise_()
    return widget


def open_study() -> None:
    """Ask for a folder and list its scans in the Study tab."""
    opened = panel()
    opened.show_tab(opened.study_tab)
    opened.study_tab.ask_folder()


def save_session() -> None:
    """Ask for a file, and save layers, planes, structures, prompts and the chosen model in it."""
    from napari_seg.plugin.session_file.widgets import ask_to_save

    opened = panel()
    ask_to_save(opened.session_files, opened)


def open_session() -> None:
    """Ask for a session file, and open it."""
    from napari_seg.plugin.session_file.widgets import ask_to_open

    opened = panel()
    ask_to_open(opened.session_files, opened)


def open_session_file(path: Path) -> None:
    """Open a session file in the current viewer."""
    from napari_seg.plugin.session_file.widgets import open_file

    opened = panel()
    open_file(opened.session_files, path, opened)


def segment() -> None:
    """Show the Segment tab with the models that can run on the selected scan."""
    opened = panel()
    opened.show_tab(opened.segment_tab)


def structures() -> None:
    """Show the structures of the selected labels: volumes, names, colours."""
    opened = panel()
    opened.show_tab(opened.structures_tab)


def edit() -> None:
    """Show the Edit tab, which corrects structures."""
    opened = panel()
    opened.show_tab(opened.edit_tab)


def compare() -> None:
    """Ask for a reference and compare the selected labels with it."""
    if (opened := _panel_with_labels()) is not None:
        opened.structures_tab.ask_reference()


def export_nifti() -> None:
    """Save the selected labels as NIfTI."""
    _export("nifti")


def export_seg() -> None:
    """Save the selected labels as a DICOM segmentation."""
    _export("seg")


def export_rtstruct() -> None:
    """Save the selected labels as DICOM contours."""
    _export("rtstruct")


def export_nrrd() -> None:
    """Save the selected labels for 3D Slicer."""
    _export("nrrd")


def export_csv() -> None:
    """Save the volumes of the selected labels as a table."""
    _export("csv")


def batch() -> None:
    """Show the Batch tab, which runs a model over every scan of a folder."""
    opened = panel()
    opened.show_tab(opened.batch_tab)


def train() -> None:
    """Show the Train tab, which trains a model on a folder of scans with label maps."""
    opened = panel()
    opened.show_tab(opened.train_tab)


def learn() -> None:
    """Show the Learn tab: accept corrected cases, find the next one, improve the model."""
    opened = panel()
    opened.show_tab(opened.learn_tab)


def accept() -> None:
    """Accept the selected labels as a case of the training set."""
    if (opened := _panel_with_labels()) is not None:
        opened.show_tab(opened.learn_tab)
        opened.learn_tab.accept()


def linked_planes() -> LinkedPlanes:
    """Show the other planes next to the main canvas, with one crosshair for all of them."""
    from napari_seg.plugin.docks import open_planes

    widget: LinkedPlanes = open_planes()
    return widget


def _export(kind: FormatName) -> None:
    if (opened := _panel_with_labels()) is not None:
        opened.structures_tab.ask_export(kind)


def _panel_with_labels() -> Panel | None:
    """Return the panel if labels with a known place are selected; otherwise report that and return None."""
    from napari.viewer import current_viewer

    from napari_seg.plugin.messages import Message

    opened = panel()
    opened.show_tab(opened.structures_tab)
    viewer = current_viewer()
    active = None if viewer is None else viewer.layers.selection.active
    if active is not None and active is opened.session.labels:
        return opened
    text = "Select the labels in the layer list. Labels that lie on no open scan can't be saved (output.no_geometry)."
    opened.session.show_messages(Message("warning", text))
    return None
