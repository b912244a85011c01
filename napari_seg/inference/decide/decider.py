"""Resampling of blocks of logits on the network's grid to labels on the scan's own grid.

Where both grids have the same voxels, each one's class is its own winner. Otherwise the centre of a scan voxel lies
between eight voxels of the network's grid, in one cell, and the scan voxel's logits are interpolated linearly between
the logits of these eight. If one class wins at all eight, it wins everywhere in the cell, so logits are interpolated
only in mixed cells, at whose corners different classes win (see `cells`). Blending yields the logits block by block.
Each block is decided as soon as it comes, together with the faces kept from earlier blocks, because cells also lie
between the voxels of neighbouring blocks. So logits are never held in memory on the scan's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.geometry import Grid, index_affine, is_same_lattice, parallel_axes
from napari_seg.inference.decide.cells import (
    MAX_LOGITS,
    confidence_of,
    interpolated,
    interpolated_along_axes,
    interpolated_confidence,
    interpolated_winners,
    winners_of,
    winners_of_cells,
)
from napari_seg.inference.not_finite import not_finite
from napari_seg.inference.windows.layout import Triple
from napari_seg.volume import ConfidenceMaps

MAX_VOXELS = 200_000
"""Maximum number of scan voxels that are decided at a time."""

POINT_BYTES = 250
"""Memory in bytes for each voxel decided at a time, if every cell needs interpolation."""

REACH = 0.501
"""Distance that a region extends beyond the centres of its outer voxels, in voxels, unless a decider gets another."""


HALF_TOLERANCE = 1e-6
"""Distance in voxels below which a position counts as halfway between two voxels."""


def decider_bytes(classes: int, voxels: int, *, extends: bool = True) -> int:
    """Return the additional memory in bytes while a block is decided.

    It holds winners and confidence of the block's voxels, logits of some planes, and interpolated points.

    Args:
        classes: number of classes of the logits.
        voxels: number of voxels of the block.
        extends: whether the block is copied with the faces of earlier ones; not where the grids have the same voxels.
    """
    extended = 4 * classes * voxels if extends else 0
    return extended + 12 * voxels + 4 * 4 * min(MAX_LOGITS, classes * voxels) + POINT_BYTES * MAX_VOXELS


def has_same_voxels(region: Grid, scan: Grid, zero_faces: NDArray[np.bool_]) -> bool:
    """Return whether each voxel of a scan in a region is one of the region's, so that nothing is interpolated.

    Args:
        region: the network's grid, in the scan's world.
        scan: the scan's grid.
        zero_faces: see `Decider`.
    """
    return is_same_lattice(region, scan) and not zero_faces.any()


class Decider:
    """Write the label of the winning class to every voxel of the scan that a region covers.

    A voxel keeps a structure that an earlier region gave it. Beyond the centres of the region's outer voxels, logits
    are extrapolated as constants.

    Args:
        region: the network's grid, in the scan's world.
        scan: the scan's grid.
        label_map: (I, J, K) on the scan's grid; changed in place.
        labels: class -> label; a class that is absent here counts as background.
        axes: axes of the region along which blocks come, from the slowest to the fastest.
        confidence_maps: confidence maps on the scan's grid, changed in place with the labels; None: not requested.
        thresholds: value of each channel from which on its structure is present, if the channels are independent (see
            `cells.winners_of`); empty: the class of the greatest value wins.
        are_probabilities: whether the values are probabilities, not logits.
        reach: (3, 2) distance that the region extends beyond the centres of its first and last voxels along each axis,
            in voxels; None: `REACH` everywhere.
        nearest_axes: axes of the region along which the nearest value is taken instead of interpolating.
        zero_faces: (3, 2) faces of the region, before and after each axis, beyond which all values are 0; a layer of
            zeros is added there, and beyond it nothing is decided; None: no face.

    Attributes:
        overlapping_voxels: number of voxels of the region in which several structures are present.
    """

    def __init__(
        self,
        region: Grid,
        scan: Grid,
        label_map: NDArray[np.unsignedinteger],
        labels: dict[int, int],
        axes: Triple = (0, 1, 2),
        confidence_maps: ConfidenceMaps | None = None,
        thresholds: Sequence[float] = (),
        are_probabilities: bool = False,
        reach: NDArray[np.float64] | None = None,
        nearest_axes: tuple[int, ...] = (),
        zero_faces: NDArray[np.bool_] | None = None,
    ) -> None:
        self.zero_faces = np.zeros((3, 2), dtype=bool) if zero_faces is None else zero_faces
        before, after = self.zero_faces.T.astype(int)
        region = region.box(-before, region.shape + after)
        self.region = region
        self.scan = scan
        self.label_map = label_map
        self.labels = labels
        self.axes = axes
        self.confidence_maps = confidence_maps
        self.thresholds = torch.tensor(thresholds) if thresholds else None
        self.are_probabilities = are_probabilities
        self.reach = np.where(self.zero_faces, 0.0, REACH if reach is None else reach)
        self.nearest_axes = nearest_axes
        self.overlapping_voxels = 0
        self.to_region = index_affine(region, scan)
        self.same_voxels = has_same_voxels(region, scan, self.zero_faces)
        if is_same_lattice(region, scan):
            self.to_region = np.rint(self.to_region)
        self.scan_axes = parallel_axes(self.to_region, scan.shape)  # None if the grids are rotated
        self._faces: dict[tuple, torch.Tensor] = {}
        self._probability_sums: dict[int, float] = {}
        self._voxel_counts: dict[int, int] = {}

    def add(self, start: Triple, logits: torch.Tensor, strip_start: int = 0) -> None:
        """Label the scan voxels that lie between voxels of this block, or between this block and earlier ones.

        Args:
            start: first voxel of the block in the region. Blocks divide a strip, a part of the region along `axes[1]`,
                along all three axes; `axes[0]` varies slowest.
            logits: (classes, I, J, K) of the block.
            strip_start: start of the strip on `axes[1]`; a strip starts with the last voxel of the previous strip.

        Raises:
            NotFinite: logits that decide are NaN or infinity.
        """
        start, strip_start = self._within_layers(start, strip_start)
        cells_start, extended_logits = list(start), logits
        if not self.same_voxels:
            cells_start, extended_logits = self._extended(start, logits, strip_start)
        winners = self._winners(extended_logits)
        # count each voxel once: skip those of earlier blocks and the one shared with the previous strip
        skipped = [n - first for n, first in zip(start, cells_start, strict=True)]
        skipped[self.axes[1]] += start[self.axes[1]] == strip_start > 0
        new_voxels = tuple(slice(n, n + length) for n, length in zip(skipped, logits.shape[1:], strict=True))
        self._count_winners(extended_logits, winners, new_voxels)
        if not self.same_voxels and 1 in winners.shape:
            return
        region_confidence = None
        if self.confidence_maps is not None:
            region_confidence = confidence_of(extended_logits, self.thresholds, self.are_probabilities)
        decide: Callable[..., Iterator[tuple[tuple[Any, ...], NDArray, NDArray | None]]] = self._decide_rotated
        if self.scan_axes is not None:
            decide = self._decide_same if self.same_voxels else self._decide_parallel
        for voxels, labels, scan_confidence in decide(cells_start, extended_logits, winners, region_confidence):
            is_free = self.label_map[voxels] == 0
            if self.confidence_maps is not None and scan_confidence is not None:
                arrays = self.confidence_maps.confidence, self.confidence_maps.entropy
                for old_values, new_values in zip(arrays, scan_confidence, strict=True):
                    old_values[voxels] = np.where(is_free, new_values, old_values[voxels])
            self.label_map[voxels] = np.where(is_free, labels, self.label_map[voxels])

    def _winners(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the winning class of each voxel, (I, J, K) int16.

        It takes some planes at a time, because torch's int64 result takes four times the memory.
        """
        winners = torch.empty(logits.shape[1:], dtype=torch.int16, device=logits.device)
        step = max(1, MAX_LOGITS // (len(logits) * prod(winners.shape[1:])))
        for planes, planes_winners in zip(logits.split(step, dim=1), winners.split(step), strict=True):
            classes = winners_of(planes, self.thresholds)
            values = planes.gather(0, classes[None]) if self.thresholds is None else planes
            if not (values < torch.inf).all():  # -inf is the logarithm of a probability of 0, NaN is not less
                raise not_finite()
            planes_winners.copy_(classes)
        return winners

    def confidence(self) -> dict[int, float]:
        """Return class -> mean probability over the region's voxels where it wins; background is excluded."""
        return {c: self._probability_sums[c] / self._voxel_counts[c] for c in sorted(self._voxel_counts)}

    def _within_layers(self, start: Triple, strip_start: int) -> tuple[Triple, int]:
        """Return the first voxel of a block, and the start of its strip, in the region with its layers of zeros."""
        before = self.zero_faces[:, 0].astype(int)
        i, j, k = (int(n) for n in start + before)
        return (i, j, k), strip_start + int(before[self.axes[1]]) if strip_start else 0

    def _extended(self, start: Triple, logits: torch.Tensor, strip_start: int) -> tuple[list[int], torch.Tensor]:
        """Return the first voxel of a block and its logits with all that is needed for its cells, see `add`."""
        strip_starts = {self.axes[0]: 0, self.axes[1]: strip_start, self.axes[2]: 0}
        cells_start = [n - (n > strip_starts[axis]) for axis, n in enumerate(start)]
        extended_logits = self._with_earlier_faces(start, cells_start, logits)
        for axis, length in enumerate(self.region.shape):
            if length == 1:  # no cell lies along an axis of one voxel, so the voxel is repeated
                extended_logits = torch.cat([extended_logits, extended_logits], dim=1 + axis)
        return cells_start, extended_logits

    def _with_earlier_faces(self, start: Triple, cells_start: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Return a block extended by the adjacent faces of earlier blocks, and keep its own last faces for later ones.

        Args:
            start: first voxel of the block.
            cells_start: first voxel of the extended block; one voxel earlier along each axis with an earlier block.
            logits: (classes, I, J, K) of the block.
        """
        prepended = [n - first for n, first in zip(start, cells_start, strict=True)]
        ends = (n + length for n, length in zip(start, logits.shape[1:], strict=True))
        appended = [
            int(is_zero and end == length - 1)
            for is_zero, end, length in zip(self.zero_faces[:, 1], ends, self.region.shape, strict=True)
        ]
        shape = (p + n + a for p, n, a in zip(prepended, logits.shape[1:], appended, strict=True))
        new = logits.new_zeros if self.zero_faces.any() else logits.new_empty
        extended_logits = new((len(logits), *shape))
        own = [slice(p, p + n) for p, n in zip(prepended, logits.shape[1:], strict=True)]
        extended_logits[(slice(None), *own)] = logits
        filled = [slice(p, None) for p in prepended]
        keys = [(start[self.axes[1]], start[self.axes[2]]), (start[self.axes[2]],), ()]
        # the face of the slowest axis spans the block alone, the next ones also span the faces prepended before
        for axis, key in zip(self.axes, keys, strict=True):
            face: list[slice] = list(filled)
            face[axis] = slice(-1, None)
            last_face = extended_logits[(slice(None), *face)].clone()
            if prepended[axis]:
                if not (start[axis] == 1 and self.zero_faces[axis, 0]):
                    face[axis] = slice(0, 1)
                    extended_logits[(slice(None), *face)] = self._faces[axis, *key]
                filled[axis] = slice(None)
            self._faces[axis, *key] = last_face
        return extended_logits

    def _count_winners(self, logits: torch.Tensor, winners: torch.Tensor, voxels: tuple[slice, ...]) -> None:
        """Add the number of voxels where each class wins, and its probabilities there, to the sums for `confidence`."""
        i, j, k = voxels
        step = max(1, MAX_LOGITS // (len(logits) * (j.stop - j.start) * (k.stop - k.start)))
        sums = torch.zeros(len(logits) + 1, dtype=torch.float64, device=logits.device)
        counts = torch.zeros(len(sums), dtype=torch.int64, device=logits.device)
        for first in range(i.start, i.stop, step):  # some planes at a time
            planes = slice(first, min(first + step, i.stop))
            classes = winners[planes, j, k].long()
            is_foreground = classes > 0
            if not is_foreground.any():
                continue
            planes_logits = logits[:, planes, j, k]
            if self.thresholds is not None:
                probability = planes_logits.gather(0, (classes - 1).clamp(min=0)[None])[0]
                if not self.are_probabilities:
                    probability.sigmoid_()
                present = sum((one >= t).int() for one, t in zip(planes_logits, self.thresholds, strict=True))
                self.overlapping_voxels += int((torch.as_tensor(present) > 1).sum())
            elif self.are_probabilities:
                probability = planes_logits.amax(dim=0)
            else:
                probability = 1 / (planes_logits - planes_logits.amax(dim=0)).exp_().sum(dim=0)
            sums.index_add_(0, classes[is_foreground], probability[is_foreground].double())
            counts += torch.bincount(classes[is_foreground], minlength=len(counts))
        for c in counts.nonzero()[:, 0].tolist():
            self._voxel_counts[c] = self._voxel_counts.get(c, 0) + int(counts[c])
            self._probability_sums[c] = self._probability_sums.get(c, 0.0) + float(sums[c])

    def _decide_same(
        self, start: list[int], logits: torch.Tensor, winners: torch.Tensor, confidence: torch.Tensor | None
    ) -> Iterator[tuple[tuple[slice, ...], NDArray, NDArray | None]]:
        """Yield scan voxels, their labels and their confidence, if region and scan have the same voxels.

        Args:
            start: first voxel of the block in the region.
            logits: (classes, I, J, K) of the block.
            winners: (I, J, K) int16, winning classes.
            confidence: (2, I, J, K), see `confidence_of`; None: not requested.
        """
        assert self.scan_axes is not None
        voxels, places = [slice(0)] * 3, []
        for axis, scan_axis in enumerate(self.scan_axes):
            position = self.to_region[axis, scan_axis] * np.arange(self.scan.shape[scan_axis]) + self.to_region[axis, 3]
            place = position.astype(np.int64) - start[axis]
            in_block = np.flatnonzero((place >= 0) & (place < winners.shape[axis]))
            if not len(in_block):
                return
            voxels[scan_axis] = slice(int(in_block[0]), int(in_block[-1]) + 1)
            places.append(torch.from_numpy(place[in_block]).to(logits.device))
        i, j, k = places
        order = [self.scan_axes.index(axis) for axis in range(3)]
        labels = self._labels_of(winners[i][:, j][:, :, k]).permute(order)
        in_order = None
        if confidence is not None:
            shown = confidence[:, i][:, :, j][..., k]
            in_order = _as_bytes(shown.permute(0, *(1 + axis for axis in order)))
        yield tuple(voxels), labels.numpy(force=True).astype(self.label_map.dtype), in_order

    def _decide_parallel(
        self, cells_start: list[int], logits: torch.Tensor, winners: torch.Tensor, confidence: torch.Tensor | None
    ) -> Iterator[tuple[tuple[slice, ...], NDArray, NDArray | None]]:
        """Yield scan voxels, their labels and their confidence, if region and scan have parallel axes; some at a time.

        Args:
            cells_start: first voxel of the extended block in the region.
            logits: (classes, I, J, K) of the extended block.
            winners: (I, J, K) int16, winning classes.
            confidence: (2, I, J, K), see `confidence_of`; None: not requested.
        """
        assert self.scan_axes is not None
        found = self._positions(cells_start, logits)
        if found is None:
            return
        voxels, lower, fractions = found
        cell_class = winners_of_cells(winners)
        order = [self.scan_axes.index(axis) for axis in range(3)]
        start, stop = voxels[self.scan_axes[0]].start, voxels[self.scan_axes[0]].stop
        step = max(1, MAX_VOXELS // (len(lower[1]) * len(lower[2])))
        for first in range(start, stop, step):
            chunk = slice(first - start, first - start + step)
            labels, scan_confidence = self._on_lattice(
                logits,
                cell_class,
                confidence,
                [lower[0][chunk], *lower[1:]],
                [fractions[0][chunk], *fractions[1:]],
            )
            voxels[self.scan_axes[0]] = slice(first, min(first + step, stop))
            in_order = None
            if scan_confidence is not None:
                in_order = _as_bytes(scan_confidence.permute(0, *(1 + axis for axis in order)))
            yield tuple(voxels), labels.permute(order).numpy(force=True).astype(self.label_map.dtype), in_order

    def _positions(
        self, cells_start: list[int], logits: torch.Tensor
    ) -> tuple[list[slice], list[torch.Tensor], list[torch.Tensor]] | None:
        """Return the scan voxels in the cells of a block, for region and scan with parallel axes; None if none is.

        Args:
            cells_start: first voxel of the extended block in the region.
            logits: (classes, I, J, K) of the extended block.

        Returns:
            Their place on the scan's grid; per axis of the region the lower corner of each position's cell, and the
            position in the cell, 0 to 1.
        """
        assert self.scan_axes is not None
        voxels, lower, fractions = [slice(0)] * 3, [], []
        for axis, scan_axis in enumerate(self.scan_axes):
            position = self.to_region[axis, scan_axis] * np.arange(self.scan.shape[scan_axis]) + self.to_region[axis, 3]
            cell, fraction, in_region = self._cell(position, axis)
            cell -= cells_start[axis]
            in_block = np.flatnonzero(in_region & (cell >= 0) & (cell < logits.shape[1 + axis] - 1))
            if not len(in_block):
                return None
            voxels[scan_axis] = slice(int(in_block[0]), int(in_block[-1]) + 1)
            lower.append(torch.from_numpy(cell[in_block]).to(logits.device))
            fractions.append(torch.from_numpy(fraction[in_block]).to(logits.device, torch.float32))
        return voxels, lower, fractions

    def _on_lattice(
        self,
        logits: torch.Tensor,
        cell_class: torch.Tensor,
        confidence: torch.Tensor | None,
        lower: list[torch.Tensor],
        fractions: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return labels (i, j, k) and confidence (2, i, j, k) at every combination of positions along the three axes.

        Args:
            logits: (classes, I, J, K) of the extended block.
            cell_class: class that wins at all corners of each cell, -1 if they differ.
            confidence: (2, I, J, K), see `confidence_of`; None: not requested.
            lower: per axis the lower corner of each position's cell.
            fractions: per axis the position in the cell, 0 to 1.
        """
        i, j, k = lower
        labels = self._labels_of(cell_class[i][:, j][:, :, k])
        points = torch.nonzero(labels < 0)
        points_lower = [axis[points[:, n]] for n, axis in enumerate(lower)]
        points_fractions = [axis[points[:, n]] for n, axis in enumerate(fractions)]
        if confidence is None:
            classes = self._interpolated_winners(logits, cell_class, points_lower, points_fractions)
            labels[tuple(points.T)] = self._labels_of(classes)
            return labels, None
        scan_confidence = interpolated_along_axes(confidence, lower, fractions)
        classes, exact = interpolated_confidence(
            logits, self.thresholds, self.are_probabilities, points_lower, points_fractions
        )
        labels[tuple(points.T)] = self._labels_of(classes)
        scan_confidence[:, *points.T] = exact
        return labels, scan_confidence

    def _decide_rotated(
        self, cells_start: list[int], logits: torch.Tensor, winners: torch.Tensor, confidence: torch.Tensor | None
    ) -> Iterator[tuple[tuple[NDArray, ...], NDArray, NDArray | None]]:
        """Yield scan voxels, their labels and their confidence, for a region at any angle; some at a time.

        Args:
            cells_start: first voxel of the extended block in the region.
            logits: (classes, I, J, K) of the extended block.
            winners: (I, J, K) int16, winning classes.
            confidence: (2, I, J, K), see `confidence_of`; None: not requested.
        """
        box = self._box_in_scan(cells_start, winners.shape)
        if box is None:
            return
        start, stop = box
        cell_class = winners_of_cells(winners)
        depth = max(1, MAX_VOXELS // prod(stop[1:] - start[1:]))
        j, k = (np.arange(start[n], stop[n], dtype=np.float64) for n in (1, 2))
        for first in range(start[0], stop[0], depth):
            i = np.arange(first, min(first + depth, stop[0]), dtype=np.float64)
            in_block = np.ones((len(i), len(j), len(k)), dtype=bool)
            box_lower, box_fractions = [], []
            for axis, (a, b, c, offset) in enumerate(self.to_region[:3]):
                cell, fraction, in_region = self._cell(a * i[:, None, None] + b * j[:, None] + c * k + offset, axis)
                cell -= cells_start[axis]
                in_block &= in_region & (cell >= 0) & (cell < winners.shape[axis] - 1)
                box_lower.append(cell)
                box_fractions.append(fraction)
            if not in_block.any():
                continue
            lower = [torch.from_numpy(axis[in_block]).to(logits.device) for axis in box_lower]
            fractions = [torch.from_numpy(axis[in_block]).to(logits.device, torch.float32) for axis in box_fractions]
            labels = self._labels_of(cell_class[tuple(lower)])
            is_undecided = labels < 0
            points_lower = [axis[is_undecided] for axis in lower]
            points_fractions = [axis[is_undecided] for axis in fractions]
            scan_confidence = None
            if confidence is None:
                classes = self._interpolated_winners(logits, cell_class, points_lower, points_fractions)
            else:
                classes, exact = interpolated_confidence(
                    logits, self.thresholds, self.are_probabilities, points_lower, points_fractions
                )
                approximate = torch.cat(list(interpolated(confidence, lower, fractions)), dim=1)
                approximate[:, is_undecided] = exact
                scan_confidence = _as_bytes(approximate)
            labels[is_undecided] = self._labels_of(classes)
            offsets = (first, start[1], start[2])
            voxels = tuple(index + offset for index, offset in zip(np.nonzero(in_block), offsets, strict=True))
            yield voxels, labels.numpy(force=True).astype(self.label_map.dtype), scan_confidence

    def _interpolated_winners(
        self, logits: torch.Tensor, cell_class: torch.Tensor, lower: list[torch.Tensor], fractions: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the winning class (n,) at points in mixed cells."""
        if self.thresholds is not None:
            parts = [winners_of(part, self.thresholds) for part in interpolated(logits, lower, fractions)]
            return torch.cat(parts) if parts else torch.empty_like(lower[0])
        if not len(lower[0]):
            return torch.empty_like(lower[0])
        # only the planes between which the points lie
        first, last = int(lower[0].min()), int(lower[0].max())
        mixed_cells = torch.nonzero(cell_class[first : last + 1] < 0)
        return interpolated_winners(logits[:, first : last + 2], mixed_cells, [lower[0] - first, *lower[1:]], fractions)

    def _cell(self, position: NDArray[np.float64], axis: int) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
        """Return the cell of each position along an axis, the fraction in the cell, and the mask of the region.

        Args:
            position: fractional voxel indices of the region along the axis.
            axis: axis of the region.

        Returns:
            int64 lower corners of the cells; positions in the cells, 0 to 1; whether each position is in the region.
        """
        length = self.region.shape[axis]
        low, high = self.reach[axis]
        in_region = (position > -low) & (position < length - 1 + high)
        if axis in self.nearest_axes:  # halfway between two voxels SciPy takes the second
            position = np.floor(position + 0.5 + HALF_TOLERANCE)
        cell = np.clip(np.floor(position), 0, max(length - 2, 0))
        return cell.astype(np.int64), np.clip(position - cell, 0, 1), in_region

    def _box_in_scan(self, cells_start: list[int], shape: torch.Size) -> tuple[NDArray, NDArray] | None:
        """Return start and stop (3,) of the scan voxels that may lie in an extended block; None: no voxel does."""
        bounds = []
        for first, count, length, (low, high) in zip(cells_start, shape, self.region.shape, self.reach, strict=True):
            last = first + count - 1
            bounds.append((first - low * (first == 0), last + high * (last >= length - 1)))
        corners = np.stack(np.meshgrid(*bounds, indexing="ij"), axis=-1).reshape(8, 3)
        to_scan = np.linalg.inv(self.to_region)
        corners_in_scan = corners @ to_scan[:3, :3].T + to_scan[:3, 3]
        start = np.maximum(np.floor(corners_in_scan.min(axis=0)).astype(int), 0)
        stop = np.minimum(np.ceil(corners_in_scan.max(axis=0)).astype(int) + 1, self.scan.shape)
        return None if (stop <= start).any() else (start, stop)

    def _labels_of(self, classes: torch.Tensor) -> torch.Tensor:
        """Return int32 labels of classes; -1 (undecided) is kept."""
        highest = max([int(classes.max()) if classes.numel() else 0, *self.labels])
        table = torch.zeros(highest + 2, dtype=torch.int32, device=classes.device)
        for network_class, label in self.labels.items():
            table[network_class] = label
        table[-1] = -1
        return table[classes.long()]


def _as_bytes(fractions: torch.Tensor) -> NDArray[np.uint8]:
    return fractions.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy(force=True)
