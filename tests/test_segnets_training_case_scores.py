"""Test validation.jsonl: the scores of each case in the best validation."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from tiny_engines import NAMES, engines

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training.case_scores import CaseScores


def validated(rows: torch.Tensor, epoch: int, best_epoch: int) -> Engine:
    evaluator = Engine(lambda e, b: None)
    evaluator.state.key_metric_name, evaluator.state.metric_details = "mean_dice", {"mean_dice": rows}
    evaluator.state.epoch, evaluator.state.best_metric_epoch = epoch, best_epoch
    return evaluator


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_each_case_has_its_scores_and_only_the_best_validation_counts(tmp_path: Path) -> None:
    path = tmp_path / "run" / "validation.jsonl"
    handler = CaseScores(path, ("front", "back"))
    rows = torch.tensor([[0.5, torch.nan], [0.75, 0.25]])
    evaluator = validated(rows, 6, best_epoch=6)
    for name in ("a", "b"):
        evaluator.state.batch = [{"name": name}]
        handler._batch_completed(evaluator)
    handler._completed(evaluator)
    expected = [
        {"case": "a", "epoch": 6, "mean_dice": {"front": 0.5, "back": None}},
        {"case": "b", "epoch": 6, "mean_dice": {"front": 0.75, "back": 0.25}},
    ]
    assert lines(path) == expected
    worse = validated(rows / 2, 12, best_epoch=6)
    handler._completed(worse)
    assert lines(path) == expected


def test_several_patches_of_a_case_give_their_mean(tmp_path: Path) -> None:
    handler = CaseScores(tmp_path / "validation.jsonl", ("front", "back"))
    rows = torch.tensor([[0.5, torch.nan], [1.0, 0.25], [0.5, torch.nan]])
    evaluator = validated(rows, 1, best_epoch=1)
    for name in ("a", "b", "a"):
        evaluator.state.batch = [{"name": name}]
        handler._batch_completed(evaluator)
    handler._completed(evaluator)
    assert [line["mean_dice"] for line in lines(tmp_path / "validation.jsonl")] == [
        {"front": 0.5, "back": None},
        {"front": 1.0, "back": 0.25},
    ]


def test_an_evaluation_has_all_its_metrics_and_the_patients(tmp_path: Path) -> None:
    handler = CaseScores(tmp_path / "cases.jsonl", ("front",), {"z": "Anna", "b": "Bert", "a": "Anna"})
    evaluator = validated(torch.tensor([[0.5], [0.75]]), 1, best_epoch=1)
    evaluator.state.metric_details = {"nsd": torch.tensor([[0.1], [0.2]])} | evaluator.state.metric_details
    evaluator.state.batch = [{"name": "a"}, {"name": "b"}]
    handler._batch_completed(evaluator)
    handler._completed(evaluator)
    first, second = lines(tmp_path / "cases.jsonl")
    assert list(first) == ["case", "patient", "epoch", "mean_dice", "nsd"]
    assert (first["patient"], second["patient"]) == (1, 2)
    assert second["mean_dice"] == {"front": 0.75}


def test_scores_that_belong_to_other_cases_are_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handler = CaseScores(tmp_path / "validation.jsonl")
    with caplog.at_level(logging.WARNING, logger="segnets"):
        handler._completed(validated(torch.ones(2, 1), 1, best_epoch=1))
    assert "0 cases have 2 scores" in caplog.text
    assert not (tmp_path / "validation.jsonl").exists()


def test_a_run_records_its_cases_as_its_metric_has_them(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    CaseScores(tmp_path / "validation.jsonl", NAMES).attach(history.validator)
    trainer.run()
    details = history.validator.state.metric_details["val_mean_dice"]
    written = lines(tmp_path / "validation.jsonl")
    assert [line["case"] for line in written] == [f"case_{n:02d}" for n in range(4)]
    assert [list(line["val_mean_dice"].values()) for line in written] == [
        pytest.approx(row) for row in details.tolist()
    ]
