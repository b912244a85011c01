"""Models of nnU-Net as bundles: named by their folder and a choice behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnunet_models import configuration, write_model

from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import EnsembleBundle
from napari_seg.bundles.trust import check_runnable, is_trusted
from napari_seg.bundles.ways import missing_weights, way_of
from napari_seg.errors import BundleError

FLAT = configuration((16, 16), (1, 1))


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def test_a_model_is_named_and_coloured_and_runs_at_once(tmp_path: Path) -> None:
    bundle = read_bundle(write_model(tmp_path, dataset_changes={"channel_names": {"0": "CT"}}))
    assert isinstance(bundle, NnunetBundle)
    assert (bundle.name, bundle.modality, bundle.kind) == ("Dataset001_Phantom 3d_fullres", "CT", "nnunet")
    assert [(one.label, one.name) for one in bundle.segments] == [(1, "inner"), (2, "outer")]
    assert len({one.color for one in bundle.segments}) == 2
    assert bundle.background == "background"
    way = way_of(bundle)
    assert (way.kind, way.needs_consent) == ("engine", False)
    assert missing_weights(bundle) == ""
    check_runnable(bundle)
    assert not bundle.trusted
    is_trusted(bundle)


def test_a_data_set_with_several_models_needs_a_choice(tmp_path: Path) -> None:
    root = write_model(tmp_path, folds=(0, 1))
    write_model(tmp_path, "2d", FLAT)
    folder = root.parent
    with pytest.raises(BundleError, match="3d_fullres") as raised:
        read_bundle(folder)
    assert raised.value.code == "bundle.unknown"
    assert read_bundle(f"{folder}:3d_fullres").root == root.resolve()
    assert read_bundle(f"{folder}:2d").configuration.is_2d
    both = read_bundle(f"{folder}:2d+3d_fullres")
    assert isinstance(both, EnsembleBundle)
    assert [one.configuration.name for one in both.members] == ["2d", "3d_fullres"]
    expected = "ensemble of 2 nnU-Net models that find inner, outer; 2d: fold 0; 3d_fullres: folds 0, 1"
    assert both.description == expected
    with pytest.raises(BundleError, match=r"did you mean 3d_fullres\? it has 2d, 3d_fullres$") as raised:
        read_bundle(f"{folder}:3d_fulres")
    assert raised.value.code == "bundle.unknown"


def test_a_choice_may_be_the_name_of_the_training(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    other = write_model(tmp_path, trainer="nnUNetTrainerNoMirroring")
    with pytest.raises(BundleError):
        read_bundle(f"{root.parent}:3d_fullres")
    assert read_bundle(f"{root.parent}:{other.name}").root == other.resolve()


def test_a_cascade_has_its_previous_stage(tmp_path: Path) -> None:
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    low = write_model(tmp_path, "3d_lowres", configuration(spacing=(2, 2, 2)))
    others = {"3d_fullres": configuration()}
    root = write_model(tmp_path, "3d_cascade_fullres", cascade, other_configurations=others)
    bundle = read_bundle(f"{root.parent}:3d_cascade_fullres")
    assert bundle.previous.root == low.resolve()
    for path in sorted(low.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    low.rmdir()
    with pytest.raises(BundleError, match="3d_lowres") as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.unknown"


@pytest.mark.parametrize("stages", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_stages_that_need_each_other_are_refused(tmp_path: Path, stages: dict[str, str]) -> None:
    for name, previous in stages.items():
        root = write_model(tmp_path, name, configuration())
        content = json.loads((root / "plans.json").read_text())
        content["configurations"][name]["previous_stage"] = previous
        (root / "plans.json").write_text(json.dumps(content))
    with pytest.raises(BundleError) as raised:
        read_bundle(f"{root.parent}:a")
    assert raised.value.code == "bundle.nnunet"


def test_a_previous_stage_is_a_neighbour_by_name_not_a_path(tmp_path: Path) -> None:
    write_model(tmp_path / "outside", "3d_lowres", configuration())
    for stage in ("../../outside/Dataset001_Phantom/nnUNetTrainer__nnUNetPlans__3d_lowres", str(tmp_path / "outside")):
        root = write_model(tmp_path / stage.replace("/", "_")[-20:], "3d_cascade_fullres", configuration())
        content = json.loads((root / "plans.json").read_text())
        content["configurations"]["3d_cascade_fullres"]["previous_stage"] = stage
        (root / "plans.json").write_text(json.dumps(content))
        with pytest.raises(BundleError) as raised:
            read_bundle(root)
        assert raised.value.code == "bundle.unknown"


def test_models_with_different_labels_are_not_averaged(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    write_model(tmp_path, "2d", FLAT, dataset_changes={"labels": {"background": 0, "other": 1}})
    with pytest.raises(BundleError) as raised:
        read_bundle(f"{root.parent}:2d+3d_fullres")
    assert raised.value.code == "bundle.nnunet"


def test_names_that_are_no_folders_are_unknown(tmp_path: Path) -> None:
    for name in ("C:\\models", "x" * 300, "a\0b", "nothing:3d_fullres", ":", "@", str(tmp_path / "nothing") + "@0"):
        with pytest.raises(BundleError) as raised:
            read_bundle(name)
        assert raised.value.code == "bundle.unknown"


def test_a_part_of_a_model_is_refused_with_the_folder_to_take(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    for part in (root / "fold_0", root / "fold_0" / "checkpoint_final.pth"):
        with pytest.raises(BundleError) as raised:
            read_bundle(str(part))
        assert raised.value.code == "bundle.unknown"
        assert "a MONAI bundle (configs/metadata.json) or an nnU-Net folder (plans.json)" in str(raised.value)
        assert f"take the folder above, {str(root)!r}" in str(raised.value)
    for name in (f"{root}@0-2", f"{root.parent}:3d_fullres@0-2"):
        with pytest.raises(BundleError, match="one by one, such as @0,1,2") as raised:
            read_bundle(name)
        assert raised.value.code == "bundle.unknown"
