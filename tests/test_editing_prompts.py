"""Prompts and what is refused in them."""

from __future__ import annotations

import pytest

from napari_seg.editing.prompts import Prompts
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
