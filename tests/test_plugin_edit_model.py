"""Model of the Edit tab on a viewer model: operations, preview, undo, prompts, new structures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import labels_of, measure, viewer_with_labels
from napari.components import ViewerModel

from napari_seg.editing import islands, shape
from napari_seg.editing.change import change_structure, whole
from napari_seg.editing.prompts import Prompts
from napari_seg.plugin.edit.model import EditModel, Request
from napari_seg.plugin.edit.operations import WINDOW_OPERATIONS, Situation, needed_slice
from napari_seg.plugin.labels_state import EditAction, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.planes.model import PlanesModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.views import EXCLUDED, INCLUDED, views_of
from napari_seg.volume import Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    return viewer_with_labels(head)


@pytest.fixture
def model(viewer: ViewerModel) -> Iterator[EditModel]:
    session = Session(viewer)
    model = EditModel(session, StructuresModel(session))
    labels_of(viewer).selected_label = 3
    yield model
    session.close()


def done(model: EditModel) -> EditModel:
    """Wait until nothing is computed."""
    model.session.jobs.wait()
    return model


def names_in(layer: Any) -> dict[int, str]:
    return {segment.label: segment.name for segment in LayerInfo.require(layer).segments}


def text_of(model: EditModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


def test_an_operation_is_previewed_applied_and_undone_as_one_step(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    before = layer.data.copy()
    expected = shape.dilate(before, placement_of(layer).shown, 3, 4.0)
    model.size_mm = 4.0
    model.run("dilate")
    assert model.job is not None
    done(model)
    assert model.job is None
    assert model.preview is not None
    added = expected.count(3)[0]
    assert (model.preview.added, model.preview.removed) == (added, 0)
    assert model.preview.text == f"+{added * placement_of(layer).shown.voxel_ml:.1f} ml"
    np.testing.assert_array_equal(layer.data, before)  # only shown so far
    assert views_of(viewer).marks is not None

    model.apply()
    after = before.copy()
    expected.apply(after)
    np.testing.assert_array_equal(layer.data, after)
    assert views_of(viewer).marks is None
    assert model.preview is None
    assert state_of(layer).actions == [EditAction("Dilate", 3, "nose", added, 0)]
    assert state_of(layer).is_unsaved
    layer.undo()
    np.testing.assert_array_equal(layer.data, before)
    assert state_of(layer).actions == []
    layer.redo()
    np.testing.assert_array_equal(layer.data, after)
    assert [action.name for action in state_of(layer).actions] == ["Dilate"]
    layer.undo()
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)  # can't be redone any more
    assert state_of(layer).actions == []


def test_a_discarded_preview_leaves_no_trace(model: EditModel, viewer: ViewerModel) -> None:
    layer, before = labels_of(viewer), labels_of(viewer).data.copy()
    model.size_mm = 3.0
    model.run("erode")
    done(model).discard()
    np.testing.assert_array_equal(layer.data, before)
    assert model.preview is None
    assert views_of(viewer).marks is None
    model.apply()
    assert state_of(layer).paints == 0


def test_at_once_applies_without_a_preview(model: EditModel, viewer: ViewerModel) -> None:
    model.is_at_once = True
    model.size_mm = 3.0
    model.run("erode")
    done(model)
    assert model.preview is None
    assert state_of(labels_of(viewer)).actions[0].removed > 0
    assert "Ctrl+Z" in text_of(model)


def test_a_change_is_never_applied_to_other_labels(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    corner = (np.array([0]), np.array([0]), np.array([0]))
    go = threading.Event()

    def wait_and_keep_largest(situation: Situation) -> Any:
        change = islands.keep_largest(situation.labels, situation.grid, situation.label)
        go.wait(10)
        return change

    model.start(Request("Keep largest", wait_and_keep_largest))
    layer.data_setitem(corner, 3)  # while the job runs
    go.set()
    done(model)
    assert model.preview is not None
    assert model.preview.removed == 1  # computed again, with the new island
    layer.undo()
    done(model)
    assert model.preview is None  # and again: now nothing changes
    layer.redo()
    model.run("keep_largest")
    done(model)
    layer.data[0, 0, 0] = 1  # by a program, without an event
    model.apply()
    assert layer.data[0, 0, 0] == 1
    assert "computed again" in text_of(model)


@pytest.mark.parametrize("plane", [None, "coronal"])
def test_a_change_waits_for_the_end_of_a_stroke(plane: str | None, model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    layer.data[...] = 0
    layer.data[5, 5, 2:6] = layer.data[5, 5, 8:14] = 3
    painted: Any = layer if plane is None else PlanesModel(viewer).open(plane).layers["found"]
    model.is_at_once = True
    model.run("keep_largest")
    with painted.block_history():  # from the press of the mouse to its release
        for n in (6, 7):
            painted.data_setitem((np.array([5]), np.array([5]), np.array([n])), 3)
        for _ in range(100):
            model.session.jobs.deliver()
            time.sleep(0.002)
        assert (layer.data == 3).sum() == 12
    done(model)
    assert (layer.data == 3).sum() == 12  # the stroke has joined both islands
    assert "nothing changes" in text_of(model)
    model.is_at_once = False
    model.run("dilate")
    done(model)
    with painted.block_history():
        painted.data_setitem((np.array([5]), np.array([5]), np.array([0])), 3)
        model.apply()
        assert (layer.data == 3).sum() == 13
        assert "Finish the stroke" in text_of(model)


def test_one_request_is_computed_at_a_time(model: EditModel) -> None:
    running: list[int] = []
    most: list[int] = []
    go = threading.Event()

    def compute(situation: Situation) -> Any:
        running.append(1)
        most.append(len(running))
        go.wait(10)
        running.pop()
        return shape.erode(situation.labels, situation.grid, situation.label, 2.0)

    for _ in range(4):
        model.start(Request("Erode", compute))
        while not running:
            time.sleep(0.001)
    go.set()
    done(model)
    assert most == [1, 1]  # those that were replaced before they began are not computed
    assert model.preview is not None


@pytest.mark.parametrize(
    ("order", "axis"),
    [
        ((0, 1, 2, 3), 0),
        ((0, 2, 1, 3), 1),
        ((0, 3, 1, 2), 2),
        ((1, 0, 2, 3), 0),
        ((3, 0, 1, 2), 2),
        ((1, 2, 0, 3), None),
    ],
)
def test_the_plane_is_found_in_a_viewer_with_more_axes(
    order: tuple[int, ...], axis: int | None, model: EditModel, viewer: ViewerModel
) -> None:
    layer = labels_of(viewer)
    viewer.add_image(np.zeros((2, *layer.data.shape)), scale=(1, *layer.scale), translate=(0, *layer.translate))
    viewer.layers.selection.active = layer
    viewer.dims.set_point(range(1, 4), layer.data_to_world((3, 4, 5)))
    seen: list[tuple[int, int]] = []

    def compute(situation: Situation) -> Any:
        seen.append(needed_slice(situation))
        return shape.erode(situation.labels, situation.grid, situation.label, 2.0)

    viewer.dims.order = order
    model.start(Request("Erode", compute))
    done(model)
    if axis is None:  # time is drawn as rows
        assert "edit.no_plane" in text_of(model)
    else:
        assert seen == [(axis, (3, 4, 5)[axis])]


def test_what_is_taken_from_other_structures_is_said(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    ml = (layer.data == 1).sum() * placement_of(layer).shown.voxel_ml
    model.run("union", other=1)
    done(model)
    assert model.preview is not None
    assert model.preview.text == f"+{ml:.2f} ml ({ml:.2f} ml from other structures)"


def test_other_structures_are_overwritten_only_if_allowed(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    ball = layer.data == 1
    model.size_mm = 200.0
    model.run("dilate")
    done(model).apply()
    np.testing.assert_array_equal(layer.data == 1, ball)
    layer.undo()
    model.may_overwrite = True
    model.size_mm = 200.0
    model.run("dilate")
    done(model).apply()
    assert not (layer.data == 1).any()


@pytest.mark.parametrize("name", sorted(WINDOW_OPERATIONS))
def test_every_operation_runs(name: str, model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    before = layer.data.copy()
    model.size_mm, model.min_ml = 3.0, 0.01
    model.run(name, other=1)
    done(model)
    reasons = [message.text for message in model.session.messages if message.kind == "error"]
    assert all("edit." in reason for reason in reasons), text_of(model)  # there is nothing to split, for example
    if model.preview is not None:
        model.apply()
        assert state_of(layer).actions
        layer.undo()
    np.testing.assert_array_equal(layer.data, before)


def test_the_preview_says_how_many_parts_go(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    model.run("keep_largest")
    done(model)
    assert model.preview is not None
    assert "removes 1 of 2 islands, the largest of 0.0047 ml" in model.preview.text
    model.discard()
    model.min_ml = 0.001
    model.run("remove_islands")
    done(model)
    assert model.preview is None


def test_split_names_the_new_parts(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    before = layer.data.copy()
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    model.run("split")
    done(model).apply()
    measure(model.structures)
    # the tail has no voxels, but a label
    assert names_in(layer) == {1: "left ball", 2: "nose 2", 3: "nose", 4: "tail"}
    assert layer.data[0, 0, 0] == 2
    layer.undo()
    measure(model.structures)
    assert names_in(layer) == {1: "left ball", 3: "nose", 4: "tail"}
    layer.undo()
    np.testing.assert_array_equal(layer.data, before)


def test_split_takes_no_label_that_was_just_painted(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    measure(model.structures)
    layer.data[:] = 0
    layer.data[2:5, 5, 5] = layer.data[9:12, 5, 5] = 3
    painted = next(n for n in range(1, 20) if n not in {one.label for one in model.structures.structures})
    layer.data_setitem((np.array([1, 1]), np.array([9, 10]), np.array([9, 9])), painted)  # not measured yet
    model.run("split")
    done(model).apply()
    assert int((layer.data == painted).sum()) == 2


def test_a_click_on_another_structure_says_why_nothing_changes(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    other = model.others[0]
    model.add_prompt(np.argwhere(layer.data == other.label)[0])
    assert f"belongs to {other.name}; switch on" in text_of(done(model))


def test_prompts_of_a_structure_wait_while_another_is_chosen(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    model.add_prompt(np.array([5, 6, 7]))
    done(model)
    layer.selected_label = 1
    assert model.prompts.is_empty
    layer.selected_label = 3
    assert model.prompts.positive.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize("is_measured", [True, False])
def test_the_name_of_a_split_that_was_undone_does_not_come_back(
    is_measured: bool, model: EditModel, viewer: ViewerModel
) -> None:
    layer = labels_of(viewer)
    corner = (np.array([0]), np.array([0]), np.array([0]))
    layer.data_setitem(corner, 3)
    model.run("split")
    done(model).apply()
    measure(model.structures)
    layer.undo()
    if is_measured:
        measure(model.structures)
        layer.redo()
        measure(model.structures)
        assert names_in(layer)[2] == "nose 2"
        layer.undo()
    layer.data_setitem(tuple(axis + 1 for axis in corner), 2)  # by hand
    measure(model.structures)
    assert 2 not in names_in(layer)
    assert [one.name for one in model.structures.structures if one.label == 2] == ["label 2"]
    model.structures.rename(2, "nose 2")  # what a person names stays
    measure(model.structures)
    assert names_in(layer)[2] == "nose 2"


def test_an_absent_structure_says_so(model: EditModel, viewer: ViewerModel) -> None:
    labels_of(viewer).selected_label = 4
    model.size_mm = 3.0
    model.run("erode")
    assert "edit.absent" in text_of(done(model))
    labels_of(viewer).selected_label = 0
    model.size_mm = 3.0
    model.run("erode")
    assert "Choose a structure" in text_of(done(model))


def test_stop_drops_the_request(model: EditModel) -> None:
    began = threading.Event()

    def endless(situation: Situation) -> Any:
        began.set()
        while True:
            situation.progress("growing", 1, 2)

    model.start(Request("Grow", endless))
    assert began.wait(10)
    model.stop()
    assert model.job is None
    assert text_of(done(model)) == "Stopped."
    model.run("erode")
    assert model.has_pending
    model.discard()
    assert not model.has_pending
    assert done(model).preview is None


def test_prompts_are_shown_undone_and_cleared(
    model: EditModel, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stand_in(labels: Any, grid: Any, label: int, image: Any, prompts: Prompts, **options: Any) -> Any:
        seen.append((prompts, options["overwrite"]))
        mask = labels == label
        for voxels, value in ((prompts.positive, True), (prompts.negative, False)):
            i, j, k = voxels.T
            mask[i, j, k] = value
        return change_structure(labels, whole(labels.shape), label, mask)

    monkeypatch.setattr("napari_seg.plugin.edit.refining.refine", stand_in)
    layer = labels_of(viewer)
    inside = np.argwhere(layer.data == 3)[0]
    model.add_prompt(np.array([1, 1, 1]))
    model.add_prompt(inside, is_included=False)
    model.add_prompt(np.array([[2, 2, 2], [2, 2, 3]]))
    done(model)
    assert model.prompts_text == "2 include, 1 exclude"
    assert model.preview is not None
    assert (model.preview.added, model.preview.removed) == (3, 1)
    marks = views_of(viewer).marks
    assert marks is not None
    np.testing.assert_array_equal(marks.points, [[1, 1, 1], inside])
    np.testing.assert_array_equal(marks.kinds, [INCLUDED, EXCLUDED])
    saved = model.prompts
    model.undo_prompt()
    done(model)
    assert model.preview.added == 1
    model.clear_prompts()
    assert done(model).preview is None
    assert views_of(viewer).marks is None
    model.prompts = saved
    done(model).apply()
    assert layer.data[2, 2, 3] == layer.data[1, 1, 1] == 3
    assert layer.data[tuple(inside)] == 0
    assert model.prompts.is_empty  # they were for the change that is applied
    layer.undo()
    assert layer.data[1, 1, 1] == 0
    model.add_prompt(np.array([1, 1, 1]))
    layer.selected_label = 1  # prompts are for one structure
    assert done(model).prompts.is_empty
    assert model.preview is None


@pytest.mark.parametrize("is_at_once", [False, True])
def test_prompts_go_with_the_labels_from_before_the_first_one(
    is_at_once: bool, model: EditModel, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[list[int]]]] = []

    def stand_in(labels: Any, grid: Any, label: int, image: Any, prompts: Prompts, **options: Any) -> Any:
        seen.append((int((labels == label).sum()), prompts.positive.tolist()))
        mask = labels == label
        mask[tuple(prompts.positive.T)] = True
        return change_structure(labels, whole(labels.shape), label, mask)

    monkeypatch.setattr("napari_seg.plugin.edit.refining.refine", stand_in)
    before = int((labels_of(viewer).data == 3).sum())
    model.is_at_once = is_at_once
    for n in (1, 2):
        model.add_prompt(np.array([n, 1, 1]))
        done(model)
    if is_at_once:  # the first correction is applied and its prompt forgotten: the second one begins with it
        assert seen == [(before, [[1, 1, 1]]), (before + 1, [[2, 1, 1]])]
        labels_of(viewer).undo()
        model.add_prompt(np.array([3, 1, 1]))
        done(model)
        assert seen[2] == (before + 1, [[3, 1, 1]])
        return
    assert seen == [(before, [[1, 1, 1]]), (before, [[1, 1, 1], [2, 1, 1]])]
    model.apply()
    model.add_prompt(np.array([3, 1, 1]))
    done(model)
    assert seen[2:] == [(before + 2, [[3, 1, 1]])]
    model.add_prompt(np.array([4, 1, 1]))
    model.undo_prompt()
    done(model)
    assert seen[-1] == (before + 2, [[3, 1, 1]])


def test_a_box_alone_on_a_structure_says_what_to_do(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    i, j, k = (slice(int(a.min()), int(a.max()) + 1) for a in np.nonzero(layer.data == 3))
    model.add_prompts(Prompts(box=(i, j, k)))
    done(model)
    assert model.preview is None
    assert "nothing changes; a box alone" in text_of(model)
    model.add_prompt(np.argwhere(layer.data == 3)[0])
    done(model)
    assert "box alone" not in text_of(model)


def test_gaps_are_filled_where_another_side_is_complete(model: EditModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    layer.data[...] = 0
    layer.data[2:9, 3:6, 3:6] = 3
    layer.data[[2, 8], 3:6, 10:13] = 3
    viewer.dims.set_point(range(3), layer.data_to_world((4, 4, 4)))
    model.run("fill_between")
    done(model)
    assert model.preview is not None
    assert model.preview.text.endswith("parts side by side were filled one by one")
    model.apply()
    assert (layer.data[2:9, 3:6, 10:13] == 3).all()
    assert (layer.data == 3).sum() == 2 * 7 * 9


def test_the_preview_tells_where_it_was_mirrored(model: EditModel) -> None:
    for other, where in ((1, "halfway between both structures"), (4, "in the middle of the field of view")):
        model.run("mirror", other)
        done(model)
        assert model.preview is not None
        assert model.preview.text.endswith(f"to other structures; mirrored at the plane {where}")


@pytest.mark.parametrize(("name", "step"), [("copy_to_next", 1), ("copy_to_previous", -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_the_view_goes_to_the_copied_slice(
    order: tuple[int, int, int], name: str, step: int, model: EditModel, viewer: ViewerModel
) -> None:
    layer, axis = labels_of(viewer), order[0]
    layer.data[...] = 0
    layer.data[5, 6, 7] = 3
    viewer.dims.order = order
    viewer.dims.set_point(range(3), layer.data_to_world((5, 6, 7)))
    model.run(name)
    done(model)
    viewer.dims.set_point(axis, float(layer.translate[axis]))  # looks elsewhere before applying it
    model.apply()
    there = [5, 6, 7]
    there[axis] += step
    np.testing.assert_allclose(viewer.dims.point, layer.data_to_world(there))
    assert layer.data[tuple(there)] == 3
    model.is_at_once = True
    model.run(name)  # goes on from there
    done(model)
    there[axis] += step
    assert layer.data[tuple(there)] == 3


def test_a_later_prompt_replaces_an_earlier_one_in_the_same_voxel(model: EditModel) -> None:
    model.add_prompt(np.array([1, 1, 1]))
    model.add_prompt(np.array([1, 1, 1]), is_included=False)
    assert len(model.prompts.positive) == 0
    assert model.prompts.negative.tolist() == [[1, 1, 1]]


def test_linked_planes_show_and_undo_it(model: EditModel, viewer: ViewerModel) -> None:
    planes = PlanesModel(viewer)
    coronal = planes.open("coronal")
    copy = coronal.layers["found"]
    drawn: list[int] = []
    copy.events.set_data.connect(lambda: drawn.append(1))
    before = labels_of(viewer).data.copy()
    model.size_mm = 4.0
    model.run("dilate")
    done(model).apply()
    assert drawn
    assert copy.data is labels_of(viewer).data
    drawn.clear()
    (undo,) = [action for key, action in copy.keymap.items() if str(key) == "Ctrl+Z"]
    undo(copy)
    np.testing.assert_array_equal(labels_of(viewer).data, before)
    assert drawn
