"""State and snapshots of labels layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from phantoms import head

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")


from labelled import labels_of, viewer_with_labels
from napari.layers import Labels
from napari.layers._layer_actions import _duplicate_layer

from napari_seg.plugin import labels_state
from napari_seg.plugin.labels_state import EditAction, Snapshot, state_of, unsaved_in
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.session import Session


@pytest.fixture
def layer() -> Labels:
    return labels_of(viewer_with_labels(head()))


def test_a_snapshot_keeps_labels_names_and_edits_of_its_moment(layer: Labels) -> None:
    before = layer.data.copy()
    snapshot = Snapshot.of(layer)
    info = LayerInfo.require(layer)
    replace(info, segments=tuple(replace(one, name="other") for one in info.segments)).attach(layer)
    layer.name = "renamed"
    assert snapshot.is_current
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    assert not snapshot.is_current
    np.testing.assert_array_equal(snapshot.labels, before)
    assert (snapshot.name, snapshot.edits) == ("found", 0)
    assert [one.name for one in snapshot.segmentation().segments] == ["left ball", "nose", "tail"]


def test_edits_after_a_save_are_unsaved(layer: Labels) -> None:
    state, marks = state_of(layer), []
    state.unsaved_changed.connect(marks.append)
    assert unsaved_in([layer]) == []
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    saved = Snapshot.of(layer).edits
    state.count_edit()
    state.mark_saved(saved)
    assert unsaved_in([layer]) == [layer]
    state.mark_saved(state.edits)
    assert unsaved_in([layer]) == []
    assert marks == [True, False]


def test_undo_counts_as_an_edit(layer: Labels) -> None:
    state = state_of(layer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    layer.undo()
    assert (state.edits, state.paints, state.painted) == (2, 2, True)


def test_a_duplicate_has_the_edits_of_the_original() -> None:
    viewer = viewer_with_labels(head())
    _session, layer = Session(viewer), labels_of(viewer)
    state_of(layer).earlier_actions = (EditAction("Smooth", 1, "left ball", 3, 4),)
    state_of(layer).hidden = {3}
    for is_edited in (False, True):
        if is_edited:
            layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
        viewer.layers.selection = {layer}
        _duplicate_layer(viewer.layers)
        copy = viewer.layers["found copy"]
        assert isinstance(copy, Labels)
        state = state_of(copy)
        assert (state.painted, state.is_unsaved) == (is_edited, is_edited)
        assert state.actions == state_of(layer).actions
        assert state.hidden == {3}
        viewer.layers.remove(copy)
    state_of(layer).mark_saved(1)
    assert unsaved_in([copy]) == [copy]


def test_labels_that_another_program_made_from_a_layer_count_as_edited() -> None:
    viewer = viewer_with_labels(head())
    _session, layer = Session(viewer), labels_of(viewer)
    changed = Labels(np.zeros_like(layer.data), metadata=layer.metadata)
    viewer.add_layer(changed)
    assert state_of(changed).painted
    assert unsaved_in(viewer.layers) == [changed]

    viewer.layers.remove(layer)
    state_of(layer)
    del labels_state._STATES[layer]  # as if it were deleted, after it was converted to an image
    back = viewer.add_labels(layer.data, metadata=layer.metadata)
    assert unsaved_in(viewer.layers) == [changed, back]
