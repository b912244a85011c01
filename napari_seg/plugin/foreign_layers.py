"""Layers of other programs and scripts: their grid, or the reason why they have none.

The transform of a layer places its voxels in napari's world. The directions of the world's axes in the patient are
known if the axis labels name them (I, P, L, or inferior, posterior, left), or if an oriented scan is already open.
Otherwise the axes are assumed to point towards inferior, posterior and left, and a notice `geometry.no_orientation`
says that left and right are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.formats.endings import may_be_dicom
from napari_seg.geometry import Grid
from napari_seg.plugin.layer_info import LayerInfo, frame_of, infos_of, orientation_doubts, volume_of
from napari_seg.plugin.placement import LAYER_AXES, LayerPlacement
from napari_seg.volume import NO_SOURCE, Volume

TRANSFORM_EVENTS = ("data", "scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
"""Events of a layer that change its geometry."""

_TRANSFORM = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")

_MAX_SHIFT_MM = 1e-3
"""Largest distance between voxels that count as the same ones."""

_MOVED_MM = 0.01
"""Smallest distance that a person moves a layer by; smaller ones come from roundings, see `placement.MAX_SHIFT_MM`."""

_DIRECTIONS = {
    "R": ("r", "right"),
    "L": ("l", "left"),
    "A": ("a", "anterior"),
    "P": ("p", "posterior"),
    "S": ("s", "superior"),
    "I": ("i", "inferior"),
}
_VECTORS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def adopt_image(layer: Image, others: Iterable[Layer]) -> None:
    """Make an image layer of another program a scan, in place; the plugin's own layers are left as they are.

    A layer with the same voxels as an open scan, such as a filtered copy, gets the grid and the source of that scan.

    Args:
        layer: image layer.
        others: layers of the viewer.

    Raises:
        InputError: the layer cannot be used: `layer.dimensions`, `layer.colour`, `layer.type`, `layer.units`,
            `layer.no_voxel_size`, or a code of `Grid`.
    """
    info = LayerInfo.of(layer)
    if info is not None and info.adopted is None:
        return
    LayerInfo.detach(layer)
    _check_kind(layer)
    array = _array_of(layer)
    info = _info_for(layer, others)
    placement = info.placement
    turned = array if placement.native == placement.shown else placement.restore(np.asarray(array))
    volume = Volume(turned[None], placement.native, layer.name, source=info.scan, notices=info.notices)
    replace(info, volume=volume).attach(layer)


def adopt_labels(layer: Labels, others: Iterable[Layer]) -> None:
    """Give a labels layer of another program a grid, in place: that of the scan with the same voxels, or its own.

    Labels that were read from a file get the source of the scan on the same grid. Labels that were restored get it only
    if it is the scan that they were made on.

    Args:
        layer: labels layer.
        others: layers of the viewer; the first matching scan is taken.

    Raises:
        InputError: the layer cannot be used, as in `adopt_image`.
    """
    info = LayerInfo.of(layer)
    if info is None:
        _info_for(layer, others).attach(layer)
    elif info.adopted == "transform":
        moved = _info_for(layer, others)
        replace(moved, segments=info.segments, algorithm=info.algorithm, confidence=info.confidence).attach(layer)
    elif not info.scan.files:
        volumes = [volume for other in others if (volume := volume_of(other)) is not None]
        on = [one for one in volumes if one.grid.matches(info.placement.native) and not _is_other(info.source, one)]
        if info.scan_mark is not None:
            on = [one for one in on if info.scan_mark.fits(one.source)]
        if on:
            replace(info, scan=on[0].source, scan_mark=None).attach(layer)


def labels_from(data: NDArray, settings: dict[str, Any]) -> Labels:
    """Return a labels layer with the array and the transform that napari passes to a writer."""
    return Labels(data, **{key: settings[key] for key in (*_TRANSFORM, "name", "metadata") if key in settings})


def loaded(volume: Volume) -> Volume:
    """Return a volume with all of its voxels in memory; other programs may add layers that are loaded piece by piece.

    Raises:
        InputError: `data.nonfinite`, voxels are NaN or infinite.
    """
    array = np.asarray(volume.array)
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        text = f"{volume.name!r} has voxels that are NaN or infinite; replace them by numbers first"
        raise InputError("data.nonfinite", text)
    return replace(volume, array=array)


def lies_on(layer: Layer, other: Layer) -> bool:
    """Return whether two layers have the same number of voxels at the same positions."""
    if layer.ndim != other.ndim or _shape_of(layer) != _shape_of(other):
        return False
    try:
        return _shift_mm(layer, _world_affine_mm(other)) <= _MAX_SHIFT_MM
    except InputError:
        return False


def is_moved(layer: Layer) -> bool:
    """Return whether a layer was moved away from the place in its info, as napari's transform mode moves it.

    The place of a layer that lies on no scan follows the layer.
    """
    info = LayerInfo.of(layer)
    if info is None or info.adopted == "transform" or layer.ndim != 3:
        return False
    placed = info.placement.shown.affine.copy()
    placed[:3] = (info.placement.frame @ LAYER_AXES).T @ placed[:3]
    try:
        return _shift_mm(layer, placed) > _MOVED_MM
    except InputError:  # units that are no length
        return True


def _shift_mm(layer: Layer, affine: NDArray[np.float64]) -> float:
    """Return the largest distance along an axis, in mm, between the corners of a layer and where an affine puts them.

    Raises:
        InputError: as `_world_affine_mm`.
    """
    difference = _world_affine_mm(layer) - affine
    corners = np.array([*np.ndindex((2,) * layer.ndim)]) * (np.array(_shape_of(layer)) - 1)
    return float(np.abs(corners @ difference[:-1, :-1].T + difference[:-1, -1]).max())


def _is_other(source: Path | None, volume: Volume) -> bool:
    """Return whether labels were read from a DICOM file that belongs to another scan."""
    from napari_seg.formats.dicom.reference import relation_to_scan

    if source is None or not may_be_dicom(source):
        return False
    try:
        return relation_to_scan(source, volume.source.files).relation == "other"
    except InputError:
        return False


_2D = "a 2D image is segmented after its file was opened in the Study tab"
"""Advice on layers of napari's own reader, which drops what tells a 2D image from a slice."""


