"""Read `plans.json` and `dataset.json` of an nnU-Net v2 model into a `Configuration`; nothing is imported or run.

Only what nnU-Net itself brings is read: its readers, normalisations, resamplings and U-Nets, by name. Anything else
would give labels that nobody can predict, so it is refused by its key.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from napari_seg.bundles.config.read import TooLargeError, copied, read_config
from napari_seg.bundles.nnunet.configuration import Configuration, Normalisation, Resampling
from napari_seg.bundles.nnunet.network import check_imports, check_network
from napari_seg.errors import BundleError, one_line
from napari_seg.volume import MAX_LABEL

PLANS = "plans.json"
DATASET = "dataset.json"

MAX_PLANS_BYTES = 2**24
"""Size limit of plans.json and dataset.json; the latter may list thousands of training cases."""

ANISOTROPY = 3
"""Ratio of voxel sizes above which nnU-Net resamples the largest one separately."""

_MAX_NAME = 120
_MAX_CHANNELS = 256
_MAX_PATCH_VOXELS = 2**28
_MIN_SPACING = 1e-6
_MAX_VALUE = 1e30
"""Limits for names, for the channels of an image, for the voxels of a window, for their size in mm, and for values."""

_READERS = {
    "SimpleITKIO",
    "SimpleITKIOWithReorient",
    "NibabelIO",
    "NibabelIOWithReorient",
    "NaturalImage2DIO",
    "Tiff3DIO",
}
_SCHEMES: dict[str, Any] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "z-score",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
}
_OLD_NETWORKS = {
    "PlainConvUNet": ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "n_conv_per_stage"),
    "ResidualEncoderUNet": (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "n_blocks_per_stage",
    ),
}
"""Networks of plans from before 2.5 -> their class, and the argument for the convolutions of a stage."""


def read_plans(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return plans.json and dataset.json of a folder as plain data.

    Raises:
        BundleError: `bundle.nnunet`, one of them is missing or damaged; `bundle.too_large`.
    """
    found = []
    for name in (PLANS, DATASET):
        try:
            found.append(read_config(root / name, MAX_PLANS_BYTES))
        except Exception as error:  # a foreign file can hold anything
            code = "bundle.too_large" if isinstance(error, TooLargeError) else "bundle.nnunet"
            cause = one_line("it is missing" if isinstance(error, FileNotFoundError) else str(error), 200)
            text = f"{name} of the nnU-Net model {_shown(root.name)} can't be used: {cause}"
            raise BundleError(code, f"{text}; expected the files that nnU-Net writes") from error
    return found[0], found[1]


def read_configuration(root: Path, name: str, trainer: str) -> Configuration:
    """Return one configuration of a model.

    Args:
        root: folder with plans.json and dataset.json.
        name: of the configuration, such as "3d_fullres".
        trainer: name of the trainer.

    Raises:
        BundleError: `bundle.nnunet`, something in plans.json or dataset.json can't be used; `bundle.too_large`.
    """
    plans, dataset = read_plans(root)
    try:
        return _configuration(plans, dataset, name, trainer)
    except Exception as error:  # a foreign file can hold anything
        cause = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise BundleError(
            "bundle.nnunet",
            f"configuration {_shown(name)} of the nnU-Net model {_shown(root.name)} can't be used: "
            f"{one_line(cause, 300)}; expected what nnU-Net v2 writes",
        ) from error


def _configuration(plans: dict[str, Any], dataset: dict[str, Any], name: str, trainer: str) -> Configuration:
    entry = _inherited(plans["configurations"], name)
    if entry.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise ValueError(f"preprocessor_name is {entry['preprocessor_name']!r}, which is not nnU-Net's own")
    patch_size = tuple(_whole(n, "patch_size") for n in entry["patch_size"])
    spacing = tuple(_voxel_size(value) for value in entry["spacing"])
    if len(patch_size) not in (2, 3) or len(spacing) != len(patch_size):
        raise ValueError(f"patch_size is {patch_size} and spacing {spacing}; expected two numbers each, or three")
    if min(patch_size) < 1 or math.prod(patch_size) > _MAX_PATCH_VOXELS:
        raise ValueError(f"patch_size is {patch_size}; expected from 1 to {_MAX_PATCH_VOXELS} voxels")
    axes = plans["transpose_forward"]
    if not isinstance(axes, list) or sorted(axes) != [0, 1, 2]:
        raise ValueError(f"transpose_forward is {axes!r}; expected an order of three axes")
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        raise ValueError(f"label_manager is {plans['label_manager']!r}, which is not nnU-Net's own")
    reader = str(dataset.get("overwrite_image_reader_writer") or plans["image_reader_writer"])
    if reader not in _READERS:
        raise ValueError(f"image_reader_writer is {reader!r}, which is not nnU-Net's own")
    channels = _channel_names(dataset)
    labels, region_labels, ignore_label = _labels(dataset)
    previous = str(entry.get("previous_stage") or "")
    inputs = len(channels) + (len({v for _, values in labels for v in values if v > 0}) if previous else 0)
    network_class, arguments = _network(entry, len(patch_size))
    outputs = len(region_labels) or _highest(labels) + 1
    return Configuration(
        name=one_line(name, _MAX_NAME),
        dataset=one_line(plans.get("dataset_name") or dataset.get("name") or "", _MAX_NAME),
        trainer=one_line(trainer, _MAX_NAME),
        plans=one_line(plans.get("plans_name") or "", _MAX_NAME),
        patch_size=patch_size,
        spacing_mm=spacing,
        transpose=(axes[0], axes[1], axes[2]),
        reader=reader,
        normalisation=_normalisations(plans, entry, len(channels)),
        resample_image=_resampling(entry, "data"),
        resample_labels=_resampling(entry, "seg"),
        resample_values=_resampling(entry, "probabilities"),
        network_class=check_network(network_class, arguments, inputs, outputs, patch_size),
        network_arguments=json.dumps(arguments),
        channel_names=channels,
        labels=labels,
        region_labels=region_labels,
        ignore_label=ignore_label,
        previous_stage=one_line(previous, _MAX_NAME),
        file_ending=one_line(dataset.get("file_ending") or "", _MAX_NAME),
    )


