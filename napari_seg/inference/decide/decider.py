"""Deciding: from blocks of logits on the network's grid to labels on the scan's own grid.

A voxel of the scan lies in one cell of the network's grid, between eight of its voxels, and its logits are interpolated
linearly between theirs. Where one class wins at all eight voxels it wins anywhere in the cell, so logits are
interpolated only in the cells where classes meet (see `cells`). Blocks of logits come one after the other as the
blending finishes them. Each is decided at once together with the faces of the blocks before it, which are kept, because
cells lie between the voxels of neighbouring blocks too. So no class is ever in memory on the scan's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log, prod

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.errors import BundleError
from napari_seg.geometry import Grid, driving_axes, index_affine, is_same_lattice
from napari_seg.inference.decide.cells import (
    MAX_LOGITS,
    along_axes,
    confidence_of,
    interpolated,
    interpolated_confidence,
    interpolated_winner,
    unanimous,
    winners_of,
)
from napari_seg.inference.windows.layout import Triple
from napari_seg.volume import ConfidenceMaps

MAX_VOXELS = 200_000
"""Number of voxels of the scan that are decided at a time."""

POINT_BYTES = 250
"""Memory of each of these voxels if classes meet everywhere."""

_REACH = 0.501
"""Distance that a region reaches beyond the centres of its outer voxels, in voxels."""


def decider_bytes(classes: int, voxels: int) -> int:
    """Return the additional memory while a block is decided: winners and confidence of its voxels, parts, and points.

    Args:
        classes: classes of the logits.
        voxels: voxels of the block.
    """
    return 12 * voxels + 4 * 4 * min(MAX_LOGITS, classes * voxels) + POINT_BYTES * MAX_VOXELS


class Decider:
    """Writer of labels: the winning class of every voxel of the scan that a region covers.

    Voxels to which an earlier region gave a structure keep it. Beyond the centres of the region's outer voxels their
    logits are repeated.

    Args:
        region: the network's grid, in the scan's world.
        scan: the scan's grid.
        label_map: (I, J, K) on `scan`; changed in place.
        labels: class -> label; a class that is absent here counts as background.
        axes: axes of the region along which blocks come, from the slowest to the fastest.
        maps: on `scan`, changed in place wherever labels are; None: not required.
        thresholds: for each channel of the logits the probability above which its structure is present, if the channels
            are independent (see `cells.winners_of`); empty: the class of the greatest logit wins.
    """

    def __init__(
        self,
        region: Grid,
        scan: Grid,
        label_map: NDArray[np.unsignedinteger],
        labels: dict[int, int],
        axes: Triple = (0, 1, 2),
        maps: ConfidenceMaps | None = None,
        thresholds: Sequence[float] = (),
    ) -> None:
        self.region = region
        self.scan = scan
        self.label_map = label_map
        self.labels = labels
        self.axes = axes
        self.maps = maps
        self.thresholds = torch.tensor([log(t / (1 - t)) for t in thresholds]) if thresholds else None
        self.to_region = index_affine(region, scan)
        self.same_lattice = is_same_lattice(region, scan)
        if self.same_lattice:
            self.to_region = np.rint(self.to_region)
        self.scan_axes = driving_axes(self.to_region, scan.shape)
        self._edges: dict[tuple, torch.Tensor] = {}
        self._probabilities: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def add(self, start: Triple, logits: torch.Tensor, strip_begin: int = 0) -> None:
        """Decide the labels between the voxels of a block, and between them and the voxels of the blocks before it.

        Args:
            start: first voxel of the block in the region. Blocks divide a strip along all three axes, and come along
                `axes[0]` slowest.
            logits: (classes, I, J, K).
            strip_begin: begin of the strip on `axes[1]`; a strip begins with the last voxel of the strip before.
        """
        begins = {self.axes[0]: 0, self.axes[1]: strip_begin, self.axes[2]: 0}
        first = [n - (n > begins[axis]) for axis, n in enumerate(start)]
        cells = self._with_edges(start, first, logits)
        for axis, length in enumerate(self.region.shape):
            if length == 1:  # no cell lies along an axis of one voxel, so it is repeated
                cells = torch.cat([cells, cells], dim=1 + axis)
        winner = self._winners(cells)
        # each voxel counts once: voxels of earlier blocks and the one that a strip shares with the strip before do not
        repeated = [n - f for n, f in zip(start, first, strict=True)]
        repeated[self.axes[1]] += start[self.axes[1]] == strip_begin > 0
        self._add_confidence(
            cells, winner, tuple(slice(n, n + m) for n, m in zip(repeated, logits.shape[1:], strict=True))
        )
        if 0 in (n - 1 for n in winner.shape):
            return
        confidence = None if self.maps is None else confidence_of(cells, self.thresholds)
        decide = self._aligned if self.scan_axes else self._rotated
        for where, labels, pair in decide(first, cells, winner, confidence):
            free = self.label_map[where] == 0
            if self.maps is not None and pair is not None:
                for known, found in zip((self.maps.confidence, self.maps.entropy), pair, strict=True):
                    known[where] = np.where(free, found, known[where])
            self.label_map[where] = np.where(free, labels, self.label_map[where])

    def _winners(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the winning class of each voxel, (I, J, K) int16; some planes at a time, since torch returns int64."""
        winner = torch.empty(cells.shape[1:], dtype=torch.int16, device=cells.device)
        step = max(1, MAX_LOGITS // (len(cells) * prod(winner.shape[1:])))
        for logits, found in zip(cells.split(step, dim=1), winner.split(step), strict=True):
            classes = winners_of(logits, self.thresholds)
            if torch.isnan(logits.gather(0, classes[None]) if self.thresholds is None else logits).any():
                text = "the network returned NaN (no number); its weights are damaged"
                raise BundleError("bundle.network", text)
            found.copy_(classes)
        return winner

    def confidence(self) -> dict[int, float]:
        """Return class -> mean probability over the region's voxels where it wins; background is excluded."""
        return {c: self._probabilities[c] / self._counts[c] for c in sorted(self._counts)}

    def _with_edges(self, start: Triple, first: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Return the block with the adjacent faces of earlier blocks; its own last faces are kept for later ones."""
        ahead = [n - f for n, f in zip(start, first, strict=True)]
        whole = logits.new_empty((len(logits), *(a + n for a, n in zip(ahead, logits.shape[1:], strict=True))))
        inner = [slice(a, None) for a in ahead]
        whole[(slice(None), *inner)] = logits
        keys = [(start[self.axes[1]], start[self.axes[2]]), (start[self.axes[2]],), ()]
        # the face of the slowest axis spans the block alone, the next ones also span the faces added before
        for axis, key in zip(self.axes, keys, strict=True):
            face: list[slice] = list(inner)
            face[axis] = slice(-1, None)
            last = whole[(slice(None), *face)].clone()
            if ahead[axis]:
                face[axis] = slice(0, 1)
                whole[(slice(None), *face)] = self._edges[axis, *key]
                inner[axis] = slice(None)
            self._edges[axis, *key] = last
        return whole

    def _add_confidence(self, cells: torch.Tensor, winner: torch.Tensor, block: tuple[slice, ...]) -> None:
        i, j, k = block
        step = max(1, MAX_LOGITS // (len(cells) * (j.stop - j.start) * (k.stop - k.start)))
        totals = torch.zeros(len(cells) + 1, dtype=torch.float64, device=cells.device)
        counts = torch.zeros(len(totals), dtype=torch.int64, device=cells.device)
        for begin in range(i.start, i.stop, step):  # some planes at a time
            planes = slice(begin, min(begin + step, i.stop))
            won = winner[planes, j, k].long()
            found = won > 0
            if not found.any():
                continue
            logits = cells[:, planes, j, k]
            if self.thresholds is None:
                probability = 1 / (logits - logits.amax(dim=0)).exp_().sum(dim=0)
            else:
                probability = logits.gather(0, (won - 1).clamp(min=0)[None])[0].sigmoid_()
            totals.index_add_(0, won[found], probability[found].double())
            counts += torch.bincount(won[found], minlength=len(counts))
        for c in counts.nonzero()[:, 0].tolist():
            self._counts[c] = self._counts.get(c, 0) + int(counts[c])
            self._probabilities[c] = self._probabilities.get(c, 0.0) + float(totals[c])

    def _aligned(
        self, first: list[int], cells: torch.Tensor, winner: torch.Tensor, confidence: torch.Tensor | None
    ) -> Iterator[tuple[tuple[slice, ...], NDArray, NDArray | None]]:
        """Yield places in the scan, labels and confidence, for a region whose axes are parallel to the scan's."""
        assert self.scan_axes is not None
        where, lower, fraction = [slice(0)] * 3, [], []
        for axis, scan_axis in enumerate(self.scan_axes):
            index = self.to_region[axis, scan_axis] * np.arange(self.scan.shape[scan_axis]) + self.to_region[axis, 3]
            cell, part, inside = self._cell(index, axis)
            own = np.flatnonzero(inside & (cell >= first[axis]) & (cell < first[axis] + winner.shape[axis] - 1))
            if not len(own):
                return
            where[scan_axis] = slice(int(own[0]), int(own[-1]) + 1)
            lower.append(torch.from_numpy(cell[own] - first[axis]).to(cells.device))
            fraction.append(torch.from_numpy(part[own]).to(cells.device, torch.float32))
        agreed = None if self.same_lattice else unanimous(winner)
        order = [self.scan_axes.index(axis) for axis in range(3)]
        start, stop = where[self.scan_axes[0]].start, where[self.scan_axes[0]].stop
        step = max(1, MAX_VOXELS // (len(lower[1]) * len(lower[2])))
        for begin in range(start, stop, step):
            some = slice(begin - start, begin - start + step)
            labels, pair = self._on_lattice(
                cells, winner, agreed, confidence, [lower[0][some], *lower[1:]], [fraction[0][some], *fraction[1:]]
            )
            where[self.scan_axes[0]] = slice(begin, min(begin + step, stop))
            in_order = None if pair is None else _as_bytes(pair.permute(0, *(1 + axis for axis in order)))
            yield tuple(where), labels.permute(order).numpy(force=True).astype(self.label_map.dtype), in_order

    def _on_lattice(
        self,
        cells: torch.Tensor,
        winner: torch.Tensor,
        agreed: torch.Tensor | None,
        confidence: torch.Tensor | None,
        lower: list[torch.Tensor],
        fraction: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return labels (i, j, k) and confidence (2, i, j, k) at every combination of places along the three axes.

        Args:
            cells: logits (classes, I, J, K).
            winner: (I, J, K) int16, winning classes.
            agreed: class of each cell, see `unanimous`; None: all places lie on voxels.
            confidence: (2, I, J, K); None: not required.
            lower: per axis the lower corner of each place's cell.
            fraction: per axis the position in the cell.
        """
        if agreed is None:
            i, j, k = (n + part.long() for n, part in zip(lower, fraction, strict=True))
            pair = None if confidence is None else confidence[:, i][:, :, j][..., k]
            return self._labels_of(winner[i][:, j][:, :, k]), pair
        i, j, k = lower
        labels = self._labels_of(agreed[i][:, j][:, :, k])
        points = torch.nonzero(labels < 0)
        places = [axis[points[:, n]] for n, axis in enumerate(lower)]
        fractions = [axis[points[:, n]] for n, axis in enumerate(fraction)]
        if confidence is None:
            labels[tuple(points.T)] = self._labels_of(self._interpolated(cells, agreed, places, fractions))
            return labels, None
        pair = along_axes(confidence, lower, fraction)
        winners, exact = interpolated_confidence(cells, self.thresholds, places, fractions)
        labels[tuple(points.T)] = self._labels_of(winners)
        pair[:, *points.T] = exact
        return labels, pair

    def _rotated(
        self, first: list[int], cells: torch.Tensor, winner: torch.Tensor, confidence: torch.Tensor | None
    ) -> Iterator[tuple[tuple[NDArray, ...], NDArray, NDArray | None]]:
        """Yield voxels of the scan, labels and confidence for a region at any angle; some at a time."""
        box = self._box_in_scan(first, winner.shape)
        if box is None:
            return
        start, stop = box
        agreed = unanimous(winner)
        depth = max(1, MAX_VOXELS // prod(stop[1:] - start[1:]))
        j, k = (np.arange(start[n], stop[n], dtype=np.float64) for n in (1, 2))
        for begin in range(start[0], stop[0], depth):
            i = np.arange(begin, min(begin + depth, stop[0]), dtype=np.float64)
            own = np.ones((len(i), len(j), len(k)), dtype=bool)
            lower, fraction = [], []
            for axis, (a, b, c, offset) in enumerate(self.to_region[:3]):
                cell, part, inside = self._cell(a * i[:, None, None] + b * j[:, None] + c * k + offset, axis)
                own &= inside & (cell >= first[axis]) & (cell < first[axis] + winner.shape[axis] - 1)
                lower.append(cell - first[axis])
                fraction.append(part)
            if not own.any():
                continue
            places = [torch.from_numpy(axis[own]).to(cells.device) for axis in lower]
            fractions = [torch.from_numpy(axis[own]).to(cells.device, torch.float32) for axis in fraction]
            labels = self._labels_of(agreed[tuple(places)])
            open_ = labels < 0
            open_places, open_fractions = ([axis[open_] for axis in some] for some in (places, fractions))
            pair = None
            if confidence is None:
                winners = self._interpolated(cells, agreed, open_places, open_fractions)
            else:
                winners, exact = interpolated_confidence(cells, self.thresholds, open_places, open_fractions)
                whole = torch.cat(list(interpolated(confidence, places, fractions)), dim=1)
                whole[:, open_] = exact
                pair = _as_bytes(whole)
            labels[open_] = self._labels_of(winners)
            found = np.nonzero(own)
            where = tuple(n + offset for n, offset in zip(found, (begin, start[1], start[2]), strict=True))
            yield where, labels.numpy(force=True).astype(self.label_map.dtype), pair

    def _interpolated(
        self, cells: torch.Tensor, agreed: torch.Tensor, places: list[torch.Tensor], fractions: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the winning class (n,) at points in cells whose corners do not agree."""
        if self.thresholds is not None:
            found = [winners_of(part, self.thresholds) for part in interpolated(cells, places, fractions)]
            return torch.cat(found) if found else torch.empty_like(places[0])
        if not len(places[0]):
            return torch.empty_like(places[0])
        # only the planes between which the points lie
        first, last = int(places[0].min()), int(places[0].max())
        meeting = torch.nonzero(agreed[first : last + 1] < 0)
        return interpolated_winner(cells[:, first : last + 2], meeting, [places[0] - first, *places[1:]], fractions)

    def _cell(self, index: NDArray[np.float64], axis: int) -> tuple[NDArray, NDArray, NDArray[np.bool_]]:
        """Return the cell of indices along an axis, the position in it (0 to 1), and whether the region contains it."""
        length = self.region.shape[axis]
        cell = np.clip(np.floor(index), 0, max(length - 2, 0))
        inside = (index > -_REACH) & (index < length - 1 + _REACH)
        return cell.astype(np.int64), np.clip(index - cell, 0, 1), inside

    def _box_in_scan(self, first: list[int], shape: torch.Size) -> tuple[NDArray, NDArray] | None:
        """Return start and stop (3,) of the scan's voxels that may lie in cells of the region; None: there are none."""
        ends = []
        for begin, n, length in zip(first, shape, self.region.shape, strict=True):
            last = begin + n - 1
            ends.append((begin - _REACH * (begin == 0), last + _REACH * (last >= length - 1)))
        corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(8, 3)
        back = np.linalg.inv(self.to_region)
        reached = corners @ back[:3, :3].T + back[:3, 3]
        start = np.maximum(np.floor(reached.min(axis=0)).astype(int), 0)
        stop = np.minimum(np.ceil(reached.max(axis=0)).astype(int) + 1, self.scan.shape)
        return None if (stop <= start).any() else (start, stop)

    def _labels_of(self, classes: torch.Tensor) -> torch.Tensor:
        """Return int32 labels of classes; -1 stays."""
        highest = max([int(classes.max()) if classes.numel() else 0, *self.labels])
        table = torch.zeros(highest + 2, dtype=torch.int32, device=classes.device)
        for network_class, label in self.labels.items():
            table[network_class] = label
        table[-1] = -1
        return table[classes.long()]


def _as_bytes(fractions: torch.Tensor) -> NDArray[np.uint8]:
    return fractions.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy(force=True)
