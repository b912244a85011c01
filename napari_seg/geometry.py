"""Placement of voxels in the patient, and resampling between grids.

A `Grid` is a shape and one affine from voxel index to millimetres in RAS+ (x grows to the patient's right, y to the
front, z to the head), as in nibabel and MONAI. An index is the centre of its voxel. The grid of a scan, the input grid
of a network, a box around an organ and the mirror image of that box are all grids. `resample` samples an array of one
grid on any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.errors import InputError

SHEAR_TOLERANCE = 2e-3
"""Cosine between two axes above which a grid counts as sheared (0.11 degrees); float32 headers stay below 1e-5."""

WHOLE_VOXEL_TOLERANCE = 1e-3
"""Maximum distance in voxels, anywhere in the grid, between two lattices that count as the same."""

PLANES_AT_ONCE = 16
"""Number of planes of a large array that are interpolated at once if two grids have parallel axes."""

_SMALL_SIZE = 2**17
"""Number of values of an array that is interpolated as a whole."""

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4) matrix from LPS+, the frame of DICOM and ITK, to RAS+; it is its own inverse."""

_AXIS_CODES = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, eq=False)
class Grid:
    """A block of voxels placed in the patient.

    Attributes:
        shape: voxels along each index axis, (I, J, K).
        affine: (4, 4) float64, read-only; voxel index (i, j, k, 1) -> (x, y, z, 1) in mm, RAS+.

    Raises:
        InputError: `geometry.shape`, `geometry.affine` (not finite or singular) or `geometry.shear` (axes not
            at right angles).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError("geometry.shape", f"found a grid of shape {shape}; expected three sizes of at least 1")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
            raise InputError(
                "geometry.affine", "found an affine that is not finite or not 4 x 4 with a last row 0 0 0 1"
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() < 1e-6:
            raise InputError("geometry.affine", f"found a voxel size of {_mm(lengths)} mm; every size must be above 0")
        directions = affine[:3, :3] / lengths
        if abs(np.linalg.det(directions)) < 1e-3:
            raise InputError("geometry.affine", "found a singular affine: two axes of the grid point the same way")
        cosines = np.abs(directions.T @ directions - np.eye(3))
        if cosines.max() > SHEAR_TOLERANCE:
            degrees = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
            raise InputError(
                "geometry.shear",
                f"the axes of the grid are {degrees:.2f} degrees off a right angle; expected at most "
                f"{np.degrees(np.arcsin(SHEAR_TOLERANCE)):.2f}; resample the scan on a straight grid first",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    # properties

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each index axis, in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3) matrix whose column n is the unit vector, in RAS+, of index axis n."""
        return self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def orientation(self) -> str:
        """Patient direction nearest to each index axis, such as "RAS" or "LPS"."""
        axes, flips = self.patient_axes()
        return "".join(_AXIS_CODES[axes.index(n)][not flips[axes.index(n)]] for n in range(3))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Field of view in mm along each index axis, including the outer half voxels."""
        i, j, k = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return i, j, k

    @property
    def center_mm(self) -> NDArray[np.float64]:
        """(3,) centre of the field of view in mm, RAS+."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    @property
    def corners_mm(self) -> NDArray[np.float64]:
        """(8, 3) centres of the eight corner voxels in mm, RAS+."""
        ends = [(0, n - 1) for n in self.shape]
        return self.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(8, 3))

    def to_world(self, indices: ArrayLike) -> NDArray[np.float64]:
        """Return the points (..., 3) in mm, RAS+, of voxel indices (..., 3)."""
        return np.asarray(indices, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the fractional voxel indices (..., 3) of points (..., 3) in mm, RAS+."""
        return (np.asarray(points_mm, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def contains(self, points_mm: ArrayLike) -> NDArray[np.bool_]:
        """Return whether points (..., 3) in mm, RAS+, lie in the field of view, including the outer half voxels."""
        indices = self.to_index(points_mm)
        return np.all((indices >= -0.5) & (indices <= np.array(self.shape) - 0.5), axis=-1)

    def matches(self, other: Grid, tolerance_mm: float | None = None) -> bool:
        """Return whether two grids have the same shape and no corner voxels further apart than a tolerance.

        Args:
            other: another grid.
            tolerance_mm: None for 0.001 mm, or a tenth of a voxel if that is less, as in microscopy.
        """
        if self.shape != other.shape:
            return False
        if tolerance_mm is None:
            tolerance_mm = min(1e-3, min(self.spacing_mm) / 10)
        return bool(np.linalg.norm(self.corners_mm - other.corners_mm, axis=1).max() <= tolerance_mm)

    # derived grids

    @classmethod
    def around(
        cls,
        center_mm: ArrayLike,
        size_mm: Sequence[float],
        spacing_mm: Sequence[float],
        directions: ArrayLike | None = None,
    ) -> Grid:
        """Return a box around a point, with at least the given size.

        Args:
            center_mm: (3,) in mm, RAS+.
            size_mm: field of view along each index axis; it is rounded up to whole voxels.
            spacing_mm: voxel size along each index axis.
            directions: (3, 3) unit vectors of the index axes as columns, in RAS+; None for the patient axes.
        """
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        shape = np.ceil(np.asarray(size_mm) / spacing - 1e-6).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) if directions is None else np.asarray(directions)) * spacing
        affine[:3, 3] = np.asarray(center_mm) - affine[:3, :3] @ ((shape - 1) / 2)
        return cls((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def box(self, start: Sequence[int], stop: Sequence[int]) -> Grid:
        """Return the grid of the voxels from `start` to `stop` - 1; it may extend beyond this grid."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(start)
        i, j, k = (int(b) - int(a) for a, b in zip(start, stop, strict=True))
        return Grid((i, j, k), affine)

    def mirrored(self, axis: int = 0) -> Grid:
        """Return the same voxels with one index axis reversed.

        An array sampled on it is the mirror image of an array sampled on this grid. A network that was trained on the
        left side of the body can so segment the right side.
        """
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, axis] * (self.shape[axis] - 1)
        affine[:3, axis] *= -1
        return Grid(self.shape, affine)

    def reoriented(self, orientation: str = "RAS") -> Grid:
        """Return the same voxels with the index axes in the order and directions nearest to an orientation.

        Args:
            orientation: three letters, one from each of L/R, P/A and I/S.

        Raises:
            InputError: `geometry.orientation`, the letters are no orientation.
        """
        letter_axes = [next((n for n, codes in enumerate(_AXIS_CODES) if c in codes), -1) for c in orientation.upper()]
        if sorted(letter_axes) != [0, 1, 2]:
            raise InputError(
                "geometry.orientation", f"found {orientation!r}; expected three letters such as RAS or LPS"
            )
        axes, flips = self.patient_axes()
        affine = np.eye(4)
        affine[:3, 3] = self.affine[:3, 3]
        shape = []
        for column, (patient_axis, letter) in enumerate(zip(letter_axes, orientation.upper(), strict=True)):
            axis = axes[patient_axis]
            shape.append(self.shape[axis])
            affine[:3, column] = self.affine[:3, axis]
            if flips[patient_axis] == (letter == _AXIS_CODES[patient_axis][1]):
                affine[:3, 3] += affine[:3, column] * (self.shape[axis] - 1)
                affine[:3, column] *= -1
        return Grid((shape[0], shape[1], shape[2]), affine)

    def patient_axes(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Return the index axis nearest to x, y and z, and whether it is reversed.

        On an oblique grid, the index axis that is nearest to a patient axis chooses first, as in nibabel, which MONAI,
        nnU-Net and TotalSegmentator follow.
        """
        u, _, v = np.linalg.svd(self.directions)
        rotation = u @ v
        axes, flips = [0, 0, 0], [False, False, False]
        for axis in np.argsort((-(rotation**2)).min(axis=0), kind="stable"):
            patient_axis = int(np.argmax(np.abs(rotation[:, axis])))
            axes[patient_axis], flips[patient_axis] = int(axis), bool(rotation[patient_axis, axis] < 0)
            rotation[patient_axis] = 0
        return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def index_affine(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Return the (4, 4) matrix from voxel indices of `target` to fractional voxel indices of `source`."""
    return np.linalg.inv(source.affine) @ target.affine


def resample(
    array: NDArray,
    source: Grid,
    target: Grid,
    *,
    order: Literal[0, 1] = 1,
    outside: float | None = None,
) -> NDArray:
    """Return an array of one grid sampled on another.

    Between grids that differ only by axis order, flips and whole-voxel shifts, the values are copied and the type is
    kept. Otherwise they are interpolated; linear interpolation gives float32, or float64 for a float64 array.

    Args:
        array: (..., I, J, K) on `source`.
        source: grid of the array.
        target: grid of the returned array.
        order: 1 for linear, 0 for nearest-neighbour interpolation, which keeps the type (for labels).
        outside: value where `target` extends beyond `source`; None repeats the edge.

    Returns:
        (..., *target.shape).
    """
    if array.shape[-3:] != source.shape:
        raise InputError("geometry.shape", f"found an array of shape {array.shape} for a grid of {source.shape}")
    to_source = index_affine(source, target)
    is_copy = is_same_lattice(source, target)
    if is_copy:
        to_source = np.rint(to_source)
    if (parallel := parallel_axes(to_source, target.shape)) is not None:
        places = [
            (n, to_source[axis, n] * np.arange(target.shape[n]) + to_source[axis, 3]) for axis, n in enumerate(parallel)
        ]
        if is_copy or order == 0:
            return _nearest_along_axes(array, places, outside)
        return _interpolated_along_axes(array, source, places, outside)

    from scipy.ndimage import affine_transform

    interpolated = np.float64 if array.dtype == np.float64 else np.float32
    dtype = array.dtype if order == 0 else np.dtype(interpolated)
    result = np.empty((*array.shape[:-3], *target.shape), dtype=dtype)
    for channel in np.ndindex(array.shape[:-3]):
        affine_transform(
            array[channel],
            to_source[:3, :3],
            to_source[:3, 3],
            output_shape=target.shape,
            output=result[channel],
            order=order,
            mode="nearest" if outside is None else "grid-constant",
            cval=0.0 if outside is None else outside,
        )
    return result


def is_same_lattice(source: Grid, target: Grid) -> bool:
    """Return whether two grids differ only by axis order, flips and whole-voxel shifts."""
    to_source = index_affine(source, target)
    rounded = np.rint(to_source)
    turn = np.abs(rounded[:3, :3])
    if not ((turn.sum(axis=0) == 1).all() and (turn.sum(axis=1) == 1).all()):
        return False
    ends = np.array(target.shape) - 1
    drift = np.abs(to_source - rounded)[:3]
    return bool((drift[:, :3] @ ends + drift[:, 3]).max() < WHOLE_VOXEL_TOLERANCE)


def parallel_axes(to_source: NDArray[np.float64], target_shape: Sequence[int]) -> list[int] | None:
    """Return, for each source axis, the parallel target axis; None if the grids are rotated against each other.

    Args:
        to_source: see `index_affine`.
        target_shape: (I, J, K) of the target; the effect of a small rotation grows with it.
    """
    linear = np.abs(to_source[:3, :3])
    parallel = [int(row.argmax()) for row in linear]
    others = [sum(row[m] * (target_shape[m] - 1) for m in range(3) if m != parallel[n]) for n, row in enumerate(linear)]
    return parallel if sorted(parallel) == [0, 1, 2] and max(others) < WHOLE_VOXEL_TOLERANCE else None


def _nearest_along_axes(
    array: NDArray, places: list[tuple[int, NDArray[np.float64]]], outside: float | None
) -> NDArray:
    """Return the nearest voxels, picked along one axis after the other.

    Args:
        array: (..., I, J, K).
        places: for each source axis, the parallel target axis, and the fractional source index at each of its voxels.
        outside: value beyond the edge; None repeats the edge.
    """
    lead = array.ndim - 3
    source_axis_of = [int(axis) for axis in np.argsort([n for n, _ in places])]
    turned = array.transpose(*range(lead), *(lead + axis for axis in source_axis_of))
    picks, inside = [], []
    for n, axis in enumerate(source_axis_of):
        indices = np.floor(places[axis][1] + 0.5).astype(np.int64)
        size = turned.shape[lead + n]
        picks.append(np.clip(indices, 0, size - 1))
        inside.append((indices >= 0) & (indices < size))
    chosen: Any = (..., *np.ix_(*picks))
    result = turned[chosen]
    if outside is not None:
        i, j, k = (~within for within in inside)
        result[..., i, :, :] = outside
        result[..., :, j, :] = outside
        result[..., :, :, k] = outside
    return np.ascontiguousarray(result)


def _interpolated_along_axes(
    array: NDArray, source: Grid, places: list[tuple[int, NDArray[np.float64]]], outside: float | None
) -> NDArray:
    """Interpolate linearly along one axis after the other, which is much faster than along all at once.

    The axis that shrinks most comes first.

    Args:
        array: (..., I, J, K) on `source`.
        source: grid of the array.
        places: for each source axis, the parallel target axis, and the fractional source index at each of its voxels.
        outside: value one voxel beyond the edge; None repeats the edge.
    """
    dtype = np.float64 if array.dtype == np.float64 else np.float32
    lead = array.ndim - 3
    result = np.empty((*array.shape[:lead], *(len(index) for _, index in places)), dtype)
    last = int(np.argmax(source.shape))  # a few planes at a time, so that intermediate arrays stay small
    index = places[last][1]
    pieces = min(len(index) // PLANES_AT_ONCE, max(array.size, result.size) // _SMALL_SIZE)
    for some in np.array_split(np.arange(len(index)), max(1, pieces)):
        near, far = np.clip([np.floor(index[some].min()), np.floor(index[some].max()) + 1], 0, source.shape[last] - 1)
        planes = slice(int(near), int(far) + 1)
        behind = [slice(None)] * (2 - last)
        place: Any = (..., planes, *behind)
        part = array[place]
        for axis in sorted(range(3), key=lambda n: (n == last, len(places[n][1]) / source.shape[n])):
            own = places[axis][1] if axis != last else index[some] - planes.start
            part = _interpolated(part, lead + axis, own, outside, dtype)
        place = (..., slice(some[0], some[-1] + 1), *behind)
        result[place] = part
    order = [*range(lead), *(lead + axis for axis in np.argsort([n for n, _ in places]))]
    return np.ascontiguousarray(result.transpose(order))


def _interpolated(array: NDArray, axis: int, index: NDArray[np.float64], outside: float | None, dtype: type) -> NDArray:
    """Return the values at fractional indices along one axis."""
    lower = np.floor(index).astype(np.int64)
    near: Any
    far: Any
    fraction: Any = (index - lower).astype(dtype).reshape(-1, *[1] * (array.ndim - 1 - axis))
    last = array.shape[axis] - 1
    before: Any = (slice(None),) * axis  # np.take would first copy all of an array in another memory order
    near, far = (array[(*before, np.clip(n, 0, last))].astype(dtype) for n in (lower, lower + 1))
    if outside is not None:
        for side, n in ((near, lower), (far, lower + 1)):
            np.moveaxis(side, axis, 0)[(n < 0) | (n > last)] = outside
    far -= near
    far *= fraction
    near += far
    return near


def _mm(lengths: Sequence[float] | NDArray) -> str:
    return " x ".join(f"{value:.4g}" for value in lengths)
