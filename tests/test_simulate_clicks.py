"""Simulated clicks: where they are put."""

from __future__ import annotations

import numpy as np
import pytest
from simulate_clicks import damaged, dice, next_click

SPACING_MM = (1.0, 1.0, 5.0)


def test_dice_of_masks() -> None:
    one, other = np.zeros((4, 1, 1), bool), np.zeros((4, 1, 1), bool)
    assert dice(one, other) == 1
    one[:3], other[2:] = True, True
    assert dice(one, other) == pytest.approx(0.4)


def test_a_click_is_put_into_the_middle_of_the_largest_error() -> None:
    truth, result = np.zeros((20, 20, 3), bool), np.zeros((20, 20, 3), bool)
    truth[2:13, 2:13] = True
    result[2:9, 2:13] = True  # rows 9 to 12 are missing
    result[16:19, 2:5] = True  # smaller, and too much
    assert next_click(result, truth, SPACING_MM) == ((10, 3, 0), True)  # no slice is deeper than the first
    result[9:13, 2:13] = True
    assert next_click(result, truth, SPACING_MM) == ((17, 3, 0), False)
    assert next_click(truth, truth, SPACING_MM) is None


def test_a_damaged_structure_has_errors_of_both_kinds_and_is_the_same_every_time() -> None:
    truth = np.zeros((30, 30, 12), bool)
    truth[8:22, 8:22, 3:9] = True
    one, again = (damaged(truth, SPACING_MM, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one, again)
    assert (one & ~truth).any()
    assert (truth & ~one).any()
    assert 0.5 < dice(one, truth) < 0.97
