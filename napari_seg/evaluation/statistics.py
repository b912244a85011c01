"""What the numbers of many cases come to, and whether one model is better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True)
class Summary:
    """One number over many cases.

    Attributes:
        count: cases that have it.
        missing: cases that do not (nan), left out of all the rest.
        mean: nan without a case, as are the others.
        median: the middle case's.
        low: lower end of the 95 % interval of the mean; nan below two cases.
        high: its upper end.
    """

    count: int
    missing: int
    mean: float = nan
    median: float = nan
    low: float = nan
    high: float = nan


@dataclass(frozen=True)
class Difference:
    """Model A less model B on the cases that both have.

    Attributes:
        count: those cases.
        mean: of the differences, with the ends of its 95 % interval, `low` and `high`.
        p: of Wilcoxon's signed-rank test that neither is better, two-sided; 1 if no case differs.
    """

    count: int
    mean: float = nan
    low: float = nan
    high: float = nan
    p: float = nan


def summarise(values: Sequence[float], seed: int = 0) -> Summary:
    """Mean, median and the mean's 95 % interval of the values that are not nan; the same for the same seed."""
    known = _known(values)
    if not len(known):
        return Summary(0, len(values))
    low, high = _interval(known, seed)
    return Summary(len(known), len(values) - len(known), float(known.mean()), float(np.median(known)), low, high)


def compare(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Difference:
    """How much better A is than B, case by case: the paired bootstrap and Wilcoxon's test (1945, doi:10.2307/3001968).

    Args:
        a: case -> number; nan, or a case that B lacks, is left out.
        b: the other model's.
        seed: of the bootstrap.
    """
    from scipy.stats import wilcoxon

    difference = _known([a[case] - b[case] for case in sorted(a.keys() & b.keys())])
    if not len(difference):
        return Difference(0)
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return Difference(len(difference), float(difference.mean()), *_interval(difference, seed), p)


def worst(values: Mapping[str, float], number: int = 5) -> list[str]:
    """The cases with the lowest values, lowest first; nan is left out."""
    known = [case for case, value in values.items() if not isnan(value)]
    return sorted(known, key=lambda case: (values[case], case))[:number]


def _known(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The percentile bootstrap of the mean over cases (Efron 1979, doi:10.1214/aos/1176344552)."""
    if len(values) < 2:
        return nan, nan
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)), dtype=np.int32)
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
