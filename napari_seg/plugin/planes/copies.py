"""Copies of layers for linked planes: they share the array of their original, its settings and its undo history."""

from __future__ import annotations

from typing import Any

from napari.layers import Image, Labels, Layer

_COMMON = ("visible", "opacity", "blending", "name")
_TRANSFORM = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
_BRUSH = (
    "contour",
    "selected_label",
    "brush_size",
    "mode",
    "preserve_labels",
    "contiguous",
    "n_edit_dimensions",
    "show_selected_label",
)
_OF_IMAGES = (*_COMMON, "contrast_limits", "gamma", "colormap", "interpolation2d")
_OF_LABELS = (*_COMMON, *_BRUSH, "colormap", "features")


def synchronised_settings(layer: Layer) -> tuple[str, ...]:
    """Return the names of the settings that a layer and its copies share."""
    return _OF_LABELS if isinstance(layer, Labels) else _OF_IMAGES


def copy_of(layer: Image | Labels) -> Layer:
    """Return a layer of the same array with the same settings."""
    settings: dict[str, Any] = {name: getattr(layer, name) for name in (*_COMMON, *_TRANSFORM, "colormap")}
    if isinstance(layer, Labels):
        copy = Labels(layer.data, **settings, features=layer.features)
        for name in _BRUSH:
            setattr(copy, name, getattr(layer, name))
        _bind_undo(copy, layer)
        return copy
    for name in ("contrast_limits", "gamma", "interpolation2d"):
        settings[name] = getattr(layer, name)
    image = Image(layer.data, **settings)
    image.contrast_limits_range = layer.contrast_limits_range
    return image


def _bind_undo(copy: Labels, layer: Labels) -> None:
    """Let the keys of a copy undo and redo in its original, which holds the history."""

    def undo(_: object) -> None:  # napari reads the `__name__` of a bound function
        layer.undo()

    def redo(_: object) -> None:
        layer.redo()

    copy.bind_key("Control-Z", undo, overwrite=True)
    copy.bind_key("Control-Shift-Z", redo, overwrite=True)
