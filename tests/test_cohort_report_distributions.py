"""Test which volumes are called unusual."""

from __future__ import annotations

from array import array
from math import exp, inf, log

import numpy as np
import pytest

from napari_seg.cohort.report.distributions import LIMIT, MIN_CASES, distribution


def of(*volumes_ml: float):
    return distribution("a", array("d", volumes_ml))


def test_the_score_is_that_of_the_source() -> None:
    logs = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    volumes = of(*map(exp, logs))
    # median 1.4, MAD 0.2
    assert volumes.z(exp(1.8)) == pytest.approx(0.6745 * 0.4 / 0.2)
    assert volumes.z(exp(1.0)) == pytest.approx(-0.6745 * 0.4 / 0.2)
    edge = 1.4 + LIMIT * 0.2 / 0.6745
    assert not volumes.is_unusual(exp(edge - 0.001))
    assert volumes.is_unusual(exp(edge + 0.001))
    assert volumes.quartiles_ml == pytest.approx((exp(1.0), exp(1.2), exp(1.4), exp(1.6), exp(1.8)))


def test_a_volume_twice_too_large_and_one_half_too_small_are_alike() -> None:
    volumes = of(*np.linspace(0.9, 1.1, 21))
    center = exp(volumes.center)
    assert volumes.z(2 * center) == pytest.approx(-volumes.z(center / 2))


def test_outliers_do_not_hide_each_other() -> None:
    usual = list(np.linspace(2.8, 3.2, 30))
    volumes = of(*usual, *[300.0] * 10)
    assert volumes.is_unusual(300.0)
    assert not any(map(volumes.is_unusual, usual))


def test_few_cases_are_not_judged() -> None:
    volumes = of(*[1.0] * (MIN_CASES - 2), 100.0)
    assert volumes.z(100.0) is None
    assert not volumes.is_unusual(100.0)
    assert of().quartiles_ml == (0, 0, 0, 0, 0)


def test_equal_volumes_have_the_mean_deviation() -> None:
    volumes = of(*[1.0] * 9, 2.0)
    assert volumes.z(2.0) == pytest.approx(log(2) / (1.253314 * log(2) / 10))
    assert volumes.is_unusual(2.0)
    assert of(*[1.0] * 9).z(1.0) == 0.0
    assert of(*[1.0] * 9).z(1.5) == inf


def test_a_missing_structure_is_unusual_only_where_others_have_it() -> None:
    assert of(*[1.0] * 19, 0.0).z(0.0) == -inf
    assert of(*[1.0] * 19, 0.0).is_unusual(0.0)
    assert of(*[1.0] * 10, *[0.0] * 10).z(0.0) is None
    assert of(*[0.0] * 20).z(0.0) is None
    assert (of(1.0, 0.0, 0.0).count, of(1.0, 0.0, 0.0).absent) == (1, 2)
