"""Resampling of arrays to another number of voxels, with the numbers that SciPy, scikit-image and torch return.

Along one axis, such a resampling is a matrix (new length, old length), however the library computes it: it is linear,
and the same for every line of voxels. The matrix is what the library returns for the unit vectors. Three products of
matrices then do what takes the libraries minutes, a few planes at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

ROWS_AT_ONCE = 64
"""Number of new voxels along an axis that are computed by one product, from only those old voxels that count."""

SLAB_BYTES = 2**26
"""Size of the intermediate arrays, if a plane is not larger."""


@dataclass(frozen=True)
class Rule:
    """How a line of voxels is resampled. Voxels are areas: the ends of the line stay where they are.

    Attributes:
        order: order of the spline, 0 to 5; 0 takes the nearest voxel, 1 interpolates linearly. Edges are repeated.
        library: "scipy" for scikit-image's `resize` and SciPy's `zoom`, "torch" for torch's `interpolate`, which
            interpolates linearly at most. They differ in the last digits of a position.
    """

    order: int = 1
    library: Literal["scipy", "torch"] = "scipy"


@lru_cache(maxsize=32)
def operator(length: int, new_length: int, rule: Rule) -> NDArray[np.float64]:
    """Return the matrix (new_length, length) that resamples a line of voxels."""
    matrix: NDArray
    if rule.order == 0:
        matrix = np.zeros((new_length, length))
        matrix[np.arange(new_length), nearest(length, new_length, rule)] = 1
    elif rule.library == "torch":
        import torch

        lines = torch.eye(length)[None]  # torch interpolates each channel along its last axis
        found = torch.nn.functional.interpolate(lines, new_length, mode="linear", antialias=False)
        matrix = found[0].T.double().numpy()
    else:
        from scipy.ndimage import zoom

        factors = (new_length / length, 1)
        matrix = zoom(np.eye(length), factors, order=rule.order, mode="nearest", grid_mode=True)
    matrix = np.ascontiguousarray(matrix)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=32)
def nearest(length: int, new_length: int, rule: Rule) -> NDArray[np.int64]:
    """Return for each new voxel of a line the number of the nearest old voxel."""
    if rule.library == "torch":
        import torch

        lines = torch.arange(length, dtype=torch.float64)[None, None]
        found = torch.nn.functional.interpolate(lines, new_length, mode="nearest-exact")[0, 0].numpy()
    else:
        from scipy.ndimage import zoom

        line = np.arange(length, dtype=np.float64)
        found = zoom(line, new_length / length, order=0, mode="nearest", grid_mode=True)
    numbers = found.astype(np.int64)
    numbers.setflags(write=False)
    return numbers


def resampled(
    array: NDArray,
    shape: tuple[int, ...],
    rules: Rule | tuple[Rule, Rule, Rule],
    *,
    dtype: DTypeLike = np.float32,
    taken: Callable[[NDArray, slice], NDArray] | None = None,
    out: NDArray | None = None,
) -> NDArray:
    """Return an array with another number of voxels along each axis.

    Besides the result, memory holds only some planes across the first axis at a time.

    Args:
        array: (I, J, K); a view with any strides.
        shape: (i, j, k) of the result.
        rules: for all axes, or for each.
        dtype: type of the computation and the result. Ignored if every rule takes the nearest voxel and there is no
            `taken`, which keeps the type of the array.
        taken: function from some planes of the array, and their place along the first axis, to the contiguous planes
            in `dtype` that are resampled, such as a normalisation; None: they are converted. It may be called several
            times for the same planes.
        out: array for the result; None: a new one.
    """
    along = (rules, rules, rules) if isinstance(rules, Rule) else rules
    is_nearest = [rule.order == 0 or m == n for rule, m, n in zip(along, shape, array.shape, strict=True)]
    if all(is_nearest) and taken is None:
        dtype = array.dtype
    result = np.empty(shape, dtype) if out is None else out
    first, *others = (_Axis.of(n, m, rule, dtype) for n, m, rule in zip(array.shape, shape, along, strict=True))
    plane = max(array.shape[1], shape[1]) * max(array.shape[2], shape[2]) * np.dtype(dtype).itemsize
    plane *= max(1, round(array.shape[0] / shape[0]))  # so many old planes for each new one
    for rows, columns in first.parts(max(1, min(ROWS_AT_ONCE, SLAB_BYTES // (2 * plane)))):
        planes = array[columns]
        planes = np.ascontiguousarray(planes, dtype) if taken is None else taken(planes, columns)
        planes = first.applied(planes, 0, rows, columns)
        for axis in sorted((1, 2), key=lambda n: shape[n] / array.shape[n]):  # the one that shrinks most first
            planes = others[axis - 1].applied_whole(planes, axis)
        result[rows] = planes
    return result


@dataclass(frozen=True, eq=False)
class _Axis:
    """Resampling of the lines along one axis.

    Attributes:
        length: old length.
        new_length: new length.
        numbers: number of the old voxel that each new one takes; None: old voxels are weighted.
        weights: (new length, old length); None: old voxels are taken.
    """

    length: int
    new_length: int
    numbers: NDArray[np.int64] | None
    weights: NDArray | None

    @classmethod
    def of(cls, length: int, new_length: int, rule: Rule, dtype: DTypeLike) -> _Axis:
        if length == new_length:
            return cls(length, length, np.arange(length), None)
        if rule.order == 0:
            return cls(length, new_length, nearest(length, new_length, rule), None)
        return cls(length, new_length, None, operator(length, new_length, rule).astype(dtype))

    def parts(self, step: int) -> list[tuple[slice, slice]]:
        """Return parts of the new line, `step` voxels each, and the part of the old line that each depends on."""
        found = []
        for begin in range(0, self.new_length, step):
            rows = slice(begin, min(begin + step, self.new_length))
            if self.numbers is not None:
                first, last = int(self.numbers[rows].min()), int(self.numbers[rows].max())
            else:
                assert self.weights is not None
                negligible = np.finfo(self.weights.dtype).eps / 8
                count = np.flatnonzero((np.abs(self.weights[rows]) > negligible).any(axis=0))
                first, last = int(count[0]), int(count[-1])
            found.append((rows, slice(first, last + 1)))
        return found

    def applied(self, values: NDArray, axis: int, rows: slice, columns: slice) -> NDArray:
        """Return some new voxels from the old ones that they depend on, both along `axis` of three."""
        if self.numbers is not None:
            picked = self.numbers[rows] - columns.start
            if len(picked) == values.shape[axis] and (np.diff(picked) == 1).all():
                return values
            return values.take(picked, axis)
        assert self.weights is not None
        weights = self.weights[rows, columns]
        if axis == 0:
            lines = values.reshape(len(values), -1)
            return (weights @ lines).reshape(len(weights), *values.shape[1:])
        return np.matmul(weights, values) if axis == 1 else np.matmul(values, weights.T)

    def applied_whole(self, values: NDArray, axis: int) -> NDArray:
        """Return the new voxels from all old ones."""
        if self.numbers is not None:
            return self.applied(values, axis, slice(None), slice(0, None))
        shape = list(values.shape)
        shape[axis] = self.new_length
        result = np.empty(shape, values.dtype)
        for rows, columns in self.parts(ROWS_AT_ONCE):
            into, out_of = ((slice(None),) * axis + (part,) for part in (rows, columns))
            result[into] = self.applied(values[out_of], axis, rows, columns)
        return result
