"""The layers of one viewer shown in others, each in a plane of its own: what linked planes are, without Qt.

Copies share the arrays of their layers, so that nothing is held twice and what is painted in one plane is there in all.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from inspect import isgeneratorfunction
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from psygnal import Signal
from pydantic import PrivateAttr

from napari_seg.plugin.layer_info import frame_of, infos_of
from napari_seg.plugin.layers import holds
from napari_seg.plugin.napari_private import history_lengths, record_edit
from napari_seg.plugin.placement import PLANES, letters_of

_SHARED = ("visible", "opacity", "blending", "name")
_SHARED_IMAGE = (*_SHARED, "contrast_limits", "gamma", "colormap", "interpolation2d")
_OF_BRUSH = (
    "contour",
    "selected_label",
    "brush_size",
    "mode",
    "preserve_labels",
    "contiguous",
    "n_edit_dimensions",
    "show_selected_label",
)
_SHARED_LABELS = (*_SHARED, *_OF_BRUSH, "colormap", "features")

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def sides(viewer: ViewerModel, layers: Iterable[Layer]) -> tuple[str, str, str, str]:
    """Return the patient's sides at the left, right, upper and lower edge of a canvas.

    Args:
        viewer: viewer that draws in the canvas.
        layers: layers that know where they lie in the patient.

    Returns:
        Four letters, such as R, L, A and P; four times "" in 3D, and where left and right are not known.
    """
    infos = infos_of(layers)
    if not infos or viewer.dims.ndim != 3 or viewer.dims.ndisplay != 2:
        return ("", "", "", "")
    frame = infos[0].placement.frame
    if not all(info.is_oriented and np.allclose(info.placement.frame, frame) for info in infos):
        return ("", "", "", "")
    axes = letters_of(frame)
    vertical, horizontal = viewer.camera.orientation2d
    down, right = (axes[axis] for axis in viewer.dims.order[1:])
    down = down if str(vertical) == "down" else _OPPOSITE[down]
    right = right if str(horizontal) == "right" else _OPPOSITE[right]
    return _OPPOSITE[right], right, _OPPOSITE[down], down


_ACTIONS_OF_A_PLANE = (
    "increment_dims_left",
    "increment_dims_right",
    "focus_axes_up",
    "focus_axes_down",
    "reset_view",
    "hold_for_pan_zoom",
)
"""napari's actions that a key starts in the plane that has the focus; every other key acts on the main viewer."""


class PlaneViewer(ViewerModel):
    """The viewer of one plane; it has no window, so keys that need one, or change layers, act on the main viewer."""

    _main: Any = PrivateAttr(default=None)

    @classmethod
    def of(cls, main: ViewerModel, **settings: Any) -> PlaneViewer:
        """Return a viewer whose keys act on `main`."""
        viewer = cls(**settings)
        viewer._main = weakref.ref(main)
        return viewer

    @property
    def keymap(self) -> dict[Any, Callable]:
        """Key bindings of the main viewer, those of its class included: a person may change them at any time."""
        main = self._main() if self._main is not None else None
        if main is None:
            return {}
        bound = {**ViewerModel.class_keymap, **type(main).class_keymap, **main.keymap}
        return {
            key: _acting_on(main, action)
            for key, action in bound.items()
            if callable(action) and action.__name__ not in _ACTIONS_OF_A_PLANE
        }


def _acting_on(viewer: ViewerModel, action: Callable) -> Callable:
    """Return the function that napari calls for a key of a plane."""

    if isgeneratorfunction(action):  # napari resumes it when the key is released

        @wraps(action)
        def act_until_released(_: object) -> Iterator[None]:
            yield from action(viewer)

        return act_until_released

    @wraps(action)
    def act(_: object) -> object:
        return action(viewer)

    return act


