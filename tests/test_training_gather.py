"""Data as people have it becomes a data set that training reads, or a true message with a code."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import nibabel
import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK
from filelock import FileLock
from PIL import Image

from napari_seg.cli.main import main
from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.formats import archive as archive_module
from napari_seg.formats.itk import to_itk
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.formats.nrrd import write_seg_nrrd
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.training.choices import Choices
from napari_seg.training.gather.gather import Gathered, gather
from napari_seg.training.prepare import data_folder, plan_bundle
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.volume import Segment, Segmentation, Volume

GRID = Grid((7, 6, 5), np.array([[-2.0, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1.5, -5], [0, 0, 0, 1]]))
SEGMENTS = (Segment(1, "Liver", (255, 0, 0)), Segment(2, "Tumour", (0, 255, 0)))


def image(seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).integers(-900, 900, (1, *GRID.shape)).astype(np.int16)
    return Volume(array, GRID)


def labels(value: int = 1, segments: tuple[Segment, ...] = SEGMENTS) -> Segmentation:
    array = np.zeros(GRID.shape, np.uint8)
    array[1:4, 2:5, 1:4] = value
    array[2, 3, 2] = 2
    return Segmentation(array, GRID, segments)


def write(root: Path, *names: str) -> Path:
    """Write a volume or a label map for each name, by the folder and name of the file."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_label = any(word in name.lower() for word in ("seg", "mask", "label", "gt", "liver", "spleen"))
        content: Any = labels() if is_label else image(seed)
        array = content.array if is_label else content.array[0]
        if name.endswith(".seg.nrrd"):
            write_seg_nrrd(content, path)
        elif name.endswith((".nii.gz", ".nii")):
            write_map(array, GRID, path)
        else:
            SimpleITK.WriteImage(to_itk(array, GRID), str(path))
    return root


def gathered(root: Path, **reading: Any) -> tuple[Gathered | None, dict[str, Any]]:
    """Return what was converted, and the dataset.json."""
    into = root.parent / f"{root.name}-out" / "data"
    with with_segnets():
        found = gather(root, into, reading)
    return found, json.loads((into / "dataset.json").read_text()) if found else {}


def names(description: dict[str, Any]) -> list[str]:
    return [Path(one["image"]).name.removesuffix(".nii.gz") for one in description["training"]]


def load(found: Gathered | None, entry: dict[str, str]) -> tuple[Any, Any]:
    assert found is not None
    image, label = (nibabel.load(found.folder / entry[key]) for key in ("image", "label"))
    assert np.allclose(image.affine, label.affine)
    return image, np.asarray(label.dataobj)


def refused(root: Path, code: str, **reading: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        gathered(root, **reading)
    assert caught.value.code == code
    return caught.value.message


def test_what_training_reads_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a", "images/x.nii.gz", "labels/x.nii.gz")
    for name in ("README", "notes.txt", "y.dcm"):
        (tmp_path / "a" / "images" / name).touch()
    assert gathered(tmp_path / "a") == (None, {})
    assert not (tmp_path / "a-out").exists()


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_volumes_of_other_formats_in_known_layouts(tmp_path: Path, ending: str) -> None:
    root = write(tmp_path / "a", *(f"{folder}/p{n}{ending}" for folder in ("images", "labels") for n in (1, 2)))
    found, description = gathered(root)
    assert names(description) == ["p1", "p2"]
    volume, array = load(found, description["training"][0])
    assert np.array_equal(volume.dataobj, image(0).array[0])
    assert np.allclose(volume.affine, GRID.affine)
    assert np.array_equal(array, labels().array)
    assert description["labels"] == {}

    other = write(tmp_path / "b", f"imagesTr/q_0000{ending}", f"imagesTr/q_0001{ending}", f"labelsTr/q{ending}")
    (other / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"a": 1}}))
    found, description = gathered(other)
    assert names(description) == ["q"]
    volume, _ = load(found, description["training"][0])
    assert volume.shape == (*GRID.shape, 2)
    assert np.array_equal(volume.dataobj[..., 1], image(1).array[0])
    assert description["modality"] == {"0": "T1", "1": "T2"}
    assert description["labels"] == {"background": 0, "a": [1]}


def test_a_mixture_keeps_the_nifti_file_of_two_with_one_name(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "images/x.nii.gz", "images/x.nrrd", "images/y.mha", "labels/x.nii.gz", "labels/y.nrrd")
    _, description = gathered(root)
    assert names(description) == ["x", "y"]


