"""State of the linked planes, without Qt: the layers of one viewer, shown in one more viewer for each plane.

The layers of a plane are copies that share the arrays of their originals: memory is used once, and a stroke that is
painted in one plane is in all of them. Two rules keep the viewers consistent. A change of a shared setting, the
crosshair or the labels is passed on to all other viewers; while it is passed on, changes that it causes are not
(`_syncing`). Undo and redo always act on the original layer, because it alone holds the history.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from psygnal import Signal

from napari_seg.plugin.layer_info import frame_of, infos_of
from napari_seg.plugin.layers import holds
from napari_seg.plugin.napari_private import history_lengths, record_edit
from napari_seg.plugin.placement import PLANES
from napari_seg.plugin.planes.copies import copy_of, synchronised_settings
from napari_seg.plugin.planes.keys import PlaneViewer
from napari_seg.plugin.planes.orientation import position_text
from napari_seg.plugin.views import views_of


class PlanesModel:
    """Viewers that show the layers of the main viewer in one plane each, and share its crosshair.

    Args:
        viewer: the main viewer.
        later: calls a function after pending events of the window; napari takes a while for a new layer in each plane.

    Attributes:
        moved: emitted when the crosshair has moved.
        viewers: plane -> its viewer; empty until planes are opened.
    """

    moved = Signal()

    def __init__(self, viewer: ViewerModel, later: Callable[[Callable[[], None]], None] = lambda act: act()) -> None:
        self._viewer = weakref.ref(viewer)
        self._later = later
        self.viewers: dict[str, ViewerModel] = {}
        self._copies: dict[Layer, dict[str, Layer]] = {}
        self._edits: WeakKeyDictionary[Layer, tuple[int, int]] = WeakKeyDictionary()
        self._connections: list[tuple[Any, Callable]] = []
        self._is_syncing = False
        self._listen(viewer.layers.events.inserted, self._on_inserted)
        self._listen(viewer.layers.events.removed, self._on_removed)
        self._listen(viewer.layers.events.reordered, self._on_reordered)
        self._listen(viewer.layers.selection.events.active, self._on_active)
        self._listen(viewer.dims.events.point, self._on_moved)
        self._listen(viewer.events.theme, self._on_theme)
        viewer.mouse_drag_callbacks.append(self._on_click)
        for layer in viewer.layers:
            self._add(layer)

    def open(self, plane: str) -> ViewerModel:
        """Return the viewer of a plane; create it if there is none, which takes a while.

        Args:
            plane: a key of `PLANES`.
        """
        if plane not in self.viewers:
            viewer = self.viewers[plane] = PlaneViewer.linked_to(self.viewer, title=plane)
            viewer.theme = self.viewer.theme  # its canvas has the colour of the theme
            self._listen(viewer.dims.events.point, partial(self._on_plane_moved, viewer))
            viewer.mouse_drag_callbacks.append(self._on_click)
            for layer in self.viewer.layers:
                if layer in self._copies:
                    self._copy(layer, plane)
            self._on_active()
            self._on_moved()
            views_of(self.viewer).add(viewer)
        return self.viewers[plane]

    @property
    def viewer(self) -> ViewerModel:
        """Return the main viewer."""
        viewer = self._viewer()
        assert viewer is not None
        return viewer

    def close(self) -> None:
        """Disconnect from the main viewer and empty the planes."""
        for emitter, callback in self._connections:
            emitter.disconnect(callback)
        self._connections = []
        viewer = self._viewer()
        if viewer is not None and self._on_click in viewer.mouse_drag_callbacks:
            viewer.mouse_drag_callbacks.remove(self._on_click)
        for plane in self.viewers.values():
            plane.layers.clear()
            if viewer is not None:
                views_of(viewer).remove(plane)
        self._copies = {}

    @property
    def point(self) -> tuple[float, float, float] | None:
        """Return the crosshair in napari's world, in mm; None if no layer with three axes is open."""
        viewer = self.viewer
        if viewer.dims.ndim != 3 or not self._copies:
            return None
        i, p, le = (float(value) for value in viewer.dims.point)
        return i, p, le

    @property
    def position_text(self) -> str:
        """Return the patient coordinates of the crosshair as text; "" if they are unknown."""
        point = self.point
        infos = infos_of(self._copies)
        if point is None or not infos:
            return ""
        return position_text(infos[0], point)

    @property
    def main_plane(self) -> str | None:
        """Return the plane that the main viewer shows; None in 3D and for any other order of axes."""
        dims = self.viewer.dims
        if dims.ndisplay != 2 or dims.ndim != 3:
            return None
        return next((plane for plane, order in PLANES.items() if tuple(dims.order) == order), None)

    @property
    def is_oblique(self) -> bool:
        """Return whether the scan is oblique to the patient's axes, so that orientation letters are approximate."""
        frame = frame_of(self._copies)
        return frame is not None and not np.allclose(np.abs(frame).max(axis=0), 1, atol=1e-6)

    def show_in_main(self, plane: str) -> None:
        """Show a plane in the main viewer."""
        self.viewer.dims.ndisplay = 2
        self.viewer.dims.order = PLANES[plane]
        self.viewer.reset_view()

    # layers

    def _add(self, layer: Layer) -> None:
        if not isinstance(layer, Image | Labels) or layer.ndim != 3 or layer.multiscale or getattr(layer, "rgb", False):
            return
        self._copies[layer] = {}
        self._share_settings(layer, layer)
        self._listen(layer.events.data, partial(self._on_data, layer))
        if isinstance(layer, Labels):
            self._listen(layer.events.paint, partial(self._refresh_others, layer, layer))
            self._listen(layer.events.set_data, partial(self._on_drawn, layer))
        for plane in self.viewers:
            self._later(partial(self._follow_with, layer, plane))
        self._on_moved()

    def _follow_with(self, layer: Layer, plane: str) -> None:
        """Copy a new layer to a plane, unless it was removed meanwhile."""
        if layer in self._copies and plane not in self._copies[layer]:
            self._copy(layer, plane)
            self._on_reordered()
            self._on_active()
            self._on_moved()
            point, viewer, copy = self.point, self.viewers[plane], self._copies[layer][plane]
            if point is not None and not any(holds(one, point) for one in viewer.layers if one is not copy):
                viewer.reset_view()  # the crosshair was outside all layers

    def _copy(self, layer: Layer, plane: str) -> None:
        copy, viewer = copy_of(layer), self.viewers[plane]
        with self._syncing():  # napari moves to the middle of a first layer: the other viewers must not follow
            first = not viewer.layers
            viewer.layers.append(copy)
            if first:
                viewer.dims.order = PLANES[plane]
                viewer.reset_view()
        self._copies[layer][plane] = copy
        self._share_settings(layer, copy)
        if isinstance(copy, Labels):
            self._listen(copy.events.paint, partial(self._on_painted, layer, copy))

    def _share_settings(self, layer: Layer, one: Layer) -> None:
        for name in synchronised_settings(layer):
            if hasattr(one.events, name):
                self._listen(getattr(one.events, name), partial(self._share, layer, one, name))

    def _on_inserted(self, event: Any) -> None:
        self._add(event.value)

    def _on_removed(self, event: Any) -> None:
        layer = event.value
        gone = {id(one) for one in (layer, *self._copies.get(layer, {}).values())}
        for emitter, callback in [pair for pair in self._connections if id(pair[0].source) in gone]:
            emitter.disconnect(callback)
        self._connections = [pair for pair in self._connections if id(pair[0].source) not in gone]
        for plane, copy in self._copies.pop(layer, {}).items():
            self.viewers[plane].layers.remove(copy)
        self.moved.emit()

    def _on_reordered(self, event: Any = None) -> None:
        order = [layer for layer in self.viewer.layers if layer in self._copies]
        for plane, viewer in self.viewers.items():
            copies = [self._copies[layer][plane] for layer in order if plane in self._copies[layer]]
            for place, copy in enumerate(copies):
                if viewer.layers[place] is not copy:
                    viewer.layers.move(viewer.layers.index(copy), place)

    def _on_active(self, event: Any = None) -> None:
        active = self.viewer.layers.selection.active
        for plane, viewer in self.viewers.items():
            viewer.layers.selection.active = self._copies.get(active, {}).get(plane)

    def _on_theme(self, event: Any = None) -> None:
        for viewer in self.viewers.values():
            viewer.theme = self.viewer.theme

    # settings and labels

    def _share(self, layer: Layer, source: Layer, name: str, event: Any = None) -> None:
        if self._is_syncing or layer not in self._copies:
            return
        value = getattr(source, name)
        with self._syncing():
            for one in (layer, *self._copies[layer].values()):
                if one is not source:
                    setattr(one, name, value)

    def _on_data(self, layer: Layer, event: Any = None) -> None:
        for copy in self._copies.get(layer, {}).values():
            if copy.data is not layer.data:
                copy.data = layer.data

    def _on_drawn(self, layer: Labels, event: Any = None) -> None:
        """Redraw after undo and redo, for which napari emits only the event of drawing a slice."""
        if self._edits.get(layer) != history_lengths(layer):
            self._refresh_others(layer, layer)

    def _refresh_others(self, layer: Labels, source: Labels, event: Any = None) -> None:
        if self._is_syncing or layer not in self._copies:
            return
        self._edits[layer] = history_lengths(layer)
        with self._syncing():
            for one in (layer, *self._copies[layer].values()):
                if one is not source:
                    one.refresh(extent=False)

    def _on_painted(self, layer: Labels, source: Labels, event: Any) -> None:
        """Record a stroke of a plane in the original layer, where it is measured, saved and undone."""
        self._refresh_others(layer, source)
        record_edit(layer, event.value)
        layer.events.paint(value=event.value)

    # the crosshair

    def _on_moved(self, event: Any = None) -> None:
        if self._is_syncing:
            return
        point = self.point
        if point is not None:
            with self._syncing():
                for viewer in self.viewers.values():
                    if viewer.dims.ndim == 3:
                        viewer.dims.set_point(range(3), point)
        self.moved.emit()

    def _on_plane_moved(self, viewer: ViewerModel, event: Any = None) -> None:
        if not self._is_syncing and viewer.dims.ndim == 3 and self.viewer.dims.ndim == 3:
            self.viewer.dims.set_point(range(3), viewer.dims.point)

    def _on_click(self, viewer: ViewerModel, event: Any) -> Iterator[None]:
        """Move the crosshair to a click; a drag pans, or paints if a brush is active."""
        active = viewer.layers.selection.active
        idle = active is None or str(getattr(active, "mode", "pan_zoom")) == "pan_zoom"
        idle = idle and not views_of(self.viewer).is_claimed
        if event.button != 1 or not idle or viewer.dims.ndisplay != 2 or viewer.dims.ndim != 3:
            return
        dragged = False
        yield
        while event.type == "mouse_move":
            dragged = True
            yield
        if not dragged:
            self.viewer.dims.set_point(range(3), event.position)

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        self._is_syncing = True
        try:
            yield
        finally:
            self._is_syncing = False

    def _listen(self, emitter: Any, callback: Callable) -> None:
        emitter.connect(callback)
        self._connections.append((emitter, callback))
