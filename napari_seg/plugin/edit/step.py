"""A change as a step of napari's undo history: small boxes that together hold every changed voxel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from napari_seg.editing.change import Box, box_of

if TYPE_CHECKING:
    from napari_seg.editing.change import Change
    from napari_seg.plugin.napari_private import Atom

_TILE = 64
"""Voxels along each axis of the boxes that a large change is divided into, so that far parts share no box."""


def step_of(change: Change) -> list[Atom]:
    """Return the boxes of a change, with their labels before and after; [] if it is empty.

    Slow for a large change: call outside the main thread. The arrays are copies.
    """
    return [
        (_shifted(box, change.box), change.before[box].copy(), change.after[box].copy())
        for tile in _tiles(change.before.shape)
        if (box := _changed_in(change, tile)) is not None
    ]


def fits(step: list[Atom], labels: np.ndarray) -> bool:
    """Return whether a label map still has the labels that a step was computed for."""
    return all(np.array_equal(labels[box], before) for box, before, _ in step)


def _tiles(shape: tuple[int, ...]) -> Iterator[Box]:
    for i, j, k in product(*(range(0, n, _TILE) for n in shape)):
        yield slice(i, i + _TILE), slice(j, j + _TILE), slice(k, k + _TILE)


def _changed_in(change: Change, tile: Box) -> Box | None:
    found = box_of(change.is_changed[tile])
    return None if found is None else _shifted(found, tile)


def _shifted(box: Box, outer: Box) -> Box:
    """Return the place in a label map of a box whose indices begin at another box."""
    i, j, k = (slice(b.start + o.start, b.stop + o.start) for b, o in zip(box, outer, strict=True))
    return i, j, k
