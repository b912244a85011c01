"""Minimum cuts: both solvers against each other and against hand-made and exhaustively searched minima."""

from __future__ import annotations

from itertools import product
from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_seg.editing.min_cut import min_cut

pytest.importorskip("numba")
BOTH = pytest.mark.parametrize("fast", [True, False], ids=["numba", "scipy"])


def random_problem(shape: tuple[int, int, int], seed: int) -> tuple[NDArray, tuple[NDArray, ...]]:
    random = np.random.default_rng(seed)
    weights = tuple(
        random.integers(0, 4, [n - (axis == a) for a, n in enumerate(shape)]).astype(float) for axis in range(3)
    )
    return random.integers(-6, 7, shape).astype(float), weights


def cost(mask: NDArray, evidence: NDArray, weights: tuple[NDArray, ...]) -> float:
    borders = sum(float(w[np.diff(mask.astype(int), axis=a) != 0].sum()) for a, w in enumerate(weights))
    return borders - float(evidence[mask].sum())


@BOTH
@pytest.mark.parametrize("seed", range(8))
def test_no_foreground_costs_less(fast: bool, seed: int) -> None:
    evidence, weights = random_problem((2, 3, 2), seed)
    least = min(cost(np.reshape(bits, (2, 3, 2)), evidence, weights) for bits in product([False, True], repeat=12))
    assert cost(min_cut(evidence, weights, fast=fast), evidence, weights) == least


@pytest.mark.parametrize("seed", range(3))
def test_both_solvers_find_the_same_foreground_with_decided_voxels(seed: int) -> None:
    evidence, weights = random_problem((9, 12, 7), seed)
    evidence[4, 5, 3], evidence[:, 0], evidence[8, 11, 6] = np.inf, -np.inf, -np.inf
    one, other = (min_cut(evidence, weights, fast=fast) for fast in (True, False))
    assert np.array_equal(one, other)
    assert one[4, 5, 3]
    assert not one[:, 0].any()
    assert 0 < one.sum() < one.size


@BOTH
def test_a_decided_voxel_takes_its_neighbours_along_up_to_the_weakest_border(fast: bool) -> None:
    evidence = np.zeros((6, 1, 1))
    evidence[0], evidence[5] = np.inf, -np.inf
    along = np.array([3.0, 2.0, 0.5, 2.0, 3.0]).reshape(5, 1, 1)
    empty = np.zeros((6, 0, 1)), np.zeros((6, 1, 0))
    assert min_cut(evidence, (along, *empty), fast=fast).ravel().tolist() == [True, True, True, False, False, False]


@BOTH
def test_nothing_is_cut_where_all_is_decided(fast: bool) -> None:
    evidence = np.full((2, 2, 2), -np.inf)
    weights = tuple(np.ones([2 - (axis == a) for a in range(3)]) for axis in range(3))
    assert not min_cut(evidence, weights, fast=fast).any()


def test_the_compiled_solver_takes_well_under_a_second_for_a_region_of_a_million_voxels() -> None:
    shape = (96, 96, 96)
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 96)] * 3, indexing="ij")
    truth = (x / 0.6) ** 2 + (y / 0.5) ** 2 + (z / 0.7) ** 2 < 1
    evidence = truth - 0.5 + random.normal(0, 0.7, shape)
    weights = tuple(np.full([96 - (axis == a) for a in range(3)], 0.6) for axis in range(3))
    min_cut(*random_problem((3, 3, 3), 0))  # compile
    started = process_time()
    found = min_cut(evidence, weights)
    assert process_time() - started < 3
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97
