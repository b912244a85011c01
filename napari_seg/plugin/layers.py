"""Volumes and segmentations as napari's layer tuples, and labels layers as segmentations."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.errors import OutputError
from napari_seg.plugin.layer_info import LayerInfo, volume_of
from napari_seg.plugin.placement import AXIS_LABELS, LayerPlacement, place
from napari_seg.volume import NO_SOURCE, Segment, Segmentation, Source, Volume, labels_in, smallest_label_type

if TYPE_CHECKING:
    from napari.layers import Image, Layer
    from napari.utils.colormaps import DirectLabelColormap

LayerTuple = tuple[NDArray, dict[str, Any], str]
"""Array, settings and type: how napari takes a layer from a plugin."""

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Window of a CT: level 40, width 400."""

WINDOWS_HU: Mapping[str, tuple[float, float]] = {
    "Soft tissue": SOFT_TISSUE_HU,
    "Lung": (-1350.0, 150.0),
    "Bone": (-500.0, 1300.0),
    "Brain": (0.0, 80.0),
    "Liver": (-45.0, 105.0),
    "Mediastinum": (-125.0, 225.0),
}
"""Usual windows of a CT: the values that are drawn black and white (level -600, 400, 40, 30, 50; width 1500, 1800, 80,
150, 350)."""

AUTOMATIC, FULL_RANGE = "Automatic", "Full range"
"""Windows of any scan: all but the darkest and the brightest voxels, and all values."""

LOWEST_OF_OTHERS = -300.0
"""A scan of unknown modality with values below this may be a CT, so that a CT's windows are offered too."""

VOLUME_MARK = ", volume "
"""Before the number, counted from 0, of one volume of several, in the name of a scan."""

_PLANE_ACROSS = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
_PLANE_WORDS = re.compile(r"\b(sag|cor|ax|tra)", re.IGNORECASE)

_UNNAMED_COLOR = (0.6, 0.6, 0.6, 1.0)


def image_layers(volume: Volume, frame: ArrayLike | None = None) -> list[LayerTuple]:
    """One layer tuple for each channel of a volume.

    Args:
        volume: what to show.
        frame: the viewer's frame, see `frame_of`; None when the volume is the first one.
    """
    placement = place(volume.grid, frame)
    answer = []
    for channel, array in enumerate(volume.array):
        shown = placement.show(array)
        value_range = _value_range(shown, volume.modality)
        info = LayerInfo(placement, volume, value_range, scan=volume.source)
        settings: dict[str, Any] = {
            **_geometry(placement),
            "name": title_of(volume) if len(volume.array) == 1 else f"{title_of(volume)} {channel + 1}",
            "colormap": "gray",
            "contrast_limits": contrast_limits(shown, volume.modality),
            "metadata": info.as_metadata(),
        }
        answer.append((shown, settings, "image"))
    return answer


def title_of(volume: Volume) -> str:
    """What a person calls a scan: its name, and for DICOM the plane of its slices; such as "T1w sagittal"."""
    name, mark, number = volume.name.partition(VOLUME_MARK)
    name = name.replace("_", " ").strip()
    if volume.source.format == "dicom":
        # the name for files tells series of one folder apart by modality and number
        name = re.sub(r" \d+$", "", name.removeprefix(f"{volume.modality} ")) or name
        if not _PLANE_WORDS.search(name):  # the last axis runs across the slices, see `formats.dicom.geometry`
            name = f"{name or 'scan'} {_PLANE_ACROSS[volume.grid.orientation[2]]}"
    return f"{name or 'scan'}{mark}{number}"


def layer_of(layer_tuple: LayerTuple) -> Layer:
    """The layer that a tuple tells of; takes napari a while, so not in the main thread."""
    from napari.layers import Image, Labels

    data, settings, kind = layer_tuple
    layer: Layer = Labels(data, **settings) if kind == "labels" else Image(data, **settings)
    widen_range(layer)
    return layer


def widen_range(layer: Layer) -> None:
    """Lets the sliders of an image reach all of its values: napari takes the limits that it is given for the range."""
    info = LayerInfo.of(layer)
    if info is not None and info.value_range is not None:
        limits = layer.contrast_limits
        layer.contrast_limits_range = info.value_range
        layer.contrast_limits = limits


