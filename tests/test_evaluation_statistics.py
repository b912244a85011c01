"""Means, intervals and paired differences of many cases."""

from __future__ import annotations

import tracemalloc
from math import isnan, nan

import numpy as np
import pytest

from napari_seg.evaluation.statistics import (
    Both,
    Difference,
    compare,
    means_of_cases,
    of_structure,
    paired,
    summarise,
    summarise_columns,
    summarise_table,
    worst,
)


def test_nan_is_left_out_and_counted() -> None:
    summary = summarise([0.2, nan, 0.4, 0.9])
    assert (summary.count, summary.missing) == (3, 1)
    assert summary.mean == pytest.approx(0.5)
    assert summary.median == pytest.approx(0.4)
    assert 0.2 <= summary.low < summary.mean < summary.high <= 0.9


def test_nothing_and_a_single_case_have_no_interval() -> None:
    assert isnan(summarise([nan]).mean)
    assert summarise([nan]).missing == 1
    single = summarise([0.7])
    assert single.mean == single.median == 0.7
    assert isnan(single.low)
    assert isnan(single.high)


def test_the_interval_is_that_of_the_mean_and_repeats() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.05, size=200)
    summary = summarise(values.tolist())
    half = 1.96 * values.std() / np.sqrt(len(values))  # what the bootstrap tends to
    assert summary.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert summary.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert summarise(values.tolist()) == summary
    assert summarise(values.tolist(), seed=1) != summary


def test_the_interval_of_two_cases_by_hand() -> None:
    # a mean of two draws is 0, 0.5 or 1 with chances 1/4, 1/2, 1/4: both tails of 2.5 % end in the extremes
    assert (summarise([0.0, 1.0]).low, summarise([0.0, 1.0]).high) == (0.0, 1.0)


def test_the_resamples_are_those_that_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval is the same to the last digit however few resamples fit into memory."""
    monkeypatch.setattr("napari_seg.evaluation.statistics.RESAMPLES", 500)
    monkeypatch.setattr("napari_seg.evaluation.statistics._MAX_DRAWN", 7 * 31)
    values = np.random.default_rng(1).normal(size=(2, 31))
    draws = np.random.default_rng(0).integers(31, size=(500, 31), dtype=np.int32)
    columns = [*values, values[0, :5], [nan, 1.0]]
    found = summarise_columns([list(column) for column in columns])
    for column, summary in zip(values, found, strict=False):
        assert (summary.low, summary.high) == tuple(np.percentile(column[draws].mean(axis=1), (2.5, 97.5)))
    assert found == [summarise(list(column)) for column in columns]


def test_many_cases_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.evaluation.statistics.RESAMPLES", 100)
    values = np.random.default_rng(1).normal(size=100_000).tolist()
    tracemalloc.start()
    summarise(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # 100 resamples at once take 120 MB


def test_worst_is_lowest_first_and_ties_go_by_name() -> None:
    assert worst({"d": 0.5, "a": nan, "c": 0.1, "b": 0.5, "e": 0.9}, 3) == ["c", "b", "d"]


def compared(a: dict[str, float], b: dict[str, float]) -> Difference:
    pairs = paired(*({case: {"x": value} for case, value in of_model.items()} for of_model in (a, b)))
    return compare(of_structure(pairs, "x"))


def test_models_are_compared_on_the_cases_that_both_have() -> None:
    b = {f"case {n}": 0.5 + 0.02 * n for n in range(10)}
    a = {case: value + 0.01 + 0.001 * n for n, (case, value) in enumerate(b.items())}
    difference = compared(a | {"only a": 0.0, "case 0": nan}, b | {"only b": 1.0, "case 0": nan})
    assert difference.count == 9
    assert difference.mean == pytest.approx(0.01 + 0.001 * 5)
    assert 0.01 < difference.low < difference.mean < difference.high < 0.02
    assert difference.p == pytest.approx(2 / 2**9)  # all nine signs agree: the exact test's smallest value
    assert compared(b, b).p == 1.0
    assert compared({"x": 1.0}, {"y": 1.0}).count == 0


def test_a_false_positive_of_one_model_counts_where_the_other_rightly_finds_nothing() -> None:
    a = {"a": {"lesion": 0.8, "liver": 0.9}, "b": {"lesion": nan, "liver": 0.7}, "c": {"lesion": nan}}
    b = {"a": {"lesion": 0.8, "liver": 0.9}, "b": {"lesion": 0.0, "liver": 0.7}, "c": {"lesion": nan}}
    pairs = paired(a, b)
    difference = compare(of_structure(pairs, "lesion"))
    assert (difference.count, difference.mean, difference.one_empty) == (2, 0.5, 1)
    assert means_of_cases(pairs)["b"] == Both(0.85, 0.35, True)
    assert "c" not in means_of_cases(pairs)
    assert of_structure(paired({"a": {"x": 40.0}}, {"a": {"x": nan}}, perfect=0), "x") == {"a": Both(40, 0, True)}


def test_a_table_is_averaged_over_structures_and_resampled_by_patient() -> None:
    table = np.array([[0.8, 0.4], [0.9, np.nan], [np.nan, np.nan]])
    found = summarise_table(table, ["a", "b", "c"])
    assert (found.count, found.missing) == (2, 1)
    assert found.mean == pytest.approx((0.85 + 0.4) / 2)
    assert (found.low, found.high) == (pytest.approx(0.6), pytest.approx(0.9))  # of a alone, of b alone
    assert summarise_table(np.full((2, 1), np.nan), [0, 1]).count == 0
    slices = np.repeat(np.random.default_rng(1).normal(0.8, 0.1, 10), 20)[:, None]
    apart = summarise_table(slices, range(200))
    assert apart.mean == pytest.approx(summarise(slices[:, 0]).mean)
    assert apart.high - apart.low == pytest.approx(summarise(slices[:, 0]).high - summarise(slices[:, 0]).low, rel=0.1)
    together = summarise_table(slices, np.repeat(range(10), 20).tolist())
    assert together.high - together.low > 3 * (apart.high - apart.low)
