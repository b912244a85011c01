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

MODULE = "dynamic_network_architectures.architectures.unet"
_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
OPERATIONS = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": ("Dropout", "Dropout2d", "Dropout3d"),
    "nonlin": ("LeakyReLU", "ReLU", "GELU", "SiLU", "ELU", "PReLU"),
}
"""Arguments that plans.json gives as dotted names -> the classes of torch.nn that they may name."""

_SETTINGS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "norm_op_kwargs": {"eps": float, "affine": bool, "momentum": (float, int, type(None)), "track_running_stats": bool},
    "dropout_op_kwargs": {"p": (float, int), "inplace": bool},
    "nonlin_kwargs": {
        "inplace": bool,
        "negative_slope": float,
        "alpha": (float, int),
        "approximate": str,
        "init": float,
    },
}
"""Arguments of these classes -> their types."""

_SIZES = ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")
_SWITCHES = ("conv_bias", "nonlin_first", "deep_supervision")
_OTHERS = ("n_stages", "kernel_sizes", "strides", "stem_channels")

_MAX_STAGES = 16
_MAX_BLOCKS = 64
_MAX_FEATURES = 8192
_MAX_KERNEL = 32
_MAX_SETTING = 1000
MAX_WEIGHTS = 2_000_000_000
"""Limit for the weights of a network; nnU-Net's largest own plans give some 600 million."""


def check_network(name: str, arguments: dict[str, Any], inputs: int, outputs: int, patch_size: tuple[int, ...]) -> str:
    """Return the name of a network's class if it is on the list and its arguments are plain and of usual sizes.

    Args:
        name: dotted name of the class.
        arguments: its arguments, as in plans.json.
        inputs: number of channels of its input.
        outputs: number of channels of its output.
        patch_size: voxels of a window, two or three numbers.

    Raises:
        ValueError: it is not.
    """
    module, _, short = name.rpartition(".")
    if module != MODULE or short not in _NETWORKS:
        raise ValueError(f"network_class_name is {name!r}; expected one of {', '.join(_NETWORKS)} of {MODULE}")
    known = {*OPERATIONS, *_SETTINGS, *_SIZES, *_SWITCHES, *_OTHERS}
    if unknown := sorted({*arguments} - known):
        raise ValueError(f"arch_kwargs has {', '.join(unknown[:3])}, which is not known")
    for key in OPERATIONS:
        _check_operation(key, arguments.get(key), len(patch_size))
    for key, types in _SETTINGS.items():
        for setting, value in (arguments.get(key) or {}).items():
            if setting not in types or not isinstance(value, types[setting]) or str(value)[:1] in "$@%":
                raise ValueError(f"arch_kwargs has {setting}={value!r} in {key}; expected {', '.join(types)}")
            lowest = 0 if setting in ("eps", "momentum", "p") else -_MAX_SETTING
            if isinstance(value, float | int) and not lowest <= value <= (1 if lowest == 0 else _MAX_SETTING):
                raise ValueError(f"arch_kwargs has {setting}={value!r} in {key}; expected a usual number")
    for key in _SWITCHES:
        if not isinstance(arguments.get(key, False), bool):
            raise ValueError(f"arch_kwargs has {key}={arguments[key]!r}; expected true or false")
    weights = count_weights(arguments, inputs, outputs)
    if weights > MAX_WEIGHTS:
        raise ValueError(f"its network has about {weights:.0e} weights; expected at most {MAX_WEIGHTS:.0e}")
    _check_strides(arguments, patch_size)
    return short


def check_imports(names: Any) -> None:
    """Check that plans ask for no import but that of the operations.

    Args:
        names: `_kw_requires_import` of plans.json: the arguments that are dotted names.

    Raises:
        ValueError: they ask for another one.
    """
    if not isinstance(names, list) or not {*map(str, names)} <= {*OPERATIONS}:
        raise ValueError(f"_kw_requires_import is {names!r}; expected {', '.join(OPERATIONS)}")


def build_network(configuration: Configuration, device: str = "cpu") -> torch.nn.Module:
    """Return the network of a configuration, with weights at random and without deep supervision.

    Args:
        configuration: the configuration.
        device: where its weights are; "meta" for a network whose weights take no memory until they are loaded.

    Raises:
        Exception: whatever arguments that do not fit each other raise.
    """
    import torch
    from dynamic_network_architectures.architectures import unet

    arguments = {
        key: getattr(torch.nn, value) if key in OPERATIONS and value else value
        for key, value in plain_arguments(configuration).items()
    }
    arguments["deep_supervision"] = False
    inputs, outputs = channels(configuration)
    network_class = getattr(unet, configuration.network_class)
    # initial values must not move the random numbers of the caller
    with torch.random.fork_rng(devices=[]), torch.device(device):
        network: torch.nn.Module = network_class(input_channels=inputs, num_classes=outputs, **arguments)
    return network