def in_frame(layers: Sequence[Layer], frame: NDArray | None) -> Sequence[Layer]:
    """The image layers of a volume placed in a viewer's frame; the same, if they are."""
    info = LayerInfo.of(layers[0]) if layers else None
    if info is None or info.volume is None or frame is None or np.allclose(info.placement.frame, frame, atol=1e-9):
        return layers
    return [layer_of(one) for one in image_layers(info.volume, frame)]


def labels_layer(
    segmentation: Segmentation,
    placement: LayerPlacement,
    name: str,
    *,
    scan: Source = NO_SOURCE,
    algorithm: tuple[str, str] | None = None,
    source: Path | None = None,
) -> LayerTuple:
    """The layer tuple of a segmentation, named and coloured; its array is a copy, so painting harms nothing.

    Args:
        segmentation: what to show.
        placement: of its scan.
        name: of the layer.
        scan: source of the scan; DICOM results refer to its images.
        algorithm: name and version of what made it; None: a person.
        source: the file that it was read from; None for a new one.
    """
    highest = max(int(segmentation.array.max(initial=0)), *(s.label for s in segmentation.segments), 0)
    volumes_ml = segmentation.volumes_ml()
    info = LayerInfo(
        placement,
        scan=scan,
        segments=segmentation.segments,
        confidence=dict(segmentation.confidence),
        algorithm=algorithm,
        # a layer that is shown resampled keeps the original, which saving would otherwise resample back
        native_labels=None if placement.is_view else segmentation.array,
        source=source,
    )
    settings: dict[str, Any] = {
        **_geometry(placement),
        "name": name,
        "colormap": colormap_of({s.label: s.color for s in segmentation.segments}),
        "features": {
            "index": [0, *(s.label for s in segmentation.segments)],
            "name": ["background", *(s.name for s in segmentation.segments)],
            "ml": [float("nan"), *(round(volumes_ml[s.label], 3) for s in segmentation.segments)],
        },
        "metadata": info.as_metadata(),
    }
    shown = placement.show(segmentation.array, order=0)
    return shown.astype(smallest_label_type(highest), order="C"), settings, "labels"


def colormap_of(colors: Mapping[int, tuple[int, int, int]], hidden: Collection[int] = ()) -> DirectLabelColormap:
    """napari's colours of labels; those that nobody named are grey.

    Args:
        colors: label -> red, green, blue, each 0 to 255.
        hidden: labels that are not drawn.
    """
    from napari.utils.colormaps import DirectLabelColormap

    drawn: dict[int | None, Any] = {
        label: (*(c / 255 for c in color), 0.0 if label in hidden else 1.0) for label, color in colors.items()
    }
    return DirectLabelColormap(color_dict={**drawn, None: _UNNAMED_COLOR})


def confidence_layer(confidence: NDArray[np.uint8], placement: LayerPlacement, name: str) -> LayerTuple:
    """The layer tuple of a network's confidence, 0 to 255, dark where it is not sure; drawn over the scan."""
    settings = {
        **_geometry(placement),
        "metadata": LayerInfo(placement).as_metadata(),
        "name": name,
        "colormap": "inferno",
        "contrast_limits": (0, 255),
        "blending": "translucent",
        "opacity": 0.6,
        "visible": False,
    }
    return placement.show(confidence), settings, "image"


def segmentation_of(labels: NDArray, settings: Mapping[str, Any]) -> Segmentation:
    """A labels layer as a segmentation on the file's own grid.

    Args:
        labels: the layer's array.
        settings: the layer's settings as napari hands them to a writer.

    Raises:
        OutputError: `output.no_geometry`, nothing tells which scan the layer belongs to; `output.labels`, it
            does not have the scan's shape or holds negative labels.
    """
    name = settings.get("name", "labels")
    info = LayerInfo.in_settings(settings)
    if info is None:
        raise OutputError(
            "output.no_geometry",
            f"the layer {name!r} lies on no open scan and has no voxel size of its own; add labels with the scan "
            "selected, or set the layer's scale and units='mm'",
        )
    labels, placement = np.asarray(labels), info.placement
    is_whole = labels.dtype.kind in "bu" or (labels.dtype.kind == "i" and labels.min(initial=0) >= 0)
    if labels.shape != placement.shown.shape or not is_whole:
        raise OutputError(
            "output.labels",
            f"found labels of shape {labels.shape} and type {labels.dtype} in the layer {name!r}; expected whole "
            f"numbers from 0 up in the scan's shape {placement.shown.shape}",
        )
    segments = {s.label: s for s in info.segments}
    for label in labels_in(labels):
        if label > 0 and label not in segments:
            segments[label] = Segment(label, f"label {label}", color_in(settings.get("colormap"), label))
    native = _restored(labels, placement, info.native_labels)
    if native.dtype.kind != "u":
        native = native.astype(smallest_label_type(max(segments, default=0)))
    ordered = tuple(segments[label] for label in sorted(segments))
    return Segmentation(native, placement.native, ordered, notices=info.notices)


