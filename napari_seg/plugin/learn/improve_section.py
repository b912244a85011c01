"""Widgets of *Improve*: time limit, earlier data, progress, the comparison of both models, and the choice."""

from __future__ import annotations

import math

from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFormLayout,
    QFrame,
    QLabel,
    QProgressBar,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_seg.bundles.totalsegmentator.table import title_of
from napari_seg.learning.compare import MEAN
from napari_seg.learning.improve import Improvement
from napari_seg.plugin.controls import ask_folder, button, number_item, plain_tip, row, table
from napari_seg.plugin.learn.accept_section import heading, path_label
from napari_seg.plugin.learn.improving import ImproveModel, interval_text, verdict

_PER_MILLE = 1000
_ROWS = 6
"""Structures that the table shows without scrolling."""


class ImproveSection(QWidget):
    """Section of the Learn tab that fine-tunes a copy of the model with the accepted cases."""

    def __init__(self, model: ImproveModel) -> None:
        super().__init__()
        self.model = model
        self._bundle, self._output, self._replay = path_label(), path_label(), path_label()
        self._output_button = button(
            "New model…",
            "The new model is written here; the old one stays as it is. A folder with a begun improvement resumes it.",
            self._on_output,
        )
        self._replay_button = button(
            "Earlier data…",
            "Choose the data set that the old model was trained on, if you have it: it is mixed in, so that the new "
            "model does not forget it.",
            self._on_replay,
        )
        self._clear_button = QToolButton(text="✕", toolTip="Use no earlier data.")
        self._clear_button.clicked.connect(lambda *_: model.choose_replay(None))
        self._minutes = QDoubleSpinBox(minimum=1, maximum=100_000, decimals=0, singleStep=5, suffix=" min")
        self._minutes.setToolTip("Training time, summed over all starts. The comparison of both models comes on top.")
        self._minutes.valueChanged.connect(model.choose_minutes)
        self._start_button = button("Improve", "", model.start)
        self._stop_button = button("Stop", "Save and stop after this step; Resume continues.", model.stop)
        self._status = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._progress_bar = QProgressBar(textVisible=False)
        self._offer = QFrame()
        self._offer.setFrameShape(QFrame.Shape.StyledPanel)
        self._verdict = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        self._verdict.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._table = table("Dice of", "n", "before", "after", stretched=0, min_width=60)
        self._task_button = button("", "", lambda: model.use(in_task=True))
        self._use_button = button("Use the new model", "", model.use)
        self._keep_button = button("Keep the old one", "The new one stays in its folder.", model.keep)
        offer = QVBoxLayout(self._offer)
        offer.setContentsMargins(0, 4, 0, 4)
        offer.addWidget(self._verdict)
        offer.addWidget(self._table)
        offer.addWidget(self._task_button)
        offer.addWidget(self._use_button)
        offer.addWidget(self._keep_button)
        replay = row(self._replay, self._clear_button)
        replay.setStretch(0, 1)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self._bundle)
        form.addRow(self._output_button, self._output)
        form.addRow(self._replay_button, replay)
        form.addRow("Time limit", self._minutes)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(heading("Improve"))
        layout.addLayout(form)
        layout.addLayout(row(self._start_button, self._stop_button))
        for widget in (self._status, self._progress_bar, self._offer):
            layout.addWidget(widget)
        self._shown: Improvement | None = None
        model.changed.connect(self._refresh)
        model.session.jobs.delivered.connect(self._show_progress)
        self._refresh()

    # from the user to the model

    def _on_output(self) -> None:
        if (folder := ask_folder(self, "Folder of the new model")) is not None:
            self.model.choose_output(folder)

    def _on_replay(self) -> None:
        if (folder := ask_folder(self, "Data set of the earlier training")) is not None:
            self.model.choose_replay(folder)

    def showEvent(self, event: QEvent) -> None:  # Qt's name
        """Find the folder of the new model."""
        super().showEvent(event)
        self.model.find_output()

    # from the model to the user

    def _refresh(self) -> None:
        model = self.model
        if self.isVisible():
            model.find_output()
        bundle, obstacle, is_running = model.segmenting.bundle, model.obstacle, model.job is not None
        self._bundle.setText("none" if bundle is None else bundle.name)
        self._bundle.setToolTip("The model to improve: the one that is selected in the Segment tab.")
        self._output.setText("" if model.output is None else str(model.output))
        self._replay.setText(str(model.replay or "none"))
        self._clear_button.setVisible(model.replay is not None)
        with signals_blocked(self._minutes):
            self._minutes.setValue(model.minutes)
        for widget in (self._output_button, self._replay_button, self._clear_button, self._minutes):
            widget.setEnabled(not is_running)
        self._start_button.setEnabled(not obstacle)
        self._start_button.setText("Resume" if model.is_begun and not is_running else "Improve")
        does = (
            "Continue the new model that was begun, with the cases that it began with."
            if model.is_begun
            else "Train a copy of the model on the accepted cases, and compare both. You can work on meanwhile."
        )
        self._start_button.setToolTip(plain_tip(obstacle or does))
        self._stop_button.setEnabled(model.job is not None and not model.job.is_stopping)
        if model.result != self._shown:
            self._shown = model.result
            if self._shown is not None:
                self._fill(self._shown)
        self._offer.setVisible(model.result is not None)
        self._show_choices()
        self._show_progress()

    def _fill(self, result: Improvement) -> None:
        self._verdict.setText(verdict(result))
        self._table.setRowCount(len(result.rows))
        for number, one in enumerate(result.rows):
            name = QTableWidgetItem("mean of all" if one.structure == MEAN else one.structure)
            items = [name, *map(number_item, (str(one.cases), _text(one.before), _text(one.after)))]
            for column, item in enumerate(items):
                item.setToolTip(plain_tip(f"{name.text()}: {interval_text(one)}"))
                self._table.setItem(number, column, item)
        height = self._table.horizontalHeader().height() + 2 * self._table.frameWidth()
        height += sum(self._table.rowHeight(number) for number in range(min(len(result.rows), _ROWS)))
        self._table.setFixedHeight(height + 4)

    def _show_choices(self) -> None:
        """Show how the new model can be used: alone, or in the task that it is a part of."""
        result, whole = self.model.result, self.model.whole
        self._task_button.setVisible(whole is not None)
        use, tip = "Use the new model", "Select it in the Segment tab."
        if whole is not None:
            title, count, found = title_of(whole.task), len(whole.segments), len(whole.improved[0].segments)
            self._task_button.setText(f"Use it in {title}")
            text = f"Select {title} in the Segment tab, with the new model in place of its own: {count} structures."
            self._task_button.setToolTip(plain_tip(text))
            use, tip = "Use it alone", f"Select it in the Segment tab: it finds {found} of the {count} structures."
        self._use_button.setText(use)
        self._use_button.setToolTip(plain_tip(tip))
        is_better = result is not None and result.is_better
        self._task_button.setDefault(is_better and whole is not None)
        self._use_button.setDefault(is_better and whole is None)

    def _show_progress(self) -> None:
        model, text = self.model, self.model.status
        if text != self._status.text():
            self._status.setText(text)
        self._status.setVisible(bool(text))
        self._progress_bar.setVisible(model.job is not None)
        if model.job is not None:
            fraction = model.fraction
            self._progress_bar.setRange(0, 0 if fraction is None else _PER_MILLE)
            if fraction is not None:
                self._progress_bar.setValue(round(_PER_MILLE * fraction))


def _text(dice: float) -> str:
    return "–" if math.isnan(dice) else f"{dice:.3f}"
