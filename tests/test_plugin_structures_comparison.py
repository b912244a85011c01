"""Comparison of labels with a reference: scores, differences, and doubts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import SEGMENTS, found_in, labels_of, measure, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Labels

from napari_seg.errors import NapariSegError
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.nifti import write_nifti
from napari_seg.plugin.labels_state import Snapshot
from napari_seg.plugin.layer_info import placement_of
from napari_seg.plugin.layers import labels_layer
from napari_seg.plugin.messages import gui_text_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.comparison import compare
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Segment, Segmentation, Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    return viewer_with_labels(head)


@pytest.fixture
def model(viewer: ViewerModel) -> StructuresModel:
    model = StructuresModel(Session(viewer))
    measure(model)
    return model


@pytest.mark.parametrize("kind", ["layer", "file"])
def test_a_comparison_gives_scores_and_a_layer_of_differences(
    model: StructuresModel, viewer: ViewerModel, head: Volume, tmp_path: Path, kind: str
) -> None:
    found = found_in(head)
    array = found.array.copy()
    ball = np.argwhere(array == 1)
    array[tuple(ball[0])] = 0  # the result has one voxel more there
    array[0, 0, 0] = 3  # and one less here
    array[tuple(ball[1])] = 3  # and one of another kind
    reference = replace(found, array=array)
    path = tmp_path / "reference.seg.nrrd"
    write_label_map(reference, path)
    if kind == "layer":
        placement = placement_of(labels_of(viewer))
        data, settings, _ = labels_layer(reference, placement, "reference")
        other = Labels(data, **settings)
        viewer.add_layer(other)
        viewer.layers.selection.active = labels_of(viewer)
        model.take_comparison(compare(Snapshot.of(labels_of(viewer)), Snapshot.of(other)))
    else:
        model.take_comparison(compare(Snapshot.of(labels_of(viewer)), path))
    scores = model.structures[0].scores
    assert scores is not None
    n = found.voxel_counts()[1]
    assert scores.dice == pytest.approx(2 * (n - 2) / (n + n - 2))
    where = viewer.layers[-1]
    assert isinstance(where, Labels)
    assert np.bincount(np.ravel(where.data)).tolist()[1:] == [1, 1, 1]
    assert viewer.layers.selection.active is labels_of(viewer)
    assert "mean Dice" in model.session.messages[0].text


def test_a_renamed_structure_is_reported(model: StructuresModel, head: Volume, tmp_path: Path) -> None:
    path = tmp_path / "reference.seg.nrrd"
    write_label_map(found_in(head), path)
    model.rename(1, "lesion")
    model.take_comparison(compare(Snapshot.of(labels_of(model.session.viewer)), path))
    text = model.session.messages[0].text
    assert "only in the segmentation: lesion; only in reference.seg.nrrd: " in text
    assert "labels.names_differ" in text


def test_a_reference_of_other_structures_is_refused_in_words_of_the_window(
    model: StructuresModel, head: Volume, tmp_path: Path
) -> None:
    found = found_in(head)
    others = tuple(replace(segment, name=f"other {segment.label}") for segment in found.segments)
    write_label_map(replace(found, segments=others), tmp_path / "reference.seg.nrrd")
    with pytest.raises(NapariSegError, match=r"labels\.none_common") as caught:
        compare(Snapshot.of(model.session.labels), tmp_path / "reference.seg.nrrd")
    assert gui_text_of(caught.value).endswith("rename them in the Structures tab (labels.none_common)")


def test_a_void_label_is_ignored_and_reported(model: StructuresModel, head: Volume, tmp_path: Path) -> None:
    found = found_in(head)
    array = found.array.copy()
    ball = np.argwhere(array == 1)
    array[tuple(ball[0])] = 255
    array[tuple(np.argwhere(array == 0)[0])] = 255
    write_nifti(replace(found, array=array, segments=()), tmp_path / "reference.nii.gz")
    comparison = compare(Snapshot.of(model.session.labels), tmp_path / "reference.nii.gz")
    scores, texts = comparison.scores, [message.text for message in comparison.messages]
    assert (255 in scores, scores[1].dice, np.max(comparison.differences.data)) == (False, 1, 0)
    assert [text.rpartition("(")[2] for text in texts[:2]] == ["labels.ignored)", "labels.void)"]
    assert "--" not in "".join(texts)
    named = (*found.segments, Segment(255, "edge", (1, 2, 3)))
    write_label_map(replace(found, array=array, segments=named), tmp_path / "named.seg.nrrd")
    text = compare(Snapshot.of(model.session.labels), tmp_path / "named.seg.nrrd").messages[-1].text
    assert text.endswith("Dice of structures that are no single label here: edge 0.000.")  # named, it is a structure


def test_a_reference_on_another_grid_is_refused(model: StructuresModel, head: Volume, tmp_path: Path) -> None:
    small = Segmentation(np.ones((3, 4, 5), np.uint8), head.grid.box((0, 0, 0), (3, 4, 5)), SEGMENTS)
    write_label_map(small, tmp_path / "small.nii.gz")
    with pytest.raises(NapariSegError, match="grid"):
        compare(Snapshot.of(model.session.labels), tmp_path / "small.nii.gz")
