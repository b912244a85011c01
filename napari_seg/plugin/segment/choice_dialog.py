"""The question which structures a model looks for, in Qt."""

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import button, plain_tip, row, swatch
from napari_seg.plugin.segment.choice import StructureChoice


class StructuresDialog(QDialog):
    """Lists the structures of a model with a check box each, a search, and all or none.

    Args:
        model: the choice, which changes with the boxes; use it if the dialog is accepted.
        title: name of the model.
        parent: the dialog lies on it.
    """

    def __init__(self, model: StructureChoice, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model = model
        self.setWindowTitle(f"Structures of {title}")
        self._words = QLineEdit(clearButtonEnabled=True)
        self._words.setPlaceholderText("Search: liver, left, vertebrae …")
        self._words.setAccessibleName("Search")
        self._list = QListWidget()
        self._list.setAccessibleName("Structures")
        self._items = {segment.name: self._item(segment.name, segment.color) for segment in model.segments}
        self._all_button = button("All", "Choose all that are listed.", lambda: model.choose_shown(True))
        self._none_button = button("None", "Leave out all that are listed.", lambda: model.choose_shown(False))
        self._summary = QLabel(textFormat=Qt.TextFormat.PlainText)
        self._buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel, parent=self
        )
        for widget in (self._all_button, self._none_button):
            widget.setAutoDefault(False)  # Return in the search must not change the choice
        choosing = row(self._all_button, self._none_button)
        choosing.addStretch(1)
        choosing.addWidget(self._summary)
        layout = QVBoxLayout(self)
        layout.addWidget(self._words)
        layout.addWidget(self._list, 1)
        layout.addLayout(choosing)
        layout.addWidget(self._buttons)
        self.resize(380, 560)
        self._words.textChanged.connect(model.search)
        self._list.itemChanged.connect(
            lambda item: model.choose(item.text(), item.checkState() == Qt.CheckState.Checked)
        )
        self._list.itemActivated.connect(self._toggle)
        self._buttons.accepted.connect(self.accept)
        self._buttons.rejected.connect(self.reject)
        model.changed.connect(self._refresh)
        self._refresh()
        self._words.setFocus()

    def _item(self, name: str, color: tuple[int, int, int]) -> QListWidgetItem:
        item = QListWidgetItem(swatch(color), name, self._list)
        item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsUserCheckable)
        return item

    def _toggle(self, item: QListWidgetItem) -> None:
        self.model.choose(item.text(), item.text() not in self.model.chosen)

    def _refresh(self) -> None:
        shown = {segment.name for segment in self.model.shown}
        with signals_blocked(self._list):
            for name, item in self._items.items():
                is_chosen = name in self.model.chosen
                item.setCheckState(Qt.CheckState.Checked if is_chosen else Qt.CheckState.Unchecked)
                item.setHidden(name not in shown)
        self._list.viewport().update()
        self._summary.setText(self.model.summary)
        ok = self._buttons.button(QDialogButtonBox.StandardButton.Ok)
        ok.setEnabled(not self.model.obstacle)
        ok.setToolTip(plain_tip(self.model.obstacle or "Look for the chosen structures only."))
        for widget in (self._all_button, self._none_button):
            widget.setEnabled(bool(shown))
