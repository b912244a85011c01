"""Test what is read of a run from its files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import lines_of, progress_of, write_lines, write_run

from napari_seg.training.history import (
    current_run,
    read_case_scores,
    read_history,
    read_state,
    read_summary,
    run_folders,
)


def test_the_state_of_a_run(tmp_path: Path) -> None:
    state = read_state(write_run(tmp_path / "training", epochs=10))
    assert state.losses == [(n, pytest.approx(1 / n)) for n in range(1, 11)]
    assert [one.epoch for one in state.validations] == [2, 4, 6, 8, 10]
    assert state.best is not None
    assert state.best.epoch == 8
    assert state.best.dice["back"] == pytest.approx(state.best.dice["front"] - 0.1)
    assert state.preview == tmp_path / "training" / "worst_best.png"
    assert state.progress is not None
    assert (state.progress.step, state.progress.steps, state.progress.epochs) == (30, 30, 10)
    assert not state.progress.is_live


def test_the_summary_is_that_of_the_last_validation(tmp_path: Path) -> None:
    summary = read_summary(write_run(tmp_path / "training", epochs=9))
    assert summary.steps == (24, 30)
    assert summary.best is not None
    assert summary.best["epoch"] == 6  # from epoch 8 on the Dice is lower
    assert read_summary(tmp_path / "nothing").best is None
    (tmp_path / "training" / "history.jsonl").write_text("")  # all cases trained, for less than an epoch
    assert read_summary(tmp_path / "training").steps == (27, 30)


def test_a_run_is_live_while_it_writes(tmp_path: Path) -> None:
    for progress, is_live in (
        (progress_of(4), True),
        (progress_of(4, stage="validating", done=1, total=3), True),
        (progress_of(4, time=time.time() - 3600), False),
        (progress_of(4, stage="ended"), False),
    ):
        write_lines(tmp_path / "progress.jsonl", [progress])
        found = read_state(tmp_path).progress
        assert found is not None
        assert found.is_live == is_live


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]\n",
        b'{"epoch": "7", "loss": {}}\n{"epoch": null, "mean_dice": [], "dice": 3}\n',
        b'{"stage": 1, "epoch": true}\n',
        b'{"case": "a", "mean_dice": {"x": "y"}}\n',
        b'{"epoch": 1, "loss": 1.0}',  # being written
        b"[" * 100_000 + b"\n",
        b'{"epoch": 1' + b"0" * 400 + b', "epochs": 1, "step": 1, "steps": 1, "done": 0, "total": 0, "loss": 1}\n',
    ],
)
def test_damaged_files_count_as_not_written(content: bytes, tmp_path: Path) -> None:
    for name in ("history.jsonl", "progress.jsonl", "validation.jsonl"):
        (tmp_path / name).write_bytes(content)
    state = read_state(tmp_path)
    assert state.progress is None
    assert state.validations == []
    assert all(math.isnan(value) for scores in read_case_scores(tmp_path).values() for value in scores.values())


def test_scores_of_cases(tmp_path: Path) -> None:
    scores = read_case_scores(write_run(tmp_path, cases=2))
    assert scores["case_0"] == {"front": 0.9, "back": 0.6}
    assert scores["case_1"]["front"] == pytest.approx(0.85)
    assert math.isnan(scores["case_1"]["back"])
    assert read_case_scores(tmp_path / "nothing") == {}


def test_the_current_run_is_the_one_that_wrote_last(tmp_path: Path) -> None:
    assert current_run(tmp_path) == tmp_path / "training"
    assert run_folders(tmp_path) == []
    for n in (10, 9, 2):
        folder = write_run(tmp_path / f"fold_{n}")
        os.utime(folder / "progress.jsonl", (1000 + n, 1000 + n))
    assert current_run(tmp_path).name == "fold_10"
    assert [folder.name for folder in run_folders(tmp_path)] == ["fold_2", "fold_9", "fold_10"]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "history.jsonl", lines_of(3))
    assert read_history(tmp_path) == lines_of(3)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 4})[:-1])
    assert read_history(tmp_path) == lines_of(3)


def test_following_a_run_loads_no_torch() -> None:
    code = (
        "import sys; from napari_seg.training import curves, history, report\n"
        "print(*({'torch', 'monai', 'matplotlib', 'nibabel'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
