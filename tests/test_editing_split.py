"""Splitting of touching balls whose necks are known."""

from __future__ import annotations

import numpy as np
import pytest
from edited import ball, edited, points_mm
from phantoms import oblique_grid

from napari_seg.editing.split import split
from napari_seg.errors import InputError
from napari_seg.geometry import Grid

GRID = oblique_grid((40, 40, 24), (1.5, 1.25, 2.5))
LABEL, OTHER = 4, 9
CENTERS = [(9, 10, 8), (20, 12, 10), (26, 24, 13)]
RADII = [11.0, 9.0, 12.0]


def balls(numbers: tuple[int, ...] = (0, 1, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Return balls that overlap a little, and for each voxel the ball that it belongs to, from 1 up.

    The plane through the circle in which two spheres meet holds the points of equal power, distance² - radius², so a
    voxel belongs to the ball with the lowest power.
    """
    power = [np.linalg.norm(points_mm(GRID) - GRID.to_world(CENTERS[n]), axis=-1) ** 2 - RADII[n] ** 2 for n in numbers]
    inside = np.min(power, axis=0) <= 0
    return np.where(inside, LABEL, 0).astype(np.uint8), np.where(inside, 1 + np.argmin(power, axis=0), 0)


def agreement(after: np.ndarray, owner: np.ndarray) -> float:
    """Return the fraction of voxels that have the label of their ball, whatever the labels are."""
    found = {n: np.bincount(after[owner == n]).argmax() for n in range(1, int(owner.max()) + 1)}
    assert len(set(found.values())) == len(found)
    return sum((after[owner == n] == label).sum() for n, label in found.items()) / (owner > 0).sum()


def test_touching_balls_are_found_and_cut_at_their_necks() -> None:
    labels, owner = balls()
    labels[0, 0, 0] = OTHER
    after = edited(labels, split(labels, GRID, LABEL))
    assert np.unique(after).tolist() == [0, LABEL, OTHER, OTHER + 1, OTHER + 2]
    assert agreement(after, owner) > 0.97
    assert (after[owner == 3] == LABEL).mean() > 0.97  # the largest keeps the label
    assert np.array_equal(after > 0, labels > 0)
    assert after[0, 0, 0] == OTHER


@pytest.mark.parametrize("count", [2, 3])
def test_a_number_of_parts_is_found(count: int) -> None:
    labels, _ = balls()
    after = edited(labels, split(labels, GRID, LABEL, count=count, into=[7, 8]))
    assert np.unique(after).tolist() == [0, LABEL, 7, 8][: count + 1]


def test_seeds_give_the_parts_and_the_order_of_their_labels() -> None:
    labels, owner = balls()
    after = edited(labels, split(labels, GRID, LABEL, seeds=CENTERS, into=[7, 5]))
    for number, label in enumerate([LABEL, 7, 5], start=1):
        assert (after[owner == number] == label).mean() > 0.96
    two = edited(labels, split(labels, GRID, LABEL, seeds=[CENTERS[1], CENTERS[2]]))
    assert np.unique(two).tolist() == [0, LABEL, LABEL + 1]
    assert (two[owner == 1] == LABEL).mean() > 0.97  # the first ball touches the second only


def test_two_equal_boxes_are_cut_exactly_at_the_neck() -> None:
    grid = Grid((30, 20, 16), GRID.affine)
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:12, 3:17, 3:13] = labels[13:23, 3:17, 3:13] = LABEL
    labels[12, 9:11, 7:9] = LABEL
    after = edited(labels, split(labels, grid, LABEL, into=[7]))
    assert set(np.unique(after[2:12, 3:17, 3:13])) | set(np.unique(after[13:23, 3:17, 3:13])) == {LABEL, 7}
    assert len(np.unique(after[2:12, 3:17, 3:13])) == len(np.unique(after[13:23, 3:17, 3:13])) == 1


def test_one_ball_and_a_rough_surface_are_one_part() -> None:
    labels, _ = balls((2,))
    with pytest.raises(InputError, match=r"edit\.one_part"):
        split(labels, GRID, LABEL)
    random = np.random.default_rng(1)
    labels[(labels == LABEL) & (random.random(GRID.shape) < 0.3) & ~ball(CENTERS[2], 9.5, GRID)] = 0
    with pytest.raises(InputError, match=r"edit\.one_part"):
        split(labels, GRID, LABEL)


def test_parts_that_do_not_touch_are_parts() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:8, 2:9, 2:8] = labels[20:25, 20:25, 12:17] = LABEL
    after = edited(labels, split(labels, GRID, LABEL))
    assert (after[2:8, 2:9, 2:8] == LABEL).all()
    assert (after[20:25, 20:25, 12:17] == LABEL + 1).all()


def test_what_can_not_be_split_is_refused() -> None:
    labels, _ = balls()
    labels[0, 0, 0] = 255
    refused = [
        ("edit.absent", {}, 5),
        ("edit.outside", {"seeds": [(9, 10, 8), (40, 0, 0)]}, LABEL),
        ("edit.not_in_structure", {"seeds": [(9, 10, 8), (0, 0, 1)]}, LABEL),
        ("edit.one_part", {"seeds": [(9, 10, 8)]}, LABEL),
        ("edit.one_part", {"seeds": [(9, 10, 8), (9, 10, 8)]}, LABEL),
        ("edit.one_part", {"depth_mm": 50.0}, LABEL),
        ("edit.too_few_labels", {"into": [7]}, LABEL),
        ("edit.same", {"into": [LABEL, 7]}, LABEL),
        ("edit.same", {"into": [7, 7]}, LABEL),
        ("edit.label", {}, LABEL),
    ]
    for code, options, label in refused:
        with pytest.raises(InputError) as error:
            split(labels, GRID, label, **options)
        assert error.value.code == code


def test_labels_beyond_the_parts_do_not_matter() -> None:
    labels, _ = balls((0, 1))
    after = edited(labels, split(labels, GRID, LABEL, into=[7, 300, 400]))
    assert np.unique(after).tolist() == [0, LABEL, 7]
