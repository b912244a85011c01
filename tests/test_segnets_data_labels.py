"""Test the mapping of label values to classes, and the conversion of 2D images."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from empty_sets import code_of
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import ExifTags, Image

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data import ClassValues, Dataset, MapLabelsd, convert_image, convert_label_map, label_values
from segnets.errors import TrainingError

CLASSES = {"0": "background", "1": "anterior hippocampus", "2": "posterior hippocampus"}


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
    ("names", "name", "value"),
    [
        (GLIOMA, "enhancing tumor", 3),
        (GLIOMA, "Non-Enhancing Tumour", 2),
        (GLIOMA, "tumour", None),
        ({"liver": (1,), "non-tumour": (2,)}, "tumour", None),
        ({"left hippocampus": (1,), "amygdala": (2,)}, "hippocampus", None),
    ],
)
def test_a_label_matches_a_class_that_has_all_its_words(
    names: dict, name: str, value: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, classes = Dataset("nnunet", (), labels=names), {"0": "background", "1": name}
    if value is None:
        assert code_of(dataset, classes, call=label_values) == "labels.unmatched"
    else:
        assert label_values(dataset, classes) == {1: [value]}
        assert f"is taken for {name}" in caplog.text


def test_labels_of_the_user_take_precedence() -> None:
    labels = {"Anterior Hippocampus": "120-135", 2: [1, "200-255"], "background": 7}
    assert label_values(named(Anterior=1, Posterior=2), CLASSES, labels) == {0: [7], 1: ["120-135"], 2: [1, "200-255"]}
    assert label_values(named(Anterior=4, Posterior=2), CLASSES, {"2": 8}) == {1: [4], 2: [8]}
    assert label_values(Dataset("folders", ()), CLASSES, {"background": [3]}) == {0: [3], 1: [1], 2: [2]}


@pytest.mark.parametrize(
    ("dataset", "labels", "code"),
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
def test_impossible_mappings_are_refused(dataset: Dataset, labels: dict | None, code: str | None) -> None:
    if code:
        assert code_of(dataset, CLASSES, labels, call=label_values) == code
    else:
        assert label_values(dataset, CLASSES, labels) == {1: [2], 2: [1]}


def test_labels_without_a_similar_name_are_matched_by_value(caplog: pytest.LogCaptureFixture) -> None:
    assert label_values(named(head=1, tail=2), CLASSES) == {1: [1], 2: [2]}
    assert "anterior hippocampus = head; posterior hippocampus = tail" in caplog.text


def test_ignored_values_have_a_number_of_their_own() -> None:
    dataset = Dataset("nnunet", (), labels={"Anterior": (1,), "Posterior": (2,)}, ignored=(3,))
    assert label_values(dataset, CLASSES) == {-1: [3], 1: [1], 2: [2]}
    assert label_values(dataset, CLASSES, {"ignore": [255, "7-9"]}) == {-1: [255, "7-9", 3], 1: [1], 2: [2]}
    assert label_values(dataset, CLASSES, {"background": 3}) == {0: [3], 1: [1], 2: [2]}  # the user decides
    assert label_values(named(), CLASSES, {"ignore": 3}) == {-1: [3], 1: [1], 2: [2]}
    assert code_of(named(), CLASSES, {"ignore": 2}, call=label_values) == "labels.overlap"
    values = torch.tensor([[0.0, 1, 2, 3]])
    assert MapLabelsd("label", label_values(dataset, CLASSES))({"label": values})["label"].tolist() == [[0, 1, 2, -1]]
    assert ClassValues(dataset, CLASSES).outside == -1
    assert ClassValues(dataset, CLASSES, {"background": 3}).outside == 0


def test_values_of_regions_become_parts() -> None:
    dataset = Dataset("nnunet", (), labels={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}, ignored=(9,))
    found = ClassValues(dataset, {"0": "whole", "1": "core", "2": "enhancing"}, regions=True)
    assert found.classes == {"0": "background", "1": "whole", "2": "core", "3": "enhancing"}
    assert found.values == {-1: [9], 1: [1], 2: [2], 3: [4]}
    assert found.parts == [[1, 2], [1], [1, 2, 3]]
    merged = ClassValues(dataset, {"0": "all", "1": "core"}, {"all": "1-9", "core": [3, "5-6"], "ignore": 20}, True)
    assert merged.values == {-1: [20], 1: ["1-2", 4, "7-9"], 2: [3, "5-6"]}
    assert merged.parts == [[1], [1, 2]]
    assert ClassValues(dataset, CLASSES).parts is None
    assert code_of(dataset, {"0": "-", "1": "whole", "2": "core"}, call=label_values) == "labels.regions"


def test_background_of_a_case_without_all_classes_has_a_number_of_its_own() -> None:
    labels = {"Anterior": (1,), "Posterior": (2, 3)}
    labelled = {"a": (1,), "b": (1, 2), "c": (2, 3), "d": (1, 2, 3), "e": ()}
    found = ClassValues(Dataset("nnunet", (), labels=labels, labelled=labelled), CLASSES)
    assert found.absent == [[1], [1, 2], [2]]
    assert found.backgrounds == {"a": -4, "b": -4, "c": -2, "e": -3}  # b has a part of class 2 only
    assert found.outside == -1
    mapping = MapLabelsd("label", {0: [5], 1: [1], 2: [2, 3], -1: [9]}, backgrounds=found.backgrounds)
    values = torch.tensor([[0.0, 1, 3, 5, 7, 9]])
    assert mapping({"label": values, "name": "a"})["label"].tolist() == [[-4, 1, 2, -4, -4, -1]]
    assert mapping({"label": values, "name": "d"})["label"].tolist() == [[0, 1, 2, 0, 0, -1]]
    assert ClassValues(Dataset("nnunet", (), labels=labels), CLASSES).absent == []


def test_parts_of_a_case_without_all_regions_have_numbers_of_their_own() -> None:
    labels, labelled = {"whole": (1, 2), "core": (2,)}, {"a": (1,), "b": (1, 2)}
    dataset = Dataset("nnunet", (), labels=labels, labelled=labelled, ignored=(9,))
    found = ClassValues(dataset, {"0": "whole", "1": "core"}, regions=True)
    assert (found.parts, found.absent, found.backgrounds, found.offsets) == (
        [[1], [1, 2]],
        [[1, 2]],
        {"a": -2},
        {"a": 2},
    )
    mapping = MapLabelsd("label", found.values, backgrounds=found.backgrounds, offsets=found.offsets)
    values = torch.tensor([[0.0, 1, 2, 9]])
    assert mapping({"label": values, "name": "a"})["label"].tolist() == [[-2, 3, 4, -1]]
    assert mapping({"label": values, "name": "b"})["label"].tolist() == [[0, 1, 2, -1]]
    assert ClassValues(dataset, CLASSES, {"1": 1, "2": 2}).offsets == {}


def test_slices_without_a_class_are_ignored_if_only_some_were_annotated() -> None:
    values = torch.zeros(1, 3, 4, 2)
    values[0, 1, 2, 0] = 1
    affine = np.array([[0, 0, 2, 0], [-1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # axes: posterior, superior, right
    label = MetaTensor(values, affine=torch.as_tensor(affine))
    for orientation, kept in (("coronal", (1, ...)), ("axial", (slice(None), 2)), ("sagittal", (..., 0))):
        found = MapLabelsd("label", {1: [1]}, annotated_slices=orientation)({"label": label})["label"][0]
        expected = torch.full((3, 4, 2), -1)
        expected[kept] = values[0][kept].int()
        assert found.tolist() == expected.tolist(), orientation
    assert ClassValues(named(), CLASSES, annotated_slices="axial").outside == -1
    assert code_of(named(), CLASSES, annotated_slices="I", call=ClassValues) == "labels.slices"
    assert (
        code_of(Dataset("voc", (), is_2d=True), CLASSES, annotated_slices="axial", call=ClassValues) == "labels.slices"
    )


def test_values_become_classes() -> None:
    values = torch.tensor([[0.0, 127, 128.0001, 130], [233, 255, 7, 60]])
    mapped = MapLabelsd("label", {1: ["120-135"], "2": [255, "200-240"]})({"label": values, "name": "x"})
    assert mapped["label"].tolist() == [[0, 1, 1, 1], [2, 2, 0, 0]]
    assert values[0, 1] == 127  # the input is left alone: the cache holds it
    assert MapLabelsd("label")({"label": values})["label"] is values
    strict = MapLabelsd("label", {0: [7], 1: ["120-135"], 2: ["200-255"]}, unknown="error")
    assert code_of({"label": values, "name": "x"}, call=strict) == "labels.unknown"
    assert strict({"label": values.clamp(max=6) * 0 + 7})["label"].tolist() == [[0] * 4] * 2


def test_2d_images_are_loaded_by_a_config(tmp_path: Path) -> None:
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


def test_a_gif_of_grey_values_has_these_as_labels(tmp_path: Path) -> None:
    for name, values in {"all": [0, 100, 200], "fewer": [0, 200]}.items():  # a GIF's writer numbers its colours anew
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.gif")
        with Image.open(tmp_path / f"{name}.gif") as opened:
            assert np.asarray(convert_label_map(opened)).tolist() == [values]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_uncompressed_tiff_is_rotated_without_mixing_its_rows(tmp_path: Path, orientation: int) -> None:
    values = np.arange(63, dtype=np.uint8).reshape(9, 7)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for ending in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"x.{ending}", exif=exif)
    with Image.open(tmp_path / "x.png") as png, Image.open(tmp_path / "x.tif") as tiff:
        assert np.array_equal(convert_label_map(tiff), convert_label_map(png))


def test_2d_images_are_rotated_by_their_exif_orientation(tmp_path: Path) -> None:
    values = np.zeros((9, 7), np.uint8)
    values[1:3, 2:6] = 200
    turned = Image.fromarray(np.rot90(values))  # stored a quarter turn to the left; 6: turn it to the right
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for ending in ("png", "tif", "jpg"):
        turned.save(tmp_path / f"x.{ending}", exif=exif, **{"quality": 100} if ending == "jpg" else {})
        with Image.open(tmp_path / f"x.{ending}") as opened:
            np.testing.assert_allclose(np.asarray(convert_image(opened, 1)), values, atol=3)
    with Image.open(tmp_path / "x.png") as opened:
        assert np.array_equal(convert_label_map(opened), values)
    bilevel = Image.fromarray(values > 0)
    bilevel.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as opened:
        assert opened.mode == "1"
        assert np.array_equal(convert_label_map(opened), values > 0)


def test_fractions_of_a_class_are_added() -> None:
    dataset = replace(named(white=1, grey=2, csf=3), soft=True)
    classes = ClassValues(dataset, {"0": "brain", "1": "csf"}, {"brain": [1, 2], "csf": 3}, regions=True)
    assert classes.values == {1: [1, 2], 2: [3]}
    assert (classes.parts, classes.outside) == ([[1], [2]], 0)
    file = MetaTensor(
        torch.tensor([[[0.25, 1.0]], [[0.5, 0.001]], [[0.25, 0]]]), affine=torch.diag(torch.tensor([2.0] * 4))
    )
    found = MapLabelsd("label", classes.values, soft=True)({"label": file})["label"]
    assert found.tolist() == [[[0.75, 1.0]], [[0.25, 0.0]]]
    assert torch.equal(found.affine, file.affine)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"regions": False}),
        ({"ignored": (255,)}, {}),
        ({"labelled": {"c1": (1,)}}, {}),
        ({}, {"labels": {"ignore": 9}}),
    ],
)
def test_fractions_are_of_regions_that_are_annotated_everywhere(changes: dict, options: dict) -> None:
    dataset = replace(named(white=1), soft=True, **changes)
    with pytest.raises(TrainingError, match=r"labels\.soft"):
        ClassValues(dataset, {"0": "white"}, **{"regions": True, **options})
