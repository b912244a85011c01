"""Define what the numbers in a prepared label map say about each voxel, and make label maps that metrics compare.

    0            background
    1, 2, ...    a class; with regions (classes that overlap) a part, which lies in one or several regions
    -1           ignored: the voxel is not annotated
    -2, -3, ...  background or one of the classes that are not annotated in this case; each number has a set of classes

Regions do not exclude each other, so a voxel inside a region may also be in one that is not annotated. With P parts,
the part p is p + P in cases of the first set of regions that are not annotated, p + 2 P in those of the second, ...

So a voxel keeps what is known about it through crops, batches and augmentation, and losses and metrics use no more than
that. `segnets.data.ClassValues` gives the numbers to the values in the files.

Soft labels have no numbers: they are fractions (K, *spatial) from 0 to 1 of K regions, and are annotated everywhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import ClassesToIndicesd, Invertd, InvertibleTransform, MapTransform, Transform
from monai.transforms.utils import get_largest_connected_component_mask
from monai.utils import convert_data_type, convert_to_dst_type

IGNORED = -1

Parts = Sequence[Sequence[int]]
"""The regions, from 1, in which the parts 1, 2, ... lie."""

AbsentSets = Sequence[Sequence[int]]
"""Classes or regions, from 1, that are not annotated where a label map is -2, -3, ..."""


def number_of_set(index: int) -> int:
    """Return the number in label maps for the set of classes with an index in `AbsentSets`."""
    return IGNORED - 1 - index


def offset_of_set(index: int, parts: Parts) -> int:
    """Return what is added to the numbers of parts for the set of regions with an index in `AbsentSets`."""
    return (index + 1) * len(parts)


def is_complete(label: torch.Tensor, parts: Parts | None = None) -> bool:
    """Return whether all voxels and classes, or regions, are annotated in label maps."""
    return bool(label.min() >= 0) and (parts is None or bool(label.max() <= len(parts)))


def absent_classes(label: torch.Tensor, absent: AbsentSets, parts: Parts | None = None) -> list[int]:
    """Return the classes or regions, from 1, that are not annotated in the label map of one case."""
    lowest, highest = (int(label.min()), int(label.max())) if label.numel() else (0, 0)
    if lowest < IGNORED:
        return list(absent[IGNORED - 1 - lowest])
    return list(absent[(highest - 1) // len(parts) - 1]) if parts and highest > len(parts) else []


def plain_parts(label: torch.Tensor, count: int) -> torch.Tensor:
    """Return label maps with the numbers 1 to `count` of parts in all cases; other numbers stay as they are."""
    return torch.where(label > count, (label - 1) % count + 1, label)


def region_masks(label: torch.Tensor, parts: Parts, dtype: torch.dtype = torch.float) -> torch.Tensor:
    """Return masks of regions (N, K, *spatial) of label maps (N, 1, *spatial) with numbers of parts; 1 inside.

    Numbers below 0 are in no region.
    """
    count = max((region for regions in parts for region in regions), default=1)
    label = plain_parts(label[:, 0], len(parts))
    masks = torch.zeros((len(label), count, *label.shape[1:]), dtype=dtype, device=label.device)
    for part, regions in enumerate(parts, start=1):
        inside = label == part
        for region in regions:
            masks[:, region - 1].masked_fill_(inside, 1)
    return masks


class ShiftLabelsd(MapTransform):
    """Add a number to label maps, before and after transforms that fill with 0 what lies outside of an image.

    Shifted by one, 0 stands for ignored voxels, so that voxels from outside are ignored too.

    Args:
        keys: keys of the label maps.
        by: the number; with 0 nothing is changed.
    """

    def __init__(self, keys: KeysCollection, by: int) -> None:
        super().__init__(keys)
        self.by = by

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        shifted = dict(data)
        for key in self.keys if self.by else ():
            shifted[key] = shifted[key] + self.by
        return shifted


class ClassIndicesd(ClassesToIndicesd):
    """Find the voxels of each class, as MONAI's `ClassesToIndicesd`, for patches around annotated voxels.

    Background of a case without all classes counts as background, and its parts as those of other cases. If no voxel is
    annotated, all count as background. `num_classes` is required.

    Args:
        keys: keys of the label maps.
        soft: they are fractions; a voxel is of a region if its fraction is above half of the region's largest one.
        settings: arguments of MONAI's `ClassesToIndicesd`.
    """

    def __init__(self, keys: KeysCollection, soft: bool = False, **settings: Any) -> None:
        super().__init__(keys, **settings)
        self.soft = soft

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if self.soft:
            found = super().__call__({**data, **{key: _one_hot(data[key]) for key in self.keys}})
            return found | {key: data[key] for key in self.keys}
        count = self.converter.num_classes - 1
        if all(data[key].min() >= 0 and data[key].max() <= count for key in self.keys):
            return super().__call__(data)
        numbers = {key: plain_parts(torch.where(data[key] < IGNORED, 0, data[key]), count) for key in self.keys}
        found = super().__call__({**data, **numbers})
        for key in self.keys:
            found[key] = data[key]
            indices = found[f"{key}{self.indices_postfix}"]
            if not any(len(of_class) for of_class in indices):
                indices[0] = torch.arange(data[key].numel())
        return found


def _one_hot(fractions: torch.Tensor) -> torch.Tensor:
    """Return masks (K + 1, *spatial) of background and of each region, around its largest fractions."""
    half = fractions.flatten(1).amax(1).view(-1, *[1] * (fractions.ndim - 1)) / 2
    inside = fractions > half
    return torch.cat([~inside.any(0, keepdim=True), inside])


def decide(logits: torch.Tensor, regions: bool = False, soft: bool = False) -> torch.Tensor:
    """Return the label map (1, *spatial) of logits (K, *spatial), of the smallest type, in which the highest wins.

    With regions the result is a mask of each, (K, *spatial) of bool, which is true where the logit is above 0; with
    `soft` it is their probabilities in steps of 1/255, (K, *spatial) of uint8.
    """
    if soft:
        return (255 * logits.sigmoid()).round_().to(torch.uint8)
    if regions:
        return logits > 0
    return logits.argmax(0, keepdim=True).to(label_type(len(logits)))


def label_type(count: int) -> torch.dtype:
    """Return the smallest type of a label map with so many classes, background included."""
    return torch.uint8 if count <= 256 else torch.int16


def mask_of(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Return the mask (*spatial) of a class, from 1, in a label map, or of a region in masks; see `AsLabelsd`."""
    return labels[number - 1] if labels.dtype == torch.bool else labels[0] == number


