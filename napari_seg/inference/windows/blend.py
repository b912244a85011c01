"""Blending of overlapping windows while they are computed, with no more than the overlaps in memory.

Windows come slab by slab along the longest axis, row by row in a slab, one after the other in a row. Each window's
logits are multiplied by its weights and added to the accumulators of the voxels that earlier windows reached too. A
block of voxels that no later window reaches is final: it is divided by the sum of the weights, yielded and freed. The
rest is kept in three accumulators: the overlap with the next slab (a whole plane), with the next row (one row) and with
the next window (one window). So the memory is that of the overlaps, however long the scan is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch

from napari_seg.inference.windows.layout import Span, Triple, WindowGroup, Windows


@dataclass(frozen=True)
class Block:
    """Final logits of a box of voxels.

    Attributes:
        start: first voxel of the block in the padded image.
        logits: (classes, I, J, K) float32, the weighted mean of the windows over it.
    """

    start: Triple
    logits: torch.Tensor


def blend(
    windows: Windows,
    strip: tuple[int, int],
    logits: Iterable[torch.Tensor],
    dtype: torch.dtype = torch.float32,
) -> Iterator[Block]:
    """Yield the final blocks, which together are the strip, in the order of the windows.

    Args:
        windows: layout of the windows.
        strip: start and end, on the second-longest axis, of the part to blend.
        logits: logits (classes, *windows.size) of each window of `windows.starts_of(windows.groups(strip))`, in that
            order; they are overwritten.
        dtype: type of the accumulators of a plane and a row. float16 halves them, rounds a logit by up to 1/2000 of
            its value and clips it at 60,000.
    """
    slow, middle, fast = windows.axes
    overlaps = {axis: _overlaps_before(windows.spans(axis, strip)) for axis in windows.axes}
    weights = _Weights(windows)
    plane = row = window_overlap = torch.empty(0)
    remaining = iter(logits)
    for number, group in enumerate(windows.groups(strip)):
        total = _weighted_sum(windows, group, remaining, weights)
        if number == 0:
            plane, row = (
                torch.empty((len(total), *shape), dtype=dtype, device=total.device)
                for shape in accumulator_shapes(windows, strip)
            )

        # along each axis add what earlier windows accumulated for this group, and keep what later ones will add to
        n = overlaps[fast][group[fast].starts]
        if n:
            _part(total, {fast: slice(n)}).add_(window_overlap)
        total, rest = _split(total, fast, group[fast])
        window_overlap = rest.clone()
        where = {fast: slice(group[fast].begin, group[fast].final)}

        n = overlaps[middle][group[middle].starts]
        if n:
            _part(total, {middle: slice(n)}).add_(
                _part(_cropped_on_slow_axis(row, slow, total), where | {middle: slice(n)})
            )
        total, rest = _split(total, middle, group[middle])
        into = _part(_cropped_on_slow_axis(row, slow, rest), where | {middle: slice(rest.shape[1 + middle])})
        into.copy_(_clamped(rest, dtype))
        where[middle] = slice(group[middle].begin - strip[0], group[middle].final - strip[0])

        n = overlaps[slow][group[slow].starts]
        if n:
            _part(total, {slow: slice(n)}).add_(_part(plane, where | {slow: slice(n)}))
        total, rest = _split(total, slow, group[slow])
        _part(plane, where | {slow: slice(rest.shape[1 + slow])}).copy_(_clamped(rest, dtype))

        if total.numel():
            i, j, k = (span.begin for span in group)
            yield Block((i, j, k), total.div_(weights.summed((i, j, k), total.shape[1:])))
        del total, rest  # they refer to the window's logits, and the next ones are about to be computed


def _weighted_sum(
    windows: Windows, group: WindowGroup, logits: Iterator[torch.Tensor], weights: _Weights
) -> torch.Tensor:
    """Return the weighted sum of the windows of a group, (classes, *extent of the group)."""
    total: torch.Tensor | None = None
    starts = windows.starts_of([group])
    for start in starts:
        weighted = next(logits).float()
        weighted.mul_(weights.of_window(weighted.device))
        ends = [s + size for s, size in zip(start, windows.size, strict=True)]
        intersection = [(max(s, span.begin), min(e, span.end)) for s, e, span in zip(start, ends, group, strict=True)]
        weighted = _part(weighted, {n: slice(b - start[n], e - start[n]) for n, (b, e) in enumerate(intersection)})
        if len(starts) == 1:
            return weighted
        if total is None:
            total = weighted.new_zeros((len(weighted), *(span.end - span.begin for span in group)))
        _part(
            total,
            {n: slice(b - group[n].begin, e - group[n].begin) for n, (b, e) in enumerate(intersection)},
        ).add_(weighted)
    assert total is not None
    return total


def accumulator_shapes(windows: Windows, strip: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return the spatial shapes of the accumulators of a plane and of a row, in the image's order of axes."""
    slow, middle, _ = windows.axes
    plane, row = list(windows.padded_shape), list(windows.padded_shape)
    plane[slow], plane[middle] = _overlap(windows, slow, strip), strip[1] - strip[0]
    row[slow], row[middle] = _extent(windows, slow, strip), _overlap(windows, middle, strip)
    return plane, row


