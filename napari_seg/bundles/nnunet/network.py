"""Networks of nnU-Net: the U-Nets of dynamic-network-architectures, from a small list of plain arguments.

plans.json names classes by dotted names, which nnU-Net imports and calls. Here a name is only looked up in the tables
below, and the size of the network is estimated before anything is built.
"""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from napari_seg.bundles.nnunet.configuration import Configuration

_PACKAGE = "dynamic_network_architectures."
_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
_OPERATIONS = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": ("Dropout", "Dropout2d", "Dropout3d"),
    "nonlin": ("LeakyReLU", "ReLU", "GELU", "SiLU", "ELU", "PReLU"),
}
"""Arguments that plans.json gives as dotted names -> the classes of torch.nn that they may name."""

_SETTINGS = {
    "norm_op_kwargs": ("eps", "affine", "momentum", "track_running_stats"),
    "dropout_op_kwargs": ("p", "inplace"),
    "nonlin_kwargs": ("inplace", "negative_slope", "alpha", "approximate", "num_parameters", "init"),
}
_SIZES = ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")
_OTHERS = ("n_stages", "kernel_sizes", "strides", "conv_bias", "nonlin_first", "deep_supervision", "stem_channels")

_MAX_STAGES = 16
_MAX_BLOCKS = 64
_MAX_FEATURES = 8192
_MAX_KERNEL = 32
MAX_WEIGHTS = 2_000_000_000
"""Limit for the weights of a network; nnU-Net's largest own plans give some 600 million."""


def check_network(name: str, arguments: dict[str, Any], inputs: int, outputs: int) -> str:
    """Return the name of a network's class if it is on the list and its arguments are plain and of usual sizes.

    Args:
        name: dotted name of the class.
        arguments: its arguments, as in plans.json.
        inputs: number of channels of its input.
        outputs: number of channels of its output.

    Raises:
        ValueError: it is not.
    """
    short = name.rpartition(".")[2]
    if not name.startswith(_PACKAGE) or short not in _NETWORKS:
        raise ValueError(f"network_class_name is {name!r}; expected one of {', '.join(_NETWORKS)} of {_PACKAGE[:-1]}")
    known = {*_OPERATIONS, *_SETTINGS, *_SIZES, *_OTHERS}
    if unknown := sorted({*arguments} - known):
        raise ValueError(f"arch_kwargs has {', '.join(unknown[:3])}, which is not known")
    for key, allowed in _OPERATIONS.items():
        value = arguments.get(key)
        if value is not None and (not str(value).startswith("torch.nn.") or _last(value) not in allowed):
            raise ValueError(f"arch_kwargs has {key}={value!r}; expected one of torch.nn's {', '.join(allowed)}")
    for key, settings in _SETTINGS.items():
        for setting, value in (arguments.get(key) or {}).items():
            if setting not in settings or not isinstance(value, bool | int | float | str | None):
                raise ValueError(f"arch_kwargs has {setting}={value!r} in {key}; expected {', '.join(settings)}")
    if "conv_op" not in arguments or arguments["conv_op"] is None:
        raise ValueError("arch_kwargs has no conv_op")
    weights = _count_weights(arguments, inputs, outputs)
    if weights > MAX_WEIGHTS:
        raise ValueError(f"its network has about {weights:.0e} weights; expected at most {MAX_WEIGHTS:.0e}")
    return short


def build_network(configuration: Configuration) -> torch.nn.Module:
    """Return the network of a configuration, with weights at random and without deep supervision.

    Raises:
        Exception: whatever arguments that do not fit each other raise.
    """
    import torch
    from dynamic_network_architectures.architectures import unet

    arguments = json.loads(configuration.network_arguments)
    for key in _OPERATIONS:
        if arguments.get(key) is not None:
            arguments[key] = getattr(torch.nn, _last(arguments[key]))
    arguments |= {"deep_supervision": False}
    inputs, outputs = channels(configuration)
    network_class = getattr(unet, configuration.network_class)
    with torch.random.fork_rng(devices=[]):  # initial values must not move the random numbers of the caller
        network: torch.nn.Module = network_class(input_channels=inputs, num_classes=outputs, **arguments)
    return network


def channels(configuration: Configuration) -> tuple[int, int]:
    """Return the numbers of channels of a network's input, label maps of a previous stage included, and output."""
    highest = max(value for _, values in configuration.labels for value in values)
    previous = highest if configuration.previous_stage else 0
    return len(configuration.channel_names) + previous, len(configuration.region_labels) or highest + 1


def _count_weights(arguments: dict[str, Any], inputs: int, outputs: int) -> float:
    """Return roughly how many weights a network has, after the sizes of its parts were checked."""
    stages = _size(arguments["n_stages"], "n_stages", _MAX_STAGES)
    features = _per_stage(arguments["features_per_stage"], stages, "features_per_stage", _MAX_FEATURES)
    key = "n_conv_per_stage" if "n_conv_per_stage" in arguments else "n_blocks_per_stage"
    blocks = _per_stage(arguments[key], stages, key, _MAX_BLOCKS)
    decoder = arguments["n_conv_per_stage_decoder"]
    decoding = _per_stage(decoder, stages - 1, "n_conv_per_stage_decoder", _MAX_BLOCKS)
    _size(arguments.get("stem_channels") or 1, "stem_channels", _MAX_FEATURES)
    kernels = [_kernel(one, "kernel_sizes") for one in _listed(arguments["kernel_sizes"], stages, "kernel_sizes")]
    strides = [_kernel(one, "strides") for one in _listed(arguments["strides"], stages, "strides")]
    total, below = 0.0, inputs
    for width, count, kernel in zip(features, blocks, kernels, strict=True):
        total += kernel * width * (below + 2 * count * width)
        below = width
    for (above, deep), count, kernel, stride in zip(
        pairwise(features), reversed(decoding), kernels, strides[1:], strict=False
    ):
        total += stride * deep * above + kernel * above * above * (count + 1) + above * outputs
    return total


def _per_stage(value: Any, stages: int, key: str, most: int) -> list[int]:
    return [_size(one, key, most) for one in _listed(value, stages, key)]


def _listed(value: Any, stages: int, key: str) -> list[Any]:
    values = list(value) if isinstance(value, list) else [value] * stages
    if len(values) != stages:
        raise ValueError(f"arch_kwargs has {len(values)} {key} for {stages} stages")
    return values


def _size(value: Any, key: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"arch_kwargs has {key}={value!r}; expected a whole number from 1 to {most}")
    return value


def _kernel(value: Any, key: str) -> int:
    """Return the number of voxels of a kernel or a stride, one number or one for each axis."""
    values = value if isinstance(value, list) else [value] * 3
    if not 2 <= len(values) <= 3:
        raise ValueError(f"arch_kwargs has {key} with {len(values)} axes; expected two or three")
    return prod(_size(one, key, _MAX_KERNEL) for one in values)


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]
