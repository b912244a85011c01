"""Blends the overlapping answers of windows while they come, holding no more than the overlaps.

Windows come slab by slab along the longest axis, row by row in a slab, one after the other in a row. What no later
window touches is final: normalised, handed on and forgotten. Only what the next slab touches is kept for a whole plane,
what the next row touches for one row, what the next window touches for one window. So the memory is that of the
overlaps, however long the scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch

from napari_seg.inference.windows.layout import Place, Span, Triple, Windows


@dataclass(frozen=True)
class Block:
    """Logits that are final.

    Attributes:
        start: the block's first voxel in the padded image.
        logits: (classes, I, J, K) float32, the weighted mean of the windows over it.
    """

    start: Triple
    logits: torch.Tensor


def blend(
    windows: Windows,
    strip: tuple[int, int],
    answers: Iterable[torch.Tensor],
    kept_dtype: torch.dtype = torch.float32,
) -> Iterator[Block]:
    """The final blocks, which together are the strip, in the order of the windows.

    Args:
        windows: where they lie.
        strip: begin and end, on the second-longest axis, of the part that is wanted.
        answers: of each window of `windows.starts_of(windows.places(strip))`, in that order, the logits
            (classes, *windows.size); they are overwritten.
        kept_dtype: of the sums kept for a plane and a row. float16 halves them, moves a logit by 1/2000 of its size and
            holds none beyond 60,000.
    """
    slow, middle, fast = windows.axes
    kept = {axis: _kept(windows.spans(axis, strip)) for axis in windows.axes}
    weigher = _Weigher(windows)
    plane = row = last = torch.empty(0)
    coming = iter(answers)
    for number, place in enumerate(windows.places(strip)):
        sums = _summed(windows, place, coming, weigher)
        if number == 0:
            plane, row = (
                torch.empty((len(sums), *shape), dtype=kept_dtype, device=sums.device)
                for shape in kept_shapes(windows, strip)
            )

        # along each axis add what earlier windows left for this place, and leave what later ones will add to
        n = kept[fast][place[fast].starts]
        if n:
            _part(sums, {fast: slice(n)}).add_(last)
        sums, rest = _split(sums, fast, place[fast])
        last = rest.clone()
        where = {fast: slice(place[fast].begin, place[fast].final)}

        n = kept[middle][place[middle].starts]
        if n:
            _part(sums, {middle: slice(n)}).add_(_part(_tall(row, slow, sums), where | {middle: slice(n)}))
        sums, rest = _split(sums, middle, place[middle])
        _part(_tall(row, slow, rest), where | {middle: slice(rest.shape[1 + middle])}).copy_(_held(rest, kept_dtype))
        where[middle] = slice(place[middle].begin - strip[0], place[middle].final - strip[0])

        n = kept[slow][place[slow].starts]
        if n:
            _part(sums, {slow: slice(n)}).add_(_part(plane, where | {slow: slice(n)}))
        sums, rest = _split(sums, slow, place[slow])
        _part(plane, where | {slow: slice(rest.shape[1 + slow])}).copy_(_held(rest, kept_dtype))

        if sums.numel():
            i, j, k = (span.begin for span in place)
            yield Block((i, j, k), sums.div_(weigher.summed((i, j, k), sums.shape[1:])))
        del sums, rest  # they hold the window's logits, and the next ones are about to come


def _summed(windows: Windows, place: Place, answers: Iterator[torch.Tensor], weigher: _Weigher) -> torch.Tensor:
    """(classes, *extent of the place) the weighted sum of its windows."""
    total: torch.Tensor | None = None
    starts = windows.starts_of([place])
    for start in starts:
        weighed = next(answers).float()
        weighed.mul_(weigher.weights_on(weighed.device))
        ends = [s + size for s, size in zip(start, windows.size, strict=True)]
        both = [(max(s, span.begin), min(e, span.end)) for s, e, span in zip(start, ends, place, strict=True)]
        weighed = _part(weighed, {n: slice(b - start[n], e - start[n]) for n, (b, e) in enumerate(both)})
        if len(starts) == 1:
            return weighed
        if total is None:
            total = weighed.new_zeros((len(weighed), *(span.end - span.begin for span in place)))
        _part(total, {n: slice(b - place[n].begin, e - place[n].begin) for n, (b, e) in enumerate(both)}).add_(weighed)
    assert total is not None
    return total


def kept_shapes(windows: Windows, strip: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Spatial shapes, in the image's order of axes, of the sums kept for a plane and for a row."""
    slow, middle, _ = windows.axes
    plane, row = list(windows.padded_shape), list(windows.padded_shape)
    plane[slow], plane[middle] = _overlap(windows, slow, strip), strip[1] - strip[0]
    row[slow], row[middle] = _extent(windows, slow, strip), _overlap(windows, middle, strip)
    return plane, row


