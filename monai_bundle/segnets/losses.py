"""Compute losses from what is annotated alone."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from segnets.annotation import IGNORED, AbsentSets, Parts, absent_classes, is_complete, region_masks
from segnets.errors import TrainingError

_NEVER = -1e4
"""Logit of a class that is certainly not there: its probability is 0 and it has no gradient."""


class SoftDiceBCELoss(nn.Module):
    """Compute the sum of Dice and binary cross-entropy of regions whose targets are fractions.

    Both are smallest where the probabilities equal the fractions. The Dice is a semimetric (Wang et al. 2023,
    arXiv:2303.16296); the usual one, with the product of both, would push probabilities to 0 and 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, soft_label=True)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (N, K, *spatial) for fractions (N, K, *spatial)."""
        return self.dice(logits, target) + binary_cross_entropy_with_logits(logits, target)


class MaskedLoss(nn.Module):
    """Compute a loss without ignored voxels, and without classes that are not annotated in a case.

    Each case's annotated voxels alone enter the loss: MONAI's losses of Dice, cross-entropy, focal, Tversky and their
    sums do not depend on where voxels lie. A loss of distances or of shapes gets the whole case only if no voxel of it
    is ignored.

    In a case without annotations of some classes, background means "background or one of these". Their probabilities
    are added to that of background (the marginal loss of Shi et al. 2021, Medical Image Analysis 70:101979), so how the
    network divides the sum among them does not matter. Regions, which are independent of each other, are left out.

    Without such voxels, or such classes, the result is that of the loss alone, to the last bit.

    Args:
        loss: one of MONAI's losses with a softmax, called with logits (N, K, *spatial) and label maps
            (N, 1, *spatial); with `parts` one with a sigmoid, called with masks (N, K, *spatial) in their place. The
            losses of cases are averaged, unless it takes a batch as one case (`batch=True`).
        parts: see `segnets.annotation.Parts`; None: classes exclude each other.
        absent: see `segnets.annotation.AbsentSets`.
        soft: labels are fractions (N, K, *spatial), which the loss gets as they are.

    Raises:
        TrainingError: "network.regions", MONAI's `DiceCELoss` with several regions: its cross-entropy has a softmax;
            "labels.soft", a focal loss for fractions.
    """

    def __init__(
        self, loss: nn.Module, parts: Parts | None = None, absent: AbsentSets = (), soft: bool = False
    ) -> None:
        super().__init__()
        if parts is not None and isinstance(loss, DiceCELoss) and len({n for part in parts for n in part}) > 1:
            raise TrainingError(
                "network.regions",
                "found cross-entropy with a softmax (DiceCELoss) for classes that overlap; expected a loss with a "
                "sigmoid: choose loss_dice, loss_focal, loss_dice_focal, loss_generalised_dice, loss_tversky or none",
            )
        if soft and any(isinstance(module, FocalLoss | DiceCELoss) for module in loss.modules()):
            raise TrainingError(
                "labels.soft",
                f"found {type(loss).__name__} for labels that are fractions; it is not smallest where probabilities "
                "equal the fractions; expected the loss of soft.yaml, loss_dice, loss_generalised_dice or loss_tversky",
            )
        self.loss = loss
        self.soft = soft
        self.parts = parts
        self.absent = absent
        self.pools_batch = any(getattr(module, "batch", False) for module in loss.modules())

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (N, K, *spatial) for label maps (N, 1, *spatial), see `segnets.annotation`."""
        if self.soft:
            return self.loss(logits, label)
        if is_complete(label, self.parts):
            return self.loss(logits, self._target(label))
        cases = [self._annotated(logits[n : n + 1], label[n : n + 1]) for n in range(len(logits))]
        if self.pools_batch:
            pooled = [torch.cat([part.flatten(2) for part in parts], dim=2) for parts in zip(*cases, strict=True)]
            return self._loss(pooled[0], pooled[1])
        return torch.stack([self._loss(*case) for case in cases]).mean()

    def _loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of annotated voxels; 0, with gradients of 0, if there are none."""
        return self.loss(logits, target).mean() if target.numel() else logits.sum()

    def _target(self, label: torch.Tensor) -> torch.Tensor:
        return label if self.parts is None else region_masks(label, self.parts)

    def _annotated(self, logits: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (1, K, ...) and target of one case's annotated voxels, without absent classes."""
        absent = absent_classes(label, self.absent, self.parts)
        annotated = label[0, 0] != IGNORED
        if not annotated.all():
            logits, label = logits[:, :, annotated], label[:, :, annotated]
        target = self._target(label.clamp(min=0))
        if absent:
            logits = logits.clone()
            if self.parts is None:
                logits[:, 0] = logits[:, [0, *absent]].logsumexp(1)
                logits[:, absent] = _NEVER
                target = target * ~torch.isin(target, torch.tensor(absent, device=target.device))
            else:
                channels = [number - 1 for number in absent]
                logits[:, channels], target[:, channels] = _NEVER, 0
        return logits, target
