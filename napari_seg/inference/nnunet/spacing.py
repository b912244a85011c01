"""Changes of the voxel size as nnU-Net makes them: which axis is resampled on its own, and the rules of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import Resampling
from napari_seg.bundles.nnunet.plans import ANISOTROPY
from napari_seg.inference.nnunet.arrangement import Spacing
from napari_seg.inference.resampling import Rule, nearest, resampled


def separate_axis(resampling: Resampling, spacing: Spacing, new_spacing: Spacing) -> int | None:
    """Return the axis that is resampled on its own; None if there is none.

    It is that of the largest voxel size before, or after if voxels are nearly cubes before, unless there are several.

    Args:
        resampling: how arrays are resampled.
        spacing: voxel sizes before.
        new_spacing: voxel sizes after.
    """
    if resampling.separate_z is False or resampling.method == "none":
        return None
    for sizes in (spacing,) if resampling.separate_z else (spacing, new_spacing):
        if resampling.separate_z or max(sizes) / min(sizes) > ANISOTROPY:
            largest = [n for n, size in enumerate(sizes) if max(sizes) / size == 1]
            return largest[0] if len(largest) == 1 else None
    return None


def rules_of(resampling: Resampling, spacing: Spacing, new_spacing: Spacing) -> tuple[Rule, Rule, Rule]:
    """Return the rule of each axis; see `separate_axis`."""
    alone = separate_axis(resampling, spacing, new_spacing)
    if resampling.method == "none":
        i, j, k = Rule(), Rule(), Rule()
    elif resampling.method == "torch":
        i, j, k = (Rule(int(n != alone), "torch") for n in range(3))
    else:
        i, j, k = (Rule(resampling.order_z if n == alone else resampling.order) for n in range(3))
    return i, j, k


def resampled_channel(
    array: NDArray,
    shape: tuple[int, int, int],
    resampling: Resampling,
    spacing: Spacing,
    new_spacing: Spacing,
    *,
    taken: Callable[[NDArray, slice], NDArray] | None = None,
    ranges: NDArray[np.float32] | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return one channel (I, J, K) float32 of an image with another number of voxels.

    Args:
        array: (I, J, K); a view with any strides.
        shape: (i, j, k) of the result.
        resampling: how arrays are resampled.
        spacing: voxel sizes before.
        new_spacing: voxel sizes after.
        taken: see `resampled`.
        ranges: (2,) lowest and highest value of what is resampled, or (2, n) those of each plane across the axis that
            is resampled on its own. A spline of a higher order does not leave them. None: they are not limited.
        out: array for the result.
    """
    rules = rules_of(resampling, spacing, new_spacing)
    alone = separate_axis(resampling, spacing, new_spacing)
    if alone is not None and rules[alone].order > 0 and shape[alone] != array.shape[alone]:
        in_plane = list(shape)
        in_plane[alone] = array.shape[alone]
        between = resampled(array, tuple(in_plane), rules, taken=taken)
        _limit(between, ranges, alone, None)
        return resampled(between, shape, rules, out=out)
    result = resampled(array, shape, rules, taken=taken, out=out)
    if array.shape != shape and max(rule.order for rule in rules) > 1:
        _limit(result, ranges, alone, None if alone is None else nearest_planes(array.shape, shape, rules, alone))
    return result


def nearest_planes(old: tuple[int, ...], new: tuple[int, ...], rules: tuple[Rule, ...], axis: int) -> NDArray[np.int64]:
    """Return the number of the old plane across an axis that each new plane is taken from."""
    return np.arange(new[axis]) if old[axis] == new[axis] else nearest(old[axis], new[axis], rules[axis])


def _limit(
    result: NDArray, ranges: NDArray[np.float32] | None, axis: int | None, planes: NDArray[np.int64] | None
) -> None:
    if ranges is None:
        return
    if axis is None:
        np.clip(result, *ranges, out=result)
        return
    limits = ranges if planes is None else ranges[:, planes]
    for plane, (low, high) in zip(np.moveaxis(result, axis, 0), limits.T, strict=True):
        np.clip(plane, low, high, out=plane)


def resampled_labels(
    array: NDArray[np.integer],
    shape: tuple[int, int, int],
    resampling: Resampling,
    spacing: Spacing,
    new_spacing: Spacing,
) -> NDArray[np.integer]:
    """Return a label map (I, J, K) with another number of voxels.

    The label of the greatest interpolated indicator wins. Among equals it is that of the nearest voxel, if it is one of
    them, and the lowest otherwise.

    Args:
        array: (I, J, K).
        shape: (i, j, k) of the result.
        resampling: how label maps are resampled.
        spacing: voxel sizes before.
        new_spacing: voxel sizes after.
    """
    if array.shape == shape:
        return array
    rules = rules_of(resampling, spacing, new_spacing)
    alone = separate_axis(resampling, spacing, new_spacing)
    if alone is not None:
        in_plane = list(shape)
        in_plane[alone] = array.shape[alone]
        flat = replace(resampling, separate_z=False)
        array = resampled_labels(array, (in_plane[0], in_plane[1], in_plane[2]), flat, spacing, new_spacing)
        if array.shape == shape:
            return array
        if rules[alone].order > 0:
            return _above_half(array, shape, rules[alone])
        return resampled(array, shape, rules[alone])
    if resampling.order == 0:
        return resampled(array, shape, rules)
    is_torch = resampling.method == "torch"
    dtype = np.float32 if is_torch else np.float64
    closest = resampled(array, shape, Rule(0))
    winner = np.full(shape, array.min(), array.dtype)
    best, of_closest = np.full(shape, -1, dtype), np.zeros(shape, dtype)
    for label in np.unique(array):
        score = resampled((array == label).astype(dtype), shape, rules, dtype=dtype)
        if is_torch:
            score = (score * 1000).astype(np.float16).astype(dtype)  # as it keeps them
        elif resampling.order > 1:
            score.clip(0, 1, out=score)
        better = score > best
        winner[better], best[better] = label, score[better]
        is_closest = closest == label
        of_closest[is_closest] = score[is_closest]
    if not is_torch:
        tied = (of_closest == best) & (best > 0)
        winner[tied] = closest[tied]
    return winner


def _above_half(array: NDArray[np.integer], shape: tuple[int, int, int], rule: Rule) -> NDArray[np.integer]:
    """Return a label map by indicators above a half; the last label wins."""
    result = np.zeros(shape, array.dtype)
    for label in np.unique(array):
        score = resampled((array == label).astype(np.float64), shape, rule, dtype=np.float64)
        result[np.round(score) > 0.5] = label
    return result
