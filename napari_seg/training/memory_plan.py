"""Fit a plan into the memory that is there: batches in parts, a smaller patch, or on a GPU a larger batch.

The memory of validations and of the evaluation at the end is estimated from the largest case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from napari_seg.errors import counted
from napari_seg.memory import SAFE_FRACTION, describe_bytes, free_bytes
from napari_seg.training.choices import SOFT
from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.network_cost import NetworkCost
from napari_seg.training.network_plan import SIZES
from napari_seg.training.plan import TrainingPlan

SMALLER = 0.8
"""Factor on the voxels of a patch that does not fit."""
DATASET_FRACTION = 0.05
"""Largest part of the data set in one step, as in nnU-Net."""

SLICES = 8
"""Slices of a patch in slices_2d.yaml."""

PATCHES = "validate_patches"
"""Option that validates on patches."""

_AVERAGED = {"tta", "multi_scale"}
"""Options whose inferers need the logits of the whole image, three times."""
_RESAMPLING = 60
"""Bytes per voxel in which MONAI resamples an image: sampling points with 64 bits."""
_SURFACES = 12
"""Bytes per voxel for the distances between the surfaces of the largest structure."""
_FORWARD = 0.4
"""Memory of a window without gradients, as a fraction of the feature maps that a training step stores. An estimate."""


@dataclass(frozen=True)
class Device:
    """Device of the training.

    Attributes:
        kind: "cpu" or "cuda".
        name: such as "cpu, 2 threads" or "NVIDIA A100-SXM4-40GB".
        free_bytes: memory that the training may use.
    """

    kind: str
    name: str
    free_bytes: int


def find_device() -> Device:
    """Return the device on which `train.yaml` trains."""
    import torch

    if torch.cuda.is_available():
        free = int(SAFE_FRACTION * torch.cuda.mem_get_info()[0])
        return Device("cuda", torch.cuda.get_device_name(), free)
    return Device("cpu", f"cpu, {counted(torch.get_num_threads(), 'thread')}", int(SAFE_FRACTION * free_bytes()))


def needed_bytes(plan: TrainingPlan, cost: NetworkCost, device: str) -> int:
    """Return the estimated memory of a training step of a plan."""
    values = plan.settings | plan.chosen
    slices = values.get("slices_per_case", SLICES) if "slices_2d" in plan.options else 1
    cases = ceil(values["batch_size"] * slices / values.get("accumulation_steps", 1))
    return cost.bytes(cases, device, amp=bool(values.get("amp", device == "cuda")))


def fit_memory(
    make: Callable[..., TrainingPlan],
    cost_of: Callable[[TrainingPlan], NetworkCost | None],
    found: Fingerprint,
    device: Device,
) -> tuple[TrainingPlan, NetworkCost | None]:
    """Return a plan that fits into the memory, and its cost; an unchanged plan if the cost is unknown.

    Batches are computed in parts first, which does not change the result; then the patch gets smaller. On a GPU the
    batch of volumes grows instead, up to the memory that the preset is meant for. What the user set stays; if the plan
    does not fit with it, it is returned as it is.

    Args:
        make: `make_plan` of the data set; takes `patch_voxels` and `memory_batch`.
        cost_of: function that measures the cost of a plan's network on its patch; None if it can't be built.
        found: fingerprint of the data set.
        device: device of the training.
    """
    plan = make()
    cost = cost_of(plan)
    if cost is None:
        return plan, None
    if device.kind == "cuda" and plan.dims == 3 and plan.size is not None and "batch_size" not in plan.chosen:
        batch = _largest_batch(plan, cost, found, min(device.free_bytes, SIZES[plan.size].gpu_gib * 2**30))
        if batch > 2:
            plan = make(memory_batch=batch)
    limit = prod(plan.settings["patch_size"])
    while cost is not None and needed_bytes(plan, cost, device.kind) > device.free_bytes:
        if split_batch(plan, cost, device):
            break
        limit = int(SMALLER * limit)
        if "patch_size" in plan.chosen or limit < 8**plan.dims:
            break
        plan = make(patch_voxels=limit)
        cost = cost_of(plan)
    return plan, cost


def _largest_batch(plan: TrainingPlan, cost: NetworkCost, found: Fingerprint, budget: int) -> int:
    voxels = found.cases * prod(float(edge) for edge in _median_shape(plan, found))
    most = round(DATASET_FRACTION * voxels / prod(plan.settings["patch_size"]))
    batch = 2
    while batch < most and cost.bytes(batch + 1, "cuda", amp=bool(plan.chosen.get("amp", True))) <= budget:
        batch += 1
    return batch


def _median_shape(plan: TrainingPlan, found: Fingerprint) -> list[float]:
    shapes = found.shapes * found.spacings_mm / np.array(plan.settings["spacing_mm"])
    return [float(edge) for edge in np.median(shapes, axis=0)]


def split_batch(plan: TrainingPlan, cost: NetworkCost, device: Device) -> bool:
    """Compute the batch in as few parts as fit into the memory; False if no number of parts does."""
    batch = plan.settings["batch_size"]
    if "accumulation_steps" in plan.chosen:
        return False
    why = "parts of a batch, computed one after the other, because the memory is short; the result is the same"
    for parts in (n for n in range(2, batch + 1) if batch % n == 0):
        plan.set("accumulation_steps", parts, why)
        if needed_bytes(plan, cost, device.kind) <= device.free_bytes:
            return True
    return False


@dataclass(frozen=True)
class ValidationCost:
    """Estimated memory of the process that validates or evaluates the case that takes most.

    Attributes:
        shape: voxels of that case on the network's grid.
        classes: channels of the network.
        validation: bytes of its validation during the training.
        evaluation: bytes of the evaluation at the end, of the case that takes most there.
    """

    shape: tuple[int, ...]
    classes: int
    validation: int
    evaluation: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for plan.json."""
        return {
            "largest case": list(self.shape),
            "channels": self.classes,
            "validation bytes": self.validation,
            "evaluation bytes": self.evaluation,
        }


