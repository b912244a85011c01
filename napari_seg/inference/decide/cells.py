"""What lies in the cells between eight voxels: where one class wins, which can win at all, and interpolated logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import log

import torch

FEW = 4
"""Classes that are looked at first where classes meet."""

LOGITS_AT_ONCE = 4_000_000
"""Logits, classes times voxels, interpolated at once; a few float32 maps of this many are held."""


def winners_of(logits: torch.Tensor, cuts: torch.Tensor | None) -> torch.Tensor:
    """(...) the winning class of logits (channels, ...).

    Args:
        logits: of each class, background first; with `cuts` of each structure, each for itself.
        cuts: (channels,) above which a structure is there. Where several are, the last one wins, and where none is, 0,
            so that channel n stands for class n + 1.
    """
    if cuts is None:
        return logits.max(dim=0).indices  # many times quicker than argmax along the first axis
    winner = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for channel, cut in enumerate(cuts):
        winner[logits[channel] > cut] = channel + 1
    return winner


def unanimous(winner: torch.Tensor) -> torch.Tensor:
    """Of each cell, one fewer along each axis, the class that wins at all eight corners; -1 where they differ.

    Args:
        winner: (I, J, K) int16.
    """
    low = high = winner
    for axis in range(3):
        near, far = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        low, high = torch.minimum(low[near], low[far]), torch.maximum(high[near], high[far])
    return torch.where(low == high, low, -1)


def interpolated_winner(
    logits: torch.Tensor, cells: torch.Tensor, lower: Sequence[torch.Tensor], share: Sequence[torch.Tensor]
) -> torch.Tensor:
    """(n,) the class that wins at points.

    Interpolation stays between a class's least and greatest corner, so one whose greatest lies below another's least
    can't win in a cell. In most cells that leaves two or three of however many classes.

    Args:
        logits: (classes, I, J, K).
        cells: (m, 3) lower corners of the cells in which points lie.
        lower: see `interpolated`.
        share: see `interpolated`.
    """
    winners = torch.empty_like(lower[0])
    classes, corners, alone = _contenders(logits, cells)
    column = torch.full((logits[0].numel(),), -1, dtype=torch.int64, device=logits.device)
    column[_flat_index(logits, *cells.T)] = torch.arange(len(cells), device=logits.device)
    column = column[_flat_index(logits, *lower)]
    for points in alone[column].nonzero()[:, 0].split(LOGITS_AT_ONCE // corners[0].numel()):
        cell = column[points]
        shares = torch.stack(_corner_shares([axis[points] for axis in share]), dim=1)
        best = torch.bmm(corners[cell], shares[..., None])[..., 0].argmax(dim=1, keepdim=True)
        winners[points] = classes[cell].gather(1, best)[:, 0]
    rest = (~alone[column]).nonzero()[:, 0]
    found = [part.max(dim=0).indices for part in interpolated(logits, *([a[rest] for a in b] for b in (lower, share)))]
    if found:
        winners[rest] = torch.cat(found)
    return winners


def _contenders(logits: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The few classes that reach highest in each cell.

    Args:
        logits: (classes, I, J, K).
        cells: (n, 3) their lower corners.

    Returns:
        (n, few) the classes, ascending; (n, few, 8) their logits at the cell's corners; (n,) whether no other can win.
    """
    count = min(FEW, len(logits))
    flat, offsets = logits.reshape(len(logits), -1), _corner_offsets(logits)
    classes, corners, alone = [], [], []
    for first in _flat_index(logits, *cells.T).split(max(1, LOGITS_AT_ONCE // (8 * len(logits)))):
        # a class that a network rules out by minus infinity, times a share of 0, would be no number
        values = torch.stack([flat.index_select(1, first + offset) for offset in offsets]).clamp_(-1e30, 1e30)
        most = values.amax(dim=0)
        alone.append((most >= values.amin(dim=0).amax(dim=0)).sum(dim=0) <= count)
        highest = most.topk(count, dim=0).indices.sort(dim=0).values
        classes.append(highest.T)
        corners.append(values.gather(1, highest.expand(8, -1, -1)).permute(2, 1, 0))
    return torch.cat(classes), torch.cat(corners), torch.cat(alone)


def interpolated_certainty(
    logits: torch.Tensor,
    cuts: torch.Tensor | None,
    lower: Sequence[torch.Tensor],
    share: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) the winning class at points, see `winners_of`, and (2, n) how certain it is, see `certainty_of`."""
    found = [(winners_of(part, cuts), certainty_of(part, cuts)) for part in interpolated(logits, lower, share)]
    if not found:
        return torch.empty_like(lower[0]), logits.new_empty((2, 0))
    return torch.cat([winners for winners, _ in found]), torch.cat([certain for _, certain in found], dim=1)


def interpolated(
    maps: torch.Tensor, lower: Sequence[torch.Tensor], share: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """(C, some) the values at points, some points at a time.

    Args:
        maps: (C, I, J, K).
        lower: of each axis (n,) int64, the points' lower corners.
        share: of each axis (n,) float32, 0 to 1, how far they lie in their cell.
    """
    flat = maps.reshape(len(maps), -1)
    first = _flat_index(maps, *lower)
    step = max(1, LOGITS_AT_ONCE // len(flat))
    for begin in range(0, len(first), step):
        shares = _corner_shares([axis[begin : begin + step] for axis in share])
        total = torch.zeros((len(flat), len(shares[0])), device=maps.device)
        for part, offset in zip(shares, _corner_offsets(maps), strict=True):
            # a class that a network rules out by minus infinity, times a share of 0, would be no number
            total.addcmul_(flat.index_select(1, first[begin : begin + step] + offset).clamp_(-1e30, 1e30), part)
        yield total


def along_axes(maps: torch.Tensor, lower: Sequence[torch.Tensor], share: Sequence[torch.Tensor]) -> torch.Tensor:
    """(C, i, j, k) maps (C, I, J, K) interpolated at every combination of places along the three axes."""
    for axis, (near, part) in enumerate(zip(lower, share, strict=True), start=1):
        shape = [-1 if n == axis else 1 for n in range(4)]
        maps = torch.lerp(maps.index_select(axis, near), maps.index_select(axis, near + 1), part.reshape(shape))
    return maps


def certainty_of(logits: torch.Tensor, cuts: torch.Tensor | None) -> torch.Tensor:
    """(2, ...) of logits (channels, ...) the winner's probability, and the entropy as a share of the greatest.

    With `cuts`, see `winners_of`, probabilities are those of each structure being there or not; the entropy is that of
    the one that is least sure.
    """
    classes, shape = len(logits), logits.shape[1:]
    flat = logits.reshape(classes, -1)
    found = flat.new_empty((2, flat.shape[1]))
    step = max(1, LOGITS_AT_ONCE // classes)
    for begin in range(0, flat.shape[1], step):
        some = flat[:, begin : begin + step].clamp(-1e30, 1e30)
        if cuts is not None:
            found[:, begin : begin + step] = _certainty_of_structures(some, cuts)
            continue
        some = some - some.amax(dim=0)
        weights = some.exp()
        total = weights.sum(dim=0)
        found[0, begin : begin + step] = 1 / total
        entropy = total.log() - (weights * some).sum(dim=0) / total
        found[1, begin : begin + step] = entropy / max(log(classes), 1e-9)
    return found.reshape(2, *shape)


def _certainty_of_structures(logits: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
    """(2, n) of logits (channels, n), see `certainty_of`."""
    shares = logits.sigmoid()
    winner = winners_of(logits, cuts)
    chosen = shares.gather(0, (winner - 1).clamp(min=0)[None])[0]
    confidence = torch.where(winner > 0, chosen, 1 - shares.amax(dim=0))
    doubt = -torch.xlogy(shares, shares) - torch.xlogy(1 - shares, 1 - shares)
    return torch.stack([confidence, doubt.amax(dim=0) / log(2)])


def _flat_index(logits: torch.Tensor, i: torch.Tensor, j: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (i * logits.shape[2] + j) * logits.shape[3] + k


def _corner_shares(share: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What each of a cell's eight corners counts at points that lie so far in it along each axis, eight times (n,)."""
    i, j, k = ((1 - axis, axis) for axis in share)
    return [a * b * c for a, b, c in product(i, j, k)]


def _corner_offsets(logits: torch.Tensor) -> list[int]:
    """From a cell's lower corner to its eight corners, along an index over all three axes."""
    length_j, length_k = logits.shape[2:]
    return [(i * length_j + j) * length_k + k for i, j, k in product((0, 1), repeat=3)]
