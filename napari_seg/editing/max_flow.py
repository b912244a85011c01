"""Maximum flow on a voxel grid, compiled by numba: the exact solver of `min_cut`.

The algorithm is that of Boykov and Kolmogorov, "An experimental comparison of min-cut/max-flow algorithms for energy
minimization in vision" (IEEE TPAMI 26(9), 2004). Two search trees grow from the source and from the sink. Where they
touch, flow is pushed along the path between the roots. Nodes behind a saturated edge are orphans: each looks for a new
parent in its tree, or becomes free. The trees are kept between the paths, which makes the method fast on images.

Nodes are voxels with up to six neighbours each. Capacities are integers, so that the result is the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

FREE, SOURCE, SINK = 0, 1, 2
"""Tree of a node; nodes that are not in the source's tree at the end lie on the side of the sink."""

_TERMINAL = 6
_NONE = 7
_FAR = 2**30


def _compiled(function: Any) -> Any:
    """Return a function compiled on its first call, from the cache on disk if that can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(nogil=True)(function)


@_compiled
def saturate(capacity, terminal, neighbours, tree):
    """Push the maximum flow and mark the tree of each node.

    Args:
        capacity: (N, 6) int32 capacities from each node to its neighbours; residuals on return. Directions 2a and
            2a + 1 lead forwards and backwards along axis a.
        terminal: (N,) int32 capacity from the source if positive, to the sink if negative; residuals on return.
        neighbours: (N, 6) int32 node in each direction; where there is none, a node without any capacity.
        tree: (N,) uint8 zeros; `FREE`, `SOURCE` or `SINK` on return.
    """
    count = terminal.size
    parent = np.full(count, _NONE, np.uint8)
    stamp = np.zeros(count, np.int32)
    distance = np.zeros(count, np.int32)
    is_queued = np.zeros(count, np.bool_)
    queue = np.empty(count, np.int32)  # ring: a node is in it at most once
    head = 0
    length = 0
    orphans = np.empty(count, np.int32)
    for n in range(count):
        if terminal[n] != 0:
            tree[n] = SOURCE if terminal[n] > 0 else SINK
            parent[n] = _TERMINAL
            distance[n] = 1
            queue[length] = n
            is_queued[n] = True
            length += 1
    time = np.int32(0)
    current = -1
    while True:
        if current < 0 or tree[current] == FREE:
            current = -1
            while length and current < 0:
                n = queue[head]
                head = head + 1 if head + 1 < count else 0
                length -= 1
                is_queued[n] = False
                if tree[n] != FREE:
                    current = n
            if current < 0:
                break
        # grow the tree of the current node until it touches the other tree
        p = current
        mine = tree[p]
        from_node = -1
        from_direction = 0
        for d in range(6):
            q = neighbours[p, d]
            if (capacity[p, d] if mine == SOURCE else capacity[q, d ^ 1]) <= 0:
                continue
            if tree[q] == FREE:
                tree[q] = mine
                parent[q] = d ^ 1
                stamp[q] = stamp[p]
                distance[q] = distance[p] + 1
                if not is_queued[q]:
                    end = head + length
                    queue[end if end < count else end - count] = q
                    length += 1
                    is_queued[q] = True
            elif tree[q] != mine:
                if mine == SOURCE:
                    from_node, from_direction = p, d
                else:
                    from_node, from_direction = q, d ^ 1
                break
            elif stamp[q] <= stamp[p] and distance[q] > distance[p]:
                parent[q] = d ^ 1
                stamp[q] = stamp[p]
                distance[q] = distance[p] + 1
        if from_node < 0:
            current = -1
            continue
        time += np.int32(1)

        # flow along the path through the edge that was found
        to_node = neighbours[from_node, from_direction]
        flow = capacity[from_node, from_direction]
        x = from_node
        while parent[x] != _TERMINAL:
            y = neighbours[x, parent[x]]
            flow = min(flow, capacity[y, parent[x] ^ 1])
            x = y
        flow = min(flow, terminal[x])
        x = to_node
        while parent[x] != _TERMINAL:
            flow = min(flow, capacity[x, parent[x]])
            x = neighbours[x, parent[x]]
        flow = min(flow, -terminal[x])

        orphan_count = 0
        capacity[from_node, from_direction] -= flow
        capacity[to_node, from_direction ^ 1] += flow
        x = from_node
        while parent[x] != _TERMINAL:
            d = parent[x]
            y = neighbours[x, d]
            capacity[x, d] += flow
            capacity[y, d ^ 1] -= flow
            if capacity[y, d ^ 1] == 0:
                parent[x] = _NONE
                orphans[orphan_count] = x
                orphan_count += 1
            x = y
        terminal[x] -= flow
        if terminal[x] == 0:
            parent[x] = _NONE
            orphans[orphan_count] = x
            orphan_count += 1
        x = to_node
        while parent[x] != _TERMINAL:
            d = parent[x]
            y = neighbours[x, d]
            capacity[x, d] -= flow
            capacity[y, d ^ 1] += flow
            if capacity[x, d] == 0:
                parent[x] = _NONE
                orphans[orphan_count] = x
                orphan_count += 1
            x = y
        terminal[x] += flow
        if terminal[x] == 0:
            parent[x] = _NONE
            orphans[orphan_count] = x
            orphan_count += 1

        # each orphan finds a new parent or becomes free
        while orphan_count:
            orphan_count -= 1
            x = orphans[orphan_count]
            mine = tree[x]
            best = _NONE
            nearest = _FAR
            for d in range(6):
                q = neighbours[x, d]
                if tree[q] != mine:
                    continue
                if (capacity[q, d ^ 1] if mine == SOURCE else capacity[x, d]) <= 0:
                    continue
                y = q  # is its root a terminal?
                steps = 0
                while True:
                    if stamp[y] == time:
                        steps += distance[y]
                        break
                    up = parent[y]
                    if up == _TERMINAL:
                        stamp[y] = time
                        distance[y] = 1
                        steps += 1
                        break
                    if up == _NONE:
                        steps = _FAR
                        break
                    steps += 1
                    y = neighbours[y, up]
                if steps >= _FAR:
                    continue
                if steps < nearest:
                    best = d
                    nearest = steps
                y = q
                while stamp[y] != time:
                    stamp[y] = time
                    distance[y] = steps
                    steps -= 1
                    y = neighbours[y, parent[y]]
            if best != _NONE:
                parent[x] = best
                stamp[x] = time
                distance[x] = nearest + 1
                continue
            tree[x] = FREE
            for d in range(6):
                q = neighbours[x, d]
                if tree[q] != mine:
                    continue
                if not is_queued[q] and (capacity[q, d ^ 1] if mine == SOURCE else capacity[x, d]) > 0:
                    end = head + length
                    queue[end if end < count else end - count] = q
                    length += 1
                    is_queued[q] = True
                if parent[q] == d ^ 1:
                    parent[q] = _NONE
                    orphans[orphan_count] = q
                    orphan_count += 1
