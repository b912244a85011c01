"""Decide the label map of an image while its windows are computed.

Logits of C classes take 4 C bytes per voxel, 11 GiB for 26 classes in 512 x 512 x 400 voxels, so those of a whole image
are never in memory. The windows of a `SlidingWindowInferer` are computed in MONAI's order, which goes along one axis
(`logits_in_parts`): planes that no further window covers are final, and only as many as a window is thick are kept.
Their labels are decided at once, on the grid of the reference; if it is another one than the network's, logits are
interpolated plane by plane, as MONAI's `Invertd` interpolates them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.data import MetaTensor, decollate_batch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.engines.utils import default_prepare_batch
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer
from monai.utils import convert_data_type, ensure_tuple_rep, fall_back_tuple

from segnets.annotation import decide, label_type
from segnets.inferers import with_overlap

Network = Callable[..., torch.Tensor]

_INVERTED = {"Orientation", "SpatialResample"}
"""Transforms of an image after which its affine says where each voxel lies in the file's grid."""

_GROUP_BYTES = 1 << 22
"""Memory of the planes that are interpolated together."""


class Axis(NamedTuple):
    """Place of a grid's axis on an axis of an image.

    Attributes:
        number: axis of the grid that runs along the image's.
        start: coordinate of the grid's first voxel, in voxels of the image.
        step: distance of its voxels, in voxels of the image; negative if the axes have opposite directions.
    """

    number: int
    start: float
    step: float


def prepare_batch(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[()], dict[str, torch.Tensor]]:
    """Return image and label of a batch, and the label as the reference of a `LabelInferer`; for MONAI's evaluator."""
    image, label = default_prepare_batch(batch, device, non_blocking, **kwargs)
    return image, label, (), {"reference": label}


