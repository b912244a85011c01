"""Load a model of nnU-Net: its network with the weights of all folds, and how windows are laid."""

from __future__ import annotations

from functools import lru_cache

import torch

from napari_seg.bundles.model import Model
from napari_seg.bundles.nnunet.checkpoint import Checkpoint, load_weights, read_nnunet_checkpoint
from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.nnunet.network import build_network
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import BundleError, one_line


class FoldAverage(torch.nn.Module):
    """Networks of several folds as one, which returns the mean of their logits, as nnU-Net averages folds.

    Args:
        networks: at least two.
    """

    def __init__(self, networks: list[torch.nn.Module]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean logits (N, classes, *size) of windows (N, C, *size)."""
        total = self.networks[0](windows)
        for network in self.networks[1:]:
            total = total + network(windows)
        return total / len(self.networks)


class SliceNetwork(torch.nn.Module):
    """A network of slices that takes windows of one plane.

    Args:
        network: (N, C, J, K) -> (N, classes, J, K).
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes, 1, J, K) of windows (N, C, 1, J, K)."""
        return self.network(windows.squeeze(2)).unsqueeze(2)


def load_nnunet(bundle: Bundle, device: torch.device, dtype: torch.dtype) -> Model:
    """Return a model of nnU-Net; the last eight are kept in memory.

    Args:
        bundle: a `NnunetBundle`.
        device: where the network will run.
        dtype: number format of its computations.

    Raises:
        BundleError: `bundle.nnunet`, the network can't be built; `bundle.weights` or `bundle.weights_unsafe`, the
            weights are missing, damaged, no plain data, or do not fit the network.
    """
    assert isinstance(bundle, NnunetBundle)
    paths = [bundle.root / fold / bundle.checkpoint for fold in bundle.folds]
    states = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)
    return _load(bundle, states, device, dtype)


@lru_cache(maxsize=8)
def _load(bundle: NnunetBundle, states: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Model:
    """Load a model; `states` tells a model that changed on disk from the one in memory."""
    configuration = bundle.configuration
    networks: list[torch.nn.Module] = []
    weights_sha256: dict[str, str] = {}
    mirror_axes: tuple[int, ...] | None = None
    for fold in bundle.folds:
        checkpoint = read_nnunet_checkpoint(bundle.root / fold / bundle.checkpoint)
        _check_configuration(bundle, fold, checkpoint)
        network = _network(bundle)
        load_weights(network, checkpoint, f"{fold} of {one_line(bundle.root.name, 120)!r}")
        networks.append(network)
        weights_sha256[fold] = checkpoint.sha256
        mirror_axes = checkpoint.mirror_axes if mirror_axes is None else mirror_axes  # those of the first fold
    assert mirror_axes is not None
    network = networks[0] if len(networks) == 1 else FoldAverage(networks)
    size, axes = configuration.patch_size, mirror_axes
    if configuration.is_2d:
        network, size, axes = SliceNetwork(network), (1, *size), tuple(axis + 1 for axis in axes)
    if axes and max(axes) > 2:
        raise BundleError(
            "bundle.weights",
            f"the checkpoint of {one_line(bundle.root.name, 120)!r} mirrors along axis {max(axes)}; expected axes of "
            "its network",
        )
    overlap = bundle.overlap
    windows = WindowSettings(
        (size[0], size[1], size[2]), (0.0 if configuration.is_2d else overlap, overlap, overlap), mode="nnunet"
    )
    network = network.to(device).eval()
    return Model(
        network,
        configuration,
        windows,
        device,
        dtype,
        bundle.output,
        mirror_axes=axes,
        weights_sha256=weights_sha256,
    )


def _check_configuration(bundle: NnunetBundle, fold: str, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another configuration, whose network may fit: its voxels would have another size."""
    found, expected = checkpoint.configuration, bundle.configuration.name
    if found and found != expected:
        raise BundleError(
            "bundle.nnunet",
            f"{fold} of {one_line(bundle.root.name, 120)!r} was trained as the configuration {one_line(found, 120)!r}, "
            f"not {expected!r} as the folder's name says; expected a folder as nnU-Net wrote it",
        )


def _network(bundle: NnunetBundle) -> torch.nn.Module:
    try:
        return build_network(bundle.configuration, "meta")
    except Exception as error:  # arguments that do not fit each other
        raise BundleError(
            "bundle.nnunet",
            f"the network of {one_line(bundle.root.name, 120)!r} can't be built from its plans "
            f"({one_line(f'{type(error).__name__}: {error}', 300)}); expected what nnU-Net v2 writes",
        ) from error
