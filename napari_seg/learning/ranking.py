"""Order in which cases are corrected: those that stand for many uncertain cases unlike the corrected ones.

Each case has a distance to the nearest case that is corrected or was chosen before. The strategy "uncertain-diverse"
chooses, one after another, the case that lowers the sum over all cases of uncertainty times distance most: greedy
selection by facility location (Wei, Iyer and Bilmes, "Submodularity in data subset selection and active learning", ICML
2015), weighted by the uncertainty. An uncertain case far from the others lowers its own part; a case in a crowd of
uncertain ones lowers theirs, too: an outlier, whose correction teaches little about others, must be very uncertain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_seg.learning.strategies import Strategy

MAX_TARGETS = 2000
"""Cases that stand for all cases of a larger cohort."""

MAX_GREEDY = 200
"""Choices that take account of each other; all others follow in the order of what they would lower then."""

UNRELATED = 1.4
"""Usual distance between two cases that have nothing in common, see `standardised`."""


class Choice(NamedTuple):
    """A chosen case.

    Attributes:
        number: its place in the input.
        distance: to the nearest case that is corrected or was chosen before; about 1.4 between two unrelated cases.
            None: there is no such case, or the strategy takes no account of distances.
        nearest: place of that case: among the chosen ones, or behind the last of them among the corrected ones.
    """

    number: int
    distance: float | None = None
    nearest: int | None = None


def choose(
    names: Sequence[str],
    uncertainty: Sequence[float],
    embeddings: NDArray[np.floating],
    corrected: NDArray[np.floating],
    strategy: Strategy = "uncertain-diverse",
    count: int | None = None,
    seed: int = 0,
) -> list[Choice]:
    """Return cases in the order in which they should be corrected.

    Of equal scores the more uncertain case comes first, then the one with the first name.

    Args:
        names: names of the n cases, unique.
        uncertainty: (n,) at least 0.
        embeddings: (n, F).
        corrected: (m, F) embeddings of the cases that are corrected.
        strategy: "uncertain" leaves distances out; "random" is the control.
        count: number of cases to choose; None: all.
        seed: of the strategy "random".
    """
    by_name = sorted(range(len(names)), key=lambda number: names[number])
    most = len(names) if count is None else min(count, len(names))
    if strategy == "random":
        random.Random(seed).shuffle(by_name)
        return [Choice(number) for number in by_name[:most]]
    if strategy == "uncertain":
        return [Choice(number) for number in sorted(by_name, key=lambda number: -uncertainty[number])[:most]]
    points, others = standardised(embeddings, corrected)
    weights = np.asarray(uncertainty, dtype=float)
    # a large cohort is represented by some of its cases
    targets = by_name if len(names) <= MAX_TARGETS else by_name[:: ceil(len(names) / MAX_TARGETS)]
    between = _distances(points, points[targets])
    to_corrected = _distances(others, points[targets])
    farthest = between.max(axis=0, initial=0)
    left = to_corrected.min(axis=0) if len(others) else farthest
    distances, nearest = np.full(len(names), np.inf), np.full(len(names), -1)
    for place, other in enumerate(others):
        _approach(distances, nearest, points, other, len(names) + place)
    chosen: list[Choice] = []
    rest = list(by_name)
    gains = np.zeros(0)
    for number_of_choices in range(most):
        if number_of_choices < MAX_GREEDY:
            gains = np.array([np.maximum(left - between[number], 0) @ weights[targets] for number in rest])
        best = np.flatnonzero(gains == gains.max())
        place = int(best[np.argmax(weights[rest][best])])
        number, gains = rest.pop(place), np.delete(gains, place)
        is_first = bool(np.isinf(distances[number]))
        chosen.append(Choice(number) if is_first else Choice(number, float(distances[number]), int(nearest[number])))
        _approach(distances, nearest, points, points[number], number)
        left = np.minimum(left, between[number])
    return chosen


def standardised(
    embeddings: NDArray[np.floating], corrected: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return embeddings of which each number has mean 0 and variance 1 / F, so that distances do not grow with F.

    Numbers that are the same for all cases are left out.
    """
    together = np.concatenate([embeddings, corrected]).astype(np.float64) if len(corrected) else embeddings
    together = np.asarray(together, dtype=np.float64)
    if not together.size:
        return np.zeros((len(embeddings), 0)), np.zeros((len(corrected), 0))
    spread = together.std(axis=0)
    is_used = spread > 1e-6 * np.maximum(np.abs(together).max(axis=0), 1e-12)
    scaled = (together[:, is_used] - together[:, is_used].mean(axis=0)) / spread[is_used]
    scaled /= np.sqrt(max(int(is_used.sum()), 1))
    return scaled[: len(embeddings)], scaled[len(embeddings) :]


def _distances(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the distances (n, m) between points (n, F) and others (m, F)."""
    found = np.zeros((len(points), len(others)), np.float32)
    for row, point in zip(found, points, strict=True):
        row[:] = np.linalg.norm(others - point, axis=1)
    return found


def _approach(
    distances: NDArray[np.float64],
    nearest: NDArray[np.intp],
    points: NDArray[np.float64],
    other: NDArray[np.float64],
    place: int,
) -> None:
    """Lower the distances of all cases to those to a further case where it is nearer."""
    found = np.linalg.norm(points - other, axis=1)
    is_nearer = found < distances
    distances[is_nearer] = found[is_nearer]
    nearest[is_nearer] = place