def kept_bytes(windows: Windows, strip: tuple[int, int], classes: int, itemsize: int) -> int:
    """Memory of what `blend` holds, at most, beside the logits that come: sums of a plane, a row and a place."""
    _, _, fast = windows.axes
    place = prod(place_shape(windows, strip))
    last = place // windows.size[fast] * _overlap(windows, fast, strip)
    merged = place if place > prod(windows.size) else 0
    return classes * (sum(map(prod, kept_shapes(windows, strip))) * itemsize + (last + merged) * 4)


def place_shape(windows: Windows, strip: tuple[int, int]) -> Triple:
    """Of the largest place, and so of the largest block."""
    i, j, k = (_extent(windows, axis, strip) for axis in range(3))
    return i, j, k


def weights_voxels(windows: Windows, strip: tuple[int, int]) -> int:
    """Of all sums of the windows' weights that `blend` keeps, one of each kind of block."""
    lengths = []
    for axis in range(3):
        blocks = ((span.begin, span.final - span.begin) for span in windows.spans(axis, strip))
        kinds = {(length, _reaching(windows, axis, begin, length)) for begin, length in blocks}
        lengths.append(sum(length for length, _ in kinds))
    return prod(lengths)


def thriftiest(windows: Windows, strip: tuple[int, int], itemsize: int = 4) -> Windows:
    """The same windows, with those sharing a place that leaves least to be kept in numbers of so many bytes."""
    slow, middle, fast = windows.axes
    choices = [replace(windows, joined=axes) for axes in ((), (slow,), (slow, middle), (slow, middle, fast))]
    return min(choices, key=lambda choice: kept_bytes(choice, strip, classes=1, itemsize=itemsize))


def _overlap(windows: Windows, axis: int, strip: tuple[int, int]) -> int:
    return max(span.end - span.final for span in windows.spans(axis, strip))


def _extent(windows: Windows, axis: int, strip: tuple[int, int]) -> int:
    return max(span.end - span.begin for span in windows.spans(axis, strip))


def _reaching(windows: Windows, axis: int, begin: int, length: int) -> tuple[int, ...]:
    """Where the windows start that reach a block along an axis, counted from its begin."""
    size = windows.size[axis]
    return tuple(s - begin for s in windows.starts[axis] if s < begin + length and s + size > begin)


def _kept(spans: list[Span]) -> dict[tuple[int, ...], int]:
    """By a span's starts, how many voxels from its begin on earlier windows have reached too."""
    before = [0, *(span.end - span.final for span in spans)]
    return {span.starts: n for span, n in zip(spans, before, strict=False)}


def _part(array: torch.Tensor, slices: dict[int, slice]) -> torch.Tensor:
    """A view; `slices` are by spatial axis."""
    return array[(slice(None), *(slices.get(axis, slice(None)) for axis in range(3)))]


def _tall(row: torch.Tensor, slow: int, sums: torch.Tensor) -> torch.Tensor:
    """As much of a row's sums along the slowest axis as the place has."""
    return _part(row, {slow: slice(sums.shape[1 + slow])})


def _held(sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As the type can hold them; all that float16 can't is far beyond doubt."""
    return sums.clamp(-60_000, 60_000) if dtype == torch.float16 else sums


def _split(sums: torch.Tensor, axis: int, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """What is final along an axis, and the rest."""
    done = span.final - span.begin
    return _part(sums, {axis: slice(done)}), _part(sums, {axis: slice(done, None)})


class _Weigher:
    """Sums of the windows' weights over a block; the same for blocks that lie alike among their windows."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.weights = windows.weights()
        self.known: dict[tuple, torch.Tensor] = {}

    def weights_on(self, device: torch.device) -> torch.Tensor:
        """(*windows.size) of one window."""
        self.weights = self.weights.to(device)
        return self.weights

    def summed(self, start: Triple, shape: Iterable[int]) -> torch.Tensor:
        """(*shape) how much all windows together weigh each voxel."""
        shape = tuple(shape)
        reaching = tuple(
            _reaching(self.windows, axis, begin, length)
            for axis, (begin, length) in enumerate(zip(start, shape, strict=True))
        )
        if (shape, reaching) not in self.known:
            total = torch.zeros(shape, device=self.weights.device)
            for offsets in product(*reaching):
                ends = [o + size for o, size in zip(offsets, self.windows.size, strict=True)]
                into = tuple(slice(max(o, 0), min(e, n)) for o, e, n in zip(offsets, ends, shape, strict=True))
                out_of = tuple(slice(i.start - o, i.stop - o) for o, i in zip(offsets, into, strict=True))
                total[into] += self.weights[out_of]
            self.known[shape, reaching] = total
        return self.known[shape, reaching]
