"""Costs of networks, kept on disk: to count one, torch imports its compiler, two seconds of each process."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict

import torch

from napari_seg.formats.atomic import atomic_write
from napari_seg.inference.backends.compiled_cache import cache_dir
from napari_seg.inference.backends.cost import NetworkCost, network_cost
from napari_seg.inference.backends.network_key import structure_digest
from napari_seg.version import __version__


def cached_cost(network: torch.nn.Module, window: torch.Tensor) -> NetworkCost:
    """Return the cost of a window as `network_cost` does, from the disk if it was counted before.

    Args:
        network: in evaluation mode.
        window: (1, C, *size), in main memory; its values matter only if the network is run.
    """
    folder, structure = cache_dir(), structure_digest(network)
    if folder is None or structure is None:
        return network_cost(network, window)
    key = f"{__version__} {torch.__version__} {tuple(window.shape)} {structure}"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):  # missing or damaged
        return NetworkCost(**json.loads(path.read_text()))
    cost = network_cost(network, window)
    with suppress(OSError):  # a folder that can't be written to
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(asdict(cost)))
    return cost
