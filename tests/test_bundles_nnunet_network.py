"""Networks of nnU-Net: only known ones, of usual sizes, and nothing that plans name is imported or called."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from nnunet_models import arguments, configuration, write_model

from napari_seg.bundles.nnunet.network import build_network, check_network
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError

NAME = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def plans_with(root: Path, **changes: Any) -> None:
    """Change the entry of the network's architecture in plans.json."""
    plans = json.loads((root / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"] |= changes
    (root / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.modules.Linear",
        "dynamic_network_architectures.architectures.primus.Primus",
        "dynamic_network_architectures.os.system",
        "dynamic_network_architectures.architectures.unet.torch.hub.load",
        "evil_package.PlainConvUNet",
        "dynamic_network_architectures.evil.PlainConvUNet",
        "PlainConvUNet",
        "",
    ],
)
def test_networks_off_the_list_are_refused_by_name(tmp_path: Path, name: str) -> None:
    root = write_model(tmp_path)
    plans_with(root, network_class_name=name)
    with pytest.raises(BundleError, match="network_class_name") as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.nnunet"
    assert "evil_package" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features_per_stage", [4, 10**9]),
        ("features_per_stage", 10**9),
        ("features_per_stage", [-4, 8]),
        ("features_per_stage", [0, 8]),
        ("features_per_stage", [4.5, 8]),
        ("features_per_stage", ["4", 8]),
        ("features_per_stage", [True, 8]),
        ("features_per_stage", [4, 8, 16]),
        ("features_per_stage", {"4": 8}),
        ("features_per_stage", None),
        ("n_stages", -2),
        ("n_stages", 0),
        ("n_stages", 10**9),
        ("n_stages", "os.system"),
        ("n_conv_per_stage", [10**6, 1]),
        ("n_conv_per_stage", [1, -1]),
        ("n_conv_per_stage_decoder", [10**6]),
        ("n_conv_per_stage_decoder", []),
        ("kernel_sizes", [[10**5] * 3] * 2),
        ("kernel_sizes", [[-3, 3, 3]] * 2),
        ("kernel_sizes", [[3] * 1000] * 2),
        ("kernel_sizes", [[3, 3]] * 2),
        ("strides", [[1, 1, 1], [0, 2, 2]]),
        ("strides", [[1, 1, 1], [10**9, 2, 2]]),
        ("strides", [[1, 1, 1], [3, 3, 3]]),  # the window can't be divided so
        ("conv_op", "os.system"),
        ("conv_op", "torch.nn.Linear"),
        ("conv_op", "torch.nn.modules.conv.Conv2d"),
        ("conv_op", None),
        ("norm_op", "builtins.eval"),
        ("norm_op", "torch.nn.modules.instancenorm.InstanceNorm2d"),
        ("norm_op", "torch.hub.InstanceNorm3d"),
        ("nonlin", "torch.nn.functional.relu"),
        ("nonlin", "torch.utils.model_zoo.load_url"),
        ("dropout_op", "os.system"),
        ("norm_op_kwargs", {"num_features": 10**9}),
        ("norm_op_kwargs", {"eps": [1]}),
        ("norm_op_kwargs", {"eps": -1.0}),
        ("norm_op_kwargs", {"eps": float("nan")}),
        ("nonlin_kwargs", {"negative_slope": float("inf")}),
        ("dropout_op_kwargs", {"p": 9}),
        ("norm_op_kwargs", ["eps"]),
        ("nonlin_kwargs", {"num_parameters": 10**12}),
        ("nonlin_kwargs", {"inplace": "os.system"}),
        ("block", "os.system"),
        ("conv_bias", "os.system"),
        ("nonlin_first", "os.system"),
        ("unknown", 1),
    ],
)
def test_arguments_that_are_absurd_are_refused_before_anything_is_built(tmp_path: Path, key: str, value: Any) -> None:
    root = write_model(tmp_path)
    plans_with(root, arch_kwargs={**arguments(), key: value})
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.nnunet"


@pytest.mark.parametrize("names", [["n_stages"], ["conv_op", "features_per_stage"], "os.system", ["os.system"], 5])
def test_imports_that_plans_ask_for_are_only_those_of_the_operations(tmp_path: Path, names: Any) -> None:
    root = write_model(tmp_path)
    plans_with(root, _kw_requires_import=names)
    with pytest.raises(BundleError, match="_kw_requires_import") as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.nnunet"


def test_the_size_of_a_network_is_estimated(tmp_path: Path) -> None:
    huge = arguments(stages=8, features=1024) | {"features_per_stage": [8192] * 8, "n_conv_per_stage": [64] * 8}
    with pytest.raises(ValueError, match="weights"):
        check_network(NAME, huge, 1, 3, (256, 256, 256))
    with pytest.raises(ValueError, match="weights"):  # 2e9 for the output of each stage
        check_network(NAME, arguments(stages=8) | {"features_per_stage": [8192] * 8}, 1, 30_000, (256, 256, 256))
    usual = arguments(stages=6, features=32) | {"features_per_stage": [32, 64, 128, 256, 320, 320]}
    assert check_network(NAME, usual | {"n_conv_per_stage": [2] * 6}, 1, 118, (128, 128, 128)) == "PlainConvUNet"


def test_the_estimate_is_close_for_the_usual_networks(tmp_path: Path) -> None:
    from napari_seg.bundles.nnunet.network import count_weights

    usual = arguments(stages=6, features=32) | {
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
    }
    entry = configuration((64, 64, 64))
    entry["architecture"]["arch_kwargs"] = usual
    root = write_model(tmp_path, entry=entry, folds=())
    (root / "fold_0").mkdir()
    (root / "fold_0" / "checkpoint_final.pth").write_bytes(b"not read")
    network = build_network(read_bundle(root).configuration, device="meta")
    found = sum(parameter.numel() for parameter in network.parameters())
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert count_weights(usual, 1, 3) == pytest.approx(found, rel=0.25)
