"""The table of label values counts them, and reports what is odd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from napari_seg.training.label_table import label_table
from napari_seg.training.segnets_modules import with_segnets


def table(
    *cases: dict[int, int], ignored: tuple[int, ...] = (), labelled: Any = (), listed: Any = None, **classes: Any
) -> dict[int, tuple[Any, ...]]:
    """Return value -> (name, cases, voxels, remarks) for cases of value -> voxels."""
    listing = [{"name": str(n), "label": str(n)} for n in range(len(cases))]
    dataset: Any = SimpleNamespace(cases=listing, ignored=ignored, labelled=dict(labelled))
    facts = {str(n): {"values": {str(value): count for value, count in one.items()}} for n, one in enumerate(cases)}
    with with_segnets():
        rows = label_table(dataset, facts, classes, listed)
    return {row.value: row[1:] for row in rows}


def test_values_are_counted_by_cases_and_voxels() -> None:
    found = table({0: 90, 1: 10, 2: 5}, {0: 80, 1: 10, 2: 10}, liver=[1], tumour=["2-3"])
    assert found == {1: ("liver", 2, 20, ()), 2: ("tumour", 2, 15, ())}


def test_oddities_are_reported() -> None:
    found = table({1: 9000, 2: 5, 7: 1}, {1: 9000, 3: 400, 255: 9}, {1: 9, 3: 4}, ignored=(255,), a=[1], b=[2], c=[3])
    assert [found[value][0] for value in found] == ["a", "b", "c", "background", "ignored"]
    assert found[1][3] == ()
    assert [remark.split(",")[0] for remark in found[2][3]] == ["in one case only", "under 0.1% of the labelled voxels"]
    assert found[3][3][0].startswith("not in 1 cases: absent there, or not annotated")
    assert found[7][3] == found[255][3] == ()


def test_a_class_without_voxels_is_reported() -> None:
    assert table({1: 9}, a=[1], b=[5])[5] == ("b", 0, 0, ("in no case",))


def test_cases_in_which_a_class_is_not_annotated_do_not_lack_it() -> None:
    found = table({1: 9}, {2: 9}, {2: 9}, {0: 9}, labelled={"0": (1,), "1": (2,), "2": (2,)}, a=[1], b=[2])
    assert found[1][3][0].startswith("in one case only")
    assert found[2][3][0].startswith("not in 1 cases")


def test_a_value_of_several_regions_has_all_their_names() -> None:
    found = table({1: 10, 2: 5}, whole=[1, 2], core=[2])
    assert {value: row[0] for value, row in found.items()} == {1: "whole", 2: "whole + core"}


def test_grey_levels_that_differ_by_one_are_reported() -> None:
    found = table({127: 10, 255: 5}, {128: 10, 255: 5}, a=[127], b=[128], c=[255])
    assert found[128][3][0] == "in no case together with 127: perhaps one class, --labels NAME=127,128"
    assert not any("together" in remark for value in (127, 255) for remark in found[value][3])
    found = table({1: 10}, {2: 5}, {127: 5, 128: 3}, a=[1], b=[2], c=[127], d=[128])  # numbers; both in one case
    assert not any("together" in remark for row in found.values() for remark in row[3])


def test_a_class_of_several_values_is_judged_as_one() -> None:
    found = table({1: 9}, {2: 9}, {3: 9}, tumour=[1, "2-3"])
    assert [row[3] for row in found.values()] == [(), (), ()]
    assert table({2: 9}, {2: 9}, tumour=[1, 2]) == {2: ("tumour", 2, 18, ())}  # 1 is not missed


def test_what_is_declared_or_listed_is_no_doubt() -> None:
    cases: tuple[dict[int, int], ...] = ({1: 9, 2: 9}, {1: 9, 2: 9}, {1: 9}, {1: 9})
    (remark,) = table(*cases, a=[1], b=[2])[2][3]
    assert remark.startswith("not in 2 cases: absent there")
    (remark,) = table(*cases, a=[1], b=[2], labelled={"2": (1,), "3": (1,)})[2][3]
    assert remark == "not annotated in 2 cases, as the data set declares"
    assert table(*cases, a=[1], b=[2], labelled={"2": (1, 2), "3": (1, 2)})[2][3] == ()
    assert table(*cases, a=[1], b=[2], listed={"2": (1, 2), "3": (2, 1)})[2][3] == ()
    (remark,) = table(*cases, a=[1], b=[2], listed={"2": (1, 2), "3": (1,)})[2][3]
    assert remark.startswith("not in 1 cases (1 of them list other structures): absent there, or not annotated")