def _check_kind(layer: Image) -> None:
    name = layer.name
    if getattr(layer, "rgb", False):
        raise InputError(
            "layer.colour", f"{name!r} is a colour image; expected grey values, one number per voxel; {_2D}"
        )
    if layer.ndim != 3:
        split = "right-click it in the layer list and choose Split Stack"
        advice = split if layer.ndim > 3 else f"open the whole volume; {_2D}"
        raise InputError("layer.dimensions", f"{name!r} has {layer.ndim} dimensions; expected 3; {advice}")
    if np.dtype(layer.dtype).kind not in "buif":
        raise InputError("layer.type", f"{name!r} holds values of type {layer.dtype}; expected real numbers")


def _array_of(layer: Image) -> Any:
    """Return the voxels at full resolution; an array that is not in memory is loaded when it is used."""
    array = layer.data[0] if layer.multiscale else layer.data
    if not isinstance(array, np.ndarray):
        import dask.array

        array = array if isinstance(array, dask.array.Array) else dask.array.from_array(array)
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _info_for(layer: Layer, others: Iterable[Layer]) -> LayerInfo:
    """Return the info of the scan with the same voxels, otherwise one made from the layer's own transform."""
    others = [other for other in others if other is not layer]
    for other in others:
        if (volume := volume_of(other)) is None or not lies_on(layer, other):
            continue
        info = LayerInfo.require(other)
        placement = info.placement
        if isinstance(layer, Image) and not placement.is_view:  # the layer has the resampled voxels
            shown = LayerPlacement(placement.shown, placement.shown, placement.frame)
            info = replace(info, placement=shown, scan=NO_SOURCE)
        doubts = orientation_doubts(volume.notices)
        return replace(info, volume=None, value_range=None, notices=doubts, adopted="scan")
    affine, frame, notices = _world_affine_mm(layer), frame_of(others), _unit_notices(layer)
    labelled = _frame_of_axis_labels(layer)
    if labelled is not None:
        if frame is not None and not np.allclose(labelled, frame, atol=1e-6):
            text = f"the axis labels of {layer.name!r} differ from those of the open scans: it does not lie on them"
            notices = (*notices, Notice("geometry.other_axes", text))
        frame = labelled
    elif frame is None or not all(info.is_oriented for info in infos_of(others)):
        text = (
            f"the orientation of {layer.name!r} in the patient is unknown, left and right included. Open its file with "
            "napari-seg to get the orientation"
        )
        notices = (*notices, Notice("geometry.no_orientation", text))
        frame = np.eye(3) if frame is None else frame
    to_patient = np.eye(4)
    to_patient[:3, :3] = frame @ LAYER_AXES
    i, j, k = _shape_of(layer)
    grid = Grid((i, j, k), to_patient @ affine)
    return LayerInfo(LayerPlacement(grid, grid, frame), notices=notices, adopted="transform")


