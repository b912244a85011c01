"""Clicks and drags in the main viewer and in linked planes, handed to the tools in voxels of the labels. Without Qt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_seg.plugin.edit.tools import CLICKED

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from numpy.typing import NDArray

    from napari_seg.plugin.edit.tools import Tools

_LEFT, _RIGHT = 1, 2

_CLICK_PIXELS = 4.0
"""Movement of the mouse up to which a press and a release are a click, not a drag."""

_POINT_PIXELS = 2.0
"""Distance between two points of a path."""


class Mouse:
    """Callbacks of the mouse in every viewer of a window.

    Args:
        tools: act on clicks and drags.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools, self._views = tools, tools.model.views
        for viewer in self._views:
            self._attach(viewer)
        self._views.added.connect(self._attach)

    def close(self) -> None:
        """Remove the callbacks."""
        self._views.added.disconnect(self._attach)
        for viewer in self._views:
            if self._on_drag in viewer.mouse_drag_callbacks:
                viewer.mouse_drag_callbacks.remove(self._on_drag)

    def _attach(self, viewer: ViewerModel) -> None:
        viewer.mouse_drag_callbacks.append(self._on_drag)

    def _on_drag(self, viewer: ViewerModel, event: Any) -> Iterator[None]:
        """Act on a press of a button, and on what follows until its release."""
        tools = self._tools
        is_planar = viewer.dims.ndim == 3 and viewer.dims.ndisplay == 2
        if tools.tool is None or tools.model.layer is None or not is_planar or event.button not in (_LEFT, _RIGHT):
            return
        if tools.model.placed is None:
            tools.model.report_turned()
            return
        is_included = event.button == _LEFT and not {"Alt", "Control"} & {_name(key) for key in event.modifiers}
        if tools.tool == "brush":
            if event.button == _LEFT and (voxel := self._voxel(event.position)) is not None:
                tools.begin_stroke(voxel)
        elif tools.tool in CLICKED:
            yield from self._click(viewer, event, is_included)
        else:
            yield from self._drag(viewer, event, is_included)

    def _click(self, viewer: ViewerModel, event: Any, is_included: bool) -> Iterator[None]:
        """Act on a click; a drag moves or zooms the camera as always."""
        start, is_click = np.array(event.pos), True
        position = event.position
        yield
        while event.type == "mouse_move":
            is_click = is_click and bool(np.linalg.norm(np.array(event.pos) - start) <= _CLICK_PIXELS)
            yield
        if is_click and (voxel := self._voxel(position)) is not None:
            self._tools.model.session.viewer.dims.set_point(range(3), position)  # other planes show the place
            self._tools.click(voxel, is_included)

    def _drag(self, viewer: ViewerModel, event: Any, is_included: bool) -> Iterator[None]:
        """Draw a path, and act on it at the release; the camera rests meanwhile."""
        camera, tool, axis = viewer.scene.camera, self._tools.tool, int(viewer.dims.order[0])
        could_pan, camera.mouse_pan = camera.mouse_pan, False
        path, last = [np.array(event.position)], np.array(event.pos)
        try:
            yield
            while event.type == "mouse_move":
                if np.linalg.norm(np.array(event.pos) - last) >= _POINT_PIXELS:
                    path.append(np.array(event.position))
                    last = np.array(event.pos)
                    self._views.draw_path(_outline(np.array(path), tool, axis), viewer)
                yield
        finally:
            camera.mouse_pan = could_pan
            self._views.draw_path(np.empty((0, 3)), viewer)
        self._tools.drag(self._to_voxels(np.array(path)), axis, is_included)

    def _to_voxels(self, positions: NDArray) -> NDArray[np.float64]:
        """Return positions in napari's world (..., 3) as fractional voxel indices."""
        placed = self._tools.model.placed
        assert placed is not None
        scale, translate = placed
        indices: NDArray[np.float64] = (positions - translate) / scale
        return indices

    def _voxel(self, position: Any) -> tuple[int, int, int] | None:
        """Return the voxel at a position in napari's world; None outside the labels."""
        layer = self._tools.model.layer
        i, j, k = (round(float(index)) for index in self._to_voxels(np.array(position)))
        assert layer is not None
        is_inside = all(0 <= n < size for n, size in zip((i, j, k), layer.data.shape, strict=True))
        return (i, j, k) if is_inside else None


def _outline(path: NDArray[np.float64], tool: str | None, axis: int) -> NDArray[np.float64]:
    """Return the line to draw for a path: the rectangle of a box, the closed line of a lasso, the line of a cut."""
    if tool == "cut":
        return path[[0, -1]]
    if tool == "lasso":
        return np.concatenate([path, path[:1]])
    if tool == "box":
        down, right = (n for n in range(3) if n != axis)
        corners = np.repeat(path[:1], 5, axis=0)
        corners[1:3, down], corners[2:4, right] = path[-1, down], path[-1, right]
        return corners
    return path


def _name(key: Any) -> str:
    """Return the name of a modifier key, which vispy gives as a key or as text."""
    return str(getattr(key, "name", key))
