"""Embedding of a scan: numbers that are alike for scans that a network sees as alike.

It consists of the feature map of the lowest resolution, the last one that the network computes, pooled over the
voxels of a window (mean and maximum of each channel) and averaged over windows. Windows without overlap suffice, and of
a large scan a few of them, so that an embedding costs a fraction of a segmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.inference.backends.base import autocast
from napari_seg.inference.region import RegionTask, blaming
from napari_seg.inference.settings import RegionSettings
from napari_seg.localise import Region
from napari_seg.volume import Volume

MAX_WINDOWS = 8
"""Windows of a region that are looked at, spread over it."""


def embedding_of(volume: Volume, regions: list[Region], settings: RegionSettings) -> NDArray[np.float32] | None:
    """Return the embedding (F,) of a scan; None if the network has no feature map of a lower resolution.

    Args:
        volume: the scan.
        regions: parts of it that the network sees.
        settings: settings of a run with windows.

    Raises:
        BundleError: `bundle.preprocessing` or `bundle.network`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, the image or a window of it does not fit the budget.
    """
    assert settings.windows is not None
    found: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for region in regions:
            task = RegionTask.prepare(volume, region.grid, settings, settings.windows, 0)
            windows = task.plan("torch").windows
            starts = [start for start in product(*windows.starts) if start not in windows.empty]
            padded, model = windows.pad(task.image), settings.model
            for number in np.unique(np.linspace(0, len(starts) - 1, min(MAX_WINDOWS, len(starts))).round().astype(int)):
                window = windows.cut(padded, starts[number])[None].to(model.device)
                with blaming(settings.bundle, model.device), autocast(model.dtype, model.device):
                    features = deepest_features(model.network, window)
                if features is None:
                    return None
                found.append(features)
    return np.mean(found, axis=0, dtype=np.float32) if found else None


def deepest_features(network: torch.nn.Module, window: torch.Tensor) -> NDArray[np.float32] | None:
    """Return the pooled features (2 C,) of a network's deepest feature map; None if none is smaller than the window.

    A map of a single voxel is the result of global pooling, such as in squeeze-and-excitation, and does not count.

    Args:
        network: the network.
        window: (1, C, *size).
    """
    fewest, pooled = prod(window.shape[2:]), None

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal fewest, pooled
        if not isinstance(output, torch.Tensor) or output.ndim not in (4, 5) or len(output) != 1:
            return
        voxels = prod(output.shape[2:])
        if 1 < voxels < fewest or (pooled is not None and voxels == fewest):
            values = output[0].float().flatten(1)
            fewest, pooled = voxels, torch.cat([values.mean(1), values.amax(1)])

    with _watched(network, look):
        network(window)
    return None if pooled is None else np.nan_to_num(pooled.cpu().numpy().astype(np.float32))


@contextmanager
def _watched(network: torch.nn.Module, look: Any) -> Iterator[None]:
    """Call a function with the output of each module of a network."""
    handles = []
    try:
        for module in network.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_hook(look))
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe_intensities(volume: Volume) -> NDArray[np.float32]:
    """Return a coarse embedding for any network: quantiles of the standardised intensities, extents and voxel sizes.

    Args:
        volume: the scan.
    """
    values = []
    for channel in volume.array:
        sample = channel[tuple(slice(None, None, max(n // 64, 1)) for n in channel.shape)].astype(np.float64)
        spread = float(sample.std()) or 1.0
        values.append((np.percentile(sample, (1, 5, 25, 50, 75, 95, 99)) - sample.mean()) / spread)
    return np.concatenate([*values, np.log(volume.grid.size_mm), np.log(volume.grid.spacing_mm)]).astype(np.float32)
