"""Widgets of the Structures tab: the table of structures, and the buttons to compare and save them."""

from functools import partial
from math import isnan
from pathlib import Path

from napari.layers import Labels
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QFileDialog,
    QLabel,
    QMenu,
    QMessageBox,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_seg.errors import OutputError
from napari_seg.formats.kinds import LABEL_FORMATS, MENU_FORMATS, FormatName
from napari_seg.plugin.controls import ask_file, box, button, number_item, plain_tip, row, swatch, table
from napari_seg.plugin.labels_on_scan import has_grid_of, may_belong_to
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.structures.export import check_is_no_scan, obstacle, suggested_name
from napari_seg.plugin.structures.model import Structure, StructuresModel

_HEADS = ("", "", "Structure", "ml", "voxels", "mean", "conf.", "Dice", "HD95", "NSD")
_TIPS = (
    "Click to choose another colour.",
    "Clear the box to hide the structure.",
    "Click to go there; double-click to rename.",
    "Volume in millilitres; follows edits.",
    "Number of voxels; follows edits.",
    "Mean intensity of the scan in the structure.",
    "Confidence: mean probability of the network; empty after an edit of the labels.",
    "Dice coefficient against the reference, 0 to 1.",
    "95 % Hausdorff distance to the reference, mm.",
    "Normalised surface Dice with a tolerance of 1 mm, 0 to 1.",
)
_COLOR, _EYE, _NAME, _ML, _VOXELS, _MEAN, _CONFIDENCE, _DICE, _HD95, _NSD = range(10)
_MEASURE_AFTER_MS = 400
"""Pause after an edit before structures are measured again."""

_UNSAVED_TIP = "•: unsaved edits"


