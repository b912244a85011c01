"""What a table says of each structure of a label map: how large it is, how bright, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measurement:
    """Of one structure.

    Attributes:
        voxels: how many it has.
        mean_intensity: of the image there; NaN where there is no image.
        center: index of the voxel of the structure that lies nearest to its centroid, in the plane across the first
            axis that the centroid lies in; or, where that plane holds none of it, in the nearest one that does.
    """

    voxels: int
    mean_intensity: float
    center: tuple[int, int, int]


def measure(labels: NDArray[np.unsignedinteger], image: NDArray | None = None) -> dict[int, Measurement]:
    """Label -> its measurement, for every label but 0 that the array holds.

    Works plane by plane on the voxels that are not background: a large scan with a small structure takes little time
    and no memory worth naming.

    Args:
        labels: (I, J, K).
        image: (I, J, K) intensities.
    """
    count = int(labels.max(initial=0)) + 1
    voxels = np.zeros((len(labels), count), np.int64)
    sums = np.zeros((3, count))  # of intensities, and of the indices along the last two axes
    for n, plane in enumerate(labels):
        held = np.flatnonzero(plane)
        if not held.size:
            continue
        there = plane.ravel()[held] if plane.flags.c_contiguous else plane[np.unravel_index(held, plane.shape)]
        rows, columns = np.divmod(held, plane.shape[1])
        voxels[n] = np.bincount(there, minlength=count)
        if image is not None:
            sums[0] += np.bincount(there, image[n][rows, columns], minlength=count)
        sums[1] += np.bincount(there, rows, minlength=count)
        sums[2] += np.bincount(there, columns, minlength=count)
    totals = voxels.sum(axis=0)
    answer = {}
    for label in np.flatnonzero(totals).tolist():
        total = totals[label]
        planes = np.flatnonzero(voxels[:, label])
        middle = np.arange(len(labels)) @ voxels[:, label] / total
        plane = int(planes[np.abs(planes - middle).argmin()])
        points = np.argwhere(labels[plane] == label)
        row, column = points[np.square(points - sums[1:, label] / total).sum(axis=1).argmin()].tolist()
        mean = nan if image is None else float(sums[0, label] / total)
        answer[label] = Measurement(int(total), mean, (plane, row, column))
    return answer
