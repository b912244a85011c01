"""Resampling with coinciding corners: the centres of the first and the last voxel of each axis stay where they are.

These are the numbers of `scipy.ndimage.zoom(array, mode="nearest")` with order 1 and 0, to the last bit: the results of
order 1 are truncated to whole numbers, where the last bit decides. Planes are resampled one after the other, so that
flipped and transposed views need no copy.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import DTypeLike, NDArray


def zoomed_shape(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], new_spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
    """Return the number of voxels along each axis after a change of the voxel size, halves rounded to even."""
    i, j, k = (max(1, round(n * (a / b))) for n, a, b in zip(shape, spacing_mm, new_spacing_mm, strict=True))
    return i, j, k


def zoomed(array: NDArray, shape: tuple[int, int, int], dtype: DTypeLike) -> NDArray:
    """Return an array interpolated linearly in float64 and cast; a cast to whole numbers truncates towards zero.

    Args:
        array: (I, J, K), a view with any strides.
        shape: (i, j, k) of the result.
        dtype: type of the result.
    """
    axes = [_Line.of(n, m) for n, m in zip(array.shape, shape, strict=True)]
    result = np.empty(shape, dtype)
    loop = int(np.argmax(np.abs(array.strides)))  # planes across it are compact in memory
    into, planes = np.moveaxis(result, loop, 0), np.moveaxis(array, loop, 0)
    for number in range(shape[loop]):
        into[number] = _plane(planes, axes, loop, number)
    return result


def nearest(length: int, new_length: int) -> NDArray[np.int64]:
    """Return for each new voxel of a line the number of the nearest old voxel; a half counts up."""
    places = np.arange(new_length) * _factor(length, new_length)
    return np.minimum(np.floor(places + 0.5).astype(np.int64), length - 1)


class _Line:
    """Linear interpolation along one axis: for each new voxel two old ones and their weights."""

    def __init__(self, numbers: tuple[NDArray, NDArray], weights: tuple[NDArray, NDArray]) -> None:
        self.numbers, self.weights = numbers, weights

    @classmethod
    def of(cls, length: int, new_length: int) -> _Line:
        places = np.arange(new_length) * _factor(length, new_length)
        lower = np.floor(places)
        numbers = lower.astype(np.int64)
        first = 1 - (places - lower)
        # rounding can put the last place beyond the last voxel: it is kept, and only the voxel's number is limited
        return cls(
            (np.minimum(numbers, length - 1), np.minimum(numbers + 1, length - 1)),
            (first, 1 - first),
        )


def _factor(length: int, new_length: int) -> float:
    return (length - 1) / (new_length - 1) if new_length > 1 else 1.0


def _plane(planes: NDArray, axes: list[_Line], loop: int, number: int) -> NDArray[np.float64]:
    """Return one plane of the result across the axis `loop`.

    Each of the eight voxels around a place is multiplied by its weights along the three axes in their order, and the
    products are added in the order of their indices, as SciPy does.

    Args:
        planes: the array with the axis `loop` first.
        axes: interpolation along each axis of the array.
        loop: number of the axis.
        number: number of the plane in the result.
    """
    # which of the two voxels along the looped axis, and along the axes so far -> their products
    terms: dict[tuple[int, tuple[int, ...]], NDArray[np.float64]] = {
        (side, ()): np.ascontiguousarray(planes[axes[loop].numbers[side][number]], np.float64) for side in (0, 1)
    }
    for axis, line in enumerate(axes):
        before, terms = terms, {}
        for (own, sides), values in before.items():
            if axis == loop:
                terms[own, (*sides, own)] = values * line.weights[own][number]
                continue
            inner = axis - (axis > loop)  # number of the axis in the plane
            for side in (0, 1):
                taken = values.take(line.numbers[side], inner)
                taken *= line.weights[side][:, None] if inner == 0 else line.weights[side]
                terms[own, (*sides, side)] = taken
    total, *others = (terms[sides[loop], sides] for sides in product((0, 1), repeat=3))
    for term in others:
        total += term
    return total
