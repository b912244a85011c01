"""Evidence for and against a structure: log odds of each voxel of a region, from what is known before and from prompts.

What is known before a prompt comes from a network's probability, from the structure as it is, or, for a new structure,
from intensities like those at the clicks. Then each prompt that contradicts it corrects it around itself: as a Gaussian
process with few observations, so that several prompts agree with each other instead of adding up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, box_of
from napari_seg.editing.prompts import Prompts

Floats = NDArray[np.float32]
Spacing = tuple[float, float, float]

LIMIT = 4.0
"""Largest log odds that the structure as it is or a network gives a voxel; a prompt can overcome it."""

TARGET = 0.5
"""Log odds that a prompt requires at its own voxel before the cut."""

WIDE_SHARE = 0.5
"""Share of a correction that reaches far; the rest stays near its prompt."""

WIDE = 5.0
"""Reach of the far share, as a multiple of that of the near one."""

MIN_REACH_VOXELS = 2.0
"""Smallest reach of a correction, in mean voxel sizes."""

DEEP_VOXELS = (1.0, 2.5)
"""Depth of a prompt in what was wrong, in mean voxel sizes, from which and at which the image is fully trusted."""

IMAGE_SHARE = 1.5
"""Weight of the image's log odds where it is fully trusted."""

SURROUNDINGS_VOXELS = 6.0
"""Distance from the border of a structure, in mean voxel sizes, of the intensities that are compared."""

MAX_PROMPTS = 32
"""Number of voxels of each kind that represent all prompts where a scribble has more."""

EDITED_CHANCE = 204
"""Probability, 0 to 255, where a person has edited: about what the structure as it is says near its border."""

_MAX_COMPARED = 100**3
"""Number of voxels above which the nearest structure is looked up more coarsely."""

_BALL_MM = 7.0
_UNLIKE = -3.0
_SIMILAR = -1.2


