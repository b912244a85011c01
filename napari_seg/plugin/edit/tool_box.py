"""Widgets of the tools: a button for each, and the settings of the chosen one."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QGridLayout, QLabel, QPushButton, QVBoxLayout, QWidget
from superqt.utils import signals_blocked

from napari_seg.editing.interactive_network import NnInteractive
from napari_seg.plugin.controls import box, button, row, swatch
from napari_seg.plugin.edit.fields import amount, set_precision, small
from napari_seg.plugin.edit.keys import KEYS
from napari_seg.plugin.edit.network_dialog import NetworkDialog
from napari_seg.plugin.edit.tools import TOOLS, LassoUse, ToolName, Tools

_USES: dict[LassoUse, str] = {"inside": "Cut off inside", "outside": "Cut off outside", "find": "Find in it"}


class ToolBox(QWidget):
    """Buttons of the tools, and below them the settings of the chosen tool."""

    def __init__(self, tools: Tools) -> None:
        super().__init__()
        self._tools = tools
        grid = QGridLayout()
        grid.setSpacing(4)
        self.buttons: dict[ToolName, QPushButton] = {}
        for number, (name, tool) in enumerate(TOOLS.items()):
            keys = " or ".join(KEYS[f"edit_{name}"].chosen(f"edit_{name}"))
            widget = self.buttons[name] = small(tool.title, f"{tool.tip}\nKey: {keys}" if keys else tool.tip)
            widget.setCheckable(True)
            widget.clicked.connect(partial(self._on_button, name))
            grid.addWidget(widget, *divmod(number, 4))
        self._method_line = self._build_method()
        self._prompts_line = self._build_prompts()
        self._settings: dict[QWidget, tuple[ToolName, ...]] = {
            self._build_range(): ("grow", "brush"),
            self._build_limits(): ("grow",),
            self._build_lasso(): ("lasso",),
            self._build_cut(): ("lasso", "cut", "island"),
        }
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(grid)
        self._hint = QLabel(wordWrap=True, textFormat=Qt.TextFormat.PlainText)
        layout.addWidget(self._hint)
        for widget in (self._prompts_line, self._method_line, *self._settings):
            layout.addWidget(widget)
        tools.changed.connect(self.refresh)
        tools.model.changed.connect(self.refresh)
        self.refresh()

    # building

    def _build_prompts(self) -> QWidget:
        self._prompts_label = QLabel(textFormat=Qt.TextFormat.PlainText)
        self._undo_button = button("Undo", "Remove the latest prompt. Key: Backspace.", self._tools.model.undo_prompt)
        self._clear_button = button("Clear", "Remove all prompts.", self._tools.model.clear_prompts)
        return _line(self._prompts_label, self._undo_button, self._clear_button)

    def _build_method(self) -> QWidget:
        self._method_box = box("What finds the structure by the prompts.")
        self._method_box.addItem("Built-in")
        self._method_box.addItem(NnInteractive.name)
        self._method_box.activated.connect(self._on_method)
        self._licence_label = QLabel(textFormat=Qt.TextFormat.PlainText, wordWrap=True)
        lines = QWidget()
        layout = QVBoxLayout(lines)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(_line(QLabel("Method"), self._method_box))
        layout.addWidget(self._licence_label)
        return lines

    def _build_range(self) -> QWidget:
        tip = "Intensities that belong to the structure."
        self._low_box = amount("", 0.0, -1e6, 1e6, 10.0, f"Lowest value. {tip}")
        self._high_box = amount("", 0.0, -1e6, 1e6, 10.0, f"Highest value. {tip}")
        self._automatic_box = QCheckBox("Auto")
        self._automatic_box.setToolTip("Take the range from the tissue where a click or a stroke begins.")
        self._low_box.valueChanged.connect(lambda low: self._tools.set_range(low=low))
        self._high_box.valueChanged.connect(lambda high: self._tools.set_range(high=high))
        self._automatic_box.toggled.connect(partial(setattr, self._tools, "is_automatic"))
        return _line(QLabel("Range"), self._low_box, self._high_box, self._automatic_box)

    def _build_limits(self) -> QWidget:
        self._max_box = amount(" mm", self._tools.max_mm, 1.0, 1000.0, 5.0, "Largest distance from the click.")
        self._neck_box = amount(
            " mm", 0.0, 0.0, 50.0, 0.5, "Against leaks: bridges thinner than twice this are not crossed."
        )
        for widget in (self._max_box, self._neck_box):
            widget.valueChanged.connect(self._on_limits)
        return _line(QLabel("Reach"), self._max_box, QLabel("Neck"), self._neck_box)

    def _build_lasso(self) -> QWidget:
        self._use_box = box("What a lasso does.")
        for use, text in _USES.items():
            self._use_box.addItem(text, use)
        self._slices_box = QCheckBox("All slices")
        self._slices_box.setToolTip("Cut through all slices; otherwise only the slice in which the lasso is drawn.")
        self._slices_box.setChecked(True)
        self._use_box.currentIndexChanged.connect(self._on_lasso)
        self._slices_box.toggled.connect(partial(setattr, self._tools, "all_slices"))
        return _line(self._use_box, self._slices_box)

    def _build_cut(self) -> QWidget:
        self._into_box = box("Label of the part that is cut off.")
        self._into_box.currentIndexChanged.connect(self._on_into)
        return _line(QLabel("Give it to"), self._into_box)

    # from the person to the tools

    def _on_button(self, name: ToolName, is_checked: bool) -> None:
        self._tools.choose(name if is_checked else None)

    def _on_method(self, index: int) -> None:
        model = self._tools.model
        if index == 0:
            model.leave_network()
        elif model.network is None:
            chosen = NetworkDialog.ask(NnInteractive.name, NnInteractive.licence, self)
            if chosen is not None:
                model.connect_network(
                    lambda: NnInteractive(
                        chosen.server, licence_accepted=True, api_key=chosen.api_key, unencrypted=chosen.unencrypted
                    )
                )
        self.refresh()

    def _on_limits(self) -> None:
        self._tools.set_limits(self._max_box.value(), self._neck_box.value())

    def _on_lasso(self) -> None:
        self._tools.lasso_use = self._use_box.currentData()
        self.refresh()

    def _on_into(self) -> None:
        self._tools.cut_into = int(self._into_box.currentData() or 0)

    # from the tools to the person

    def refresh(self) -> None:
        """Show the chosen tool and its settings."""
        tools, model = self._tools, self._tools.model
        for name, widget in self.buttons.items():
            widget.setChecked(name == tools.tool)
            widget.setEnabled(model.structure is not None)
        for line, users in self._settings.items():
            line.setVisible(tools.tool in users)
        self._prompts_line.setVisible(tools.uses_prompts)
        self._method_line.setVisible(tools.uses_prompts and NnInteractive.is_available())
        self._method_box.setCurrentIndex(0 if model.network is None else 1)
        self._licence_label.setVisible(model.network is not None)
        if model.network is not None:
            stated = model.network.server_licence
            self._licence_label.setText(f"Licence of the server's weights: {stated or 'not stated'}")
        self._hint.setVisible(tools.tool is not None)
        self._hint.setText("" if tools.tool is None else TOOLS[tools.tool].hint)
        text = model.prompts_text
        self._prompts_label.setText(text or "No prompts")
        self._undo_button.setEnabled(bool(text))
        self._clear_button.setEnabled(bool(text))
        span = tools.intensity_span
        for spin, value in ((self._low_box, tools.low), (self._high_box, tools.high)):
            with signals_blocked(spin):
                set_precision(spin, span)
                if not spin.hasFocus() or spin.value() != value:
                    spin.setValue(value)
        with signals_blocked(self._automatic_box):
            self._automatic_box.setChecked(tools.is_automatic)
        into = [(0, "Background", None), *((one.label, one.name, swatch(one.color)) for one in model.others)]
        if [self._into_box.itemData(n) for n in range(self._into_box.count())] != [label for label, _, _ in into]:
            with signals_blocked(self._into_box):
                self._into_box.clear()
                for label, title, icon in into:
                    self._into_box.addItem(title, label)
                    if icon is not None:
                        self._into_box.setItemIcon(self._into_box.count() - 1, icon)
            self._on_into()
        self._into_box.setEnabled(tools.tool != "lasso" or tools.lasso_use != "find")
        self._slices_box.setEnabled(tools.lasso_use != "find")


def _line(*widgets: QWidget) -> QWidget:
    """Return a widget of widgets side by side, which can be hidden."""
    line = QWidget()
    layout = row(*widgets)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(4)
    line.setLayout(layout)
    return line