def _inherited(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits from others."""
    chain: list[str] = []
    current: Any = name
    while current is not None:
        if current in chain:
            raise ValueError(f"{' inherits from '.join([*chain, str(current)])}, which is a circle")
        if current not in configurations:
            known = ", ".join(map(str, configurations))
            raise ValueError(f"plans.json has no configuration {current!r}; it has {known}")
        chain.append(current)
        current = configurations[current].get("inherits_from")
    result: dict[str, Any] = {}
    for one in reversed(chain):
        result |= copied(configurations[one])
    return result


def _channel_names(dataset: dict[str, Any]) -> tuple[str, ...]:
    entry = dataset.get("channel_names") or dataset["modality"]
    names = {int(number): one_line(name, _MAX_NAME) for number, name in entry.items()}
    if not 1 <= len(names) <= _MAX_CHANNELS or sorted(names) != list(range(len(names))):
        raise ValueError(f"channel_names numbers its channels {sorted(names)[:5]}; expected 0, 1, 2 and so on")
    ordered = [names[number] or str(number) for number in range(len(names))]
    return tuple(f"{name} ({n})" if ordered.count(name) > 1 else name for n, name in enumerate(ordered))


def _labels(dataset: dict[str, Any]) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[int, ...], int | None]:
    """Return names with their values, the labels of regions in the result, and the value of ignored voxels."""
    entry = dict(dataset["labels"])
    if any(str(value).isdigit() for value in entry) and all(isinstance(name, str) for name in entry.values()):
        raise ValueError("labels maps values to names, as nnU-Net v1 did; expected names -> values")
    if entry.get("background") != 0:
        raise ValueError(f"labels has background: {entry.get('background')!r}; expected 0")
    ignored = entry.pop("ignore", None)
    ignore_label = None if ignored is None else _whole(ignored, "labels")
    labels = tuple(
        (one_line(name, _MAX_NAME), tuple(_whole(v, "labels") for v in (value if isinstance(value, list) else [value])))
        for name, value in entry.items()
    )
    values = sorted({value for _, found in labels for value in found})
    is_named = bool(labels) and all(found for _, found in labels)
    if not is_named or values[0] < 0 or values[-1] > MAX_LABEL or len(values) > MAX_LABEL:
        raise ValueError(f"labels has values from {values[:1]} to {values[-1:]}; expected 0 to {MAX_LABEL}")
    if ignore_label is not None and ignore_label <= values[-1]:
        raise ValueError(f"labels has the value {ignore_label} for ignore; expected the highest value")
    has_regions = any(len(found) > 1 for _, found in labels)
    if not has_regions:
        if values != list(range(len(values))) or len(labels) != len(values) or len(values) < 2:
            found = [value for _, (value,) in labels][:8]
            raise ValueError(f"labels has the values {found}; expected 0, 1, 2 and so on, each once and without a gap")
        return labels, (), ignore_label
    regions = tuple(one for one in labels if set(one[1]) != {0})
    order = tuple(_whole(label, "regions_class_order") for label in dataset["regions_class_order"])
    if len(order) != len(regions) or not all(0 < label <= MAX_LABEL for label in order):
        raise ValueError(f"regions_class_order is {order[:8]}; expected a label for each of {len(regions)} regions")
    return regions, order, ignore_label


def _highest(labels: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    return max(value for _, values in labels for value in values)


def _normalisations(plans: dict[str, Any], entry: dict[str, Any], channels: int) -> tuple[Normalisation, ...]:
    properties = plans.get("foreground_intensity_properties_per_channel")
    if properties is None:
        properties = plans["foreground_intensity_properties_by_modality"]
    schemes, masks = list(entry["normalization_schemes"]), list(entry["use_mask_for_norm"])
    if len(schemes) != channels or len(masks) != channels:
        raise ValueError(f"normalization_schemes has {len(schemes)} entries for {channels} channels")
    found = []
    for number, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in _SCHEMES:
            raise ValueError(f"normalization_schemes names {scheme!r}, which is not nnU-Net's own")
        if scheme != "CTNormalization":
            found.append(Normalisation(_SCHEMES[scheme], inside_mask=bool(mask) and scheme == "ZScoreNormalization"))
            continue
        one = properties[str(number)]
        keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
        mean, std, low, high = (_finite(one[key], key) for key in keys)
        found.append(Normalisation("ct", mean, std, low, high))
    return tuple(found)


def _resampling(entry: dict[str, Any], what: str) -> Resampling:
    key = f"resampling_fn_{what}"
    name, arguments = str(entry[key]), dict(entry.get(f"{key}_kwargs") or {})
    is_labels = what == "seg"
    if bool(arguments.pop("is_seg", is_labels)) != is_labels:
        raise ValueError(f"{key}_kwargs says is_seg={not is_labels}")
    separate_z = arguments.pop("force_separate_z", False if name == "resample_data_or_seg_to_shape" else None)
    if separate_z not in (None, True, False):
        raise ValueError(f"{key}_kwargs has force_separate_z={separate_z!r}; expected true, false or null")
    if arguments.pop("separate_z_anisotropy_threshold", ANISOTROPY) != ANISOTROPY:
        raise ValueError(f"{key}_kwargs has another separate_z_anisotropy_threshold than {ANISOTROPY}")
    if name == "no_resampling_hack":
        return Resampling("none")
    if name == "resample_torch_fornnunet":
        for ignored in ("num_threads", "device"):
            arguments.pop(ignored, None)
        if arguments.pop("memefficient_seg_resampling", False) and is_labels:
            raise ValueError(f"{key}_kwargs has memefficient_seg_resampling, which is not supported")
        is_known = arguments.pop("aniso_axis_mode", "nearest-exact") == "nearest-exact"
        if arguments.pop("mode", "linear") != "linear" or not is_known or arguments:
            raise ValueError(f"{key}_kwargs has {sorted(arguments)[:3] or 'another mode'}, which is not supported")
        return Resampling("torch", 1, 0, separate_z)
    if name != "resample_data_or_seg_to_shape":
        raise ValueError(f"{key} is {name!r}, which is not nnU-Net's own or not supported")
    order, order_z = int(arguments.pop("order", 3)), int(arguments.pop("order_z", 0))
    if arguments:
        raise ValueError(f"{key}_kwargs has {sorted(arguments)[:3]}, which is not known")
    if order not in range(6) or order_z not in range(6):
        raise ValueError(f"{key}_kwargs has the orders {order} and {order_z}; expected 0 to 5")
    return Resampling("spline", order, order_z, separate_z)


def _network(entry: dict[str, Any], dimensions: int) -> tuple[str, dict[str, Any]]:
    """Return the class of the network and its arguments; plans from before 2.5 describe it in fields of their own."""
    if "architecture" in entry:
        architecture = entry["architecture"]
        check_imports(architecture.get("_kw_requires_import", []))
        return str(architecture["network_class_name"]), dict(architecture["arch_kwargs"])
    name = str(entry["UNet_class_name"])
    if name not in _OLD_NETWORKS:
        raise ValueError(f"UNet_class_name is {name!r}; expected {' or '.join(_OLD_NETWORKS)}")
    network_class, convolutions = _OLD_NETWORKS[name]
    stages = len(entry["n_conv_per_stage_encoder"])
    first, most = int(entry["UNet_base_num_features"]), int(entry["unet_max_num_features"])
    return network_class, {
        "n_stages": stages,
        "features_per_stage": [min(first * 2 ** min(n, 40), most) for n in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": entry["conv_kernel_sizes"],
        "strides": entry["pool_op_kernel_sizes"],
        convolutions: entry["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": entry["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _voxel_size(value: Any) -> float:
    number = _finite(value, "spacing")
    if not _MIN_SPACING <= number <= 1 / _MIN_SPACING:
        raise ValueError(f"spacing holds {number}; expected from {_MIN_SPACING} to {1 / _MIN_SPACING:.0e} mm")
    return number


def _whole(value: Any, key: str) -> int:
    if int(value) != float(value):
        raise ValueError(f"{key} holds {value!r}; expected whole numbers")
    return int(value)


def _finite(value: Any, key: str) -> float:
    number = float(value)
    if not abs(number) < _MAX_VALUE:
        raise ValueError(f"{key} holds {number}; expected a finite number below {_MAX_VALUE:.0e}")
    return number


def _shown(name: str) -> str:
    return repr(one_line(name, _MAX_NAME))
