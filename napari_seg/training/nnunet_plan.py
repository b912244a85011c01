"""Plan a training by the rules of nnU-Net v2 (Isensee et al. 2021, Nature Methods 18:203), key by key.

The rules are those of its default planner for 8 GB of GPU memory: the median spacing, a network that starts at the full
resolution with 32 features, the largest patch with its median image's proportions whose feature maps fit a reference
size, at least two cases in a batch, and SGD with polynomial decay over 1000 epochs of 250 steps. Names of keys are
nnU-Net's. Its axes are those of the file in reverse order (k, j, i), the coarsest first; here they are (i, j, k).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.plan import TrainingPlan, begin, choose_axes, ct_normalisation

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}
CONVS = 2
"""Convolutions of each level, in the encoder and in the decoder."""
MIN_EDGE = 4
ANISOTROPIC = 3
START_EDGE = {2: 2048, 3: 256}
"""Edge of the square or cube with the number of voxels of the largest patch, by dimensions."""
REFERENCE_VALUES = {2: 85_000_000, 3: 560_000_000}
"""Values of the feature maps of a reference batch, which takes 8 GB."""
REFERENCE_BATCH = {2: 12, 3: 2}
MIN_BATCH = 2
DATASET_FRACTION = 0.05
LOWRES_FRACTION = 0.25
"""Fraction of the median image in a patch below which nnU-Net adds a low-resolution configuration."""
MASK_FRACTION = 0.75
"""Fraction of an image that is not 0 below which the zeros are left out of the normalisation."""
EPOCHS, EPOCH_STEPS = 1000, 250
OVERSAMPLING = 0.33
"""Fraction of a batch that is centred on a labelled voxel."""


def make_nnunet_plan(
    found: Fingerprint,
    outputs: int,
    *,
    parts: int | None = None,
    dims: int | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> tuple[TrainingPlan, dict[str, Any]]:
    """Return the plan of nnU-Net for a data set, and its configuration with nnU-Net's keys.

    Args:
        found: fingerprint of the data set, best of all its cases.
        outputs: number of classes, background included; with `parts`, of regions.
        parts: number of parts that the regions divide the foreground into; None: classes exclude each other.
        dims: spatial dimensions of the network; None selects 2 for 2D images and 3 for volumes.
        chosen: id -> value set by the user.

    Raises:
        BundleError: `bundle.dims`, a 3D network for 2D images; `bundle.setting`, an unsuitable value.
    """
    plan = begin(found, dims, chosen)
    shapes = found.shapes if found.nonzero_shapes is None else found.nonzero_shapes
    why = "nnU-Net: median of the cases; of an axis that is over three times as coarse and as short, 10th percentile"
    spacing = target_spacing(found.spacings_mm, shapes) if not found.is_2d else np.ones(2)
    if not found.is_2d:
        spacing = np.array(plan.set("spacing_mm", spacing.tolist(), why))
    choose_axes(plan, found)
    # nnU-Net's order of the axes; it decides between equal ones
    order = list(range(len(spacing)))[::-1]
    if not found.is_2d:
        first = max(order, key=lambda axis: spacing[axis])
        order = [first, *(axis for axis in order if axis != first)]
    if plan.dims < len(spacing):
        order = [axis for axis in order if axis in plan.axes]
    sizes = np.array([_new_shape(*case, spacing) for case in zip(found.spacings_mm, shapes, strict=True)])
    median_shape = np.median(sizes, axis=0)
    voxels = float(np.prod(median_shape)) * found.cases
    configuration = _configure(spacing[order], median_shape[order], outputs, voxels)
    lowres = plan.dims == 3 and _lowers_resolution(spacing[order], median_shape[order], outputs, found.cases)
    configuration["batch_dice"] = bool(plan.dims == 2 or lowres)
    configuration["median_image_size_in_voxels"] = median_shape[order].tolist()
    back = [order.index(axis) for axis in plan.axes]

    def ours(values: Sequence[Any]) -> list[Any]:
        return [values[place] for place in back]

    plan.set("patch_size", ours(configuration["patch_size"]), "nnU-Net: fits its reference of 8 GB")
    batch = plan.set(
        "batch_size",
        configuration["batch_size"],
        "nnU-Net: fills its reference of 8 GB; at most 5 % of the data set's voxels, at least 2",
    )
    architecture = configuration["architecture"]
    plan.network = {
        "channels": architecture["features_per_stage"],
        "strides": [ours(stride) for stride in architecture["strides"]],
        "kernels": [ours(kernel) for kernel in architecture["kernel_sizes"]],
        "encoder_convs": CONVS,
        "decoder_convs": CONVS,
        "residual": False,
        "deep_supervision": True,
    }
    plan.network_why = "nnU-Net's plain U-Net"
    _normalise(plan, found, configuration)
    _train(plan, found, configuration, batch, outputs - 1 if parts is None else parts)
    if parts is None:
        _adopt(plan, "loss#include_background", False, "nnU-Net: Dice of the classes without background")
    configuration |= {"spacing": spacing[order].tolist(), "axes": [int(axis) for axis in order], "3d_lowres": lowres}
    return plan, configuration


def target_spacing(spacings: NDArray[np.float64], shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spacing of the full-resolution configuration.

    Args:
        spacings: (cases, 3) in mm.
        shapes: (cases, 3) in voxels, without borders of zeros.
    """
    target, shape = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    coarse = len(target) - 1 - int(np.argmax(target[::-1]))
    others = [axis for axis in range(len(target)) if axis != coarse]
    thick = target[coarse] > ANISOTROPIC * target[others].max()
    if thick and shape[coarse] * ANISOTROPIC < shape[others].min():
        finer = float(np.percentile(spacings[:, coarse], 10))
        target[coarse] = finer if finer >= target[others].max() else target[others].max() + 1e-5
    return target


