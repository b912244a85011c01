"""Data as people have it becomes a data set that training reads, or a true message with a code."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import datasets
import nibabel
import numpy as np
import pytest
import SimpleITK
from gathering import GRID, gathered, image, labels, load, names, refused, write

from napari_seg.errors import TrainingError
from napari_seg.formats import archive as archive_module
from napari_seg.formats.itk import to_itk
from napari_seg.geometry import Grid
from napari_seg.training.gather.gather import Continued, gather
from napari_seg.training.segnets_modules import with_segnets


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
    assert not any("patient" in one for one in description["training"])  # each is one of its own
    rows[2] = rows[2].replace("Smith", "Miller")
    (root / "cases.csv").write_text("\n".join(rows))
    _, description = gathered(root / "cases.csv")
    assert [one["patient"] for one in description["training"]] == ["patient 1", "patient 1"]
    assert "iller" not in "".join(path.read_text() for path in found.folder.glob("*.json"))
    assert gathered(root)[1] == description  # the only list in the folder


def test_all_scans_of_a_patient_stay_together(tmp_path: Path) -> None:
    cases = ("sub-1", "sub-1_fu", "sub-2", "case3")
    root = write(tmp_path / "a", *(f"{folder}/{case}.nrrd" for folder in ("images", "labels") for case in cases))
    found, _ = gathered(root)
    assert found is not None
    with with_segnets():
        from segnets.data import find_dataset

        def patients() -> dict[str, str]:
            return {name: who for name, who in find_dataset(found.folder).patients.items()}

        planned = patients()
        assert planned["sub-1"] == planned["sub-1_fu"]
        assert len(set(planned.values())) == 3
        (found.folder / "labelsTr" / "sub-2.nii.gz").unlink()
        gather(root, found.folder, {}, continued=Continued(lambda *_: None, is_dry=False))
        assert (found.folder / "labelsTr" / "sub-2.nii.gz").is_file()
        assert patients() == planned


def test_channels_are_chosen_only_where_the_layout_leaves_a_choice(tmp_path: Path) -> None:
    root = datasets.write_decathlon(tmp_path / "a", cases=2)
    text = "found --channels T1w FLAIR for the layout decathlon, which has fixed channels; expected it for BIDS"
    assert refused(root, "dataset.channels", channels=["T1w", "FLAIR"]).startswith(text)
    with with_segnets():  # a training that was planned before goes on, and other data sets may use it
        for options in ({"continued": Continued(lambda *_: None, is_dry=True)}, {"own": tmp_path}):
            assert gather(root, tmp_path / "out", {"channels": ["T1w"]}, **options) is None
    root = write(tmp_path / "b", "images/x.nii.gz", "labels/x.nii.gz")
    assert "layout folders" in refused(root, "dataset.channels", channels=["T1w"])
    (root / "cases.csv").write_text("image,label\nimages/x.nii.gz,labels/x.nii.gz\n")
    assert gathered(root, channels=["image"], layout="list") == (None, {})
    assert gathered(root / "cases.csv", channels=["image"]) == (None, {})


def test_patients_in_names_of_files_are_those_of_their_folder(tmp_path: Path) -> None:
    cases = [f"{site}/sub-{n}_ses-{m}" for site in ("north", "south") for n in (1, 2) for m in (1, 2)]
    root = write(tmp_path / "a", *(f"{case}{end}.nrrd" for case in cases for end in ("", "_seg")))
    _, description = gathered(root)
    assert names(description)[0] == "north_sub-1_ses-1"
    assert [one["patient"] for one in description["training"]] == [f"patient {n}" for n in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_a_converted_list_keeps_its_split(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "x.nrrd", "y.nrrd", "x_seg.nrrd", "y_seg.nrrd")
    table = "image,label,split,fold\nx.nrrd,x_seg.nrrd,train,3\ny.nrrd,y_seg.nrrd,test,\n"
    (root / "cases.csv").write_text(table)
    found, _ = gathered(root)
    assert found is not None
    with with_segnets():
        from segnets.data import find_dataset

        dataset = find_dataset(found.folder)
        assert dataset.parts == {"x": "training", "y": "test"}
        assert dataset.folds == {"x": 0}
        stated: list[Any] = []
        continued = Continued(lambda found, _: stated.append(found), is_dry=True)
        for fold in (3, 4):
            (root / "cases.csv").write_text(table.replace("3", str(fold)))
            gather(root, found.folder, {}, continued=continued)
        (root / "cases.csv").write_text(table.replace("test", "val"))
        gather(root, found.folder, {}, continued=continued)
        assert [one == found.identity for one in stated] == [True, True, False]  # so its plan can be continued


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("split x.nrrd,x_seg.nrrd,trn y.nrrd,y_seg.nrrd,tst", "its split has words such as 'trn'"),
        ("patient,subject x.nrrd,x_seg.nrrd,1,1 y.nrrd,y_seg.nrrd,1,2", "patient and subject group the cases"),
    ],
)
def test_a_list_that_contradicts_itself_is_refused_unless_it_was_planned(tmp_path: Path, rows: str, text: str) -> None:
    root = write(tmp_path / "a", "x.nrrd", "y.nrrd", "x_seg.nrrd", "y_seg.nrrd")
    (root / "cases.csv").write_text("image,label," + rows.replace(" ", "\n"))
    assert text in refused(root / "cases.csv", "data.faults")
    with with_segnets():
        gather(root / "cases.csv", tmp_path / "b", {}, continued=Continued(lambda *_: None, is_dry=False))
    assert (tmp_path / "b" / "dataset.json").is_file()


def test_folders_of_parts_are_the_split(tmp_path: Path) -> None:
    files = [f"{part}/{n}{end}.nrrd" for part in ("train", "Validation", "test") for n in "ab" for end in ("", "_seg")]
    root = write(tmp_path / "a", *files)
    found, description = gathered(root)
    assert found is not None
    assert [entry["split"] for entry in description["training"]] == [
        part for part in ("validation", "test", "training") for _ in "ab"
    ]
    shutil.rmtree(found.folder)  # as before a model is shared
    stated: list[Any] = []
    with with_segnets():
        gather(root, found.folder, {}, continued=Continued(lambda found, _: stated.append(found), is_dry=True))
    assert stated == [found.identity]
    found, description = gathered(write(root, "more/c.nrrd", "more/c_seg.nrrd"))
    assert found is not None
    assert "split" not in description["training"][0]
    assert found.unused == (
        "the folders of parts are not used as the split, because they hold 2 cases for validation, 1 case for none of "
        "them, 2 cases for test, 2 cases for training",
    )


def test_all_cases_in_the_folder_of_one_patient_are_a_note(tmp_path: Path) -> None:
    root = write(tmp_path / "a", *(f"rat1/day{n}/x{end}.nrrd" for n in (1, 2) for end in ("", "_seg")))
    found, _ = gathered(root)
    assert found is not None
    (note,) = found.unused
    assert note.startswith("all cases lie in a folder that is named as a patient, but count as different patients")


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
    assert "2 .nrrd (partner.no_label: " in message
    assert "1 .xlsx (skip.not_an_image: " in message


def test_a_listed_folder_that_is_gone_is_named_with_its_list(tmp_path: Path) -> None:
    root = datasets.write_decathlon(tmp_path / "a", cases=2)
    shutil.rmtree(root / "labelsTr")
    message = refused(root, "dataset.no_cases")
    assert (
        "found 2 .nii.gz (partner.no_label: An image has no label map); expected the files that dataset.json lists"
        in message
    )
    assert "of which 2 label maps and 0 images do not exist; restore them" in message
    assert "not_an_image" not in message


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
