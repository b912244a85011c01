"""Scans and label maps are paired by the names of their files and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gathering import gathered, image, load, names, refused, write

from napari_seg.formats.nifti import write_volume


def test_a_folder_per_case_with_a_file_per_channel(tmp_path: Path) -> None:
    files = [f"BraTS_{n}/BraTS_{n}_{word}.nii.gz" for n in (1, 2) for word in ("flair", "t1", "t1ce", "t2", "seg")]
    root = write(tmp_path / "a", *files, "BraTS_3/BraTS_3_t1.nii.gz", "BraTS_3/BraTS_3_seg.nii.gz")
    found, description = gathered(root)
    assert found is not None
    assert names(description) == ["BraTS_1", "BraTS_2"]
    assert list(description["modality"].values()) == ["t1", "t1ce", "t2", "flair"]
    assert [(o.code, o.count) for o in found.passed_over] == [("channels.missing", 1)]
    volume, _ = load(found, description["training"][0])
    assert np.array_equal(volume.dataobj[..., 3], image(0).array[0])
    _, description = gathered(root, channels=["T1"])
    assert names(description) == ["BraTS_1", "BraTS_2", "BraTS_3"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b-mask.nii.gz"], ["a", "b"]),
        (["scans/p1/ct.mha", "labels/p1/ct.mha", "scans/p2/ct.mha", "labels/p2/ct.mha"], ["p1_ct", "p2_ct"]),
        (["s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s1/segmentations/spleen.nii.gz"], ["s1_ct"]),
        (["s1/T1.nii.gz", "s1/FLAIR.nii.gz", "s1/seg.nii.gz"], ["s1"]),
        (["patient001/patient001_frame01.nii.gz", "patient001/patient001_frame01_gt.nii.gz"], ["patient001_frame01"]),
    ],
)
def test_images_next_to_their_label_maps(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    _, description = gathered(write(tmp_path / "a", *files))
    assert names(description) == expected


def test_the_label_map_of_another_number_is_no_partner(tmp_path: Path) -> None:
    for folder in ("", "x/"):
        root = write(tmp_path / f"a{folder[:1]}", f"{folder}p1_2019.nrrd", f"{folder}p1_2020_seg.nrrd")
        assert "partner.no_image" in refused(root, "dataset.unknown")
    root = write(tmp_path / "b", "p1_0000.nrrd", "p1_seg.nrrd")
    assert names(gathered(root)[1]) == ["p1_0000"]


def test_a_volume_that_is_a_label_map_in_its_folder_is_no_image(tmp_path: Path) -> None:
    write_volume(image(), (tmp_path / "x.nii.gz"))
    root = write(tmp_path / "a", "p1/ct.nii.gz", "p1/masks/liver.nii.gz", "p2/ct.nii.gz", "p2/masks/liver.nii.gz")
    found, description = gathered(root)
    assert names(description) == ["p1_ct", "p2_ct"]
    assert found is not None
    assert found.passed_over == ()


@pytest.mark.parametrize(
    ("folders", "patients"),
    [
        ([f"rat{r}/scan{n}" for r in (1, 2, 3) for n in (1, 2)], [1, 1, 2, 2, 3, 3]),
        ([f"{group}/rat{r}/day{n}" for group, r in (("a", 1), ("b", 2)) for n in (1, 2)], [1, 1, 2, 2]),
        ([f"m{r}/2024-01-0{n}" for r in (1, 2) for n in (r, r + 2)], [1, 1, 2, 2]),
        ([f"{site}/p0{n}" for site in "ABCD" for n in (1, 2)], [None] * 8),
        ([f"{part}/p0{n}" for part, n in (("train", 1), ("train", 2), ("test", 3))], [None] * 3),
        (["p1/ct", "p2/ct", "p3/ct"], [None] * 3),
        ([f"visit{visit}/p0{n}" for visit in (1, 2) for n in (1, 2)], [1, 2, 1, 2]),
    ],
)
def test_patients_by_folders(tmp_path: Path, folders: list[str], patients: list[int | None]) -> None:
    root = write(tmp_path / "a", *(f"{one}/{name}.nrrd" for one in folders for name in ("t1", "seg")))
    _, description = gathered(root)
    expected = [None if number is None else f"patient {number}" for number in patients]
    assert [entry.get("patient") for entry in description["training"]] == expected
