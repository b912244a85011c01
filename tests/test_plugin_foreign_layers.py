"""Layers that other programs or scripts added to the viewer: taken with their own transform, or refused with words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Labels

from napari_seg.errors import InputError
from napari_seg.plugin.foreign_layers import loaded
from napari_seg.plugin.labels_state import Snapshot
from napari_seg.plugin.layer_info import LayerInfo, placement_of, volume_of
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of
from napari_seg.plugin.messages import Message
from napari_seg.plugin.planes.model import PlanesModel
from napari_seg.plugin.planes.orientation import orientation_letters
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.writer import write_labels
from napari_seg.volume import Segment, Segmentation, Volume

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


@pytest.fixture
def viewer() -> ViewerModel:
    return ViewerModel()


def turned(degrees: float) -> np.ndarray:
    """(3, 3) a rotation in the plane of the last two axes."""
    angle = np.radians(degrees)
    return np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize(
    ("settings", "spacing_mm"),
    [
        ({"scale": (3, 1, 2), "units": "mm"}, (3, 1, 2)),
        ({"scale": (3, 1, 2), "units": "um"}, (0.003, 0.001, 0.002)),
        ({"scale": (3, 1, 2)}, (3, 1, 2)),
        ({"units": "mm"}, (1, 1, 1)),
        ({"affine": np.diag([3.0, -1, 2, 1])}, (3, 1, 2)),
        ({"scale": (3, 1, 2), "rotate": turned(20), "units": "mm"}, (3, 1, 2)),
    ],
)
def test_an_image_with_a_transform_is_a_scan(viewer: ViewerModel, settings: dict, spacing_mm: tuple) -> None:
    session = Session(viewer)
    layer = viewer.add_image(VOXELS, name="from a script", **settings)
    assert session.scan is layer
    volume = volume_of(layer)
    assert volume is not None
    assert volume.grid.spacing_mm == pytest.approx(spacing_mm)
    np.testing.assert_array_equal(volume.array[0], VOXELS)
    assert not LayerInfo.require(layer).is_oriented
    assert "geometry.no_orientation" in [notice.code for notice in volume.notices]
    assert any("left and right included" in message.text for message in session.messages)


def test_axis_labels_that_name_directions_tell_left_from_right(viewer: ViewerModel) -> None:
    session = Session(viewer)
    labels = ("superior", "posterior", "left")
    layer = viewer.add_image(VOXELS, scale=(3, 1, 2), translate=(7, 8, 9), units="mm", axis_labels=labels)
    volume = volume_of(layer)
    assert volume is not None
    assert volume.grid.orientation == "SPL"
    np.testing.assert_allclose(volume.grid.to_world((1, 2, 3)), (-(9 + 6), -(8 + 2), 7 + 3))
    assert LayerInfo.require(layer).is_oriented
    assert session.messages == []


def test_a_transform_that_changes_is_followed(viewer: ViewerModel) -> None:
    session = Session(viewer)
    layer = viewer.add_image(VOXELS, name="plain")
    assert session.scan is None
    assert "units" in SegmentModel(session).obstacle
    layer.scale = (3, 1, 2)
    layer.units = "mm"
    assert session.scan is layer
    layer.scale = (4, 1, 2)
    assert volume_of(layer).grid.spacing_mm == pytest.approx((4, 1, 2))  # type: ignore[union-attr]
    layer.data = VOXELS + 1
    np.testing.assert_array_equal(volume_of(layer).array[0], VOXELS + 1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (VOXELS[0], {"scale": (1, 2)}, "2 dimensions"),
        (np.zeros((2, 4, 5, 6), np.uint8), {"scale": (1, 3, 1, 2)}, "Split Stack"),
        (np.zeros((4, 5, 6, 3), np.uint8), {"rgb": True, "scale": (3, 1, 2)}, "colour"),
        (np.zeros((5, 6, 3), np.uint8), {"rgb": True}, "its file was opened in the Study tab"),
        (np.zeros((5, 6), np.uint8), {}, "its file was opened in the Study tab"),
        (VOXELS, {"scale": (3, 1, 2), "units": ("s", "mm", "mm")}, "second"),
        (VOXELS, {"shear": (0.5, 0, 0), "units": "mm"}, "right angle"),
        (VOXELS, {}, "no voxel size"),
    ],
)
def test_what_is_no_scan_is_refused_with_words(viewer: ViewerModel, data: Any, settings: dict, words: str) -> None:
    session = Session(viewer)
    viewer.add_image(data, name="mine", **settings)
    assert session.scan is None
    obstacle = SegmentModel(session).obstacle
    assert "'mine'" in obstacle or "right angle" in obstacle
    assert words in obstacle


def test_each_foreign_image_is_introduced_when_it_is_chosen(viewer: ViewerModel, head: Volume) -> None:
    session = Session(viewer)
    first = viewer.add_image(VOXELS, name="first", scale=(3, 1, 2), units="mm")
    second = viewer.add_image(VOXELS, name="second", scale=(3, 1, 4), units="mm")
    assert "'second'" in session.messages[0].text
    stack = viewer.add_image(np.zeros((2, 4, 5, 6), np.uint8), name="stack", scale=(1, 3, 1, 2), units="mm")
    assert session.scan is second
    assert "Split Stack" in session.messages[0].text
    viewer.layers.selection.active = first
    assert "'first'" in session.messages[0].text
    viewer.layers.remove(stack)
    session.show_messages(Message("info", "Saved."))
    viewer.layers.selection.active = None
    viewer.layers.selection.active = first
    assert session.messages == [Message("info", "Saved.")]
    viewer.add_layer(layer_of(image_layers(head)[0]))
    assert session.messages == []


def test_voxels_that_napari_loads_piece_by_piece(viewer: ViewerModel) -> None:
    da = pytest.importorskip("dask.array")
    session = Session(viewer)
    pyramid = [da.from_array(VOXELS, chunks=2), da.from_array(VOXELS[::2, ::2, ::2], chunks=2)]
    layer = viewer.add_image(pyramid, multiscale=True, scale=(3, 1, 2), units="mm")
    volume = volume_of(layer)
    assert session.scan is layer
    assert volume is not None
    array = loaded(volume).array
    with pytest.raises(InputError, match="NaN"):
        loaded(replace(volume, array=np.full_like(array, np.nan, np.float32)))
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array[0], VOXELS)


def test_a_filtered_copy_of_a_scan_has_the_grid_of_the_scan(viewer: ViewerModel, head: Volume) -> None:
    session = Session(viewer)
    scan = viewer.add_layer(layer_of(image_layers(head)[0]))
    copy = viewer.add_image(scan.data * 2, scale=scan.scale, translate=scan.translate, units=scan.units)
    volume = volume_of(copy)
    assert volume is not None
    assert volume.grid == head.grid
    np.testing.assert_array_equal(volume.array, head.array * 2)
    assert session.messages == []


@pytest.mark.parametrize("settings", [{}, {"rotate": turned(20)}, {"affine": np.diag([1.0, -1, 1, 1])}])
def test_labels_drawn_on_a_foreign_image_are_measured_and_saved(
    viewer: ViewerModel, tmp_path: Path, settings: dict
) -> None:
    session = Session(viewer)
    image = viewer.add_image(VOXELS, scale=(3, 1, 2), translate=(5, 6, 7), units="mm", **settings)
    viewer._new_labels()
    layer = viewer.layers[-1]
    layer.data[1, 2, 3] = 2
    layer.data[1, 2, 4] = 2
    model = StructuresModel(session)
    model.take(model.measure(Snapshot.of(layer), model.session.scan_on(layer)))
    (row,) = model.structures
    assert (row.label, row.voxels, row.ml) == (2, 2, pytest.approx(0.012))
    assert row.mean_intensity == VOXELS[1, 2, 3:5].mean()
    (path,) = write_labels(str(tmp_path / "mine.nii.gz"), *layer.as_layer_data_tuple()[:2])
    saved = nibabel.nifti1.load(path)
    np.testing.assert_array_equal(np.argwhere(np.asarray(saved.dataobj)), [(1, 2, 3), (1, 2, 4)])
    np.testing.assert_allclose(saved.affine, volume_of(image).grid.affine, atol=1e-5)  # type: ignore[union-attr]


def test_labels_without_a_panel_are_saved_by_their_own_transform(tmp_path: Path) -> None:
    layer = Labels(np.ones((2, 3, 4), np.uint8), scale=(3, 1, 2), units="mm")
    (path,) = write_labels(str(tmp_path / "mine.nii.gz"), *layer.as_layer_data_tuple()[:2])
    assert nibabel.nifti1.load(path).header.get_zooms() == pytest.approx((3, 1, 2))


def test_what_a_network_finds_lies_on_a_turned_foreign_image(viewer: ViewerModel) -> None:
    session = Session(viewer)
    image = viewer.add_image(VOXELS, scale=(3, 1, 2), rotate=turned(90), units="mm")
    assert session.scan is image
    volume = volume_of(image)
    assert volume is not None
    labels = np.zeros(VOXELS.shape, np.uint8)
    labels[1, 2, 3] = 1
    found = Segmentation(labels, volume.grid, (Segment(1, "spot", (255, 0, 0)),))
    layer = layer_of(labels_layer(found, placement_of(image).for_new_layer(), "found"))
    (index,) = np.argwhere(layer.data)
    np.testing.assert_allclose(layer.data_to_world(index), image.data_to_world((1, 2, 3)), atol=1e-6)


def test_planes_show_no_letters_where_left_and_right_are_not_known(viewer: ViewerModel, head: Volume) -> None:
    planes, session = PlanesModel(viewer), Session(viewer)
    viewer.add_image(VOXELS, scale=(3, 1, 2), units="mm")
    assert session.scan is not None
    assert orientation_letters(viewer, viewer.layers) == ("", "", "", "")
    assert planes.position_text == "left and right are not known"
    viewer.layers.clear()
    viewer.add_layer(layer_of(image_layers(head)[0]))
    assert orientation_letters(viewer, viewer.layers) == ("R", "L", "A", "P")


def test_letters_follow_the_axis_labels_of_a_foreign_image(viewer: ViewerModel) -> None:
    session = Session(viewer)
    viewer.add_image(VOXELS, scale=(3, 1, 2), units="mm", axis_labels=("S", "A", "R"))
    assert session.scan is not None
    assert orientation_letters(viewer, viewer.layers) == ("L", "R", "P", "A")
