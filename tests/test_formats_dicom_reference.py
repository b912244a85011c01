"""A segmentation or structure set is used with a scan only if it was made from that scan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
from pydicom.dataset import Dataset

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.evaluation.pairs import compare_with
from napari_seg.formats.dicom.reference import relation_to_scan
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.volume import Segment, Segmentation, Volume

KINDS = ("seg", "rtstruct")


@pytest.fixture
def scans(tmp_path: Path, head: Volume) -> tuple[Volume, Volume]:
    """Two scans of one grid, of two studies of one patient."""
    for name in ("a", "b"):
        phantoms.write_series(head, tmp_path / name)
    return read(tmp_path / "a"), read(tmp_path / "b")


def written(scan: Volume, path: Path, kind: str, edit: Callable[[Dataset], None] = lambda dataset: None) -> Path:
    labels = np.zeros(scan.grid.shape, np.uint8)
    labels[4:9, 5:12, 3:6] = 1
    labels[10:13, 5:12, 3:6] = 2
    segments = (Segment(1, "one", (255, 0, 0)), Segment(2, "two", (0, 255, 0)))
    write_label_map(Segmentation(labels, scan.grid, segments), path, scan=scan.source, dicom=kind)  # type: ignore[arg-type]
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


def forget_frame(dataset: Dataset) -> None:
    for item in (dataset, *dataset.get("ReferencedFrameOfReferenceSequence", ())):
        item.pop("FrameOfReferenceUID", None)
    for roi in dataset.get("StructureSetROISequence", ()):
        roi.ReferencedFrameOfReferenceUID = ""


def forget_everything(dataset: Dataset) -> None:
    forget_frame(dataset)
    for keyword in ("ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "SourceImageSequence"):
        dataset.pop(keyword, None)
    for group in dataset.get("PerFrameFunctionalGroupsSequence", ()):
        group.pop("DerivationImageSequence", None)
    for drawn in dataset.get("ROIContourSequence", ()):
        for contour in drawn.get("ContourSequence", ()):
            contour.pop("ContourImageSequence", None)


def forget_series(dataset: Dataset) -> None:
    """What is left are references of each frame or contour."""
    forget_frame(dataset)
    for keyword in ("ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "SourceImageSequence"):
        dataset.pop(keyword, None)


def other_patient(dataset: Dataset) -> None:
    dataset.PatientID = "SOMEBODY"


def other_patient_and_images(dataset: Dataset) -> None:
    other_patient(dataset)
    frame_uid = dataset.FrameOfReferenceUID
    forget_everything(dataset)
    dataset.FrameOfReferenceUID = frame_uid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("edit", "of_its_scan", "of_another"),
    [
        (lambda dataset: None, "same_frame", "other"),
        (forget_frame, "referenced", "other"),
        (forget_series, "referenced", "other"),
        (forget_everything, "unknown", "other"),  # the studies differ
        (other_patient, "same_frame", "other"),
        (other_patient_and_images, "other", "other"),
    ],
)
def test_the_relation_of_a_segmentation_to_a_scan(
    scans: tuple[Volume, Volume],
    tmp_path: Path,
    kind: str,
    edit: Callable[[Dataset], None],
    of_its_scan: str,
    of_another: str,
) -> None:
    path = written(scans[0], tmp_path / "x.dcm", kind, edit)
    found = [relation_to_scan(path, scan.source.files) for scan in scans]
    assert [one.relation for one in found] == [of_its_scan, of_another]
    is_doubtful = edit in (forget_everything, other_patient, other_patient_and_images)
    assert bool(found[0].message) == is_doubtful
    assert "SOMEBODY" not in found[0].message
    assert relation_to_scan(path, ()).relation == "unknown"


def keep(dataset: Dataset) -> None:
    pass


def cut_pixels(dataset: Dataset) -> None:
    if "PixelData" in dataset:
        dataset.PixelData = dataset.PixelData[:10]


def drop_structures(dataset: Dataset) -> None:
    for keyword in ("StructureSetROISequence", "SegmentSequence"):
        dataset.pop(keyword, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", [keep, cut_pixels, drop_structures, forget_everything, other_patient])
def test_no_message_quotes_the_name_of_a_segmentation_that_is_a_patients(
    scans: tuple[Volume, Volume],
    tmp_path: Path,
    kind: str,
    edit: Callable[[Dataset], None],
    capsys: pytest.CaptureFixture,
) -> None:
    path = written(scans[0], tmp_path / "Canary^Tweety.dcm", kind, edit)
    texts = []
    for grid, images, only in [
        (scans[0].grid, scans[0].source.files, ()),
        (scans[0].grid, scans[1].source.files, ()),
        (scans[0].grid.box((0, 0, 0), (6, 6, 2)), scans[0].source.files, ()),
        (scans[0].grid, scans[0].source.files, ("nobody",)),
        (None, (), ()),
    ]:
        try:
            texts += map(str, read_label_map(path, grid, only, images=images).notices)
        except InputError as error:
            texts.append(str(error))
    assert texts
    assert main(["inspect", str(path)]) == 2
    shown = capsys.readouterr().out.replace(str(path), "")
    assert "skip" in shown
    text = " ".join([*texts, shown]).lower()
    assert not any(canary.lower() in text for canary in phantoms.CANARIES), text


@pytest.mark.parametrize("kind", KINDS)
def test_segmentations_of_another_scan_are_refused_everywhere(
    scans: tuple[Volume, Volume], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    path = written(scans[0], tmp_path / "x.dcm", kind)
    words = ["convert", str(path), str(tmp_path / "out.nii.gz"), "--scan"]
    assert main([*words, str(tmp_path / "b")]) == 4
    assert "geometry.other_frame_of_reference" in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()
    assert main([*words, str(tmp_path / "b"), "--ignore-frame-of-reference"]) == 0
    assert "geometry.frame_of_reference_ignored" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "a"), "--overwrite"]) == 0
    assert capsys.readouterr().err == ""

    own, other = (written(scan, tmp_path / f"{n}.dcm", "seg") for n, scan in enumerate(scans))
    assert main(["evaluate", str(own), str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"][0]["notices"] == []
    assert main(["evaluate", str(other), str(path)]) == 4
    assert "geometry.other_frame_of_reference" in capsys.readouterr().out
    assert main(["evaluate", str(other), str(path), "--ignore-frame-of-reference"]) == 0
    assert "geometry.frame_of_reference_ignored" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "out.nii.gz"), str(path)]) == 0
    assert "geometry.frame_of_reference_unknown" in capsys.readouterr().err

    result = read_label_map(own, scans[0].grid, images=scans[0].source.files)
    assert compare_with(result, path, scans[0].source.files)[0][1].dice == 1
    with pytest.raises(InputError, match=r"geometry\.other_frame_of_reference"):
        compare_with(result, path, scans[1].source.files)


def test_each_structure_lies_in_a_frame_of_reference_of_its_own(scans: tuple[Volume, Volume], tmp_path: Path) -> None:
    def move_one(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"

    path = written(scans[0], tmp_path / "x.dcm", "rtstruct", move_one)
    grid, images = scans[0].grid, scans[0].source.files
    with pytest.raises(InputError, match=r"other_frame_of_reference: x\.dcm \(two\)"):
        read_label_map(path, grid, images=images)
    found = read_label_map(path, grid, ["one"], images=images)
    assert found.notices == ()
    assert np.count_nonzero(found.array) == 5 * 7 * 3
    with pytest.raises(InputError, match="other_frame_of_reference"):
        read_label_map(path, grid, ["two"], images=images)
