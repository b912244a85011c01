"""Disagreement of label maps, against Dice that was computed by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from napari_seg.inference.disagreement import disagreement_of

NAMES = {1: "front", 2: "back", 3: "never"}


def line(text: str) -> np.ndarray:
    """Return a label map (N, 1, 1) of digits."""
    return np.array([int(digit) for digit in text], np.uint8)[:, None, None]


def test_pairwise_dice_by_hand() -> None:
    maps = [line("1111002200"), line("0111102200"), line("0011110000")]
    found = disagreement_of(maps, NAMES, "3 networks")
    # front: 2*3/8, 2*2/8, 2*3/8; back: 1, 0, 0
    assert found.structures == pytest.approx({"front": 1 - (0.75 + 0.5 + 0.75) / 3, "back": 1 - 1 / 3})
    assert found.overall == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found.members == "3 networks"


def test_equal_maps_agree_and_a_structure_that_nobody_finds_is_absent() -> None:
    found = disagreement_of([line("1100"), line("1100")], NAMES, "")
    assert found.structures == {"front": 0}
    assert found.overall == 0


def test_a_pair_without_the_structure_agrees_on_it() -> None:
    found = disagreement_of([line("1000"), line("0000"), line("0000")], NAMES, "")
    assert found.structures == pytest.approx({"front": 2 / 3})


def test_a_scan_in_which_nothing_is_found_needs_a_look() -> None:
    found = disagreement_of([line("0000"), line("0000")], NAMES, "")
    assert found.structures == {}
    assert found.overall == 1


def test_labels_without_a_name_do_not_count() -> None:
    found = disagreement_of([line("1177"), line("1100")], {1: "front"}, "")
    assert found.structures == {"front": 0}


def test_counting_takes_the_memory_of_a_plane() -> None:
    maps = [np.random.default_rng(n).integers(0, 3, (64, 64, 64), np.uint8) for n in range(2)]
    tracemalloc.start()
    disagreement_of(maps, NAMES, "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < maps[0].size
