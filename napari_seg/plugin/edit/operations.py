"""Operations on a whole structure: their names, keys and tool tips, and the functions that they call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing import combine, islands, move
from napari_seg.editing.change import Change
from napari_seg.editing.interpolate import interpolate, interpolate_sides
from napari_seg.editing.operations import OPERATIONS, Operation
from napari_seg.editing.plane import center_plane, plane_between
from napari_seg.editing.shape import fill_holes
from napari_seg.editing.split import split
from napari_seg.errors import InputError, counted
from napari_seg.geometry import Grid
from napari_seg.progress import Progress
from napari_seg.volume import labels_in

Amount = Literal["size_mm", "min_ml", "other"]
"""What an operation needs from the person beside the structure."""


@dataclass(frozen=True, eq=False)
class Situation:
    """What an operation or a tool works on.

    Attributes:
        labels: (I, J, K) label map; never modified.
        grid: its grid.
        label: label of the structure.
        overwrite: labels of other structures that it may take voxels from.
        image: (I, J, K) intensities of a scan on the same voxels; None without one.
        slice_shown: axis of the slices that the main viewer shows, and the number of the shown one; None if its plane
            is none of the labels.
        free: labels that no structure of the table has, in ascending order.
        progress: reports progress; raises `Cancelled` after a stop.
        notes: what the preview tells besides the volumes; the function that computes the change adds to it.
    """

    labels: NDArray[np.unsignedinteger]
    grid: Grid
    label: int
    overwrite: tuple[int, ...]
    image: NDArray | None
    slice_shown: tuple[int, int] | None
    free: tuple[int, ...]
    progress: Progress
    notes: list[str] = field(default_factory=list)


def needed_image(situation: Situation) -> NDArray:
    """Return the intensities of a situation.

    Raises:
        InputError: `edit.no_scan`, no open scan has the voxels of the labels.
    """
    if situation.image is None:
        raise InputError("edit.no_scan", "found no scan on the voxels of the labels; open it, or resample the labels")
    return situation.image


def needed_slice(situation: Situation) -> tuple[int, int]:
    """Return the axis of the slices that the main viewer shows, and the number of the shown one.

    Raises:
        InputError: `edit.no_plane`, the viewer shows no plane of the labels.
    """
    if situation.slice_shown is None:
        raise InputError("edit.no_plane", "the main canvas shows no plane of the labels; show one of their planes")
    return situation.slice_shown


def unused(situation: Situation) -> list[int]:
    """Return the free labels that no voxel has; the table does not know yet what was painted last."""
    present = set(labels_in(situation.labels))
    return [one for one in situation.free if one not in present]


@dataclass(frozen=True)
class WindowOperation:
    """One operation on a whole structure, as a button.

    Attributes:
        title: text of its button, and name of its step.
        tip: tool tip.
        run: computes the change; gets the situation and the amounts.
        amounts: names of the amounts.
        moves_by: number of slices that the main viewer moves by after the change is applied.
    """

    title: str
    tip: str
    run: Callable[..., Change]
    amounts: tuple[Amount, ...] = ()
    moves_by: int = 0


def _shared(name: str, title: str) -> WindowOperation:
    """Return an operation of the command line as a button.

    Args:
        name: key of `editing.operations.OPERATIONS`.
        title: text of the button.
    """
    kind = OPERATIONS[name]
    amounts: dict[str, tuple[Amount, ...]] = {"mm": ("size_mm",), "ml": ("min_ml",)}

    def run(s: Situation, **given: float) -> Change:
        return Operation(name, next(iter(given.values()), 0.0)).change(s.labels, s.grid, s.label, s.overwrite)

    tip = f"{kind.description[0].upper()}{kind.description[1:]}."
    return WindowOperation(title, tip, run, amounts.get(kind.unit, ()))


def _keep_largest(s: Situation) -> Change:
    found = islands.list_islands(s.labels, s.grid, s.label)
    s.notes.append(_islands_text(found[1:], len(found)))
    return islands.keep_largest(s.labels, s.grid, s.label)


def _remove_islands(s: Situation, min_ml: float) -> Change:
    change = islands.remove_small_islands(s.labels, s.grid, s.label, min_ml)
    found = islands.list_islands(s.labels, s.grid, s.label)
    s.notes.append(_islands_text([one for one in found if one.ml < min_ml * (1 - 1e-9)], len(found)))
    return change


def _islands_text(removed: Sequence[islands.Island], count: int) -> str:
    """Return in words which islands of a structure are removed."""
    largest = f", the largest of {removed[0].ml:.2g} ml" if removed else ""
    return f"removes {len(removed)} of {counted(count, 'island')}{largest}"


def _union(s: Situation, other: int) -> Change:
    return combine.union(s.labels, s.grid, s.label, other, (*s.overwrite, other))


def _minus(s: Situation, other: int, size_mm: float) -> Change:
    return combine.minus(s.labels, s.grid, s.label, other, margin_mm=size_mm)


def _within(s: Situation, other: int, size_mm: float) -> Change:
    return combine.within(s.labels, s.grid, s.label, other, margin_mm=size_mm)


def _fill_between(s: Situation) -> Change:
    axis, _ = needed_slice(s)
    try:
        return interpolate(s.labels, s.grid, s.label, axis, overwrite=s.overwrite, progress=s.progress)
    except InputError as error:
        if error.code != "edit.nothing_between":
            raise
    # one side may be complete in all slices where the other one has gaps
    change = interpolate_sides(s.labels, s.grid, s.label, axis, overwrite=s.overwrite, progress=s.progress)
    s.notes.append("parts side by side were filled one by one")
    return change


def _split(s: Situation) -> Change:
    return split(s.labels, s.grid, s.label, into=unused(s))


def _fill_holes_in_slices(s: Situation) -> Change:
    axis, _ = needed_slice(s)
    return fill_holes(s.labels, s.grid, s.label, axis=axis, overwrite=s.overwrite)


def _copy_to(s: Situation, step: int) -> Change:
    axis, index = needed_slice(s)
    return move.copy_to_slice(s.labels, s.grid, s.label, axis, index, index + step, overwrite=s.overwrite)


def _copy_to_next(s: Situation) -> Change:
    return _copy_to(s, 1)


def _copy_to_previous(s: Situation) -> Change:
    return _copy_to(s, -1)


def _mirror(s: Situation, other: int) -> Change:
    """Mirror at the centre of the field of view, or between both structures if the other one has voxels."""
    has_other = other != s.label and bool((s.labels == other).any())
    plane = plane_between(s.labels, s.grid, s.label, other) if has_other else center_plane(s.grid)
    where = "halfway between both structures" if has_other else "in the middle of the field of view"
    s.notes.append(f"mirrored at the plane {where}")
    return move.copy_to_mirror(s.labels, s.grid, s.label, plane, into=other, overwrite=s.overwrite)


WINDOW_OPERATIONS: Mapping[str, WindowOperation] = {
    "smooth": _shared("smooth", "Smooth"),
    "erode": _shared("erode", "Erode"),
    "dilate": replace(
        _shared("dilate", "Dilate"),
        tip="Add a layer of this thickness; other structures stay, unless the structure may replace them.",
    ),
    "fill_holes": _shared("fill-holes", "Fill holes"),
    "fill_holes_in_slices": WindowOperation(
        "Fill in slices",
        "Fill what the structure encloses in a slice, in all slices of the plane in the main canvas.",
        _fill_holes_in_slices,
    ),
    "keep_largest": replace(_shared("keep-largest", "Keep largest"), run=_keep_largest),
    "remove_islands": replace(_shared("remove-islands", "Remove islands"), run=_remove_islands),
    "fill_between": WindowOperation(
        "Fill between",
        "Fill the slices between painted slices of the plane in the main canvas.",
        _fill_between,
    ),
    "split": WindowOperation("Split", "Split touching objects; each further one gets a label of its own.", _split),
    "copy_to_next": WindowOperation(
        "Copy to next slice",
        "Copy the shown slice of the structure to the next one, and go there.",
        _copy_to_next,
        moves_by=1,
    ),
    "copy_to_previous": WindowOperation(
        "Copy to previous slice",
        "Copy the shown slice of the structure to the previous one, and go there.",
        _copy_to_previous,
        moves_by=-1,
    ),
    "mirror": WindowOperation(
        "Mirror to",
        "Add the mirror image to another structure: at the plane between both, or in the middle of the scan if the "
        "other one has no voxels.",
        _mirror,
        ("other",),
    ),
    "union": WindowOperation("Add", "Add the voxels of another structure to this one.", _union, ("other",)),
    "minus": WindowOperation("Subtract", "Remove what lies close to another structure.", _minus, ("other", "size_mm")),
    "within": WindowOperation(
        "Keep within", "Keep what lies close to another structure.", _within, ("other", "size_mm")
    ),
}
"""Operations by the names of their actions."""
