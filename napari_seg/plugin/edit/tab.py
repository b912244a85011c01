"""Widgets of the Edit tab: the structure, the tools, operations on the whole structure, and the preview."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QKeySequence, QShowEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QFrame,
    QGridLayout,
    QInputDialog,
    QLabel,
    QMenu,
    QProgressBar,
    QPushButton,
    QShortcut,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import box, button, plain_tip, row, scrolled, swatch
from napari_seg.plugin.edit import keys
from napari_seg.plugin.edit.cheat_sheet import CheatSheet
from napari_seg.plugin.edit.fields import amount, section, small
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.edit.mouse import Mouse
from napari_seg.plugin.edit.operations import WINDOW_OPERATIONS
from napari_seg.plugin.edit.tool_box import ToolBox
from napari_seg.plugin.edit.tools import Tools
from napari_seg.plugin.napari_private import main_window


class EditTab(QWidget):
    """Corrects one structure: tools, operations on the whole of it, a preview that is applied or discarded."""

    def __init__(self, model: EditModel) -> None:
        super().__init__()
        self.model, self.tools = model, Tools(model)
        self._mouse = Mouse(self.tools)
        self._build()
        keys.connect(self)
        self._preview_keys = keys.PreviewKeys(self)
        self._sheet: CheatSheet | None = None
        # napari has no name for this key, which needs Shift on many keyboards
        self._question_mark = QShortcut(QKeySequence("?"), main_window(model.session.viewer))
        self._question_mark.activated.connect(self.show_keys)
        model.changed.connect(self._refresh)
        model.session.jobs.delivered.connect(self._refresh_progress)
        self._refresh()

    def showEvent(self, event: QShowEvent) -> None:  # Qt's name
        """Load what the first click needs, in the background."""
        super().showEvent(event)
        self.model.warm_up()

    def ask_structure(self) -> None:
        """Ask for the name of a new structure, and add it."""
        name, is_chosen = QInputDialog.getText(self, "New structure", "Name of the structure:")
        if is_chosen and name.strip():
            self.model.add_structure(name)

    def escape(self) -> None:
        """Discard the preview, or what is being computed; without either, put the tool away."""
        if self.model.has_pending:
            self.model.discard()
        else:
            self.tools.choose(None)

    def show_keys(self) -> None:
        """Show the cheat sheet; hide it if it is shown."""
        if self._sheet is not None and self._sheet.isVisible():
            self._sheet.close()
            return
        self._sheet = CheatSheet(self)
        self._sheet.show()

    def close_tools(self) -> None:
        """Put the tool away, and remove keys and callbacks of the mouse."""
        if self._sheet is not None:
            self._sheet.close()
        self._question_mark.setEnabled(False)
        self._question_mark.deleteLater()
        self.tools.close()
        self._mouse.close()
        self._preview_keys.close()

    # building

    def _build(self) -> None:
        body = QWidget()
        layout = QVBoxLayout(body)
        layout.setContentsMargins(0, 0, 4, 0)
        layout.addWidget(self._build_structure())
        self.tool_box = ToolBox(self.tools)
        layout.addWidget(section("Tools", self.tool_box))
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
        return section("", row(self._structure_box, self._new_button), self._overwrite_box)

    def _build_whole(self) -> QWidget:
        self._size_box = amount(" mm", 2.0, 0.1, 100.0, 0.5, "Size of Smooth, Erode and Dilate; distance of Combine.")
        self._volume_box = amount(
            " ml", 0.5, 0.001, 1000.0, 0.5, "Volume of the smallest island that “Remove islands” keeps."
        )
        self._size_box.valueChanged.connect(partial(setattr, self.model, "size_mm"))
        self._volume_box.valueChanged.connect(partial(setattr, self.model, "min_ml"))
        self._operation_buttons: dict[str, QPushButton] = {}
        self._combine_button = small("Combine", "With another structure: add, subtract, keep within, mirror.")
        self._combine_menu = QMenu(self)
        self._combine_menu.aboutToShow.connect(self._fill_combine_menu)
        self._combine_button.setMenu(self._combine_menu)
        copy_button = small(
            "Copy slice", "Copy the shown slice of the structure to the next or the previous one, and go there."
        )
        copy_menu = QMenu(self)
        for name in ("copy_to_next", "copy_to_previous"):
            action = copy_menu.addAction(WINDOW_OPERATIONS[name].title)
            action.triggered.connect(lambda *_, name=name: self.model.run(name))
        copy_button.setMenu(copy_menu)
        self._operation_buttons["copy_to_next"] = copy_button
        grid = QGridLayout()
        grid.setSpacing(4)
        rows: list[list[tuple[str | QWidget, int]]] = [
            [("smooth", 3), ("erode", 3), ("dilate", 3), (self._size_box, 3)],
            [("remove_islands", 6), (self._volume_box, 3), ("split", 3)],
            [("keep_largest", 6), ("fill_holes", 6)],
            [("fill_between", 6), ("fill_holes_in_slices", 6)],
            [(self._combine_button, 6), (copy_button, 6)],
        ]
        for r, line in enumerate(rows):
            c = 0
            for cell, span in line:
                if not isinstance(cell, str):
                    grid.addWidget(cell, r, c, 1, span)
                elif cell in WINDOW_OPERATIONS:
                    grid.addWidget(self._operation_button(cell), r, c, 1, span)
                c += span
        for c in range(12):
            grid.setColumnStretch(c, 1)
        return section("Whole structure", grid)

    def _operation_button(self, name: str) -> QPushButton:
        known = WINDOW_OPERATIONS[name]
        widget = self._operation_buttons[name] = small(known.title, known.tip)
        widget.clicked.connect(lambda *_: self.model.run(name))
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
        for name in ("union", "minus", "within", "mirror"):
            known = WINDOW_OPERATIONS[name]
            menu = self._combine_menu.addMenu(known.title)
            menu.setToolTip(plain_tip(known.tip))
            for other in self.model.others:
                action = menu.addAction(swatch(other.color), other.name)
                action.triggered.connect(lambda *_, name=name, label=other.label: self.model.run(name, label))

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
