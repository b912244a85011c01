"""The model of the Batch tab, on a viewer model."""

from __future__ import annotations

import csv
import socket
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import phantoms
import pytest
from cohorts import START, add_done, add_failed, new_manifest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.manifest import FILE
from napari_seg.cohort.outcome import CaseResult
from napari_seg.cohort.settings import RunSettings
from napari_seg.errors import LocaliseError, NapariSegError, Notice
from napari_seg.formats.nifti import write_nifti
from napari_seg.inference.options import SegmentOptions
from napari_seg.plugin.batch.model import BatchModel
from napari_seg.plugin.batch.run import BatchChoices, BatchRun
from napari_seg.plugin.job import Job, JobProgress
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
    assert model.run is None
    assert "1 done, 2 failed" in model.session.messages[0].text
    assert (study.with_name("study_segmented") / "copy_seg.nii.gz").is_file()

    shown = StudyModel(model.session)
    done = next(row for row in model.rows if row.state == "done")
    shown.show(model.read(done, shown.scans(), shown.frame()))
    image, labels = viewer.layers
    assert labels.name == "copy_seg"
    assert [segment.name for segment in LayerInfo.require(labels).segments] == ["ball"]
    np.testing.assert_array_equal(labels.data > 0, image.data > 800)
    shown.show(model.read(done, shown.scans(), shown.frame()))  # the scan is open already
    assert [type(layer) for layer in viewer.layers] == [Image, Labels, Labels]
    with pytest.raises(NapariSegError):
        model.read(next(row for row in model.rows if row.name == "broken"), (), None)
    series = next(row for row in model.rows if row.state == "failed" and row.name != "broken")
    assert model.run is None
    assert model._cases is not None
    volume = next(case for case in model._cases if case.key == series.name).scan.read()
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


