"""Test which labels and values are the same structure, and scores of overlapping classes, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_seg.errors import InputError
from napari_seg.evaluation.labels import Classes, Meaning, read_classes
from napari_seg.evaluation.matching import match
from napari_seg.evaluation.metrics import Scores, compare_label_maps
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation

GRID = Grid((8, 1, 1), np.diag([2.0, 1, 1, 1]))
NESTED = read_classes([("whole", "1,2,4"), ("core", "1,4"), ("enhancing", "4"), ("background", "9")])


def line(*values: int, **names: int) -> Segmentation:
    segments = tuple(Segment(label, name, (1, 2, 3)) for name, label in names.items())
    return Segmentation(np.array(values, np.uint8).reshape(8, 1, 1), GRID, segments)


def scores_of(found: Segmentation, expected: Segmentation, regions: Classes = NESTED) -> dict[str, Scores]:
    matched = match(found, expected, Meaning(regions, is_given=True))
    return compare_label_maps(matched.prediction, matched.reference, matched.structures).scores


def test_a_region_is_the_union_of_its_values() -> None:
    found, expected = line(0, 2, 2, 1, 1, 4, 0, 0), line(9, 2, 2, 2, 1, 4, 4, 0)
    scores = scores_of(found, expected)
    assert list(scores) == ["whole", "core", "enhancing"]
    assert scores["whole"].dice == pytest.approx(2 * 5 / 11)
    assert scores["core"].dice == pytest.approx(2 * 2 / 6)
    assert scores["enhancing"].dice == pytest.approx(2 / 3)
    assert scores["whole"].reference_ml == pytest.approx(6 * 0.002)
    assert scores["whole"].hd95_mm == pytest.approx(1.9)  # of its two ends, 0 and 2 mm


def test_labels_of_other_numbers_belong_to_the_region_of_their_name() -> None:
    found = line(0, 2, 2, 7, 7, 8, 0, 0, whole=2, core=7, enhancing=8)
    scores = scores_of(found, line(0, 2, 2, 2, 1, 4, 4, 0))
    assert scores["whole"].dice == pytest.approx(2 * 5 / 11)
    assert scores["core"].dice == pytest.approx(2 * 2 / 6)
    assert scores["enhancing"].dice == pytest.approx(2 / 3)


def test_a_value_without_a_region_is_refused() -> None:
    with pytest.raises(InputError, match=r"labels\.unknown: the reference contains 5, 6, which no region has"):
        scores_of(line(*[0] * 8), line(0, 5, 6, 1, 0, 0, 0, 0))


def test_a_label_is_the_region_of_its_name_even_if_it_is_a_value_of_another_region() -> None:
    """`regions_class_order` [2, 1] writes 2 where only the whole is, and 1 in the core; the reference has 2 there."""
    regions = read_classes([("whole", "1,2"), ("core", "2")])
    found = line(0, 2, 2, 1, 1, 2, 0, 0, whole=2, core=1)
    scores = scores_of(found, line(0, 1, 1, 2, 2, 1, 0, 0), regions)
    assert scores["core"].dice == 1
    assert scores["whole"].dice == 1


BRATS = line(0, 2, 2, 1, 1, 4, 4, 0)
NUMBERED = (0, 1, 1, 2, 2, 3, 3, 0)


@pytest.mark.parametrize(
    ("names", "dice", "only_ours", "only_theirs"),
    [
        (("whole", "core", "enhancing"), {"whole": 1, "core": 1, "enhancing": 1}, "", ""),
        (("whole tumour", "core", "enhancing"), {"whole": 0.8, "core": 1, "enhancing": 1}, "whole tumour", "whole"),
        (("whole", "core", "hot"), {"whole": 0.8, "core": 2 / 3, "enhancing": 0}, "hot", "enhancing"),
    ],
)
def test_labels_of_named_regions_never_count_as_values(
    names: tuple[str, ...], dice: dict[str, float], only_ours: str, only_theirs: str
) -> None:
    """Label 1 of the result is the whole without the core; the value 1 of the reference is in the core."""
    found = line(*NUMBERED, **{name: number for number, name in enumerate(names, 1)})
    matched = match(found, BRATS, Meaning(read_classes([("whole", "1,2,4"), ("core", "1,4"), ("enhancing", "4")])))
    scores = compare_label_maps(matched.prediction, matched.reference, matched.structures).scores
    expected = dice | ({only_ours: 0} if only_ours else {})
    assert {name: one.dice for name, one in scores.items()} == pytest.approx(expected)
    texts = [notice.message for notice in matched.reference.notices if notice.code == "labels.names_differ"]
    assert bool(texts) == bool(only_ours)
    if only_ours:
        assert f"only in the segmentation: {only_ours}; only in the reference: {only_theirs};" in texts[0]


@pytest.mark.parametrize("whole", ["1,2,3", "1-3"])
def test_a_range_is_the_values_in_it(whole: str) -> None:
    regions = read_classes([("whole", whole), ("core", "2-3"), ("enhancing", "3")])
    found = line(*NUMBERED, whole=1, core=2, enhancing=3)
    scores = scores_of(found, line(*NUMBERED), regions)
    assert {name: one.dice for name, one in scores.items()} == {"whole": 1, "core": 1, "enhancing": 1}


def test_a_class_counts_only_if_all_its_values_are_annotated() -> None:
    classes = read_classes([("liver", "1"), ("tumour", "2,3")])
    found, expected = line(0, 1, 1, 2, 2, 2, 0, 0, liver=1, tumour=2), line(0, 1, 1, 2, 2, 0, 0, 0)
    for is_given in (True, False):
        assert list(match(found, expected, Meaning(classes, is_given, labelled=frozenset([1, 2]))).structures) == [
            "liver"
        ]
    assert list(match(found, expected, Meaning(classes, labelled=frozenset([1, 2, 3]))).structures) == [
        "liver",
        "tumour",
    ]


def test_names_in_the_file_of_a_reference_do_not_matter_if_classes_are_given() -> None:
    found, expected = line(0, 1, 1, 2, 2, 0, 0, 0), line(0, 1, 1, 2, 2, 0, 0, 0)
    expected = replace(expected, segments=tuple(Segment(label, "lesion", (1, 2, 3)) for label in (1, 2)))
    assert list(match(found, expected, Meaning({"x": frozenset([1, 2])}, is_given=True)).structures) == ["x", "label 2"]
    with pytest.raises(InputError, match=r"labels\.names: found lesion twice"):
        match(found, expected)


def test_values_without_names_in_the_result_make_up_a_class_together() -> None:
    matched = match(line(0, 3, 3, 7, 7, 0, 0, 0), line(0, 3, 7, 7, 7, 0, 0, 0), Meaning({"body": frozenset([3, 7])}))
    scores = compare_label_maps(matched.prediction, matched.reference, matched.structures).scores
    assert {name: one.dice for name, one in scores.items()} == {"body": 1}


def test_many_labels_are_matched_in_a_moment() -> None:
    grid = Grid((40, 40, 40), np.eye(4))
    instances = Segmentation(np.arange(64000, dtype=np.uint16).reshape(grid.shape), grid, ())
    matched = match(instances, instances, Meaning({"all": frozenset(range(65536)), "first": frozenset([1])}))
    assert len(np.unique(matched.prediction.array)) == 3
    with pytest.raises(InputError, match=r"labels\.too_many"):
        compare_label_maps(*(match(instances, instances).prediction,) * 2, {})


def test_a_structure_of_the_reference_only_has_a_number_that_no_value_has() -> None:
    """The value 2 of the reference has no name, and keeps its number."""
    names = {"liver": frozenset([1]), "spleen": frozenset([4])}
    matched = match(line(1, 1, 0, 0, 0, 0, 0, 0, liver=1), line(1, 1, 4, 4, 4, 2, 0, 0), Meaning(names))
    scores = compare_label_maps(matched.prediction, matched.reference, matched.structures).scores
    volumes = {name: round(one.reference_ml / 0.002) for name, one in scores.items()}
    assert volumes == {"liver": 2, "label 2": 1, "spleen": 3}
