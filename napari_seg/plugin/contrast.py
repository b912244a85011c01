"""Contrast of image layers: display windows of CT and of other scans, and the range of the sliders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.plugin.layer_info import LayerInfo, volume_of

if TYPE_CHECKING:
    from napari.layers import Image, Layer

SOFT_TISSUE_HU = (-160.0, 240.0)

CT_WINDOWS_HU: Mapping[str, tuple[float, float]] = {
    "Soft tissue": SOFT_TISSUE_HU,
    "Lung": (-1350.0, 150.0),
    "Bone": (-500.0, 1300.0),
    "Brain": (0.0, 80.0),
    "Liver": (-45.0, 105.0),
    "Mediastinum": (-125.0, 225.0),
}
"""Display windows of CT: name -> values drawn black and white, that is level -/+ half the width. Level and width are
40/400, -600/1500, 400/1800, 40/80, 30/150 and 50/350."""

AUTOMATIC, FULL_RANGE = "Automatic", "Full range"
"""Display windows of any scan: 0.1th to 99.9th percentile, and lowest to highest value."""

MAX_LOWEST_CT_VALUE = -300.0
"""A scan of unknown modality with values below this may be a CT; the windows of CT are offered for it too."""

_CT_RANGE_HU = (-2048.0, 4096.0)


def contrast_limits(array: NDArray, modality: str = "") -> tuple[float, float]:
    """Return the values drawn black and white: soft tissue for CT, otherwise the 0.1th and 99.9th percentile."""
    if modality == "CT":
        return SOFT_TISSUE_HU
    # a million voxels give the percentiles well enough
    step = max(1, round((array.size / 1e6) ** (1 / 3)))
    sample = array[::step, ::step, ::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(sample, (0.1, 99.9)))
    if low == high:
        low, high = float(sample.min()), float(sample.max())
    return (low, high) if low < high else (low, low + 1.0)


def value_range(array: NDArray, modality: str) -> tuple[float, float]:
    """Return the lowest and highest value, for CT extended to the range of its windows."""
    low, high = (float(value) for value in (np.nanmin(array), np.nanmax(array))) if array.size else (0.0, 1.0)
    if modality == "CT":
        low, high = min(low, _CT_RANGE_HU[0]), max(high, _CT_RANGE_HU[1])
    return (low, high) if np.isfinite([low, high]).all() and low < high else (low, low + 1.0)


def window_names(layer: Image) -> list[str]:
    """Return the names of the display windows that are offered for a scan."""
    volume = volume_of(layer)
    modality = "" if volume is None else volume.modality
    may_be_ct = modality == "CT" or (not modality and layer.contrast_limits_range[0] < MAX_LOWEST_CT_VALUE)
    return [*(CT_WINDOWS_HU if may_be_ct else ()), AUTOMATIC, FULL_RANGE]


def default_window(layer: Image) -> str:
    """Return the name of the display window of a new scan."""
    volume = volume_of(layer)
    return next(iter(CT_WINDOWS_HU)) if volume is not None and volume.modality == "CT" else AUTOMATIC


def window_limits(layer: Image, name: str) -> tuple[float, float]:
    """Return the values of a scan that are drawn black and white in a display window.

    Args:
        layer: layer of the scan.
        name: one of `window_names`.
    """
    if name in CT_WINDOWS_HU:
        return CT_WINDOWS_HU[name]
    array = layer.data[-1] if layer.multiscale else layer.data  # the smallest level of a pyramid is good enough
    if name == AUTOMATIC:
        return contrast_limits(np.asarray(array))
    return value_range(np.asarray(array), "")


def widen_range(layer: Layer) -> None:
    """Extend the contrast sliders of an image to all of its values; napari takes the first limits as their range."""
    info = LayerInfo.of(layer)
    if info is not None and info.value_range is not None:
        limits = layer.contrast_limits
        layer.contrast_limits_range = info.value_range
        layer.contrast_limits = limits
