"""Accept in the window's model: what the training set gets, what it never gets, and what a person is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from cohorts import InlineProcess
from labelled import found_in, labels_of, measure, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.formats.read import read
from napari_seg.learning.accept import accept
from napari_seg.learning.training_set import Provenance, read_training_set
from napari_seg.plugin.edit.model import EditModel
from napari_seg.plugin.job import SAVING_WORKER
from napari_seg.plugin.labels_on_scan import UNKNOWN_SCAN, on_scan
from napari_seg.plugin.labels_state import EditAction, Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of
from napari_seg.plugin.learn import accepting
from napari_seg.plugin.learn.accepting import AcceptModel
from napari_seg.plugin.placement import place
from napari_seg.plugin.preferences import Preferences
from napari_seg.plugin.scan_mark import ScanMark
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import NO_SOURCE, Volume


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of scans, the preferences and the worker process of a test."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    chosen = Preferences(reader="Ada", training_set=tmp_path / "set")
    monkeypatch.setattr(accepting, "preferences", lambda: chosen)

    def run_here(work, *args, callbacks=None, on_start=None, is_stopping=None, **options):  # type: ignore[no-untyped-def]
        on_start()
        return InlineProcess().run(work, *args, callbacks=callbacks, **options)

    monkeypatch.setattr(SAVING_WORKER, "run", run_here)


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    """A scan, and the labels of a run on it."""
    viewer = ViewerModel()
    ((data, settings, _),) = image_layers(head)
    viewer.add_layer(Image(data, **settings))
    data, settings, _ = labels_layer(
        found_in(head), place(head.grid), "found", scan=head.source, algorithm=("balls", "1"), is_result=True
    )
    viewer.add_layer(Labels(data, **settings))
    return viewer


@pytest.fixture
def model(viewer: ViewerModel) -> Iterator[AcceptModel]:
    session = Session(viewer)
    structures = StructuresModel(session)
    measure(structures)
    model = AcceptModel(session, structures, SegmentModel(session))
    session.jobs.wait()
    yield model
    session.close()


def accepted(model: AcceptModel) -> str:
    """Accept, wait, and return the messages."""
    model.start()
    model.session.jobs.wait()
    return "\n".join(message.text for message in model.session.messages)


def test_the_set_gets_the_scan_the_labels_and_what_was_changed(
    model: AcceptModel, viewer: ViewerModel, head: Volume, tmp_path: Path
) -> None:
    layer, files = labels_of(viewer), []
    model.accepted.connect(files.append)
    editing = EditModel(model.session, model.structures)
    layer.selected_label = 3
    editing.size_mm = 4.0
    editing.run("dilate")
    model.session.jobs.wait()
    assert editing.preview is not None
    added = editing.preview.added
    editing.apply()
    layer.brush_size = 1
    layer.paint(np.argwhere(layer.data == 1)[0], 0)
    assert state_of(layer).is_unsaved
    assert model.summary == "0 cases"

    text = accepted(model)
    assert text == (
        "Accepted as case0001 for training. The set has 1 case. Looked for and absent: tail. "
        "The layer is not saved by this."
    )
    assert state_of(layer).is_unsaved, "the set has neither its colours nor its file"
    assert model.summary == "1 case"
    assert files == [head.source.files]
    (case,) = read_training_set(tmp_path / "set").cases
    np.testing.assert_array_equal(read(tmp_path / "set" / case.labels).array[0] > 0, found_of(layer) > 0)
    record = case.provenance
    assert (record.reader, record.model) == ("Ada", ("balls", "1"))
    assert record.actions == (
        f"Dilate: nose, {added} voxels added, 0 removed",
        "other steps, such as strokes of the brush: 1",
    )
    assert (record.changes["nose"].added, record.changes["nose"].removed) == (added, 0)
    assert (record.changes["left ball"].added, record.changes["left ball"].removed) == (0, 1)
    assert record.changes["tail"].voxels == record.changes["tail"].voxels_before == 0


def found_of(layer: Labels) -> np.ndarray:
    return LayerInfo.require(layer).placement.restore(layer.data)


def test_a_renamed_structure_is_compared_with_its_own_result(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    model.structures.rename(3, "snout")
    accepted(model)
    (case,) = read_training_set(tmp_path / "set").cases
    change = case.provenance.changes["snout"]
    assert change.voxels == change.voxels_before
    assert (change.added, change.removed) == (0, 0)


def test_actions_before_a_restart_are_not_taken_for_strokes(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    layer = labels_of(viewer)
    state_of(layer).earlier_actions = (EditAction("Smooth", 3, "nose", 1, 2),)
    layer.paint((0, 0, 0), 3)
    accepted(model)
    (case,) = read_training_set(tmp_path / "set").cases
    assert case.provenance.actions == (
        "Smooth: nose, 1 voxels added, 2 removed",
        "other steps, such as strokes of the brush: 1",
    )


def test_labels_of_unknown_origin_have_no_result_to_compare_with(head: Volume, tmp_path: Path) -> None:
    session = Session(viewer := viewer_with_labels(head))
    assert LayerInfo.require(labels_of(viewer)).model_labels is None
    model = AcceptModel(session, StructuresModel(session), SegmentModel(session))
    accepted(model)
    (case,) = read_training_set(tmp_path / "set").cases
    assert {change.added for change in case.provenance.changes.values()} == {None}


def test_a_scan_that_was_accepted_before_is_replaced_after_a_question(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    accepted(model)
    layer = labels_of(viewer)
    first = int((layer.data == 1).sum())
    layer.data[layer.data == 3] = 0
    layer.events.paint(value=[])
    accepted(model)
    assert model.question is not None
    assert "accepted before as case0001 by Ada (2" in model.question.text
    assert model.question.text.endswith("replaces its labels in the set.")
    assert state_of(layer).is_unsaved
    model.keep()
    assert model.question is None
    assert read_training_set(tmp_path / "set").cases[0].revision == 1

    accepted(model)
    model.replace()
    model.session.jobs.wait()
    (case,) = read_training_set(tmp_path / "set").cases
    assert (case.name, case.revision) == ("case0001", 2)
    assert model.session.messages[0].text == (
        "Accepted as case0001 for training, for the second time. The set has 1 case. "
        "Looked for and absent: nose, tail. The layer is not saved by this."
    )
    assert (case.provenance.changes["left ball"].voxels, case.provenance.changes["nose"].voxels) == (first, 0)
    model.check("nose", False)
    accepted(model)
    assert model.question.text.endswith("in the set; those of nose are lost.")


def test_a_missing_name_is_mentioned_once(model: AcceptModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accepting, "preferences", Preferences)
    assert "field for your name" in accepted(model)
    model.check("nose", False)
    accepted(model)
    model.replace()
    model.session.jobs.wait()
    assert [message.text[:8] for message in model.session.messages] == ["Accepted", "Save the"]


def test_labels_moved_to_another_grid_keep_the_result_of_the_model(
    viewer: ViewerModel, head: Volume, model: AcceptModel
) -> None:
    other = replace(head, array=head.array[..., 1:], grid=head.grid.box((0, 0, 1), head.grid.shape))
    ((data, settings, _),) = image_layers(other)
    scan = viewer.add_layer(Image(data, **settings))
    layer = labels_of(viewer)
    before = layer.data.copy()
    layer.paint((0, 0, 0), 3)
    moved = on_scan(Snapshot.of(layer), scan)
    packed = LayerInfo.require(moved).model_labels
    assert packed is not None
    expected = LayerInfo.require(layer).placement.restore(before)[..., 1:]
    np.testing.assert_array_equal(packed.unpack(), expected)


def test_a_question_goes_away_with_its_labels(model: AcceptModel, viewer: ViewerModel) -> None:
    accepted(model)
    assert accepted(model) == "case0001 has the same labels: nothing has changed. The set has 1 case."
    model.check("nose", False)
    accepted(model)
    assert model.question is not None
    viewer.layers.remove(labels_of(viewer))
    assert model.question is None
    assert "Select labels" in model.obstacle


def test_a_question_goes_away_if_labels_or_checks_change(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    accepted(model)
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 3)
    for change in (
        lambda: layer.data_setitem((np.array([0]), np.array([0]), np.array([1])), 3),
        lambda: model.structures.rename(3, "proboscis"),
        lambda: model.check("left ball", False),
    ):
        accepted(model)
        assert model.question is not None
        change()
        if model.question is not None:  # the labels are measured a moment later
            model.replace()
        assert model.question is None
        assert "Accept again" in model.session.messages[0].text
    assert read_training_set(tmp_path / "set").cases[0].revision == 1
    model.start()
    layer.undo()  # while it is compared with the set
    model.session.jobs.wait()
    assert model.question is None


def test_labels_on_other_voxels_are_refused(model: AcceptModel, viewer: ViewerModel, tmp_path: Path) -> None:
    other = phantoms.head()
    other = replace(other, array=other.array[..., :-2], grid=replace(other.grid, shape=other.array[..., :-2].shape[1:]))
    data, settings, _ = labels_layer(found_in(other), place(other.grid), "other", algorithm=None)
    viewer.add_layer(Labels(data, **settings))
    text = accepted(model)
    assert "(accept.grid)" in text
    assert state_of(viewer.layers["other"]).edits == 0
    assert model.obstacle == ""
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_the_scan_is_the_one_of_the_labels_not_the_selected_one(
    model: AcceptModel, viewer: ViewerModel, head: Volume
) -> None:
    first = viewer.layers[0]
    other = replace(head, array=head.array + 1, name="other", source=replace(head.source, files=(Path("other.nii"),)))
    ((data, settings, _),) = image_layers(other)
    viewer.add_layer(Image(data, **settings))
    model.session.choose_scan(viewer.layers[-1])
    viewer.layers.selection.active = labels_of(viewer)
    assert model.session.scan is not first
    assert model.scan is first


def test_the_scan_is_the_volume_of_the_labels_not_another_one_of_the_file(
    model: AcceptModel, viewer: ViewerModel, head: Volume, tmp_path: Path
) -> None:
    scan = phantoms.write_volumes(head, tmp_path / "two.nii")
    viewer.layers.clear()
    volumes = [scan.read(number) for number in (0, 1)]
    for volume in volumes:
        viewer.add_layer(layer_of(image_layers(volume)[0]))
    layer = layer_of(labels_layer(found_in(head), place(head.grid), "found", scan=volumes[0].source))
    viewer.add_layer(layer)
    model.session.choose_scan(viewer.layers[1])
    viewer.layers.selection.active = layer
    assert model.scan is viewer.layers[0]
    viewer.layers.remove(viewer.layers[0])
    assert model.obstacle == "Open the scan of these labels."


def test_restored_labels_are_not_accepted_on_another_scan(model: AcceptModel, viewer: ViewerModel) -> None:
    layer = labels_of(viewer)
    replace(LayerInfo.require(layer), scan=NO_SOURCE, scan_mark=ScanMark("ab", ("cd",))).attach(layer)
    assert model.scan is None
    assert model.obstacle == UNKNOWN_SCAN
    model.structures.give_scan()  # it is the right one, but its file was changed
    assert model.obstacle == ""
    assert model.scan is viewer.layers[0]


def test_structures_that_were_not_checked_are_declared(model: AcceptModel, viewer: ViewerModel, tmp_path: Path) -> None:
    model.check("tail", False)
    model.check("nose", False)
    assert [is_checked for _, is_checked in model.rows] == [True, False, False]
    layer = labels_of(viewer)
    layer.paint((0, 0, 0), 3)
    text = accepted(model)
    content = read_training_set(tmp_path / "set")
    assert content.cases[0].annotated == ("left ball",)
    assert state_of(layer).is_unsaved  # the set does not hold all corrections
    assert "Save the labels too: the set holds only the structures that were checked." in text
    model.check("left ball", False)
    assert "at least one structure" in model.obstacle
    model.check("left ball", True)
    assert model.obstacle == ""


def test_a_result_that_was_wrong_altogether_is_accepted_as_empty(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    layer = labels_of(viewer)
    layer.data[:] = 0
    layer.events.paint(value=[])
    assert "Accepted as case0001" in accepted(model)
    (case,) = read_training_set(tmp_path / "set").cases
    assert case.annotated == ("left ball", "nose", "tail")
    assert case.provenance.changes["nose"].removed == case.provenance.changes["nose"].voxels_before


def test_a_structure_that_was_only_named_is_not_accepted_as_absent(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    label = model.structures.add("spleen")
    measure(model.structures)
    assert [row.name for row, is_checked in model.rows if not is_checked] == ["spleen"]
    assert "Without voxels, so nothing is learned about it here: spleen." in accepted(model)
    (case,) = read_training_set(tmp_path / "set").cases
    assert case.annotated == ("left ball", "nose", "tail"), "the model looks for a tail"
    # a person looked for it
    model.check("spleen", True)
    accepted(model)
    model.replace()
    model.session.jobs.wait()
    assert "Looked for and absent: spleen, tail." in model.session.messages[0].text
    assert "spleen" in read_training_set(tmp_path / "set").cases[0].annotated
    # painted, and not measured yet
    model.forget_checks()
    layer = labels_of(viewer)
    layer.data[0, 0, 0] = label
    layer.events.paint(value=[])
    accepted(model)
    model.replace()
    model.session.jobs.wait()
    (case,) = read_training_set(tmp_path / "set").cases
    assert case.provenance.changes["spleen"].voxels == 1


def test_labels_of_a_person_hold_what_was_painted(head: Volume, tmp_path: Path) -> None:
    session = Session(viewer := viewer_with_labels(head))
    structures = StructuresModel(session)
    model = AcceptModel(session, structures, SegmentModel(session))
    assert labels_of(viewer) is model.labels
    accepted(model)
    assert read_training_set(tmp_path / "set").cases[0].annotated == ("left ball", "nose")


def test_a_patient_in_both_parts_is_declared(model: AcceptModel, head: Volume, tmp_path: Path) -> None:
    other = replace(head, array=head.array + 1)
    accept(found_in(other), other, tmp_path / "set", Provenance(), patient="sub-07")
    third = replace(head, array=head.array + 2)
    accept(found_in(third), third, tmp_path / "set", Provenance(), patient="sub-08")
    scan = model.scan
    info = LayerInfo.require(scan)
    source = replace(head.source, files=(phantoms.write_nifti(third, tmp_path / "sub-07_T1w.nii.gz"),))
    replace(info, volume=replace(info.volume, array=third.array, source=source)).attach(scan)
    accepted(model)
    model.replace()
    model.session.jobs.wait()
    text = "\n".join(message.text for message in model.session.messages)
    assert "case0002 is now for training: scans of its patient are trained on." in text


def test_scans_of_one_patient_are_mentioned(
    model: AcceptModel, viewer: ViewerModel, head: Volume, tmp_path: Path
) -> None:
    source = replace(head.source, files=(phantoms.write_nifti(head, tmp_path / "sub-01_T1w.nii.gz"),))
    for more in (1, 2):
        viewer.layers.clear()
        volume = replace(head, array=head.array + more, source=source)
        ((data, settings, _),) = image_layers(volume)
        viewer.add_layer(Image(data, **settings))
        data, settings, _ = labels_layer(found_in(volume), place(head.grid), "found", scan=source)
        viewer.add_layer(Labels(data, **settings))
        text = accepted(model)
    assert "The scan states the same patient as 1 other case." in text


def test_a_structure_without_a_name_is_refused_until_it_is_unchecked(
    model: AcceptModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    layer = labels_of(viewer)
    layer.data[0, 0, 0] = 9
    layer.events.paint(value=[])
    assert "found label 9 without a name" in accepted(model)  # also before it is measured
    measure(model.structures)
    assert "(accept.unnamed)" in accepted(model)
    assert not (tmp_path / "set").exists()
    model.check("label 9", False)
    assert "Accepted as case0001" in accepted(model)
    assert "label 9" not in read_training_set(tmp_path / "set").structures


def test_another_folder_is_remembered_and_a_strange_one_explained(
    model: AcceptModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: list[Path] = []
    monkeypatch.setattr(accepting, "remember_training_set", remembered.append)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    model.choose_folder(strange)
    model.session.jobs.wait()
    assert remembered == [strange]
    assert "(accept.not_a_set)" in model.summary
    assert "(accept.not_a_set)" in accepted(model)
    assert [path.name for path in strange.iterdir()] == ["notes.txt"]
    model.choose_folder(tmp_path / "set")
    model.session.jobs.wait()
    assert model.summary == "0 cases"


def test_the_channels_of_a_model_are_accepted_together(
    model: AcceptModel, viewer: ViewerModel, head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((data, settings, _),) = image_layers(replace(head, array=head.array + 1, name="second"))
    viewer.add_layer(Image(data, **settings))
    viewer.layers.selection.active = labels_of(viewer)
    scan = model.scan
    assert scan is not None
    second = next(layer for layer in model.session.scans if layer is not scan)
    monkeypatch.setattr(SegmentModel, "channels", {"T1": scan, "T2": second})
    model.segmenting.bundle = SimpleNamespace(name="balls")  # type: ignore[assignment]
    assert "Accepted" in accepted(model)
    assert read_training_set(tmp_path / "set").channel_count == 2
