"""Metrics that compare a segmentation with a reference.

Empty segments: if neither label map contains a segment, every metric is nan and the case is left out of the mean. If
only one contains it, the overlap metrics and the NSD are 0 and HD95 is the diagonal of the field of view, the largest
distance on the grid (373.13 mm in the BraTS challenge); so neither a miss nor a false positive improves a mean.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segmentation

MAX_LABELS = 1000
"""Larger numbers of labels indicate an instance map; the confusion matrix grows with their square."""

DEFINITIONS = {
    "dice": "Dice = F1: 2 TP / (2 TP + FP + FN), counted in voxels",
    "iou": "intersection over union (Jaccard): TP / (TP + FP + FN)",
    "precision": "TP / (TP + FP): correct fraction of the result",
    "recall": "sensitivity, TP / (TP + FN): fraction of the reference that was found",
    "accuracy": "(TP + TN) / all voxels of the grid; near 1 for any small structure",
    "volume_ml": "volume of the result, ml",
    "reference_ml": "volume of the reference, ml",
    "difference_ml": "volume of the result minus volume of the reference, ml",
    "hd95_mm": "95 % Hausdorff distance, mm, as MONAI's compute_hausdorff_distance(percentile=95): the distances from "
    "each border voxel of one to the nearest border voxel of the other, their 95th percentile, the larger of both ways",
    "nsd": "normalised surface Dice, as MONAI's compute_surface_dice(use_subvoxels=False): the fraction of the "
    "border voxels of both that lie within the tolerance of the other border",
}
"""Definition of each metric. TP, FP, FN and TN count voxels of one segment against all others. A border voxel lies in
the segment and has a face neighbour outside it; positions beyond the grid are outside."""


@dataclass(frozen=True)
class Scores:
    """Metrics of one segment, as in `DEFINITIONS`."""

    dice: float = nan
    iou: float = nan
    precision: float = nan
    recall: float = nan
    accuracy: float = nan
    volume_ml: float = nan
    reference_ml: float = nan
    difference_ml: float = nan
    hd95_mm: float = nan
    nsd: float = nan


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Comparison(Generic[Key]):
    """Comparison of one label map with its reference.

    Attributes:
        labels: 0 and every label that the label map or the reference contains or names, ascending.
        scores: structure -> metrics.
        confusion: (L, L) voxels with `labels[row]` in the reference and `labels[column]` in the result.
    """

    labels: tuple[int, ...]
    scores: dict[Key, Scores]
    confusion: NDArray[np.int64]


def compare_label_maps(
    prediction: Segmentation,
    reference: Segmentation,
    structures: Mapping[Key, Collection[int]],
    tolerance_mm: float | None = 1.0,
) -> Comparison[Key]:
    """Return the metrics of structures and the confusion matrix of labels.

    A reference whose axes are permuted or flipped is reoriented first; nothing is interpolated.

    Args:
        prediction: the result.
        reference: the reference.
        structures: structure -> labels that make it up; structures that overlap share labels.
        tolerance_mm: distance up to which two surfaces count as equal in the NSD; None: no distances are computed, HD95
            and NSD are nan.

    Raises:
        InputError: `geometry.mismatch`, the grids hold different voxels; `labels.too_many`, over `MAX_LABELS` labels.
    """
    from scipy.ndimage import find_objects

    grid, found, expected = prediction.grid, prediction.array, on_grid(reference, prediction.grid)
    found_at, expected_at = (
        {label: box for label, box in enumerate(find_objects(array), start=1) if box is not None}
        for array in (found, expected)
    )
    labels = (0, *sorted(found_at.keys() | expected_at.keys() | {n for own in structures.values() for n in own}))
    if len(labels) > MAX_LABELS:
        raise InputError(
            "labels.too_many", f"found {len(labels)} labels; expected at most {MAX_LABELS}, one for each structure"
        )
    confusion = confusion_matrix(found, expected, labels)
    scores = {}
    for structure, own in structures.items():
        rows = np.isin(labels, [*own])
        shared, in_found, in_expected = confusion[rows][:, rows].sum(), confusion[:, rows].sum(), confusion[rows].sum()
        if in_found == in_expected == 0:
            scores[structure] = Scores()
            continue
        hd95_mm, nsd = _diagonal_mm(grid), 0.0
        if tolerance_mm is None:
            hd95_mm, nsd = nan, nan
        elif in_found and in_expected:
            box = _union([at[label] for at in (found_at, expected_at) for label in own if label in at])
            distances = surface_distances(_mask(found[box], own), _mask(expected[box], own), grid)
            hd95_mm, nsd = hausdorff_95(*distances), surface_dice(*distances, tolerance_mm)
        either = in_found + in_expected - shared
        scores[structure] = Scores(
            dice=float(2 * shared / (in_found + in_expected)),
            iou=float(shared / either),
            precision=float(shared / in_found) if in_found else 0.0,
            recall=float(shared / in_expected) if in_expected else 0.0,
            accuracy=float(1 - (either - shared) / found.size),
            volume_ml=float(in_found * grid.voxel_ml),
            reference_ml=float(in_expected * grid.voxel_ml),
            difference_ml=float((int(in_found) - int(in_expected)) * grid.voxel_ml),
            hd95_mm=hd95_mm,
            nsd=nsd,
        )
    return Comparison(labels, scores, confusion)


DISAGREEMENTS = {1: "only in the result", 2: "only in the reference", 3: "other structures"}
"""Meaning of the values of `disagreement`."""


def disagreement(prediction: Segmentation, reference: Segmentation) -> NDArray[np.uint8]:
    """Return where and how a result and its reference differ: (I, J, K) values of `DISAGREEMENTS`, 0 where they agree.

    Args:
        prediction: the result.
        reference: the reference, on the same voxels.

    Raises:
        InputError: `geometry.mismatch`, the grids hold different voxels.
    """
    found, expected = prediction.array, on_grid(reference, prediction.grid)
    answer = (found != expected).astype(np.uint8)
    answer *= np.uint8(3)
    answer[(answer > 0) & (expected == 0)] = 1
    answer[(answer > 0) & (found == 0)] = 2
    return answer


def confusion_matrix(
    prediction: NDArray[np.unsignedinteger], reference: NDArray[np.unsignedinteger], labels: Sequence[int]
) -> NDArray[np.int64]:
    """Return (L, L) counts of voxels with `labels[row]` in the reference and `labels[column]` in the prediction.

    Args:
        prediction: (I, J, K).
        reference: (I, J, K) on the same grid.
        labels: every label of both arrays, 0 first.
    """
    size = len(labels)
    index = np.zeros(max(labels) + 1, dtype=np.int64)
    index[list(labels)] = np.arange(size)
    counts = np.zeros(size * size, dtype=np.int64)
    for found, expected in zip(prediction, reference, strict=True):
        foreground = (
            found | expected
        ) > 0  # nearly all voxels are background in both; their count follows from the rest
        counts += np.bincount(index[expected[foreground]] * size + index[found[foreground]], minlength=size * size)
    counts[0] = prediction.size - counts.sum()
    return counts.reshape(size, size)


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances in mm from the border voxels of the prediction to those of the reference, and back.

    Args:
        prediction: (I, J, K), a box of the grid that contains the whole segment; not empty.
        reference: same box of the reference; not empty.
        grid: source of the spacing; an axis of length 1 belongs to a 2D image and has no surface across it.
    """
    from scipy.spatial import KDTree

    flat = tuple(axis for axis, size in enumerate(grid.shape) if size == 1)
    spacing_mm = np.delete(grid.spacing_mm, flat)
    prediction_mm, reference_mm = (
        np.argwhere(_border(mask.squeeze(flat))) * spacing_mm for mask in (prediction, reference)
    )
    return KDTree(reference_mm).query(prediction_mm)[0], KDTree(prediction_mm).query(reference_mm)[0]


