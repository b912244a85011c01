"""Define what the numbers in a prepared label map say about each voxel, and make masks of classes from them.

    0            background
    1, 2, ...    a class; with regions (classes that overlap) a part, which lies in one or several regions
    -1           ignored: the voxel is not annotated
    -2, -3, ...  background or one of the classes that are not annotated in this case; each number has a set of classes

Regions do not exclude each other, so a voxel inside a region may also be in one that is not annotated. With P parts,
the part p is p + P in cases of the first set of regions that are not annotated, p + 2 P in those of the second, ...

So a voxel keeps what is known about it through crops, batches and augmentation, and losses and metrics use no more than
that. `segnets.data.ClassValues` gives the numbers to the values in the files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import AsDiscrete, ClassesToIndicesd, KeepLargestConnectedComponent, MapTransform, Transform
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


def region_masks(label: torch.Tensor, parts: Parts) -> torch.Tensor:
    """Return masks of regions (N, K, *spatial) of label maps (N, 1, *spatial) with numbers of parts; 1 inside.

    Numbers below 0 are in no region.
    """
    count = max((region for regions in parts for region in regions), default=1)
    inside = torch.zeros(len(parts) + 1, count, device=label.device)
    for part, regions in enumerate(parts, start=1):
        inside[part, [region - 1 for region in regions]] = 1
    return inside[plain_parts(label[:, 0].clamp(min=0), len(parts)).long()].movedim(-1, 1)


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
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
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


class AsMasksd(Transform):
    """Convert the logits "pred" and the label map "label" of a case to masks of classes, (K + 1, *spatial).

    The first mask is background, as MONAI's metrics expect it. In ignored voxels both are background; of classes that
    are not annotated in this case both masks are empty, so that they do not count.

    Args:
        num_classes: number of the network's channels.
        parts: see `Parts`; None: the channels are background and classes that exclude each other, and the highest
            wins. Otherwise each channel is a region, which is present where its logit is above 0.
        absent: see `AbsentSets`.
        largest: classes, from 1, of which only the largest connected component is kept, as by MONAI's
            `KeepLargestConnectedComponentd` on the label map; not with regions.
        compare: also give "pred_largest", in which only the largest connected component of every class is kept.
    """

    def __init__(
        self,
        num_classes: int,
        parts: Parts | None = None,
        absent: AbsentSets = (),
        largest: Sequence[int] = (),
        compare: bool = False,
    ) -> None:
        self.num_classes = num_classes
        self.parts = parts
        self.absent = absent
        self.largest = largest
        self.compare = compare
        self.decide = AsDiscrete(argmax=True, to_onehot=num_classes)
        self.one_hot = AsDiscrete(to_onehot=num_classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        masked = dict(data)
        logits, label = masked["pred"], masked["label"]
        if self.parts is None:
            masks = [_with_largest(self.decide(logits), self.largest), self.one_hot(label.clamp(min=0))]
        else:
            found = convert_data_type(logits, torch.Tensor)[0] > 0
            inside = region_masks(convert_data_type(label, torch.Tensor)[0][None], self.parts)[0]
            masks = [_with_background(found, logits), _with_background(inside, label)]
        if self.compare:  # before voxels are ignored, which would cut components into pieces
            masks.append(_with_largest(masks[0], range(1, len(masks[0]))))
        if not is_complete(label, self.parts):
            for mask in masks:
                ignored = convert_data_type(label == IGNORED, torch.Tensor, device=mask.device)[0]
                mask[1:].masked_fill_(ignored, 0)
                mask[absent_classes(label, self.absent, self.parts)] = 0
                mask[0] = ~mask[1:].bool().any(0)
        masked |= zip(("pred", "label", "pred_largest"), masks, strict=False)
        return masked


def _with_largest(masks: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """Return masks (K + 1, *spatial) in which some of the classes have only their largest connected component."""
    if not classes:
        return masks
    keep = KeepLargestConnectedComponent(applied_labels=list(classes), is_onehot=True)
    kept: torch.Tensor = keep(masks.clone())
    kept[0] = ~kept[1:].bool().any(0)
    return kept


def _with_background(masks: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return masks (K + 1, *spatial) of 0 and 1, the first of them background, with the metadata of another tensor."""
    masks = masks.bool()
    with_first = torch.cat([~masks.any(0, keepdim=True), masks])
    return convert_to_dst_type(with_first, source, dtype=torch.float)[0]
