"""What to train on a data set: stated rules, each answer with its reason.

The rules are those of nnU-Net (Isensee et al. 2021, Nature Methods 18:203) where it has one, cut down to what the
networks here need: they take any input size, so a patch may have any shape.
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
"""What one patch may hold, by device and dimensions: about a second a step on two cores, and 10 GB of a GPU."""
STEP_PIXELS = {"cpu": 8 * 256**2, "cuda": 16 * 512**2}
"""What one step over pictures may hold."""
STEPS = 4000
"""Optimiser steps of a training, whatever the number of cases; as many as the shipped model's."""
VALIDATIONS = 12
EPOCH_STEPS = 50
"""An epoch's least length where cases are larger than a patch, so that what is said once an epoch means something."""
MULTIPLE = 8


@dataclass
class Plan:
    """The values that a data set decides, by the config's ids.

    Attributes:
        dims: of the network.
        settings: id -> value; `normalisation` is a transform, not an id.
        options: names of small configs to merge over the bundle's.
        why: id or option -> the reason, for a person.
        chosen: id -> value that the person decided, which stands in place of the plan's.
    """

    dims: int
    settings: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    def set(self, name: str, value: Any, why: str) -> Any:
        """One value of the config; the one that stands, from which others follow.

        Raises:
            BundleError: `bundle.setting`, the person's is of another kind.
        """
        if name in self.chosen:
            planned, value, why = value, self.chosen[name], f"chosen; planned was {value}"
            if not _fits(name, value, planned):
                raise BundleError("bundle.setting", f"{name} is {value!r}; expected something like {planned}")
        self.settings[name], self.why[name] = value, why
        return value

    def use(self, option: str, why: str) -> None:
        """One more file of options."""
        self.options.append(option)
        self.why[option] = why


def make_plan(
    found: Fingerprint, *, dims: int | None = None, device: str = "cpu", chosen: Mapping[str, Any] | None = None
) -> Plan:
    """Spacing, patch, batch, normalisation and length of a training, by the rules in this module.

    Args:
        found: the data set's.
        dims: of the network; None: 2 for pictures and 3 for volumes.
        device: "cpu" or "cuda", which decides how large a patch may be.
        chosen: id -> value that the person decided.

    Raises:
        BundleError: `bundle.dims`, a 3D network for pictures; `bundle.setting`, a choice of another kind.
    """
    if found.pictures and dims == 3:
        raise BundleError("bundle.dims", "the data set holds pictures, for which a network has 2 dimensions, not 3")
    dims = 2 if found.pictures else dims or 3
    plan = Plan(dims, chosen=dict(chosen or {}))
    if found.pictures:
        plan.use("pictures_2d", "the data set holds pictures")
        spacing = np.ones(2)
    else:
        spacing = np.array(plan.set("spacing_mm", *_spacing(found.spacings_mm, found.shapes)))
    axes = list(range(len(spacing)))
    if dims < len(spacing):
        plan.use("slices_2d", "a 2D network was asked for, and the data set holds volumes")
        across = 2 - int(np.argmax(spacing[::-1]))
        across = plan.set("slice_axis", across, "across the coarsest axis; axial (2) where all are alike")
        axes.remove(across)
    shapes = (found.shapes * found.spacings_mm / spacing)[:, axes]
    patch, why = _patch(shapes, spacing[axes], PATCH_VOXELS[device, dims])
    patch = plan.set("patch_size", patch, f"{why}; {device}")
    whole = bool(np.all(_usual_largest(shapes) <= patch))
    if not whole:
        plan.use("crops_balanced", "an image is larger than a patch, which would often hold background alone")
    if found.pictures:
        batch = min(int(np.clip(STEP_PIXELS[device] // prod(patch), 2, 16)), max(2, found.cases // 2))
        why = f"at most {STEP_PIXELS[device]} pixels, 16 patches and half of the pictures"
        batch = plan.set("batch_size", batch, why)
    else:
        batch = plan.set("batch_size", 2, "a large patch before a large batch: 2 volumes")
    _normalise(plan, found)
    trained_on, patches = 0.8 * found.cases, 1
    if "patches_per_case" in plan.chosen or (not whole and trained_on < EPOCH_STEPS * batch):
        patches = ceil(EPOCH_STEPS * batch / trained_on)
        why = f"few cases, larger than a patch: {EPOCH_STEPS} steps make an epoch"
        patches = plan.set("patches_per_case", patches, why)
    steps_an_epoch = max(1, ceil(trained_on * patches / batch))
    epochs = min(max(round(STEPS / steps_an_epoch), 20), 1000)
    why = f"about {STEPS} steps, at {steps_an_epoch} an epoch; between 20 and 1000 epochs"
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
    """The median of each axis; of one that is coarse in most cases, the finest tenth, as nnU-Net has it."""
    median, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarse = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != coarse]
    why = "the median of the cases"
    if median[coarse] > 3 * median[others].min() and 3 * shape[coarse] < shape[others].min():
        finer = float(np.percentile(spacings[:, coarse], 10))
        median[coarse] = max(finer, median[others].max())
        why += f"; of axis {coarse}, whose voxels are more than three times as thick, the finest tenth"
    return np.round(median, 4).tolist(), why


def _patch(shapes: NDArray[np.float64], spacing: NDArray[np.float64], limit: int) -> tuple[list[int], str]:
    """The whole image where it fits; else the median image, its longest edge in mm shortened until it fits."""
    large = _to_multiple(_usual_largest(shapes))
    if prod(large) <= limit:
        return large, f"holds 95 % of the images whole (rounded up to {MULTIPLE}; at most {limit} voxels)"
    patch = _to_multiple(np.median(shapes, axis=0))
    while prod(patch) > limit:
        longest = max(range(len(patch)), key=lambda axis: (patch[axis] > MULTIPLE, patch[axis] * spacing[axis]))
        patch[longest] -= MULTIPLE
    return patch, f"the median image, its longest edge in mm cut until {limit} voxels hold it"


def _usual_largest(shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.percentile(shapes, 95, axis=0).round(3)


def _to_multiple(shape: NDArray[np.float64]) -> list[int]:
    return [max(1, ceil(float(size) / MULTIPLE)) * MULTIPLE for size in shape]


def _normalise(plan: Plan, found: Fingerprint) -> None:
    """CT has a scale of its own, which every case shares; other images are each their own measure."""
    of = found.foreground
    if found.modality != "CT" or len(found.channels) > 1 or of["std"] == 0:
        plan.set(
            "normalisation",
            {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image", "channel_wise": True},
            "each channel of each image to mean 0 and deviation 1: intensities have no common scale",
        )
        return
    plan.set(
        "normalisation",
        {
            "_target_": "monai.transforms.ScaleIntensityRanged",
            "keys": "image",
            "a_min": of["low"],
            "a_max": of["high"],
            "b_min": round((of["low"] - of["mean"]) / of["std"], 4),
            "b_max": round((of["high"] - of["mean"]) / of["std"], 4),
            "clip": True,
        },
        "CT: cut to the 0.5 and 99.5 percentile of the labelled voxels, then by their mean and deviation",
    )
