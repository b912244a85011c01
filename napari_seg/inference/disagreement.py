"""Disagreement of several predictions for one scan: how far the members' label maps differ, structure by structure.

The mean Dice of all pairs of members is the best of the simple detectors of failures (Zenk et al., Medical Image
Analysis 2025, arXiv:2406.03323). The disagreement is 1 minus that mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Disagreement:
    """Disagreement of the members' predictions for a scan, from 0 (equal) to 1 (no voxel in common).

    Attributes:
        structures: name of a structure -> 1 minus the mean Dice of all pairs of members; structures that no member
            found are absent.
        members: the members in words, such as "5 networks".
    """

    structures: Mapping[str, float]
    members: str

    @property
    def overall(self) -> float:
        """Mean over the structures; 1 if no member found any, because the model may have missed them."""
        return fmean(self.structures.values()) if self.structures else 1.0


def disagreement_of(
    label_maps: Sequence[NDArray[np.unsignedinteger]], names: Mapping[int, str], members: str
) -> Disagreement:
    """Return the disagreement of label maps.

    A pair of which only one has a structure counts with a Dice of 0, and a pair of which neither has it with 1.

    Args:
        label_maps: at least two, (I, J, K) each on the same grid.
        names: label -> name of the structure.
        members: the members in words.
    """
    count = max([*names, *(int(one.max(initial=0)) for one in label_maps)], default=0) + 1
    sizes = [_counts(one, one, count) for one in label_maps]
    found = {label: name for label, name in names.items() if any(size[label] for size in sizes)}
    dice: dict[str, list[float]] = {name: [] for name in found.values()}
    for first, second in combinations(range(len(label_maps)), 2):
        common = _counts(label_maps[first], label_maps[second], count)
        for label, name in found.items():
            total = int(sizes[first][label] + sizes[second][label])
            dice[name].append(2 * int(common[label]) / total if total else 1.0)
    return Disagreement({name: 1 - fmean(values) for name, values in dice.items()}, members)


def _counts(
    one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger], count: int
) -> NDArray[np.signedinteger]:
    """Return the number of voxels with each label below `count` in both label maps, plane by plane.

    NumPy's bincount makes int64 numbers of all that it counts.
    """
    found = np.zeros(count, np.int64)
    for plane, other_plane in zip(one, other, strict=True):
        found += np.bincount(plane[plane == other_plane], minlength=count)
    return found
