"""Test history.jsonl: its lines, and their continuation after a resume."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from tiny_engines import NAMES, engines

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training.curves import best_validation
from segnets.training.history import read_history


class Losses:
    """Collect the loss of each step from the trainer."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: self.values.append(float(e.state.output[0]["loss"]))
        )


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_line_per_epoch_and_a_line_per_validation(tmp_path: Path) -> None:
    losses = Losses()
    trainer, history = engines(tmp_path, epochs=4, extra=[losses])
    trainer.run()
    lines = read_history(tmp_path)
    assert [(x["epoch"], x["step"], "loss" in x) for x in lines] == [
        (1, 3, True),
        (2, 6, False),
        (2, 6, True),
        (3, 9, True),
        (4, 12, False),
        (4, 12, True),
    ]
    means = np.reshape(losses.values, (4, 3)).mean(axis=1)
    assert [x["loss"] for x in lines if "loss" in x] == pytest.approx(means, rel=1e-6)
    assert all(x["lr"] == 0.02 for x in lines if "loss" in x)
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(lines))
    details = history.validator.state.metric_details["val_mean_dice"]
    assert lines[4]["dice"] == pytest.approx(dict(zip(NAMES, details.nanmean(0).tolist(), strict=True)))
    assert lines[4]["mean_dice"] == history.mean_dice == pytest.approx(np.mean(list(lines[4]["dice"].values())))
    assert history.best == (max(x["mean_dice"] for x in lines if "dice" in x), best_validation(lines)["epoch"])


def test_a_resumed_history_is_as_if_never_interrupted(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path / "whole", epochs=4)
    history.every_step = True
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=8),
        lambda e: torch.save([history.state_dict(), trainer.network.state_dict()], tmp_path / "checkpoint.pt"),
    )
    trainer.run()
    whole = read_history(tmp_path / "whole")
    assert [x["step"] for x in whole if "step_loss" in x] == list(range(1, 13))
    # what a run killed in step 10 leaves behind, the last line half written
    (tmp_path / "killed").mkdir()
    text = (tmp_path / "whole" / "history.jsonl").read_text()
    (tmp_path / "killed" / "history.jsonl").write_text(text[: text.index('"step": 10') + 20])

    trainer, history = engines(tmp_path / "killed", epochs=4)
    history.every_step = True
    state, weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    trainer.network.load_state_dict(weights)
    trainer.load_state_dict({"iteration": 8, "epoch_length": 3, "max_epochs": 4})
    trainer.add_event_handler(Events.STARTED, lambda: history.load_state_dict(state))
    trainer.run()
    assert without_seconds(read_history(tmp_path / "killed")) == without_seconds(whole)


def test_a_new_run_leaves_no_old_line(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"epoch": 99, "step": 1}\n')
    engines(tmp_path, epochs=1)[0].run()
    assert [x["epoch"] for x in read_history(tmp_path)] == [1]


def test_nan_is_written_as_null(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=1)
    history._validation_completed(_validated(torch.tensor([[0.5, torch.nan], [0.7, torch.nan]]), mean=0.6), trainer)
    history._validation_completed(_validated(torch.full((1, 2), torch.nan), mean=float("nan")), trainer)
    lines = [json.loads(x, parse_constant=pytest.fail) for x in history.path.read_text().splitlines()]
    assert lines[0]["dice"] == {"front": pytest.approx(0.6), "back": None}
    assert lines[1]["mean_dice"] is None
    assert history.best == (0.6, 0)


def _validated(details: torch.Tensor, mean: float) -> Engine:
    engine = Engine(lambda e, b: None)
    engine.state.key_metric_name = "dice"
    engine.state.metrics, engine.state.metric_details = {"dice": mean}, {"dice": details}
    return engine
