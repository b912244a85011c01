"""Folders with a mask for each structure, as TotalSegmentator writes them by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.evaluation.pairs import compare_pair, find_pairs
from napari_seg.formats.label_maps import read_label_map, read_label_maps
from napari_seg.formats.mask_folder import mask_files, structure_of_mask
from napari_seg.formats.nifti import header_segments, write_map
from napari_seg.geometry import Grid

GRID = Grid((6, 5, 4), np.array([[-2.0, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1.5, -5], [0, 0, 0, 1]]))


def mask(rows: slice, value: float = 1) -> np.ndarray:
    array = np.zeros(GRID.shape, np.float64 if value == 1 else np.uint8)
    array[rows] = value
    return array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A liver, a spleen of 255, a kidney without voxels, and what TotalSegmentator writes besides."""
    root = tmp_path / "segmentations"
    root.mkdir()
    write_map(mask(slice(0, 2)), GRID, root / "liver.nii.gz")
    write_map(mask(slice(2, 5), 255), GRID, root / "spleen.nii.gz")
    write_map(mask(slice(0, 0)), GRID, root / "kidney_left.nii.gz")
    (root / "statistics.json").write_text("{}")
    (root / "._liver.nii.gz").write_bytes(b"junk of a Mac")
    return root


def test_a_folder_of_masks_becomes_one_named_label_map(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), str(tmp_path / "labels.nii.gz")]) == 0
    found = read_label_map(tmp_path / "labels.nii.gz")
    assert {one.label: one.name for one in found.segments} == {1: "kidney_left", 2: "liver", 3: "spleen"}
    assert found.array[:, 0, 0].tolist() == [2, 2, 3, 3, 3, 0]
    assert found.grid.matches(GRID)
    assert header_segments(tmp_path / "labels.nii.gz")[0] == found.segments
    assert main(["convert", str(folder), str(tmp_path / "one.nii"), "--segments", "spleen"]) == 0
    assert read_label_map(tmp_path / "one.nii").array[:, 0, 0].tolist() == [0, 0, 3, 3, 3, 0]


def test_one_mask_is_named_after_its_file(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder / "spleen.nii.gz"), str(tmp_path / "one.csv")]) == 0
    assert "spleen" in (tmp_path / "one.csv").read_text()
    write_map(mask(slice(0, 1)), Grid(GRID.shape, np.eye(4)), folder / "other.nii.gz")  # of another scan
    assert structure_of_mask(folder / "spleen.nii.gz") == ""
    for name in ("case_1", "case_2"):
        (tmp_path / "cases").mkdir(exist_ok=True)
        write_map(mask(slice(0, 2)), GRID, tmp_path / "cases" / f"{name}.nii.gz")
    assert structure_of_mask(tmp_path / "cases" / "case_1.nii.gz") == ""
    assert structure_of_mask(tmp_path / "one.csv") == ""


def test_structures_that_share_voxels_are_refused_with_their_number(folder: Path) -> None:
    write_map(mask(slice(1, 3)), GRID, folder / "tumour.nii.gz")
    with pytest.raises(InputError, match=r"40 voxels of tumour in segmentations .* name the segments") as caught:
        read_label_map(folder)
    assert caught.value.code == "labels.overlap"
    assert read_label_map(folder, only=["liver"]).voxel_counts() == {2: 40}
    maps = read_label_maps(folder)
    assert [[one.name for one in each.segments] for each in maps] == [["kidney_left", "liver", "spleen"], ["tumour"]]
    assert [sum(one.voxel_counts().values()) for one in maps] == [100, 40]


