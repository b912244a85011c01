"""Show a network the labels of the previous stage of a cascade, as further channels of its image.

A patch at the full resolution contains a small part of a large body. In a cascade the network also sees the labels that
a first network found at a lower resolution (Isensee et al. 2021, Nature Methods 18:203): after the channels of the
image there is one for each class, 1 inside and 0 outside.

In training these labels come from a network that was not trained on the case. They are degraded in addition, as in
nnU-Net, so that the second network does not only copy them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, MapTransform
from monai.utils import convert_data_type, convert_to_dst_type
from scipy.ndimage import label as connected_components

from segnets.errors import TrainingError

PREVIOUS = "previous"
"""Key of the label map of the previous stage, (1, *spatial) with an affine, in a case that brings it along."""

_ENDING = "_seg.nii.gz"
_SHAPES = ("dilate", "erode", "open", "close")


class AddPreviousd(MapTransform):
    """Append the label map of the previous stage to an image, as its last channel; see `LabelsToChannelsd`.

    It is taken from the case itself, see `PREVIOUS`, or from the file `<case>_seg.nii.gz` in a folder, as the config
    `inference.yaml` writes it. It may lie on another grid with parallel axes; the nearest voxel is taken.

    Args:
        keys: key of the image.
        folder: folder of the label maps; None: all are empty, for a test of the speed. If they change, delete the cache
            of prepared cases. It is not part of the identity of a run, so that a moved bundle can be trained further.
    """

    __slots__ = ("folder",)  # which `fingerprint` leaves out

    def __init__(self, keys: KeysCollection, folder: str | Path | None) -> None:
        super().__init__(keys)
        self.is_empty = folder is None
        self.folder = None if folder is None else Path(folder)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a case whose image has one channel more.

        Raises:
            TrainingError: "dataset.previous_stage", there is no label map of the case, or it is one of another image.
        """
        case = dict(data)
        given = case.pop(PREVIOUS, None)
        for key in self.keys:
            image = case[key]
            labels = torch.zeros(image.shape[1:])
            if given is not None or not self.is_empty:
                labels = nearest(self._read(case, image) if given is None else given, image)
            case[key] = _joined(image, labels[None])
        return case

    def _read(self, case: Mapping[Hashable, Any], image: MetaTensor) -> MetaTensor:
        assert self.folder is not None
        stems = [str(case.get("name", ""))]
        stems.append(Path(str(image.meta.get("filename_or_obj", ""))).name.removesuffix(".gz").removesuffix(".nii"))
        paths = [self.folder / f"{stem}{_ENDING}" for stem in stems if stem]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise TrainingError(
                "dataset.previous_stage",
                f"found no labels of the previous stage for case {stems[0] or stems[1]!r} in {self.folder}; expected "
                f"{paths[0].name if paths else f'a file *{_ENDING}'}: run inference in the folder previous of this "
                "bundle first, and name its results with --previous_dir; napari-seg predict does both",
            )
        labels: MetaTensor = LoadImage(image_only=True, ensure_channel_first=True)(path)
        return labels


def nearest(labels: MetaTensor, image: MetaTensor) -> torch.Tensor:
    """Return the label (*spatial) at each voxel of an image.

    Args:
        labels: label map (1, *spatial) on a grid whose axes are parallel to those of the image, in any order.
        image: (C, *spatial).

    Raises:
        TrainingError: "dataset.previous_stage", the label map is one of another image.
    """
    dims = image.ndim - 1
    relative = torch.linalg.solve(labels.affine.double(), image.affine.double()).cpu().numpy()
    found, order = labels.as_tensor()[0], []
    for axis, row in enumerate(relative[:dims]):
        number = int(np.abs(row[:dims]).argmax())
        places = row[-1] + row[number] * np.arange(image.shape[1 + number])
        skew = sum(abs(row[n]) * image.shape[1 + n] for n in range(dims) if n != number)
        beyond = max(-places.min(), places.max() - (found.shape[axis] - 1)) - 0.5 - abs(row[number])
        if number in order or skew > 0.5 or beyond > 0:
            raise TrainingError(
                "dataset.previous_stage",
                "the labels of the previous stage lie elsewhere than the image, or on turned axes; expected those of "
                "the same image; run inference in the folder previous of this bundle again",
            )
        order.append(number)
        found = found.index_select(axis, torch.from_numpy(np.rint(places)).long().clamp(0, found.shape[axis] - 1))
    return found.permute([order.index(number) for number in range(dims)])


