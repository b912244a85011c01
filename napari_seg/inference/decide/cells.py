"""Cells between eight voxels: where one class wins throughout, which classes can win, and interpolated logits.

A point of the scan lies in a cell of the network's grid, between eight voxels, and its logits are the trilinear
interpolation of theirs. `unanimous` finds the cells whose eight corners have the same winner: it wins everywhere in
the cell. In all other cells `interpolated_winner` interpolates only the few classes that reach highest at a corner.
Interpolated logits stay between a class's lowest and highest corner, so a class whose highest corner is below the
lowest corner of another can't win; if more than a few classes remain, all classes are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import log

import torch

FEW = 4
"""Number of classes that are interpolated first in cells where classes meet."""

MAX_LOGITS = 4_000_000
"""Number of logits, classes times voxels, that are interpolated at a time; a few float32 maps of this size are kept."""


def winners_of(logits: torch.Tensor, thresholds: torch.Tensor | None) -> torch.Tensor:
    """Return the winning class (...) of logits (channels, ...).

    Args:
        logits: logits of each class, background first; with `thresholds` of each structure independently.
        thresholds: (channels,) logits above which a structure is present. If several are present, the last one wins; if
            none is, the result is 0. So channel n stands for class n + 1.
    """
    if thresholds is None:
        return logits.max(dim=0).indices  # many times quicker than argmax along the first axis
    winner = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for channel, threshold in enumerate(thresholds):
        winner[logits[channel] > threshold] = channel + 1
    return winner


def unanimous(winner: torch.Tensor) -> torch.Tensor:
    """Return for each cell the class that wins at all eight corners; -1 where they differ.

    Args:
        winner: (I, J, K) int16.

    Returns:
        (I - 1, J - 1, K - 1) int16.
    """
    low = high = winner
    for axis in range(3):
        near, far = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        low, high = torch.minimum(low[near], low[far]), torch.maximum(high[near], high[far])
    return torch.where(low == high, low, -1)


def interpolated_winner(
    logits: torch.Tensor, cells: torch.Tensor, lower: Sequence[torch.Tensor], fraction: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the winning class (n,) at points; the module's docstring explains how.

    Args:
        logits: (classes, I, J, K).
        cells: (m, 3) lower corners of the cells that contain the points.
        lower: see `interpolated`.
        fraction: see `interpolated`.
    """
    winners = torch.empty_like(lower[0])
    classes, corners, is_complete = _candidates(logits, cells)
    column = torch.full((logits[0].numel(),), -1, dtype=torch.int64, device=logits.device)
    column[_flat_index(logits, *cells.T)] = torch.arange(len(cells), device=logits.device)
    column = column[_flat_index(logits, *lower)]
    for points in is_complete[column].nonzero()[:, 0].split(MAX_LOGITS // corners[0].numel()):
        cell = column[points]
        weights = torch.stack(_corner_weights([axis[points] for axis in fraction]), dim=1)
        best = torch.bmm(corners[cell], weights[..., None])[..., 0].argmax(dim=1, keepdim=True)
        winners[points] = classes[cell].gather(1, best)[:, 0]
    rest = (~is_complete[column]).nonzero()[:, 0]
    parts = interpolated(logits, [axis[rest] for axis in lower], [axis[rest] for axis in fraction])
    found = [part.max(dim=0).indices for part in parts]
    if found:
        winners[rest] = torch.cat(found)
    return winners


def _candidates(logits: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the few classes with the highest corners of each cell.

    Args:
        logits: (classes, I, J, K).
        cells: (n, 3) lower corners of the cells.

    Returns:
        (n, few) the classes, ascending; (n, few, 8) their logits at the cell's corners; (n,) whether no other can win.
    """
    count = min(FEW, len(logits))
    flat, offsets = logits.reshape(len(logits), -1), _corner_offsets(logits)
    classes, corners, is_complete = [], [], []
    for first in _flat_index(logits, *cells.T).split(max(1, MAX_LOGITS // (8 * len(logits)))):
        # a class that a network excludes by minus infinity, times a weight of 0, would be no number
        values = torch.stack([flat.index_select(1, first + offset) for offset in offsets]).clamp_(-1e30, 1e30)
        highest = values.amax(dim=0)
        is_complete.append((highest >= values.amin(dim=0).amax(dim=0)).sum(dim=0) <= count)
        chosen = highest.topk(count, dim=0).indices.sort(dim=0).values
        classes.append(chosen.T)
        corners.append(values.gather(1, chosen.expand(8, -1, -1)).permute(2, 1, 0))
    return torch.cat(classes), torch.cat(corners), torch.cat(is_complete)


def interpolated_confidence(
    logits: torch.Tensor,
    thresholds: torch.Tensor | None,
    lower: Sequence[torch.Tensor],
    fraction: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the winning class (n,) at points, see `winners_of`, and (2, n) see `confidence_of`."""
    parts = interpolated(logits, lower, fraction)
    found = [(winners_of(part, thresholds), confidence_of(part, thresholds)) for part in parts]
    if not found:
        return torch.empty_like(lower[0]), logits.new_empty((2, 0))
    return torch.cat([winners for winners, _ in found]), torch.cat([confidence for _, confidence in found], dim=1)


def interpolated(
    maps: torch.Tensor, lower: Sequence[torch.Tensor], fraction: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Yield the values (C, some) of maps at points, some points at a time.

    Args:
        maps: (C, I, J, K).
        lower: per axis (n,) int64, the lower corner of each point's cell.
        fraction: per axis (n,) float32, the position in the cell, 0 to 1.
    """
    flat = maps.reshape(len(maps), -1)
    first = _flat_index(maps, *lower)
    step = max(1, MAX_LOGITS // len(flat))
    for begin in range(0, len(first), step):
        weights = _corner_weights([axis[begin : begin + step] for axis in fraction])
        total = torch.zeros((len(flat), len(weights[0])), device=maps.device)
        for weight, offset in zip(weights, _corner_offsets(maps), strict=True):
            # a class that a network excludes by minus infinity, times a weight of 0, would be no number
            total.addcmul_(flat.index_select(1, first[begin : begin + step] + offset).clamp_(-1e30, 1e30), weight)
        yield total


def along_axes(maps: torch.Tensor, lower: Sequence[torch.Tensor], fraction: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return maps (C, I, J, K) interpolated at every combination of places along the axes, (C, i, j, k)."""
    for axis, (near, part) in enumerate(zip(lower, fraction, strict=True), start=1):
        shape = [-1 if n == axis else 1 for n in range(4)]
        maps = torch.lerp(maps.index_select(axis, near), maps.index_select(axis, near + 1), part.reshape(shape))
    return maps


def confidence_of(logits: torch.Tensor, thresholds: torch.Tensor | None) -> torch.Tensor:
    """Return (2, ...) the winner's probability and the entropy as a fraction of its maximum, of logits (channels, ...).

    With `thresholds`, see `winners_of`, each structure has the probability of being present; the entropy is that of the
    structure with the highest entropy.
    """
    classes, shape = len(logits), logits.shape[1:]
    flat = logits.reshape(classes, -1)
    found = flat.new_empty((2, flat.shape[1]))
    step = max(1, MAX_LOGITS // classes)
    for begin in range(0, flat.shape[1], step):
        some = flat[:, begin : begin + step].clamp(-1e30, 1e30)
        if thresholds is not None:
            found[:, begin : begin + step] = _confidence_of_structures(some, thresholds)
            continue
        some = some - some.amax(dim=0)
        weights = some.exp()
        total = weights.sum(dim=0)
        found[0, begin : begin + step] = 1 / total
        entropy = total.log() - (weights * some).sum(dim=0) / total
        found[1, begin : begin + step] = entropy / max(log(classes), 1e-9)
    return found.reshape(2, *shape)


def _confidence_of_structures(logits: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Return (2, n) of logits (channels, n), see `confidence_of`."""
    probabilities = logits.sigmoid()
    winner = winners_of(logits, thresholds)
    chosen = probabilities.gather(0, (winner - 1).clamp(min=0)[None])[0]
    confidence = torch.where(winner > 0, chosen, 1 - probabilities.amax(dim=0))
    entropy = -torch.xlogy(probabilities, probabilities) - torch.xlogy(1 - probabilities, 1 - probabilities)
    return torch.stack([confidence, entropy.amax(dim=0) / log(2)])


def _flat_index(logits: torch.Tensor, i: torch.Tensor, j: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (i * logits.shape[2] + j) * logits.shape[3] + k


def _corner_weights(fraction: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the weights of a cell's eight corners at points, eight times (n,), from their position in the cell."""
    i, j, k = ((1 - axis, axis) for axis in fraction)
    return [a * b * c for a, b, c in product(i, j, k)]


def _corner_offsets(logits: torch.Tensor) -> list[int]:
    """Return the distance from a cell's lower corner to its eight corners, along a flat index over all three axes."""
    length_j, length_k = logits.shape[2:]
    return [(i * length_j + j) * length_k + k for i, j, k in product((0, 1), repeat=3)]
