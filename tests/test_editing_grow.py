"""Growing from a click in a phantom whose parts are known in mm."""

from __future__ import annotations

import numpy as np
import pytest
from edited import GRID, ball, edited, nearest_mm

from napari_seg.editing.grow import grow, suggest_range
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

LABEL, OTHER = 4, 9
CLICK = (5, 7, 5)


def phantom() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two bright balls, a thin bridge between them, and a bright ball that touches nothing."""
    parts = {
        "first": ball((5, 7, 5), 5.0),
        "second": ball((13, 16, 8), 5.6),
        "alone": ball((16, 4, 11), 3.0),
        "bridge": np.zeros(GRID.shape, bool),
    }
    parts["bridge"][5:13, 11, 5] = True
    parts["bridge"][12, 11:17, 5] = True
    parts["bridge"][12, 16, 5:9] = True
    parts["bridge"][5, 8:12, 5] = True
    image = np.full(GRID.shape, 10.0)
    for part in parts.values():
        image[part] = 100.0
    image += np.arange(image.size).reshape(image.shape) % 5
    return image, parts


def empty() -> np.ndarray:
    return np.zeros(GRID.shape, np.uint8)


def test_growing_takes_what_is_connected_in_the_range() -> None:
    image, parts = phantom()
    after = edited(empty(), grow(empty(), GRID, LABEL, image, CLICK, 90, 110, max_mm=100))
    assert np.array_equal(after == LABEL, parts["first"] | parts["bridge"] | parts["second"])


def test_growing_ends_at_the_distance_from_the_click() -> None:
    image, parts = phantom()
    alone = np.zeros(GRID.shape, bool)
    alone[CLICK] = True
    is_near = nearest_mm(alone) <= 7.0
    change = grow(empty(), GRID, LABEL, image, CLICK, 90, 110, max_mm=7.0)
    everything = parts["first"] | parts["bridge"] | parts["second"]
    assert np.array_equal(edited(empty(), change) == LABEL, everything & is_near)


def test_growing_does_not_cross_a_bridge_that_is_thinner_than_the_neck() -> None:
    image, parts = phantom()
    in_range = image >= 90
    wide = nearest_mm(~in_range) > 1.6
    expected = in_range & (nearest_mm(wide & parts["first"]) <= 1.6 + 1e-6)
    change = grow(empty(), GRID, LABEL, image, CLICK, 90, 110, max_mm=100, neck_mm=1.6)
    after = edited(empty(), change) == LABEL
    assert np.array_equal(after, expected)
    assert not (after & parts["second"]).any()
    assert after.sum() > 0.8 * parts["first"].sum()


def test_other_structures_are_walls_unless_they_are_overwritten() -> None:
    image, parts = phantom()
    labels = empty()
    labels[8:10] = OTHER
    first = edited(labels, grow(labels, GRID, LABEL, image, CLICK, 90, 110, max_mm=100))
    assert np.array_equal(first == OTHER, labels == OTHER)
    expected = parts["first"] | parts["bridge"]
    expected[8:] = False
    assert np.array_equal(first == LABEL, expected)
    change = grow(labels, GRID, LABEL, image, CLICK, 90, 110, max_mm=100, overwrite={OTHER})
    assert np.array_equal(edited(labels, change) == LABEL, parts["first"] | parts["bridge"] | parts["second"])


def test_what_the_structure_has_already_stays() -> None:
    image, parts = phantom()
    labels = empty()
    labels[4:7, 5:9, 4] = labels[18, 24, 12] = LABEL
    after = edited(labels, grow(labels, GRID, LABEL, image, CLICK, 90, 110, max_mm=100))
    joined = parts["first"] | parts["bridge"] | parts["second"] | (labels == LABEL)
    assert np.array_equal(after == LABEL, joined)


def test_what_can_not_grow_is_refused() -> None:
    image, parts = phantom()
    labels = empty()
    labels[ball((16, 4, 11), 3.0)] = OTHER
    everything = (parts["first"] | parts["bridge"] | parts["second"]).sum() * GRID.voxel_ml
    options = {"max_mm": 100.0}
    refused = [
        ("edit.outside", (20, 0, 0), image, options),
        ("edit.out_of_range", (0, 0, 0), image, options),
        ("edit.out_of_range", (16, 4, 11), image, options),
        ("edit.neck", (9, 11, 5), image, {**options, "neck_mm": 1.6}),
        ("edit.leak", CLICK, image, {**options, "max_ml": everything * 0.99}),
        ("edit.shape", CLICK, image[1:], options),
        ("edit.size", CLICK, image, {"max_mm": 0.0}),
        ("edit.size", CLICK, image, {**options, "neck_mm": -1.0}),
    ]
    for code, click, intensities, given in refused:
        with pytest.raises(InputError) as error:
            grow(labels, GRID, LABEL, intensities, click, 90, 110, **given)
        assert error.value.code == code
    grow(labels, GRID, LABEL, image, CLICK, 90, 110, max_mm=100, max_ml=everything * 1.01)


def test_the_suggested_range_is_that_of_the_tissue_at_the_click() -> None:
    grid = Grid((40, 44, 36), GRID.affine)
    random = np.random.default_rng(3)
    image = random.normal(40, 5, grid.shape)
    image[:20] = random.normal(100, 8, (20, 44, 36))
    low, high = suggest_range(image, grid, (12, 20, 18))
    assert low == pytest.approx(100 - 24, abs=10)
    assert high == pytest.approx(100 + 24, abs=10)
    low, high = suggest_range(image, grid, (21, 20, 18))  # most of the ball is on this side, some on the other
    assert 15 < low < 35
    assert 45 < high < 75


def test_the_suggested_range_holds_the_click_and_is_a_point_in_flat_tissue() -> None:
    image = np.full(GRID.shape, 7, np.int16)
    assert suggest_range(image, GRID, (3, 4, 5)) == (7.0, 7.0)
    image[3, 4, 5] = 90
    assert suggest_range(image, GRID, (3, 4, 5)) == (7.0, 90.0)
    with pytest.raises(InputError, match=r"edit\.not_finite"):
        suggest_range(np.full(GRID.shape, np.nan), GRID, (3, 4, 5))
    with pytest.raises(InputError, match=r"edit\.outside"):
        suggest_range(image, GRID, (3, 4, 14))


def test_the_largest_volume_counts_only_what_is_added() -> None:
    image, parts = phantom()
    labels = empty()
    labels[parts["first"]] = LABEL
    added = (parts["bridge"] | parts["second"]) & ~parts["first"]
    limit = added.sum() * GRID.voxel_ml
    after = edited(labels, grow(labels, GRID, LABEL, image, CLICK, 90, 110, max_mm=100, max_ml=limit * 1.01))
    assert np.array_equal((after == LABEL) & (labels == 0), added)
    with pytest.raises(InputError, match=r"edit\.leak"):
        grow(labels, GRID, LABEL, image, CLICK, 90, 110, max_mm=100, max_ml=limit * 0.99)
