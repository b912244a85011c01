"""Test the comparison of configurations by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from napari_seg.training.comparison import HEADS, rank, read_comparison, write_comparison


def test_the_best_comes_first_and_the_others_are_compared_with_it(tmp_path: Path) -> None:
    scores = {
        "2d": {"x": {"front": 0.5, "back": 0.7}, "y": {"front": 0.6, "back": math.nan}, "z": {"front": 0.8}},
        "3d": {"x": {"front": 0.8, "back": 0.8}, "y": {"front": 0.7, "back": 0.9}, "z": {"front": 0.8}},
        "none": {"x": {"front": math.nan}},
    }
    parameters = {"2d": 1_300_000, "3d": None, "none": 7}
    best, other, none = rank(scores, {"2d": 3.0, "3d": 12.34, "none": 0.0}, parameters)
    assert (best.name, best.difference, best.dice.count) == ("3d", None, 3)
    assert best.dice.mean == pytest.approx(0.8)
    assert other.difference is not None
    assert other.difference.mean == pytest.approx((-0.2 - 0.2 + 0) / 3)
    assert other.difference.low == pytest.approx(-0.2)
    assert none.name == "none"
    assert best.cells() == ["3d", "3", "0.8000 (0.8000 to 0.8000)", "best", "12.3", "–"]
    assert other.cells()[:2] == ["2d", "3"]
    assert other.cells()[3:] == ["-0.1333 (-0.2000 to +0.0000)", "3.0", "1.3 million"]
    assert len(HEADS) == len(best.cells())

    assert read_comparison(tmp_path) is None
    write_comparison(tmp_path, {"compared": [], "choices": {}, "results": [row.as_dict() for row in (best, none)]})
    record = read_comparison(tmp_path)
    assert record is not None
    assert record["results"][0]["dice"]["mean"] == pytest.approx(0.8)
    assert record["results"][1]["dice"]["mean"] is None
    json.dumps(record, allow_nan=False)
