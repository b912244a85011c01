"""Keys of the Edit tab: none of them is one of napari's for an image or for labels."""

from __future__ import annotations

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.utils.key_bindings import coerce_keybinding
from napari.utils.shortcuts import default_shortcuts

from napari_seg.plugin.edit.keys import KEYS, NAPARI_KEYS
from napari_seg.plugin.edit.operations import WINDOW_OPERATIONS
from napari_seg.plugin.edit.tools import TOOLS
from napari_seg.plugin.shortcuts import _ACTIONS

_OF_OTHER_LAYERS = ("points", "shapes", "vectors", "tracks", "surface", "select", "add_", "vertex", "direct", "drawing")


def napari_keys() -> set[str]:
    """Return the keys of napari's viewer, images and labels."""
    chosen = {
        str(coerce_keybinding(key))
        for name, keys in default_shortcuts.items()
        if not any(word in name for word in _OF_OTHER_LAYERS) or "selected_and_background" in name
        for key in keys
    }
    return chosen | {"Ctrl+Z", "Ctrl+Shift+Z"}


def test_keys_are_unique_and_leave_those_of_napari_alone() -> None:
    ours = [str(coerce_keybinding(key.default)) for key in KEYS.values()]
    ours += [str(coerce_keybinding(key)) for _, _, key in _ACTIONS.values()]
    assert len(set(ours)) == len(ours)
    assert set(ours) & napari_keys() <= {"Enter", "Escape"}  # see `PreviewKeys`


def test_every_tool_has_a_key_and_the_sheet_names_keys_of_napari_that_exist() -> None:
    assert {f"edit_{name}" for name in TOOLS} <= set(KEYS)
    assert {name.removeprefix("edit_") for name in KEYS if KEYS[name].group == "Whole structure"} <= set(
        WINDOW_OPERATIONS
    )
    assert {str(coerce_keybinding(key)) for key in NAPARI_KEYS} <= napari_keys()
