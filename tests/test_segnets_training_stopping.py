"""A run that ends before its last epoch: cleanly, at once, and so that it can go on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ignite.engine import Engine, Events
from tiny_run import losses, make_run, run, without_times

from segnets.metrics import CaseMetric  # isort: skip - within reach by tiny_run
from segnets.training import EarlyStopping, Schedule, StopAfterMinutes, StopOnSignal, Validation  # isort: skip - by tiny_run


class At:
    """Calls a function after a step."""

    def __init__(self, step: int, do: Any) -> None:
        self.step, self.do = step, do

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=self.step), lambda: self.do())


def validated_steps(folder: Path) -> list[int]:
    return [line["step"] for line in without_times(folder) if "mean_dice" in line]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run of 4 epochs of 3 steps without interruption, validated after every second epoch."""
    run(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("step", [4, 6])  # within an epoch; at the end of one, with the validation due then
def test_a_stop_file_ends_the_run_after_the_step_with_validated_weights(whole: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "stopped"
    trainer = run(folder, more_handlers=[At(step, (folder / "stop").touch)])
    assert len(losses(folder)) == step
    assert trainer.state.epoch == 2
    assert validated_steps(folder) == [step]
    assert (folder / "model.pt").is_file()
    final = torch.load(folder / "model_final.pt", weights_only=True)
    assert torch.equal(final["0.weight"], torch.load(folder / "checkpoints" / "latest.pt")["ema"]["0.weight"])
    assert not (folder / "stop").exists()
    run(folder)
    assert losses(folder) == losses(whole)
    assert validated_steps(folder) == sorted({step, 6, 12})


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_interrupts_the_run_after_the_step(
    whole: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "interrupted"
    before = signal.getsignal(number)
    signals = StopOnSignal()
    run(folder, every_steps=None, more_handlers=[signals, At(5, lambda: os.kill(os.getpid(), number))])
    assert torch.load(folder / "checkpoints" / "latest.pt", weights_only=True)["step"] == 5
    assert (folder / "model_final.pt").is_file()
    assert validated_steps(folder) == []
    assert signal.getsignal(number) is before  # a second one would have killed
    with pytest.raises(SystemExit) as exit:
        signals.exit()
    assert exit.value.code == status
    run(folder, every_steps=None)
    assert without_times(folder) == without_times(whole)


def test_a_run_that_was_sent_no_signal_exits_as_ever(tmp_path: Path) -> None:
    signals = StopOnSignal()
    run(tmp_path, max_epochs=1, more_handlers=[signals])
    signals.exit()


def test_workers_outlive_a_signal_to_all(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C, and a cluster SIGTERM, to the workers too."""

    def to_all() -> None:
        workers = trainer._dataloader_iter._workers
        assert len(workers) == 1
        for pid in (workers[0].pid, os.getpid()):
            os.kill(pid, signal.SIGTERM)
            os.kill(workers[0].pid, signal.SIGINT)

    trainer = make_run(tmp_path, num_workers=1, more_handlers=[At(4, to_all)])
    trainer.run()
    assert len(losses(tmp_path)) == 4
    run(tmp_path, num_workers=1)
    assert len(losses(tmp_path)) == 12


def test_an_error_in_a_worker_ends_the_run_at_once(tmp_path: Path) -> None:
    """A worker ignores SIGTERM, which is what Python ends it with before it waits for its end, for ever."""
    code = f"""
import errno, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import tiny_run
from pathlib import Path
from segnets.data import cache
def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
cache.replacing = fail
tiny_run.run(Path({str(tmp_path)!r}), num_workers=1)
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            output = process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
            raise
    assert process.returncode == 1
    assert "No space left on device" in output.strip().splitlines()[-1]


def test_minutes_count_over_restarts_and_more_of_them_go_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "timed"
    # each look at the clock is at the beginning of a step; a step takes 6 seconds
    monkeypatch.setattr(
        StopAfterMinutes, "_seconds", property(lambda self: self._before + 6.0 * trainer.state.iteration)
    )
    trainer = make_run(folder, max_minutes=0.5)
    trainer.run()
    assert len(losses(folder)) == 5
    assert validated_steps(folder) == [3, 5]  # after the epoch in which a tenth of the time had gone, and at the end
    # the schedule was at its end by then, so the rate is 12 steps' last
    lr = trainer.optimizer.param_groups[0]["lr"]
    assert lr < 0.02 * 0.2
    state = torch.load(folder / "checkpoints" / "latest.pt", weights_only=True)
    assert state["objects"]["minutes"] == {"seconds": 30.0}
    monkeypatch.undo()
    run(folder, max_minutes=0.5)  # they are used up
    assert len(losses(folder)) == 5
    run(folder, max_minutes=60)
    assert len(losses(folder)) == 12
    # half a minute of 60 is no share, so the rate goes on where the steps are
    rates = [[line["lr"] for line in without_times(f) if "lr" in line][-3:] for f in (folder, whole)]
    assert rates[0] == rates[1]


def test_more_minutes_are_validated_in_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopAfterMinutes, "_seconds", property(lambda self: 6.0 * trainer.state.iteration))
    for minutes, validated in ((0.9, [3, 6, 9]), (2.0, [3, 6, 9, 12, 15, 18, 20])):
        trainer = make_run(tmp_path, max_epochs=30, max_minutes=minutes)
        trainer.run()
        assert validated_steps(tmp_path) == validated
    trainer = make_run(tmp_path, max_epochs=30, max_minutes=0.1)  # less than it has taken
    trainer.run()
    assert validated_steps(tmp_path) == validated
    validation = Validation(None, 2, StopAfterMinutes(1))
    validation.load_state_dict({"step": 3, "share": 1.0})  # of an earlier version
    assert validation.state_dict() == {"step": 3, "minutes": 0.0}


def test_patience(tmp_path: Path) -> None:
    # the best validation is the first: a learning rate of nothing
    trainer = run(tmp_path, max_epochs=10, learning_rate=1e-30, patience=2)
    assert trainer.state.epoch == 6
    assert validated_steps(tmp_path) == [6, 12, 18]
    trainer = run(tmp_path, max_epochs=10, learning_rate=1e-30, patience=2)  # it has run out
    assert len(losses(tmp_path)) == 18
    run(tmp_path, max_epochs=10, learning_rate=1e-30, patience=4)
    assert validated_steps(tmp_path) == [6, 12, 18, 24, 30]


def test_a_validation_in_which_nothing_counts_is_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, compute = iter([math.nan, math.nan, 0.4, math.nan, 0.3, math.nan]), CaseMetric.compute
    monkeypatch.setattr(CaseMetric, "compute", lambda metric: (compute(metric), next(found))[1])
    kept: list[int] = []

    class Kept:
        def attach(self, trainer: Engine) -> None:
            trainer.add_event_handler(Events.EPOCH_COMPLETED, self)

        def __call__(self) -> None:
            best = tmp_path / "model.pt"
            kept.append(best.stat().st_mtime_ns if best.exists() else 0)

    trainer = run(tmp_path, max_epochs=20, patience=3, more_handlers=[Kept()])
    assert trainer.state.epoch == 12  # three validations after the best
    assert 0 == kept[0] < kept[1] == kept[2] < kept[3] == kept[4] < kept[5]
    assert set(kept[5:]) == {kept[5]}
    state = torch.load(tmp_path / "checkpoints" / "latest.pt", weights_only=True)
    assert state["best"] == [0.4, 6]
    assert state["objects"]["history"]["best"] == [0.4, 6]


def test_without_patience_or_minutes_nothing_ends(tmp_path: Path) -> None:
    trainer = run(tmp_path, max_epochs=2, patience=None, max_minutes=None)
    assert trainer.state.iteration == 6
    assert EarlyStopping(None, trainer).state_dict() == {}


def rates(make: Any, fractions: list[float], epochs: int) -> list[float]:
    """The rate before each of 10 steps an epoch, the fraction of the time being given after each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    minutes = StopAfterMinutes(1)
    schedule = Schedule(make(optimizer, 10 * epochs), minutes)
    found = []

    def step(engine: Engine, _: Any) -> None:
        found.append(optimizer.param_groups[0]["lr"])
        minutes.fraction = fractions[engine.state.epoch - 1]

    engine = Engine(step)
    schedule.attach(engine)
    engine.run(range(10), max_epochs=len(fractions))
    engine.state.max_epochs = epochs
    return found


SCHEDULES = {
    "linear": lambda o, n: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n),
    "cosine": lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n),
    "polynomial": lambda o, n: torch.optim.lr_scheduler.PolynomialLR(o, n, 0.9),
    "one cycle": lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=n),
    "warm-up": lambda o, n: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=5),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, n - 5),
        ],
        [5],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_follows_the_steps_or_the_time_whichever_is_further(name: str) -> None:
    planned = rates(SCHEDULES[name], [0.0] * 4, 4)
    assert len(set(planned)) > 30
    # by the end of the first epoch half of the time is gone: step 20 of 40 less one
    hurried = rates(SCHEDULES[name], [0.5, 0.5, 0.99, 0.99], 4)
    assert hurried[0] == planned[0]
    assert hurried[1] == hurried[2] == hurried[10] == planned[round(0.5 * 39)]
    assert hurried[19] == planned[max(19, round(0.5 * 39))]
    assert hurried[21] == hurried[39] == planned[39]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_resumed_by_the_step_and_the_minutes(name: str) -> None:
    planned = rates(SCHEDULES[name], [0.0] * 4, 4)
    for step, share, expected in ((17, 0.0, 17), (17, 0.5, round(0.5 * 39)), (39, 1.0, 39)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        minutes = StopAfterMinutes(1)
        minutes.load_state_dict({"seconds": 60 * share})
        schedule = Schedule(SCHEDULES[name](optimizer, 40), minutes)
        engine = Engine(lambda *_: None)
        schedule.attach(engine)
        engine.state.max_epochs, engine.state.epoch_length, engine.state.iteration = 4, 10, step
        engine.fire_event(Events.STARTED)
        assert optimizer.param_groups[0]["lr"] == planned[expected]
        assert schedule.steps == expected
