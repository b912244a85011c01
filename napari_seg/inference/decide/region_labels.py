"""From the blended logits of a region to labels on the scan's grid, as the model's `Output` says.

There are three ways, the first of which needs the least memory:

- Values are interpolated and decided block by block on the scan's grid (`Decider`).
- Labels are decided on the network's grid, which is a Decider between equal grids, and the label map is carried.
- Values of the whole region are collected, and inverted by MONAI or as nnU-Net does. This is the way where the
  preprocessing does more to the grid than linear resampling and cropping, such as padding or resizing.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.bundles.output import LabelStep, Output
from napari_seg.errors import EnvironmentFault, Notice
from napari_seg.geometry import Grid, index_affine, is_same_lattice, parallel_axes, resample
from napari_seg.inference.decide.decider import REACH, Decider, has_same_voxels
from napari_seg.inference.inverse import Inverse
from napari_seg.inference.windows.layout import Triple
from napari_seg.memory import describe_bytes, resident_bytes
from napari_seg.volume import ConfidenceMaps, smallest_label_type


def collects_values(output: Output, inverse: Inverse) -> bool:
    """Return whether the values of the whole region are collected before labels are decided."""
    if output.decided_on == "network":
        return False
    return not inverse.is_resampling or (inverse.is_cropped and not _zeros_are_background(output))


def _zeros_are_background(output: Output) -> bool:
    """Return whether a voxel whose values are all 0, as in parts that were cropped, is background."""
    return all(channel.threshold > 0 for channel in output.channels)  # by argmax channel 0 wins, which is background


def labels_bytes(output: Output, inverse: Inverse, classes: int, scan: Grid) -> int:
    """Return the memory in bytes that `RegionLabels` keeps while blocks come, beyond that of its Decider.

    Args:
        output: how values become labels.
        inverse: the way back from the network's grid.
        classes: number of channels of the network.
        scan: the scan's grid.
    """
    voxels, own_map = prod(inverse.grid.shape), 4 * prod(scan.shape) if output.steps else 0
    if collects_values(output, inverse):
        return own_map + 4 * classes * voxels
    return own_map + 4 * voxels if output.decided_on == "network" else own_map


def extends_blocks(output: Output, inverse: Inverse, grid: Grid, scan: Grid) -> bool:
    """Return whether blocks are copied to be decided, see `decider_bytes`.

    Args:
        output: how values become labels.
        inverse: the way back from the network's grid.
        grid: grid of the logits, a box of the network's grid.
        scan: the scan's grid.
    """
    if output.decided_on == "network" and not is_same_lattice(inverse.grid, scan):
        return False  # the labels of its own grid are carried to the scan
    return not has_same_voxels(grid, scan, inverse.zero_faces)


def check_inverse(output: Output, inverse: Inverse, classes: int, budget_bytes: int, used_bytes: int) -> None:
    """Raise if the inverse of the bundle's preprocessing does not fit in memory, and nothing else gives the same.

    Args:
        output: how values become labels.
        inverse: the way back from the network's grid.
        classes: number of channels of the network.
        budget_bytes: highest memory that the process may use.
        used_bytes: memory that is in use, or will be when the last block has come.

    Raises:
        EnvironmentFault: `environment.memory`, it does not fit.
    """
    if collects_values(output, inverse):
        needed = used_bytes + inverse.values_bytes(classes)
    elif output.decided_on == "network" and not (output.carried == "nearest" and _is_plain(inverse)):
        needed = used_bytes + inverse.values_bytes(1)
    else:
        return
    if needed > budget_bytes:
        raise EnvironmentFault(
            "environment.memory",
            f"to carry the network's output to a scan of {' x '.join(map(str, inverse.shown.shape))} voxels by the "
            f"inverse of the bundle's transforms needs {describe_bytes(needed)} of memory; "
            f"{describe_bytes(budget_bytes)} may be used; give more with --memory, or crop the scan",
        )


def _is_plain(inverse: Inverse) -> bool:
    """Return whether interpolation with edges repeated inverts the preprocessing, everywhere."""
    return inverse.is_resampling and not inverse.is_cropped


class RegionLabels:
    """Takes the blended logits of a region block by block and writes its labels into the scan's label map.

    Args:
        output: how values become labels.
        inverse: the way back from the network's grid.
        grid: grid of the logits, a box of the network's grid.
        offset: first voxel of that box.
        scan: the scan's grid.
        label_map: (I, J, K) on the scan's grid; changed in place where it is 0.
        labels: label of the network -> label in the result.
        axes: see `Decider`.
        maps: confidence maps on the scan's grid, changed in place with the labels; None: not requested.
        budget_bytes: highest memory that the process may use; None: there is no limit.
    """

    def __init__(
        self,
        output: Output,
        inverse: Inverse,
        grid: Grid,
        offset: Triple,
        scan: Grid,
        label_map: NDArray[np.unsignedinteger],
        labels: dict[int, int],
        axes: Triple = (0, 1, 2),
        maps: ConfidenceMaps | None = None,
        budget_bytes: int | None = None,
    ) -> None:
        self.output = output
        self.inverse = inverse
        self.grid = grid
        self.offset = offset
        self.scan = scan
        self.label_map = label_map
        self.labels = labels
        self.axes = axes
        self.maps = maps
        self.budget_bytes = budget_bytes
        self.is_on_network = output.decided_on == "network" and not self._is_on_scan_lattice()
        self._decider: Decider | None = None
        self._values: torch.Tensor | None = None
        self._own_map: NDArray[np.unsignedinteger] | None = None
        self._own_confidence: ConfidenceMaps | None = None

    def add(self, start: Triple, logits: torch.Tensor, strip_start: int = 0) -> None:
        """Take a block of logits, see `Decider.add`; they are overwritten.

        Raises:
            BundleError: `bundle.network`, logits are NaN.
        """
        values = self._activated(logits)
        if collects_values(self.output, self.inverse):
            if self._values is None:
                self._values = torch.zeros((len(values), *self.grid.shape))
            box = [slice(n, n + length) for n, length in zip(start, values.shape[1:], strict=True)]
            self._values[(slice(None), *box)] = values.cpu()
            return
        if self._decider is None:
            self._decider = self._new_decider(self.grid, self.grid if self.is_on_network else self.scan, len(values))
        self._decider.add(start, values, strip_start)

    def finish(self) -> tuple[dict[int, float], list[Notice]]:
        """Write what is not written yet.

        Returns:
            Label of the network -> mean probability where it wins, background excluded; and notices.
        """
        if self._values is not None:
            values, self._values = self._values, None
            values = self.inverse.values(values, nearest=False)
            self._decider = self._new_decider(self.inverse.shown, self.scan, len(values))
            self._decider.add((0, 0, 0), values)
        if self._decider is None:
            return {}, []
        notices = self._notices(self._decider)
        if self._own_map is not None:
            self._write(self._own_map, self._own_confidence)
        found = self._decider.confidence()
        names = self.output.class_labels
        return self._mapped({names.get(number, number): mean for number, mean in found.items()}), notices

    def _is_on_scan_lattice(self) -> bool:
        """Return whether the network's voxels are the scan's, so that deciding on either grid is the same."""
        has_network_steps = any(step.grid == "network" for step in self.output.steps)
        return self.inverse.is_resampling and not has_network_steps and is_same_lattice(self.inverse.grid, self.scan)

    def _activated(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the values of the channels that count, after the activation."""
        channels = [channel.number for channel in self.output.channels]
        if channels and channels != list(range(len(logits))):
            logits = logits[channels]
        if self.output.activation == "sigmoid":
            return logits.sigmoid_()
        if self.output.activation == "softmax":
            logits.sub_(logits.amax(dim=0)).exp_()
            return logits.div_(logits.sum(dim=0))
        return logits

    def _new_decider(self, region: Grid, target: Grid, channels: int) -> Decider:
        """Return a decider into the scan's label map, or into one of its own if there is more to do with the labels."""
        output = self.output
        of_classes = output.class_labels or {n: n for n in range(1, channels)}
        label_map, maps = self.label_map, self.maps
        labels = {number: self.labels[label] for number, label in of_classes.items() if label in self.labels}
        if self.is_on_network or output.steps:
            highest = max([*of_classes.values(), *(label for step in output.steps for label in step.new_labels)])
            label_map = self._own_map = np.zeros(target.shape, smallest_label_type(highest))
            labels = of_classes
            if maps is not None:
                maps = self._own_confidence = ConfidenceMaps(
                    *(np.zeros(target.shape, np.uint8) for _ in ("confidence", "entropy"))
                )
        thresholds = [channel.threshold for channel in output.channels]
        are_probabilities = output.activation != "none"
        is_direct = region is self.grid and target is self.scan
        edges = self._edges() if is_direct else {}
        return Decider(region, target, label_map, labels, self.axes, maps, thresholds, are_probabilities, **edges)

    def _is_outer(self) -> NDArray[np.bool_]:
        """Return (3, 2) whether the box ends where the network's grid does, before and after each axis."""
        ends = np.array(self.offset) + self.grid.shape
        return np.stack([np.array(self.offset) == 0, ends == self.inverse.grid.shape], axis=1)

    def _edges(self) -> dict[str, Any]:
        """Return the arguments of `Decider` that say what lies beyond the faces of the network's box."""
        zero_faces = self._is_outer() & self.inverse.zero_faces
        return {"reach": self._reach(), "nearest_axes": self.inverse.nearest_axes, "zero_faces": zero_faces}

    def _reach(self) -> NDArray[np.float64]:
        """Return how far the network's box reaches, see `Decider`: to the outer voxels that the transforms were shown.

        MONAI may lay a grid that ends a voxel before the scan does, and repeats the edge there. A cropped face of the
        box stays where it is. Where the preprocessing cropped before it resampled, the box ends where the crop does.
        """
        inverse = self.inverse
        reach = np.full((3, 2), REACH)
        if parallel_axes(index_affine(inverse.grid, inverse.shown), inverse.shown.shape) is None:
            return reach
        shown, covered = (_beyond(inverse.grid, grid) for grid in (inverse.shown, inverse.covered))
        ends_before = covered < shown - 1e-3
        exact = np.where(ends_before, covered, np.maximum(REACH, covered))
        return np.where(self._is_outer(), exact, reach)

    def _write(self, array: NDArray[np.unsignedinteger], confidence: ConfidenceMaps | None) -> None:
        """Write a label map of the network's labels, and its confidence, into those of the scan."""
        if self.is_on_network:
            array = self._on_scan(_stepped(array, self.output.steps, "network"), self.output.carried == "nearest")
            if confidence is not None:  # background beyond doubt where the network did not look
                parts = ((confidence.confidence, 255), (confidence.entropy, 0))
                confidence = ConfidenceMaps(*(self._on_scan(part, True, value) for part, value in parts))
        array = _stepped(array, self.output.steps, "scan")
        table = np.zeros(max([int(array.max()), *self.labels]) + 1, self.label_map.dtype)
        for label, result in self.labels.items():
            table[label] = result
        is_free = self.label_map == 0
        if confidence is not None and self.maps is not None:
            pairs = (
                (self.maps.confidence, confidence.confidence),
                (self.maps.entropy, confidence.entropy),
            )
            for old, new in pairs:
                np.copyto(old, new, where=is_free)
        np.copyto(self.label_map, table[array], where=is_free)

    def _on_scan(self, array: NDArray, is_nearest: bool, around: int = 0) -> NDArray:
        """Return numbers (I, J, K) of the network's box on the scan's grid; `around` is that outside of the box."""
        whole = np.full(self.inverse.grid.shape, around, array.dtype)
        whole[tuple(slice(n, n + length) for n, length in zip(self.offset, array.shape, strict=True))] = array
        inverse = self.inverse
        needed = resident_bytes() + inverse.values_bytes(1)
        if is_nearest and _is_plain(inverse) and self.budget_bytes is not None and needed > self.budget_bytes:
            # the same but for voxels halfway between two of the network's, where rounding decides in MONAI
            shown = resample(whole, inverse.grid, inverse.shown, order=0)
        else:
            values = torch.from_numpy(whole.astype(np.float32))[None]
            shown = inverse.values(values, nearest=is_nearest)[0].round_().numpy().astype(array.dtype)
        return resample(shown, inverse.shown, self.scan, order=0, outside=0)

    def _mapped(self, confidence: dict[int, float]) -> dict[int, float]:
        """Return label -> confidence after the label steps; the first counts where labels are merged."""
        for step in self.output.steps:
            mapped: dict[int, float] = {}
            for label, mean in confidence.items():
                mapped.setdefault(step.map.get(label, label), mean)
            confidence = mapped
        return confidence

    def _notices(self, decider: Decider) -> list[Notice]:
        notices = []
        if not self.output.has_order and decider.overlapping_voxels:
            count = decider.overlapping_voxels
            text = (
                f"{count} voxels of the network ({count * decider.region.voxel_ml:.2f} ml) lie in several "
                "structures, whose channels are independent of each other; the label map holds the last of them"
            )
            notices.append(Notice("result.overlap", text))
        if self.is_on_network and self.output.carried == "linear" and not self.output.rounds:
            text = (
                "the bundle interpolates labels linearly, which gives numbers between two labels; they were rounded to "
                "the nearest label"
            )
            notices.append(Notice("result.rounded", text))
        return notices


def _beyond(grid: Grid, other: Grid) -> NDArray[np.float64]:
    """Return (3, 2) how far another grid's outer voxels lie beyond those of a grid, in its voxels, with a tolerance."""
    to_grid = index_affine(grid, other)
    outer = np.stack([np.zeros(3), np.array(other.shape) - 1]) @ to_grid[:3, :3].T + to_grid[:3, 3]
    return np.stack([-outer.min(axis=0), outer.max(axis=0) - (np.array(grid.shape) - 1)], axis=1) + 1e-3


def _stepped(array: NDArray[np.unsignedinteger], steps: tuple[LabelStep, ...], grid: str) -> NDArray:
    """Return a label map after the steps of one grid."""
    import monai.transforms

    steps = tuple(step for step in steps if step.grid == grid)
    if not steps:
        return array
    found = torch.from_numpy(array.astype(np.float32))[None]
    for step in steps:
        found = getattr(monai.transforms, step.name)(**dict(step.arguments))(found)
    return np.asarray(found[0]).astype(array.dtype)
