"""nnU-Net's standard network with the same weights in each program's form: a MONAI bundle and an nnU-Net model folder.

A bundle's network sees (x, y, z) in RAS+. nnU-Net reads (z, y, x) and lays the axes as its plan's `transpose_forward`
says: here it turns them round. So both networks see the same array of a file that is stored in RAS+, and one set of
weights does for both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np

TURNED_ROUND = [2, 1, 0]


@dataclass(frozen=True)
class Standard:
    """The network that nnU-Net plans for whole scans (3d_fullres), and what it is shown.

    Attributes:
        classes: background included.
        features: channels of each stage; each but the first halves the axes.
        patch: voxels along each axis of a window.
        spacing_mm: of the voxels.
    """

    classes: int = 4
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    patch: int = 128
    spacing_mm: float = 1.0


def architecture(network: Standard) -> dict[str, Any]:
    """What stands in nnU-Net's plans; classes are named by where they can be imported from."""
    stages = len(network.features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(network.features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build(network: Standard) -> Any:
    """Return the network itself, of the class and with the initial weights that nnU-Net takes."""
    planned = architecture(network)
    arguments = dict(planned["arch_kwargs"])
    for key in planned["_kw_requires_import"]:
        arguments[key] = None if arguments[key] is None else locate(arguments[key])
    model = locate(planned["network_class_name"])(
        input_channels=1, num_classes=network.classes, deep_supervision=False, **arguments
    )
    model.apply(model.initialize)
    return model


def widened(narrow: Any, wide: Any) -> Any:
    """Return a wide network of the same kind with the weights of a narrow one and zeros, so that it computes the same.

    It costs as much as any network of its size, and learns in a fraction of the time.
    """
    import torch

    given = narrow.state_dict()
    weights = {}
    for name, value in wide.state_dict().items():
        source, target = given[name], torch.zeros_like(value)
        if name.startswith("decoder.stages") and source.ndim == 5 and source.shape[1] > source.shape[0]:
            sources, targets = source.chunk(2, 1), target.chunk(2, 1)  # from below, and from the encoder
        else:
            sources, targets = (source,), (target,)
        for part, into in zip(sources, targets, strict=True):
            into[tuple(slice(length) for length in part.shape)] = part
        weights[name] = target
    wide.load_state_dict(weights)
    return wide


def random_weights(network: Standard) -> dict[str, Any]:
    """A state dictionary, the same at each call."""
    import torch

    torch.manual_seed(0)
    return build(network).state_dict()


def preprocessing(network: Standard, nnunet_spacing: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """What nnU-Net does to a scan, in MONAI's transforms: cropped to what is not 0, mean 0 and deviation 1.

    Args:
        network: for which.
        nnunet_spacing: from `spacing_by_nnunet`: with nnU-Net's grid and cubic splines, and in its order; None: as
            MONAI's bundles usually do it.
    """
    load: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
    ]
    crop = {
        "_target_": "CropForegroundd",
        "keys": "image",
        "source_key": "image",
        "select_fn": "$lambda image: image != 0",
    }
    normalize = {"_target_": "NormalizeIntensityd", "keys": "image"}
    spacing: dict[str, Any] = {"_target_": "Spacingd", "keys": "image", "pixdim": [network.spacing_mm] * 3}
    if nnunet_spacing is not None:
        splines = {"pixdim": list(nnunet_spacing), "mode": 3, "padding_mode": "nearest", "scale_extent": True}
        return [*load, crop, normalize, spacing | splines]
    return [*load, spacing | {"mode": "bilinear"}, crop, normalize]


def spacing_by_nnunet(scan: Path, network: Standard) -> tuple[float, ...]:
    """Of the grid that nnU-Net resamples a scan onto, mm: a whole number of voxels fills exactly what is not 0.

    Args:
        scan: a NIfTI file, its axes in the order RAS.
        network: for which.
    """
    import nibabel

    image = nibabel.load(scan)
    filled = np.asanyarray(image.dataobj) != 0
    others = ((1, 2), (0, 2), (0, 1))
    found = [np.flatnonzero(filled.any(axis=axes)) for axes in others]
    lengths = [(at[-1] - at[0] + 1) * mm for at, mm in zip(found, image.header.get_zooms(), strict=True)]
    return tuple(float(mm / round(mm / network.spacing_mm)) for mm in lengths)


def make_bundle(
    root: Path,
    network: Standard,
    weights: dict[str, Any],
    overlap: float,
    nnunet_spacing: Sequence[float] | None = None,
) -> Path:
    """A MONAI bundle that runs with `monai.bundle run` (ids `scan` and `output_dir`) and with napari-seg.

    Args:
        root: its folder.
        network: which one.
        weights: its state dictionary.
        overlap: share of a window that the next one repeats; weights are Gaussian.
        nnunet_spacing: see `preprocessing`.
    """
    import torch

    for name in ("configs", "models"):
        (root / name).mkdir(parents=True, exist_ok=True)
    torch.save(weights, root / "models" / "model.pt")
    planned = architecture(network)
    found = {key: f"${planned['arch_kwargs'][key]}" for key in planned["_kw_requires_import"]}
    config = {
        "scan": "",
        "output_dir": "",
        "network_def": {
            "_target_": planned["network_class_name"],
            "input_channels": 1,
            "num_classes": network.classes,
            **planned["arch_kwargs"],
            **found,
        },
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing(network, nnunet_spacing)},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [network.patch] * 3,
            "overlap": overlap,
            "mode": "gaussian",
            "progress": True,
        },
        **evaluation(),
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config, indent=1))
    names = {str(n): f"class {n}" if n else "background" for n in range(network.classes)}
    formats = {
        "inputs": {"image": {"num_channels": 1, "modality": "MR"}},
        "outputs": {"pred": {"num_channels": network.classes, "channel_def": names}},
    }
    metadata = {"name": "nnU-Net's standard network", "version": "1", "network_data_format": formats}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=1))
    return root


