"""Dialogs and widgets of session files, and the settings of the tools of a tab, in Qt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QFileDialog, QFrame, QLabel, QMessageBox, QVBoxLayout, QWidget

from napari_seg.errors import counted
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
        self._label.setText(f"{counted(count, 'scan')} of the session not found.")
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


_PERSONAL = ("EditTab.at_once_box", "EditTab.overwrite_box")
"""Boxes that only a person at this window changes: with them, later edits replace labels without a question."""


def settings_of(owner: QWidget) -> dict[str, bool | float]:
    """Return the values of the number boxes and check boxes of a widget, by the names of their attributes."""
    return {name: one.isChecked() if isinstance(one, QCheckBox) else one.value() for name, one in _boxes(owner)}


def set_settings(owner: QWidget, settings: Mapping[str, object]) -> None:
    """Set the boxes of a widget; names that it does not have, and values of another type, are ignored."""
    # a range that is set by hand is no longer automatic: numbers are set before check boxes
    for name, one in sorted(_boxes(owner), key=lambda pair: isinstance(pair[1], QCheckBox)):
        value = settings.get(name)
        if isinstance(one, QCheckBox):
            if isinstance(value, bool):
                one.setChecked(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:
            one.setValue(value)


def _boxes(owner: QWidget) -> Iterator[tuple[str, QCheckBox | QDoubleSpinBox]]:
    for widget in (owner, *owner.findChildren(QWidget)):
        for name, one in vars(widget).items():
            if isinstance(one, QCheckBox | QDoubleSpinBox):
                full_name = f"{type(widget).__name__}.{name.strip('_')}"
                if full_name not in _PERSONAL:
                    yield full_name, one
