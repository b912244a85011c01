"""Derive the settings of a training from a fingerprint: stated rules, each result with its reason.

The rules follow nnU-Net (Isensee et al. 2021, Nature Methods 18:203) where it has one, simplified because the networks
here accept any input size, so that a patch may have any shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import BundleError
from napari_seg.training.fingerprint import Fingerprint

PATCH_VOXELS = {("cpu", 3): 64**3, ("cuda", 3): 128**3, ("cpu", 2): 256**2, ("cuda", 2): 512**2}
"""Largest patch in voxels, by device and dimensions: about a second per step on two cores, and 10 GB on a GPU."""
STEP_PIXELS = {"cpu": 8 * 256**2, "cuda": 16 * 512**2}
"""Largest number of pixels in a step over 2D images, by device."""
STEPS = 4000
"""Optimiser steps of a training, whatever the number of cases; the shipped model was trained with as many."""
VALIDATIONS = 12
EPOCH_STEPS = 50
"""Minimum steps of an epoch if cases are larger than a patch, so that its mean loss is meaningful."""
MULTIPLE = 8


@dataclass
class TrainingPlan:
    """Planned settings, by config id.

    Attributes:
        dims: spatial dimensions of the network.
        settings: config id -> value; `normalisation` is a transform, not an id.
        options: names of option files to merge over the configs.
        why: id or option -> reason, for the user.
        chosen: id -> value set by the user, which replaces the planned value.
    """

    dims: int
    settings: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

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
    found: Fingerprint, *, dims: int | None = None, device: str = "cpu", chosen: Mapping[str, Any] | None = None
) -> TrainingPlan:
    """TrainingPlan spacing, patch, batch, normalisation and length of a training by the rules in this module.

    Args:
        found: fingerprint of the data set.
        dims: spatial dimensions of the network; None selects 2 for 2D images and 3 for volumes.
        device: "cpu" or "cuda"; limits the size of a patch.
        chosen: id -> value set by the user.

    Raises:
        BundleError: `bundle.dims`, a 3D network for 2D images; `bundle.setting`, an unsuitable value.
    """
    if found.is_2d and dims == 3:
        raise BundleError("bundle.dims", "found --dims 3 for a data set of 2D images; expected 2")
    dims = 2 if found.is_2d else dims or 3
    plan = TrainingPlan(dims, chosen=dict(chosen or {}))
    if found.is_2d:
        plan.use("images_2d", "the data set contains 2D images")
        spacing = np.ones(2)
    else:
        spacing = np.array(plan.set("spacing_mm", *_spacing(found.spacings_mm, found.shapes)))
    axes = list(range(len(spacing)))
    if dims < len(spacing):
        plan.use("slices_2d", "a 2D network was chosen, and the data set contains volumes")
        across = 2 - int(np.argmax(spacing[::-1]))
        across = plan.set("slice_axis", across, "perpendicular to the coarsest axis; axial (2) if all are equal")
        axes.remove(across)
    shapes = (found.shapes * found.spacings_mm / spacing)[:, axes]
    patch, why = _patch(shapes, spacing[axes], PATCH_VOXELS[device, dims])
    patch = plan.set("patch_size", patch, f"{why}; {device}")
    whole = bool(np.all(_percentile_95(shapes) <= patch))
    if not whole:
        plan.use("crops_balanced", "images are larger than a patch, and many patches would contain only background")
    if found.is_2d:
        batch = min(int(np.clip(STEP_PIXELS[device] // prod(patch), 2, 16)), max(2, found.cases // 2))
        why = f"at most {STEP_PIXELS[device]} pixels, 16 patches and half of the images"
        batch = plan.set("batch_size", batch, why)
    else:
        batch = plan.set("batch_size", 2, "a large patch is preferred over a large batch")
    _normalise(plan, found)
    trained_on, patches = 0.8 * found.cases, 1
    if "patches_per_case" in plan.chosen or (not whole and trained_on < EPOCH_STEPS * batch):
        patches = ceil(EPOCH_STEPS * batch / trained_on)
        why = f"few cases, larger than a patch: an epoch gets {EPOCH_STEPS} steps"
        patches = plan.set("patches_per_case", patches, why)
    steps_per_epoch = max(1, ceil(trained_on * patches / batch))
    epochs = min(max(round(STEPS / steps_per_epoch), 20), 1000)
    why = f"about {STEPS} steps at {steps_per_epoch} per epoch; between 20 and 1000 epochs"
    epochs = plan.set("max_epochs", epochs, why)
    plan.set("val_interval", max(1, epochs // VALIDATIONS), f"about {VALIDATIONS} validations over the training")
    return plan


def _fits(name: str, value: Any, planned: Any) -> bool:
    if name == "slice_axis":
        return value in (0, 1, 2)
    if isinstance(planned, list):
        return isinstance(value, list) and len(value) == len(planned) and all(_positive(number) for number in value)
    return _positive(value)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _spacing(spacings: NDArray[np.float64], shapes: NDArray[np.float64]) -> tuple[list[float], str]:
    """Return the median spacing of each axis; for an axis that is much coarser, the 10th percentile, as in nnU-Net."""
    median, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarse = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != coarse]
    why = "median of the cases"
    if median[coarse] > 3 * median[others].min() and 3 * shape[coarse] < shape[others].min():
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
    """TrainingPlan the normalisation: CT intensities (HU) share one scale, other images are normalised one by one."""
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
        {
            "_target_": "monai.transforms.ScaleIntensityRanged",
            "keys": "image",
            "a_min": intensities["low"],
            "a_max": intensities["high"],
            "b_min": round((intensities["low"] - intensities["mean"]) / intensities["std"], 4),
            "b_max": round((intensities["high"] - intensities["mean"]) / intensities["std"], 4),
            "clip": True,
        },
        "CT: clipped to the 0.5 and 99.5 percentiles of the labelled voxels, then normalised by their mean and "
        "deviation",
    )
