"""`inspect`, `convert`, and what `predict` writes beside NIfTI."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pydicom
import pytest
from bundles import write_threshold_bundle

from napari_seg.cli.main import main
from napari_seg.formats.find import find_scans
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.origin import sha256_of_file
from napari_seg.formats.read import read
from napari_seg.formats.record import (
    UNKNOWN,
    made_by_in,
    read_record,
    record_path,
    write_labels_record,
    write_record,
)
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Volume


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def study(tmp_path: Path, head: Volume) -> Path:
    """One scan of each verdict but warn."""
    folder = tmp_path / "study"
    phantoms.write_series(head, folder / "good")
    phantoms.write_series(head, folder / "gap", slices=[0, 1, 2, 4, 5], number=4)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), folder / "several.nii.gz")
    (folder / "notes.txt").write_text("nothing")
    return folder


def test_inspect_gives_each_its_verdict(study: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("inspect", study, "--json") == 3
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    told = {name: (entry["verdict"], entry["code"], entry["files"]) for name, entry in found.items()}
    assert told == {
        "MR_T1w_sagittal_003": ("process", "", 14),
        "MR_T1w_sagittal_004": ("refuse", "geometry.missing_slice", 5),
        "several": ("refuse", "data.4d", 1),
        "notes.txt": ("skip", "skip.not_an_image", 1),
    }
    good = found["MR_T1w_sagittal_003"]
    assert good["path"] == str(study / "good")
    assert (good["modality"], good["shape"], good["channels"], good["dtype"]) == ("MR", [20, 26, 14], 1, "int16")
    assert good["spacing_mm"] == [1.5, 1.25, 2.5]
    assert len(good["orientation"]) == 3
    assert run("inspect", study) == 3
    text = capsys.readouterr().out
    assert "refuse    several  data.4d: " in text
    assert text.splitlines()[-1] == "3 scans: 1 can be segmented, 0 of them with a warning; 2 refused; 1 skipped"
    assert "Tweety" not in text
    assert run("inspect", study / "several.nii.gz", "--volume", 1) == 0
    assert run("inspect", study / "notes.txt") == 2
    assert run("inspect", study / "gone") == 2


def test_results_are_converted_and_compared(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bundle, out = write_threshold_bundle(tmp_path / "bundle"), tmp_path / "out"
    words = ["predict", study / "good", "-o", out, "--bundle", bundle, "--trust-bundle"]
    assert run(*words, "--also", "seg", "rtstruct", "nrrd") == 0
    name = "MR_T1w_sagittal_003"
    assert sorted(path.name for path in out.iterdir() if path.name != "manifest.sqlite") == [
        f"{name}.seg.nrrd",
        f"{name}_contours.dcm",
        *(f"{name}_seg.{ending}" for ending in ("dcm", "json", "nii.gz", "png")),
    ]
    meant = read(out / f"{name}_seg.nii.gz")
    for file in (f"{name}.seg.nrrd", f"{name}_contours.dcm", f"{name}_seg.dcm"):
        assert np.array_equal(read_label_map(out / file, meant.grid).array, meant.array[0]), file
        capsys.readouterr()
        assert run("evaluate", out / f"{name}_seg.nii.gz", out / file, "--json") == 0
        (case,) = json.loads(capsys.readouterr().out)["cases"]
        assert {s: scores["dice"] for s, scores in case["segments"].items()} == {"bright": 1, "upper": None}

    for target in ("x.dcm", "x.seg.nrrd", "x.stl", "x.csv"):
        assert run("convert", out / f"{name}_seg.nii.gz", tmp_path / target, "--scan", study / "good") == 0
        assert run("convert", out / f"{name}_seg.nii.gz", tmp_path / target, "--scan", study / "good") == 1
    assert run("convert", tmp_path / "x.dcm", tmp_path / "back.nii.gz", "--scan", study / "good") == 0
    back = read(tmp_path / "back.nii.gz")
    assert np.array_equal(back.array, meant.array)
    assert back.grid.matches(meant.grid)
    assert run("convert", tmp_path / "x.dcm", tmp_path / "part.nii.gz", "--segments", "Upper") == 0
    assert np.count_nonzero(read(tmp_path / "part.nii.gz").array) == np.count_nonzero(meant.array == 2)

    assert run(*words, "--redo") == 0  # other formats of labels that are no more go with them
    results = sorted(path.name for path in out.iterdir() if path.name != "manifest.sqlite")
    assert results == [f"{name}_seg.{e}" for e in ("json", "nii.gz", "png")]


def test_a_scan_that_is_not_dicom_gets_no_dicom(head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bundle, out = write_threshold_bundle(tmp_path / "bundle"), tmp_path / "out"
    phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    words = ["predict", tmp_path / "head.nii.gz", "-o", out, "--bundle", bundle, "--trust-bundle"]
    assert run(*words, "--also", "seg", "nrrd") == 0
    assert "output.no_dicom: head is not a DICOM series, so seg can't be written" in capsys.readouterr().out
    assert (out / "head.seg.nrrd").is_file()
    assert not (out / "head_seg.dcm").exists()
    assert run("convert", out / "head_seg.nii.gz", tmp_path / "x.dcm", "--scan", tmp_path / "head.nii.gz") == 1
    text = "output.no_dicom: x.dcm needs the DICOM images that it belongs to"
    assert f"{text}; head.nii.gz is no DICOM series" in capsys.readouterr().err
    assert run("convert", out / "head_seg.nii.gz", tmp_path / "x.dcm") == 1
    assert f"{text}; found none; name their folder with --scan FOLDER" in capsys.readouterr().err
    assert find_scans(out) == find_scans(out / "head_seg.nii.gz")


def test_a_segmentation_of_another_scan_is_refused(
    study: Path, head: Volume, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    half_a_voxel = np.eye(4)
    half_a_voxel[:3, 3] = 0.5
    labels = np.ones(head.grid.shape, np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, head.grid.affine @ half_a_voxel), tmp_path / "other.nii.gz")
    assert run("convert", tmp_path / "other.nii.gz", tmp_path / "x.dcm", "--scan", study / "good") == 4
    assert "geometry.other_grid" in capsys.readouterr().err
    assert not (tmp_path / "x.dcm").exists()
    assert run("convert", tmp_path / "gone.nii.gz", tmp_path / "x.dcm") == 2
    assert run("convert", tmp_path / "other.nii.gz", tmp_path / "x.xyz") == 1
    assert run("convert", tmp_path / "other.nii.gz", tmp_path / "gone" / "x.nii.gz") == 1
    assert "output.no_folder" in capsys.readouterr().err


def two_boxes(*names: str) -> Segmentation:
    """Two structures with some names on a small grid."""
    array = np.zeros((4, 5, 3), np.uint8)
    array[0], array[2] = 1, 2
    segments = tuple(Segment(n, name, (255, n, 0)) for n, name in enumerate(names, 1))
    return Segmentation(array, Grid(array.shape, np.diag([1.0, 1.5, 2.0, 1.0])), segments)


def test_labels_that_replace_others_bring_their_names(tmp_path: Path) -> None:
    result, corrected = tmp_path / "a_seg.nii.gz", tmp_path / "corrected.seg.nrrd"
    write_label_map(two_boxes("liver", "spleen"), result)
    write_labels_record(two_boxes("liver", "spleen"), result, ("a model", "1"))
    write_label_map(two_boxes("spleen", "liver"), corrected)
    assert run("convert", corrected, result) == 1
    assert run("convert", corrected, result, "--overwrite") == 0
    assert [one.name for one in read_label_map(result).segments] == ["spleen", "liver"]
    assert made_by_in(result) == UNKNOWN

    result.unlink()
    before = record_path(result).read_text()
    assert run("convert", corrected, result, "--overwrite") == 1
    assert record_path(result).read_text() == before


def test_a_copy_keeps_the_names_and_the_origin(tmp_path: Path) -> None:
    result, copy, packed = tmp_path / "a_seg.nii", tmp_path / "copy.nii.gz", tmp_path / "a_seg.nii.gz"
    write_label_map(two_boxes("liver", "spleen"), result)
    write_labels_record(two_boxes("liver", "spleen"), result, ("a model", "1"))
    assert run("convert", result, copy) == 0
    assert [one.name for one in read_label_map(copy).segments] == ["liver", "spleen"]
    assert made_by_in(copy) == ("a model", "1")
    before = read_record(record_path(result))
    assert run("convert", result, packed) == 0  # has the same record
    assert read_record(record_path(packed)) == before
    packed.unlink()
    other = tmp_path / "other.seg.nrrd"
    write_label_map(two_boxes("liver", "spleen"), other)
    assert run("convert", other, packed) == 1  # would change the names, or the origin, of the first
    assert not packed.exists()


def test_surfaces_with_brackets_in_their_names_are_not_replaced(tmp_path: Path) -> None:
    write_label_map(two_boxes("liver", "spleen"), tmp_path / "a.seg.nrrd")
    assert run("convert", tmp_path / "a.seg.nrrd", tmp_path / "a[1].stl") == 0
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run("convert", tmp_path / "a.seg.nrrd", tmp_path / "a[1].stl") == 1
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def origins(path: Path) -> list[tuple[str, str, bool]]:
    """Whether a person made the segments of a DICOM object, the name of the algorithm, and whether it is called AI."""
    dataset = pydicom.dcmread(path)
    if dataset.Modality == "RTSTRUCT":
        regions = dataset.StructureSetROISequence
        return [(one.ROIGenerationAlgorithm or "", one.get("ROIGenerationDescription", ""), False) for one in regions]
    keyword = "SegmentationAlgorithmIdentificationSequence"
    items = dataset.SegmentSequence
    return [(one.SegmentAlgorithmType, one.get("SegmentAlgorithmName", ""), keyword in one) for one in items]


@pytest.fixture
def scanned(tmp_path: Path) -> Segmentation:
    """Labels of a small DICOM series in tmp_path / "scan"."""
    grid = Grid((6, 5, 3), np.diag([-1.0, -1.5, 2.0, 1.0]))
    phantoms.write_series(Volume(np.zeros((1, *grid.shape), np.int16), grid), tmp_path / "scan")
    array = np.zeros(grid.shape, np.uint8)
    array[1:4, 1:4, 1] = 1
    return Segmentation(array, grid, (Segment(1, "liver", (255, 0, 0)),))


def test_dicom_states_who_made_the_labels(scanned: Segmentation, tmp_path: Path) -> None:
    labels, scan = tmp_path / "a_seg.nii.gz", tmp_path / "scan"

    def converted(*more: str, name: str = "a_seg.dcm", source: Path = labels) -> list[tuple[str, str, bool]]:
        assert run("convert", source, tmp_path / name, "--scan", scan, "--overwrite", *more) == 0
        return origins(tmp_path / name)

    write_label_map(scanned, labels)
    write_labels_record(scanned, labels, None)
    assert converted() == [("MANUAL", "", False)]
    assert converted("--dicom", "rtstruct") == [("MANUAL", "", False)]
    assert run("convert", tmp_path / "a_seg.dcm", tmp_path / "back.nii.gz", "--scan", scan) == 0
    assert made_by_in(tmp_path / "back.nii.gz") is None

    write_labels_record(scanned, labels, ("a model", "1"))
    assert converted() == [("SEMIAUTOMATIC", "a model", True)]  # may have been edited
    record = read_record(record_path(labels))
    write_record(record_path(labels), {**record, "sha256": sha256_of_file(labels)})
    assert converted() == [("AUTOMATIC", "a model", True)]
    assert converted("--dicom", "rtstruct", name="contours.dcm") == [("AUTOMATIC", "a model 1", False)]
    assert run("convert", labels, tmp_path / "copy.nii.gz") == 0
    assert converted(source=tmp_path / "copy.nii.gz", name="copy.dcm") == [("AUTOMATIC", "a model", True)]
    assert converted(source=tmp_path / "copy.dcm", name="again.dcm") == [("AUTOMATIC", "a model", True)]


def test_labels_of_unknown_origin_are_not_called_automatic(
    scanned: Segmentation, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_label_map(scanned, tmp_path / "a.nii.gz")
    words = ["convert", tmp_path / "a.nii.gz", tmp_path / "a.dcm", "--scan", tmp_path / "scan", "--overwrite"]
    assert run(*words) == 1
    assert "output.unknown_origin: a.dcm must state whether" in capsys.readouterr().err
    assert run(*words, "--dicom", "rtstruct") == 0
    assert origins(tmp_path / "a.dcm") == [("", "", False)]
    assert run(*words, "--origin", "semiautomatic") == 0
    assert origins(tmp_path / "a.dcm") == [("SEMIAUTOMATIC", "unknown", False)]
    assert run(*words, "--origin", "manual") == 0
    assert origins(tmp_path / "a.dcm") == [("MANUAL", "", False)]
