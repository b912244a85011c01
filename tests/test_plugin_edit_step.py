"""A change as a step of the undo history, and its preview."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.layers import Labels

from napari_seg.editing.change import Change, whole
from napari_seg.geometry import Grid
from napari_seg.plugin.edit.operations import Situation
from napari_seg.plugin.edit.preview import Preview
from napari_seg.plugin.edit.step import fits, step_of
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.placement import place
from napari_seg.plugin.views import ADDED, MOVED, REMOVED
from napari_seg.progress import ignore_progress


def test_far_parts_have_boxes_of_their_own() -> None:
    labels = np.zeros((200, 100, 90), np.uint8)
    after = labels.copy()
    after[3:6, 4, 5], after[190, 99, 89], after[64:74, 10, 10] = 1, 2, 3
    step = step_of(Change(whole(labels.shape), labels, after))
    assert sum(before.size for _, before, _ in step) == 3 + 1 + 10
    assert fits(step, labels)
    for box, before, new in step:
        assert not np.shares_memory(before, labels)
        labels[box] = new
    np.testing.assert_array_equal(labels, after)
    assert not fits(step, labels)


def test_a_box_inside_the_label_map_is_shifted() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    box = slice(5, 9), slice(6, 9), slice(7, 9)
    after = np.zeros((4, 3, 2), np.uint8)
    after[1, 1, 1] = 1
    ((place, before, new),) = step_of(Change(box, labels[box], after))
    assert place == (slice(6, 7), slice(7, 8), slice(8, 9))
    assert (before.tolist(), new.tolist()) == ([[[0]]], [[[1]]])
    assert step_of(Change(box, labels[box], labels[box])) == []


def test_a_preview_counts_what_the_structure_gains_and_loses() -> None:
    before = np.array([[[0, 1, 1, 1, 2, 0]]], np.uint8)
    after = np.array([[[1, 1, 0, 5, 1, 0]]], np.uint8)
    grid = Grid((1, 1, 6), np.diag([-10.0, -10.0, -10.0, 1.0])).reoriented("IPL")
    layer = Labels(before.copy(), metadata=LayerInfo(place(grid)).as_metadata())
    situation = Situation(before, grid, 1, (), None, (0, 0), (3, 4, 5, 6), ignore_progress)
    preview = Preview.of(Change(whole(before.shape), before, after), "Try", layer, 7, situation)
    assert (preview.added, preview.removed, preview.moved) == (2, 2, 1)
    assert preview.new_labels == (5,)
    assert preview.text == "+2.00 ml (1.00 ml from other structures), −2.00 ml, 1.00 ml to other structures"
    ((_, kinds),) = preview.areas
    assert kinds.tolist() == [[[ADDED, 0, REMOVED, MOVED, ADDED]]]
    assert (preview.paints, preview.is_empty) == (7, False)
