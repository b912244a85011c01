"""Test the rate of a run."""

from __future__ import annotations

import pytest

from napari_seg.cohort.throughput import MAX_FACTOR, WINDOW, Throughput


def test_the_rate_is_unknown_before_the_second_time() -> None:
    measured = Throughput()
    assert measured.per_minute() is None
    measured.add(5.0)
    assert measured.seconds_left(3) is None
    assert Throughput([7.0], started=5.0).seconds_per_case() == 2.0


def test_cases_that_end_in_bursts_count_by_their_mean() -> None:
    # four workers, each 4 s a case: four cases end together
    measured = Throughput([4.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 8.0], started=0.0)
    assert measured.seconds_per_case() == 1.0
    assert measured.per_minute() == 60.0
    assert measured.seconds_left(10) == 10.0


def test_one_long_pause_counts_little() -> None:
    times = [float(n) for n in range(11)]
    slept = [*times, *(3600 + time for time in times)]
    seconds = Throughput(slept).seconds_per_case()
    assert seconds == pytest.approx((20 + MAX_FACTOR) / 21)


def test_only_the_last_cases_count() -> None:
    slow, fast = [10.0 * n for n in range(20)], [190.0 + n for n in range(1, WINDOW + 1)]
    assert Throughput([*slow, *fast]).seconds_per_case() == 1.0


def test_a_late_case_lengthens_the_estimate() -> None:
    measured = Throughput([0.0, 1.0, 2.0])
    assert measured.seconds_per_case(now=2.5) == 1.0
    assert measured.seconds_per_case(now=9.0) == pytest.approx(3.0)


def test_a_clock_set_back_starts_again() -> None:
    measured = Throughput([1000.0, 1001.0, 5.0])
    assert measured.seconds_per_case() is None
    measured.add(8.0)
    assert measured.seconds_per_case() == 3.0


def test_cases_that_end_at_once_have_no_rate() -> None:
    measured = Throughput([1.0, 1.0])
    assert measured.per_minute() is None
    assert measured.seconds_left(4) == 0.0
