"""Keys of the plugin as actions of napari, which users can change in Preferences > Shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

from napari.components import ViewerModel
from napari.settings import get_settings
from napari.utils.action_manager import action_manager

if TYPE_CHECKING:
    from napari_seg.plugin.structures.model import StructuresModel

_models: WeakSet[StructuresModel] = WeakSet()


_registered: dict[str, tuple[str, str]] = {}
"""Names of the actions of the plugin with their descriptions and default keys."""


def next_structure(viewer: ViewerModel) -> None:
    """Go to the next structure of the labels of a viewer."""
    _step(viewer, 1)


def previous_structure(viewer: ViewerModel) -> None:
    """Go to the previous structure of the labels of a viewer."""
    _step(viewer, -1)


_ACTIONS = {
    "napari-seg:next_structure": (next_structure, "Go to the next structure", "."),
    "napari-seg:previous_structure": (previous_structure, "Go to the previous structure", ","),
}


def connect(model: StructuresModel) -> None:
    """Register the keys and let them act on a model while it is open."""
    _models.add(model)
    for name, (action, description, key) in _ACTIONS.items():
        register(name, action, description, key)


def register(name: str, action: Callable[[ViewerModel], None], description: str, key: str) -> None:
    """Register an action of a viewer, and its key unless one was set in Preferences."""
    _registered[name] = description, key
    action_manager.register_action(name, action, description, ViewerModel)
    if name not in get_settings().shortcuts.shortcuts:
        action_manager.bind_shortcut(name, key)


def keys_of(name: str, default: str) -> list[str]:
    """Return the keys of an action as text: those set in Preferences, otherwise the default."""
    chosen = get_settings().shortcuts.shortcuts.get(name)
    return [default] if chosen is None else [str(key) for key in chosen]


def registered() -> dict[str, tuple[str, list[str]]]:
    """Return the registered actions of the plugin by name: their descriptions, and their keys as in `keys_of`."""
    return {name: (text, keys_of(name, default)) for name, (text, default) in _registered.items()}


def _step(viewer: ViewerModel, by: int) -> None:
    for model in list(_models):
        if not model.session.is_closed and model.session.viewer is viewer:
            model.step(by)