def _restored(labels: NDArray, placement: LayerPlacement, original: NDArray | None) -> NDArray:
    """The layer's labels on the file's own grid; where nobody painted, bit by bit what was there before."""
    restored = placement.restore(labels)
    if original is None:
        return restored
    painted = placement.restore((labels != placement.show(original, order=0)).astype(np.uint8))
    return np.where(painted, restored, original)


def contrast_limits(array: NDArray, modality: str = "") -> tuple[float, float]:
    """Grey values to draw black and white: soft tissue for a CT, otherwise the 0.1th and 99.9th percentile."""
    if modality == "CT":
        return SOFT_TISSUE_HU
    # A million voxels tell as much as all of them.
    step = max(1, round((array.size / 1e6) ** (1 / 3)))
    sample = array[::step, ::step, ::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(sample, (0.1, 99.9)))
    if low == high:
        low, high = float(sample.min()), float(sample.max())
    return (low, high) if low < high else (low, low + 1.0)


def window_names(layer: Image) -> list[str]:
    """Return the windows that a scan may be drawn with."""
    volume = volume_of(layer)
    modality = "" if volume is None else volume.modality
    may_be_ct = modality == "CT" or (not modality and layer.contrast_limits_range[0] < LOWEST_OF_OTHERS)
    return [*(WINDOWS_HU if may_be_ct else ()), AUTOMATIC, FULL_RANGE]


def first_window(layer: Image) -> str:
    """Return the window that a scan is drawn with at first."""
    volume = volume_of(layer)
    return next(iter(WINDOWS_HU)) if volume is not None and volume.modality == "CT" else AUTOMATIC


def window_of(layer: Image, name: str) -> tuple[float, float]:
    """Return the values that are drawn black and white in a window.

    Args:
        layer: the scan.
        name: one of `window_names`.
    """
    if name in WINDOWS_HU:
        return WINDOWS_HU[name]
    array = layer.data[-1] if layer.multiscale else layer.data  # the smallest of a pyramid says as much
    if name == AUTOMATIC:
        return contrast_limits(np.asarray(array))
    return _value_range(np.asarray(array), "")


def _value_range(array: NDArray, modality: str) -> tuple[float, float]:
    """The least and the greatest value; of a CT at least those that its windows reach."""
    low, high = (float(value) for value in (np.nanmin(array), np.nanmax(array))) if array.size else (0.0, 1.0)
    if modality == "CT":
        low, high = min(low, -2048.0), max(high, 4096.0)
    return (low, high) if np.isfinite([low, high]).all() and low < high else (low, low + 1.0)


def _geometry(placement: LayerPlacement) -> dict[str, Any]:
    return {
        "scale": placement.scale,
        "translate": placement.translate,
        "units": ("mm", "mm", "mm"),
        "axis_labels": AXIS_LABELS,
    }


def holds(layer: Layer, point: ArrayLike) -> bool:
    """Whether a point of napari's world lies in a layer's voxels."""
    (first, last), margin = layer.extent.world, layer.scale / 2
    return bool(((first - margin <= point) & (point <= last + margin)).all())


def color_in(colormap: Any, label: int) -> tuple[int, int, int]:
    """Red, green and blue, each 0 to 255, that napari draws a label with."""
    rgba = _UNNAMED_COLOR if colormap is None else np.asarray(colormap.map(label)).ravel()
    red, green, blue = (round(255 * float(c)) for c in rgba[:3])
    return red, green, blue
