"""Peak memory of whole scans of few and of many classes, within a budget."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import NAPARI_SEG, machine, watch
from benchmarks.networks import evaluation
from benchmarks.report import describe_machine, paragraph, table

SCANS = ((600, 105), (600, 3), (1200, 105))
"""Slices and classes."""

MEASURED_BESIDE = (600, 3)
"""Of these the one that MONAI runs too; for the others it would need more memory than most machines have."""

NETWORK = '''
from torch import nn


class Small(nn.Sequential):
    """Two convolutions: little work, any number of classes."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, classes, 1))
'''


def memory(args: argparse.Namespace) -> dict[str, object]:
    """Peak memory of `napari-seg predict` on long scans of few and of many classes, beside what peers hold at least."""
    folder = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    rows: list[dict] = []
    for slices, classes in SCANS:
        scan = make_ct(folder / f"ct_{slices}.nii", slices)
        bundle = make_small_bundle(folder / f"bundle_{classes}", classes)
        command = [*NAPARI_SEG, "predict", scan, "--bundle", bundle, "--trust-bundle"]
        command += ["-o", folder / f"out_{slices}_{classes}", "--memory", args.budget, "--overwrite", "--json"]
        run = watch(command, folder / f"log_{slices}_{classes}")
        rows.append({"slices": slices, "classes": classes})
        rows[-1] |= {"seconds": run.seconds, "peak_gib": run.peak_bytes / 2**30}
        rows[-1]["monai_gib"] = whole_logits_bytes(slices, classes) / 2**30
        rows[-1]["status"] = json.loads(run.output)[0]["status"]
        if (slices, classes) == MEASURED_BESIDE:
            command = [sys.executable, "-P", "-m", "monai.bundle", "run", "--bundle_root", bundle, "--scan", scan]
            command += ["--config_file", bundle / "configs" / "inference.json", "--output_dir", folder / "out_monai"]
            beside = watch(command, folder / "log_monai", {"PYTHONPATH": str(bundle)})
            rows[-1] |= {"monai_seconds": beside.seconds, "monai_measured_gib": beside.peak_bytes / 2**30}
        print(rows[-1], file=sys.stderr)
    return {"machine": machine(["torch", "monai"]), "budget": args.budget, "scans": rows}


def make_ct(path: Path, slices: int) -> Path:
    """A body of soft tissue with bones in air, 512 x 512 at 0.8 mm, int16."""
    import nibabel
    import numpy as np

    if not path.exists():
        x, y = np.ogrid[-256:256, -256:256]
        array = np.full((512, 512, slices), -1000, np.int16)
        for k in range(slices):
            body = (x / 200) ** 2 + (y / 140) ** 2 < 1
            bone = (x - 20 * np.sin(k / 40)) ** 2 + (y - 60) ** 2 < (20 + 8 * np.cos(k / 9)) ** 2
            array[:, :, k][body] = 40
            array[:, :, k][bone] = 700
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-0.8, -0.8, 0.8, 1.0])), path)
    return path


def make_small_bundle(root: Path, classes: int) -> Path:
    """A MONAI bundle of a small network with random weights: 1.5 mm, windows of 96 voxels."""
    import torch

    for name in ("configs", "models", "smallnet"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "smallnet" / "__init__.py").write_text(NETWORK)
    at = "monai.transforms"
    config = {
        "scan": "",
        "output_dir": "",
        "network_def": {"_target_": "smallnet.Small", "classes": classes},
        "preprocessing": {
            "_target_": f"{at}.Compose",
            "transforms": [
                {"_target_": f"{at}.LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": f"{at}.Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": f"{at}.Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"},
                {
                    "_target_": f"{at}.ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -1000,
                    "a_max": 1000,
                    "b_min": -1,
                    "b_max": 1,
                },
            ],
        },
        "inferer": {"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": [96, 96, 96], "mode": "gaussian"},
        **evaluation(),
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    channels = {str(n): f"class {n}" if n else "background" for n in range(classes)}
    formats = {
        "inputs": {"image": {"num_channels": 1, "modality": "CT"}},
        "outputs": {"pred": {"num_channels": classes, "channel_def": channels}},
    }
    (root / "configs" / "metadata.json").write_text(json.dumps({"name": "small", "network_data_format": formats}))
    torch.manual_seed(0)
    convolutions = (torch.nn.Conv3d(1, 8, 3), torch.nn.Conv3d(8, classes, 1))
    state = {f"{2 * n}.{k}": v for n, layer in enumerate(convolutions) for k, v in layer.state_dict().items()}
    torch.save(state, root / "models" / "model.pt")
    return root


def whole_logits_bytes(slices: int, classes: int) -> int:
    """What MONAI's inferer and Invertd hold at least: float32 logits and weights at 1.5 mm, then logits at 0.8 mm."""
    coarse = round(512 * 0.8 / 1.5) ** 2 * round(slices * 0.8 / 1.5)
    return 4 * ((classes + 1) * coarse + classes * 512 * 512 * slices)


def describe_memory(figures: dict) -> str:
    """Return the section of benchmarks.md about memory."""
    lines = ["## Memory", ""]
    lines += paragraph(
        f"`napari-seg predict --memory {figures['budget']}` of a synthetic CT, 512×512 at 0.8 mm, by a small network",
        "at 1.5 mm in windows of 96 voxels: the peak of the whole process, including reading, overlays and writing.",
        "The next columns show the least that MONAI's `SlidingWindowInferer` and `Invertd` must hold, computed:",
        "float32 logits and weights on the network's grid, then logits on the scan's; and what they held and took if",
        "that fits.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    rows = [
        [
            row["slices"],
            row["classes"],
            f"{row['peak_gib']:.2f}",
            f"{row['monai_gib']:.1f}",
            f"{row['monai_measured_gib']:.1f}" if "monai_measured_gib" in row else "",
            f"{row['seconds'] / 60:.1f}",
            f"{row['monai_seconds'] / 60:.1f}" if "monai_seconds" in row else "",
        ]
        for row in figures["scans"]
    ]
    head = [
        "slices",
        "classes",
        "peak, GiB",
        "MONAI at least, GiB",
        "MONAI measured, GiB",
        "minutes",
        "MONAI, minutes",
    ]
    lines += table(head, rows)
    return "\n".join([*lines, ""])
