"""Folders of nnU-Net: found by content, nothing outside of them is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from nnunet_models import configuration, write_model

from napari_seg.bundles.nnunet.folder import find_trainings, read_training_folder
from napari_seg.bundles.read import find_bundles, read_bundle
from napari_seg.errors import BundleError


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def test_trainings_are_found_in_results_and_data_sets_whatever_lies_beside_them(tmp_path: Path) -> None:
    results = tmp_path / "results"
    root = write_model(results)
    other = write_model(results, "2d", configuration((16, 16), (1, 1)), dataset_folder="Dataset002_Other")
    for noise in ("__MACOSX/Dataset001_Phantom", "ensembles", ".hidden", "Dataset001_Phantom/crossval_results"):
        (results / noise).mkdir(parents=True)
    shutil.copytree(root, results / "__MACOSX" / "Dataset001_Phantom" / root.name)
    (results / ".DS_Store").write_bytes(b"\0")
    (root / "._plans.json").write_bytes(b"\0")
    (root / "fold_0" / "._checkpoint_final.pth").write_bytes(b"\0")
    assert find_trainings(results) == [root, other]
    assert find_trainings(root.parent) == find_trainings(root) or find_trainings(root) == [root]
    assert find_trainings(tmp_path / "missing") == []
    bundles, faults = find_bundles([results])
    assert [bundle.root for bundle in bundles if bundle.kind == "nnunet"] == [root.resolve(), other.resolve()]
    assert not faults


def test_all_folds_are_used_and_that_of_all_cases_only_alone(tmp_path: Path) -> None:
    root = write_model(tmp_path, folds=(0, 1, "all"))
    assert read_training_folder(root).folds == ("fold_0", "fold_1")
    assert read_training_folder(root, ["all"]).folds == ("fold_all",)
    assert read_training_folder(root, ["1"]).folds == ("fold_1",)
    with pytest.raises(BundleError) as raised:
        read_training_folder(root, ["7"])
    assert raised.value.code == "bundle.weights"
    assert "has no weights of fold 7; it has those of 0, 1, all" in str(raised.value)
    (root / "fold_1" / "checkpoint_final.pth").rename(root / "fold_1" / "checkpoint_best.pth")
    with pytest.raises(BundleError, match=r"of folds 0, 1; it has those of 0, 1 \(checkpoint_best.pth alone\), all"):
        read_training_folder(root, ["0", "1"])
    alone = write_model(tmp_path / "alone", folds=("all",))
    assert read_training_folder(alone).folds == ("fold_all",)


def test_the_best_weights_are_taken_where_the_final_ones_are_missing(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    (root / "fold_0" / "checkpoint_final.pth").rename(root / "fold_0" / "checkpoint_best.pth")
    assert read_bundle(root).checkpoint == "checkpoint_best.pth"


def test_a_folder_with_a_name_of_its_own_says_its_configuration_in_its_checkpoint(tmp_path: Path) -> None:
    others = {"2d": configuration((16, 16), (1, 1)), "3d_fullres": configuration()}
    root = write_model(tmp_path / "results", "3d_fullres_bs8", configuration(), other_configurations=others)
    moved = tmp_path / "weights"
    shutil.copytree(root, moved)
    assert read_bundle(moved).configuration.name == "3d_fullres_bs8"
    shutil.rmtree(moved / "fold_0")
    with pytest.raises(BundleError, match="3d_fullres_bs8") as raised:
        read_bundle(moved)
    assert raised.value.code == "bundle.nnunet"


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "fold_0", "fold_0/checkpoint_final.pth"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    root = write_model(tmp_path / "results")
    moved = tmp_path / "elsewhere"
    (root / name).rename(moved)
    (root / name).symlink_to(moved)
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.link"


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    (root / "fold_0" / "checkpoint_best.pth").symlink_to("checkpoint_final.pth")
    (root / "fold_0" / "checkpoint_final.pth").rename(root / "fold_0" / "kept.pth")
    (root / "fold_0" / "checkpoint_final.pth").symlink_to("kept.pth")
    assert read_bundle(root).folds == ("fold_0",)


def test_a_pipe_in_place_of_a_file_is_not_opened(tmp_path: Path) -> None:
    import os

    root = write_model(tmp_path)
    (root / "fold_0" / "checkpoint_final.pth").unlink()
    os.mkfifo(root / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.weights"


@pytest.mark.parametrize("value", [5, None, [], "x", {}, [["a"]]])
def test_configurations_of_another_type_are_refused(tmp_path: Path, value: object) -> None:
    root = write_model(tmp_path)
    content = json.loads((root / "plans.json").read_text())
    (root / "plans.json").write_text(json.dumps(content | {"configurations": value}))
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.nnunet"
