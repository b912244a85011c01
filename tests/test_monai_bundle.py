"""The bundle on its own: its commands as a user types them, on phantoms, and what they agree on with napari-seg."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from napari_seg.bundle import read_bundle, shipped_root
from napari_seg.formats import read
from napari_seg.inference import segment

CONFIGS = shipped_root() / "configs"
SMALL = ["--patch_size", "[16,24,16]", "--network_def#channels", "[4,8]", "--network_def#strides", "[2]"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten crops of two touching balls in the Decathlon's layout."""
    root = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(5)
    training = []
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for n in range(10):
        shape = rng.integers((22, 30, 22), (30, 40, 30))
        i, j, k = np.indices(shape) - shape[:, None, None, None] / 2
        front, back = i**2 + (j - 6) ** 2 + k**2 < 40, i**2 + (j + 6) ** 2 + k**2 < 30
        labels = np.where(front, 1, np.where(back, 2, 0)).astype(np.uint8)
        image = (200 * front + 400 * back + rng.normal(100, 20, shape)).astype(np.float32)
        name = f"case_{n:02d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), root / "imagesTr" / name)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), root / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (root / "dataset.json").write_text(json.dumps({"training": training, "labels": {"0": "none"}}))
    return root


def run(run_id: str, config: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(CONFIGS / config)]
    result = subprocess.run([*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def test_training_then_evaluating_from_another_folder(dataset: Path, tmp_path: Path) -> None:
    common = ["--dataset_dir", dataset, "--bundle_root", shipped_root(), *SMALL]
    brief = ["--max_epochs", 6, "--val_interval", 3, "--num_workers", 0, "--learning_rate", 0.01]
    log = run("training", "train.yaml", *common, *brief, "--output_dir", tmp_path / "run", cwd=tmp_path)
    assert "[6/6]" in log
    weights = tmp_path / "run" / "model_final.pt"
    assert weights.is_file()
    arguments = [*common, "--checkpoint", weights, "--output_dir", tmp_path / "scores"]
    log = run("evaluating", "evaluate.yaml", *arguments, cwd=tmp_path)
    assert "mean_dice" in log
    rows = (tmp_path / "scores" / "mean_dice_raw.csv").read_text().splitlines()
    assert rows[0] == "filename,class0,class1,mean"
    assert len(rows) == 1 + 2  # two of ten cases are kept for validation


def test_inference_agrees_with_segment(dataset: Path, tmp_path: Path) -> None:
    run("inference", "inference.yaml", "--dataset_dir", dataset, "--output_dir", tmp_path, cwd=tmp_path)
    written = sorted(tmp_path.glob("*_seg.nii.gz"))
    assert len(written) == 10
    for path in written[:3]:
        scan = read(dataset / "imagesTr" / path.name.replace("_seg", ""))
        theirs, ours = read(path), segment(scan)
        assert theirs.grid.matches(scan.grid)
        assert (theirs.array[0] == ours.array).mean() >= 0.999


def test_the_three_configs_mean_the_same_network_windows_and_spacing() -> None:
    configs = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("train", "evaluate", "inference")]

    def pick(config: dict[str, Any]) -> list[Any]:
        inferer = config["inferer"] if "inferer" in config else config["validate"]["inferer"]
        return [config["network_def"], config["patch_size"], config["spacing_mm"], inferer]

    assert pick(configs[0]) == pick(configs[1]) == pick(configs[2])


def test_training_and_validation_share_no_case(dataset: Path) -> None:
    sys.path.insert(0, str(shipped_root()))
    try:
        from segnets import datalist

        training, validation = datalist(dataset, "training"), datalist(dataset, "validation")
        assert (len(training), len(validation), len(datalist(dataset, "all"))) == (8, 2, 10)
        assert not {c["image"] for c in training} & {c["image"] for c in validation}
        assert datalist(dataset, "validation") == validation
        with pytest.raises(FileNotFoundError, match=r"dataset\.json"):
            datalist(dataset / "imagesTr", "all")
    finally:
        sys.path.remove(str(shipped_root()))


@pytest.mark.parametrize("size", [(48, 64, 48), (31, 7, 40), (9, 9, 9)])
def test_the_network_takes_any_size(size: tuple[int, int, int]) -> None:
    import torch

    sys.path.insert(0, str(shipped_root()))
    try:
        from segnets import UNet

        network = UNet(3, 1, 3, channels=(4, 8, 16, 32)).train()
        logits = network(torch.rand(1, 1, *size))
        assert logits.shape == (1, 3, *size)
        logits.mean().backward()
        assert UNet(2, 3, 2, channels=(4, 8), strides=(2,))(torch.rand(2, 3, *size[:2])).shape == (2, 2, *size[:2])
    finally:
        sys.path.remove(str(shipped_root()))


def test_the_shipped_weights_are_small_and_say_what_they_were_trained_on() -> None:
    root = read_bundle().root
    assert (root / "models" / "model.pt").stat().st_size <= 15_000_000
    assert "CC BY-SA 4.0" in (root / "docs" / "data_license.txt").read_text()
