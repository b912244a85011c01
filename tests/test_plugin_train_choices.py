"""Choices of a training in the window mean the same as on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari_seg.errors import TrainingError
from napari_seg.plugin.train.choices import NETWORKS, TrainChoices, labels_of, renamed, text_of
from napari_seg.training.choices import Choices
from napari_seg.training.segnets_modules import with_segnets


def test_no_choice_is_that_of_the_command_line(tmp_path: Path) -> None:
    assert TrainChoices().as_choices(tmp_path) == Choices()
    assert str(TrainChoices()) == ""


def test_choices_are_those_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    chosen = TrainChoices("FCN", "L", 2, 5, "", tmp_path / "model.pt", "'big tumour=2,3' ignore=255")
    made = chosen.as_choices(tmp_path / "out")
    assert made.fine_tune.pop("sha256")
    assert made == Choices(
        network="FCN",
        dims=2,
        labels={"big tumour": [2, 3], "ignore": [255]},
        folds=5,
        fine_tune={"file": str(Path("..", "model.pt"))},
    )
    assert str(chosen) == "FCN, 2D, 5 folds, fine-tuned, labels"
    written = made.as_dict()
    assert TrainChoices.of_plan(written, tmp_path / "out") == TrainChoices(
        "FCN", "", 2, 5, "", (tmp_path / "model.pt").resolve(), "'big tumour'=2,3 ignore=255"
    )


def test_weights_of_a_bundle_are_shown_as_the_bundle(tmp_path: Path) -> None:
    made = {"fine_tune": {"file": "../hips/models/model.pt", "sha256": "0"}}
    assert TrainChoices.of_plan(made, tmp_path / "out").fine_tune == (tmp_path / "hips").resolve()


def test_what_contradicts_is_not_offered(tmp_path: Path) -> None:
    chosen = TrainChoices(network="FCN", size="L", plan="nnunet")
    assert not chosen.offers_network
    assert not chosen.offers_size
    assert chosen.as_choices(tmp_path) == Choices(plan="nnunet")
    assert TrainChoices(network="UNet", size="L").as_choices(tmp_path) == Choices(network="UNet", size="L")


def test_the_networks_are_those_that_there_are() -> None:
    with with_segnets():
        from napari_seg.training.write import networks

        assert sorted(networks()) == sorted(NETWORKS)


@pytest.mark.parametrize("text", ["liver", "=1", "liver=", "liver=,", "'liver=1", "a=1 b"])
def test_labels_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(TrainingError, match=r"labels\.bad_value"):
        labels_of(text)


def test_classes_that_share_values_are_regions(tmp_path: Path) -> None:
    made = TrainChoices(labels="whole=1,2 core=2 ignore=9").as_choices(tmp_path)
    assert made.options == ("regions",)
    assert TrainChoices(labels="whole=1 core=2").as_choices(tmp_path).options == ()


def test_labels_and_their_text() -> None:
    labels = {"left lung": [1, "10-12"], "a'b": [3]}
    assert labels_of(text_of(labels)) == labels
    assert text_of({"liver": 1}) == "liver=1"
    assert labels_of("") == {}


@pytest.mark.parametrize(
    ("value", "names", "expected"),
    [
        (1, "spleen", {"spleen": [1], "tumour": [2, 3], "vessel": ["10-12"]}),  # keeps its place
        (2, "cyst", {"liver": [1], "tumour": [3], "vessel": ["10-12"], "cyst": [2]}),
        (1, "Tumour", {"tumour": [2, 3, 1], "vessel": ["10-12"]}),
        (3, "background", {"liver": [1], "tumour": [2], "vessel": ["10-12"], "background": [3]}),
        (7, "ignore", {"liver": [1], "tumour": [2, 3], "vessel": ["10-12"], "ignore": [7]}),
        (2, "tumour + core", {"liver": [1], "tumour": [3, 2], "vessel": ["10-12"], "core": [2]}),
        (11, "node", {"liver": [1], "tumour": [2, 3], "vessel": [10, 12], "node": [11]}),
        (1, "", {"tumour": [2, 3], "vessel": ["10-12"]}),
    ],
)
def test_a_value_gets_another_class(value: int, names: str, expected: dict[str, Any]) -> None:
    assert renamed({"liver": [1], "tumour": [2, 3], "vessel": ["10-12"]}, value, names) == expected


def test_a_class_with_a_plus_in_its_name_is_one() -> None:
    assert renamed({"a + b": [1], "c": [2]}, 2, "a + b") == {"a + b": [1, 2]}
