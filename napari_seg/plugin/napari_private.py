"""Every private name of napari that the plugin uses, each behind one function.

napari 0.9 has no public way to these. Another version may name them otherwise: then whoever needs them gets one
`environment.napari` that says so, instead of an AttributeError somewhere in the middle of a drawing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_seg.errors import EnvironmentFault

if TYPE_CHECKING:
    from napari.layers import Labels

TESTED = "0.9"
"""The napari release whose private names these are."""


def main_window(viewer: Any) -> Any:
    """Return the Qt main window of a viewer, to watch whether it is closed."""
    return _private(_private(viewer, "window"), "_qt_window")


def canvas_widget(viewer: Any) -> Any:
    """Return the `QtViewer` of a viewer: its canvas, sliders and drop target."""
    return _private(_private(viewer, "window"), "_qt_viewer")


def open_dropped(viewer: Any, *args: object, **options: object) -> None:
    """Open files as if they were dropped on a viewer's own canvas."""
    _private(canvas_widget(viewer), "_qt_open")(*args, **options)


def cancel_quit(window: Any) -> None:
    """Undo what Ctrl-Q noted in a main window that stays open: its next close, of whatever kind, would end napari."""
    if _private(window, "_quit_app"):
        window._quit_app = False


def scene(qt_viewer: Any) -> Any:
    """Return the vispy scene of a canvas, to draw in."""
    return _private(_private(_private(qt_viewer, "canvas"), "view"), "scene")


def brush_circle(viewer: Any) -> Any:
    """Return the overlay that draws the brush at the mouse."""
    return _private(_private(_private(viewer, "canvas"), "overlays"), "_brush_circle")


def native_canvas(qt_viewer: Any) -> Any:
    """Return the Qt widget of a canvas."""
    return _private(_private(qt_viewer, "canvas"), "native")


def history_lengths(layer: Labels) -> tuple[int, int]:
    """Return the number of steps that can be undone and redone; napari emits no event for either."""
    return len(_private(layer, "_undo_history")), len(_private(layer, "_redo_history"))


def record_edit(layer: Labels, edit: list) -> None:
    """Add an edit to the steps that can be undone, as if it had been painted in this layer; nothing can be redone."""
    _private(layer, "_undo_history").append(edit)
    _private(layer, "_redo_history").clear()


def _private(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        from napari import __version__

        raise EnvironmentFault(
            "environment.napari",
            f"napari {__version__} has no {type(owner).__name__}.{name}, which napari-seg uses; it was tested with "
            f'napari {TESTED}. Install that: pip install "napari[all]=={TESTED}.*"',
        ) from None
