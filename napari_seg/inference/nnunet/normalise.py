"""Normalisation of one channel by nnU-Net's schemes, some planes at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import Normalisation
from napari_seg.errors import InputError

EPSILON = 1e-8
"""Lowest number that values are divided by."""

PLANES_AT_ONCE = 8
"""Number of planes whose statistics are computed at a time."""

MAX_COLOUR = 255
"""Highest value of a colour."""


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Normalisation of one channel, with what it needs to know of all of it.

    Attributes:
        low: values below are raised to it first; None: none are.
        high: values above are lowered to it first; None: none are.
        shift: then subtracted.
        scale: then divided by.
        mask: (I, J, K) voxels outside become 0; None: there is no mask.
        ranges: lowest and highest normalised value: (2,), or (2, n) of each plane across an axis.
    """

    low: float | None
    high: float | None
    shift: float
    scale: float
    mask: NDArray[np.bool_] | None
    ranges: NDArray[np.float32]

    @classmethod
    def of(
        cls, channel: NDArray, how: Normalisation, mask: NDArray[np.bool_] | None, axis: int | None = None
    ) -> Normaliser:
        """Return the normalisation of a channel.

        Args:
            channel: (I, J, K); a view with any strides.
            how: the scheme.
            mask: (I, J, K) where there is content; used only if the scheme requires it.
            axis: axis across which each plane has its own range; None: the range is that of the channel.

        Raises:
            InputError: `data.range`, values for the scheme of colour images are not from 0 to 255.
        """
        mask = mask if how.scheme == "z-score" and how.inside_mask else None
        extremes = _extremes(channel, mask, axis or 0)
        if axis is None:
            extremes = np.array([extremes[0].min(), extremes[1].max()])
        least, most = float(extremes[0].min()), float(extremes[1].max())
        low: float | None = None
        high: float | None = None
        shift, scale = 0.0, 1.0
        if how.scheme == "ct":
            low, high, shift, scale = how.low, how.high, how.mean, max(how.std, EPSILON)
        elif how.scheme == "z-score":
            shift, deviation = _statistics(channel, mask)
            scale = max(deviation, EPSILON)
        elif how.scheme == "rescale":
            shift, scale = least, max(most - least, EPSILON)
        elif how.scheme == "rgb":
            if least < 0 or most > MAX_COLOUR:
                text = f"the values reach from {least:.4g} to {most:.4g}"
                raise InputError("data.range", f"{text}; this model expects colours from 0 to {MAX_COLOUR}")
            scale = float(MAX_COLOUR)
        found = cls(low, high, shift, scale, mask, np.empty(0, np.float32))
        ranges = found._normalised(extremes)
        if mask is not None:  # outside is 0
            others = None if axis is None else tuple(n for n in range(3) if n != axis)
            has_zeros = ~mask.all(others)
            ranges[0] = np.where(has_zeros, np.minimum(ranges[0], 0), ranges[0])
            ranges[1] = np.where(has_zeros, np.maximum(ranges[1], 0), ranges[1])
        return cls(low, high, shift, scale, mask, ranges)

    def planes(self, planes: NDArray, place: slice) -> NDArray[np.float32]:
        """Return some planes normalised.

        Args:
            planes: planes of the channel across its first axis.
            place: their place along it.
        """
        values = self._normalised(np.array(planes, np.float32, order="C"))
        if self.mask is not None:
            values[~self.mask[place]] = 0
        return values

    def _normalised(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise values in place, and return them."""
        if self.low is not None and self.high is not None:
            np.clip(values, np.float32(self.low), np.float32(self.high), out=values)
        if self.shift:
            values -= np.float32(self.shift)
        if self.scale != 1:
            values /= np.float32(self.scale)
        return values


def _extremes(channel: NDArray, mask: NDArray[np.bool_] | None, axis: int) -> NDArray[np.float32]:
    """Return the lowest and the highest value of each plane across an axis, within a mask if there is one, (2, n)."""
    found = np.empty((2, channel.shape[axis]), np.float32)
    for n, plane in enumerate(np.moveaxis(channel, axis, 0)):
        values = plane if mask is None else plane[np.moveaxis(mask, axis, 0)[n]]
        found[:, n] = (values.min(), values.max()) if values.size else (np.inf, -np.inf)
    return found


def _statistics(channel: NDArray, mask: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return mean and standard deviation of a channel, within a mask if there is one."""
    starts = range(0, len(channel), PLANES_AT_ONCE)
    count, total = 0, 0.0
    for start in starts:
        part = slice(start, start + PLANES_AT_ONCE)
        values = channel[part] if mask is None else channel[part][mask[part]]
        count, total = count + values.size, total + float(values.sum(dtype=np.float64))
    mean = total / max(count, 1)
    squares = 0.0
    for start in starts:
        part = slice(start, start + PLANES_AT_ONCE)
        values = (channel[part] if mask is None else channel[part][mask[part]]) - mean
        values *= values
        squares += float(values.sum(dtype=np.float64))
    return mean, sqrt(squares / max(count, 1))
