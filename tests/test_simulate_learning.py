"""Simulated corrections: which cells run, what they are given, and what is kept of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import write_decathlon

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import simulate_learning
from simulate_learning import cells, read, simulate, summary, write, write_data


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    parts = {"seed": ["s"], "candidates": [f"c{number}" for number in range(9)], "validation": ["v"]}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    return argparse.Namespace(
        parts=tmp_path / "parts.json",
        work=tmp_path / "work",
        model=tmp_path / "model",
        data=tmp_path / "data",
        sizes=[2, 4],
        seeds=2,
        repeats=2,
        steps=10,
        learning_rate=0.001,
    )


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Cells that ran, with their cases; the third one is stopped."""
    found: dict[str, list[str]] = {}

    def run_cell(args: Any, parts: Any, chosen: list[str], key: str, seed: int) -> dict[str, Any]:
        assert seed == int(key == f"{len(chosen)} queue 1")
        if len(found) == 2 and "stopped" not in found:
            found["stopped"] = []
            raise KeyboardInterrupt
        found[key] = chosen
        return {"cases": chosen, "cpu_minutes": 1.0, "dice": {"mean": 0.8 + len(chosen) / 100}}

    monkeypatch.setattr(simulate_learning, "run_cell", run_cell)
    monkeypatch.setattr(simulate_learning, "evaluate", lambda *args: {"mean": 0.7})
    monkeypatch.setattr(simulate_learning, "rank_candidates", lambda *args: ["c8", "c1", "c4", "c0"])
    return found


def test_cells_go_size_by_size() -> None:
    assert list(cells([1, 2], ["a", "b"])) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_a_stopped_simulation_goes_on(args: argparse.Namespace, ran: dict[str, list[str]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(args)
    assert list(read(args.work)["cells"]) == ["2 queue", "2 queue 1"]
    simulate(args)
    choices = ["queue", "queue 1", "random 0", "random 1"]
    names = [f"{size} {choice}" for size in (2, 4) for choice in choices]
    assert list(read(args.work)["cells"]) == names
    assert [name for name in ran if name != "stopped"] == names
    assert ran["2 queue"] == ["c8", "c1"]
    for choice in choices:  # a larger set holds the smaller one
        assert ran[f"4 {choice}"][:2] == ran[f"2 {choice}"]
    assert ran["4 random 0"] != ran["4 random 1"]
    lines = summary(read(args.work)).splitlines()
    assert lines[0] == "start: mean Dice 0.7000"
    assert lines[-1].split()[:6] == ["4", "0.8400", "±", "0.0000", "(2)", "0.8400"]


def test_an_unfinished_report_has_a_summary(tmp_path: Path) -> None:
    assert summary(read(tmp_path)).startswith("nothing yet")
    write(tmp_path, {"cells": {"2 queue": {"size": 2, "choice": "queue", "cpu_minutes": 1, "dice": {"mean": 0.5}}}})
    assert "0.5000" in summary(read(tmp_path))


def test_the_validation_part_is_fixed(tmp_path: Path) -> None:
    source = write_decathlon(tmp_path / "source", cases=4)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "imagesTr").glob("*.nii.gz"))
    write_data(source, tmp_path / "data", names[:2], names[3:])
    entries = json.loads((tmp_path / "data" / "dataset.json").read_text())["training"]
    assert [entry["split"] for entry in entries] == ["training", "training", "validation"]
    assert all((tmp_path / "data" / entry[key]).is_file() for entry in entries for key in ("image", "label"))
