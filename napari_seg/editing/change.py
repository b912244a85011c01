"""Change of a label map: what every function of this room returns, and how it is applied.

A change holds the labels of a box only, so that it is small in a large scan, can be shown before it is applied, and is
one step to undo. A function never modifies the label map that it is given.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
"""Part of a label map: a slice with a start and a stop along each index axis."""


@dataclass(frozen=True, eq=False)
class Change:
    """New labels in a box of a label map.

    Attributes:
        box: place of the box in the label map.
        before: (I', J', K') labels in the box that the change was computed for.
        after: (I', J', K') new labels in the box, in the type of `before`.
    """

    box: Box
    before: NDArray[np.unsignedinteger]
    after: NDArray[np.unsignedinteger]

    @cached_property
    def is_changed(self) -> NDArray[np.bool_]:
        """(I', J', K') whether the label of a voxel in the box changes."""
        return self.before != self.after

    @property
    def is_empty(self) -> bool:
        """Return whether no label changes."""
        return not self.is_changed.any()

    @property
    def indices(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Indices (N,) in the label map, along each axis, of the voxels whose label changes."""
        i, j, k = np.nonzero(self.is_changed)
        return i + self.box[0].start, j + self.box[1].start, k + self.box[2].start

    @property
    def values(self) -> NDArray[np.unsignedinteger]:
        """New labels (N,) of the voxels in `indices`."""
        return self.after[self.is_changed]

    def count(self, label: int) -> tuple[int, int]:
        """Return how many voxels a structure gains and loses."""
        was, is_now = self.before == label, self.after == label
        return int((is_now & ~was).sum()), int((was & ~is_now).sum())

    def apply(self, labels: NDArray[np.unsignedinteger]) -> None:
        """Write the new labels into a label map (I, J, K)."""
        labels[self.box][self.is_changed] = self.values


def box_of(mask: NDArray[np.bool_], margin: tuple[int, int, int] = (0, 0, 0)) -> Box | None:
    """Return the box around the voxels of a mask (I, J, K), larger by a margin where the array allows; None if empty.

    Args:
        mask: voxels to enclose.
        margin: voxels to add on both sides along each axis.
    """
    ranges = []
    rest = mask
    for axis in range(3):
        found = np.flatnonzero(rest.any(axis=tuple(n for n in range(3) if n != axis)))
        if not found.size:
            return None
        start, stop = int(found[0]), int(found[-1]) + 1
        rest = rest[(slice(None),) * axis + (slice(start, stop),)]
        ranges.append(slice(max(start - margin[axis], 0), min(stop + margin[axis], mask.shape[axis])))
    return ranges[0], ranges[1], ranges[2]


def whole(shape: tuple[int, ...]) -> Box:
    """Return the box of a whole label map."""
    i, j, k = (slice(0, n) for n in shape)
    return i, j, k


def change_structure(
    labels: NDArray[np.unsignedinteger],
    box: Box,
    label: int,
    mask: NDArray[np.bool_],
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change after which a structure has the voxels of a mask in a box.

    Voxels of other structures keep their label unless that is listed in `overwrite`. Voxels that the structure loses
    become background.

    Args:
        labels: (I, J, K) label map.
        box: part of the label map; nothing changes outside it.
        label: label of the structure.
        mask: (I', J', K') voxels of the structure in the box.
        overwrite: labels of other structures that the structure may take voxels from.
    """
    before = np.array(labels[box])
    may_change = (before == 0) | (before == label)
    for other in overwrite:
        may_change |= before == other
    after = before.copy()
    after[mask & may_change] = label
    after[~mask & (before == label)] = 0
    return Change(box, before, after)
