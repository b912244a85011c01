"""Order of the cases to correct: what each lowers of the sum of uncertainty times distance, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.learning import ranking
from napari_seg.learning.ranking import choose, standardised

NONE = np.zeros((0, 1))


def names_of(choices: list, names: str) -> str:
    return "".join(names[choice.number] for choice in choices)


def test_the_sum_of_uncertainty_times_distance_by_hand() -> None:
    # on a line at 0, 1, 10 and 11; before any choice each distance is the largest one: 11, 10, 10, 11.
    # c (at 10) lowers the sum by 0.5 * 1 + 0.4 * 1 + 0.6 * 10 + 0.6 * 10 = 12.9, d by 12, b by 10.2, a by 9.1
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    found = choose("abcd", [0.5, 0.4, 0.6, 0.6], points, NONE)
    assert found[0] == (2, None, None)
    # the distances are now 10, 9, 0, 1: a lowers the sum by 0.5 * 10 + 0.4 * 8 = 8.2, b by 8.1, d by 0.6
    assert found[1].number == 0
    assert found[1].distance == pytest.approx(10 / points.std())
    assert found[1].nearest == 2
    # then d by 0.6 * 1 and b by 0.4 * 1
    assert names_of(found, "abcd") == "cadb"


def test_a_crowd_comes_before_an_outlier_unless_that_is_very_uncertain() -> None:
    crowd = np.random.default_rng(0).normal(scale=0.1, size=(7, 2))
    points = np.concatenate([crowd, [[3.0, 3.0]]])
    corrected = np.array([[-2.0, -2.0]])
    assert choose("abcdefgz", [0.1] * 8, points, corrected)[0].number < 7
    assert choose("abcdefgz", [*[0.1] * 7, 0.9], points, corrected)[0].number == 7


def test_a_large_cohort_is_represented_by_some_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "MAX_TARGETS", 10)
    monkeypatch.setattr(ranking, "MAX_GREEDY", 3)
    points = np.random.default_rng(2).normal(size=(45, 4))
    names = [f"{number:02d}" for number in range(45)]
    found = choose(names, [0.5] * 45, points, np.zeros((0, 4)))
    assert sorted(choice.number for choice in found) == list(range(45))
    assert found == choose(names, [0.5] * 45, points, np.zeros((0, 4)))
    assert found[:5] == choose(names, [0.5] * 45, points, np.zeros((0, 4)), count=5)


def test_a_duplicate_of_a_corrected_case_is_last() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 20))
    corrected = points[3:4]
    found = choose("abcdef", [0.1, 0.1, 0.1, 0.9, 0.1, 0.1], points, corrected)
    assert names_of(found, "abcdef")[-1] == "d"
    assert found[-1].distance == 0
    assert found[-1].nearest == 6  # the first of the corrected ones
    assert 1 < found[0].distance < 2  # type: ignore[operator]


def test_a_duplicate_within_the_pool_waits() -> None:
    points = np.array([[0.0, 1], [0, 1], [3, 1], [2, 5]])
    found = choose("abcd", [0.9, 0.9, 0.2, 0.2], points, NONE)
    assert names_of(found, "abcd")[0] == "a"
    assert names_of(found, "abcd")[-1] == "b"


def test_uncertainty_alone() -> None:
    found = choose("abcd", [0.2, 0.5, 0.2, 0.9], np.zeros((4, 1)), NONE, "uncertain", 3)
    assert names_of(found, "abcd") == "dba"
    assert found[0].distance is None


def test_random_depends_on_the_seed_alone() -> None:
    def order(names: str, seed: int) -> str:
        return names_of(choose(names, [0.0] * 8, np.zeros((8, 1)), NONE, "random", seed=seed), names)

    assert order("abcdefgh", 1) == order("hgfedcba", 1)
    assert order("abcdefgh", 1) != order("abcdefgh", 2)
    assert sorted(order("abcdefgh", 3)) == list("abcdefgh")


def test_the_order_of_the_input_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    points, uncertainty = rng.normal(size=(8, 3)), rng.random(8)
    back = np.arange(8)[::-1]
    first = names_of(choose("abcdefgh", list(uncertainty), points, NONE), "abcdefgh")
    assert names_of(choose("hgfedcba", list(uncertainty[back]), points[back], NONE), "hgfedcba") == first


def test_equal_embeddings_leave_the_uncertainty() -> None:
    found = choose("abcd", [0.2, 0.5, 0.2, 0.9], np.ones((4, 3)), np.ones((1, 3)))
    assert names_of(found, "abcd") == "dbac"


def test_fewer_cases_than_required() -> None:
    assert len(choose("ab", [1, 1], np.zeros((2, 3)), NONE, count=10)) == 2
    assert choose("", [], np.zeros((0, 3)), NONE) == []


def test_embeddings_are_standardised_together() -> None:
    points, others = standardised(np.array([[0.0, 5, 7], [2, 5, 9]]), np.array([[4.0, 5, 8]]))
    together = np.concatenate([points, others])
    assert together.shape == (3, 2)  # the second number is the same for all
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((together**2).mean(axis=0), 0.5)