def bright(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
    """Stands for a network."""
    labels = (volume.array[0] > 800).astype(np.uint8)
    return Segmentation(labels, volume.grid, (Segment(1, "ball", (1, 2, 3)),))


def states(model: BatchModel) -> list[str]:
    return [row.state for row in model.rows]


@pytest.mark.usefixtures("in_process")
def test_a_stop_lets_the_running_scan_finish_and_continue_runs_the_rest(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BatchModel(Session(ViewerModel()))

    def stopped(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
        model.stop()
        return bright(volume, bundle)

    monkeypatch.setattr("napari_seg.inference.segment.segment", stopped)
    model.choose_inputs(study)
    model.start(read_bundle(), SegmentOptions(device="cpu"))
    model.session.jobs.wait()
    assert sorted(states(model)) == ["done", "failed", "waiting"]
    assert "1 not started or stopped: Continue" in model.session.messages[0].text
    assert model.status == "1 of 3 scans done, 1 failed, 1 left"
    assert model.run_title == "Continue"

    monkeypatch.setattr("napari_seg.inference.segment.segment", bright)
    model.start(read_bundle(), SegmentOptions(device="cpu"))
    model.session.jobs.wait()
    assert sorted(states(model)) == ["done", "done", "failed"]
    assert "2 done (1 by an earlier run), 1 failed" in model.session.messages[0].text
    assert model.run_title == "Retry failed"


@pytest.mark.usefixtures("in_process")
def test_other_options_are_refused_until_all_is_made_again(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_seg.inference.segment.segment", bright)
    model, bundle = BatchModel(Session(ViewerModel())), read_bundle()
    (tmp_path / "scans").mkdir()
    phantoms.write_nifti(head, tmp_path / "scans" / "scan0.nii.gz")
    model.choose_inputs(tmp_path / "scans")
    model.start(bundle, SegmentOptions(device="cpu"))
    model.session.jobs.wait()
    assert states(model) == ["done"]
    model.start(bundle, SegmentOptions(device="cpu", tta="shifts"))
    model.session.jobs.wait()
    assert "tta was" in model.refusal
    assert "“Make again” replaces them" in model.refusal
    assert "--" not in model.refusal
    model.start(bundle, SegmentOptions(device="cpu", tta="shifts"), redo=True)
    assert model.refusal == ""
    model.session.jobs.wait()
    assert "1 done, 0 failed" in model.session.messages[0].text

    # another scan with the name of a finished one
    changed = replace(head, array=head.array + 1)
    phantoms.write_nifti(changed, tmp_path / "scans" / "scan0.nii.gz")
    loaded, warnings = model.read(model.rows[0], (), None)
    assert [type(layer) for layer in loaded] == [Labels]
    assert "was changed since it was segmented. Only the labels are opened" in warnings[0]
    model.start(bundle, SegmentOptions(device="cpu", tta="shifts"))
    model.session.jobs.wait()
    assert states(model) == ["failed"]
    assert "belongs to another scan" in model.rows[0].text
    assert "“Make again” replaces it" in model.refusal
    model.choose_output(tmp_path / "elsewhere")
    assert model.refusal == ""
    assert model.rows == []


def looked(model: BatchModel) -> BatchModel:
    model.look()
    model.session.jobs.wait()
    return model


def test_results_of_another_program_show_at_once_and_without_their_scans(
    head: Volume, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_manifest(tmp_path / "out", ended=START + 9) as manifest:
        notice = Notice("result.implausible", "ball is too large")
        add_done(manifest, "copy", {"ball": 1.5, "nose": 0.25}, notices=(notice,))
        add_failed(manifest, "bad")
        manifest.add_case("later", {"state": "waiting"})
        manifest.add_case("other", {"state": "skipped", "code": "skip.filter", "message": "it is CT"})
    write_nifti(bright(head, None), tmp_path / "out" / "copy_seg.nii.gz")
    model = BatchModel(Session(viewer := ViewerModel()))
    model.choose_output(tmp_path / "out")
    model.session.jobs.wait()
    assert states(model) == ["done", "failed", "waiting", "skipped"]
    done, failed, waiting, _ = model.rows
    assert done.text == "ball 1.50 ml, nose 0.25 ml"
    assert done.notices == ("ball is too large (result.implausible)",)
    assert failed.text == "found text; expected NIfTI (file.not_nifti)"
    assert model.status == "1 of 4 scans done, 1 failed, 1 skipped, 1 left"
    assert model.run_title == "Continue"
    assert not model.is_at_work

    shown = StudyModel(model.session)
    assert "“Scans…”" in model.scan_hint(done)
    shown.show(model.read(done, shown.scans(), shown.frame()))
    assert [layer.name for layer in viewer.layers] == ["copy_seg"]
    assert "Only the labels are opened" in model.session.messages[0].text
    assert model.read(waiting, (), None) == ([], ("The folder of the scans is not chosen (“Scans…”).",))
    model.choose_inputs(study)  # the results stay those that were chosen
    assert model.output == tmp_path / "out"
    shown.show(model.read(done, shown.scans(), shown.frame()))
    assert {type(layer) for layer in viewer.layers} == {Image, Labels}
    assert model.read(waiting, (), None) == ([], (f"The scan later was not found below {study}.",))
    layers, _ = model.read(replace(waiting, source="copy.nii.gz"), (), None)
    assert [layer.name for layer in layers] == ["copy"]


def test_a_run_of_another_process_is_followed_to_its_end_or_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = [True]
    monkeypatch.setattr("napari_seg.cohort.status.is_process_alive", lambda *_: alive[0])
    output = tmp_path / "out"
    model = BatchModel(Session(ViewerModel()))
    model.choose_inputs(tmp_path / "scans")
    model.choose_output(output)
    assert looked(model).status == ""
    with new_manifest(output, host=socket.gethostname(), pid=4242) as manifest:
        numbers = [manifest.add_case(f"case{number}", {"state": "waiting"}) for number in range(3)]
        changes: list[tuple[int, int]] = []
        model.rows_changed.connect(lambda first, last: changes.append((first, last)))
        assert states(looked(model)) == ["waiting"] * 3
        who = f"Process 4242 on {socket.gethostname()}"
        assert model.obstacle(None).startswith(f"{who} works in this folder")
        assert f"{who} works here since" in model.status
        first = manifest.claim(numbers[1], 1, 0)
        assert first is not None
        manifest.change_case(numbers[1], {"stage": "segmenting"})
        assert states(looked(model)) == ["waiting", "running", "waiting"]
        assert "case1: segmenting …" in model.status
        assert changes == [(0, 2), (1, 1)]
        looked(model)
        assert changes == [(0, 2), (1, 1)]  # nothing is read again
        manifest.set_failed(first, "file.truncated", "it has no end")
        second = manifest.claim(numbers[2], 1, 0)
        assert second is not None
        looked(model)
        assert model.progress == (1, 3)

        alive[0] = False
        assert states(looked(model)) == ["waiting", "failed", "stopped"]
        assert model.status.startswith(f"{who} was killed or has crashed. Finished scans are kept; Continue runs")
        assert model.obstacle(read_bundle()) == ""

        alive[0] = True
        looked(model)
        manifest.set_back(second)
        manifest.end_runner(1)
        looked(model)
        assert "has ended: 0 of 3 scans done, 1 failed, 2 left" in model.session.messages[0].text
    (output / FILE).unlink()
    with new_manifest(output, ended=START) as manifest:  # another run, which began anew
        manifest.set_meta("created", "1")
        add_failed(manifest, "fresh")
    assert [row.name for row in looked(model).rows] == ["fresh"]

    (output / FILE).write_bytes(b"not a database, but long enough to be one" * 100)
    assert "(cohort.manifest)" in looked(model).status


def test_the_status_names_the_running_scans_and_what_stop_does(tmp_path: Path) -> None:
    model = BatchModel(Session(ViewerModel()))
    choices = BatchChoices(tmp_path, tmp_path, read_bundle(), RunSettings())
    run = model.run = BatchRun(choices, model._on_result, job=Job(SimpleQueue()))
    assert model.status == "Starting …"
    run.total = 9
    run.running = {f"scan{number}": JobProgress("segmenting", number, 8) for number in range(5)}
    run.add_result(CaseResult("scan0", "failed"))
    lines = ["scan1: segmenting: 1 of 8", "scan2: segmenting: 2 of 8", "scan3: segmenting: 3 of 8", "and 1 more"]
    assert model.status.splitlines() == ["1 of 9 scans, 1 failed", *lines]
    assert model.progress == (1, 9)
    model.stop()
    assert model.status.splitlines()[1] == "Stopping: 4 running scans finish first. Stop now ends at once."
    model.stop()
    assert model.status.splitlines() == ["1 of 9 scans, 1 failed", "Stopping now …"]
    model.run = BatchRun(choices, model._on_result, job=Job(SimpleQueue()), total=1)
    model.run.add_result(CaseResult("scan0", "done"))
    assert model.status.splitlines() == ["1 of 1 scans", "Writing the report …"]


def test_rows_that_the_manifest_has_dropped_go(tmp_path: Path) -> None:
    model = BatchModel(Session(ViewerModel()))
    with new_manifest(tmp_path / "out", ended=START) as manifest:
        for name in ("a", "b", "c"):
            add_failed(manifest, name)
        model.choose_output(tmp_path / "out")
        model.session.jobs.wait()
        manifest._write("DELETE FROM cases WHERE name = ?", ("b",))
        manifest.change_case(3, {"state": "waiting"})
        assert [(row.name, row.state) for row in looked(model).rows] == [("a", "failed"), ("c", "waiting")]
        manifest.change_case(3, {"state": "skipped"})
        assert [(row.name, row.state) for row in looked(model).rows] == [("a", "failed"), ("c", "skipped")]