class MirroredPlanes:
    """Viewers that show what one shows, each in its own plane, and share its crosshair.

    Args:
        viewer: the one.
        later: calls a function when the window has had its turn; a new layer costs napari a while in each plane.

    Attributes:
        moved: emitted when the crosshair is elsewhere.
        viewers: plane -> its viewer; empty until planes are opened.
    """

    moved = Signal()

    def __init__(self, viewer: ViewerModel, later: Callable[[Callable[[], None]], None] = lambda act: act()) -> None:
        self._viewer = weakref.ref(viewer)
        self._later = later
        self.viewers: dict[str, ViewerModel] = {}
        self._copies: dict[Layer, dict[str, Layer]] = {}
        self._edits: WeakKeyDictionary[Layer, tuple[int, int]] = WeakKeyDictionary()
        self._undo: list[tuple[Any, Callable]] = []
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
        """The viewer of a plane, made if it is not there; takes napari a while, so one at a time.

        Args:
            plane: a key of `PLANES`.
        """
        if plane not in self.viewers:
            viewer = self.viewers[plane] = PlaneViewer.of(self.viewer, title=plane)
            viewer.theme = self.viewer.theme  # its canvas has the colour of the theme
            self._listen(viewer.dims.events.point, partial(self._on_plane_moved, viewer))
            viewer.mouse_drag_callbacks.append(self._on_click)
            for layer in self.viewer.layers:
                if layer in self._copies:
                    self._copy(layer, plane)
            self._on_active()
            self._on_moved()
        return self.viewers[plane]

    @property
    def viewer(self) -> ViewerModel:
        """The viewer whose layers are shown."""
        viewer = self._viewer()
        assert viewer is not None
        return viewer

    def close(self) -> None:
        """Lets go of the viewer."""
        for emitter, callback in self._undo:
            emitter.disconnect(callback)
        self._undo = []
        viewer = self._viewer()
        if viewer is not None and self._on_click in viewer.mouse_drag_callbacks:
            viewer.mouse_drag_callbacks.remove(self._on_click)
        for plane in self.viewers.values():
            plane.layers.clear()
        self._copies = {}

    @property
    def point(self) -> tuple[float, float, float] | None:
        """The crosshair in napari's world; None while nothing with three axes is open."""
        viewer = self.viewer
        if viewer.dims.ndim != 3 or not self._copies:
            return None
        i, p, le = (float(value) for value in viewer.dims.point)
        return i, p, le

    @property
    def point_in_words(self) -> str:
        """The crosshair in the patient, such as "R 12.3  A 40.1  S 7.0 mm"."""
        point = self.point
        infos = infos_of(self._copies)
        if point is None or not infos:
            return ""
        if not infos[0].is_oriented:
            return "left and right are not known"
        letters = zip(("RL", "AP", "SI"), infos[0].placement.to_patient_mm(point), strict=True)
        return "  ".join(f"{pair[int(value < 0)]} {abs(value):.1f}" for pair, value in letters) + " mm"

    @property
    def main_plane(self) -> str | None:
        """The plane that the viewer itself shows; None in 3D, or where it shows none of them."""
        dims = self.viewer.dims
        if dims.ndisplay != 2 or dims.ndim != 3:
            return None
        return next((plane for plane, order in PLANES.items() if tuple(dims.order) == order), None)

    @property
    def is_oblique(self) -> bool:
        """Whether the planes are those of a scan that lies askew, so that letters are about right only."""
        frame = frame_of(self._copies)
        return frame is not None and not np.allclose(np.abs(frame).max(axis=0), 1, atol=1e-6)

    def show_in_main(self, plane: str) -> None:
        """Shows a plane in the viewer itself."""
        self.viewer.dims.ndisplay = 2
        self.viewer.dims.order = PLANES[plane]
        self.viewer.reset_view()

    # layers

    def _add(self, layer: Layer) -> None:
        if not isinstance(layer, Image | Labels) or layer.ndim != 3 or layer.multiscale or getattr(layer, "rgb", False):
            return
        self._copies[layer] = {}
        self._share_of(layer, layer)
        self._listen(layer.events.data, partial(self._on_data, layer))
        if isinstance(layer, Labels):
            self._listen(layer.events.paint, partial(self._refresh_others, layer, layer))
            self._listen(layer.events.set_data, partial(self._on_drawn, layer))
        for plane in self.viewers:
            self._later(partial(self._follow_with, layer, plane))
        self._on_moved()

    def _follow_with(self, layer: Layer, plane: str) -> None:
        """Copies a layer that is new, if it is still there."""
        if layer in self._copies and plane not in self._copies[layer]:
            self._copy(layer, plane)
            self._on_reordered()
            self._on_active()
            self._on_moved()
            point, viewer, copy = self.point, self.viewers[plane], self._copies[layer][plane]
            if point is not None and not any(holds(one, point) for one in viewer.layers if one is not copy):
                viewer.reset_view()  # the crosshair is where nothing was

    def _copy(self, layer: Layer, plane: str) -> None:
        copy, viewer = _copy_of(layer), self.viewers[plane]
        with self._syncing():  # a viewer that gets its first layer goes to its middle: the others shall not follow
            first = not viewer.layers
            viewer.layers.append(copy)
            if first:
                viewer.dims.order = PLANES[plane]
                viewer.reset_view()
        self._copies[layer][plane] = copy
        self._share_of(layer, copy)
        if isinstance(copy, Labels):
            self._listen(copy.events.paint, partial(self._on_painted, layer, copy))
            _bind_history(copy, layer)

    def _share_of(self, layer: Layer, one: Layer) -> None:
        for name in _SHARED_LABELS if isinstance(layer, Labels) else _SHARED_IMAGE:
            if hasattr(one.events, name):
                self._listen(getattr(one.events, name), partial(self._share, layer, one, name))

    def _on_inserted(self, event: Any) -> None:
        self._add(event.value)

    def _on_removed(self, event: Any) -> None:
        layer = event.value
        gone = {id(one) for one in (layer, *self._copies.get(layer, {}).values())}
        for emitter, callback in [pair for pair in self._undo if id(pair[0].source) in gone]:
            emitter.disconnect(callback)
        self._undo = [pair for pair in self._undo if id(pair[0].source) not in gone]
        for plane, copy in self._copies.pop(layer, {}).items():
            self.viewers[plane].layers.remove(copy)
        self.moved.emit()

    def _on_reordered(self, event: Any = None) -> None:
        order = [layer for layer in self.viewer.layers if layer in self._copies]
        for plane, viewer in self.viewers.items():
            wanted = [self._copies[layer][plane] for layer in order if plane in self._copies[layer]]
            for place, copy in enumerate(wanted):
                if viewer.layers[place] is not copy:
                    viewer.layers.move(viewer.layers.index(copy), place)

    def _on_active(self, event: Any = None) -> None:
        active = self.viewer.layers.selection.active
        for plane, viewer in self.viewers.items():
            viewer.layers.selection.active = self._copies.get(active, {}).get(plane)

    def _on_theme(self, event: Any = None) -> None:
        for viewer in self.viewers.values():
            viewer.theme = self.viewer.theme

    # what is shared

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
        """Undone and redone steps: napari says of them only that it draws, as it does of every slice."""
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
        """What was painted in a plane counts as painted in the layer: it is measured, kept and undone there."""
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
        """A click moves the crosshair there; a drag pans, and where a brush is chosen, it paints."""
        active = viewer.layers.selection.active
        idle = active is None or str(getattr(active, "mode", "pan_zoom")) == "pan_zoom"
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
        self._undo.append((emitter, callback))


