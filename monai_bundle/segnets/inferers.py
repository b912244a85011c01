"""Test-time averaging, as inferers that wrap another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import chain, combinations
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer, SlidingWindowInferer

from segnets.blocks import resize

Network = Callable[..., torch.Tensor]


def with_overlap(inferer: Inferer, overlap: float) -> Inferer:
    """Return a copy of an inferer by sliding windows whose windows overlap by another fraction.

    Half an overlap needs eight times the windows of none in 3D; for a validation during training an eighth is enough.

    Args:
        inferer: MONAI's `SlidingWindowInferer` or a subclass, which stays as it is; any other is returned itself.
        overlap: of two neighbouring windows, 0 to less than 1.
    """
    if not isinstance(inferer, SlidingWindowInferer):
        return inferer
    changed = copy(inferer)
    changed.overlap = overlap
    return changed


class TestTimeAveraging(Inferer):
    """Log of the mean class probabilities over shifted and mirrored copies of the image.

    A network with strides sees the image on a lattice of every 2nd to every 16th voxel; a shifted copy falls on another
    one. Each copy costs as much as the plain inference: n shifts and m mirror axes take n * 2**m times as long.

    All copies lie in a canvas of one size, larger than the image by the largest shift of each axis, so that the
    normalisation layers see the same statistics and windows lie the same.

    Args:
        inferer: runs the network on one copy, for example a `SlidingWindowInferer`.
        shifts: offsets in voxels, one number an axis, none negative; or how many, n: then 0 to n - 1 voxels along the
            diagonal.
        mirror_axes: spatial axes to mirror, in all combinations; none where left and right carry meaning.
        padding_mode: what the canvas holds beside the image, in the words of `torch.nn.functional.pad`; zeros by
            default, as `SpatialPadd` and `SlidingWindowInferer` pad.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(
        self,
        inferer: Inferer,
        shifts: int | Sequence[Sequence[int]] = 4,
        mirror_axes: Sequence[int] = (),
        padding_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.shifts = shifts
        self.mirrors = [axes for n in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, n)]
        self.padding_mode = padding_mode

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Log probabilities (N, classes, *spatial), whose softmax and argmax are those of the average.

        Args:
            inputs: (N, C, *spatial).
            network: gives logits of two classes or more; a single channel (sigmoid) does not do.
        """

        def copies() -> Iterable[torch.Tensor]:
            size = inputs.shape[2:]
            shifts = [[k] * len(size) for k in range(self.shifts)] if isinstance(self.shifts, int) else self.shifts
            span = [max(axis) for axis in zip(*shifts, strict=True)]
            for shift in shifts:
                ends = zip(reversed(shift), reversed(span), strict=True)
                pads = list(chain.from_iterable((near, most - near) for near, most in ends))
                canvas = F.pad(inputs, pads, mode=self.padding_mode) if any(pads) else inputs
                image = (..., *(slice(near, near + length) for near, length in zip(shift, size, strict=True)))
                for mirror in self.mirrors:
                    axes = [axis + 2 for axis in mirror]
                    yield self.inferer(canvas.flip(axes), network, *args, **kwargs).flip(axes)[image]

        return _log_mean_softmax(copies())


class MultiScale(Inferer):
    """Log of the mean class probabilities over rescaled copies of the image (Chen et al. 2017, section 4.1).

    Args:
        inferer: runs the network on one copy, for example a `SlidingWindowInferer`, whose windows then hold more or
            less of the image; or another of this module.
        scales: factors on the image's size; the time grows by the sum of their powers.
    """

    def __init__(self, inferer: Inferer, scales: Sequence[float] = (0.75, 1.0, 1.25)) -> None:
        super().__init__()
        self.inferer = inferer
        self.scales = scales

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Log probabilities (N, classes, *spatial) of images (N, C, *spatial); see `TestTimeAveraging`."""

        def copies() -> Iterable[torch.Tensor]:
            size = list(inputs.shape[2:])
            for scale in self.scales:
                scaled = [max(1, round(length * scale)) for length in size]
                yield resize(self.inferer(resize(inputs, scaled), network, *args, **kwargs), size)

        return _log_mean_softmax(copies())


def _log_mean_softmax(copies: Iterable[torch.Tensor]) -> torch.Tensor:
    """Log of the mean of the copies' softmax, one copy held at a time; without the underflow of log(mean(exp))."""
    total: torch.Tensor | None = None
    count = 0
    for logits in copies:
        logp = F.log_softmax(logits.float(), dim=1)
        total = logp if total is None else torch.logaddexp(total, logp)
        count += 1
    assert total is not None
    return total - log(count)
