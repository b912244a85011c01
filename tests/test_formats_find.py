from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import phantoms
import pytest
import SimpleITK

from napari_seg.cli.main import main
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.naming import is_result
from napari_seg.errors import InputError
from napari_seg.formats.find import _is_of_unknown_format, find, find_scans
from napari_seg.formats.itk import to_itk
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.formats.scan import Scan
from napari_seg.formats.verdict import verdicts


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


def codes_of_skipped(path):
    return sorted((skipped.files[0].name, skipped.code) for skipped in find(path).skipped)


def test_links_to_folders_are_followed_once(tmp_path, head):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    phantoms.write_nifti(head, tmp_path / "in" / "b" / "one.nii")
    phantoms.write_nifti(head, tmp_path / "elsewhere" / "deep" / "two.nii")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "b")
    (tmp_path / "in" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    assert [scan.source for scan in find_scans(tmp_path / "in")] == [
        str(tmp_path / "in" / "b" / "one.nii"),
        str(tmp_path / "in" / "c" / "deep" / "two.nii"),
    ]
    assert codes_of_skipped(tmp_path / "in") == [("a", "skip.link"), ("again", "skip.link"), ("up", "skip.link")]


def test_what_cant_be_opened_as_a_file_is_said(tmp_path, head):
    phantoms.write_nifti(head, tmp_path / "good.nii")
    (tmp_path / ".hidden.nii").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "itself.nii.gz").symlink_to(tmp_path / "itself.nii.gz")
    (tmp_path / "slice.dcm").symlink_to(tmp_path / "nowhere")
    expected = [(".git", "skip.hidden"), ("gone", "skip.link"), ("itself", "skip.link")]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.nii.gz")
        os.mkfifo(tmp_path / "pipe.zip")
        expected += [("pipe.nii.gz", "skip.not_a_file"), ("pipe.zip", "skip.not_a_file")]
        with pytest.raises(InputError, match=r"input\.not_a_file"):
            find(tmp_path / "pipe.nii.gz")
        os.mkfifo(tmp_path / ".pipe.nrrd")
        with pytest.raises(InputError, match=r"file\.unreadable"):
            read_label_map(tmp_path / ".pipe.nrrd")
    assert codes_of_skipped(tmp_path) == expected
    found = {verdict.name: verdict.code for verdict in verdicts(tmp_path) if verdict.verdict != "skip"}
    assert found == {"good": "", "itself": "file.unreadable", "slice": "file.unreadable"}
    cases, _ = find_cases([tmp_path])
    assert len(cases) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_unicode_is_one_scan_as_any_other(tmp_path, head, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    phantoms.write_nifti(head, tmp_path / "good.nii").rename(folder / os.fsdecode(b"T1_\xff\x1b[2J.nii"))
    SimpleITK.WriteImage(to_itk(head.array[0], head.grid), str(tmp_path / "a.nrrd"))
    (tmp_path / "a.nrrd").rename(folder / os.fsdecode(b"b_\xe9.nrrd"))
    (folder / os.fsdecode(b"bad_\xff.nii.gz")).write_bytes(b"nothing")
    (folder / os.fsdecode(b"bad_\xff.mha")).write_bytes(b"nothing")
    (folder / os.fsdecode(b"bad_\xff.dcm")).write_bytes(b"nothing")
    (folder / os.fsdecode(b"bad_\xff.zip")).write_bytes(b"nothing")
    (folder / os.fsdecode(b"not_\xff.txt")).write_bytes(b"nothing")
    assert main(["inspect", str(tmp_path), "--json"]) == 3
    found = json.loads(capsys.readouterr().out.encode("utf-8"))
    assert [verdict["verdict"] for verdict in found].count("process") == 2
    assert [verdict["verdict"] for verdict in found].count("refuse") == 4
    assert "\x1b" not in str(found)
    main(["inspect", str(tmp_path)])
    assert "\x1b" not in capsys.readouterr().out.encode("utf-8").decode()


def test_a_name_that_is_too_long_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"input\.missing"):
        find(tmp_path / ("x" * 5000))


def test_a_record_that_nests_too_deep_costs_the_names_alone(tmp_path, head):
    path = phantoms.write_nifti(head, tmp_path / "a_seg.nii")
    (tmp_path / "a_seg.json").write_text("[" * 100_000 + "]" * 100_000)
    assert read_label_map(path).segments == ()
    assert [scan.name for scan in find(tmp_path, ignore=is_result).scans] == ["a_seg"]


def test_a_read_that_returns_fewer_bytes_hides_no_scan(tmp_path, head, monkeypatch):
    class Slow(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 100))

        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:100])

    def slow_open(path, mode, buffering=-1):
        raw = Slow(path, mode)
        return raw if buffering == 0 else io.BufferedReader(raw, buffering)

    phantoms.write_nifti(head, tmp_path / "a.nii").rename(tmp_path / "a.scan")
    assert not _is_of_unknown_format(tmp_path / "a.scan")
    monkeypatch.setattr("napari_seg.formats.find.open", slow_open, raising=False)
    assert not _is_of_unknown_format(tmp_path / "a.scan")
