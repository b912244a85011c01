"""Structures refined from prompts on an oblique, anisotropic, noisy phantom."""

from __future__ import annotations

from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray
from phantoms import rotation

from napari_seg.editing import min_cut
from napari_seg.editing import refine as refine_module
from napari_seg.editing.change import Change
from napari_seg.editing.prompts import Prompts
from napari_seg.editing.refine import refine, warm_up
from napari_seg.errors import Cancelled, InputError
from napari_seg.geometry import Grid

SHAPE = (44, 52, 24)
SPACING_MM = (1.2, 0.9, 3.0)
GRID = Grid.around(
    (8.0, -21.0, 33.0), np.array(SHAPE) * SPACING_MM, SPACING_MM, rotation(12, 0, 7) @ np.diag([-1, -1, 1])
)
CENTER = (22, 26, 12)
OUTSIDE = (3, 3, 3)


def ellipsoid(radii_mm: tuple[float, float, float] = (16, 14, 20), grid: Grid = GRID) -> NDArray[np.bool_]:
    """An ellipsoid along the patient's axes, which are not those of the grid."""
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center_mm
    return np.square(points / np.array(radii_mm)).sum(axis=-1) < 1


def scan(truth: NDArray[np.bool_], noise: float = 40.0) -> NDArray[np.int16]:
    return (truth * 100 + np.random.default_rng(3).normal(0, noise, truth.shape)).astype(np.int16)


def applied(change: Change, labels: NDArray) -> NDArray:
    result = labels.copy()
    change.apply(result)
    return result


