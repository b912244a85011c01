"""Weights for TotalSegmentator's tasks, made here: small networks that find structures, or full size ones for time.

    python scripts/totalsegmentator_weights.py --data ct_body --home small
    python scripts/totalsegmentator_weights.py --data ct_body --home full --shapes full

The folders are those that TotalSegmentator 2.18 and napari-seg look for below TOTALSEG_HOME_DIR. Small networks are
trained for minutes on one CT with labels and one MR image, so what they find is no anatomy that counts: what counts is
that both programs find the same. Networks of the published size hold a narrow trained one and zeros: they cost as much
as the published ones and find what the narrow one finds. Models on the same grid share their first steps. All is
seeded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.networks import widened
from numpy.typing import NDArray

PLANS = "nnUNetPlans"
SEED = 20261128


@dataclass(frozen=True)
class Grid:
    """Models that are trained together, on one grid.

    Attributes:
        tasks: the tasks whose models these are.
        spacing_mm: voxel size along x, y, z.
        patch: size of a window along z, y, x.
        modality: of the scan.
        features: of the first stage.
        steps: of training that the models share.
        own_steps: of training that each model has to itself.
    """

    tasks: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    modality: str = "CT"
    features: int = 12
    steps: int = 240
    own_steps: int = 40


GRIDS = (
    Grid(("total_fast",), (3, 3, 3), (32, 64, 64), steps=300, features=16),
    Grid(("total", "body", "kidney_cysts"), (1.5, 1.5, 1.5), (32, 48, 48), steps=200),
    Grid(("total_fastest", "body_fast"), (6, 6, 6), (16, 32, 32), steps=500, features=16),
    Grid(("liver_vessels",), (2.4, 2.4, 3), (24, 64, 64), steps=150),
    Grid(("liver_segments",), (0.8046879768371582, 0.8046879768371582, 1.5), (32, 56, 56), steps=80),
    Grid(("total_mr_fast",), (3, 3, 3), (16, 64, 64), "MR", steps=300),
    Grid(("total_mr",), (1.5, 1.5, 1.5), (32, 48, 48), "MR", steps=120),
)

CYSTS = {2: 1, 3: 2, 5: 3, 1: 4, 20: 5}
"""Labels of `kidney_cysts`: the right and left kidney are taken for cysts, other organs for its auxiliary labels."""

FULL_PATCH, FULL_STAGES, FULL_FEATURES = (128, 128, 128), 6, 32
"""Window, stages and features of the published networks."""

NARROW_PATCH, NARROW_FEATURES = (64, 64, 64), 8
"""Window and features of the network that is trained for one of the published size."""


def main() -> None:
    """Make the models of all grids, or of those that the command names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="folder for TOTALSEG_HOME_DIR")
    parser.add_argument("--data", type=Path, required=True, help="folder with TotalSegmentator's test files")
    parser.add_argument("--shapes", choices=("small", "full"), default="small")
    parser.add_argument("--tasks", nargs="+", help="only the grids of these tasks")
    parser.add_argument("--effort", type=float, default=1, help="factor for all numbers of steps")
    args = parser.parse_args()
    settings = {
        "totalseg_id": "totalseg_BENCHMARK",
        "send_usage_stats": False,
        "prediction_counter": 0,
        "statistics_disclaimer_shown": True,
    }
    args.home.mkdir(parents=True, exist_ok=True)
    (args.home / "config.json").write_text(json.dumps(settings, indent=1))
    for grid in GRIDS:
        if args.tasks and not set(args.tasks) & set(grid.tasks):
            continue
        make_models(grid, args.data, args.home, args.effort, is_full=args.shapes == "full")


@dataclass(frozen=True)
class Model:
    """One model of a task.

    Attributes:
        task: name of the task.
        number: of its data set.
        folder: name of the data set's folder.
        trainer: name of the trainer.
        configuration: name of the configuration.
        labels: label of the network -> label in the task's result.
        channels: of its output.
    """

    task: str
    number: int
    folder: str
    trainer: str
    configuration: str
    labels: dict[int, int]
    channels: int


def models_of(task: str) -> list[Model]:
    """Return the models of a task of TotalSegmentator."""
    from napari_seg.bundles.totalsegmentator.table import task_of, weights_of

    found = task_of(task)
    extra = len(CYSTS) - 2 if task == "kidney_cysts" else 0
    return [
        Model(
            task,
            part.number,
            weights_of(part.number).folder,
            part.trainer,
            part.configuration,
            dict(part.labels),
            max(label for label, _ in part.labels) + 1 + extra,
        )
        for part in found.parts
    ]


