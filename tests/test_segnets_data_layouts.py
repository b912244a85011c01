"""Every layout gives the same kind of data list, labels are mapped by name, and no patient is in two parts."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from napari_seg.bundles.spec import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data import Dataset, MapLabelsd, datalist, find_dataset, images, label_values
from segnets.errors import TrainingError

HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "hippocampus"
CLASSES = {"0": "background", "1": "anterior hippocampus", "2": "posterior hippocampus"}


def touch(root: Path, *names: str) -> Path:
    """Empty files: finding a data set opens no scan."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def code_of(*arguments: object, call: object = find_dataset, **options: object) -> str:
    with pytest.raises(TrainingError) as caught:
        call(*arguments, **options)
    assert str(caught.value) == f"{caught.value.code}: {caught.value.message}"
    return caught.value.code


def names(cases: object) -> list[str]:
    return [case["name"] for case in cases]


def decathlon(root: Path, count: int) -> Path:
    listing = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(count)]
    touch(root, *(path for pair in listing for path in pair.values()))
    description = {
        "training": listing,
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "modality": {"0": "MRI"},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_decathlon(tmp_path: Path) -> None:
    decathlon(tmp_path, 11)
    (tmp_path / "labelsTr" / "c1.nii.gz").unlink()
    dataset = find_dataset(tmp_path)
    assert dataset.layout == "decathlon"
    assert names(dataset.cases) == ["c0", *(f"c{n}" for n in range(2, 11))]  # as listed, not as sorted
    assert dataset.unpaired == ({"name": "c1", "image": str(tmp_path / "imagesTr" / "c1.nii.gz")},)
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
    ("images", "labels", "said"),
    [
        (["a.nrrd", "b.nrrd"], ["a.nrrd", "b.mha"], "3 .nrrd, 1 .mha"),
        (["a.dcm", "b"], ["a.json", "b.json"], "2 .json, 1 .dcm, 1 files without an ending"),
        (["a/1.dcm", "b/1.dcm"], ["a.gif"], "2 folders, 1 .gif"),
        (["a.nii.gz"], ["a.mha.gz"], "1 .mha.gz"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, images: list[str], labels: list[str], said: str) -> None:
    touch(tmp_path, *(f"images/{name}" for name in images), *(f"labels/{name}" for name in labels))
    with pytest.raises(TrainingError, match=rf"dataset\.no_cases: .*not read were {re.escape(said)}; .*\.nii\.gz"):
        find_dataset(tmp_path)


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

    touch(tmp_path, "derivatives/other/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz")
    assert code_of(tmp_path) == "dataset.ambiguous"
    assert names(find_dataset(tmp_path, labels_dir="derivatives/other").cases) == ["sub-01_ses-1"]


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


def test_what_is_no_data_set(tmp_path: Path) -> None:
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
    for channels in (2, 3):  # nnU-Net's pictures
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
    ("count", "sizes"),
    [(2, (1, 1, 0)), (5, (4, 1, 0)), (7, (6, 1, 0)), (8, (6, 1, 1)), (10, (8, 1, 1)), (30, (24, 3, 3))],
)
def test_the_parts_are_disjoint_and_complete(tmp_path: Path, count: int, sizes: tuple[int, ...]) -> None:
    decathlon(tmp_path, count)
    parts = [datalist(tmp_path, part) for part in ("training", "validation", "test") if part != "test" or count > 7]
    assert (*map(len, parts), 0)[:3] == sizes
    if count < 8:
        assert code_of(tmp_path, "test", call=datalist) == "split.empty_part"
    assert sorted(chain(*map(names, parts))) == sorted(names(datalist(tmp_path, "all")))
    assert datalist(tmp_path, "training") == parts[0]


def test_every_case_is_validated_on_in_one_fold(tmp_path: Path) -> None:
    decathlon(tmp_path, 11)
    folds = [datalist(tmp_path, "validation", fold=fold, folds=4) for fold in range(4)]
    assert sorted(map(len, folds)) == [2, 3, 3, 3]
    assert sorted(chain(*map(names, folds))) == sorted(names(datalist(tmp_path, "all")))
    for fold, validation in enumerate(folds):
        training = datalist(tmp_path, "training", fold=fold, folds=4)
        assert len(training) + len(validation) == 11
        assert not set(names(training)) & set(names(validation))
        assert code_of(tmp_path, "test", fold=fold, folds=4, call=datalist) == "split.empty_part"
    assert names(folds[0]) != names(datalist(tmp_path, "validation", fold=0, folds=4, seed=1))


def test_a_patient_is_in_one_part(tmp_path: Path) -> None:
    scans = [f"sub-{p:02d}_ses-{s}" for p in range(6) for s in range(3)]
    touch(tmp_path, *(f"{folder}/{scan}.nii" for folder in ("images", "labels") for scan in scans))
    parts = [datalist(tmp_path, part) for part in ("training", "validation")]
    assert tuple(map(len, parts)) == (15, 3)
    assert not {name[:6] for name in names(parts[0])} & {name[:6] for name in names(parts[1])}
    assert len(datalist(tmp_path, "validation", patient=".+")) == 2  # told that every scan is a patient: 14, 2, 2


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    decathlon(tmp_path, 3)
    assert code_of(tmp_path, "training", fold=0, folds=4, call=datalist) == "split.too_few"
    assert code_of(tmp_path, "training", fold=3, folds=3, call=datalist) == "split.fold"
    assert code_of(tmp_path, "training", fold=0, folds=1, call=datalist) == "split.folds"
    assert code_of(tmp_path, "validation", fractions=(1, 0, 0), call=datalist) == "split.empty_part"
    assert code_of(tmp_path, "training", fractions=(0, 1, 0), call=datalist) == "split.shares"
    assert code_of(tmp_path, "trainign", call=datalist) == "split.part"
    assert len(datalist(tmp_path, "training", fractions=(1, 0, 0))) == 3
    touch(tmp_path / "one", *(f"one/{d}/sub-1_ses-{s}.nii" for d in ("images", "labels") for s in range(4)))
    touch(tmp_path, *(f"one/{d}/sub-1_ses-{s}.nii" for d in ("images", "labels") for s in range(4)))
    assert code_of(tmp_path / "one", "training", call=datalist) == "split.too_few"


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real cases are no part of the project")
def test_the_split_of_task04_stays_what_it_was() -> None:
    from monai.data import load_decathlon_datalist, partition_dataset

    listed = load_decathlon_datalist(str(HIPPOCAMPUS / "dataset.json"), data_list_key="training")
    training, rest = partition_dataset(listed, ratios=[0.8, 0.2], shuffle=True, seed=0)
    parts = [[case["image"] for case in datalist(HIPPOCAMPUS, part)] for part in ("training", "validation", "test")]
    assert tuple(map(len, parts)) == (166, 21, 21)
    assert parts[0] == [case["image"] for case in training]
    assert parts[1] + parts[2] == [case["image"] for case in rest]


def named(**labels: int | tuple[int, ...]) -> Dataset:
    values = {name.replace("_", " "): v if isinstance(v, tuple) else (v,) for name, v in labels.items()}
    return Dataset("nnunet", (), labels=values)


def test_labels_are_matched_by_name() -> None:
    assert label_values(named(Anterior=1, Posterior=2), CLASSES) == {1: [1], 2: [2]}
    assert label_values(named(POSTERIOR_hippocampus=4, Anterior=9, ventricle=5), CLASSES) == {1: [9], 2: [4]}
    kidney = {"0": "background", "1": "kidney", "2": "kidney tumour"}
    assert label_values(named(tumour=(2, 3), Kidney=1), kidney) == {1: [1], 2: [2, 3]}
    assert label_values(Dataset("folders", ()), CLASSES) == {1: [1], 2: [2]}


GLIOMA = {"edema": (1,), "non-enhancing tumor": (2,), "enhancing tumour": (3,)}


@pytest.mark.parametrize(
    ("names", "wanted", "value"),
    [
        (GLIOMA, "enhancing tumor", 3),
        (GLIOMA, "Non-Enhancing Tumour", 2),
        (GLIOMA, "tumour", None),
        ({"liver": (1,), "non-tumour": (2,)}, "tumour", None),
        ({"left hippocampus": (1,), "amygdala": (2,)}, "hippocampus", None),
    ],
)
def test_only_names_within_a_classes_words_are_like_it(
    names: dict, wanted: str, value: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, classes = Dataset("nnunet", (), labels=names), {"0": "background", "1": wanted}
    if value is None:
        assert code_of(dataset, classes, call=label_values) == "labels.unmatched"
    else:
        assert label_values(dataset, classes) == {1: [value]}
        assert f"is taken for {wanted}" in caplog.text


@pytest.mark.parametrize("name", ["$__import__('os').system('x')", "@bundle_root", "%train", " $x", "a\nb", "a\x07"])
def test_names_that_a_config_would_run_are_refused(tmp_path: Path, name: str) -> None:
    decathlon(tmp_path, 2)
    description = json.loads((tmp_path / "dataset.json").read_text())
    for changed in ({"labels": {"0": "background", "1": name}}, {"labels": {name: 1}}, {"modality": {"0": name}}):
        (tmp_path / "dataset.json").write_text(json.dumps(description | changed))
        assert code_of(tmp_path) == "dataset.bad_name"
    touch(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_dseg.nii")
    (tmp_path / "bids" / "dseg.tsv").write_text(f'index\tname\n1\t"{name}"\n')
    if name == name.strip():
        assert code_of(tmp_path / "bids") == "dataset.bad_name"


def test_what_the_user_says_comes_first() -> None:
    says = {"Anterior Hippocampus": "120-135", 2: [1, "200-255"], "background": 7}
    assert label_values(named(Anterior=1, Posterior=2), CLASSES, says) == {0: [7], 1: ["120-135"], 2: [1, "200-255"]}
    assert label_values(named(Anterior=4, Posterior=2), CLASSES, {"2": 8}) == {1: [4], 2: [8]}
    assert label_values(Dataset("folders", ()), CLASSES, {"background": [3]}) == {0: [3], 1: [1], 2: [2]}


@pytest.mark.parametrize(
    ("dataset", "says", "code"),
    [
        (named(Anterior=1, tail=2), None, "labels.unmatched"),
        (named(hippocampus=1), {"anterior hippocampus": 2}, "labels.unmatched"),  # it may be both
        (named(left_anterior_hippocampus=1, posterior=3), None, "labels.unmatched"),  # it is a part of the class
        (named(hippocampus=3), None, "labels.unmatched"),  # it would be both
        (named(liver=1, lung=9), None, "labels.unmatched"),
        (named(Anterior=(1, 2), Posterior=2), None, "labels.regions"),
        (named(Anterior=1), {2: "0-3"}, "labels.overlap"),
        (named(), {"tail": 1}, "labels.no_class"),
        (named(), {1: 1, 2: "many"}, "labels.bad_value"),
        (named(), {1: 1, 2: 2.5}, "labels.bad_value"),
        (named(), {1: 1, 2: "9-5"}, "labels.bad_value"),
    ],
)
def test_mappings_that_cannot_be(dataset: Dataset, says: dict | None, code: str | None) -> None:
    if code:
        assert code_of(dataset, CLASSES, says, call=label_values) == code
    else:
        assert label_values(dataset, CLASSES, says) == {1: [2], 2: [1]}


def test_names_unlike_any_class_go_by_value_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    assert label_values(named(head=1, tail=2), CLASSES) == {1: [1], 2: [2]}
    assert "anterior hippocampus = head; posterior hippocampus = tail" in caplog.text


def test_values_become_classes() -> None:
    values = torch.tensor([[0.0, 127, 128.0001, 130], [233, 255, 7, 60]])
    mapped = MapLabelsd("label", {1: ["120-135"], "2": [255, "200-240"]})({"label": values, "name": "x"})
    assert mapped["label"].tolist() == [[0, 1, 1, 1], [2, 2, 0, 0]]
    assert values[0, 1] == 127  # the input is left alone: the cache holds it
    assert MapLabelsd("label")({"label": values})["label"] is values
    strict = MapLabelsd("label", {0: [7], 1: ["120-135"], 2: ["200-255"]}, unknown="error")
    assert code_of({"label": values, "name": "x"}, call=strict) == "labels.unknown"
    assert strict({"label": values.clamp(max=6) * 0 + 7})["label"].tolist() == [[0] * 4] * 2


def test_pictures_load_through_plain_config(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20  # 3 high, 4 wide
    Image.fromarray(grey).convert("LA").save(tmp_path / "la.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "rgba.png")
    palette = Image.fromarray(np.array([[0, 1, 2, 255]] * 3, np.uint8), mode="P")
    palette.putpalette([v for n in range(256) for v in (n * 37 % 256, n * 91 % 256, n * 53 % 256)])
    palette.save(tmp_path / "palette.png")

    def loader(converter: str, **options: int) -> object:
        config = {"_target_": f"segnets.data.{converter}", "_mode_": "callable", **options}
        load = {"_target_": "monai.transforms.LoadImage", "reader": "PILReader", "converter": config}
        return ConfigParser({"load": {**load, "ensure_channel_first": True}}).get_parsed_content("load")

    for name in ("la.png", "rgba.png"):
        one, three = (loader("convert_image", channels=channels)(tmp_path / name) for channels in (1, 3))
        assert np.array_equal(one, grey.T[None])
        assert np.array_equal(three, np.stack([grey.T] * 3))
        assert np.array_equal(loader("convert_label_map")(tmp_path / name), grey.T[None])
    assert np.unique(loader("convert_label_map")(tmp_path / "palette.png")).tolist() == [0, 1, 2, 255]
    assert loader("convert_image")(tmp_path / "palette.png").shape == (3, 4, 3)
