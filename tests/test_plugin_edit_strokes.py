"""Prompts in the order in which they were given."""

from __future__ import annotations

import numpy as np

from napari_seg.editing.prompts import Prompts
from napari_seg.plugin.edit.strokes import Strokes
from napari_seg.plugin.views import EXCLUDED, INCLUDED

BOX = (slice(1, 5), slice(2, 6), slice(3, 7))


def test_prompts_can_be_undone_one_by_one() -> None:
    strokes = Strokes()
    strokes.add((1, 2, 3), True)
    strokes.add([(4, 5, 6), (4, 5, 7)], False)
    strokes.add_prompts(Prompts(box=BOX))
    assert strokes.text == "1 include, 1 exclude, a box"
    prompts = strokes.prompts
    assert prompts.positive.tolist() == [[1, 2, 3]]
    assert prompts.negative.tolist() == [[4, 5, 6], [4, 5, 7]]
    assert prompts.box == BOX
    voxels, kinds = strokes.clicks
    assert (voxels.tolist(), kinds.tolist()) == ([[1, 2, 3]], [INCLUDED])
    (((i, j, k), area),) = strokes.areas
    assert (i, j, k) == (slice(4, 5), slice(5, 6), slice(6, 8))
    assert area.tolist() == [[[EXCLUDED, EXCLUDED]]]
    strokes.undo()
    assert strokes.prompts.box is None
    strokes.undo()
    strokes.undo()
    strokes.undo()
    assert strokes.prompts.is_empty
    assert strokes.text == ""


def test_a_lasso_is_one_stroke() -> None:
    strokes = Strokes()
    strokes.add((0, 0, 1), False)
    strokes.add_prompts(Prompts(np.array([(0, 0, 1), (0, 0, 2)]), np.array([(0, 0, 4)])))
    assert strokes.text == "1 include, 1 exclude"
    assert strokes.prompts.positive.tolist() == [[0, 0, 1], [0, 0, 2]]
    assert strokes.prompts.negative.tolist() == [[0, 0, 4]]
    (((_, _, k), area),) = strokes.areas
    assert k == slice(1, 5)
    assert area.tolist() == [[[INCLUDED, INCLUDED, 0, EXCLUDED]]]
    strokes.undo()
    assert strokes.prompts.negative.tolist() == [[0, 0, 1]]


def test_prompts_of_another_source_are_clicks_if_they_are_few() -> None:
    strokes = Strokes()
    strokes.prompts = Prompts(np.array([(1, 1, 1), (2, 2, 2)]), np.array([(n, 0, 0) for n in range(100)]), BOX)
    assert strokes.text == "2 include, 1 exclude, a box"
    assert len(strokes.clicks[0]) == 2
    assert len(strokes.areas) == 1
    assert len(strokes.prompts.negative) == 100
