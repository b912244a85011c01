"""Test the masked loss by hand: what is not annotated has no gradient, and without it the loss is that of MONAI."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from empty_sets import code_of
from monai import losses as monai_losses
from torch import nn

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.errors import TrainingError
from segnets.losses import MaskedLoss, SoftDiceBCELoss

SOFTMAX = {
    "dice and ce": lambda: monai_losses.DiceCELoss(to_onehot_y=True, softmax=True),
    "dice": lambda: monai_losses.DiceLoss(to_onehot_y=True, softmax=True),
    "ce": lambda: monai_losses.DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=0),
    "weighted ce": lambda: monai_losses.DiceCELoss(
        to_onehot_y=True, softmax=True, lambda_dice=0, weight=torch.tensor([0.1, 1, 1])
    ),
    "focal": lambda: monai_losses.FocalLoss(to_onehot_y=True, use_softmax=True),
    "dice and focal": lambda: monai_losses.DiceFocalLoss(to_onehot_y=True, softmax=True),
    "generalised dice": lambda: monai_losses.GeneralizedDiceLoss(to_onehot_y=True, softmax=True),
    "tversky": lambda: monai_losses.TverskyLoss(to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7),
    "batch dice": lambda: monai_losses.DiceCELoss(to_onehot_y=True, softmax=True, batch=True),
}
SIGMOID = {
    "dice and bce": lambda: monai_losses.DiceFocalLoss(sigmoid=True, gamma=0.0),
    "dice": lambda: monai_losses.DiceLoss(sigmoid=True),
    "focal": lambda: monai_losses.FocalLoss(),
    "tversky": lambda: monai_losses.TverskyLoss(sigmoid=True),
    "generalised dice": lambda: monai_losses.GeneralizedDiceLoss(sigmoid=True),
}
NESTED = [[1], [1, 2]]
"""Part 1 lies in region 1 alone, part 2 in regions 1 and 2."""


def batch(channels: int = 3, ignored: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (2, K, 4, 5, 6) that require a gradient, and labels (2, 1, 4, 5, 6) of 0, 1, 2 and -1."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, channels, 4, 5, 6), generator=generator)
    label = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=generator).float()
    label[torch.rand(label.shape, generator=generator) < ignored] = -1
    return logits.requires_grad_(), label


def gradient(loss: nn.Module, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    logits.grad = None
    loss(logits, label).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("name", SOFTMAX)
def test_without_ignored_voxels_loss_and_gradient_are_those_of_monai_to_the_last_bit(name: str) -> None:
    loss, (logits, label) = SOFTMAX[name](), batch()
    masked = MaskedLoss(loss, absent=[[1]])
    assert torch.equal(masked(logits, label), loss(logits, label))
    assert torch.equal(gradient(masked, logits, label), gradient(loss, logits, label))


@pytest.mark.parametrize("name", SOFTMAX)
def test_ignored_voxels_have_no_gradient_and_do_not_count(name: str) -> None:
    loss, (logits, label) = MaskedLoss(SOFTMAX[name]()), batch(ignored=0.4)
    found = gradient(loss, logits, label)
    ignored = (label == -1).expand_as(found)
    assert (found[ignored] == 0).all()
    assert (found[~ignored] != 0).all()
    value = loss(logits, label)
    with torch.no_grad():
        logits[ignored] = torch.randn(int(ignored.sum())) * 50
    assert torch.equal(loss(logits, label), value)


def test_cross_entropy_is_the_mean_over_annotated_voxels() -> None:
    """Two voxels of a case with probabilities 1/2 and 1/4 of their class, a third one ignored."""
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]]]))
    loss = MaskedLoss(SOFTMAX["ce"]())
    value = loss(logits, torch.tensor([[[1.0, 0, -1]]]))
    assert value.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_dice_counts_annotated_voxels_alone() -> None:
    """Dice of background is 2 x 0.25 / (0.75 + 1), of the class 2 x 0.5 / (1.25 + 1)."""
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]]]))
    value = MaskedLoss(SOFTMAX["dice"]())(logits, torch.tensor([[[1.0, 0, -1]]]))
    assert value.item() == pytest.approx(1 - (0.5 / 1.75 + 1 / 2.25) / 2, abs=1e-4)


def test_the_loss_of_a_batch_is_the_mean_over_its_cases_however_it_is_split() -> None:
    loss, (logits, label) = MaskedLoss(SOFTMAX["dice and ce"]()), batch(ignored=0.3)
    label[1] = label[1].clamp(min=0)
    parts = [loss(logits[n : n + 1], label[n : n + 1]) for n in (0, 1)]
    assert loss(logits, label).item() == pytest.approx((parts[0] + parts[1]).item() / 2)


def test_a_case_without_annotated_voxels_has_a_loss_and_gradients_of_0() -> None:
    loss, (logits, label) = MaskedLoss(SOFTMAX["dice and ce"]()), batch()
    label[0] = -1
    assert loss(logits, label).item() == pytest.approx(loss(logits[1:], label[1:]).item() / 2)
    assert (gradient(loss, logits, label)[0] == 0).all()
    label[1] = -1
    assert loss(logits, label).item() == 0
    assert (gradient(loss, logits, label) == 0).all()


def test_a_loss_that_pools_a_batch_pools_its_annotated_voxels() -> None:
    loss, (logits, label) = SOFTMAX["batch dice"](), batch(ignored=0.3)
    kept = label[:, 0] != -1
    pooled = logits.movedim(1, -1)[kept].T[None], label.movedim(1, -1)[kept].T[None]
    assert MaskedLoss(loss)(logits, label).item() == pytest.approx(loss(*pooled).item())


def test_in_a_case_without_a_class_background_is_background_or_that_class() -> None:
    """Class 2 is not annotated: what counts is the sum of its probability and that of background."""
    probabilities = torch.tensor([[[0.2, 0.6], [0.5, 0.1], [0.3, 0.3]]])
    logits = torch.log(probabilities).requires_grad_()
    label = torch.tensor([[[1.0, -2]]])
    ce = MaskedLoss(SOFTMAX["ce"](), absent=[[2]])
    assert ce(logits, label).item() == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2)
    dice = MaskedLoss(SOFTMAX["dice"](), absent=[[2]])
    # background 2 x 0.9 / (0.5 + 0.9 + 1), class 1 2 x 0.5 / (0.6 + 1), class 2 does not count
    assert dice(logits, label).item() == pytest.approx((1 - 1.8 / 2.4 + 1 - 1 / 1.6) / 3, abs=1e-4)


@pytest.mark.parametrize("name", SOFTMAX)
def test_it_does_not_matter_how_background_and_absent_classes_share_their_probability(name: str) -> None:
    loss, (logits, label) = MaskedLoss(SOFTMAX[name](), absent=[[1], [1, 2]]), batch()
    label[label == 0], label[label == 2] = -2, 0
    label[label == 0] = -2
    moved = logits.detach().clone()
    both = moved[:, [0, 1]].logsumexp(1)
    moved[:, 0] = both + math.log(0.3)
    moved[:, 1] = both + math.log(0.7)
    assert loss(moved, label).item() == pytest.approx(loss(logits, label).item(), rel=1e-5)
    assert torch.isfinite(gradient(loss, logits, label)).all()


def test_a_voxel_of_an_absent_class_counts_as_background_of_its_case() -> None:
    loss, (logits, label) = MaskedLoss(SOFTMAX["dice and ce"](), absent=[[1]]), batch()
    label[label == 0] = -2
    assert torch.equal(loss(logits, label), loss(logits, torch.where(label == 1, -2, label)))


@pytest.mark.parametrize("name", SIGMOID)
def test_regions_are_trained_as_masks_of_their_parts(name: str) -> None:
    loss, (logits, label) = SIGMOID[name](), batch(channels=2)
    target = torch.cat([label >= 1, label == 2], dim=1).float()
    assert torch.equal(MaskedLoss(loss, NESTED)(logits, label), loss(logits, target))


@pytest.mark.parametrize("name", SIGMOID)
def test_ignored_voxels_and_absent_regions_have_no_gradient(name: str) -> None:
    loss, (logits, label) = MaskedLoss(SIGMOID[name](), NESTED, absent=[[2]]), batch(channels=2, ignored=0.3)
    ignored = (label == -1)[:, 0]
    found = gradient(loss, logits, label)
    assert (found.movedim(1, -1)[ignored] == 0).all()
    assert (found.movedim(1, -1)[~ignored] != 0).all()
    label[label == 0] = -2
    absent = gradient(loss, logits, label)
    assert (absent[:, 1] == 0).all()
    assert (absent[:, 0][~ignored] != 0).all()


@pytest.mark.parametrize("name", SIGMOID)
def test_a_patch_inside_a_region_does_not_train_regions_that_its_case_lacks(name: str) -> None:
    """Every voxel is in region 1; region 2, which may be there too, is not annotated in the first case."""
    loss, (logits, label) = MaskedLoss(SIGMOID[name](), NESTED, absent=[[2]]), batch(channels=2)
    label[0], label[1] = 3, label[1].clamp(min=1)
    found = gradient(loss, logits, label)
    assert (found[0, 1] == 0).all()
    assert (found[0, 0] != 0).all()
    assert (found[1] != 0).all()


def test_the_loss_of_regions_is_binary() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]])
    bce = MaskedLoss(monai_losses.FocalLoss(gamma=0.0), NESTED)
    expected = (3 * math.log(2) - math.log(0.75)) / 4
    assert bce(logits, torch.tensor([[[0.0, 2]]])).item() == pytest.approx(expected)
    assert code_of(monai_losses.DiceCELoss(sigmoid=True), NESTED, call=MaskedLoss) == "network.regions"


def test_each_output_of_deep_supervision_is_masked() -> None:
    loss = monai_losses.DeepSupervisionLoss(MaskedLoss(SOFTMAX["dice and ce"]()))
    _, label = batch(ignored=0.5)
    outputs = [torch.randn(2, 3, *size, requires_grad=True) for size in ((4, 5, 6), (2, 3, 3))]
    loss(outputs, label).backward()
    small = nn.functional.interpolate(label, size=(2, 3, 3), mode="nearest-exact")
    for output, target in zip(outputs, (label, small), strict=True):
        ignored = (target == -1).expand_as(output)
        assert ignored.any()
        assert (output.grad[ignored] == 0).all()


def fitted(loss: nn.Module, fractions: torch.Tensor) -> torch.Tensor:
    """Return the probabilities with which the loss of fractions is smallest, of free logits."""
    logits = torch.zeros_like(fractions, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(logits, fractions).backward()
        optimizer.step()
    return logits.detach().sigmoid()


def test_the_loss_of_fractions_is_smallest_where_probabilities_equal_them() -> None:
    fractions = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0]).repeat(2, 1)[None]
    probabilities = fitted(MaskedLoss(SoftDiceBCELoss(), [[1], [2]], soft=True), fractions)
    assert torch.allclose(probabilities, fractions, atol=0.03)
    # the Dice of MONAI without its soft_label pushes probabilities to 0 and 1
    hard = fitted(monai_losses.DiceLoss(sigmoid=True), fractions)
    assert float(hard[0, 0, 5]) > 0.97


def test_focal_losses_are_refused_for_fractions() -> None:
    for loss in (monai_losses.FocalLoss(), monai_losses.DiceFocalLoss(sigmoid=True)):
        with pytest.raises(TrainingError, match=r"labels\.soft"):
            MaskedLoss(loss, [[1]], soft=True)
