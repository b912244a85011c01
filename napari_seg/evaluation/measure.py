"""Measure the structures of a label map: size, mean intensity and center."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measurement:
    """Measurement of one structure.

    Attributes:
        voxels: number of voxels.
        mean_intensity: mean of the image within the structure; nan without an image.
        center: index of a voxel of the structure close to its centroid: the nearest one in the plane (across the first
            axis) that is nearest to the centroid among the planes that the structure reaches.
    """

    voxels: int
    mean_intensity: float
    center: tuple[int, int, int]


def measure(labels: NDArray[np.unsignedinteger], image: NDArray | None = None) -> dict[int, Measurement]:
    """Return label -> measurement for every label in the array but 0.

    Works plane by plane on the foreground voxels, so that a small structure in a large scan takes little time and
    memory.

    Args:
        labels: (I, J, K) label map.
        image: (I, J, K) intensities.
    """
    count = int(labels.max(initial=0)) + 1
    numbers: dict[
        int, dict[int, int]
    ] = {}  # label -> plane -> voxels; a table would have a column for each lower label
    totals = np.zeros((3, count))  # per label: totals of intensities, of row indices and of column indices
    for n, plane in enumerate(labels):
        foreground = np.flatnonzero(plane)
        if not foreground.size:
            continue
        if plane.flags.c_contiguous:
            found = plane.ravel()[foreground]
        else:
            found = plane[np.unravel_index(foreground, plane.shape)]
        rows, columns = np.divmod(foreground, plane.shape[1])
        in_plane = np.bincount(found)
        for label in np.flatnonzero(in_plane).tolist():
            numbers.setdefault(label, {})[n] = int(in_plane[label])
        if image is not None:
            totals[0] += np.bincount(found, image[n][rows, columns], minlength=count)
        totals[1] += np.bincount(found, rows, minlength=count)
        totals[2] += np.bincount(found, columns, minlength=count)
    answer = {}
    for label, of_label in sorted(numbers.items()):
        planes, voxels = np.array([*of_label]), np.array([*of_label.values()])
        voxel_count = int(voxels.sum())
        plane = int(planes[np.abs(planes - planes @ voxels / voxel_count).argmin()])
        points = np.argwhere(labels[plane] == label)
        row, column = points[np.square(points - totals[1:, label] / voxel_count).sum(axis=1).argmin()].tolist()
        mean = nan if image is None else float(totals[0, label] / voxel_count)
        answer[label] = Measurement(voxel_count, mean, (plane, row, column))
    return answer
