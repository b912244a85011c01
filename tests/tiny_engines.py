"""Build a small trainer and validator of MONAI for tests of the handlers that report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.annotation import AsLabelsd
from segnets.metrics import CaseMetric, Dice
from segnets.training.history import History
from segnets.training.preview import WorstBest

NAMES = ("front", "back")


def case(n: int) -> dict[str, Any]:
    """Return a box of class 1 next to one of class 2, with very different intensities in each case."""
    label = torch.zeros(1, 8, 10, 6)
    label[:, 1:7, 1:4, 1:5], label[:, 1:7, 5:9, 2:4] = 1, 2
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    return {
        "name": f"case_{n:02d}",
        "image": MetaTensor(label * (n + 1), affine=affine),
        "label": MetaTensor(label, affine=affine),
    }


def engines(folder: Path, *, epochs: int, extra: list[Any] | None = None) -> tuple[SupervisedTrainer, History]:
    """Build a small run: 3 steps per epoch on one case, and 4 validation cases after every second epoch."""
    torch.manual_seed(3)
    network = nn.Conv3d(1, 3, 3, padding=1)
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader([case(n) for n in range(4)], batch_size=1),
        network=network,
        postprocessing=AsLabelsd(),
        key_val_metric={"val_mean_dice": CaseMetric(Dice(2))},
        val_handlers=[WorstBest(folder / "worst_best.png", count=1)],
    )
    history = History(folder / "history.jsonl", validator, NAMES)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader([case(2)] * 6, batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.02),
        loss_function=lambda logits, label: nn.functional.cross_entropy(logits, label[:, 0].long()),
        train_handlers=[ValidationHandler(2, validator), history, *(extra or [])],
    )
    return trainer, history
