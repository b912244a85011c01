"""Costs of networks, kept on disk: to count one, torch imports its compiler, two seconds of each process."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, astuple
from functools import lru_cache
from pathlib import Path

import torch

from napari_seg.formats.atomic import atomic_write
from napari_seg.inference.backends import cost
from napari_seg.inference.backends.cache_folder import cache_dir
from napari_seg.inference.backends.cost import NetworkCost, network_cost
from napari_seg.inference.backends.network_key import structure_digest

_TOO_LARGE = 2**63
"""Limit of the numbers of a cost, which no network reaches."""


def cached_cost(network: torch.nn.Module, window: torch.Tensor) -> NetworkCost:
    """Return the cost of a window as `network_cost` does, from the disk if it was counted before.

    Args:
        network: in evaluation mode.
        window: (1, C, *size), in main memory; its values matter only if the network is run.
    """
    folder, structure = cache_dir(), structure_digest(network)
    if folder is None or structure is None:
        return network_cost(network, window)
    key = f"{torch.__version__} {_digest_of_counting()} {tuple(window.shape)} {structure}"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, RecursionError):  # missing or damaged
        known = NetworkCost(**json.loads(path.read_text()))
        *numbers, operations = astuple(known)
        is_whole = all(type(value) is int and 0 <= value < _TOO_LARGE for value in numbers)
        if known.classes > 0 and is_whole and type(operations) is str:
            return known
    counted = network_cost(network, window)
    with suppress(OSError):  # a folder that can't be written to
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(asdict(counted)))
    return counted


@lru_cache(maxsize=1)
def _digest_of_counting() -> str:
    return hashlib.sha256(Path(cost.__file__).read_bytes()).hexdigest()
