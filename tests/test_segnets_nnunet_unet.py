"""Networks of nnU-Net inside segnets: their shapes, their weights, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_models import configuration, write_model

from napari_seg.bundles.nnunet.load import load_nnunet
from napari_seg.bundles.nnunet.network import plain_arguments
from napari_seg.bundles.nnunet.read import read_training
from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.nnunet_unet import NnunetUNet
from segnets.training.frozen import FrozenStages
from segnets.training.matching import stated_names
from segnets.training.weights import load_matching_weights


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    entry = configuration()
    stages = {"n_stages": 3, "features_per_stage": [4, 8, 8], "n_conv_per_stage": [1, 1, 1]}
    stages |= {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    entry["architecture"]["arch_kwargs"] |= stages | {"n_conv_per_stage_decoder": [1, 1]}
    return write_model(tmp_path / "results", entry=entry, dataset_changes={"labels": {"background": 0, "b": 2, "a": 1}})


def unet(source: Path, **changes: Any) -> NnunetUNet:
    found = read_training(source).configuration
    arguments = {"architecture": found.network_class, "arguments": plain_arguments(found)} | changes
    return NnunetUNet(3, 1, 3, **arguments)


def test_the_weights_of_a_checkpoint_give_its_logits(source: Path) -> None:
    path = source / "fold_0" / "checkpoint_final.pth"
    assert stated_names(path) == (("background", "a", "b"), ("T1",))
    network = unet(source)
    fit = load_matching_weights(network, path, {"0": "background", "1": "a", "2": "b"}, {"0": "T1"})
    assert (fit.fresh, fit.unused, fit.fraction) == ((), (), 1.0)
    theirs = load_nnunet(read_training(source), torch.device("cpu"), torch.float32).network
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), theirs(image))
        # images that no stride divides are padded
        assert network(torch.randn(2, 1, 7, 9, 13)).shape == (2, 3, 7, 9, 13)
    # a checkpoint may name a tensor once only
    content = torch.load(path, weights_only=False)
    weights = content["network_weights"]
    content["network_weights"] = {f"_orig_mod.{k}": v for k, v in weights.items() if ".all_modules." not in k}
    torch.save(content, path)
    again = unet(source).eval()
    load_matching_weights(again, path)
    with torch.no_grad():
        assert torch.equal(again(image), theirs(image))


def test_training_gets_the_logits_of_the_finer_levels(source: Path) -> None:
    network = unet(source).train()
    assert [tuple(one.shape) for one in network(torch.zeros(1, 1, 8, 16, 16))] == [(1, 3, 8, 16, 16)]
    assert not any(parameter.requires_grad for parameter in network.decoder.seg_layers[0].parameters())
    assert network.decoder.seg_layers[1].weight.requires_grad is not False
    assert len(FrozenStages(network, 2).frozen) == 2


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "Module"}, {"arguments": {"conv_op": "Conv2d"}}, {"arguments": {"conv_op": "Parameter"}}],
)
def test_other_networks_are_refused(source: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"found|expected"):
        unet(source, **changes)
