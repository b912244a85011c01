"""Average predictions at test time, with inferers that wrap another inferer."""

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
    """Return a copy of a sliding-window inferer with another overlap.

    In 3D an overlap of one half needs eight times as many windows as none; for validation during training an eighth is
    enough.

    Args:
        inferer: MONAI's `SlidingWindowInferer` or a subclass, which is not changed; any other inferer is returned as
            it is.
        overlap: fraction by which neighbouring windows overlap, from 0 to below 1.
    """
    if not isinstance(inferer, SlidingWindowInferer):
        return inferer
    changed = copy(inferer)
    changed.overlap = overlap
    return changed


class TestTimeAveraging(Inferer):
    """Average class probabilities over shifted and mirrored copies of the image.

    A network with strides samples the image at every 2nd to every 16th voxel; a shifted copy is sampled at other
    voxels. Each copy takes as long as one plain inference: n shifts and m mirror axes take n * 2**m times as long.

    All copies are padded to the same size, the image's plus the largest shift along each axis, so that normalisation
    layers compute the same statistics and windows have the same positions.

    Args:
        inferer: inferer that runs the network on one copy, e.g. a `SlidingWindowInferer`.
        shifts: offsets in voxels, one number per axis, none negative; or a number n, for offsets of 0 to n - 1 voxels
            along the diagonal.
        mirror_axes: spatial axes to mirror, in all combinations; none if left and right differ in meaning.
        padding_mode: mode of `torch.nn.functional.pad`; by default zeros, as in `SpatialPadd` and
            `SlidingWindowInferer`.
        regions: the channels are regions with a sigmoid each.
    """

    __test__ = False  # else pytest collects the class because of its name

    def __init__(
        self,
        inferer: Inferer,
        shifts: int | Sequence[Sequence[int]] = 4,
        mirror_axes: Sequence[int] = (),
        padding_mode: str = "constant",
        regions: bool = False,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.inferer = inferer
        self.shifts = shifts
        self.mirrors = [axes for n in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, n)]
        self.padding_mode = padding_mode

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return log probabilities (N, classes, *spatial), whose softmax is the average; of regions logits.

        Args:
            inputs: (N, C, *spatial).
            network: returns logits: with a softmax of at least two classes.
            args: further arguments of the inferer.
            kwargs: further keyword arguments of the inferer.
        """

        def copies() -> Iterable[torch.Tensor]:
            size = inputs.shape[2:]
            shifts = [[k] * len(size) for k in range(self.shifts)] if isinstance(self.shifts, int) else self.shifts
            span = [max(axis) for axis in zip(*shifts, strict=True)]
            for shift in shifts:
                ends = zip(reversed(shift), reversed(span), strict=True)
                pads = list(chain.from_iterable((near, largest - near) for near, largest in ends))
                padded = F.pad(inputs, pads, mode=self.padding_mode) if any(pads) else inputs
                image = (..., *(slice(near, near + length) for near, length in zip(shift, size, strict=True)))
                for mirror in self.mirrors:
                    axes = [axis + 2 for axis in mirror]
                    yield self.inferer(padded.flip(axes), network, *args, **kwargs).flip(axes)[image]

        return _mean(copies(), self.regions)


class MultiScale(Inferer):
    """Average class probabilities over rescaled copies of the image (Chen et al. 2017, section 4.1).

    Args:
        inferer: inferer that runs the network on one copy: a `SlidingWindowInferer`, whose windows then cover a larger
            or smaller part of the image, or another inferer of this module.
        scales: factors on the size of the image; the time grows with the sum of their powers.
        regions: the channels are regions with a sigmoid each.
    """

    def __init__(self, inferer: Inferer, scales: Sequence[float] = (0.75, 1.0, 1.25), regions: bool = False) -> None:
        super().__init__()
        self.regions = regions
        self.inferer = inferer
        self.scales = scales

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return log probabilities (N, classes, *spatial) of images (N, C, *spatial); see `TestTimeAveraging`."""

        def copies() -> Iterable[torch.Tensor]:
            size = list(inputs.shape[2:])
            for scale in self.scales:
                scaled = [max(1, round(length * scale)) for length in size]
                yield resize(self.inferer(resize(inputs, scaled), network, *args, **kwargs), size)

        return _mean(copies(), self.regions)


def _mean(copies: Iterable[torch.Tensor], regions: bool) -> torch.Tensor:
    """Return the logarithm of the mean softmax of all copies, one copy in memory at a time, without underflow.

    With regions, the logit of the mean sigmoid.
    """
    total: torch.Tensor | None = None
    count = 0
    for logits in copies:
        logits = logits.float()
        # a region is a class against its own background
        pair = torch.stack([logits, torch.zeros_like(logits)], dim=1) if regions else logits
        logp = F.log_softmax(pair, dim=1)
        total = logp if total is None else torch.logaddexp(total, logp)
        count += 1
    assert total is not None
    return total[:, 0] - total[:, 1] if regions else total - log(count)
