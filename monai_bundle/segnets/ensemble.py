"""Average the predictions of several trainings of a network."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class Ensemble(nn.Module):
    """Average the softmax of several networks of one architecture, e.g. the folds of a cross-validation; for inference.

    It replaces the network in a bundle's config, so that a bundle with an ensemble is used like any other bundle:

        network_def:
          _target_: segnets.Ensemble
          members: 5
          in_channels: 1
          network: {_target_: segnets.UNet, spatial_dims: 3, in_channels: 1, out_channels: 3}

    `segnets.training.weights.merge_checkpoints` writes its weights into one file.

    Args:
        network: the network, which is copied for each member.
        members: number of members.
        in_channels: unused here; configs may refer to `network_def#in_channels`.
    """

    def __init__(self, network: nn.Module, members: int, in_channels: int | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(network) for _ in range(members))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean probability of each class, (N, K, *spatial); its softmax is that mean.

        Args:
            image: (N, C, *spatial).
        """
        total = torch.full((1,), -math.inf, device=image.device)
        for member in self.members:
            # accumulate one member at a time: the logits of all may not fit into memory
            total = torch.logaddexp(total, torch.log_softmax(member(image).float(), dim=1))
        return total - math.log(len(self.members))
