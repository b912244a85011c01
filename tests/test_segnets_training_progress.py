"""Test the progress bar, the log lines and the estimates of time."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events
from tiny_engines import engines

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training import progress as progress_module
from segnets.training.progress import Progress


def test_log_lines_where_there_is_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    trainer, history = engines(tmp_path, epochs=4)
    progress = Progress(history, every_seconds=0)
    progress.attach(trainer)
    with caplog.at_level(logging.INFO, logger="segnets"):
        trainer.run()
    lines = [r.message for r in caplog.records if r.name == "segnets" and not r.message.startswith("a step takes")]
    validating = [line for line in lines if "validating" in line]
    assert len(validating) == 8
    lines = [line for line in lines if line not in validating]
    assert len(lines) == 13
    assert lines[0].startswith("epoch 1/4  ")
    assert "  loss " in lines[0]
    assert "Dice" not in lines[5]
    assert f"Dice {history.mean_dice:.3f}  best {history.best[0]:.3f} (epoch {history.best[1]})" in lines[-1]
    assert lines[-1].split("  ")[1] == "00:00 left"
    assert "\r" not in capsys.readouterr().err


def test_time_left_covers_the_whole_run_within_the_time_limit(tmp_path: Path, monkeypatch: Any) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    trainer, history = engines(tmp_path, epochs=10)
    history.load_state_dict(history.state_dict() | {"seconds": 100.0})
    progress = Progress(history)
    trainer.state.iteration = 6
    progress._start(trainer)
    now += 8.0
    trainer.state.iteration = 10  # 4 steps in 8 seconds, 20 of 30 to go
    assert progress.seconds_left(trainer) == pytest.approx(40)
    assert progress.line(trainer).split("  ")[1] == "00:40 left"
    progress.max_minutes = 2  # 108 seconds of 120 are over
    assert progress.seconds_left(trainer) == pytest.approx(12)


@pytest.mark.parametrize(
    ("pace", "minutes", "level", "text"),
    [
        (11.0, 3.0, "WARNING", "a step takes 11 s, all 4000 about 12:13:20; max_minutes 3 reaches about"),
        (11.0, 3.0, "WARNING", "reaches about step 17, 0.4% of them: too few for a useful network"),
        (0.01, 3.0, "INFO", "max_minutes 3 reaches about step 4000"),
        (0.02, 1.0, "INFO", "reaches about step 300"),
        (0.95, None, "INFO", "a step takes 0.95 s, all 4000 about 1:03:"),
    ],
)
def test_the_steps_within_the_time_limit_are_logged_after_a_few_steps(
    pace: float, minutes: float | None, level: str, text: str, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    trainer, history = engines(tmp_path, epochs=4)
    trainer.state.max_epochs, trainer.state.epoch_length = 80, 50
    progress = Progress(history, minutes, every_seconds=1e9)
    trainer.state.iteration = 0
    progress._start(trainer)
    with caplog.at_level(logging.INFO, logger="segnets"):
        for step in range(1, 30):
            now += pace if step > 1 else 0.0  # the first one is not counted
            trainer.state.iteration = step
            progress._step(trainer)
    (record,) = caplog.records
    assert record.levelname == level
    assert text in record.message


def test_a_terminal_that_is_closed_does_not_end_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    progress = Progress(history)

    def closed(*_: object) -> None:
        raise OSError(5, "Input/output error")

    progress.attach(trainer)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: setattr(progress, "_shown", -1e9))
    trainer.add_event_handler(Events.STARTED, lambda: monkeypatch.setattr(progress._bar, "set_description_str", closed))
    trainer.run()
    assert trainer.state.iteration == 6


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    trainer, history = engines(tmp_path, epochs=2)
    Progress(history).attach(trainer)
    trainer.run()
    shown = capsys.readouterr().err
    assert "\r100%|" in shown
    assert f"best {history.best[0]:.3f} (epoch 2)" in shown


def test_a_file_says_how_far_the_run_is(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress_module, "_FILE_SECONDS", 0.0)
    written: list[dict[str, Any]] = []

    def read() -> None:
        written.append(json.loads((tmp_path / "progress.jsonl").read_text()))

    trainer, history = engines(tmp_path, epochs=2)
    Progress(history).attach(trainer)
    for engine, event in ((trainer, Events.STARTED), (trainer, Events.ITERATION_COMPLETED)):
        engine.add_event_handler(event, read)
    history.validator.add_event_handler(Events.ITERATION_COMPLETED, read)
    trainer.run()
    read()
    assert [line["stage"] for line in written] == ["training"] * 7 + ["validating"] * 4 + ["ended"]
    assert [line["step"] for line in written] == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6]
    assert [(line["done"], line["total"]) for line in written[7:]] == [(1, 4), (2, 4), (3, 4), (4, 4), (0, 0)]
    assert written[0]["seconds_left"] is None
    assert written[0]["loss"] is None
    assert written[-1]["seconds_left"] == 0
    assert written[-1]["loss"] == history.loss
    assert [line["finished"] for line in written] == [False] * 11 + [True]
    assert {(line["epochs"], line["steps"]) for line in written} == {(2, 6)}
    assert [path.name for path in tmp_path.glob("progress*")] == ["progress.jsonl"]


def test_a_file_that_can_not_be_written_ends_no_run(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "progress.jsonl.part").mkdir()
    trainer, history = engines(tmp_path, epochs=1)
    Progress(history).attach(trainer)
    trainer.run()
    assert trainer.state.epoch == 1


def test_an_interruption_ends_the_bar(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    trainer, history = engines(tmp_path, epochs=4)
    progress = Progress(history)
    progress.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate(skip_completed=True))
    trainer.run()
    assert capsys.readouterr().err.endswith("\n")
    written = json.loads((tmp_path / "progress.jsonl").read_text())
    assert (written["stage"], written["finished"]) == ("ended", False)


def test_the_line_counts_the_cases_of_a_validation(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    progress = Progress(history)
    progress.attach(trainer)
    lines = []
    history.validator.add_event_handler(Events.ITERATION_COMPLETED, lambda: lines.append(progress.line(trainer)))
    trainer.run()
    assert [line.split("  ")[1] for line in lines] == [f"validating {n}/4" for n in range(1, 5)]
    assert "validating" not in progress.line(trainer)


def test_a_resumed_bar_begins_where_the_run_was(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    trainer, history = engines(tmp_path, epochs=10)
    history.load_state_dict(history.state_dict() | {"seconds": 100.0})
    progress = Progress(history)
    trainer.state.iteration = 15
    progress._start(trainer)
    shown = capsys.readouterr().err
    assert " 50%|" in shown
    assert "preparing step 16" in shown
    progress.max_minutes = 2.0
    assert progress._resumed_fraction(trainer) == pytest.approx(100 / 120)
    progress.max_minutes = None
    now += 20.0
    trainer.state.iteration = 18  # 12 of 30 steps to go, in 80 s
    progress._show(trainer)
    progress._log_above.close()
    assert " 60%|" in capsys.readouterr().err
