"""New structures, before they have voxels: in the selected labels, or in a new labels layer on the scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Labels

from napari_seg.plugin.foreign_layers import lies_on
from napari_seg.plugin.layer_info import placement_of, volume_of
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.messages import Message
from napari_seg.volume import Segmentation

if TYPE_CHECKING:
    from napari_seg.plugin.session import Session
    from napari_seg.plugin.structures.model import StructuresModel


def add_structure(session: Session, structures: StructuresModel, name: str) -> None:
    """Add a structure to the selected labels if they lie on the selected scan, otherwise to others that do.

    If there are none, a labels layer is made in a job.
    """
    scan, layer = session.scan, session.labels
    if scan is None and layer is None:
        session.show_messages(Message("warning", "Open a scan first."))
        return
    if layer is None or (scan is not None and not lies_on(layer, scan)):
        assert scan is not None
        on_scan = next((one for one in session.segmentations if lies_on(one, scan)), None)
        if on_scan is None:

            def add_to(new: Labels) -> None:
                if scan not in session.viewer.layers:
                    return  # it was closed
                session.viewer.add_layer(new)
                session.viewer.layers.selection.active = new
                _add(session, structures, name)

            session.jobs.start(lambda _: _empty_labels(scan), on_result=add_to)
            return
        session.viewer.layers.selection.active = on_scan
    _add(session, structures, name)


def _add(session: Session, structures: StructuresModel, name: str) -> None:
    if structures.add(name) is None:
        text = "These labels hold no more structures; convert the layer to a larger type in the layer list."
        session.show_messages(Message("warning", text))


def _empty_labels(scan: Image) -> Labels:
    """Return a labels layer without structures on a scan; slow for a large scan."""
    volume = volume_of(scan)
    assert volume is not None
    segmentation = Segmentation(np.zeros(volume.grid.shape, np.uint8), volume.grid, ())
    placement = placement_of(scan).for_new_layer()
    name = f"{scan.name} - labels"
    layer = layer_of(labels_layer(segmentation, placement, name, scan=volume.source, notices=volume.notices))
    assert isinstance(layer, Labels)
    return layer
