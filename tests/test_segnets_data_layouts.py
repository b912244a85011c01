"""Test that every layout gives the same data list."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from empty_sets import code_of, decathlon, names, touch

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data import Dataset, find_dataset, images
from segnets.errors import TrainingError


def test_decathlon(tmp_path: Path) -> None:
    decathlon(tmp_path, 11)
    (tmp_path / "labelsTr" / "c1.nii.gz").unlink()
    dataset = find_dataset(tmp_path)
    assert dataset.layout == "decathlon"
    assert names(dataset.cases) == ["c0", *(f"c{n}" for n in range(2, 11))]  # as listed, not as sorted
    missing = {"list": "dataset.json", "missing": ["./labelsTr/c1.nii.gz"]}
    assert dataset.unpaired == ({"name": "c1", "image": str(tmp_path / "imagesTr" / "c1.nii.gz"), **missing},)
    assert dataset.labels == {"Anterior": (1,), "Posterior": (2,)}
    assert dataset.channels == ("MRI",)
    assert not dataset.is_2d


@pytest.mark.parametrize(
    "listed",
    [
        ".\\imagesTr\\c0.nii.gz",
        "imagesTr\\c0.nii.gz",
        "D:\\data\\Task04\\imagesTr\\c0.nii.gz",
        "\\\\server\\share\\imagesTr\\c0.nii.gz",
        "D:/Task04/imagesTr/c0.nii.gz",
        "/elsewhere/Task04/imagesTr/c0.nii.gz",
    ],
)
def test_a_list_that_was_written_on_another_system(tmp_path: Path, listed: str) -> None:
    decathlon(tmp_path, 2)
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text.replace('"./imagesTr/c0.nii.gz"', json.dumps(listed)))
    dataset = find_dataset(tmp_path)
    assert (names(dataset.cases), dataset.unpaired) == (["c0", "c1"], ())
    assert dataset.cases[0]["image"] == str(tmp_path / "imagesTr" / "c0.nii.gz")


@pytest.mark.parametrize(("first", "second"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_the_same_in_either_unicode_form(tmp_path: Path, first: str, second: str) -> None:
    name = "Patiënt é 1"
    image, label = unicodedata.normalize(first, name), unicodedata.normalize(second, name)
    assert image != label
    touch(tmp_path / "folders", f"images/{image}.nii.gz", f"labels/{label}_seg.nii.gz")
    touch(tmp_path / "nnunet", f"imagesTr/{image}_0000.nii.gz", f"labelsTr/{label}.nii.gz")
    touch(tmp_path / "decathlon", f"imagesTr/{image}.nii.gz", f"labelsTr/{image}.nii.gz")
    listing = {"image": f"imagesTr/{label}.nii.gz", "label": f"labelsTr/{label}.nii.gz"}
    (tmp_path / "decathlon" / "dataset.json").write_text(json.dumps({"training": [listing]}))
    for layout in ("folders", "nnunet", "decathlon"):
        dataset = find_dataset(tmp_path / layout)
        assert (dataset.layout, dataset.unpaired) == (layout, ())
        assert names(dataset.cases) == [unicodedata.normalize("NFC", name)]


@pytest.mark.parametrize(
    ("images", "labels", "listed"),
    [
        (["a.nrrd", "b.nrrd"], ["a.nrrd", "b.mha"], "3 .nrrd, 1 .mha"),
        (["a.dcm", "b"], ["a.json", "b.json"], "2 .json, 1 .dcm, 1 files without an ending"),
        (["a/1.dcm", "b/1.dcm"], ["a.webp"], "2 folders, 1 .webp"),
        (["a.nii.gz"], ["a.mha.gz"], "1 .mha.gz"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, images: list[str], labels: list[str], listed: str) -> None:
    touch(tmp_path, *(f"images/{name}" for name in images), *(f"labels/{name}" for name in labels))
    with pytest.raises(TrainingError, match=rf"dataset\.no_cases: .*not read were {re.escape(listed)}; .*\.nii\.gz"):
        find_dataset(tmp_path)


def test_volumes_that_can_be_converted_are_found_on_request(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{name}" for folder in ("images", "labels") for name in ("a.nii", "a.nrrd", "b.mha")))
    assert names(find_dataset(tmp_path).cases) == ["a"]
    found = find_dataset(tmp_path, convertible=True)
    assert [(case["name"], Path(case["image"]).name) for case in found.cases] == [("a", "a.nii"), ("b", "b.mha")]
    assert found.unread == {".nrrd": 2}
    touch(tmp_path / "nnunet", "imagesTr/c_0000.nrrd", "imagesTr/c_0001.nrrd", "labelsTr/c.seg.nrrd")
    found = find_dataset(tmp_path / "nnunet", convertible=True)
    assert (found.layout, len(found.cases[0]["image"])) == ("nnunet", 2)


def test_a_folder_beside_images_is_not_counted(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii", "images/more/b.nii", "labels/a.nii")
    assert find_dataset(tmp_path).unread == {}


def test_sidecars_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/a.json", "images/b.mha", "labels/a.nii.gz", "labels/colours.txt")
    dataset = find_dataset(tmp_path)
    assert names(dataset.cases) == ["a"]
    assert dataset.unread == {".mha": 1}


def test_nnunet_with_two_channels(tmp_path: Path) -> None:
    scans = [f"imagesTr/case_{n}_000{channel}.nii.gz" for n in range(3) for channel in (1, 0)]
    touch(tmp_path, *scans, *(f"labelsTr/case_{n}.nii.gz" for n in range(4)), "imagesTr/._case_0_0000.nii.gz")
    dataset = find_dataset(tmp_path)
    assert dataset.layout == "nnunet"
    assert names(dataset.cases) == ["case_0", "case_1", "case_2"]
    assert [Path(path).name for path in dataset.cases[0]["image"]] == ["case_0_0000.nii.gz", "case_0_0001.nii.gz"]
    assert names(dataset.unpaired) == ["case_3"]
    description = {
        "channel_names": {"1": "FLAIR", "0": "T1"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "training": [{"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = find_dataset(tmp_path)
    assert dataset.layout == "nnunet"  # version 1 lists images that are not there under these names
    assert dataset.channels == ("T1", "FLAIR")
    assert dataset.labels == {"whole": (1, 2), "core": (2,)}
    assert dataset.ignored == (3,)


def test_bids(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"sub-01/ses-{n}/anat/sub-01_ses-{n}_{suffix}.nii.gz" for n in (1, 2) for suffix in ("T1w", "FLAIR")),
        "sub-02/anat/sub-02_acq-fast_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        *(f"derivatives/manual/sub-01/ses-{n}/anat/sub-01_ses-{n}_space-orig_dseg.nii.gz" for n in (1, 2)),
        "derivatives/manual/sub-02/anat/sub-02_acq-fast_desc-x_dseg.nii.gz",
        "derivatives/manual/sub-04/anat/sub-04_dseg.nii.gz",
    )
    (tmp_path / "derivatives/manual/dseg.tsv").write_text("index\tname\n0\tbackground\n17\tLeft\n53\tRight\n")
    dataset = find_dataset(tmp_path)
    assert dataset.layout == "bids"
    assert names(dataset.cases) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_acq-fast"]
    assert Path(dataset.cases[2]["image"]).name == "sub-02_acq-fast_T1w.nii.gz"
    assert Path(dataset.cases[0]["label"]).name == "sub-01_ses-1_space-orig_dseg.nii.gz"
    assert sorted(names(dataset.unpaired)) == ["sub-03", "sub-04"]
    assert dataset.labels == {"Left": (17,), "Right": (53,)}
    assert dataset.channels == ("T1w",)
    both = find_dataset(tmp_path, channels=["T1w", "FLAIR"]).cases[0]["image"]
    assert [Path(path).name for path in both] == ["sub-01_ses-1_T1w.nii.gz", "sub-01_ses-1_FLAIR.nii.gz"]

    touch(tmp_path, "derivatives/napari-seg/sub-01/ses-1/anat/sub-01_ses-1_seg-m_desc-T1w_dseg.nii.gz")
    assert find_dataset(tmp_path).cases == dataset.cases  # results are no references
    touch(tmp_path, "derivatives/other/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz")
    assert code_of(tmp_path) == "dataset.ambiguous"
    assert names(find_dataset(tmp_path, labels_dir="derivatives/other").cases) == ["sub-01_ses-1"]


def test_tables_of_bids_name_the_label_maps_of_their_own_derivative(tmp_path: Path) -> None:
    drawn = "derivatives/manual/sub-1/anat/sub-1_desc-manual_dseg.nii.gz"
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", drawn, "derivatives/fs/sub-1/anat/sub-1_T1w.nii.gz")
    for place in ("derivatives/fs/desc-aseg_dseg.tsv", "derivatives/manual/desc-aseg_dseg.tsv", "sourcedata/dseg.tsv"):
        path = touch(tmp_path, place) / place
        path.write_text("index\tname\n1\tLeft-Cerebral-Exterior\n2\tLeft-Cerebral-White-Matter\n")
    assert find_dataset(tmp_path).labels == {}
    (tmp_path / "derivatives/manual/sub-1/anat/sub-1_desc-manual_dseg.tsv").write_text("index\tname\n1\tlesion\n")
    assert find_dataset(tmp_path).labels == {"lesion": (1,)}
    (tmp_path / "derivatives/fs/dseg.tsv").write_text("index\tname\n7\tlesion\n")
    assert find_dataset(tmp_path, labels_dir="derivatives/manual").labels == {"lesion": (1,)}
    touch(tmp_path, "sub-2/anat/sub-2_T1w.nii.gz", "derivatives/manual/sub-2/anat/sub-2_desc-manual_dseg.nii.gz")
    for text in ("2\tlesion\n", "1\tlésion\n"):  # another value; no UTF-8
        (tmp_path / "derivatives/manual/desc-manual_dseg.tsv").write_text(f"index\tname\n{text}", encoding="latin-1")
        assert code_of(tmp_path) == "dataset.bad_table"


@pytest.mark.parametrize(
    ("drawn", "labels"),
    [
        ("derivatives/labels/sub-{0}/anat/sub-{0}_T2w_label-lesion_seg.nii.gz", {"lesion": (1,)}),
        ("derivatives/labels/sub-{0}/anat/sub-{0}_T2w_seg-manual.nii.gz", {}),
        ("sub-{0}/anat/sub-{0}_space-orig_label-L_desc-T1lesion_mask.nii.gz", {"L": (1,)}),
        ("derivatives/x/sub-{0}/anat/sub-{0}_mask.nii.gz", {}),
    ],
)
def test_bids_with_other_suffixes(tmp_path: Path, drawn: str, labels: dict[str, tuple[int, ...]]) -> None:
    touch(tmp_path, *(f"sub-{n}/anat/sub-{n}_{suffix}.nii.gz" for n in (1, 2) for suffix in ("T1w", "T2w")))
    touch(tmp_path, *(drawn.format(n) for n in (1, 2)), "derivatives/x/sub-1/anat/sub-1_desc-brain_mask.nii.gz")
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, names(dataset.cases), dataset.unpaired) == ("bids", ["sub-1", "sub-2"], ())
    assert dataset.channels == (("T2w",) if "T2w" in drawn else ("T1w",))
    assert dataset.labels == labels
    # a discrete segmentation comes before masks
    touch(tmp_path, "derivatives/y/sub-1/anat/sub-1_dseg.nii.gz")
    assert [Path(case["label"]).name for case in find_dataset(tmp_path).cases] == ["sub-1_dseg.nii.gz"]


def test_bids_with_a_mask_per_structure(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    touch(tmp_path, *(f"derivatives/x/sub-1/anat/sub-1_label-{name}_mask.nii.gz" for name in ("GM", "WM")))
    assert code_of(tmp_path) == "dataset.ambiguous"
    (case,) = find_dataset(tmp_path, convertible=True).cases
    assert [Path(path).name for path in case["label"]] == ["sub-1_label-GM_mask.nii.gz", "sub-1_label-WM_mask.nii.gz"]


def test_voc_with_lists_and_class_names(tmp_path: Path) -> None:
    for n in range(4):
        touch(tmp_path, f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png")
    touch(tmp_path, "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("0\n2\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("9\n\n")
    assert find_dataset(tmp_path).parts == {"0": "training", "2": "training"}
    (tmp_path / "ImageSets/Segmentation/test.txt").write_text("2\n3\n")
    assert find_dataset(tmp_path).parts == {"0": "training", "2": "training", "3": "test"}
    (tmp_path / "ImageSets/Segmentation/test.txt").unlink()
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ncell\nnucleus\n")
    dataset = find_dataset(tmp_path)
    assert (names(dataset.cases), names(dataset.unpaired)) == (["0", "2"], ["9"])
    assert dataset.labels == {"cell": (1,), "nucleus": (2,)}
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n")
    assert find_dataset(tmp_path).labels == {"cat": (1,)}
    (tmp_path / "labels.json").write_text('{"1": "dog", "ignore": 7}')
    assert find_dataset(tmp_path).labels == {"dog": (1,)}
    assert find_dataset(tmp_path).ignored == (255, 7)


def test_the_classes_of_the_original_voc_are_those_of_its_lists(tmp_path: Path) -> None:
    touch(tmp_path, "JPEGImages/1.jpg", "SegmentationClass/1.png")
    classes = [f"{letter}thing" for letter in "abcdefghijklmnopqrst"]
    touch(tmp_path, *(f"ImageSets/Main/{name}_{part}.txt" for name in classes for part in ("train", "trainval")))
    assert find_dataset(tmp_path).labels == {name: (n,) for n, name in enumerate(classes, 1)}


@pytest.mark.parametrize(
    ("table", "channels"),
    [
        ("image,label\nx/a.nii.gz,x/a_seg.nii.gz\n", ()),
        ("x/a.nii.gz;x/a_seg.nii.gz\n\n", ()),
        ("Subject\tT1\tFLAIR\tMask_Path\n7\tx/a.nii.gz\tx/b.nii.gz\tx\\a_seg.nii.gz\n", ("t1", "flair")),
        ("\ufeffimage_0,image_1,segmentation,age\nx/a.nii.gz,x/b.nii.gz,x/a_seg.nii.gz,61\n", ("image 0", "image 1")),
    ],
)
def test_tables_of_paths(tmp_path: Path, table: str, channels: tuple[str, ...]) -> None:
    touch(tmp_path, "x/a.nii.gz", "x/b.nii.gz", "x/a_seg.nii.gz")
    (tmp_path / "cases.csv").write_text(table)
    dataset = find_dataset(tmp_path / "cases.csv")
    assert (dataset.layout, names(dataset.cases), dataset.channels) == ("list", ["a"], channels)
    (case,) = dataset.cases
    assert Path(case["label"]).name == "a_seg.nii.gz"
    assert len(case["image"]) == 2 if channels else Path(case["image"]).name == "a.nii.gz"
    assert dataset.patients == {"a": "7" if "Subject" in table else "a"}


def test_a_table_in_another_encoding_is_found_in_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "Z\xfcrich/a.nii.gz", "Z\xfcrich/a_seg.nii.gz")
    table = "image;label;Klinik\nZ\xfcrich/a.nii.gz;Z\xfcrich/a_seg.nii.gz;M\xfcnchen\n"
    (tmp_path / "cases.csv").write_bytes(table.replace("Klinik", "K\xf6rper").encode("latin-1"))
    assert find_dataset(tmp_path) == replace(find_dataset(tmp_path / "cases.csv"), root=tmp_path)
    assert names(find_dataset(tmp_path).cases) == ["a"]


@pytest.mark.parametrize("listed", ["{0}/a.nii.gz", "../own/a.nii.gz", "x/../../own/a.nii.gz", "..\\own\\a.nii.gz"])
@pytest.mark.parametrize("kind", ["dataset.json", "cases.json", "cases.csv"])
def test_a_list_in_a_folder_of_someone_else_reads_no_other_files(tmp_path: Path, listed: str, kind: str) -> None:
    own, folder = tmp_path / "own", touch(tmp_path / "received", "b.nii.gz", "a_seg.nii.gz", "b_seg.nii.gz", "x/y")
    touch(own, "a.nii.gz")
    image = listed.format(own)
    entries = [{"image": name, "label": f"{n}_seg.nii.gz"} for n, name in (("a", image), ("b", "b.nii.gz"))]
    rows = ["image,label", *(f"{entry['image']},{entry['label']}" for entry in entries)]
    (folder / kind).write_text("\n".join(rows) if kind == "cases.csv" else json.dumps({"training": entries}))
    assert code_of(folder) == "dataset.outside"
    assert find_dataset(folder / kind).cases[0]["image"] == str(
        folder / image.replace("\\", "/")
    )  # the user's own list


def test_parts_of_a_table_are_used(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}{end}.nii.gz" for n in range(4) for end in ("", "_seg")))

    def found(title: str, *words: str) -> Dataset:
        rows = [f"{n}.nii.gz,{n}_seg.nii.gz,{word}" for n, word in enumerate(words)]
        (tmp_path / "cases.csv").write_text("\n".join([f"image,label,{title}", *rows]))
        return find_dataset(tmp_path)

    dataset = found("Split,fold", "train,9", "Test,2", "VAL,7", "testing,9")
    assert dataset.parts == {"0": "training", "1": "test", "2": "validation", "3": "test"}
    assert dataset.folds == {"0": 2, "1": 0, "2": 1, "3": 2}
    assert found("set", "A", "B", "B", "A").parts == {}
    with pytest.raises(TrainingError, match=r"dataset\.stated: cases\.csv: line 4 has the split 'dev'; expected train"):
        found("set", "train", "test", "dev")


def test_declarations_of_a_data_list_belong_to_its_cases(tmp_path: Path) -> None:
    """A list alone, several channels, numbered cases."""
    touch(tmp_path, *(f"{n}/{name}.nii.gz" for n in (1, 2) for name in ("a_0000", "a_0001", "seg")))
    files = [([f"{n}/a_0000.nii.gz", f"{n}/a_0001.nii.gz"], f"{n}/seg.nii.gz") for n in (1, 2)]
    listing = [{"image": images, "label": label} for images, label in files]
    listing[1] |= {"labelled": [2], "fold": 3, "split": "test"}
    listing[0] |= {"fold": 10, "split": "training"}
    for content in (listing, {"training": listing, "labels": {"x": [1, 2], "y": 2}, "regions_class_order": [7, 8]}):
        (tmp_path / "cases.json").write_text(json.dumps(content))
        for where in (tmp_path, tmp_path / "cases.json"):
            dataset = find_dataset(where)
            assert dataset.labelled == {"case_0002": (2,)}
            assert dataset.folds == {"case_0001": 1, "case_0002": 0}
            assert dataset.parts == {"case_0001": "training", "case_0002": "test"}
    assert dataset.regions == {"x": 7, "y": 8}
    (tmp_path / "cases.json").write_text(json.dumps([listing[0], listing[1] | {"labelled": None}]))
    assert code_of(tmp_path) == "dataset.bad_json"


@pytest.mark.parametrize(
    "table", ["", "name\na\n", "image,mask\n", "a,b\n1,2\n", "image,label\nx.nii,\n", "label,mask\n1.nii,2.nii\n"]
)
def test_tables_that_list_no_cases_are_refused(tmp_path: Path, table: str) -> None:
    (tmp_path / "cases.csv").write_text(table)
    assert code_of(tmp_path / "cases.csv") == "dataset.bad_table"


def test_data_lists_as_monai_reads_them(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in ("a", "b", "c", "a_l", "b_l")))
    listing = {
        "training": [{"image": ["a.nii.gz", "c.nii.gz"], "label": "a_l.nii.gz", "fold": 0, "patient": "x"}],
        "validation": [{"image": ["b.nii.gz", "c.nii.gz"], "label": "b_l.nii.gz", "patient": "x"}],
        "testing": [{"image": "c.nii.gz"}],
        "labels": {"0": "background", "1": "front"},
    }
    (tmp_path / "folds.json").write_text(json.dumps(listing))
    for where in (tmp_path, tmp_path / "folds.json"):
        dataset = find_dataset(where)
        assert (dataset.layout, names(dataset.cases)) == ("list", ["a", "b"])
        assert dataset.labels == {"front": (1,)}
        assert dataset.patients == {"a": "x", "b": "x"}
        assert dataset.parts == {"a": "training", "b": "validation"}
    (tmp_path / "cases.json").write_text(json.dumps([{"image": "b.nii.gz", "label": "b_l.nii.gz"}]))
    assert names(find_dataset(tmp_path / "cases.json").cases) == ["b"]
    assert code_of(tmp_path) == "dataset.unknown"  # which of the two lists is not known
    assert code_of(tmp_path, "list") == "dataset.ambiguous"


def test_different_images_of_one_name_are_numbered_and_one_image_twice_is_not(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}/{name}.nii.gz" for n in (1, 2) for name in ("ct", "seg")))
    rows = [f"{n}/ct.nii.gz,{n}/seg.nii.gz" for n in (1, 2)]
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    assert names(find_dataset(tmp_path / "cases.csv").cases) == ["case_0001", "case_0002"]
    (tmp_path / "cases.csv").write_text("\n".join([rows[0], rows[0]]))
    assert names(find_dataset(tmp_path / "cases.csv").cases) == ["ct", "ct"]


def test_only_the_test_part_of_voc_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{n}.png" for n in range(3) for folder in ("JPEGImages", "SegmentationClass")))
    touch(tmp_path, "ImageSets/Segmentation/test.txt").joinpath("ImageSets/Segmentation/test.txt").write_text("1\n")
    assert find_dataset(tmp_path).parts == {"0": "training", "1": "test", "2": "training"}


def test_voc(tmp_path: Path) -> None:
    touch(
        tmp_path, *(f"JPEGImages/200{n}.jpg" for n in range(4)), *(f"SegmentationClass/200{n}.png" for n in (1, 2, 7))
    )
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.is_2d, dataset.ignored) == ("voc", True, (255,))
    assert names(dataset.cases) == ["2001", "2002"]
    assert names(dataset.unpaired) == ["2007"]  # images without a label map are usual there


def test_plain_folders_whose_names_carry_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{name}" for name in ("a.png", "b.tif", "c_image.PNG", "img_0001.png")))
    touch(tmp_path, *(f"labels/{name}" for name in ("a_seg.png", "b-mask.png", "c_label.png", "img_0001.png")))
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.is_2d, dataset.unpaired) == ("folders", True, ())
    assert names(dataset.cases) == ["a", "b", "c", "img_0001"]
    (tmp_path / "images").rename(tmp_path / "sem")
    (tmp_path / "labels").rename(tmp_path / "drawn")
    assert code_of(tmp_path) == "dataset.unknown"
    assert find_dataset(tmp_path, images_dir="sem", labels_dir=tmp_path / "drawn").cases[1] == {
        "name": "b",
        "image": str(tmp_path / "sem" / "b.tif"),
        "label": str(tmp_path / "drawn" / "b-mask.png"),
    }


def test_plain_folders_with_a_file_a_channel(tmp_path: Path) -> None:
    touch(tmp_path, "images/x_0000.nii.gz", "images/x_0001.nii.gz", "labels/x_seg.nii.gz")
    (case,) = find_dataset(tmp_path).cases
    assert case["name"] == "x"
    assert len(case["image"]) == 2


def test_folders_without_a_data_set_are_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path / "nowhere") == "dataset.missing"
    assert code_of(tmp_path) == "dataset.unknown"
    assert code_of(tmp_path, "medical") == "dataset.unknown"
    touch(tmp_path, "images/a.png", "labels/b.png")
    assert code_of(tmp_path) == "dataset.no_cases"
    decathlon(tmp_path, 2)
    touch(tmp_path, "JPEGImages/a.jpg", "SegmentationClass/a.png")
    assert code_of(tmp_path) == "dataset.ambiguous"
    assert names(find_dataset(tmp_path, "voc").cases) == ["a"]
    (tmp_path / "dataset.json").write_text("{")
    assert code_of(tmp_path, "decathlon") == "dataset.bad_json"


def test_images_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz")
    assert names(images(tmp_path)) == ["a_0000", "a_0001", "b_0000"]
    grouped = images(tmp_path, num_channels=2)
    assert [(case["name"], len(case["image"])) for case in grouped] == [("a", 2), ("b", 1)]
    frames = touch(tmp_path / "frames", *(f"frame_{n:04d}.png" for n in range(4)))
    assert names(images(frames, num_channels=3)) == [f"frame_{n:04d}" for n in range(4)]
    (frames / "frame_0003.png").unlink()
    assert len(images(frames, num_channels=3)) == 3
    for channels in (2, 3):  # 2D images in nnU-Net's layout
        folder = touch(tmp_path / str(channels), *(f"c{n}_{k:04d}.png" for n in range(2) for k in range(channels)))
        grouped = images(folder, num_channels=channels)
        assert [(case["name"], len(case["image"])) for case in grouped] == [("c0", channels), ("c1", channels)]
    in_colours = touch(tmp_path / "colours", "c0_0000.png", "c1_0000.png")
    assert names(images(in_colours, num_channels=3)) == ["c0_0000", "c1_0000"]
    touch(tmp_path, "imagesTs/c.nii")
    assert images(tmp_path) == [{"name": "c", "image": str(tmp_path / "imagesTs" / "c.nii")}]
    (tmp_path / "empty").mkdir()
    assert code_of(tmp_path / "empty", call=images) == "dataset.no_images"


@pytest.mark.parametrize(
    "name",
    [
        *("$__import__('os').system('x')", "@bundle_root", "%train", " $x", "a\nb", "a\x07", "a\ud800"),
        *("_target_", "_disabled_", "", "  ", "x" * 201),
    ],
)
def test_names_that_a_config_would_run_are_refused(tmp_path: Path, name: str) -> None:
    decathlon(tmp_path, 2)
    description = json.loads((tmp_path / "dataset.json").read_text())
    for changed in ({"labels": {"0": "background", "1": name}}, {"labels": {name: 1}}, {"modality": {"0": name}}):
        (tmp_path / "dataset.json").write_text(json.dumps(description | changed))
        assert code_of(tmp_path) == "dataset.bad_name"
    touch(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_dseg.nii")
    if name == name.strip() and name and "\ud800" not in name:
        (tmp_path / "bids" / "dseg.tsv").write_text(f'index\tname\n1\t"{name}"\n')
        assert code_of(tmp_path / "bids") == "dataset.bad_name"


@pytest.mark.parametrize(
    "labels",
    [
        '{"a": 1e999}',
        '{"a": NaN}',
        '{"a": 1.5}',
        '{"a": true}',
        '{"a": null}',
        '{"a": [[1]]}',
        '{"1000000000000": "a"}',
    ],
)
def test_label_values_are_integers_that_a_label_map_can_hold(tmp_path: Path, labels: str) -> None:
    decathlon(tmp_path, 1)
    description = json.loads((tmp_path / "dataset.json").read_text()) | {"labels": "LABELS"}
    (tmp_path / "dataset.json").write_text(json.dumps(description).replace('"LABELS"', labels))
    assert code_of(tmp_path) == "dataset.bad_json"


@pytest.mark.parametrize("channels", ["MRI", {"x": "MRI"}, {"0": {"$x": 1}}, 3, [["MRI"]]])
@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_channels_in_another_form_are_refused(tmp_path: Path, channels: object, key: str) -> None:
    decathlon(tmp_path, 1)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description = {name: value for name, value in description.items() if name != "modality"} | {key: channels}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "imagesTr" / "c0.nii.gz").rename(tmp_path / "imagesTr" / "c0_0000.nii.gz")
    assert code_of(tmp_path, "nnunet") == "dataset.bad_json"


def test_channels_may_be_a_list(tmp_path: Path) -> None:
    decathlon(tmp_path, 1)
    description = json.loads((tmp_path / "dataset.json").read_text()) | {"modality": ["MRI"]}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert find_dataset(tmp_path).channels == ("MRI",)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"training": 5}', '{"training": {"a": 1}}', '{"training": "abc"}'])
def test_a_dataset_json_in_another_form_is_refused(tmp_path: Path, text: str) -> None:
    decathlon(tmp_path, 1)
    (tmp_path / "dataset.json").write_text(text)
    assert code_of(tmp_path, "decathlon") == "dataset.bad_json"


def test_probabilities_in_bids_are_found_if_they_are_asked_for(tmp_path: Path) -> None:
    for sub in ("sub-1", "sub-2"):
        touch(
            tmp_path,
            *(f"{sub}/anat/{sub}_{end}.nii.gz" for end in ("T1w", "dseg", "label-GM_probseg", "label-WM_probseg")),
        )
    assert {Path(case["label"]).name for case in find_dataset(tmp_path).cases} == {
        "sub-1_dseg.nii.gz",
        "sub-2_dseg.nii.gz",
    }
    found = find_dataset(tmp_path, soft=True, convertible=True)
    assert (found.layout, found.soft, names(found.cases)) == ("bids", True, ["sub-1", "sub-2"])
    assert [Path(path).name for path in found.cases[0]["label"]] == [
        "sub-1_label-GM_probseg.nii.gz",
        "sub-1_label-WM_probseg.nii.gz",
    ]
