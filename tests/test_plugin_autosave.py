"""Copies of unsaved labels: written, restored, and removed."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import end, found_in, labels_of, measure, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Labels

from napari_seg.errors import NapariSegError
from napari_seg.formats.read import read
from napari_seg.plugin import autosave as module
from napari_seg.plugin import kept_data
from napari_seg.plugin.autosave import Autosave, Unsaved
from napari_seg.plugin.labels_state import EditAction, Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of
from napari_seg.plugin.packed_labels import PackedLabels
from napari_seg.plugin.placement import place
from napari_seg.plugin.scan_mark import digest_of_ends
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.volume import Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    return viewer_with_labels(head)


@pytest.fixture
def model(viewer: ViewerModel) -> StructuresModel:
    model = StructuresModel(Session(viewer))
    measure(model)
    return model


def test_copies_are_restored_after_a_crash(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    autosave = Autosave(tmp_path)
    assert autosave.due([layer]) == []  # nobody edited it
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    due = autosave.due([layer])
    autosave.write_copies(due)
    assert os.stat(autosave.folder).st_mode & 0o077 == 0
    assert Autosave(tmp_path).left_behind() == []  # this program still runs
    end(autosave)  # as one that is no more
    (left,) = Autosave(tmp_path).left_behind()
    assert left.names == ("found",)
    (back,) = left.read(None)
    assert back.name == "found (restored)"
    np.testing.assert_array_equal(back.data, layer.data)
    assert LayerInfo.require(back).segments[0].name == "left ball"
    assert len(autosave.due([back])) == 1  # it is not saved yet
    left.discard()
    assert Autosave(tmp_path).left_behind() == []


@pytest.mark.parametrize("can_lock", [True, False])
def test_a_program_that_runs_is_known_by_its_lock_or_by_its_folder(
    viewer: ViewerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_lock: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError

    if not can_lock:
        monkeypatch.setattr(module.FileLock, "acquire", fail)
    layer, autosave = labels_of(viewer), Autosave(tmp_path)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    autosave.write_copies(autosave.due([layer]))
    assert Autosave(tmp_path).left_behind() == []
    monkeypatch.setattr(platform, "node", lambda: "dhcp-10-3.hospital.org")  # as a Mac in another network
    assert Autosave(tmp_path).left_behind() == []
    if can_lock:
        end(autosave)
        assert len(Autosave(tmp_path).left_behind()) == 1
        assert len(Autosave(tmp_path).left_behind()) == 1
    else:  # the home folder may be shared
        os.utime(autosave.folder, (0, 0))
        assert len(Autosave(tmp_path).left_behind()) == 1
    autosave.remove_copies()
    assert list(tmp_path.iterdir()) == []


def test_restored_labels_belong_to_the_scan_that_they_were_made_on(tmp_path: Path) -> None:
    """Two scans on one grid, as T1 and T2 of a study, with equal headers and zeros at both ends of their files."""
    array = np.zeros((1, 64, 64, 40), np.int16)
    array[..., 15:30] = 1
    head = Volume(array, phantoms.oblique_grid((64, 64, 40)))
    t1, t2, moved = (tmp_path / name for name in ("t1.nii", "t2.nii", "copy.nii"))
    phantoms.write_nifti(head, t1)
    phantoms.write_nifti(replace(head, array=2 * array), t2)
    assert digest_of_ends(t1, "ab") == digest_of_ends(t2, "ab")
    layer = layer_of(labels_layer(found_in(head), place(head.grid), "lesion", scan=read(t2).source))
    assert isinstance(layer, Labels)
    state_of(layer).count_edit()
    autosave = Autosave(tmp_path / "unsaved")
    autosave.write_copies(autosave.due([layer]))
    for file in autosave.folder.iterdir():
        assert b"t2" not in file.read_bytes()

    def restored_next_to(*paths: Path) -> LayerInfo:
        (back,) = Unsaved(autosave.folder, ("lesion",), 0).read(None)
        viewer = ViewerModel()
        _session = Session(viewer)
        viewer.add_layer(back)
        for path in paths:
            viewer.add_layer(layer_of(image_layers(read(path))[0]))
        return LayerInfo.require(back)

    assert restored_next_to(t1, t2).scan.files == (t2,)
    assert restored_next_to(t1).scan.files == ()
    t2.rename(moved)
    info = restored_next_to(t1, moved)
    assert info.scan.files == (moved,)
    assert info.scan_mark is None


def test_restored_labels_belong_to_the_volume_of_a_file_that_they_were_made_on(head: Volume, tmp_path: Path) -> None:
    scan = phantoms.write_volumes(head, tmp_path / "two.nii")
    volumes = [scan.read(number) for number in (0, 1)]
    autosave, viewer = Autosave(tmp_path / "unsaved"), ViewerModel()
    layer = layer_of(labels_layer(found_in(head), place(head.grid), "lesion", scan=volumes[1].source))
    assert isinstance(layer, Labels)
    state_of(layer).count_edit()
    autosave.write_copies(autosave.due([layer]))
    (back,) = Unsaved(autosave.folder, ("lesion",), 0).read(None)
    _session = Session(viewer)
    viewer.add_layer(back)
    viewer.add_layer(layer_of(image_layers(volumes[0])[0]))
    assert LayerInfo.require(back).scan.files == ()
    viewer.add_layer(layer_of(image_layers(volumes[1])[0]))
    assert LayerInfo.require(back).scan == volumes[1].source


def test_a_scan_that_is_away_for_a_moment_is_known_to_later_copies(head: Volume, tmp_path: Path) -> None:
    path = phantoms.write_nifti(head, tmp_path / "scan.nii")
    layer = layer_of(labels_layer(found_in(head), place(head.grid), "lesion", scan=read(path).source))
    assert isinstance(layer, Labels)
    autosave = Autosave(tmp_path / "unsaved")
    for is_away in (True, False):
        if is_away:
            path.rename(tmp_path / "away")
        state_of(layer).count_edit()
        autosave.write_copies(autosave.due([layer]))
        if is_away:
            (tmp_path / "away").rename(path)
        (back,) = Unsaved(autosave.folder, ("lesion",), 0).read(None)
        viewer = ViewerModel()
        _session = Session(viewer)
        viewer.add_layer(back)
        viewer.add_layer(layer_of(image_layers(read(path))[0]))
        assert (LayerInfo.require(back).scan.files == ()) is is_away


def test_copies_remain_until_the_last_edit_is_saved(
    model: StructuresModel, viewer: ViewerModel, tmp_path: Path
) -> None:
    layer = labels_of(viewer)
    autosave = Autosave(tmp_path)
    model.rename(3, "proboscis")
    (due,) = autosave.due([layer])
    autosave.write_copies([due])
    assert autosave.due([layer]) == []  # it lies there already
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    saved = Snapshot.of(layer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([1])), 4)  # while it is saved
    table = state_of(layer)
    table.saved = saved.edits
    assert table.is_unsaved
    (due,) = autosave.due([layer])
    autosave.write_copies([due])
    assert len(list(autosave.folder.glob("*.nii.gz"))) == 1  # in place of the copy before
    table.saved = Snapshot.of(layer).edits
    assert autosave.due([layer]) == []
    layer.undo()
    assert len(autosave.due([layer])) == 1


def test_a_disk_that_takes_no_copies_is_an_error(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    (tmp_path / "file").touch()
    with pytest.raises(NapariSegError, match="cannot write copies") as caught:
        Autosave(tmp_path / "file").write_copies([Snapshot.of(layer)])
    assert caught.value.code == "output.not_written"


def test_a_layer_that_cannot_be_copied_leaves_the_others(
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
        autosave.write_copies([bad, Snapshot.of(second)])
    assert len(list(autosave.folder.glob("*.nii.gz"))) == 1
    autosave.write_copies([good, Snapshot.of(second)])
    kept = set(autosave.folder.glob("*.nii.gz"))
    with pytest.raises(NapariSegError, match="whole"):
        autosave.write_copies([bad, Snapshot.of(second)])
    after = set(autosave.folder.glob("*.nii.gz"))
    assert len(after) == 2
    assert len(kept & after) == 1  # the copy before, of the layer that could not be kept
    assert len(autosave.due([layer, second])) == 2  # it is tried again


def test_prompts_and_actions_are_copied_and_restored(viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    layer.selected_label = 3
    autosave = Autosave(tmp_path)
    prompts = {"label": 3, "positive": [[1, 2, 3]], "negative": [], "box": None}
    kept_data.keep(layer, "prompts", prompts)
    (due,) = autosave.due([layer])  # there is no edit yet
    autosave.write_copies([due])
    assert autosave.due([layer]) == []
    action = EditAction("Smooth", 3, "nose", 5, 6)
    state_of(layer).earlier_actions = (action,)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    autosave.write_copies(autosave.due([layer]))
    kept_data.keep(layer, "prompts", {**prompts, "negative": [[4, 5, 6]]})
    autosave.write_copies(autosave.due([layer]))
    end(autosave)
    (left,) = Autosave(tmp_path).left_behind()
    (back,) = left.read(None)
    assert isinstance(back, Labels)
    assert kept_data.kept(back) == {"prompts": {**prompts, "negative": [[4, 5, 6]]}}
    assert state_of(back).actions == [action]
    assert back.selected_label == 3
    assert len(autosave.due([back])) == 1


def test_what_a_model_had_found_is_copied_once_and_restored(viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    made = PackedLabels.of(np.arange(layer.data.size, dtype=np.uint16).reshape(layer.data.shape) % 4)
    info = replace(LayerInfo.require(layer), looked_for=frozenset({1, 4}), model_labels=made, model_confidence=made)
    info.attach(layer)
    autosave = Autosave(tmp_path)
    for label in (4, 3):
        layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), label)
        autosave.write_copies(autosave.due([layer]))
    assert len(list(autosave.folder.glob("*.packed"))) == 1
    end(autosave)
    (left,) = Autosave(tmp_path).left_behind()
    (back,) = left.read(None)
    known = LayerInfo.require(back)
    assert known.looked_for == {1, 4}
    assert known.model_labels == known.model_confidence == made
    np.testing.assert_array_equal(known.model_labels.unpack(), made.unpack())
    next(left.folder.glob("*.packed")).unlink()
    (back,) = left.read(None)
    assert LayerInfo.require(back).model_labels is None


def test_copies_of_earlier_versions_are_restored(model: StructuresModel, viewer: ViewerModel, tmp_path: Path) -> None:
    layer = labels_of(viewer)
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 4)
    autosave = Autosave(tmp_path)
    autosave.write_copies(autosave.due([layer]))
    info = autosave.folder / "unsaved.json"
    known = json.loads(info.read_text())
    del known["work"]
    info.write_text(json.dumps(known))
    end(autosave)
    (left,) = Autosave(tmp_path).left_behind()
    (back,) = left.read(None)
    np.testing.assert_array_equal(back.data, layer.data)
    assert kept_data.kept(back) == {}
