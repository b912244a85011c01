"""Window layout: where windows lie on an image, and how much each voxel of a window weighs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import ceil, gcd, prod
from operator import sub
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import InputError

if TYPE_CHECKING:
    import torch

Triple = tuple[int, int, int]

MAX_DIVISOR = 32
"""Number that the length of a window is a multiple of, if the bundle's own window allows it (see `divisor`)."""


@dataclass(frozen=True)
class Span:
    """One axis of a window group: the extent of one window, or of the last two (see `Windows.joined`).

    Attributes:
        starts: start of each window, in the padded image.
        begin: first voxel within the strip.
        end: last voxel within the strip, plus 1.
        final: first voxel that a later window of this axis reaches.
    """

    starts: tuple[int, ...]
    begin: int
    end: int
    final: int


WindowGroup = tuple[Span, Span, Span]
"""Windows that are blended together: a span along each axis of the image, one window for each combination of starts."""


@dataclass(frozen=True)
class Windows:
    """Windows of one size over an image.

    Attributes:
        image_shape: shape of the image, (I, J, K).
        size: shape of a window.
        starts: starts of the windows along each axis, ascending, in the padded image.
        before: voxels of padding in front of the image along each axis; only an image smaller than a window is padded.
        settings: settings that they follow from.
        empty: starts of the windows without content, which the network does not process.
        joined: axes along which the last two windows share a group if they are closer than the others. The last
            window is moved back until it ends with the image, which can make a large overlap to keep in memory.
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
        """Return windows that cover an image, exactly where MONAI's `sliding_window_inference` places them.

        With the mode "nnunet", they are where nnU-Net places them.
        """
        starts_of_axis = _even_starts if settings.mode == "nnunet" else _starts
        size, starts, before = [], [], []
        for length, roi, overlap in zip(image_shape, settings.roi_size, settings.overlap, strict=True):
            window = roi if roi is not None and roi > 0 else length
            size.append(window)
            starts.append(starts_of_axis(max(length, window), window, overlap))
            before.append(max(window - length, 0) // 2)
        return cls(image_shape, _triple(size), (starts[0], starts[1], starts[2]), _triple(before), settings)

    @classmethod
    def evenly(cls, image_shape: Triple, settings: WindowSettings, size: Triple, counts: Triple) -> Windows:
        """Return evenly spaced windows, `counts` along each axis; an image shorter than a window is padded."""
        starts, before = [], []
        for length, window, count in zip(image_shape, size, counts, strict=True):
            last = max(length - window, 0)
            starts.append(tuple(round(last * n / max(count - 1, 1)) for n in range(count)))
            before.append(max(window - length, 0) // 2)
        return cls(image_shape, size, (starts[0], starts[1], starts[2]), _triple(before), settings)

    def without_empty(self, has_content: Callable[[Triple, Triple], bool]) -> Windows:
        """Return these windows with those marked as empty that have no content.

        Args:
            has_content: called with the start of a window in the image and its size.
        """
        starts = [_triple(start) for start in product(*self.starts)]
        empty = [s for s in starts if not has_content(_triple(map(sub, s, self.before)), self.size)]
        return replace(self, empty=frozenset(empty))

    def with_small_batches(self) -> Windows:
        """Return these windows with batches no larger than the number of windows: memory is reserved for a batch."""
        most = max(self.count - len(self.empty), 1)
        return replace(self, settings=replace(self.settings, batch=min(self.settings.batch, most)))

    @property
    def padded_shape(self) -> Triple:
        """Shape of the image after padding, no axis shorter than a window."""
        return _triple(map(max, self.image_shape, self.size))

    @property
    def count(self) -> int:
        """Number of windows, empty ones included."""
        return prod(map(len, self.starts))

    @property
    def axes(self) -> Triple:
        """Axes from the longest to the shortest: windows are processed along the first, which needs least memory."""
        return _triple(sorted(range(3), key=lambda axis: -self.padded_shape[axis]))

    def spans(self, axis: int, strip: tuple[int, int]) -> list[Span]:
        """Return the spans along one axis, in order; along the second-longest axis those that reach into the strip."""
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

    def groups(self, strip: tuple[int, int]) -> list[WindowGroup]:
        """Return all window groups that reach into a strip, slab by slab along the longest axis, row by row in a slab.

        Args:
            strip: start and end, on the second-longest axis, of a part of the padded image.
        """
        back = [self.axes.index(axis) for axis in range(3)]
        ordered = product(*(self.spans(axis, strip) for axis in self.axes))
        return [(found[back[0]], found[back[1]], found[back[2]]) for found in ordered]

    def starts_of(self, groups: Iterable[WindowGroup]) -> list[Triple]:
        """Return the starts of the windows of groups, in order."""
        return [_triple(start) for group in groups for start in product(*(span.starts for span in group))]

    def without_padding(self, start: Triple, shape: Iterable[int]) -> tuple[Triple, tuple[slice, ...]] | None:
        """Return the part of a block of the padded image that lies in the image; None if no part does.

        Args:
            start: first voxel of the block in the padded image.
            shape: shape of the block.

        Returns:
            The first voxel of that part in the image, and the part as slices of the block.
        """
        begins, parts = [], []
        for n, length, before, most in zip(start, shape, self.before, self.image_shape, strict=True):
            begin, end = max(n - before, 0), min(n + length - before, most)
            if begin >= end:
                return None
            begins.append(begin)
            parts.append(slice(begin + before - n, end + before - n))
        return _triple(begins), tuple(parts)

    def cut(self, padded: torch.Tensor, start: Triple) -> torch.Tensor:
        """Return the view (C, *size) of one window of a padded image (C, *padded_shape)."""
        return padded[(slice(None), *(slice(s, s + n) for s, n in zip(start, self.size, strict=True)))]

    def weights(self) -> torch.Tensor:
        """Return the weight of each voxel of a window, (*size) float32: MONAI's importance map, or nnU-Net's."""
        settings = self.settings
        if settings.mode == "nnunet":
            return _peaked_weights(self.size, settings.sigma_scale)
        from monai.data.utils import compute_importance_map

        return compute_importance_map(self.size, settings.mode, settings.sigma_scale)

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image (C, *image_shape) padded to (C, *padded_shape).

        Raises:
            InputError: `data.too_small`, the image has too few voxels to be continued by itself.
        """
        import torch

        if self.padded_shape == self.image_shape:
            return image
        pads = []
        for axis in (2, 1, 0):
            missing = self.padded_shape[axis] - self.image_shape[axis]
            pads += [self.before[axis], missing - self.before[axis]]
        mode, settings = self.settings.padding_mode, self.settings
        # torch mirrors an image once, without its edge, and repeats it once
        short = {"reflect": 1, "circular": 0}.get(mode)
        if short is not None and any(
            max(pads[2 * n : 2 * n + 2]) + short > length for n, length in enumerate(reversed(self.image_shape))
        ):
            shape, size = (" x ".join(map(str, numbers)) for numbers in (self.image_shape, self.size))
            raise InputError(
                "data.too_small",
                f"the scan has {shape} voxels on the grid of the network, whose windows have {size}; expected more "
                f"than a third of them along each axis, since the bundle fills windows up by padding_mode {mode!r}; "
                "use a scan with a larger field of view, or another bundle",
            )
        return torch.nn.functional.pad(image[None], pads, mode, settings.cval if mode == "constant" else None)[0]

    def logits(
        self,
        padded: torch.Tensor,
        starts: Sequence[Triple],
        run: Callable[[torch.Tensor], torch.Tensor],
        empty_logits: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the logits (classes, *size) of each window, computed batch by batch.

        Args:
            padded: image (C, *padded_shape).
            starts: starts of the windows, in the required order.
            run: function from windows (N, C, *size) to logits (N, classes, *size).
            empty_logits: logits (classes, *size) of an empty window; None: there are no empty windows.
        """
        import torch

        occupied = [start for start in starts if empty_logits is None or start not in self.empty]
        size = self.settings.batch
        batches = (occupied[first : first + size] for first in range(0, len(occupied), size))
        ready: deque[torch.Tensor] = deque()
        for start in starts:
            if empty_logits is not None and start in self.empty:
                yield empty_logits.clone()
                continue
            if not ready:
                ready.extend(run(torch.stack([self.cut(padded, start) for start in next(batches)])))
            yield ready.popleft()  # the batch is freed with its last window, before the next batch is computed


def step_between(window: int, overlap: float) -> int:
    """Return the distance from one window to the next, rounded as MONAI does."""
    return max(1, int(window * (1 - overlap)))


def divisor(window: int) -> int:
    """Return the number that a window's length must be a multiple of, so that repeated halving keeps working."""
    return gcd(window, MAX_DIVISOR)


def shortened(size: Sequence[int], times: int) -> tuple[int, ...]:
    """Return a size about `times` times shorter on each axis, in lengths that a U-Net accepts."""
    return tuple(ceil(n / times / divisor(n)) * divisor(n) for n in size)


def _starts(length: int, window: int, overlap: float) -> tuple[int, ...]:
    step = window if window == length else step_between(window, overlap)
    last = length - window
    return tuple(min(n * step, last) for n in range(ceil(last / step) + 1))


def _even_starts(length: int, window: int, overlap: float) -> tuple[int, ...]:
    """Return the starts of evenly spaced windows along one axis, their number and their rounding as in nnU-Net."""
    last = length - window
    count = ceil(last / (window * (1 - overlap))) + 1
    step = last / max(count - 1, 1)
    return tuple(round(step * n) for n in range(count))  # halves to even, as NumPy does


def _peaked_weights(size: Triple, sigma_scale: tuple[float, float, float]) -> torch.Tensor:
    """Return nnU-Net's weights of a window, (*size) float32: a filtered peak; the lowest weight where it has zeros.

    nnU-Net keeps them as float16 with a maximum of 10, which makes the weights in the corners of a window equal.
    """
    import torch
    from scipy.ndimage import gaussian_filter1d

    weights = torch.ones(())
    for length, sigma in zip(size, sigma_scale, strict=True):
        line = np.zeros(length)
        line[length // 2] = 1
        line = gaussian_filter1d(line, length * sigma, mode="constant")
        weights = weights[..., None] * torch.from_numpy(line / line.max())
    weights = (10 * weights).half()
    weights[weights == 0] = weights[weights > 0].min()
    return weights.float() / 10


def _triple(values: Any) -> Triple:
    i, j, k = values
    return int(i), int(j), int(k)
