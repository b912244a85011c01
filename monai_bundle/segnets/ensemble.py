"""Several trainings of one network, asked together."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class Ensemble(nn.Module):
    """Averages the softmax of several networks of one kind, e.g. of the folds of a cross-validation; for inference.

    Takes the place of the network in a bundle's config, so that a bundle with an ensemble is a bundle like any other:

        network_def:
          _target_: segnets.Ensemble
          members: 5
          in_channels: 1
          network: {_target_: segnets.UNet, spatial_dims: 3, in_channels: 1, out_channels: 3}

    Its weights in one file are made by `segnets.training.weights.merge_checkpoints`.

    Args:
        network: copied for each member.
        members: how many.
        in_channels: of the network, where the rest of a config refers to `network_def#in_channels`.
    """

    def __init__(self, network: nn.Module, members: int, in_channels: int | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(network) for _ in range(members))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logarithm of the mean probability (N, K, *spatial) of each class; as good as logits, for its softmax is it.

        Args:
            image: (N, C, *spatial).
        """
        total = torch.full((1,), -math.inf, device=image.device)
        for member in self.members:
            # one after the other, for all logits at once may not fit
            total = torch.logaddexp(total, torch.log_softmax(member(image).float(), dim=1))
        return total - math.log(len(self.members))
