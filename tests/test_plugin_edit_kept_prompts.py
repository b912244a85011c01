"""Prompts as plain data of a layer, which may come from the session file of a stranger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in, labels_of, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Labels

from napari_seg.editing.prompts import Prompts
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.plugin import kept_data
from napari_seg.plugin.edit.kept_prompts import keep_prompts, kept_prompts
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.layer_info import placement_of
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.session_file.model import SessionFileModel
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Segmentation

PROMPTS = Prompts([[1, 2, 3], [4, 5, 6]], [[7, 8, 9]], (slice(0, 8), slice(1, 9), slice(2, 10)))


def same(one: Prompts, two: Prompts) -> bool:
    return (
        np.array_equal(one.positive, two.positive) and np.array_equal(one.negative, two.negative) and one.box == two.box
    )


@pytest.fixture
def layer() -> Labels:
    return labels_of(viewer_with_labels(phantoms.head()))


def test_prompts_are_kept_for_one_structure(layer: Labels) -> None:
    assert kept_prompts(layer, 3).is_empty
    keep_prompts(layer, 3, PROMPTS)
    assert same(kept_prompts(layer, 3), PROMPTS)
    assert kept_prompts(layer, 4).is_empty
    keep_prompts(layer, 4, Prompts())
    assert same(kept_prompts(layer, 3), PROMPTS)
    keep_prompts(layer, 3, Prompts())
    assert kept_data.kept(layer) == {}


@pytest.mark.parametrize(
    "data",
    [
        7,
        "x",
        [1],
        {},
        {"positive": "abc"},
        {"positive": {"a": 1}},
        {"positive": [[1, 2]]},
        {"positive": [[1e30, 2, 3]]},
        {"positive": [[1, 2, float("nan")]]},
        {"positive": [[1, 2, 10**400]]},
        {"positive": [["a", "b", "c"]]},
        {"positive": [[[1, 2], [3]]]},
        {"positive": [[8, -21, 33]], "box": [[0, 5], [0, 5]]},
        {"positive": [[8, -21, 33]], "box": [["a", 5, 5]] * 8},
        {"positive": [[8, -21, 33]], "box": 3},
        {"positive": [[1e9, 2, 3]]},
    ],
)
def test_unusable_data_of_a_stranger_is_ignored(data: object, layer: Labels) -> None:
    kept_data.restore(layer, {"prompts": {"3": data}})
    assert kept_prompts(layer, 3).is_empty
    kept_data.restore(layer, {"prompts": data})
    assert kept_prompts(layer, 3).is_empty


def test_prompts_come_back_with_their_session(tmp_path: Path) -> None:
    path = phantoms.write_nifti(phantoms.head(), tmp_path / "head.nii.gz")
    viewer = viewer_with_labels(read(path))
    session = Session(viewer)
    editing = EditModel(session, StructuresModel(session))
    files = SessionFileModel(session, SegmentModel(session))
    labels_of(viewer).selected_label = 3
    editing.add_prompt(np.array([5, 6, 7]))
    editing.add_prompt(np.array([[9, 9, 9], [9, 9, 10]]), is_included=False)
    session.jobs.wait()
    prompts = editing.prompts
    files.save(tmp_path / "a.napari-seg")
    session.jobs.wait()

    other = ViewerModel()
    session = Session(other)
    editing = EditModel(session, StructuresModel(session))
    files = SessionFileModel(session, SegmentModel(session))
    files.open(tmp_path / "a.napari-seg")
    session.jobs.wait()
    assert same(editing.prompts, prompts)
    assert editing.prompts_text == "1 include, 2 exclude"
    editing.add_prompt(np.array([6, 6, 7]))  # they are used with the next one
    session.jobs.wait()
    assert len(editing.prompts.positive) == 2
    editing.clear_prompts()
    assert kept_data.kept(other.layers[-1]) == {}


def test_prompts_stay_at_their_places_in_another_frame() -> None:
    volume = phantoms.head()
    turned = phantoms.rotation(20, -10, 35)
    (layer,) = (labels_of(viewer_with_labels(volume)),)
    keep_prompts(layer, 3, PROMPTS)
    mm = placement_of(layer).shown.to_world(PROMPTS.positive)
    other = layer_of(labels_layer(found_in(volume), place(volume.grid, turned), "found"))
    assert isinstance(other, Labels)
    assert other.data.shape != layer.data.shape
    kept_data.restore(other, kept_data.kept(layer))
    found = kept_prompts(other, 3)
    grid = placement_of(other).shown
    gaps_mm = np.linalg.norm(grid.to_world(found.positive)[:, None] - mm, axis=-1).min(axis=1)
    assert len(found.positive) == 2
    assert gaps_mm.max() <= np.linalg.norm(grid.spacing_mm) / 2
    assert found.box is not None
    inside = grid.to_index(placement_of(layer).shown.to_world([[0, 1, 2], [7, 8, 9]])).round()
    for axis, part in enumerate(found.box):
        assert part.start <= inside[:, axis].min()
        assert part.stop > inside[:, axis].max()


def test_prompts_outside_of_the_layer_and_pairs_in_one_voxel_are_left_out(layer: Labels) -> None:
    inside, near = placement_of(layer).shown.to_world([[5, 5, 5], [5.2, 5, 5]]).tolist()
    kept_data.restore(layer, {"prompts": {"3": {"positive": [inside, [900, 0, 0]], "negative": [near]}}})
    prompts = kept_prompts(layer, 3)
    assert prompts.positive.tolist() == [[5, 5, 5]]
    assert not len(prompts.negative)


def test_prompts_in_small_voxels_stay_apart() -> None:
    grid = Grid((10, 10, 10), np.diag([-4e-6, 4e-6, 4e-5, 1.0]))  # 4 nm
    layer = layer_of(labels_layer(Segmentation(np.zeros(grid.shape, np.uint8), grid, ()), place(grid), "found"))
    assert isinstance(layer, Labels)
    keep_prompts(layer, 1, PROMPTS)
    assert same(kept_prompts(layer, 1), PROMPTS)


def test_the_number_of_kept_prompts_is_limited(layer: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.plugin.edit.kept_prompts._MAX_VOXELS", 10)
    voxels = [[i, j, 3] for i in range(5) for j in range(5)]
    keep_prompts(layer, 3, Prompts(voxels, [[9, 9, 9]]))
    stored = kept_data.kept(layer)
    found = kept_prompts(layer, 3)
    assert len(found.positive) == 9  # every third
    assert {*map(tuple, found.positive.tolist())} < {*map(tuple, voxels)}
    assert found.negative.tolist() == [[9, 9, 9]]
    monkeypatch.setattr("napari_seg.plugin.edit.kept_prompts._MAX_VOXELS", 4)  # the file of a stranger holds more
    kept_data.restore(layer, stored)
    assert 0 < len(kept_prompts(layer, 3).positive) <= 4