class StructuresTab(QWidget):
    """Table of the structures of a labels layer: go to them, name, colour and hide them, compare and save."""

    def __init__(self, model: StructuresModel) -> None:
        super().__init__()
        self.model = model
        self._filled_for: Labels | None = None
        self._build()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_MEASURE_AFTER_MS)
        self._timer.timeout.connect(model.start_measuring)
        model.measurement_due.connect(self._measure_soon)
        model.changed.connect(self._refresh)
        self._refresh()
        if model.session.labels is not None:
            self._measure_soon()

    def ask_export(self, format_name: FormatName) -> None:
        """Open a dialog for the file, then save the selected labels."""
        layer, session = self.model.session.labels, self.model.session
        why = obstacle(layer, format_name)
        if layer is None or why:
            session.show_messages(Message("warning", why))
            return
        label_format, name = LABEL_FORMATS[format_name], suggested_name(layer, format_name)
        title, endings = label_format.title, " ".join(f"*{ending}" for ending in label_format.endings)
        chosen, _ = QFileDialog.getSaveFileName(self, f"Save as {title}", name, f"{title} ({endings})")
        if not chosen:
            return
        path = label_format.with_ending(Path(chosen))
        try:
            check_is_no_scan(path, session.viewer.layers)
        except OutputError as error:
            session.show_messages(message_of(error))
            return
        if path == Path(chosen) or not path.exists() or self._may_replace(path):  # otherwise the dialog has asked
            self.model.save(path, format_name)

    def _may_replace(self, path: Path) -> bool:
        text = plain_tip(f"{path.name} already exists. Replace it?")
        return QMessageBox.question(self, "Replace the file?", text) == QMessageBox.StandardButton.Yes

    def ask_reference(self) -> None:
        """Open a dialog for the file of a reference, then compare the selected labels with it."""
        if self.model.session.labels is not None and (path := ask_file(self, "Compare with a reference")) is not None:
            self.model.compare(path)

    # building

    def _build(self) -> None:
        self._labels_box = box(f"Labels layer whose structures are listed; follows the selected layer. {_UNSAVED_TIP}.")
        self._table = table(*_HEADS, stretched=_NAME)
        for column, tip in enumerate(_TIPS):
            self._table.horizontalHeaderItem(column).setToolTip(plain_tip(tip))
        self._hint = QLabel("Run a model or draw labels on a scan. Their structures are listed here.", wordWrap=True)
        self._previous_button = button(
            "◀ Previous",
            "Go to the previous structure; key , unless changed in Preferences.",
            partial(self.model.step, -1),
        )
        self._next_button = button(
            "Next ▶", "Go to the next structure; key . unless changed in Preferences.", partial(self.model.step, 1)
        )
        self._compare_button = button(
            "Compare with", "Dice, HD95 and NSD against a reference, and a layer of the voxels that differ."
        )
        self._compare_menu = QMenu(self)
        self._compare_menu.aboutToShow.connect(self._fill_compare_menu)
        self._compare_button.setMenu(self._compare_menu)
        self._export_button = button(
            "Save as", "Save the labels on the grid of the scan; the file is read back and checked."
        )
        self._export_menu = QMenu(self)
        self._export_menu.setToolTipsVisible(True)
        self._export_actions = {}
        for format_name in MENU_FORMATS:
            action = self._export_menu.addAction(f"{LABEL_FORMATS[format_name].title}…")
            action.triggered.connect(lambda *_, format_name=format_name: self.ask_export(format_name))
            self._export_actions[format_name] = action
        self._export_button.setMenu(self._export_menu)
        self._resample_button = button(
            "", "Resample the labels on the voxels of the scan, as a new layer.", self.model.resample
        )
        tip = "Their scan was not found unchanged. If it is this one, say so, to accept them and to save them as DICOM."
        self._scan_button = button("", tip, self.model.give_scan)
        layout = QVBoxLayout(self)
        layout.addWidget(self._labels_box)
        layout.addWidget(self._hint)
        layout.addWidget(self._table, 1)
        layout.addWidget(self._resample_button)
        layout.addWidget(self._scan_button)
        layout.addLayout(row(self._previous_button, self._next_button))
        layout.addLayout(row(self._compare_button, self._export_button))
        self._labels_box.currentIndexChanged.connect(self._on_labels_chosen)
        self._table.cellClicked.connect(self._on_cell_clicked)
        self._table.itemDoubleClicked.connect(self._on_double_click)
        self._table.itemChanged.connect(self._on_item_changed)

    # from the person to the model

    def _on_labels_chosen(self) -> None:
        layer = self._labels_box.currentData()
        if layer is not None:
            self.model.session.viewer.layers.selection.active = layer

    def _label_at(self, row: int) -> int:
        label: int = self._table.item(row, _NAME).data(Qt.ItemDataRole.UserRole)
        return label

    def _on_cell_clicked(self, row: int, column: int) -> None:
        if column == _COLOR:
            before = QColor(*next(s.color for s in self.model.structures if s.label == self._label_at(row)))
            color = QColorDialog.getColor(before, self, "Colour of the structure")
            if color.isValid():
                self.model.recolor(self._label_at(row), (color.red(), color.green(), color.blue()))
        elif column != _EYE:
            self.model.show(self._label_at(row))

    def _on_double_click(self, item: QTableWidgetItem) -> None:
        if item.column() == _NAME:
            self._table.editItem(item)

    def _on_item_changed(self, item: QTableWidgetItem) -> None:
        if self._filled_for is not self.model.session.labels:  # another layer was selected while a name was typed
            QTimer.singleShot(0, self._refresh)
            return
        label = self._label_at(item.row())
        if item.column() == _EYE:
            self.model.draw(label, item.checkState() == Qt.CheckState.Checked)
        elif item.column() == _NAME:
            self.model.rename(label, item.text())
            QTimer.singleShot(0, self._refresh)  # after the editor has closed

    def _fill_compare_menu(self) -> None:
        self._compare_menu.clear()
        session = self.model.session
        for layer in session.segmentations:
            if layer is not session.labels:
                action = self._compare_menu.addAction(layer.name)
                action.triggered.connect(lambda *_, layer=layer: self.model.compare(layer))
        self._compare_menu.addSeparator()
        self._compare_menu.addAction("A file…").triggered.connect(lambda *_: self.ask_reference())

    def _measure_soon(self) -> None:
        self._timer.start()

    # from the model to the person

    def _refresh(self) -> None:
        session = self.model.session
        layers, layer = session.segmentations, session.labels
        with signals_blocked(self._labels_box):
            self._labels_box.clear()
            for number, one in enumerate(layers):
                is_unsaved = state_of(one).is_unsaved
                self._labels_box.addItem(f"• {one.name}" if is_unsaved else one.name, one)
                if is_unsaved:
                    self._labels_box.setItemData(number, _UNSAVED_TIP, Qt.ItemDataRole.ToolTipRole)
            self._labels_box.setCurrentIndex(layers.index(layer) if layer in layers else -1)
        self._labels_box.setVisible(bool(layers))
        self._hint.setVisible(layer is None)
        self._fill_table(layer, self.model.structures)
        has_rows = self._table.rowCount() > 0
        for widget in (self._previous_button, self._next_button):
            widget.setEnabled(has_rows)
        scan = session.scan
        self._resample_button.setVisible(scan is not None and layer is not None and not has_grid_of(layer, scan))
        self._resample_button.setText("" if scan is None else f"Resample on {scan.name}")
        self._resample_button.setEnabled(not self.model.is_running("resample"))
        self._scan_button.setVisible(scan is not None and layer is not None and may_belong_to(layer, scan))
        self._scan_button.setText("" if scan is None else f"These labels belong to {scan.name}")
        self._compare_button.setEnabled(layer is not None and not self.model.is_running("compare"))
        self._export_button.setEnabled(layer is not None and not self.model.is_running("save"))
        for format_name, action in self._export_actions.items():
            why = obstacle(layer, format_name)
            action.setEnabled(not why)
            action.setToolTip(
                plain_tip(why or f"The file is read back and checked: {LABEL_FORMATS[format_name].verified}.")
            )

    def _fill_table(self, layer: Labels | None, structures: list[Structure]) -> None:
        self._table.setVisible(layer is not None)
        if self._table.state() == QAbstractItemView.State.EditingState:  # a name is being typed
            return
        self._filled_for = layer
        with signals_blocked(self._table):
            self._table.setRowCount(len(structures))
            for row_number, structure in enumerate(structures):
                self._fill_row(row_number, structure)
        compared = any(structure.scores is not None for structure in structures)
        for column in (_DICE, _HD95, _NSD):
            self._table.setColumnHidden(column, not compared)
        for column in (_VOXELS, _MEAN):  # a narrow panel has no room for all of them
            self._table.setColumnHidden(column, compared)
        self._table.setColumnHidden(_CONFIDENCE, compared or all(isnan(s.confidence) for s in structures))

    def _fill_row(self, row_number: int, structure: Structure) -> None:
        color = QTableWidgetItem(swatch(structure.color), "")
        color.setFlags(color.flags() & ~Qt.ItemFlag.ItemIsEditable)
        color.setToolTip(_TIPS[_COLOR])
        eye = QTableWidgetItem()
        eye.setFlags(Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
        eye.setCheckState(Qt.CheckState.Checked if structure.shown else Qt.CheckState.Unchecked)
        eye.setToolTip(_TIPS[_EYE])
        name = QTableWidgetItem(structure.name)
        name.setData(Qt.ItemDataRole.UserRole, structure.label)
        name.setToolTip(plain_tip(f"{structure.name}, label {structure.label}. {_TIPS[_NAME]}"))
        if structure.voxels is None:
            ml, voxels = "…", "…"
        elif structure.voxels == 0:
            ml, voxels = "not found", "0"
        else:
            ml, voxels = f"{structure.ml:.2f}", f"{structure.voxels:,}"
        scores = structure.scores
        numbers = (scores.dice, scores.hd95_mm, scores.nsd) if scores is not None else (float("nan"),) * 3
        texts = [
            ml,
            voxels,
            _text(structure.mean_intensity, ".4g"),
            _text(structure.confidence, ".2f"),
            *(_text(number, form) for number, form in zip(numbers, (".3f", ".2f", ".3f"), strict=True)),
        ]
        for column, item in enumerate([color, eye, name, *map(number_item, texts)]):
            self._table.setItem(row_number, column, item)


def _text(number: float, form: str) -> str:
    """Return a formatted number; "" for NaN."""
    return "" if isnan(number) else f"{number:{form}}"