def hausdorff_95(from_prediction: NDArray[np.float64], from_reference: NDArray[np.float64]) -> float:
    """Return the larger of both directions' 95th percentiles of the surface distances, in mm."""
    return float(max(np.percentile(from_prediction, 95), np.percentile(from_reference, 95)))


def surface_dice(
    from_prediction: NDArray[np.float64], from_reference: NDArray[np.float64], tolerance_mm: float
) -> float:
    """Return the fraction of all border voxels within the tolerance of the other border (arXiv:1809.04430)."""
    distances = np.concatenate([from_prediction, from_reference])
    # a spacing of 1 mm may be 1.0000001 or 0.9999999 in a header's float32
    return float(np.mean(distances <= tolerance_mm * (1 + 1e-5)))


def on_grid(segmentation: Segmentation, grid: Grid) -> NDArray[np.unsignedinteger]:
    """Return the label map in the voxel order of another grid that holds the same voxels.

    Raises:
        InputError: `geometry.mismatch`, the grids hold different voxels.
    """
    reoriented = segmentation.grid.reoriented(grid.orientation)
    if not reoriented.matches(grid, tolerance_mm=min(grid.spacing_mm) / 100):
        raise InputError(
            "geometry.mismatch",
            f"the label maps have different grids ({_described(segmentation.grid)} and {_described(grid)}); expected "
            "the same voxels; resample one of them on the grid of the other",
        )
    if reoriented == segmentation.grid:
        return segmentation.array
    array: NDArray[np.unsignedinteger] = resample(segmentation.array, segmentation.grid, reoriented, order=0)
    return array


def _diagonal_mm(grid: Grid) -> float:
    """Return the diagonal of the field of view; for a 2D image, the diagonal within its plane."""
    sides_mm = [mm for mm, size in zip(grid.size_mm, grid.shape, strict=True) if size > 1]
    return float(np.linalg.norm(sides_mm or grid.size_mm))


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def _mask(array: NDArray[np.unsignedinteger], labels: Collection[int]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_]
    mask = np.isin(array, [*labels]) if len(labels) > 1 else array == next(iter(labels))
    return mask


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*boxes, strict=True)
    )


def _described(grid: Grid) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {spacing} mm, {grid.orientation}"