def dice(one: NDArray, other: NDArray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("has_numba", [True, False], ids=["numba", "scipy"])
def test_one_click_inside_and_one_outside_find_a_noisy_ellipsoid(
    has_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (min_cut, refine_module):
        monkeypatch.setattr(module, "has_fast_solver", lambda: has_numba)
    truth, labels = ellipsoid(), np.zeros(SHAPE, np.uint8)
    prompts = Prompts([CENTER], [OUTSIDE])
    found = applied(refine(labels, GRID, 5, scan(truth), prompts), labels)
    assert dice(found == 5, truth) >= 0.95
    assert not labels.any()
    assert np.array_equal(applied(refine(labels, GRID, 5, scan(truth), prompts), labels), found)


def test_the_result_does_not_depend_on_the_order_and_the_directions_of_the_axes() -> None:
    truth, labels = ellipsoid(), np.zeros(SHAPE, np.uint8)
    image = scan(truth)
    found = applied(refine(labels, GRID, 1, image, Prompts([CENTER])), labels)
    turned = Grid((24, 44, 52), GRID.affine[:, [2, 0, 1, 3]]).mirrored(1)
    turn = lambda array: array.transpose(2, 0, 1)[:, ::-1]  # noqa: E731
    other = refine(turn(labels), turned, 1, turn(image), Prompts([(CENTER[2], 43 - CENTER[0], CENTER[1])]))
    assert dice(applied(other, turn(labels)) == 1, turn(found) == 1) > 0.995


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_clicks_are_respected_even_where_the_image_says_otherwise(known: bool) -> None:
    truth = ellipsoid()
    labels = (truth * 2).astype(np.uint8) if known else np.zeros(SHAPE, np.uint8)
    prompts = Prompts([CENTER, (4, 48, 20)], [(22, 30, 12), (23, 26, 11), (0, 0, 0)])
    found = applied(refine(labels, GRID, 2, scan(truth), prompts), labels)
    assert (found[tuple(prompts.positive.T)] == 2).all()
    assert not (found[tuple(prompts.negative.T)] == 2).any()


def test_other_structures_never_change_unless_they_may_be_overwritten() -> None:
    truth, labels = ellipsoid(), np.zeros(SHAPE, np.uint16)
    labels[18:24, 20:26, 10:13] = 700
    labels[30:34, 26:30, 12:14] = 9
    prompts = Prompts([(26, 26, 12), (20, 22, 11)], [OUTSIDE])
    kept = applied(refine(labels, GRID, 1, scan(truth), prompts), labels)
    assert np.array_equal(kept == 700, labels == 700)
    assert np.array_equal(kept == 9, labels == 9)
    taken = applied(refine(labels, GRID, 1, scan(truth), prompts, overwrite=(700,)), labels)
    assert taken[20, 22, 11] == 1
    assert np.array_equal(taken == 9, labels == 9)


def test_a_click_corrects_a_structure_near_it_and_leaves_the_rest() -> None:
    truth = ellipsoid()
    labels = truth.astype(np.uint8)
    labels[:, 34:] = 0  # a piece is missing
    labels[3:7, 8:12, 2:4] = 1  # an error elsewhere
    before = dice(labels == 1, truth)
    change = refine(labels, GRID, 1, scan(truth), Prompts([(22, 37, 12)]))
    found = applied(change, labels)
    assert dice(found == 1, truth) > before + 0.03
    assert (found[3:7, 8:12, 2:4] == 1).all()
    assert np.array_equal(found[:9], labels[:9])


def test_a_click_that_agrees_with_the_structure_changes_nothing() -> None:
    truth = ellipsoid()
    labels = truth.astype(np.uint8)
    assert refine(labels, GRID, 1, scan(truth), Prompts([CENTER], [OUTSIDE])).is_empty


def test_the_probability_of_a_network_guides_a_correction() -> None:
    truth, small = ellipsoid(), ellipsoid((12, 10, 16))
    labels = small.astype(np.uint8)
    # the network was nearly as sure of the truth, and sure of the background
    probability = np.where(small, 230, np.where(truth, 110, 5)).astype(np.uint8)
    flat = np.zeros(SHAPE, np.int16)
    click = Prompts([(22, 39, 12)])
    with_it = refine(labels, GRID, 1, flat, click, probability=probability)
    assert dice(applied(with_it, labels) == 1, truth) > dice(labels == 1, truth) + 0.02
    assert not (applied(with_it, labels) == 1)[~truth & (probability == 5)].sum() > 40


def test_a_box_alone_finds_what_differs_from_its_surroundings() -> None:
    truth, labels = ellipsoid(), np.zeros(SHAPE, np.uint8)
    i, j, k = (slice(int(n.min()) - 1, int(n.max()) + 2) for n in np.nonzero(truth))
    found = applied(refine(labels, GRID, 1, scan(truth), Prompts(box=(i, j, k))), labels)
    assert dice(found == 1, truth) > 0.93
    found[i, j, k] = 0
    assert not found.any()


def test_a_click_does_not_leak_through_a_scan_of_one_intensity() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:6] = 3
    flat = np.random.default_rng(0).normal(100, 10, SHAPE)
    found = applied(refine(labels, GRID, 1, flat, Prompts([CENTER])), labels)
    assert found[CENTER] == 1
    assert (found[:6] == 3).all()


def test_a_new_structure_in_a_scan_of_exactly_one_intensity_is_refused() -> None:
    with pytest.raises(InputError, match=r"edit\.one_intensity"):
        refine(np.zeros(SHAPE, np.uint8), GRID, 1, np.full(SHAPE, 7), Prompts([CENTER]))


LARGE = Grid((200, 200, 100), np.diag([0.7, 0.7, 1.5, 1.0]))
"""Large enough to be looked at coarsely."""


def large_scan(noise: float = 20.0) -> tuple[NDArray[np.bool_], NDArray[np.int16]]:
    truth = ellipsoid((30, 30, 35), LARGE)
    return truth, scan(truth, noise)


def test_a_box_around_a_part_of_a_structure_leaves_the_rest_of_it() -> None:
    truth, image = large_scan()
    labels = truth.astype(np.uint8)
    box = (slice(40, 160), slice(40, 160), slice(45, 60))
    for prompts in (Prompts(box=box), Prompts([(100, 100, 50)], [(60, 60, 50)], box)):
        found = applied(refine(labels, LARGE, 1, image, prompts), labels)
        outside = np.ones(labels.shape, bool)
        outside[box] = False
        assert np.array_equal(found[outside], labels[outside])
        assert dice(found == 1, truth) > 0.98


@pytest.mark.parametrize("start", [41, 42, 43])
def test_a_new_structure_lies_in_the_box_to_the_voxel(start: int) -> None:
    _, image = large_scan()
    labels = np.zeros(LARGE.shape, np.uint8)
    box = (slice(start + 40, 131), slice(start + 30, 128), slice(start, 71))
    found = applied(refine(labels, LARGE, 1, image, Prompts([(100, 100, 50)], box=box)), labels)
    assert found[box].sum() > 10_000
    found[box] = 0
    assert not found.any()


@pytest.mark.parametrize("negative", [[(101, 100, 50)], [(101, 100, 50), (100, 101, 50), (101, 101, 50)]])
def test_clicks_of_both_kinds_side_by_side_are_respected_in_a_large_scan(negative: list) -> None:
    truth, image = large_scan()
    for labels in (np.zeros(LARGE.shape, np.uint8), truth.astype(np.uint8)):
        found = applied(refine(labels, LARGE, 1, image, Prompts([(100, 100, 50)], negative)), labels)
        assert found[100, 100, 50] == 1
        assert all(found[voxel] == 0 for voxel in negative)
        assert dice(found == 1, truth) > 0.9


def test_a_thin_structure_is_known_in_a_large_scan() -> None:
    _, image = large_scan()
    labels = np.zeros(LARGE.shape, np.uint8)
    labels[100, 20:180, 50] = 1  # less than half of every coarse voxel
    found = applied(refine(labels, LARGE, 1, image, Prompts(negative=[(100, 100, 50)])), labels)
    assert found[100, 100, 50] == 0
    assert (found[100, 20:40, 50] == 1).all()


def test_nothing_changes_far_from_the_prompts_in_a_large_scan() -> None:
    grid = Grid((400, 40, 40), np.eye(4))
    image = np.random.default_rng(0).normal(0, 10, grid.shape).astype(np.float32)
    image[:, 15:25, 15:25] += 80  # a bar from end to end: no click ends it
    labels = np.zeros(grid.shape, np.uint8)
    labels[395:] = 1
    change = refine(labels, grid, 1, image, Prompts([(30, 20, 20)]))
    assert change.box[0].stop <= 30 + 4 * refine_module.MARGIN_MM + 1
    found = applied(change, labels)
    assert (found[395:] == 1).all()
    assert found[30, 20, 20] == 1
    assert found[25:36, 16:24, 16:24].mean() > 0.9


def test_a_large_structure_is_found_coarse_to_fine_in_about_a_second() -> None:
    grid = Grid((220, 240, 160), np.diag([0.7, 0.7, 1.0, 1.0]))
    truth = ellipsoid((44, 44, 50), grid)
    image = scan(truth, 30.0)
    labels = np.zeros(grid.shape, np.uint8)
    warm_up()
    started = process_time()
    change = refine(labels, grid, 1, image, Prompts([(110, 120, 80)], [(20, 20, 20)]))
    assert process_time() - started < 4
    assert dice(applied(change, labels) == 1, truth) > 0.98


def test_thousands_of_painted_voxels_take_no_longer_than_a_few_clicks() -> None:
    truth, labels = ellipsoid(), np.zeros(SHAPE, np.uint8)
    painted = np.argwhere(ellipsoid((9, 8, 12)))
    assert len(painted) > 900
    started = process_time()
    change = refine(labels, GRID, 1, scan(truth), Prompts(painted, [OUTSIDE]))
    assert process_time() - started < 3
    found = applied(change, labels) == 1
    assert found[tuple(painted.T)].all()
    assert dice(found, truth) > 0.93


def test_negative_prompts_without_a_structure_are_refused() -> None:
    with pytest.raises(InputError, match=r"edit\.prompt_missing"):
        refine(np.zeros(SHAPE, np.uint8), GRID, 1, np.zeros(SHAPE), Prompts(negative=[CENTER]))


def test_values_that_are_not_finite_belong_to_no_structure() -> None:
    truth, labels = ellipsoid(), np.zeros(SHAPE, np.uint8)
    image = scan(truth).astype(np.float32)
    image[0, :, :], image[5, 5, 5] = np.nan, np.inf
    image[:, 27:] = np.nan  # the ellipsoid is bright at its border
    image -= 100  # zero is its intensity
    found = applied(refine(labels, GRID, 1, image, Prompts([(22, 23, 12)], [OUTSIDE])), labels)
    assert dice((found == 1)[:, :27], truth[:, :27]) > 0.93
    assert (found[:, 28:] == 1).sum() == 0


def test_stop_ends_a_refinement() -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        refine(np.zeros(SHAPE, np.uint8), GRID, 1, np.zeros(SHAPE), Prompts([CENTER]), progress=stop)
