"""Which next: the model ranks a finished run, opens its cases and drops those that are accepted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import phantoms
import pytest
from cohorts import InlineProcess, add_done, add_model, new_manifest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import found_in
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outcome import OutputFile
from napari_seg.errors import Cancelled
from napari_seg.formats.nifti import write_nifti
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.learn import which_next
from napari_seg.plugin.learn.accepting import AcceptModel
from napari_seg.plugin.learn.ranking import QueuedCase, rank_cases
from napari_seg.plugin.learn.which_next import WhichNextModel
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.study.model import StudyModel
from napari_seg.volume import Volume


class Worker(InlineProcess):
    """Stands for the worker process of a ranking."""

    def run(self, function: Any, *args: Any, on_start: Any = None, is_stopping: Any = None, **options: Any) -> Any:
        on_start()
        return super().run(function, *args, **options)


@pytest.fixture
def scans(tmp_path: Path, head: Volume) -> Path:
    """Two scans, and a finished run of them in the folder "out"."""
    (tmp_path / "scans").mkdir()
    for name, more in (("a", 0), ("b", 1)):
        phantoms.write_nifti(replace(head, array=head.array + more), tmp_path / "scans" / f"{name}.nii.gz")
    with new_manifest(tmp_path / "out") as manifest:
        add_model(manifest)
        for name, confidence in (("a", 0.9), ("b", 0.4)):
            number = add_done(
                manifest, name, {"nose": 1.0}, model=1, confidence={"nose": confidence}, source=f"{name}.nii.gz"
            )
            manifest.change_case(number, {"input_sha256": 32 * f"{name}0"})
            path = tmp_path / "out" / f"{name}_seg.nii.gz"
            write_nifti(found_in(head), path)
            status = path.stat()
            note(manifest, number, OutputFile(path.name, "ab" * 32, status.st_size, status.st_mtime_ns))
    return tmp_path / "scans"


def note(manifest: Manifest, number: int, labels: OutputFile) -> None:
    """Replace the label map in the manifest."""
    outputs = {name: asdict(one) for name, one in manifest.case(number).outputs.items()} | {"labels": asdict(labels)}
    manifest.change_case(number, {"outputs": json.dumps(outputs)})


@pytest.fixture
def model(scans: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WhichNextModel]:
    monkeypatch.setattr(which_next, "WorkerProcess", Worker)
    monkeypatch.setattr(SegmentModel, "runnable_bundle", property(lambda self: self.bundle))
    session = Session(viewer := ViewerModel())
    segmenting = SegmentModel(session)
    accepting = AcceptModel(session, StructuresModel(session), segmenting)
    model = WhichNextModel(session, segmenting, accepting, StudyModel(session))
    model.viewer = viewer  # type: ignore[attr-defined]
    yield model
    session.close()


def text_of(model: WhichNextModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


def ranked(model: WhichNextModel) -> list[QueuedCase]:
    model.start()
    model.session.jobs.wait()
    return model.shown


def test_cases_are_ranked_by_what_the_run_knows_if_there_are_no_scans(model: WhichNextModel, scans: Path) -> None:
    assert "results" in model.obstacle
    model.choose_results(scans.parent / "out")
    assert model.obstacle == ""
    first, second = ranked(model)
    assert (first.name, first.rank, second.name, second.rank) == ("b", 1, "a", 2)
    assert first.uncertainty == pytest.approx(0.6)
    assert first.basis == "confidence"
    assert first.why.startswith("most uncertain: nose, mean probability 0.40, median of all cases")
    assert "2 cases to correct, 0 accepted" in text_of(model)
    assert "choose the folder of the scans" in text_of(model)
    assert model.job is None


def test_a_case_opens_with_its_result_which_is_known_as_that_of_the_model(model: WhichNextModel, scans: Path) -> None:
    viewer = model.viewer  # type: ignore[attr-defined]
    model.choose_results(scans.parent / "out")
    (first, _) = ranked(model)
    model.open(first)
    model.session.jobs.wait()
    assert [type(layer) for layer in viewer.layers] == [Labels]
    assert "folder of the scans is not chosen" in text_of(model)
    viewer.layers.clear()

    model.choose_scans(scans)
    model.open(first)
    model.session.jobs.wait()
    image, labels = viewer.layers
    assert isinstance(image, Image)
    packed = LayerInfo.require(labels).model_labels
    assert packed is not None
    assert (packed.unpack() > 0).sum() == (labels.data > 0).sum()


def test_a_result_that_a_person_saved_over_is_not_taken_for_that_of_the_model(
    model: WhichNextModel, scans: Path, head: Volume
) -> None:
    model.choose_results(scans.parent / "out")
    model.choose_scans(scans)
    model.cases = [QueuedCase("a", 1, 0.5, "confidence", "", None)]
    labels = found_in(head)
    labels.array[labels.array == 3] = 0
    write_nifti(labels, scans.parent / "out" / "a_seg.nii.gz")
    model.open(model.cases[0])
    model.session.jobs.wait()
    assert LayerInfo.require(model.viewer.layers[1]).model_labels is None  # type: ignore[attr-defined]


def test_a_label_map_outside_the_folder_is_not_opened(model: WhichNextModel, scans: Path) -> None:
    model.choose_results(scans.parent / "out")
    write_path = scans.parent / "secret.nii.gz"
    write_path.write_bytes((scans.parent / "out" / "a_seg.nii.gz").read_bytes())
    with Manifest.open(scans.parent / "out") as manifest:
        note(manifest, 1, OutputFile("../secret.nii.gz", "ab" * 32, 1, 1))
    model.open(QueuedCase("a", 1, 0.5, "confidence", "", None))
    model.session.jobs.wait()
    assert not model.viewer.layers  # type: ignore[attr-defined]


def test_a_case_that_is_gone_is_reported(model: WhichNextModel, scans: Path) -> None:
    model.choose_results(scans.parent / "out")
    model.open(QueuedCase("gone", 1, 0.5, "confidence", "", None))
    model.session.jobs.wait()
    assert "gone is no longer in" in text_of(model)


def test_accepted_cases_drop_out_of_the_list(model: WhichNextModel, scans: Path) -> None:
    model.choose_results(scans.parent / "out")
    model.cases = [
        QueuedCase("a", 1, 0.5, "disagreement", "", scans / "a.nii.gz"),
        QueuedCase("b", 2, 0.4, "disagreement", "", scans / "b.nii.gz"),
    ]
    model.accepting.accepted.emit((scans / "x" / ".." / "a.nii.gz",))
    assert [case.name for case in model.shown] == ["b"]
    assert model.accepted_count == 1
    model.show_accepted(True)
    assert [(case.name, case.is_accepted) for case in model.shown] == [("a", True), ("b", False)]


def test_a_ranking_is_stopped_and_what_was_found_is_kept(
    model: WhichNextModel, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, ends = threading.Event(), []

    def slow(*args: Any, progress: Any, **options: Any) -> Any:
        for done in range(10_000):
            try:
                progress("looking", done, 10_000)
            except Cancelled:
                ends.append(done)
                raise
            has_begun.set()
        raise AssertionError("was not stopped")

    monkeypatch.setattr(which_next, "rank_cases", slow)
    model.choose_results(scans.parent / "out")
    model.start()
    assert "being ranked" in model.obstacle
    assert has_begun.wait(20)
    assert model.status.startswith("Looking at the scans again")
    model.stop()
    assert model.status == "Stopping …"
    model.session.jobs.wait()
    assert ends
    assert model.job is None
    assert "Rank again to go on" in text_of(model)


def test_what_can_not_be_ranked_is_explained(model: WhichNextModel, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    model.choose_results(tmp_path / "nothing")
    assert ranked(model) == []
    assert "(cohort.no_manifest)" in text_of(model)
    model.segmenting.bundle = None
    assert "trusted model" in model.obstacle


def test_the_worker_gets_plain_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def rank(results: Path, **options: Any) -> list:
        calls.append((results, options))
        values = {"uncertainty": 0.5, "basis": "disagreement", "why": "because", "scan": None, "is_accepted": False}
        bad = {**values, "uncertainty": None, "why": ""}
        return [
            SimpleNamespace(name="a\x1b[1m", rank=1, code="", message="", **values),
            SimpleNamespace(name="b", rank=None, code="queue.no_scan", message="found no scan", **bad),
        ]

    monkeypatch.setattr("napari_seg.learning.queue.rank", rank)
    good, bad = rank_cases(tmp_path, None, read_bundle(), tmp_path / "set", which_next.SegmentOptions(), print)
    assert calls[0][0] == tmp_path
    assert calls[0][1]["accepted"] == tmp_path / "set"
    assert good.title == "a [1m"
    assert (bad.rank, bad.why) == (None, "found no scan (queue.no_scan)")
