"""Where the windows lie on an image, and how much each voxel of one counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import ceil, prod
from operator import sub
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from napari_seg.bundles.spec import TTA

Triple = tuple[int, int, int]

SHIFTS = 4
"""Copies that "shifts" averages: 0 to 3 voxels along the diagonal, as the bundle's tta.yaml."""


@dataclass(frozen=True)
class WindowSettings:
    """How a bundle wants its windows laid, in the words of MONAI's `sliding_window_inference`.

    Attributes:
        roi_size: of a window; None or below 1 stands for the whole axis.
        overlap: share of a window that the next one repeats, an axis each.
        batch: windows that go through the network together.
        mode: "constant" or "gaussian".
        sigma_scale: of the Gaussian, as a share of the window, an axis each.
        padding_mode: how an image smaller than a window is made larger, in torch's words.
        cval: the value of padding mode "constant".
        mirror_axes: each window's logits are the mean over its mirror images along these axes; MONAI has no such.
        shifts: they are the mean over so many copies too, each shifted by one voxel more along the diagonal.
    """

    roi_size: tuple[int | None, int | None, int | None]
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    batch: int = 1
    mode: str = "constant"
    sigma_scale: tuple[float, float, float] = (0.125, 0.125, 0.125)
    padding_mode: str = "constant"
    cval: float = 0.0
    mirror_axes: tuple[int, ...] = ()
    shifts: int = 1

    def __post_init__(self) -> None:
        if not all(0 <= share < 1 for share in self.overlap) or not {*self.mirror_axes} <= {0, 1, 2}:
            raise ValueError(
                f"overlap wants shares from 0 to below 1, and mirror_axes axes from 0 to 2; got {self.overlap} and "
                f"{self.mirror_axes}"
            )

    @property
    def looks(self) -> int:
        """How often the network is asked about each window."""
        return self.shifts * 2 ** len(self.mirror_axes)

    def averaging(self, tta: TTA | None) -> WindowSettings:
        """Return the same with the test-time averaging of a name; None leaves what the bundle's inferer does.

        "mirror" takes the axes that the inferer names, else all three.
        """
        if tta is None:
            return self
        axes = (self.mirror_axes or (0, 1, 2)) if tta == "mirror" else ()
        return replace(self, mirror_axes=axes, shifts=SHIFTS if tta == "shifts" else 1)

    @classmethod
    def of(cls, inferer: Any) -> WindowSettings | None:
        """Those of MONAI's sliding-window inferer or of our own; None for one that does anything else."""
        from monai.inferers import SlidingWindowInferer

        from napari_seg.inference.inferer import StreamingInferer

        if type(inferer) is StreamingInferer:
            return inferer.settings
        if type(inferer) is not SlidingWindowInferer or inferer.with_coord:
            return None
        try:
            roi, overlap, sigma = (_three(x) for x in (inferer.roi_size, inferer.overlap, inferer.sigma_scale))
        except ValueError:  # slices, not volumes
            return None
        mode, padding_mode = (str(getattr(word, "value", word)) for word in (inferer.mode, inferer.padding_mode))
        return cls(roi, overlap, inferer.sw_batch_size, mode, sigma, padding_mode, inferer.cval)


def _three(value: Any) -> tuple:
    """One value for all axes, or one each."""
    if isinstance(value, list | tuple):
        if len(value) != 3:
            raise ValueError(value)
        return tuple(value)
    return (value, value, value)


@dataclass(frozen=True)
class Span:
    """One axis of a place: of one window or of the last two (see `Windows.joined`).

    Attributes:
        starts: of its windows, in the padded image.
        begin: where they begin within the strip.
        end: where they end within it.
        final: up to where no later window of this axis reaches.
    """

    starts: tuple[int, ...]
    begin: int
    end: int
    final: int


Place = tuple[Span, Span, Span]
"""What is blended at once: a span along each axis of the image, with a window for every combination of their starts."""


