"""Keys of the Edit tab as actions of napari, which users can change in Preferences > Shortcuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from napari.layers import Labels, Layer

from napari_seg.plugin import shortcuts
from napari_seg.plugin.edit.operations import WINDOW_OPERATIONS
from napari_seg.plugin.edit.tools import TOOLS

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_seg.plugin.edit.model import EditModel
    from napari_seg.plugin.edit.tools import Tools

_APPLY, _DISCARD = "apply_edit", "discard_edit"


class EditWindow(Protocol):
    """What keys act on: the Edit tab."""

    model: EditModel
    tools: Tools

    def escape(self) -> None: ...
    def ask_structure(self) -> None: ...
    def show_keys(self) -> None: ...


@dataclass(frozen=True)
class Key:
    """One action with a key.

    Attributes:
        group: heading of the cheat sheet.
        text: what it does.
        default: key unless a user has chosen another one.
        act: called with the tab.
    """

    group: str
    text: str
    default: str
    act: Callable[[EditWindow], object]

    def chosen(self, name: str) -> list[str]:
        """Return the keys that are in use for the action `name`; [] if a user has removed all."""
        return shortcuts.keys_of(f"napari-seg:{name}", self.default)


def _tool(name: str) -> Callable[[EditWindow], object]:
    return lambda tab: tab.tools.choose(None if tab.tools.tool == name else name)  # type: ignore[arg-type]


def _run(name: str) -> Callable[[EditWindow], object]:
    return lambda tab: tab.model.run(name)


_TOOL_KEYS = {
    "click": "I",
    "scribble": "S",
    "box": "R",
    "grow": "G",
    "lasso": "A",
    "cut": "K",
    "island": "Shift-O",
    "divide": "Shift-B",
    "brush": "T",
}
_OPERATION_KEYS = {
    "fill_between": "N",
    "copy_to_next": "J",
    "copy_to_previous": "Shift-J",
    "fill_holes": "H",
    "fill_holes_in_slices": "Shift-F",
    "smooth": "Shift-S",
    "dilate": "D",
    "erode": "Shift-D",
    "keep_largest": "Shift-K",
    "remove_islands": "Shift-I",
    "split": "Shift-T",
}

KEYS: Mapping[str, Key] = {
    **{
        f"edit_{name}": Key("Tools", f"{TOOLS[name].title}: choose the tool, or put it away", key, _tool(name))  # type: ignore[index]
        for name, key in _TOOL_KEYS.items()
    },
    "undo_prompt": Key("Prompts", "Remove the latest prompt", "Backspace", lambda tab: tab.model.undo_prompt()),
    "clear_prompts": Key("Prompts", "Remove all prompts", "Shift-Backspace", lambda tab: tab.model.clear_prompts()),
    **{
        f"edit_{name}": Key("Whole structure", WINDOW_OPERATIONS[name].title, key, _run(name))
        for name, key in _OPERATION_KEYS.items()
        if name in WINDOW_OPERATIONS
    },
    _APPLY: Key("Preview", "Apply the preview", "Enter", lambda tab: tab.model.apply()),
    _DISCARD: Key("Preview", "Discard the preview, or put the tool away", "Escape", lambda tab: tab.escape()),
    "new_structure": Key("Other", "Add a structure", "Shift-N", lambda tab: tab.ask_structure()),
    "edit_keys": Key("Other", "Show these keys; ? shows them too", "Shift-H", lambda tab: tab.show_keys()),
}
"""Actions by name; the next and the previous structure are in `napari_seg.plugin.shortcuts`."""

NAPARI_KEYS: Mapping[str, str] = {
    "Control-Z": "Undo",
    "Control-Shift-Z": "Redo",
    "P": "napari's brush",
    "E": "napari's eraser",
    "[": "Smaller brush",
    "]": "Larger brush",
    "Z": "Move the camera",
    "M": "New label",
}
"""Keys of napari that are useful while editing, as the cheat sheet shows them."""

_tabs: WeakSet[EditWindow] = WeakSet()


def connect(tab: EditWindow) -> None:
    """Register the keys and let them act on a tab while its window is open."""
    _tabs.add(tab)
    for name, key in KEYS.items():
        shortcuts.register(f"napari-seg:{name}", _action(name, key), key.text, key.default)


def _action(name: str, key: Key) -> Callable[[ViewerModel], None]:
    def act(viewer: ViewerModel) -> None:
        for tab in list(_tabs):
            session = tab.model.session
            if not session.is_closed and session.viewer is viewer:
                key.act(tab)

    act.__name__, act.__doc__ = name, key.text
    return act


class PreviewKeys:
    """Keys that apply and discard a preview, while there is something to apply or to discard.

    napari's labels layers use Enter and Escape for their polygon, before keys of the viewer are asked. While a preview,
    prompts or a tool of this tab are there, the keys are therefore bound to the active layer of each plane.

    Args:
        window: tab whose preview is applied.
    """

    def __init__(self, window: EditWindow) -> None:
        self._window = window
        self._bound: list[tuple[Layer, str]] = []
        window.model.changed.connect(self._follow)
        window.tools.changed.connect(self._follow)
        window.model.views.added.connect(self._bind_again)

    def close(self) -> None:
        """Unbind the keys."""
        self._window.model.changed.disconnect(self._follow)
        self._window.tools.changed.disconnect(self._follow)
        self._window.model.views.added.disconnect(self._bind_again)
        self._unbind()

    @property
    def _is_due(self) -> bool:
        model = self._window.model
        return model.has_pending or model.views.is_claimed

    def _follow(self) -> None:
        if self._is_due != bool(self._bound):
            self._bind_again()

    def _bind_again(self, viewer: object = None) -> None:
        self._unbind()
        if not self._is_due:
            return
        for one in self._window.model.views:
            layer = one.layers.selection.active
            for name in (_APPLY, _DISCARD) if isinstance(layer, Labels) else ():
                for key in KEYS[name].chosen(name):
                    layer.bind_key(key, self._action(name), overwrite=True)
                    self._bound.append((layer, key))

    def _action(self, name: str) -> Callable[[Layer], None]:
        def act(layer: Layer) -> None:
            KEYS[name].act(self._window)

        return act

    def _unbind(self) -> None:
        for layer, key in self._bound:
            layer.bind_key(key, None)
        self._bound = []
