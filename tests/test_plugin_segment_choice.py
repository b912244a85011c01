"""Structures are chosen by name, all or none of those that a search shows, and remembered for each model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari_seg.bundles.places import store_root
from napari_seg.bundles.spec import Bundle
from napari_seg.plugin.segment.choice import StructureChoice, choice_text, remember_names, remembered_names
from napari_seg.volume import Segment

NAMES = ("liver", "kidney_left", "kidney_right", "spleen")
SEGMENTS = tuple(Segment(label, name, (label, 0, 0)) for label, name in enumerate(NAMES, start=1))


def bundle(root: str = "model") -> Bundle:
    return Bundle(
        root=Path(root), name="model", version="1", description="", modality="CT", in_channels=1,
        network_segments=SEGMENTS, segments=SEGMENTS,
    )  # fmt: skip


def test_all_are_chosen_at_first() -> None:
    choice = StructureChoice(SEGMENTS)
    assert choice.names == ()
    assert choice.summary == "4 of 4 chosen"
    assert not choice.obstacle


def test_a_search_limits_what_all_and_none_change() -> None:
    choice, changes = StructureChoice(SEGMENTS), []
    choice.changed.connect(lambda: changes.append(choice.names))
    choice.choose_shown(False)
    assert choice.names == ()
    assert choice.obstacle == "Choose at least one structure."
    choice.search("Kidney left")
    assert [segment.name for segment in choice.shown] == ["kidney_left"]
    choice.choose_shown(True)
    assert choice.names == ("kidney_left",)
    assert choice.summary == "1 of 4 chosen; 1 shown"
    choice.search("")
    choice.choose("liver", True)
    assert choice.names == ("liver", "kidney_left")  # in the order of the labels
    choice.choose("liver", False)
    assert choice.names == ("kidney_left",)
    assert len(changes) == 6


def test_a_choice_in_a_few_words() -> None:
    assert choice_text(SEGMENTS, ()) == "All 4"
    assert choice_text(SEGMENTS, ("liver", "spleen")) == "2 of 4"


def test_a_choice_is_remembered_for_each_model() -> None:
    remember_names(bundle(), ("spleen", "liver"))
    assert remembered_names(bundle()) == ("liver", "spleen")
    assert remembered_names(bundle("other")) == ()
    remember_names(bundle(), ())
    assert remembered_names(bundle()) == ()


def test_names_that_the_model_no_longer_has_are_forgotten() -> None:
    remember_names(bundle(), ("liver", "heart"))
    assert remembered_names(bundle()) == ("liver",)
    remember_names(bundle(), NAMES)
    assert remembered_names(bundle()) == ()


@pytest.mark.parametrize("content", ["", "[]", '{"model": 1}', "{"])
def test_a_damaged_file_is_no_choice(content: str) -> None:
    store_root().mkdir(parents=True)
    (store_root() / "structures.json").write_text(content)
    assert remembered_names(bundle()) == ()


def test_where_nothing_can_be_written_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "file" / "store"))
    remember_names(bundle(), ("liver",))
    assert remembered_names(bundle()) == ()
