"""Test the comparison of configurations by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from napari_seg.training.comparison import HEADS, rank, read_comparison, write_comparison


def test_the_best_comes_first_and_the_others_are_compared_with_it(tmp_path: Path) -> None:
    """Structure b is absent in y, where 3d finds something; x and y are of one patient."""
    nan = math.nan
    scores = {
        "3d": {"x": {"a": 0.8, "b": 0.8}, "y": {"a": 0.7, "b": 0.0}, "z": {"a": 0.8, "b": nan}},
        "2d": {"x": {"a": 0.5, "b": 0.7}, "y": {"a": 0.6, "b": nan}, "z": {"a": 0.8, "b": nan}},
    }
    patients = {"x": "p", "y": "p", "z": "q"}
    weights = {"2d": None, "3d": 1_300_000}
    best, other = rank(scores, patients, {"2d": 3.0, "3d": 12.34}, weights, {"2d": 0.5, "3d": 2.25})
    assert (best.name, best.difference, best.dice.count) == ("2d", None, 3)
    # a: (0.5 + 0.6 + 0.8) / 3, b: (0.7 + 1) / 2; of patient p alone 0.7, of q alone 0.8
    assert best.cells() == ["2d", "3", "0.7417 (0.7000 to 0.8000)", "chosen", "0.50", "3.0", "–"]
    difference = "-0.1583 (-0.1583 to +0.0000)"  # of p alone -0.125, of q alone 0
    assert other.cells() == ["3d", "3", "0.5833 (0.5750 to 0.8000)", difference, "2.25", "12.3", "1.3 million"]
    assert len(HEADS) == len(best.cells())

    assert read_comparison(tmp_path) is None
    results = [row.as_dict() for row in (best, other)]
    write_comparison(tmp_path, {"compared": [], "choices": {}, "results": results})
    record = read_comparison(tmp_path)
    assert record is not None
    assert record["results"][1]["dice"]["mean"] == pytest.approx(0.58333, abs=1e-5)
    assert record["results"][1]["difference"]["p"] is None
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(("pair", "order"), [(0.8015, ["3d", "2d+3d", "2d"]), (0.803, ["2d+3d", "3d", "2d"])])
def test_a_pair_is_chosen_if_it_is_clearly_better(pair: float, order: list[str]) -> None:
    """It takes the time of both."""
    scores = {name: {"x": {"a": dice}} for name, dice in (("2d", 0.7), ("3d", 0.8), ("2d+3d", pair))}
    found = rank(scores, {}, {"2d": 1.0, "3d": 2.0}, {"2d": 1, "3d": 2}, {"2d": 0.1, "3d": 0.2})
    assert [row.name for row in found] == order
    both = found[order.index("2d+3d")]
    assert (both.minutes, both.parameters, both.seconds) == (3.0, 3, pytest.approx(0.3))
    assert [row.difference is None for row in found] == [True, False, False]
