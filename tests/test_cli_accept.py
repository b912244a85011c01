"""`napari-seg accept` puts corrected labels of a cohort into a training set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

from napari_seg.cli.main import main
from napari_seg.formats.nifti import write_nifti
from napari_seg.formats.record import write_labels_record
from napari_seg.learning.training_set import read_training_set
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Segment, Segmentation, Volume


def test_corrected_labels_are_accepted_with_their_origin(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    phantoms.write_series(head, tmp_path / "series")
    array = np.zeros(head.grid.shape, np.uint8)
    array[4:9, 5:12, 3:6] = 1
    made = Segmentation(array, head.grid, (Segment(1, "Left", (255, 0, 0)), Segment(2, "Right", (0, 255, 0))))
    array = array.copy()
    array[10:12, 5:12, 3:6] = 2
    corrected = replace(made, array=array)
    for name, one in (("made", made), ("corrected", corrected)):
        write_nifti(one, tmp_path / f"{name}.nii.gz")
        write_labels_record(one, tmp_path / f"{name}.nii.gz", ("hippocampus", "0.3"))
    words = ["accept", tmp_path / "corrected.nii.gz", tmp_path / "series", "--into", tmp_path / "set"]
    words += ["--reader", "Ada", "--before", tmp_path / "made.nii.gz", "--part", "validation"]
    assert main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    assert "case0001  validation, patient 1, accepted for the first time" in printed
    assert "42 voxels added, 0 removed" in printed
    (case,) = read_training_set(tmp_path / "set").cases
    assert case.image.endswith("case0001.series.json")
    assert case.provenance.model == ("hippocampus", "0.3")
    assert case.provenance.reader == "Ada"
    assert main([*map(str, words), "--copy-series", "--checked", "Right"]) == 0
    entry = json.loads((tmp_path / "set" / "dataset.json").read_text())["training"][0]
    assert entry["labelled"] == ["Right"]
    assert entry["image"] == "./imagesTr/case0001.nii.gz"


def test_wrong_paths_say_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["accept", str(tmp_path / "a.nii.gz"), str(tmp_path), "--into", str(tmp_path / "set")]
    assert main(words) == 2
    assert "input.missing" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
