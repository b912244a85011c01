"""Doubts about a result that a person should hear before trusting it."""

from __future__ import annotations

import numpy as np
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


def _doubt(segment: Segment, what: str) -> Notice:
    return Notice(CODE, f"{segment.name}: {what}; look at it before you use it", segment.name)
