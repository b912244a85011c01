"""What the Study and the Batch tab do, on a viewer model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel

import napari_seg.inference
from napari_seg.bundle import read_bundle
from napari_seg.errors import InputError, LocaliseError
from napari_seg.plugin.batch import BatchModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.study import Entry, StudyModel
from napari_seg.volume import Segment, Segmentation, Volume


@pytest.fixture
def study(head: Volume, tmp_path: Path) -> Path:
    """A series, a NIfTI file, a broken one, a note, and what an earlier run left."""
    root = tmp_path / "study"
    phantoms.write_series(head, root / "series")
    phantoms.write_nifti(head, root / "copy.nii.gz")
    (root / "broken.nii.gz").write_text("no scan")
    (root / "notes.txt").write_text("as it was")
    phantoms.write_nifti(head, root / "copy_seg.nii.gz")
    (root / "copy_seg.json").write_text('{"program": "napari-seg 0.1.0"}')
    return root


def looked(model: StudyModel, path: Path) -> dict[str, Entry]:
    for entry in model.begin(path):
        model.add(entry)
    model.end()
    return {entry.verdict.name: entry for entry in model.entries}


def test_a_study_is_a_tree_with_a_verdict_for_each(study: Path) -> None:
    model = StudyModel(Session(ViewerModel()))
    found = looked(model, study)
    assert "copy_seg" not in found  # a result is no scan
    copy = found["copy"]
    assert (copy.words, copy.size, copy.spacing, copy.folder) == ("ready", "20 × 26 × 14", "1.5 × 1.25 × 2.5", ".")
    assert copy.can_open
    broken = found["broken"]
    assert not broken.can_open
    assert broken.words.startswith("can't be used: ")
    assert found["notes.txt"].words.startswith("no scan")
    (series,) = [entry for entry in model.entries if entry.folder == "series"]
    assert series.can_open
    assert "3 scans, 2 can be opened" in model.session.messages[0].text


def test_a_series_is_opened_beside_the_first_scan(study: Path) -> None:
    viewer = ViewerModel()
    model = StudyModel(Session(viewer))
    found = looked(model, study)
    for entry in (found["copy"], next(entry for entry in model.entries if entry.folder == "series")):
        model.show(model.read(entry, model.frame()))
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
    found = looked(model, tmp_path)
    for name in ("whole", "part"):
        model.show(model.read(found[name], model.frame()))
    whole, cut = viewer.layers
    brightest = [np.unravel_index(np.argmax(layer.data), layer.data.shape) for layer in (whole, cut)]
    places = [layer.data_to_world(index) for layer, index in zip((whole, cut), brightest, strict=True)]
    np.testing.assert_allclose(*places, atol=1e-3)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    model = StudyModel(Session(ViewerModel()))
    with pytest.raises(InputError) as caught:
        looked(model, tmp_path / "gone")
    model.end(caught.value)
    assert "input.missing" in model.session.messages[0].text
    (tmp_path / "notes.txt").write_text("nothing")
    looked(model, tmp_path)
    assert "There is no scan" in model.session.messages[0].text


@pytest.mark.usefixtures("in_process")
def test_a_batch_fills_its_table_and_one_bad_scan_stops_nothing(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bright(volume: Volume, bundle: Any, *, progress: Any = None, **_: Any) -> Segmentation:
        progress("segmenting", 1, 2)
        if volume.modality:  # the series
            raise LocaliseError("localise.failed", "no head")
        labels = (volume.array[0] > 800).astype(np.uint8)
        return Segmentation(labels, volume.grid, (Segment(1, "ball", (1, 2, 3)),), {1: 0.9})

    monkeypatch.setattr(napari_seg.inference, "segment", bright)
    model = BatchModel(Session(ViewerModel()))
    bundle = read_bundle()
    assert "folder" in model.obstacle(bundle)
    model.choose_inputs(study)
    assert model.output == study.with_name("study_segmented")
    assert model.obstacle(bundle) == ""
    assert "model" in model.obstacle(None)
    run = model.start(bundle, "cpu", None)
    assert "under way" in model.obstacle(bundle)
    run.execute()
    model.look()
    states = {row.name: row for row in model.rows}
    assert states["copy"].state == "done"
    assert states["copy"].text.startswith("ball ")
    assert states["broken"].state == "failed"
    assert sorted(row.state for row in model.rows) == ["done", "failed", "failed"]
    model.finish()
    assert model.run is None
    assert "1 done, 2 failed" in model.session.messages[0].text
    assert (study.with_name("study_segmented") / "copy_seg.nii.gz").is_file()


@pytest.mark.usefixtures("in_process")
def test_a_batch_that_is_stopped_keeps_what_is_done(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BatchModel(Session(ViewerModel()))

    def stopped(volume: Volume, bundle: Any, *, progress: Any = None, **_: Any) -> Segmentation:
        model.stop()
        progress("segmenting", 1, 2)
        raise AssertionError("it must not get here")

    monkeypatch.setattr(napari_seg.inference, "segment", stopped)
    model.choose_inputs(study)
    run = model.start(read_bundle(), "cpu", None)
    run.execute()
    model.finish()
    assert {row.state for row in model.rows} == {"failed", "stopped"}
    assert "not begun or stopped" in model.session.messages[0].text
