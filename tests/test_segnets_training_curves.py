"""Test the learning curves of a run and the comparison of runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_engines import engines

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training.curves import LearningCurve, best_validation, draw_curves, main
from segnets.training.history import read_history


def test_curves_are_drawn_and_runs_compared(tmp_path: Path, capsys: Any) -> None:
    for name, epochs in (("short", 2), ("long", 4)):
        trainer, history = engines(tmp_path / name, epochs=epochs)
        LearningCurve(history, tmp_path / name / "learning_curve.png").attach(trainer)
        trainer.run()
        with Image.open(tmp_path / name / "learning_curve.png") as drawn:
            assert drawn.size == (880, 770)
            assert len(drawn.convert("RGB").getcolors(1 << 20)) > 10
    main([str(tmp_path / "short"), str(tmp_path / "long"), "-o", str(tmp_path / "compare.png")])
    rows = capsys.readouterr().out.splitlines()
    best = best_validation(read_history(tmp_path / "long"))
    assert rows[0].split()[:6] == ["run", "best", "Dice", "epoch", "epochs", "minutes"]
    assert rows[2].split()[1:4] == [f"{best['mean_dice']:.4f}", str(best["epoch"]), "4"]
    assert f"front {best['dice']['front']:.4f}" in rows[2]
    assert (tmp_path / "compare.png").is_file()
    assert not list(tmp_path.rglob("*.part"))
    assert "matplotlib.pyplot" not in sys.modules or "napari" in sys.modules
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no history.jsonl" in capsys.readouterr().err


def test_a_run_without_validation_has_a_curve_too(tmp_path: Path) -> None:
    draw_curves({"run": [{"epoch": 1, "step": 3, "loss": 0.5, "lr": 0.1, "seconds": 1.0}]}, tmp_path / "curve.png")
    assert best_validation([]) is None
    assert (tmp_path / "curve.png").is_file()


def test_a_name_with_dollars_is_no_formula(tmp_path: Path) -> None:
    line = {"epoch": 1, "step": 3, "mean_dice": 0.5, "dice": {"a$b{c$": 0.5}, "planned_steps": 3, "seconds": 1.0}
    draw_curves(
        {"run": [{"epoch": 1, "step": 3, "loss": 0.5, "lr": 0.1, "seconds": 1.0}, line]}, tmp_path / "curve.png"
    )
    assert (tmp_path / "curve.png").is_file()


def test_without_matplotlib_a_run_continues_and_logs_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with caplog.at_level(logging.INFO, logger="segnets"):
        trainer, history = engines(tmp_path, epochs=2)
        LearningCurve(history, tmp_path / "learning_curve.png").attach(trainer)
        trainer.run()
    logged = [record.message for record in caplog.records if "matplotlib" in record.message]
    assert logged == [
        f"{name} will not be drawn: matplotlib is not installed" for name in ("worst_best.png", "learning_curve.png")
    ]
    assert not list(tmp_path.glob("*.png"))
    assert read_history(tmp_path)
