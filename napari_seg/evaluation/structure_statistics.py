"""Volume and mean intensity of each structure of a result, as TotalSegmentator's statistics.json holds them."""

from __future__ import annotations

import numpy as np

from napari_seg.volume import Segmentation, Volume

BORDER = 3
"""Number of planes at each side of the scan; a structure that reaches into them counts as incomplete."""


def structure_statistics(
    volume: Volume, segmentation: Segmentation, include_incomplete: bool = False
) -> dict[str, dict[str, float]]:
    """Return name -> {"volume": mm³, "intensity": mean} for each segment, in the order of the segments.

    As in TotalSegmentator, intensities are truncated to whole numbers first, and an incomplete structure has zeros. The
    intensity is that of the first channel.

    Args:
        volume: the scan.
        segmentation: its segmentation, on the same grid.
        include_incomplete: measure structures at the border of the scan, too.
    """
    labels, image = segmentation.array, volume.array[0]
    count = max((int(labels.max(initial=0)), *(segment.label for segment in segmentation.segments))) + 1
    voxels, totals = np.zeros(count, np.int64), np.zeros(count)
    is_incomplete = np.zeros(count, bool)
    for number, (plane, values) in enumerate(zip(labels, image, strict=True)):
        flat = plane.ravel()
        voxels += np.bincount(flat, minlength=count)
        totals += np.bincount(flat, np.trunc(values, dtype=np.float64).ravel(), minlength=count)
        if min(number, len(labels) - 1 - number) < BORDER:
            is_incomplete[np.unique(flat)] = True
        for edge in (plane[:BORDER], plane[-BORDER:], plane[:, :BORDER], plane[:, -BORDER:]):
            is_incomplete[np.unique(edge)] = True
    voxel_mm3 = float(
        np.prod(np.array(segmentation.grid.spacing_mm, np.float32))
    )  # as NIfTI headers store the voxel size
    found = {}
    for segment in segmentation.segments:
        size = int(voxels[segment.label])
        if not size or (is_incomplete[segment.label] and not include_incomplete):
            found[segment.name] = {"volume": 0.0, "intensity": 0.0}
            continue
        mean = round(float(totals[segment.label] / size), 5)
        found[segment.name] = {"volume": size * voxel_mm3, "intensity": mean}
    return found
