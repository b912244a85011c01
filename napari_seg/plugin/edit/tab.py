"""Widgets of the Edit tab: the structure, the tools, operations on the whole structure, and the preview."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFrame,
    QGridLayout,
    QInputDialog,
    QLabel,
    QMenu,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import box, button, row, scrolled, swatch
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.edit.operations import OPERATIONS


class EditTab(QWidget):
    """Corrects one structure: tools, operations on the whole of it, a preview that is applied or discarded."""

    def __init__(self, model: EditModel) -> None:
        super().__init__()
        self.model = model
        self._build()
        model.changed.connect(self._refresh)
        model.session.jobs.delivered.connect(self._refresh_progress)
        self._refresh()

    def ask_structure(self) -> None:
        """Ask for the name of a new structure, and add it."""
        name, is_chosen = QInputDialog.getText(self, "New structure", "Name of the structure:")
        if is_chosen and name.strip():
            self.model.add_structure(name)

    def run(self, operation: str, other: int | None = None) -> None:
        """Compute an operation with the amounts of the tab."""
        amounts = {"size_mm": self._size_box.value(), "min_ml": self._volume_box.value(), "other": other}
        self.model.run(operation, **amounts)

    # building

    def _build(self) -> None:
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(0, 0, 4, 0)
        layout.addWidget(self._build_structure())
        layout.addWidget(self._build_whole())
        layout.addStretch(1)
        outer = QVBoxLayout(self)
        outer.addWidget(scrolled(body, 120), 1)
        outer.addWidget(self._build_preview())

    def _build_structure(self) -> QWidget:
        self._structure_box = box("Structure that is edited; follows the selected label of the layer.")
        self._structure_box.setIconSize(QSize(14, 14))
        self._structure_box.setPlaceholderText("No structure")
        self._structure_box.currentIndexChanged.connect(self._on_structure_chosen)
        self._new_button = button(
            "+", "Add a structure; makes a labels layer on the scan if there is none.", self.ask_structure
        )
        self._new_button.setFixedWidth(30)
        self._overwrite_box = QCheckBox("May replace other structures")
        self._overwrite_box.setToolTip("If it is off, the structure grows into background only.")
        self._overwrite_box.toggled.connect(partial(setattr, self.model, "may_overwrite"))
        return _section("", row(self._structure_box, self._new_button), self._overwrite_box)

    def _build_whole(self) -> QWidget:
        self._size_box = _amount(" mm", 2.0, 0.1, 100.0, 0.5, "Size of Smooth, Erode and Dilate; distance of Combine.")
        self._volume_box = _amount(" ml", 0.5, 0.001, 1000.0, 0.5, "Smallest part that “Remove islands” keeps.")
        self._operation_buttons: dict[str, QPushButton] = {}
        self._combine_button = _small("Combine", "Add, subtract or intersect another structure.")
        self._combine_menu = QMenu(self)
        self._combine_menu.aboutToShow.connect(self._fill_combine_menu)
        self._combine_button.setMenu(self._combine_menu)
        grid = QGridLayout()
        grid.setSpacing(4)
        rows: list[list[str | QWidget]] = [
            ["smooth", "erode", "dilate"],
            [self._size_box, "fill_holes", self._combine_button],
            ["keep_largest", "remove_islands", self._volume_box],
        ]
        for r, line in enumerate(rows):
            for c, cell in enumerate(line):
                grid.addWidget(self._operation_button(cell) if isinstance(cell, str) else cell, r, c)
        return _section("Whole structure", grid)

    def _operation_button(self, name: str) -> QPushButton:
        known = OPERATIONS[name]
        widget = self._operation_buttons[name] = _small(known.title, known.tip)
        widget.clicked.connect(lambda *_: self.run(name))
        return widget

    def _build_preview(self) -> QWidget:
        self._preview_label = QLabel(textFormat=Qt.TextFormat.PlainText)
        self._preview_label.setWordWrap(True)
        self._apply_button = button("Apply", "Apply the preview; one step of undo. Key: Enter.", self.model.apply)
        self._discard_button = button("Discard", "Discard the preview. Key: Escape.", self.model.discard)
        self._at_once_box = QCheckBox("Apply at once")
        self._at_once_box.setToolTip("Apply changes without a preview; Ctrl+Z takes them back.")
        self._at_once_box.toggled.connect(partial(setattr, self.model, "is_at_once"))
        self._progress_bar = QProgressBar()
        self._stop_button = button("Stop", "Stop the computation.", self.model.stop)
        self._progress = QWidget()
        progress = row(self._progress_bar, self._stop_button)
        progress.setContentsMargins(0, 0, 0, 0)
        self._progress.setLayout(progress)
        frame = QFrame()
        frame.setFrameShape(QFrame.Shape.StyledPanel)
        layout = QVBoxLayout(frame)
        layout.setContentsMargins(6, 4, 6, 4)
        layout.addWidget(self._preview_label)
        layout.addLayout(row(self._apply_button, self._discard_button))
        layout.addWidget(self._progress)
        layout.addWidget(self._at_once_box)
        return frame

    # from the person to the model

    def _on_structure_chosen(self) -> None:
        label = self._structure_box.currentData()
        if label is not None:
            self.model.choose(label)

    def _fill_combine_menu(self) -> None:
        self._combine_menu.clear()
        for name in ("union", "minus", "within"):
            known = OPERATIONS[name]
            menu = self._combine_menu.addMenu(known.title)
            menu.setToolTip(known.tip)
            for other in self.model.others:
                action = menu.addAction(swatch(other.color), other.name)
                action.triggered.connect(lambda *_, name=name, label=other.label: self.run(name, label))

    # from the model to the person

    def _refresh(self) -> None:
        model = self.model
        structures, structure, preview = model.structures.structures, model.structure, model.preview
        with signals_blocked(self._structure_box):
            self._structure_box.clear()
            for one in structures:
                self._structure_box.addItem(swatch(one.color), one.name, one.label)
            self._structure_box.setCurrentIndex(structures.index(structure) if structure in structures else -1)
        self._structure_box.setEnabled(bool(structures))
        self._new_button.setEnabled(model.session.scan is not None)
        for widget in self._operation_buttons.values():
            widget.setEnabled(structure is not None)
        self._combine_button.setEnabled(bool(structure is not None and model.others))
        if preview is not None:
            self._preview_label.setText(f"{preview.name}: {preview.text}")
        elif structure is None:
            self._preview_label.setText("Choose a structure or add one with +.")
        else:
            self._preview_label.setText("No change to apply.")
        self._preview_label.setEnabled(preview is not None)
        self._apply_button.setEnabled(preview is not None)
        self._discard_button.setEnabled(preview is not None)
        self._refresh_progress()

    def _refresh_progress(self) -> None:
        job = self.model.job
        self._progress.setVisible(job is not None)
        if job is not None:
            progress = job.progress
            self._progress_bar.setMaximum(progress.total)
            self._progress_bar.setValue(progress.done)
            self._progress_bar.setFormat(progress.stage)


def _section(title: str, *parts: object) -> QWidget:
    """Return a group of widgets and layouts below a title."""
    widget = QWidget()
    layout = QVBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 4)
    layout.setSpacing(4)
    if title:
        head = QLabel(title)
        font = head.font()
        font.setBold(True)
        head.setFont(font)
        layout.addWidget(head)
    for part in parts:
        if isinstance(part, QWidget):
            layout.addWidget(part)
        else:
            layout.addLayout(part)
    return widget


def _small(text: str, tool_tip: str) -> QPushButton:
    """Return a button that shares the width of a narrow panel with others."""
    widget = button(text, tool_tip)
    widget.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return widget


def _amount(suffix: str, value: float, low: float, high: float, step: float, tool_tip: str) -> QDoubleSpinBox:
    """Return a box for an amount with a unit."""
    widget = QDoubleSpinBox(minimum=low, maximum=high, singleStep=step, suffix=suffix, toolTip=tool_tip)
    widget.setDecimals(3 if low < 0.01 else 1)
    widget.setValue(value)
    widget.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return widget
