"""The Segment panel in Qt; what it does stands in `model`."""

import io
from pathlib import Path

from napari.utils.progress import cancelable_progress
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel
from superqt.utils import create_worker, signals_blocked

from napari_seg.plugin.model import DEVICES, Run, SegmentModel, Structure
from napari_seg.plugin.placement import PLANES

_POLL_MS = 100
_MARKS = {"info": "", "warning": "⚠ ", "error": "✕ "}


class SegmentWidget(QWidget):
    """Scan, model and device; Run and Stop; the structures that were found; Save."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__()
        model = self.model = SegmentModel(napari_viewer)
        self._activity: cancelable_progress | None = None
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._show_progress)
        self.model.changed.connect(self._refresh)
        # The model outlives this object, which is gone when Qt says so.
        self.destroyed.connect(lambda: model.close())
        self._refresh()

    def run(self) -> None:
        """Segments the chosen scan in a thread of its own."""
        run = self.model.start()
        self._activity = cancelable_progress(total=0, desc=run.bundle.name, file=io.StringIO())
        self._timer.start()
        worker = create_worker(run.execute)
        worker.finished.connect(self._on_run_finished)
        worker.start()

    def save(self, path: str | Path) -> None:
        """Saves the shown labels layer in a thread of its own; the panel says what came of it."""
        self._save_button.setEnabled(False)
        worker = create_worker(self.model.save, path, _ignore_errors=True)
        worker.returned.connect(self.model.report_saved)
        worker.errored.connect(self.model.report_saved)
        worker.start()

    def changeEvent(self, event: QEvent) -> None:  # Qt's name
        """Ends a run when napari closes the panel, which takes it out of its dock but does not destroy it."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.model.stop()

    # building

    def _build(self) -> None:
        self._scan_box = _box("The image to segment; follows the layer that is selected in the layer list.")
        self._bundle_box = _box("What to look for: the bundles found on this computer.")
        for bundle in self.model.bundles:
            self._bundle_box.addItem(bundle.name if bundle.trusted else f"{bundle.name} (not trusted)", bundle)
        self._bundle_box.setMinimumContentsLength(26)
        self._description = QLabel(wordWrap=True)
        self._device_box = _box("Where the network runs. Automatic takes a graphics card if there is one.")
        for key, text in DEVICES.items():
            self._device_box.addItem(text, key)
        self._run_button = QPushButton("Run")
        self._stop_button = QPushButton("Stop", toolTip="End the run at its next step; nothing is added.")
        self._progress_label = QElidingLabel()
        self._progress_bar = QProgressBar(textVisible=False)
        self._message = QLabel(wordWrap=True)
        self._message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._table = _table()
        self._save_button = QPushButton("Save as NIfTI…")
        self._plane_buttons = {plane: QPushButton(plane.capitalize()) for plane in PLANES}

        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Scan", self._scan_box)
        form.addRow("Model", self._bundle_box)
        form.addRow("", self._description)
        form.addRow("Device", self._device_box)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(_row(self._run_button, self._stop_button))
        layout.addWidget(self._progress_label)
        layout.addWidget(self._progress_bar)
        layout.addWidget(self._message)
        layout.addWidget(self._table, 100)
        layout.addStretch(1)  # takes the room while there is no table
        layout.addWidget(self._save_button)
        layout.addLayout(_row(*self._plane_buttons.values()))
        self._connect()

    def _connect(self) -> None:
        self._scan_box.currentIndexChanged.connect(self._on_scan_chosen)
        self._bundle_box.currentIndexChanged.connect(self._on_bundle_chosen)
        self._device_box.currentIndexChanged.connect(self._on_device_chosen)
        self._run_button.clicked.connect(self.run)
        self._stop_button.clicked.connect(self.model.stop)
        self._table.cellClicked.connect(self._on_row_clicked)
        self._save_button.clicked.connect(self._on_save_clicked)
        for plane, button in self._plane_buttons.items():
            button.setToolTip(f"Show {plane} slices.")
            button.setProperty("plane", plane)
            button.clicked.connect(self._on_plane_clicked)

    # from the person to the model

    def _on_scan_chosen(self) -> None:
        self.model.choose_layer(self._scan_box.currentData())

    def _on_bundle_chosen(self) -> None:
        self.model.choose_bundle(self._bundle_box.currentData())

    def _on_device_chosen(self) -> None:
        self.model.choose_device(self._device_box.currentData())

    def _on_row_clicked(self, row: int) -> None:
        self.model.show_structure(self._table.item(row, 0).data(Qt.ItemDataRole.UserRole))

    def _on_plane_clicked(self) -> None:
        self.model.show_plane(self.sender().property("plane"))

    def _on_save_clicked(self) -> None:
        assert self.model.result is not None
        suggested = f"{self.model.result.name.replace('/', '_')}.nii.gz"
        path, _ = QFileDialog.getSaveFileName(self, "Save as NIfTI", suggested, "NIfTI (*.nii.gz *.nii)")
        if path:
            self.save(path)

    def _on_run_finished(self) -> None:
        self._timer.stop()
        if self._activity is not None:
            self._activity.close()
            self._activity = None
        if self.model.run is not None:
            self.model.finish(self.model.run)

    # from the model to the person

    def _refresh(self) -> None:
        model = self.model
        with signals_blocked(self._scan_box):
            self._scan_box.clear()
            for layer in model.layers:
                self._scan_box.addItem(layer.name, layer)
            self._scan_box.setCurrentIndex(model.layers.index(model.layer) if model.layer in model.layers else -1)
        self._scan_box.setPlaceholderText("No scan is open")
        self._description.setText(model.bundle.description if model.bundle else "")
        is_running = model.run is not None
        for box in (self._scan_box, self._bundle_box, self._device_box):
            box.setEnabled(not is_running and box.count() > 0)
        self._run_button.setEnabled(not model.obstacle)
        self._run_button.setToolTip(model.obstacle or "Segment the scan. The answer is a new labels layer.")
        self._stop_button.setEnabled(model.run is not None and not model.run.is_stopping)
        self._progress_label.setVisible(is_running)
        self._progress_bar.setVisible(is_running)
        hint = "" if is_running else model.obstacle
        lines = [_MARKS[message.kind] + message.text for message in model.messages]
        self._message.setText("\n".join(lines or [hint]))
        self._message.setVisible(bool(lines or hint))
        self._fill_table(model.structures)
        self._save_button.setEnabled(model.result is not None)
        self._save_button.setToolTip(
            "Save the labels on the scan's own grid." if model.result is not None else "There are no labels to save."
        )
        self._show_progress()

    def _show_progress(self) -> None:
        run: Run | None = self.model.run
        if run is None:
            return
        progress = run.progress
        self._progress_bar.setRange(0, progress.total)
        self._progress_bar.setValue(progress.done)
        self._progress_label.setText("Stopping at the next step …" if run.is_stopping else str(progress))
        if self._activity is not None:
            if self._activity.is_canceled and not run.is_stopping:
                self.model.stop()
            self._activity.total = progress.total
            self._activity.update(progress.done - self._activity.n)

    def _fill_table(self, structures: list[Structure]) -> None:
        self._table.setVisible(bool(structures))
        self._table.setRowCount(len(structures))
        for row, structure in enumerate(structures):
            pixmap = QPixmap(16, 16)
            pixmap.fill(QColor(*structure.color))
            name = QTableWidgetItem(QIcon(pixmap), structure.name)
            name.setData(Qt.ItemDataRole.UserRole, structure.label)
            name.setToolTip(f"{structure.name}, label {structure.label}; click to go there")
            volume = QTableWidgetItem("not found" if structure.ml == 0 else f"{structure.ml:.2f}")
            volume.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self._table.setItem(row, 0, name)
            self._table.setItem(row, 1, volume)


def _box(tool_tip: str) -> QComboBox:
    box = QComboBox(toolTip=tool_tip)
    # Long layer names must not make the dock wide.
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(12)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box


def _table() -> QTableWidget:
    table = QTableWidget(0, 2)
    table.setHorizontalHeaderLabels(["Structure", "ml"])
    table.verticalHeader().hide()
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setShowGrid(False)
    header = table.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
    return table


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row
