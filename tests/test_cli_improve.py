"""`napari-seg improve`: what it prints, and how it ends; `test_learning_improve` tests what it does."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import Any

import pytest

from napari_seg.cli.main import main
from napari_seg.errors import Cancelled
from napari_seg.learning.compare import MEAN, ComparedStructure
from napari_seg.learning.improve import Improvement

ROWS = (
    ComparedStructure("liver", 8, 0.81, 0.853, 0.012, 0.071),
    ComparedStructure("tumour", 3, nan, 0.4),
    ComparedStructure(MEAN, 8, 0.81, 0.853, 0.012, 0.071),
)


def run(monkeypatch: pytest.MonkeyPatch, found: Any, *words: str) -> int:
    def pretend(folder: Path, bundle: Any, out: Path, **options: Any) -> Any:
        assert options["settings"] == {"learning_rate": 0.001}
        assert options["max_minutes"] == 3
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("napari_seg.learning.improve.improve", pretend)
    shipped = str(Path(__file__).parents[1] / "monai_bundle")
    given = ["improve", "set", "--model", shipped, "-o", "out", "--max-minutes", "3", "--set", "learning_rate=1e-3"]
    return main([*given, *words])


def test_the_table_says_what_became_better(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    found = Improvement(Path("out"), "liver_ct", 1, 40, ROWS, 19.9, {"case0003": "series.moved: 2 files"})
    assert run(monkeypatch, found) == 0
    printed = capsys.readouterr().out
    assert "left out case0003: series.moved: 2 files" in printed
    assert "liver      8      0.8100  0.8530  +0.0430     +0.012 to +0.071" in printed
    assert "tumour     3      –       0.4000  –           –" in printed
    assert "better  out\n" in printed
    assert "napari-seg predict SCAN --model out" in printed
    few = Improvement(Path("out"), "liver_ct", 1, 8, (ComparedStructure(MEAN, 2, 0.81, 0.853, patients=2),), 19.9)
    assert (few.is_clear, few.has_few_patients) == (False, True)
    assert run(monkeypatch, few) == 0
    assert "better  out; too few validation cases to tell, which takes those of 6 patients" in capsys.readouterr().out
    worse = ComparedStructure(MEAN, 8, 0.81, 0.80, -0.03, 0.01)
    assert run(monkeypatch, Improvement(Path("out"), "liver_ct", 1, 40, (worse,), 19.9)) == 0
    printed = capsys.readouterr().out
    assert "no gain out; keep" in printed
    assert "better" not in printed


def test_a_stop_says_whether_it_saved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, Cancelled("run.stopped", "stopped and saved; run the same command again")) == 130
    assert "run.stopped: stopped and saved" in capsys.readouterr().err


def test_a_time_limit_is_above_zero(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["improve", "set", "--model", "x", "-o", "out", "--max-minutes", "0"])
    assert "expected minutes above 0" in capsys.readouterr().err
