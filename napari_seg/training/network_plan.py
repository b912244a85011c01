"""Plan the U-Net of a training: depth, strides and kernels of each axis, and features, by spacing, patch and size.

The rules for strides and kernels are nnU-Net's (Isensee et al. 2021, Nature Methods 18:203): only the axes with the
finest voxels are halved, so that voxels become isotropic level by level, and a convolution mixes along an axis only
where its voxels are at most twice as long as the finest. So slices of 5 mm are not halved before the pixels within them
have grown to their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any

MIN_EDGE = 4
"""Smallest edge of the lowest feature map in voxels, as in nnU-Net."""
SMALL_HALVINGS, SMALL_EDGE = 4, 2
"""Halvings for which a smaller edge is enough: the shipped model, whose lowest feature map of a crop has 3 x 4 x 3
voxels, was chosen among several networks."""
ISOTROPIC = 2
"""Ratio of two axes' voxel lengths below which they count as equal."""
MAX_FEATURES = {2: 512, 3: 320}
"""Largest number of features, by dimensions, as in nnU-Net."""


@dataclass(frozen=True)
class Size:
    """A preset of network size.

    Attributes:
        full_size: the first level has the image's full resolution; False: half of it, which takes a fraction of the
            time and memory, and the last step combines the result with the image.
        units: residual units of each level of the encoder; the last number holds for all further levels.
        gpu_voxels: largest patch on a GPU, by dimensions.
        gpu_gib: memory of a GPU that it is meant for, in GiB.
        what: description for the user.
    """

    full_size: bool
    units: tuple[int, ...]
    gpu_voxels: dict[int, int]
    gpu_gib: int
    what: str


SIZES = {
    "S": Size(False, (1,), {2: 512**2, 3: 128**3}, 6, "from half the resolution; for CPUs"),
    "M": Size(True, (1,), {2: 512**2, 3: 128**3}, 10, "from the full resolution; for GPUs of 10 GiB"),
    "L": Size(True, (1, 3, 4, 6), {2: 768**2, 3: 160**3}, 24, "residual encoder of nnU-Net; for GPUs of 24 GiB"),
    "XL": Size(True, (1, 3, 4, 6), {2: 1024**2, 3: 192**3}, 40, "residual encoder of nnU-Net; for GPUs of 40 GiB"),
}
DEFAULT_SIZE = {"cpu": "S", "cuda": "M"}


def plan_network(size: str, spacing_mm: Sequence[float], patch: Sequence[int]) -> tuple[dict[str, Any], str]:
    """Return the arguments of `segnets.UNet` that depend on the data, and the reason for them.

    Args:
        size: name of a preset in `SIZES`.
        spacing_mm: spacing of the network's axes, in mm or pixels.
        patch: size of a patch in voxels, of the same axes.
    """
    preset, dims = SIZES[size], len(patch)
    strides = halvings(spacing_mm, patch)
    kernels = kernel_sizes(spacing_mm, strides)
    if preset.full_size:
        strides, kernels = [[1] * dims, *strides], [_mixing(spacing_mm, [1] * dims), *kernels]
    depth = len(strides)
    units = [*preset.units[:depth], *[preset.units[-1]] * (depth - len(preset.units))]
    lowest = [ceil(edge / step) for edge, step in zip(patch, total_stride(strides), strict=True)]
    why = f"size {size}, {preset.what}; {depth} levels, the lowest of {' x '.join(map(str, lowest))} voxels"
    if any(1 in level for level in strides[preset.full_size :]):
        why += "; axes with coarse voxels or few of them are halved later"
    arguments = {
        "channels": [min(32 * 2**level, MAX_FEATURES[dims]) for level in range(depth)],
        "strides": _short([_short(stride) for stride in strides]),
        "kernels": _short([_short(kernel) for kernel in kernels]),
        "encoder_units": _short(units),
    }
    return arguments, why


def halvings(spacing_mm: Sequence[float], patch: Sequence[int]) -> list[list[int]]:
    """Return the stride of each axis, 1 or 2, for each time that a patch is reduced; at least one of them."""
    spacing, edges = list(spacing_mm), list(patch)
    strides: list[list[int]] = []
    while True:
        smallest = SMALL_EDGE if len(strides) < SMALL_HALVINGS else MIN_EDGE
        able = [axis for axis, edge in enumerate(edges) if ceil(edge / 2) >= smallest]
        finest = min((spacing[axis] for axis in able), default=0.0)
        stride = [2 if axis in able and spacing[axis] < ISOTROPIC * finest else 1 for axis in range(len(edges))]
        if max(stride) == 1:
            return strides or [[2] * len(edges)]
        strides.append(stride)
        spacing = [length * step for length, step in zip(spacing, stride, strict=True)]
        edges = [ceil(edge / step) for edge, step in zip(edges, stride, strict=True)]


def kernel_sizes(spacing_mm: Sequence[float], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the kernel size of each axis, 1 or 3, after each stride; an axis once mixed or halved stays mixed."""
    spacing, kernels = list(spacing_mm), [[1] * len(spacing_mm)]
    for stride in strides:
        spacing = [length * step for length, step in zip(spacing, stride, strict=True)]
        mixing = _mixing(spacing, stride)
        kernels.append([max(before, now) for before, now in zip(kernels[-1], mixing, strict=True)])
    return kernels[1:]


def total_stride(strides: Sequence[Sequence[int]]) -> list[int]:
    """Return the product of all levels' strides along each axis."""
    total = [1] * len(strides[0])
    for stride in strides:
        total = [product * step for product, step in zip(total, stride, strict=True)]
    return total


def _mixing(spacing_mm: Sequence[float], stride: Sequence[int]) -> list[int]:
    finest = min(spacing_mm)
    return [
        3 if step > 1 or length < ISOTROPIC * finest else 1 for length, step in zip(spacing_mm, stride, strict=True)
    ]


def _short(values: Sequence[Any]) -> Any:
    """Return one value in place of equal ones."""
    return values[0] if all(value == values[0] for value in islice(values, 1, None)) else list(values)
