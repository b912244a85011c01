"""Test what a dataset.json says about the references of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from napari_seg.errors import InputError
from napari_seg.evaluation.declared import Declared, declared


def write(folder: Path, **description: object) -> Path:
    (folder / "labelsTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder / "labelsTr"


def test_ignored_values_and_regions_are_declared(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    regions = {"whole": frozenset([1, 2]), "core": frozenset([2])}
    folder = write(tmp_path / "a", labels=labels)
    assert declared(folder) == declared(folder / "case.nii.gz") == Declared((3,), regions)
    assert declared(write(tmp_path / "b", labels={"0": "background", "1": "liver", "4": "ignore"})) == Declared(
        (4,), {"liver": frozenset([1])}
    )
    assert declared(write(tmp_path / "c", labels={"background": 0, "liver": [1, 2]})) == Declared(
        (), {"liver": frozenset([1, 2])}
    )
    assert declared(tmp_path) == Declared()


def test_names_of_classes_control_no_terminal(tmp_path: Path) -> None:
    escapes = {"li\x1b]52;c;cm0=\x07\x1b[2Jver": 1, "2": "spleen\x1b[2J"}
    assert set(declared(write(tmp_path, labels=escapes)).classes) == {"li ]52;c;cm0= [2Jver", "spleen [2J"}


def test_annotated_classes_of_a_case_are_declared(tmp_path: Path) -> None:
    labels = {"0": "background", "1": "liver", "2": "spleen"}
    listing = [
        {"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/a.nii.gz", "labelled": ["liver"]},
        {"image": "./imagesTr/b.nii.gz", "label": "labelsTr\\b.nii.gz", "labelled": [2, "liver"]},
        {"image": "./imagesTr/c.nii.gz", "label": "./labelsTr/c.nii.gz"},
    ]
    folder = write(tmp_path, labels=labels, training=listing, labelled={"d": []})
    assert declared(folder).labelled == {"a": {1}, "b": {1, 2}, "d": set()}


@pytest.mark.parametrize("text", ["", "[]", '{"labels": 3}', '{"labels": {"a": "b"}}', '{"labels": {"a": null}}'])
def test_other_files_of_this_name_declare_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    assert declared(tmp_path) == Declared()


@pytest.mark.parametrize("labelled", [{"a": ["livr"]}, ["liver"], {"a": "liver"}, {"a": [1.5]}, {"a": [True]}, 3])
def test_a_declaration_that_does_not_fit_is_refused(tmp_path: Path, labelled: object) -> None:
    """Without it, ignored voxels would be scored and classes that are not annotated would count as errors."""
    labels = {"background": 0, "liver": 1, "ignore": 255}
    listing = [{"image": "x", "label": "labelsTr/b.nii.gz", "labelled": ["livr"]}]
    for name, description in (("a", {"labelled": labelled}), ("b", {"training": listing})):
        with pytest.raises(InputError) as caught:
            declared(write(tmp_path / name, labels=labels, **description))
        assert caught.value.code == "dataset.bad_json"
    assert declared(write(tmp_path / "c", labels=labels, training="none", labelled={"a": [1]})).ignored == (255,)
