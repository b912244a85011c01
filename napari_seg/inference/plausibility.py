"""Doubts about a result that a person should hear before trusting it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_seg.errors import Notice
from napari_seg.volume import Segment, Segmentation

MAIN_PIECE_SHARE = 0.9
"""Share of its voxels that the largest piece of a segment in one piece must hold."""

CODE = "result.implausible"


def doubts(segmentation: Segmentation, min_confidence: float, looked_for: tuple[Segment, ...]) -> tuple[Notice, ...]:
    """One notice for each segment and reason why it can't be right: volume, fragments or low confidence.

    A segment without voxels is doubted only where its plausible volume says that it must be there.

    Args:
        segmentation: the result, on the scan's grid.
        min_confidence: mean probability of a segment's voxels that the bundle expects.
        looked_for: the segments to judge.
    """
    found: list[Notice] = []
    volumes = segmentation.volumes_ml()
    boxes = ndimage.find_objects(segmentation.array)
    for segment in looked_for:
        volume_ml = volumes[segment.label]
        if segment.plausible_ml is not None and not segment.plausible_ml[0] <= volume_ml <= segment.plausible_ml[1]:
            low, high = segment.plausible_ml
            found.append(_doubt(segment, f"{volume_ml:.2f} ml; {low:g} to {high:g} ml is what is seen in people"))
        box = boxes[segment.label - 1] if segment.label <= len(boxes) else None
        if box is None:
            continue
        if segment.in_one_piece:
            pieces, count = ndimage.label(segmentation.array[box] == segment.label, structure=np.ones((3, 3, 3)))
            sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in pieces], axis=0)[1:]
            share = sizes.max() / sizes.sum()
            if share < MAIN_PIECE_SHARE:
                found.append(_doubt(segment, f"it lies in {count} pieces, the largest with {share:.0%} of the voxels"))
        confidence = segmentation.confidence.get(segment.label)
        if confidence is not None and confidence < min_confidence:
            found.append(_doubt(segment, f"mean confidence {confidence:.2f}; at least {min_confidence:.2f} is usual"))
    return tuple(found)


def remove_islands(
    label_map: NDArray[np.unsignedinteger], voxel_ml: float, segments: tuple[Segment, ...]
) -> tuple[Notice, ...]:
    """Remove, in place, what lies apart from the main piece of segments that are in one piece; one notice for each.

    Segments that touch are one piece together, so that a voxel on the border between two of them leaves no hole.

    Args:
        label_map: (I, J, K).
        voxel_ml: volume of a voxel.
        segments: those of the result; others than the ones in one piece stay as they are.
    """
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
            what = f"{number} piece{'s' * (number != 1)} of {removed * voxel_ml:.2g} ml apart from the main one"
            found.append(Notice("result.islands", f"{segment.name}: {what} removed", segment.name))
            if removed > (1 - MAIN_PIECE_SHARE) * total:
                share = f"the main one with {1 - removed / total:.0%} of the voxels"
                found.append(_doubt(segment, f"it lay in {number + 1} pieces, {share}"))
        labels[is_island[pieces]] = 0
    return tuple(found)


def _doubt(segment: Segment, what: str) -> Notice:
    return Notice(CODE, f"{segment.name}: {what}; look at it before you use it", segment.name)
