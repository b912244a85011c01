"""Weights that have learnt something, so that label maps are large regions and their agreement has a meaning."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.networks import Standard, build, preprocessing, widened
from numpy.typing import NDArray


@dataclass(frozen=True)
class Training:
    """How the network is trained.

    Attributes:
        steps: of one patch each.
        patch: voxels along each axis of a patch.
        rate: the highest learning rate, reached after a tenth of the steps.
        amp: convolve in bfloat16, twice as quick on processors that have it.
        narrow: factor by which the network has fewer features while it learns; zeros widen it afterwards.
    """

    steps: int = 300
    patch: int = 64
    rate: float = 1e-3
    amp: bool = False
    narrow: int = 4


def learnt_weights(path: Path, scan: Path, network: Standard, training: Training) -> dict[str, Any]:
    """What training left behind in a file, made if it is not there: `model`, a state dictionary, and `dice`.

    The network learns `labels_by_rule` of the very scan that it is measured on, so nothing follows about accuracy.

    Args:
        path: of the file.
        scan: a NIfTI file.
        network: which one.
        training: how.

    Returns:
        Beside the weights, the mean soft Dice of the last tenth of the steps.
    """
    import torch

    if not path.is_file():
        image = prepared(scan, network)
        labels = labels_by_rule(image, network.classes)
        learnt = train(image, labels, network, training)
        part = path.with_suffix(".part")
        torch.save(learnt, part)
        part.replace(path)
    return torch.load(path, weights_only=True)


def prepared(scan: Path, network: Standard) -> NDArray[np.float32]:
    """(I, J, K) as the network is shown a scan."""
    from monai.bundle import ConfigParser

    parser = ConfigParser({"preprocessing": {"_target_": "Compose", "transforms": preprocessing(network)}})
    return parser.get_parsed_content("preprocessing")({"image": str(scan)})["image"][0].numpy()


def labels_by_rule(image: NDArray[np.float32], classes: int, smooth: float = 1.5, round_off: float = 3.0) -> NDArray:
    """(I, J, K) classes of rising intensity, cut where Otsu's method says, in large pieces.

    Args:
        image: (I, J, K).
        classes: how many.
        smooth: deviation in voxels of the Gaussian before the cut.
        round_off: that of the Gaussian that each class is smoothed by before the greatest wins; removes thin shells.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_multiotsu

    smoothed = gaussian_filter(image, smooth)
    cut = np.digitize(smoothed, threshold_multiotsu(smoothed, classes))
    best = np.zeros(image.shape, np.float32)
    labels = np.zeros(image.shape, np.int64)
    for label in range(classes):
        share = gaussian_filter((cut == label).astype(np.float32), round_off)
        labels[share > best] = label
        np.maximum(best, share, out=best)
    return labels


def train(image: NDArray, labels: NDArray, network: Standard, training: Training) -> dict[str, Any]:
    """`model`, the state dictionary after training on random patches, and `dice`, of the last tenth of the steps."""
    import torch
    from monai.losses import DiceCELoss, DiceLoss

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    halved = 2 ** (len(network.features) - 1)
    size = tuple(min(training.patch, n) // halved * halved for n in image.shape)
    model = build(replace(network, features=tuple(count // training.narrow for count in network.features))).train()
    optimiser = torch.optim.AdamW(model.parameters(), training.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, training.rate, training.steps, pct_start=0.1)
    compute_loss = DiceCELoss(to_onehot_y=True, softmax=True)
    dice_loss = DiceLoss(to_onehot_y=True, softmax=True)
    dice, start = [], time.perf_counter()
    for step in range(1, training.steps + 1):
        x, y = (torch.from_numpy(patch.copy())[None, None] for patch in random_patch(image, labels, size, random))
        with torch.autocast("cpu", torch.bfloat16, enabled=training.amp):
            logits = model(x)
        logits = logits.float()
        loss = compute_loss(logits, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12)
        optimiser.step()
        schedule.step()
        dice.append(1 - float(dice_loss(logits.detach(), y)))
        if step % 10 == 0 or step == training.steps:
            minutes = (time.perf_counter() - start) / step * (training.steps - step) / 60
            status = f"step {step}/{training.steps}  soft Dice {np.mean(dice[-10:]):.3f}  {minutes:.1f} min left"
            print(status, file=sys.stderr)
    model = widened(model, build(network))
    return {"model": model.state_dict(), "dice": float(np.mean(dice[-max(training.steps // 10, 1) :]))}


def random_patch(
    image: NDArray, labels: NDArray, size: tuple[int, ...], random: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """A patch around a voxel of a random class, mirrored at random along each axis, and its labels."""
    wanted = random.choice(np.unique(labels))
    at = random.integers(image.shape)
    for _ in range(1000):
        if labels[tuple(at)] == wanted:
            break
        at = random.integers(image.shape)
    begin = [int(np.clip(a - n // 2, 0, length - n)) for a, n, length in zip(at, size, image.shape, strict=True)]
    box = tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True))
    mirrored = tuple(slice(None, None, step) for step in random.choice([-1, 1], 3))
    return image[box][mirrored], labels[box][mirrored]
