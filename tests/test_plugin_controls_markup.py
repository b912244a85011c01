"""Qt finds no markup in foreign words: it would open the files that markup names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "napari_seg" / "plugin"
BOXES = {"about", "critical", "information", "question", "warning"}


def is_safe(text: ast.expr) -> bool:
    """Return whether a text is a constant, or comes from `plain_tip`."""
    if isinstance(text, ast.IfExp):
        return is_safe(text.body) and is_safe(text.orelse)
    if isinstance(text, ast.Call):
        return isinstance(text.func, ast.Name) and text.func.id == "plain_tip"
    if isinstance(text, ast.Subscript):
        return is_safe(text.value)
    return isinstance(text, ast.Constant) or (isinstance(text, ast.Name) and text.id.isupper())


def unsafe_lines(source: str) -> Iterator[str]:
    plain_names = {
        target.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and is_safe(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts: list[ast.expr] = []
        if name in ("setToolTip", "setStatusTip", "setWhatsThis"):
            texts = node.args[-1:]
        elif name == "setItemData" and "ToolTipRole" in ast.unparse(node):
            texts = node.args[1:2]
        elif name == "QLabel" and all(keyword.arg != "textFormat" for keyword in node.keywords):
            texts = node.args or [ast.Name("later")]
        elif name in BOXES and ast.unparse(node.func).startswith("QMessageBox."):
            texts = node.args[2:3]
        elif name == "QMessageBox" and "setTextFormat" not in source:
            texts = [ast.Name("later")]
        for text in texts:
            if not is_safe(text) and getattr(text, "id", "") not in plain_names:
                yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "line",
    ["x.setToolTip(name)", "x.setToolTip(0, f'{name}')", "QLabel()", "QLabel(name)", "QMessageBox.about(x, '', name)"],
)
def test_foreign_words_are_found(line: str) -> None:
    assert list(unsafe_lines(line))


def test_tool_tips_labels_and_boxes_take_no_markup_from_foreign_words() -> None:
    found = [
        f"{path.relative_to(PLUGIN)}:{line}"
        for path in sorted(PLUGIN.rglob("*.py"))
        for line in unsafe_lines(path.read_text(encoding="utf-8"))
    ]
    assert found == []
