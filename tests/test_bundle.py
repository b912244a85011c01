"""What a bundle declares, whom the program trusts, and what an unfit bundle is told."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from napari_seg import bundle as module
from napari_seg.bundle import find_bundles, read_bundle, shipped_root
from napari_seg.errors import BundleError
from napari_seg.inference.model import load_model


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A bundle from somebody else: the shipped one's configs and code, no weights."""
    root = tmp_path / "stranger"
    shutil.copytree(shipped_root(), root, ignore=shutil.ignore_patterns("models", "__pycache__"))
    return root


def code_of(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(BundleError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value.code


def test_the_shipped_bundle_declares_itself() -> None:
    bundle = read_bundle()
    assert bundle.trusted
    assert bundle.modality == "MR"
    assert [s.name for s in bundle.segments] == [
        "left anterior hippocampus",
        "left posterior hippocampus",
        "right anterior hippocampus",
        "right posterior hippocampus",
    ]
    assert bundle.localiser is not None
    assert [r.mirror for r in bundle.localiser.regions] == [False, True]
    assert find_bundles()[0][0].root == bundle.root
    assert read_bundle(bundle) is bundle


def test_bundles_are_found_by_folder_and_by_name(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.BUNDLES_VARIABLE, str(stranger.parent))
    shutil.copytree(stranger, stranger.parent / "zebra")
    (stranger.parent / "zebra/configs/metadata.json").write_text("{}")
    bundles, faults = find_bundles()
    assert [b.root for b in bundles] == [shipped_root(), stranger]
    assert [fault.code for fault in faults] == ["bundle.metadata"]
    assert read_bundle("stranger").root == stranger
    assert read_bundle(str(stranger)).root == stranger
    assert not read_bundle(stranger).trusted
    assert read_bundle(read_bundle(stranger), trust=True).trusted


def test_unknown_and_broken_bundles_are_named(stranger: Path) -> None:
    assert code_of(read_bundle, "no-such-bundle") == "bundle.unknown"
    (stranger / "configs/metadata.json").write_text("{not json")
    assert code_of(read_bundle, stranger) == "bundle.metadata"
    (stranger / "configs/metadata.json").write_text(json.dumps({"version": "1"}))
    assert code_of(read_bundle, stranger) == "bundle.metadata"


def test_a_strangers_code_does_not_run_unasked(stranger: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    config = stranger / "configs/inference.yaml"
    config.write_text(config.read_text() + f"\nnetwork_def: \"$open({str(trap)!r}, 'w')\"\n")
    assert code_of(load_model, read_bundle(stranger), "cpu") == "bundle.untrusted"
    assert not trap.exists()


def test_missing_and_foreign_weights_are_told(stranger: Path) -> None:
    import torch

    bundle = read_bundle(stranger, trust=True)
    assert code_of(load_model, bundle, "cpu") == "bundle.weights"
    (stranger / "models").mkdir()
    torch.save({"other.weight": torch.zeros(3)}, stranger / "models/model.pt")
    assert code_of(load_model, bundle, "cpu") == "bundle.weights"
    (stranger / "models/model.pt").write_bytes(b"not a checkpoint")
    assert code_of(load_model, bundle, "cpu") == "bundle.weights"


def test_a_config_that_fails_is_told(stranger: Path) -> None:
    (stranger / "models").mkdir()
    (stranger / "models/model.pt").touch()
    (stranger / "configs/inference.yaml").write_text("network_def: {_target_: segnets.NoSuchNet}\n")
    assert code_of(load_model, read_bundle(stranger, trust=True), "cpu") == "bundle.config"


def test_two_bundles_whose_modules_share_a_name_do_not_shadow_each_other(stranger: Path) -> None:
    before = sys.modules.get("segnets")
    (stranger / "models").mkdir()
    shutil.copy(shipped_root() / "models/model.pt", stranger / "models/model.pt")
    network = stranger / "segnets/unet.py"
    network.write_text(network.read_text() + "\nUNet.origin = 'stranger'\n")
    theirs = load_model(read_bundle(stranger, trust=True), "cpu")
    ours = load_model(read_bundle(), "cpu")
    assert getattr(theirs.network, "origin", "") == "stranger"
    assert not hasattr(ours.network, "origin")
    assert sys.modules.get("segnets") is before
    assert str(stranger) not in sys.path


def test_a_model_is_loaded_once() -> None:
    assert load_model(read_bundle(), "cpu") is load_model(read_bundle(), "cpu")
