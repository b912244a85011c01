"""Test the scores in the metadata of a trained bundle."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from runs import write_lines

from napari_seg.bundles.read import shipped_root
from napari_seg.bundles.spec import METADATA
from napari_seg.training import folds
from napari_seg.training.scores import (
    CASES,
    MEAN,
    SUMMARY,
    explain,
    read_evaluation,
    read_patients,
    read_scores,
    read_soft_dice,
    score_rows,
    write_scores,
)
from napari_seg.training.write import PLAN

sys.path.insert(0, str(shipped_root()))

from segnets.metrics import mean_of


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / METADATA).parent.mkdir()
    (tmp_path / METADATA).write_text(
        json.dumps({"eval_metrics": {"validation mean Dice": 0.5}, "napari_seg": {"a": 1}})
    )
    return tmp_path


def test_scores_are_read_written_and_explained(bundle: Path) -> None:
    run = bundle / "training"
    (run / CASES).parent.mkdir(parents=True)
    lines = [
        {
            "case": f"c{n}",
            "patient": 7,
            "epoch": 1,
            "mean_dice": {"front": 0.8 + n / 10, "back": None if n else 0.4},
            "nsd": {"front": 1},
        }
        for n in range(2)
    ]
    write_lines(run / CASES, lines)
    cases = read_scores(run)
    assert cases["c0"] == {"front": 0.8, "back": 0.4}
    assert math.isnan(cases["c1"]["back"])
    assert read_scores(run, "nsd")["c1"] == {"front": 1.0}
    assert read_evaluation(bundle) is None

    write_scores(bundle, "test", cases, {})
    metadata = json.loads((bundle / METADATA).read_text())
    # the mean of the structures' means, as in the evaluation itself
    table = torch.tensor([[0.8, 0.4], [0.9, math.nan]])
    expected = round(mean_of(table)[0], 4)
    assert expected == 0.625
    assert metadata["eval_metrics"] == {"validation mean Dice": 0.5, "mean Dice of the test part": expected}
    assert metadata["napari_seg"]["a"] == 1
    entry = read_evaluation(bundle)
    assert entry is not None
    assert (entry["part"], entry["cases"], entry["patients"]) == ("test", 2, 2)
    front, back, mean = entry["dice"]
    assert (front["structure"], front["cases"], front["mean"]) == ("front", 2, 0.85)
    assert 0.8 <= front["low"] < 0.85 < front["high"] <= 0.9
    assert back == {"structure": "back", "cases": 1, "mean": 0.4, "median": 0.4, "low": None, "high": None}
    assert mean["structure"] == MEAN
    write_scores(bundle, "test", cases, read_patients(run))
    one = read_evaluation(bundle)
    assert one is not None
    assert one["patients"] == 1
    assert one["dice"][0] == front | {"low": None, "high": None}  # one patient has no interval
    assert score_rows(entry)[1] == ["back", "1", "0.4000", "–", "0.4000"]
    assert "neither trained nor selected" in explain(entry)


def test_without_a_case_nothing_is_written(bundle: Path) -> None:
    before = (bundle / METADATA).read_text()
    write_scores(bundle, "test", {}, {})
    assert (bundle / METADATA).read_text() == before
    assert read_evaluation(bundle / "nothing") is None
    for damaged in ("[]", "{", '{"napari_seg": 1}', '{"napari_seg": {"evaluation": {"part": "test", "dice": [{}]}}}'):
        (bundle / METADATA).write_text(damaged)
        assert read_evaluation(bundle) is None


def test_scores_after_fine_tuning_name_what_the_initial_weights_may_have_seen(bundle: Path) -> None:
    (bundle / PLAN).write_text(json.dumps({"choices": {"fine_tune": {"file": "../old/models/model.pt"}}}))
    write_scores(bundle, "test", {"c0": {"front": 0.8}}, {})
    entry = read_evaluation(bundle)
    assert entry is not None
    assert "the initial weights of the fine-tuning may have seen these cases" in explain(entry)
    (bundle / PLAN).write_text(json.dumps({"choices": {}}))
    write_scores(bundle, "test", {"c0": {"front": 0.8}}, {})
    assert "initial weights" not in explain(read_evaluation(bundle) or {})


def test_folds_state_the_mean_dice_of_fractions(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "evaluate"):
        (bundle / "configs" / f"{name}.yaml").write_text("regions: true\n")
    for fold, soft in enumerate([0.8, 0.9]):
        run = bundle / f"fold_{fold}"
        (run / CASES).parent.mkdir(parents=True)
        write_lines(run / CASES, [{"case": f"c{fold}", "patient": fold, "epoch": 1, "mean_dice": {"white": 0.9}}])
        means = {"mean_dice": {"mean": 0.9, "white": 0.9}, "soft_dice": {"mean": soft, "white": soft}}
        (run / SUMMARY).write_text(json.dumps(means))
    for name in ("_make_ensemble", "write_report"):
        monkeypatch.setattr(folds, name, lambda *_: None)
    monkeypatch.setattr(folds, "_finished", lambda *_: True)
    folds.cross_validate(bundle, bundle, 2, None, report=print)
    text = "masks of fractions above one half; the mean Dice of the fractions is 0.8500"
    assert text in explain(read_evaluation(bundle) or {})


def test_the_dice_of_fractions_is_explained(bundle: Path) -> None:
    summary = bundle / "training" / SUMMARY
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"cases": 1, "mean_dice": {"mean": 0.9}}))
    assert read_soft_dice(bundle / "training") is None
    summary.write_text(json.dumps({"cases": 1, "mean_dice": {"mean": 0.9}, "soft_dice": {"mean": 0.85, "white": 0.85}}))
    write_scores(bundle, "test", {"c1": {"white": 0.9}}, {}, soft_dice=read_soft_dice(bundle / "training"))
    entry = read_evaluation(bundle)
    assert entry is not None
    assert explain(entry).endswith("; masks of fractions above one half; the mean Dice of the fractions is 0.8500")
