"""Test how scans are told apart without reading them whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

from napari_seg.cohort.case import Case
from napari_seg.cohort.outputs import sha256_of
from napari_seg.cohort.resume import other_scan
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.scan_files import fingerprint, input_bytes, is_of_headers_alone, is_same, scan_sha256
from napari_seg.formats.find import find_scans
from napari_seg.formats.scan import Scan

UIDS = count(10**9)
"""Ends of UIDs of one length; random ones differ in length, and so would the files."""


def set_time(folder: Path) -> None:
    for file in folder.iterdir():
        os.utime(file, (315532800, 315532800))  # 1980-01-01, as some archives have it


def nifti(folder: Path, value: int) -> Scan:
    folder.mkdir()
    voxels = phantoms.head()
    voxels.array[..., voxels.array.shape[-1] // 2] += value
    phantoms.write_nifti(voxels, folder / "T1.nii")
    set_time(folder)
    (scan,) = find_scans(folder)
    return scan


def dicom(folder: Path, patient: str) -> Scan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms, "generate_uid", lambda: f"1.2.{next(UIDS)}")
        phantoms.write_series(phantoms.head(), folder, edit=lambda k, dataset: setattr(dataset, "PatientID", patient))
    set_time(folder)
    (scan,) = find_scans(folder)
    return scan


def metaimage(folder: Path, value: int, count: int = 1) -> Scan:
    """Write equal headers for all values; of many slices, the outer ones are air."""
    folder.mkdir()
    names = [f"{number:02}.raw" for number in range(count)]
    listed = "\n".join(["LIST", *names]) if count > 1 else names[0]
    size = f"DimSize = 8 6 {count}\nElementType = MET_SHORT\n"
    (folder / "T1.mhd").write_text(f"ObjectType = Image\nNDims = 3\n{size}ElementDataFile = {listed}\n")
    for number, name in enumerate(names):
        is_air = count > 1 and number in (0, count - 1)
        (folder / name).write_bytes(np.full((6, 8), 0 if is_air else value, np.int16).tobytes())
    set_time(folder)
    return Scan("T1", "itk", (folder / "T1.mhd",))


def metaimage_of_slices(folder: Path, value: int) -> Scan:
    return metaimage(folder, value, 30)


WRITERS: list[Any] = [(nifti, (0, 1)), (dicom, ("A", "B")), (metaimage, (0, 1)), (metaimage_of_slices, (0, 1))]


@pytest.mark.parametrize(("write", "contents"), WRITERS)
def test_scans_of_one_size_and_one_time_are_told_apart(
    write: Callable[[Path, Any], Scan], contents: tuple[Any, Any], tmp_path: Path
) -> None:
    one, other = write(tmp_path / "a", contents[0]), write(tmp_path / "b", contents[1])
    assert input_bytes(one) == input_bytes(other) == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    before = fingerprint(one)
    assert before != fingerprint(other)
    assert scan_sha256(one.files) != scan_sha256(other.files)
    assert not is_same(other, before, scan_sha256(one.files))
    os.rename(tmp_path / "a", tmp_path / "moved")
    (moved,) = find_scans(tmp_path / "moved")
    assert fingerprint(one) == ""
    assert fingerprint(moved) == before


@pytest.mark.parametrize("slices", range(4, 41))
def test_scans_with_air_around_their_slices_are_told_apart(slices: int, tmp_path: Path) -> None:
    prints = []
    for value in (1, 2):
        voxels = np.zeros((slices, 96, 96), np.int16)
        voxels[1:-1, 12:-12, 12:-12] = value
        file = tmp_path / "a.nii"
        file.write_bytes(bytes(352) + voxels.tobytes())
        set_time(tmp_path)
        prints.append(fingerprint(Scan("a", "nifti", (file,))))
    assert prints[0] != prints[1]


def test_a_scan_without_its_pixel_file_is_unknown_and_not_another_one(tmp_path: Path) -> None:
    scan = metaimage(tmp_path / "a", 1)
    known = fingerprint(scan), scan_sha256(scan.files)
    (tmp_path / "a" / "00.raw").unlink()
    assert fingerprint(scan) == ""
    assert is_same(scan, *known)
    with pytest.raises(FileNotFoundError):
        scan_sha256(scan.files)


def test_digests_of_headers_alone_are_recognised(tmp_path: Path) -> None:
    scan, other = metaimage(tmp_path / "a", 1), nifti(tmp_path / "b", 0)
    assert is_of_headers_alone(scan.files, sha256_of(scan.files))
    assert not is_of_headers_alone(scan.files, scan_sha256(scan.files))
    assert not is_of_headers_alone(other.files, sha256_of(other.files))
    assert not is_of_headers_alone(scan.files, "")
    case = Case("a", "a/00.mhd", "", scan)
    earlier = CaseRow(1, "a", "done", input_sha256=sha256_of(scan.files))
    assert "noted only the header of the scan" in other_scan(case, earlier)
    assert "belongs to another scan" in other_scan(case, replace(earlier, input_sha256="0"))


def test_a_scan_whose_digest_is_unknown_is_not_called_another_one(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a", 0)
    assert is_same(scan, "of an earlier version", "")
    assert not is_same(scan, "of an earlier version", "digest of other files")


def test_a_file_smaller_than_a_block_has_a_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.nii"
    file.write_bytes(b"x")
    before = fingerprint(Scan("a", "nifti", (file,)))
    file.write_bytes(b"y")
    os.utime(file, (315532800, 315532800))
    assert fingerprint(Scan("a", "nifti", (file,))) not in ("", before)
