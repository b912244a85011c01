"""The window *Models…* in Qt: search, install, check and remove models."""

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QInputDialog,
    QLabel,
    QLineEdit,
    QMenu,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_seg.errors import printable
from napari_seg.plugin.controls import DetailsPane, ask_folder, button, number_item, plain_tip, row, table
from napari_seg.plugin.models.model import SIZES, Action, LicenceQuestion, ModelsModel
from napari_seg.plugin.models.questions import LicenceDialog
from napari_seg.plugin.models.rows import LICENCE_KINDS, WAYS, ModelRow, size_text

_HEADS = ("Model", "Finds", "Modality", "Size", "Licence", "Runs", "Where")
_PLACES = {
    "installed": "Installed",
    "shipped": "Shipped",
    "elsewhere": "Own folder",
    "catalogue": "Catalogue",
    "combined": "Combined",
}
_TITLE_WIDTH = 270
_MARKS = {"info": "", "warning": "⚠ ", "error": "✕ "}


class ModelsDialog(QDialog):
    """Window with the models on this machine and those of the catalogue.

    Args:
        model: its state.
        parent: the window lies on it.

    Attributes:
        chosen: emitted with the `Bundle` that the user chose for the Segment tab.
    """

    chosen = Signal(object)

    def __init__(self, model: ModelsModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model = model
        self._listed: list[ModelRow] = []
        self._licence_dialog: LicenceDialog | None = None
        self.setWindowTitle("Models")
        self._build()
        self.resize(1060, 640)
        model.changed.connect(self._refresh)
        model.licence_asked.connect(self._ask_licence)
        model.jobs.delivered.connect(self._show_progress)
        self._refresh()

    def showEvent(self, event: object) -> None:  # Qt's name
        """Read the list again when the window is opened: files may have changed."""
        super().showEvent(event)
        self.model.refresh()
        self._words.setFocus()

    # building

    def _build(self) -> None:
        self._words = QLineEdit(clearButtonEnabled=True)
        self._words.setPlaceholderText("Search: a structure, a modality, a name …")
        self._words.setAccessibleName("Search")
        self._words.installEventFilter(self)
        self._licences = _choice("Any licence", LICENCE_KINDS, "Class of the licence.")
        self._ways = _choice("Runs any way", WAYS, "How the model runs; known once it is installed.")
        self._sizes = QComboBox(toolTip="Size on disk, or of the download.")
        for size, title in SIZES.items():
            self._sizes.addItem(title, size)
        self._only_here = QCheckBox("On this computer")
        self._only_here.setToolTip("Leave out models that are not installed.")
        self._table = table(*_HEADS, stretched=1)
        self._table.setAccessibleName("Models")
        self._table.setTextElideMode(Qt.TextElideMode.ElideRight)
        self._table.setTabKeyNavigation(False)
        self._table.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
        self._table.setColumnWidth(0, _TITLE_WIDTH)
        self._details = DetailsPane(self._table)
        self._details.setSizes([380, 130])

        self._progress_label = QLabel(textFormat=Qt.TextFormat.PlainText)
        self._progress_bar = QProgressBar(textVisible=False)
        self._cancel_button = button("Cancel", "Stop; what was downloaded stays for the next attempt.", self.model.stop)
        self._message = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._disk = QLabel(textFormat=Qt.TextFormat.PlainText)

        self._use_button = button("Use", "", self._on_use)
        self._download_button = button("Download…", "", self.model.download)
        self._check_button = button("Check", "", self.model.check)
        self._convert_button = button("Convert…", "", self._on_convert)
        self._remove_button = button("Remove…", "", self._on_remove)
        self._add_button = QPushButton("Add from folder or zip…", toolTip="Install a MONAI bundle from this computer.")
        menu = QMenu(self._add_button)
        menu.addAction("Copy a folder…", self._on_add_folder)
        menu.addAction("Unpack a zip…", self._on_add_zip)
        menu.addAction("Use a folder where it is…", self._on_list_folder)
        menu.addAction("Download from an address…", self._on_add_address)
        self._add_button.setMenu(menu)
        self._close_button = button("Close", "A download goes on.", self.close)

        filters = row(self._words, self._licences, self._ways, self._sizes, self._only_here)
        filters.setStretch(0, 1)
        progress = row(self._progress_label, self._progress_bar, self._cancel_button)
        progress.setStretch(1, 1)
        buttons = QHBoxLayout()
        actions = (
            self._use_button,
            self._download_button,
            self._check_button,
            self._convert_button,
            self._remove_button,
        )
        for widget in actions:
            buttons.addWidget(widget)
        buttons.addStretch(1)
        buttons.addWidget(self._disk)
        buttons.addWidget(self._add_button)
        buttons.addWidget(self._close_button)
        layout = QVBoxLayout(self)
        layout.addLayout(filters)
        layout.addWidget(self._details, 1)
        layout.addWidget(self._message)
        layout.addLayout(progress)
        layout.addLayout(buttons)
        for widget in self.findChildren(QPushButton):
            widget.setAutoDefault(False)  # Return in the search must not start a download

        self._words.textChanged.connect(lambda text: self.model.filter_by(words=text))
        self._licences.currentIndexChanged.connect(
            lambda _: self.model.filter_by(licence_kind=self._licences.currentData())
        )
        self._ways.currentIndexChanged.connect(lambda _: self.model.filter_by(way=self._ways.currentData()))
        self._sizes.currentIndexChanged.connect(lambda _: self.model.filter_by(max_bytes=self._sizes.currentData()))
        self._only_here.toggled.connect(lambda on: self.model.filter_by(only_here=on))
        self._table.itemSelectionChanged.connect(self._on_selected)
        self._table.itemDoubleClicked.connect(lambda _: self._on_use())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # Qt's name
        """Let the arrow keys move through the list while the search has the focus."""
        is_arrow = isinstance(event, QKeyEvent) and event.key() in (Qt.Key.Key_Down, Qt.Key.Key_Up)
        if watched is self._words and is_arrow and event.type() == QEvent.Type.KeyPress:
            self._table.keyPressEvent(event)
            return True
        return False

    # from the user to the model

    def _on_selected(self) -> None:
        number = self._table.currentRow()
        if 0 <= number < len(self._listed):
            self.model.select(self._listed[number])

    def _on_use(self) -> None:
        selected = self.model.selected_row
        if selected is not None and selected.bundle is not None:
            self.chosen.emit(selected.bundle)
            self.close()

    def _on_add_folder(self) -> None:
        if (folder := ask_folder(self, "Copy a MONAI bundle into the store")) is not None:
            self.model.add(folder)

    def _on_add_zip(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Install a MONAI bundle from a zip", "", "Zip (*.zip)")
        if path:
            self.model.add(path)

    def _on_list_folder(self) -> None:
        if (folder := ask_folder(self, "Use a MONAI bundle where it is")) is not None:
            self.model.list_folder(folder)

    def _on_add_address(self) -> None:
        question = QInputDialog(self)
        question.setWindowTitle("Download a MONAI bundle")
        question.setLabelText("Address of a zip, or hf:OWNER/NAME at Hugging Face:")
        question.textValueSelected.connect(lambda text: self.model.add(text.strip()) if text.strip() else None)
        question.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        question.open()

    def _on_convert(self) -> None:
        if (folder := ask_folder(self, "Write a MONAI bundle into an empty folder")) is not None:
            self.model.convert(folder)

    def _on_remove(self) -> None:
        selected = self.model.selected_row
        assert selected is not None
        size = size_text(selected.size_bytes)
        text = f"Remove {selected.title} ({size}) from this computer?\n\n{printable(selected.source)}"
        question = QMessageBox(QMessageBox.Icon.Question, "Remove this model?", text, parent=self)
        question.setTextFormat(Qt.TextFormat.PlainText)
        question.setStandardButtons(QMessageBox.StandardButton.Cancel)
        yes = question.addButton("Remove", QMessageBox.ButtonRole.DestructiveRole)
        question.setDefaultButton(QMessageBox.StandardButton.Cancel)
        question.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        yes.clicked.connect(lambda: self.model.remove() if self.model.selected_row is not None else None)
        question.open()

    def _ask_licence(self, question: LicenceQuestion) -> None:
        self.show()  # the download was started here
        dialog = LicenceDialog(question.licence, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)

        def answer(result: int) -> None:
            self._licence_dialog = None
            question.answer(result == QDialog.DialogCode.Accepted)

        dialog.finished.connect(answer)
        self._licence_dialog = dialog
        dialog.open()

    # from the model to the user

    def _refresh(self) -> None:
        model = self.model
        self._refresh_filter()
        if model.shown != self._listed:
            self._fill(model.shown)
        selected = model.selected_row
        with signals_blocked(self._table):
            number = self._listed.index(selected) if selected in self._listed else -1
            if number != self._table.currentRow():
                self._table.setCurrentCell(number, 0)
        self._details.show_text(selected.details if selected else "No model fits this search." if model.rows else "")
        actions: tuple[tuple[QPushButton, Action, str], ...] = (
            (self._use_button, "use", "Choose it in the Segment tab."),
            (self._download_button, "download", "Show the licence, then download and install it."),
            (self._check_button, "check", "Compare its files with those that were installed."),
            (
                self._convert_button,
                "convert",
                "Write this model of nnU-Net as a MONAI bundle, which runs with MONAI alone.",
            ),
            (self._remove_button, "remove", "Remove it from this computer."),
        )
        for widget, action, tip in actions:
            obstacle = model.obstacle_to(action)
            widget.setEnabled(not obstacle)
            widget.setToolTip(plain_tip(obstacle or tip))
        self._add_button.setEnabled(model.job is None)
        left = f", {size_text(model.left_bytes)} of it unfinished downloads" if model.left_bytes else ""
        self._disk.setText(f"On disk: {size_text(model.store_bytes)}{left}")
        message = model.message
        self._message.setText(_MARKS[message.kind] + message.text if message else "")
        self._message.setVisible(message is not None)
        self._show_progress()

    def _refresh_filter(self) -> None:
        """Show the filter, which an installation resets."""
        shown = self.model.filter
        with signals_blocked(self._words):
            if self._words.text() != shown.words:
                self._words.setText(shown.words)
        for widget, value in (
            (self._licences, shown.licence_kind),
            (self._ways, shown.way),
            (self._sizes, shown.max_bytes),
        ):
            with signals_blocked(widget):
                widget.setCurrentIndex(widget.findData(value))
        with signals_blocked(self._only_here):
            self._only_here.setChecked(shown.only_here)

    def _fill(self, rows: list[ModelRow]) -> None:
        self._listed = rows
        with signals_blocked(self._table):
            self._table.setRowCount(len(rows))
            for number, one in enumerate(rows):
                size = size_text(one.size_bytes) if one.size_bytes else ""
                kind = LICENCE_KINDS[one.licence_kind] if one.licence_kind != "unknown" else ""
                texts = (one.title, one.finds, one.modality, size, kind, one.way_title, _PLACES[one.place])
                for column, text in enumerate(texts):
                    item = number_item(text) if _HEADS[column] == "Size" else QTableWidgetItem(text)
                    self._table.setItem(number, column, item)

    def _show_progress(self) -> None:
        job = self.model.job
        for widget in (self._progress_label, self._progress_bar, self._cancel_button):
            widget.setVisible(job is not None)
        if job is None:
            if self._licence_dialog is not None:
                self._licence_dialog.reject()  # nothing waits for the answer any more
            return
        progress = job.progress
        self._progress_label.setText(self.model.progress_text)
        # a bar counts up to 2**31 only
        self._progress_bar.setRange(0, 1000 if progress.total else 0)
        self._progress_bar.setValue(1000 * progress.done // progress.total if progress.total else 0)
        self._cancel_button.setEnabled(not job.is_stopping)


def _choice(all_of_them: str, titles: dict, tool_tip: str) -> QComboBox:
    """Return a combo box with an entry for all, whose value is ""."""
    combo = QComboBox(toolTip=tool_tip)
    combo.addItem(all_of_them, "")
    for key, title in titles.items():
        combo.addItem(title, key)
    return combo
