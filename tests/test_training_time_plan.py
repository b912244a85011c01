"""The time of a training by hand from the seconds of its parts."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.context
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from monai.engines import SupervisedEvaluator

from napari_seg.training import memory_plan, pace, time_plan
from napari_seg.training.choices import Choices
from napari_seg.training.describe import network_rows
from napari_seg.training.pace import Pace
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.time_plan import affordable_cases, effective_settings, needs_patches, plan_time

PACE = Pace("cpu, 2 threads", step=1.0, case=0.5, validation=20.0, training_cases=80, validation_cases=10)
SETTINGS = {"max_epochs": 100, "val_interval": 10, "batch_size": 2}


def test_a_whole_training() -> None:
    time = plan_time(PACE, SETTINGS)
    assert (time.steps, time.reached, time.validations) == (4000, 4000, 10)
    assert (time.training, time.validating, time.preparing) == (4000, 200, 45)  # 90 cases
    assert time.minutes == pytest.approx((4245 + 10) / 60)  # 10 s to start
    assert plan_time(PACE, SETTINGS, 1000) == time  # a limit that is never reached
    assert plan_time(PACE, SETTINGS | {"patches_per_case": 2}).steps == 8000
    assert plan_time(PACE, SETTINGS | {"val_cases": 5}).validating == 100
    assert plan_time(PACE, SETTINGS | {"val_cases": 50}).validating == 200


def test_several_gpus_divide_the_steps_and_the_validated_cases() -> None:
    time = plan_time(PACE, SETTINGS | {"gpus": 4})
    assert (time.steps, time.training) == (1000, 1000)  # 80 cases in batches of 4 x 2
    assert time.validating == 10 * 20 * 0.3  # 10 cases: at most 3 on one GPU
    assert time.preparing == 45
    assert plan_time(PACE, SETTINGS | {"gpus": 4, "val_cases": 3}).validating == 10 * 20 * 0.3  # each validates all


def test_a_time_limit() -> None:
    time = plan_time(PACE, SETTINGS, 10)
    # two validations of 20 s are a tenth of 555 s; the third comes after the limit
    assert (time.reached, time.validations) == (600 - 45 - 2 * 20, 3)
    assert plan_time(replace(PACE, evaluation=120.0), SETTINGS, 10).minutes == pytest.approx(time.minutes + 2)
    assert time.full_minutes == pytest.approx((4000 + 45 + 200) / 60)
    assert time.few_minutes == pytest.approx((1000 + 45 + 200) / 60)
    assert plan_time(PACE, SETTINGS, 0.5).reached == 1
    long = plan_time(PACE, SETTINGS, 60)
    assert (long.reached, long.validations) == (3600 - 45 - 9 * 20, 10)
    two_epochs = plan_time(replace(PACE, validation=0.1), SETTINGS, 2.1)  # validations come at the ends of epochs
    assert two_epochs.validations == 3
    often = plan_time(replace(PACE, validation=4.0), SETTINGS | {"val_interval": 1}, 10)  # 555 s: epochs of 40 s
    assert often.validations == 13


def test_validation_takes_at_most_a_tenth() -> None:
    assert affordable_cases(PACE, SETTINGS) is None  # 200 of 4000 seconds
    assert affordable_cases(replace(PACE, validation=50.0), SETTINGS) == 8  # 400 of 500 s
    assert affordable_cases(replace(PACE, validation=1000.0), SETTINGS) == 4  # fewer would choose the best by chance
    few = Pace("cpu", step=1.0, case=0.5, validation=500.0, training_cases=80, validation_cases=3)
    assert affordable_cases(few, SETTINGS) is None  # there are no fewer
    assert affordable_cases(replace(PACE, validation=50.0), SETTINGS | {"val_cases": 5}) == 8


def test_validations_of_very_large_scans_see_patches() -> None:
    assert not needs_patches(PACE, SETTINGS)
    # four of ten cases take 1000 s, and a fifth of the training is 800 s
    large = replace(PACE, validation=250.0)
    assert needs_patches(large, SETTINGS)
    assert not needs_patches(large, SETTINGS | {"val_cases": 1})


def test_settings_in_effect() -> None:
    written = {
        "settings": {"max_epochs": {"value": 100, "why": ""}, "batch_size": {"value": 2, "why": ""}},
        "choices": {"settings": {"batch_size": 4, "learning_rate": 1}},
    }
    assert effective_settings(written, max_epochs=7, max_minutes=3) == {"max_epochs": 7, "batch_size": 4}


@pytest.mark.parametrize("dims", [2, 3])
def test_the_pace_of_a_written_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: int) -> None:
    """Time a bundle whose cases have names that would be code in a config."""
    root = datasets.write_decathlon(tmp_path / "data", cases=4)
    (root / "dataset.json").unlink()
    for folder in ("imagesTr", "labelsTr"):
        for path in (root / folder).iterdir():
            path.rename(path.with_name("$open('hacked','w')" + path.name))
    small = {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
    choices = Choices(
        dims=dims, settings={f"network_def#{name}": value for name, value in small.items()} | {"num_workers": 0}
    )
    monkeypatch.chdir(tmp_path)
    plan = plan_bundle(root, tmp_path / "out", choices, timed=True)
    pace = Pace(**plan["time"])
    assert (pace.training_cases, pace.validation_cases) == (3, 1)
    assert 0 < pace.step < 5
    assert 0 < pace.validation < 5
    assert 0 < pace.case < 5
    assert pace.evaluation == pytest.approx(pace.validation, rel=0.01)  # the same case, in one window
    assert plan == json.loads((tmp_path / "out" / "plan.json").read_text())
    assert list((tmp_path / "out" / "training").iterdir()) == [tmp_path / "out" / "training" / "cache"]
    assert not (tmp_path / "hacked").exists()
    assert not (root / "hacked").exists()


@pytest.mark.slow
def test_the_pace_where_processes_are_spawned(tmp_path: Path) -> None:
    """Time a bundle as on Windows and macOS, where the data loader pickles the data set."""
    root = datasets.write_decathlon(tmp_path / "data", cases=4)
    settings = {"network_def#channels": [4, 8], "network_def#strides": [1, 2], "network_def#encoder_convs": 1}
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        plan = plan_bundle(root, tmp_path / "out", Choices(settings=settings | {"num_workers": 1}), timed=True)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert 0 < Pace(**plan["time"]).step < 5


def test_a_worker_measures_the_pace_where_processes_are_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[object, ...]] = []

    class Worker:
        def run(self, *request: object, **_: object) -> Pace:
            requests.append(request)
            return PACE

        def close(self) -> None:
            requests.append(())

    monkeypatch.setattr(pace, "WorkerProcess", Worker)
    monkeypatch.setattr(pace.multiprocessing, "get_context", lambda: multiprocessing.context.SpawnContext())
    assert pace.measure_pace(tmp_path, tmp_path, {"a": 1}, "cpu", {}) == PACE
    arguments = (pace._measure, tmp_path, tmp_path, {"a": 1}, "cpu", {})
    assert requests == [(pace._call_in_worker, "spawn", *arguments), ()]


def test_validations_that_do_not_fit_are_neither_planned_nor_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The patches are timed: of a window each, and the evaluation of the whole case has several."""
    seen: list[tuple[int, ...]] = []
    validate = SupervisedEvaluator._iteration

    def sees(self: SupervisedEvaluator, engine: SupervisedEvaluator, batch: dict) -> dict:
        seen.append(tuple(batch["image"].shape[2:]))
        return validate(self, engine, batch)

    monkeypatch.setattr(SupervisedEvaluator, "_iteration", sees)
    monkeypatch.setattr(memory_plan, "_FORWARD", 1e9)
    root = datasets.write_decathlon(tmp_path / "data", cases=4, smallest=(30, 20, 20))
    small = {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
    settings = {f"network_def#{name}": value for name, value in small.items()}
    choices = Choices(settings=settings | {"num_workers": 0, "patch_size": [16, 16, 16]})
    plan = plan_bundle(root, tmp_path / "out", choices, timed=True)
    assert "was not measured" not in caplog.text
    assert "validation of the largest case" in plan["options"]["validate_patches"]
    assert datasets.configs(tmp_path / "out")["train"]["val_patches"] == 4
    assert set(seen) == {(16, 16, 16)}
    pace = Pace(**plan["time"])
    assert pace.evaluation > pace.validation / 2 > 0
    free = memory_plan.Device("cpu", "cpu", 2**30)
    (text,) = (text for _, text in network_rows(plan, free) if "evaluation at the end" in text)
    assert text.startswith("validations see patches; whole, a validation of the largest case (")
    assert " classes with background) about " in text
    assert "too much" in text


def test_a_pace_that_can_not_be_measured_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(time_plan, "measure_pace", fail)
    root = datasets.write_decathlon(tmp_path / "data", cases=4)
    plan = plan_bundle(root, tmp_path / "out", Choices(), timed=True)
    assert "time" not in plan
    assert "was not measured: CUDA out of memory" in caplog.text


def test_long_validations_see_fewer_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace("cpu", step=1.0, case=0.5, validation=1000.0, training_cases=40, validation_cases=10)
    monkeypatch.setattr(time_plan, "measure_pace", lambda *_: pace)
    root = datasets.write_decathlon(tmp_path / "data", cases=4)
    plan = plan_bundle(root, tmp_path / "out", Choices(), timed=True, limits={"max_minutes": 30})
    assert plan["settings"]["val_cases"]["value"] == 4
    assert datasets.configs(tmp_path / "out")["train"]["val_cases"] == 4
    chosen = plan_bundle(root, tmp_path / "own", Choices(settings={"val_cases": 1}), timed=True)
    assert "val_cases" not in chosen["settings"]
    assert datasets.configs(tmp_path / "own")["train"]["val_cases"] == 1
