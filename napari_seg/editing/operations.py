"""Operations on whole structures that run without a person: their names and values, and the functions behind them.

The command line offers them for many label maps, in the order in which they are given, and the window as buttons.
Importing the table is cheap.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from napari_seg.errors import InputError, Notice, listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from napari_seg.editing.change import Change
    from napari_seg.geometry import Grid
    from napari_seg.volume import Segmentation

View = Literal["sagittal", "coronal", "axial"]
"""View of the patient, in the order of the patient axes x, y and z that they look along."""


class Kind(NamedTuple):
    """Describe a kind of operation.

    Attributes:
        unit: unit of its value, "view" if that is a view, "" without a value.
        description: description in the help of the command line.
    """

    unit: Literal["", "mm", "ml", "view"]
    description: str


OPERATIONS = {
    "fill-holes": Kind("", "fill what the structure encloses in 3D"),
    "fill-holes-in": Kind("view", "fill what the structure encloses in a slice of this view, slice by slice"),
    "fill-between": Kind("view", "fill empty slices of this view between slices with voxels"),
    "keep-largest": Kind("", "remove all islands but the largest"),
    "remove-islands": Kind("ml", "remove islands below this volume"),
    "smooth": Kind("mm", "smooth the surface by a Gaussian of this standard deviation; the volume stays"),
    "erode": Kind("mm", "remove a layer of this thickness"),
    "dilate": Kind("mm", "add a layer of this thickness, except where other structures are"),
}
"""Name -> kind."""

_NOTHING_TO_DO = ("edit.absent", "edit.nothing_between")
"""Codes of operations that leave a structure as it is."""


@dataclass(frozen=True)
class Operation:
    """One operation with its value.

    Attributes:
        name: key of `OPERATIONS`.
        size: size in mm, or volume in ml; 0 if the operation has none.
        view: view whose slices count; None if the operation has none.
    """

    name: str
    size: float = 0.0
    view: View | None = None

    def __str__(self) -> str:
        unit = OPERATIONS[self.name].unit
        value = {"": "", "view": f" {self.view}"}.get(unit, f" {self.size:g} {unit}")
        return f"{self.name}{value}"

    @property
    def reach_mm(self) -> float:
        """Distance in mm over which the operation looks from the surface of a structure."""
        from napari_seg.editing.shape import GAUSSIAN_END

        return {"smooth": GAUSSIAN_END * self.size, "erode": self.size, "dilate": self.size}.get(self.name, 0.0)

    def axis(self, grid: Grid) -> int:
        """Return the index axis of a grid that the view looks along; on an oblique grid the nearest one."""
        return grid.patient_axes()[0][get_args(View).index(self.view)]

    def change(
        self, labels: NDArray[np.unsignedinteger], grid: Grid, label: int, overwrite: Collection[int] = ()
    ) -> Change:
        """Return the change of one structure.

        Args:
            labels: (I, J, K) label map.
            grid: its grid.
            label: label of the structure.
            overwrite: labels of other structures that it may take voxels from.

        Raises:
            InputError: see the function of the operation.
        """
        from napari_seg.editing import interpolate, islands, shape

        match self.name:
            case "fill-holes":
                return shape.fill_holes(labels, grid, label, overwrite=overwrite)
            case "fill-holes-in":
                return shape.fill_holes(labels, grid, label, axis=self.axis(grid), overwrite=overwrite)
            case "fill-between":
                return interpolate.interpolate(labels, grid, label, self.axis(grid), overwrite=overwrite)
            case "keep-largest":
                return islands.keep_largest(labels, grid, label)
            case "remove-islands":
                return islands.remove_small_islands(labels, grid, label, self.size)
            case "smooth":
                return shape.smooth(labels, grid, label, self.size, overwrite)
            case "erode":
                return shape.erode(labels, grid, label, self.size)
            case "dilate":
                return shape.dilate(labels, grid, label, self.size, overwrite)
            case name:
                raise KeyError(name)


def apply_operations(
    segmentation: Segmentation, operations: Sequence[Operation], structures: Sequence[int], cropped: Sequence[int] = ()
) -> Segmentation:
    """Return a segmentation after operations, one after the other, each on one structure after the other.

    A structure without voxels stays as it is, and so does one without empty slices between its slices. A notice says
    which operations changed nothing because their size is smaller than a voxel.

    Beyond the edge of a scan nothing is known, and the operations take it so (see `shape`). The edge of a label map
    that leaves out empty planes is not that of the scan: background lies beyond it, and structures grow into it.

    Args:
        segmentation: label map; it is not modified.
        operations: operations in their order.
        structures: labels of the structures.
        cropped: index axes along which the label map may leave out empty planes. Along these the result has the planes
            that are not empty, and a notice says which structures lay at the edge.

    Raises:
        InputError: `edit.nothing_left`, `edit.size`, ...; see the function of each operation.
        EnvironmentFault: `environment.memory`.
    """
    widened = _widened(segmentation, operations, structures, cropped) if cropped else segmentation
    labels, notices, spacing_mm = widened.array.copy(), widened.notices, widened.grid.spacing_mm
    for operation in operations:
        are_empty = []
        for label in structures:
            try:
                change = operation.change(labels, widened.grid, label)
            except InputError as error:
                if error.code not in _NOTHING_TO_DO:
                    raise
            else:
                are_empty.append(change.is_empty)
                change.apply(labels)
        is_below = OPERATIONS[operation.name].unit == "mm" and operation.size < min(spacing_mm)
        if is_below and are_empty and all(are_empty):
            spacing = " x ".join(f"{each:.3g}" for each in spacing_mm)
            text = f"{operation} changed nothing; it is smaller than the voxels of {spacing} mm; choose a larger size"
            notices = (*notices, Notice("edit.below_voxel", text))
    edited = replace(widened, array=labels, confidence={}, confidence_maps=None, notices=notices)
    return _narrowed(edited, cropped) if cropped else edited


def _widened(
    segmentation: Segmentation, operations: Sequence[Operation], structures: Sequence[int], cropped: Sequence[int]
) -> Segmentation:
    """Return a segmentation with as much background around it as operations look at; see `apply_operations`."""
    import numpy as np

    from napari_seg.editing.structure import margin_of
    from napari_seg.memory import check_fits

    array, grid = segmentation.array, segmentation.grid
    margins = np.sum([margin_of(grid, operation.reach_mm) for operation in operations], axis=0) + 1
    steps = [int(margins[axis]) if axis in cropped else 0 for axis in range(3)]
    shape = [size + 2 * step for size, step in zip(grid.shape, steps, strict=True)]
    check_fits(3 * prod(shape) * array.itemsize, "editing the label map")
    faces = [np.moveaxis(array, axis, 0)[end] for axis in cropped for end in (0, -1)]
    names = [
        segment.name
        for segment in segmentation.segments
        if segment.label in structures and any((face == segment.label).any() for face in faces)
    ]
    notices = segmentation.notices
    if names and any(operation.reach_mm for operation in operations):
        text = f"found {listed(names)} at the edge of a label map that may leave out empty planes; it was edited as if"
        text = f"{text} the scan went on there; if the scan ends there, use convert with --scan and edit the result"
        notices = (*notices, Notice("edit.cropped", text))
    padded = np.pad(array, [(step, step) for step in steps])
    stop = [size + step for size, step in zip(grid.shape, steps, strict=True)]
    return replace(segmentation, array=padded, grid=grid.box([-step for step in steps], stop), notices=notices)


def _narrowed(segmentation: Segmentation, cropped: Sequence[int]) -> Segmentation:
    """Return a segmentation without the empty planes at its edges along some axes; unchanged without any voxel."""
    from napari_seg.editing.change import box_of

    found = box_of(segmentation.array > 0)
    if found is None:
        return segmentation
    i, j, k = (found[axis] if axis in cropped else slice(0, size) for axis, size in enumerate(segmentation.grid.shape))
    grid = segmentation.grid.box((i.start, j.start, k.start), (i.stop, j.stop, k.stop))
    return replace(segmentation, array=segmentation.array[i, j, k].copy(), grid=grid)