class LabelInferer(Inferer):
    """Infer label maps on the grids of the references, see this module; the evaluator needs `prepare_batch`.

    The result is (N, 1, *spatial), or with regions a mask of each, (N, K, *spatial) of bool, or their probabilities,
    see `decide`. If a grid can't be derived from the transforms of its image, it is the logits on the image's grid.

    Args:
        inferer: inferer that runs the network. The results of any but MONAI's `SlidingWindowInferer` and `SliceInferer`
            are decided when they are complete.
        regions: the channels are regions with a sigmoid each.
        overlap: another overlap of the windows, see `with_overlap`; None: that of the inferer.
        soft: return the probabilities of regions.
    """

    def __init__(
        self, inferer: Inferer, regions: bool = False, overlap: float | None = None, soft: bool = False
    ) -> None:
        super().__init__()
        self.inferer = inferer if overlap is None else with_overlap(inferer, overlap)
        self.regions = regions
        self.soft = soft

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Network, reference: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return labels, or logits, of images.

        Args:
            inputs: (N, C, *spatial).
            network: returns logits.
            reference: (N, 1, *spatial) on the grids of the files or of the images; None: those of the images.
        """
        images = decollate_batch(inputs)
        references = images if reference is None else decollate_batch(reference)
        grids = [axes_of(image, of_case) for image, of_case in zip(images, references, strict=True)]
        found = []
        for image, of_case, axes in zip(images, references, grids, strict=True):
            if axes is None:
                return self.inferer(inputs, network)
            parts = logits_in_parts(self.inferer, convert_data_type(image, torch.Tensor)[0], network)
            found.append(_labels(parts, axes, image.shape[1:], of_case.shape[1:], self.regions, self.soft))
        return torch.stack(found)


def axes_of(image: torch.Tensor, reference: torch.Tensor) -> list[Axis] | None:
    """Return where the grid of a reference lies on each axis of an image; None if the transforms do not tell.

    Args:
        image: (C, *spatial).
        reference: (1, *spatial) on the image's grid, or on that of its file.
    """
    dims = image.ndim - 1
    same = [Axis(axis, 0.0, 1.0) for axis in range(dims)]
    if not (isinstance(image, MetaTensor) and isinstance(reference, MetaTensor)):
        return same
    own = image.affine.double()
    if image.shape[1:] == reference.shape[1:] and torch.allclose(own, reference.affine.to(own), atol=1e-4):
        return same
    file = image.meta.get("original_affine")
    if file is None or any(done["class"] not in _INVERTED for done in image.applied_operations):
        return None
    relative = torch.linalg.solve(own.cpu(), torch.as_tensor(file).double())
    axes = []
    for row, start in zip(relative[:dims, :dims].tolist(), relative[:dims, -1].tolist(), strict=True):
        number = max(range(dims), key=lambda axis: abs(row[axis]))
        if any(abs(row[n]) * reference.shape[1 + n] > 1e-3 for n in range(dims) if n != number):
            return None
        axes.append(Axis(number, start, row[number]))
    return axes if sorted(axis.number for axis in axes) == list(range(dims)) else None


def logits_in_parts(inferer: Inferer, image: torch.Tensor, network: Network) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield the logits of an image, bit by bit those of MONAI, in parts that follow one another along an axis.

    A part is valid until the next one is requested.

    Args:
        inferer: its windows are computed one row after the other, where it is known how.
        image: (C, *spatial).
        network: returns logits.

    Yields:
        The axis, the index of the part's first plane on it, and the logits (K, *spatial).
    """
    if type(inferer) not in (SlidingWindowInferer, SliceInferer) or inferer.buffer_steps or inferer.with_coord:
        yield 0, 0, inferer(image[None], network)[0]
        return
    shape, dims = image.shape[1:], image.ndim - 1
    size = list(inferer.roi_size) if isinstance(inferer.roi_size, Sequence) else [inferer.roi_size] * dims
    run = network
    if isinstance(inferer, SliceInferer):
        size = list(inferer.orig_roi_size)
        size.insert(inferer.spatial_dim, 1)
        run = partial(inferer.network_wrapper, network)
    size = fall_back_tuple(size, shape)
    missing = [max(length - edge, 0) for length, edge in zip(size, shape, strict=True)]
    padded = image[None]
    if any(missing):
        pads = [edge for one in reversed(missing) for edge in (one // 2, one - one // 2)]
        padded = F.pad(padded, pads, mode=inferer.padding_mode, value=inferer.cval)
    steps = [
        length if length == edge else max(1, int(length * (1 - overlap)))
        for length, edge, overlap in zip(size, padded.shape[2:], ensure_tuple_rep(inferer.overlap, dims), strict=True)
    ]
    places = dense_patch_slices(padded.shape[2:], size, steps)
    axis = next((n for n in range(dims) if len({place[n].start for place in places}) > 1), 0)
    inner = tuple(slice(one // 2, one // 2 + edge) for one, edge in zip(missing, shape, strict=True))
    on_cpu = inferer.cpu_thresh is not None and shape.numel() > inferer.cpu_thresh
    device = inferer.device or ("cpu" if on_cpu else image.device)
    windows_device = inferer.sw_device or image.device
    weights = compute_importance_map(
        size, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=windows_device, dtype=image.dtype
    ).to(windows_device, image.dtype)
    total = count = torch.empty(0)
    first = 0  # plane of the image at which the sums begin
    for number in range(0, len(places), inferer.sw_batch_size):
        batch = places[number : number + inferer.sw_batch_size]
        logits = run(torch.cat([padded[(..., *place)] for place in batch]).to(windows_device))
        if logits.shape[2:] != tuple(size):  # a network with another resolution
            yield 0, 0, inferer(image[None], network)[0]
            return
        if not number:
            rows = _with(padded.shape[2:], axis, size[axis])
            total = torch.zeros(logits.shape[1], *rows, dtype=image.dtype, device=device)
            count = torch.zeros_like(total[0])
        logits *= weights  # as MONAI does: in 16 bits if the logits have them
        logits = logits.to(device)
        for window, place in zip(logits, batch, strict=True):
            done = place[axis].start - first
            if done:
                yield axis, first, _mean(total, count, axis, done)[(slice(None), *inner)]
                first += done
                _move_planes(total, axis + 1, done)
                _move_planes(count, axis, done)
            at = (..., *_with(place, axis, slice(None)))
            total[at] += window
            count[at] += weights.to(device)
    yield axis, first, _mean(total, count, axis, size[axis])[(slice(None), *inner)]


def _with(values: Iterable[Any], axis: int, value: Any) -> list[Any]:
    """Return values, with another one for an axis."""
    changed = list(values)
    changed[axis] = value
    return changed


def _mean(total: torch.Tensor, count: torch.Tensor, axis: int, planes: int) -> torch.Tensor:
    """Divide the first planes along an axis, and return them."""
    part = total.narrow(axis + 1, 0, planes)
    part /= count.narrow(axis, 0, planes)
    return part


def _move_planes(sums: torch.Tensor, dim: int, by: int) -> None:
    """Move planes towards the front, and fill the end with 0."""
    kept = max(sums.shape[dim] - by, 0)
    for plane in range(kept):
        sums.select(dim, plane).copy_(sums.select(dim, plane + by))
    sums.narrow(dim, kept, sums.shape[dim] - kept).zero_()


def _labels(
    parts: Iterable[tuple[int, int, torch.Tensor]],
    axes: Sequence[Axis],
    shape: Sequence[int],
    target: Sequence[int],
    regions: bool,
    soft: bool = False,
) -> torch.Tensor:
    """Return the labels that logits on the grid of an image decide on another grid.

    Args:
        parts: as `logits_in_parts` yields them.
        axes: see `axes_of`.
        shape: of the image.
        target: shape of the labels.
        regions: see `decide`.
        soft: see `decide`.
    """
    labels = torch.empty(0)
    is_same = all(axis == Axis(number, 0.0, 1.0) for number, axis in enumerate(axes))
    samples = [_samples(axis, length, target[axis.number]) for axis, length in zip(axes, shape, strict=True)]
    order = [[axis.number for axis in axes].index(number) for number in range(len(axes))]
    last = None  # plane before the part
    for along, start, logits in parts:
        if not start:
            kind = torch.uint8 if soft else torch.bool if regions else label_type(len(logits))
            labels = torch.zeros(len(logits) if regions else 1, *target, dtype=kind, device=logits.device)
        end = start + logits.shape[along + 1]
        if is_same:
            labels.narrow(along + 1, start, end - start).copy_(decide(logits, regions, soft))
            continue
        lower, weights = samples[along]
        upper = torch.where(weights > 0, lower + 1, lower)
        planes = ((upper >= start) & (upper < end)).nonzero()[:, 0]  # those that are not decided yet
        if last is not None:
            logits, start = torch.cat([last, logits], along + 1), start - 1
        last = logits.narrow(along + 1, end - start - 1, 1).clone()
        group = max(1, _GROUP_BYTES * target[axes[along].number] // (8 * len(logits) * prod(target)))
        for chosen in planes.split(group):
            sampled = _interpolate(logits, along + 1, lower[chosen] - start, weights[chosen])
            for other, (indices, shares) in enumerate(samples):
                if other != along:
                    sampled = _interpolate(sampled, other + 1, indices, shares)
            sampled = sampled.permute(0, *(1 + axis for axis in order)).float()
            labels.index_copy_(axes[along].number + 1, chosen.to(labels.device), decide(sampled, regions, soft))
    return labels


def _samples(axis: Axis, length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lower neighbours of so many samples on an axis of an image, and the weights of the upper ones.

    Samples outside of the image have the value at its border. Differences that are rounding errors do not count.
    """
    places = (axis.start + axis.step * torch.arange(count, dtype=torch.double)).clamp(0, length - 1)
    places = torch.where((places - places.round()).abs() < 1e-6, places.round(), places)
    lower = places.floor()
    return lower.long(), places - lower


def _interpolate(logits: torch.Tensor, dim: int, lower: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return values between neighbours along a dimension, with 64 bits like MONAI's `Spacingd`."""
    lower, weights = lower.to(logits.device), weights.to(logits.device)
    near = logits.index_select(dim, lower).double()
    if not weights.any():
        return near
    far = logits.index_select(dim, (lower + 1).clamp(max=logits.shape[dim] - 1)).double()
    return near.lerp_(far, weights.view(-1, *[1] * (logits.ndim - dim - 1)))
