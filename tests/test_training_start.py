"""A training begins from a model of nnU-Net: before its first step it gives that model's labels."""

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
import torch
from nnunet_models import arguments, configuration, save_checkpoint, write_model
from task_models import write_task
from test_bundles_nnunet_convert import oblique_scan

from napari_seg.bundles.nnunet.network import build_network
from napari_seg.bundles.nnunet.plans import read_configuration
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.bundles.totalsegmentator.weights import WEIGHTS_VARIABLE
from napari_seg.cli.main import main
from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.formats.read import read
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.segment import segment
from napari_seg.learning.inherit import inherited_choices
from napari_seg.training.choices import Choices
from napari_seg.training.pace import read_configs
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.start import with_start

BALLS = {"labels": {"background": 0, "front": 1, "back": 2}, "channel_names": {"0": "MRI"}}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))


def balls(folder: Path, cases: int = 4) -> Path:
    data = datasets.write_decathlon(folder, cases=cases)
    (data / "labels.json").write_text('{"front": 1, "back": 2}')
    return data


def started(bundle: Path, data: Path) -> None:
    """Give a planned bundle the weights with which its training begins."""
    with with_segnets():
        parser = read_configs(bundle, data)
        plan = json.loads((bundle / "plan.json").read_text())
        parser["finetune"] = str((bundle / plan["choices"]["fine_tune"]["file"]).resolve())
        parser.get_parsed_content("pretrained")
        torch.save(parser.get_parsed_content("network_def").state_dict(), bundle / WEIGHTS)


def residual() -> dict[str, Any]:
    """Return a network of three levels with residual blocks."""
    own = {key: value for key, value in arguments(stages=3).items() if key != "n_conv_per_stage"}
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    return {"network_class_name": name, "arch_kwargs": own | {"n_blocks_per_stage": [1, 2, 1]}}


VARIANTS: list[tuple[dict[str, Any], dict[str, Any], int, float]] = [
    ({"patch": (32, 48, 48), "spacing": (1.5, 1, 1)}, {"transpose_forward": [0, 2, 1]}, 6, 0.9999),
    (  # several windows, which MONAI weights a little differently
        {"patch": (32, 48, 48), "architecture": residual(), "use_mask_for_norm": [True]},
        {"image_reader_writer": "SimpleITKIOWithReorient"},
        4,
        0.99,
    ),
]
"""Changes of the configuration and of the plans, seed of the weights, and share of equal voxels."""

SLICES = ({"patch": (48, 48), "spacing": (1.5, 1)}, {"transpose_forward": [1, 0, 2]}, 1, 0.9999)


@pytest.mark.parametrize("variant", [*VARIANTS, SLICES])
def test_the_labels_are_those_of_nnunet_before_the_first_step(tmp_path: Path, variant: tuple) -> None:
    entry, plans, seed, share = variant
    source = write_model(
        tmp_path / "source",
        entry=configuration(**entry),
        dataset_changes=BALLS,
        plans_changes=plans,
        folds=(0, 1),
        seed=seed,
    )
    (source / "LICENSE").write_text("MIT License\n")
    data, out = balls(tmp_path / "data"), tmp_path / "out"
    plan = plan_bundle(data, out, with_start(Choices(), source, out))
    assert plan["fine-tuning"] == "Dataset001_Phantom 3d_fullres, fold 0, of 2 folds: front from front, back from back"
    assert (
        plan["network"]["arguments"]["architecture"]
        == entry.get("architecture", {}).get("network_class_name", "PlainConvUNet").rpartition(".")[2]
    )
    started(out, data)
    volume = oblique_scan()
    expected = segment(volume, read_bundle(f"{source}@0"), SegmentOptions(tta="none")).array
    assert np.bincount(expected.ravel()).min() > 2000
    bundle = read_bundle(out, trust=True)
    found = segment(volume, bundle)
    assert (found.array == expected).mean() >= share
    assert [one.name for one in found.segments] == ["front", "back"]
    assert SegmentOptions().resolved(bundle).match == "exact"
    metadata = json.loads((out / METADATA).read_text())
    assert "Dataset001_Phantom" in metadata["data_source"]
    assert metadata["license"] == "MIT"
    assert "dynamic_network_architectures" in metadata["required_packages_version"]
    assert "MIT License" in (out / "docs" / "data_license.txt").read_text()


def test_a_bundle_that_began_from_nnunet_is_a_start_too(tmp_path: Path) -> None:
    source, data, out = model(tmp_path / "results"), balls(tmp_path / "data"), tmp_path / "out"
    begun = with_start(Choices(), source, out)
    plan_bundle(data, out, begun)
    started(out, data)
    again = with_start(Choices(), out, tmp_path / "again")
    assert (again.network, again.settings) == (begun.network, begun.settings)
    assert again.fine_tune["file"] == "../out/models/model.pt"
    plan = plan_bundle(data, tmp_path / "again", again, dry_run=True)
    assert plan["fine-tuning"] == "front from front, back from back"
    path = out / "configs" / "inference.yaml"
    path.write_text(path.read_text().replace("monai.transforms.LoadImaged", "subprocess.run"))
    with pytest.raises(BundleError, match=r"bundle\.untrusted.*subprocess"):
        with_start(Choices(), out, tmp_path / "again")


