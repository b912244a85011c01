"""Mirror images and shifted copies of each window: their average at test time, or one of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import torch

from napari_seg.inference.backends.base import Run


def averaged(run: Run, mirror_axes: Sequence[int], shifts: int = 1, is_softmax: bool = False) -> Run:
    """Return a function that averages logits over mirror images and shifted copies of each window.

    A network with strides samples a window on a lattice of every 2nd to every 16th voxel; a shifted copy falls on
    another lattice. Voxels that a shift moves out of the window are averaged over fewer copies.

    Args:
        run: called shifts * 2 ** len(mirror_axes) times for each batch.
        mirror_axes: spatial axes that may be reversed, all their combinations; none along which left and right carry
            meaning for the network.
        shifts: number of copies, shifted by 0 to shifts - 1 voxels along the diagonal of the axes that are long enough.
        is_softmax: average probabilities, where classes exclude each other, and return their logarithms.
    """
    flips = [[2 + axis for axis in some] for n in range(len(mirror_axes) + 1) for some in combinations(mirror_axes, n)]
    if len(flips) == 1 and shifts == 1:
        return run

    def run_averaged(windows: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis in range(2, windows.ndim) if windows.shape[axis] > 8 * shifts]
        total: torch.Tensor | None = None
        for shift, flipped in product(range(shifts), flips):
            logits = run(_shifted(windows, axes, shift).flip(flipped)).flip(flipped)
            logits = logits.float().softmax(1) if is_softmax else logits
            if total is None:
                total = logits.to(torch.float32, copy=True)  # a backend may reuse the memory of its logits
            else:
                _without_ends(total, axes, 0, shift).add_(_without_ends(logits, axes, shift, 0))
        assert total is not None
        total.div_(_copies_per_voxel(total.shape, axes, shifts).to(total.device) * len(flips))
        return total.clamp_(min=torch.finfo(torch.float32).tiny).log_() if is_softmax else total

    return run_averaged


def displaced(run: Run, shift: int, reversed_axes: Sequence[int]) -> Run:
    """Return a function whose network sees each window shifted and reversed; the logits are moved back.

    Args:
        run: called once for each batch.
        shift: voxels along the diagonal of the axes that are long enough; the last voxels repeat the logits before.
        reversed_axes: spatial axes.
    """
    if not shift and not reversed_axes:
        return run
    flipped = [2 + axis for axis in reversed_axes]

    def run_displaced(windows: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis in range(2, windows.ndim) if windows.shape[axis] > 8 * shift]
        logits = run(_shifted(windows, axes, shift).flip(flipped)).flip(flipped)
        return _shifted(logits, axes, -shift)

    return run_displaced


def _shifted(windows: torch.Tensor, axes: Sequence[int], shift: int) -> torch.Tensor:
    """Return windows with all voxels moved towards the far ends, or towards the near ones; the ends are repeated."""
    for axis in axes if shift else ():
        index = (torch.arange(windows.shape[axis]) - shift).clamp(0, windows.shape[axis] - 1)
        windows = windows.index_select(axis, index.to(windows.device))
    return windows


def _without_ends(tensor: torch.Tensor, axes: Sequence[int], first: int, last: int) -> torch.Tensor:
    """Return a view without the first and last voxels of some axes."""
    for axis in axes:
        tensor = tensor.narrow(axis, first, tensor.shape[axis] - first - last)
    return tensor


def _copies_per_voxel(shape: Sequence[int], axes: Sequence[int], shifts: int) -> torch.Tensor:
    """Return how many shifted copies hold each voxel; broadcasts over batches and classes."""
    copies = torch.ones([n if axis in axes else 1 for axis, n in enumerate(shape)])
    for shift in range(1, shifts):
        _without_ends(copies, axes, 0, shift).add_(1)
    return copies
