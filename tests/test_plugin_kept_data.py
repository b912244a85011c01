"""Plain data that tools keep for layers."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.layers import Labels

from napari_seg.plugin import kept_data


def test_changes_are_counted_until_they_are_saved() -> None:
    layer = Labels(np.zeros((3, 3, 3), np.uint8))
    assert kept_data.kept(layer) == {}
    kept_data.keep(layer, "prompts", {})  # nothing
    assert kept_data.changes_of(layer) == 0
    prompts = {"1": [[1, 2, 3]]}
    kept_data.keep(layer, "prompts", prompts)
    prompts["1"].append([4, 5, 6])  # the caller's own data may change
    assert kept_data.kept(layer) == {"prompts": {"1": [[1, 2, 3]]}}
    kept_data.kept(layer)["prompts"]["1"].clear()
    assert kept_data.kept(layer) == {"prompts": {"1": [[1, 2, 3]]}}
    assert kept_data.has_unsaved(layer)
    changes = kept_data.changes_of(layer)
    kept_data.keep(layer, "prompts", {"1": [[1, 2, 3]]})  # the same
    assert kept_data.changes_of(layer) == changes
    kept_data.mark_saved(layer, changes)
    assert not kept_data.has_unsaved(layer)
    kept_data.keep(layer, "prompts", {})
    assert kept_data.kept(layer) == {}
    assert not kept_data.has_unsaved(layer)  # there is nothing to lose
    kept_data.restore(layer, {"actions": [1]})
    assert kept_data.kept(layer) == {"actions": [1]}
    assert not kept_data.has_unsaved(layer)


def test_data_ends_with_its_layer() -> None:
    layer = Labels(np.zeros((3, 3, 3), np.uint8))
    kept_data.keep(layer, "prompts", {"1": 1})
    before = len(kept_data._KEPT)
    del layer
    gc.collect()
    assert len(kept_data._KEPT) < before
