"""The section *More* of the Train tab in Qt: choices that the plan makes well without a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QLineEdit, QToolButton, QVBoxLayout, QWidget
from superqt.utils import signals_blocked

from napari_seg.plugin.controls import ask_file, box, plain_tip
from napari_seg.plugin.train.choices import NETWORKS
from napari_seg.plugin.train.model import TrainModel
from napari_seg.training.network_plan import SIZES

_FOLDS = (2, 3, 5, 10)
_FILE = "file"
"""Entry that asks for a file."""

_LOCKED = "These choices were made when the training in the model folder began; another folder starts a new one."


class MoreSection(QWidget):
    """Choices of a training, collapsed at first."""

    def __init__(self, model: TrainModel) -> None:
        super().__init__()
        self.model = model
        self._toggle = QToolButton(text="More", checkable=True, autoRaise=True)
        self._toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._toggle.setToolTip(
            "Network, size, dimensions, folds, first weights and labels; the plan chooses well alone."
        )
        self._toggle.toggled.connect(self._show_form)
        self._plan = box("Whose rules plan patch, network, batch and length.")
        self._network = box("U-Net is best for most data; the others are for comparison.")
        self._size = box("A larger network may be better, and takes longer. Plan shows what each costs here.")
        self._dims = box("2D segments volumes slice by slice: for thick slices.")
        self._folds = box("Train a network on each fold; the model is their ensemble. It takes as many times as long.")
        self._start = box("Begin with the weights of a trained model: for few cases that are like its own.")
        self._labels = QLineEdit(placeholderText="as the data set names them")
        self._labels.setToolTip(
            "Classes and their values, such as: liver=1 tumour=2,3 vessel=10-19 ignore=255. Or double-click a class in "
            "the table of labels. Of several data sets, the names: Milz=spleen."
        )
        self._labels.editingFinished.connect(self._on_labels)
        self._note = QLabel(_LOCKED, wordWrap=True)
        self._boxes: dict[str, QComboBox] = {
            "plan": self._plan,
            "network": self._network,
            "size": self._size,
            "dims": self._dims,
            "folds": self._folds,
            "fine_tune": self._start,
        }
        self._form = QWidget()
        form = QFormLayout(self._form)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        titles = ("Plan by", "Network", "Size", "Dimensions", "Folds", "Start from")
        for title, (name, widget) in zip(titles, self._boxes.items(), strict=True):
            form.addRow(title, widget)
            widget.activated.connect(lambda number, name=name: self._on_chosen(name, number))
        form.addRow("Labels", self._labels)
        form.addRow(self._note)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._toggle)
        layout.addWidget(self._form)
        self._show_form(False)
        self.refresh()

    # from the user to the model

    def _show_form(self, is_shown: bool) -> None:
        self._toggle.setArrowType(Qt.ArrowType.DownArrow if is_shown else Qt.ArrowType.RightArrow)
        self._form.setVisible(is_shown)

    def _on_chosen(self, name: str, number: int) -> None:
        value = self._boxes[name].itemData(number)
        if value == _FILE:
            value = ask_file(self, "File of weights (model.pt)") or self.model.choices.fine_tune
        self.model.choose(**{name: value})

    def _on_labels(self) -> None:
        if self._labels.text() != self.model.choices.labels:
            self.model.choose(labels=self._labels.text())

    # from the model to the user

    def refresh(self) -> None:
        """Show the choices, and what each size costs."""
        model = self.model
        choices, is_free = model.choices, not model.is_resumed and model.job is None
        made = str(choices)
        self._toggle.setText(f"More: {made}" if made else "More")
        sizes = {name: model.plan.sizes.get(name, size.what) for name, size in SIZES.items()}
        starts = {path: name for name, path in model.starts}
        if choices.fine_tune is not None:
            starts.setdefault(choices.fine_tune, choices.fine_tune.name)
        folds = sorted({*_FOLDS, choices.folds} - {0})
        self._fill("plan", {"": "napari-seg", "nnunet": "nnU-Net’s rules"}, choices.plan)
        self._fill("network", {"": "U-Net", **{name: name for name in NETWORKS if name != "UNet"}}, choices.network)
        self._fill(
            "size", {"": "as the device allows", **{n: f"{n}: {what}" for n, what in sizes.items()}}, choices.size
        )
        self._fill("dims", {0: "as the data", 3: "3D", 2: "2D, slice by slice"}, choices.dims)
        self._fill("folds", {0: "none", **{count: str(count) for count in folds}}, choices.folds)
        self._fill("fine_tune", {None: "random weights", **starts, _FILE: "a file…"}, choices.fine_tune)
        for widget in (*self._boxes.values(), self._labels):
            widget.setEnabled(is_free)
        self._network.setEnabled(is_free and choices.offers_network)
        self._size.setEnabled(is_free and choices.offers_size)
        if not self._labels.hasFocus() or self._labels.text() == "" or not is_free:
            self._labels.setText(choices.labels)
            self._labels.setCursorPosition(0)
        self._note.setVisible(model.is_resumed)

    def _fill(self, name: str, entries: dict[Any, str], chosen: str | int | Path | None) -> None:
        combo = self._boxes[name]
        with signals_blocked(combo):
            shown = {combo.itemData(number): combo.itemText(number) for number in range(combo.count())}
            if shown != entries or list(shown) != list(entries):
                combo.clear()
                for value, text in entries.items():
                    combo.addItem(text, value)
                    combo.setItemData(combo.count() - 1, plain_tip(text), Qt.ItemDataRole.ToolTipRole)
            values = list(entries)
            chosen = "" if chosen == "UNet" else chosen
            combo.setCurrentIndex(values.index(chosen) if chosen in values else -1)
