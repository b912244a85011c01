"""What lies in the cells between eight voxels: where one class wins, which can win at all, and interpolated logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import log

import torch

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
    """Of each cell, one fewer along each axis, the class that wins at all eight corners; -1 where they differ."""
    low = high = winner.to(torch.int16)
    for axis in range(3):
        near, far = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        low, high = torch.minimum(low[near], low[far]), torch.maximum(high[near], high[far])
    return torch.where(low == high, low, -1).long()


def contenders(logits: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """The classes that can win anywhere in some cells, ascending.

    Interpolation stays between a class's least and greatest corner, so one whose greatest lies below another's least in
    every cell never wins.

    Args:
        logits: (classes, I, J, K).
        cells: (n, 3) their lower corners.
    """
    classes = len(logits)
    flat, offsets = logits.reshape(classes, -1), _corner_offsets(logits)
    first = _flat_index(logits, *cells.T)
    able = torch.zeros(classes, dtype=torch.bool, device=logits.device)
    step = max(1, LOGITS_AT_ONCE // classes)
    for begin in range(0, len(first), step):
        least = most = flat.index_select(1, first[begin : begin + step])
        for offset in offsets[1:]:
            corner = flat.index_select(1, first[begin : begin + step] + offset)
            least, most = torch.minimum(least, corner), torch.maximum(most, corner)
        able |= (most >= least.amax(dim=0)).any(dim=1)
    return able.nonzero()[:, 0]


def interpolated_winner(
    logits: torch.Tensor, contenders: torch.Tensor, lower: Sequence[torch.Tensor], share: Sequence[torch.Tensor]
) -> torch.Tensor:
    """(n,) the winning class at points.

    Args:
        logits: (classes, I, J, K).
        contenders: classes that can win there, ascending.
        lower: see `interpolated`.
        share: see `interpolated`.
    """
    if not len(contenders):  # no class contends where no classes meet
        return torch.empty_like(lower[0])
    some = logits if len(contenders) == len(logits) else logits[contenders]
    winners = [contenders[part.max(dim=0).indices] for part in interpolated(some, lower, share)]
    return torch.cat(winners) if winners else torch.empty_like(lower[0])


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
        parts = [axis[begin : begin + step] for axis in share]
        total = torch.zeros((len(flat), len(parts[0])), device=maps.device)
        for corner, offset in zip(product((0, 1), repeat=3), _corner_offsets(maps), strict=True):
            a, b, c = (part if far else 1 - part for part, far in zip(parts, corner, strict=True))
            # a class that a network rules out by minus infinity, times a share of 0, would be no number
            total.addcmul_(flat.index_select(1, first[begin : begin + step] + offset).clamp_(-1e30, 1e30), a * b * c)
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
    if cuts is not None:
        shares = logits.sigmoid()
        winner = winners_of(logits, cuts)
        chosen = shares.gather(0, (winner - 1).clamp(min=0)[None])[0]
        confidence = torch.where(winner > 0, chosen, 1 - shares.amax(dim=0))
        doubt = -torch.xlogy(shares, shares) - torch.xlogy(1 - shares, 1 - shares)
        return torch.stack([confidence, doubt.amax(dim=0) / log(2)])
    classes, shape = len(logits), logits.shape[1:]
    flat = logits.reshape(classes, -1)
    found = flat.new_empty((2, flat.shape[1]))
    step = max(1, LOGITS_AT_ONCE // classes)
    for begin in range(0, flat.shape[1], step):
        some = flat[:, begin : begin + step].clamp(-1e30, 1e30)
        some = some - some.amax(dim=0)
        weights = some.exp()
        total = weights.sum(dim=0)
        found[0, begin : begin + step] = 1 / total
        entropy = total.log() - (weights * some).sum(dim=0) / total
        found[1, begin : begin + step] = entropy / max(log(classes), 1e-9)
    return found.reshape(2, *shape)


def _flat_index(logits: torch.Tensor, i: torch.Tensor, j: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (i * logits.shape[2] + j) * logits.shape[3] + k


def _corner_offsets(logits: torch.Tensor) -> list[int]:
    """From a cell's lower corner to its eight corners, along an index over all three axes."""
    length_j, length_k = logits.shape[2:]
    return [(i * length_j + j) * length_k + k for i, j, k in product((0, 1), repeat=3)]
