"""Fit a plan into the memory that is there: batches in parts, a smaller patch, or on a GPU a larger batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

from napari_seg.errors import counted
from napari_seg.memory import SAFE_FRACTION, free_bytes
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
    import numpy as np

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
