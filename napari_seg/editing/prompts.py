"""Prompts: what a person points at to say which voxels belong to a structure and which do not."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.editing.change import Box
from napari_seg.errors import InputError

LASSO_SLACK = 0.3
"""Fraction of the depth of a lasso that may lie outside the structure."""


def _no_voxels() -> NDArray[np.intp]:
    return np.empty((0, 3), np.intp)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Hints about one structure, in voxel indices of the label map.

    A click is one voxel, a scribble is its painted voxels; both are listed alike. Lists and tuples are accepted. All
    voxels are respected; those of a long scribble teach by a few spread over it.

    Attributes:
        positive: (N, 3) voxels that belong to the structure.
        negative: (M, 3) voxels that do not belong to it.
        box: part of the label map that encloses a new structure, and in which one that is there may change; None for
            no such limit.

    Raises:
        InputError: `edit.prompt_shape` (indices are not (N, 3)) or `edit.prompt_conflict` (a voxel is positive and
            negative).
    """

    positive: NDArray[np.intp] = field(default_factory=_no_voxels)
    negative: NDArray[np.intp] = field(default_factory=_no_voxels)
    box: Box | None = None

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            object.__setattr__(self, name, _voxels(getattr(self, name)))
        both = {*map(tuple, self.positive.tolist())} & {*map(tuple, self.negative.tolist())}
        if both:
            raise InputError(
                "edit.prompt_conflict",
                f"found voxel {min(both)} marked both as part of the structure and as not part of it; "
                "remove one of the two marks",
            )

    @property
    def is_empty(self) -> bool:
        """Return whether there is neither a click, a scribble nor a box."""
        return not self.has_voxels and self.box is None

    @property
    def has_voxels(self) -> bool:
        """Return whether there is a click or a scribble."""
        return len(self.positive) > 0 or len(self.negative) > 0

    def joined(self, other: Prompts) -> Prompts:
        """Return the prompts of both; for a voxel that is marked in both ways, and the box, the other counts."""

        def without(voxels: NDArray[np.intp], unwanted: NDArray[np.intp]) -> NDArray[np.intp]:
            found = {*map(tuple, unwanted.tolist())}
            return np.array([v for v in voxels.tolist() if tuple(v) not in found], np.intp).reshape(-1, 3)

        return Prompts(
            np.concatenate([without(self.positive, other.negative), other.positive]),
            np.concatenate([without(self.negative, other.positive), other.negative]),
            self.box if other.box is None else other.box,
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise an error if no structure can be found from these prompts.

        Args:
            shape: (I, J, K) of the label map.

        Raises:
            InputError: `edit.prompt_missing` or `edit.prompt_outside`.
        """
        if self.is_empty:
            raise InputError("edit.prompt_missing", "found no prompt; click on the structure or draw a box around it")
        voxels = np.concatenate([self.positive, self.negative])
        inside = (voxels >= 0).all(axis=1) & (voxels < np.array(shape)).all(axis=1)
        if not inside.all():
            raise InputError(
                "edit.prompt_outside",
                f"found a prompt at voxel {tuple(voxels[~inside][0].tolist())}; expected one inside the scan of "
                f"{' x '.join(map(str, shape))} voxels",
            )
        if self.box is not None:
            fits = all(0 <= (s.start or 0) < s.stop <= n for s, n in zip(self.box, shape, strict=True))
            if not fits:
                raise InputError(
                    "edit.prompt_outside", "found a box that is empty or not inside the scan; draw it again"
                )

    def coarser(self, factors: tuple[int, int, int]) -> Prompts:
        """Return the prompts in the indices of blocks of voxels.

        In a block with marks of both kinds the kind with more voxels counts, positive if equal. Where that would leave
        no positive prompt, positive ones count.

        Args:
            factors: voxels in a block along each axis.
        """
        counts: dict[tuple[int, ...], list[int]] = {}
        for kind, voxels in enumerate((self.positive, self.negative)):
            for block in map(tuple, (voxels // np.array(factors)).tolist()):
                counts.setdefault(block, [0, 0])[kind] += 1
        positive = [block for block, (for_it, against) in counts.items() if for_it >= against]
        if len(self.positive) and not any(counts[block][0] for block in positive):
            positive = [block for block, (for_it, _) in counts.items() if for_it]
        chosen = set(positive)
        negative = [block for block in counts if block not in chosen]
        box = None
        if self.box is not None:
            i, j, k = (slice(p.start // f, -(-p.stop // f)) for p, f in zip(self.box, factors, strict=True))
            box = (i, j, k)
        return Prompts(np.array(positive, np.intp), np.array(negative, np.intp), box)


def from_lasso(
    corners: ArrayLike, axis: int, index: int, shape: tuple[int, int, int], *, is_positive: bool = True
) -> Prompts:
    """Return the prompts that a lasso in one plane means.

    A lasso around the structure is drawn roughly: what lies well inside is positive, what lies just outside negative.
    A lasso around a part that does not belong to the structure makes all that lies in it negative.

    Args:
        corners: (N, 2) corners in voxel indices of the plane, in the order of the two other axes.
        axis: index axis across the plane.
        index: place of the plane along that axis.
        shape: (I, J, K) of the label map.
        is_positive: whether the lasso is around the structure.

    Raises:
        InputError: `edit.prompt_shape`, these are no corners; `edit.prompt_outside`, the lasso encloses no voxel of
            the plane.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.draw import polygon2mask

    polygon = np.asarray(corners, float)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3 or not np.isfinite(polygon).all():
        raise InputError(
            "edit.prompt_shape", f"found a lasso of shape {polygon.shape}; expected at least three corners (N, 2)"
        )
    plane = tuple(n for a, n in enumerate(shape) if a != axis)
    inside = polygon2mask(plane, polygon) if 0 <= index < shape[axis] else np.zeros(plane, bool)
    if not inside.any():
        raise InputError("edit.prompt_outside", "found a lasso that encloses no voxel of the scan; draw it again")
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    away = distance_transform_edt(~inside)
    core = depth > LASSO_SLACK * depth.max()
    rim = (away > 1) & (away < 3)

    def voxels(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
        return np.insert(np.argwhere(mask), axis, index, axis=1)

    return Prompts(voxels(core), voxels(rim)) if is_positive else Prompts(negative=voxels(inside))


def _voxels(indices: ArrayLike) -> NDArray[np.intp]:
    """Return indices as a read-only array (N, 3) without repetitions."""
    array = np.asarray(indices)
    if not array.size:
        array = _no_voxels()
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError("edit.prompt_shape", f"found prompts of shape {array.shape}; expected (N, 3) voxel indices")
    unique = np.unique(array.astype(np.intp), axis=0)
    unique.setflags(write=False)
    return unique