def accumulator_bytes(windows: Windows, strip: tuple[int, int], classes: int, itemsize: int) -> int:
    """Return the memory of the accumulators of a plane, a row and a window group; incoming logits are not counted."""
    _, _, fast = windows.axes
    group = prod(group_shape(windows, strip))
    window_overlap = group // windows.size[fast] * _overlap(windows, fast, strip)
    merged = group if group > prod(windows.size) else 0
    return classes * (sum(map(prod, accumulator_shapes(windows, strip))) * itemsize + (window_overlap + merged) * 4)


def group_shape(windows: Windows, strip: tuple[int, int]) -> Triple:
    """Return the shape of the largest window group, which is that of the largest block."""
    i, j, k = (_extent(windows, axis, strip) for axis in range(3))
    return i, j, k


def weights_voxels(windows: Windows, strip: tuple[int, int]) -> int:
    """Return the number of summed weights that `blend` keeps.

    It keeps the weights of one block for each combination of block size and overlapping windows.
    """
    lengths = []
    for axis in range(3):
        blocks = ((span.begin, span.final - span.begin) for span in windows.spans(axis, strip))
        combinations = {(length, _overlapping(windows, axis, begin, length)) for begin, length in blocks}
        lengths.append(sum(length for length, _ in combinations))
    return prod(lengths)


def with_least_memory(windows: Windows, strip: tuple[int, int], itemsize: int = 4) -> Windows:
    """Return the windows, joining the last two along those axes for which the accumulators become smallest.

    Args:
        windows: layout of the windows.
        strip: start and end, on the second-longest axis.
        itemsize: bytes of a number in the accumulators.
    """
    slow, middle, fast = windows.axes
    choices = [replace(windows, joined=axes) for axes in ((), (slow,), (slow, middle), (slow, middle, fast))]
    return min(choices, key=lambda choice: accumulator_bytes(choice, strip, classes=1, itemsize=itemsize))


def _overlap(windows: Windows, axis: int, strip: tuple[int, int]) -> int:
    return max(span.end - span.final for span in windows.spans(axis, strip))


def _extent(windows: Windows, axis: int, strip: tuple[int, int]) -> int:
    return max(span.end - span.begin for span in windows.spans(axis, strip))


def _overlapping(windows: Windows, axis: int, begin: int, length: int) -> tuple[int, ...]:
    """Return, relative to the start of a block, the starts of the windows that overlap it along an axis."""
    size = windows.size[axis]
    return tuple(s - begin for s in windows.starts[axis] if s < begin + length and s + size > begin)


def _overlaps_before(spans: list[Span]) -> dict[tuple[int, ...], int]:
    """Return starts of a span -> number of voxels that it shares with the previous span."""
    before = [0, *(span.end - span.final for span in spans)]
    return {span.starts: n for span, n in zip(spans, before, strict=False)}


def _part(array: torch.Tensor, slices: dict[int, slice]) -> torch.Tensor:
    """Return a view of a (classes, I, J, K) array, sliced along spatial axes."""
    return array[(slice(None), *(slices.get(axis, slice(None)) for axis in range(3)))]


def _cropped_on_slow_axis(row: torch.Tensor, slow: int, total: torch.Tensor) -> torch.Tensor:
    """Return the part of a row's accumulator that is as long along the slowest axis as a total."""
    return _part(row, {slow: slice(total.shape[1 + slow])})


def _clamped(total: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a total within the range of float16 if that is the type; a voxel with a larger logit is decided anyway."""
    return total.clamp(-60_000, 60_000) if dtype == torch.float16 else total


def _split(total: torch.Tensor, axis: int, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the part of a total that is final along an axis, and the rest."""
    done = span.final - span.begin
    return _part(total, {axis: slice(done)}), _part(total, {axis: slice(done, None)})


class _Weights:
    """Weights of a window, and their sums over blocks.

    The sums are shared by blocks with the same size and the same windows over them.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._weights = windows.weights()
        self._sums: dict[tuple, torch.Tensor] = {}

    def of_window(self, device: torch.device) -> torch.Tensor:
        """Return the weights of one window, (*windows.size), on a device."""
        self._weights = self._weights.to(device)
        return self._weights

    def summed(self, start: Triple, shape: Iterable[int]) -> torch.Tensor:
        """Return the sum of the weights of all windows at each voxel of a block, (*shape)."""
        shape = tuple(shape)
        overlapping = tuple(
            _overlapping(self._windows, axis, begin, length)
            for axis, (begin, length) in enumerate(zip(start, shape, strict=True))
        )
        if (shape, overlapping) not in self._sums:
            total = torch.zeros(shape, device=self._weights.device)
            for offsets in product(*overlapping):
                ends = [o + size for o, size in zip(offsets, self._windows.size, strict=True)]
                into = tuple(slice(max(o, 0), min(e, n)) for o, e, n in zip(offsets, ends, shape, strict=True))
                out_of = tuple(slice(i.start - o, i.stop - o) for o, i in zip(offsets, into, strict=True))
                total[into] += self._weights[out_of]
            self._sums[shape, overlapping] = total
        return self._sums[shape, overlapping]
