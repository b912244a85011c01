"""Bundles whose right answer is known: their networks compute with intensities and indices, not with weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

NETWORK = '''
import torch


class Threshold(torch.nn.Module):
    """Class 1 where the image is above 100, class 2 where it is above 100 in the upper half of the first axis."""

    def __init__(self, halves: bool = False, channel: int = 0) -> None:
        super().__init__()
        self.halves = halves
        self.channel = channel

    def forward(self, image):
        bright = image[:, self.channel : self.channel + 1] - 100.0
        upper = torch.zeros_like(bright)
        if self.halves:
            upper[:, :, bright.shape[2] // 2 :] = 1.0
        inside = torch.where(bright > 0, bright, -1000.0)
        return torch.cat([-bright, inside * (1 - upper) - 2000 * upper, inside * upper - 2000 * (1 - upper)], dim=1)
'''

CONFIG = """
network_def:
  _target_: scripts.nets.Threshold
  halves: {halves}{channel}
preprocessing:
  _target_: monai.transforms.Compose
  transforms:
    - _target_: monai.transforms.LoadImaged
      keys: image
    - _target_: monai.transforms.EnsureChannelFirstd
      keys: image
    - _target_: monai.transforms.Orientationd
      keys: image
      axcodes: RAS
      labels: null
    - _target_: monai.transforms.Spacingd
      keys: image
      pixdim: {spacing}
      mode: bilinear
inferer:
  _target_: monai.inferers.SlidingWindowInferer
  roi_size: {roi}
  overlap: 0.25
"""


def write_threshold_bundle(
    root: Path,
    *,
    halves: bool = False,
    spacing: tuple[float, float, float] = (1.5, 1.25, 2.5),
    roi: tuple[int, int, int] = (64, 64, 64),
    own: dict[str, Any] | None = None,
    channels: Sequence[str] = ("image",),
    channel: int = 0,
) -> Path:
    """A bundle folder; three classes, and `own` as its `napari_seg` metadata.

    Args:
        root: made by this function.
        halves: whether the upper half is a class of its own.
        spacing: of the network's grid, in mm.
        roi: size of a window.
        own: metadata for this program.
        channels: names of the input channels.
        channel: the one that the network looks at.
    """
    (root / "configs").mkdir(parents=True)
    (root / "scripts").mkdir()
    (root / "models").mkdir()
    (root / "scripts" / "nets.py").write_text(NETWORK)
    argument = f"\n  channel: {channel}" if channel else ""
    (root / "configs" / "inference.yaml").write_text(
        CONFIG.format(halves=str(halves).lower(), channel=argument, spacing=list(spacing), roi=list(roi))
    )
    metadata = {
        "version": "1.0",
        "name": "threshold",
        "network_data_format": {
            "inputs": {
                "image": {"num_channels": len(channels), "modality": "MR", "channel_def": dict(enumerate(channels))}
            },
            "outputs": {"pred": {"num_channels": 3, "channel_def": {"0": "background", "1": "bright", "2": "upper"}}},
        },
        "napari_seg": own or {},
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.save({}, root / "models" / "model.pt")
    return root


def write_plain_bundle(root: Path, *, key: str = "image", network: dict[str, Any] | None = None) -> Path:
    """Write a bundle of listed classes alone, with a small UNet of three classes and random weights."""
    for folder in ("configs", "models"):
        (root / folder).mkdir(parents=True)
    unet = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "key": key,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network or {"_target_": "UNet", **unet},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "@key", "reader": "ITKReader"},
                {"_target_": "Orientationd", "keys": "@key", "axcodes": "RAS"},
                {"_target_": "ScaleIntensityd", "keys": "@key"},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25},
        "dataset": {"_target_": "Dataset", "data": "$glob.glob('*')", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
        },
        "run": ["$@evaluator.run()"],
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    pred = {"format": "segmentation", "num_channels": 3, "label_def": {"0": "background", "1": "one", "2": "two"}}
    metadata = {
        "version": "1.0",
        "name": "plain",
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "modality": "CT"}},
            "outputs": {"pred": {"type": "image", **pred}},
        },
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    if network is None:
        from monai.networks.nets import UNet

        torch.manual_seed(0)
        torch.save(UNet(**unet).state_dict(), root / "models" / "model.pt")
    return root
