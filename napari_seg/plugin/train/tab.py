"""The Train tab in Qt: scans with label maps in, a trained model out, and its progress as curves."""

from collections.abc import Callable
from html import escape
from pathlib import Path

from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QDoubleSpinBox, QFormLayout, QLabel, QMenu, QProgressBar, QVBoxLayout, QWidget
from superqt import QElidingLabel
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import ask_file, ask_folder, button, plain_tip, row, scrolled
from napari_seg.plugin.train.figures import CurvesView, PreviewView
from napari_seg.plugin.train.label_table import LabelTable
from napari_seg.plugin.train.model import TrainModel
from napari_seg.plugin.train.more import MoreSection

_PER_MILLE = 1000


class TrainTab(QWidget):
    """Tab to plan a training, run it, follow it, and use the trained model."""

    def __init__(self, model: TrainModel) -> None:
        super().__init__()
        self.model = model
        self._dataset = QElidingLabel()
        self._output = QElidingLabel()
        for label in (self._dataset, self._output):
            label.setElideMode(Qt.TextElideMode.ElideMiddle)
            label.setEllipsesWidth(10)  # the padding of napari's themes
        self._dataset_button = button("Data…", "Choose the scans and their label maps.")
        menu = QMenu(self)
        menu.addAction("Folder…").triggered.connect(lambda *_: self._on_dataset(ask_folder, self.model.choose_dataset))
        menu.addAction("List or archive…").triggered.connect(
            lambda *_: self._on_dataset(ask_file, self.model.choose_dataset)
        )
        menu.addSeparator()
        menu.addAction("Add another folder…").triggered.connect(
            lambda *_: self._on_dataset(ask_folder, self.model.add_dataset)
        )
        menu.addAction("Add another list or archive…").triggered.connect(
            lambda *_: self._on_dataset(ask_file, self.model.add_dataset)
        )
        self._dataset_button.setMenu(menu)
        self._output_button = button(
            "Model folder…",
            "The model, its checkpoints and its report are written here. A folder with a training resumes it.",
            self._on_output,
        )
        self._minutes = QDoubleSpinBox(maximum=100_000, decimals=0, singleStep=10, suffix=" min")
        self._minutes.setSpecialValueText("none")
        self._minutes.setToolTip("Training time, summed over all starts; none trains all planned steps.")
        self._minutes.valueChanged.connect(model.choose_minutes)
        self._plan_button = button("Plan", "", model.start_plan)
        self._start_button = button("Start", "", model.start)
        self._stop_button = button("Stop", "", model.stop)
        self._progress_label = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._progress_bar = QProgressBar(textVisible=False)
        self._use_button = button("Use this model", "Select the trained model in the Segment tab.", model.use)
        self._report_button = button("Report", "Open the report in the web browser.", self._on_report)
        self._curves = CurvesView()
        self._preview = PreviewView()
        self._more = MoreSection(model)
        self._odd = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._odd.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._labels = LabelTable(model)
        self._plan = QLabel(wordWrap=True, textFormat=Qt.TextFormat.RichText)
        self._plan.setAlignment(Qt.AlignmentFlag.AlignTop)
        self._plan.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        hint = QLabel(
            "Trains a model on scans with label maps. It runs in a process of its own, can be stopped, and resumes "
            "where it was.",
            wordWrap=True,
        )
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(self._dataset_button, self._dataset)
        form.addRow(self._output_button, self._output)
        form.addRow("Time limit", self._minutes)
        below = QWidget()
        texts = QVBoxLayout(below)
        texts.setContentsMargins(0, 0, 0, 0)
        for widget in (self._more, self._curves, self._preview, self._odd, self._labels, self._plan):
            texts.addWidget(widget)
        texts.addStretch(1)
        layout = QVBoxLayout(self)
        layout.addWidget(hint)
        layout.addLayout(form)
        layout.addLayout(row(self._plan_button, self._start_button, self._stop_button))
        layout.addWidget(self._progress_label)
        layout.addWidget(self._progress_bar)
        layout.addLayout(row(self._use_button, self._report_button))
        layout.addWidget(scrolled(below), 1)
        model.changed.connect(self._refresh)
        model.segmenting.changed.connect(self._more.refresh)
        model.session.jobs.delivered.connect(self._show_progress)
        self._refresh()

    # from the user to the model

    def _on_dataset(self, ask: Callable[[QWidget, str], Path | None], use: Callable[[Path], object]) -> None:
        if (path := ask(self, "Scans and label maps")) is not None:
            use(path)

    def _on_output(self) -> None:
        if (folder := ask_folder(self, "Folder of the model")) is not None:
            self.model.choose_output(folder)

    def _on_report(self) -> None:
        if (path := self.model.report) is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(path)))

    # from the model to the user

    def _refresh(self) -> None:
        model = self.model
        self._dataset.setText(model.dataset_text)
        self._dataset.setToolTip(plain_tip("\n".join(map(str, filter(None, (model.dataset, *model.more))))))
        self._output.setText(str(model.output or "not chosen"))
        with signals_blocked(self._minutes):
            self._minutes.setValue(model.max_minutes)
        obstacle, is_running = model.obstacle, model.job is not None
        for widget in (self._dataset_button, self._output_button, self._minutes):
            widget.setEnabled(not is_running)
        self._plan_button.setEnabled(not obstacle)
        does = "Check the data and show what would be trained; nothing is written."
        self._plan_button.setToolTip(plain_tip(obstacle or does))
        self._start_button.setEnabled(not obstacle)
        self._start_button.setText("Resume" if model.is_resumed and not is_running else "Start")
        starts = "Continue the training in the model folder." if model.is_resumed else "Check the data, plan and train."
        self._start_button.setToolTip(plain_tip(obstacle or starts))
        self._stop_button.setEnabled(model.job is not None and not model.job.is_stopping)
        saves = "Save and stop after this step; Resume continues." if model.is_training else "Drop the plan."
        self._stop_button.setToolTip(plain_tip(saves))
        self._use_button.setVisible(model.can_use)
        self._report_button.setVisible(model.report is not None and not model.is_at_work)
        self._progress_bar.setVisible(is_running)
        self._more.refresh()
        self._labels.refresh()
        outdated = ["Choices have changed since this plan; Plan shows the new one, and Start makes it."]
        odd = (outdated if model.is_outdated else []) + model.plan.odd
        self._odd.setText("\n".join(f"⚠ {text}" for text in odd))
        self._odd.setVisible(bool(odd))
        self._plan.setText(_plan_html(model.plan.rows))
        self._curves.show_run(model.state, model.live)
        self._preview.show_file(model.state)
        self._show_progress()

    def _show_progress(self) -> None:
        text = self.model.status
        if text != self._progress_label.text():
            self._progress_label.setText(text)
        self._progress_label.setVisible(bool(text))
        if self.model.job is None:
            return
        fraction = self.model.fraction
        self._progress_bar.setRange(0, 0 if fraction is None else _PER_MILLE)
        if fraction is not None:
            self._progress_bar.setValue(round(_PER_MILLE * fraction))


def _plan_html(rows: list[tuple[str, str]]) -> str:
    return "".join(f"<p style='margin:3px 0'><b>{escape(head)}</b> {escape(text)}</p>" for head, text in rows)
