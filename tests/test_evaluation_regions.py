"""Test the scores of overlapping classes by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.errors import InputError
from napari_seg.evaluation.labels import read_classes
from napari_seg.evaluation.regions import compare_regions
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation

GRID = Grid((8, 1, 1), np.diag([2.0, 1, 1, 1]))
NESTED = read_classes([("whole", "1,2,4"), ("core", "1,4"), ("enhancing", "4"), ("background", "9")])


def line(*values: int, **names: int) -> Segmentation:
    segments = tuple(Segment(label, name, (1, 2, 3)) for name, label in names.items())
    return Segmentation(np.array(values, np.uint8).reshape(8, 1, 1), GRID, segments)


def test_a_region_is_the_union_of_its_values() -> None:
    found, expected = line(0, 2, 2, 1, 1, 4, 0, 0), line(9, 2, 2, 2, 1, 4, 4, 0)
    segments, scores = compare_regions(found, expected, NESTED)
    assert [(s.label, s.name) for s in segments] == [(1, "whole"), (2, "core"), (3, "enhancing")]
    assert scores["whole"].dice == pytest.approx(2 * 5 / 11)
    assert scores["core"].dice == pytest.approx(2 * 2 / 6)
    assert scores["enhancing"].dice == pytest.approx(2 / 3)
    assert scores["whole"].reference_ml == pytest.approx(6 * 0.002)
    assert scores["whole"].hd95_mm == pytest.approx(1.9)  # of its two ends, 0 and 2 mm


def test_labels_of_other_numbers_belong_to_the_region_of_their_name() -> None:
    found = line(0, 2, 2, 7, 7, 8, 0, 0, whole=2, core=7, enhancing=8)
    _, scores = compare_regions(found, line(0, 2, 2, 2, 1, 4, 4, 0), NESTED)
    assert scores["whole"].dice == pytest.approx(2 * 5 / 11)
    assert scores["core"].dice == pytest.approx(2 * 2 / 6)
    assert scores["enhancing"].dice == pytest.approx(2 / 3)


def test_a_value_without_a_region_is_refused() -> None:
    with pytest.raises(InputError, match=r"labels\.unknown: the reference contains 5, 6, which no region has"):
        compare_regions(line(*[0] * 8), line(0, 5, 6, 1, 0, 0, 0, 0), NESTED)


def test_a_label_is_the_region_of_its_name_even_if_it_is_a_value_of_another_region() -> None:
    """`regions_class_order` [2, 1] writes 2 where only the whole is, and 1 in the core; the reference has 2 there."""
    regions = read_classes([("whole", "1,2"), ("core", "2")])
    found = line(0, 2, 2, 1, 1, 2, 0, 0, whole=2, core=1)
    _, scores = compare_regions(found, line(0, 1, 1, 2, 2, 1, 0, 0), regions)
    assert scores["core"].dice == 1
    assert scores["whole"].dice == 1
