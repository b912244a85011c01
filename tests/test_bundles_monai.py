"""A network's weights are in memory while they are wanted, and always the ones that were asked for."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from torch import nn

from napari_seg.bundles.monai import Model, load_model
from napari_seg.bundles.spec import Bundle, read_bundle
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference import segment
from napari_seg.inference.backends import openvino as compiled
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


def let_go(model: Model) -> None:
    """As the engine does, and sees to it that nobody else holds the network."""
    known = weakref.ref(model.network)
    model.let_go()
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("mode", [False, True])
def test_weights_that_were_let_go_are_read_again(tmp_path: Path, mode: bool) -> None:
    model = load_model(make_bundle(tmp_path / "bundle"), "cpu")
    with torch.inference_mode(mode):
        before = model.network(WINDOW)
        state = {name: value.clone() for name, value in model.network.state_dict().items()}
        let_go(model)
        assert not any(value.untyped_storage().nbytes() > 8 for value in model.outline.state_dict().values())
        assert [value.shape for value in model.outline.state_dict().values()] == [v.shape for v in state.values()]
        again = model.network
        assert model.network is again
        assert not again.training
        torch.testing.assert_close(again(WINDOW), before)
        torch.testing.assert_close(dict(again.state_dict()), state)


def test_whoever_has_a_network_keeps_it(tmp_path: Path) -> None:
    model = load_model(make_bundle(tmp_path / "bundle"), "cpu")
    mine = model.network
    model.let_go()
    assert float(mine[0].weight.abs().sum()) > 0
    assert model.network is mine


def test_weights_that_were_changed_meanwhile_are_not_taken_for_the_old_ones(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = load_model(bundle, "cpu")
    let_go(model)
    save_weights(bundle.root, seed=1)
    os.utime(bundle.root / "models/model.pt", (1, 1))
    with pytest.raises(BundleError, match=r"bundle\.weights: .* changed"):
        _ = model.network
    assert load_model(bundle, "cpu") is not model


def test_a_network_that_others_hold_stays(tmp_path: Path) -> None:
    # an inferer that runs the network itself has it from the config, and must find its weights there
    bundle = make_bundle(tmp_path / "bundle")
    inferer = "import monai\n\n\nclass Own(monai.inferers.SimpleInferer):\n    def __init__(self, net, **_):\n"
    (bundle.root / "scripts/own.py").write_text(inferer + "        super().__init__()\n        self.net = net\n")
    config = bundle.root / "configs/inference.yaml"
    text = config.read_text().replace("monai.inferers.SlidingWindowInferer", "scripts.own.Own")
    config.write_text(text + "  net: '@network_def'\n")
    model = load_model(bundle, "cpu")
    assert model.inferer.net is model.network
    model.let_go()
    gc.collect()
    assert model.inferer.net is model.network
    assert float(model.network[0].weight.abs().sum()) > 0


def test_a_part_of_the_network_that_others_hold_is_the_same_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    inferer = "import monai\n\n\nclass Own(monai.inferers.SimpleInferer):\n    def __init__(self, net, **_):\n"
    (bundle.root / "scripts/own.py").write_text(inferer + "        super().__init__()\n        self.net = net\n")
    (bundle.root / "scripts/nets.py").write_text(
        NETWORK.replace("def make():", "def make(first):").replace("torch.nn.Conv3d(1, 3, 3, padding=1)", "first")
    )
    config = bundle.root / "configs/inference.yaml"
    text = config.read_text().replace("monai.inferers.SlidingWindowInferer", "scripts.own.Own")
    text = text.replace("scripts.nets.make", "scripts.nets.make\n  first: '@first'")
    convolution = "first: {_target_: torch.nn.Conv3d, in_channels: 1, out_channels: 3, kernel_size: 3, padding: 1}\n"
    config.write_text(convolution + text + "  net: '@first'\n")
    model = load_model(bundle, "cpu")
    assert model.inferer.net is model.network[0]
    model.let_go()
    gc.collect()
    assert model.inferer.net is model.network[0]


def test_numbers_that_are_not_in_the_file_stay(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    lenient = (
        "    network.register_load_state_dict_post_hook(lambda _, keys: keys.missing_keys.clear())\n    return network"
    )
    (bundle.root / "scripts/nets.py").write_text(NETWORK.replace("    return network", lenient))
    weights = bundle.root / "models/model.pt"
    torch.save({name: value for name, value in torch.load(weights).items() if "weight" not in name}, weights)
    model = load_model(bundle, "cpu")
    before = model.network[0].weight.clone()
    model.let_go()
    gc.collect()
    torch.testing.assert_close(model.network[0].weight, before)


MERGING = """
import torch


class Merging(torch.nn.Conv3d):
    def train(self, mode=True):
        if not mode and self.training:
            self.weight.data += 1.0  # what is trained beside large weights is merged with them to be run
        return super().train(mode)


def make():
    return torch.nn.Sequential(Merging(1, 3, 3, padding=1), torch.nn.BatchNorm3d(3))
"""
CLOSED = """
import torch


class Closed(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.BatchNorm3d(3))
        self.answer = lambda image: self[1](self[0](image))
        self.known_as = self[0].weight.data

    def forward(self, image):
        return self.answer(image) + self.known_as.sum()


def make():
    return Closed()
"""


@pytest.mark.parametrize("code", [MERGING, CLOSED], ids=["merges its weights", "holds itself and its weights"])
def test_a_network_answers_the_same_after_its_weights_were_let_go(tmp_path: Path, code: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle.root / "scripts/nets.py").write_text(code)
    model = load_model(bundle, "cpu")
    before = model.network(WINDOW)
    model.let_go()
    gc.collect()
    torch.testing.assert_close(model.network(WINDOW), before)


def test_a_compiled_network_is_not_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(compiled.CACHE_VARIABLE, str(tmp_path / "cache"))
    bundle = make_bundle(tmp_path / "bundle")
    values = np.random.default_rng(0).uniform(0, 200, (1, 30, 20, 18)).astype(np.float32)
    scan = Volume(values, Grid((30, 20, 18), np.diag([1.5, 1.25, 2.5, 1])))
    with_torch = segment(scan, bundle, backend="torch")
    known = weakref.ref(load_model(bundle, "cpu").network)
    found = segment(scan, bundle, backend="openvino")
    assert known() is None
    for _ in range(2):  # the second time with what is compiled already
        assert (found.array == with_torch.array).all()
        found = segment(scan, bundle, backend="openvino")
    assert (segment(scan, bundle, backend="torch").array == with_torch.array).all()
