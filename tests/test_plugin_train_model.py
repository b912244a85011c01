"""The model of the Train tab, on a viewer model: with stand-ins for the training, and once with a real one."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nnunet_models import configuration, write_model
from runs import lines_of, progress_of, write_lines, write_run

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel

from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.errors import Cancelled, TrainingError
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.train import run as module
from napari_seg.plugin.train.choices import TrainChoices, labels_of
from napari_seg.plugin.train.model import TrainModel
from napari_seg.plugin.train.run import Trained, Wish
from napari_seg.plugin.train.shown_plan import LabelRow
from napari_seg.training.choices import Choices
from napari_seg.training.history import read_state

PLAN: dict[str, Any] = {
    "fingerprint": {"cases": 6, "channels": ["T1"], "modality": "MR"},
    "labels": {"front": [1]},
    "options": {},
    "settings": {},
    "choices": {},
}


class InProcess:
    """Stands in for a worker process: runs in the thread of the job, and asks for stops as the real one does."""

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        callbacks, on_start, is_stopping = (options.pop(name) for name in ("callbacks", "on_start", "is_stopping"))
        on_start()
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.01):
                is_stopping()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return function(*args, **options, **callbacks)
        finally:
            ended.set()
            watcher.join()

    def close(self) -> None:
        pass


class Pretended:
    """Stands in for planning and training: writes the files of a run until it is stopped.

    Attributes:
        calls: the options of each training.
        trained_on: folder of the data of the last training.
        choices: choices of the last plan.
    """

    def __init__(self, epochs: int = 10) -> None:
        self.epochs = epochs
        self.calls: list[dict[str, Any]] = []
        self.trained_on: Path | None = None
        self.choices: Any = None

    def plan_bundle(
        self, dataset: Path, out: Path, choices: Any, *, dry_run: bool = False, **options: Any
    ) -> dict[str, Any]:
        options["report"]("reading the data")
        self.choices = choices
        if not (dataset / "dataset.json").exists():
            raise TrainingError("dataset.missing", f"{dataset} holds no data set")
        if not dry_run:
            shutil.copytree(shipped_root(), out, dirs_exist_ok=True)
            (out / "plan.json").write_text(json.dumps(PLAN))
        return PLAN

    def train(self, out: Path, dataset: Path, **values: Any) -> None:
        self.calls.append(values)
        self.trained_on = dataset
        (out / "training").mkdir(exist_ok=True)
        for epoch in range(1, self.epochs + 1):
            end = time.monotonic() + 0.1
            write_lines(out / "training" / "progress.jsonl", [progress_of(epoch)])
            write_lines(out / "training" / "history.jsonl", lines_of(epoch))
            while time.monotonic() < end:
                if (out / "stop").exists():
                    (out / "stop").unlink()
                    raise Cancelled("run.stopped", "stopped and saved; run the same command again to continue")
                time.sleep(0.01)
        write_run(out / "training", self.epochs)
        (out / "training" / "report.html").write_text("report")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    stand_in = Pretended()
    monkeypatch.setattr(module, "WorkerProcess", InProcess)
    monkeypatch.setattr(module, "plan_bundle", stand_in.plan_bundle)
    monkeypatch.setattr(module, "train", stand_in.train)
    monkeypatch.setattr(module, "_FOLLOW_SECONDS", 0.02)
    monkeypatch.setattr("napari_seg.plugin.preferences.remember_bundle", lambda folder: None)
    return stand_in


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "dataset.json").write_text("{}")
    return tmp_path / "heads"


@pytest.fixture
def model() -> TrainModel:
    session = Session(ViewerModel())
    return TrainModel(session, SegmentModel(session))


def deliver_until(model: TrainModel, is_reached: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < end
        model.session.jobs.deliver()
        time.sleep(0.005)


def text_of(model: TrainModel) -> str:
    return "\n".join(message.text for message in model.session.messages)


def test_a_plan_writes_nothing(model: TrainModel, pretended: Pretended, data: Path) -> None:
    assert "Choose scans" in model.obstacle
    model.choose_dataset(data)
    assert model.output == data.with_name("heads_model")
    assert model.obstacle == ""
    model.start_plan()
    assert "plan" in model.obstacle
    model.session.jobs.wait()
    assert model.plan.rows[0] == ("data", "6 cases, T1 (MR)")
    assert not model.output.exists()
    assert not model.is_resumed
    assert not model.can_use


def test_lists_and_several_data_sets_are_planned_together(
    model: TrainModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[Wish] = []
    monkeypatch.setattr(TrainModel, "_make_plan", lambda self, wish, job: wishes.append(wish) or PLAN)
    table = data.with_name("scans.v2.csv")
    table.write_text("image,label\n")
    model.add_dataset(table)
    assert (model.output, model.dataset_text) == (data.with_name("scans_model"), str(table))
    for _ in range(2):
        model.add_dataset(data)
    assert model.dataset_text == "scans.v2.csv + heads"
    model.start_plan()
    model.session.jobs.wait()
    (wish,) = wishes
    assert (wish.dataset, wish.more) == (table, (data,))
    model.choose_dataset(data)
    assert model.more == ()


def test_a_training_is_followed_to_its_end_and_its_model_used(
    model: TrainModel, pretended: Pretended, data: Path
) -> None:
    model.choose_dataset(data)
    model.choose_minutes(30)
    model.start()
    assert model.is_at_work
    assert "running" in model.obstacle
    deliver_until(model, lambda: model.state is not None and len(model.state.losses) >= 3)
    assert model.status.startswith("Epoch ")
    assert " left; loss 0." in model.status
    assert model.fraction is not None
    assert 0.1 < model.fraction < 0.9
    assert model.plan.rows
    assert not model.can_use
    model.session.jobs.wait()
    assert pretended.calls == [{"fine_tune": None, "max_minutes": 30}]
    assert "The training is finished. The best validation has Dice 0.812, in epoch 8." in text_of(model)
    assert model.status == "Epoch 10 of 10, 30 of 30 steps in 20 s; loss 0.100, Dice 0.770"
    assert model.can_use
    assert model.is_resumed
    assert model.output is not None
    assert model.report == model.output / "training" / "report.html"
    used: list[bool] = []
    model.used.connect(lambda: used.append(True))
    model.use()
    model.session.jobs.wait()
    segmenting = model.segmenting
    assert used
    assert segmenting.bundle is not None
    assert segmenting.bundle.root == model.output
    assert segmenting.permission is not None
    assert segmenting.permission.may_run


def test_what_comes_after_the_last_step_is_said(model: TrainModel, pretended: Pretended, data: Path) -> None:
    model.choose_dataset(data)
    model.start()
    deliver_until(model, lambda: model.state is not None)
    assert model.state is not None
    assert model.output is not None
    write_lines(model.output / "training" / "progress.jsonl", [progress_of(9, stage="ended")])
    model._on_state(read_state(model.output / "training"))
    assert model.status.startswith("Writing the model and its report")
    model.stop()
    model.session.jobs.wait()


def test_a_training_that_is_stopped_saves_and_is_resumed(model: TrainModel, pretended: Pretended, data: Path) -> None:
    model.choose_dataset(data)
    model.start()
    deliver_until(model, lambda: model.state is not None and len(model.state.losses) >= 2)
    model.stop()
    assert model.status == "Saving after this step …"
    model.session.jobs.wait()
    assert "Stopped and saved; press Resume to continue." in text_of(model)
    assert model.is_resumed
    assert model.output is not None
    assert not (model.output / "stop").exists()
    model.start()
    model.session.jobs.wait()
    assert "finished" in text_of(model)


def test_a_window_that_closes_stops_and_saves(model: TrainModel, pretended: Pretended, data: Path) -> None:
    model.choose_dataset(data)
    model.start()
    deliver_until(model, lambda: model.state is not None)
    job = model.job
    model.session.close()
    assert not model.is_at_work
    assert job is not None
    deadline = time.monotonic() + 20
    while job.is_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not job.is_running
    assert model.output is not None
    assert len(lines_of(pretended.epochs)) > len((model.output / "training" / "history.jsonl").read_text().splitlines())
    assert not (model.output / "stop").exists()


def test_a_stop_that_comes_too_late_stops_nothing_later(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(out: Path, *_: Any, **__: Any) -> None:
        model.stop()
        time.sleep(0.2)  # it has its last step behind it, and looks for no file

    monkeypatch.setattr(module, "train", train)
    model.choose_dataset(data)
    model.start()
    model.session.jobs.wait()
    assert model.output is not None
    assert not (model.output / "stop").exists()


def test_a_data_set_that_is_none_is_one_line(model: TrainModel, pretended: Pretended, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model.choose_dataset(tmp_path / "empty")
    for start in (model.start_plan, model.start):
        start()
        model.session.jobs.wait()
        assert "holds no data set (dataset.missing)" in text_of(model)
        assert model.job is None
        assert model.obstacle == ""


def test_a_training_that_a_limit_ended_is_not_called_finished() -> None:
    assert Trained("", None, (30, 30)).text.startswith("The training is finished. “Use this model”")
    text = Trained("", (0.5, 2), (57, 3000)).text
    assert text.startswith("The training ended after 57 of 3000 steps (1.9%), at its limit. The best validation has")
    assert "Dice 0.500, in epoch 2. Usually a larger time limit, with Resume, gives a better model." in text


def test_a_plan_that_is_stopped_says_so(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: Any, **__: Any) -> None:
        while model.job is None:  # this thread may be ahead of the one that started it
            time.sleep(0.005)
        model.stop()
        raise Cancelled()  # as the worker does when it is ended

    monkeypatch.setattr(module, "plan_bundle", plan)
    model.choose_dataset(data)
    model.start()
    model.session.jobs.wait()
    assert text_of(model) == "Stopped before the training began."


def test_a_folder_with_a_training_shows_how_far_it_came(model: TrainModel, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    write_run(tmp_path / "training", epochs=4, stage="training")
    model.choose_output(tmp_path)
    model.session.jobs.wait()
    assert model.is_resumed
    assert model.state is not None
    assert model.status.startswith("Epoch 4 of 10")
    assert model.fraction is None
    assert "Choose scans" in model.obstacle
    model.choose_output(tmp_path / "elsewhere")
    model.session.jobs.wait()
    assert model.state is None
    assert not model.is_resumed


def test_converted_data_are_trained_on(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAN, "converted", {})
    pretended.epochs = 1
    model.choose_dataset(data)
    model.start()
    model.session.jobs.wait()
    assert model.output is not None
    assert pretended.trained_on == model.output / "data"


def test_folds_are_continued(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []

    def cross_validate(out: Path, dataset: Path, folds: int, only: int | None, report: Any, **values: Any) -> None:
        called.append((folds, only))
        report("fold 0 of 2")
        write_run(out / "fold_0")

    monkeypatch.setattr(module, "cross_validate", cross_validate)
    monkeypatch.setitem(PLAN, "choices", {"folds": 2})
    model.choose_dataset(data)
    model.start()
    model.session.jobs.wait()
    assert called == [(2, None)]
    assert model.state is not None
    assert model.state.folder.name == "fold_0"


TABLE = [
    {"value": 1, "name": "front", "cases": 6, "voxels": 90, "remarks": []},
    {"value": 2, "name": "back", "cases": 1, "voxels": 9, "remarks": ["in one case only"]},
    {"value": 255, "name": "ignored", "cases": 6, "voxels": 1, "remarks": []},
]


def test_choices_are_planned_and_trained_with(model: TrainModel, pretended: Pretended, data: Path) -> None:
    model.choose_dataset(data)
    model.choose(size="L", dims=2, folds=5)
    model.start_plan()
    model.session.jobs.wait()
    assert pretended.choices == Choices(size="L", dims=2, folds=5)
    assert not model.is_outdated
    model.choose(folds=0)
    assert model.is_outdated
    pretended.epochs = 1
    model.start()
    model.session.jobs.wait()
    assert pretended.choices == Choices(size="L", dims=2)


def test_a_training_that_has_begun_keeps_its_choices(
    model: TrainModel, pretended: Pretended, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text(
        json.dumps(PLAN | {"choices": {"size": "M", "labels": {"front": [1]}}})
    )
    pretended.epochs = 1
    model.choose_dataset(data)
    model.choose(size="L")
    model.choose_output(tmp_path / "begun")
    model.session.jobs.wait()
    assert model.is_resumed
    assert (model.choices.size, model.choices.labels) == ("M", "front=1")
    assert model.plan.rows[0] == ("data", "6 cases, T1 (MR)")  # what it was planned with is shown
    model.start()
    model.session.jobs.wait()
    assert pretended.choices == Choices()  # nothing that could contradict
    model.choose_output(tmp_path / "other")
    model.session.jobs.wait()
    assert model.choices.size == "L"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fingerprint": 3, "labels": [], "options": {}}'])
def test_a_damaged_plan_hides_nothing_else(content: str, model: TrainModel, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    write_run(tmp_path / "training", epochs=4, stage="training")
    model.choose_output(tmp_path)
    model.session.jobs.wait()
    assert model.is_resumed
    assert model.status.startswith("Epoch 4 of 10")
    assert model.plan.rows == []
    assert str(model.choices) == ""


def test_what_is_odd_about_the_data_is_seen_before_the_training(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAN, "label table", TABLE)
    left = {"count": 3, "ending": ".xyz", "code": "skip.not_an_image", "reason": "no image"}
    monkeypatch.setitem(PLAN, "passed over", [left])
    model.choose_dataset(data)
    model.start_plan()
    model.session.jobs.wait()
    assert model.plan.odd == ["2 back: in one case only", "3 .xyz: skip.not_an_image: no image"]
    assert [(row.value, row.classes, row.fraction) for row in model.plan.table] == [
        (1, "front", 0.9),
        (2, "back", 0.09),
        (255, "ignore", 0.01),
    ]
    assert not {"value", "left", "labels"} & {head for head, _ in model.plan.rows}  # they are shown once


def test_a_class_is_renamed_in_the_table(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAN, "label table", TABLE)
    monkeypatch.setitem(PLAN, "labels", {"front": [1], "back": [2]})
    model.choose_dataset(data)
    model.start_plan()
    model.session.jobs.wait()
    model.rename(1, "anterior part")
    model.rename(2, "ignore")
    assert model.choices.labels == "'anterior part'=1 ignore=2"
    assert [row.classes for row in model.plan.table] == ["anterior part", "ignore", "ignore"]
    assert model.is_outdated
    model.start_plan()
    model.session.jobs.wait()
    assert pretended.choices.labels == {"anterior part": [1], "ignore": [2]}
    model.choose(labels="nonsense")
    model.rename(1, "x")
    assert "labels.bad_value" in text_of(model)
    model.choose_dataset(data.parent)
    assert model.choices.labels == ""


def test_classes_of_several_data_sets_are_renamed_by_their_names(model: TrainModel, data: Path, tmp_path: Path) -> None:
    """Values of the combined data set mean nothing in each of them: `--labels` takes names of classes then."""
    model.choose_dataset(data)
    model.add_dataset(tmp_path / "other")
    model.session.jobs.wait()
    names = {1: "liver", 2: "spleen", 3: "left kidney", 4: "tumour + cyst", 255: "ignore"}
    table = [LabelRow(value, name, 1, 1, 0.2) for value, name in names.items()]
    labels = {"liver": [1], "spleen": [2], "left kidney": [3], "tumour": [4], "cyst": [4]}
    model.plan = replace(model.plan, labels=labels, table=table)
    model.rename(2, "Milz")
    assert model.choices.labels == "liver=liver Milz=spleen 'left kidney'='left kidney' tumour=tumour cyst=cyst"
    model.rename(3, "liver")
    model.rename(1, "Bauch")
    assert model.choices.labels == "Milz=spleen tumour=tumour cyst=cyst Bauch='liver,left kidney'"
    for value, name in ((4, "x"), (255, "x"), (2, "ignore")):
        before = model.choices.labels
        model.rename(value, name)
        assert model.choices.labels == before
    assert "ignore=VALUE" in text_of(model)
    assert [row.classes for row in model.plan.table] == ["Bauch", "Milz", "Bauch", "tumour + cyst", "ignore"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ignore=255", "ignore=255 liver=liver Milz=spleen tumour=tumour"),
        ("leber=Liver", "leber=Liver Milz=spleen tumour=tumour"),
        ("x=Spleen", "liver=liver tumour=tumour Milz=spleen"),
    ],
)
def test_renaming_keeps_the_classes_that_the_text_does_not_name(
    model: TrainModel, data: Path, tmp_path: Path, text: str, expected: str
) -> None:
    model.choose_dataset(data)
    model.add_dataset(tmp_path / "other")
    model.session.jobs.wait()
    names = {0: "background", 1: "liver", 2: "spleen", 3: "tumour", 255: "ignore"}
    table = [LabelRow(value, name, 1, 1, 0.2) for value, name in names.items()]
    model.plan = replace(model.plan, labels={"liver": [1], "spleen": [2], "tumour": [3]}, table=table)
    model.choose(labels=text)
    model.rename(2, "Milz")
    assert labels_of(model.choices.labels) == labels_of(expected)
    model.rename(0, "other")  # no class of the data sets
    model.rename(1, " ")
    assert labels_of(model.choices.labels) == labels_of(expected)
    assert "write NAME=CLASS" in text_of(model)
    assert [row.classes for row in model.plan.table] == ["background", "liver", "Milz", "tumour", "ignore"]


def test_classes_of_a_renamed_plan_keep_their_names_in_the_data_sets(
    model: TrainModel, data: Path, tmp_path: Path
) -> None:
    model.choose_dataset(data)
    model.add_dataset(tmp_path / "other")
    model.session.jobs.wait()
    table = [LabelRow(value, name, 1, 1, 0.5) for value, name in {1: "liver", 2: "Milz"}.items()]
    made = TrainChoices(labels="liver=liver Milz=spleen")
    model.plan = replace(model.plan, labels={"liver": [1], "Milz": [2]}, table=table, choices=made)
    model.choose(labels="ignore=255")
    model.rename(2, "Rate")
    assert model.choices.labels == "ignore=255 liver=liver Rate=spleen"


def test_renaming_in_one_data_set_keeps_the_other_values(
    model: TrainModel, pretended: Pretended, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLAN, "label table", TABLE)
    monkeypatch.setitem(PLAN, "labels", {"front": [1], "back": [2, "5-9"]})
    model.choose_dataset(data)
    model.start_plan()
    model.session.jobs.wait()
    model.choose(labels="ignore=6,200-255")
    model.rename(1, "x")
    assert labels_of(model.choices.labels) == {"ignore": [6, "200-255"], "x": [1], "back": [2, 5, "7-9"]}


def test_a_training_starts_from_a_model_of_the_tool(model: TrainModel, pretended: Pretended, data: Path) -> None:
    names = dict(model.starts)
    root = shipped_root()
    assert root in names.values()
    model.choose_dataset(data)
    model.choose(fine_tune=root)
    model.start_plan()
    model.session.jobs.wait()
    assert pretended.choices.fine_tune["file"].endswith("model.pt")
    model.choose(fine_tune=data / "none.pt")
    model.start_plan()
    model.session.jobs.wait()
    assert "weights.missing" in text_of(model)


def test_a_training_starts_from_a_model_of_nnunet(
    model: TrainModel, pretended: Pretended, data: Path, tmp_path: Path
) -> None:
    flat = write_model(tmp_path / "flat", "2d", configuration((16, 16), (1, 1)))
    source = write_model(tmp_path / "results")
    model.segmenting.bundles = [read_bundle(root) for root in (flat, source)]
    assert model.starts == [("Dataset001_Phantom 2d", flat), ("Dataset001_Phantom 3d_fullres", source)]
    model.choose_dataset(data)
    model.choose(fine_tune=source)
    model.start_plan()
    model.session.jobs.wait()
    assert pretended.choices.fine_tune["file"].endswith("checkpoint_final.pth")
    assert pretended.choices.network == "NnunetUNet"


@pytest.mark.slow
def test_a_real_training_is_followed_stopped_and_resumed(model: TrainModel, dataset: Path, tmp_path: Path) -> None:
    model.choose_dataset(dataset)
    model.choose_output(tmp_path / "balls")
    model.start()
    deliver_until(model, lambda: model.state is not None and bool(model.state.losses), 180)
    model.stop()
    model.session.jobs.wait(60)
    assert "Stopped and saved; press Resume to continue" in text_of(model)
    assert (tmp_path / "balls" / "training" / "report.html").is_file()
    assert model.can_use  # the weights of the last step
    step = model.state.progress.step if model.state and model.state.progress else 0
    assert step
    model.choose_minutes(0.01)  # over already: it validates and ends
    model.start()
    model.session.jobs.wait(120)
    assert "at its limit. The best validation has Dice" in text_of(model)
    assert model.state.progress.step >= step
    assert model.state.validations