def make_models(grid: Grid, data: Path, home: Path, effort: float, is_full: bool) -> None:
    """Train the models of a grid and write them, those of the published size with zeros around what was trained."""
    import torch

    torch.manual_seed(SEED)
    start = time.perf_counter()
    models = [model for task in grid.tasks for model in models_of(task)]
    scan, labels = training_data(grid, data)
    image, intensities = normalised(scan, labels, grid.modality)
    maps = [labels_of(model, labels) for model in models]
    features, patch = grid.features, grid.patch
    arguments = written = architecture(4, features, 8 * features, convolutions=1)
    if is_full:
        features, patch, grid = NARROW_FEATURES, FULL_PATCH, replace(grid, patch=NARROW_PATCH)
        written = architecture(FULL_STAGES, FULL_FEATURES, 10 * FULL_FEATURES, convolutions=2)
        arguments = architecture(FULL_STAGES, features, 10 * features, convolutions=2)
    trunk = build(arguments, 2)
    heads = [torch.nn.Conv3d(features, model.channels, 1) for model in models]
    train(trunk, heads, image, maps, grid, round(grid.steps * effort))
    shared = {name: value.clone() for name, value in trunk.state_dict().items()}
    for model, head, label in zip(models, heads, maps, strict=True):
        trunk.load_state_dict(shared)
        train(trunk, [head], image, [label], grid, round(grid.own_steps * effort))
        network = build(arguments, model.channels)
        weights = {name: value for name, value in trunk.state_dict().items() if "seg_layers" not in name}
        network.load_state_dict(weights, strict=False)
        network.decoder.seg_layers[-1].load_state_dict(head.state_dict())
        write(home, model, grid, patch, written, intensities, widened(network, build(written, model.channels)))
        print(f"{model.folder}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def architecture(stages: int, features: int, most: int, convolutions: int) -> dict[str, Any]:
    """Return the arguments of a PlainConvUNet as plans.json has them."""
    return {
        "n_stages": stages,
        "features_per_stage": [min(features * 2**n, most) for n in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def build(arguments: dict[str, Any], channels: int) -> Any:
    """Return the network with random weights."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    classes = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    network = PlainConvUNet(1, num_classes=channels, deep_supervision=False, **{**arguments, **classes})
    network.apply(network.initialize)
    return network


def training_data(grid: Grid, data: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return scan and labels (z, y, x) on a grid, resampled as TotalSegmentator does."""
    import nibabel
    from scipy.ndimage import zoom

    path = data / ("example_ct_sm.nii.gz" if grid.modality == "CT" else "example_mr_sm.nii.gz")
    scan = nibabel.as_closest_canonical(nibabel.load(path))
    values = scan.get_fdata()
    if grid.modality == "CT":
        labels = np.asarray(nibabel.as_closest_canonical(nibabel.load(data / "example_seg.nii.gz")).dataobj)
    else:
        labels = synthetic_labels(values)
    factors = np.array(scan.header.get_zooms()) / grid.spacing_mm
    if not np.allclose(factors, 1):
        values = zoom(values, factors, mode="nearest", order=1)
        labels = zoom(labels, factors, mode="nearest", order=0)
    return np.trunc(values).transpose(2, 1, 0).astype(np.float32), labels.transpose(2, 1, 0).astype(np.uint8)


def synthetic_labels(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return labels for an MR image (I, J, K): levels of the smoothed intensity, by side and height of the body."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(values, 1.5)
    body = smooth > np.quantile(smooth, 0.5)
    level = np.digitize(smooth, np.quantile(smooth[body], [0.3, 0.6, 0.85]))
    i, j = (np.arange(length) for length in values.shape[:2])
    place = 2 * (3 * i // len(i))[:, None] + (2 * j // len(j))
    return np.where(body, 2 * (6 * level + place[:, :, None]) + 1, 0).astype(np.uint8)


def labels_of(model: Model, labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return what a model has to find, from the labels of the task `total` (`total_mr` for MR images)."""
    table = np.zeros(256, np.int64)
    if model.task.startswith("body"):
        body = np.where(labels > 0, 1, 0)
        arms = np.arange(labels.shape[2]) < labels.shape[2] // 4
        return np.where(arms & (body > 0), 2, body).astype(np.int64)
    if model.task == "kidney_cysts":
        for label, wanted in CYSTS.items():
            table[label] = wanted
    elif model.task == "liver_vessels":
        table[[63, 64]] = 1  # inferior vena cava, portal and splenic vein
        table[4] = 2  # gallbladder
    elif model.task == "liver_segments":
        liver = np.stack(np.nonzero(labels == 5))
        found = np.zeros(labels.shape, np.int64)
        middle = np.median(liver, axis=1)
        found[tuple(liver)] = 1 + (liver > middle[:, None]).T @ [1, 2, 4]
        return found
    else:
        for label, wanted in model.labels.items():
            table[wanted] = label
    return table[labels]


def normalised(
    scan: NDArray[np.float32], labels: NDArray[np.uint8], modality: str
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Return a scan (z, y, x) normalised as the plans say, and the intensities that the plans hold."""
    inside = scan[labels > 0]
    low, high = np.percentile(inside, [0.5, 99.5])
    intensities = {
        "mean": float(inside.mean()),
        "std": float(inside.std()),
        "percentile_00_5": float(low),
        "percentile_99_5": float(high),
    }
    if modality == "MR":
        return (scan - scan.mean()) / max(scan.std(), 1e-8), intensities
    return (np.clip(scan, low, high) - intensities["mean"]) / intensities["std"], intensities


def train(
    trunk: Any,
    heads: Sequence[Any],
    image: NDArray[np.float32],
    maps: Sequence[NDArray[np.int64]],
    grid: Grid,
    steps: int,
) -> None:
    """Train a network and one head for each label map with Dice and cross entropy."""
    import torch

    random = np.random.default_rng(SEED)
    layer = trunk.decoder.seg_layers[-1]
    parameters = [*trunk.parameters(), *(value for head in heads for value in head.parameters())]
    optimiser = torch.optim.Adam(parameters, 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, max(steps, 2))
    features = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    widths = [max(0, size - length) for size, length in zip(grid.patch, image.shape, strict=True)]
    pads = [(width // 2, width - width // 2) for width in widths]
    image = np.pad(image, pads)
    maps = [np.pad(one, pads) for one in maps]
    for _ in range(steps):
        corner = [random.integers(0, length - size + 1) for size, length in zip(grid.patch, image.shape, strict=True)]
        window = tuple(slice(low, low + size) for low, size in zip(corner, grid.patch, strict=True))
        noise = random.normal(1, 0.05) * image[window] + random.normal(0, 0.05)
        features.clear()
        trunk(torch.from_numpy(noise.astype(np.float32))[None, None])
        loss = sum(
            loss_of(head(features[0]), torch.from_numpy(one[window])[None])
            for head, one in zip(heads, maps, strict=True)
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 12)
        optimiser.step()
        schedule.step()
    hook.remove()
    print(f"{grid.tasks}: loss {loss.item() / len(heads):.3f}", file=sys.stderr, flush=True)


def loss_of(logits: Any, labels: Any) -> Any:
    """Return cross entropy plus one minus the mean Dice of the labels that are there."""
    import torch

    shares = torch.softmax(logits, 1)[0].flatten(1)
    present = torch.unique(labels)
    present = present[present > 0]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    if len(present):
        wanted = (labels.flatten()[None] == present[:, None]).to(shares.dtype)
        found = shares[present]
        loss = loss + 1 - ((2 * (found * wanted).sum(1) + 1) / (found.sum(1) + wanted.sum(1) + 1)).mean()
    return loss


def write(
    home: Path,
    model: Model,
    grid: Grid,
    patch: Sequence[int],
    arguments: dict[str, Any],
    intensities: dict[str, float],
    network: Any,
) -> None:
    """Write a model in the folder where TotalSegmentator looks for it."""
    import torch

    scheme = "CTNormalization" if grid.modality == "CT" else "ZScoreNormalization"
    resampled = {"order": 3, "order_z": 0, "force_separate_z": None}
    resampling = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"{PLANS}_{model.configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(reversed(grid.spacing_mm)),
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, **resampled},
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": {"is_seg": True, **resampled, "order": 1},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **resampled, "order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "dataset_name": model.folder,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "configurations": {model.configuration: configuration},
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    labels = {"background": 0, **{f"structure_{n}": n for n in range(1, model.channels)}}
    dataset = {"channel_names": {"0": grid.modality}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    root = home / "nnunet" / "results" / model.folder / f"{model.trainer}__{PLANS}__{model.configuration}"
    (root / "fold_0").mkdir(parents=True, exist_ok=True)
    (root / "plans.json").write_text(json.dumps(plans, indent=1))
    (root / "dataset.json").write_text(json.dumps(dataset, indent=1))
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": model.configuration, "fold": 0, "plans": plans, "dataset_json": dataset},
        "trainer_name": model.trainer,
        "inference_allowed_mirroring_axes": None if "NoMirroring" in model.trainer else (0, 1, 2),
    }
    torch.save(checkpoint, root / "fold_0" / "checkpoint_final.pth")


if __name__ == "__main__":
    main()
