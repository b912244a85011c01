"""Entries of a config with which a bundle of `napari-seg train` has the network and the preprocessing of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari_seg.bundles.nnunet.configuration import Configuration, preprocessing_arguments
from napari_seg.bundles.nnunet.network import plain_arguments

NNUNET = "NnunetUNet"
"""Network of `segnets` that stands for one of nnU-Net."""

TRANSFORM = "segnets.nnunet_preprocessing.NnunetPreprocessd"
"""Its preprocessing."""

TAKEN = ("spacing_mm", "patch_size", "network_def", "preprocessing")
"""Ids in the config of a model that decide what its network sees, and its network."""


SLICE_AXIS = "slice_axis"
"""Id of the axis across the slices of a network of slices."""


def taken(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a model's config that decide what its network sees, and its network; of several, the first.

    Raises:
        LookupError, TypeError: one is missing, or is no network.
    """
    found = {key: content[key] for key in TAKEN}
    found |= {SLICE_AXIS: content[SLICE_AXIS]} if SLICE_AXIS in content else {}
    if found["network_def"]["_target_"] == "segnets.Ensemble":
        found["network_def"] = found["network_def"]["network"]
    return found


def bundle_config(configuration: Configuration) -> dict[str, Any]:
    """Return the entries of a bundle that has the network and the preprocessing of a configuration.

    They are `TAKEN`. A network of slices has `SLICE_AXIS` in place of `spacing_mm`, because it keeps their distance.
    """
    load: dict[str, Any] = {"_target_": "monai.transforms.LoadImaged", "keys": "image"}
    load |= {"image_only": True, "ensure_channel_first": True}
    preprocessing = {"_target_": TRANSFORM, **preprocessing_arguments(configuration)}
    grid: dict[str, Any] = {SLICE_AXIS: 0}
    if not configuration.is_2d:
        preprocessing["spacing"] = "@spacing_mm"
        grid = {"spacing_mm": list(configuration.spacing_mm)}
    return {
        **grid,
        "patch_size": list(configuration.patch_size),
        "network_def": {
            "_target_": f"segnets.{NNUNET}",
            "spatial_dims": 2 if configuration.is_2d else 3,
            "in_channels": len(configuration.channel_names),
            "out_channels": "@num_classes",
            "architecture": configuration.network_class,
            "arguments": plain_arguments(configuration),
        },
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": [load, preprocessing]},
    }
