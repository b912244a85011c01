"""The model of the Batch tab, on a viewer model."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.bundles.read import read_bundle
from napari_seg.errors import LocaliseError, NapariSegError
from napari_seg.inference.options import SegmentOptions
from napari_seg.plugin.batch.model import BatchModel
from napari_seg.plugin.layer_info import LayerInfo, volume_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.model import StudyModel
from napari_seg.volume import Segment, Segmentation, Volume


@pytest.mark.usefixtures("in_process")
def test_a_batch_fills_its_table_and_one_bad_scan_stops_nothing(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bright(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
        progress("segmenting", 1, 2)
        if volume.modality:  # the series
            raise LocaliseError("localise.failed", "no head")
        labels = (volume.array[0] > 800).astype(np.uint8)
        return Segmentation(labels, volume.grid, (Segment(1, "ball", (1, 2, 3)),), {1: 0.9})

    monkeypatch.setattr("napari_seg.inference.segment.segment", bright)
    model = BatchModel(Session(viewer := ViewerModel()))
    bundle = read_bundle()
    assert "folder" in model.obstacle(bundle)
    model.choose_inputs(study)
    assert model.output == study.with_name("study_segmented")
    assert model.obstacle(bundle) == ""
    assert "model" in model.obstacle(None)
    model.start(bundle, SegmentOptions(device="cpu"))
    assert "running" in model.obstacle(bundle)
    model.session.jobs.wait()
    states = {row.name: row for row in model.rows}
    assert states["copy"].state == "done"
    assert states["copy"].text.startswith("ball ")
    assert states["broken"].state == "failed"
    assert sorted(row.state for row in model.rows) == ["done", "failed", "failed"]
    assert model.job is None
    assert "1 done, 2 failed" in model.session.messages[0].text
    assert (study.with_name("study_segmented") / "copy_seg.nii.gz").is_file()

    shown = StudyModel(model.session)
    done, failed = (next(row for row in model.rows if row.state == state and row.scan) for state in ("done", "failed"))
    shown.show(model.read(done, shown.scans(), shown.frame()))
    image, labels = viewer.layers
    assert labels.name == "copy_seg"
    assert [segment.name for segment in LayerInfo.require(labels).segments] == ["ball"]
    np.testing.assert_array_equal(labels.data > 0, image.data > 800)
    shown.show(model.read(done, shown.scans(), shown.frame()))  # the scan is open already
    assert [type(layer) for layer in viewer.layers] == [Image, Labels, Labels]
    with pytest.raises(NapariSegError):
        model.read(next(row for row in model.rows if row.name == "broken"), (), None)
    assert failed.result is not None
    series = next(row for row in model.rows if row.scan and len(row.scan.files) > 1)
    assert series.scan is not None
    volume = series.scan.read()
    backwards = replace(volume, source=replace(volume.source, files=volume.source.files[::-1]))
    assert model.read(series, [backwards], None) == ([], ())  # open already, with its files in another order

    model.write_table(study.parent / "all.csv")
    with (study.parent / "all.csv").open(encoding="utf-8", newline="") as file:
        table = {line["scan"]: line for line in csv.DictReader(file)}
    assert set(table) == set(states)
    ml = (image.data > 800).sum() * volume_of(image).grid.voxel_ml  # type: ignore[union-attr]
    assert float(table["copy"]["ball (ml)"]) == pytest.approx(ml, abs=1e-3)
    assert table["broken"]["state"] == "failed"
    assert table["broken"]["code"].startswith("file.")
    assert table["broken"]["ball (ml)"] == ""


@pytest.mark.usefixtures("in_process")
def test_a_batch_that_is_stopped_keeps_what_is_done(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BatchModel(Session(ViewerModel()))

    def stopped(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
        model.stop()
        labels = (volume.array[0] > 800).astype(np.uint8)
        return Segmentation(labels, volume.grid, (Segment(1, "ball", (1, 2, 3)),))

    monkeypatch.setattr("napari_seg.inference.segment.segment", stopped)
    model.choose_inputs(study)
    model.start(read_bundle(), SegmentOptions(device="cpu"))
    model.session.jobs.wait()
    assert {row.state for row in model.rows} == {"failed", "stopped"}
    assert "not started or stopped" in model.session.messages[0].text
