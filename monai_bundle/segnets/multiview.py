"""Segment volumes with 2D networks over the slices of several views (2.5D)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import nn

from segnets.errors import TrainingError
from segnets.unet import UNet


class SliceView(nn.Module):
    """Apply a 2D network to each slice of a volume along one axis.

    Args:
        network: 2D network, from (M, C, height, width) to logits of the same size.
        axis: spatial axis perpendicular to the slices: 0, 1 or 2.
        chunk: number of slices per call of the network outside training, which limits the memory.
    """

    def __init__(self, network: nn.Module, axis: int, chunk: int) -> None:
        super().__init__()
        self.network = network
        self.axis = axis
        self.chunk = chunk

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return log probabilities (N, K, I, J, L) of an image (N, C, I, J, L)."""
        stack = image.movedim(self.axis + 2, 1)
        slices = stack.flatten(0, 1)
        logits: list[torch.Tensor] = []
        for some in slices.split(slices.shape[0] if self.training else self.chunk):
            scores = self.network(some)
            logits.append(scores if isinstance(scores, torch.Tensor) else scores[0])
        logp = F.log_softmax(torch.cat(logits), dim=1)
        return logp.unflatten(0, [image.shape[0], stack.shape[1]]).movedim(1, self.axis + 2)


class MultiView(nn.Module):
    """Segment a volume with 2D networks over axial, coronal and sagittal slices, and average their probabilities.

    In training each volume of a batch is processed in one randomly drawn view, and the loss is computed on this view
    alone: a step takes a third of the time, and each view learns from its own errors, not from the errors of the
    average. So each of three networks is trained on a third of the volumes. Validation and inference average all views.

    Args:
        spatial_dims: 3.
        in_channels: channels of the volume.
        out_channels: number of classes, background included.
        network: one 2D network for all views, or one for each; None: a `UNet` for all.
        views: axes perpendicular to the slices; in RAS+ 0 is sagittal, 1 coronal, 2 axial.
        chunk: number of slices per call of a network outside training, which limits the memory.

    Raises:
        TrainingError: `network.views`, the networks do not match the views, or the dimension is not 3.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        network: nn.Module | Sequence[nn.Module] | None = None,
        views: Sequence[int] = (0, 1, 2),
        chunk: int = 64,
    ) -> None:
        super().__init__()
        if network is None:
            network = UNet(2, in_channels, out_channels)
        networks = [network] * len(views) if isinstance(network, nn.Module) else list(network)
        if spatial_dims != 3 or len(networks) != len(views) or not set(views) <= {0, 1, 2}:
            raise TrainingError(
                "network.views",
                f"spatial_dims {spatial_dims}, views {list(views)} and {len(networks)} network(s): expected 3 "
                "dimensions, views among 0, 1 and 2, and one network for all views or one for each",
            )
        self.views = nn.ModuleList(SliceView(net, axis, chunk) for net, axis in zip(networks, views, strict=True))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return log probabilities (N, out_channels, I, J, L) of a volume (N, in_channels, I, J, L)."""
        if self.training:
            return self._random_views(image)
        views: list[torch.Tensor] = []
        for view in self.views:
            views.append(view(image))
        return torch.logsumexp(torch.stack(views), dim=0) - log(len(views))

    def _random_views(self, image: torch.Tensor) -> torch.Tensor:
        drawn = torch.randint(len(self.views), (image.shape[0],))
        volumes: list[torch.Tensor] = []
        for i in range(image.shape[0]):
            for n, view in enumerate(self.views):
                if n == int(drawn[i]):
                    volumes.append(view(image[i : i + 1]))
        return torch.cat(volumes)
