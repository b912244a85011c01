"""DICOM series are paired with the segmentations and contours that refer to them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
import pytest
from gathering import gathered, load, names, refused, write

from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.read import read
from napari_seg.training.choices import Choices
from napari_seg.training.prepare import plan_bundle
from napari_seg.volume import Segment, Segmentation, Volume

DicomWriter = Callable[..., Path]


@pytest.fixture
def dicom(tmp_path: Path, head: Volume) -> DicomWriter:
    """A function that writes a series and the objects that refer to it, in folders of people's names."""

    def written(root: Path, patient: str, kinds: tuple[str, ...] = ("seg",), folder: str = "") -> Path:
        def edit(k: int, dataset: Any) -> None:
            dataset.PatientID, dataset.PatientName = patient, f"{patient}^Ann"

        series = root / f"{patient}^Ann" / folder / "MR"
        phantoms.write_series(head, series, edit=edit)
        scan = read(series)
        array = np.zeros(scan.grid.shape, np.uint8)
        array[4:9, 5:12, 3:6] = 1
        array[10:13, 5:12, 3:6] = 2
        found = Segmentation(array, scan.grid, (Segment(1, "Left", (255, 0, 0)), Segment(2, "Right", (0, 255, 0))))
        for kind in kinds:
            path = root / f"{patient}^Ann" / f"{folder}{kind}.dcm"
            write_label_map(found, path, scan=scan.source, dicom=kind)  # type: ignore[arg-type]
        return root

    return written


def test_the_pattern_of_patients_is_that_of_the_paths(tmp_path: Path, dicom: DicomWriter) -> None:
    folders = ["A/x1", "A/x2", "B/y1", "C"]
    root = write(tmp_path / "a", *(f"{one}/{name}.nrrd" for one in folders for name in ("t1", "seg")))
    _, description = gathered(root, patient="^[AB](?=/)")
    assert [entry["patient"] for entry in description["training"]] == [f"patient {n}" for n in (1, 1, 2, 3)]
    patients = ["Quimby", "Zappa"]
    root = tmp_path / "b"
    for patient in patients:
        for folder in ("first", "second"):
            dicom(root, patient, ("seg",), folder)
    plan = plan_bundle(root, tmp_path / "out", Choices(settings={"patient": "^Quimby"}))
    assert plan["dataset"]["cases"] == 4
    description = json.loads((tmp_path / "out" / "data" / "dataset.json").read_text())
    assert [entry["patient"] for entry in description["training"]] == [f"patient {n}" for n in (1, 1, 2, 2)]
    assert "patient: null" in (tmp_path / "out" / "configs" / "train.yaml").read_text()


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_dicom_series_with_the_objects_that_refer_to_them(tmp_path: Path, dicom: DicomWriter, kind: str) -> None:
    root = tmp_path / "a"
    dicom(root, "Quimby", (kind,), "second")
    dicom(root, "Quimby", (kind,), "first")
    dicom(root, "Zappa", (kind,))
    dicom(root, "Oddjob", ())
    (root / "report.pdf").write_text("no scan")
    found, description = gathered(root)
    assert found is not None
    assert names(description) == ["patient001_scan1", "patient001_scan2", "patient002_scan1"]
    assert [one["patient"] for one in description["training"]] == ["patient 1", "patient 1", "patient 2"]
    assert description["labels"] == {"background": 0, "Left": 1, "Right": 2}
    assert description["modality"] == {"0": "MR"}
    _, array = load(found, description["training"][2])
    assert [int((array == value).sum()) for value in (1, 2)] == [5 * 7 * 3, 3 * 7 * 3]
    assert {(o.ending, o.count, o.code) for o in found.passed_over} == {
        ("DICOM series", 1, "partner.no_label"),
        (".pdf", 1, "skip.not_an_image"),
    }
    everything = str(found)
    for path in (path for path in found.folder.rglob("*") if path.is_file()):
        content = path.read_bytes() if path.suffix == ".json" else gzip.decompress(path.read_bytes())[:352]
        everything += f"{path} {content!r}"
    for private in ("Quimby", "Zappa", "Ann", "Canary", "CAN4711", "Birdhouse"):
        assert private not in everything.replace(str(tmp_path), "")


def test_series_of_a_study_are_channels_if_they_are_named(tmp_path: Path, dicom: DicomWriter, head: Volume) -> None:
    root = tmp_path / "a"
    for patient in ("Quimby", "Zappa"):
        dicom(root, patient)
    (first, *_) = sorted((root / "Quimby^Ann" / "MR").iterdir())
    frame = pydicom.dcmread(first).FrameOfReferenceUID

    def edit(k: int, dataset: Any) -> None:
        dataset.PatientID, dataset.FrameOfReferenceUID = "Quimby", frame
        dataset.SeriesDescription = "t2 space dark-fluid sag"

    brighter = replace(head, array=head.array + 7)
    phantoms.write_series(brighter, root / "Quimby^Ann" / "FLAIR", edit=edit)
    assert len(gathered(root)[1]["training"]) == 2  # as before, the series that was segmented alone
    found, description = gathered(root, channels=["FLAIR", "T1w"])
    assert found is not None
    assert names(description) == ["patient001_scan1"]
    assert description["modality"] == {"0": "FLAIR", "1": "T1w"}
    volume, array = load(found, description["training"][0])
    assert np.array_equal(volume.dataobj[..., 0], np.asarray(volume.dataobj[..., 1]) + 7)
    assert int((array == 1).sum()) == 5 * 7 * 3
    assert ("DICOM series", "channels.missing") in {(o.ending, o.code) for o in found.passed_over}


def test_a_segmentation_of_another_series_has_no_image(tmp_path: Path, dicom: DicomWriter) -> None:
    root = dicom(tmp_path / "a", "Quimby")
    shutil.rmtree(root / "Quimby^Ann" / "MR")
    message = refused(root, "dataset.unknown")
    assert "1 .dcm (partner.no_image: " in message
    dicom(root, "Zappa")
    found, description = gathered(root)
    assert found is not None
    assert names(description) == ["patient001_scan1"]
    assert [(o.count, o.code) for o in found.passed_over] == [(1, "partner.no_image")]


def test_two_segmentations_of_one_structure_are_a_fault(tmp_path: Path, dicom: DicomWriter) -> None:
    root = dicom(tmp_path / "a", "Quimby", ("seg", "rtstruct"))
    message = refused(root, "data.faults")
    assert "labels.same_name" in message
    assert "Quimby" not in message.replace(str(root), "")


def test_several_objects_of_one_series_are_merged(tmp_path: Path, dicom: DicomWriter) -> None:
    root = dicom(tmp_path / "a", "Quimby")
    scan = read(root / "Quimby^Ann" / "MR")
    array = np.zeros(scan.grid.shape, np.uint8)
    array[2:14, 3:15, 2:7] = 1
    body = Segmentation(array, scan.grid, (Segment(1, "Body", (0, 0, 255)),))
    write_label_map(body, root / "body.dcm", scan=scan.source, dicom="rtstruct")
    found, description = gathered(root)
    assert found is not None
    values = description["labels"]
    assert list(values) == ["background", "Body", "Left", "Right"]
    _, labels = load(found, description["training"][0])
    counts = {name: int(np.isin(labels, values[name]).sum()) for name in ("Body", "Left", "Right")}
    assert counts == {"Body": 12 * 12 * 5, "Left": 5 * 7 * 3, "Right": 3 * 7 * 3}
    assert description["regions_class_order"] == [values[name][0] for name in counts]
    assert [notice.code for notice in found.notices] == ["labels.overlapping"]
