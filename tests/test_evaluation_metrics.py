"""Overlap, distances and confusion by hand, and the distances against MONAI's own functions."""

from __future__ import annotations

from dataclasses import astuple
from math import isnan, sqrt

import numpy as np
import pytest

from napari_seg.errors import InputError
from napari_seg.evaluation.metrics import (
    DEFINITIONS,
    Scores,
    compare_label_maps,
    hausdorff_95,
    surface_dice,
    surface_distances,
)
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segmentation

GRID = Grid((6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
ONE_TWO = {1: [1], 2: [2]}


def label_map(fill: dict[int, slice], grid: Grid = GRID) -> Segmentation:
    array = np.zeros(GRID.shape, np.uint8)
    for label, rows in fill.items():
        array[rows] = label
    return Segmentation(resample(array, GRID, grid, order=0), grid, ())


def oblique_grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Grid:
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = (-40, 12, 7)
    return Grid(shape, affine)


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return smooth > np.quantile(smooth, 0.8)


def test_every_number_by_hand() -> None:
    # six planes of 5 x 4 = 20 voxels of 6 mm³, 1 mm apart; the result holds planes 1 to 3, the reference 2 to 5
    comparison = compare_label_maps(label_map({1: slice(1, 4)}), label_map({1: slice(2, 6)}), ONE_TWO, tolerance_mm=1.0)
    scores = comparison.scores[1]
    shared, found, expected, everything = 40, 60, 80, 120
    assert scores.dice == pytest.approx(2 * shared / (found + expected))
    assert scores.iou == pytest.approx(shared / 100)
    assert scores.precision == pytest.approx(shared / found)
    assert scores.recall == pytest.approx(shared / expected)
    assert scores.accuracy == pytest.approx((shared + everything - 100) / everything)
    assert (scores.volume_ml, scores.reference_ml) == (pytest.approx(0.36), pytest.approx(0.48))
    assert scores.difference_ml == pytest.approx(-0.12)
    assert comparison.labels == (0, 1, 2)
    assert comparison.confusion.tolist() == [[20, 20, 0], [40, 40, 0], [0, 0, 0]]
    # the result's border: planes 1 and 3 whole and the 20 - 3 * 2 voxels on the rim of plane 2, all within 1 mm; the
    # reference's: planes 2 and 5 whole and the rims of 3 and 4, of which plane 5 alone lies further off, 2 mm
    assert scores.hd95_mm == 2.0
    assert scores.nsd == pytest.approx((54 + 68 - 20) / (54 + 68))


def test_distances_by_hand_use_the_spacing() -> None:
    a, b = np.zeros((2, *GRID.shape), bool)
    a[0, 0, 0] = b[3, 2, 1] = True
    distances = surface_distances(a, b, GRID)
    assert hausdorff_95(*distances) == pytest.approx(sqrt(3**2 + 4**2 + 3**2))
    assert surface_dice(*distances, 5.8) == 0
    assert surface_dice(*distances, 5.9) == 1


def test_a_tolerance_of_one_voxel_survives_a_float32_header() -> None:
    grid = Grid(GRID.shape, np.diag([1.0000001, 2.0, 3.0, 1.0]))
    a, b = np.zeros((2, *GRID.shape), bool)
    a[0, 0, 0] = b[1, 0, 0] = True
    assert surface_dice(*surface_distances(a, b, grid), 1.0) == 1


@pytest.mark.parametrize("shape", [(24, 18, 12), (30, 26, 1)])
def test_surface_numbers_are_those_of_monai(shape: tuple[int, int, int]) -> None:
    """On an oblique, anisotropic grid; a slab of one voxel is MONAI's 2D case."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    grid = oblique_grid(shape, (0.7, 1.3, 2.9))
    for seed in range(4):
        # the segment touches the edge of the grid; the second one is a part of the first, or another blob
        a = blob(shape, seed)
        b = np.roll(a, 2, axis=0) & blob(shape, seed + 10) if seed % 2 else blob(shape, seed + 20)
        maps = (Segmentation(m.astype(np.uint8), grid, ()) for m in (a, b))
        scores = compare_label_maps(*maps, ONE_TWO, tolerance_mm=1.5).scores[1]
        ours, theirs = (torch.from_numpy(m.astype(np.float32).squeeze())[None, None] for m in (a, b))
        spacing = grid.spacing_mm[: ours.ndim - 2]
        hd95 = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
        nsd = compute_surface_dice(ours, theirs, [1.5], include_background=True, spacing=spacing)
        assert scores.hd95_mm == pytest.approx(float(hd95), rel=1e-5)
        assert scores.nsd == pytest.approx(float(nsd), rel=1e-5)


def test_the_rule_for_empty_segments() -> None:
    nothing, something = label_map({}), label_map({1: slice(0, 2)})
    diagonal_mm = sqrt(6**2 + 10**2 + 12**2)
    for prediction, reference in ((nothing, something), (something, nothing)):
        one, neither = compare_label_maps(prediction, reference, ONE_TWO).scores.values()
        assert one.dice == one.iou == one.precision == one.recall == one.nsd == 0
        assert one.hd95_mm == pytest.approx(diagonal_mm)
        assert abs(one.difference_ml) == pytest.approx(0.24)
        assert all(isnan(value) for value in astuple(neither))


def test_a_reference_in_another_storage_order_is_turned() -> None:
    prediction = label_map({1: slice(0, 2), 2: slice(4, 5)})
    turned = compare_label_maps(prediction, label_map({1: slice(0, 3)}, GRID.reoriented("SPL")), ONE_TWO)
    straight = compare_label_maps(prediction, label_map({1: slice(0, 3)}), ONE_TWO)
    assert turned.scores == straight.scores
    assert turned.scores[1].dice == pytest.approx(2 * 2 / 5)
    assert turned.scores[2].dice == 0


def test_a_reference_on_another_grid_is_refused() -> None:
    moved = Segmentation(np.zeros(GRID.shape, np.uint8), GRID.box((1, 0, 0), (7, 5, 4)), ())
    with pytest.raises(InputError, match=r"geometry\.mismatch"):
        compare_label_maps(label_map({1: slice(0, 2)}), moved, ONE_TWO)


def test_labels_may_be_sparse_but_not_thousands() -> None:
    prediction, reference = label_map({3: slice(0, 2), 200: slice(2, 4)}), label_map({3: slice(0, 1), 200: slice(1, 4)})
    comparison = compare_label_maps(prediction, reference, {3: [3], 200: [200]})
    assert comparison.labels == (0, 3, 200)
    assert comparison.confusion.tolist() == [[40, 0, 0], [0, 20, 0], [0, 20, 40]]
    instances = Segmentation(np.arange(1331, dtype=np.uint16).reshape(11, 11, 11), Grid((11, 11, 11), np.eye(4)), ())
    with pytest.raises(InputError, match=r"labels\.too_many"):
        compare_label_maps(instances, instances, {})


def test_structures_may_share_labels_and_distances_be_left_out() -> None:
    prediction, reference = label_map({1: slice(0, 2), 2: slice(2, 3)}), label_map({1: slice(1, 2), 2: slice(2, 4)})
    whole, core = compare_label_maps(prediction, reference, {"whole": [1, 2], "core": [2]}).scores.values()
    assert (whole.dice, core.dice) == (pytest.approx(2 * 2 / 6), pytest.approx(2 / 3))
    assert (whole.hd95_mm, core.hd95_mm) == (1, 1)
    alone = compare_label_maps(prediction, reference, {"core": [2]}, tolerance_mm=None).scores["core"]
    assert (alone.dice, isnan(alone.hd95_mm), isnan(alone.nsd)) == (core.dice, True, True)


def test_every_number_has_a_definition() -> None:
    assert list(DEFINITIONS) == list(Scores.__dataclass_fields__)
