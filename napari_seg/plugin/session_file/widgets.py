"""Dialogs and widgets of session files, in Qt."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QFrame, QLabel, QMessageBox, QVBoxLayout, QWidget

from napari_seg.plugin.controls import ask_folder, button
from napari_seg.plugin.session_file.endings import ENDING
from napari_seg.plugin.session_file.model import SessionFileModel

_FILTER = f"napari-seg session (*{ENDING})"


class MissingScans(QFrame):
    """Note about scans of a session that were not found, with a button to choose their folder."""

    def __init__(self, model: SessionFileModel) -> None:
        super().__init__()
        self._model = model
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._label = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._button = button("Choose the folder of the scans…", "Search a folder and all folders in it.", self._ask)
        layout = QVBoxLayout(self)
        layout.addWidget(self._label)
        layout.addWidget(self._button)
        model.changed.connect(self._refresh)
        self._refresh()

    def _ask(self) -> None:
        if (folder := ask_folder(self, "Folder of the scans")) is not None:
            self._model.find_missing(folder)

    def _refresh(self) -> None:
        count = self._model.missing
        self._label.setText(f"{count} scan{'s' * (count != 1)} of the session not found.")
        self._button.setEnabled(not self._model.is_busy)
        self.setVisible(count > 0)


def ask_to_save(model: SessionFileModel, parent: QWidget) -> None:
    """Ask for a file, and save the session there."""
    path, _ = QFileDialog.getSaveFileName(parent, "Save the session", str(model.suggested_path), _FILTER)
    if path:
        model.save(Path(path))


def ask_to_open(model: SessionFileModel, parent: QWidget) -> None:
    """Ask for a session file, and open it."""
    folder = str(model.suggested_path.parent)
    path, _ = QFileDialog.getOpenFileName(parent, "Open a session", folder, _FILTER)
    if path:
        open_file(model, Path(path), parent)


def open_file(model: SessionFileModel, path: Path, parent: QWidget) -> None:
    """Open a session file; ask first what becomes of the layers that are open."""
    layers = model.session.viewer.layers
    if not layers:
        model.open(path)
        return
    box = QMessageBox(QMessageBox.Icon.Question, "Open a session", "", parent=parent)
    box.setTextFormat(Qt.TextFormat.PlainText)
    count = len(layers)
    box.setText(f"{count} layer{'s are' if count > 1 else ' is'} open. Close {'them' if count > 1 else 'it'} first?")
    box.setInformativeText("Corrections that are not saved can be restored afterwards.")
    close = box.addButton("Close and open", QMessageBox.ButtonRole.DestructiveRole)
    add = box.addButton("Add to the open layers", QMessageBox.ButtonRole.AcceptRole)
    cancel = box.addButton(QMessageBox.StandardButton.Cancel)
    box.setDefaultButton(add)
    box.setEscapeButton(cancel)
    box.exec()
    if box.clickedButton() in (close, add):
        model.open(path, replaces=box.clickedButton() is close)
