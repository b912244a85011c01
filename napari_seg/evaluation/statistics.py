"""Summaries of metrics over cases, and paired comparisons of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_MAX_DRAWN = 1 << 20
"""Largest number of cases that are drawn at once, over several resamples: their indices and values take 12 MB."""


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
        count: number of these cases, without those in which neither has a value.
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
    one_empty: int = 0
    """Number of cases in which a structure is only in the result of one model, and not in the reference."""


@dataclass(frozen=True)
class Both:
    """Values of model A and model B in one case.

    Attributes:
        a: value of model A.
        b: value of model B.
        one_empty: whether one of them is the perfect value of a structure that is rightly not found.
    """

    a: float
    b: float
    one_empty: bool = False


ByCase = Mapping[str, Mapping[str, float]]
"""Case -> structure -> value; nan where neither the reference nor the result contains the structure. Structures that
the model does not know are absent."""


def paired(a: ByCase, b: ByCase, perfect: float = 1.0) -> dict[str, dict[str, Both]]:
    """Return case -> structure -> values of both models, for the cases and structures of which both have a value.

    If a structure is absent in the reference, a model that finds nothing has no value (nan). Where the other one has a
    false positive, the case must count, so that the first one gets the perfect value there, as in the BraTS challenge
    (arXiv:2107.02314) and as Metrics Reloaded requires a rule for empty references (doi:10.1038/s41592-023-02151-z).
    Cases in which neither has a value are left out.

    Args:
        a: values of model A.
        b: values of model B.
        perfect: best value of the metric.
    """
    found: dict[str, dict[str, Both]] = {}
    for case in sorted(a.keys() & b.keys()):
        found[case] = {}
        for name in [name for name in a[case] if name in b[case]]:
            of_a, of_b = a[case][name], b[case][name]
            if isnan(of_a) and isnan(of_b):
                continue
            one_empty = isnan(of_a) or isnan(of_b)
            found[case][name] = Both(
                perfect if isnan(of_a) else of_a, perfect if isnan(of_b) else of_b, one_empty=one_empty
            )
    return found


def of_structure(pairs: Mapping[str, Mapping[str, Both]], name: str) -> dict[str, Both]:
    """Return case -> values of one structure, from `paired`."""
    return {case: of_case[name] for case, of_case in pairs.items() if name in of_case}


def means_of_cases(pairs: Mapping[str, Mapping[str, Both]]) -> dict[str, Both]:
    """Return case -> means over the structures of both models, from `paired`."""
    return {
        case: Both(
            sum(both.a for both in of_case.values()) / len(of_case),
            sum(both.b for both in of_case.values()) / len(of_case),
            any(both.one_empty for both in of_case.values()),
        )
        for case, of_case in pairs.items()
        if of_case
    }


def summarise(values: Sequence[float], seed: int = 0) -> Summary:
    """Return mean, median and the 95 % interval of the mean, without nan; reproducible for a seed."""
    return summarise_columns([values], seed)[0]


def summarise_columns(columns: Sequence[Sequence[float]], seed: int = 0) -> list[Summary]:
    """Return the summary of each of several columns, as `summarise`; those of equal length share their resamples."""
    known = [_known(values) for values in columns]
    intervals: dict[int, tuple[float, float]] = {}
    for count in {len(values) for values in known}:
        numbers = [number for number, values in enumerate(known) if len(values) == count]
        intervals |= zip(numbers, _intervals([known[number] for number in numbers], seed), strict=True)
    return [
        Summary(len(of), len(values) - len(of), float(of.mean()), float(np.median(of)), *intervals[number])
        if len(of)
        else Summary(0, len(values))
        for number, (of, values) in enumerate(zip(known, columns, strict=True))
    ]


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


def compare(pairs: Mapping[str, Both], seed: int = 0) -> Difference:
    """Compare two models case by case: paired bootstrap and Wilcoxon's test (1945, doi:10.2307/3001968).

    Args:
        pairs: case -> values of both models.
        seed: seed of the bootstrap.
    """
    from scipy.stats import wilcoxon

    difference = np.array([pairs[case].a - pairs[case].b for case in sorted(pairs)])
    if not len(difference):
        return Difference(0)
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    one_empty = sum(both.one_empty for both in pairs.values())
    return Difference(len(difference), float(difference.mean()), *_intervals([difference], seed)[0], p, one_empty)


def worst(values: Mapping[str, float], number: int = 5) -> list[str]:
    """Return the cases with the lowest values, lowest first; nan is left out."""
    known = [case for case, value in values.items() if not isnan(value)]
    return sorted(known, key=lambda case: (values[case], case))[:number]


def _known(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _intervals(columns: Sequence[NDArray[np.float64]], seed: int) -> list[tuple[float, float]]:
    """Return the 95 % intervals of the means by percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552).

    Args:
        columns: values of equal length.
        seed: seed of the resamples, which are drawn a few at a time.
    """
    count = len(columns[0])
    if count < 2:
        return [(nan, nan)] * len(columns)
    generator = np.random.default_rng(seed)
    means = np.empty((len(columns), RESAMPLES))
    step = max(1, _MAX_DRAWN // count)
    for first in range(0, RESAMPLES, step):
        last = min(first + step, RESAMPLES)
        draws = generator.integers(count, size=(last - first, count), dtype=np.int32)
        for values, of_column in zip(columns, means, strict=True):
            of_column[first:last] = values[draws].mean(axis=1)
    return [(float(low), float(high)) for low, high in np.percentile(means, (2.5, 97.5), axis=1).T]
