"""Structures that are added before they have voxels."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import labels_of, viewer_with_labels
from napari.components import ViewerModel

from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import image_layers, layer_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Volume


def text_of(model: EditModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


def test_a_structure_from_nothing(head: Volume) -> None:
    viewer = ViewerModel()
    session = Session(viewer)
    model = EditModel(session, StructuresModel(session))
    model.add_structure("liver")
    assert "Open a scan" in text_of(model)
    (scan,) = (layer_of(one) for one in image_layers(head))
    viewer.add_layer(scan)
    model.add_structure("liver")
    session.jobs.wait()
    layer = viewer.layers[-1]
    assert layer.name == f"{scan.name} - labels"
    assert [(s.label, s.name) for s in LayerInfo.require(layer).segments] == [(1, "liver")]
    assert layer.selected_label == 1
    assert model.structure is not None
    assert model.structure.name == "liver"
    viewer.layers.selection.active = scan
    model.add_structure("spleen")  # on the same layer
    assert [s.label for s in LayerInfo.require(layer).segments] == [1, 2]
    assert len(viewer.layers) == 2
    session.close()


def test_a_full_type_is_refused(head: Volume) -> None:
    viewer = viewer_with_labels(head)
    session = Session(viewer)
    model = EditModel(session, StructuresModel(session))
    for number in range(252):  # three have labels of the 255 of 8 bits
        model.structures.add(f"part {number}")
    assert labels_of(viewer).data.dtype == np.uint8
    model.add_structure("one more")
    assert "no more structures" in text_of(model)
    session.close()
