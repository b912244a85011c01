"""A viewer model whose keys act on another viewer: linked planes have a canvas but no window."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

from napari.components import ViewerModel
from pydantic import PrivateAttr

_ACTIONS_OF_A_PLANE = (
    "increment_dims_left",
    "increment_dims_right",
    "focus_axes_up",
    "focus_axes_down",
    "reset_view",
    "hold_for_pan_zoom",
)
"""napari's actions whose keys act on the plane that has the focus; all other keys act on the main viewer."""


class PlaneViewer(ViewerModel):
    """Viewer model of one plane; keys that change layers, or need a window, act on the main viewer."""

    _main: Any = PrivateAttr(default=None)

    @classmethod
    def linked_to(cls, main: ViewerModel, **settings: Any) -> PlaneViewer:
        """Return a viewer whose keys act on `main`."""
        viewer = cls(**settings)
        viewer._main = weakref.ref(main)
        return viewer

    @property
    def keymap(self) -> dict[Any, Callable]:
        """Return the current key bindings of the main viewer and its class; users can change them at any time."""
        main = self._main() if self._main is not None else None
        if main is None:
            return {}
        bindings = {**ViewerModel.class_keymap, **type(main).class_keymap, **main.keymap}
        return {
            key: _bound_to(main, action)
            for key, action in bindings.items()
            if callable(action) and action.__name__ not in _ACTIONS_OF_A_PLANE
        }


def _bound_to(viewer: ViewerModel, action: Callable) -> Callable:
    """Return a key action that ignores the viewer it is called with and acts on the given one."""

    if isgeneratorfunction(action):  # napari resumes it when the key is released

        @wraps(action)
        def act_until_released(_: object) -> Iterator[None]:
            yield from action(viewer)

        return act_until_released

    @wraps(action)
    def act(_: object) -> object:
        return action(viewer)

    return act
