"""Test the report of a training."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from runs import write_lines, write_run

from napari_seg.training.report import REPORT, page, write_report
from napari_seg.training.scores import write_scores

PLAN = {
    "fingerprint": {"cases": 6, "channels": ["T1"], "modality": "MR"},
    "labels": {"front": [1], "back": [2]},
    "options": {},
    "settings": {"batch_size": {"value": 2, "why": "a large patch <is> preferred"}},
    "choices": {},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    return tmp_path


def cells(html: str, name: str) -> list[str]:
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", html) if name in row)
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def test_the_report_of_a_run(bundle: Path) -> None:
    write_run(bundle / "training")
    assert write_report(bundle) == bundle / REPORT
    html = (bundle / REPORT).read_text(encoding="utf-8")
    front = [0.9, 0.85, 0.8, 0.75, 0.7, 0.65]
    name, count, mean, interval, median, lowest = cells(html, ">front<")
    assert (name, count, mean, median) == ("front", "6", f"{np.mean(front):.3f}", f"{np.median(front):.3f}")
    assert lowest == "0.650 (case_5)"
    low, high = map(float, interval.split(" to "))
    assert 0.65 < low < np.mean(front) < high < 0.9
    assert cells(html, ">back<")[1:4] == ["1", "0.600", "–"]
    averaged = [0.75, *front[1:]]  # each case over its structures
    assert cells(html, "mean of the structures")[2] == f"{np.mean(averaged):.3f}"
    assert html.count("<svg") == 2
    assert html.count("data:image/png;base64,") == 1
    assert "30 of 30 planned steps, 20 s of training, best validation in epoch 8" in html
    assert "a large patch &lt;is&gt; preferred" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)  # self-contained


def test_intervals_resample_patients(bundle: Path) -> None:
    run = write_run(bundle / "training")
    lines = [json.loads(line) | {"patient": 1} for line in (run / "validation.jsonl").read_text().splitlines()]
    write_lines(run / "validation.jsonl", lines)
    write_report(bundle)
    assert cells((bundle / REPORT).read_text(encoding="utf-8"), ">front<")[3] == "–"  # six cases of one patient


def test_the_scores_of_the_test_part_are_shown(bundle: Path) -> None:
    write_run(bundle / "training")
    (bundle / "configs").mkdir()
    (bundle / "configs" / "metadata.json").write_text('{"eval_metrics": {}}')
    cases = {"a": {"front": 0.8, "<back>": math.nan}, "b": {"front": 0.9, "<back>": 0.5}}
    write_scores(bundle, "test", cases, {}, postprocessing=[{"structure": "front", "gain": 0.01, "kept": True}])
    write_report(bundle)
    html = (bundle / REPORT).read_text(encoding="utf-8").partition("<h2>Validation")[0]
    assert cells(html, ">front<")[:3] == ["front", "2", "0.8500"]
    assert cells(html, "&lt;back&gt;") == ["&lt;back&gt;", "1", "0.5000", "–", "0.5000"]
    assert "measured on the test part" in html
    assert "<td>+0.0100</td>" in html


def test_folds_share_a_report(bundle: Path) -> None:
    for n in range(2):
        write_run(bundle / f"fold_{n}", cases=3 + n)
    write_report(bundle)
    html = (bundle / REPORT).read_text(encoding="utf-8")
    assert "2 folds, 60 of 60 planned steps" in html
    assert html.count("data:image/png;base64,") == 2


def test_there_is_no_report_before_a_run_and_one_without_validation(bundle: Path) -> None:
    assert write_report(bundle) is None
    write_run(bundle / "training", epochs=1)
    for name in ("validation.jsonl", "worst_best.png"):
        (bundle / "training" / name).unlink()
    write_report(bundle)
    assert "<h2>Validation" not in (bundle / REPORT).read_text(encoding="utf-8")


def test_names_are_text() -> None:
    html = page("<script>x", PLAN, [], {"<img src=y>": {"<b>": 0.5}})
    assert "<script>x" not in html
    assert "<img src=y>" not in html
    assert "&lt;b&gt;" in html
