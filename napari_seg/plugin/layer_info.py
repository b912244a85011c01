"""Typed content of `layer.metadata["napari_seg"]`: what the plugin knows about a layer.

napari shares the values of `layer.metadata` between a layer, its duplicates and the settings that writers get. A
`LayerInfo` is therefore frozen: `attach` replaces it for one layer and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import Notice
from napari_seg.formats.endings import may_be_dicom
from napari_seg.geometry import Grid
from napari_seg.plugin.packed_labels import PackedLabels
from napari_seg.plugin.placement import LayerPlacement
from napari_seg.plugin.scan_mark import ScanMark
from napari_seg.volume import NO_SOURCE, DicomStack, Segment, Source, Volume

if TYPE_CHECKING:
    from napari.layers import Layer

_KEY = "napari_seg"

NO_ORIENTATION = Notice("geometry.no_orientation", "the orientation was unknown when this was saved")
"""Notice of layers that are restored without the notices of their scan."""

_PLACEMENT_KEYS = {"shape", "affine", "shown_shape", "shown_affine", "frame"}
_RENAMED_KEYS = {"range": "value_range", "labels": "native_labels"}


@dataclass(frozen=True, eq=False)
class LayerInfo:
    """Place of a layer in the patient, and origin of its voxels.

    Attributes:
        placement: grids of the file and of the layer, and the viewer's frame.
        volume: scan that an image layer shows; None for every other layer.
        value_range: lowest and highest value that the contrast sliders reach; None to keep napari's range.
        scan: source of the scan; DICOM results refer to its images.
        scan_mark: mark of the scan that restored labels belong to; None once `scan` is known, or if there is none.
        segments: table of segments of a labels layer.
        confidence: label -> mean probability, as in `Segmentation.confidence`.
        algorithm: name and version of the program that made the labels; None if a person did.
        native_labels: (I, J, K) labels on the file's grid, kept if the layer shows them resampled; otherwise None.
        looked_for: labels that the algorithm looks for; empty if they are not known.
        model_labels: (I, J, K) labels on the file's grid as the algorithm made them; None if they are not known.
        model_confidence: (I, J, K) uint8, the network's confidence in each voxel of `model_labels`; None if it was not
            required.
        source: file that the labels were read from; None for new labels.
        notices: doubts about the geometry.
        adopted: where a layer of another program got its grid from: "scan" if it lies on an open scan, "transform" if
            only its own transform is known; None for the plugin's own layers.
    """

    placement: LayerPlacement
    volume: Volume | None = None
    value_range: tuple[float, float] | None = None
    scan: Source = NO_SOURCE
    scan_mark: ScanMark | None = None
    segments: tuple[Segment, ...] = ()
    confidence: Mapping[int, float] = field(default_factory=dict)
    algorithm: tuple[str, str] | None = None
    native_labels: NDArray | None = None
    looked_for: frozenset[int] = frozenset()
    model_labels: PackedLabels | None = None
    model_confidence: PackedLabels | None = None
    source: Path | None = None
    notices: tuple[Notice, ...] = ()
    adopted: Literal["scan", "transform"] | None = None

    @classmethod
    def of(cls, layer: Layer) -> LayerInfo | None:
        """Return what the plugin knows about a layer; None for a layer of another program."""
        return cls.in_settings({"metadata": layer.metadata})

    @classmethod
    def require(cls, layer: Layer) -> LayerInfo:
        """Return what the plugin knows about a layer that has an info."""
        info = cls.of(layer)
        assert info is not None
        return info

    @classmethod
    def in_settings(cls, settings: Mapping[str, Any]) -> LayerInfo | None:
        """Return the info in the settings of a layer tuple; None if there is none.

        A plain dictionary, which earlier versions kept there, is read too.
        """
        known = settings.get("metadata", {}).get(_KEY)
        if isinstance(known, cls):
            return known
        if not isinstance(known, Mapping) or not known.keys() >= _PLACEMENT_KEYS:
            return None
        placement = LayerPlacement(
            native=Grid(known["shape"], known["affine"]),
            shown=Grid(known["shown_shape"], known["shown_affine"]),
            frame=np.asarray(known["frame"], dtype=np.float64),
        )
        names = {one.name for one in fields(cls)}
        values = {_RENAMED_KEYS.get(key, key): value for key, value in known.items()}
        if files := tuple(known.get("files", ())):
            stack = DicomStack(known.get("frames", ())) if may_be_dicom(files[0]) else None
            values["scan"] = Source("" if stack is None else "dicom", files, stack)
        return cls(placement, **{name: value for name, value in values.items() if name in names})

    @property
    def is_oriented(self) -> bool:
        """Return whether it is known which side of the layer is the patient's left."""
        return not orientation_doubts(self.notices if self.volume is None else self.volume.notices)

    def as_metadata(self) -> dict[str, LayerInfo]:
        """Return the `metadata` of a new layer with this info."""
        return {_KEY: self}

    def attach(self, layer: Layer) -> None:
        """Make this the info of a layer."""
        layer.metadata[_KEY] = self

    @staticmethod
    def detach(layer: Layer) -> None:
        """Remove the info of a layer, if it has one."""
        layer.metadata.pop(_KEY, None)


def orientation_doubts(notices: Iterable[Notice]) -> tuple[Notice, ...]:
    """Return those notices that say that left and right are unknown; labels get them from their scan."""
    return tuple(dict.fromkeys(notice for notice in notices if notice.code == NO_ORIENTATION.code))


def infos_of(layers: Iterable[Layer]) -> list[LayerInfo]:
    """Return the infos of those layers that have one."""
    return [info for layer in layers if (info := LayerInfo.of(layer)) is not None]


def volume_of(layer: Layer) -> Volume | None:
    """Return the scan that an image layer shows; None for a layer that shows none."""
    info = LayerInfo.of(layer)
    return None if info is None else info.volume


def placement_of(layer: Layer) -> LayerPlacement:
    """Return the placement of a layer that has an info."""
    return LayerInfo.require(layer).placement


def frame_of(layers: Iterable[Layer]) -> NDArray[np.float64] | None:
    """Return the frame of a viewer, which its first layer with an info sets; None without such a layer."""
    infos = infos_of(layers)
    return infos[0].placement.frame if infos else None


def share_frame(layers: Iterable[Layer], others: Iterable[Layer]) -> bool:
    """Return whether layers can be shown together: they have one frame, or some have none.

    Another scan may set the frame of a viewer while a job makes layers in an earlier one.
    """
    one, two = frame_of(layers), frame_of(others)
    return one is None or two is None or np.allclose(one, two, atol=1e-9)