def _frame_of_axis_labels(layer: Layer) -> NDArray[np.float64] | None:
    """Return the frame (3, 3) whose axes have the directions of the axis labels; None if these name no directions."""
    words = [str(label).strip().lower() for label in layer.axis_labels]
    letters = [next((letter for letter, named in _DIRECTIONS.items() if word in named), "") for word in words]
    vectors = np.array([_VECTORS.get(letter, (0, 0, 0)) for letter in letters], np.float64).T
    if vectors.shape != (3, 3) or abs(round(float(np.linalg.det(vectors)))) != 1:
        return None
    frame: NDArray[np.float64] = vectors @ LAYER_AXES
    return frame


def _world_affine_mm(layer: Layer) -> NDArray[np.float64]:
    """Return the affine (4, 4) from a voxel index of a layer to napari's world, in mm.

    Raises:
        InputError: `layer.dimensions`, `layer.units` or `layer.no_voxel_size`.
    """
    count = layer.ndim
    if count != 3:
        raise InputError("layer.dimensions", f"{layer.name!r} has {count} dimensions; expected 3")
    origin = np.array(layer.data_to_world((0,) * count))
    affine = np.eye(count + 1)
    affine[:-1, :-1] = np.array([layer.data_to_world(tuple(one)) for one in np.eye(count)]).T - origin[:, None]
    affine[:-1, -1] = origin
    lengths = [_mm_of(layer, unit) for unit in layer.units]
    if None in lengths and np.allclose(affine[:3, :3], np.eye(3)):
        raise InputError(
            "layer.no_voxel_size",
            f"{layer.name!r} has no voxel size (scale 1, in pixels); open its file with napari-seg, or set the layer's "
            "scale and units='mm'",
        )
    affine[:-1] *= np.array([1.0 if length is None else length for length in lengths])[:, None]
    return affine


def _mm_of(layer: Layer, unit: Any) -> float | None:
    """Return the length of a unit in mm; None for pixels, which are no length."""
    import pint

    if str(unit) in ("pixel", "dimensionless"):
        return None
    try:
        return float((1 * unit).to("mm").magnitude)
    except pint.DimensionalityError:
        text = f"{layer.name!r} has an axis in {unit}; expected lengths, such as mm"
        raise InputError("layer.units", text) from None


def _unit_notices(layer: Layer) -> tuple[Notice, ...]:
    if any(_mm_of(layer, unit) is None for unit in layer.units):
        return (Notice("geometry.no_units", f"{layer.name!r} has no unit of length; its scale is taken as mm"),)
    return ()


def _shape_of(layer: Layer) -> tuple[int, ...]:
    """Return the number of voxels along each axis at full resolution."""
    array = layer.data[0] if layer.multiscale else layer.data
    return tuple(int(n) for n in array.shape[: layer.ndim])
