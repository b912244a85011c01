"""Private attributes of napari that the plugin uses, and its public but little known ones, each behind one function.

napari 0.9 has no public way to three attributes. If another version of napari names them differently, every use raises
one `environment.napari` that says so, instead of an AttributeError somewhere in the middle of a drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from napari_seg.errors import EnvironmentFault

if TYPE_CHECKING:
    from napari.components.overlays import BrushCircleOverlay
    from napari.layers import Labels
    from napari.qt import QtViewer
    from numpy.typing import NDArray
    from qtpy.QtWidgets import QWidget

Atom = tuple[tuple[slice, ...], "NDArray", "NDArray"]
"""Part of a step of napari's history: a box of the label map, its labels before and its labels after."""

TESTED = "0.9"
"""napari release that the plugin is tested with."""


# public attributes


def qt_viewer_of(viewer: Any) -> QtViewer:
    """Return the Qt widget of a viewer: its canvas, sliders and drop target.

    Raises:
        EnvironmentFault: `environment.napari`, the viewer has no window.
    """
    from napari.qt import QtViewer
    from qtpy.QtWidgets import QApplication

    for window in QApplication.topLevelWidgets():
        for widget in window.findChildren(QtViewer):
            if widget.viewer is viewer:
                return widget
    raise _unsupported("window with a QtViewer for this viewer")


def main_window(viewer: Any) -> QWidget:
    """Return the Qt main window of a viewer."""
    return qt_viewer_of(viewer).window()


def scene(qt_viewer: QtViewer) -> Any:
    """Return the vispy scene of a canvas, to draw in."""
    return _attribute(_attribute(_attribute(qt_viewer, "canvas"), "view"), "scene")


def native_canvas(qt_viewer: QtViewer) -> Any:
    """Return the Qt widget that a canvas draws in."""
    return _attribute(_attribute(qt_viewer, "canvas"), "native")


def brush_circle(viewer: Any) -> BrushCircleOverlay:
    """Return the overlay that draws the brush at the mouse."""
    from napari.components.overlays import BrushCircleOverlay

    overlays = _attribute(_attribute(viewer, "canvas"), "overlays")
    for overlay in overlays.values():
        if isinstance(overlay, BrushCircleOverlay):
            return overlay
    raise _unsupported("BrushCircleOverlay in viewer.canvas.overlays")


def ask_before_closing(dock: Any, may_close: Callable[[], bool]) -> None:
    """Let a function decide whether the close button of a dock closes it; other docks than napari's are left alone."""
    close = getattr(type(dock), "destroyOnClose", None)  # its title bar, with the button, is made again at times
    if close is None:
        return
    weak = ref(dock)
    dock.destroyOnClose = lambda: close(weak()) if may_close() else None


# private attributes


def cancel_quit(window: Any) -> None:
    """Reset the flag that Ctrl-Q sets in a main window: the next close of a window that stays open would end napari."""
    if _attribute(window, "_quit_app"):
        window._quit_app = False


def history_lengths(layer: Labels) -> tuple[int, int]:
    """Return the number of steps that can be undone and redone; napari emits no event for either."""
    return len(_attribute(layer, "_undo_history")), len(_attribute(layer, "_redo_history"))


def record_edit(layer: Labels, edit: list) -> None:
    """Add an edit to the steps that can be undone, as if it had been painted in this layer; nothing can be redone."""
    _attribute(layer, "_undo_history").append(edit)
    _attribute(layer, "_redo_history").clear()


def paint_step(layer: Labels, step: list[Atom]) -> None:
    """Write new labels as one step that can be undone, as if a person had painted them.

    Args:
        layer: layer to change.
        step: boxes of the label map, with their labels before and after.
    """
    for box, _, after in step:
        layer.data[box] = after
    record_edit(layer, step)
    layer.refresh(extent=False)
    layer.events.paint(value=step)


def is_stroke_open(layer: Labels) -> bool:
    """Return whether a person is painting a stroke, which is no step of the history yet."""
    return bool(_attribute(layer, "_staged_history"))


def undone_arrays(layer: Labels) -> set[int]:
    """Return the `id` of each array of new labels in the steps that were undone and can be redone."""
    history = _attribute(layer, "_redo_history")
    return {id(atom[2]) for step in history for atom in step if isinstance(atom, tuple) and len(atom) == 3}


def restrict_brush(layer: Labels, may_paint: Callable[[tuple[slice, ...], int], Any] | None) -> None:
    """Let napari's brush, fill and polygon change only some voxels; a stroke is still one step to undo.

    Args:
        layer: layer that is painted in.
        may_paint: called with a box and the new label; returns the voxels of the box that may get it. None for all.
    """
    if may_paint is None:
        layer.__dict__.pop("_apply_mask_to_data", None)
        return
    apply = type(layer)._apply_mask_to_data if hasattr(type(layer), "_apply_mask_to_data") else None
    if apply is None:
        raise _unsupported("Labels._apply_mask_to_data")

    def apply_within(data: Any, mask: Any, new_label: int, volume_slice: tuple[slice, ...]) -> Any:
        return apply(layer, data, mask & may_paint(volume_slice, new_label), new_label, volume_slice)

    layer.__dict__["_apply_mask_to_data"] = apply_within


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        raise _unsupported(f"{type(owner).__name__}.{name}") from None


def _unsupported(missing: str) -> EnvironmentFault:
    from napari import __version__

    return EnvironmentFault(
        "environment.napari",
        f"napari {__version__} has no {missing}, which napari-seg uses; it was tested with napari {TESTED}. "
        f'Install that: pip install "napari[all]=={TESTED}.*"',
    )
