"""Summaries of metrics over cases, and paired comparisons of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True)
class Summary:
    """Summary of one metric over cases.

    Attributes:
        count: number of cases with a value.
        missing: number of cases without one (nan); they are left out of the other figures.
        mean: mean; nan without a case.
        median: median; nan without a case.
        low: lower end of the 95 % interval of the mean; nan for fewer than two cases.
        high: upper end of the interval.
    """

    count: int
    missing: int
    mean: float = nan
    median: float = nan
    low: float = nan
    high: float = nan


@dataclass(frozen=True)
class Difference:
    """Difference of model A and model B over the cases that both have.

    Attributes:
        count: number of these cases.
        mean: mean of A minus B.
        low: lower end of the 95 % interval of the mean.
        high: upper end of the interval.
        p: two-sided p-value of Wilcoxon's signed-rank test; 1 if no case differs.
    """

    count: int
    mean: float = nan
    low: float = nan
    high: float = nan
    p: float = nan


def summarise(values: Sequence[float], seed: int = 0) -> Summary:
    """Return mean, median and the 95 % interval of the mean, without nan; reproducible for a seed."""
    known = _known(values)
    if not len(known):
        return Summary(0, len(values))
    low, high = _interval(known, seed)
    return Summary(len(known), len(values) - len(known), float(known.mean()), float(np.median(known)), low, high)


def summarise_table(table: NDArray[np.float64], groups: Sequence[object], seed: int = 0) -> Summary:
    """Return the mean over structures of the mean over cases, with an interval that resamples groups of cases.

    So a structure that occurs in few cases has the same weight as one in all cases (`segnets.metrics.mean_of`). Cases
    of one patient are no independent draws; resampling cases would make the interval too narrow.

    Args:
        table: (cases, structures); nan where a structure does not count in a case.
        groups: group of each case, such as its patient.
        seed: seed of the bootstrap.
    """
    known = ~np.isnan(table)
    counted = known.any(axis=1)
    if not counted.any():
        return Summary(0, len(table))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([numbers[group] for group in groups])
    sums, counts = np.zeros((len(numbers), table.shape[1])), np.zeros((len(numbers), table.shape[1]))
    np.add.at(sums, place, np.where(known, table, 0.0))
    np.add.at(counts, place, known)
    each = sums.sum(axis=0)[known.any(axis=0)] / counts.sum(axis=0)[known.any(axis=0)]
    medians = float(np.median(np.nansum(table[counted], axis=1) / known[counted].sum(axis=1)))
    drawn = np.flatnonzero(counts.any(axis=1))
    low = high = nan
    if len(drawn) > 1:
        draws = np.random.default_rng(seed).multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn)), RESAMPLES)
        totals, numbers_of = draws @ sums[drawn], draws @ counts[drawn]
        present = numbers_of > 0
        means = np.divide(totals, numbers_of, out=np.zeros_like(totals), where=present)
        low, high = np.percentile(means.sum(axis=1) / present.sum(axis=1), (2.5, 97.5))
    count = int(counted.sum())
    return Summary(count, len(table) - count, float(each.mean()), medians, float(low), float(high))


def compare(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Difference:
    """Compare two models case by case: paired bootstrap and Wilcoxon's test (1945, doi:10.2307/3001968).

    Args:
        a: case -> value of model A; nan and cases that B lacks are left out.
        b: case -> value of model B.
        seed: seed of the bootstrap.
    """
    from scipy.stats import wilcoxon

    difference = _known([a[case] - b[case] for case in sorted(a.keys() & b.keys())])
    if not len(difference):
        return Difference(0)
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return Difference(len(difference), float(difference.mean()), *_interval(difference, seed), p)


def worst(values: Mapping[str, float], number: int = 5) -> list[str]:
    """Return the cases with the lowest values, lowest first; nan is left out."""
    known = [case for case, value in values.items() if not isnan(value)]
    return sorted(known, key=lambda case: (values[case], case))[:number]


def _known(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean by percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552)."""
    if len(values) < 2:
        return nan, nan
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)), dtype=np.int32)
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
