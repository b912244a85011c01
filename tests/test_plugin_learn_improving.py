"""Improve in the window's model: in the background, stopped and resumed, compared, and never swapped silently."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from bundles import write_plain_bundle
from runs import progress_of, write_lines, write_run
from test_inference_totalsegmentator_task import task

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from cohorts import InlineProcess
from napari.components import ViewerModel

from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError, Cancelled
from napari_seg.learning.compare import MEAN, ComparedStructure, compared
from napari_seg.learning.improve import Improvement
from napari_seg.learning.inherit import check_improvable
from napari_seg.learning.training_set import AcceptedCase, Part, Provenance, TrainingSet
from napari_seg.plugin.learn import improving
from napari_seg.plugin.learn.accepting import AcceptModel
from napari_seg.plugin.learn.improving import ImproveModel, interval_text, verdict
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.training.run import STOP
from napari_seg.training.write import PLAN

BETTER = (
    ComparedStructure("front", 4, 0.70, 0.80, 0.05, 0.15),
    ComparedStructure("back", 4, nan, 0.5),
    ComparedStructure(MEAN, 4, 0.70, 0.80, 0.05, 0.15),
)


class Worker(InlineProcess):
    """Stands for the worker process of an improvement, with the polling of a real one."""

    def run(self, function: Any, *args: Any, on_start: Any = None, is_stopping: Any = None, **options: Any) -> Any:
        on_start()
        has_ended = threading.Event()

        def poll() -> None:
            while not has_ended.wait(0.02):
                is_stopping()

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            return super().run(function, *args, **options)
        finally:
            has_ended.set()
            thread.join()


def case(number: int, part: Part) -> AcceptedCase:
    name = f"case{number:04d}"
    return AcceptedCase(
        name, "", f"./labelsTr/{name}_r1.nii.gz", f"patient {number}", part, ("front",), "", Provenance()
    )


CONTENT = TrainingSet({"front": 1}, ("T1",), 1, (case(1, "training"), case(2, "validation")), 3)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImproveModel]:
    monkeypatch.setattr(improving, "WorkerProcess", Worker)
    monkeypatch.setattr(improving, "check_improvable", lambda bundle: {})
    monkeypatch.setattr("napari_seg.plugin.preferences.remember_bundle", lambda folder: None)
    monkeypatch.setattr(SegmentModel, "runnable_bundle", property(lambda self: self.bundle))
    session = Session(viewer := ViewerModel())
    segmenting = SegmentModel(session)
    segmenting.bundle = read_bundle(write_plain_bundle(tmp_path / "plain"))
    segmenting.folders.append(segmenting.bundle.root)
    accepting = AcceptModel(session, StructuresModel(session), segmenting)
    accepting.folder, accepting.content = tmp_path / "set", CONTENT
    model = ImproveModel(session, segmenting, accepting)
    model.find_output()
    session.jobs.wait()
    yield model
    session.close()
    assert viewer is not None


def planned(out: Path) -> Path:
    """Write a bundle with the plan of a fine-tuning."""
    write_plain_bundle(out)
    (out / PLAN).write_text(json.dumps({"choices": {"fine_tune": {"file": "models/model.pt"}}}))
    return out


def text_of(model: ImproveModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


def stand_in(monkeypatch: pytest.MonkeyPatch, calls: list, rows: tuple[ComparedStructure, ...] = BETTER) -> None:
    def improve(folder: Path, bundle: Any, out: Path, *, report: Any, progress: Any, **options: Any) -> Improvement:
        calls.append((folder, bundle.name, out, options))
        progress("comparing", 1, 2)
        report("planning: 2 cases")
        if not out.exists():
            planned(out)
        write_run(out / "training", stage="ended")
        return Improvement(out, bundle.name, 1, 1, rows, 0.5, {"case0003": "series.moved: gone"})

    monkeypatch.setattr(improving, "improve", improve)


def test_what_is_missing_is_explained(model: ImproveModel) -> None:
    assert model.obstacle == ""
    model.accepting.content = replace(CONTENT, cases=CONTENT.cases[:1])
    assert "another patient" in model.obstacle
    model.accepting.content = TrainingSet()
    assert "Accept cases first" in model.obstacle
    model.segmenting.bundle = None
    assert "trusted model" in model.obstacle


def test_the_new_model_is_offered_with_its_table_and_selected_on_request_only(
    model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list = []
    used: list[bool] = []
    stand_in(monkeypatch, calls)
    model.used.connect(lambda: used.append(True))
    assert model.output == tmp_path / "plain_round1"
    old = model.segmenting.bundle
    assert old is not None
    model.choose_minutes(30)
    model.choose_replay(tmp_path / "earlier")
    model.start()
    assert "being improved" in model.obstacle
    assert model.is_at_work
    model.session.jobs.wait()
    assert calls == [
        (tmp_path / "set", old.name, tmp_path / "plain_round1", {"max_minutes": 30, "replay": [tmp_path / "earlier"]})
    ]
    assert model.job is None
    assert model.result is not None
    assert model.result.rows == BETTER
    assert model.segmenting.bundle is old
    assert "left out: case0003: series.moved: gone" in text_of(model)
    assert "The new model is ready. Mean Dice on 4 validation cases: 0.700 before, 0.800 after (+0.100)" in text_of(
        model
    )
    assert "Choose between" in model.obstacle

    model.use()
    assert used == [True]
    assert model.result is None
    assert model.segmenting.bundle.root == tmp_path / "plain_round1"
    assert old.root in [bundle.root for bundle in model.segmenting.bundles]
    assert "The old model stays in the list" in text_of(model)


def test_an_improved_part_of_a_task_is_offered_in_the_task(
    model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, [])
    whole = replace(task((1, 1)), name="TotalSegmentator total, with plain_round1")
    chosen: list[str | None] = []
    monkeypatch.setattr(SegmentModel, "reload_bundles", lambda self, choose=None: chosen.append(choose))
    for in_task, reference in ((True, whole.reference), (False, str(tmp_path / "plain_round1"))):
        monkeypatch.setattr(improving, "whole_task", lambda *_: whole)
        model.start()
        model.session.jobs.wait()
        assert model.whole is whole
        model.use(in_task=in_task)
        assert chosen.pop() == reference
        assert model.whole is None
        name = whole.name if in_task else "plain_round1"
        assert f"{name} is selected in the Segment tab" in text_of(model)
        model.output = tmp_path / "plain_round1"

    def refuse(*_: Any) -> None:
        raise BundleError("bundle.part", "it also finds tumour")

    monkeypatch.setattr(improving, "whole_task", refuse)
    model.start()
    model.session.jobs.wait()
    assert model.whole is None
    assert "The new model can only be used alone: it also finds tumour (bundle.part)" in text_of(model)


def test_the_old_model_is_kept(model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [], (ComparedStructure(MEAN, 4, 0.8, 0.7, -0.2, 0.0),))
    old = model.segmenting.bundle
    model.start()
    model.session.jobs.wait()
    model.keep()
    model.session.jobs.wait()
    assert model.segmenting.bundle is old
    assert model.result is None
    assert "The new one stays in" in text_of(model)
    assert model.output == tmp_path / "plain_round2"
    assert (tmp_path / "plain_round1").is_dir()


def test_a_training_is_followed_stopped_and_resumed(
    model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plain_round1"

    def improve(*_: Any, **__: Any) -> Improvement:
        run = write_run(planned(out) / "training", epochs=3, stage="training")
        for _number in range(500):
            write_lines(run / "progress.jsonl", [progress_of(3)])
            if (out / STOP).exists():
                raise Cancelled("stopped; it has saved", "run.stopped")
            time.sleep(0.02)
        raise AssertionError("was not stopped")

    monkeypatch.setattr(improving, "improve", improve)
    model.start()
    end = time.monotonic() + 20
    while model.state is None and time.monotonic() < end:
        model.session.jobs.deliver()
        time.sleep(0.02)
    assert model.status.startswith("Epoch 3 of 10, 14 s left")
    assert model.fraction == pytest.approx(0.3)
    model.stop()
    assert model.status == "Saving after this step …"
    model.session.jobs.wait()
    assert not (out / STOP).exists()
    assert "“Resume” goes on" in text_of(model)
    assert model.is_begun
    assert model.output == out

    stand_in(monkeypatch, [])
    begun_status = model.status
    model.start()
    model.session.jobs.wait()
    assert model.result is not None
    assert (model.is_begun, model.status) == (False, "")
    model.result = None
    model.choose_output(tmp_path / "plain_round1")
    model.session.jobs.wait()
    assert begun_status.startswith("Begun before: Epoch 3 of 10")
    assert model.is_begun
    assert model.obstacle == ""


def test_a_stop_before_the_training_takes_effect_too(model: ImproveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun = threading.Event()

    def improve(*_: Any, progress: Any, **__: Any) -> Improvement:
        for done in range(10_000):
            progress("comparing", done, 10_000)
            has_begun.set()
            time.sleep(0.01)
        raise AssertionError("was not stopped")

    monkeypatch.setattr(improving, "improve", improve)
    model.start()
    assert has_begun.wait(20)
    assert model.status.startswith("Comparing on the validation cases")
    model.stop()
    model.session.jobs.wait()
    assert "Stopped. The old model is unchanged" in text_of(model)
    assert not model.is_begun


def test_a_model_that_can_not_be_improved_is_explained(model: ImproveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def improve(*_: Any, **__: Any) -> Improvement:
        raise BundleError("improve.model", "model 'plain' can't be improved: it has no plan")

    monkeypatch.setattr(improving, "improve", improve)
    model.start()
    model.session.jobs.wait()
    assert "(improve.model)" in text_of(model)
    assert model.job is None
    assert model.obstacle == ""


def test_a_model_that_can_not_be_improved_is_refused_before_any_case_is_corrected(
    model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(improving, "check_improvable", check_improvable)
    model.accepting.content = None
    model.segmenting.bundle = replace(read_bundle(write_plain_bundle(tmp_path / "other")), kind="nnunet")
    model.find_output()
    model.session.jobs.wait()
    assert "can't be improved: it is no single model of nnU-Net" in model.obstacle
    assert model.status == model.obstacle


def test_closing_the_panel_stops_the_training_in_an_orderly_way(
    model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saved = tmp_path / "plain_round1", threading.Event()

    def improve(*_: Any, **__: Any) -> Improvement:
        out.mkdir()
        while not (out / STOP).exists():
            time.sleep(0.02)
        saved.set()
        raise Cancelled("stopped; it has saved", "run.stopped")

    monkeypatch.setattr(improving, "improve", improve)
    model.start()
    model.session.jobs.close()
    assert saved.wait(20)
    assert not model.is_at_work or model.session.is_closed


def test_a_finished_improvement_is_shown_when_its_folder_is_chosen(model: ImproveModel, tmp_path: Path) -> None:
    from napari_seg.learning.improve import _write

    (tmp_path / "elsewhere" / "training").mkdir(parents=True)
    _write(Improvement(tmp_path / "elsewhere", "plain", 1, 1, BETTER, 1.0), {}, {})
    model.choose_output(tmp_path / "elsewhere")
    model.session.jobs.wait()
    assert model.result is not None
    assert model.result.rows[-1].after == 0.8


def test_a_folder_of_others_is_not_resumed_and_keeps_its_files(
    model: ImproveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / STOP).write_text("mine")
    model.choose_output(other)
    model.session.jobs.wait()
    assert not model.is_begun

    def improve(*_: Any, **__: Any) -> Improvement:
        raise BundleError("output.exists", "the folder holds something else")

    monkeypatch.setattr(improving, "improve", improve)
    model.start()
    model.session.jobs.wait()
    assert (other / STOP).read_text() == "mine"
    (other / PLAN).write_text('{"labels": {}}')  # a plan of another program
    model.choose_output(other)
    model.session.jobs.wait()
    assert not model.is_begun
    planned(tmp_path / "begun")
    model.choose_output(tmp_path / "begun")
    model.session.jobs.wait()
    assert model.is_begun
    (tmp_path / "begun" / STOP).touch()
    model.start()
    model.session.jobs.wait()
    assert not (tmp_path / "begun" / STOP).exists()


def test_the_verdict_says_how_sure_it_is() -> None:
    result = Improvement(Path(), "plain", 1, 1, BETTER, 1.0)
    assert verdict(result).endswith("(+0.100), 95 % interval +0.050 to +0.150.")
    doubtful = replace(result, rows=(ComparedStructure(MEAN, 4, 0.7, 0.72, -0.01, 0.05),))
    assert verdict(doubtful).endswith("The difference may be chance.")
    worse = replace(result, rows=(ComparedStructure(MEAN, 4, 0.8, 0.7, -0.15, -0.05),))
    assert verdict(worse).endswith("95 % interval -0.150 to -0.050. The new model is not better.")
    wrong = replace(result, rows=(ComparedStructure(MEAN, 4, 0.7, 0.8, 0.05, 0.15, 4, 2),))
    assert verdict(wrong).endswith(
        "In 2 cases only one of the models finds a structure that the labels do not contain."
    )
    assert interval_text(wrong.rows[0]).endswith("; in 2 cases only one of them finds it, wrongly")
    single = replace(result, rows=(ComparedStructure(MEAN, 1, 0.7, 0.72),))
    assert verdict(single).startswith("Mean Dice on 1 validation case:")
    assert verdict(single).endswith("Too few validation cases to tell: it takes those of 6 patients.")
    assert "No structure" in verdict(replace(result, rows=()))
    assert interval_text(BETTER[0]) == "+0.100, 95 % interval +0.050 to +0.150"
    assert "does not know" in interval_text(BETTER[1])
    absent = {"case0002": {"lesion": math.nan}}
    assert interval_text(compared(absent, absent)[0]).startswith("Not compared: no validation case holds it")