def test_a_folder_of_masks_is_compared_with_one_file(folder: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.nii.gz"
    write_map(np.maximum(mask(slice(0, 2)), 2 * mask(slice(2, 5))).astype(np.uint8), GRID, reference)
    record = [{"label": n, "name": name, "color": [n, n, n]} for n, name in ((1, "liver"), (2, "spleen"))]
    (tmp_path / "reference.json").write_text(json.dumps({"segments": record}))
    for sides in ((folder, reference), (reference, folder)):
        (pair,), unpaired = find_pairs(*sides)
        assert unpaired == []
        scores = compare_pair(pair).scores
        assert (scores["liver"].dice, scores["spleen"].dice) == (1, 1)
    write_map(mask(slice(0, 2)), GRID, tmp_path / "liver.nii.gz")  # then the file is the reference of one mask
    assert [one.prediction.name for one in find_pairs(folder, tmp_path / "liver.nii.gz")[0]] == ["liver.nii.gz"]


@pytest.mark.parametrize("name", ["pat_0_0000_seg", "pat_0_seg", "other_seg"])
def test_references_of_several_cases_are_no_masks_of_one(tmp_path: Path, name: str) -> None:
    references = tmp_path / "references"
    references.mkdir()
    for n in range(3):
        write_map(mask(slice(n, n + 2)), GRID, references / f"pat_{n}.nii.gz")
    found = tmp_path / f"{name}.nii.gz"
    write_map(mask(slice(0, 2)), GRID, found)
    for record in (None, {"segments": [{"label": 1, "name": "lesion", "color": [1, 2, 3]}]}):
        if record:
            (tmp_path / f"{name}.json").write_text(json.dumps(record))
        pairs, unpaired = find_pairs(found, references)
        assert [pair.reference.name for pair in pairs] == ([] if name == "other_seg" else ["pat_0.nii.gz"])
        assert len(unpaired) == (1 if name == "other_seg" else 0)


def test_other_files_in_the_folder_are_refused(folder: Path) -> None:
    two_values = mask(slice(0, 1), 2) + mask(slice(1, 2), 1)
    for array, code in ((two_values, "labels.not_masks"), (-mask(slice(0, 1)), "labels.not_masks")):
        write_map(array, GRID, folder / "ct.nii.gz")
        with pytest.raises(InputError) as caught:
            read_label_map(folder)
        assert caught.value.code == code
    write_map(mask(slice(0, 1)), Grid(GRID.shape, np.eye(4)), folder / "ct.nii.gz")
    with pytest.raises(InputError) as caught:
        read_label_map(folder)
    assert caught.value.code == "geometry.other_grid"
    with pytest.raises(InputError, match="bladder") as caught:
        read_label_map(folder, only=["bladder"])
    assert caught.value.code == "labels.unknown"


def test_folders_of_other_content_are_none_of_masks(folder: Path, tmp_path: Path) -> None:
    assert [*mask_files(folder)] == ["kidney_left", "liver", "spleen"]
    assert mask_files(tmp_path) == mask_files(folder / "liver.nii.gz") == {}
    (folder / "damaged.nii.gz").write_bytes(b"no NIfTI")
    assert mask_files(folder) == {}
    write_map(np.zeros((2, 2, 2)), Grid((2, 2, 2), np.eye(4)), folder / "damaged.nii.gz")
    assert mask_files(folder) == {}


def test_a_file_that_keeps_a_folder_from_being_one_of_masks_is_named(folder: Path) -> None:
    write_map(np.zeros((2, 2, 2)), Grid((2, 2, 2), np.eye(4)), folder / "spleen.nii.gz")
    with pytest.raises(InputError, match=r"spleen\.nii\.gz has 2 x 2 x 2 voxels, and kidney_left\.nii\.gz 6 x 5 x 4"):
        read_label_map(folder)
    (folder / "spleen.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"file\..*spleen\.nii\.gz"):
        read_label_map(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_mask_whose_content_was_not_fetched_is_named(folder: Path) -> None:
    (folder / "spleen.nii.gz").unlink()
    (folder / "spleen.nii.gz").symlink_to("../.git/annex/objects/spleen.nii.gz")
    with pytest.raises(InputError, match=r"file\.unreadable: spleen\.nii\.gz"):
        read_label_map(folder)
