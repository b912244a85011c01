"""Test that the same structure is found under two spellings of its name, and no other."""

from __future__ import annotations

import pytest

from napari_seg.evaluation.names import match_names


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