Grids = Sequence[tuple[tuple[int, ...], tuple[float, ...]]]
"""Shape and spacing in mm of each case, in the network's order of axes; (width, height) and 1 for 2D images."""


def grids_of(
    cases: Iterable[Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
    nnunet: Mapping[str, Any] | None = None,
) -> Grids:
    """Return the grids of all cases, from the facts of their label maps.

    Args:
        cases: the cases.
        facts: path -> shape and affine.
        nnunet: arguments of `NnunetPreprocessd`, whose order of axes is returned instead of RAS+.
    """
    grids = []
    for of_label in (facts[case["label"]] for case in cases):
        shape, affine = of_label["shape"], of_label["affine"]
        order, sizes = np.arange(len(shape)), np.ones(len(shape))
        if affine is not None and len(shape) == 3:
            directions = np.array(affine)[:3, :3]
            sizes = np.linalg.norm(directions, axis=0)
            if nnunet is None or nnunet["reorient"]:
                order = np.argsort(np.abs(directions).argmax(axis=0), kind="stable")
        if nnunet is not None:
            order = order[[2 - axis for axis in nnunet["transpose"]]]
        grids.append((tuple(int(shape[n]) for n in order), tuple(float(sizes[n]) for n in order)))
    return grids


def validation_cost(
    plan: TrainingPlan,
    cost: NetworkCost,
    grids: Grids,
    device: str,
    *,
    channels: int,
    classes: int,
    regions: bool = False,
    options: Sequence[str] = (),
    own_transforms: bool = False,
    plane_mm: Sequence[float] = (),
) -> ValidationCost:
    """Return the memory of validations and of the evaluation at the end.

    Besides the image and the label maps, the logits of one row of windows are in memory (`segnets.decide`).

    Args:
        plan: the plan.
        cost: cost of its network.
        grids: grids of the cases.
        device: "cpu" or "cuda".
        channels: channels of the images.
        classes: channels of the network.
        regions: they are regions.
        options: options that the user chose.
        own_transforms: the images are prepared by other transforms, which the evaluation inverts on all logits.
        plane_mm: voxel size of the slices of a model of nnU-Net, across its first axis; empty for other models.
    """
    window = [int(edge) for edge in plan.settings["patch_size"]]
    batch = 1
    if "slices_2d" in plan.options:
        window.insert(plan.settings["slice_axis"], 1)
        batch = 16
    fixed = cost.bytes(0, device) + _FORWARD * batch * cost.stored_bytes
    found = []
    for shape, sizes in grids:
        spacing = (sizes[0], *plane_mm) if plane_mm else plan.settings.get("spacing_mm", sizes)
        own = tuple(max(1, round(n * mm / to)) for n, mm, to in zip(shape, sizes, spacing, strict=True))
        seen = tuple(map(max, own, window))  # smaller images are padded
        row = whole = 4 * classes * prod(seen)
        if _AVERAGED.isdisjoint({*plan.options, *options}):
            axis = next((n for n, edge in enumerate(seen) if edge > window[n]), 0)
            row = whole * window[axis] // seen[axis]
        else:
            row *= 3
        voxels, own_voxels = prod(shape), prod(own)
        labels = 3 * classes if regions else 6  # result, reference, and a temporary map of either
        labels += 8 * classes * (SOFT in options)  # fractions of the reference, as read and in the batch
        image = 4 * 3 * channels + 4 * 3  # as read, in the batch, and padded; the label as it is read
        resampling = _RESAMPLING * own_voxels * (own != shape and device == "cpu")
        validation = max(resampling, 1.3 * row + own_voxels * (image + labels))
        logits = max(row, whole) if own_transforms else 1.5 * row
        evaluation = max(resampling, logits + own_voxels * image + voxels * (_SURFACES + labels))
        found.append((own, int(fixed + validation), int(fixed + evaluation)))
    largest = max(found, key=lambda one: one[1])
    return ValidationCost(largest[0], classes, largest[1], max(one[2] for one in found))


def validate_within(plan: TrainingPlan, of_case: ValidationCost, device: Device, options: Sequence[str] = ()) -> None:
    """Let a plan validate on patches if its largest case does not fit into the memory.

    A network that segments slices needs whole volumes.

    Args:
        plan: the plan, which is changed.
        of_case: memory of the largest case.
        device: device of the training.
        options: options that the user chose.
    """
    if of_case.validation <= device.free_bytes or "slices_2d" in plan.options or PATCHES in options:
        return
    plan.use(
        PATCHES,
        f"a validation of the largest case ({' x '.join(map(str, of_case.shape))} voxels, {of_case.classes} classes "
        f"with background) would take {describe_bytes(of_case.validation)} of memory; "
        f"{describe_bytes(device.free_bytes)} may be used",
    )
