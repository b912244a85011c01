"""Evidence for and against a structure, on small regions with values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_seg.editing.evidence import (
    EDITED_CHANCE,
    LIMIT,
    MAX_PROMPTS,
    Region,
    corrected,
    from_probability,
    from_structure,
    probability_now,
    probability_of,
    spread,
)
from napari_seg.editing.prompts import Prompts

SPACING_MM = (1.0, 2.0, 4.0)


def region(shape: tuple[int, int, int] = (15, 11, 9)) -> Region:
    return Region.of(np.random.default_rng(0).normal(100, 5, shape), SPACING_MM)


def test_the_noise_is_measured_between_neighbours_of_the_body_alone() -> None:
    image = np.random.default_rng(0).normal(1000, 20, (40, 40, 40))
    image[:20] = 0  # empty background without noise
    image[20:, :, 20:] += 500
    assert Region.of(image, SPACING_MM).noise == pytest.approx(20, rel=0.1)


def test_a_constant_image_has_some_noise_so_that_nothing_divides_by_zero() -> None:
    assert Region.of(np.zeros((4, 4, 4)), SPACING_MM).noise > 0


def test_a_border_costs_the_same_area_for_area_in_all_directions() -> None:
    constant = Region.of(np.zeros((4, 4, 4)), SPACING_MM)
    i, j, k = (float(w.flat[0]) for w in constant.edge_weights(3.0))
    assert (i, j, k) == pytest.approx((6.0, 3.0, 1.5))  # a mean voxel of 2 mm


def test_depth_is_measured_in_mm_and_no_voxel_is_on_the_border() -> None:
    mask = np.zeros((15, 11, 9), bool)
    mask[7, 5, 4] = True
    depth = region().depth_mm(mask, 5.0)
    assert depth[7, 5, 4] == pytest.approx(0.5)
    assert depth[9, 5, 4] == pytest.approx(-1.5)
    assert depth[7, 7, 4] == pytest.approx(-3.5)
    assert depth[7, 5, 8] == -5.0


def test_the_walls_of_a_region_are_no_border() -> None:
    mask = np.ones((15, 11, 9), bool)
    assert (region().depth_mm(mask, 5.0) == 5.0).all()


def test_a_structure_gives_its_inside_positive_and_its_outside_negative_evidence() -> None:
    mask = np.zeros((15, 11, 9), bool)
    mask[4:12, 2:9, 2:7] = True
    evidence = from_structure(region(), mask)
    assert ((evidence > 0) == mask).all()
    assert np.abs(evidence).max() <= LIMIT


def test_a_probability_of_one_half_is_no_evidence_and_certainty_is_bounded() -> None:
    evidence = from_probability(np.array([[[0, 127, 128, 255]]], np.uint8))
    assert evidence.ravel() == pytest.approx([-LIMIT, 0, 0, LIMIT], abs=0.01)


def test_agreeing_prompts_correct_nothing() -> None:
    known = np.full((15, 11, 9), 2.0, np.float32)
    known[:5] = -2
    evidence, reached = corrected(region(), known, Prompts([(9, 5, 4)], [(1, 5, 4)]))
    assert np.array_equal(evidence, known)
    assert not reached.any()


def test_a_contradicting_prompt_turns_its_surroundings_and_the_more_the_deeper_it_lies() -> None:
    known = np.full((31, 11, 9), -2.0, np.float32)
    known[:5] = 2
    gains = []
    for i in (6, 14):
        evidence, reached = corrected(region(known.shape), known, Prompts([(i, 5, 4)]))
        assert evidence[i, 5, 4] > 0
        assert reached[i, 5, 4] == pytest.approx(1)
        gains.append(int(((evidence > 0) & (known < 0)).sum()))
    assert gains[1] > gains[0]


def test_many_equal_prompts_do_not_add_up() -> None:
    known = np.full((15, 11, 9), -2.0, np.float32)
    known[0] = 2
    one, _ = corrected(region(), known, Prompts([(6, 5, 4)]))
    three, _ = corrected(region(), known, Prompts([(6, 5, 4), (7, 5, 4), (6, 6, 4)]))
    assert three.max() < 1.5 * max(float(one.max()), 2.0)


def test_few_voxels_spread_over_a_scribble_represent_it() -> None:
    painted = np.argwhere(np.ones((30, 20, 1), bool))
    some = spread(painted, SPACING_MM)
    assert 8 <= len(some) <= MAX_PROMPTS
    assert np.ptp(some[:, 0]) > 15
    assert np.ptp(some[:, 1]) > 8
    assert np.array_equal(spread(painted[:5], SPACING_MM), painted[:5])


def test_what_a_network_leaves_belongs_to_the_nearest_structure() -> None:
    labels = np.array([[[1, 1, 0, 0, 0, 2]]], np.uint8)
    confidence = np.array([[[250, 200, 150, 250, 155, 180]]], np.uint8)
    assert probability_of(labels, 1, confidence).ravel().tolist() == [250, 200, 105, 5, 0, 75]
    assert probability_of(labels, 2, confidence).ravel().tolist() == [5, 55, 0, 5, 100, 180]


def test_the_nearest_structure_is_looked_up_coarsely_in_a_large_region(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((24, 23, 21), np.uint8)
    labels[4:9, 4:9, 4:9], labels[15:20, 15:20, 12:17] = 1, 2
    confidence = np.full(labels.shape, 155, np.uint8)
    exact = probability_of(labels, 1, confidence)
    monkeypatch.setattr("napari_seg.editing.evidence._MAX_COMPARED", 1000)
    coarse = probability_of(labels, 1, confidence)
    assert coarse.shape == labels.shape
    assert (coarse != exact).mean() < 0.15  # half way between both
    np.testing.assert_array_equal(coarse[labels > 0], exact[labels > 0])
    labels[labels == 2] = 0
    labels[15, 15, 13] = 2  # lies between the places that are looked at
    np.testing.assert_array_equal(
        probability_of(labels, 1, confidence), _probability_at_full_resolution(labels, confidence, monkeypatch)
    )


def _probability_at_full_resolution(labels: Any, confidence: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("napari_seg.editing.evidence._MAX_COMPARED", 10**9)
    return probability_of(labels, 1, confidence)


def test_current_labels_count_where_they_were_edited_or_the_network_did_not_look() -> None:
    made = np.array([[[1, 1, 0, 0, 0, 2]]], np.uint8)
    confidence = np.array([[[250, 200, 180, 155, 0, 240]]], np.uint8)
    known = probability_now(made, made, 1, confidence)
    assert known is not None
    assert known.tolist() == [[[250, 200, 75, 100, 255 - EDITED_CHANCE, 15]]]  # nothing is known at 0
    labels = np.array([[[0, 1, 1, 2, 0, 2]]], np.uint8)
    known = probability_now(labels, made, 1, confidence)
    assert known is not None
    assert known.tolist() == [[[255 - EDITED_CHANCE, 200, EDITED_CHANCE, 100, 255 - EDITED_CHANCE, 15]]]
    assert probability_now(labels, made, 3, confidence) is None
    assert probability_now(made * 0, made, 1, confidence) is None  # a person begins again
    assert probability_now(made, made * 0, 1, confidence) is None  # only a person has found it
