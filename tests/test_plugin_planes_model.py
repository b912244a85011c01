"""Linked planes on viewer models: layers, brushes and the crosshair are shared; nothing is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils.action_manager import action_manager
from napari.utils.key_bindings import KeymapHandler
from napari.utils.shortcuts import default_shortcuts
from vispy.util import keys as vispy_keys

from napari_seg.plugin.layer_info import placement_of
from napari_seg.plugin.layers import image_layers, labels_layer
from napari_seg.plugin.placement import PLANES, place
from napari_seg.plugin.planes.model import PlanesModel
from napari_seg.volume import Segment, Segmentation, Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    viewer = ViewerModel()
    ((data, settings, _),) = image_layers(head)
    viewer.add_layer(Image(data, **settings))
    placement = place(head.grid)
    labels = Segmentation((head.array[0] > 800).astype(np.uint8), head.grid, (Segment(1, "ball", (9, 9, 9)),))
    data, settings, _ = labels_layer(labels, placement, "labels")
    viewer.add_layer(Labels(data, **settings))
    return viewer


def opened(viewer: ViewerModel) -> PlanesModel:
    planes = PlanesModel(viewer)
    for plane in PLANES:
        planes.open(plane)
    return planes


def test_opening_planes_leaves_the_crosshair_where_it_is(viewer: ViewerModel) -> None:
    viewer.dims.set_point(range(3), viewer.layers[0].data_to_world((2, 3, 4)))
    before = viewer.dims.point
    planes = opened(viewer)
    assert viewer.dims.point == before
    np.testing.assert_allclose(planes.viewers["sagittal"].dims.point, before, atol=1e-6)


def test_every_plane_shows_the_same_arrays(viewer: ViewerModel) -> None:
    planes = opened(viewer)
    for plane, other in planes.viewers.items():
        assert [layer.name for layer in other.layers] == ["head", "labels"]
        assert tuple(other.dims.order) == PLANES[plane]
        for layer, copy in zip(viewer.layers, other.layers, strict=True):
            assert np.shares_memory(layer.data, copy.data)
            np.testing.assert_array_equal(layer.translate, copy.translate)


def test_planes_have_the_theme_of_the_viewer(viewer: ViewerModel) -> None:
    viewer.theme = "light"
    planes = opened(viewer)
    assert {plane.theme for plane in planes.viewers.values()} == {"light"}
    viewer.theme = "dark"
    assert {plane.theme for plane in planes.viewers.values()} == {"dark"}


def test_the_crosshair_is_shared_and_shown_in_patient_coordinates(viewer: ViewerModel, head: Volume) -> None:
    planes = opened(viewer)
    layer = viewer.layers[0]
    point = layer.data_to_world((5, 12, 8))
    viewer.dims.set_point(range(3), point)
    for other in planes.viewers.values():
        np.testing.assert_allclose(other.dims.point, viewer.dims.point, atol=1e-6)
    planes.viewers["coronal"].dims.set_point(1, layer.data_to_world((5, 3, 8))[1])
    assert layer.world_to_data(viewer.dims.point)[1] == pytest.approx(3, abs=0.5)
    assert planes.point is not None
    placement = placement_of(layer)
    x, y, z = placement.to_patient_mm(planes.point)
    letters = ["RL"[int(x < 0)], "AP"[int(y < 0)], "SI"[int(z < 0)]]
    expected = "  ".join(f"{a} {abs(v):.1f}" for a, v in zip(letters, (x, y, z), strict=True)) + " mm"
    assert planes.position_text == expected
    assert planes.is_oblique  # as the phantom is


def test_what_is_painted_in_a_plane_is_painted_and_undone_in_all(viewer: ViewerModel) -> None:
    planes = opened(viewer)
    main = viewer.layers["labels"]
    copy = planes.viewers["sagittal"].layers["labels"]
    painted: list[int] = []
    main.events.paint.connect(lambda event: painted.append(1))
    before = main.data.copy()
    copy.data_setitem((np.array([0, 1]), np.array([0, 0]), np.array([2, 2])), 5)
    assert painted
    assert main.data[0, 0, 2] == 5
    main.undo()
    np.testing.assert_array_equal(main.data, before)
    main.redo()
    assert main.data[1, 0, 2] == 5


def test_what_is_painted_in_the_main_viewer_is_drawn_in_the_planes(viewer: ViewerModel) -> None:
    planes = opened(viewer)
    main = viewer.layers["labels"]
    drawn: list[str] = []
    for plane, other in planes.viewers.items():
        other.layers["labels"].events.set_data.connect(lambda event, plane=plane: drawn.append(plane))
    main.mode = "paint"
    main.paint((4, 5, 6), 3)
    assert set(drawn) == set(PLANES)
    drawn.clear()
    main.undo()
    assert set(drawn) == set(PLANES)


def test_brush_colours_and_windows_are_shared_both_ways(viewer: ViewerModel) -> None:
    planes = opened(viewer)
    labels, image = viewer.layers["labels"], viewer.layers["head"]
    labels.mode = "paint"
    labels.brush_size = 3
    image.contrast_limits = (10, 500)
    for other in planes.viewers.values():
        assert other.layers["labels"].mode == "paint"
        assert other.layers["labels"].brush_size == 3
        assert tuple(other.layers["head"].contrast_limits) == (10, 500)
    planes.viewers["axial"].layers["labels"].selected_label = 7
    assert labels.selected_label == 7
    assert planes.viewers["coronal"].layers["labels"].selected_label == 7


def test_layers_come_go_and_change_places(viewer: ViewerModel, head: Volume) -> None:
    planes = opened(viewer)
    viewer.add_points(np.zeros((1, 3)))  # other layers are not copied
    ((data, settings, _),) = image_layers(head)
    viewer.add_layer(Image(data, **{**settings, "name": "second"}))
    viewer.layers.move(3, 0)
    for other in planes.viewers.values():
        assert [layer.name for layer in other.layers] == ["second", "head", "labels"]
    viewer.layers.selection.active = viewer.layers["labels"]
    assert planes.viewers["axial"].layers.selection.active is planes.viewers["axial"].layers["labels"]
    viewer.layers.remove("head")
    for other in planes.viewers.values():
        assert [layer.name for layer in other.layers] == ["second", "labels"]
    viewer.layers.clear()
    assert planes.position_text == ""


def test_the_plane_of_the_main_picture(viewer: ViewerModel) -> None:
    planes = opened(viewer)
    assert planes.main_plane == "axial"
    planes.show_in_main("sagittal")
    assert planes.main_plane == "sagittal"
    viewer.dims.ndisplay = 3
    assert planes.main_plane is None


def test_closed_planes_let_go(viewer: ViewerModel) -> None:
    planes = opened(viewer)
    planes.close()
    viewer.dims.set_point(0, 3.0)
    viewer.layers.clear()
    assert not any(other.layers for other in planes.viewers.values())


def keys_of(viewer: ViewerModel) -> KeymapHandler:
    """Return the handler that gets the key presses of napari's canvas."""
    handler = KeymapHandler()
    handler.keymap_providers = [viewer.layers.selection.active, viewer]
    return handler


