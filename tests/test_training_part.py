"""Test that an evaluation takes the cases of a part that the training has split off."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import nibabel
import numpy as np
import pytest
import SimpleITK
from empty_sets import touch

from napari_seg.errors import InputError, OutputError
from napari_seg.formats.itk import to_itk
from napari_seg.geometry import Grid
from napari_seg.training.choices import Choices
from napari_seg.training.identity import identity_of
from napari_seg.training.part import label_values, part_of
from napari_seg.training.prepare import data_folder, plan_bundle
from napari_seg.training.segnets_modules import with_segnets

READING = {"images_dir": "imagesTr", "labels_dir": "labelsTr"}


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write_decathlon(tmp_path_factory.mktemp("balls") / "nifti", cases=10, smallest=(8, 8, 8))


def in_nrrd(balls: Path, root: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
        for path in (balls / folder).iterdir():
            array = np.asarray(nibabel.load(path).dataobj)
            name = path.name.replace(".nii.gz", ".nrrd")
            SimpleITK.WriteImage(to_itk(array, Grid(array.shape, np.eye(4))), str(root / folder / name))
    return root


def films(balls: Path, root: Path) -> Path:
    """Write two volumes over time of each case; a training must not see one and be tested on the other."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
        for path in (balls / folder).iterdir():
            array = np.asarray(nibabel.load(path).dataobj)
            nibabel.save(nibabel.Nifti1Image(np.stack([array, array], axis=-1), np.eye(4)), root / folder / path.name)
    return root


