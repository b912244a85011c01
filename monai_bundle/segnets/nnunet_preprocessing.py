"""Preprocessing of an nnU-Net model as a transform of MONAI, the way back to the scan's grid, and its averaged network.

A training that begins from an nnU-Net model keeps its preprocessing. A bundle that `napari-seg models convert` writes
holds a copy of this file as scripts/nnunet.py, so it imports nothing but MONAI, NumPy, SciPy and torch. The rules are
those of nnU-Net
(https://github.com/MIC-DKFZ/nnUNet, Apache-2.0; Isensee et al., Nature Methods 18, 2021).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, zoom

ANISOTROPY = 3
"""Ratio of the largest to the smallest voxel size above which the axis of the largest is resampled on its own."""

OUTSIDE = -10.0
"""Logit of all channels outside of the crop: the first class, background, wins, and no region is present."""

PREVIOUS = "previous"
"""Key of the label map that the previous stage of a cascade found."""

NO_CONTENT = -1
"""nnU-Net's label of background where the image has no content."""


class NnunetPreprocessd(MapTransform, InvertibleTransform):
    """Crop to what is not 0, normalise and resample, in nnU-Net's order; the inverse interpolates logits.

    Args:
        keys: of images (C, I, J, K) with an affine to RAS+, or of 2D images (C, I, J), which count as one slice.
        spacing: voxel size of the network's grid in mm, along nnU-Net's axes; two numbers keep the distance of slices,
            which lie across the first axis.
        transpose: `transpose_forward` of the plans.
        normalisation: of each channel: `scheme` ("ct", "z-score", "rescale", "rgb" or "none"), `mean`, `std`, `low`,
            `high` and `inside_mask`.
        resample_image: how the image is resampled: `method` ("spline", "torch" or "none"), `order`, `order_z` and
            `separate_z`.
        resample_values: how logits are resampled.
        reorient: bring the image to RAS first, as nnU-Net's readers with "WithReorient" do.
        labels: in the second stage of a cascade, the labels of the previous one. Its label map on the voxels of the
            image, `PREVIOUS`, is taken from the data and becomes a channel for each label, 1 inside and 0 outside.
        resample_labels: how this label map is resampled.
        allow_missing_keys: skip images that are missing.
    """

    def __init__(
        self,
        keys: Any,
        spacing: Sequence[float],
        transpose: Sequence[int],
        normalisation: Sequence[Mapping[str, Any]],
        resample_image: Mapping[str, Any],
        resample_values: Mapping[str, Any],
        reorient: bool = False,
        labels: Sequence[int] = (),
        resample_labels: Mapping[str, Any] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = [float(mm) for mm in spacing]
        self.transpose = [int(axis) for axis in transpose]
        self.normalisation = normalisation
        self.resample_image = resample_image
        self.resample_values = resample_values
        self.reorient = reorient
        self.labels = [int(label) for label in labels]
        self.resample_labels = resample_labels or {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with the network's image.

        Raises:
            ValueError: the label map of the previous stage is missing, or does not lie on the image.
        """
        result = dict(data)
        previous = result.pop(PREVIOUS, None) if self.labels else None
        for key in self.key_iterator(result):
            image = result[key]
            array = np.asarray(image.as_tensor().cpu().numpy(), np.float32)
            is_2d_image = array.ndim == 3
            array = array[..., None] if is_2d_image else array
            order, flips = self._axes(image.affine.cpu().numpy())
            arranged = _arranged(array, order, flips)
            old = [_as_read(mm) for mm in np.linalg.norm(image.affine.cpu().numpy()[:3, :3], axis=0)[order]]
            new = self._network_spacing(old)
            mask = binary_fill_holes((arranged != 0).any(axis=0))
            if not mask.any():
                mask[:] = True
            box = [slice(found.min(), found.max() + 1) for found in np.nonzero(mask)]
            cropped, mask = arranged[(slice(None), *box)], mask[tuple(box)]
            if self.labels:
                label_map = _arranged(_on_image(previous, image), order, flips)[(0, *box)].astype(np.int32)
                label_map[(label_map == 0) & ~mask] = NO_CONTENT
                mask |= label_map > 0
            shape = [max(1, round(a / b * n)) for a, b, n in zip(old, new, mask.shape, strict=True)]
            if self.resample_image["method"] == "none":
                shape = list(mask.shape)
            channels = [
                _resampled(_normalised(channel, how, mask), shape, self.resample_image, old, new)
                for channel, how in zip(cropped, self.normalisation, strict=True)
            ]
            if self.labels:
                label_map = _resampled_labels(label_map, shape, self.resample_labels, old, new)
                channels += [(label_map == label).astype(np.float32) for label in self.labels]
            prepared = torch.from_numpy(np.stack(channels))
            made = MetaTensor(prepared, meta=image.meta, applied_operations=image.applied_operations)
            made.affine = torch.from_numpy(_network_affine(image.affine.cpu().numpy(), array, order, flips, box, shape))
            state = {
                "order": [int(axis) for axis in order],
                "flips": [bool(flip) for flip in flips],
                "whole": [int(n) for n in arranged.shape[1:]],
                "start": [int(one.start) for one in box],
                "stop": [int(one.stop) for one in box],
                "spacing": [float(mm) for mm in old],
                "is_2d_image": is_2d_image,
                "affine": image.affine.cpu().double().numpy().tolist(),
            }
            self.push_transform(made, orig_size=array.shape[1:], extra_info=state)
            result[key] = made
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with logits on the scan's grid; outside of the crop all are `OUTSIDE`."""
        result = dict(data)
        for key in self.key_iterator(result):
            values = result[key]
            state = self.pop_transform(values)["extra_info"]
            logits = values.as_tensor().cpu().float().numpy()
            whole = np.full((len(logits), *state["whole"]), OUTSIDE, np.float32)
            box = [slice(start, stop) for start, stop in zip(state["start"], state["stop"], strict=True)]
            shape, old = [one.stop - one.start for one in box], state["spacing"]
            new = self._network_spacing(old)
            for channel, out in zip(logits, whole, strict=True):
                out[tuple(box)] = _resampled(channel, shape, self.resample_values, new, old)
            back = _flipped(whole, state["flips"]).transpose(0, *(1 + np.argsort(state["order"])))
            back = back[..., 0] if state["is_2d_image"] else back
            made = MetaTensor(torch.from_numpy(np.ascontiguousarray(back)), meta=values.meta)
            made.affine = torch.tensor(state["affine"], dtype=torch.float64)
            made.applied_operations = values.applied_operations
            result[key] = made
        return result

    def _network_spacing(self, old: Sequence[float]) -> list[float]:
        return [*old[: 3 - len(self.spacing)], *self.spacing]

    def _axes(self, affine: NDArray) -> tuple[list[int], list[bool]]:
        """Return the image's axis for each of nnU-Net's (z, y, x, then transposed), and whether it is reversed."""
        order, flips = [0, 1, 2], [False, False, False]
        if self.reorient:
            directions = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
            for _ in range(3):  # the clearest direction first
                world, axis = np.unravel_index(directions.argmax(), (3, 3))
                order[world], flips[world] = int(axis), bool(affine[world, axis] < 0)
                directions[world], directions[:, axis] = -1, -1
        chosen = [2 - axis for axis in self.transpose]
        return [order[axis] for axis in chosen], [flips[axis] for axis in chosen]


def _as_read(mm: float) -> float:
    """Return a voxel size as NIfTI states it, without the rounding errors of the affine."""
    rounded = float(f"{mm:.6g}")
    return float(np.float32(rounded if abs(rounded - mm) <= 3e-7 * mm else mm))


def _arranged(array: NDArray, order: Sequence[int], flips: Sequence[bool]) -> NDArray:
    return _flipped(array.transpose(0, *(1 + axis for axis in order)), flips)


def _flipped(array: NDArray, flips: Sequence[bool]) -> NDArray:
    return array[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]


def _on_image(labels: MetaTensor | None, image: MetaTensor) -> NDArray:
    """Return the label map (1, I, J, K) of the previous stage.

    Raises:
        ValueError: it is missing, or has other voxels than the image.
    """
    if labels is None or labels.shape[1:] != image.shape[1:] or not np.allclose(labels.affine, image.affine, atol=1e-3):
        raise ValueError(
            "found no labels of the previous stage on the voxels of the image; run the bundle in the folder previous "
            "on the same images first, and name its results with --previous_dir"
        )
    return np.asarray(labels.as_tensor().cpu().numpy())


def _network_affine(
    affine: NDArray,
    array: NDArray,
    order: Sequence[int],
    flips: Sequence[bool],
    box: Sequence[slice],
    shape: Sequence[int],
) -> NDArray:
    """Return the affine of the network's grid, whose voxels cover the same box as those of the crop."""
    to_image = np.zeros((4, 4))
    to_image[3, 3] = 1
    for n, (axis, flip, part, size) in enumerate(zip(order, flips, box, shape, strict=True)):
        scale = (part.stop - part.start) / size
        first = part.start + scale / 2 - 0.5
        to_image[axis, n] = -scale if flip else scale
        to_image[axis, 3] = array.shape[1 + axis] - 1 - first if flip else first
    return np.asarray(affine @ to_image)


def _normalised(channel: NDArray[np.float32], how: Mapping[str, Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    scheme = how["scheme"]
    if scheme == "ct":
        return (np.clip(channel, how["low"], how["high"]) - np.float32(how["mean"])) / np.float32(max(how["std"], 1e-8))
    if scheme == "rescale":
        lowest, highest = channel.min(), channel.max()
        return (channel - lowest) / max(highest - lowest, np.float32(1e-8))
    if scheme == "rgb":
        return channel / np.float32(255)
    if scheme == "none":
        return channel
    values = channel[mask] if how["inside_mask"] else channel
    mean, deviation = values.mean(dtype=np.float64), max(values.std(dtype=np.float64), 1e-8)
    result = (channel - np.float32(mean)) / np.float32(deviation)
    return np.where(mask, result, np.float32(0)) if how["inside_mask"] else result


def _resampled(
    array: NDArray[np.float32],
    shape: Sequence[int],
    how: Mapping[str, Any],
    old: Sequence[float],
    new: Sequence[float],
) -> NDArray[np.float32]:
    """Return an array with another number of voxels, which are areas (half-pixel centres).

    Args:
        array: (I, J, K).
        shape: of the result.
        how: see `NnunetPreprocessd`.
        old: voxel sizes of the array in mm.
        new: those of the result.
    """
    if how["method"] == "none" or list(array.shape) == list(shape):
        return array
    alone = _separate_axis(how["separate_z"], old, new)
    if how["method"] == "torch":
        return _by_torch(array, shape, alone)
    if alone is None:
        return _by_spline(array, shape, how["order"])
    in_plane = [n for axis, n in enumerate(shape) if axis != alone]
    planes = [_by_spline(plane, in_plane, how["order"]) for plane in np.moveaxis(array, alone, 0)]
    return _by_spline(np.stack(planes, alone), shape, how["order_z"], limited=False)


def _separate_axis(separate: bool | None, old: Sequence[float], new: Sequence[float]) -> int | None:
    """Return the axis of the largest voxel size, if it is resampled on its own."""
    if separate is False:
        return None
    for sizes in (old,) if separate else (old, new):
        if separate or max(sizes) / min(sizes) > ANISOTROPY:
            largest = [axis for axis, size in enumerate(sizes) if size == max(sizes)]
            return largest[0] if len(largest) == 1 else None
    return None


def _by_spline(array: NDArray, shape: Sequence[int], order: int, *, limited: bool = True) -> NDArray[np.float32]:
    """Return what scikit-image's `resize` returns without filter: a spline that keeps to the range of the array."""
    if list(array.shape) == list(shape):
        return array
    found = _zoomed(array, shape, order)
    if limited and order > 1:
        found = found.clip(array.min(), array.max())
    return np.asarray(found, np.float32)


def _zoomed(array: NDArray, shape: Sequence[int], order: int) -> NDArray[np.float64]:
    factors = [new / n for new, n in zip(shape, array.shape, strict=True)]
    return np.asarray(zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True))


def _resampled_labels(
    array: NDArray, shape: Sequence[int], how: Mapping[str, Any], old: Sequence[float], new: Sequence[float]
) -> NDArray:
    """Return a label map with another number of voxels; arguments as for `_resampled`."""
    alone = _separate_axis(how["separate_z"], old, new)
    between = [n if axis == alone else m for axis, (n, m) in enumerate(zip(array.shape, shape, strict=True))]
    array = _winners(array, between, how)
    if between == list(shape):
        return array
    if how["method"] == "torch":
        return _by_torch(array.astype(np.float32), shape, alone)
    if how["order_z"] == 0:
        return _zoomed(array, shape, 0)
    result = np.zeros(shape)
    for label in np.unique(array):
        result[_zoomed(array == label, shape, how["order_z"]) > 0.5] = label
    return result


def _winners(array: NDArray, shape: Sequence[int], how: Mapping[str, Any]) -> NDArray:
    """Return the label with the greatest interpolated mask: of equals that of the nearest voxel, else the lowest."""
    if list(array.shape) == list(shape):
        return array
    nearest = _zoomed(array, shape, 0)
    if how["order"] == 0:
        return nearest
    winner, best = np.full(shape, array.min()), np.full(shape, -1.0)
    for label in np.unique(array):
        mask = (array == label).astype(np.float32)
        if how["method"] == "torch":  # which nnU-Net keeps in 16 bits, and without regard to the nearest voxel
            score = (1000 * _by_torch(mask, shape, None)).astype(np.float16)
            better = score > best
        else:
            score = _zoomed(mask, shape, how["order"]).clip(0, 1)
            better = (score > best) | ((score == best) & (nearest == label))
        winner[better], best[better] = label, score[better]
    return winner


def _by_torch(array: NDArray, shape: Sequence[int], alone: int | None) -> NDArray[np.float32]:
    values = torch.from_numpy(np.ascontiguousarray(array))[None]
    if alone is None:
        size = [int(n) for n in shape]
        return np.asarray(torch.nn.functional.interpolate(values[None], size, mode="trilinear")[0, 0].numpy())
    planes = values[0].movedim(alone, 0)[:, None]
    in_plane = [int(n) for axis, n in enumerate(shape) if axis != alone]
    planes = torch.nn.functional.interpolate(planes, in_plane, mode="bilinear")[:, 0]
    stack = planes.permute(1, 2, 0).reshape(1, -1, len(planes))
    lines = torch.nn.functional.interpolate(stack, int(shape[alone]), mode="nearest-exact")[0]
    return np.asarray(lines.reshape(*in_plane, -1).movedim(-1, alone).numpy())


class NnunetNetwork(torch.nn.Module):
    """Networks of all folds as one, which returns the mean of their logits over all folds and mirror images.

    Args:
        networks: of the folds.
        mirror_axes: axes of a window along which mirror images are averaged too; each doubles the time.
        sees_slices: the networks see planes (N, C, J, K), and windows are one slice thick.
    """

    def __init__(
        self, networks: Sequence[torch.nn.Module], mirror_axes: Sequence[int] = (), sees_slices: bool = False
    ) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)
        axes = [2 + axis for axis in mirror_axes]
        self.flips = [list(flip) for count in range(len(axes) + 1) for flip in combinations(axes, count)]
        self.sees_slices = sees_slices

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean logits (N, classes, I, J, K) of windows (N, C, I, J, K)."""
        logits = (self._logits(network, windows, flip) for network in self.networks for flip in self.flips)
        return sum(logits, start=torch.zeros(())) / (len(self.networks) * len(self.flips))

    def _logits(self, network: torch.nn.Module, windows: torch.Tensor, flip: list[int]) -> torch.Tensor:
        windows = windows.flip(flip) if flip else windows
        logits = network(windows.squeeze(2)).unsqueeze(2) if self.sees_slices else network(windows)
        return logits.flip(flip) if flip else logits
