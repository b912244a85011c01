"""State and snapshots of labels layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from phantoms import head

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")


from labelled import labels_of, viewer_with_labels
from napari.layers import Labels

from napari_seg.plugin.labels_state import Snapshot, state_of, unsaved_in
from napari_seg.plugin.layer_info import LayerInfo


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