def topology(
    spacing: Sequence[float], patch: Sequence[float]
) -> tuple[list[list[int]], list[list[int]], list[int], list[int]]:
    """Return strides and kernels of each level, the patch padded to a multiple of the total stride, and that multiple.

    In each step those axes are halved that have at least 8 voxels left and less than twice the voxel length of the
    finest of them; a single axis needs 12 voxels. The kernel of an axis is 1 until its voxels are less than twice as
    long as the finest.
    """
    dims = len(spacing)
    length, edges = list(map(float, spacing)), list(map(float, patch))
    strides, kernels, kernel, total = [[1] * dims], [], [1] * dims, [1] * dims
    while True:
        able = [axis for axis in range(dims) if edges[axis] >= 2 * MIN_EDGE]
        finest = min((length[axis] for axis in able), default=0.0)
        halved = [axis for axis in able if length[axis] / finest < 2]
        if not halved or (len(halved) == 1 and edges[halved[0]] < 3 * MIN_EDGE):
            break
        kernel = [3 if size == 3 or mm / min(length) < 2 else 1 for size, mm in zip(kernel, length, strict=True)]
        stride = [2 if axis in halved else 1 for axis in range(dims)]
        strides.append(stride)
        kernels.append(kernel)
        total = [product * step for product, step in zip(total, stride, strict=True)]
        length = [mm * step for mm, step in zip(length, stride, strict=True)]
        edges = [float(ceil(edge / step)) if step > 1 else edge for edge, step in zip(edges, stride, strict=True)]
    kernels.append([3] * dims)
    padded = [int(ceil(edge / multiple) * multiple) for edge, multiple in zip(patch, total, strict=True)]
    return strides, kernels, padded, total


