"""The list holds what exists in MONAI, and nothing that runs code, downloads, or reads and writes files."""

from __future__ import annotations

import pytest

from napari_seg.bundles.config import allowed
from napari_seg.bundles.config.allowed import is_listed, is_reading, target_name


def test_every_name_on_the_list_exists() -> None:
    import monai
    import numpy as np
    import torch

    for names, module in (
        (allowed.NETWORKS, monai.networks.nets),
        (allowed.TRANSFORMS, monai.transforms),
        (allowed.INFERERS, monai.inferers),
        (allowed.LAYERS, torch.nn),
        (allowed.DTYPES | allowed.FUNCTIONS, torch),
        (allowed.ARRAYS, np),
    ):
        assert [name for name in sorted(names) if not hasattr(module, name)] == []


def test_no_listed_transform_is_random_or_finds_a_function_by_its_name() -> None:
    by_name = {"TorchVisiond", "TorchIOd", "CuCIMd", "ImageFilterd", "LoadImaged", "SaveImaged", "WriteFileMappingd"}
    assert not by_name & allowed.TRANSFORMS
    assert not any(name.startswith("Rand") for name in allowed.TRANSFORMS)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("UNet", "monai.networks.nets.UNet"),
        ("monai.networks.nets.unet.UNet", "monai.networks.nets.UNet"),
        ("ScaleIntensityD", "monai.transforms.ScaleIntensityd"),
        ("monai.transforms.intensity.dictionary.ScaleIntensityDict", "monai.transforms.ScaleIntensityd"),
        ("Compose", "monai.transforms.Compose"),
        ("monai.inferers.inferer.SliceInferer", "monai.inferers.SliceInferer"),
        ("torch.nn.ReLU", "torch.nn.ReLU"),
        ("torch.nn.modules.activation.ReLU", "torch.nn.ReLU"),
        ("LoadImaged", ""),
        ("monai.transforms.SaveImaged", ""),
        ("monai.bundle.UNet", ""),
        ("monai.networks.nets.torch.save", ""),
        ("scripts.UNet", ""),
        ("torch.nn.DataParallel", ""),
        ("torch.hub.load", ""),
        ("D", ""),
        ("", ""),
    ],
)
def test_targets_are_found_by_short_and_full_names(target: str, name: str) -> None:
    assert target_name(target) == name


def test_names_for_expressions() -> None:
    for name in ("torch.float32", "numpy.uint8", "monai.utils.CommonKeys.IMAGE", "torch.device", "os.path.join"):
        assert is_listed(name)
    for name in (
        "torch",
        "torch.save",
        "numpy.load",
        "os.system",
        "os.path.os",
        "monai.utils.module",
        "torch.nn",
        "len",
    ):
        assert not is_listed(name)


def test_readers_are_left_out_by_their_names_in_monai() -> None:
    assert is_reading("LoadImaged")
    assert is_reading("monai.transforms.io.dictionary.LoadImageDict")
    assert not is_reading("scripts.LoadImaged")
