"""The Batch tab in Qt: a folder of scans in, a folder of results out, and a table of both."""

from functools import partial
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QFormLayout,
    QLabel,
    QProgressBar,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_seg.errors import NapariSegError
from napari_seg.formats.kinds import LABEL_FORMATS, MENU_FORMATS, RUN_FORMATS, FormatName
from napari_seg.plugin.batch.model import BatchModel, Row
from napari_seg.plugin.controls import DetailsPane, ask_folder, button, number_item, row, table
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.study.model import StudyModel

_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "failed": "✕", "stopped": "–"}


class BatchTab(QWidget):
    """Tab to run the selected model over every scan of a folder."""

    def __init__(self, model: BatchModel, segmenting: SegmentModel, study: StudyModel) -> None:
        super().__init__()
        self.model = model
        self.study = study
        self.segmenting = segmenting
        self._inputs = QElidingLabel()
        self._output = QElidingLabel()
        for label in (self._inputs, self._output):
            label.setElideMode(Qt.TextElideMode.ElideMiddle)
        self._inputs_button = button(
            "Scans…", "Choose the folder of scans, which may hold subfolders.", self._on_inputs
        )
        self._output_button = button("Results…", "Nothing is written outside this folder.", self._on_output)
        self._model_label = QElidingLabel()
        self._also = {}
        for kind in (name for name in RUN_FORMATS if name in MENU_FORMATS):
            self._also[kind] = QCheckBox(LABEL_FORMATS[kind].short_title)
            self._also[kind].toggled.connect(lambda on, kind=kind: self._on_also(kind, on))
        self._run_button = button("Run all", "", self.run)
        self._stop_button = button("Stop", "Stop at the next step; finished results stay.", model.stop)
        self._progress_label = QElidingLabel()
        self._progress_bar = QProgressBar(textVisible=False)
        self._table = table("", "Scan", "s", "Result", stretched=3)
        self._table.cellActivated.connect(lambda number, _: self.open_row(number))
        self._table.cellDoubleClicked.connect(lambda number, _: self.open_row(number))
        self._table.itemSelectionChanged.connect(self._show_details)
        self._details = DetailsPane(self._table)
        self._save_button = button(
            "Save table…", "Save one table (CSV) of all scans: volumes of the structures, and failures.", self._on_save
        )
        self._hint = QLabel(
            "Writes NIfTI, a preview image and a JSON record for each scan. A scan that fails does not stop the others."
        )
        self._hint.setWordWrap(True)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self._inputs_button, self._inputs)
        form.addRow(self._output_button, self._output)
        form.addRow("Model", self._model_label)
        form.addRow(row(QLabel("Also write"), *self._also.values()))
        layout = QVBoxLayout(self)
        layout.addWidget(self._hint)
        layout.addLayout(form)
        layout.addLayout(row(self._run_button, self._stop_button))
        layout.addWidget(self._progress_label)
        layout.addWidget(self._progress_bar)
        layout.addWidget(self._details, 1)
        layout.addWidget(self._save_button)
        self._filled: dict[int, Row] = {}
        model.changed.connect(self._refresh)
        segmenting.changed.connect(self._refresh_buttons)
        model.session.jobs.delivered.connect(self._show_progress)
        self._refresh()

    def run(self) -> None:
        """Run the selected model over the folder."""
        bundle = self.segmenting.bundle
        assert bundle is not None
        self._filled = {}
        self.model.start(bundle, self.segmenting.run_options)

    def open_row(self, number: int) -> None:
        """Read a scan with its result, and show both."""
        entry, study = self.model.rows[number], self.study
        if entry.scan is None or study.is_loading:
            return
        self.model.session.show_messages(Message("info", f"Opening {entry.name} …"))
        study.load(partial(self.model.read, entry, study.scans(), study.frame()))

    def _show_details(self) -> None:
        """Show the name and the whole text of the selected row."""
        numbers = {item.row() for item in self._table.selectedItems()}
        selected = [self.model.rows[number] for number in numbers if number < len(self.model.rows)]
        self._details.show_text("\n".join(f"{one.name}\n{one.text or one.state}" for one in selected))

    def _on_save(self) -> None:
        folder = self.model.output or Path()
        chosen, _ = QFileDialog.getSaveFileName(self, "Save the table", str(folder / "volumes.csv"), "Table (*.csv)")
        if not chosen:
            return
        path = Path(chosen) if chosen.lower().endswith(".csv") else Path(f"{chosen}.csv")
        try:
            self.model.write_table(path)
        except NapariSegError as error:
            self.model.session.show_messages(message_of(error))
            return
        self.model.session.show_messages(Message("info", f"Saved {path.name}."), lasting=True)

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

    def _refresh(self) -> None:
        model = self.model
        self._refresh_buttons()
        self._table.setRowCount(len(model.rows))
        for number, entry in enumerate(model.rows):
            if self._filled.get(number) != entry:  # a cohort has thousands of rows
                self._fill(number, entry)
                self._filled[number] = entry
        self._show_details()
        self._show_progress()

    def _refresh_buttons(self) -> None:
        model = self.model
        self._inputs.setText(str(model.inputs or "not chosen"))
        self._output.setText(str(model.output or "not chosen"))
        bundle = self.segmenting.bundle
        self._model_label.setText("none" if bundle is None else bundle.name)
        obstacle, is_running = model.obstacle(self.segmenting.runnable_bundle), model.job is not None
        self._run_button.setEnabled(not obstacle)
        self._run_button.setToolTip(obstacle or "Segment every scan of the folder.")
        self._save_button.setEnabled(any(entry.result is not None for entry in model.rows))
        self._stop_button.setEnabled(model.job is not None and not model.job.is_stopping)
        for widget in (self._inputs_button, self._output_button, *self._also.values()):
            widget.setEnabled(not is_running)
        self._progress_label.setVisible(is_running)
        self._progress_bar.setVisible(is_running)

    def _show_progress(self) -> None:
        job = self.model.job
        if job is None:
            return
        ended = sum(entry.state in ("done", "failed") for entry in self.model.rows)
        self._progress_bar.setRange(0, len(self.model.rows))
        self._progress_bar.setValue(ended)
        text = "Stopping at the next step …" if job.is_stopping else str(job.progress)
        self._progress_label.setText(f"{ended} of {len(self.model.rows)} scans. {text}")

    def _fill(self, number: int, entry: Row) -> None:
        seconds = number_item(f"{entry.seconds:.0f}" if entry.seconds else "")
        items = [QTableWidgetItem(_MARKS[entry.state]), QTableWidgetItem(entry.name), seconds]
        for column, item in enumerate([*items, QTableWidgetItem(entry.text or entry.state)]):
            hint = "Double-click to open the scan with its result." if entry.scan is not None else ""
            item.setToolTip(f"{entry.text or entry.state}\n{hint}".strip())
            self._table.setItem(number, column, item)
