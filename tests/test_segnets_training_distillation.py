"""Test what a network learns from its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run  # noqa: F401 - makes segnets importable
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import nn

from segnets import Ensemble  # isort: skip
from segnets.annotation import IGNORED  # isort: skip
from segnets.errors import TrainingError  # isort: skip
from segnets.losses import MaskedLoss  # isort: skip
from segnets.training.distillation import DistillationLoss, TaughtBatch  # isort: skip


def network() -> nn.Module:
    return nn.Conv3d(1, 3, 1)


def saved(teacher: nn.Module, folder: Path) -> Path:
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    return folder / "teacher.pt"


def batch() -> dict[str, torch.Tensor]:
    image = torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return {"image": image, "label": (3 * image).floor()}


@pytest.mark.parametrize("regions", [False, True])
def test_the_probabilities_of_the_whole_ensemble_follow_the_labels(regions: bool, tmp_path: Path) -> None:
    teacher = Ensemble(network(), 2, regions=regions)
    for member in teacher.members:
        nn.init.normal_(member.weight)
    path = saved(teacher, tmp_path)
    taught = TaughtBatch(Ensemble(network(), 2, regions=regions), path, "cpu", regions=regions)
    image, target = taught(batch(), "cpu")
    assert torch.equal(image, batch()["image"])
    assert torch.equal(target[:, :1], batch()["label"])
    logits = [member(image) for member in teacher.members]
    mean = sum(x.sigmoid() if regions else x.softmax(1) for x in logits) / 2
    torch.testing.assert_close(target[:, 1:], mean)
    assert not target.requires_grad


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    with pytest.raises(TrainingError, match=r"weights\.differ.*teacher\.pt.*expected those of Ensemble"):
        TaughtBatch(Ensemble(network(), 2), path, "cpu")
    first, other = TaughtBatch(network(), path, "cpu").fingerprint, TaughtBatch(network(), path, "cpu").fingerprint
    assert first == other
    assert TaughtBatch(network(), saved(network(), tmp_path), "cpu").fingerprint != first


def test_the_share_divides_the_loss_between_labels_and_teacher() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    label, taught = batch()["label"], torch.rand(2, 3, 4, 4, 4).softmax(1)
    target = torch.cat([label, taught], 1)
    of_labels = MaskedLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    entropy = -(taught * logits.log_softmax(1)).sum(1).mean()
    for share in (0.0, 0.3, 1.0):
        found = DistillationLoss(of_labels, share)(logits, target)
        torch.testing.assert_close(found, (1 - share) * of_labels(logits, label) + share * entropy)
    binary = -(taught * logits.sigmoid().log() + (1 - taught) * (-logits).sigmoid().log()).mean()
    masks = torch.cat([taught.round(), taught], 1)  # soft labels: as many channels as there are regions
    found = DistillationLoss(DiceLoss(sigmoid=True), 0.5, regions=True)(logits, masks)
    torch.testing.assert_close(found, 0.5 * DiceLoss(sigmoid=True)(logits, taught.round()) + 0.5 * binary)


def test_voxels_that_are_not_annotated_are_learned_from_the_teacher_alone() -> None:
    logits = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    taught = torch.zeros(1, 3, 4, 4, 4)
    taught[:, 2] = 1
    label = torch.full((1, 1, 4, 4, 4), float(IGNORED))
    loss = DistillationLoss(MaskedLoss(DiceCELoss(to_onehot_y=True, softmax=True)), 0.5)
    loss(logits, torch.cat([label, taught], 1)).backward()
    assert (logits.grad[:, 2] < 0).all()
    assert (logits.grad[:, :2] > 0).all()
