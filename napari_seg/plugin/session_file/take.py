"""Take what a viewer shows, quickly, in the main thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import AVAILABLE_COLORMAPS
from numpy.typing import NDArray

from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, frame_of
from napari_seg.plugin.session_file.content import SavedColormap, SavedView

COMMON_SETTINGS = ("visible", "opacity", "blending")

IMAGE_SETTINGS = (
    *COMMON_SETTINGS,
    "contrast_limits_range",
    "contrast_limits",
    "gamma",
    "interpolation2d",
    "interpolation3d",
    "rendering",
    "iso_threshold",
    "attenuation",
)
"""Settings of an image layer that are saved, in the order in which they are set."""

LABELS_SETTINGS = (
    *COMMON_SETTINGS,
    "selected_label",
    "contour",
    "brush_size",
    "n_edit_dimensions",
    "preserve_labels",
    "contiguous",
    "show_selected_label",
    "rendering",
)
"""Settings of a labels layer that are saved."""


@dataclass(frozen=True)
class TakenLayer:
    """A layer at one moment.

    Attributes:
        layer: the layer.
        info: what the plugin knows about it.
        name: its name.
        settings: its plain settings.
        colormap: its colours, if it is an image.
        window: name of its display window.
        snapshot: copy of its labels; None for an image.
        voxels: array of an image.
        is_painted: whether a person changed the labels.
        hidden: labels that are not drawn.
    """

    layer: Layer
    info: LayerInfo
    name: str
    settings: dict[str, Any]
    colormap: SavedColormap = field(default_factory=SavedColormap)
    window: str = ""
    snapshot: Snapshot | None = None
    voxels: Any = None
    is_painted: bool = False
    hidden: tuple[int, ...] = ()


@dataclass(frozen=True)
class TakenSession:
    """What a viewer showed at one moment.

    Attributes:
        layers: its layers that can be saved, in their order.
        left_out: names of the other layers.
        active: index of the active layer in `layers`; None if there is none.
        frame: frame of the viewer.
        view: crosshair, axes and camera.
    """

    layers: tuple[TakenLayer, ...]
    left_out: tuple[str, ...]
    active: int | None
    frame: NDArray | None
    view: SavedView


def take(
    viewer: ViewerModel, *, has_planes: bool = False, window_of: Callable[[Image], str] = lambda _: ""
) -> TakenSession:
    """Return what a viewer shows; call in the main thread. Labels are copied, the arrays of images are not.

    Args:
        viewer: the viewer.
        has_planes: whether the linked planes are open.
        window_of: returns the name of the display window of a scan.
    """
    taken, left_out = [], []
    for layer in viewer.layers:
        info = LayerInfo.of(layer)
        if info is None or layer.ndim != 3 or not isinstance(layer, Image | Labels):
            left_out.append(layer.name)
        else:
            taken.append(_take_layer(layer, info, window_of))
    layers = [one.layer for one in taken]
    active = viewer.layers.selection.active
    dims, camera = viewer.dims, viewer.scene.camera
    axes = {"point": tuple(map(float, dims.point)), "order": dims.order} if dims.ndim == 3 else {}
    view = SavedView.model_validate(
        {
            **axes,
            "ndisplay": dims.ndisplay,
            "camera_center": tuple(map(float, camera.center)),
            "camera_zoom": float(camera.zoom),
            "camera_angles": tuple(map(float, camera.angles)),
            "has_planes": has_planes,
        }
    )
    return TakenSession(
        tuple(taken),
        tuple(left_out),
        layers.index(active) if active in layers else None,
        frame_of(layers),
        view,
    )


def _take_layer(layer: Image | Labels, info: LayerInfo, window_of: Callable[[Image], str]) -> TakenLayer:
    names = LABELS_SETTINGS if isinstance(layer, Labels) else IMAGE_SETTINGS
    settings = {name: plain(getattr(layer, name)) for name in names if hasattr(layer, name)}
    if isinstance(layer, Labels):
        state = state_of(layer)
        return TakenLayer(
            layer,
            info,
            layer.name,
            settings,
            snapshot=Snapshot.of(layer),
            is_painted=state.painted,
            hidden=tuple(sorted(state.hidden)),
        )
    window = window_of(layer) if info.volume is not None else ""
    voxels = layer.data[0] if layer.multiscale else layer.data
    return TakenLayer(layer, info, layer.name, settings, _colors_of(layer), window, voxels=voxels)


def plain(value: Any) -> Any:
    """Return a setting as plain data; napari's enumerations become their texts."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is float and not np.isfinite(value):
        return None
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    return str(value)


def _colors_of(layer: Image) -> SavedColormap:
    colormap = layer.colormap
    if colormap.name in AVAILABLE_COLORMAPS:
        return SavedColormap(name=colormap.name)
    colors, controls = (np.asarray(values, np.float64).tolist() for values in (colormap.colors, colormap.controls))
    return SavedColormap.model_validate({"colors": colors, "controls": controls})
