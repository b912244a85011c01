"""Widgets of *Which next?*: the results of a run, their order, and the case to open."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import QCheckBox, QFormLayout, QLabel, QProgressBar, QTableWidgetItem, QVBoxLayout, QWidget

from napari_seg.plugin.controls import DetailsPane, ask_folder, button, number_item, plain_tip, row, table
from napari_seg.plugin.learn.accept_section import heading, path_label
from napari_seg.plugin.learn.ranking import QueuedCase
from napari_seg.plugin.learn.which_next import WhichNextModel

_RANK, _NAME, _UNCERTAINTY = range(3)
_TIPS = {
    "disagreement": "Disagreement of the members of the model or of shifted windows: 1 minus their mean pairwise Dice.",
    "confidence": "1 minus the mean probability of the network in the structures that it found.",
}
_MIN_HEIGHT = 250


class WhichNextSection(QWidget):
    """Section of the Learn tab that lists the cases of a run in the order in which to correct them."""

    def __init__(self, model: WhichNextModel) -> None:
        super().__init__()
        self.model = model
        self._results, self._scans, self._bundle = path_label(), path_label(), path_label()
        self._results_button = button("Results…", "Choose the folder of results of a batch.", self._on_results)
        self._scans_button = button(
            "Scans…",
            "Choose the folder of the scans of that batch. Without it, cases are ranked by the confidence alone, and "
            "only their labels can be opened.",
            self._on_scans,
        )
        self._rank_button = button("Which next?", "", model.start)
        self._stop_button = button("Stop", "Stop; what was found is kept.", model.stop)
        self._status = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._progress_bar = QProgressBar(textVisible=False)
        self._table = table("", "Case", "1 - Dice", stretched=_NAME)
        self._table.setMinimumHeight(_MIN_HEIGHT - 100)
        self._table.itemDoubleClicked.connect(lambda item: self._open(item.row()))
        self._table.itemSelectionChanged.connect(self._show_details)
        self._table.installEventFilter(self)
        self._details = DetailsPane(self._table)
        self._details.setMinimumHeight(_MIN_HEIGHT)
        self._details.setSizes([_MIN_HEIGHT - 85, 85])
        self._accepted_box = QCheckBox()
        self._accepted_box.toggled.connect(model.show_accepted)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self._results_button, self._results)
        form.addRow(self._scans_button, self._scans)
        form.addRow("Model", self._bundle)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(heading("Which next?"))
        layout.addLayout(form)
        layout.addLayout(row(self._rank_button, self._stop_button))
        for widget in (self._status, self._progress_bar, self._details, self._accepted_box):
            layout.addWidget(widget)
        self._filled: list[QueuedCase] = []
        model.changed.connect(self._refresh)
        model.session.jobs.delivered.connect(self._show_progress)
        self._refresh()

    # from the user to the model

    def _on_results(self) -> None:
        if (folder := ask_folder(self, "Folder of results")) is not None:
            self.model.choose_results(folder)

    def _on_scans(self) -> None:
        if (folder := ask_folder(self, "Folder of scans")) is not None:
            self.model.choose_scans(folder)

    def _open(self, number: int) -> None:
        if 0 <= number < len(self._filled):
            self.model.open(self._filled[number])

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # Qt's name
        """Open the selected case with the Enter key."""
        if event.type() == QEvent.Type.KeyPress and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self._open(self._table.currentRow())
            return True
        return False

    # from the model to the user

    def _refresh(self) -> None:
        model = self.model
        self._results.setText(str(model.results or "not chosen"))
        self._scans.setText(str(model.scans or "not chosen"))
        bundle = model.segmenting.bundle
        self._bundle.setText("none" if bundle is None else bundle.name)
        self._bundle.setToolTip("The model to improve: the one that is selected in the Segment tab.")
        obstacle = model.obstacle
        self._rank_button.setEnabled(not obstacle)
        does = (
            "Rank the cases: those that the model is uncertain about and that differ from the accepted ones come first."
        )
        self._rank_button.setToolTip(plain_tip(obstacle or does))
        for widget in (self._results_button, self._scans_button):
            widget.setEnabled(model.job is None)
        self._stop_button.setEnabled(model.job is not None and not model.job.is_stopping)
        self._accepted_box.setText(f"Show accepted ({model.accepted_count})")
        self._accepted_box.setVisible(model.accepted_count > 0)
        if model.shown != self._filled:
            self._fill(model.shown)
        self._details.setVisible(bool(model.cases))
        self._show_progress()

    def _fill(self, cases: list[QueuedCase]) -> None:
        chosen = (
            self._filled[self._table.currentRow()].name if 0 <= self._table.currentRow() < len(self._filled) else ""
        )
        self._filled = cases
        basis = next((case.basis for case in cases), "disagreement")
        head = "1 − Dice" if basis == "disagreement" else "1 − conf."
        item = self._table.horizontalHeaderItem(_UNCERTAINTY)
        item.setText(head)
        item.setToolTip(_TIPS[basis])
        self._table.setRowCount(len(cases))
        grey = self.palette().brush(QPalette.ColorGroup.Disabled, QPalette.ColorRole.Text)
        for number, case in enumerate(cases):
            rank = "✓" if case.is_accepted else "✕" if case.rank is None else str(case.rank)
            value = "" if case.uncertainty is None else f"{case.uncertainty:.2f}"
            for column, item in enumerate((number_item(rank), QTableWidgetItem(case.title), number_item(value))):
                item.setToolTip(plain_tip(f"{case.title}\n{case.why}"))
                if case.is_accepted:
                    item.setForeground(grey)
                self._table.setItem(number, column, item)
        names = [case.name for case in cases]
        if cases:
            self._table.selectRow(names.index(chosen) if chosen in names else 0)
        self._show_details()

    def _show_details(self) -> None:
        rows = self._table.selectionModel().selectedRows()
        cases = [self._filled[one.row()] for one in rows if one.row() < len(self._filled)]
        self._details.show_text("\n".join(f"{case.title}\n{case.why}" for case in cases))

    def _show_progress(self) -> None:
        job, text = self.model.job, self.model.status
        if text != self._status.text():
            self._status.setText(text)
        self._status.setVisible(bool(text))
        self._progress_bar.setVisible(job is not None)
        if job is not None:
            self._progress_bar.setRange(0, job.progress.total)
            self._progress_bar.setValue(job.progress.done)
