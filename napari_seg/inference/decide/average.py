"""Average of the probabilities of several models on the scan's grid, as nnU-Net makes an ensemble.

Each model's values are interpolated on the scan's grid, become probabilities there, and are added to sums. They come
block by block, so only the sums are as large as the scan: in memory, or in a temporary file if memory is scarce.
"""

from __future__ import annotations

import logging
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seg.bundles.output import Output
from napari_seg.errors import BundleError, EnvironmentFault
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.geometry import Grid
from napari_seg.inference.decide.cells import MAX_LOGITS, interpolated_along_axes
from napari_seg.inference.decide.decider import Decider
from napari_seg.inference.decide.region_labels import RegionLabels
from napari_seg.inference.not_finite import not_finite
from napari_seg.inference.windows.layout import Triple
from napari_seg.memory import describe_bytes, resident_bytes
from napari_seg.volume import ConfidenceMaps

log = logging.getLogger(__name__)

MAX_FRACTION = 1 / 3
"""Fraction of the memory that may still be used which the sums take at most; larger ones go to a temporary file."""

HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))
"""Lowest probability of a structure with a channel of its own: above one half."""

_WRITTEN_BYTES = 2**24


class ProbabilityAverage:
    """Sums of probabilities on a box of the scan's grid; a context manager, which removes a temporary file.

    Args:
        scan: the scan's grid.
        start: first voxel of the box.
        stop: last voxel of the box plus 1 along each axis.
        channels: channels of the models.
        output: how the models' values become labels.
        budget_bytes: highest memory that the process may use.

    Raises:
        EnvironmentFault: `environment.temporary`, the temporary file can't be written.
    """

    def __init__(
        self, scan: Grid, start: Triple, stop: Triple, channels: int, output: Output, budget_bytes: int
    ) -> None:
        self.scan = scan
        self.start = start
        self.grid = scan.box(start, stop)
        self.output = output
        self.count = 0
        self._shape = (channels, *self.grid.shape)
        self._folder: TemporaryFolder | None = None
        self._array: NDArray[np.float32] | None = None
        if memory_bytes(channels, self.grid, budget_bytes):
            self._array = np.empty(self._shape, np.float32)
            self._array.fill(0)  # so that its memory is in use from now on, and the models are planned around it
        else:
            self._make_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._array = None
        if self._folder is not None:
            self._folder.cleanup()

    def of_region(self, *arguments: Any, **named: Any) -> RegionLabels:
        """Return what takes the logits of one model's region, instead of `RegionLabels` with the same arguments."""
        self.count += 1
        return _RegionProbabilities(self, *arguments, **named)

    def add(self, voxels: tuple[slice, ...], probabilities: NDArray[np.float32]) -> None:
        """Add probabilities (C, i, j, k) of a box of the scan's voxels; what lies outside the sums is left out."""
        inner: list[slice] = []
        taken: list[slice] = []
        for place, first, length in zip(voxels, self.start, self.grid.shape, strict=True):
            begin, end = max(place.start - first, 0), min(place.stop - first, length)
            if begin >= end:
                return
            inner.append(slice(begin, end))
            taken.append(slice(begin + first - place.start, end + first - place.start))
        self._sums()[(slice(None), *inner)] += probabilities[(slice(None), *taken)]

    def decide(
        self,
        label_map: NDArray[np.unsignedinteger],
        labels: dict[int, int],
        maps: ConfidenceMaps | None,
        other: ProbabilityAverage | None = None,
    ) -> dict[int, float]:
        """Write the labels of the averages, and return label -> mean probability where it wins.

        Args:
            label_map: (I, J, K) on the scan's grid; changed in place where it is 0.
            labels: label of the models -> label in the result.
            maps: on the scan's grid; changed in place with the labels.
            other: sums of other models on the same box, which count too; they stay as they are.
        """
        count = max(self.count + (0 if other is None else other.count), 1)
        thresholds = [HALF] * self._shape[0] if self.output.decision == "thresholds" else []
        own = self.output.class_labels or {n: n for n in range(1, self._shape[0])}
        of_classes = {number: labels[label] for number, label in own.items() if label in labels}
        decider = Decider(self.grid, self.scan, label_map, of_classes, (0, 1, 2), maps, thresholds, True)
        step = max(1, MAX_LOGITS // (self._shape[0] * prod(self._shape[2:])))
        for first in range(0, self._shape[1], step):
            sums = np.array(self._sums()[:, first : first + step])
            if other is not None:
                sums += other._sums()[:, first : first + step]
            planes = torch.from_numpy(sums) / count
            if not thresholds:  # a voxel that a model did not look at is background
                missing = 1 - planes.sum(dim=0)
                planes[0] += torch.where(missing > 1e-3, missing, 0)
            decider.add((first, 0, 0), planes)
        return {own[number]: mean for number, mean in decider.confidence().items() if number in own}

    def _sums(self) -> NDArray[np.float32]:
        """Return the sums; a file is mapped anew, so that what was mapped before leaves the process's memory."""
        if self._array is not None:
            return self._array
        return np.memmap(self._path, np.float32, "r+", shape=self._shape)

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder.path / "probabilities"

    def _make_file(self) -> None:
        size = 4 * prod(self._shape)
        log.info("the probabilities of %d classes (%s) go to a temporary file", self._shape[0], describe_bytes(size))
        zeros = bytes(_WRITTEN_BYTES)
        try:  # all of it is written: a full disk is found now, not while a mapped file is changed
            self._folder = TemporaryFolder()
            with self._path.open("wb") as file:
                for first in range(0, size, _WRITTEN_BYTES):
                    file.write(zeros[: size - first])
        except OSError as error:
            if self._folder is not None:
                self._folder.cleanup()
            raise EnvironmentFault(
                "environment.temporary",
                f"the probabilities of {self._shape[0]} classes need {describe_bytes(size)} in a temporary file, which "
                f"can't be written ({error.strerror}); make room there, or give more with --memory",
            ) from error


def memory_bytes(channels: int, grid: Grid, budget_bytes: int) -> int:
    """Return the memory in bytes of the sums of some channels on a grid; 0 if they go to a temporary file."""
    needed = 4 * channels * prod(grid.shape)
    return needed if needed <= MAX_FRACTION * (budget_bytes - resident_bytes()) else 0


class _RegionProbabilities(RegionLabels):
    """Adds the probabilities of a region to an average instead of writing its labels."""

    def __init__(self, average: ProbabilityAverage, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.average = average

    def _new_decider(self, region: Grid, target: Grid, channels: int) -> Decider:
        edges = self._edges() if region is self.grid and target is self.scan else {}
        are_probabilities = self.output.activation != "none"
        return _Adder(
            self.average,
            region,
            target,
            self.label_map,
            {},
            self.axes,
            None,
            (),
            are_probabilities,
            **edges,
        )


class _Adder(Decider):
    """Interpolates logits on the scan's grid as a `Decider` does, and adds their probabilities to an average."""

    def __init__(self, average: ProbabilityAverage, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.average = average
        if self.scan_axes is None:
            text = (
                "the preprocessing rotates the scan, so that the probabilities of several models can't be averaged on"
            )
            raise BundleError("bundle.preprocessing", f"{text} its grid; choose one of the models")

    def add(self, start: Triple, logits: torch.Tensor, strip_start: int = 0) -> None:
        """Add the probabilities of the scan voxels that `Decider.add` would label."""
        start, strip_start = self._within_layers(start, strip_start)
        cells_start, extended = self._extended(start, logits, strip_start)
        found = self._positions(cells_start, extended)
        if found is None:
            return
        voxels, lower, fractions = found
        assert self.scan_axes is not None
        axis = self.scan_axes[0]
        order = [0, *(1 + self.scan_axes.index(n) for n in range(3))]
        begin, end = voxels[axis].start, voxels[axis].stop
        step = max(1, MAX_LOGITS // (len(extended) * len(lower[1]) * len(lower[2])))
        for first in range(begin, end, step):
            chunk = slice(first - begin, first - begin + step)
            values = interpolated_along_axes(
                extended, [lower[0][chunk], *lower[1:]], [fractions[0][chunk], *fractions[1:]]
            ).float()
            is_argmax = self.average.output.decision == "argmax"
            probabilities = values
            if not self.are_probabilities:
                probabilities = values.softmax(dim=0) if is_argmax else values.sigmoid()
            if probabilities.isnan().any():
                raise not_finite()
            voxels[axis] = slice(first, min(first + step, end))
            self.average.add(tuple(voxels), probabilities.permute(order).numpy(force=True))