def plain_arguments(configuration: Configuration) -> dict[str, Any]:
    """Return the arguments of a configuration's network, with the names of torch.nn's classes alone, such as Conv3d."""
    arguments: dict[str, Any] = json.loads(configuration.network_arguments)
    return {key: _last(value) if key in OPERATIONS and value else value for key, value in arguments.items()}


def channels(configuration: Configuration) -> tuple[int, int]:
    """Return the numbers of channels of a network's input, label maps of a previous stage included, and output."""
    highest = max(value for _, values in configuration.labels for value in values)
    previous = len(configuration.foreground_labels) if configuration.previous_stage else 0
    return len(configuration.channel_names) + previous, len(configuration.region_labels) or highest + 1


def count_weights(arguments: dict[str, Any], inputs: int, outputs: int) -> float:
    """Return about how many weights a network has.

    Raises:
        ValueError: its parts do not have usual sizes.
    """
    stages = _size(arguments["n_stages"], "n_stages", _MAX_STAGES)
    features = _per_stage(arguments["features_per_stage"], stages, "features_per_stage", _MAX_FEATURES)
    key = "n_conv_per_stage" if "n_conv_per_stage" in arguments else "n_blocks_per_stage"
    each = 1 if key == "n_conv_per_stage" else 2  # convolutions of a block
    blocks = _per_stage(arguments[key], stages, key, _MAX_BLOCKS)
    decoder = arguments["n_conv_per_stage_decoder"]
    decoding = _per_stage(decoder, stages - 1, "n_conv_per_stage_decoder", _MAX_BLOCKS)
    stem = _size(arguments.get("stem_channels") or features[0], "stem_channels", _MAX_FEATURES)
    kernels = [prod(one) for one in _per_axis(arguments, "kernel_sizes", stages)]
    strides = [prod(one) for one in _per_axis(arguments, "strides", stages)]
    total, below = float(kernels[0] * inputs * stem * (each == 2)), inputs if each == 1 else stem
    for width, count, kernel in zip(features, blocks, kernels, strict=True):
        total += kernel * width * (below + (each * count - 1) * width)
        below = width
    for (above, deep), count, kernel, stride in zip(
        pairwise(features), reversed(decoding), kernels, strides[1:], strict=False
    ):
        total += stride * deep * above + kernel * above * above * (each * count + 1) + above * outputs
    return total


def _check_operation(key: str, name: Any, dimensions: int) -> None:
    """Raise ValueError unless a dotted name stands for a listed class for images of so many dimensions."""
    if name is None and key != "conv_op":
        return
    short = _last(name)
    if not str(name).startswith("torch.nn.") or short not in OPERATIONS[key]:
        raise ValueError(f"arch_kwargs has {key}={name!r}; expected one of torch.nn's {', '.join(OPERATIONS[key])}")
    if short.endswith("d") and not short.endswith(f"{dimensions}d"):
        raise ValueError(f"arch_kwargs has {key}={name!r} for windows of {dimensions} dimensions")


def _check_strides(arguments: dict[str, Any], patch_size: tuple[int, ...]) -> None:
    """Raise ValueError unless a window can be halved so often, and come out of the network in its size."""
    stages = arguments["n_stages"]
    kernels, strides = (_per_axis(arguments, key, stages) for key in ("kernel_sizes", "strides"))
    for axes in (*kernels, *strides):
        if len(axes) not in (1, len(patch_size)):
            raise ValueError(f"arch_kwargs has kernels or strides of {len(axes)} axes; expected {len(patch_size)}")
    if any(size % 2 == 0 for kernel in kernels for size in kernel):
        raise ValueError("arch_kwargs has kernel_sizes with even numbers; expected odd ones")
    for axis, size in enumerate(patch_size):
        steps = [stride[axis % len(stride)] for stride in strides]
        if steps[0] != 1 or size % prod(steps):
            raise ValueError(
                f"arch_kwargs has the strides {steps} for {size} voxels; expected a whole fraction of them"
            )


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


def _per_axis(arguments: dict[str, Any], key: str, stages: int) -> list[list[int]]:
    """Return kernels or strides of each stage: one number for all axes, or one for each."""
    result = []
    for one in _listed(arguments[key], stages, key):
        values = one if isinstance(one, list) else [one] * 3
        if not 2 <= len(values) <= 3:
            raise ValueError(f"arch_kwargs has {key} with {len(values)} axes; expected two or three")
        result.append([_size(value, key, _MAX_KERNEL) for value in values][: None if isinstance(one, list) else 1])
    return result


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]