@dataclass(frozen=True, eq=False)
class Region:
    """Part of a scan at the resolution that it is looked at.

    Attributes:
        image: (I, J, K) intensities.
        spacing_mm: size of its voxels.
        noise: standard deviation of the noise of the image.
        low: intensity below almost all others.
        high: intensity above almost all others.
    """

    image: Floats
    spacing_mm: Spacing
    noise: float
    low: float
    high: float

    @classmethod
    def of(cls, image: NDArray, spacing_mm: Spacing) -> Region:
        """Return the region of an image, with its noise measured between neighbours outside the empty background.

        Values that are not finite become far lower than all others, so that they belong to no structure.
        """
        values = np.array(image, dtype=np.float32)
        is_missing = ~np.isfinite(values)
        known = values[~is_missing] if is_missing.any() else values.ravel()
        some = known[:: 1 + known.size // 200_000]
        low, high = (float(value) for value in np.percentile(some, [1, 99])) if some.size else (0.0, 0.0)
        values[is_missing] = low - (high - low)  # like no tissue
        occupied = low + 0.05 * (high - low)
        steps = [np.abs(np.diff(values, axis=a))[np.delete(values, 0, a) > occupied] for a in range(3)]
        every = np.concatenate(steps)
        noise = float(np.median(every[:: 1 + every.size // 200_000])) * 1.4826 / np.sqrt(2) if every.size else 0.0
        return cls(values, spacing_mm, max(noise, 1e-3 * (high - low), 1e-6), low, high)

    @property
    def voxel_mm(self) -> float:
        """Mean size of a voxel: the edge of a cube of the same volume."""
        return float(np.prod(self.spacing_mm)) ** (1 / 3)

    def distance_mm(self, voxel: NDArray[np.intp]) -> Floats:
        """Return the distance of every voxel from one."""
        squares = [
            ((np.arange(n) - v) * s) ** 2 for n, v, s in zip(self.image.shape, voxel, self.spacing_mm, strict=True)
        ]
        i, j, k = (np.asarray(square, np.float32) for square in squares)
        return np.sqrt(i[:, None, None] + j[:, None] + k)

    def bell(self, voxel: NDArray[np.intp], width_mm: float) -> Floats:
        """Return a Gaussian around a voxel, 1 in its centre."""
        i, j, k = (
            np.exp(-0.5 * np.square((np.arange(n) - v) * s / width_mm)).astype(np.float32)
            for n, v, s in zip(self.image.shape, voxel, self.spacing_mm, strict=True)
        )
        return (i[:, None] * j)[:, :, None] * k

    def nearest_mm(self, voxel: NDArray[np.intp], mask: NDArray[np.bool_]) -> float:
        """Return the distance of a voxel from the border to the nearest voxel of a mask."""
        return float(np.min(self.distance_mm(voxel)[mask], initial=1e3)) - min(self.spacing_mm) / 2

    def depth_mm(self, mask: NDArray[np.bool_], limit_mm: float) -> Floats:
        """Return the distance of voxels in a mask from its border, and minus that of the others.

        The border lies half a smallest voxel side away, so that each voxel is on its own side. The region's own walls
        are no border.

        Args:
            mask: (I, J, K).
            limit_mm: largest distance that is of interest; the result has no larger ones.
        """
        from scipy.ndimage import distance_transform_edt

        result = np.where(mask, limit_mm, -limit_mm).astype(np.float32)
        i, j, k = (int(np.ceil(limit_mm / s)) + 1 for s in self.spacing_mm)
        box = box_of(mask, (i, j, k))
        if box is None or mask[box].all():
            return result
        half = min(self.spacing_mm) / 2
        inside = distance_transform_edt(mask[box], sampling=self.spacing_mm)
        outside = distance_transform_edt(~mask[box], sampling=self.spacing_mm)
        result[box] = np.clip(np.where(mask[box], inside - half, half - outside), -limit_mm, limit_mm)
        return result

    def edge_weights(self, strength: float) -> tuple[Floats, ...]:
        """Return for each axis what a border between neighbours costs.

        It is low between unlike intensities, and inverse to the distance of the neighbours, so that a border costs the
        same in all directions on an anisotropic grid.
        """
        weights = []
        for axis, spacing in enumerate(self.spacing_mm):
            steps = np.diff(self.image, axis=axis) / self.noise
            contrast = 0.1 + 0.9 * np.exp(-np.square(steps) / 8)
            weights.append((strength * self.voxel_mm / spacing) * contrast)
        return tuple(weights)


def from_structure(region: Region, mask: NDArray[np.bool_]) -> Floats:
    """Return log odds that grow with the depth in the structure as it is.

    Args:
        region: part of the scan.
        mask: (I, J, K) the structure as it is.
    """
    return region.depth_mm(mask, LIMIT * region.voxel_mm) / np.float32(region.voxel_mm)


def from_probability(probability: NDArray[np.uint8]) -> Floats:
    """Return log odds of a network's probability (I, J, K), 0 to 255."""
    fraction = np.clip(probability.astype(np.float32) / 255, 0.004, 0.996)
    return np.clip(np.log(fraction / (1 - fraction)), -LIMIT, LIMIT)


def probability_of(labels: NDArray[np.unsignedinteger], label: int, confidence: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the probability of one structure, 0 to 255, from the confidence of a network in every voxel's label.

    In background, what is left belongs to the nearest structure; in another structure, all of it may belong to this.

    Args:
        labels: (I, J, K) the network's label map.
        label: label of the structure.
        confidence: (I, J, K) probability of each voxel's label, 0 to 255.
    """
    from scipy.ndimage import distance_transform_edt

    mask = labels == label
    result = np.where(mask, confidence, 255 - confidence)
    others = (labels != 0) & ~mask
    step = int(np.ceil((labels.size / _MAX_COMPARED) ** (1 / 3)))
    coarse = np.s_[::step, ::step, ::step]
    if step > 1 and not (mask[coarse].any() and others[coarse].any()):  # thin structures
        step, coarse = 1, np.s_[::1, ::1, ::1]
    if mask.any() and others.any():
        is_nearer = distance_transform_edt(~others[coarse]) < distance_transform_edt(~mask[coarse])
        for axis, size in enumerate(labels.shape):
            is_nearer = is_nearer.repeat(step, axis).take(range(size), axis)
        result[(labels == 0) & is_nearer] = 0
    return result.astype(np.uint8)


def probability_now(
    labels: NDArray[np.unsignedinteger],
    made: NDArray[np.unsignedinteger],
    label: int,
    confidence: NDArray[np.uint8],
) -> NDArray[np.uint8] | None:
    """Return the probability of one structure, 0 to 255, from a network's result that a person has edited since.

    Where the structure was edited, and where the network did not look (a confidence of 0), the current labels count.

    Args:
        labels: (I, J, K) the label map as it is.
        made: (I, J, K) the network's label map.
        label: label of the structure.
        confidence: (I, J, K) probability of each voxel's label in `made`, 0 to 255.

    Returns:
        (I, J, K); None if the network did not find the structure here, or if nothing of it is left.
    """
    mask, was = labels == label, made == label
    if not mask.any() or not was.any():
        return None
    result = probability_of(made, label, confidence)
    is_unknown = (mask != was) | (confidence == 0)
    result[is_unknown] = np.where(mask, EDITED_CHANCE, 255 - EDITED_CHANCE)[is_unknown]
    return result


def from_intensities(region: Region, prompts: Prompts) -> Floats:
    """Return log odds that a voxel is like the positive prompts and near them, and not so the negative ones.

    Args:
        region: part of the scan.
        prompts: prompts in voxel indices of the region.
    """
    alike = _likeness(region, prompts.positive)
    unlike = np.maximum(_likeness(region, prompts.negative, prompts.positive), np.float32(_UNLIKE))
    return np.clip(alike - unlike, -3, 2)


def from_box(region: Region, box: Box) -> Floats:
    """Return log odds from the intensities in a box, as compared with those around it, and the place in the box."""
    place = np.zeros(region.image.shape, np.float32)
    for axis, part in enumerate(box):
        middle, half = (part.start + part.stop - 1) / 2, (part.stop - part.start) / 2
        square = np.square((np.arange(region.image.shape[axis]) - middle) / half).astype(np.float32)
        place += square.reshape([-1 if n == axis else 1 for n in range(3)])
    core, around = place < 0.5, np.ones(place.shape, bool)
    around[box] = False
    if not around.any():
        around = place > 1
    ratio = log_ratio(region, core, around)
    return ratio + np.clip(1 - place, -2, 1)


def from_surroundings(region: Region, mask: NDArray[np.bool_]) -> Floats:
    """Return log odds from the intensities on both sides of the border of the structure as it is.

    Args:
        region: part of the scan.
        mask: (I, J, K) the structure as it is.
    """
    near = SURROUNDINGS_VOXELS * region.voxel_mm
    is_near = np.abs(region.depth_mm(mask, near)) < 0.999 * near
    if not (mask & is_near).any() or not (~mask & is_near).any():
        return np.zeros(mask.shape, np.float32)
    return log_ratio(region, mask & is_near, ~mask & is_near)


def corrected(region: Region, known: Floats, prompts: Prompts, image: Floats | None = None) -> tuple[Floats, Floats]:
    """Return evidence that agrees with the prompts, and how far each voxel is in reach of one that contradicted it.

    A prompt deep in what was wrong corrects much around it, and the image is trusted there; one near the border
    corrects little, and what was known is trusted.

    Args:
        region: part of the scan.
        known: (I, J, K) log odds before.
        prompts: prompts in voxel indices of the region.
        image: (I, J, K) log odds from intensities that count where what is known was wrong; None for none.
    """
    positive, negative = (spread(voxels, region.spacing_mm) for voxels in (prompts.positive, prompts.negative))
    voxels = np.concatenate([positive, negative])
    sign = np.repeat(np.array([1, -1], np.float32), [len(positive), len(negative)])
    reached = np.zeros(known.shape, np.float32)
    lacking = np.maximum(TARGET - sign * known[tuple(voxels.T)], 0)
    if not lacking.any():
        return known, reached
    is_inside = known > 0
    depth = np.array(
        [
            region.nearest_mm(voxel, is_inside == (mark > 0)) if lack else 0.0
            for voxel, mark, lack in zip(voxels, sign, lacking, strict=True)
        ]
    )
    places = voxels * np.array(region.spacing_mm)
    if len(positive) and len(negative):  # a correction does not reach beyond a prompt that says the opposite
        apart = np.sqrt(np.square(places[:, None] - places).sum(axis=-1))
        depth = np.minimum(depth, np.where(sign[:, None] != sign, apart, np.inf).min(axis=1))
    longest = 0.25 * float(np.linalg.norm(np.multiply(region.image.shape, region.spacing_mm)))
    reach = np.clip(depth, MIN_REACH_VOXELS * region.voxel_mm, longest)
    result = known.copy()
    if image is not None:
        doubt = np.zeros(known.shape, np.float32)
        for voxel, mm, deep in zip(voxels, reach, depth / region.voxel_mm, strict=True):
            if deep > DEEP_VOXELS[0]:
                amount = min(1.0, (deep - DEEP_VOXELS[0]) / (DEEP_VOXELS[1] - DEEP_VOXELS[0]))
                np.maximum(doubt, np.float32(amount) * region.bell(voxel, WIDE * mm), out=doubt)
        result += np.float32(IMAGE_SHARE) * doubt * image
        lacking = np.maximum(TARGET - sign * result[tuple(voxels.T)], 0)
    scaled = np.square(places[:, None] - places).sum(axis=-1) / np.square(reach)
    kernel = (1 - WIDE_SHARE) * np.exp(-0.5 * scaled) + WIDE_SHARE * np.exp(-0.5 / WIDE**2 * scaled)
    amounts = np.linalg.solve(kernel + 0.05 * np.eye(len(voxels)), sign * lacking)
    for voxel, amount, mm in zip(voxels, amounts, reach, strict=True):
        shape = (1 - WIDE_SHARE) * region.bell(voxel, mm)
        shape += WIDE_SHARE * region.bell(voxel, WIDE * mm)
        np.maximum(reached, shape, out=reached)
        shape *= np.float32(amount)
        result += shape
    return result, reached


def spread(voxels: NDArray[np.intp], spacing_mm: Spacing) -> NDArray[np.intp]:
    """Return at most `MAX_PROMPTS` of the voxels (N, 3): one from each cell of a lattice, as fine as possible."""
    size_mm = max(spacing_mm)
    while len(voxels) > MAX_PROMPTS:
        cells = np.floor(voxels * np.array(spacing_mm) / size_mm).astype(np.intp)
        first = np.unique(cells, axis=0, return_index=True)[1]
        if len(first) <= MAX_PROMPTS:
            return voxels[np.sort(first)]
        size_mm *= 1.5
    return voxels


def _likeness(region: Region, voxels: NDArray[np.intp], others: NDArray[np.intp] | None = None) -> Floats:
    """Return the log likelihood of the most similar prompt near each voxel, 0 at most.

    Args:
        region: part of the scan.
        voxels: (N, 3) prompts.
        others: (M, 3) prompts of the other kind, half way to which these end.
    """
    from scipy.ndimage import gaussian_filter

    best = np.full(region.image.shape, -9, np.float32)
    for voxel in spread(voxels, region.spacing_mm):
        mean, deviation = _intensities_at(region, voxel)
        alike = np.maximum(-np.square(region.image - mean) / (2 * deviation**2), np.float32(-6))
        smooth = gaussian_filter(alike, [region.voxel_mm / s for s in region.spacing_mm], truncate=3)
        distance = region.distance_mm(voxel)
        radius = max(float(np.min(distance[smooth <= _SIMILAR], initial=1e3)), 2 * max(region.spacing_mm))
        if others is not None and len(others):
            radius = min(radius, float(distance[tuple(others.T)].min()) / 2)
        alike -= np.maximum(distance / np.float32(radius) - 1, 0)
        np.maximum(best, alike, out=best)
    return best


def _intensities_at(region: Region, voxel: NDArray[np.intp]) -> tuple[float, float]:
    """Return the mean and the standard deviation of the intensities around a voxel that are like its own."""
    radius = [max(1, int(_BALL_MM / s)) for s in region.spacing_mm]
    middle = float(np.median(region.image[tuple(slice(max(0, v - 1), v + 2) for v in voxel)]))
    values = region.image[tuple(slice(max(0, v - r), v + r + 1) for v, r in zip(voxel, radius, strict=True))]
    kept = values[np.abs(values - middle) <= 2.5 * region.noise]
    if not kept.size:
        return middle, region.noise
    return float(kept.mean()), float(np.clip(kept.std(), region.noise, 2 * region.noise))


def log_ratio(region: Region, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Floats:
    """Return the log ratio of how frequent each voxel's intensity is in one part and in another."""
    from scipy.ndimage import gaussian_filter1d

    bins = 48
    width = max((region.high - region.low) / (bins - 1), 1e-6)
    number = np.clip((region.image - region.low) / width + 0.5, 0, bins - 1).astype(np.intp)
    parts = []
    for mask in (one, other):
        counts = np.bincount(number[mask], minlength=bins).astype(float)
        parts.append(gaussian_filter1d(counts, max(1.0, region.noise / width / 2)) / max(counts.sum(), 1) + 0.002)
    return np.clip(np.log(parts[0] / parts[1]), -2.5, 2.5).astype(np.float32)[number]
