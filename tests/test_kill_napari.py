"""The script that kills napari: what it calls whole, and what it calls lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

import kill_napari
from kill_napari import Left, check, digest_of_labels, digest_of_prompts, left_in, longest_copying
from labelled import labels_of, viewer_with_labels
from napari.layers import Labels

from napari_seg.editing.prompts import Prompts
from napari_seg.plugin.edit.kept_prompts import keep_prompts


@pytest.fixture
def layer() -> Labels:
    return labels_of(viewer_with_labels(phantoms.head()))


def edit(number: int, labels: Any, prompts: dict[tuple[int, ...], bool], began: float = 0.0) -> dict[str, Any]:
    digests = {"labels": digest_of_labels(labels), "prompts": digest_of_prompts(prompts)}
    return {"edit": number, "kind": "stroke", "began": began, **digests}


def test_labels_and_prompts_must_be_of_the_same_edit(layer: Labels) -> None:
    first, given = np.array(layer.data), {(1, 2, 3): True, (4, 5, 6): False}
    edits = [edit(-1, first, {}), edit(0, first, given)]
    layer.data[0, 0, 0] = 3
    edits += [edit(1, layer.data, given), edit(2, layer.data, {})]
    assert left_in(layer, edits, "the copies") == Left(3)
    keep_prompts(layer, 1, Prompts([[1, 2, 3]], [[4, 5, 6]]))
    assert left_in(layer, edits, "the copies") == Left(2)
    layer.data[0, 0, 0] = first[0, 0, 0]
    assert left_in(layer, edits, "the copies") == Left(1)
    keep_prompts(layer, 1, Prompts([[1, 2, 3]]))  # one is lost
    assert (
        left_in(layer, edits, "the copies").fault == "the copies hold the labels after edit 0, the prompts after none"
    )


@pytest.mark.parametrize(
    ("edits_held", "killed", "fault"),
    [
        (2, 7.4, ""),
        (2, 8.1, "the first lost edit is 7.1 s old; allowed are 7.0 s"),
        (-1, 2.0, "nothing is left"),
        (1, 3.0, ""),
    ],
)
def test_an_edit_may_be_lost_for_one_interval_and_one_writing(
    edits_held: int, killed: float, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros((2, 2, 2), np.uint8)
    journal = [edit(number, labels, {}, began=float(number) - 1) for number in range(-1, 5)]
    journal += [{"copying": True, "when": 1.0}, {"copying": False, "when": 2.0}]
    monkeypatch.setattr(kill_napari, "session_of", lambda folder, edits: Left())
    monkeypatch.setattr(kill_napari, "copies_of", lambda folder, edits: Left(edits_held))
    assert check(tmp_path, "copying", killed, journal, 5)[0] == fault


def test_a_writing_that_was_killed_counts_up_to_the_kill() -> None:
    journal = [{"copying": True, "when": 1.0}, {"copying": False, "when": 2.0}, {"copying": True, "when": 4.0}]
    assert longest_copying(journal, 4.5) == 1.0
    assert longest_copying(journal, 7.0) == 3.0
