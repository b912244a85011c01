"""Plausibility of a result: notices on segments that may be wrong, and removal of all islands but the largest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import Notice, counted
from napari_seg.volume import Segment, Segmentation

MIN_LARGEST = 0.9
"""Smallest fraction of its voxels that the largest island of a segment in one piece must contain."""

CODE = "result.implausible"


def find_implausible(segmentation: Segmentation, min_confidence: float) -> tuple[Notice, ...]:
    """Return a notice for each segment and reason why it may be wrong: volume, fragments or low confidence.

    A segment without voxels gives a notice only if its plausible volume requires it, or if no segment has voxels.

    Args:
        segmentation: the result, on the scan's grid.
        min_confidence: mean probability of a segment's voxels that the bundle expects.
    """
    from scipy import ndimage

    found: list[Notice] = []
    volumes = segmentation.volumes_ml()
    if segmentation.segments and not any(volumes.values()):
        names = ", ".join(segment.name for segment in segmentation.segments[:3])
        more = ", ..." * (len(segmentation.segments) > 3)
        text = f"found nothing of {names}{more}; check that the scan is of the kind that the model was trained on"
        found.append(Notice("result.empty", text))
    boxes = ndimage.find_objects(segmentation.array)
    for segment in segmentation.segments:
        volume_ml = volumes[segment.label]
        if segment.plausible_ml is not None and not segment.plausible_ml[0] <= volume_ml <= segment.plausible_ml[1]:
            low, high = segment.plausible_ml
            text = f"volume {volume_ml:.2f} ml is outside the plausible range of {low:g} to {high:g} ml"
            found.append(_implausible(segment, text))
        box = boxes[segment.label - 1] if segment.label <= len(boxes) else None
        if box is None:
            continue
        if segment.in_one_piece:
            pieces, count = ndimage.label(segmentation.array[box] == segment.label, structure=np.ones((3, 3, 3)))
            sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in pieces], axis=0)[1:]
            main = sizes.max() / sizes.sum()
            if main < MIN_LARGEST:
                text = f"it consists of {count} islands, the largest with {main:.0%} of the voxels"
                found.append(_implausible(segment, text))
        confidence = segmentation.confidence.get(segment.label)
        if confidence is not None and confidence < min_confidence:
            text = f"mean confidence {confidence:.2f} is below the expected {min_confidence:.2f}"
            found.append(_implausible(segment, text))
    return tuple(found)


def remove_islands(
    label_map: NDArray[np.unsignedinteger], voxel_ml: float, segments: tuple[Segment, ...]
) -> tuple[Notice, ...]:
    """Remove, in place, all islands but the largest of each segment in one piece, and return a notice for each.

    Segments that touch count as one island, so that a voxel on the border between two of them leaves no hole.

    Args:
        label_map: (I, J, K).
        voxel_ml: volume of a voxel in ml.
        segments: segments of the result; those that are not declared to be in one piece stay as they are.
    """
    from scipy import ndimage

    single = [segment for segment in segments if segment.in_one_piece]
    is_single = np.zeros(int(label_map.max(initial=0)) + 1, bool)
    is_single[[segment.label for segment in single if segment.label < len(is_single)]] = True
    chosen = is_single[label_map]
    found: list[Notice] = []
    for box in ndimage.find_objects(chosen.view(np.uint8)):
        pieces, _ = ndimage.label(chosen[box], structure=np.ones((3, 3, 3)))
        labels = label_map[box]
        counts = {s.label: np.bincount(pieces[labels == s.label], minlength=pieces.max() + 1) for s in single}
        kept = {int(count.argmax()) for count in counts.values() if count.any()}
        is_island = ~np.isin(np.arange(pieces.max() + 1), [0, *kept])
        for segment in single:
            count = counts[segment.label]
            removed, total = int(count[is_island].sum()), int(count.sum())
            if not removed:
                continue
            number = int((count[is_island] > 0).sum())
            text = f"removed {counted(number, 'island')} of {removed * voxel_ml:.2g} ml; the largest is kept"
            found.append(Notice("result.islands", f"{segment.name}: {text}", segment.name))
            if removed > (1 - MIN_LARGEST) * total:
                text = f"it consisted of {number + 1} islands, the largest with {1 - removed / total:.0%} of the voxels"
                found.append(_implausible(segment, text))
        labels[is_island[pieces]] = 0
    return tuple(found)


def _implausible(segment: Segment, reason: str) -> Notice:
    return Notice(CODE, f"{segment.name}: {reason}; check it before you use it", segment.name)
