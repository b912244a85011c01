"""Test runs that end before their last epoch and are resumed."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler
from preloaded import run_python
from tiny_run import children, losses, make_run, run, run_distributed, without_times

from segnets.errors import TrainingError  # isort: skip - within reach by tiny_run
from segnets.metrics import CaseMetric  # isort: skip - by tiny_run
from segnets.training import EarlyStopping, StopAfterMinutes, StopOnSignal, Validation  # isort: skip - by tiny_run


class At:
    """Call a function after a step."""

    def __init__(self, step: int, do: Any) -> None:
        self.step, self.do = step, do

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=self.step), lambda: self.do())


class InterruptRank:
    """Send SIGTERM to one of several processes after a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def attach(self, trainer: Engine) -> None:
        if idist.get_rank() == self.rank:
            At(self.step, lambda: os.kill(os.getpid(), signal.SIGTERM)).attach(trainer)


def validated_steps(folder: Path) -> list[int]:
    return [line["step"] for line in without_times(folder) if "mean_dice" in line]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return a run of 4 epochs of 3 steps without interruption, validated after every second epoch."""
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


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    def run_two(folder: Path, **options: Any) -> None:
        common: dict[str, Any] = {"batch_size": 1, "every_steps": None, **options}
        ranks = [children().Process(target=run_distributed, args=(folder, rank, 2), kwargs=common) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
            assert process.exitcode == 0
        Path(f"{folder}-store").unlink()

    run_two(tmp_path / "whole")
    folder = tmp_path / "interrupted"
    run_two(folder, more_handlers=[InterruptRank(1, 5)])
    assert torch.load(folder / "checkpoints" / "latest.pt", weights_only=True)["step"] == 5
    run_two(folder)
    assert without_times(folder) == without_times(tmp_path / "whole")
    with pytest.raises(TrainingError, match=r"cases a step: was 2, is 1 \(batch_size times the number of GPUs\)"):
        run(folder, batch_size=1)


def test_a_run_without_a_signal_exits_normally(tmp_path: Path) -> None:
    signals = StopOnSignal()
    run(tmp_path, max_epochs=1, more_handlers=[signals])
    signals.exit()


def test_workers_outlive_a_signal_to_all(tmp_path: Path) -> None:
    """Send signals to the workers too, as a terminal does with Ctrl-C and a cluster with SIGTERM."""

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
    """Workers ignore SIGTERM, with which Python would end them before it waits for them forever."""
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
    status, output = run_python(["-c", code], tmp_path, seconds=60)
    assert status == 1
    assert "No space left on device" in output.strip().splitlines()[-1]


def test_minutes_are_summed_over_restarts_and_more_of_them_resume(
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
    # half a minute of 60 is less than the fraction of steps, so the rate follows the steps
    rates = [[line["lr"] for line in without_times(f) if "lr" in line][-3:] for f in (folder, whole)]
    assert rates[0] == rates[1]


def test_validations_follow_a_larger_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert validation.state_dict() == {"step": 3, "minutes": 0.0, "duration": 0.0}


def test_long_validations_take_a_tenth_of_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    minutes, trainer, validated = StopAfterMinutes(100), Engine(lambda e, b: None), []
    trainer.state.device = torch.device("cpu")
    validation = Validation(None, 2, minutes)
    validation.validator = SimpleNamespace(data_loader=SimpleNamespace(dataset=[0]))
    validation.load_state_dict({"step": 0, "minutes": 0.0, "duration": 3.0})
    monkeypatch.setattr(ValidationHandler, "__call__", lambda handler, engine: validated.append(engine.state.iteration))
    monkeypatch.setattr(idist, "all_reduce", lambda seconds, _: 60 * 3.0)  # each takes three minutes
    for minute in range(1, 101):
        minutes.fraction, trainer.state.iteration = minute / 100, minute
        validation._in_time(trainer)
    assert validated == [30, 60, 90]


def test_patience(tmp_path: Path) -> None:
    # the best validation is the first: a learning rate of nothing
    trainer = run(tmp_path, max_epochs=10, learning_rate=1e-30, patience=2)
    assert trainer.state.epoch == 6
    assert validated_steps(tmp_path) == [6, 12, 18]
    trainer = run(tmp_path, max_epochs=10, learning_rate=1e-30, patience=2)  # it has run out
    assert len(losses(tmp_path)) == 18
    run(tmp_path, max_epochs=10, learning_rate=1e-30, patience=4)
    assert validated_steps(tmp_path) == [6, 12, 18, 24, 30]


def test_a_validation_without_counting_cases_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
