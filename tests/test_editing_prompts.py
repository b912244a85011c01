"""Prompts and what is refused in them."""

from __future__ import annotations

import pytest

from napari_seg.editing.prompts import Prompts, from_lasso
from napari_seg.errors import InputError

BOX = (slice(0, 4), slice(1, 3), slice(2, 9))


def test_clicks_are_given_as_lists_and_kept_once_each() -> None:
    prompts = Prompts([(3, 1, 2), (3, 1, 2), (0, 0, 1)])
    assert prompts.positive.tolist() == [[0, 0, 1], [3, 1, 2]]
    assert prompts.negative.shape == (0, 3)
    assert not prompts.is_empty


def test_only_prompts_without_any_mark_and_box_are_empty() -> None:
    assert Prompts().is_empty
    assert not Prompts(box=BOX).is_empty
    assert not Prompts(negative=[(0, 0, 0)]).is_empty


def test_a_voxel_that_is_positive_and_negative_is_refused() -> None:
    with pytest.raises(InputError, match=r"edit.prompt_conflict.*\(1, 2, 3\)"):
        Prompts([(1, 2, 3)], [(4, 4, 4), (1, 2, 3)])


def test_indices_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"edit\.prompt_shape"):
        Prompts([(1, 2)])


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        (Prompts(), "edit.prompt_missing"),
        (Prompts([(10, 0, 0)]), "edit.prompt_outside"),
        (Prompts(negative=[(0, -1, 0)]), "edit.prompt_outside"),
        (Prompts(box=(slice(0, 11), slice(0, 2), slice(0, 2))), "edit.prompt_outside"),
        (Prompts(box=(slice(3, 3), slice(0, 2), slice(0, 2))), "edit.prompt_outside"),
    ],
)
def test_prompts_that_are_missing_or_outside_the_scan_are_refused(prompts: Prompts, code: str) -> None:
    with pytest.raises(InputError, match=code):
        prompts.check((10, 10, 10))


def test_prompts_inside_the_scan_pass() -> None:
    Prompts([(9, 9, 9)], [(0, 0, 0)], BOX).check((10, 10, 10))


def test_later_prompts_replace_earlier_ones_at_the_same_voxel() -> None:
    earlier = Prompts([(1, 1, 1), (2, 2, 2)], [(3, 3, 3)], BOX)
    joined = earlier.joined(Prompts([(3, 3, 3)], [(2, 2, 2)]))
    assert joined.positive.tolist() == [[1, 1, 1], [3, 3, 3]]
    assert joined.negative.tolist() == [[2, 2, 2]]
    assert joined.box == BOX


def test_coarser_prompts_lie_in_their_blocks_and_the_kind_with_more_voxels_wins() -> None:
    coarse = Prompts([(0, 0, 0), (5, 5, 9), (6, 0, 0)], [(1, 1, 1), (8, 0, 0), (7, 0, 0), (7, 1, 0)], BOX).coarser(
        (2, 2, 4)
    )
    assert coarse.positive.tolist() == [[0, 0, 0], [2, 2, 2]]
    assert coarse.negative.tolist() == [[3, 0, 0], [4, 0, 0]]
    assert coarse.box == (slice(0, 2), slice(0, 2), slice(0, 3))


def test_coarser_prompts_keep_a_positive_one_if_there_was_one() -> None:
    coarse = Prompts([(0, 0, 0)], [(1, 0, 0), (0, 1, 0), (4, 4, 4)]).coarser((2, 2, 2))
    assert coarse.positive.tolist() == [[0, 0, 0]]
    assert coarse.negative.tolist() == [[2, 2, 2]]


def test_a_lasso_is_positive_well_inside_and_negative_just_outside() -> None:
    # rows 10 to 20 and columns 5 to 25 of plane j = 4
    prompts = from_lasso([(9.5, 4.5), (9.5, 25.5), (20.5, 25.5), (20.5, 4.5)], 1, 4, (40, 9, 40))
    assert (prompts.positive[:, 1] == 4).all()
    assert prompts.positive.min(axis=0).tolist() == [11, 4, 6]
    assert prompts.positive.max(axis=0).tolist() == [19, 4, 24]
    assert prompts.negative[:, [0, 2]].min() >= 3
    marked = {tuple(v) for v in prompts.negative.tolist()}
    assert (8, 4, 15) in marked  # two voxels outside the outermost row
    assert (9, 4, 15) not in marked
    assert (15, 4, 15) not in marked


def test_a_lasso_around_what_is_too_much_is_negative_inside() -> None:
    prompts = from_lasso([(1.5, 1.5), (1.5, 3.5), (3.5, 3.5), (3.5, 1.5)], 2, 6, (9, 9, 9), is_positive=False)
    assert not len(prompts.positive)
    assert prompts.negative.tolist() == [[2, 2, 6], [2, 3, 6], [3, 2, 6], [3, 3, 6]]


@pytest.mark.parametrize(
    ("corners", "index", "code"),
    [
        ([(1, 1), (5, 5)], 2, "prompt_shape"),
        ([(1, 1, 1), (5, 5, 5), (1, 5, 5)], 2, "prompt_shape"),
        ([(50, 50), (50, 60), (60, 60)], 2, "prompt_outside"),
        ([(1, 1), (1, 5), (5, 5)], 9, "prompt_outside"),
    ],
)
def test_a_lasso_around_nothing_is_refused(corners: list, index: int, code: str) -> None:
    with pytest.raises(InputError, match=rf"edit\.{code}"):
        from_lasso(corners, 0, index, (9, 9, 9))
