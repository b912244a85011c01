"""A MONAI bundle becomes a model whose weights are those of its file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from torch import nn

from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.geometry import Grid
from napari_seg.inference.backends.cache_folder import CACHE_VARIABLE
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume

NETWORK = """
import torch


def make():
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.BatchNorm3d(3))
    network.known = [network]  # it holds itself, as many do
    return network
"""
WINDOW = torch.ones(1, 1, 8, 8, 8)


def make_bundle(root: Path) -> Bundle:
    """One whose network has weights and running means, and whose preprocessing has a lambda."""
    write_threshold_bundle(root, roi=(16, 16, 16))
    config = root / "configs/inference.yaml"
    text = config.read_text()
    text = text.replace("scripts.nets.Threshold\n  halves: false", "scripts.nets.make")
    text = text.replace(
        "inferer:",
        "    - {_target_: monai.transforms.Lambdad, keys: image, func: '$lambda image: image - 100'}\ninferer:",
    )
    config.write_text(text)
    (root / "scripts/nets.py").write_text(NETWORK)
    save_weights(root, seed=0)
    return read_bundle(root, trust=True)


def save_weights(root: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3))
    network[1].running_mean.normal_()
    torch.save(network.state_dict(), root / "models/model.pt")


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    network = load_model(bundle, "cpu").network
    assert not network.training
    torch.testing.assert_close(dict(network.state_dict()), torch.load(bundle.root / "models/model.pt"))


def test_weights_that_changed_are_loaded_again(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = load_model(bundle, "cpu")
    assert load_model(bundle, "cpu") is model
    before = model.network(WINDOW)
    save_weights(bundle.root, seed=1)
    os.utime(bundle.root / "models/model.pt", (1, 1))
    again = load_model(bundle, "cpu")
    assert again is not model
    assert not torch.allclose(again.network(WINDOW), before)
    torch.testing.assert_close(model.network(WINDOW), before)


def test_an_inferer_that_holds_the_network_has_the_same_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    inferer = "import monai\n\n\nclass Own(monai.inferers.SimpleInferer):\n    def __init__(self, net, **_):\n"
    (bundle.root / "scripts/own.py").write_text(inferer + "        super().__init__()\n        self.net = net\n")
    config = bundle.root / "configs/inference.yaml"
    text = config.read_text().replace("monai.inferers.SlidingWindowInferer", "scripts.own.Own")
    config.write_text(text + "  net: '@network_def'\n")
    model = load_model(bundle, "cpu")
    assert model.inferer.net is model.network


MERGING = """
import torch


class Merging(torch.nn.Conv3d):
    def train(self, mode=True):
        if not mode and self.training:
            self.weight.data += 1.0  # merges trained adapters into large weights before it runs
        return super().train(mode)


def make():
    return torch.nn.Sequential(Merging(1, 3, 3, padding=1), torch.nn.BatchNorm3d(3))
"""


@pytest.mark.parametrize("code", [NETWORK, MERGING], ids=["plain", "merges its weights"])
def test_backends_take_turns_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    bundle = make_bundle(tmp_path / "bundle")
    (bundle.root / "scripts/nets.py").write_text(code)
    values = np.random.default_rng(0).uniform(0, 200, (1, 30, 20, 18)).astype(np.float32)
    scan = Volume(values, Grid((30, 20, 18), np.diag([1.5, 1.25, 2.5, 1])))
    with_torch = segment(scan, bundle, backend="torch")
    for backend in ("openvino", "openvino", "torch"):  # the second time with what is compiled already
        assert (segment(scan, bundle, backend=backend).array == with_torch.array).all()


def test_entries_that_change_others_are_merged_as_monai_does(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    config = bundle.root / "configs/inference.yaml"
    config.write_text(config.read_text() + 'inferer::overlap: 0.75\n+inferer: {mode: "gaussian"}\n')
    inferer = load_model(bundle, "cpu").inferer
    assert (inferer.overlap, inferer.mode) == (0.75, "gaussian")