def feature_values(patch: Sequence[int], strides: Sequence[Sequence[int]], outputs: int) -> int:
    """Return the number of values in the feature maps of nnU-Net's plain U-Net for one case."""
    features = _features(len(strides), len(patch))
    sizes, edges = [], list(patch)
    for stride in strides:
        edges = [edge // step for edge, step in zip(edges, stride, strict=True)]
        sizes.append(prod(edges))
    encoder = sum(CONVS * count * size for count, size in zip(features, sizes, strict=True))
    decoder = sum((CONVS + 1) * count * size for count, size in zip(features[:-1], sizes[:-1], strict=True))
    return encoder + decoder + outputs * sizes[0]


def _features(levels: int, dims: int) -> list[int]:
    return [min(MAX_FEATURES[dims], BASE_FEATURES * 2**level) for level in range(levels)]


def _new_shape(spacing: NDArray[np.float64], shape: NDArray[np.float64], target: NDArray[np.float64]) -> list[int]:
    return [round(float(old / new * edge)) for old, new, edge in zip(spacing, target, shape, strict=True)]


def _configure(
    spacing: NDArray[np.float64], median_shape: NDArray[np.float64], outputs: int, dataset_voxels: float
) -> dict[str, Any]:
    """Return patch, batch and architecture of one configuration, with axes in nnU-Net's order."""
    dims = len(spacing)
    mm = [float(length) for length in spacing]
    relative = 1 / spacing
    whole = [round(float(edge)) for edge in relative * (START_EDGE[dims] ** dims / np.prod(relative)) ** (1 / dims)]
    start = [min(edge, float(median)) for edge, median in zip(whole, median_shape, strict=True)]
    strides, kernels, patch, multiple = topology(mm, start)
    reference, reference_batch = REFERENCE_VALUES[dims], REFERENCE_BATCH[dims]
    while (values := feature_values(patch, strides, outputs)) / reference_batch * MIN_BATCH > reference:
        # the axis that is largest in relation to the median image; the last one of equals
        axis = max(range(dims), key=lambda n: (patch[n] / median_shape[n], n))
        smaller = list(patch)
        smaller[axis] -= multiple[axis]
        patch[axis] -= topology(mm, smaller)[3][axis]
        strides, kernels, patch, multiple = topology(mm, patch)
    most = round(dataset_voxels * DATASET_FRACTION / prod(patch))
    batch = max(min(round(reference / values * reference_batch), most), MIN_BATCH)
    levels = len(strides)
    architecture = {
        "n_stages": levels,
        "features_per_stage": _features(levels, dims),
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [CONVS] * levels,
        "n_conv_per_stage_decoder": [CONVS] * (levels - 1),
    }
    return {"patch_size": patch, "batch_size": batch, "architecture": architecture}


def _lowers_resolution(
    spacing: NDArray[np.float64], median_shape: NDArray[np.float64], outputs: int, cases: int
) -> bool:
    """Return whether nnU-Net adds a low-resolution configuration of at most half as many voxels."""
    full = float(np.prod(median_shape))
    patch = _configure(spacing, median_shape, outputs, full * cases)["patch_size"]
    low, voxels = spacing.copy(), full
    while prod(patch) / voxels < LOWRES_FRACTION:
        fine = low.max() / low > 2
        low[fine if fine.any() else slice(None)] *= 1.03
        scaled = spacing / low * median_shape
        voxels = float(np.prod(scaled))
        patch = _configure(low, np.array([round(float(edge)) for edge in scaled]), outputs, voxels * cases)[
            "patch_size"
        ]
    return voxels < full and full / voxels >= 2


def _normalise(plan: TrainingPlan, found: Fingerprint, configuration: dict[str, Any]) -> None:
    is_ct = len(found.channels) == 1 and found.channels[0].casefold() == "ct"
    masked = found.nonzero_fraction < MASK_FRACTION and not is_ct
    configuration["normalization_schemes"] = ["CTNormalization" if is_ct else "ZScoreNormalization"] * len(
        found.channels
    )
    configuration["use_mask_for_norm"] = [masked] * len(found.channels)
    if is_ct and found.foreground["std"] > 0:
        plan.set("normalisation", ct_normalisation(found.foreground), "nnU-Net: the channel is named CT")
        return
    value: dict[str, Any] = {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image", "channel_wise": True}
    if masked:
        value["nonzero"] = True
    plan.set("normalisation", value, "nnU-Net: each channel of each image to mean 0 and standard deviation 1")


def _train(
    plan: TrainingPlan,
    found: Fingerprint,
    configuration: dict[str, Any],
    batch: int,
    sampled: int,
) -> None:
    """Plan optimiser, loss, sampling and length; `sampled` is the number of classes or parts that patches lie on."""
    plan.use("crops_balanced", "nnU-Net: patches centred on labelled voxels")
    plan.use("sgd_poly", "nnU-Net: SGD with Nesterov momentum 0.99 and polynomial decay")
    centred = batch - round(batch * (1 - OVERSAMPLING))
    configuration["oversampled"] = centred
    slices = 8 if "slices_2d" in plan.options else 1
    if slices > 1:
        plan.set("slices_per_case", 1, "nnU-Net: each slice of a batch comes from another case")
    why = f"nnU-Net: {centred} of {batch} patches centred on a voxel of a class, each class equally often"
    ratios = [float(batch - centred), *[centred / sampled] * sampled]
    _adopt(plan, "crop#transforms#0#ratios", ratios, why)
    levels = len(plan.network["channels"])
    weights = [0.5**level for level in range(levels - 1)]
    weights[-1] = 0.0 if levels > 2 else 1.0
    weights = [round(weight / sum(weights), 6) for weight in weights]
    configuration["deep_supervision_weights"] = weights
    _adopt(plan, "loss_function#weights", weights, "nnU-Net: halved from level to level, none for the lowest output")
    if configuration["batch_dice"]:
        _adopt(plan, "loss#batch", True, "nnU-Net: Dice over the whole batch, in 2D, and if there is a low resolution")
    plan.set("max_gradient_norm", 12.0, "nnU-Net")
    _adopt(plan, "ema#momentum", 0.9999, "nnU-Net: the last weights, not their moving average")
    patches = ceil(EPOCH_STEPS * batch / found.training_cases)
    plan.set("patches_per_case", patches, f"nnU-Net: an epoch has {EPOCH_STEPS} steps")
    epochs = plan.set("max_epochs", EPOCHS, "nnU-Net")
    interval = max(1, epochs // 12)
    why = f"{ceil(epochs / interval)} validations; nnU-Net validates patches in each epoch"
    plan.set("val_interval", interval, why)


def _adopt(plan: TrainingPlan, name: str, value: Any, why: str) -> None:
    """Set a value, unless the user has set it; ratios and weights may be 0."""
    if name not in plan.chosen:
        plan.settings[name], plan.why[name] = value, why
