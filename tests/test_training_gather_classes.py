"""Classes of several data sets get one value each, and it is known which data set annotates which of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from napari_seg.training.gather.classes import annotated_values, is_complete, number_classes, stated_classes
from napari_seg.training.segnets_modules import with_segnets


def numbered(*labels: dict[str, tuple[int, ...]], **given: list[Any]) -> Any:
    with with_segnets():
        from segnets.data import Dataset

        return number_classes([Dataset("decathlon", (), labels=of_set) for of_set in labels], given)


def test_a_class_keeps_its_value_if_that_is_free() -> None:
    sources, table, ignored = numbered({"Liver": (2,)}, {"spleen": (2,), "liver": (1,), "background": (0, 7)})
    assert (table, ignored) == ({frozenset({"liver"}): 2, frozenset({"spleen"}): 1}, None)
    assert [source.values for source in sources] == [{0: 0, 2: 2}, {0: 0, 7: 0, 1: 2, 2: 1}]
    assert [source.is_renumbered for source in sources] == [False, True]
    assert [annotated_values(source, table, {}) for source in sources] == [{2}, {1, 2}]


def test_ignored_values_get_one_value_that_no_class_has() -> None:
    sources, table, ignored = numbered({"liver": (255,)}, {"spleen": (1,)}, ignore=["9-10"])
    assert (ignored, max(table.values())) == (256, 255)
    assert sources[1].values == {0: 0, 1: 1, 9: 256, 10: 256}


@pytest.mark.parametrize(
    ("name", "parts", "known", "complete"),
    [
        ("kidney", ["kidney", "left kidney", "right kidney"], {"kidney"}, True),
        ("kidney", ["kidney", "left kidney", "right kidney"], {"left kidney", "right kidney"}, True),
        ("kidney", ["kidney", "left kidney", "right kidney"], {"left kidney"}, False),
        ("lesion", ["lesion", "oedema"], {"lesion"}, False),
        ("lesion", ["lesion", "oedema"], {"oedema"}, False),
        ("lesion", ["lesion", "Oedema"], {"lesion", "oedema"}, True),
        ("organs", ["liver", "spleen"], {"liver"}, False),
    ],
)
def test_a_class_of_several_names(name: str, parts: list[str], known: set[str], complete: bool) -> None:
    with with_segnets():
        assert is_complete(name, parts, known) is complete


def test_classes_are_stated_or_not_known_yet(tmp_path: Path) -> None:
    data = datasets.write_decathlon(tmp_path / "data", cases=1)
    (data / "labels.json").unlink(missing_ok=True)
    description = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(description | {"labels": {"background": 0, "liver": 1, "ignore": 9}}))
    assert stated_classes(data) == ("liver",)
    assert stated_classes(tmp_path / "missing") == ()