class LabelsToChannelsd(MapTransform):
    """Replace the last channel of an image, a label map, by a channel for each class: 1 inside and 0 outside.

    Args:
        keys: key of the image.
        classes: number of classes; the label map contains 1 to `classes`.
    """

    def __init__(self, keys: KeysCollection, classes: int) -> None:
        super().__init__(keys)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.keys:
            image = case[key]
            plain = convert_data_type(image, torch.Tensor)[0]
            channels = torch.empty((len(plain) - 1 + self.classes, *plain.shape[1:]), dtype=plain.dtype)
            channels[: len(plain) - 1] = plain[:-1]
            for number, mask in enumerate(channels[len(plain) - 1 :], start=1):
                mask.copy_(plain[-1] == number)
            case[key] = convert_to_dst_type(channels, image, dtype=plain.dtype)[0]
        return case


def _joined(image: torch.Tensor, more: torch.Tensor) -> Any:
    """Return an image with further channels; it keeps its affine and what was done to it."""
    plain = convert_data_type(image, torch.Tensor)[0]
    return convert_to_dst_type(torch.cat([plain, more.to(plain.dtype)]), image, dtype=plain.dtype)[0]


class AugmentImaged(Compose):
    """Apply transforms to the channels of an image, and degrade the labels of the previous stage that follow them.

    After spatial transforms with interpolation the labels are 1 above a half. Then, as in nnU-Net, the shape of each
    class is dilated, eroded, opened or closed at random, and of each class a small connected component is removed.
    Cubes take the place of nnU-Net's balls, because they are much quicker.

    Args:
        transforms: transforms of the image.
        classes: number of classes.
        key: key of the image.
        prob_shape: probability of other shapes.
        max_radius: largest radius of the cube, in voxels.
        prob_removed: probability of removed components.
        max_removed: largest component that is removed, as a fraction of the patch.
    """

    def __init__(
        self,
        transforms: Any,
        classes: int,
        key: str = "image",
        prob_shape: float = 0.4,
        max_radius: int = 8,
        prob_removed: float = 0.2,
        max_removed: float = 0.15,
    ) -> None:
        super().__init__(transforms)
        self.classes = classes
        self.key = key
        self.prob_shape = prob_shape
        self.max_radius = max_radius
        self.prob_removed = prob_removed
        self.max_removed = max_removed

    def __call__(self, input_: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a case with an augmented image and degraded labels of the previous stage; of a list, each case."""
        if isinstance(input_, list):  # several patches; MONAI gives a `Compose` the list as it is
            return [self(one, *args, **kwargs) for one in input_]
        channels = input_[self.key]
        own = len(channels) - self.classes
        case = dict(super().__call__({**input_, self.key: channels[:own]}, *args, **kwargs))
        labels = self._degraded(torch.as_tensor(channels[own:]) > 0.5)
        case[self.key] = _joined(case[self.key], labels)
        return case

    def _degraded(self, labels: torch.Tensor) -> torch.Tensor:
        """Return degraded masks (K, *spatial), which do not overlap.

        Args:
            labels: masks (K, *spatial); they are changed.
        """
        if self.R.random() < self.prob_shape:
            for number in self.R.permutation(len(labels)):
                shape, radius = _SHAPES[self.R.randint(len(_SHAPES))], self.R.randint(1, self.max_radius + 1)
                if labels[number].any():
                    changed = _changed(labels[number], shape, radius)
                    labels &= ~(changed & ~labels[number])
                    labels[number] = changed
        if self.R.random() < self.prob_removed:
            for mask in labels:
                components, _ = connected_components(mask.numpy())
                sizes = np.bincount(components.ravel())[1:]
                small = np.flatnonzero(sizes < self.max_removed * mask.numel()) + 1
                if len(small):
                    mask[torch.from_numpy(components == self.R.choice(small))] = False
        return labels


def _changed(mask: torch.Tensor, shape: str, radius: int) -> torch.Tensor:
    if shape == "dilate":
        return _dilated(mask, radius)
    if shape == "erode":
        return ~_dilated(~mask, radius)
    if shape == "open":
        return _dilated(~_dilated(~mask, radius), radius)
    return ~_dilated(~_dilated(mask, radius), radius)


def _dilated(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Return a mask (I, J, K) dilated by a cube, one axis after another; beyond the border nothing is added."""
    values = mask[None].float()
    for axis in range(mask.ndim):
        edges = [radius * (n == axis) for n in range(mask.ndim)]
        values = F.max_pool3d(values, [2 * edge + 1 for edge in edges], stride=1, padding=edges)
    return values[0] > 0
