"""Minimum cut of a block of voxels: the exact best balance between the evidence of each voxel and a short border.

Two solvers find the same minimum: `max_flow`, compiled by numba, and SciPy's where numba is not installed, which is
about ten times slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS = 256
"""Integer steps of one unit of evidence; both solvers compute in integers, so that their results agree exactly."""

_MAX_EVIDENCE = 2**26
_MAX_WEIGHT = 2**20


def has_fast_solver() -> bool:
    """Return whether the compiled solver can be used; numba is loaded if it is installed."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def min_cut(
    evidence: NDArray[np.floating], weights: tuple[NDArray[np.floating], ...], *, fast: bool | None = None
) -> NDArray[np.bool_]:
    """Return the foreground that minimises the cost of a cut.

    The cost is the sum of `-evidence` over the foreground, and of the weights of the edges between foreground and
    background. Of several minima the smallest foreground is returned.

    Args:
        evidence: (I, J, K) log odds that a voxel is foreground; plus and minus infinity decide it.
        weights: for each axis, the cost to separate neighbours along it: (I - 1, J, K), (I, J - 1, K), (I, J, K - 1).
        fast: whether to use the compiled solver; None to use it if numba is installed.
    """
    foreground = evidence == np.inf
    graph = _graph(evidence, weights, foreground)
    if graph.terminal.any():
        solve = _by_numba if (has_fast_solver() if fast is None else fast) else _by_scipy
        foreground[graph.is_node] = solve(graph)
    return foreground


@dataclass(frozen=True, eq=False)
class _Graph:
    """Graph of the N voxels that are not decided, and a last node that stands for all missing neighbours.

    Attributes:
        is_node: (I, J, K) voxels that are not decided.
        terminal: (N + 1,) capacity from the source if positive, to the sink if negative.
        neighbours: (N + 1, 6) nodes forwards and backwards along each axis.
        capacity: (N + 1, 6) capacities of the edges to them.
    """

    is_node: NDArray[np.bool_]
    terminal: NDArray[np.int32]
    neighbours: NDArray[np.int32]
    capacity: NDArray[np.int32]


def _graph(
    evidence: NDArray[np.floating], weights: tuple[NDArray[np.floating], ...], foreground: NDArray[np.bool_]
) -> _Graph:
    is_node = np.isfinite(evidence)
    count = int(np.count_nonzero(is_node))
    number = np.full(tuple(n + 2 for n in evidence.shape), count, np.int32)
    inside = (slice(1, -1),) * 3
    number[inside][is_node] = np.arange(count, dtype=np.int32)
    sign = np.zeros(number.shape, np.int8)  # of decided voxels: their edges end at the source or the sink
    sign[inside][~is_node] = -1
    sign[inside][foreground] = 1
    limit = _MAX_EVIDENCE / STEPS
    terminal = np.zeros(count + 1, np.int32)
    terminal[:count] = np.rint(np.clip(evidence[is_node], -limit, limit) * STEPS)
    neighbours = np.full((count + 1, 6), count, np.int32)
    capacity = np.zeros((count + 1, 6), np.int32)
    for axis, weight in enumerate(weights):
        steps = np.rint(np.clip(weight, 0, _MAX_WEIGHT / STEPS) * STEPS).astype(np.int32)
        for side in (0, 1):
            cost = np.pad(steps, [(side, 1 - side) if n == axis else (0, 0) for n in range(3)])[is_node]
            shifted = tuple(slice(2 - 2 * side, -2 * side or None) if n == axis else s for n, s in enumerate(inside))
            node = number[shifted][is_node]
            terminal[:count] += cost * sign[shifted][is_node]
            neighbours[:count, 2 * axis + side] = node
            capacity[:count, 2 * axis + side] = np.where(node == count, 0, cost)
    return _Graph(is_node, terminal, neighbours, capacity)


def _by_numba(graph: _Graph) -> NDArray[np.bool_]:
    from napari_seg.editing.max_flow import SOURCE, saturate

    tree = np.zeros(graph.terminal.size, np.uint8)
    saturate(graph.capacity, graph.terminal, graph.neighbours, tree)
    return tree[:-1] == SOURCE


def _by_scipy(graph: _Graph) -> NDArray[np.bool_]:
    from scipy import sparse
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    count = graph.terminal.size
    source, sink = np.int32(count), np.int32(count + 1)
    first, direction = np.nonzero(graph.capacity)
    from_source, to_sink = np.flatnonzero(graph.terminal > 0), np.flatnonzero(graph.terminal < 0)
    rows: list[NDArray] = [first, np.full(from_source.size, source), to_sink]
    columns: list[NDArray] = [graph.neighbours[first, direction], from_source, np.full(to_sink.size, sink)]
    values: list[NDArray] = [graph.capacity[first, direction], graph.terminal[from_source], -graph.terminal[to_sink]]
    places = tuple(np.concatenate(part).astype(np.int32) for part in (rows, columns))
    capacity = sparse.csr_array((np.concatenate(values), places), shape=(count + 2, count + 2), dtype=np.int32)
    residual = capacity - maximum_flow(capacity, source, sink).flow
    residual.eliminate_zeros()
    foreground = np.zeros(count + 2, bool)
    foreground[breadth_first_order(residual, source, return_predecessors=False)] = True
    return foreground[: count - 1]
