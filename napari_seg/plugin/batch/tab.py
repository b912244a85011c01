"""The Batch tab in Qt: a folder of scans in, a folder of results out, and a table of both."""

from functools import partial
from pathlib import Path

from qtpy.QtCore import QEvent, QItemSelectionModel, Qt, QTimer, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHeaderView,
    QLabel,
    QProgressBar,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel
from superqt.utils import signals_blocked

from napari_seg.formats.kinds import LABEL_FORMATS, MENU_FORMATS, RUN_FORMATS, FormatName
from napari_seg.plugin.batch.model import BatchModel
from napari_seg.plugin.batch.table import FILTERS, CaseTable
from napari_seg.plugin.controls import DetailsPane, ask_folder, button, plain_tip, row, table_view
from napari_seg.plugin.messages import Message
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.study.model import StudyModel

_LOOK_MS, _IDLE_LOOK_MS = 1000, 3000
"""Time between two looks at the folder of results: while a process works there, and otherwise."""

_MAX_WORKERS = 64


class BatchTab(QWidget):
    """Tab to run the selected model over every scan of a folder, and to follow any run in a folder of results."""

    def __init__(self, model: BatchModel, segmenting: SegmentModel, study: StudyModel) -> None:
        super().__init__()
        self.model = model
        self.study = study
        self.segmenting = segmenting
        self._build()
        self._timer = QTimer(self, interval=_IDLE_LOOK_MS)
        self._timer.timeout.connect(self._look)
        model.rows_changed.connect(self._on_rows_changed)
        model.changed.connect(self._refresh)
        segmenting.changed.connect(self._refresh)
        model.session.jobs.delivered.connect(self._show_progress)
        self._timer.start()
        self._refresh()

    def _build(self) -> None:
        model = self.model
        self._inputs = QElidingLabel()
        self._output = QElidingLabel()
        for label in (self._inputs, self._output):
            label.setElideMode(Qt.TextElideMode.ElideMiddle)
            label.setEllipsesWidth(10)  # the padding of napari's themes
        self._inputs_button = button(
            "Scans…", "Choose the folder of scans, which may hold subfolders.", self._on_inputs
        )
        self._output_button = button(
            "Results…",
            "Nothing is written outside this folder. A folder with results shows them, and a run that goes on there.",
            self._on_output,
        )
        self._model_label = QElidingLabel()
        self._also = {}
        for kind in (name for name in RUN_FORMATS if name in MENU_FORMATS):
            self._also[kind] = QCheckBox(LABEL_FORMATS[kind].short_title)
            self._also[kind].toggled.connect(lambda on, kind=kind: self._on_also(kind, on))
        self._workers = QSpinBox(maximum=_MAX_WORKERS, specialValueText="auto", suffix=" at once")
        self._workers.setToolTip(
            "Scans that are segmented at once, each in a process of its own; auto: as many as keep this computer busy "
            "within its memory."
        )
        self._workers.valueChanged.connect(lambda value: setattr(model, "workers", value))
        self._run_button = button("Run all", "", self.run)
        self._stop_button = button("Stop", "", model.stop)
        self._refusal = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._refusal_frame = QFrame()
        self._refusal_frame.setFrameShape(QFrame.Shape.StyledPanel)
        self._redo_button = button(
            "Make again",
            "Segment these scans again, and replace the results that were made otherwise.",
            partial(self.run, redo=True),
        )
        refusal = QVBoxLayout(self._refusal_frame)
        refusal.addWidget(self._refusal)
        refusal.addLayout(
            row(self._redo_button, button("Another folder…", "Choose another folder of results.", self._on_output))
        )
        self._status = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._progress_bar = QProgressBar(textVisible=False)
        self._cases = CaseTable(lambda: model.rows, model.scan_hint, self)
        self._table = table_view(self._cases, stretched=3)
        header = self._table.horizontalHeader()
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Fixed)  # so that it does not move while a run goes on
        header.resizeSection(2, self.fontMetrics().horizontalAdvance("0000") + 8)
        self._table.doubleClicked.connect(lambda index: self.open_row(self._cases.place_of(index.row())))
        self._table.installEventFilter(self)
        self._table.selectionModel().selectionChanged.connect(lambda *_: self._show_details())
        self._details = DetailsPane(self._table)
        self._filter = QComboBox(toolTip="The scans that the table shows.")
        self._filter.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self._filter.addItems(list(FILTERS))
        self._filter.currentIndexChanged.connect(self._on_filter)
        self._report_button = button("Report", "Open the report of the run in the web browser.", self._on_report)
        self._save_button = button(
            "Save table…", "Save one table (CSV) of all scans: volumes of the structures, and failures.", self._on_save
        )
        self._hint = QLabel(
            "Writes NIfTI, a preview image and a JSON record for each scan. A scan that fails does not stop the "
            "others, and a run that was stopped can be continued.",
            wordWrap=True,
        )
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self._inputs_button, self._inputs)
        form.addRow(self._output_button, self._output)
        form.addRow("Model", self._model_label)
        form.addRow(row(QLabel("Also write"), *self._also.values()))
        layout = QVBoxLayout(self)
        layout.addWidget(self._hint)
        layout.addLayout(form)
        layout.addLayout(row(self._run_button, self._stop_button, self._workers))
        layout.addWidget(self._refusal_frame)
        layout.addWidget(self._status)
        layout.addWidget(self._progress_bar)
        layout.addWidget(self._details, 1)
        layout.addLayout(row(self._filter, self._report_button, self._save_button))

    # from the user to the model

    def run(self, *, redo: bool = False) -> None:
        """Run the selected model over the folder; `redo` replaces results that were made otherwise."""
        bundle = self.segmenting.runnable_bundle
        if bundle is not None and not self.model.obstacle(bundle):
            self.model.start(bundle, self.segmenting.run_options, redo=redo)

    def open_row(self, number: int) -> None:
        """Read a scan with its result, and show both."""
        entry, study = self.model.rows[number], self.study
        if study.is_loading:
            return
        self.model.session.show_messages(Message("info", f"Opening {entry.title} …"))
        study.load(partial(self.model.read, entry, study.scans(), bundle=self.segmenting.bundle))

    def eventFilter(self, watched: object, event: QEvent) -> bool:  # Qt's name
        """Open the selected row with the Enter key."""
        if event.type() == QEvent.Type.KeyPress and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            for place in self._selected():
                self.open_row(place)
            return True
        return False

    def showEvent(self, event: QEvent) -> None:  # Qt's name
        """Look at the folder of results."""
        super().showEvent(event)
        self.model.look()

    def _look(self) -> None:
        if self.isVisible() or self.model.run is not None:
            self.model.look()

    def _selected(self) -> list[int]:
        """Return the places of the selected rows among all rows."""
        return [self._cases.place_of(index.row()) for index in self._table.selectionModel().selectedRows()]

    def _on_filter(self) -> None:
        self._cases.filter_by(list(FILTERS)[self._filter.currentIndex()])
        self._show_details()

    def _on_report(self) -> None:
        if (path := self.model.report) is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(path)))

    def _on_save(self) -> None:
        folder = self.model.output or Path()
        chosen, _ = QFileDialog.getSaveFileName(self, "Save the table", str(folder / "volumes.csv"), "Table (*.csv)")
        if not chosen:
            return
        path = Path(chosen) if chosen.lower().endswith(".csv") else Path(f"{chosen}.csv")
        saved = Message("info", f"Saved {path.name}.")
        self.model.session.jobs.start(
            lambda _: self.model.write_table(path),
            on_result=lambda _: self.model.session.show_messages(saved, lasting=True),
        )

    def _on_inputs(self) -> None:
        if (folder := ask_folder(self, "Folder of scans")) is not None:
            self.model.choose_inputs(folder)

    def _on_output(self) -> None:
        if (folder := ask_folder(self, "Folder of results")) is not None:
            self.model.choose_output(folder)

    def _on_also(self, kind: FormatName, is_checked: bool) -> None:
        if is_checked:
            self.model.also.add(kind)
        else:
            self.model.also.discard(kind)

    # from the model to the user

    def _on_rows_changed(self, first: int, last: int) -> None:
        selected = self._selected() if first >= 0 else []
        place = self._table.verticalScrollBar().value()
        self._cases.refresh(first, last)
        for number in (self._cases.number_of(one) for one in selected):
            if number is not None and not self._selected():  # the filter lets other rows through
                flags = QItemSelectionModel.SelectionFlag
                self._table.selectionModel().select(self._cases.index(number, 0), flags.Select | flags.Rows)
                self._table.verticalScrollBar().setValue(place)
        counts = self._cases.counts()
        with signals_blocked(self._filter):
            for number, (title, count) in enumerate(counts.items()):
                self._filter.setItemText(number, f"{title} ({count})")
        self._show_details()

    def _show_details(self) -> None:
        """Show everything about the selected row."""
        texts = []
        for entry in [self.model.rows[place] for place in self._selected()]:
            lines = [entry.title, entry.text or entry.state, *(f"⚠ {notice}" for notice in entry.notices)]
            texts += [*lines, self.model.scan_hint(entry)]
        if not texts and self.model.rows:
            texts = ["Select a scan to read everything about it; double-click it to open it with its result."]
        self._details.show_text("\n".join(filter(None, texts)))

    def _refresh(self) -> None:
        model = self.model
        self._inputs.setText(str(model.inputs or "not chosen"))
        self._output.setText(str(model.output or "not chosen"))
        bundle = self.segmenting.bundle
        self._model_label.setText("none" if bundle is None else bundle.name)
        obstacle, is_running = model.obstacle(self.segmenting.runnable_bundle), model.run is not None
        if not is_running:
            self._run_button.setText(model.run_title)
        self._run_button.setEnabled(not obstacle)
        does = "Segment every scan of the folder that has no result yet; those that failed are tried again."
        self._run_button.setToolTip(plain_tip(obstacle or does))
        self._hint.setVisible(not model.rows and not model.is_at_work)
        self._refusal_frame.setVisible(bool(model.refusal))
        self._refusal.setText(model.refusal)
        self._redo_button.setEnabled(not obstacle)
        self._save_button.setEnabled(bool(model.count("done", "failed")))
        self._report_button.setEnabled(model.report is not None)
        for widget in (self._inputs_button, self._output_button, self._workers, *self._also.values()):
            widget.setEnabled(not is_running)
        self._timer.setInterval(_LOOK_MS if model.is_at_work else _IDLE_LOOK_MS)
        self._show_progress()

    def _show_progress(self) -> None:
        model, run = self.model, self.model.run
        is_second = run is not None and run.is_stopping
        self._stop_button.setText("Stop now" if is_second else "Stop")
        self._stop_button.setEnabled(run is not None and run.stop.count < 2)
        self._stop_button.setToolTip(
            "End at once; the scans that are running start again with the next run."
            if is_second
            else "Let the running scans finish and start no others. Finished results stay."
        )
        text = model.status
        if text != self._status.text():
            self._status.setText(text)
        self._status.setVisible(bool(text))
        self._progress_bar.setVisible(model.is_at_work)
        if model.is_at_work:
            ended, total = model.progress
            self._progress_bar.setRange(0, total)
            self._progress_bar.setValue(ended)
