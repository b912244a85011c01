"""Keys of the plugin as actions of napari, which users can change in Preferences > Shortcuts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from napari.components import ViewerModel
from napari.settings import get_settings
from napari.utils.action_manager import action_manager

if TYPE_CHECKING:
    from napari_seg.plugin.structures.model import StructuresModel

_models: WeakSet[StructuresModel] = WeakSet()


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
    """Register the keys and let them act on a model while it is open; keys set in Preferences are not changed."""
    _models.add(model)
    chosen = get_settings().shortcuts.shortcuts
    for name, (action, description, key) in _ACTIONS.items():
        action_manager.register_action(name, action, description, ViewerModel)
        if name not in chosen:
            action_manager.bind_shortcut(name, key)


def _step(viewer: ViewerModel, by: int) -> None:
    for model in list(_models):
        if not model.session.is_closed and model.session.viewer is viewer:
            model.step(by)
