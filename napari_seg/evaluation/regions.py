"""Score classes that overlap (regions), each as a label map of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from napari_seg.errors import InputError, listed
from napari_seg.evaluation.labels import BACKGROUND, Classes, is_annotated, labels_option, numbered
from napari_seg.evaluation.metrics import Scores, compare_label_maps
from napari_seg.evaluation.names import match_names
from napari_seg.volume import Segment, Segmentation, distinct_color, labels_in


def compare_regions(
    prediction: Segmentation,
    reference: Segmentation,
    regions: Classes,
    tolerance_mm: float = 1.0,
    labelled: Collection[int] | None = None,
) -> tuple[tuple[Segment, ...], dict[str, Scores]]:
    """Return the regions and their scores; see `region_masks`, also for the other arguments.

    Args:
        tolerance_mm: tolerance of the NSD.
    """
    segments, scores = [], {}
    for segment, found, expected in region_masks(prediction, reference, regions, labelled):
        segments.append(segment)
        scores[segment.name] = compare_label_maps(found, expected, tolerance_mm).scores[1]
    return tuple(segments), scores


def region_masks(
    prediction: Segmentation,
    reference: Segmentation,
    regions: Classes,
    labelled: Collection[int] | None = None,
) -> Iterator[tuple[Segment, Segmentation, Segmentation]]:
    """Yield each region, numbered from 1, with its mask in the result and in the reference, whose label is 1.

    A region of the reference is the union of its values. A label of the result with the name of a region, see
    `match_names`, belongs to this region and to all regions with at least its values; other labels mean the same as in
    the reference.

    Args:
        prediction: the result.
        reference: the reference, on the same voxels.
        regions: name -> ranges of values of the reference; those of background are left out.
        labelled: values that are annotated; regions with other values are left out. None: all.

    Raises:
        InputError: `labels.unknown`, a value of the reference belongs to no region; `labels.none_common`, the result
            has names of which none is a region, and values that the regions do not have; `geometry.mismatch`.
    """
    values = _values(regions, np.union1d(np.unique(prediction.array), np.unique(reference.array)))
    known = {0, *(value for of_region in values.values() for value in of_region)}
    if unknown := sorted(set(np.unique(reference.array).tolist()) - known):
        raise InputError(
            "labels.unknown",
            f"the reference contains {', '.join(map(str, unknown[:6]))}, which no region has; assign these values, for "
            f"example background={unknown[0]}",
        )
    values.pop(BACKGROUND, None)
    of_result = {segment.name: segment.label for segment in prediction.segments}
    names = {of_result[name]: region for name, region in match_names(of_result, values).items()}
    if of_result and not names and set(labels_in(prediction.array)) - known:
        raise InputError(
            "labels.none_common",
            f"the result has {numbered(of_result)}, and the references have the regions {listed([*values])}, so that "
            "no structure has the same name in both; rename them, or give the values of the reference that make up "
            f"each structure of the result with {labels_option(dict.fromkeys(of_result, 'VALUE,VALUE'))}",
        )
    for number, (name, of_region) in enumerate(values.items(), start=1):
        if labelled is not None and not is_annotated(regions[name], labelled):
            continue
        inner = {other for other in values if _covers(regions[name], regions[other])}
        found = [value for value in of_region if value not in names]
        found += [label for label, its in names.items() if its in inner]
        segment = Segment(number, name, distinct_color(number))
        found_mask, expected_mask = (
            Segmentation(np.isin(side.array, labels).astype(np.uint8), side.grid, (Segment(1, name, segment.color),))
            for side, labels in ((prediction, found), (reference, of_region))
        )
        yield segment, found_mask, expected_mask


def _values(regions: Classes, present: np.ndarray) -> dict[str, list[int]]:
    """Return name -> those of some values that its ranges contain."""
    return {
        name: [int(v) for v in present if v and any(low <= v <= high for low, high in bounds)]
        for name, bounds in regions.items()
    }


def _covers(outer: tuple[tuple[int, int], ...], inner: tuple[tuple[int, int], ...]) -> bool:
    """Return whether each range of `inner` lies in one of `outer`."""
    return all(any(low <= start and end <= high for low, high in outer) for start, end in inner)
