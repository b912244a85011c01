"""Clicks and drags of the tools on a viewer model and in linked planes, without a window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import labels_of, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Labels
from napari.utils.interactions import mouse_move_callbacks, mouse_press_callbacks, mouse_release_callbacks

from napari_seg.editing.grow import suggest_range
from napari_seg.editing.prompts import from_lasso
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.edit.mouse import Mouse
from napari_seg.plugin.edit.tools import Tools, box_around, voxels_on
from napari_seg.plugin.labels_state import state_of
from napari_seg.plugin.layer_info import placement_of
from napari_seg.plugin.planes.copies import copy_of
from napari_seg.plugin.planes.model import PlanesModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.views import views_of
from napari_seg.volume import Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    viewer = viewer_with_labels(head)
    labels_of(viewer).selected_label = 3
    return viewer


@pytest.fixture
def tools(viewer: ViewerModel) -> Iterator[Tools]:
    session = Session(viewer)
    tools = Tools(EditModel(session, StructuresModel(session)))
    mouse = Mouse(tools)
    yield tools
    mouse.close()
    tools.close()
    session.close()


def drag(viewer: ViewerModel, voxels: Sequence[Any], *, button: int = 1, modifiers: tuple[str, ...] = ()) -> None:
    """Press a button at the first voxel, move to the others and release it; one voxel is 10 pixels."""
    layer = next(one for one in viewer.layers if one.name == "found")
    order = viewer.dims.order

    def event(kind: str, voxel: Any) -> Any:
        position = tuple(np.array(voxel) * layer.scale + layer.translate)
        pos = 10 * np.array(voxel, float)[[order[2], order[1]]]
        return SimpleNamespace(
            type=kind, button=button, modifiers=modifiers, position=position, pos=pos, is_dragging=True
        )

    live = event("mouse_press", voxels[0])
    mouse_press_callbacks(viewer, live)
    for voxel in voxels[1:]:
        live.__dict__.update(event("mouse_move", voxel).__dict__)
        mouse_move_callbacks(viewer, live)
    live.__dict__.update(event("mouse_release", voxels[-1]).__dict__)
    mouse_release_callbacks(viewer, live)


def inside(viewer: ViewerModel, label: int = 3) -> tuple[int, int, int]:
    """Return a voxel in the middle of a structure."""
    voxels = np.argwhere(labels_of(viewer).data == label)
    i, j, k = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]
    return int(i), int(j), int(k)


AFFINE = np.array([[3.0, 0, 0, 100], [0, 2, 0, 10], [0, 0, 1, 20], [0, 0, 0, 1]])
TURN = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])


def foreign(settings: dict[str, Any]) -> tuple[ViewerModel, Tools, Labels]:
    """Return a viewer with an image and labels of another program, with tools."""
    viewer = ViewerModel()
    session = Session(viewer)
    tools = Tools(EditModel(session, StructuresModel(session)))
    viewer.add_image(np.random.default_rng(0).random((20, 30, 40)), units="mm", **settings)
    layer = viewer.add_labels(np.zeros((20, 30, 40), np.uint8), units="mm", **settings)
    layer.data[4:7, 10:20, 10:20] = 1
    viewer.layers.selection.active = layer
    layer.selected_label = 1
    return viewer, tools, layer


@pytest.mark.parametrize(
    "settings", [{"affine": AFFINE}, {"affine": AFFINE, "scale": (2, 2, 2), "translate": (1, 2, 3)}]
)
def test_an_affine_of_another_program_is_taken_into_account(settings: dict[str, Any]) -> None:
    viewer, tools, layer = foreign(settings)
    mouse, model = Mouse(tools), tools.model
    position = layer.data_to_world((5, 12, 13))
    assert mouse._voxel(position) == (5, 12, 13)
    viewer.dims.set_point(range(3), position)
    assert model._slice(layer) == (0, 5)
    model._show_slice(layer, 0, 7)
    assert viewer.dims.point[0] == pytest.approx(layer.data_to_world((7, 12, 13))[0])
    model.add_prompt(np.array([5, 12, 13]))
    marks = model.views.marks
    assert marks is not None
    np.testing.assert_allclose(marks.points[0] * marks.scale + marks.translate, position)
    np.testing.assert_allclose(copy_of(layer).data_to_world((5, 12, 13)), position)
    model.session.close()


@pytest.mark.parametrize("settings", [{"rotate": TURN}, {"affine": TURN}])
def test_labels_that_are_turned_are_refused(settings: dict[str, Any]) -> None:
    viewer, tools, layer = foreign({"scale": (3, 2, 1), **settings})
    mouse, model = Mouse(tools), tools.model
    tools.choose("click")
    event = SimpleNamespace(type="mouse_press", button=1, modifiers=(), position=(5, 12, 13), pos=(0, 0))
    assert list(mouse._on_drag(viewer, event)) == []
    assert "(layer.turned)" in model.session.messages[-1].text
    assert model.prompts.is_empty
    model.session.show_messages()
    model.run("dilate")
    assert "(layer.turned)" in model.session.messages[-1].text
    assert model.job is None
    np.testing.assert_allclose(copy_of(layer).data_to_world((5, 12, 13)), layer.data_to_world((5, 12, 13)))
    model.session.close()


def test_clicks_include_and_exclude(tools: Tools, viewer: ViewerModel) -> None:
    drag(viewer, [(1, 1, 1)])
    assert tools.model.prompts.is_empty  # no tool is chosen
    tools.choose("click")
    i, j, k = inside(viewer)
    drag(viewer, [(i, j, k)])
    drag(viewer, [(i, j, k + 1)], button=2)
    drag(viewer, [(i, j, k + 2)], modifiers=("Alt",))
    drag(viewer, [(i, j + 1, k)], modifiers=("Control",))
    drag(viewer, [(i, j + 2, k), (i, j + 6, k)])  # moves the camera
    drag(viewer, [(-5, j, k)])  # outside the scan
    assert tools.model.prompts.positive.tolist() == [[i, j, k]]
    assert sorted(tools.model.prompts.negative.tolist()) == sorted([[i, j, k + 1], [i, j, k + 2], [i, j + 1, k]])
    assert tools.model.prompts_text == "1 include, 3 exclude"


def test_a_click_in_a_linked_plane_counts_and_moves_the_crosshair_once(tools: Tools, viewer: ViewerModel) -> None:
    planes = PlanesModel(viewer)
    coronal = planes.open("coronal")
    tools.choose("click")
    i, j, k = inside(viewer)
    drag(coronal, [(i, j, k)])
    assert tools.model.prompts.positive.tolist() == [[i, j, k]]
    np.testing.assert_allclose(labels_of(viewer).world_to_data(viewer.dims.point), (i, j, k), atol=0.5)
    tools.choose(None)
    drag(coronal, [(i, j, k)])
    assert len(tools.model.prompts.positive) == 1


def test_a_scribble_in_a_plane_is_voxels(tools: Tools, viewer: ViewerModel) -> None:
    planes = PlanesModel(viewer)
    sagittal = planes.open("sagittal")
    tools.choose("scribble")
    drag(sagittal, [(2, 3, 5), (4, 7, 5)])
    drag(viewer, [(3, 1, 1), (3, 1, 4)], button=2)
    prompts = tools.model.prompts
    assert {tuple(voxel) for voxel in prompts.positive.tolist()} >= {(2, 3, 5), (3, 5, 5), (4, 7, 5)}
    assert set(prompts.positive[:, 2].tolist()) == {5}
    assert prompts.negative.tolist() == [[3, 1, 1], [3, 1, 2], [3, 1, 3], [3, 1, 4]]
    assert viewer.scene.camera.mouse_pan
    assert len(views_of(viewer).path) == 0


def test_the_line_is_drawn_while_the_camera_rests(tools: Tools, viewer: ViewerModel) -> None:
    drawn: list[tuple[int, bool]] = []
    views = views_of(viewer)
    views.path_changed.connect(lambda: drawn.append((len(views.path), viewer.scene.camera.mouse_pan)))
    tools.choose("box")
    drag(viewer, [(3, 1, 1), (3, 5, 5)])
    assert drawn == [(5, False), (0, True)]
    tools.choose("cut")
    drag(viewer, [(3, 1, 1), (3, 5, 5), (3, 6, 6)])
    assert drawn[2:] == [(2, False), (2, False), (0, True)]


def test_grow_takes_the_range_of_the_tissue(tools: Tools, viewer: ViewerModel) -> None:
    layer, model = labels_of(viewer), tools.model
    voxel = inside(viewer, 1)
    layer.data[...] = 0
    layer.selected_label = 1
    tools.choose("grow")
    drag(viewer, [voxel])
    image = model.session.image_on(layer)
    assert image is not None
    assert (tools.low, tools.high) == suggest_range(image, placement_of(layer).shown, voxel)
    model.session.jobs.wait()
    assert model.preview is not None
    many = model.preview.added
    assert many > 10
    tools.set_limits(2.0, 0.0)  # computed again
    model.session.jobs.wait()
    assert model.preview is not None
    assert model.preview.added < many
    tools.set_range(1e5, 2e5)
    model.session.jobs.wait()
    assert model.preview is None
    assert "edit.out_of_range" in model.session.messages[0].text


def two_blocks(viewer: ViewerModel, gap: int) -> Labels:
    """Show a structure of two blocks of 3 x 3 x 3 voxels, side by side or apart."""
    layer = labels_of(viewer)
    layer.data[...] = 0
    layer.data[2:5, 2:5, 2:5] = layer.data[2:5, 2:5, 5 + gap : 8 + gap] = 1
    layer.selected_label = 1
    return layer


def test_a_click_takes_an_island_or_all_others(tools: Tools, viewer: ViewerModel) -> None:
    layer, model = two_blocks(viewer, gap=2), tools.model
    tools.choose("island")
    drag(viewer, [(3, 3, 3)], button=2)  # keeps only it
    model.session.jobs.wait()
    assert model.preview is not None
    assert (model.preview.added, model.preview.removed) == (0, 27)
    tools.cut_into = 2
    drag(viewer, [(3, 3, 8)])
    model.session.jobs.wait()
    model.apply()
    assert (layer.data[2:5, 2:5, 2:5] == 1).all()
    assert (layer.data[2:5, 2:5, 7:10] == 2).all()
    drag(viewer, [(1, 1, 1)])
    model.session.jobs.wait()
    assert "(edit.not_in_structure)" in text_of(model)


def test_clicks_divide_objects_that_touch(tools: Tools, viewer: ViewerModel) -> None:
    layer, model = two_blocks(viewer, gap=0), tools.model
    tools.choose("divide")
    drag(viewer, [(3, 3, 1)])
    assert "Click on the structure." in text_of(model)
    drag(viewer, [(3, 3, 3)])
    assert "Click on the next object." in text_of(model)
    assert model.preview is None
    drag(viewer, [(3, 3, 6)])
    model.session.jobs.wait()
    model.apply()
    one, other = np.unique(layer.data[2:5, 2:5, 2:5]), np.unique(layer.data[2:5, 2:5, 5:8])
    assert one == 1
    assert other > 1
    drag(viewer, [(3, 3, 3)])  # a new division begins
    assert "Click on the next object." in text_of(model)
    assert not model.has_pending


def text_of(model: EditModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


@pytest.mark.parametrize("use", ["inside", "outside"])
def test_a_lasso_cuts(use: Any, tools: Tools, viewer: ViewerModel) -> None:
    layer, model = labels_of(viewer), tools.model
    i, j, k = inside(viewer)
    before = layer.data == 3
    tools.lasso_use, tools.all_slices = use, False
    tools.choose("lasso")
    drag(viewer, [(i, j - 1.5, k - 1.5), (i, j + 1.5, k - 1.5), (i, j + 1.5, k + 1.5), (i, j - 1.5, k + 1.5)])
    model.session.jobs.wait()
    model.apply()
    changed = before & (layer.data != 3)
    square = np.zeros(before.shape, bool)
    square[i, j - 1 : j + 2, k - 1 : k + 2] = True
    part = square if use == "inside" else ~square & (np.arange(before.shape[0]) == i)[:, None, None]
    np.testing.assert_array_equal(changed, before & part)


def test_a_tool_for_prompts_loads_what_they_need_once(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    monkeypatch.setattr("napari_seg.plugin.edit.model.load", lambda: loaded.append(1))
    tools.choose("cut")
    tools.model.session.jobs.wait()
    assert loaded == []
    for tool in ("click", "scribble"):
        tools.choose(tool)  # type: ignore[arg-type]
        tools.model.session.jobs.wait()
        assert loaded == [1]


@pytest.mark.parametrize("button", [1, 2])
def test_a_lasso_finds_the_structure_in_it(
    button: int, tools: Tools, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tools.model
    monkeypatch.setattr(model, "start", lambda request: None)
    i, j, k = inside(viewer)
    tools.lasso_use = "find"
    tools.choose("lasso")
    assert tools.uses_prompts
    corners = [(i, j - 2.5, k - 2.5), (i, j + 2.5, k - 2.5), (i, j + 2.5, k + 2.5), (i, j - 2.5, k + 2.5)]
    drag(viewer, corners, button=button)
    square = np.array([row for _, *row in corners])
    expected = from_lasso(square, 0, i, labels_of(viewer).data.shape, is_positive=button == 1)
    np.testing.assert_array_equal(model.prompts.positive, expected.positive)
    np.testing.assert_array_equal(model.prompts.negative, expected.negative)
    assert model.prompts_text == ("1 include" if button == 1 else "1 exclude")
    model.undo_prompt()
    assert model.prompts.is_empty
    drag(viewer, [(i, j, k), (i, j, k + 3)], button=button)  # a line encloses nothing
    assert model.session.messages[0].kind == "error"
    assert model.prompts.is_empty


def test_the_knife_gives_the_smaller_part_away(tools: Tools, viewer: ViewerModel) -> None:
    layer, model = labels_of(viewer), tools.model
    before = layer.data == 3
    columns = np.flatnonzero(before.any(axis=(0, 1)))
    cut = columns[0] + 1.5
    i, _, _ = inside(viewer)
    tools.choose("cut")
    tools.cut_into = 4
    for ends in ((0, 25), (25, 0)):  # the direction of the line does not matter
        drag(viewer, [(i, ends[0], cut), (i, ends[1], cut)])
        model.session.jobs.wait()
        assert model.preview is not None
        assert model.preview.text.endswith("to other structures")
        model.apply()
        np.testing.assert_array_equal(layer.data == 4, before & (np.arange(before.shape[2]) < cut))
        layer.undo()


def test_the_brush_paints_only_in_the_range_and_a_stroke_is_one_step(tools: Tools, viewer: ViewerModel) -> None:
    planes = PlanesModel(viewer)
    coronal = planes.open("coronal")
    copy = coronal.layers["found"]
    layer, model = labels_of(viewer), tools.model
    image = model.session.image_on(layer)
    assert image is not None
    layer.data[...] = 0
    layer.data[:, 12] = 1
    before = layer.data.copy()
    tools.choose("brush")
    assert str(layer.mode) == str(copy.mode) == "paint"
    tools.set_range(400.0, 436.0)
    layer.brush_size = copy.brush_size = 9
    for one in (layer, copy):
        with one.block_history():
            for n in range(4, 20):
                one.paint((7, n, 10), 3)
        changed = layer.data != before
        assert changed.any()
        assert ((image[changed] >= 400) & (image[changed] <= 436)).all()
        assert (before[changed] == 0).all()  # no other structure either
        layer.undo()
        np.testing.assert_array_equal(layer.data, before)
    layer.paint((7, 12, 10), 0)  # erases anything
    assert (layer.data != before).any()
    layer.undo()
    tools.choose(None)
    layer.paint((7, 12, 10), 3)
    assert (image[layer.data != before] > 436).any()


def test_the_tool_ends_with_another_mode_of_napari_or_another_layer(tools: Tools, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    views = views_of(viewer)
    tools.choose("lasso")
    assert views.is_claimed
    layer.mode = "paint"
    assert tools.tool is None
    assert not views.is_claimed
    tools.choose("brush")
    layer.mode = "erase"  # the other end of the brush
    assert tools.tool == "brush"
    layer.mode = "pan_zoom"
    assert tools.tool is None
    tools.choose("click")
    layer.mode = "paint"
    tools.choose("click")
    assert str(layer.mode) == "pan_zoom"
    viewer.layers.remove(layer)
    assert tools.tool is None
    tools.choose("click")
    assert "Choose a structure" in tools.model.session.messages[0].text


def test_voxels_on_a_path_are_connected_and_inside() -> None:
    voxels = voxels_on(np.array([[0, 0, 0], [0, 6, 3], [0, 6, 20]], float), (4, 8, 10))
    assert len(voxels) == 13  # 7 rows down, then 6 columns to the right, as far as the scan reaches
    assert (voxels < (4, 8, 10)).all()


def test_two_rectangles_make_a_box() -> None:
    spacing_mm = (2.0, 1.0, 1.0)
    first = box_around(np.array([[5, 10, 10], [5, 30, 20]], float), 0, (20, 64, 64), None, spacing_mm)
    assert first == (slice(0, 11), slice(10, 31), slice(10, 21))  # 20 mm in the plane, so 10 mm to both sides
    second = box_around(np.array([[3, 12, 8], [8, 12, 25]], float), 1, (20, 64, 64), first, spacing_mm)
    assert second == (slice(3, 9), slice(10, 31), slice(8, 26))


def test_state_counts_a_stroke_once(tools: Tools, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    paints = state_of(layer).paints
    tools.choose("brush")
    tools.set_range(-1e6, 1e6)
    with layer.block_history():
        for n in range(5):
            layer.paint((1, n, 1), 3)
    assert state_of(layer).paints == paints + 1