def model(results: Path, **changes: Any) -> Path:
    return write_model(results, entry=configuration(), dataset_changes=BALLS, **changes)


@pytest.mark.usefixtures("unrendered_figures")
@pytest.mark.slow
def test_a_model_of_nnunet_is_trained_further(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, data, out = model(tmp_path / "results"), balls(tmp_path / "data"), tmp_path / "out"
    (data / "labels.json").write_text('{"back": 2, "front": 1}')
    checkpoint = (source / "fold_0" / "checkpoint_final.pth").read_bytes()
    words = ["train", str(data), "-o", str(out), "--set", "num_workers=0", "--set", "val_interval=1"]
    begin = ["--fine-tune", f"{tmp_path / 'results'}:3d_fullres", "--max-epochs", "1"]
    assert main([*words, *begin]) == 0
    shown = capsys.readouterr().out
    assert (out / "training" / "evaluation" / "summary.json").is_file()
    assert "begin   Dataset001_Phantom 3d_fullres, fold 0: back from back, front from front" in shown
    assert (source / "fold_0" / "checkpoint_final.pth").read_bytes() == checkpoint
    scan = read(data / "imagesTr" / "case_00.nii.gz")
    found = segment(scan, read_bundle(out, trust=True))
    assert [one.name for one in found.segments] == ["back", "front"]
    assert found.array.shape == scan.grid.shape
    # the same command goes on, without its beginning too
    assert main([*words, "--max-epochs", "2", "--dry-run"]) == 0
    assert main([*words, *begin, "--dry-run"]) == 0


def test_what_cannot_be_trained_further_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    overlapping = write_model(tmp_path / "regions", dataset_changes=regions)
    published = "Dataset297_TotalSegmentator_total_3mm_1559subj"
    unknown = write_model(tmp_path / "tasks", dataset_folder=published)
    several = tmp_path / "several"
    for name in ("3d_fullres", "3d_lowres"):
        model(several, name=name)
    for start, found in (
        (overlapping, "overlap"),
        (unknown, "a model of TotalSegmentator that no task runs"),
        (f"{several}:3d_fullres+3d_lowres", "averages 2 models"),
    ):
        with pytest.raises(BundleError, match=rf"bundle\.fine_tune.*{found}"):
            with_start(Choices(), start, out)
    with pytest.raises(BundleError, match=r"bundle\.unknown.*choose one"):
        with_start(Choices(), several, out)
    with pytest.raises(TrainingError, match=r"weights\.missing"):
        with_start(Choices(), tmp_path / "nothing", out)
    with pytest.raises(OutputError, match=r"output\.exists.*choose a new folder"):
        with_start(Choices(), several, several)
    start = several / "Dataset001_Phantom" / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    for changes, found in (
        ({"network": "FCN"}, "--network FCN"),
        ({"size": "L"}, "--size L"),
        ({"plan": "nnunet"}, "--plan nnunet"),
        ({"dims": 2}, "--dims 2"),
        ({"settings": {"network_def#channels": [4]}}, "--set network_def#channels"),
    ):
        with pytest.raises(BundleError, match=rf"bundle\.setting.*{found}"):
            with_start(Choices(**changes), start, out)
    flat = write_model(tmp_path / "flat", "2d", configuration((16, 16), (1, 1)))
    with pytest.raises(BundleError, match=r"bundle\.setting.*--dims 3"):
        with_start(Choices(dims=3), flat, out)
    assert not out.exists()


def test_a_2d_model_keeps_its_slices(tmp_path: Path) -> None:
    flat = write_model(tmp_path / "flat", "2d", configuration((16, 16), (1, 1)), dataset_changes=BALLS)
    data, out = balls(tmp_path / "data"), tmp_path / "out"
    plan = plan_bundle(data, out, with_start(Choices(), f"{tmp_path / 'flat'}:2d", out))
    assert {"slices_2d", "crops_balanced"} <= plan["options"].keys()
    shapes = [nibabel.load(path).shape for path in (data / "labelsTr").iterdir()]
    assert plan["network"]["largest case"] in [[*reversed(shape)] for shape in shapes]
    started(out, data)
    again = with_start(Choices(), out, tmp_path / "again")
    assert (again.dims, again.settings["slice_axis"]) == (2, 0)
    assert inherited_choices(read_bundle(out), tmp_path / "again").settings == again.settings
    with pytest.raises(BundleError, match=r"bundle\.dims.*2D images"):
        plan_bundle(
            datasets.write_voc(tmp_path / "images"), tmp_path / "other", with_start(Choices(), flat, tmp_path / "other")
        )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    source = model(tmp_path / "results")
    found = read_configuration(source, "3d_fullres", "nnUNetTrainer")
    normalised = found.network_arguments.replace("instancenorm.InstanceNorm3d", "batchnorm.BatchNorm3d")
    network = build_network(replace(found, network_arguments=normalised))
    save_checkpoint(source / "fold_0" / "checkpoint_final.pth", network, trainer="nnUNetTrainerBN")
    with pytest.raises(BundleError, match=r"bundle\.weights.*nnUNetTrainerBN"):
        with_start(Choices(), source, tmp_path / "out")


def test_a_model_of_totalsegmentator_is_shown_canonical_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    out = tmp_path / "out"
    for name in ("total_mr_fast", "total_mr", "lung_vessels"):
        write_task(tmp_path / "weights", name)
    begun = with_start(Choices(), "totalsegmentator:total_mr_fast", out)
    assert begun.settings["preprocessing"]["transforms"][1]["reorient"] is True
    assert begun.fine_tune["licence"] == "Apache-2.0"
    assert "classes_from" not in begun.settings
    folder = (out / begun.fine_tune["file"]).resolve().parents[1]
    assert with_start(Choices(), folder, out) == begun
    with pytest.raises(BundleError, match=r"bundle\.fine_tune.*consists of 2 models.*Dataset850.*Dataset851"):
        with_start(Choices(), "totalsegmentator:total_mr", out)
    with pytest.raises(BundleError, match=r"bundle\.fine_tune.*where another task finds something"):
        with_start(Choices(), "totalsegmentator:lung_vessels", out)


def test_a_fold_can_be_chosen(tmp_path: Path) -> None:
    source, out = model(tmp_path / "results", folds=(0, 3)), tmp_path / "out"
    for start in (f"{source}@3", source / "fold_3" / "checkpoint_final.pth"):
        begun = with_start(Choices(options=("flips",), settings={"seed": 3}), start, out)
        assert begun.fine_tune["file"].endswith("fold_3/checkpoint_final.pth")
        assert begun.fine_tune["model"] == "Dataset001_Phantom 3d_fullres, fold 3"
        assert begun.options == ("crops_balanced", "flips")
        assert begun.settings["seed"] == 3


def test_the_named_checkpoint_is_the_start(tmp_path: Path) -> None:
    source, out = model(tmp_path / "results"), tmp_path / "out"
    best = source / "fold_0" / "checkpoint_best.pth"
    shutil.copy(best.with_name("checkpoint_final.pth"), best)
    assert with_start(Choices(), best, out).fine_tune["file"].endswith("fold_0/checkpoint_best.pth")
    assert with_start(Choices(), source, out).fine_tune["file"].endswith("fold_0/checkpoint_final.pth")


def test_weights_in_the_root_folder_are_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: path == Path("/model.pt"))
    monkeypatch.setattr("napari_seg.training.start.describe_weights", lambda path, out: {"file": str(path)})
    assert with_start(Choices(), "/model.pt", tmp_path / "out").fine_tune == {"file": str(Path("/model.pt"))}


