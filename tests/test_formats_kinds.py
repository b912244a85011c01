"""Table of label formats: every writer runs, and everything that offers formats derives from the table."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

from napari_seg.cli.main import main
from napari_seg.errors import EnvironmentFault, OutputError
from napari_seg.formats.kinds import (
    DICOM_FORMATS,
    LABEL_FORMATS,
    RUN_FORMATS,
    FormatName,
    check_memory_for,
    write_as,
    write_label_map,
)
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.memory import limited_to
from napari_seg.volume import Segment, Segmentation, Volume


def box_in(volume: Volume) -> Segmentation:
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[2:6, 3:7, 1:4] = 1
    return Segmentation(labels, volume.grid, (Segment(1, "box", (255, 0, 0)),))


@pytest.mark.parametrize("name", list(LABEL_FORMATS))
def test_every_format_of_the_table_is_written(name: FormatName, head: Volume, tmp_path: Path) -> None:
    phantoms.write_series(head, tmp_path / "series")
    volume = read(tmp_path / "series")
    path = tmp_path / LABEL_FORMATS[name].file_name("head")
    written = write_as(name, box_in(volume), path, scan=volume.source)
    assert written
    assert all(file.stat().st_size for file in written)
    assert {file for file in tmp_path.iterdir() if file.is_file()} == set(written)


@pytest.mark.parametrize("name", DICOM_FORMATS)
def test_dicom_formats_need_a_dicom_scan(name: FormatName, head: Volume, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"output\.no_dicom"):
        write_as(name, box_in(head), tmp_path / "x.dcm", scan=head.source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["csv", "json"])
def test_volumes_of_microscopy_have_significant_digits(name: FormatName, tmp_path: Path) -> None:
    array = np.zeros((6, 6, 4), np.uint8)
    array[1:3] = 1  # 48 voxels of (5 um)^3
    small = Segmentation(array, Grid(array.shape, np.diag([0.005, 0.005, 0.005, 1])), (Segment(1, "x", (255, 0, 0)),))
    (path,) = write_as(name, small, tmp_path / f"x.{name}")
    rows = json.loads(path.read_text()) if name == "json" else list(csv.DictReader(path.open()))
    assert [float(row["volume_ml"]) for row in rows] == [6e-9]


@pytest.mark.parametrize("name", ["csv", "json"])
def test_a_name_is_no_formula_in_a_spreadsheet(name: FormatName, head: Volume, tmp_path: Path) -> None:
    named = replace(box_in(head), segments=(Segment(1, '=HYPERLINK("x")', (255, 0, 0)),))
    (path,) = write_as(name, named, tmp_path / f"x.{name}")
    rows = json.loads(path.read_text()) if name == "json" else list(csv.DictReader(path.open()))
    assert [row["name"] for row in rows] == ["'" * (name == "csv") + '=HYPERLINK("x")']


def test_an_unknown_ending_is_refused_with_all_known_ones(head: Volume, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"output\.format: .*\.nii\.gz, \.nii, \.dcm, \.seg\.nrrd, .*\.json"):
        write_label_map(box_in(head), tmp_path / "x.txt")


def test_names_of_results_differ() -> None:
    names = [LABEL_FORMATS[name].file_name("x") for name in ("nifti", *RUN_FORMATS)]
    assert names == ["x_seg.nii.gz", "x_seg.dcm", "x_labelmap.dcm", "x_contours.dcm", "x.seg.nrrd"]


def test_the_usual_ending_is_appended_if_none_is_given() -> None:
    assert LABEL_FORMATS["nifti"].with_ending(Path("a.NII")) == Path("a.NII")
    assert LABEL_FORMATS["nifti"].with_ending(Path("a.b")) == Path("a.b.nii.gz")


def test_memory_for_writing_is_checked() -> None:
    with limited_to(1 << 20), pytest.raises(EnvironmentFault, match=r"environment\.memory: writing rtstruct"):
        check_memory_for((100, 100, 100), ["csv", "rtstruct"])


def test_the_command_line_offers_the_formats_of_the_table(capsys: pytest.CaptureFixture) -> None:
    for command, option, names in (("predict", "--also", RUN_FORMATS), ("convert", "--dicom", DICOM_FORMATS)):
        with pytest.raises(SystemExit):
            main([command, "x", "y", option, "nonsense"])
        error = capsys.readouterr().err
        assert all(name in error for name in names)


def test_the_table_imports_no_library() -> None:
    libraries = {"numpy", "pydicom", "nibabel", "SimpleITK"}
    code = f"import sys, napari_seg.formats.kinds\nprint(*({libraries} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
