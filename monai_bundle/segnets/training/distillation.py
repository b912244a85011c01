"""Train a network on the probabilities of another one, its teacher, besides the labels (knowledge distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines.utils import default_prepare_batch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from segnets.data.cache import fingerprint
from segnets.errors import TrainingError
from segnets.training.weights import read_state


class TaughtBatch:
    """Prepare a batch whose targets are the labels, followed by the teacher's probabilities for the same images.

    The teacher sees each image with the augmentation with which the network sees it, so that the network learns the
    function of the teacher, not its results on the images of the data set alone (Beyer et al. 2022, arXiv:2106.05237).

    Args:
        teacher: network with the channels and the classes of the network that is trained.
        path: file of the teacher's weights, as in `segnets.training.weights.read_state`.
        device: device of the training.
        regions: the classes are regions with a sigmoid each, not classes with a softmax.
        amp: the teacher computes with mixed precision, in the type of `amp_dtype`.
        parts: number of parts that a batch is split into, to save memory.

    Attributes:
        fingerprint: hash of the teacher's weights.

    Raises:
        TrainingError: "weights.differ", the weights are those of another network; also the errors of `read_state`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        path: str | Path,
        device: torch.device | str,
        regions: bool = False,
        amp: bool | str = False,
        parts: int = 1,
    ) -> None:
        from segnets.training.trainer import amp_dtype

        state = read_state(path)
        try:
            teacher.load_state_dict(state)
        except RuntimeError as error:
            text = f"{path} holds the weights of another network than teacher_def ({str(error).splitlines()[0]})"
            raise TrainingError("weights.differ", f"{text}; expected those of {type(teacher).__name__}") from error
        self.fingerprint = fingerprint(state)
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.regions = regions
        self.parts = parts
        self.autocast = {
            "device_type": torch.device(device).type,
            "enabled": bool(amp),
            "dtype": amp_dtype(amp, device),
        }

    def __call__(
        self,
        batchdata: Mapping[str, torch.Tensor],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (N, C, *spatial) and targets (N, L + K, *spatial).

        Args:
            batchdata: "image" (N, C, *spatial) and "label" (N, L, *spatial).
            device: device of the result.
            non_blocking: see `torch.Tensor.to`.
            kwargs: further arguments of `torch.Tensor.to`.
        """
        batch = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        image, label = (x.as_tensor() if isinstance(x, MetaTensor) else x for x in batch)
        with torch.no_grad(), torch.autocast(**self.autocast):
            logits = torch.cat([self.teacher(part).float() for part in image.chunk(self.parts)])
        probabilities = logits.sigmoid() if self.regions else logits.softmax(1)
        return image, torch.cat([label.to(probabilities.dtype), probabilities], dim=1)


class DistillationLoss(nn.Module):
    """Compute the weighted mean of the loss of the labels and the cross-entropy with the teacher's probabilities.

    Voxels that are not annotated, and classes that are not annotated in a case, are learned from the teacher alone.

    Args:
        loss: called with logits (N, K, *spatial) and labels (N, L, *spatial).
        share: weight of the teacher, from 0 to 1; that of the labels is the rest.
        regions: see `TaughtBatch`.
    """

    def __init__(self, loss: nn.Module, share: float, regions: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.share = share
        self.regions = regions

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits (N, K, *spatial) for targets of `TaughtBatch`."""
        label, probabilities = target[:, : -logits.shape[1]], target[:, -logits.shape[1] :]
        if self.regions:
            taught = binary_cross_entropy_with_logits(logits, probabilities)
        else:
            taught = cross_entropy(logits, probabilities)
        return (1 - self.share) * self.loss(logits, label).mean() + self.share * taught
