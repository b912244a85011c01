"""Entries of a config with which a bundle of `napari-seg train` has the network and the preprocessing of nnU-Net."""

from __future__ import annotations

from typing import Any

from napari_seg.bundles.nnunet.configuration import Configuration, preprocessing_arguments
from napari_seg.bundles.nnunet.network import plain_arguments

NNUNET = "NnunetUNet"
"""Network of `segnets` that stands for one of nnU-Net."""

TRANSFORM = "segnets.nnunet_preprocessing.NnunetPreprocessd"
"""Its preprocessing."""

TAKEN = ("spacing_mm", "patch_size", "network_def", "preprocessing")
"""Ids in the config of a model that decide what its network sees, and its network."""


def bundle_config(configuration: Configuration) -> dict[str, Any]:
    """Return the entries `TAKEN` of a bundle that has the network and the preprocessing of a configuration."""
    load: dict[str, Any] = {"_target_": "monai.transforms.LoadImaged", "keys": "image"}
    load |= {"image_only": True, "ensure_channel_first": True}
    preprocessing = {"_target_": TRANSFORM, **preprocessing_arguments(configuration), "spacing": "@spacing_mm"}
    return {
        "spacing_mm": list(configuration.spacing_mm),
        "patch_size": list(configuration.patch_size),
        "network_def": {
            "_target_": f"segnets.{NNUNET}",
            "spatial_dims": 3,
            "in_channels": len(configuration.channel_names),
            "out_channels": "@num_classes",
            "architecture": configuration.network_class,
            "arguments": plain_arguments(configuration),
        },
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": [load, preprocessing]},
    }
