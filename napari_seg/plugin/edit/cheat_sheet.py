"""The cheat sheet: all keys of the Edit tab, as they are set in Preferences > Shortcuts."""

from __future__ import annotations

from html import escape

from napari.utils.interactions import Shortcut
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_seg.plugin import shortcuts
from napari_seg.plugin.edit.keys import KEYS, NAPARI_KEYS

_COLUMNS = (("Tools", "Prompts", "Preview", "Mouse"), ("Whole structure", "Other", "Other tabs", "napari"))

_MOUSE = (
    ("left", "Include (Click, Scribble); draw"),
    ("right, Alt, Ctrl", "Exclude (Click, Scribble)"),
    ("wheel", "Next or previous slice with Ctrl; zoom"),
)


class CheatSheet(QDialog):
    """Window with all keys; stays open while a person works."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Keys of the Edit tab")
        columns = QHBoxLayout()
        for groups in _COLUMNS:
            label = QLabel(text_of(groups), textFormat=Qt.TextFormat.RichText)
            label.setAlignment(Qt.AlignmentFlag.AlignTop)
            columns.addWidget(label)
        columns.setSpacing(24)
        layout = QVBoxLayout(self)
        layout.addLayout(columns)
        layout.addWidget(QLabel("Keys act while the mouse is over the canvas. Preferences > Shortcuts changes them."))


def text_of(groups: tuple[str, ...]) -> str:
    """Return the keys of some groups as a table for a label."""
    rows = []
    for group in groups:
        rows.append(f'<tr><td colspan="2" style="padding-top: 8px"><b>{escape(group)}</b></td></tr>')
        for keys, text in _lines(group):
            rows.append(
                f'<tr><td style="padding-right: 12px"><code>{escape(keys)}</code></td><td>{escape(text)}</td></tr>'
            )
    return f"<table>{''.join(rows)}</table>"


def _lines(group: str) -> list[tuple[str, str]]:
    if group == "napari":
        return [(Shortcut(key).platform, text) for key, text in NAPARI_KEYS.items()]
    if group == "Other tabs":
        others = {name: one for name, one in shortcuts.registered().items() if name.split(":")[1] not in KEYS}
        return [(_text(keys), text) for text, keys in others.values() if keys]
    if group == "Mouse":
        return list(_MOUSE)
    return [
        (_text(chosen), key.text) for name, key in KEYS.items() if key.group == group and (chosen := key.chosen(name))
    ]


def _text(keys: list[str]) -> str:
    return ", ".join(Shortcut(key).platform for key in keys)
