"""Derive the settings of a training from a fingerprint: stated rules, each result with its reason.

The rules follow nnU-Net (Isensee et al. 2021, Nature Methods 18:203) where it has one, simplified because the networks
here accept any input size, so that a patch may have any shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import BundleError
from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.network_plan import DEFAULT_SIZE, SIZES, plan_network

CPU_VOXELS = {3: 64**3, 2: 256**2}
"""Largest patch on a CPU in voxels, by dimensions: about a second per step on two cores. A GPU's depends on the size of
the network."""
STEP_PIXELS = {"cpu": 8 * 256**2, "cuda": 16 * 512**2}
"""Largest number of pixels in a step over 2D images, by device."""
STEPS = {"cpu": 4000, "cuda": 25_000}
"""Optimiser steps of a training, by device, whatever the number of cases: an hour or two on either."""
VALIDATIONS = 12
EPOCH_STEPS = 50
"""Minimum steps of an epoch if cases are larger than a patch, so that its mean loss is meaningful."""
MULTIPLE = 8
ANISOTROPIC = 3
"""Ratio of the coarsest axis' spacing to the finest above which slices are augmented within their plane, and the finest
tenth of the coarse spacings is kept, as in nnU-Net."""
_STRUCTURE = ("channels", "strides", "kernels", "encoder_convs", "decoder_convs", "encoder_units")
"""Arguments of the network that must agree with one another: a user who sets one of them replaces the planned ones."""


@dataclass
class TrainingPlan:
    """Planned settings, by config id.

    Attributes:
        dims: spatial dimensions of the network.
        settings: config id -> value; `normalisation` is a transform, not an id.
        options: names of option files to merge over the configs.
        why: id or option -> reason, for the user.
        chosen: id -> value set by the user, which replaces the planned value.
        network: planned arguments of the network's class.
        network_why: reason for them.
        size: name of the preset of the network; None if the network has no presets.
        axes: spatial axes of the network, of the volume's.
    """

    dims: int
    settings: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    network_why: str = "the defaults of this network"
    size: str | None = None
    axes: list[int] = field(default_factory=list)

    def set(self, name: str, value: Any, why: str) -> Any:
        """Set one value of the config and return the value in effect: the user's, if there is one.

        Raises:
            BundleError: `bundle.setting`, the user's value has an unsuitable type or range.
        """
        if name in self.chosen:
            planned, value, why = value, self.chosen[name], f"chosen; planned was {value}"
            if not _fits(name, value, planned):
                raise BundleError("bundle.setting", f"found {value!r} for {name}; expected a value like {planned}")
        self.settings[name], self.why[name] = value, why
        return value

    def use(self, option: str, why: str) -> None:
        """Add an option file."""
        self.options.append(option)
        self.why[option] = why


def make_plan(
    found: Fingerprint,
    *,
    dims: int | None = None,
    device: str = "cpu",
    chosen: Mapping[str, Any] | None = None,
    network: str = "UNet",
    size: str | None = None,
    patch_voxels: int | None = None,
    memory_batch: int | None = None,
) -> TrainingPlan:
    """Return the planned spacing, patch, network, batch, normalisation and length, by the rules in this module.

    Args:
        found: fingerprint of the data set.
        dims: spatial dimensions of the network; None selects 2 for 2D images and 3 for volumes.
        device: "cpu" or "cuda"; limits the size of a patch.
        chosen: id -> value set by the user.
        network: name of the network's class.
        size: preset of the network; None selects one for the device.
        patch_voxels: largest patch that fits into the memory, if it is smaller than the usual one.
        memory_batch: cases of a step that fit into the memory, if there is room for more than the usual 2.

    Raises:
        BundleError: `bundle.dims`, a 3D network for 2D images; `bundle.setting`, an unsuitable value; `bundle.size`, a
            preset for a network without presets.
    """
    plan = begin(found, dims, chosen)
    if size is not None and network != "UNet":
        raise BundleError("bundle.size", f"found --size {size} for {network}; expected UNet, the network with presets")
    plan.size = (size or DEFAULT_SIZE[device]) if network == "UNet" else None
    if not found.is_2d:
        plan.set("spacing_mm", *_spacing(found.spacings_mm, found.shapes))
    spacing = choose_axes(plan, found)
    axes = plan.axes
    shapes = (found.shapes * found.spacings_mm / spacing)[:, axes]
    usual = CPU_VOXELS[plan.dims] if device == "cpu" else SIZES[plan.size or "M"].gpu_voxels[plan.dims]
    patch, why = _patch(shapes, spacing[axes], min(usual, patch_voxels or usual))
    why = f"{why}, the memory's limit" if patch_voxels and patch_voxels < usual else why
    patch = plan.set("patch_size", patch, f"{why}; {device}")
    _plan_unet(plan, spacing[axes], patch)
    _augment(plan, spacing)
    whole = bool(np.all(_percentile_95(shapes) <= patch))
    if not whole:
        plan.use("crops_balanced", "images are larger than a patch, and many patches would contain only background")
    elif found.is_sparse and "slices_2d" in plan.options:
        plan.use("crops_balanced", "many slices may not be annotated: those through annotated voxels are trained on")
    if found.is_2d:
        batch = min(int(np.clip(STEP_PIXELS[device] // prod(patch), 2, 16)), max(2, found.cases // 2))
        why = f"at most {STEP_PIXELS[device]} pixels, 16 patches and half of the images"
        batch = plan.set("batch_size", batch, why)
    elif memory_batch:
        batch = plan.set("batch_size", memory_batch, "as many as fit into the memory; at most a twentieth of the data")
    else:
        batch = plan.set("batch_size", 2, "a large patch is preferred over a large batch")
    _normalise(plan, found)
    _set_length(plan, found, batch, whole, STEPS[device])
    return plan


def begin(found: Fingerprint, dims: int | None, chosen: Mapping[str, Any] | None) -> TrainingPlan:
    """Return a plan with its dimensions.

    Raises:
        BundleError: `bundle.dims`, a 3D network for 2D images.
    """
    if found.is_2d and dims == 3:
        raise BundleError("bundle.dims", "found --dims 3 for a data set of 2D images; expected 2")
    plan = TrainingPlan(2 if found.is_2d else dims or 3, chosen=dict(chosen or {}))
    if found.is_2d:
        plan.use("images_2d", "the data set contains 2D images")
    return plan


def choose_axes(plan: TrainingPlan, found: Fingerprint) -> NDArray[np.float64]:
    """Choose the axes of the network, and return the planned spacing of all axes of the images."""
    spacing = np.ones(2) if found.is_2d else np.array(plan.settings["spacing_mm"])
    plan.axes = list(range(len(spacing)))
    if plan.dims < len(spacing):
        plan.use("slices_2d", "a 2D network was chosen, and the data set contains volumes")
        across = 2 - int(np.argmax(spacing[::-1]))
        across = plan.set("slice_axis", across, "perpendicular to the coarsest axis; axial (2) if all are equal")
        plan.axes.remove(across)
    return spacing


def _plan_unet(plan: TrainingPlan, spacing: NDArray[np.float64], patch: list[int]) -> None:
    if plan.size is None:
        return
    planned, why = plan_network(plan.size, spacing.tolist(), patch)
    ids = {name.replace("::", "#") for name in plan.chosen}
    if not ids.isdisjoint(f"network_def#{part}" for part in _STRUCTURE):
        plan.network_why = "chosen"
        if others := [part for part in planned if f"network_def#{part}" not in ids]:
            plan.network_why += f"; {', '.join(others)} are the defaults of this network and not those of size "
            plan.network_why += f"{plan.size}, because all must agree"
        plan.size = None
        return
    plan.network, plan.network_why = planned, why


def _augment(plan: TrainingPlan, spacing: NDArray[np.float64]) -> None:
    """Turn, scale, shear and shift thick slices within their plane only, as nnU-Net does; they are still deformed."""
    coarse = int(np.argmax(spacing))
    if plan.dims < 3 or spacing[coarse] <= ANISOTROPIC * spacing.min():
        return
    pairs = [(first, second) for first in range(3) for second in range(3) if first != second]
    ranges = {
        "rotate_range": [0.3 if axis == coarse else 0.0 for axis in range(3)],
        "scale_range": [0.0 if axis == coarse else 0.18 for axis in range(3)],
        "shear_range": [0.0 if coarse in pair else 0.06 for pair in pairs],
        "translate_range": [1 if axis == coarse else 5 for axis in range(3)],
    }
    for name, value in ranges.items():
        setting = f"spatial_augmentation#1#{name}"
        if setting not in plan.chosen:
            why = f"slices are over {ANISOTROPIC} times as thick as their pixels: within their plane only"
            plan.set(setting, value, why)


def _set_length(plan: TrainingPlan, found: Fingerprint, batch: int, whole: bool, steps: int) -> None:
    """Plan the number of epochs, and the patches of a case in each."""
    trained_on, patches = found.training_cases, 1
    if "patches_per_case" in plan.chosen or (not whole and trained_on < EPOCH_STEPS * batch):
        patches = ceil(EPOCH_STEPS * batch / trained_on)
        why = f"few cases, larger than a patch: an epoch gets {EPOCH_STEPS} steps"
        patches = plan.set("patches_per_case", patches, why)
    steps_per_epoch = max(1, ceil(trained_on * patches / batch))
    epochs = min(max(round(steps / steps_per_epoch), 20), 1000)
    why = f"about {steps} steps at {steps_per_epoch} per epoch"
    if epochs != round(steps / steps_per_epoch):
        why = (
            f"{epochs * steps_per_epoch} steps at {steps_per_epoch} per epoch, not {steps}: between 20 and 1000 epochs"
        )
    epochs = plan.set("max_epochs", epochs, why)
    interval = max(1, epochs // VALIDATIONS)
    plan.set("val_interval", interval, f"{ceil(epochs / interval)} validations over the training")


def _fits(name: str, value: Any, planned: Any) -> bool:
    if name == "slice_axis":
        return value in (0, 1, 2)
    if isinstance(planned, list):
        return isinstance(value, list) and len(value) == len(planned) and all(map(partial(_fits, ""), value, planned))
    return _positive(value) and (isinstance(value, int) or not isinstance(planned, int))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf


def _spacing(spacings: NDArray[np.float64], shapes: NDArray[np.float64]) -> tuple[list[float], str]:
    """Return the median spacing of each axis; for an axis that is much coarser, the 10th percentile, as in nnU-Net."""
    median, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarse = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != coarse]
    why = "median of the cases"
    if median[coarse] > ANISOTROPIC * median[others].min() and ANISOTROPIC * shape[coarse] < shape[others].min():
        finer = float(np.percentile(spacings[:, coarse], 10))
        median[coarse] = max(finer, median[others].max())
        why += f"; for axis {coarse}, whose spacing is over three times as large, the 10th percentile"
    return np.round(median, 4).tolist(), why


def _patch(shapes: NDArray[np.float64], spacing: NDArray[np.float64], limit: int) -> tuple[list[int], str]:
    """Return the size of the whole image if it fits, else of the median image with its longest edge shortened."""
    large = _to_multiple(_percentile_95(shapes))
    if prod(large) <= limit:
        return large, f"contains 95 % of the images whole (rounded up to {MULTIPLE}; at most {limit} voxels)"
    patch = _to_multiple(np.median(shapes, axis=0))
    while prod(patch) > limit:
        longest = max(range(len(patch)), key=lambda axis: (patch[axis] > MULTIPLE, patch[axis] * spacing[axis]))
        patch[longest] -= MULTIPLE
    return patch, f"size of the median image, its longest edge in mm cut until it has at most {limit} voxels"


def _percentile_95(shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.percentile(shapes, 95, axis=0).round(3)


def _to_multiple(shape: NDArray[np.float64]) -> list[int]:
    return [max(1, ceil(float(size) / MULTIPLE)) * MULTIPLE for size in shape]


def _normalise(plan: TrainingPlan, found: Fingerprint) -> None:
    """Plan the normalisation: CT intensities (HU) share one scale, other images are normalised one by one."""
    if "preprocessing" in plan.chosen:
        return
    intensities = found.foreground
    if found.modality != "CT" or len(found.channels) > 1 or intensities["std"] == 0:
        plan.set(
            "normalisation",
            {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image", "channel_wise": True},
            "each channel of each image to mean 0 and standard deviation 1: intensities have no common scale",
        )
        return
    plan.set(
        "normalisation",
        ct_normalisation(intensities),
        "CT: clipped to the 0.5 and 99.5 percentiles of the labelled voxels, then normalised by their mean and "
        "deviation",
    )


def ct_normalisation(intensities: Mapping[str, float]) -> dict[str, Any]:
    """Return the transform that clips CT intensities and normalises them by mean and deviation, as nnU-Net does.

    Args:
        intensities: "low", "high", "mean" and "std" of `Fingerprint.foreground`; the deviation is not 0.
    """
    low, high, mean, std = (intensities[name] for name in ("low", "high", "mean", "std"))
    return {
        "_target_": "monai.transforms.ScaleIntensityRanged",
        "keys": "image",
        "a_min": low,
        "a_max": high,
        "b_min": round((low - mean) / std, 4),
        "b_max": round((high - mean) / std, 4),
        "clip": True,
    }
