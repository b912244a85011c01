"""Orientation letters at the edges of a canvas, and patient coordinates as text. Without Qt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from napari_seg.plugin.layer_info import LayerInfo, infos_of
from napari_seg.plugin.placement import anatomical_letters

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def orientation_letters(viewer: ViewerModel, layers: Iterable[Layer]) -> tuple[str, str, str, str]:
    """Return the patient directions at the left, right, upper and lower edge of a canvas.

    Args:
        viewer: viewer of the canvas.
        layers: layers that carry patient geometry.

    Returns:
        Four letters, such as R, L, A and P; four empty strings in 3D and if the patient's left and right are unknown.
    """
    infos = infos_of(layers)
    if not infos or viewer.dims.ndim != 3 or viewer.dims.ndisplay != 2:
        return ("", "", "", "")
    frame = infos[0].placement.frame
    if not all(info.is_oriented and np.allclose(info.placement.frame, frame) for info in infos):
        return ("", "", "", "")
    axes = anatomical_letters(frame)
    vertical, horizontal = viewer.camera.orientation2d
    down, right = (axes[axis] for axis in viewer.dims.order[1:])
    down = down if str(vertical) == "down" else _OPPOSITE[down]
    right = right if str(horizontal) == "right" else _OPPOSITE[right]
    return _OPPOSITE[right], right, _OPPOSITE[down], down


def position_text(info: LayerInfo, point: tuple[float, float, float]) -> str:
    """Return patient coordinates as text, such as "R 12.3  A 40.1  S 7.0 mm".

    Args:
        info: patient geometry of a layer of the viewer.
        point: position in napari's world coordinates, in mm.
    """
    if not info.is_oriented:
        return "left and right are not known"
    pairs = zip(("RL", "AP", "SI"), info.placement.to_patient_mm(point), strict=True)
    return "  ".join(f"{letters[int(value < 0)]} {abs(value):.1f}" for letters, value in pairs) + " mm"
