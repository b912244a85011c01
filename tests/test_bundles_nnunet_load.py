"""Loading models of nnU-Net: the network, the weights of all folds, and how windows are laid."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_models import configuration, save_checkpoint, write_model

from napari_seg.bundles.load import load_model
from napari_seg.bundles.nnunet import checkpoint
from napari_seg.bundles.nnunet.checkpoint import read_nnunet_checkpoint
from napari_seg.bundles.nnunet.network import build_network
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.weights.checkpoint import read_checkpoint
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["network_weights"]


def test_the_network_has_the_weights_of_its_checkpoint(tmp_path: Path, store: Path) -> None:
    root = write_model(tmp_path, mirror_axes=(0, 1))
    bundle = read_bundle(root)
    first = load_model(bundle, "cpu")
    assert first.mirror_axes == (0, 1)
    assert first.inferer.roi_size == (16, 16, 16)
    assert first.inferer.mode == "nnunet"
    assert first.inferer.overlap == (0.5,) * 3
    for name, tensor in weights_of(root / "fold_0" / "checkpoint_final.pth").items():
        assert torch.equal(first.network.state_dict()[name], tensor)
    assert load_model(bundle, "cpu") is first
    (kept,) = (store / ".weights").iterdir()
    assert kept.suffix == ".safetensors"
    again = read_nnunet_checkpoint(root / "fold_0" / "checkpoint_final.pth")
    assert (again.mirror_axes, again.trainer, again.configuration) == ((0, 1), "nnUNetTrainer", "3d_fullres")


def test_weights_are_kept_once_and_written_again_where_they_are_damaged(tmp_path: Path, store: Path) -> None:
    path = write_model(tmp_path) / "fold_0" / "checkpoint_final.pth"
    first = read_nnunet_checkpoint(path)
    (kept,) = (store / ".weights").iterdir()
    kept.write_bytes(b"damaged")
    second = read_nnunet_checkpoint(path)
    assert all(torch.equal(second.weights[name], tensor) for name, tensor in first.weights.items())
    assert kept.stat().st_size > 1000


def test_folds_are_averaged_as_logits(tmp_path: Path) -> None:
    root = write_model(tmp_path, folds=(0, 1, 2))
    windows = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    single = [load_model(read_bundle(f"{root}@{fold}"), "cpu").network for fold in range(3)]
    with torch.inference_mode():
        expected = torch.stack([network(windows) for network in single]).mean(dim=0)
        found = load_model(read_bundle(root), "cpu").network(windows)
    torch.testing.assert_close(found, expected)


def test_a_network_of_slices_takes_windows_of_one_plane(tmp_path: Path) -> None:
    entry = configuration((16, 24), (1, 1))
    root = write_model(tmp_path, "2d", entry, mirror_axes=(0, 1))
    model = load_model(read_bundle(root), "cpu")
    assert model.inferer.roi_size == (1, 16, 24)
    assert model.inferer.overlap == (0.0, 0.5, 0.5)  # each slice once
    assert model.mirror_axes == (1, 2)
    with torch.inference_mode():
        assert model.network(torch.zeros(2, 1, 1, 16, 24)).shape == (2, 3, 1, 16, 24)


def test_names_of_wrappers_and_aliases_do_not_matter(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    path = root / "fold_0" / "checkpoint_final.pth"
    weights = weights_of(path)
    unique = {f"module._orig_mod.{key}": value for key, value in weights.items() if "decoder.encoder" not in key}
    network = build_network(read_bundle(root).configuration)
    save_checkpoint(path, network, network_weights=unique)
    model = load_model(read_bundle(root), "cpu")
    assert all(torch.equal(model.network.state_dict()[key], value) for key, value in weights.items())


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_weights_of_another_network_are_refused_with_the_name_of_the_trainer(tmp_path: Path, damage: str) -> None:
    root = write_model(tmp_path, trainer="nnUNetTrainerBN")
    path = root / "fold_0" / "checkpoint_final.pth"
    weights = weights_of(path)
    key = "encoder.stages.0.0.convs.0.conv.weight"
    if damage == "missing":
        weights = {name: value for name, value in weights.items() if not name.endswith("seg_layers.0.bias")}
    elif damage == "unknown":
        weights["encoder.norm.running_mean"] = torch.zeros(4)
    else:
        weights = {name: value[:2] if value.shape == weights[key].shape else value for name, value in weights.items()}
    network = build_network(read_bundle(root).configuration)
    save_checkpoint(path, network, trainer="nnUNetTrainerBN", network_weights=weights)
    with pytest.raises(BundleError, match="nnUNetTrainerBN") as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights"


def test_loading_imports_no_monai(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    code = (
        "import sys; from napari_seg.bundles.read import read_bundle; from napari_seg.bundles.load import load_model\n"
        f"load_model(read_bundle({str(root)!r}), 'cpu'); assert 'monai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kept_weights_of_another_checkpoint_are_not_taken(tmp_path: Path, store: Path) -> None:
    one, other = (write_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    path = one / "fold_0" / "checkpoint_final.pth"
    expected = read_nnunet_checkpoint(path).weights
    (kept,) = store.glob(".weights/*")
    read_nnunet_checkpoint(other / "fold_0" / "checkpoint_final.pth")
    (strange,) = {*store.glob(".weights/*")} - {kept}
    kept.write_bytes(strange.read_bytes())
    found = read_nnunet_checkpoint(path).weights
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    network = build_network(read_bundle(root).configuration)
    save_checkpoint(root / "fold_0" / "checkpoint_final.pth", network, "3d_lowres")
    with pytest.raises(BundleError, match="3d_lowres") as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.nnunet"


def test_copies_of_folds_are_no_folds(tmp_path: Path) -> None:
    root = write_model(tmp_path, folds=(0, "0_backup"))
    assert read_bundle(root).folds == ("fold_0",)


def test_a_result_names_the_weights_that_made_it_whatever_lies_there_now(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    path = root / "fold_0" / "checkpoint_final.pth"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    array = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    scan, replaced = Volume(array, Grid((16, 16, 16), np.eye(4))), []

    def replace_weights(stage: str, done: int, total: int) -> None:
        if stage == "segmenting" and done and not replaced:
            path.unlink()
            replaced.append(True)

    found = segment(scan, read_bundle(root), device="cpu", backend="torch", progress=replace_weights)
    assert replaced
    assert found.run["weights"] == {"fold_0": sha256}


def test_weights_that_are_replaced_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    root = write_model(tmp_path)
    other = write_model(tmp_path / "other", seed=1) / "fold_0" / "checkpoint_final.pth"

    def read(one: Path) -> Any:
        shutil.copy(other, one)
        return read_checkpoint(one)

    monkeypatch.setattr(checkpoint, "read_checkpoint", read)
    with pytest.raises(BundleError, match="was replaced while it was read"):
        load_model(read_bundle(root), "cpu")
    assert not list(store.rglob("*.safetensors"))