def _copy_of(layer: Image | Labels) -> Layer:
    """A layer of the same array, drawn in the same way."""
    shared: dict[str, Any] = {
        "name": layer.name,
        "scale": layer.scale,
        "translate": layer.translate,
        "units": layer.units,
        "axis_labels": layer.axis_labels,
        "opacity": layer.opacity,
        "blending": layer.blending,
        "visible": layer.visible,
    }
    if isinstance(layer, Labels):
        copy = Labels(layer.data, **shared, colormap=layer.colormap, features=layer.features)
        for name in _OF_BRUSH:
            setattr(copy, name, getattr(layer, name))
        return copy
    copy = Image(
        layer.data,
        **shared,
        colormap=layer.colormap,
        contrast_limits=layer.contrast_limits,
        gamma=layer.gamma,
        interpolation2d=layer.interpolation2d,
    )
    copy.contrast_limits_range = layer.contrast_limits_range
    return copy


def _bind_history(copy: Labels, layer: Labels) -> None:
    """Undo and redo in the layer itself: its copy holds no history. napari reads the `__name__` of what is bound."""

    def undo(_: object) -> None:
        layer.undo()

    def redo(_: object) -> None:
        layer.redo()

    copy.bind_key("Control-Z", undo, overwrite=True)
    copy.bind_key("Control-Shift-Z", redo, overwrite=True)
