"""Test what a dataset.json declares: the order of regions, and the classes that a case has."""

from __future__ import annotations

import sys

import pytest
from empty_sets import code_of

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data.declarations import do_overlap, labelled_values, region_labels

BRATS = {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}


def test_classes_overlap_if_a_value_has_two_names() -> None:
    assert do_overlap(BRATS)
    assert not do_overlap({"a": (1, 2), "b": (3,)})
    assert not do_overlap({"a": (1, 1)})
    assert not do_overlap({})


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        (BRATS, None, {"whole": 2, "core": 1, "enhancing": 4}),  # the values of the data set
        (dict(reversed(BRATS.items())), None, {"whole": 2, "core": 1, "enhancing": 4}),
        (BRATS, [1, 2, 3], {"whole": 1, "core": 2, "enhancing": 3}),
        ({"all": (1, 2), "a": (1,), "b": (2,)}, None, {"all": 3, "a": 1, "b": 2}),  # none of its own
        ({"left": (1, 2), "right": (2, 3)}, None, {"left": 1, "right": 2}),
    ],
)
def test_the_label_of_a_region(labels: dict, order: list | None, expected: dict) -> None:
    found = region_labels(labels, order)
    assert list(found.items()) == list(expected.items())


def test_regions_of_less_volume_take_precedence() -> None:
    found = region_labels({"necrosis": (1,), "tumour": (2,)}, volumes={"necrosis": 3.5, "tumour": 9.0})
    assert list(found.items()) == [("tumour", 2), ("necrosis", 1)]


@pytest.mark.parametrize("order", [[1, 2], [1, 1, 2], [0, 1, 2], ["a", "b", "c"], "123", [True, 2, 3]])
def test_an_order_that_does_not_fit_is_refused(order: object) -> None:
    assert code_of(BRATS, order, call=region_labels) == "dataset.bad_json"


def test_the_classes_of_a_case() -> None:
    labels = {"liver": (1,), "kidneys": (2, 3)}
    listing = [
        {"image": "./imagesTr/a.nii.gz", "label": "x", "labelled": ["liver"]},
        {"image": "imagesTr\\b.nii.gz", "label": "x", "labelled": ["kidneys", 7]},
        {"image": "./imagesTr/c.nii.gz", "label": "x"},
    ]
    assert labelled_values({"training": listing}, ["a", "b", "c"], labels) == {"a": (1,), "b": (2, 3, 7)}
    assert labelled_values({"labelled": {"c": []}}, ["a", "b", "c"], labels) == {"c": ()}
    assert labelled_values({"training": "none", "labels": {}}, ["a"], labels) == {}


@pytest.mark.parametrize("labelled", [["a"], {"z": ["liver"]}, {"a": "liver"}, {"a": ["lung"]}, {"a": [True]}, 3])
def test_a_declaration_that_does_not_fit_is_refused(labelled: object) -> None:
    assert code_of({"labelled": labelled}, ["a"], {"liver": (1,)}, call=labelled_values) == "dataset.bad_json"
