from __future__ import annotations

import os
import subprocess
import sys

import phantoms
import pytest

from napari_seg.errors import InputError
from napari_seg.formats import Scan, find_scans, read


def test_a_folder_gives_each_nifti_file_and_each_series_once_in_order(tmp_path, head):
    phantoms.write_series(head, tmp_path / "b", number=3)
    phantoms.write_series(head, tmp_path / "b", number=4, description="T2w", file_name="x{}.anything")
    (tmp_path / "a").mkdir()
    phantoms.write_nifti(head, tmp_path / "a" / "T1w.nii.gz")
    phantoms.write_nifti(head, tmp_path / "z.NII")
    scans = find_scans(tmp_path)
    assert [(s.name, s.format, len(s.files)) for s in scans] == [
        ("T1w", "nifti", 1),
        ("MR_T1w_sagittal_003", "dicom", 14),
        ("MR_T2w_004", "dicom", 14),
        ("z", "nifti", 1),
    ]
    assert find_scans(tmp_path) == scans


def test_what_is_no_scan_is_passed_over(tmp_path, head):
    (tmp_path / "notes.txt").write_text("nothing to see here")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "._T1w.nii.gz").write_bytes(b"resource fork")
    (tmp_path / "empty").touch()
    (tmp_path / "tag-like.bin").write_bytes(b"\x08\0\x05\0" + b"\xff" * 500)

    def become(modality):
        return lambda k, dataset: setattr(dataset, "Modality", modality)

    def lose_geometry(k, dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
        del dataset.ImagePositionPatient

    def localize(k, dataset):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def report(k, dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
        del dataset.Rows

    phantoms.write_series(head, tmp_path / "seg", slices=[0], edit=become("SEG"))
    phantoms.write_series(head, tmp_path / "dose", slices=[0], edit=become("RTDOSE"))
    phantoms.write_series(head, tmp_path / "capture", slices=[0], edit=lose_geometry)
    phantoms.write_series(head, tmp_path / "scout", slices=[0], edit=localize)
    phantoms.write_series(head, tmp_path / "report", slices=[0], edit=report)
    assert find_scans(tmp_path) == []
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert caught.value.code == "input.none"


def test_a_broken_file_that_calls_itself_a_scan_is_a_scan_that_fails(tmp_path):
    (tmp_path / "a.nii.gz").write_text("text")
    (tmp_path / "b.nii").touch()
    (tmp_path / "c.nii.gz").symlink_to(tmp_path / "gone")
    (tmp_path / "d.dcm").write_text("text")
    (tmp_path / "e.dcm").touch()
    (tmp_path / "f").write_bytes(bytes(128) + b"DICM" + b"\x08\0\x05\0CS")
    codes = []
    for scan in find_scans(tmp_path):
        with pytest.raises(InputError) as caught:
            scan.read()
        codes.append((scan.name, caught.value.code))
    assert codes == [
        ("a", "file.not_nifti"),
        ("b", "file.empty"),
        ("c", "file.unreadable"),
        ("d", "file.not_dicom"),
        ("e", "file.empty"),
        ("f", "file.not_dicom"),
    ]


def test_one_file_is_one_scan(tmp_path, head):
    nifti = phantoms.write_nifti(head, tmp_path / "T1w.nii")
    first, *_ = phantoms.write_series(head, tmp_path / "series")
    assert find_scans(nifti) == [Scan("T1w", "nifti", (nifti,))]
    assert find_scans(str(first)) == [Scan("MR_T1w_sagittal_003", "dicom", (first,))]
    assert read(nifti).grid.shape == head.grid.shape
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert caught.value.code == "input.several_scans"
    assert "T1w" in caught.value.message
    assert "MR_T1w_sagittal_003" in caught.value.message


def test_a_missing_path_is_said(tmp_path):
    with pytest.raises(InputError) as caught:
        find_scans(tmp_path / "nowhere")
    assert caught.value.code == "input.missing"


def test_the_package_loads_no_reader():
    code = (
        "import sys, napari_seg.formats; sys.exit(any(m in sys.modules for m in ('pydicom', 'nibabel', 'SimpleITK')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_that_cant_be_opened_does_not_cost_the_others(tmp_path, head, monkeypatch):
    phantoms.write_nifti(head, tmp_path / "head.nii")
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    good, bad = find_scans(tmp_path)
    assert good.read().array.shape == head.array.shape
    with pytest.raises(InputError, match=r"file\.unreadable"):
        bad.read()
    with pytest.raises(InputError, match=r"file\.unreadable"):
        find_scans(tmp_path / "lost+found")
