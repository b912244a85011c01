"""Refinement by prompts with what a model found: its confidence, and what a person has edited since."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.editing.change import Change, change_structure, whole
from napari_seg.editing.evidence import EDITED_CHANCE, probability_now
from napari_seg.editing.prompts import Prompts
from napari_seg.editing.refine import region_around
from napari_seg.errors import InputError
from napari_seg.geometry import Grid
from napari_seg.plugin.edit import refining
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.edit.operations import Situation
from napari_seg.plugin.edit.refining import ModelResult
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import image_layers, labels_layer
from napari_seg.plugin.placement import place
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import ConfidenceMaps, Segmentation, Volume


def result_of(volume: Volume) -> Segmentation:
    """Return the result of a model with a confidence that differs in every voxel."""
    found = found_in(volume)
    confidence = np.random.default_rng(0).integers(1, 256, found.array.shape, np.uint8)
    return replace(found, confidence_maps=ConfidenceMaps(confidence, confidence))


def layer_of_result(volume: Volume) -> Labels:
    """Return the layer of `result_of`."""
    data, settings, _ = labels_layer(result_of(volume), place(volume.grid, None), "found", is_result=True)
    return Labels(data, **settings)


def test_a_result_keeps_its_confidence_and_other_labels_have_none(head: Volume) -> None:
    info = LayerInfo.require(layer_of_result(head))
    known = ModelResult.of(info)
    assert known is not None
    assert ModelResult.of(replace(info, notices=()), known) is known  # unpacked once
    assert ModelResult.of(replace(info, model_confidence=None), known) is None
    data, settings, _ = labels_layer(result_of(head), place(head.grid, None), "read from a file")
    assert ModelResult.of(LayerInfo.require(Labels(data, **settings))) is None


def test_the_probability_lies_on_the_voxels_of_the_layer(head: Volume) -> None:
    layer = layer_of_result(head)
    result, grid = ModelResult.of(LayerInfo.require(layer)), placement_of(layer).shown
    assert result is not None
    voxel = np.argwhere(layer.data == 3)[0]
    box = (slice(0, 9), slice(3, 20), slice(2, 18))
    probability = result.probability(layer.data, 3, box)
    assert probability is not None
    maps = result_of(head).confidence_maps
    assert maps is not None
    confidence = maps.confidence[tuple(np.rint(head.grid.to_index(grid.to_world(voxel))).astype(int))]
    full = result.probability(layer.data, 3, whole(layer.data.shape))
    assert full is not None
    assert full[tuple(voxel)] == confidence
    outside = np.ones(layer.data.shape, bool)
    outside[box] = False
    assert not probability[outside].any()
    assert result.probability(layer.data, 4, box) is None  # no voxels of the tail were found


def test_prompts_use_what_the_model_found_and_the_edits_since(head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stand_in(labels: Any, grid: Grid, label: int, image: Any, prompts: Prompts, **options: Any) -> Change:
        seen.append((options["probability"], region_around(prompts, grid)))
        return change_structure(labels, whole(labels.shape), label, labels == label)

    monkeypatch.setattr(refining, "refine", stand_in)
    viewer = ViewerModel()
    ((data, settings, _),) = image_layers(head)
    viewer.add_layer(Image(data, **settings))
    layer = layer_of_result(head)
    viewer.add_layer(layer)
    session = Session(viewer)
    model = EditModel(session, StructuresModel(session))
    layer.selected_label = 3
    made, edited = layer.data.copy(), (1, 1, 1)
    layer.data_setitem(tuple(np.array([n]) for n in edited), 3)
    model.add_prompt(np.argwhere(made == 3)[0])
    session.jobs.wait()
    probability, box = seen[-1]
    info = LayerInfo.require(layer)
    assert info.model_confidence is not None
    confidence = placement_of(layer).show(info.model_confidence.unpack())
    np.testing.assert_array_equal(probability[box], probability_now(layer.data[box], made[box], 3, confidence[box]))
    assert probability[edited] == EDITED_CHANCE
    layer.selected_label = 4
    model.add_prompt(np.array([2, 2, 2]))
    session.jobs.wait()
    assert seen[-1][0] is None  # the model did not find it
    replace(info, model_confidence=None).attach(layer)
    layer.selected_label = 3
    model.add_prompt(np.array([2, 2, 2]))
    session.jobs.wait()
    assert seen[-1][0] is None
    session.close()


def test_a_click_on_the_result_of_a_model_is_respected(head: Volume) -> None:
    layer = layer_of_result(head)
    result, grid = ModelResult.of(LayerInfo.require(layer)), placement_of(layer).shown
    image = placement_of(layer).show(head.array[0])
    i, j, k = np.argwhere(layer.data == 3)[0]
    prompts = Prompts(negative=np.array([(i, j, k)]))
    situation = Situation(layer.data, grid, 3, (), image, None, (), lambda *_: None)
    change = refining.refined(situation, prompts, None, result)
    after = layer.data.copy()
    change.apply(after)
    assert after[i, j, k] == 0
    np.testing.assert_array_equal(after == 1, layer.data == 1)
    with pytest.raises(InputError, match=r"edit\.prompt_outside"):
        refining.refined(situation, Prompts(np.array([(-1, 0, 0)])), None, result)
