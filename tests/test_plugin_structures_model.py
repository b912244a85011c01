"""What the Structures tab does, on a viewer model: measure, go there, name, colour, hide, compare, save, keep."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from math import isnan
from pathlib import Path

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.errors import NapariSegError
from napari_seg.formats.kinds import MENU_FORMATS, FormatName, write_label_map
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.nifti import write_nifti
from napari_seg.plugin.autosave import Autosave
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of, segmentation_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.comparison import compare
from napari_seg.plugin.structures.export import export, obstacle, suggested_name
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Segment, Segmentation, Source, Volume

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)), Segment(4, "tail", (9, 9, 9)))


def found_in(volume: Volume) -> Segmentation:
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    labels[volume.array[0] > 800] = 1
    return Segmentation(labels, volume.grid, SEGMENTS, confidence={1: 0.9, 3: 0.8})


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    """The phantom and what was found in it."""
    viewer = ViewerModel()
    ((data, settings, _),) = image_layers(head)
    viewer.add_layer(Image(data, **settings))
    placement = place(head.grid)
    data, settings, _ = labels_layer(found_in(head), placement, "found", scan=head.source, algorithm=("balls", "1"))
    viewer.add_layer(Labels(data, **settings))
    return viewer


@pytest.fixture
def model(viewer: ViewerModel) -> StructuresModel:
    model = StructuresModel(Session(viewer))
    measured(model)
    return model


def measured(model: StructuresModel) -> None:
    snapshot = model.snapshot()
    assert snapshot is not None
    model.take(model.measure(snapshot))


def labels_of(viewer: ViewerModel) -> Labels:
    layer = viewer.layers["found"]
    assert isinstance(layer, Labels)
    return layer


def test_the_table_says_how_large_bright_and_sure(model: StructuresModel, head: Volume) -> None:
    found = found_in(head)
    ball, nose, tail = model.structures
    assert [row.name for row in (ball, nose, tail)] == ["left ball", "nose", "tail"]
    assert (ball.voxels, ball.ml) == (found.voxel_counts()[1], pytest.approx(found.volumes_ml()[1]))
    assert ball.mean_intensity == pytest.approx(head.array[0][found.array == 1].mean())
    assert (ball.confidence, nose.confidence) == (0.9, 0.8)
    assert (tail.voxels, tail.ml) == (0, 0)
    assert isnan(tail.mean_intensity)


def test_a_click_goes_to_the_structure(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    for label in (1, 3):
        model.show(label)
        index = tuple(round(i) for i in layer.world_to_data(viewer.dims.point))
        assert layer.data[index] == label
        assert layer.selected_label == label
    model.step(1)  # round, past the tail that was not found
    assert layer.selected_label == 1
    model.step(-1)
    assert layer.selected_label == 3


def test_volumes_follow_edits_and_undoing(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    asked: list[int] = []
    model.measurement_due.connect(lambda: asked.append(1))
    before = [row.voxels for row in model.structures]
    layer.data_setitem((np.array([0, 0]), np.array([0, 1]), np.array([0, 0])), 7)
    assert asked
    measured(model)
    new = model.structures[-1]
    assert (new.label, new.name, new.voxels) == (7, "label 7", 2)
    assert all(isnan(row.confidence) for row in model.structures)  # the network gave these labels no more
    asked.clear()
    layer.undo()
    assert asked
    measured(model)
    assert [row.voxels for row in model.structures] == before


def test_hidden_renamed_and_recoloured(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    model.draw(1, False)
    assert layer.colormap.map(1)[3] == 0
    assert not model.structures[0].shown
    model.draw(1, True)
    assert layer.colormap.map(1)[3] == 1
    model.rename(1, "  ball of the left ")
    model.rename(3, "  ")
    model.recolor(1, (1, 2, 3))
    assert [(row.name, row.color) for row in model.structures[:2]] == [
        ("ball of the left", (1, 2, 3)),
        ("nose", (0, 128, 255)),
    ]
    assert list(layer.features["name"])[1] == "ball of the left"
    text = export(Snapshot.of(layer), tmp_path / "named.seg.nrrd", "nrrd")
    assert text.startswith("Saved named.seg.nrrd (2 structures). Read back")
    saved = read_label_map(tmp_path / "named.seg.nrrd")
    assert (saved.segments[0].name, saved.segments[0].color) == ("ball of the left", (1, 2, 3))


@pytest.mark.parametrize("kind", ["layer", "file"])
def test_comparing_gives_numbers_and_shows_where(
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


def test_a_renamed_structure_is_said_when_it_is_compared(model: StructuresModel, head: Volume, tmp_path: Path) -> None:
    path = tmp_path / "reference.seg.nrrd"
    write_label_map(found_in(head), path)
    model.rename(1, "lesion")
    model.take_comparison(compare(Snapshot.of(labels_of(model.session.viewer)), path))
    said = model.session.messages[0].text
    assert "only in the labels: lesion; only in reference.seg.nrrd: " in said
    assert "labels.names_differ" in said


def test_a_border_of_no_class_is_left_out_and_said(model: StructuresModel, head: Volume, tmp_path: Path) -> None:
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
    scores = compare(Snapshot.of(model.session.labels), tmp_path / "named.seg.nrrd").scores
    assert [one.dice for one in scores.values()].count(0) == 1  # named, it is a structure


def test_a_reference_on_another_grid_is_refused(model: StructuresModel, head: Volume, tmp_path: Path) -> None:
    small = Segmentation(np.ones((3, 4, 5), np.uint8), head.grid.box((0, 0, 0), (3, 4, 5)), SEGMENTS)
    write_label_map(small, tmp_path / "small.nii.gz")
    with pytest.raises(NapariSegError, match="grid"):
        compare(Snapshot.of(model.session.labels), tmp_path / "small.nii.gz")


@pytest.mark.parametrize("kind", MENU_FORMATS)
def test_every_format_is_written_and_checked(kind: FormatName, head: Volume, tmp_path: Path) -> None:
    phantoms.write_series(head, tmp_path / "series")
    scan = Source("dicom", tuple(sorted((tmp_path / "series").iterdir())))
    placement = place(head.grid)
    data, settings, _ = labels_layer(found_in(head), placement, "a/b: found", scan=scan, algorithm=("balls", "1"))
    layer = Labels(data, **settings)
    assert obstacle(layer, kind) == ""
    assert "/" not in suggested_name(layer, kind)
    written = tmp_path / suggested_name(layer, kind)
    text = export(Snapshot.of(layer), written, kind)
    assert "Read back" in text
    assert {path for path in tmp_path.iterdir() if path.is_file()} - {tmp_path / "a_b_ found_seg.json"} == {written}
    if kind != "csv":
        back = read_label_map(written, head.grid)
        names = {s.label: s.name for s in back.segments}
        for label, count in found_in(head).voxel_counts().items():
            same = [n for n, name in names.items() if name == SEGMENTS[(1, 3, 4).index(label)].name] or [label]
            if kind != "rtstruct":
                assert (back.array == same[0]).sum() == count


@pytest.mark.parametrize(
    ("made_by", "paint", "from_file", "origin"),
    [
        (("balls", "1"), False, False, "AUTOMATIC"),
        (("balls", "1"), True, False, "SEMIAUTOMATIC"),
        (("balls", "1"), False, True, "SEMIAUTOMATIC"),
        (None, True, False, "MANUAL"),
    ],
)
def test_dicom_tells_who_made_it(
    head: Volume, tmp_path: Path, made_by: tuple[str, str] | None, paint: bool, from_file: bool, origin: str
) -> None:
    import pydicom

    phantoms.write_series(head, tmp_path / "series")
    scan = Source("dicom", tuple(sorted((tmp_path / "series").iterdir())))
    placement = place(head.grid)
    source = tmp_path / "mine.nii.gz" if from_file else None
    layer = layer_of(labels_layer(found_in(head), placement, "mine", scan=scan, algorithm=made_by, source=source))
    assert isinstance(layer, Labels)
    state_of(layer).painted = paint
    export(Snapshot.of(layer), tmp_path / "mine.dcm", "seg")
    (first, *_) = pydicom.dcmread(tmp_path / "mine.dcm").SegmentSequence
    assert first.SegmentAlgorithmType == origin
    assert ("SegmentationAlgorithmIdentificationSequence" in first) is (origin != "MANUAL")
    export(Snapshot.of(layer), tmp_path / "contours.dcm", "rtstruct")
    (region, *_) = pydicom.dcmread(tmp_path / "contours.dcm").StructureSetROISequence
    assert region.ROIGenerationAlgorithm == origin


def test_dicom_is_offered_for_dicom_alone(viewer: ViewerModel) -> None:
    assert "DICOM" in obstacle(labels_of(viewer), "seg")
    assert obstacle(labels_of(viewer), "nifti") == ""
    assert obstacle(None, "nifti") != ""


def test_work_is_kept_and_given_back_after_a_crash(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    autosave = Autosave(tmp_path)
    assert autosave.due([layer]) == []  # nobody edited it
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    due = autosave.due([layer])
    autosave.keep(due)
    assert os.stat(autosave.folder).st_mode & 0o077 == 0
    assert Autosave(tmp_path).left_behind() == []  # this program still runs
    autosave.folder.rename(tmp_path / f"{platform.node()}-999999999-x")  # as one that is no more
    (left,) = Autosave(tmp_path).left_behind()
    assert left.names == ("found",)
    (back,) = left.read(None)
    assert back.name == "found (restored)"
    np.testing.assert_array_equal(back.data, layer.data)
    assert LayerInfo.require(back).segments[0].name == "left ball"
    assert len(autosave.due([back])) == 1  # it is not saved yet
    left.discard()
    assert Autosave(tmp_path).left_behind() == []


def test_work_is_kept_until_it_is_saved_as_it_is(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    autosave = Autosave(tmp_path)
    model.rename(3, "proboscis")
    (due,) = autosave.due([layer])
    autosave.keep([due])
    assert autosave.due([layer]) == []  # it lies there already
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    saved = Snapshot.of(layer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([1])), 4)  # while it is saved
    table = state_of(layer)
    table.saved = saved.edits
    assert table.is_unsaved
    (due,) = autosave.due([layer])
    autosave.keep([due])
    assert len(list(autosave.folder.glob("*.nii.gz"))) == 1  # in place of the copy before
    table.saved = Snapshot.of(layer).edits
    assert autosave.due([layer]) == []
    layer.undo()
    assert len(autosave.due([layer])) == 1


def test_a_disk_that_takes_no_copies_is_said(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    (tmp_path / "file").touch()
    with pytest.raises(NapariSegError, match="cannot write copies") as caught:
        Autosave(tmp_path / "file").keep([Snapshot.of(layer)])
    assert caught.value.code == "output.not_written"


def test_one_layer_that_can_not_be_kept_costs_no_other(
    model: StructuresModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    autosave = Autosave(tmp_path)
    good = Snapshot.of(layer)
    bad = replace(good, labels=good.labels.astype(np.int16) - 3)
    second = layer_of(labels_layer(found_in(phantoms.head()), placement_of(layer), "second"))
    assert isinstance(second, Labels)
    state_of(second).edits = 1
    with pytest.raises(NapariSegError, match="whole"):
        autosave.keep([bad, Snapshot.of(second)])
    assert len(list(autosave.folder.glob("*.nii.gz"))) == 1
    autosave.keep([good, Snapshot.of(second)])
    kept = set(autosave.folder.glob("*.nii.gz"))
    with pytest.raises(NapariSegError, match="whole"):
        autosave.keep([bad, Snapshot.of(second)])
    after = set(autosave.folder.glob("*.nii.gz"))
    assert len(after) == 2
    assert len(kept & after) == 1  # the copy before, of the layer that could not be kept
    assert len(autosave.due([layer, second])) == 2  # it is tried again


def test_names_do_not_make_measurements_old(model: StructuresModel, viewer: ViewerModel) -> None:
    asked: list[int] = []
    model.measurement_due.connect(lambda: asked.append(1))
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    early, late = model.snapshot(), None
    layer.data_setitem((np.array([0]), np.array([0]), np.array([1])), 4)
    late = model.snapshot()
    assert early is not None
    assert late is not None
    model.rename(1, "ball")
    asked.clear()
    model.take(model.measure(early))
    assert asked  # the labels are others by now: once more
    model.take(model.measure(late))
    assert model.structures[2].voxels == 2


def test_a_duplicate_is_a_layer_of_its_own(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    other = Labels(layer.data.copy(), **{**layer.as_layer_data_tuple()[1], "name": "copy"})
    viewer.add_layer(other)  # as napari's Duplicate does
    assert model.session.labels is other
    model.rename(1, "another")
    model.draw(3, False)
    assert state_of(other).is_unsaved
    assert not state_of(layer).is_unsaved
    assert segmentation_of(*layer.as_layer_data_tuple()[:2]).segments[0].name == "left ball"


def test_what_was_measured_of_older_labels_is_not_shown(model: StructuresModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    snapshot = model.snapshot()
    assert snapshot is not None
    before = [row.voxels for row in model.structures]
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    answer = model.measure(snapshot)
    assert answer.counts.get(4) is None
    state_of(layer).counts = {1: 1}
    model.take(answer)
    assert state_of(layer).counts == {1: 1}
    model.take_comparison(compare(snapshot, snapshot))
    assert "edited during the comparison" in model.session.messages[0].text
    assert before != [row.voxels for row in model.structures]


def test_labels_from_a_file_find_the_images_of_their_scan(head: Volume, tmp_path: Path) -> None:
    phantoms.write_series(head, tmp_path / "series")
    series = replace(head, source=Source("dicom", tuple(sorted((tmp_path / "series").iterdir()))))
    viewer = ViewerModel()
    session = Session(viewer)
    placement = place(head.grid)
    labels = layer_of(labels_layer(found_in(head), placement, "from a file"))
    viewer.add_layer(labels)
    assert obstacle(session.labels, "seg") != ""
    viewer.add_layer(layer_of(image_layers(series)[0]))  # opened after them
    assert obstacle(session.labels, "seg") == ""


def test_a_closed_model_lets_go(model: StructuresModel, viewer: ViewerModel) -> None:
    model.close()
    model.session.close()
    labels_of(viewer).data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    viewer.layers.clear()
