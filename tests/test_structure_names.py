"""Test that the same structure is found under two spellings of its name, and no other."""

from __future__ import annotations

import pytest

from napari_seg.errors import InputError
from napari_seg.structure_names import find_names, match_names, similar_names


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("liver", "Liver"),
        ("kidney_left", "Left kidney"),
        ("non-enhancing tumour", "Non_enhancing  Tumor"),
        ("lung upper lobe left", "left lung-upper_lobe"),
        ("Großhirn", "großhirn"),
        ("Ame\u0301", "am\u00e9"),
    ],
)
def test_spellings_of_one_name_match(name: str, other: str) -> None:
    assert match_names([name, "x"], ["y", other]) == {name: other}


@pytest.mark.parametrize(
    ("names", "others", "found"),
    [
        (["rib 1"], ["rib 10", "rib"], {}),
        (["enhancing tumor"], ["non-enhancing tumor"], {}),
        (["left kidney"], ["kidney_left", "kidney left"], {}),
        (["Liver", "liver"], ["liver"], {"liver": "liver"}),
        (["+", "-"], ["-"], {"-": "-"}),
        (["PTV-Bladder"], ["Bladder-PTV"], {}),
        (["PTV+5mm"], ["PTV-5mm"], {}),
        (["Ki67+"], ["Ki67-", "Ki67"], {}),
        (["HU<50"], ["HU>50"], {}),
    ],
)
def test_other_names_do_not_match(names: list[str], others: list[str], found: dict[str, str]) -> None:
    assert match_names(names, others) == found


def test_names_with_more_or_fewer_words_are_similar() -> None:
    names = ["anterior hippocampus", "left kidney", "right kidney", "liver"]
    others = ["Anterior", "kidney", "liver tumour", "liver cyst"]
    assert similar_names(names, others) == {"anterior hippocampus": "Anterior"}
    assert similar_names(others, names) == {"Anterior": "anterior hippocampus"}


def test_requested_names_are_found_in_any_case_and_with_any_separators() -> None:
    names = ["liver", "kidney_left", "Lung-Left", "lung left", "liver"]
    requested = ["Liver", "kidney left", "LIVER", "lung left"]
    assert find_names(requested, names, "f") == ["liver", "kidney_left", "lung left"]
    with pytest.raises(InputError, match=r"labels\.unknown: f has no structure Lung_left; it has liver, kidney_left, "):
        find_names(["Lung_left"], names, "f")  # two have this name


def test_words_in_any_order_name_a_structure_that_no_other_shares() -> None:
    names = ["left anterior hippocampus", "ptv bladder", "bladder ptv", "aorta"]
    assert find_names(["hippocampus anterior left"], names, "f", in_any_order=True) == names[:1]
    assert find_names(["Bladder_PTV"], names, "f", in_any_order=True) == ["bladder ptv"]
    for requested, is_any in (("hippocampus anterior left", False), ("anterior hippocampus", True)):
        with pytest.raises(InputError, match=f"has no structure {requested}"):
            find_names([requested], names, "f", in_any_order=is_any)
    with pytest.raises(InputError, match="has no structure b a c"):
        find_names(["b a c"], ["a b c", "c b a"], "f", in_any_order=True)


def test_a_wrong_name_is_answered_by_the_nearest_ones() -> None:
    names = ["spleen", "kidney_right", "liver", *(f"rib_{n}" for n in range(100))]
    for requested, listed in (
        (["Livr"], "such as liver"),
        (["LIVR", "splen"], "such as liver, spleen"),
        (["rib"], "such as rib_9, rib_8, rib_7, rib_6, rib_5"),
        (["xyz"], "such as spleen, kidney_right, liver, rib_0, rib_1"),
    ):
        with pytest.raises(InputError, match=rf"; it has 103 names, {listed}$"):
            find_names(requested, names, "f")
