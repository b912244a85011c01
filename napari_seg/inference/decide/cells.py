"""Interpolation of logits and the choice of the winning class in cells, each between eight voxels of a grid.

The logits at a point of a cell are interpolated trilinearly between the logits at the cell's eight corners.
`winners_of_cells` finds the cells at whose corners one class wins; this class wins everywhere in the cell. In all other
cells, called mixed, `interpolated_winners` interpolates only the few classes with the highest logits at a corner. A
class's interpolated logits lie between its lowest and its highest logit at a corner. So a class can't win if its
highest logit is below the lowest logit of another class. If more than a few classes remain, all are interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import log

import torch

MAX_CANDIDATES = 4
"""Number of classes that are interpolated in a mixed cell, unless more can win."""

MAX_LOGITS = 4_000_000
"""Maximum number of logits (classes times voxels) processed at a time; a few float32 arrays of this size are held."""


def winners_of(logits: torch.Tensor, thresholds: torch.Tensor | None) -> torch.Tensor:
    """Return the winning class (...) of logits (channels, ...).

    Args:
        logits: one channel for each class, background first; with `thresholds`, one for each structure. Probabilities
            serve as well.
        thresholds: (channels,) a structure is present where its value is at least this. Channel n stands for class
            n + 1. If several structures are present, the last one wins; if none is, the result is 0. None: the greatest
            value wins.
    """
    if thresholds is None:
        return logits.max(dim=0).indices  # many times faster than argmax along the first axis
    winners = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for channel, threshold in enumerate(thresholds):
        winners[logits[channel] >= threshold] = channel + 1
    return winners


def winners_of_cells(winners: torch.Tensor) -> torch.Tensor:
    """Return the class that wins at all eight corners of each cell; -1 for a mixed cell.

    Args:
        winners: (I, J, K) int16, winning class of each voxel.

    Returns:
        (I - 1, J - 1, K - 1) int16.
    """
    lowest = highest = winners
    for axis in range(3):
        near, far = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        lowest, highest = torch.minimum(lowest[near], lowest[far]), torch.maximum(highest[near], highest[far])
    return torch.where(lowest == highest, lowest, -1)


def interpolated_winners(
    logits: torch.Tensor, mixed_cells: torch.Tensor, lower: Sequence[torch.Tensor], fractions: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the winning class (n,) at points in mixed cells; the docstring of the module explains the method.

    Args:
        logits: (classes, I, J, K).
        mixed_cells: (m, 3) lower corners of the cells that contain the points.
        lower: see `interpolated`.
        fractions: see `interpolated`.
    """
    winners = torch.empty_like(lower[0])
    classes, corner_logits, is_complete = _candidates(logits, mixed_cells)
    cell_numbers = torch.full((logits[0].numel(),), -1, dtype=torch.int64, device=logits.device)
    cell_numbers[_flat_index(logits, *mixed_cells.T)] = torch.arange(len(mixed_cells), device=logits.device)
    cell_numbers = cell_numbers[_flat_index(logits, *lower)]
    for points in is_complete[cell_numbers].nonzero()[:, 0].split(MAX_LOGITS // corner_logits[0].numel()):
        cells = cell_numbers[points]
        weights = torch.stack(_corner_weights([axis[points] for axis in fractions]), dim=1)
        best = torch.bmm(corner_logits[cells], weights[..., None])[..., 0].argmax(dim=1, keepdim=True)
        winners[points] = classes[cells].gather(1, best)[:, 0]
    other_points = (~is_complete[cell_numbers]).nonzero()[:, 0]
    parts = interpolated(logits, [axis[other_points] for axis in lower], [axis[other_points] for axis in fractions])
    other_winners = [part.max(dim=0).indices for part in parts]
    if other_winners:
        winners[other_points] = torch.cat(other_winners)
    return winners


def _candidates(logits: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the few classes with the highest logits at the corners of each cell.

    Args:
        logits: (classes, I, J, K).
        cells: (n, 3) lower corners of the cells.

    Returns:
        (n, count) classes, ascending; (n, count, 8) their logits at the corners; (n,) True if no other class can win.
    """
    count = min(MAX_CANDIDATES, len(logits))
    flat, offsets = logits.reshape(len(logits), -1), _corner_offsets(logits)
    classes, corner_logits, is_complete = [], [], []
    for lower_corners in _flat_index(logits, *cells.T).split(max(1, MAX_LOGITS // (8 * len(logits)))):
        # minus infinity, with which a network may exclude a class, would give NaN if its weight is 0
        values = torch.stack([flat.index_select(1, lower_corners + offset) for offset in offsets]).clamp_(-1e30, 1e30)
        highest = values.amax(dim=0)
        is_complete.append((highest >= values.amin(dim=0).amax(dim=0)).sum(dim=0) <= count)
        candidates = highest.topk(count, dim=0).indices.sort(dim=0).values
        classes.append(candidates.T)
        corner_logits.append(values.gather(1, candidates.expand(8, -1, -1)).permute(2, 1, 0))
    return torch.cat(classes), torch.cat(corner_logits), torch.cat(is_complete)


def interpolated_confidence(
    logits: torch.Tensor,
    thresholds: torch.Tensor | None,
    are_probabilities: bool,
    lower: Sequence[torch.Tensor],
    fractions: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the winning class (n,) at points, see `winners_of`, and the confidence (2, n), see `confidence_of`."""
    winners, confidence = [], []
    for part in interpolated(logits, lower, fractions):
        winners.append(winners_of(part, thresholds))
        confidence.append(confidence_of(part, thresholds, are_probabilities))
    if not winners:
        return torch.empty_like(lower[0]), logits.new_empty((2, 0))
    return torch.cat(winners), torch.cat(confidence, dim=1)


def interpolated(
    values: torch.Tensor, lower: Sequence[torch.Tensor], fractions: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Yield interpolated values (C, m) at n points, a part of the points at a time.

    Args:
        values: (C, I, J, K).
        lower: per axis (n,) int64, the lower corner of each point's cell.
        fractions: per axis (n,) float32, the position in the cell, 0 to 1.
    """
    flat = values.reshape(len(values), -1)
    lower_corners = _flat_index(values, *lower)
    step = max(1, MAX_LOGITS // len(flat))
    for start in range(0, len(lower_corners), step):
        part = slice(start, start + step)
        weights = _corner_weights([axis[part] for axis in fractions])
        total = torch.zeros((len(flat), len(weights[0])), device=values.device)
        for weight, offset in zip(weights, _corner_offsets(values), strict=True):
            # minus infinity, with which a network may exclude a class, would give NaN if its weight is 0
            total.addcmul_(flat.index_select(1, lower_corners[part] + offset).clamp_(-1e30, 1e30), weight)
        yield total


def interpolated_along_axes(
    values: torch.Tensor, lower: Sequence[torch.Tensor], fractions: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return values (C, I, J, K) interpolated at every combination of positions along the axes, (C, i, j, k)."""
    for axis, (near, fraction) in enumerate(zip(lower, fractions, strict=True), start=1):
        shape = [-1 if n == axis else 1 for n in range(4)]
        near_values, far_values = values.index_select(axis, near), values.index_select(axis, near + 1)
        values = torch.lerp(near_values, far_values, fraction.reshape(shape))
    return values


def confidence_of(
    logits: torch.Tensor, thresholds: torch.Tensor | None, are_probabilities: bool = False
) -> torch.Tensor:
    """Return the confidence (2, ...) of logits (channels, ...): the winner's probability and the normalised entropy.

    The entropy is a fraction of its maximum. With `thresholds`, see `winners_of`, the probability is that of the
    winning structure, or of the absence of the most probable structure if none wins; the entropy is that of the
    structure with the highest entropy.

    Args:
        logits: or probabilities.
        thresholds: see `winners_of`.
        are_probabilities: whether the values are probabilities already.
    """
    classes, shape = len(logits), logits.shape[1:]
    flat = logits.reshape(classes, -1)
    confidence = flat.new_empty((2, flat.shape[1]))
    step = max(1, MAX_LOGITS // classes)
    for start in range(0, flat.shape[1], step):
        part = slice(start, start + step)
        values = flat[:, part]
        if not are_probabilities:
            values = values.clamp(-1e30, 1e30)
        if thresholds is not None:
            confidence[:, part] = _confidence_of_structures(values, thresholds, are_probabilities)
        elif are_probabilities:
            confidence[0, part] = values.amax(dim=0)
            confidence[1, part] = -torch.xlogy(values, values).sum(dim=0) / max(log(classes), 1e-9)
        else:
            values = values - values.amax(dim=0)
            weights = values.exp()
            total = weights.sum(dim=0)
            confidence[0, part] = 1 / total
            entropy = total.log() - (weights * values).sum(dim=0) / total
            confidence[1, part] = entropy / max(log(classes), 1e-9)
    return confidence.reshape(2, *shape)


def _confidence_of_structures(values: torch.Tensor, thresholds: torch.Tensor, are_probabilities: bool) -> torch.Tensor:
    """Return the confidence (2, n) of values (channels, n) of independent structures, see `confidence_of`."""
    probabilities = values if are_probabilities else values.sigmoid()
    winners = winners_of(values, thresholds)
    winner_probability = probabilities.gather(0, (winners - 1).clamp(min=0)[None])[0]
    confidence = torch.where(winners > 0, winner_probability, 1 - probabilities.amax(dim=0))
    entropy = -torch.xlogy(probabilities, probabilities) - torch.xlogy(1 - probabilities, 1 - probabilities)
    return torch.stack([confidence, entropy.amax(dim=0) / log(2)])


def _flat_index(values: torch.Tensor, i: torch.Tensor, j: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (i * values.shape[2] + j) * values.shape[3] + k


def _corner_weights(fractions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the interpolation weights of a cell's eight corners, each (n,), at n points; see `interpolated`."""
    i, j, k = ((1 - axis, axis) for axis in fractions)
    return [a * b * c for a, b, c in product(i, j, k)]


def _corner_offsets(values: torch.Tensor) -> list[int]:
    """Return the difference in flat index between each of a cell's eight corners and its lower corner."""
    length_j, length_k = values.shape[2:]
    return [(i * length_j + j) * length_k + k for i, j, k in product((0, 1), repeat=3)]
