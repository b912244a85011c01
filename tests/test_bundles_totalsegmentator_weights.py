"""Weights of TotalSegmentator are found where TotalSegmentator keeps them, by trainer, plans and configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from napari_seg.bundles.places import store_root
from napari_seg.bundles.totalsegmentator.read import read_task
from napari_seg.bundles.totalsegmentator.table import task_of
from napari_seg.bundles.totalsegmentator.weights import training_folder, weight_folders
from napari_seg.errors import BundleError


def training(folder: Path, name: str) -> Path:
    root = folder / name
    (root / "fold_0").mkdir(parents=True)
    (root / "plans.json").write_text("{}")
    (root / "fold_0" / "checkpoint_final.pth").touch()
    return root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name in ("TOTALSEG_WEIGHTS_PATH", "TOTALSEG_HOME_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def test_the_folder_is_the_one_that_totalsegmentator_uses(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_root() / "totalsegmentator"
    assert weight_folders() == [home / ".totalsegmentator" / "nnunet" / "results", store]
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path / "own"))
    assert weight_folders() == [tmp_path / "own" / "nnunet" / "results", store]
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    assert weight_folders() == [tmp_path / "weights", store]


def test_the_training_is_chosen_by_its_plans_and_never_the_first_one(tmp_path: Path) -> None:
    big, small = task_of("total_v3").parts[0], task_of("total_v3_small").parts[0]
    data_set = tmp_path / "Dataset831_TotalSegmentator_part1_organs_1830subj"
    small_folder = training(data_set, "nnUNetTrainerNoMirroring__nnUNetResEncUNetLPlans_8__3d_fullres")
    assert training_folder(big, [tmp_path]) is None
    big_folder = training(data_set, "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres")
    assert training_folder(big, [tmp_path]) == big_folder
    assert training_folder(small, [tmp_path]) == small_folder


def test_a_folder_without_plans_is_no_model(tmp_path: Path) -> None:
    part = task_of("liver_vessels").parts[0]
    folder = training(tmp_path / "second" / "Dataset008_HepaticVessel", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    (tmp_path / "first" / "Dataset008_HepaticVessel" / folder.name).mkdir(parents=True)
    assert training_folder(part, [tmp_path / "missing", tmp_path / "first", tmp_path / "second"]) == folder


def test_a_folder_without_weights_is_passed_over_and_named(home: Path) -> None:
    part, name = task_of("liver_vessels").parts[0], "nnUNetTrainer__nnUNetPlans__3d_fullres"
    half = training(weight_folders()[0] / "Dataset008_HepaticVessel", name)
    (half / "fold_0" / "checkpoint_final.pth").unlink()
    assert training_folder(part) is None
    with pytest.raises(BundleError, match=rf"models add .*without weights, .*: {re.escape(str(half))}") as error:
        read_task("liver_vessels")
    assert error.value.code == "bundle.weights"
    whole = training(store_root() / "totalsegmentator" / "Dataset008_HepaticVessel", name)
    assert training_folder(part) == whole


def test_weights_are_looked_for_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    part = task_of("liver_vessels").parts[0]
    assert training_folder(part) is None
    folder = training(
        store_root() / "totalsegmentator" / "Dataset008_HepaticVessel", "nnUNetTrainer__nnUNetPlans__3d_fullres"
    )
    assert training_folder(part) == folder
