"""Every structure has one value in all cases, on the grid of its scan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
import SimpleITK
from gathering import GRID, SEGMENTS, block, gathered, labels, load, names, refused, write

from napari_seg.formats.itk import to_itk
from napari_seg.formats.nifti import write_map, write_nifti
from napari_seg.formats.nrrd import write_seg_nrrd
from napari_seg.geometry import Grid
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.volume import Segment, Segmentation


def test_names_of_segments_become_one_value_in_all_cases(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/Segmentation.seg.nrrd", "p2/ct.nrrd")
    turned = (Segment(1, "tumour", (0, 255, 0)), Segment(2, "liver", (255, 0, 0)))
    write_seg_nrrd(labels(segments=turned), root / "p2" / "Segmentation.seg.nrrd")
    found, description = gathered(root)
    assert names(description) == ["p1_ct", "p2_ct"]
    assert description["labels"] == {"background": 0, "Liver": 1, "Tumour": 2}
    assert np.array_equal(load(found, description["training"][0])[1], labels().array)
    assert np.array_equal(load(found, description["training"][1])[1], np.array([0, 2, 1])[labels().array])


def test_names_in_headers_hold_unless_the_data_set_declares_others(tmp_path: Path) -> None:
    for declared in ({}, {"kidney": [1], "cyst": [2]}):
        root = write(tmp_path / f"{len(declared)}", "p1/ct.nrrd", "p1/seg.nii.gz")
        write_nifti(labels(), root / "p1" / "seg.nii.gz")
        if declared:
            (root / "labels.json").write_text(json.dumps(declared))
        _, description = gathered(root)
        assert description["labels"] == {"background": 0, **(declared or {"Liver": 1, "Tumour": 2})}


def test_structures_that_share_voxels_become_regions(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "s1/ct.nii.gz")
    large, small = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    large[1:6, 1:5, 1:4] = 1
    small[2:4, 2:4, 2] = 255
    (root / "s1" / "segmentations").mkdir()
    write_map(small, GRID, root / "s1" / "segmentations" / "a_lesion.nii.gz")
    write_map(large, GRID, root / "s1" / "segmentations" / "liver.nii.gz")
    found, description = gathered(root)
    assert found is not None
    assert description["labels"] == {"background": 0, "liver": [1, 3], "a_lesion": [2, 3]}
    assert description["regions_class_order"] == [1, 2]  # the smaller one on top
    _, array = load(found, description["training"][0])
    assert np.array_equal(array, np.where(small, 3, large))
    assert [notice.code for notice in found.notices] == ["labels.overlapping"]
    with with_segnets():
        from segnets.data import find_dataset

        assert find_dataset(found.folder).regions == {"liver": 1, "a_lesion": 2}


def test_borders_that_are_rounded_make_no_regions(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "s1/ct.nii.gz", "s2/ct.nii.gz")
    left, right = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    left[0:4, :5, :4] = 1
    right[4:7, :5, :4] = 1
    for n in (1, 2):
        right[3, 0, 0] = n == 2  # one of 60 voxels
        for name, array in (("left", left), ("right", right)):
            (root / f"s{n}" / "segmentations").mkdir(exist_ok=True)
            write_map(array, GRID, root / f"s{n}" / "segmentations" / f"{name}.nii.gz")
    found, description = gathered(root)
    assert found is not None
    assert description["labels"] == {"background": 0, "left": 1, "right": [2, 3]}  # the smaller one has them
    assert "regions_class_order" not in description
    (notice,) = found.notices
    assert str(notice).startswith("labels.overlap_resolved: 1 cases: ")


@pytest.mark.parametrize(
    ("image_file", "label_file"),
    [
        ("p{n}/ct.nii.gz", "p{n}/segmentations/{name}.nii.gz"),
        ("sub-{n}/anat/sub-{n}_T1w.nii.gz", "derivatives/manual/sub-{n}/anat/sub-{n}_label-{name}_mask.nii.gz"),
    ],
)
def test_a_structure_has_its_value_in_a_case_that_lacks_the_others(
    tmp_path: Path, image_file: str, label_file: str
) -> None:
    of_cases = {"01": ("liver", "spleen"), "02": ("spleen",), "03": ("kidney",)}
    places = {"liver": 1, "spleen": 2, "kidney": 3}
    root = write(tmp_path / "a", *(image_file.format(n=n) for n in of_cases))
    for n, structures in of_cases.items():
        for name in structures:
            path = root / label_file.format(n=n, name=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_map(block(places[name], 255), GRID, path)
    found, description = gathered(root)
    assert set(description["labels"]) == {"background", *places}
    for structures, entry in zip(of_cases.values(), description["training"], strict=True):
        array = load(found, entry)[1]
        for name, place in places.items():
            expected = block(place) if name in structures else np.zeros(GRID.shape)
            assert np.array_equal(array == description["labels"][name], expected)


def test_values_without_names_beside_names_are_a_fault(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/Segmentation.seg.nrrd", "p2/ct.nrrd", "p2/seg.nrrd")
    assert "  labels.unnamed_beside_named  p2_ct  its label map names no structure" in refused(root, "data.faults")
    assert "  labels.unnamed_beside_named  p2_ct  " in refused(root, "data.faults")  # again, without reading them
    other = write(tmp_path / "b", "p1/ct.nii.gz", "p2/ct.nii.gz")
    for name, array in (("p1/masks/liver", block(1)), ("p1/masks/spleen", block(2)), ("p2/masks/all", labels().array)):
        (other / name).parent.mkdir(exist_ok=True)
        write_map(array, GRID, other / f"{name}.nii.gz")
    assert "  labels.unnamed_beside_named  p2_ct  all.nii.gz holds 2 values" in refused(other, "data.faults")


@pytest.mark.parametrize("size", [1, 5])
def test_names_of_files_get_the_values_that_the_data_set_declares(tmp_path: Path, size: int) -> None:
    root = write(tmp_path / "a", "sub-01/anat/sub-01_T1w.nii.gz")
    (root / "labels.json").write_text(json.dumps({"lesion": 1, "organ": 2}))
    folder = root / "derivatives" / "manual" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    lesion, organ = np.zeros(GRID.shape, np.uint8), block(4)
    lesion[:size] = 1
    for name, array in (("lesion", lesion), ("organ", organ)):
        write_map(array, GRID, folder / f"sub-01_label-{name}_mask.nii.gz")
    found, description = gathered(root)
    assert found is not None
    assert description["labels"] == {"background": 0, "lesion": [1], "organ": [2]}
    array = load(found, description["training"][0])[1]
    # both have block(4) if the lesion is large: then the smaller one, the organ, keeps it
    assert np.array_equal(array, np.where(organ, 2, lesion))
    assert [notice.code for notice in found.notices] == (["labels.overlap_resolved"] if size == 5 else [])
    (root / "labels.json").write_text(json.dumps({"lesion": 2, "organ": 1}))
    found, description = gathered(root)
    assert np.array_equal(load(found, description["training"][0])[1], np.where(organ, 1, 2 * lesion))
    (root / "labels.json").write_text(json.dumps({"lesions": 1, "organ": 2}))
    assert "labels.unknown  sub-01  found the structure 'lesion'; the data set declares lesions, organ" in refused(
        root, "data.faults"
    )


def test_names_in_files_get_the_values_that_dataset_json_declares(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *(f"{folder}{ending}" for folder, ending in (
        ("imagesTr/p1_0000", ".nrrd"), ("imagesTr/p2_0000", ".nrrd"), ("labelsTr/p1", ".seg.nrrd"))))  # fmt: skip
    turned = (Segment(1, "tumour", (0, 255, 0)), Segment(2, "Liver", (255, 0, 0)))
    write_seg_nrrd(labels(segments=turned), root / "labelsTr" / "p2.seg.nrrd")
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "tumour": 2}}))
    found, description = gathered(root)
    assert description["labels"] == {"background": 0, "liver": [1], "tumour": [2]}
    assert np.array_equal(load(found, description["training"][0])[1], labels().array)
    assert np.array_equal(load(found, description["training"][1])[1], np.array([0, 2, 1])[labels().array])

    regions = {"labels": {"background": 0, "liver": [1, 2], "tumour": [2]}, "regions_class_order": [1, 2]}
    (root / "dataset.json").write_text(json.dumps(regions))
    found, description = gathered(root)
    assert {name: description[name] for name in regions} == regions
    assert np.array_equal(load(found, description["training"][1])[1], np.array([0, 2, 1])[labels().array])


def test_structures_that_a_segmentation_lists_without_voxels_are_reported(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *(f"p{n}/ct.nrrd" for n in (1, 2, 3)))
    without = Segmentation(np.minimum(labels().array, 1), GRID, SEGMENTS)
    for n, content in ((1, labels()), (2, without), (3, replace(without, segments=SEGMENTS[:1]))):
        write_seg_nrrd(content, root / f"p{n}" / "Segmentation.seg.nrrd")
    found, description = gathered(root)
    assert found is not None
    assert found.listed == {"p1_ct": (1, 2), "p2_ct": (1, 2), "p3_ct": (1,)}
    assert not any("labelled" in entry for entry in description["training"])  # nobody knows for p3


def test_a_label_map_is_named_by_its_file(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *(f"p{n}/ct.nii.gz" for n in range(1, 5)))
    mask = np.minimum(labels().array, 1)
    for n in range(1, 5):
        (root / f"p{n}" / "masks").mkdir()
        write_map(mask, GRID, root / f"p{n}" / "masks" / "liver.nii.gz")
    assert gathered(root)[1]["labels"] == {"background": 0, "liver": 1}
    write_map(2 * mask, GRID, root / "p4" / "masks" / "liver.nii.gz")  # then it is no mask of the liver
    assert gathered(root)[1]["labels"] == {}
    for n in (3, 4):
        (root / f"p{n}" / "masks" / "liver.nii.gz").unlink()
        write_map(mask, GRID, root / f"p{n}" / "masks" / "spleen.nii.gz")
    found, description = gathered(root)
    assert description["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert set(np.unique(load(found, description["training"][3])[1])) == {0, 2}
    (root / "p4" / "masks" / "spleen.nii.gz").rename(root / "p4" / "masks" / "miller.nii.gz")
    assert gathered(root)[1]["labels"] == {}  # it may be the name of a patient


def test_a_name_that_no_case_has_any_more_is_no_class(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/s.seg.nrrd", "p2/ct.nrrd", "p2/s.seg.nrrd")
    misspelt = (replace(SEGMENTS[0], name="Livr"), SEGMENTS[1])
    write_seg_nrrd(labels(segments=misspelt), root / "p1" / "s.seg.nrrd")
    assert set(gathered(root)[1]["labels"]) == {"background", "Livr", "Liver", "Tumour"}
    write_seg_nrrd(labels(), root / "p1" / "s.seg.nrrd")
    found, description = gathered(root)
    assert set(description["labels"]) == {"background", "Liver", "Tumour"}
    arrays = [load(found, entry)[1] for entry in description["training"]]
    assert np.array_equal(*arrays)


@pytest.mark.parametrize("turn", ["same", "flipped", "permuted"])
def test_label_maps_on_turned_grids_keep_their_places(tmp_path: Path, turn: str) -> None:
    grid = phantoms.oblique_grid()
    array = np.random.default_rng(1).integers(-900, 900, grid.shape).astype(np.int16)
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[2:9, 3:20, 1:4], drawn[4, 5:9, 2:8] = 1, 2  # no symmetry
    turned, affine = drawn, grid.affine.copy()
    if turn == "flipped":
        turned = drawn[::-1]
        affine[:3, 3] += (grid.shape[0] - 1) * affine[:3, 0]
        affine[:3, 0] *= -1
    elif turn == "permuted":
        turned = drawn.transpose(2, 0, 1)
        affine = affine[:, [2, 0, 1, 3]]
    shape = (turned.shape[0], turned.shape[1], turned.shape[2])
    for folder, content, of_file in (
        ("images", array, grid), ("labels", np.ascontiguousarray(turned), Grid(shape, affine))
    ):  # fmt: skip
        (tmp_path / "a" / folder).mkdir(parents=True)
        SimpleITK.WriteImage(to_itk(content, of_file), str(tmp_path / "a" / folder / "x.nrrd"))
    found, description = gathered(tmp_path / "a")
    volume, label = load(found, description["training"][0])
    assert np.allclose(volume.affine, grid.affine, atol=1e-4)
    assert np.array_equal(volume.dataobj, array)
    assert np.array_equal(label, drawn)
