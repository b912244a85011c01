"""The info of a layer: it survives what napari does with metadata, and plain dictionaries are read."""

from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import rotation

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Labels
from napari.layers._layer_actions import _duplicate_layer

from napari_seg.errors import Notice
from napari_seg.geometry import Grid
from napari_seg.plugin.layer_info import LayerInfo, frame_of, infos_of, placement_of, volume_of
from napari_seg.plugin.placement import place
from napari_seg.volume import DicomStack, Segment, Source, Volume

AFFINE = np.eye(4)
AFFINE[:3, :3] = rotation(9, -6, 4) @ np.diag((0.7, 1.3, 2.1))
AFFINE[:3, 3] = (-31.0, 12.5, 40.25)
GRID = Grid((4, 5, 6), AFFINE).reoriented("PSR")
ARRAY = np.arange(120, dtype=np.int16).reshape(GRID.shape)
NO_ORIENTATION = Notice("geometry.no_orientation", "left and right are not known")


def info() -> LayerInfo:
    return LayerInfo(
        place(GRID),
        scan=Source("dicom", (Path("1.dcm"), Path("2.dcm")), DicomStack(((0, 1), (0,)))),
        segments=(Segment(1, "nose", (0, 128, 255)),),
        confidence={1: 0.9},
        algorithm=("balls", "1"),
        source=Path("found.dcm"),
    )


def layer_with(known: object) -> Labels:
    return Labels(place(GRID).show(ARRAY), name="labels", metadata={"other": 1, "napari_seg": known})


def check_same(found: LayerInfo | None, expected: LayerInfo) -> None:
    assert found is not None
    one, two = found.placement, expected.placement
    assert (one.native, one.shown, one.scale, one.translate) == (two.native, two.shown, two.scale, two.translate)
    np.testing.assert_array_equal(one.frame, two.frame)
    np.testing.assert_array_equal(one.restore(one.show(ARRAY)), ARRAY)
    assert found.scan.stack is not None
    assert expected.scan.stack is not None
    assert found.scan.stack.frames == expected.scan.stack.frames
    names = ("scan", "segments", "confidence", "algorithm", "source", "notices", "adopted", "value_range")
    for name in names:
        assert getattr(found, name) == getattr(expected, name), name


def test_a_layer_without_info_has_none() -> None:
    layer = Labels(np.zeros((2, 2, 2), np.uint8), metadata={"other": 1})
    assert LayerInfo.of(layer) is None
    assert volume_of(layer) is None
    assert frame_of([layer]) is None
    assert infos_of([layer]) == []
    assert LayerInfo.in_settings({"name": "labels"}) is None


def test_an_info_is_attached_replaced_and_detached() -> None:
    layer = Labels(np.zeros((2, 2, 2), np.uint8), metadata={"other": 1})
    info().attach(layer)
    check_same(LayerInfo.of(layer), info())
    replace(info(), source=None).attach(layer)
    assert LayerInfo.require(layer).source is None
    LayerInfo.detach(layer)
    LayerInfo.detach(layer)
    assert layer.metadata == {"other": 1}


def test_the_frame_of_a_viewer_is_that_of_its_first_layer_with_an_info() -> None:
    layers = [Labels(np.zeros((2, 2, 2), np.uint8)), layer_with(info()), layer_with(LayerInfo(place(GRID, np.eye(3))))]
    frame = frame_of(layers)
    assert frame is not None
    np.testing.assert_allclose(np.abs(frame @ rotation(9, -6, 4).T), np.eye(3), atol=1e-9)


def test_the_settings_that_a_writer_gets_hold_the_info() -> None:
    settings = layer_with(info()).as_layer_data_tuple()[1]
    check_same(LayerInfo.in_settings(settings), info())


@pytest.mark.parametrize("copied", [deepcopy, lambda known: pickle.loads(pickle.dumps(known))])
def test_an_info_survives_copying_and_pickling(copied: Any) -> None:
    check_same(copied(info()), info())


def test_a_duplicate_of_a_layer_has_an_info_of_its_own() -> None:
    viewer = ViewerModel()
    layer = viewer.add_layer(layer_with(info()))
    _duplicate_layer(viewer.layers)
    (duplicate,) = (one for one in viewer.layers if one is not layer)
    check_same(LayerInfo.of(duplicate), info())
    replace(info(), segments=()).attach(layer)
    check_same(LayerInfo.of(duplicate), info())


def test_the_dictionary_of_earlier_versions_is_read() -> None:
    placement = place(GRID)
    volume = Volume(ARRAY[None], GRID)
    known = {
        "affine": placement.native.affine,
        "shape": placement.native.shape,
        "frame": placement.frame,
        "shown_affine": placement.shown.affine,
        "shown_shape": placement.shown.shape,
        "files": (Path("1.dcm"), Path("2.dcm")),
        "frames": ((0, 1), (0,)),
        "segments": (Segment(1, "nose", (0, 128, 255)),),
        "confidence": {1: 0.9},
        "algorithm": ("balls", "1"),
        "from_file": True,
        "source": Path("found.dcm"),
        "volume": volume,
        "range": (0.0, 119.0),
        "labels": ARRAY,
    }
    layer = layer_with(known)
    check_same(LayerInfo.of(layer), replace(info(), value_range=(0.0, 119.0)))
    assert volume_of(layer) is volume
    assert LayerInfo.require(layer).native_labels is ARRAY


@pytest.mark.parametrize("known", [None, 5, {}, {"affine": np.eye(4)}])
def test_metadata_of_another_program_is_no_info(known: object) -> None:
    assert LayerInfo.of(layer_with(known)) is None


def test_left_and_right_are_known_unless_a_notice_says_otherwise() -> None:
    assert info().is_oriented
    assert not replace(info(), notices=(NO_ORIENTATION,)).is_oriented
    volume = Volume(ARRAY[None], GRID, notices=(NO_ORIENTATION,))
    assert not replace(info(), volume=volume).is_oriented
    assert placement_of(layer_with(info())).is_view
