"""The model of the Study tab, on a viewer model."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import phantoms
import PIL.Image
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in
from napari.components import ViewerModel

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.verdict import verdict_of
from napari_seg.geometry import Grid
from napari_seg.plugin.layer_info import frame_of, placement_of
from napari_seg.plugin.layers import holds, image_layers, labels_layer, layer_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.entries import Entry, find_entries
from napari_seg.plugin.study.model import StudyModel
from napari_seg.volume import Volume


def listed(model: StudyModel, path: Path) -> dict[str, Entry]:
    model.list_path(path)
    assert model.is_listing
    model.session.jobs.wait()
    assert not model.is_listing
    return {entry.verdict.name: entry for entry in model.entries}


def test_a_study_is_a_tree_with_a_verdict_for_each(study: Path) -> None:
    model = StudyModel(Session(ViewerModel()))
    found = listed(model, study)
    result = found.pop("copy_seg.nii.gz")
    assert (result.title, result.words) == ("segmentation of copy", "labels")  # a result is no scan
    copy = found["copy"]
    assert (copy.words, copy.size, copy.spacing, copy.folder) == ("ready", "20 × 26 × 14", "1.5 × 1.25 × 2.5", ".")
    assert copy.can_open
    broken = found["broken"]
    assert not broken.can_open
    assert broken.words.startswith("can't be used: ")
    assert found["notes.txt"].words.startswith("no scan")
    (series,) = [entry for entry in model.entries if entry.folder == "series"]
    assert series.can_open
    assert "3 scans, 2 can be opened; 1 segmentation." in model.session.messages[0].text


def test_a_series_is_opened_beside_the_first_scan(study: Path) -> None:
    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    found = listed(model, study)
    for entry in (found["copy"], next(entry for entry in model.entries if entry.folder == "series")):
        model.show(model.read(entry, entry.read_options(0), model.frame()))
    first, second = viewer.layers
    np.testing.assert_allclose(first.translate, second.translate, atol=1e-3)
    assert model.session.scan is second


def test_two_fields_of_view_of_one_patient_agree(head: Volume, tmp_path: Path) -> None:
    part = head.grid.box((3, 5, 2), (17, 20, 12))
    crop = Volume(head.array[:, 3:17, 5:20, 2:12], part, name="part")
    phantoms.write_nifti(head, tmp_path / "whole.nii.gz")
    phantoms.write_nifti(crop, tmp_path / "part.nii.gz")
    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    found = listed(model, tmp_path)
    for name in ("whole", "part"):
        model.show(model.read(found[name], found[name].read_options(0), model.frame()))
    whole, cut = viewer.layers
    brightest = [np.unravel_index(np.argmax(layer.data), layer.data.shape) for layer in (whole, cut)]
    places = [layer.data_to_world(index) for layer, index in zip((whole, cut), brightest, strict=True)]
    np.testing.assert_allclose(*places, atol=1e-3)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    model = StudyModel(Session(ViewerModel()))
    with pytest.raises(InputError):
        list(find_entries(tmp_path / "gone"))
    listed(model, tmp_path / "gone")
    assert "input.missing" in model.session.messages[0].text
    (tmp_path / "notes.txt").write_text("nothing")
    listed(model, tmp_path)
    assert "There is no scan" in model.session.messages[0].text


def test_one_of_several_volumes_is_chosen(head: Volume, tmp_path: Path) -> None:
    several = np.stack([head.array[0] + 100 * n for n in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(several, head.grid.affine), tmp_path / "times.nii.gz")
    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    entry = listed(model, tmp_path)["times"]
    assert (entry.can_open, entry.volumes, entry.words) == (True, 3, "3 volumes: choose one below")
    assert entry.short == "3 volumes"
    assert entry.details.splitlines()[0] == "times"
    assert "--volume" not in entry.details
    model.show(model.read(entry, entry.read_options(2), model.frame()))
    (layer,) = viewer.layers
    assert layer.name == "times, volume 2"
    np.testing.assert_array_equal(np.sort(layer.data, axis=None), np.sort(several[..., 2], axis=None))


def test_single_slices_and_pages_of_an_image_are_opened(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(48, dtype=np.int16).reshape(6, 8, 1), np.diag([2, 2, 5, 1]))
    nib.save(image, tmp_path / "a.nii")
    pages = [PIL.Image.fromarray(np.full((8, 6), 50 * n + 5, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    found = listed(model, tmp_path / "a.nii")["a"]
    assert (found.words, found.size) == ("ready", "6 × 8 × 1")
    model.open(found)
    model.session.jobs.wait()
    found = listed(model, tmp_path / "b.tif")["b"]
    assert (found.volumes, found.can_open) == (3, True)
    model.open(found, 2)
    model.session.jobs.wait()
    one_slice, page = viewer.layers
    assert sorted(np.ravel(one_slice.data)) == list(range(48))
    assert np.unique(page.data).tolist() == [105]


def test_a_volume_of_a_tilted_series_is_straightened_after_it_was_chosen(study: Path) -> None:
    def tilted(volume: int | None = None, *, resample_tilt: bool = False, one_slice: bool = False) -> Volume:
        if volume is None:
            raise ChoiceNeeded("series.4d", "two volumes", "volume", 2)
        if not resample_tilt:
            raise ChoiceNeeded("geometry.shear", "leans", "resample_tilt")
        return phantoms.head()

    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    listed(model, study)
    scan = SimpleNamespace(name="leaning", source="leaning", files=("one",), read=tilted)
    verdict = verdict_of(scan)  # type: ignore[arg-type]
    model.add(Entry(verdict, scan, ".", verdict.choices))  # type: ignore[arg-type]
    first = model.entries[-1]
    assert (first.volumes, first.is_tilted) == (2, False)
    with pytest.raises(ChoiceNeeded) as caught:
        model.read(first, first.read_options(1), None)
    model.fail(first, pickle.loads(pickle.dumps(caught.value)))
    second = model.entries[-1]
    assert (second.volumes, second.is_tilted, second.can_open) == (2, True, True)
    assert "straightened" in model.session.messages[0].text
    for number in (1, 0):
        model.show(model.read(second, second.read_options(number), None))
    assert [layer.name for layer in viewer.layers] == ["head, volume 1", "head, volume 0"]


def test_what_can_not_be_straightened_after_all_is_refused(study: Path) -> None:
    def torn(volume: int | None = None, *, resample_tilt: bool = False, one_slice: bool = False) -> Volume:
        if resample_tilt:
            raise InputError("file.truncated", "cut short")
        raise ChoiceNeeded("geometry.shear", "leans", "resample_tilt")

    model = StudyModel(Session(ViewerModel()))
    listed(model, study)
    scan = SimpleNamespace(name="leaning", source="leaning", files=("one",), read=torn)
    model.add(Entry(verdict_of(scan), scan, ".", is_tilted=True))  # type: ignore[arg-type]
    entry = model.entries[-1]
    with pytest.raises(InputError) as caught:
        model.read(entry, entry.read_options(0), None)
    model.fail(entry, caught.value)
    assert not model.entries[-1].can_open
    assert model.entries[-1].words == "can't be used: cut short"


def test_a_scan_that_lies_elsewhere_is_gone_to(head: Volume, tmp_path: Path) -> None:
    far = head.grid.affine.copy()
    far[:3, 3] += 500
    phantoms.write_nifti(head, tmp_path / "near.nii.gz")
    phantoms.write_nifti(replace(head, grid=Grid(head.grid.shape, far)), tmp_path / "far.nii.gz")
    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    found = listed(model, tmp_path)
    for name in ("near", "far", "near"):
        model.show(model.read(found[name], found[name].read_options(0), model.frame()))
        assert holds(viewer.layers[-1], viewer.dims.point), name
    viewer.add_image(np.zeros((2, 3, 4, 5)))  # time before space
    model.show(model.read(found["far"], found["far"].read_options(0), model.frame()))
    assert holds(viewer.layers[-1], viewer.dims.point[-3:])


def test_labels_are_read_again_in_the_frame_that_another_scan_has_set(head: Volume) -> None:
    viewer = ViewerModel()
    model = StudyModel(session := Session(viewer))
    upright = replace(head, grid=Grid(head.grid.shape, np.diag([1.5, 1.25, 2.5, 1])))

    def read(frame: np.ndarray | None) -> tuple[list, tuple]:
        images = [layer_of(one) for one in image_layers(head, frame)]
        labels = labels_layer(found_in(head), place(head.grid, frame_of(images)), "found")
        return [*images, layer_of(labels)], ()

    model.load(read)
    viewer.add_layer(layer_of(image_layers(upright)[0]))  # meanwhile
    session.jobs.wait()
    assert not model.is_loading
    first, *others = viewer.layers
    assert len(others) == 2
    for layer in others:
        np.testing.assert_allclose(placement_of(layer).frame, placement_of(first).frame)
        np.testing.assert_allclose(layer.translate, placement_of(layer).translate)


def test_session_files_are_listed_and_opened(head: Volume, tmp_path: Path) -> None:
    viewer = ViewerModel()
    model = StudyModel(session := Session(viewer))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.napari-seg").write_bytes(b"PK\3\4")
    model.list_path(tmp_path)
    session.jobs.wait()
    (entry,) = model.entries
    assert entry.can_open
    assert (entry.title, entry.folder, entry.short) == ("mine.napari-seg", "below", "session")
    assert "1 session" in session.messages[0].text
    chosen: list[Path] = []
    model.session_chosen.connect(chosen.append)
    model.open(entry)
    assert chosen == [tmp_path / "below" / "mine.napari-seg"]
