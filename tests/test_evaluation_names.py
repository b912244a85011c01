"""Test that the same structure is found under two spellings of its name, and no other."""

from __future__ import annotations

import pytest

from napari_seg.evaluation.names import match_names, words_in
from napari_seg.training.segnets_modules import with_segnets


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("liver", "Liver"),
        ("kidney_left", "Left kidney"),
        ("non-enhancing tumour", "Nonenhancing Tumor"),
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
    ],
)
def test_other_names_do_not_match(names: list[str], others: list[str], found: dict[str, str]) -> None:
    assert match_names(names, others) == found


def test_words_are_those_of_training() -> None:
    with with_segnets():
        from segnets.data.labels import words_in as words_of_training

        for name in ("Left kidney", "non-enhancing_tumour", "un-seen 3", "GD-Enhancing", "not.nec/rotic"):
            assert words_in(name) == words_of_training(name)