def test_names_of_segments_become_one_value_in_all_cases(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/Segmentation.seg.nrrd", "p2/ct.nrrd")
    turned = (Segment(1, "tumour", (0, 255, 0)), Segment(2, "liver", (255, 0, 0)))
    write_seg_nrrd(labels(segments=turned), root / "p2" / "Segmentation.seg.nrrd")
    found, description = gathered(root)
    assert names(description) == ["p1_ct", "p2_ct"]
    assert description["labels"] == {"background": 0, "Liver": 1, "Tumour": 2}
    assert np.array_equal(load(found, description["training"][0])[1], labels().array)
    assert np.array_equal(load(found, description["training"][1])[1], np.array([0, 2, 1])[labels().array])


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


def block(n: int, value: int = 1) -> np.ndarray:
    """Return a mask whose place and size say which of several it is."""
    array = np.zeros(GRID.shape, np.uint8)
    array[n, : n + 2, :3] = value
    return array


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


@pytest.mark.parametrize(
    ("folders", "patients"),
    [
        ([f"rat{r}/scan{n}" for r in (1, 2, 3) for n in (1, 2)], [1, 1, 2, 2, 3, 3]),
        ([f"{group}/rat{r}/day{n}" for group, r in (("a", 1), ("b", 2)) for n in (1, 2)], [1, 1, 2, 2]),
        ([f"m{r}/2024-01-0{n}" for r in (1, 2) for n in (r, r + 2)], [1, 1, 2, 2]),
        ([f"{site}/p0{n}" for site in "ABCD" for n in (1, 2)], [None] * 8),
        ([f"{part}/p0{n}" for part, n in (("train", 1), ("train", 2), ("test", 3))], [None] * 3),
        (["p1/ct", "p2/ct", "p3/ct"], [None] * 3),
    ],
)
def test_patients_by_folders(tmp_path: Path, folders: list[str], patients: list[int | None]) -> None:
    root = write(tmp_path / "a", *(f"{one}/{name}.nrrd" for one in folders for name in ("t1", "seg")))
    _, description = gathered(root)
    expected = [None if number is None else f"patient {number}" for number in patients]
    assert [entry.get("patient") for entry in description["training"]] == expected


def test_the_pattern_of_patients_is_that_of_the_paths(tmp_path: Path, dicom: DicomWriter) -> None:
    folders = ["A/x1", "A/x2", "B/y1", "C"]
    root = write(tmp_path / "a", *(f"{one}/{name}.nrrd" for one in folders for name in ("t1", "seg")))
    _, description = gathered(root, patient="^[AB](?=/)")
    assert [entry["patient"] for entry in description["training"]] == [f"patient {n}" for n in (1, 1, 2, 3)]
    patients = ["Quimby", "Zappa"]
    root = tmp_path / "b"
    for patient in patients:
        for folder in ("first", "second"):
            dicom(root, patient, ("seg",), folder)
    plan = plan_bundle(root, tmp_path / "out", Choices(settings={"patient": r"^sub-\d+"}))
    assert plan["dataset"]["cases"] == 4
    description = json.loads((tmp_path / "out" / "data" / "dataset.json").read_text())
    assert [entry["patient"] for entry in description["training"]] == [f"patient {n}" for n in (1, 1, 2, 2)]
    assert "patient: null" in (tmp_path / "out" / "configs" / "train.yaml").read_text()


def test_models_that_were_trained_inside_the_folder_are_no_data(nrrd_balls: Path, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    shutil.copytree(nrrd_balls, root)
    plan_bundle(root, root / "model1", Choices())
    for out, is_dry in ((root / "model2", False), (tmp_path / "elsewhere", True)):
        assert plan_bundle(root, out, Choices(), dry_run=is_dry)["dataset"]["cases"] == 6


def test_labels_json_names_values_in_every_arrangement(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/t1.nrrd", "p1/t1_seg.nrrd", "p2/t1.nrrd", "p2/t1_seg.nrrd")
    (root / "labels.json").write_text(json.dumps({"liver": 1, "ignore": 2}))
    expected = {"background": 0, "liver": [1], "ignore": [2]}
    assert gathered(root)[1]["labels"] == expected
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for file in (file for file in root.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(root))
    assert gathered(tmp_path / "b.zip")[1]["labels"] == expected
    rows = ["image,label", *(f"p{n}/t1.nrrd,p{n}/t1_seg.nrrd" for n in (1, 2))]
    (root / "cases.csv").write_text("\n".join(rows))
    assert gathered(root / "cases.csv")[1]["labels"] == expected


def test_lists_of_paths(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "x/1.nrrd", "y/1.nrrd", "x/1_seg.nrrd", "y/1_seg.nrrd")
    rows = ["Patient ID;Image path;Label path", "Miller;x/1.nrrd;x/1_seg.nrrd", f"Smith;{root}/y/1.nrrd;y\\1_seg.nrrd"]
    (root / "cases.csv").write_text("\n".join(rows))
    found, description = gathered(root / "cases.csv")
    assert found is not None
    assert names(description) == ["case_0001", "case_0002"]
    assert [one["patient"] for one in description["training"]] == ["patient 1", "patient 2"]
    assert "iller" not in "".join(path.read_text() for path in found.folder.glob("*.json"))
    assert gathered(root)[1] == description  # the only list in the folder


def test_a_converted_list_keeps_its_split(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "x.nrrd", "y.nrrd", "x_seg.nrrd", "y_seg.nrrd")
    (root / "cases.csv").write_text("image,label,split,fold\nx.nrrd,x_seg.nrrd,train,3\ny.nrrd,y_seg.nrrd,test,\n")
    found, _ = gathered(root)
    assert found is not None
    with with_segnets():
        from segnets.data import find_dataset

        dataset = find_dataset(found.folder)
    assert dataset.parts == {"x": "training", "y": "test"}
    assert dataset.folds == {"x": 0}


DicomWriter = Callable[..., Path]


@pytest.fixture
def dicom(tmp_path: Path, head: Volume) -> DicomWriter:
    """A function that writes a series and the objects that refer to it, in folders of people's names."""

    def written(root: Path, patient: str, kinds: tuple[str, ...] = ("seg",), folder: str = "") -> Path:
        def edit(k: int, dataset: Any) -> None:
            dataset.PatientID, dataset.PatientName = patient, f"{patient}^Ann"

        series = root / f"{patient}^Ann" / folder / "MR"
        phantoms.write_series(head, series, edit=edit)
        scan = read(series)
        array = np.zeros(scan.grid.shape, np.uint8)
        array[4:9, 5:12, 3:6] = 1
        array[10:13, 5:12, 3:6] = 2
        found = Segmentation(array, scan.grid, (Segment(1, "Left", (255, 0, 0)), Segment(2, "Right", (0, 255, 0))))
        for kind in kinds:
            path = root / f"{patient}^Ann" / f"{folder}{kind}.dcm"
            write_label_map(found, path, scan=scan.source, dicom=kind)  # type: ignore[arg-type]
        return root

    return written


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_dicom_series_with_the_objects_that_refer_to_them(tmp_path: Path, dicom: DicomWriter, kind: str) -> None:
    root = tmp_path / "a"
    dicom(root, "Quimby", (kind,), "second")
    dicom(root, "Quimby", (kind,), "first")
    dicom(root, "Zappa", (kind,))
    dicom(root, "Oddjob", ())
    (root / "report.pdf").write_text("no scan")
    found, description = gathered(root)
    assert found is not None
    assert names(description) == ["patient001_scan1", "patient001_scan2", "patient002_scan1"]
    assert [one["patient"] for one in description["training"]] == ["patient 1", "patient 1", "patient 2"]
    assert description["labels"] == {"background": 0, "Left": 1, "Right": 2}
    assert description["modality"] == {"0": "MR"}
    _, array = load(found, description["training"][2])
    assert [int((array == value).sum()) for value in (1, 2)] == [5 * 7 * 3, 3 * 7 * 3]
    assert {(o.ending, o.count, o.code) for o in found.passed_over} == {
        ("DICOM series", 1, "partner.no_label"),
        (".pdf", 1, "skip.not_an_image"),
    }
    everything = str(found)
    for path in (path for path in found.folder.rglob("*") if path.is_file()):
        content = path.read_bytes() if path.suffix == ".json" else gzip.decompress(path.read_bytes())[:352]
        everything += f"{path} {content!r}"
    for private in ("Quimby", "Zappa", "Ann", "Canary", "CAN4711", "Birdhouse"):
        assert private not in everything.replace(str(tmp_path), "")


def test_series_of_a_study_are_channels_if_they_are_named(tmp_path: Path, dicom: DicomWriter, head: Volume) -> None:
    root = tmp_path / "a"
    for patient in ("Quimby", "Zappa"):
        dicom(root, patient)
    (first, *_) = sorted((root / "Quimby^Ann" / "MR").iterdir())
    frame = pydicom.dcmread(first).FrameOfReferenceUID

    def edit(k: int, dataset: Any) -> None:
        dataset.PatientID, dataset.FrameOfReferenceUID = "Quimby", frame
        dataset.SeriesDescription = "t2 space dark-fluid sag"

    brighter = replace(head, array=head.array + 7)
    phantoms.write_series(brighter, root / "Quimby^Ann" / "FLAIR", edit=edit)
    assert len(gathered(root)[1]["training"]) == 2  # as before, the series that was segmented alone
    found, description = gathered(root, channels=["FLAIR", "T1w"])
    assert found is not None
    assert names(description) == ["patient001_scan1"]
    assert description["modality"] == {"0": "FLAIR", "1": "T1w"}
    volume, array = load(found, description["training"][0])
    assert np.array_equal(volume.dataobj[..., 0], np.asarray(volume.dataobj[..., 1]) + 7)
    assert int((array == 1).sum()) == 5 * 7 * 3
    assert ("DICOM series", "channels.missing") in {(o.ending, o.code) for o in found.passed_over}


def test_a_segmentation_of_another_series_has_no_image(tmp_path: Path, dicom: DicomWriter) -> None:
    root = dicom(tmp_path / "a", "Quimby")
    shutil.rmtree(root / "Quimby^Ann" / "MR")
    message = refused(root, "dataset.unknown")
    assert "1 .dcm: partner.no_image" in message
    dicom(root, "Zappa")
    found, description = gathered(root)
    assert found is not None
    assert names(description) == ["patient001_scan1"]
    assert [(o.count, o.code) for o in found.passed_over] == [(1, "partner.no_image")]


def test_two_segmentations_of_one_structure_are_a_fault(tmp_path: Path, dicom: DicomWriter) -> None:
    root = dicom(tmp_path / "a", "Quimby", ("seg", "rtstruct"))
    message = refused(root, "data.faults")
    assert "labels.same_name" in message
    assert "Quimby" not in message.replace(str(root), "")


def test_several_objects_of_one_series_are_merged(tmp_path: Path, dicom: DicomWriter) -> None:
    root = dicom(tmp_path / "a", "Quimby")
    scan = read(root / "Quimby^Ann" / "MR")
    array = np.zeros(scan.grid.shape, np.uint8)
    array[2:14, 3:15, 2:7] = 1
    body = Segmentation(array, scan.grid, (Segment(1, "Body", (0, 0, 255)),))
    write_label_map(body, root / "body.dcm", scan=scan.source, dicom="rtstruct")
    found, description = gathered(root)
    assert found is not None
    values = description["labels"]
    assert list(values) == ["background", "Body", "Left", "Right"]
    _, labels = load(found, description["training"][0])
    counts = {name: int(np.isin(labels, values[name]).sum()) for name in ("Body", "Left", "Right")}
    assert counts == {"Body": 12 * 12 * 5, "Left": 5 * 7 * 3, "Right": 3 * 7 * 3}
    assert description["regions_class_order"] == [values[name][0] for name in counts]
    assert [notice.code for notice in found.notices] == ["labels.overlapping"]


def test_what_dataset_json_declares_is_handed_on(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *(f"{folder}/p{n}.nrrd" for folder in ("imagesTr", "labelsTr") for n in (1, 2)))
    entries = [{"image": f"imagesTr/p{n}.nrrd", "label": f"labelsTr/p{n}.nrrd"} for n in (1, 2)]
    entries[1]["labelled"] = ["core"]  # type: ignore[assignment]
    content = {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "training": entries,
               "regions_class_order": [5, 6]}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    found, description = gathered(root)
    assert found is not None
    assert description["labels"] == {"background": 0, "whole": [1, 2], "core": [2], "ignore": [3]}
    assert description["regions_class_order"] == [5, 6]
    assert [entry.get("labelled") for entry in description["training"]] == [None, [2]]
    with with_segnets():
        from segnets.data import find_dataset

        source, converted = find_dataset(root, convertible=True), find_dataset(found.folder)
    for name in ("labels", "ignored", "regions", "labelled"):
        assert getattr(source, name) == getattr(converted, name)


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


def test_an_archive_is_searched_as_a_folder(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nii.gz", "p1/seg.nii.gz")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for file in root.rglob("*.gz"):
            archive.write(file, file.relative_to(root))
    found, description = gathered(tmp_path / "b.zip")
    assert names(description) == ["p1_ct"]
    assert found is not None
    before = {path: path.stat().st_mtime_ns for path in found.folder.rglob("*.gz")}
    archive_module._forget()  # as at the end of the process
    gathered(tmp_path / "b.zip")
    assert {path: path.stat().st_mtime_ns for path in found.folder.rglob("*.gz")} == before


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


def test_the_label_map_of_another_number_is_no_partner(tmp_path: Path) -> None:
    for folder in ("", "x/"):
        root = write(tmp_path / f"a{folder[:1]}", f"{folder}p1_2019.nrrd", f"{folder}p1_2020_seg.nrrd")
        assert "partner.no_image" in refused(root, "dataset.unknown")
    root = write(tmp_path / "b", "p1_0000.nrrd", "p1_seg.nrrd")
    assert names(gathered(root)[1]) == ["p1_0000"]


def test_films_become_frames_of_one_patient(tmp_path: Path) -> None:
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "labels").mkdir()
    frames = [Image.fromarray(np.full((6, 8), 40 * n, np.uint8)) for n in range(4)]
    masks = [Image.fromarray(np.full((6, 8), n % 2, np.uint8)) for n in range(4)]
    for folder, pages in (("images", frames), ("labels", masks)):
        pages[0].save(tmp_path / "a" / folder / "film.tif", save_all=True, append_images=pages[1:])
    found, description = gathered(tmp_path / "a")
    assert found is not None
    assert [one["image"] for one in description["training"]] == [f"./imagesTr/film_frame0{n}.png" for n in (2, 4)]
    assert {one["patient"] for one in description["training"]} == {"patient 1"}
    assert np.asarray(Image.open(found.folder / description["training"][1]["image"])).max() == 120

    masks[0].save(tmp_path / "a" / "labels" / "film.tif", save_all=True, append_images=masks[1:3])
    assert "partner.frames  film  the label map has 3 frames, the image 4" in refused(tmp_path / "a", "data.faults")


def test_pages_are_slices_if_it_is_said(tmp_path: Path) -> None:
    description = "ImageJ=1.54f\nimages=3\nslices=3\nunit=micron\nspacing=2.0\nloop=false\n"
    for folder, info in (("images", {270: description, 282: 4.0, 283: 2.0}), ("labels", {})):
        (tmp_path / "a" / folder).mkdir(parents=True)
        pages = [Image.fromarray(np.full((6, 8), n, np.uint8)) for n in range(3)]
        pages[1].putpixel((7, 0), 5)
        pages[0].save(tmp_path / "a" / folder / "x.tif", save_all=True, append_images=pages[1:], tiffinfo=info)
    assert len(gathered(tmp_path / "a")[1]["training"]) == 2  # films, as before
    found, description_of = gathered(tmp_path / "a", layout="stacks")
    volume, array = load(found, description_of["training"][0])
    assert np.allclose(nibabel.affines.voxel_sizes(volume.affine), (0.00025, 0.0005, 0.002))
    assert np.array_equal(volume.dataobj, array)
    assert array.shape == (8, 6, 3)
    assert (array[7, 0, 1], array[0, 0, 2]) == (5, 2)
    assert found is not None
    assert [notice.code for notice in found.notices] == ["geometry.no_orientation"]


def test_volumes_over_time_become_frames(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "a" / folder).mkdir(parents=True)
    moving = [np.full(GRID.shape, n, np.int16) for n in range(3)]
    drawn = [np.full(GRID.shape, n, np.uint8) for n in range(3)]
    for folder, arrays in (("images", moving), ("labels", drawn)):
        content = np.stack(arrays, axis=-1)
        nibabel.save(nibabel.Nifti1Image(content, GRID.affine), tmp_path / "a" / folder / "heart.nii.gz")
    found, description = gathered(tmp_path / "a")
    assert names(description) == ["heart_frame02", "heart_frame03"]
    volume, array = load(found, description["training"][1])
    assert (np.asarray(volume.dataobj).max(), array.max()) == (2, 2)


def test_volumes_of_masks_are_no_film_unless_it_is_said(tmp_path: Path) -> None:
    def write_4d(root: Path, word: str = "", unit: str | None = None) -> Path:
        for folder, dtype in (("images", np.int16), ("labels", np.uint8)):
            (root / folder).mkdir(parents=True)
            array = np.stack([block(n) for n in range(4)], axis=-1).astype(dtype)
            content = nibabel.Nifti1Image(array, GRID.affine)
            if unit:
                content.header.set_xyzt_units("mm", unit)
            nibabel.save(content, root / folder / f"brats{word}.nii.gz")
        return root

    message = refused(write_4d(tmp_path / "a"), "data.faults")
    assert "  labels.volumes  brats  the label map has 4 volumes of 0 and 1" in message
    assert len(gathered(write_4d(tmp_path / "b", unit="sec"))[1]["training"]) == 4
    assert len(gathered(write_4d(tmp_path / "c", "_cine"))[1]["training"]) == 4


def test_channels_of_films_are_told(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "labels/x.nii.gz")
    for name in ("images/x_0000", "images/x_0001", "labels/x"):
        (root / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.full((*GRID.shape, 5), 2, np.uint8), GRID.affine), root / f"{name}.nii.gz")
    (root / "images").rename(root / "imagesTr")
    (root / "labels").rename(root / "labelsTr")
    message = refused(root, "data.faults")
    assert (
        "partner.frames  x  it has 2 images with 5 and 5 frames, and 1 label maps with 5; expected one of both"
        in message
    )


def test_the_next_start_converts_what_changed_only(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/seg.nrrd", "p2/ct.nrrd", "p2/seg.nrrd")
    lines: list[str] = []
    into = tmp_path / "out"
    with with_segnets():
        gather(root, into, {}, lines.append)
        before = {path: path.stat().st_mtime_ns for path in into.rglob("*.nii.gz")}
        gather(root, into, {}, lines.append)
        assert {path: path.stat().st_mtime_ns for path in into.rglob("*.nii.gz")} == before
        (into / "labelsTr" / "p1_ct.nii.gz").unlink()
        write(root, "p2/ct.nrrd")
        gather(root, into, {}, lines.append)
        after = {path: path.stat().st_mtime_ns for path in into.rglob("*.nii.gz")}
        assert {path.name for path in after if after[path] != before[path]} == {"p1_ct.nii.gz", "p2_ct.nii.gz"}
        (root / "p1" / "seg.nrrd").unlink()
        gather(root, into, {}, lines.append)
    assert sorted(path.name for path in into.rglob("*.nii.gz")) == ["p2_ct.nii.gz"] * 2
    assert [line.split(" of ")[0] for line in lines] == ["converting 2", "converting 2"]


@pytest.mark.parametrize("listed", ["../thesis.docx", "{root}/thesis.docx", "imagesTr/../../thesis.docx"])
def test_a_record_from_elsewhere_removes_no_file(tmp_path: Path, listed: str) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/seg.nrrd")
    into = tmp_path / "data"
    (into / "imagesTr").mkdir(parents=True)
    (tmp_path / "thesis.docx").touch()
    case = {"key": "0", "files": [listed.format(root=tmp_path)], "channels": [], "notices": [], "empty": False}
    (into / "gathered.json").write_text(json.dumps({"version": 1, "cases": {"x": case}, "labels": {}}))
    with with_segnets():
        gather(root, into, {})
    assert (tmp_path / "thesis.docx").is_file()
    assert (into / "dataset.json").is_file()


@pytest.mark.parametrize("link", ["data", "data/imagesTr", "data/labelsTr"])
def test_no_case_is_written_through_a_link(tmp_path: Path, link: str) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/seg.nrrd")
    mine = write(tmp_path / "mine", "imagesTr/p1_ct.nii.gz", "labelsTr/p1_ct.nii.gz", "p1_ct.nii.gz")
    before = {path: path.read_bytes() for path in mine.rglob("*.gz")}
    (tmp_path / link).parent.mkdir(exist_ok=True)
    try:
        (tmp_path / link).symlink_to(mine, target_is_directory=True)
    except OSError:
        pytest.skip("this system allows no links")
    with with_segnets(), pytest.raises(OutputError, match="is a link to another folder"):
        gather(root, tmp_path / "data", {})
    assert {path: path.read_bytes() for path in mine.rglob("*.gz")} == before


def test_folders_named_like_people_in_dicom_are_numbered(tmp_path: Path) -> None:
    folders = ("DOE^JANE_1950", "ROE^RICHARD_1960")
    root = write(tmp_path / "a", *(f"{folder}/{name}.nrrd" for folder in folders for name in ("t1", "seg")))
    found, description = gathered(root)
    assert found is not None
    assert names(description) == ["case_0001", "case_0002"]
    everything = "".join(f"{path.name}{path.read_bytes()!r}" for path in found.folder.rglob("*") if path.is_file())
    assert "DOE" not in everything
    assert "JANE" not in everything
    (root / "ROE^RICHARD_1960" / "seg.nrrd").write_bytes(b"NRRD0004\nrubbish")
    assert "RICHARD" not in refused(root, "data.faults").replace(str(root), "")


@pytest.mark.parametrize("layout", ["nnunet", "bids", "folders", "list"])
def test_the_converted_data_set_declares_what_the_original_does(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "a"
    named = {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 7}, "regions_class_order": [4, 3]}
    files = [(f"images/sub-{n}_{s}.nrrd", f"labels/sub-{n}_{s}.nrrd") for n, s in ((1, "a"), (1, "b"), (2, "a"))]
    if layout == "nnunet":
        files = [
            (f"imagesTr/sub-{n}_{s}_0000.nrrd", f"labelsTr/sub-{n}_{s}.nrrd") for n, s in ((1, "a"), (1, "b"), (2, "a"))
        ]
        named |= {"channel_names": {"0": "CT"}}
    elif layout == "bids":
        files = [(f"sub-{n}/anat/sub-{n}_run-{s}_T1w.nii.gz", f"sub-{n}/anat/sub-{n}_run-{s}_label-{name}_mask.nii.gz")
                 for n, s in ((1, 1), (1, 2), (2, 1)) for name in ("whole", "core")]  # fmt: skip
    write(root, *dict.fromkeys(file for both in files for file in both))
    if layout == "bids":
        (root / "labels.json").write_text(json.dumps(named["labels"]))
    else:
        named["labelled"] = {"sub-2_a": ["whole"]}
        (root / "dataset.json").write_text(json.dumps(named))
    if layout == "list":
        rows = ["image,label,patient", *(f"{image},{label},{image[7:12]}" for image, label in files)]
        (root / "cases.csv").write_text("\n".join(rows))
        (root / "dataset.json").unlink()
        (root / "labels.json").write_text(json.dumps(named["labels"]))
    found, _ = gathered(root / "cases.csv" if layout == "list" else root)
    assert found is not None
    with with_segnets():
        from segnets.data import find_dataset

        source = find_dataset(root / "cases.csv" if layout == "list" else root, convertible=True)
        converted = find_dataset(found.folder)
    for name in ("labels", "ignored", "regions", "labelled", "channels"):
        assert getattr(source, name) == getattr(converted, name)
    groups = [list(dataset.patients.values()) for dataset in (source, converted)]
    assert [[one.index(who) for who in one] for one in groups] == [[0, 0, 2], [0, 0, 2]]


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


def test_faults_are_listed_all_at_once(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *(f"p{n}/{name}.nrrd" for n in range(4) for name in ("ct", "seg")))
    (root / "p0" / "ct.nrrd").write_bytes(b"NRRD0004\nrubbish")
    moved = Grid(GRID.shape, GRID.affine + np.array([[0, 0, 0, 0.7], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    SimpleITK.WriteImage(to_itk(labels().array, moved), str(root / "p1" / "seg.nrrd"))
    SimpleITK.WriteImage(to_itk(labels().array + np.float32(0.5), GRID), str(root / "p2" / "seg.nrrd"))
    message = refused(root, "data.faults")
    assert "3 faults in the data set (4 cases)" in message
    for code in ("file.bad_header", "geometry.other_grid", "labels.type"):
        assert message.count(f"  {code} ") == 1


def test_what_holds_no_pair_is_said(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p2/ct.nrrd")
    (root / "p1" / "table.xlsx").touch()
    message = refused(root, "dataset.unknown")
    assert "2 .nrrd: partner.no_label" in message
    assert "1 .xlsx: skip.not_an_image" in message


def test_a_volume_that_is_a_label_map_in_its_folder_is_no_image(tmp_path: Path) -> None:
    write_volume(image(), (tmp_path / "x.nii.gz"))
    root = write(tmp_path / "a", "p1/ct.nii.gz", "p1/masks/liver.nii.gz", "p2/ct.nii.gz", "p2/masks/liver.nii.gz")
    found, description = gathered(root)
    assert names(description) == ["p1_ct", "p2_ct"]
    assert found is not None
    assert found.passed_over == ()


def test_slices_with_pixels_of_different_sizes_are_told(tmp_path: Path) -> None:
    for name, size in (("x", 0.3), ("y", 0.9)):
        for folder in ("images", "labels"):
            (tmp_path / "a" / folder).mkdir(parents=True, exist_ok=True)
            array = np.eye(6, 7, dtype=np.uint8)
            affine = np.diag([size, size, 1, 1])
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "a" / folder / f"{name}.nii.gz")
    found, _ = gathered(tmp_path / "a")
    assert found is not None
    assert [str(notice).partition(" are")[0] for notice in found.notices] == [
        "data.pixel_size: pixels of 0.3 to 0.9 mm"
    ]


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 1)])
def test_single_slices_become_2d_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for folder, dtype in (("images", np.int16), ("labels", np.uint8)):
        (tmp_path / "a" / folder).mkdir(parents=True)
        array = (np.arange(np.prod(shape)).reshape(shape) % 3).astype(dtype) - (folder == "images")
        nibabel.save(nibabel.Nifti1Image(array.astype(dtype), np.eye(4)), tmp_path / "a" / folder / "x.nii.gz")
    found, description = gathered(tmp_path / "a")
    assert found is not None
    (entry,) = description["training"]
    assert entry == {"image": "./imagesTr/x.tif", "label": "./labelsTr/x.png"}
    expected = np.arange(42).reshape(7, 6).T % 3
    assert np.array_equal(np.asarray(Image.open(found.folder / entry["label"])), expected)
    assert np.array_equal(np.asarray(Image.open(found.folder / entry["image"])), expected - 1)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\ncat:0,128,0::\nbackground:0,0,0::\ndog:128,0,0::\n"),
        ("class_dict.csv", "name,r,g,b\nVoid,0,0,0\ncat,0,128,0\ndog,128,0,0\n"),
        ("colormap.txt", "cat,0,128,0\ndog,0,0,0\nbackground,128,0,0\n"),
        ("label_colors.txt", "0 128 0\tcat\n128 0 0\tdog\n"),
    ],
)
def test_label_maps_in_colours(tmp_path: Path, name: str, table: str) -> None:
    root = tmp_path / "a"
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    labels = np.zeros((6, 8), int)
    labels[:2], labels[3:5, 4:] = 1, 2
    colours = np.array(
        [(0, 0, 0) if "Void" in table or "background:0" in table else (0, 128, 0), (0, 128, 0), (128, 0, 0)]
    )
    if name == "colormap.txt":
        colours = np.array([(128, 0, 0), (0, 128, 0), (0, 0, 0)])
    Image.fromarray(np.full((6, 8), 9, np.uint8)).save(root / "JPEGImages" / "x.png")
    Image.fromarray(colours[labels].astype(np.uint8)).save(root / "SegmentationClass" / "x.png")
    (root / name).write_text(table)
    found, description = gathered(root)
    assert found is not None
    ignored = {"ignore": [255]} if "Void" in table else {}
    assert description["labels"] == {"background": 0, "cat": 1, "dog": 2} | ignored
    array = np.asarray(Image.open(found.folder / description["training"][0]["label"]))
    expected = labels if (colours[0] != (0, 128, 0)).any() else np.maximum(labels, 1)
    expected = np.where(labels == 0, 255, labels) if ignored else expected
    assert np.array_equal(array, expected)
    Image.fromarray(np.full((6, 8, 3), (7, 8, 9), np.uint8)).save(root / "SegmentationClass" / "x.png")
    assert "48 pixels in colours that the table lacks, such as (7, 8, 9)" in refused(root, "data.faults")


@pytest.fixture(scope="module")
def nrrd_balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases in folders with an NRRD file and a label map each."""
    balls = datasets.write_decathlon(tmp_path_factory.mktemp("balls") / "nifti", cases=6)
    root = tmp_path_factory.mktemp("data") / "nrrd"
    for path in sorted((balls / "imagesTr").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        (root / name).mkdir(parents=True)
        for folder, word in (("imagesTr", "scan"), ("labelsTr", "seg")):
            array = np.asarray(nibabel.load(balls / folder / path.name).dataobj)
            SimpleITK.WriteImage(to_itk(array, Grid(array.shape, np.eye(4))), str(root / name / f"{word}.nrrd"))
    return root


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    nrrd_balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (nrrd_balls / "case_00" / "letter.docx").touch()
    assert main(["train", str(nrrd_balls), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "converting 6 of 6 cases" in output
    assert "value   1 label 1: in 6 of 6 cases" in output
    assert "left    1 .docx: skip.not_an_image" in output
    assert f"--dataset_dir {tmp_path / 'out' / 'data'}" in output
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_converted_cases_is_planned_once(nrrd_balls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    choices = Choices(settings={"channels": ["scan"]})
    plan = plan_bundle(nrrd_balls, out, choices, report=lines.append)
    assert data_folder(nrrd_balls, out, plan) == out / "data"
    assert plan["dataset"]["cases"] == 6
    assert [row["value"] for row in plan["label table"]] == [1, 2]
    config = (out / "configs" / "train.yaml").read_text()
    assert "channels: null" in config  # the converted files need no such setting
    assert plan_bundle(nrrd_balls, out, choices, report=lines.append) == plan
    assert [line for line in lines if line.startswith("converting 6")] == ["converting 6 of 6 cases"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    (nrrd_balls / "case_05").rename(tmp_path / "case_05")
    os.utime(nrrd_balls / "case_00" / "scan.nrrd", (1, 1))
    with pytest.raises(OutputError, match="a data set of 6 cases, now another of 5"):
        plan_bundle(nrrd_balls, out, choices)
    (tmp_path / "case_05").rename(nrrd_balls / "case_05")
    for is_dry in (True, False):
        assert plan_bundle(nrrd_balls, out, choices, dry_run=is_dry, report=lines.append) == plan
    assert lines[-1].startswith("1 of 6 cases have changed or moved since they were converted")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    missing = out / "data" / "labelsTr" / "case_03.nii.gz"
    missing.unlink()
    plan_bundle(nrrd_balls, out, choices, dry_run=True)
    assert not missing.exists()
    plan_bundle(nrrd_balls, out, choices)
    assert missing.read_bytes() == before[missing][0]


def test_a_received_bundle_is_checked_before_anything_is_converted(nrrd_balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan_bundle(nrrd_balls, out, Choices())
    (out / "segnets" / "losses.py").write_text("print(1)")
    case = out / "data" / "imagesTr" / "case_00_scan.nii.gz"
    case.unlink()
    with pytest.raises(BundleError) as caught:
        plan_bundle(nrrd_balls, out, Choices())
    assert caught.value.code == "bundle.untrusted"
    assert not case.exists()


def test_no_file_is_locked_through_a_link(nrrd_balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json.unfinished").touch()
    (tmp_path / "thesis.docx").write_text("all of it")
    try:
        (out / "plan.json.lock").symlink_to(tmp_path / "thesis.docx")
    except OSError:
        pytest.skip("this system allows no links")
    with pytest.raises(OutputError, match="did not write"):
        plan_bundle(nrrd_balls, out, Choices())
    assert (tmp_path / "thesis.docx").read_text() == "all of it"


def test_only_one_process_plans_in_a_folder(nrrd_balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json.unfinished").touch()
    (out / "configs").mkdir()
    with FileLock(out / "plan.json.lock"):
        with pytest.raises(TrainingError) as caught:
            plan_bundle(nrrd_balls, out, Choices())
        assert caught.value.code == "run.in_use"
        assert (out / "configs").is_dir()
        assert not (out / "data").exists()
    with pytest.raises(BundleError):
        plan_bundle(nrrd_balls, out, Choices(network="Unet"))
    assert sorted(path.name for path in out.iterdir()) == ["data", "plan.json.unfinished"]


def test_converted_cases_stay_after_a_failure(nrrd_balls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    with pytest.raises(BundleError):
        plan_bundle(nrrd_balls, out, Choices(network="Unet"), report=lines.append)
    assert sorted(path.name for path in out.iterdir()) == ["data", "plan.json.unfinished"]
    plan_bundle(nrrd_balls, out, Choices(), report=lines.append)
    assert [line for line in lines if line.startswith("converting 6")] == ["converting 6 of 6 cases"]
    assert (out / "plan.json").is_file()


def test_an_archive_that_is_not_unpacked_says_why(tmp_path: Path) -> None:
    write(tmp_path / "a", *(f"p{n}/{name}.nrrd" for n in (1, 2) for name in ("ct", "ct_seg")))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../outside.txt", "x")
    with pytest.raises(TrainingError, match=r"archive\.unsafe"):
        gathered(tmp_path / "evil.zip")
    (tmp_path / "evil.zip").rename(tmp_path / "a" / "evil.zip")
    found, _ = gathered(tmp_path / "a")
    assert found is not None
    assert [(one.ending, one.code) for one in found.passed_over] == [(".zip", "archive.unsafe")]
    assert not (tmp_path.parent / "outside.txt").exists()
