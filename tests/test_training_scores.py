"""Test the scores in the metadata of a trained bundle."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from runs import write_lines

from napari_seg.bundles.spec import METADATA
from napari_seg.training.scores import CASES, MEAN, explain, read_evaluation, read_scores, score_rows, write_scores


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

    write_scores(bundle, "test", cases)
    metadata = json.loads((bundle / METADATA).read_text())
    # of each case the mean of its structures: 0.6 and 0.9
    assert metadata["eval_metrics"] == {"validation mean Dice": 0.5, "test mean Dice": 0.75}
    assert metadata["napari_seg"]["a"] == 1
    entry = read_evaluation(bundle)
    assert entry is not None
    assert (entry["part"], entry["cases"]) == ("test", 2)
    front, back, mean = entry["dice"]
    assert (front["structure"], front["cases"], front["mean"]) == ("front", 2, 0.85)
    assert 0.8 <= front["low"] < 0.85 < front["high"] <= 0.9
    assert back == {"structure": "back", "cases": 1, "mean": 0.4, "median": 0.4, "low": None, "high": None}
    assert mean["structure"] == MEAN
    assert score_rows(entry)[1] == ["back", "1", "0.4000", "–", "0.4000"]
    assert "neither trained nor selected" in explain(entry)


def test_without_a_case_nothing_is_written(bundle: Path) -> None:
    before = (bundle / METADATA).read_text()
    write_scores(bundle, "test", {})
    assert (bundle / METADATA).read_text() == before
    assert read_evaluation(bundle / "nothing") is None
