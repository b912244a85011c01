"""Members of a model: the networks of an ensemble, or one network that sees the windows shifted or reversed.

Their label maps for a scan show where the model is uncertain; see `disagreement`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.bundles.model import Model, RunStatistics
from napari_seg.bundles.nnunet.load import FoldAverage, SliceNetwork
from napari_seg.inference.scan import one_of, run_regions
from napari_seg.inference.settings import RegionSettings
from napari_seg.localise import Region
from napari_seg.progress import Progress
from napari_seg.volume import Volume

SHIFTS = (0, 1, 2, 3)
"""Voxels by which a network without members sees the windows shifted, along the diagonal, as `--tta shifts` does."""


@dataclass(frozen=True)
class Members:
    """Members of a model.

    Attributes:
        description: the members in words.
        settings: settings of a run by each member.
    """

    description: str
    settings: tuple[RegionSettings, ...]


def members_of(settings: RegionSettings) -> Members | None:
    """Return the members of a model; None if it has one network whose inferer does not slide windows.

    A network that was trained with mirror images sees the windows as they are, and reversed along each of the axes;
    any other network sees them shifted.

    Args:
        settings: settings of a run by the model.
    """
    windows = settings.windows
    if windows is not None:
        settings = replace(settings, windows=replace(windows, mirror_axes=(), shifts=1))
    if networks := _networks(settings.model.network):
        models = [_with_network(settings.model, network) for network in networks]
        return Members(f"{len(models)} networks", tuple(replace(settings, model=model) for model in models))
    if windows is None or settings.windows is None:
        return None
    if axes := settings.model.mirror_axes:
        views = [replace(settings.windows, reversed_axes=(axis,)) for axis in axes]
        description = f"the windows and {len(axes)} mirror images"
        return Members(description, tuple(replace(settings, windows=one) for one in (settings.windows, *views)))
    shifted = (replace(settings.windows, shift=shift) for shift in SHIFTS)
    description = f"windows shifted by {SHIFTS[0]} to {SHIFTS[-1]} voxels"
    return Members(description, tuple(replace(settings, windows=one) for one in shifted))


def label_maps(
    volume: Volume, regions: list[Region], members: Members, report: Progress
) -> Iterator[NDArray[np.unsignedinteger]]:
    """Yield the label map (I, J, K) of each member on the scan's grid.

    Args:
        volume: the scan.
        regions: parts of it that the network sees.
        members: the members.
        report: takes the progress over all members.
    """
    count = len(members.settings)
    for number, settings in enumerate(members.settings):
        yield run_regions(volume, regions, settings, one_of(report, number, count))[0]


def one_network(model: Model, number: int) -> Model:
    """Return a model with one of the networks that it averages, such as that of a fold."""
    return _with_network(model, _networks(model.network)[number])


def _networks(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the networks that another one averages; none if it averages none."""
    if isinstance(network, SliceNetwork):
        return [SliceNetwork(one).eval() for one in _networks(network.network)]
    if isinstance(network, FoldAverage):
        return list(network.networks)
    # `segnets.Ensemble`, whose module may be that of a bundle
    members = getattr(network, "members", None) if type(network).__name__ == "Ensemble" else None
    return list(members) if isinstance(members, torch.nn.ModuleList) else []


def _with_network(model: Model, network: torch.nn.Module) -> Model:
    """Return a model with one network of several; nothing that was measured of all of them counts for it."""
    return replace(model, network=network, statistics=RunStatistics(), others={})