@dataclass(frozen=True)
class Windows:
    """Windows of one size over an image.

    Attributes:
        image_shape: of the image that they cover, (I, J, K).
        size: of a window.
        starts: along each axis, ascending, in the padded image.
        before: voxels of padding in front of the image, each axis; it is padded where it is smaller than a window.
        settings: what they follow from.
        empty: starts of those in which there is nothing to find; the network is not asked about them.
        joined: axes along which the last two windows share a place if they lie closer than the others. The last
            window is moved back until it ends with the image, and so much overlap may be much to keep.
    """

    image_shape: Triple
    size: Triple
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    before: Triple
    settings: WindowSettings
    empty: frozenset[Triple] = frozenset()
    joined: tuple[int, ...] = ()

    @classmethod
    def over(cls, image_shape: Triple, settings: WindowSettings) -> Windows:
        """Those that cover an image, exactly where MONAI's `sliding_window_inference` puts them."""
        size, starts, before = [], [], []
        for length, roi, overlap in zip(image_shape, settings.roi_size, settings.overlap, strict=True):
            window = roi if roi is not None and roi > 0 else length
            size.append(window)
            starts.append(_starts(max(length, window), window, overlap))
            before.append(max(window - length, 0) // 2)
        return cls(image_shape, _triple(size), (starts[0], starts[1], starts[2]), _triple(before), settings)

    @classmethod
    def evenly(cls, image_shape: Triple, settings: WindowSettings, size: Triple, counts: Triple) -> Windows:
        """So many along each axis, as far apart as they can be; an image shorter than a window is padded."""
        starts, before = [], []
        for length, window, count in zip(image_shape, size, counts, strict=True):
            last = max(length - window, 0)
            starts.append(tuple(round(last * n / max(count - 1, 1)) for n in range(count)))
            before.append(max(window - length, 0) // 2)
        return cls(image_shape, size, (starts[0], starts[1], starts[2]), _triple(before), settings)

    def sparing(self, holds_something: Callable[[Triple, Triple], bool]) -> Windows:
        """The same, those being empty of which a function says so, given their start in the image and their size."""
        starts = [_triple(start) for start in product(*self.starts)]
        empty = [s for s in starts if not holds_something(_triple(map(sub, s, self.before)), self.size)]
        return replace(self, empty=frozenset(empty))

    @property
    def padded_shape(self) -> Triple:
        """Of the image once no axis is shorter than a window."""
        return _triple(map(max, self.image_shape, self.size))

    @property
    def count(self) -> int:
        return prod(map(len, self.starts))

    @property
    def axes(self) -> Triple:
        """The axes from the longest to the shortest: the stream runs along the first, so that what is held is least."""
        return _triple(sorted(range(3), key=lambda axis: -self.padded_shape[axis]))

    def spans(self, axis: int, strip: tuple[int, int]) -> list[Span]:
        """The places along one axis, in order; along the second-longest one those that reach into the strip."""
        begin, end = strip if axis == self.axes[1] else (0, self.padded_shape[axis])
        size = self.size[axis]
        step = max((b - a for a, b in pairwise(self.starts[axis])), default=0)
        groups: list[tuple[int, ...]] = []
        for start in self.starts[axis]:
            if start >= end or start + size <= begin:
                continue
            if axis in self.joined and groups and start - groups[-1][-1] < step:
                groups[-1] = (*groups[-1], start)
            else:
                groups.append((start,))
        finals = [*(max(group[0], begin) for group in groups[1:]), end]
        return [
            Span(group, max(group[0], begin), min(group[-1] + size, end), final)
            for group, final in zip(groups, finals, strict=True)
        ]

    def places(self, strip: tuple[int, int]) -> list[Place]:
        """All that reach into a strip, slab by slab along the longest axis, row by row in a slab.

        Args:
            strip: begin and end, on the second-longest axis, of a part of the padded image.
        """
        back = [self.axes.index(axis) for axis in range(3)]
        ordered = product(*(self.spans(axis, strip) for axis in self.axes))
        return [(found[back[0]], found[back[1]], found[back[2]]) for found in ordered]

    def starts_of(self, places: Iterable[Place]) -> list[Triple]:
        """The windows of places, in order."""
        return [_triple(start) for place in places for start in product(*(span.starts for span in place))]

    def without_padding(self, start: Triple, shape: Iterable[int]) -> tuple[Triple, tuple[slice, ...]] | None:
        """Of a block of the padded image: where in the image its part begins, and that part; None if there is none."""
        begins, parts = [], []
        for n, length, before, most in zip(start, shape, self.before, self.image_shape, strict=True):
            begin, end = max(n - before, 0), min(n + length - before, most)
            if begin >= end:
                return None
            begins.append(begin)
            parts.append(slice(begin + before - n, end + before - n))
        return _triple(begins), tuple(parts)

    def cut(self, padded: torch.Tensor, start: Triple) -> torch.Tensor:
        """A window's view (C, *size) of a padded image."""
        return padded[(slice(None), *(slice(s, s + n) for s, n in zip(start, self.size, strict=True)))]

    def weights(self) -> torch.Tensor:
        """(*size) float32, MONAI's importance map."""
        from monai.data.utils import compute_importance_map

        settings = self.settings
        return compute_importance_map(self.size, settings.mode, settings.sigma_scale)

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """(C, *padded_shape) of an image (C, *image_shape)."""
        import torch

        if self.padded_shape == self.image_shape:
            return image
        pads = []
        for axis in (2, 1, 0):
            missing = self.padded_shape[axis] - self.image_shape[axis]
            pads += [self.before[axis], missing - self.before[axis]]
        mode, settings = self.settings.padding_mode, self.settings
        return torch.nn.functional.pad(image[None], pads, mode, settings.cval if mode == "constant" else None)[0]

    def in_one_batch(self) -> Windows:
        """Return the same, of which no batch is larger than there are windows to ask about: memory is kept for it."""
        most = max(self.count - len(self.empty), 1)
        return replace(self, settings=replace(self.settings, batch=min(self.settings.batch, most)))

    def answers(
        self,
        padded: torch.Tensor,
        starts: Sequence[Triple],
        run: Callable[[torch.Tensor], torch.Tensor],
        nothing: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Each window's logits (classes, *size), a batch at a time through the network.

        Args:
            padded: (C, *padded_shape).
            starts: of the windows, in the order that is wanted.
            run: logits (N, classes, *size) of windows (N, C, *size).
            nothing: logits (classes, *size) of an empty window; None: there is none.
        """
        import torch

        asked = [start for start in starts if nothing is None or start not in self.empty]
        batches = (asked[first : first + self.settings.batch] for first in range(0, len(asked), self.settings.batch))
        ready: deque[torch.Tensor] = deque()
        for start in starts:
            if nothing is not None and start in self.empty:
                yield nothing.clone()
                continue
            if not ready:
                ready.extend(run(torch.stack([self.cut(padded, start) for start in next(batches)])))
            yield ready.popleft()  # the batch is freed with the last of them, before the next one comes


def usual_step(window: int, overlap: float) -> int:
    """From one window to the next, as MONAI rounds it."""
    return max(1, int(window * (1 - overlap)))


def _starts(length: int, window: int, overlap: float) -> tuple[int, ...]:
    step = window if window == length else usual_step(window, overlap)
    last = length - window
    return tuple(min(n * step, last) for n in range(ceil(last / step) + 1))


def _triple(values: Any) -> Triple:
    i, j, k = values
    return int(i), int(j), int(k)