def trained_on(out: Path, dataset_dir: Path, plan: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """Return the cases that the written config itself takes."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_file(out / "configs" / "train.yaml"))
    parser["dataset_dir"] = str(data_folder(dataset_dir, out, plan))
    with with_segnets():
        return parser.get_parsed_content("cases")(part)


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (lambda balls, root: balls, READING | {"cases#seed": 7}),
        (in_nrrd, READING),
        (in_nrrd, {"layout": "nnunet"}),
        (films, {"layout": "folders", "patient": "^case_[0-9]+"}),
        (films, {"layout": "folders"}),
    ],
)
def test_the_parts_are_those_of_the_training(balls: Path, tmp_path: Path, write: Any, settings: dict[str, Any]) -> None:
    root, out = write(balls, tmp_path / "data"), tmp_path / "out"
    plan = plan_bundle(root, out, Choices(settings=settings))
    for part in ("training", "validation", "test"):
        cases = trained_on(out, root, plan, part)
        data = part_of(root, part, out)
        assert data.part == {case["name"] for case in cases}
        found = {one.name: (str(one.reference), [*map(str, one.scans)]) for one in data.cases}
        assert all(found[case["name"]] == (case["label"], [case["image"]]) for case in cases)


def test_the_plan_says_what_the_label_values_mean(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"labels": {"liver": [3], "tumour": [7, "10-19"], "ignore": [255]}}))
    assert label_values(tmp_path) == {"liver": {3}, "tumour": {7, *range(10, 20)}, "ignore": {255}}
    (tmp_path / "plan.json").write_text("{}")
    assert label_values(tmp_path) == {}


def test_the_cases_of_folds_have_trained_the_ensemble(balls: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"choices": {"folds": 3}}))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("{cases: {fold: '@fold', folds: '@folds'}, fold: null, folds: 5}")
    for part in ("training", "validation", "test"):
        with pytest.raises(InputError) as caught:
            part_of(balls, part, tmp_path)
        assert caught.value.code == "evaluation.seen"
    cases = [
        (n, balls / "imagesTr" / f"case_{n:02d}.nii.gz", balls / "labelsTr" / f"case_{n:02d}.nii.gz") for n in range(5)
    ]
    rows = [f"{image},{label},{'test' if n == 3 else 'train'}" for n, image, label in cases]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,split", *rows]))
    with pytest.raises(OutputError, match=r"run\.outdated"):
        part_of(tmp_path / "cases.csv", "test", tmp_path)
    with with_segnets():
        from segnets.data import find_dataset

        planned = identity_of(find_dataset(tmp_path / "cases.csv"))
    (tmp_path / "plan.json").write_text(json.dumps({"choices": {"folds": 3}, "dataset": planned}))
    data = part_of(tmp_path / "cases.csv", "test", tmp_path)
    assert [one.reference for one in data.cases if one.name in data.part] == [balls / "labelsTr" / "case_03.nii.gz"]


@pytest.mark.parametrize(
    ("patients", "is_same"), [("aabbcdefgh", True), ("xxbbcdefgh", True), ("abbccdefgh", False), ("aabbcdefg", False)]
)
def test_the_parts_of_another_data_set_are_not_those_of_the_training(
    balls: Path, tmp_path: Path, patients: str, is_same: bool
) -> None:
    def write_list(patients: str) -> None:
        rows = [f"imagesTr/case_{n:02d}.nii.gz,labelsTr/case_{n:02d}.nii.gz,{who}" for n, who in enumerate(patients)]
        rows[:2] = rows[1::-1] if patients == "aa" + "bcdefghi" else rows[:2]
        (root / "cases.csv").write_text("\n".join(["image,label,patient", *rows]))

    root, out = tmp_path / "data", tmp_path / "out"
    for folder in ("imagesTr", "labelsTr"):
        shutil.copytree(balls / folder, root / folder)
    write_list("aabbcdefgh")
    with with_segnets():
        from segnets.data import find_dataset

        dataset = find_dataset(root / "cases.csv")
    (out / "configs").mkdir(parents=True)
    (out / "configs" / "train.yaml").write_text("{cases: {}}")
    (out / "plan.json").write_text(json.dumps({"choices": {}, "dataset": identity_of(dataset)}))
    trained = part_of(root / "cases.csv", "training", out).part
    write_list(patients)
    if is_same:
        assert part_of(root / "cases.csv", "training", out).part == trained
    else:
        with pytest.raises(InputError, match=r"evaluation\.changed"):
            part_of(root / "cases.csv", "test", out)


def test_a_changed_data_set_is_not_the_one_that_was_converted(balls: Path, tmp_path: Path) -> None:
    root, out = in_nrrd(balls, tmp_path / "data"), tmp_path / "out"
    plan_bundle(root, out, Choices())
    expected = part_of(root, "test", out)
    for folder in (out / "data", out / "data" / "labelsTr"):
        assert replace(part_of(folder, "test", out), root=root) == expected
    with pytest.raises(InputError, match=r"evaluation\.changed: found other files"):
        part_of(balls, "test", out)
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(root / folder / "case_03.nrrd", root / folder / "case_10.nrrd")
    with pytest.raises(InputError, match=r"evaluation\.changed: found 11 cases; expected the 10 cases that"):
        part_of(root, "test", out)


def test_a_list_in_another_order_is_not_the_planned_one(tmp_path: Path) -> None:
    out, names = tmp_path / "out", [f"{number:02d}" for number in range(10)]
    touch(tmp_path, *(f"{name}/t1.nii.gz" for name in names), *(f"labels/{name}.nii.gz" for name in (*names, "new")))
    rows = [f"{name}/t1.nii.gz,labels/{name}.nii.gz" for name in names]  # named case_0001, ... by their rows
    table = tmp_path / "cases.csv"
    table.write_text("\n".join(["image,label", *rows]))
    (out / "configs").mkdir(parents=True)
    (out / "configs" / "train.yaml").write_text("{cases: {}}")
    with with_segnets():
        from segnets.data import find_dataset

        planned = identity_of(find_dataset(table))
    (out / "plan.json").write_text(json.dumps({"choices": {}, "dataset": planned}))
    part_of(table, "test", out)
    for others in (rows[::-1], [*rows[:-1], "09/t1.nii.gz,labels/new.nii.gz"]):
        table.write_text("\n".join(["image,label", *others]))
        with pytest.raises(InputError, match=r"evaluation\.changed: found other files"):
            part_of(table, "test", out)


def test_a_list_below_a_link_is_the_planned_one(tmp_path: Path) -> None:
    real, link, out = tmp_path / "real", tmp_path / "link", tmp_path / "out"
    names = [f"{number:02d}" for number in range(10)]
    touch(real, *(f"{folder}/{name}.nii.gz" for folder in ("images", "labels") for name in names))
    link.symlink_to(real)
    rows = [f"{link}/images/{name}.nii.gz,{link}/labels/{name}.nii.gz" for name in names]
    (real / "cases.csv").write_text("\n".join(["image,label", *rows]))
    (out / "configs").mkdir(parents=True)
    (out / "configs" / "train.yaml").write_text("{cases: {}}")
    with with_segnets():
        from segnets.data import find_dataset

        planned = identity_of(find_dataset(real / "cases.csv"))  # the command resolves the path
    (out / "plan.json").write_text(json.dumps({"choices": {}, "dataset": planned}))
    for table in (real / "cases.csv", link / "cases.csv"):
        assert len(part_of(table, "training", out).part) == 8