class AsLabelsd(Transform):
    """Convert "pred" and "label" of a case to what metrics compare: label maps (1, *spatial), 0 where nothing counts.

    With regions both are masks of each region, (K, *spatial) of bool. In ignored voxels both are background, and
    classes that are not annotated in this case are in neither, so that they do not count.

    Args:
        parts: see `Parts`; None: the classes exclude each other.
        absent: see `AbsentSets`.
        largest: classes, from 1, of which only the largest connected component is kept, as by MONAI's
            `KeepLargestConnectedComponentd`; not with regions.
        compare: also give "pred_largest", in which only the largest connected component of every class is kept.
        soft: the label is fractions, and 1 in the masks where they are above one half. If "pred" is probabilities, or
            logits, also give both as "label_fractions" and "pred_fractions", in steps of 1/255.
        preprocessing: transforms of the image. "pred" is the label map that `segnets.decide.LabelInferer` has decided,
            or logits; then these transforms are inverted, one channel after another; None: they are on the label's
            grid.
    """

    def __init__(
        self,
        parts: Parts | None = None,
        absent: AbsentSets = (),
        largest: Sequence[int] = (),
        compare: bool = False,
        preprocessing: InvertibleTransform | None = None,
        soft: bool = False,
    ) -> None:
        self.parts = parts
        self.absent = absent
        self.largest = largest
        self.compare = compare
        self.preprocessing = preprocessing
        self.soft = soft

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label = convert_data_type(data["label"], torch.Tensor)[0]
        found = convert_data_type(data["pred"], torch.Tensor)[0]
        if found.is_floating_point():
            found = self._decide(data)
        if self.soft and found.dtype == torch.uint8:
            data = {**data, "pred_fractions": found, "label_fractions": data["label"]}
            found = found > 127
        if self.soft:
            maps = [found, label > 0.5]
        elif self.parts is None:
            maps = [_with_largest(found, self.largest), label.clamp(min=0).to(found.dtype)]
        else:
            maps = [found, region_masks(label[None], self.parts, torch.bool)[0]]
        if self.compare:  # before voxels are ignored, which would cut components into pieces
            maps.append(_with_largest(maps[0], range(1, 1 + (len(found) if self.parts else int(found.max())))))
        if not (self.soft or is_complete(label, self.parts)):
            absent = absent_classes(label, self.absent, self.parts)
            maps = [_without(one, (label == IGNORED).to(one.device), absent) for one in maps]
        maps[1] = convert_to_dst_type(maps[1], data["label"], dtype=maps[1].dtype)[0]  # with its grid
        return {**data, **dict(zip(("pred", "label", "pred_largest"), maps, strict=False))}

    def _decide(self, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Return what the logits "pred" decide on the grid of the label."""
        regions = self.parts is not None
        if self.preprocessing is None:
            return decide(convert_data_type(data["pred"], torch.Tensor)[0], regions, self.soft)
        invert = Invertd("pred", self.preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
        channels = (
            convert_data_type(invert({**data, "pred": data["pred"][number : number + 1]})["pred"], torch.Tensor)[0]
            for number in range(len(data["pred"]))
        )
        if regions:
            return torch.cat([decide(channel, regions, self.soft) for channel in channels])
        highest = next(channels)
        found = torch.zeros_like(highest, dtype=label_type(len(data["pred"])))
        for number, channel in enumerate(channels, start=1):
            found.masked_fill_(channel > highest, number)  # of equal ones the first wins, as in argmax
            highest = torch.maximum(highest, channel)
        return found


def _with_largest(labels: torch.Tensor, classes: Iterable[int]) -> torch.Tensor:
    """Return labels in which some of the classes have only their largest connected component."""
    kept = labels.clone()
    for number in classes:
        mask = mask_of(labels, number)
        if (box := box_of(mask)) is not None:
            smaller = mask[box] & ~get_largest_connected_component_mask(mask[box])
            kept[number - 1 if kept.dtype == torch.bool else 0][box].masked_fill_(smaller, 0)
    return kept


def box_of(mask: torch.Tensor) -> tuple[slice, ...] | None:
    """Return the smallest box around a mask; None if it is empty."""
    box = []
    for axis in range(mask.ndim):
        inside = mask.any(dim=[other for other in range(mask.ndim) if other != axis]).nonzero()
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _without(labels: torch.Tensor, ignored: torch.Tensor, absent: Sequence[int]) -> torch.Tensor:
    """Return labels without the ignored voxels, and without the classes that are not annotated."""
    if labels.dtype == torch.bool:
        labels = labels & ~ignored
        labels[[number - 1 for number in absent]] = False
        return labels
    for number in absent:
        ignored = ignored | (labels == number)
    return labels.masked_fill(ignored, 0)
