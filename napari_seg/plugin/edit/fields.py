"""Small widgets of the Edit tab, which share the width of a narrow panel."""

from __future__ import annotations

from math import floor, inf, log10

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDoubleSpinBox, QLabel, QLayout, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from napari_seg.plugin.controls import button


def section(title: str, *parts: QWidget | QLayout) -> QWidget:
    """Return widgets and layouts below a title; without a title if it is ""."""
    widget = QWidget()
    layout = QVBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 4)
    layout.setSpacing(4)
    if title:
        head = QLabel(title, textFormat=Qt.TextFormat.PlainText)
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


def small(text: str, tool_tip: str) -> QPushButton:
    """Return a button that takes the width that others leave."""
    widget = button(text, tool_tip)
    widget.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return widget


def set_precision(widget: QDoubleSpinBox, span: float) -> None:
    """Let a box show and step fractions of a span: a hundredth by its arrows, less than a thousandth in its digits."""
    power = floor(log10(span)) if 0 < span < inf else 3
    widget.setDecimals(min(max(4 - power, 1), 12))
    widget.setSingleStep(10.0 ** min(power - 2, 1))


def amount(suffix: str, value: float, low: float, high: float, step: float, tool_tip: str) -> QDoubleSpinBox:
    """Return a box for an amount with a unit.

    Args:
        suffix: unit, after a space.
        value: first value.
        low: lowest value.
        high: highest value.
        step: step of its arrows.
        tool_tip: its tool tip.
    """
    widget = QDoubleSpinBox(minimum=low, maximum=high, singleStep=step, suffix=suffix, toolTip=tool_tip)
    widget.setDecimals(3 if 0 < low < 0.01 else 1)
    widget.setValue(value)
    widget.setKeyboardTracking(False)
    widget.setStyleSheet("QDoubleSpinBox { min-width: 44px; padding: 1px 2px; }")  # napari's is wider
    widget.setButtonSymbols(QDoubleSpinBox.ButtonSymbols.NoButtons)  # arrow keys and the wheel step too
    widget.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return widget
