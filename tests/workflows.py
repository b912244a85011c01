"""Bundles with a whole workflow and code of their own, as many published ones have; MONAI alone can run them too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from preloaded import run_python

NETS = '''
import torch

from scripts.values import LIMIT


class Net(torch.nn.Module):
    """Class 1 where the image is above a limit, class 2 where it is above it in the upper half of the first axis."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        from scripts.late import upper_half

        bright = (image[:, :1] - LIMIT) * self.scale
        inside = torch.where(bright > 0, bright, -10.0 * LIMIT)
        upper = upper_half(bright)
        return torch.cat([-bright, inside - 9e3 * upper, inside - 9e3 * (1 - upper)], dim=1) / 100
'''

LATE = """
import torch


def upper_half(image):
    upper = torch.zeros_like(image)
    upper[:, :, image.shape[2] // 2 :] = 1.0
    return upper
"""

POST = """
from monai.transforms import MapTransform


class Renumbered(MapTransform):
    def __call__(self, data):
        print("renumbering")
        for key in self.keys:
            data[key] = data[key] * FACTOR
        return data
"""

CONFIG: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "/nowhere",
    "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "scripts.nets.Net"},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.25, 2.5], "mode": "bilinear"},
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {
        "_target_": "DataLoader",
        "dataset": "@dataset",
        "batch_size": 1,
        "num_workers": 2,
        "persistent_workers": True,
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [64, 64, 64], "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "@image_key",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "scripts.post.Renumbered", "keys": "pred"},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "resample": False},
        ],
    },
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        }
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
        "amp": False,
    },
    "evaluating": ["$setattr(torch.backends.cudnn, 'benchmark', True)", "$@evaluator.run()"],
}


def write_workflow(root: Path, *, limit: float = 100.0, factor: float = 3, **changes: Any) -> Path:
    """Write a bundle folder; `changes` replace entries of its config.

    Args:
        root: folder of the bundle.
        limit: intensity above which there is a structure.
        factor: number by which its last transform multiplies the labels 1 and 2.
        changes: entries at the top of the config; None removes one.
    """
    for name in ("configs", "scripts", "models"):
        (root / name).mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "nets": NETS,
        "late": LATE,
        "post": POST.replace("FACTOR", str(factor)),
        "values": f"LIMIT = {limit}\n",
    }.items():
        (root / "scripts" / f"{name}.py").write_text(text)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (root / "configs" / "inference.json").write_text(json.dumps(config, indent=2))
    names = {"0": "background", str(int(factor)): "lower", str(int(2 * factor)): "upper"}
    metadata = {
        "version": "1.0",
        "name": "workflow",
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "modality": "MR"}},
            "outputs": {"pred": {"num_channels": 3, "channel_def": names}},
        },
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.save({"model": {"scale": torch.ones(1)}}, root / "models" / "model.pt")
    return root


def run_with_monai(root: Path, images: Path, results: Path, run_id: str = "evaluating") -> None:
    """Run a bundle as its authors do, with MONAI's own command."""
    config = root / "configs" / "inference.json"
    words = ["-m", "monai.bundle", "run", run_id, "--config_file", config, "--bundle_root", root]
    words += ["--dataset_dir", images, "--output_dir", results, "--logging_file", "False"]
    status, printed = run_python(list(map(str, words)), root)
    assert status == 0, printed[-3000:]
