"""A viewer model that shows the phantom and labels of it, for tests of the plugin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.plugin.autosave import Autosave, _locks
from napari_seg.plugin.layers import image_layers, labels_layer
from napari_seg.plugin.placement import place
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Segment, Segmentation, Volume

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)), Segment(4, "tail", (9, 9, 9)))


def found_in(volume: Volume) -> Segmentation:
    """Return labels of the phantom by thresholds, without a voxel of the tail."""
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    labels[volume.array[0] > 800] = 1
    return Segmentation(labels, volume.grid, SEGMENTS, confidence={1: 0.9, 3: 0.8})


def viewer_with_labels(volume: Volume) -> ViewerModel:
    """Return a viewer with the phantom and `found_in` of it, in a layer "found"."""
    viewer = ViewerModel()
    ((data, settings, _),) = image_layers(volume)
    viewer.add_layer(Image(data, **settings))
    labels = found_in(volume)
    data, settings, _ = labels_layer(labels, place(volume.grid), "found", scan=volume.source, algorithm=("balls", "1"))
    viewer.add_layer(Labels(data, **settings))
    return viewer


def labels_of(viewer: ViewerModel) -> Labels:
    """Return the layer "found"."""
    layer = viewer.layers["found"]
    assert isinstance(layer, Labels)
    return layer


def measure(model: StructuresModel) -> None:
    """Measure the selected labels in this thread."""
    snapshot = model.snapshot()
    assert snapshot is not None
    model.take(model.measure(snapshot, model.session.scan_on(snapshot.layer)))


def end(autosave: Autosave) -> Path:
    """Leave copies behind as a program that dies does; return their folder."""
    _locks.pop(autosave.folder).release()
    return autosave.folder
