"""What a bundle's config may use without consent: names of MONAI's and torch's classes and functions.

Nothing on these lists runs code that comes with a bundle, imports a module or looks up a function by a name that the
config gives, reads or writes a file outside the bundle, or downloads. Looking a name up imports no library.
"""

from __future__ import annotations

import re
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


NETWORKS = _names(
    "AHNet AttentionUnet AutoEncoder BasicUNet BasicUNetPlusPlus DAF3D DiNTS DynUNet FlexibleUNet HighResNet "
    "HyenaNDUNETR MedNeXt MedNeXtB MedNeXtL MedNeXtM MedNeXtS Quicknat SegResNet SegResNetDS SegResNetDS2 "
    "SegResNetVAE SwinUNETR TopologyConstruction TopologyInstance UNETR UNet VNet"
)
"""Networks in `monai.networks.nets` that can segment, and their parts."""

TRANSFORMS = _names(
    "Activationsd AddCoordinateChannelsd AdjustContrastd Affined AsChannelLastd AsDiscreted BorderPadd CastToTyped "
    "CenterScaleCropd CenterSpatialCropd ClipIntensityPercentilesd ConcatItemsd CopyItemsd CropForegroundd "
    "DeleteItemsd DivisiblePadd EnsureTyped FillHolesd Flipd FromMetaTensord GaussianSharpend GaussianSmoothd "
    "HistogramNormalized Identityd KeepLargestConnectedComponentd Lambdad MapLabelValued MaskIntensityd "
    "MedianSmoothd NormalizeIntensityd Orientationd RemoveSmallObjectsd RepeatChanneld ResizeWithPadOrCropd Resized "
    "Rotate90d Rotated ScaleIntensityRangePercentilesd ScaleIntensityRanged ScaleIntensityd SelectItemsd "
    "ShiftIntensityd SignalFillEmptyd Spacingd SpatialCropd SpatialPadd SqueezeDimd StdShiftIntensityd "
    "ThresholdIntensityd ToDeviced ToMetaTensord ToNumpyd ToTensord Transposed Zoomd"
)
"""Transforms of dictionaries in `monai.transforms` that give the same result each time."""

READING = _names("AddChanneld AsChannelFirstd DataStatsd EnsureChannelFirstd LoadImaged SaveImaged SimulateDelayd")
"""Transforms that are left out without being built: reading a Volume has done their work, or they only report.

An expression can't make one: `LoadImaged` calls a reader that it finds by name, and `SaveImaged` writes anywhere.
"""

INFERERS = _names("SimpleInferer SliceInferer SlidingWindowInferer SlidingWindowInfererAdapt")
"""Inferers in `monai.inferers`."""

LAYERS = _names(
    "BatchNorm1d BatchNorm2d BatchNorm3d CELU Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d "
    "Dropout Dropout2d Dropout3d ELU GELU GroupNorm Hardswish Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "LayerNorm LeakyReLU Linear MaxPool2d MaxPool3d Mish PReLU ReLU ReLU6 SELU Sequential SiLU Sigmoid Softmax "
    "Softplus Softsign Tanh Upsample"
)
"""Layers in `torch.nn`."""

DTYPES = _names(
    "bfloat16 bool double float float16 float32 float64 half int int16 int32 int64 int8 long short uint8 uint16"
)

FUNCTIONS = _names(
    "abs all any argmax argmin cat clamp clip concat concatenate eq exp flip floor from_numpy ge gt isnan le log "
    "logical_and logical_not logical_or lt max maximum mean min minimum nan_to_num ne permute round sigmoid softmax "
    "squeeze stack sum tensor unsqueeze where zeros_like ones_like"
)
"""Functions of torch whose results are about as large as their arguments."""

ARRAYS = _names(
    "abs all any argmax array asarray bool_ ceil clip concatenate e float16 float32 float64 floor inf int16 int32 "
    "int64 int8 isnan max maximum mean min minimum nan nan_to_num pi prod round squeeze stack sum uint16 uint32 uint8 "
    "where zeros_like ones_like"
)
"""Names of NumPy, by the same rule."""

PATHS = _names("os.path.basename os.path.dirname os.path.exists os.path.isfile os.path.join os.path.splitext")
"""Functions on paths; the two that look at the disk look only into the bundle."""

_ROOMS = {
    "monai.networks.nets": NETWORKS,
    "monai.transforms": TRANSFORMS | {"Compose"},
    "monai.inferers": INFERERS,
}

_ENUMS = re.compile(r"monai\.utils\.(enums\.)?[A-Z][A-Za-z]+\.[A-Z][A-Z0-9_]*")
"""Constants such as monai.utils.CommonKeys.IMAGE."""

_METADATA_KEYS = frozenset(["meta_keys", "meta_key_postfix"])

REMOVED_ARGUMENTS: dict[str, frozenset[str]] = {
    "monai.networks.nets.SwinUNETR": frozenset(["img_size"]),
    **{f"monai.transforms.{name}": _METADATA_KEYS for name in TRANSFORMS - {"ShiftIntensityd"}},
}
"""Arguments that earlier versions of MONAI took and that the result does not depend on."""

RENAMED_ARGUMENTS: dict[str, dict[str, str]] = {"monai.networks.nets.UNETR": {"pos_embed": "proj_type"}}
"""Arguments that earlier versions of MONAI knew by another name."""


def target_name(target: str) -> str:
    """Return the full name of a class on the list, such as "monai.networks.nets.UNet"; "" for any other.

    Args:
        target: short name of MONAI's, or a name with its module, also of an inner module of MONAI.
    """
    module, _, name = target.rpartition(".")
    if module == "torch.nn" or module.startswith("torch.nn.modules."):
        return f"torch.nn.{name}" if name in LAYERS else ""
    if target == "torch.device":
        return target
    for room, names in _ROOMS.items():
        plain = _plain(name) if room == "monai.transforms" else name
        if plain in names and (not module or module == room or module.startswith(f"{room}.")):
            return f"{room}.{plain}"
    return ""


def is_reading(target: Any) -> bool:
    """Return whether a transform is left out without being built."""
    module, _, name = str(target).rpartition(".")
    return _plain(name) in READING and (not module or module.partition(".")[0] == "monai")


def is_listed(name: str) -> bool:
    """Return whether an expression may use a name with its module, such as "torch.float32"."""
    if name.startswith("monai.") and (_ENUMS.fullmatch(name) or target_name(name)):
        return True
    if name.startswith("torch.nn."):
        return bool(target_name(name))
    module, _, last = name.rpartition(".")
    if module == "torch":
        return last in DTYPES | FUNCTIONS or last in ("device", "load", "Tensor")
    if module == "numpy":
        return last in ARRAYS
    return name in PATHS or name in ("torch.cuda.is_available", "torch.nn.functional.softmax")


def _plain(name: str) -> str:
    """Return a dictionary transform's usual name: MONAI knows each as Xd, XD and XDict."""
    for ending in ("Dict", "D"):
        if name.endswith(ending) and len(name) > len(ending):
            return f"{name.removesuffix(ending)}d"
    return name