BACKGROUND_SHARE = 0.9
"""Of a scan's voxels, as in most label maps; how often classes meet decides what resampling them costs."""


def make_random_bundle(root: Path, network: Standard) -> Path:
    """A bundle of a network that has learnt nothing but that most of a scan is background; it costs as much as any."""
    return make_bundle(root, network, _mostly_background(network, random_weights(network)), overlap=0.25)


def _mostly_background(network: Standard, weights: dict[str, Any]) -> dict[str, Any]:
    """The weights with a bias of the background that lets it win `BACKGROUND_SHARE` of the voxels of soft noise."""
    import torch

    model = build(network).eval()
    model.load_state_dict(weights)
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8, 8), size=[64] * 3, mode="trilinear")
    with torch.inference_mode():
        logits = model((noise - noise.mean()) / noise.std())[0]
    ahead = logits[1:].amax(0) - logits[0]
    bias = f"decoder.seg_layers.{len(network.features) - 2}.bias"
    weights[bias] = weights[bias].clone()
    weights[bias][0] += ahead.flatten().float().quantile(BACKGROUND_SHARE)
    return weights


def evaluation() -> dict[str, Any]:
    """What only `monai.bundle run` needs: from a file to a label map on its grid, as MONAI's own bundles do it."""
    after = [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "$np.uint8",
            "separate_folder": False,
            "resample": False,
        },
    ]
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network_def"},
    }
    return {
        "dataset": {"_target_": "Dataset", "data": "$[{'image': @scan}]", "transform": "@preprocessing"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": {"_target_": "Compose", "transforms": after},
            "val_handlers": [loader],
        },
        "run": ["$@evaluator.run()"],
    }


def make_nnunet_model(root: Path, network: Standard, weights: dict[str, Any]) -> Path:
    """A folder as nnU-Net's training leaves it, for `nnUNetv2_predict_from_modelfolder -f 0`."""
    import torch

    (root / "fold_0").mkdir(parents=True, exist_ok=True)
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [network.patch] * 3,
        "spacing": [network.spacing_mm] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture(network),
        "batch_dice": False,
    }
    for what, changed in {
        "data": {"order": 3},
        "seg": {"is_seg": True, "order": 1},
        "probabilities": {"order": 1},
    }.items():
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = resampling | changed
    plans = {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": TURNED_ROUND,
        "transpose_backward": TURNED_ROUND,
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }
    labels = {f"class {n}" if n else "background": n for n in range(network.classes)}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (root / "plans.json").write_text(json.dumps(plans, indent=1))
    (root / "dataset.json").write_text(json.dumps(dataset, indent=1))
    checkpoint = {
        "network_weights": weights,
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, root / "fold_0" / "checkpoint_final.pth")
    return root
