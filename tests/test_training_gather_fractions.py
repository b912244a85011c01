"""Fractions of the structures become one file for each case, with one structure after the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK
from gathering import GRID, gathered, labels, load, names, refused, write

from napari_seg.formats.itk import to_itk
from napari_seg.formats.nifti import write_map, write_nifti, write_volume
from napari_seg.geometry import Grid
from napari_seg.volume import Volume


def fractions(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(GRID.shape, np.float32)


def write_structures(root: Path) -> Path:
    """Write two cases with fractions of their structures, in several formats; the second case lacks one."""
    write(root, "p1/t1.nii.gz", "p2/t1.nii.gz")
    for seed, name in enumerate(("p1/masks/white.nii.gz", "p1/masks/Grey.nrrd", "p2/masks/grey.nii.gz")):
        (root / name).parent.mkdir(exist_ok=True)
        if name.endswith(".nrrd"):
            SimpleITK.WriteImage(to_itk(fractions(seed), GRID), str(root / name))
        else:
            write_map(fractions(seed), GRID, root / name)
    return root


def test_a_file_for_each_structure_becomes_one_file(tmp_path: Path) -> None:
    found, description = gathered(write_structures(tmp_path / "a"), soft=True)
    assert names(description) == ["p1_t1", "p2_t1"]
    assert description["labels"] == {"background": 0, "Grey": 1, "white": 2}
    first, second = (load(found, entry)[1] for entry in description["training"])
    assert np.array_equal(first, np.stack([fractions(1), fractions(0)], axis=-1))
    assert np.array_equal(second, np.stack([fractions(2), np.zeros(GRID.shape)], axis=-1))


def test_the_data_set_declares_the_order_of_its_structures(tmp_path: Path) -> None:
    root = write_structures(tmp_path / "a")
    (root / "labels.json").write_text(json.dumps({"white": 1, "grey": 2}))
    _, description = gathered(root, soft=True)
    assert description["labels"] == {"background": 0, "white": 1, "Grey": 2}


def test_volumes_of_one_file_are_structures_and_turned_voxels_are_turned_back(tmp_path: Path) -> None:
    both = np.stack([fractions(0), fractions(1)])
    turned = Grid(GRID.shape, GRID.affine @ np.array([[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    root = write(tmp_path / "a", "p1/t1.nrrd", "p2/t1.nrrd")
    write_volume(Volume(both, GRID), root / "p1" / "seg.nii.gz")
    write_volume(Volume(both[:, ::-1], turned), root / "p2" / "seg.nii.gz")
    found, description = gathered(root, soft=True)
    for entry in description["training"]:
        assert np.array_equal(load(found, entry)[1], np.moveaxis(both, 0, -1))


def test_files_that_are_no_fractions_of_the_scan_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/t1.nrrd", "p1/seg.seg.nrrd", "p2/t1.nrrd", "p2/seg.seg.nrrd")
    assert "seg.seg.nrrd is no volume of fractions" in refused(root, "data.faults", soft=True)
    root = write(tmp_path / "b", "p1/t1.nrrd", "p2/t1.nrrd")
    elsewhere = Grid(GRID.shape, GRID.affine + np.eye(4)[:, 3:] * 0 + np.array([[0, 0, 0, 9.5]] * 3 + [[0, 0, 0, 0]]))
    for name in ("p1", "p2"):
        write_map(fractions(0), elsewhere, root / name / "seg.nii.gz")
    assert "does not lie on the voxels of the scan" in refused(root, "data.faults", soft=True)
    root = write(tmp_path / "c", "p1/t1.nrrd", "p2/t1.nrrd")
    for name in ("p1", "p2"):
        write_nifti(labels(), root / name / "seg.nii.gz")
    _, description = gathered(root, soft=True)  # the check refuses the value 2
    assert len(description["training"]) == 2
