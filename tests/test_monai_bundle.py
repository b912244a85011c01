"""Test the bundle without napari-seg: its commands on phantoms, and MONAI's requirements on bundles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from datasets import write_decathlon
from preloaded import run_python

from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.formats.read import read
from napari_seg.inference.segment import segment

CONFIGS = shipped_root() / "configs"
METADATA = str(CONFIGS / "metadata.json")
SCHEMA = Path(__file__).with_name("meta_schema.json")
SMALL = ["--patch_size", "[16,24,16]", "--network_def#channels", "[4,8]"]
WORKFLOWS = {"train": "train", "evaluate": "infer", "inference": "infer"}


@pytest.fixture(autouse=True)
def segnets() -> Iterator[None]:
    """Make the bundle's package importable, as PYTHONPATH=monai_bundle does; MONAI's checks do not."""
    sys.path.insert(0, str(shipped_root()))
    yield
    sys.path.remove(str(shipped_root()))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decathlon(tmp_path_factory.mktemp("dataset"))


def run(run_id: str, config: str, *arguments: object, cwd: Path) -> str:
    files = str([str(CONFIGS / name) for name in config.split(",")])
    words = ["-m", "monai.bundle", "run", run_id, "--config_file", files, *map(str, arguments)]
    status, printed = run_python(words, cwd)
    assert status == 0, printed[-6000:]
    return printed


def test_training_then_evaluating_from_another_folder(dataset: Path, tmp_path: Path) -> None:
    common = ["--dataset_dir", dataset, "--bundle_root", shipped_root(), *SMALL]
    brief = ["--max_epochs", 6, "--val_interval", 3, "--learning_rate", 0.01]
    brief += ["--validate#inferer#overlap", 0.5]  # as the evaluation's windows
    folder = tmp_path / "run"
    log = run("training", "train.yaml", *common, *brief, "--output_dir", folder, cwd=tmp_path)
    assert "10 cases of 10 patients checked" in log
    assert "epoch 6/6" in log
    kept = {"model.pt", "model_final.pt", "history.jsonl", "learning_curve.png", "worst_best.png", "checkpoints"}
    assert kept <= {path.name for path in folder.iterdir()}

    trained = [*common, "--checkpoint", folder / "model.pt"]
    log = run("evaluating", "evaluate.yaml", *trained, "--output_dir", tmp_path / "alone", cwd=tmp_path)
    assert "mean_dice: mean " in log
    rows = (tmp_path / "alone" / "mean_dice_raw.csv").read_text().splitlines()
    assert rows[0] == "filename,class0,class1,mean"
    assert len(rows) == 1 + 1  # one of ten cases chooses the weights, one is kept for the test
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert summary["mean_dice"].keys() == {"mean", "anterior hippocampus", "posterior hippocampus"}
    assert summary.keys() == {"cases", "mean_dice", "hd95_mm", "nsd"}
    best = max(json.loads(line).get("mean_dice", 0) for line in (folder / "history.jsonl").read_text().splitlines())
    assert summary["mean_dice"]["mean"] == pytest.approx(best, abs=1e-4)

    merged = [*trained, "--part", "all", "--output_dir", tmp_path / "merged"]
    run("evaluating", "train.yaml,evaluate.yaml", *merged, cwd=tmp_path)
    assert json.loads((tmp_path / "merged" / "summary.json").read_text())["cases"] == 10


def test_inference_agrees_with_segment(tmp_path: Path) -> None:
    dataset = write_decathlon(tmp_path / "dataset", cases=3)
    run("inference", "inference.yaml", "--dataset_dir", dataset, "--output_dir", tmp_path, cwd=tmp_path)
    written = sorted(tmp_path.glob("*_seg.nii.gz"))
    assert len(written) == 3
    for path in written:
        scan = read(dataset / "imagesTr" / path.name.replace("_seg", ""))
        theirs, ours = read(path), segment(scan, keep_islands=True)
        assert theirs.grid.matches(scan.grid)
        assert (theirs.array[0] == ours.array).mean() >= 0.999


def test_the_three_configs_agree() -> None:
    configs = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in WORKFLOWS]
    common = {"bundle_root", "device", "num_classes", "patch_size", "spacing_mm", "network_def", "preprocessing"}
    common |= {"windows", "inferer"}
    first, *others = ({key: config[key] for key in common} for config in configs)
    assert all(first == other for other in others)
    data = {"layout", "images_dir", "labels_dir", "channels", "patient", "labels", "fold", "folds", "cases"}
    data |= {"found_dataset", "class_values", "label_values", "allow_empty"}
    assert {key: configs[0][key] for key in data} == {key: configs[1][key] for key in data}
    checks = [set(config["check"].items()) for config in configs[:2]]
    assert {key for key, _ in checks[0] ^ checks[1]} == {"_disabled_", "cases", "num_channels", "cache_dir"}


@pytest.mark.parametrize("config", WORKFLOWS)
def test_monai_finds_the_required_properties(config: str, dataset: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        str(CONFIGS / f"{config}.yaml"),
        workflow_type=WORKFLOWS[config],
        logging_file=False,
        dataset_dir=str(dataset),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_the_metadata_follows_the_specification(tmp_path: Path) -> None:
    from monai.bundle import verify_metadata

    verify_metadata(meta_file=METADATA, filepath=str(SCHEMA))
    broken = json.loads(Path(METADATA).read_text())
    del broken["network_data_format"]["outputs"]["pred"]["channel_def"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="channel_def"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize("config", WORKFLOWS)
def test_the_network_has_the_input_and_output_of_the_metadata(config: str) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out("network_def", meta_file=METADATA, config_file=str(CONFIGS / f"{config}.yaml"))


def test_the_shipped_weights_are_exported_as_torchscript(tmp_path: Path) -> None:
    from monai.bundle import ckpt_export

    exported = tmp_path / "model.ts"
    ckpt_export(
        "network_def",
        filepath=str(exported),
        ckpt_file=str(shipped_root() / "models" / "model.pt"),
        meta_file=METADATA,
        config_file=str(CONFIGS / "inference.yaml"),
    )
    script = torch.jit.load(str(exported))
    assert script(torch.zeros(1, 1, 31, 7, 40)).shape == (1, 3, 31, 7, 40)


def test_the_shipped_weights_are_small_and_name_their_training_data() -> None:
    root = read_bundle().root
    assert (root / "models" / "model.pt").stat().st_size <= 15_000_000
    assert "CC BY-SA 4.0" in (root / "docs" / "data_license.txt").read_text()


def test_a_clone_has_the_same_bytes_on_every_system() -> None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no clone")
    text = subprocess.run(["git", "ls-files", "--eol"], cwd=root, check=True, capture_output=True, text=True).stdout
    for line in text.splitlines():
        stored, _, attributes = line.partition("\t")[0].split(maxsplit=2)
        as_text = stored in ("i/lf", "i/none") and attributes.strip() == "attr/text=auto eol=lf"
        assert as_text or (stored == "i/-text" and attributes.strip() == "attr/-text"), line
