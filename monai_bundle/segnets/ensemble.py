"""Average the predictions of several trainings of a network."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class Ensemble(nn.Module):
    """Average the probabilities of several networks of one architecture, e.g. the folds of a cross-validation.

    For inference it replaces the network in a bundle's config, so that the bundle is used like any other:

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
        regions: the channels are regions with a sigmoid each, not classes with a softmax.
    """

    def __init__(self, network: nn.Module, members: int, in_channels: int | None = None, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions
        self.members = nn.ModuleList(copy.deepcopy(network) for _ in range(members))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean probability of each class, (N, K, *spatial); its softmax is that mean.

        With regions it is the logit of the mean probability, whose sigmoid is that mean.

        Args:
            image: (N, C, *spatial).
        """
        total = torch.full((1,), -math.inf, device=image.device)
        background = total
        for member in self.members:
            # accumulate one member at a time: the logits of all may not fit into memory
            logits = member(image).float()
            if self.regions:
                total = torch.logaddexp(total, nn.functional.logsigmoid(logits))
                background = torch.logaddexp(background, nn.functional.logsigmoid(-logits))
            else:
                total = torch.logaddexp(total, torch.log_softmax(logits, dim=1))
        return total - background if self.regions else total - math.log(len(self.members))
