"""Hand-made configurations and models of nnU-Net for tests, without a file of nnU-Net's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_seg.bundles.model import Model
from napari_seg.bundles.nnunet.configuration import Configuration, NnunetBundle, Normalisation, Resampling
from napari_seg.bundles.output import Output
from napari_seg.bundles.windows import WindowSettings
from napari_seg.volume import Segment


def configuration(**changes: Any) -> Configuration:
    """Return a configuration of one CT channel, two structures and 1 mm voxels, with changes."""
    values = {
        "name": "3d_fullres",
        "dataset": "Dataset900_Test",
        "trainer": "nnUNetTrainer",
        "plans": "nnUNetPlans",
        "patch_size": (8, 8, 8),
        "spacing_mm": (1.0, 1.0, 1.0),
        "transpose": (0, 1, 2),
        "reader": "SimpleITKIO",
        "normalisation": (Normalisation("ct", mean=10.0, std=40.0, low=-100.0, high=150.0),),
        "resample_image": Resampling(),
        "resample_labels": Resampling(order=1),
        "resample_values": Resampling(order=1),
        "network_class": "PlainConvUNet",
        "network_arguments": "{}",
        "channel_names": ("CT",),
        "labels": (("background", (0,)), ("a", (1,)), ("b", (2,))),
    }
    return Configuration(**(values | changes))  # type: ignore[arg-type]


def nnunet_bundle(found: Configuration, output: Output | None = None) -> NnunetBundle:
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


def nnunet_model(found: Configuration, network: nn.Module, mirror_axes: tuple[int, ...] = ()) -> Model:
    """Return a model of a configuration with any network of volumes."""
    overlap = (0.0, 0.5, 0.5) if found.is_2d else (0.5, 0.5, 0.5)
    size = (1, *found.patch_size) if found.is_2d else found.patch_size
    windows = WindowSettings(size, overlap, mode="nnunet", mirror_axes=mirror_axes)  # type: ignore[arg-type]
    return Model(network, found, windows, torch.device("cpu"))
