"""The weights are those that the config loads, and nothing else takes their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import write_plain_bundle
from test_bundles_weights_checkpoint import Evil

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.config.resolve import Resolver
from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.weights.find import Weights, find_weights, load_weights, state_dictionary
from napari_seg.errors import BundleError

STATE = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}


def found(root: Path, **entries: Any) -> Weights:
    return find_weights(Resolver(entries, root))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


LOADER = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/' + @name", "load_dict": {"net": "@n"}}


@pytest.mark.parametrize(
    ("entries", "name", "key"),
    [
        ({}, "models/model.pt", ""),
        ({"handlers": [{"_target_": "StatsHandler"}, LOADER], "name": "b.pt"}, "models/b.pt", "net"),
        (
            {"loader": {**LOADER, "load_path": "./models/b.pt"}, "initialize": ["$@loader(@evaluator)"]},
            "models/b.pt",
            "net",
        ),
        ({"loader": {**LOADER, "_disabled_": True}, "name": "b.pt"}, "models/model.pt", ""),
        (
            {"a": {**LOADER, "_disabled_": "$not os.path.exists(@p)"}, "p": "models/b.pt", "name": "b.pt"},
            "models/b.pt",
            "net",
        ),
        ({"loader": LOADER, "name": "only.pt"}, "models/only.safetensors", "net"),
        ({"loader": {**LOADER, "_target_": "monai.handlers.CheckpointLoader"}, "name": "b.pt"}, "models/b.pt", "net"),
        (
            {"init": ["$@network.load_state_dict(torch.load(@path, map_location='cpu'))"], "path": "models/b.pt"},
            "models/b.pt",
            "",
        ),
        ({"init": "$@network.load_state_dict(torch.load(@bundle_root + '/models/b.pt')['ema'])"}, "models/b.pt", "ema"),
        ({"init": "$load_state_dict(torch.load(foreign.path()))"}, "models/model.pt", ""),
    ],
)
def test_the_config_names_the_file(tmp_path: Path, entries: dict[str, Any], name: str, key: str) -> None:
    touch(tmp_path, "models/model.pt", "models/b.pt", "models/only.safetensors")
    weights = found(tmp_path, **entries)
    assert (weights.path, weights.key) == (tmp_path / name, key)


def test_missing_weights_are_not_replaced_by_others(tmp_path: Path) -> None:
    touch(tmp_path, "models/model.pt", "large_files.yml")
    with pytest.raises(BundleError, match=r"has no models/low\.pt; its large_files.yml does not name") as caught:
        found(tmp_path, loader=LOADER, name="low.pt")
    assert caught.value.code == "bundle.weights"
    touch(tmp_path.parent, "outside.pt")
    for path in ("../outside.pt", str(tmp_path.parent / "outside.pt"), "models/../../outside.pt"):
        with pytest.raises(BundleError, match="outside it"):
            found(tmp_path, loader={**LOADER, "load_path": path})
    (tmp_path / "models/model.pt").unlink()
    with pytest.raises(BundleError, match=r"has no models/model\.pt"):
        found(tmp_path)


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        {"model": STATE, "epoch": 3},
        {"state_dict": STATE},
        {"net": STATE, "optimizer": {}},
        {"network_weights": STATE},
        {"model": {"module.weight": STATE["weight"], "module.bias": STATE["bias"]}},
        {"_orig_mod.module.weight": STATE["weight"], "_orig_mod.module.bias": STATE["bias"]},
    ],
)
def test_a_state_dictionary_is_found_in_a_checkpoint(checkpoint: Any) -> None:
    if "_orig_mod.module.weight" in checkpoint:
        checkpoint = {key.removeprefix("_orig_mod."): value for key, value in checkpoint.items()}
    assert list(state_dictionary(checkpoint)) == ["weight", "bias"]
    assert state_dictionary({"ema": STATE, "model": {}}, "ema") == STATE
    with pytest.raises(ValueError, match="Linear, not a state dictionary"):
        state_dictionary(torch.nn.Linear(2, 2))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "models/model.pt"
    path.parent.mkdir()
    network = torch.nn.Linear(2, 2)
    torch.save({**STATE, "extra": torch.ones(1)}, path)
    with pytest.raises(BundleError, match=r"1 unknown to the network \(extra\)"):
        load_weights(network, Weights(path))
    load_weights(network, Weights(path, is_strict=False))
    assert network.weight.sum() == 4
    torch.save({"weight": torch.ones(2, 2)}, path)
    for is_strict in (True, False):  # never weights at random
        with pytest.raises(BundleError, match=r"1 missing in the file \(bias\)"):
            load_weights(network, Weights(path, is_strict=is_strict))
    torch.save({"weight": Evil(tmp_path / "trap")}, path)
    with pytest.raises(BundleError, match="mkdir") as caught:
        load_weights(network, Weights(path))
    assert caught.value.code == "bundle.weights_unsafe"
    assert not (tmp_path / "trap").exists()


def test_a_bundle_loads_what_its_config_names(tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    state = torch.load(root / "models/model.pt")
    torch.save({"net": {f"module.{key}": value + 1 for key, value in state.items()}}, root / "models/tuned.pt")
    path = root / "configs/inference.json"
    config = read_config(path) | {"handlers": [{**LOADER, "load_dict": {"net": "@network"}}], "name": "tuned.pt"}
    path.write_text(json.dumps(config))
    network = load_model(read_bundle(root), "cpu").network
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[key] + 1)


@pytest.mark.parametrize("how", ["to_sparse", "cfloat", "meta"])
def test_weights_without_plain_numbers_do_not_fit(tmp_path: Path, how: str) -> None:
    (tmp_path / "models").mkdir()
    weight = torch.ones(2, 3)
    state = {"weight": weight.to("meta") if how == "meta" else getattr(weight, how)(), "bias": torch.ones(2)}
    torch.save(state, tmp_path / "models" / "model.pt")
    with pytest.raises(BundleError, match="does not fit"):
        load_weights(torch.nn.Linear(3, 2), Weights(tmp_path / "models" / "model.pt"))