def press(viewer: ViewerModel, key: str, text: str = "") -> None:
    """Press and release a key as napari's canvas does."""
    modifiers = [vispy_keys.CONTROL] if text == "Control" else []
    event = SimpleNamespace(key=vispy_keys.Key(key), modifiers=modifiers, native=None, handled=False)
    handler = keys_of(viewer)
    handler.on_key_press(event)
    handler.on_key_release(event)


def test_keys_work_in_every_plane(viewer: ViewerModel) -> None:
    for action, shortcuts in default_shortcuts.items():  # as napari's window does
        for shortcut in shortcuts if "console" not in action else ():
            action_manager.bind_shortcut(action, shortcut)
    main = viewer.layers["labels"]
    viewer.layers.selection.active = main
    called: list[object] = []
    viewer.bind_key(".", lambda viewer: called.append(viewer), overwrite=True)
    planes = opened(viewer)
    before = main.data.copy()
    for other in planes.viewers.values():
        copy = other.layers["labels"]
        press(other, "2")
        assert str(main.mode) == "paint"
        copy.data_setitem((np.array([0]), np.array([0]), np.array([2])), 5)
        press(other, "Z", "Control")
        np.testing.assert_array_equal(main.data, before)
        press(other, "1")
        assert str(main.mode) == "erase"
        press(other, ".")
        assert called == [viewer]
        called.clear()
        press(other, "Y", "Control")  # 3D is for the main viewer
        assert (viewer.dims.ndisplay, other.dims.ndisplay) == (3, 2)
        viewer.dims.ndisplay = 2
        axis = other.dims.last_used
        at = viewer.dims.current_step[axis]
        press(other, "Right")
        assert viewer.dims.current_step[axis] == at + 1
    viewer.layers.selection = {viewer.layers["head"]}
    press(planes.viewers["coronal"], "Delete", "Control")
    assert [layer.name for layer in viewer.layers] == ["labels"]
