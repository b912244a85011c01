"""`napari-seg accept` puts corrected labels of a cohort into a training set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
import SimpleITK as sitk

from napari_seg.cli.main import main
from napari_seg.cohort.outputs import sha256_of
from napari_seg.formats.nifti import write_nifti
from napari_seg.formats.record import write_labels_record, write_record
from napari_seg.learning.accept import accept
from napari_seg.learning.training_set import Provenance, read_training_set
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
    again = [*map(str, words), "--copy-series", "--checked", "Right"]
    assert main(again) == 4
    refusal = capsys.readouterr().err
    assert "accept.again" in refusal
    assert "case0001 by Ada" in refusal
    assert "Left would be lost" in refusal
    assert "--replace" in refusal
    assert main([*again, "--replace"]) == 0
    entry = json.loads((tmp_path / "set" / "dataset.json").read_text())["training"][0]
    assert entry["labelled"] == ["Right"]
    assert entry["image"] == "./imagesTr/case0001.nii.gz"


def test_values_without_names_are_named_in_the_command(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    array = np.zeros(head.grid.shape, np.uint8)
    array[4:9, 5:12, 3:6], array[4:9, 5:12, 7] = 1, 3
    phantoms.write_nifti(replace(head, array=array[None]), tmp_path / "labels.nii.gz")
    words = [*map(str, ["accept", tmp_path / "labels.nii.gz", tmp_path / "head.nii.gz", "--into", tmp_path / "set"])]
    assert main(words) == 4
    assert "accept.unnamed" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert main([*words, "--names", "1=liver"]) == 4
    assert "label 3" in capsys.readouterr().err
    assert main([*words, "--names", "1=liver", "2=spleen"]) == 4
    assert "labels.unknown" in capsys.readouterr().err
    assert main([*words, "--names", "1=liver", "3=left kidney"]) == 0
    assert dict(read_training_set(tmp_path / "set").structures) == {"liver": 1, "left kidney": 3}


def test_a_case_is_discarded(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    array = np.ones(head.grid.shape, np.uint8)
    accept(Segmentation(array, head.grid, (Segment(1, "Left", (255, 0, 0)),)), head, tmp_path / "set", Provenance())
    words = ["accept", "--into", str(tmp_path / "set"), "--discard"]
    assert main([*words, "case0007"]) == 4
    assert "accept.unknown_case" in capsys.readouterr().err
    assert main([*words, "case0001"]) == 0
    assert "case0001  discarded; 0 cases are left" in capsys.readouterr().out
    assert not read_training_set(tmp_path / "set").cases
    assert not list((tmp_path / "set" / "imagesTr").iterdir())
    for wrong in ([*words, "case0001", "labels.nii.gz"], words[:-1], [*words[:-1], "labels.nii.gz"]):
        with pytest.raises(SystemExit):
            main(wrong)
    with pytest.raises(SystemExit):
        main([*words[:-1], "labels.nii.gz", "scan.nii.gz", "--with-rounds"])


def test_wrong_paths_say_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["accept", str(tmp_path / "a.nii.gz"), str(tmp_path), "--into", str(tmp_path / "set")]
    assert main(words) == 2
    assert "input.missing" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_refusal_holds_no_name_of_a_patient(head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def edit(_: int, dataset: Any) -> None:
        dataset.PatientName = "Quimby^Ann"

    phantoms.write_series(head, tmp_path / "series", edit=edit)
    for file in (tmp_path / "series").iterdir():
        file.rename(file.with_name(f"quimby_{file.name}"))
    labels = tmp_path / "one_seg.nii.gz"
    write_nifti(Segmentation(np.ones(head.grid.shape, np.uint8), head.grid, (Segment(1, "A", (1, 0, 0)),)), labels)
    write_record(tmp_path / "one_seg.json", {"input_sha256": "0"})
    assert main(["accept", str(labels), str(tmp_path / "series"), "--into", str(tmp_path / "set")]) == 4
    printed = capsys.readouterr().err
    assert "accept.other_scan" in printed
    assert "quimby" not in printed.casefold().replace(str(tmp_path), "")


def test_a_result_of_another_scan_on_the_same_voxels_is_refused(
    head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    phantoms.write_nifti(head, tmp_path / "one.nii.gz")
    phantoms.write_nifti(replace(head, array=head.array + 1), tmp_path / "two.nii.gz")
    array = np.zeros(head.grid.shape, np.uint8)
    array[4:9, 5:12, 3:6] = 1
    labels = tmp_path / "one_seg.nii.gz"
    write_nifti(Segmentation(array, head.grid, (Segment(1, "Left", (255, 0, 0)),)), labels)
    named = {"label": 1, "name": "Left", "color": [255, 0, 0]}
    record = {"segments": [named], "input_sha256": sha256_of([tmp_path / "one.nii.gz"])}
    write_record(tmp_path / "one_seg.json", record)
    (tmp_path / "plain.nii.gz").write_bytes(labels.read_bytes())
    words = [str(tmp_path / "two.nii.gz"), "--into", str(tmp_path / "set")]
    assert main(["accept", str(labels), *words]) == 4
    assert "accept.other_scan: one_seg.nii.gz was made from other files than two.nii.gz" in capsys.readouterr().err
    of_model = ["accept", str(tmp_path / "plain.nii.gz"), *words, "--before", str(labels), "--names", "1=Left"]
    assert main(of_model) == 4
    assert "accept.other_scan" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert main(["accept", str(labels), *words, "--same-scan"]) == 0
    assert main(["accept", str(labels), str(tmp_path / "one.nii.gz"), *words[1:]]) == 0


def test_a_record_that_states_only_a_header_is_named_as_such(
    head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = sitk.GetImageFromArray(head.array[0].T.astype(np.int16))
    sitk.WriteImage(image, tmp_path / "one.mhd")
    array = np.zeros(head.grid.shape, np.uint8)
    labels = tmp_path / "one_seg.nii.gz"
    write_nifti(Segmentation(array, head.grid, (Segment(1, "Left", (255, 0, 0)),)), labels)
    write_record(tmp_path / "one_seg.json", {"input_sha256": sha256_of([tmp_path / "one.mhd"])})
    assert main(["accept", str(labels), str(tmp_path / "one.mhd"), "--into", str(tmp_path / "set")]) == 4
    assert "the record of one_seg.nii.gz states only the header of a scan" in capsys.readouterr().err
