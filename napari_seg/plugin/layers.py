"""Conversion between volumes or segmentations and napari's layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.errors import Notice, OutputError
from napari_seg.plugin.contrast import contrast_limits, value_range, widen_range
from napari_seg.plugin.layer_info import LayerInfo, orientation_doubts
from napari_seg.plugin.packed_labels import PackedLabels
from napari_seg.plugin.placement import AXIS_LABELS, LayerPlacement, place
from napari_seg.volume import (
    MAX_LABEL,
    NO_SOURCE,
    Segment,
    Segmentation,
    Source,
    Volume,
    labels_in,
    smallest_label_type,
)

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.utils.colormaps import DirectLabelColormap

LayerTuple = tuple[NDArray, dict[str, Any], str]
"""Array, settings and type of a layer, as napari takes it from a plugin."""

VOLUME_MARK = ", volume "
"""Text before the number of a volume, counted from 0, in the name of a scan with several volumes."""

_PLANE_OF_NORMAL = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
_PLANE_WORDS = re.compile(r"\b(sag|cor|ax|tra)", re.IGNORECASE)

_UNNAMED_COLOR = (0.6, 0.6, 0.6, 1.0)


def image_layers(volume: Volume, frame: ArrayLike | None = None) -> list[LayerTuple]:
    """Return one layer tuple for each channel of a volume.

    Args:
        volume: volume to show.
        frame: frame of the viewer, as `layer_info.frame_of` returns it; None if the volume is the first one.
    """
    placement = place(volume.grid, frame)
    layers = []
    for array, name in zip(volume.array, layer_names(volume), strict=True):
        shown = placement.show(array)
        info = LayerInfo(placement, volume, value_range(shown, volume.modality), scan=volume.source)
        settings: dict[str, Any] = {
            **_geometry(placement),
            "name": name,
            "colormap": "gray",
            "contrast_limits": contrast_limits(shown, volume.modality),
            "metadata": info.as_metadata(),
        }
        layers.append((shown, settings, "image"))
    return layers


def layer_names(volume: Volume) -> list[str]:
    """Return the name of the layer of each channel of a volume."""
    if len(volume.array) == 1:
        return [title_of(volume)]
    names = volume.channel_names or [str(number) for number in range(1, len(volume.array) + 1)]
    return [f"{title_of(volume)} {name}" for name in names]


def title_of(volume: Volume) -> str:
    """Return the name of a scan for display, for DICOM with the plane of its slices, such as "T1w sagittal"."""
    name, mark, number = volume.name.partition(VOLUME_MARK)
    name = name.replace("_", " ").strip()
    if volume.source.format == "dicom":
        # names of files begin with the modality and end with a number, to be unique in a folder
        name = re.sub(r" \d+$", "", name.removeprefix(f"{volume.modality} ")) or name
        if not _PLANE_WORDS.search(name):  # the last axis is normal to the slices, see `formats.dicom.geometry`
            name = f"{name or 'scan'} {_PLANE_OF_NORMAL[volume.grid.orientation[2]]}"
    return f"{name or 'scan'}{mark}{number}"


def layer_of(layer_tuple: LayerTuple) -> Layer:
    """Create the layer of a layer tuple; slow, call outside the main thread."""
    from napari.layers import Image, Labels

    data, settings, kind = layer_tuple
    layer: Layer = Labels(data, **settings) if kind == "labels" else Image(data, **settings)
    widen_range(layer)
    return layer


def in_frame(layers: Sequence[Layer], frame: NDArray | None) -> Sequence[Layer]:
    """Return the image layers of a volume in a viewer's frame; the same layers if they already are."""
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
    is_result: bool = False,
    notices: Iterable[Notice] = (),
) -> LayerTuple:
    """Return the layer tuple of a segmentation; its array is a copy, so that painting does not change the segmentation.

    Args:
        segmentation: segmentation to show.
        placement: placement of its scan.
        name: name of the layer.
        scan: source of the scan; DICOM results refer to its images.
        algorithm: name and version of the program that made the labels; None if a person did.
        source: file that the labels were read from; None for new labels.
        is_result: whether the labels are those that the algorithm made, which nobody has changed since.
        notices: notices of the scan; the labels keep those that say that left and right are unknown.
    """
    highest = max(int(segmentation.array.max(initial=0)), *(s.label for s in segmentation.segments), 0)
    volumes_ml = segmentation.volumes_ml()
    maps = segmentation.confidence_maps if is_result else None
    info = LayerInfo(
        placement,
        scan=scan,
        segments=segmentation.segments,
        confidence=dict(segmentation.confidence),
        algorithm=algorithm,
        # a layer that is shown resampled keeps the original, which saving would otherwise resample back
        native_labels=None if placement.is_view else segmentation.array,
        looked_for=frozenset(s.label for s in segmentation.segments) if is_result else frozenset(),
        model_labels=PackedLabels.of(segmentation.array) if is_result else None,
        model_confidence=None if maps is None else PackedLabels.of(maps.confidence),
        source=source,
        notices=orientation_doubts([*segmentation.notices, *notices]),
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
    """Return napari's colours of labels; labels without a colour are grey.

    Args:
        colors: label -> red, green and blue, each 0 to 255.
        hidden: labels that are not drawn.
    """
    from napari.utils.colormaps import DirectLabelColormap

    drawn: dict[int | None, Any] = {
        label: (*(c / 255 for c in color), 0.0 if label in hidden else 1.0) for label, color in colors.items()
    }
    return DirectLabelColormap(color_dict={**drawn, None: _UNNAMED_COLOR})


def confidence_layer(confidence: NDArray[np.uint8], placement: LayerPlacement, name: str) -> LayerTuple:
    """Return the layer tuple of a confidence map (I, J, K), 0 to 255, drawn over the scan; low values are dark."""
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
    """Return the segmentation of a labels layer, on the grid of the file.

    Args:
        labels: array of the layer.
        settings: settings of the layer, as napari passes them to a writer.

    Raises:
        OutputError: `output.no_geometry`, the layer has no info; `output.labels`, the array does not have the shape of
            the scan, or holds values that are no labels or too high.
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
    if (highest := max(int(labels.max(initial=0)), *segments, 0)) > MAX_LABEL:
        text = f"found the label {highest} in the layer {name!r}; expected up to {MAX_LABEL}, which files of labels "
        raise OutputError("output.labels", text + "hold; give such structures lower labels")
    for label in labels_in(labels):
        if label > 0 and label not in segments:
            segments[label] = Segment(label, f"label {label}", color_in(settings.get("colormap"), label))
    native = _restored(labels, placement, info.native_labels)
    if native.dtype.kind != "u":
        native = native.astype(smallest_label_type(max(segments, default=0)))
    ordered = tuple(segments[label] for label in sorted(segments))
    return Segmentation(native, placement.native, ordered, notices=info.notices)


def moved_error(name: str) -> OutputError:
    """Return the error about labels that lie elsewhere than the voxels that they were drawn on."""
    text = f"the layer {name!r} was moved or turned in napari (transform mode, or a script), away from the voxels that "
    text += "it was made on; expected it in its place; hold Alt and click napari's transform button to put it back"
    return OutputError("output.moved", text)


def _restored(labels: NDArray, placement: LayerPlacement, original: NDArray | None) -> NDArray:
    """Return labels on the grid of the file.

    Voxels that nobody painted keep their values of `original` if the layer was resampled.
    """
    restored = placement.restore(labels)
    if original is None:
        return restored
    painted = placement.restore((labels != placement.show(original, order=0)).astype(np.uint8))
    return np.where(painted, restored, original)


def _geometry(placement: LayerPlacement) -> dict[str, Any]:
    return {
        "scale": placement.scale,
        "translate": placement.translate,
        "units": ("mm", "mm", "mm"),
        "axis_labels": AXIS_LABELS,
    }


def scale_and_translate(layer: Layer) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return mm per voxel along napari's axes and the position of the first voxel, from all transforms of a layer.

    None if the layer is rotated or sheared against napari's axes, as layers of other programs can be.
    """
    origin = np.array(layer.data_to_world((0,) * layer.ndim))
    columns = np.array([layer.data_to_world(tuple(one)) for one in np.eye(layer.ndim)]).T - origin[:, None]
    scale = np.diagonal(columns)
    return (scale, origin) if np.allclose(columns, np.diag(scale), atol=1e-6 * np.abs(columns).max()) else None


def holds(layer: Layer, point: ArrayLike) -> bool:
    """Return whether a point in napari's world coordinates lies in the voxels of a layer."""
    (first, last), margin = layer.extent.world, layer.scale / 2
    return bool(((first - margin <= point) & (point <= last + margin)).all())


def color_in(colormap: Any, label: int) -> tuple[int, int, int]:
    """Return red, green and blue, each 0 to 255, of a label in napari's colours."""
    rgba = _UNNAMED_COLOR if colormap is None else np.asarray(colormap.map(label)).ravel()
    red, green, blue = (round(255 * float(c)) for c in rgba[:3])
    return red, green, blue
