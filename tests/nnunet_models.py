"""Tiny models in nnU-Net's layout, with seeded weights: on disk, and as what the program reads from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from napari_seg.bundles.model import Model
from napari_seg.bundles.nnunet import plans as reading
from napari_seg.bundles.nnunet.configuration import Configuration, NnunetBundle
from napari_seg.bundles.nnunet.network import build_network
from napari_seg.bundles.output import Output
from napari_seg.bundles.windows import WindowSettings
from napari_seg.volume import Segment

TRAINER, PLANS = "nnUNetTrainer", "nnUNetPlans"


def arguments(dimensions: int = 3, stages: int = 2, features: int = 4) -> dict[str, Any]:
    """Return the arguments of a small PlainConvUNet as plans.json has them."""
    return {
        "n_stages": stages,
        "features_per_stage": [features * 2**n for n in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": [[1] * dimensions] + [[2] * dimensions] * (stages - 1),
        "n_conv_per_stage": [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def configuration(patch: Sequence[int] = (16, 16, 16), spacing: Sequence[float] = (1, 1, 1), **changes: Any) -> dict:
    """Return one entry of the configurations of plans.json for an image of one channel."""
    resampled = {"order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, **resampled},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, **resampled, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **resampled, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments(len(patch)),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **changes,
    }


def plans(configurations: Mapping[str, dict], **changes: Any) -> dict[str, Any]:
    """Return plans.json."""
    intensities = {"mean": 50.0, "std": 40.0, "percentile_00_5": -100.0, "percentile_99_5": 250.0}
    return {
        "dataset_name": "Dataset001_Phantom",
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "configurations": dict(configurations),
        "foreground_intensity_properties_per_channel": {str(n): dict(intensities) for n in range(4)},
        **changes,
    }


def dataset(**changes: Any) -> dict[str, Any]:
    """Return dataset.json."""
    return {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "inner": 1, "outer": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **changes,
    }


def write_model(
    results: Path,
    name: str = "3d_fullres",
    entry: dict[str, Any] | None = None,
    *,
    plans_changes: Mapping[str, Any] | None = None,
    dataset_changes: Mapping[str, Any] | None = None,
    folds: Sequence[int | str] = (0,),
    mirror_axes: Sequence[int] | None = None,
    other_configurations: Mapping[str, dict] | None = None,
    trainer: str = TRAINER,
    dataset_folder: str = "Dataset001_Phantom",
    seed: int = 0,
) -> Path:
    """Write a model with random weights as nnU-Net does, and return the folder with its plans.json.

    Args:
        results: folder of results.
        name: of the configuration.
        entry: the configuration; None: `configuration()`.
        plans_changes: entries of plans.json that differ.
        dataset_changes: entries of dataset.json that differ.
        folds: folds that have weights.
        mirror_axes: `inference_allowed_mirroring_axes`.
        other_configurations: further configurations in plans.json.
        trainer: name of the trainer.
        dataset_folder: name of the data set's folder.
        seed: of the weights; each fold adds its place.
    """
    root = results / dataset_folder / f"{trainer}__{PLANS}__{name}"
    root.mkdir(parents=True)
    all_configurations = {**(other_configurations or {}), name: entry or configuration()}
    content = plans(all_configurations, **(plans_changes or {}))
    described = dataset(**(dataset_changes or {}))
    (root / "plans.json").write_text(json.dumps(content))
    (root / "dataset.json").write_text(json.dumps(described))
    (root / "dataset_fingerprint.json").write_text("{}")
    for place, fold in enumerate(folds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + place)
            network = build_network(reading.read_configuration(root, name, trainer))
            for parameter in network.parameters():  # logits that differ clearly between classes
                nn.init.normal_(parameter, std=0.3)
        save_checkpoint(root / f"fold_{fold}" / "checkpoint_final.pth", network, name, trainer, mirror_axes)
    return root


def save_checkpoint(
    path: Path,
    network: nn.Module,
    name: str = "3d_fullres",
    trainer: str = TRAINER,
    mirror_axes: Sequence[int] | None = None,
    **changes: Any,
) -> None:
    """Write a checkpoint with the entries of nnU-Net's, NumPy's numbers in its history included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(1.0)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": name, "fold": 0, "plans": {}, "dataset_json": {}, "device": torch.device("cpu")},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": mirror_axes,
        **changes,
    }
    torch.save(content, path)


def resolved(**changes: Any) -> Configuration:
    """Return a configuration of one CT channel, structures a and b, and 1 mm voxels as it is read, with changes."""
    entry = configuration((8, 8, 8), normalization_schemes=["CTNormalization"])
    intensities = {"mean": 10.0, "std": 40.0, "percentile_00_5": -100.0, "percentile_99_5": 150.0}
    written = plans({"3d_fullres": entry}, foreground_intensity_properties_per_channel={"0": intensities})
    described = dataset(channel_names={"0": "CT"}, labels={"background": 0, "a": 1, "b": 2})
    return replace(reading._configuration(written, described, "3d_fullres", TRAINER), **changes)


def bundle_of(found: Configuration, output: Output | None = None) -> NnunetBundle:
    """Return a bundle of a configuration; its folder does not exist."""
    segments = tuple(
        Segment(label, name, (200, 40 * label, 0)) for name, (label, *_) in found.labels if name != "background"
    )
    return NnunetBundle(
        root=Path("Dataset900_Test"),
        name="test",
        version="",
        description="",
        modality="",
        in_channels=len(found.normalisation),
        network_segments=segments,
        segments=segments,
        output=output or Output(),
        configuration=found,
        folds=("fold_0",),
        kind="nnunet",
    )


def model_of(found: Configuration, network: nn.Module, mirror_axes: tuple[int, ...] = ()) -> Model:
    """Return a model of a configuration with any network of volumes."""
    overlap = (0.0, 0.5, 0.5) if found.is_2d else (0.5, 0.5, 0.5)
    size = (1, *found.patch_size) if found.is_2d else found.patch_size
    windows = WindowSettings(size, overlap, mode="nnunet", mirror_axes=mirror_axes)  # type: ignore[arg-type]
    return Model(network, found, windows, torch.device("cpu"))
