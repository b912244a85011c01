"""Labels layers on the grid of another scan: whether they fit, and the layer resampled to that grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from napari.layers import Image, Labels

from napari_seg.formats.endings import may_be_dicom
from napari_seg.geometry import is_same_lattice, resample
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of, volume_of
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.packed_labels import PackedLabels

UNKNOWN_SCAN = (
    "None of the open scans is the unchanged one of these labels. Open it, or select the scan that they belong to and "
    "say so in the tab Structures."
)
"""Why labels that were restored without their scan can't be used with it."""


def has_grid_of(labels: Labels, scan: Image) -> bool:
    """Return whether labels have the grid of a scan."""
    volume = volume_of(scan)
    return volume is not None and placement_of(labels).native.matches(volume.grid)


def may_belong_to(labels: Labels, scan: Image) -> bool:
    """Return whether labels were restored without their scan, and a scan on the same voxels may be it, but changed."""
    return LayerInfo.require(labels).scan_mark is not None and has_grid_of(labels, scan)


def can_move(labels: Labels, scan: Image) -> bool:
    """Return whether labels can be moved to the grid of a scan without interpolation or loss of voxels."""
    volume, source = volume_of(scan), placement_of(labels).native
    assert volume is not None
    snapshot = Snapshot.of(labels)
    if snapshot.is_moved or not is_same_lattice(source, volume.grid):
        return False
    array = snapshot.segmentation().array
    moved = resample(array, source, volume.grid, order=0, outside=0)
    return np.count_nonzero(moved) == np.count_nonzero(array)


def on_scan(snapshot: Snapshot, scan: Image) -> Labels:
    """Return a layer with the same labels on the grid of a scan, resampled by the nearest voxel.

    Unsaved edits are unsaved in the new layer too.

    Args:
        snapshot: labels to resample.
        scan: image layer of the scan.

    Raises:
        InputError: `geometry.other_frame_of_reference`, the positions of the two cannot be compared.
        OutputError: the labels fit no grid, as in `segmentation_of`.
    """
    from napari_seg.formats.dicom.reference import check_frame_of_reference

    volume, info = volume_of(scan), snapshot.info
    assert volume is not None
    file = info.source or next(iter(info.scan.files), None)
    if file is not None and may_be_dicom(file) and volume.source.format == "dicom":
        check_frame_of_reference(file, volume.source.files)
    segmentation = snapshot.segmentation()
    array = resample(segmentation.array, segmentation.grid, volume.grid, order=0, outside=0)
    layer = layer_of(
        labels_layer(
            replace(segmentation, array=array, grid=volume.grid, confidence_maps=None),
            placement_of(scan).for_new_layer(),
            snapshot.name,
            scan=volume.source,
            algorithm=info.algorithm,
            source=info.source,
            notices=volume.notices,
        )
    )
    assert isinstance(layer, Labels)
    if info.model_labels is not None:
        made = resample(info.model_labels.unpack(), segmentation.grid, volume.grid, order=0, outside=0)
        kept = replace(LayerInfo.require(layer), model_labels=PackedLabels.of(made), looked_for=info.looked_for)
        kept.attach(layer)
    old, new = state_of(snapshot.layer), state_of(layer)
    new.edits, new.saved, new.painted, new.hidden = old.edits, old.saved, old.painted, set(old.hidden)
    new.earlier_actions = snapshot.actions
    return layer