def test_other_channels_are_refused(tmp_path: Path) -> None:
    entry = configuration(normalization_schemes=["ZScoreNormalization"] * 2, use_mask_for_norm=[False] * 2)
    channels = BALLS | {"channel_names": {"0": "T1", "1": "FLAIR"}}
    source = write_model(tmp_path / "results", entry=entry, dataset_changes=channels)
    for names in (["FLAIR", "T1"], ["T1"], ["T1", "FLAIR", "T2"]):
        data, out = datasets.write_nnunet(tmp_path / "-".join(names), names, cases=4), tmp_path / "out"
        with pytest.raises(TrainingError, match=r"weights\.channels.*expected T1, FLAIR"):
            plan_bundle(data, out, with_start(Choices(), source, out))
        assert not out.exists()
    unnamed = datasets.write_decathlon(tmp_path / "unnamed", cases=4, channels=2)
    (unnamed / "labels.json").write_text('{"front": 1, "back": 2}')
    for data in (datasets.write_nnunet(tmp_path / "good", ["T1", "other"], cases=4), unnamed):
        plan = plan_bundle(data, out, with_start(Choices(), source, out), dry_run=True)
        assert plan["network"]["class"] == "NnunetUNet"
        assert plan["advice"] == []  # the model decides its dimensions and spacing


def test_the_largest_case_has_the_axes_of_the_network(tmp_path: Path) -> None:
    entry, changes = configuration(spacing=(1, 0.5, 2)), {"transpose_forward": [0, 2, 1]}  # of z, x, y
    source = write_model(tmp_path / "results", entry=entry, dataset_changes=BALLS, plans_changes=changes)
    data, out = balls(tmp_path / "data"), tmp_path / "out"
    shapes = [nibabel.load(path).shape for path in (data / "labelsTr").iterdir()]
    plan = plan_bundle(data, out, with_start(Choices(), source, out), dry_run=True)
    assert plan["network"]["largest case"] in [[z, 2 * x, round(y / 2)] for x, y, z in shapes]
