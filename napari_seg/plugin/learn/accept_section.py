"""Widgets of *Accept*: the folder of accepted cases, the button, and the structures that were checked."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QFrame, QLabel, QListWidget, QListWidgetItem, QPushButton, QVBoxLayout, QWidget
from superqt import QElidingLabel
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import ask_folder, button, plain_tip, row, swatch
from napari_seg.plugin.learn.accepting import AcceptModel

_ROWS = 6
"""Structures that the list shows without scrolling."""


class AcceptSection(QWidget):
    """Section of the Learn tab that puts the selected labels into the training set."""

    def __init__(self, model: AcceptModel) -> None:
        super().__init__()
        self.model = model
        self._folder = path_label()
        self._folder_button = button(
            "Set…",
            "Choose the folder of accepted cases, or an empty folder for a new set. “Train” reads it as it is.",
            self._on_folder,
        )
        self._summary = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._subject = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self.accept_button = AcceptButton(self, "Accept")
        self._partly = QCheckBox("Not all structures were checked")
        self._partly.setToolTip("Uncheck structures that you did not correct; nothing is learned about them here.")
        self._partly.toggled.connect(self._on_partly)
        self._list = QListWidget()
        self._list.itemChanged.connect(self._on_item)
        self._question = QFrame()
        self._question.setFrameShape(QFrame.Shape.StyledPanel)
        self._question_text = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        question = QVBoxLayout(self._question)
        question.addWidget(self._question_text)
        self._replace_button = button("Replace", "Put these labels in place of the earlier ones.", model.replace)
        self._keep_button = button("Keep the earlier", "Leave the set as it is.", model.keep)
        question.addLayout(row(self._replace_button, self._keep_button))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(heading("Accept"))
        folder = row(self._folder_button, self._folder)
        folder.setStretch(1, 1)
        layout.addLayout(folder)
        for widget in (self._summary, self._subject, self.accept_button, self._question, self._partly, self._list):
            layout.addWidget(widget)
        self._list.hide()
        model.changed.connect(self._refresh)
        self._refresh()

    def accept(self) -> None:
        """Accept the selected labels; the first time, ask for the folder."""
        if self.model.folder is None and not self._on_folder():
            return
        self.model.start()

    def _on_folder(self) -> bool:
        folder = ask_folder(self, "Folder of accepted cases, or an empty folder")
        if folder is not None:
            self.model.choose_folder(folder)
        return folder is not None

    def _on_partly(self, is_partly: bool) -> None:
        self._list.setVisible(is_partly)
        if is_partly:
            self._fill_list()
        else:
            self.model.forget_checks()

    def _on_item(self, item: QListWidgetItem) -> None:
        name = item.data(Qt.ItemDataRole.UserRole)
        self.model.check(name, item.checkState() == Qt.CheckState.Checked)

    def _refresh(self) -> None:
        model = self.model
        self._folder.setText(str(model.folder or "no set chosen"))
        self._summary.setText(f"⚠ {model.fault}" if model.fault else model.summary)
        self._summary.setVisible(bool(self._summary.text()))
        labels, scan = model.labels, model.scan
        self._subject.setText("" if labels is None or scan is None else f"“{labels.name}” on “{scan.name}”")
        self._subject.setVisible(bool(self._subject.text()))
        rows = model.rows
        self._partly.setEnabled(bool(rows))
        has_unchecked = False in model.checks.values()
        with signals_blocked(self._partly):
            self._partly.setChecked(has_unchecked or (self._partly.isChecked() and bool(rows)))
        self._list.setVisible(self._partly.isChecked())
        if self._partly.isChecked():
            self._fill_list()
        question = model.question
        self._question.setVisible(question is not None)
        if question is not None:
            self._question_text.setText(question.text)

    def _fill_list(self) -> None:
        rows = self.model.rows
        with signals_blocked(self._list):
            while self._list.count() > len(rows):
                self._list.takeItem(self._list.count() - 1)
            while self._list.count() < len(rows):
                self._list.addItem(QListWidgetItem())
            for number, (one, is_checked) in enumerate(rows):
                item = self._list.item(number)
                item.setText(one.name)
                item.setIcon(swatch(one.color))
                item.setToolTip(plain_tip(one.name))
                item.setData(Qt.ItemDataRole.UserRole, one.name)
                item.setCheckState(Qt.CheckState.Checked if is_checked else Qt.CheckState.Unchecked)
        height = self._list.sizeHintForRow(0) if rows else 20
        self._list.setFixedHeight(height * max(1, min(len(rows), _ROWS)) + 2 * self._list.frameWidth() + 2)


class AcceptButton(QPushButton):
    """Button that accepts the selected labels; other tabs may show one too.

    Args:
        section: asks for the folder.
        text: text of the button.
    """

    def __init__(self, section: AcceptSection, text: str = "Accept for training") -> None:
        super().__init__(text)
        self._model = section.model
        self.clicked.connect(lambda *_: section.accept())
        self._model.changed.connect(self._refresh)
        self._refresh()

    def _refresh(self) -> None:
        obstacle = self._model.obstacle
        self.setEnabled(not obstacle)
        does = "Put the selected labels and their scan into the set of accepted cases, which improves the model later."
        self.setToolTip(plain_tip(obstacle or does))


def heading(text: str) -> QLabel:
    """Return the title of a section."""
    label = QLabel(text, textFormat=Qt.TextFormat.PlainText)
    font = label.font()
    font.setBold(True)
    label.setFont(font)
    return label


def path_label() -> QElidingLabel:
    """Return a label for a path, which is elided in the middle."""
    label = QElidingLabel()
    label.setElideMode(Qt.TextElideMode.ElideMiddle)
    label.setEllipsesWidth(10)  # the padding of napari's themes
    return label
